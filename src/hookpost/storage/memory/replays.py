"""Bulk replays in the store in memory: durable jobs there, plain rows here; the same steps and the same places."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from hookpost.engine.work import ATTEMPT_COLUMNS
from hookpost.storage.contract import (
    Conflict,
    Matched,
    NotFound,
    ReplayFilter,
    ReplayLimits,
    ReplayState,
    ReplayStep,
)
from hookpost.storage.memory.tables import Database

# As in PostgreSQL.
LOOKED_AT_MIN = 100
_NIL = UUID(int=0)
_EVENT, _ENDPOINT, _OUTCOME, _FINISHED = (
    ATTEMPT_COLUMNS.index(name) for name in ("event_id", "endpoint_id", "outcome", "finished_at")
)

# The order of candidates: when it died or was accepted, its event, and (of a dead letter) its endpoint.
_Place = tuple[float, UUID, UUID]


@dataclass(frozen=True, slots=True)
class _Candidate:
    place: _Place
    type: str
    owed: tuple[UUID, ...]


class ReplayTables:
    """Implements what AdminStore and MaintenanceStore say about bulk replays."""

    _db: Database
    _pause: Callable[[], Awaitable[None]]
    _owe_again: Callable[[UUID, UUID, str, Sequence[UUID]], set[int]]

    async def count_replay(self, tenant_id: UUID, wanted: ReplayFilter) -> Matched:
        await self._pause()
        return Matched(self._count(tenant_id, wanted, self._db.now()), True)

    def _count(self, tenant_id: UUID, wanted: ReplayFilter, moment: float) -> int:
        return sum(len(candidate.owed) for candidate in self._candidates(tenant_id, wanted, moment))

    async def create_replay(
        self, tenant_id: UUID, replay_id: UUID, wanted: ReplayFilter, *, rate_limit: float, running_max: int
    ) -> dict[str, Any]:
        await self._pause()
        running = [job for job in self._db.replays.values() if job["state"] == ReplayState.RUNNING]
        if sum(job["tenant_id"] == tenant_id for job in running) >= running_max:
            raise Conflict(f"{running_max} replays of this tenant are running, which is the limit: wait or cancel some")
        now = self._db.now()
        job = self._db.replays[replay_id] = {
            "replay_id": replay_id, "tenant_id": tenant_id, "wanted": wanted, "rate_limit": rate_limit,
            "matched": self._count(tenant_id, wanted, now), "matched_exact": True, "replayed": 0,
            "after": (-math.inf, _NIL, _NIL), "next_at": now, "state": ReplayState.RUNNING.value, "failure": None,
            "created_at": now, "finished_at": None,
        }  # fmt: skip
        return dict(job)

    async def get_replay(self, tenant_id: UUID | None, replay_id: UUID) -> dict[str, Any]:
        await self._pause()
        return dict(self._job(tenant_id, replay_id))

    def _job(self, tenant_id: UUID | None, replay_id: UUID) -> dict[str, Any]:
        job = self._db.replays.get(replay_id)
        if job is None or tenant_id not in (None, job["tenant_id"]):
            raise NotFound("there is no such replay")
        return job

    async def cancel_replay(self, tenant_id: UUID, replay_id: UUID) -> bool:
        await self._pause()
        job = self._job(tenant_id, replay_id)
        if job["state"] != ReplayState.RUNNING:
            return False
        self._finish(job, ReplayState.CANCELLED)
        return True

    async def next_replay_in(self) -> float | None:
        await self._pause()
        running = [job["next_at"] for job in self._db.replays.values() if job["state"] == ReplayState.RUNNING]
        return min(running) - self._db.now() if running else None

    async def replay_step(self, limits: ReplayLimits) -> ReplayStep | None:
        await self._pause()
        async with self._db.leaving:
            return self._next_step(limits)

    def _next_step(self, limits: ReplayLimits) -> ReplayStep | None:
        now = self._db.now()
        running = [job for job in self._db.replays.values() if job["state"] == ReplayState.RUNNING]
        due = [job for job in running if job["next_at"] <= now]
        return self._step(min(due, key=lambda job: job["next_at"]), limits) if due else None

    def _step(self, job: dict[str, Any], limits: ReplayLimits) -> ReplayStep:
        replay_id, tenant_id, now = job["replay_id"], job["tenant_id"], self._db.now()
        tenant = self._db.tenants[tenant_id]
        if tenant["deleted_at"] is not None:
            return self._finish(job, ReplayState.CANCELLED)
        if self._is_held(tenant, limits):
            job["next_at"] = now + limits.hold_s
            return ReplayStep(replay_id, ReplayState.RUNNING, held=True)
        budget = min(limits.deliveries_max, math.ceil(job["rate_limit"] * limits.step_s))
        looked_at = max(LOOKED_AT_MIN, budget)
        behind = (c for c in self._candidates(tenant_id, job["wanted"], job["created_at"]) if c.place > job["after"])
        candidates = sorted(behind, key=lambda candidate: candidate.place)[:looked_at]
        taken = _chunk(candidates, budget)
        shards, appended = self._owe(tenant_id, taken)
        if taken:
            job["after"] = taken[-1].place
            job["replayed"] += appended
            job["matched"] = max(job["matched"], job["replayed"])
            job["next_at"] = max(job["next_at"], now - 1.0) + appended / job["rate_limit"]
        if len(taken) < looked_at and len(taken) == len(candidates):
            self._finish(job, ReplayState.DONE)
            return ReplayStep(replay_id, ReplayState.DONE, appended, shards)
        return ReplayStep(replay_id, ReplayState.RUNNING, appended, shards)

    def _owe(self, tenant_id: UUID, taken: Sequence[_Candidate]) -> tuple[tuple[int, ...], int]:
        """What belongs to one event goes into one journal row."""
        owed: dict[UUID, list[UUID]] = {}
        types = {candidate.place[1]: candidate.type for candidate in taken}
        for candidate in taken:
            if candidate.owed:
                owed.setdefault(candidate.place[1], []).extend(candidate.owed)
        shards: set[int] = set()
        for event_id, ids in owed.items():
            shards |= self._owe_again(tenant_id, event_id, types[event_id], ids)
        return tuple(sorted(shards)), sum(map(len, owed.values()))

    def _is_held(self, tenant: Mapping[str, Any], limits: ReplayLimits) -> bool:
        """Is too much of the tenant still to be delivered?"""
        depth = max(self._db.shards[shard].depth for shard in tenant["home_shards"])
        lanes = (rows.values() for rows in self._db.backlog.values())
        waiting = sum(row.tenant_id == tenant["tenant_id"] and row.generation > 0 for lane in lanes for row in lane)
        return depth > limits.depth_max or waiting > limits.waiting_max

    def _finish(self, job: dict[str, Any], state: ReplayState) -> ReplayStep:
        job["state"], job["finished_at"] = state.value, self._db.now()
        return ReplayStep(job["replay_id"], state)

    # ---- what matches -------------------------------------------------------------------------------------------

    def _candidates(self, tenant_id: UUID, wanted: ReplayFilter, moment: float) -> Iterator[_Candidate]:
        """All that the filter looks at; ``owed`` is empty where it does not match."""
        if wanted.status == "dead":
            yield from self._dead(tenant_id, wanted, moment)
            return
        originals = (self._db.original(event_id) for event_id in self._db.by_event)
        for event in originals:
            if event is None or event.tenant_id != tenant_id or event.created_at > moment:
                continue
            if _within(event.created_at, wanted):
                owed = tuple(each for each in event.owed if self._matches(event.event_id, each, wanted, moment))
                fits = wanted.type in (None, event.type)
                yield _Candidate((event.created_at, event.event_id, _NIL), event.type, owed if fits else ())

    def _dead(self, tenant_id: UUID, wanted: ReplayFilter, moment: float) -> Iterator[_Candidate]:
        for stored in self._db.dead.values():
            letter = stored.letter
            if letter.tenant_id != tenant_id or letter.died_at > moment:
                continue
            if wanted.endpoint_id not in (None, letter.endpoint_id):
                continue
            original = self._db.original(letter.event_id)
            windowed = wanted.since is not None or wanted.until is not None
            in_time = not windowed or (original is not None and _within(original.created_at, wanted))
            of_it = wanted.type in (None, letter.type) and wanted.reason in (None, letter.reason)
            fits = of_it and self._db.exists(letter.endpoint_id) and in_time
            owed = (letter.endpoint_id,) if fits else ()
            yield _Candidate((letter.died_at, letter.event_id, letter.endpoint_id), letter.type, owed)

    def _matches(self, event_id: UUID, endpoint_id: UUID, wanted: ReplayFilter, moment: float) -> bool:
        if not self._db.exists(endpoint_id) or wanted.endpoint_id not in (None, endpoint_id):
            return False
        return wanted.status == "any" or any(
            (attempt[_EVENT], attempt[_ENDPOINT], attempt[_OUTCOME]) == (event_id, endpoint_id, "delivered")
            and attempt[_FINISHED] <= moment
            for attempts in self._db.attempts.values()
            for attempt in attempts
        )


def _within(created_at: float, wanted: ReplayFilter) -> bool:
    since = -math.inf if wanted.since is None else wanted.since
    until = math.inf if wanted.until is None else wanted.until
    return since <= created_at < until


def _chunk(candidates: Sequence[_Candidate], budget: int) -> Sequence[_Candidate]:
    """As many as the budget of deliveries allows; one always fits."""
    deliveries = 0
    for index, candidate in enumerate(candidates):
        if deliveries and deliveries + len(candidate.owed) > budget:
            return candidates[:index]
        deliveries += len(candidate.owed)
    return candidates
