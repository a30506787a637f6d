"""I24: nothing leaves that is still owed or younger than it is kept, and what is older is gone within the promised time.

A row of the journal is still owed while one of its deliveries, or a replay of its event, has no end, or waits in the
backlog, as a dead one does that blocks its lane. A replay that takes such a dead one's place waits there from then on, and
it is that row which may not leave. In these worlds no payload is ever removed, so nobody dies of one that
is missing. Ages are told by the database's clock.
"""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from tests.sim.system.trace import AttemptsLeft, Began, Configured, Ended, Jumped, Left, Settled, Stored, Trace, check

CANCEL = "hookpost.cancel"
# A call's own time, within which a row is written and noted.
NOTED_S = 0.1
_Delivery = tuple[UUID, UUID, int]
_Place = tuple[int, int]


class _Books:
    def __init__(self, began: Began) -> None:
        self.began = began
        # What the database's clock shows more than the true time, and how far it has gone back in all.
        self.ahead_s: float | None = None
        self.back_s = 0.0
        self.rows: dict[_Place, Stored] = {}
        self.replays: dict[UUID, set[_Place]] = defaultdict(set)
        self.places: dict[UUID, _Place] = {}
        self.over: set[_Delivery] = set()
        self.cancels: dict[tuple[int, UUID, UUID], int] = defaultdict(int)
        self.deleted: set[UUID] = set()
        self.waiting: dict[_Place, set[UUID]] = defaultdict(set)
        self.cursor: dict[int, int] = defaultdict(int)
        self.recorded: dict[str, float] = {}

    def clock(self, at: float) -> float:
        """What the database's clock shows."""
        return at + (self.ahead_s or 0.0)

    def store(self, row: Stored) -> None:
        if self.ahead_s is None:
            self.ahead_s = row.created_at - row.at
        self.rows[row.shard, row.seq] = row
        if row.kind == 0:
            self.places[row.event_id] = row.shard, row.seq
        if row.kind == 1:
            self.replays[row.event_id].add((row.shard, row.seq))
        if row.kind == 2 and row.type == CANCEL:
            for endpoint_id in row.owed:
                self.cancels[row.shard, row.event_id, endpoint_id] = row.seq

    def settle(self, part: Settled) -> None:
        self.cursor[part.shard] = part.cursor
        for attempt in part.attempts:
            self.recorded[attempt.span] = self.clock(part.at)
            if attempt.outcome == "delivered":
                self.over.add((attempt.event_id, attempt.endpoint_id, attempt.generation))
        for died in part.dead:
            check(died.reason != "payload_missing", "its payload has left before it:", died)
            self.over.add((died.event_id, died.endpoint_id, died.generation))
        for endpoint_id, position in part.gone:
            self.waiting[part.shard, position].discard(endpoint_id)
        for endpoint_id in part.dropped:
            for (shard, _), endpoints in self.waiting.items():
                if shard == part.shard:
                    endpoints.discard(endpoint_id)
        for wait in part.waits:
            self.waiting[part.shard, wait.position].add(wait.endpoint_id)

    def leave(self, entry: Left) -> None:
        """Was it old enough, and is it over?"""
        place = entry.shard, entry.seq
        row = self.rows.pop(place)
        age_s = self.clock(entry.at) - row.created_at
        check(age_s >= self.began.keep_s - NOTED_S, "left after", age_s, "s:", row)
        check(self._is_over(row), "left though it is owed:", row, self.waiting[place])
        self.replays[row.event_id].discard(place)
        for replay in self.replays[row.event_id] if row.kind == 0 else ():
            check(self._is_over(self.rows[replay]), "left though it is owed again:", row, self.rows[replay])

    def _is_over(self, row: Stored) -> bool:
        read = row.seq <= self.cursor[row.shard]
        return read and not self.waiting[row.shard, row.seq] and (row.kind == 2 or all(self._ended(row)))

    def _ended(self, row: Stored) -> list[bool]:
        return [
            (row.event_id, endpoint_id, row.generation) in self.over
            or self.cancels[row.shard, row.event_id, endpoint_id] > row.seq
            or endpoint_id in self.deleted
            or (row.kind == 1 and endpoint_id in self.waiting[self.places[row.event_id]])
            for endpoint_id in row.owed
        ]

    def leave_attempts(self, entry: AttemptsLeft) -> None:
        for span in entry.spans:
            age_s = self.clock(entry.at) - self.recorded.pop(span)
            check(age_s >= self.began.keep_s - NOTED_S, "an attempt left after", age_s, "s:", span)

    def end(self, entry: Ended) -> None:
        """Is anything left that should have gone?"""
        oldest = self.clock(entry.at) - self.began.keep_s - self.began.day_s - self.began.retire_s - self.back_s
        for row in self.rows.values():
            check(row.created_at >= oldest, "kept for too long:", row)
        for span, recorded_at in self.recorded.items():
            check(recorded_at >= oldest, "an attempt kept for too long:", span, recorded_at)


def judge(trace: Trace) -> None:
    books = _Books(next(trace.of(Began)))
    # Who acts on a change may do so before its operator is told.
    books.deleted = {entry.endpoint_id for entry in trace.of(Configured) if entry.deleted}
    for entry in trace.of(Jumped, Stored, Settled, Left, AttemptsLeft, Ended):
        match entry:
            case Jumped() if entry.whose == "database" and books.ahead_s is not None:
                books.ahead_s += entry.by_s
                books.back_s += max(0.0, -entry.by_s)
            case Stored():
                books.store(entry)
            case Settled():
                books.settle(entry)
            case Left():
                books.leave(entry)
            case AttemptsLeft():
                books.leave_attempts(entry)
            case Ended():
                books.end(entry)
            case _:
                pass
