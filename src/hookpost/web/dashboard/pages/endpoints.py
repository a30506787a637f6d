"""Endpoints: the list, and one of them with its health, what waits, what is dead, and what can be done."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from hookpost.model import show_id
from hookpost.web import shown
from hookpost.web.dashboard import own_headers, own_tls, words
from hookpost.web.dashboard.ask import Refusal
from hookpost.web.dashboard.charts import histogram, strip
from hookpost.web.dashboard.figures import histogram_buckets, outcome_points
from hookpost.web.dashboard.render import with_query
from hookpost.web.dashboard.visit import Visit, see

PATH = "/dashboard/endpoints"
LISTED = 50
RECENT = 15
# The health strip: a day in pieces of half an hour.
STRIP_S, STRIP_STEP_S = 86_400, 1_800
# How long the old secret may go on signing: from "at once" to a week.
GRACES = {0: "at once", 3_600: "in 1 hour", 86_400: "in 1 day", 604_800: "in 7 days"}


async def listed(visit: Visit) -> Response:
    """All endpoints, newest first."""
    answer = await visit.ask(
        "/v1/webhook_endpoints", tenant_id=visit.tenant_filter(), cursor=visit.query.optional("cursor"), limit=LISTED
    )
    cursor = answer["next_cursor"]
    return visit.page(
        "endpoints.html",
        endpoints=answer["data"],
        tenants=await visit.tenant_names(answer["data"]),
        next_url=with_query(PATH, tenant_id=visit.tenant_filter(), cursor=cursor) if cursor else None,
        may_write=visit.may("endpoints:write"),
    )


async def show(visit: Visit) -> Response:
    """One endpoint."""
    endpoint = await _endpoint(visit)
    endpoint_id, now = endpoint["endpoint_id"], visit.desk.now()
    stats, attempts, waiting, dead = await asyncio.gather(
        visit.ask("/v1/stats", endpoint_id=endpoint_id, from_=shown.show_time(now - STRIP_S), step=STRIP_STEP_S),
        visit.ask("/v1/attempts", endpoint_id=endpoint_id, limit=RECENT),
        visit.ask(f"/v1/webhook_endpoints/{endpoint_id}/deliveries", status="waiting", limit=RECENT),
        visit.ask("/v1/dead_letters", endpoint_id=endpoint_id, limit=RECENT),
    )
    return visit.page(
        "endpoint.html",
        endpoint=endpoint,
        stats=stats,
        strip=strip(outcome_points(stats["series"], step_s=STRIP_STEP_S), name="Health over the last 24 hours"),
        histogram=histogram(histogram_buckets(stats["totals"]), name="Attempts by how long they took")
        if stats["totals"]["latency_buckets"]
        else None,
        attempts=attempts["data"],
        waiting=waiting["data"],
        dead=dead["data"],
        next_retry=min((row["next_attempt_at"] for row in waiting["data"] if row["next_attempt_at"]), default=None),
        secrets=await _secrets(visit, endpoint) if visit.may("endpoints:write") else None,
        graces=GRACES,
        may_write=visit.may("endpoints:write"),
        may_replay=visit.may("replay"),
        trouble=_trouble(endpoint),
        tenants=await visit.tenant_names([endpoint]),
    )


async def secret(visit: Visit) -> Response:
    """The secrets, to be copied; they are on this page alone."""
    endpoint = await _endpoint(visit)
    answer = await visit.ask(f"/v1/webhook_endpoints/{endpoint['endpoint_id']}/secret")
    return visit.page("secret.html", endpoint=endpoint, secrets=answer["secrets"])


async def rotate(visit: Visit) -> Response:
    """A new secret beside the old ones."""
    endpoint = await _endpoint(visit)
    form = {"grace_period_s": visit.form.number("grace_period_s"), "secret": visit.form.optional("secret")}
    await visit.act(
        "POST", f"/v1/webhook_endpoints/{endpoint['endpoint_id']}/secret/rotate", tenant_id=endpoint["tenant_id"],
        form=form,
    )  # fmt: skip
    return see(f"{PATH}/{endpoint['endpoint_id']}/secret")


async def pause(visit: Visit) -> Response:
    """What is owed to it waits."""
    return await _switch(visit, "pause", "paused")


async def resume(visit: Visit) -> Response:
    """It is delivered to again."""
    return await _switch(visit, "resume", "resumed")


async def delete(visit: Visit) -> Response:
    """Delete it; what is owed to it is cancelled."""
    endpoint = await _endpoint(visit)
    await visit.act("DELETE", f"/v1/webhook_endpoints/{endpoint['endpoint_id']}", tenant_id=endpoint["tenant_id"])
    return see(PATH, did="deleted")


# ---- settings --------------------------------------------------------------------------------------------------------


async def new(visit: Visit) -> Response:
    """The form of a new endpoint."""
    visit.principal.require("endpoints:write")
    return _settings(visit, None, {})


async def create(visit: Visit) -> Response:
    """Create it, or show what is wrong with the form."""
    entered, fault = _given(visit, {})
    given = {name: value for name, value in entered.items() if value is not None}
    try:
        if fault is not None:
            raise fault
        tenant_id = visit.form.optional("tenant_id")
        made = await visit.act("POST", "/v1/webhook_endpoints", tenant_id=tenant_id, form=given)
    except Refusal as refused:
        return _settings(visit, None, given, refused)
    return see(f"{PATH}/{made['endpoint_id']}/secret", did="created")


async def edit(visit: Visit) -> Response:
    """The form of its settings."""
    visit.principal.require("endpoints:write")
    endpoint = await _endpoint(visit)
    return _settings(visit, endpoint, await _own(visit, endpoint))


async def save(visit: Visit) -> Response:
    """Save them, or show what is wrong with the form."""
    endpoint = await _endpoint(visit)
    given, fault = _given(visit, endpoint["headers"])
    path = f"/v1/webhook_endpoints/{endpoint['endpoint_id']}"
    try:
        if fault is not None:
            raise fault
        await visit.act("PATCH", path, tenant_id=endpoint["tenant_id"], form=given)
    except Refusal as refused:
        return _settings(visit, endpoint, {**await _own(visit, endpoint), **given}, refused)
    return see(f"{PATH}/{endpoint['endpoint_id']}", did="saved")


async def _own(visit: Visit, endpoint: dict[str, Any]) -> dict[str, Any]:
    """The endpoint with what it says itself: a default that is saved would be one no longer."""
    row = await visit.desk.api.store.get_endpoint(
        visit.principal.reader(), visit.path_id("ep", "endpoint_id", "endpoint")
    )
    return {
        **endpoint,
        "max_in_flight": row["max_in_flight"],
        "retry": {name: row[name] for name in endpoint["retry"]},
        "timeouts": {name: row[name] for name in endpoint["timeouts"]},
    }


def _settings(
    visit: Visit, endpoint: dict[str, Any] | None, values: dict[str, Any], refused: Refusal | None = None
) -> Response:
    return visit.page(
        "endpoint_settings.html",
        refused=refused,
        endpoint=endpoint,
        values=values,
        header_lines=_header_lines(visit, endpoint, refused),
        defaults=visit.desk.api.settings,
    )


def _header_lines(visit: Visit, endpoint: dict[str, Any] | None, refused: Refusal | None) -> str:
    """What the field of the endpoint's own headers holds: those that there are, or what was entered and refused."""
    current = {} if endpoint is None else endpoint["headers"]
    return own_headers.lines(current) if refused is None else own_headers.again(visit.form.raw("headers"), current)


