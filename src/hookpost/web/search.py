"""One search for everything: what a text may name, and which list a filter is about.

A text is tried as everything that it can be: an id, a trace, an idempotency key, an event type, a host. Each is one
look-up through an index; what a payload holds is looked for in the newest ones. Filters by outcome or HTTP status are
about attempts, ``waiting`` and ``dead`` about deliveries; without them the list is that of events.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field

from hookpost.model import IdError, parse_id
from hookpost.storage.contract import NotFound
from hookpost.web import answers, schemas, shown
from hookpost.web.api import Api, ApiOf, Asking, WindowQuery, as_json, tenant_to_read
from hookpost.web.auth import Principal
from hookpost.web.problems import invalid

QUERY_CHARS_MAX = 512
# One or two characters are in every payload.
PAYLOAD_CHARS_MIN = 3
# Of what a text may name besides the list; who needs more asks for the list.
HITS_MAX = 20
_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)
_HEX = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_HOST = re.compile(r"(?:https?://)?(\[[0-9a-fA-F:.]+\]|[^\s/:?#@\[\]]+)(?::\d+)?(?:[/?#].*)?")
_STATUS = re.compile(r"[1-5]\d\d|[1-5]xx", re.ASCII)

router = APIRouter()


class SearchQuery(WindowQuery):
    """A text, filters, and where to go on."""

    q: Annotated[schemas.Text, Field(max_length=QUERY_CHARS_MAX, description="an id, trace, key, type or host")] = ""
    status: Annotated[Literal["delivered", "waiting", "dead"] | None, Field(description="deliveries in this state")] = (
        None
    )
    outcome: Annotated[Literal["delivered", "retry", "dead"] | None, Field(description="of attempts")] = None
    http_status: Annotated[str | None, Field(description='of attempts: 503, or a class such as "5xx"')] = None
    payload: Annotated[
        schemas.Text | None,
        Field(
            min_length=PAYLOAD_CHARS_MIN, max_length=QUERY_CHARS_MAX,
            description="a text that the payload holds, as it was posted; of the newest events, and not with a filter "
            "of deliveries or attempts. Payloads outside the database are not looked into",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True, slots=True)
class Term:
    """What a text may be: each part None when it cannot be that."""

    event_id: UUID | None = None
    endpoint_id: UUID | None = None
    trace_id: UUID | None = None
    key: str | None = None
    type: str | None = None
    host: str | None = None


@dataclass(slots=True)
class Found:
    """Hits by what they are, and one list, of ``kind``. ``looked_at``: rows that the search has seen, if it has."""

    events: list[dict[str, Any]] = field(default_factory=list)
    endpoints: list[dict[str, Any]] = field(default_factory=list)
    kind: str = "events"
    data: list[dict[str, Any]] = field(default_factory=list)
    next_cursor: str | None = None
    looked_at: int | None = None


def read_term(text: str) -> Term:
    """What a text may name."""
    for prefix in ("evt", "ep"):
        if text.startswith(prefix + "_"):
            found = _id(prefix, text)
            if found is not None:
                return Term(event_id=found) if prefix == "evt" else Term(endpoint_id=found)
    if match := _TRACEPARENT.fullmatch(text):
        return Term(trace_id=UUID(match[1]), event_id=UUID(match[1]))
    if _HEX.fullmatch(text):
        # A bare UUID: our own traces have the event's id.
        found = UUID(text)
        return Term(found, found, found, text)
    host = _HOST.fullmatch(text)
    return Term(
        key=text if len(text) <= 255 else None,
        type=text if _TYPE.fullmatch(text) else None,
        host=host[1] if host else None,
    )


def status_range(text: str | None) -> tuple[int, int] | None:
    """The statuses from one to another that a filter means; Problem 422 for what is none."""
    if text is None:
        return None
    if not _STATUS.fullmatch(text):
        raise invalid("http_status", 'must be a status such as 503, or a class such as "5xx"')
    if text.endswith("xx"):
        return int(text[0]) * 100, int(text[0]) * 100 + 99
    return int(text), int(text)


@router.get("/v1/search", response_model=answers.SearchAnswer, tags=["search"])
async def get_search(api: ApiOf, asking: Asking, query: Annotated[SearchQuery, Query()]) -> Response:
    """Events and endpoints that a text names, and a list that filters narrow down."""
    found = await search(api, asking, query)
    return as_json(
        {
            "events": found.events,
            "endpoints": found.endpoints,
            "kind": found.kind,
            "data": found.data,
            "next_cursor": found.next_cursor,
            "looked_at": found.looked_at,
        }
    )


async def search(api: Api, asking: Principal, query: SearchQuery) -> Found:
    """What there is."""
    of = tenant_to_read(asking, query.tenant_id)
    term = read_term(query.q) if query.q else Term()
    found = Found()
    if query.cursor is None and query.q:
        found.events, found.endpoints = await _hits(api, of, term)
    await _list(api, of, query, term, found)
    return found


async def _hits(api: Api, of: UUID | None, term: Term) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    store = api.store
    events: dict[UUID, Mapping[str, Any]] = {}
    endpoints: list[Mapping[str, Any]] = []
    if term.event_id is not None:
        with suppress(NotFound):
            event = (await store.get_event(of, term.event_id)).event
            events[event["event_id"]] = {**event, "delivery_count": len(event["owed"])}
    if term.trace_id is not None:
        events |= _by_id(await store.events_by_trace(of, term.trace_id, limit=HITS_MAX))
    if term.key is not None:
        events |= _by_id(await store.events_by_key(of, term.key, limit=HITS_MAX))
    if term.endpoint_id is not None:
        with suppress(NotFound):
            endpoints.append(await store.get_endpoint(of, term.endpoint_id))
    if term.host is not None:
        endpoints += await store.endpoints_by_host(of, term.host, limit=HITS_MAX)
    return [shown.event_item(row) for row in events.values()], [api.show_endpoint(row) for row in endpoints]


async def _list(api: Api, of: UUID | None, query: SearchQuery, term: Term, found: Found) -> None:
    """The list that the filters are about, with what of the term it can be narrowed down by."""
    store, statuses = api.store, status_range(query.http_status)
    since, until = query.bounds()
    filters = {"list": "search", **query.model_dump(exclude={"limit", "cursor", "tenant_id"})}
    after = api.cursors.read(query.cursor, of, filters)
    window: dict[str, Any] = {"since": since, "until": until, "after": after, "limit": query.limit}
    rows: Sequence[Mapping[str, Any]]
    if query.payload and (query.outcome or statuses or query.status):
        raise invalid("payload", "is about events: leave out status, outcome and http_status")
    if query.outcome or statuses or query.status == "delivered":
        found.kind = "attempts"
        outcome = query.outcome or ("delivered" if query.status else None)
        if term.event_id or term.endpoint_id:
            page = await store.list_attempts(
                of, endpoint_id=term.endpoint_id, event_id=None if term.endpoint_id else term.event_id,
                outcome=outcome, **window
            )  # fmt: skip
            low, high = statuses or (0, 999)
            rows = [row for row in page.rows if statuses is None or low <= (row["http_status"] or 0) <= high]
            next_key = page.next_key
        else:
            scanned = await store.scan_attempts(of, outcome=outcome, http_status=statuses, **window)
            rows, next_key, found.looked_at = scanned.rows, scanned.next_key, scanned.looked_at
        show: Any = shown.attempt
    elif query.status == "dead":
        found.kind, show = "dead_letters", shown.dead_letter
        page = await store.list_dead_letters(of, endpoint_id=term.endpoint_id, reason=None, **window)
        rows, next_key = page.rows, page.next_key
    elif query.status == "waiting":
        found.kind, show = "waiting", shown.waiting_delivery
        if term.endpoint_id is not None:
            page = await store.list_waiting(of, term.endpoint_id, after=after, limit=query.limit)
        else:
            page = await store.list_waiting_of_all(of, after=after, limit=query.limit)
        rows, next_key = page.rows, page.next_key
    elif query.q and term.type is None:
        return
    else:
        show = shown.event_item
        if term.type is not None or query.payload is not None:
            holding = None if query.payload is None else query.payload.encode()
            scanned = await store.scan_events(of, type=term.type, holding=holding, **window)
            rows, next_key, found.looked_at = scanned.rows, scanned.next_key, scanned.looked_at
        else:
            page = await store.list_events(of, type=None, **window)
            rows, next_key = page.rows, page.next_key
    found.data = [show(row) for row in rows]
    found.next_cursor = api.cursors.show(next_key, of, filters)


def _by_id(rows: Sequence[Mapping[str, Any]]) -> dict[UUID, Mapping[str, Any]]:
    return {row["event_id"]: row for row in rows}


def _id(prefix: str, text: str) -> UUID | None:
    try:
        return parse_id(prefix, text)
    except IdError:
        return None
