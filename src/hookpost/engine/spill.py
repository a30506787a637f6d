"""Memory is full, or a settle would have too much to write down: whose deliveries go to the backlog.

Relies on: nothing can start just now. Promises: reading never stops for one lane, and what is spilled at once is
bounded.
"""

from __future__ import annotations

from hookpost.engine.backlog import Backlog
from hookpost.engine.books import Books
from hookpost.engine.gates import Gates
from hookpost.engine.lanes import Lane
from hookpost.engine.limits import Limits
from hookpost.engine.shard import Shard
from hookpost.model import WaitReason

# When memory is full it is emptied down to this part, so that one spill serves many reads.
ROOM_LEFT = 0.75
# Of a lane that fills the memory so many go to the backlog at once: writing twenty thousand rows in one go would hold
# up everybody else for a tenth of a second.
SPILL_AT_ONCE = 1000


class Spill:
    """Keeps one worker within its ``limits`` of memory and fragments."""

    def __init__(self, books: Books, backlog: Backlog, gates: Gates, limits: Limits) -> None:
        self._books = books
        self._backlog = backlog
        self._gates = gates
        self._limits = limits

    def make_room(self, now: float) -> None:
        """Nothing can start and memory is full: the longest lanes go to the backlog, so that reading goes on."""
        books, limits = self._books, self._limits
        if books.buffered < limits.buffer and books.buffered_bytes < limits.buffer_bytes:
            return
        lanes = [lane for shard in books.shards.values() for lane in shard.lanes.values() if lane.has_work()]
        lanes.sort(key=lambda lane: len(lane.queue) + len(lane.later), reverse=True)
        spilled_to = books.buffered - SPILL_AT_ONCE
        for lane in lanes:
            if books.buffered <= limits.buffer * ROOM_LEFT and books.buffered_bytes <= limits.buffer_bytes * ROOM_LEFT:
                return
            if books.buffered <= spilled_to:
                return
            self._spill(lane, now, books.buffered - spilled_to)

    def mend(self, shard: Shard, now: float) -> None:
        """Too much to write down in each settle: the lanes that lag behind most go to the backlog."""
        lanes = [lane for lane in shard.lanes.values() if lane.has_work()]
        lanes.sort(key=lambda lane: (lane.queue or lane.later)[0].entry.seq)
        for lane in lanes:
            if shard.progress.fragments <= self._limits.fragments // 2:
                return
            self._spill(lane, now)

    def _spill(self, lane: Lane, now: float, count: int = -1) -> None:
        """So many of its newest deliveries go to the backlog, or (-1, or if it keeps an order) all of them, unless it
        waits for its endpoint's configuration."""
        config = lane.endpoint.config
        if config is None:
            return
        wait = self._gates.closed(lane, config, now=now)
        reason = WaitReason.IN_FLIGHT_CAP if wait is None else wait.reason
        if 0 <= count < len(lane.queue) and not (lane.in_order or lane.ordered):
            for _ in range(count):
                self._books.put_away(lane.queue.pop(), reason, now)
            self._backlog.consider(lane, now)
        else:
            self._backlog.park(lane, reason, now)