def _given(visit: Visit, headers: dict[str, str]) -> tuple[dict[str, Any], Refusal | None]:
    """The form as the API takes it, and what of it cannot be taken; an empty field is the default. ``headers``: the
    endpoint's own, as they are."""
    form = visit.form
    changed, fault = {}, None
    try:
        changed = own_headers.change(next(iter(form.all("headers")), None), form.raw("secret_headers"), headers)
    except own_headers.LineError as error:
        fault = Refusal(422, {"detail": str(error)})
    # Left out where nothing changes: null would take all of them away.
    own = {"headers": changed} if changed else {}
    tls = own_tls.change(form)
    return {
        **own,
        **({"tls": tls} if tls else {}),
        "url": form.text("url"),
        "description": form.optional("description"),
        "events": form.text("events").split() or None,
        "rate_limit": form.number("rate_limit"),
        "max_in_flight": form.whole("max_in_flight"),
        "ordered": form.is_set("ordered"),
        "on_dead": form.optional("on_dead"),
        "ack": "signed" if form.is_set("ack") else None,
        "forward_trace": form.is_set("forward_trace"),
        "retry": {
            "base_s": form.number("base_s"),
            "cap_s": form.number("cap_s"),
            "max_attempts": form.whole("max_attempts"),
            "deadline_s": form.number("deadline_s"),
        },
        "timeouts": {
            "connect_s": form.number("connect_s"),
            "first_byte_s": form.number("first_byte_s"),
            "total_s": form.number("total_s"),
        },
    }, fault


# ---- the endpoint ----------------------------------------------------------------------------------------------------


async def _endpoint(visit: Visit) -> dict[str, Any]:
    endpoint_id = show_id("ep", visit.path_id("ep", "endpoint_id", "endpoint"))
    return await visit.ask(f"/v1/webhook_endpoints/{endpoint_id}")


async def _secrets(visit: Visit, endpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """When each secret was made and for how long it signs; what it is stays on the page that is for it."""
    rows = await visit.desk.api.store.use_secrets(
        visit.acting(endpoint["tenant_id"]).writer("endpoints:write"), visit.path_id("ep", "endpoint_id", "endpoint")
    )
    now = visit.desk.now()
    return [
        {
            "created_at": shown.show_time(row["created_at"]),
            "left_s": None if row["expires_at"] is None else max(0.0, row["expires_at"] - now),
        }
        for row in rows
    ]


async def _switch(visit: Visit, action: str, done: str) -> Response:
    endpoint = await _endpoint(visit)
    path = f"/v1/webhook_endpoints/{endpoint['endpoint_id']}"
    await visit.act("POST", f"{path}/{action}", tenant_id=endpoint["tenant_id"])
    return see(f"{PATH}/{endpoint['endpoint_id']}", did=done)


def _trouble(endpoint: dict[str, Any]) -> str | None:
    """What keeps deliveries from this endpoint, if anything does."""
    health = endpoint["health"]
    if endpoint["status"] != "enabled":
        reason = words.STATUS_REASON.get(endpoint["status_reason"] or "", endpoint["status_reason"] or "by request")
        return f"This endpoint is {endpoint['status']} ({reason}). What is owed to it waits until you resume it."
    if health["state"] != "closed":
        return f"Its breaker is {words.STATUS[health['state']]}: it {words.BREAKER[health['state']]}."
    return None
