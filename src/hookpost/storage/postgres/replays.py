"""Replays in the PostgreSQL store: of one event, and in bulk as durable jobs.

A step of a job is one transaction: it takes the job (others pass it over), appends a chunk of replays to the journal,
and moves the job's place. Lock order: the job, days that leave, its tenant, the shards in their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from hookpost.model import minted_at, show_id
from hookpost.policy import routing
from hookpost.storage.contract import (
    Conflict,
    DataRejected,
    Matched,
    NotFound,
    Page,
    ReplayFilter,
    ReplayLimits,
    ReplayState,
    ReplayStep,
)
from hookpost.storage.postgres.audit import AuditQueries
from hookpost.storage.postgres.connection import Connections, translated
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.rows import after as after_key
from hookpost.storage.postgres.rows import found, page

SQL = load("replays")
# Candidates that are counted one by one: some seconds at the worst; beyond them the count is "at least".
COUNTED_MAX = 50_000
# Fewer candidates in a step would cost more in transactions than they cost to look at.
LOOKED_AT_MIN = 100
# A delivery dies by its worker's clock, its event is accepted by the database's.
CLOCKS_APART_S = 60.0
FAILURE_CHARS_MAX = 500
# What the audit log tells of one.
_ABOUT = ("endpoint_id", "type", "status", "reason", "since", "until", "rate_limit")


@dataclass(frozen=True, slots=True)
class _Owed:
    """An event to owe once more."""

    event_id: UUID
    type: str
    endpoint_ids: list[UUID]


class ReplayQueries(AuditQueries):
    """Implements what AdminStore and MaintenanceStore say about replays."""

    _connections: Connections
    _endpoint_cap: int

    # ---- one event ----------------------------------------------------------------------------------------------

    async def append_replay(self, tenant_id: UUID, event_id: UUID, endpoint_id: UUID | None) -> int:
        async with self._connections.use(f"replay event {event_id}") as connection, connection.transaction():
            await connection.execute(SQL["keep_events"])
            tenant = found(await connection.fetchrow(SQL["lock_tenant"], tenant_id), "tenant")
            row = await connection.fetchrow(SQL["replay_source"], event_id, tenant_id, minted_at(event_id))
            source = found(row, "event")
            if source["removed"]:
                raise Conflict("the event's payload was removed on request: there is nothing to send any more")
            owed = source["owed"]
            if endpoint_id is not None:
                if endpoint_id not in owed:
                    raise NotFound("the event was not owed to this endpoint, or the endpoint is gone")
                owed = [endpoint_id]
            # Not behind the shard's lock, which appends wait for.
            to = None if endpoint_id is None else {"endpoint_id": show_id("ep", endpoint_id)}
            await self._record(connection, tenant_id, "event.replay", show_id("evt", event_id), None, to)
            if owed:
                await self._append(connection, tenant_id, tenant, [_Owed(event_id, source["type"], owed)])
        return len(owed)

    async def _append(
        self, connection: Any, tenant_id: UUID, tenant: Mapping[str, Any], events: Sequence[_Owed]
    ) -> tuple[int, ...]:
        """Append replays of different events, each to a shard that ingest may choose for it now, or to the one where it
        takes the place of what blocks there; returns the shards."""
        events, shards = await self._aim(connection, tenant, events)
        owed: list[UUID] = []
        starts: list[int] = []
        for event in events:
            starts.append(len(owed) + 1)
            owed.extend(event.endpoint_ids)
        counts = [len(event.endpoint_ids) for event in events]
        ids, types = [event.event_id for event in events], [event.type for event in events]
        oldest = min(map(minted_at, ids))
        await connection.execute(SQL["append_replays"], tenant_id, oldest, shards, ids, types, owed, starts, counts)
        return tuple(sorted(set(shards)))

    async def _aim(
        self, connection: Any, tenant: Mapping[str, Any], events: Sequence[_Owed]
    ) -> tuple[list[_Owed], list[int]]:
        """The events, and the shard of each. One that blocks an endpoint in a shard of its own stands there as well."""
        pairs = [(event.event_id, endpoint_id) for event in events for endpoint_id in event.endpoint_ids]
        rows = await connection.fetch(SQL["blocking"], [pair[0] for pair in pairs], [pair[1] for pair in pairs])
        blocking = {(row["event_id"], row["endpoint_id"]): row["shard"] for row in rows}
        aimed: dict[tuple[UUID, int], _Owed] = {}
        for event, shard in zip(events, await self._choose(connection, tenant, events), strict=True):
            for endpoint_id in event.endpoint_ids:
                at = event.event_id, blocking.get((event.event_id, endpoint_id), shard)
                aimed.setdefault(at, _Owed(event.event_id, event.type, [])).endpoint_ids.append(endpoint_id)
        return list(aimed.values()), [shard for _, shard in aimed]

    async def _choose(self, connection: Any, tenant: Mapping[str, Any], events: Sequence[_Owed]) -> list[int]:
        """The shards that ingest may choose for the events now."""
        endpoint_ids = {endpoint_id for event in events for endpoint_id in event.endpoint_ids}
        home_shards = tenant["home_shards"]
        pins = await connection.fetch(SQL["pins"], list(endpoint_ids))
        pinned = {row["endpoint_id"] for row in pins if self._is_pinned(row, home_shards)}
        all_pinned = routing.is_pinned(tenant["tenant_cap"], home_shards)
        return [
            routing.shard_for(
                event.event_id, home_shards, pinned=all_pinned or not pinned.isdisjoint(event.endpoint_ids)
            )
            for event in events
        ]

    def _is_pinned(self, endpoint: Mapping[str, Any], home_shards: Sequence[int]) -> bool:
        return endpoint["pinned"] or routing.is_pinned(endpoint["cap"] or self._endpoint_cap, home_shards)

    # ---- jobs ---------------------------------------------------------------------------------------------------

    async def count_replay(self, tenant_id: UUID, wanted: ReplayFilter) -> Matched:
        async with self._connections.use("count what a replay matches") as connection:
            return await _count(connection, tenant_id, wanted, await connection.fetchval(SQL["now"]))

    async def create_replay(
        self, tenant_id: UUID, replay_id: UUID, wanted: ReplayFilter, *, rate_limit: float, running_max: int
    ) -> dict[str, Any]:
        async with self._connections.use(f"create replay {replay_id}") as connection, connection.transaction():
            moment = await connection.fetchval(SQL["now"])
            matched = await _count(connection, tenant_id, wanted, moment)
            row = await connection.fetchrow(
                SQL["create_replay"],
                replay_id,
                tenant_id,
                wanted.endpoint_id,
                wanted.type,
                _status(wanted.status, wanted.reason),
                wanted.since,
                wanted.until,
                rate_limit,
                matched.deliveries,
                matched.exact,
                running_max,
                moment,
                _beginning(wanted),
                wanted.reason,
            )
            if row is None:
                raise Conflict(
                    f"{running_max} replays of this tenant are running, which is the limit: wait or cancel some"
                )
            job = _job(row)
            about = {name: job[name] for name in _ABOUT}
            if wanted.endpoint_id is not None:
                about["endpoint_id"] = show_id("ep", wanted.endpoint_id)
            await self._record(connection, tenant_id, "replay.create", show_id("rpl", replay_id), None, about)
        return job

    async def get_replay(self, tenant_id: UUID | None, replay_id: UUID) -> dict[str, Any]:
        async with self._connections.use(f"get replay {replay_id}") as connection:
            return _job(found(await connection.fetchrow(SQL["get_replay"], replay_id, tenant_id), "replay"))

    async def list_replays(self, tenant_id: UUID | None, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        behind = (*after_key(after, 2), limit + 1)
        async with self._connections.use("list replays") as connection:
            if tenant_id is None:
                rows = await connection.fetch(SQL["list_replays_of_all"], *behind)
            else:
                rows = await connection.fetch(SQL["list_replays_of_tenant"], tenant_id, *behind)
        return page([_job(row) for row in rows], limit, ("created_at", "replay_id"))

    async def cancel_replay(self, tenant_id: UUID, replay_id: UUID) -> bool:
        async with self._connections.use(f"cancel replay {replay_id}") as connection, connection.transaction():
            if await connection.fetchrow(SQL["cancel_replay"], replay_id, tenant_id) is not None:
                await self._record(connection, tenant_id, "replay.cancel", show_id("rpl", replay_id))
                return True
            found(await connection.fetchrow(SQL["get_replay"], replay_id, tenant_id), "replay")
            return False

    async def next_replay_in(self) -> float | None:
        async with self._connections.use("look for replays") as connection:
            seconds: float | None = await connection.fetchval(SQL["next_replay_in"])
            return seconds

    async def replay_step(self, limits: ReplayLimits) -> ReplayStep | None:
        job: Any = None
        async with self._connections.use("go on with a replay") as connection:
            try:
                with translated("go on with a replay"):
                    async with connection.transaction():
                        job = await connection.fetchrow(SQL["take_replay"])
                        return None if job is None else await self._step(connection, job, limits)
            except DataRejected as error:
                if job is None:
                    raise
                # The same chunk would be refused again and again.
                return await _finish(connection, job["replay_id"], ReplayState.FAILED, str(error)[:FAILURE_CHARS_MAX])

    async def _step(self, connection: Any, job: Mapping[str, Any], limits: ReplayLimits) -> ReplayStep:
        replay_id, tenant_id = job["replay_id"], job["tenant_id"]
        await connection.execute(SQL["keep_events"])
        tenant = await connection.fetchrow(SQL["lock_tenant"], tenant_id)
        if tenant is None:
            return await _finish(connection, replay_id, ReplayState.CANCELLED)
        if await _is_held(connection, tenant_id, tenant["home_shards"], limits):
            await connection.execute(SQL["hold_replay"], replay_id, limits.hold_s)
            return ReplayStep(replay_id, ReplayState.RUNNING, held=True)
        budget = min(limits.deliveries_max, math.ceil(job["rate_limit"] * limits.step_s))
        looked_at = max(LOOKED_AT_MIN, budget)
        candidates = await connection.fetch(SQL["replayable"], *_asked(job, looked_at))
        taken, events = _chunk(candidates, budget)
        events = await _with_payloads(connection, events)
        appended = sum(len(event.endpoint_ids) for event in events)
        shards = await self._append(connection, tenant_id, tenant, events) if events else ()
        if taken:
            last = taken[-1]
            place = (last["at"], last["event_id"], last["endpoint_id"])
            await connection.execute(SQL["move_replay"], replay_id, *place, appended)
        if len(taken) < looked_at and len(taken) == len(candidates):
            await connection.execute(SQL["finish_replay"], replay_id, ReplayState.DONE, None)
            return ReplayStep(replay_id, ReplayState.DONE, appended, shards)
        return ReplayStep(replay_id, ReplayState.RUNNING, appended, shards)


async def _is_held(connection: Any, tenant_id: UUID, home_shards: Sequence[int], limits: ReplayLimits) -> bool:
    """Is too much of the tenant still to be delivered?"""
    row = await connection.fetchrow(SQL["pressure"], tenant_id, home_shards, limits.waiting_max + 1)
    return bool(row["depth"] > limits.depth_max or row["waiting"] > limits.waiting_max)


def _beginning(wanted: ReplayFilter) -> float:
    """Before all candidates: an event is accepted before it is delivered or dead."""
    if wanted.since is None:
        return 0.0
    return wanted.since - CLOCKS_APART_S


def _asked(job: Mapping[str, Any], limit: int) -> tuple[Any, ...]:
    before = ("tenant_id", "endpoint_id", "type")
    behind = ("since", "until", "created_at", "after_at", "after_event", "after_endpoint")
    # A process of the release before may have created it, with the reason in its column alone.
    status = _status(_job(job)["status"], job["reason"])
    return (*(job[name] for name in before), status, *(job[name] for name in behind), limit)


def _status(status: str, reason: str | None) -> str:
    """The status as a row holds it: with the reason, so that a process of an earlier release heeds it (see 0018)."""
    return status if reason is None else f"{status}:{reason}"


def _job(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the rest knows it."""
    return {**row, "status": row["status"].partition(":")[0]}


