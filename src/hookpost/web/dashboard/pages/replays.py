"""Bulk replays: how many deliveries match, before anything is sent; then how far it is."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from hookpost.web.dashboard.forms import Form
from hookpost.web.dashboard.pages.search import endpoint_names
from hookpost.web.dashboard.render import with_query
from hookpost.web.dashboard.visit import Visit, see
from hookpost.web.problems import refusal

PATH = "/dashboard/replays"
LISTED = 50
_FIELDS = ("endpoint_id", "type", "status", "reason", "since", "until")


async def listed(visit: Visit) -> Response:
    """All of them, newest first."""
    answer = await visit.ask(
        "/v1/replays", tenant_id=visit.tenant_filter(), cursor=visit.query.optional("cursor"), limit=LISTED
    )
    cursor = answer["next_cursor"]
    return visit.page(
        "replays.html",
        replays=answer["data"],
        names=await _names(visit, answer["data"]),
        tenants=await visit.tenant_names(answer["data"]),
        next_url=with_query(PATH, tenant_id=visit.tenant_filter(), cursor=cursor) if cursor else None,
    )


async def preview(visit: Visit) -> Response:
    """How many deliveries a replay would be."""
    wanted, tenant_id = _wanted(visit.query), await _tenant(visit, visit.query)
    counted = await visit.act("POST", "/v1/replays", tenant_id=tenant_id, form={**wanted, "dry_run": True})
    return visit.page(
        "replay_preview.html", wanted=wanted, counted=counted, tenant_id=tenant_id, names=await _names(visit, [wanted]),
        default_rate=visit.desk.api.settings.replay_rate_limit,
    )  # fmt: skip


async def create(visit: Visit) -> Response:
    """Begin it."""
    wanted = {**_wanted(visit.form), "rate_limit": visit.form.number("rate_limit")}
    started = await visit.act("POST", "/v1/replays", tenant_id=await _tenant(visit, visit.form), form=wanted)
    return see(f"{PATH}/{started['replay_id']}")


async def show(visit: Visit) -> Response:
    """How far it is."""
    replay = await _replay(visit)
    left = replay["matched"] - replay["replayed"] if replay["state"] == "running" else 0
    names = await _names(visit, [replay])
    tenants = await visit.tenant_names([replay])
    left_s = max(0, left) / replay["rate_limit"]
    return visit.page("replay.html", replay=replay, names=names, tenants=tenants, left_s=left_s)


async def cancel(visit: Visit) -> Response:
    """End it."""
    replay = await _replay(visit)
    await visit.act("DELETE", f"/v1/replays/{replay['replay_id']}", tenant_id=replay["tenant_id"])
    return see(f"{PATH}/{replay['replay_id']}", did="replay_cancelled")


async def _replay(visit: Visit) -> dict[str, Any]:
    return await visit.ask(f"/v1/replays/{visit.request.path_params['replay_id']}")


async def _names(visit: Visit, rows: list[dict[str, Any]]) -> dict[str, str]:
    """The URLs of the endpoints that replays are about."""
    return await endpoint_names(visit, [row for row in rows if row.get("endpoint_id")])


def _wanted(form: Form) -> dict[str, Any]:
    given = {name: form.optional(name) for name in _FIELDS}
    return {name: value for name, value in given.items() if value is not None}


async def _tenant(visit: Visit, form: Form) -> str | None:
    """Whose deliveries: the admin says so, or the endpoint does."""
    if not visit.principal.admin:
        return None
    endpoint_id = form.optional("endpoint_id")
    if endpoint_id is not None:
        endpoint = await visit.ask(f"/v1/webhook_endpoints/{endpoint_id}")
        tenant_id: str = endpoint["tenant_id"]
        return tenant_id
    named = form.optional("tenant_id")
    if named is None:
        raise refusal(400, "a bulk replay is of one tenant: choose one on the page Tenants first")
    return str((await visit.ask(f"/v1/tenants/{named}"))["tenant_id"])
