"""Search: one box, filters, and results that a URL brings back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from starlette.responses import Response

from hookpost.model import show_id
from hookpost.web import shown
from hookpost.web.dashboard.ask import Refusal
from hookpost.web.dashboard.render import with_query
from hookpost.web.dashboard.visit import Visit
from hookpost.web.search import HITS_MAX

PATH = "/dashboard/search"
# Time spans that one click chooses; any other can stand in the URL.
SPANS = {"1h": 3_600, "24h": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}
KINDS = {"events": "Events", "attempts": "Attempts", "dead_letters": "Dead letters", "waiting": "Waiting deliveries"}
ROWS = 50
# A list tells where an event stands that is owed to so many endpoints: fifty of them are some thousand deliveries.
OWED_MAX = 20
_NOTHING: Mapping[str, Any] = {
    "events": [], "endpoints": [], "kind": "events", "data": [], "next_cursor": None, "looked_at": None,
}  # fmt: skip
_FILTERS = ("q", "status", "outcome", "http_status", "payload", "within", "since", "until")


async def show(visit: Visit) -> Response:
    """The page."""
    query = visit.query
    chosen: dict[str, Any] = {name: query.optional(name) for name in _FILTERS}
    since = chosen["since"]
    if chosen["within"] in SPANS:
        since = shown.show_time(visit.desk.now() - SPANS[chosen["within"]])
    chosen["tenant_id"] = visit.tenant_filter()
    asked = {name: value for name, value in chosen.items() if name != "within"} | {"since": since}
    refused, found = None, _NOTHING
    try:
        found = await visit.ask("/v1/search", **asked, cursor=query.optional("cursor"), limit=ROWS)
    except Refusal as refusal:
        if refusal.status != 422:
            raise
        refused = refusal  # the form again, as it was filled in
    # The next page begins where this one ended, whatever the time is by then.
    onwards = {**chosen, "within": None, "since": since}
    next_url = with_query(PATH, **onwards, cursor=found["next_cursor"]) if found["next_cursor"] else None
    events = [*found["events"], *(found["data"] if found["kind"] == "events" else ())]
    return visit.page(
        "search.html",
        refused=refused,
        found=found,
        chosen=chosen,
        spans=SPANS,
        kind=KINDS[found["kind"]],
        next_url=next_url,
        names=await endpoint_names(visit, found["data"]),
        statuses=await _statuses(visit, events),
        tenants=await visit.tenant_names([*events, *found["endpoints"]]),
        hits_max=HITS_MAX,
        first_page=query.optional("cursor") is None,
    )


async def _statuses(visit: Visit, events: list[dict[str, Any]]) -> dict[str, str]:
    """Where events stand, by id; of a large fan-out the event's own page tells."""
    asked = {
        (UUID(event["event_id"].removeprefix("evt_")), UUID(event["tenant_id"].removeprefix("ten_")))
        for event in events
        if event["delivery_count"] <= OWED_MAX
    }
    if not asked:
        return {}
    found = await visit.desk.api.store.event_statuses(asked)
    return {show_id("evt", event_id): status for event_id, status in found.items()}


async def endpoint_names(visit: Visit, rows: list[dict[str, Any]]) -> dict[str, str]:
    """The URLs of the endpoints that rows name, by id."""
    ids = {UUID(row["endpoint_id"].removeprefix("ep_")) for row in rows if "endpoint_id" in row}
    if not ids:
        return {}
    urls = await visit.desk.api.store.endpoint_urls(visit.principal.tenant_id, ids)
    return {f"ep_{endpoint_id.hex}": url for endpoint_id, url in urls.items()}