def _chunk(candidates: Sequence[Any], budget: int) -> tuple[Sequence[Any], list[_Owed]]:
    """The first of the candidates, as many as the budget of deliveries allows (one always fits), and the events that
    they owe once more: what belongs to one event goes into one journal row."""
    owed: dict[UUID, _Owed] = {}
    count = deliveries = 0
    for row in candidates:
        if deliveries and deliveries + len(row["owed"]) > budget:
            break
        count += 1
        deliveries += len(row["owed"])
        if row["owed"]:
            before = owed.get(row["event_id"])
            endpoint_ids = [*(before.endpoint_ids if before else ()), *row["owed"]]
            owed[row["event_id"]] = _Owed(row["event_id"], row["type"], endpoint_ids)
    return candidates[:count], list(owed.values())


async def _with_payloads(connection: Any, events: list[_Owed]) -> list[_Owed]:
    """Without those whose payload was removed on request."""
    if not events:
        return events
    ids = [event.event_id for event in events]
    removed = {row["event_id"] for row in await connection.fetch(SQL["removed"], ids, min(map(minted_at, ids)))}
    return [event for event in events if event.event_id not in removed]


async def _count(connection: Any, tenant_id: UUID, wanted: ReplayFilter, moment: float) -> Matched:
    row = await connection.fetchrow(
        SQL["count_replayable"],
        tenant_id,
        wanted.endpoint_id,
        wanted.type,
        _status(wanted.status, wanted.reason),
        wanted.since,
        wanted.until,
        moment,
        _beginning(wanted),
        COUNTED_MAX,
    )
    return Matched(row["matched"], row["looked_at"] < COUNTED_MAX)


async def _finish(connection: Any, replay_id: UUID, state: ReplayState, failure: str | None = None) -> ReplayStep:
    await connection.execute(SQL["finish_replay"], replay_id, state, failure)
    return ReplayStep(replay_id, state, failure=failure)
