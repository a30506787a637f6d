"""What is recorded of an event at each endpoint, read for `policy/explain`, which turns it into words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import Any
from uuid import UUID

from hookpost.model import REMOVED, DeadReason, EndpointStatus, PayloadRef, WaitReason, minted_at
from hookpost.policy.explain import (
    Arrived,
    Cancelled,
    Delivery,
    Died,
    EndpointFacts,
    EventFacts,
    EventWhy,
    Facts,
    Failure,
    Queued,
    State,
    Untraced,
    Waiting,
)
from hookpost.storage.contract import NotFound
from hookpost.storage.endpoints import EndpointDefaults
from hookpost.storage.postgres.admin import SQL as ADMIN
from hookpost.storage.postgres.admin import breakers_of, delivery_state, held_until
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.rows import found as _found

SQL = load("explain")
IS_PAUSED = load("worker")["is_paused"]


class ExplainQueries:
    """Implements the part of AdminStore that says why."""

    _connections: Connections
    _defaults: EndpointDefaults

    async def why(
        self, tenant_id: UUID | None, event_id: UUID, endpoint_id: UUID | None, *, owed_max: int, others_max: int
    ) -> EventWhy:
        # One snapshot: what moves between tables meanwhile would be in both, or in none.
        async with (
            self._connections.use(f"explain event {event_id}") as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            row = _found(
                await connection.fetchrow(ADMIN["get_event"], event_id, tenant_id, minted_at(event_id)), "event"
            )
            event = await _event(connection, row)
            states = await connection.fetch(ADMIN["delivery_states"], event_id, event.tenant_id, None)
            owed = [state["endpoint_id"] for state in states]
            if endpoint_id is None:
                others = await connection.fetch(SQL["others"], event.tenant_id, owed, others_max + 1)
                asked = [*owed[:owed_max], *(other["endpoint_id"] for other in others[:others_max])]
                more = len(owed) > owed_max or len(others) > others_max
            else:
                asked, more = [endpoint_id], False
            endpoints = await _endpoints(connection, event.tenant_id, asked, self._defaults)
            if endpoint_id is not None and endpoint_id not in endpoints:
                raise NotFound("there is no such endpoint")
            kept = [state for state in states if state["endpoint_id"] in endpoints]
            deliveries = await _deliveries(connection, event, kept)
        pairs = [Facts(event, endpoints[each], deliveries.get(each)) for each in asked if each in endpoints]
        return EventWhy(event, tuple(pairs), more)


async def _event(connection: Any, row: Mapping[str, Any]) -> EventFacts:
    ref = row["payload_ref"]
    return EventFacts(
        event_id=row["event_id"],
        tenant_id=row["tenant_id"],
        type=row["type"],
        accepted_at=row["created_at"],
        payload_removed=ref is not None and PayloadRef.parse(ref) is REMOVED,
        paused=await connection.fetchval(IS_PAUSED),
    )


async def _endpoints(
    connection: Any, tenant_id: UUID, asked: Sequence[UUID], defaults: EndpointDefaults
) -> dict[UUID, EndpointFacts]:
    rows = await connection.fetch(SQL["endpoints"], tenant_id, asked)
    breakers = await breakers_of(connection, tenant_id, {row["endpoint_id"]: row["url"] for row in rows})
    return {row["endpoint_id"]: _endpoint(row, breakers.get(row["endpoint_id"]), defaults) for row in rows}


def _endpoint(row: Mapping[str, Any], breaker: Mapping[str, Any] | None, defaults: EndpointDefaults) -> EndpointFacts:
    own_cap, own_attempts = row["max_in_flight"], row["max_attempts"]
    return EndpointFacts(
        endpoint_id=row["endpoint_id"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        events=tuple(row["events"]),
        status=EndpointStatus(row["status"]),
        status_reason=row["status_reason"],
        deleted_at=row["deleted_at"],
        rate_limit=row["rate_limit"],
        ordered=row["ordered"],
        max_in_flight=defaults.max_in_flight if own_cap is None else own_cap,
        max_attempts=defaults.retry.max_attempts if own_attempts is None else own_attempts,
        hold_until=row["hold_until"] or 0.0,
        moving=row["moving"],
        breaker="closed" if breaker is None else breaker["state"],
        reopen_at=None if breaker is None else breaker["reopen_at"],
    )


async def _deliveries(connection: Any, event: EventFacts, states: Sequence[Any]) -> dict[UUID, Delivery]:
    """The deliveries of these endpoints, by endpoint; only what their states make it worth to ask for is asked for."""
    held = await held_until(connection, event.tenant_id, states)
    derived = {s["endpoint_id"]: (s, delivery_state(s, held.get(s["endpoint_id"]))) for s in states}
    by_status: dict[str, list[Any]] = {}
    for state, shown in derived.values():
        by_status.setdefault(shown["status"], []).append(state)
    ids = list(derived)
    tries = {
        (row["endpoint_id"], row["generation"]): row
        for row in (await connection.fetch(SQL["tries"], event.event_id, ids) if ids else ())
    }
    queued = await _queued(connection, by_status.get("queued", ()))
    waiting = await _by_endpoint(connection, "waiting", *_places(by_status.get("waiting", ())))
    dead = await _by_endpoint(connection, "dead", event.event_id, [s["endpoint_id"] for s in by_status.get("dead", ())])
    cancels = (
        await connection.fetch(SQL["cancelled"], event.event_id, event.tenant_id) if "cancelled" in by_status else ()
    )
    asked_at = {row["endpoint_id"]: row["at"] for row in cancels}
    again = any(state["generation"] for state in states)
    replays = await connection.fetch(SQL["replayed"], event.event_id, event.tenant_id) if again else ()
    begun_at = {row["generation"]: row["at"] for row in replays}
    found: dict[UUID, Delivery] = {}
    for endpoint_id, (state, shown) in derived.items():
        generation = state["generation"]
        found[endpoint_id] = Delivery(
            _state(
                shown,
                state["due_at"],
                queued=queued.get((state["shard"], state["seq"])),
                waiting=waiting.get(endpoint_id),
                dead=dead.get(endpoint_id),
                last=tries.get((endpoint_id, generation)),
                asked_at=asked_at.get(endpoint_id) if state["cancelled"] else None,
            ),
            generation,
            begun_at.get(generation),
        )
    return found


def _state(
    shown: Mapping[str, Any],
    due_at: float | None,
    *,
    queued: Queued | None,
    waiting: Mapping[str, Any] | None,
    dead: Mapping[str, Any] | None,
    last: Mapping[str, Any] | None,
    asked_at: float | None,
) -> State:
    match shown["status"]:
        case "queued" if queued is not None:
            return queued
        case "waiting" if waiting is not None:
            return Waiting(
                reason=WaitReason(shown["reason"]),
                due_at=inf if due_at is None else due_at,
                retry_count=waiting["retry_count"],
                deadline=waiting["deadline"],
                failure=Failure(waiting["last_http_status"], waiting["last_error_code"]),
                behind=waiting["behind"],
                behind_dead=waiting["behind_dead"],
            )
        case "dead" if dead is not None:
            failure = Failure(dead["last_http_status"], dead["last_error_code"])
            if failure == Failure() and last is not None:
                failure = Failure(last["http_status"], last["error_code"])
            return Died(DeadReason(shown["reason"]), dead["died_at"], dead["attempt_count"], failure)
        case "delivered" if last is not None:
            return Arrived(
                last["finished_at"], last["http_status"], shown["attempt_count"], last["arrivals"], last["doubtful"]
            )
        case "cancelled":
            return Cancelled(asked_at)
        case _:
            return Untraced()


async def _queued(connection: Any, states: Collection[Any]) -> dict[tuple[int, int], Queued]:
    if not states:
        return {}
    rows = await connection.fetch(
        SQL["queued"], *map(list, zip(*{(s["shard"], s["seq"]) for s in states}, strict=True))
    )
    return {
        (row["shard"], row["seq"]): Queued(int(row["ahead"]), row["read"], row["worker"], row["unread_since"])
        for row in rows
    }


def _places(states: Collection[Any]) -> tuple[list[int], list[UUID], list[int]]:
    return [s["shard"] for s in states], [s["endpoint_id"] for s in states], [s["seq"] for s in states]


async def _by_endpoint(connection: Any, statement: str, *parameters: Any) -> dict[UUID, Any]:
    """Rows of a statement whose last parameter is a list, by endpoint; for an empty list nothing is asked."""
    if not parameters[-1]:
        return {}
    return {row["endpoint_id"]: row for row in await connection.fetch(SQL[statement], *parameters)}
