"""One event: its payload, the way of each delivery from the post to where it is now, and what can be done."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from starlette.responses import Response
from uuid_utils.compat import uuid7

from hookpost.model import show_id
from hookpost.policy.request import HeaderError
from hookpost.storage.contract import EventView, NotFound
from hookpost.web import shown
from hookpost.web.accepted import payload_of
from hookpost.web.dashboard import foreign, words
from hookpost.web.dashboard.pages.search import endpoint_names
from hookpost.web.dashboard.phases import phases
from hookpost.web.dashboard.pretty import pretty
from hookpost.web.dashboard.render import exact
from hookpost.web.dashboard.sent import curl, headers_of
from hookpost.web.dashboard.visit import Visit, see
from hookpost.web.problems import not_found

# Attempts in one page; a delivery of many retries has them behind "older".
ATTEMPTS_SHOWN = 100
# Deliveries that are told in full; those of a larger fan-out are listed, and told one by one.
DELIVERIES_TOLD = 12
DELIVERIES_LISTED = 500
_DIFF_LINES_MAX = 400


async def show(visit: Visit) -> Response:
    """The page; with ``endpoint_id`` of one delivery alone."""
    view, payload, state = await _event(visit)
    event = _shown(view)
    only = visit.query.optional("endpoint_id")
    deliveries = [row for row in event["deliveries"] if only is None or row["endpoint_id"] == only]
    told = deliveries if len(deliveries) <= DELIVERIES_TOLD else []
    answer = await visit.ask(
        "/v1/attempts", event_id=event["event_id"], endpoint_id=only, limit=ATTEMPTS_SHOWN,
        cursor=visit.query.optional("cursor"),
    )  # fmt: skip
    attempts = [{**attempt, "why": words.error(attempt)} for attempt in answer["data"]]
    scale_ms = max([attempt["latency_ms"] for attempt in attempts], default=1)
    whys, more = await _explained(visit, event, only)
    unmatched = [why for why in whys.values() if why["status"] == "not_matched"] if only is None else []
    names = await endpoint_names(visit, [*deliveries[:DELIVERIES_LISTED], *unmatched])
    return visit.page(
        "event.html",
        event=event,
        state=state,
        payload=_payload(payload),
        told=[
            {
                **delivery,
                "url": names.get(delivery["endpoint_id"], delivery["endpoint_id"]),
                "explained": whys.get(delivery["endpoint_id"]),
                "attempts": [
                    {**attempt, "phases": phases(attempt["timings_ms"], scale_ms)}
                    for attempt in reversed(attempts)
                    if attempt["endpoint_id"] == delivery["endpoint_id"]
                ],
            }
            for delivery in told
        ],
        listed=[] if told else deliveries[:DELIVERIES_LISTED],
        deliveries=len(event["deliveries"]),
        counts=Counter(row["status"] for row in event["deliveries"]),
        names=names,
        unmatched=unmatched,
        more=more,
        tenants=await visit.tenant_names([event]),
        only=only,
        older=answer["next_cursor"],
        may_replay=visit.may("replay"),
    )


async def _explained(
    visit: Visit, event: Mapping[str, Any], only: str | None
) -> tuple[dict[str, dict[str, Any]], bool]:
    """What happened and what happens next, in words, by endpoint, those that the event was not owed to among them; and
    whether there are further ones."""
    answer = await visit.ask(f"/v1/events/{event['event_id']}/explain", endpoint_id=only)
    return {why["endpoint_id"]: why for why in answer["endpoints"]}, answer["more"]


async def payload(visit: Visit) -> Response:
    """The payload as it was posted, byte for byte, to be kept as a file: no browser shows it as a page."""
    _, raw, _ = await _event(visit)
    if raw is None:
        raise not_found("payload: it was removed, or is missing from the payload store")
    headers = {"Content-Disposition": 'attachment; filename="payload.json"'}
    return Response(raw, media_type="application/json", headers=headers)


async def attempt(visit: Visit) -> Response:
    """One attempt: what was sent, what came back, and the same as a command."""
    view, raw, _ = await _event(visit)
    found = await _attempt(visit, view, visit.request.path_params["attempt_id"])
    endpoint_id = UUID(found["endpoint_id"].removeprefix("ep_"))
    urls = await visit.desk.api.store.endpoint_urls(view.event["tenant_id"], [endpoint_id])
    url = urls.get(endpoint_id, "")
    secrets: list[dict[str, Any]] = []
    endpoint: dict[str, Any] = {"headers": {}, "forward_trace": False}
    with suppress(NotFound):  # a deleted endpoint has none
        endpoint = await visit.desk.api.store.get_endpoint(view.event["tenant_id"], endpoint_id)
        secrets = await visit.desk.api.store.use_secrets(view.event["tenant_id"], endpoint_id)
    sent = command = None
    if raw is not None:
        with suppress(HeaderError):  # then it was never sent either
            sent, command = _requests(visit, view, found, endpoint, url=url, secrets=secrets, payload=raw)
    return visit.page(
        "attempt.html",
        event=_shown(view),
        attempt={**found, "why": words.error(found), "phases": phases(found["timings_ms"], found["latency_ms"])},
        url=url,
        sent=sent,
        signed=bool(secrets),
        changed_at=_changed_after(endpoint, found["started"]),
        masked=None in endpoint["headers"].values(),
        answer=foreign.readable(found["head"]),
        command=command,
        others=await _others(visit, found),
    )


def _requests(
    visit: Visit,
    view: EventView,
    found: Mapping[str, Any],
    endpoint: Mapping[str, Any],
    *,
    url: str,
    secrets: list[dict[str, Any]],
    payload: bytes,
) -> tuple[str, str | None]:
    """The headers of an attempt as they were sent, and a command that sends the same now. Raises HeaderError."""
    common: dict[str, Any] = {
        "url": url,
        "endpoint_id": UUID(found["endpoint_id"].removeprefix("ep_")),
        "payload": payload,
        "user_agent": f"Hookpost/{visit.desk.api.settings.version}",
    }
    attempt_id = UUID(found["attempt_id"].removeprefix("att_"))
    retries, at = found["retry_count"], found["started"]
    own, told = endpoint["headers"], found["trace"] is not None
    sent = headers_of(
        view.event, secrets, own, attempt_id=attempt_id, retry_count=retries, at=at, forward_trace=told, **common
    )
    # A signature that is good now lets its holder deliver the event: whoever may replay it may have one.
    if not (visit.may("replay") and secrets and url):
        return sent, None
    now = visit.desk.now()
    fresh_id = uuid7(nanoseconds=int(now * 1e9))
    tell = endpoint["forward_trace"]
    fresh = headers_of(
        view.event, secrets, own, attempt_id=fresh_id, retry_count=0, at=now, forward_trace=tell, **common
    )
    return sent, curl(url, fresh, payload)


def _changed_after(endpoint: Mapping[str, Any], started: float) -> str | None:
    """When the endpoint was changed last, if that was after an attempt: what was sent is not kept, but made again."""
    changed: float | None = endpoint.get("updated_at")
    return None if changed is None or changed <= started else shown.show_time(changed)


async def compare(visit: Visit) -> Response:
    """Two attempts side by side."""
    view, _, _ = await _event(visit)
    one, other = [
        await _attempt(visit, view, visit.query.text(name) or visit.request.path_params["attempt_id"])
        for name in ("a", "b")
    ]
    if one["started"] > other["started"]:
        one, other = other, one
    rows = [(text, pick(one), pick(other)) for text, pick in _COMPARED]
    before, after = (foreign.readable(found["head"]).splitlines()[:_DIFF_LINES_MAX] for found in (one, other))
    lines = list(difflib.unified_diff(before, after, lineterm="", n=3))[2:]
    return visit.page(
        "compare.html", event=_shown(view), one=one, other=other, rows=rows, lines=lines, same=before == after
    )


async def replay(visit: Visit) -> Response:
    """Deliver it once more."""
    return await _order(visit, "replay", done="replayed", nothing="nothing_to_replay")


async def retry_now(visit: Visit) -> Response:
    """Try what waits now."""
    return await _order(visit, "retry_now", done="retrying", nothing="nothing_waits")


async def cancel(visit: Visit) -> Response:
    """Cancel what is not delivered yet."""
    return await _order(visit, "cancel", done="cancelled", nothing="nothing_waits")


async def _order(visit: Visit, action: str, *, done: str, nothing: str) -> Response:
    event_id = show_id("evt", visit.path_id("evt", "event_id", "event"))
    event = await visit.ask(f"/v1/events/{event_id}")
    endpoint_id = visit.form.optional("endpoint_id")
    answer = await visit.act(
        "POST", f"/v1/events/{event_id}/{action}", tenant_id=event["tenant_id"], form={"endpoint_id": endpoint_id}
    )
    return see(f"/dashboard/events/{event_id}", did=done if answer["delivery_count"] else nothing)


# ---- from rows to what is shown --------------------------------------------------------------------------------------


async def _event(visit: Visit) -> tuple[EventView, bytes | None, str]:
    """The event with its payload as bytes: JSON of it would have to be decoded again."""
    view = await visit.desk.api.store.get_event(visit.principal.reader(), visit.path_id("evt", "event_id", "event"))
    payload, state = await payload_of(visit.desk.api.payloads, view.event)
    return view, payload, state


def _shown(view: EventView) -> dict[str, Any]:
    return {**shown.event(view, None, ""), "trace_id": view.event["event_id"].hex, "producer_trace": _hex(view)}


def _hex(view: EventView) -> str | None:
    trace = view.event["trace_id"]
    return None if trace is None else trace.hex


def _payload(raw: bytes | None) -> dict[str, Any] | None:
    if raw is None:
        return None
    text, left_out = foreign.cut(foreign.readable(raw))
    return {"raw": text, "left_out": left_out, "pretty": pretty(text, foreign.SHOWN_CHARS_MAX), "bytes": len(raw)}


async def _rows(visit: Visit, view: EventView, endpoint_id: UUID | None) -> list[dict[str, Any]]:
    page = await visit.desk.api.store.list_attempts(
        view.event["tenant_id"], endpoint_id=endpoint_id, event_id=view.event["event_id"], outcome=None, since=None,
        until=None, after=None, limit=500,
    )  # fmt: skip
    return page.rows


async def _attempt(visit: Visit, view: EventView, text: str) -> dict[str, Any]:
    for row in await _rows(visit, view, None):
        if show_id("att", row["attempt_id"]) == text:
            return {
                **shown.attempt(row),
                "started": row["started_at"],
                "head": row["response_head"],
                "trace": row["trace_id"],
            }
    raise not_found("attempt of this event")


async def _others(visit: Visit, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The other attempts of the same delivery, to compare with."""
    answer = await visit.ask(
        "/v1/attempts", event_id=found["event_id"], endpoint_id=found["endpoint_id"], limit=ATTEMPTS_SHOWN
    )
    return [other for other in answer["data"] if other["attempt_id"] != found["attempt_id"]]


