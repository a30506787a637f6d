"""Days that leave the store in memory, by the steps of the partitions of PostgreSQL (storage/postgres/retention)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

from hookpost.engine.work import ATTEMPT_COLUMNS, Kind
from hookpost.storage.contract import ReplayState, Retired
from hookpost.storage.memory.tables import Database, Marks, first_moment

_SHARD, _SETTLE_NO = ATTEMPT_COLUMNS.index("shard"), ATTEMPT_COLUMNS.index("settle_no")


class RetentionTables:
    """Implements what MaintenanceStore says about what is older than it is kept."""

    _db: Database
    _pause: Callable[[], Awaitable[None]]

    async def retire_events(
        self,
        *,
        keep_days: int,
        forget: Callable[[Sequence[str]], Awaitable[None]],  # noqa: ARG002 - no payload lies elsewhere here
    ) -> Retired:
        dropped: list[str] = []
        held: list[str] = []
        async with self._alone() as mine:
            for day in self._leaving(keep_days) if mine else ():
                gone = await self._retire(day)
                (dropped if gone else held).append(self._partition("events", day))
        return Retired(tuple(dropped), tuple(held))

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[bool]:
        """Is nobody else at it? If so, nobody will be."""
        await self._pause()
        mine = not self._db.retiring
        self._db.retiring = True
        try:
            yield mine
        finally:
            self._db.retiring = not mine

    def _leaving(self, keep_days: int) -> list[int]:
        """The days whose time is over, oldest first."""
        db = self._db
        days = {event.day for shard in db.shards.values() for event in shard.journal} | db.detached.keys()
        return sorted(day for day in days if day < db.today() - keep_days)

    async def _retire(self, day: int) -> bool:
        """Let one day go; False when it is still needed, and then it stays, or comes back."""
        async with self._db.leaving:
            if not await self._hide(day):
                return False
        await self._pause()
        self._forget(day)
        return True

    async def _hide(self, day: int) -> bool:
        """Out of everybody's sight, unless it is needed."""
        db = self._db
        if day not in db.detached:
            if not self._is_counted(day) or self._is_needed(day):
                return False
            await self._pause()
            db.detached[day] = [event for shard in db.shards.values() for event in shard.journal.take_day(day)]
        await self._pause()
        if self._is_needed(day):
            leaving = db.detached.pop(day)
            for shard in db.shards.values():
                shard.journal.put_back(event for event in leaving if event.shard == shard.shard)
            return False
        return True

    def _is_needed(self, day: int) -> bool:
        """Does a row of this day, or a replay of an event of it, wait, or is it not done?"""
        db = self._db
        rows = [event for shard in db.shards.values() for event in shard.journal if event.day == day]
        rows += db.detached.get(day, ())
        originals = {event.event_id for event in rows if event.kind == Kind.DELIVER}
        waiting = [row for lane in db.backlog.values() for row in lane.values()]
        if any(row.day == day or (row.generation and row.event_id in originals) for row in waiting):
            return True
        if any(event.seq > db.shards[event.shard].cursor for event in rows):
            return True
        return any(
            event.kind == Kind.REPLAY and event.event_id in originals
            for shard in db.shards.values()
            for event in shard.journal
            if event.seq > shard.cursor
        )

    def _is_counted(self, day: int) -> bool:
        """Have the rollups counted all of the day?"""
        db = self._db
        marks = {shard: db.marks.get(shard, Marks()) for shard in db.shards}
        if any(settle_no > marks[shard].settle_no for shard, settle_no in _settles(db, day)):
            return False
        return not any(
            event.day == day and event.seq > marks[event.shard].seq
            for shard in db.shards.values()
            for event in shard.journal
        )

    def _forget(self, day: int) -> None:
        """The rows, and the dead letters of events that were among them."""
        db = self._db
        for event in db.detached.pop(day):
            rows = [row for row in db.by_event[event.event_id] if (row.shard, row.seq) != (event.shard, event.seq)]
            if rows:
                db.by_event[event.event_id] = rows
            else:
                del db.by_event[event.event_id]
            if event.kind == Kind.DELIVER:
                for pair in [pair for pair in db.dead if pair[0] == event.event_id]:
                    del db.dead[pair]

    async def retire_attempts(self, *, keep_days: int) -> Retired:
        await self._pause()
        dropped: list[str] = []
        held: list[str] = []
        for day in sorted(day for day in self._db.attempts if day < self._db.today() - keep_days):
            counted = self._is_counted(day)
            (dropped if counted else held).append(self._partition("attempts", day))
            if counted:
                del self._db.attempts[day]
                await self._pause()
        return Retired(tuple(dropped), tuple(held))

    async def forget_replays(self, *, keep_days: int) -> int:
        await self._pause()
        db = self._db
        until = db.now() - keep_days * db.day_s
        over: list[UUID] = [
            replay_id
            for replay_id, job in db.replays.items()
            if job["state"] != ReplayState.RUNNING and job["finished_at"] < until
        ]
        for replay_id in over:
            del db.replays[replay_id]
        return len(over)

    def _partition(self, table: str, day: int) -> str:
        """What PostgreSQL would call it, where days are days."""
        return f"{table}_{datetime.fromtimestamp(first_moment(day, self._db.day_s), UTC):%Y%m%d}"

    async def prune_progress(self) -> int:
        await self._pause()
        db, pruned = self._db, 0
        marks = {shard: db.marks.get(shard, Marks()) for shard in db.shards}
        uncounted = {day for day in db.attempts if any(n > marks[shard].settle_no for shard, n in _settles(db, day))}
        for shard in db.shards.values():
            kept = [
                row for row in shard.progress if row.day >= db.today() - 1 or row is shard.last or row.day in uncounted
            ]
            pruned += len(kept) < len(shard.progress)
            shard.progress = kept
        return pruned


def _settles(db: Database, day: int) -> set[tuple[int, int]]:
    """The shards and numbers of the settles that have left attempts of this day."""
    return {(attempt[_SHARD], attempt[_SETTLE_NO]) for attempt in db.attempts.get(day, ())}
