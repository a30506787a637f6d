"""The builder's side of the store in memory: attempts and events are counted once, for their tenants' days."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hookpost.engine.work import ATTEMPT_COLUMNS, Attempt, Kind
from hookpost.policy.grains import Grain
from hookpost.storage.contract import RolledUp, ToCount
from hookpost.storage.memory.journal import Event
from hookpost.storage.memory.tables import Database, Marks, Metered, Shard, day_of

_SHARD, _SETTLE_NO, _TENANT, _OUTCOME, _FINISHED = (
    ATTEMPT_COLUMNS.index(name) for name in ("shard", "settle_no", "tenant_id", "outcome", "finished_at")
)
# What Hookpost publishes itself is not counted.
_OWN = "hookpost."


class RollupTables:
    """Implements RollupStore, but for figures of minutes, hours and days: nobody asks for them here."""

    _db: Database
    _pause: Callable[[], Awaitable[None]]

    async def roll_up(self, *, settles_max: int, events_max: int, left: ToCount | None = None) -> RolledUp | None:  # noqa: ARG002 - it looks anew
        await self._pause()
        attempts, settles = self._count_attempts(settles_max)
        events = sum(self._count_accepted(shard, events_max) for shard in self._db.shards.values())
        more = settles >= settles_max or events >= events_max
        return RolledUp(attempts, events, attempts, ToCount(0.0, (), ()) if more else None)

    def _count_attempts(self, settles_max: int) -> tuple[int, int]:
        """The attempts of the next settles of each shard; how many of both."""
        counted = settles = 0
        for shard in self._db.shards.values():
            marks = self._marks(shard)
            rows = [row for row in shard.progress if row.settle_no > marks.settle_no][:settles_max]
            numbers = {row.settle_no for row in rows}
            for day in {row.day for row in rows}:
                for attempt in self._db.attempts.get(day, ()):
                    if attempt[_SHARD] == shard.shard and attempt[_SETTLE_NO] in numbers:
                        self._meter_attempt(attempt)
                        counted += 1
            settles += len(rows)
            marks.settle_no = max(numbers, default=marks.settle_no)
        return counted, settles

    def _count_accepted(self, shard: Shard, events_max: int) -> int:
        marks = self._marks(shard)
        fresh = shard.journal.behind(marks.seq, events_max)
        for event in fresh:
            if event.kind == Kind.DELIVER and not event.type.startswith(_OWN):
                self._meter_event(event)
            marks.seq = event.seq
        return len(fresh)

    def _marks(self, shard: Shard) -> Marks:
        return self._db.marks.setdefault(shard.shard, Marks())

    def _meter_attempt(self, attempt: Attempt) -> None:
        day = day_of(attempt[_FINISHED], self._db.day_s)
        metered = self._db.metering.setdefault((day, attempt[_TENANT]), Metered())
        metered.attempts += 1
        metered.delivered += attempt[_OUTCOME] == "delivered"

    def _meter_event(self, event: Event) -> None:
        day = day_of(event.created_at, self._db.day_s)
        self._db.metering.setdefault((day, event.tenant_id), Metered()).accepted += 1

    async def build_rollups(self, *, rows_max: int) -> bool:  # noqa: ARG002 - there are none
        await self._pause()
        return False

    async def prune_rollups(self, grain: Grain, *, age_s: float, rows_max: int) -> int:  # noqa: ARG002
        await self._pause()
        return 0