def _timing(name: str) -> Any:
    return lambda attempt: f"{attempt['timings_ms'][name]} ms"


def _plain(name: str) -> Any:
    return lambda attempt: "–" if attempt[name] is None else str(attempt[name])


_COMPARED: tuple[tuple[str, Any], ...] = (
    ("Started", lambda attempt: f"{exact(attempt['started_at'])} UTC"),
    ("Outcome", lambda attempt: words.OUTCOME[attempt["outcome"]]),
    ("HTTP status", _plain("http_status")),
    ("Error", _plain("error_code")),
    ("Attempts before it", _plain("retry_count")),
    ("Replay", lambda attempt: f"no. {attempt['generation']}" if attempt["generation"] else "–"),
    ("Address", _plain("address")),
    ("Protocol", lambda attempt: words.protocol(attempt["protocol"]) or "–"),
    ("Name looked up after", _timing("dns")),
    ("Connected after", _timing("connect")),
    ("TLS done after", _timing("tls")),
    ("First byte after", _timing("first_byte")),
    ("Took", _timing("total")),
    ("Sent", lambda attempt: f"{attempt['request_bytes']} bytes"),
    ("Received", lambda attempt: f"{attempt['response_bytes']} bytes"),
    ("Hash of the answer's body", _plain("response_hash")),
    ("Worker", _plain("worker")),
)
