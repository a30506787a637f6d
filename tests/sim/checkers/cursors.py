"""What progress says is done is done: delivered, dead, in the backlog, or cancelled. A cursor never passes an open entry,
and a row leaves the backlog only with its end.
"""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from tests.sim.system.trace import Configured, Settled, Stored, Trace, check

CANCEL = "hookpost.cancel"
_Place = tuple[int, int, UUID]  # shard, position, endpoint


class _Books:
    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], Stored] = {}
        self.last: dict[int, int] = defaultdict(int)
        self.pending: dict[int, set[int]] = defaultdict(set)
        self.over: set[_Place] = set()
        self.waiting: dict[int, set[_Place]] = defaultdict(set)
        self.newest: dict[UUID, int] = defaultdict(int)
        self.cancels: dict[tuple[int, UUID, UUID], int] = defaultdict(int)
        self.deleted_asked: set[UUID] = set()
        # Replays of dead deliveries that block an ordered lane take the place of those.
        self.generations: dict[tuple[UUID, UUID], int] = defaultdict(int)

    def excused(self, row: Stored, endpoint_id: UUID) -> bool:
        """Somebody asked for its end, or another position carries this generation on."""
        cancelled = self.cancels[row.shard, row.event_id, endpoint_id] > row.seq
        carried = row.kind == 1 and self.generations[row.event_id, endpoint_id] >= row.generation
        return cancelled or carried or endpoint_id in self.deleted_asked

    def check_done(self, shard: int, seq: int, endpoint_id: UUID, waits: bool = True) -> None:
        place, row = (shard, seq, endpoint_id), self.rows[shard, seq]
        done = place in self.over or (waits and place in self.waiting[shard]) or self.excused(row, endpoint_id)
        check(done, "given up without an end:", shard, seq, endpoint_id)

    def settle(self, part: Settled) -> None:
        shard = part.shard
        waiting = self.waiting[shard]
        for attempt in part.attempts:
            key = (attempt.event_id, attempt.endpoint_id)
            self.generations[key] = max(self.generations[key], attempt.generation)
            if attempt.outcome == "delivered":
                self.over.add((shard, attempt.position, attempt.endpoint_id))
        for died in part.dead:
            self.over.add((shard, died.position, died.endpoint_id))
        left = {(shard, position, endpoint_id) for endpoint_id, position in part.gone} & waiting
        if part.dropped:
            left |= {place for place in waiting if place[2] in part.dropped}
        waiting -= left
        for wait in part.waits:
            waiting.add((shard, wait.position, wait.endpoint_id))
            event_id = self.rows[shard, wait.position].event_id
            self.generations[event_id, wait.endpoint_id] = self.newest[event_id]
        for _, position, endpoint_id in left - waiting:
            self.check_done(shard, position, endpoint_id, waits=False)
        self._check_progress(part)

    def _check_progress(self, part: Settled) -> None:
        shard = part.shard
        first = part.open[0][0] if part.open else part.read_to + 1
        check(part.cursor < first, "the cursor has passed an open entry:", part.cursor, part.open)
        check(part.read_to <= self.last[shard], "read beyond the end:", part)
        done = {seq for seq in self.pending[shard] if seq <= part.read_to and not _within(seq, part.open)}
        for seq in done:
            for endpoint_id in self.rows[shard, seq].owed if self.rows[shard, seq].kind < 2 else ():
                self.check_done(shard, seq, endpoint_id)
        self.pending[shard] -= done
        for seq, endpoints in part.done:
            for endpoint_id in endpoints if self.rows[shard, seq].kind < 2 else ():
                self.check_done(shard, seq, endpoint_id)


def _within(seq: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(start <= seq < end for start, end in ranges)


def judge(trace: Trace) -> None:
    books = _Books()
    # Who acts on a change may do so before its operator is told.
    changes = sorted((c for c in trace.of(Configured) if c.deleted), key=lambda change: change.asked_at)
    for entry in trace.of(Stored, Settled):
        while changes and changes[0].asked_at <= entry.at:
            books.deleted_asked.add(changes.pop(0).endpoint_id)
        match entry:
            case Stored():
                books.rows[entry.shard, entry.seq] = entry
                books.pending[entry.shard].add(entry.seq)
                books.last[entry.shard] = entry.seq
                books.newest[entry.event_id] = max(books.newest[entry.event_id], entry.generation)
                if entry.kind == 2 and entry.type == CANCEL:
                    for endpoint_id in entry.owed:
                        books.cancels[entry.shard, entry.event_id, endpoint_id] = entry.seq
            case Settled():
                books.settle(entry)
