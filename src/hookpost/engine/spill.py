"""Memory fills, or a settle would have too much to write down: whose deliveries go to the backlog.

Relies on: a look with every settle. Promises: reading never stops for one tenant, and of what is spilled a settle has
a bounded part to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from hookpost.engine.backlog import Backlog
from hookpost.engine.books import Books
from hookpost.engine.gates import Gates
from hookpost.engine.lanes import Lane, TenantState
from hookpost.engine.limits import Limits
from hookpost.engine.shard import Shard
from hookpost.model import WaitReason

# From here on memory is emptied: what is left of it is for what the reader brings until settles have made room.
SPILL_FROM = 0.75
# So many deliveries go from memory to the backlog with one settle, as many as a read brings: writing twenty thousand
# rows in one go would hold up everybody else for a tenth of a second.
SPILL_AT_ONCE = 500


class Spill:
    """Keeps one worker within its ``limits`` of memory and fragments."""

    def __init__(
        self, books: Books, backlog: Backlog, gates: Gates, tenants: Mapping[UUID, TenantState], limits: Limits
    ) -> None:
        self._books = books
        self._backlog = backlog
        self._gates = gates
        self._tenants = tenants
        self._limits = limits

    def make_room(self, now: float) -> None:
        """Memory fills, and the rows that come next may be another tenant's: of the tenant that holds most of it, the
        newest of its longest lanes go to the backlog."""
        if not self._is_filling() or self._books.put_away_now >= SPILL_AT_ONCE:
            return
        holders = [tenant for tenant in self._tenants.values() if tenant.buffered]
        for tenant in sorted(holders, key=lambda tenant: tenant.buffered, reverse=True):
            for lane in _longest_first(tenant):
                left = SPILL_AT_ONCE - self._books.put_away_now
                if left <= 0 or not self._is_filling():
                    return
                self._spill(lane, now, left)

    def _is_filling(self) -> bool:
        books, limits = self._books, self._limits
        rows, size = limits.buffer * SPILL_FROM, limits.buffer_bytes * SPILL_FROM
        return books.buffered >= rows or books.buffered_bytes >= size

    def mend(self, shard: Shard, now: float) -> None:
        """Too much to write down in each settle: of the lanes that lag behind most, the oldest go to the backlog."""
        lanes = [lane for lane in shard.lanes.values() if lane.has_work()]
        lanes.sort(key=lambda lane: (lane.queue or lane.later)[0].entry.seq)
        spilled_to = self._books.put_away_now + SPILL_AT_ONCE
        for lane in lanes:
            left = spilled_to - self._books.put_away_now
            if left <= 0 or shard.progress.fragments <= self._limits.fragments // 2:
                return
            self._spill(lane, now, left, oldest=True)

    def _spill(self, lane: Lane, now: float, count: int, *, oldest: bool = False) -> None:
        """So many of its newest (or oldest) deliveries go to the backlog, or all of them if it has no more or keeps an
        order; none while it waits for its endpoint's configuration."""
        config = lane.endpoint.config
        if config is None:
            return
        wait = self._gates.closed(lane, config, now=now)
        reason = WaitReason.IN_FLIGHT_CAP if wait is None else wait.reason
        if count < len(lane.queue) and not (lane.in_order or lane.ordered):
            for _ in range(count):
                self._books.put_away(lane.queue.popleft() if oldest else lane.queue.pop(), reason, now)
            self._backlog.consider(lane, now)
        else:
            self._backlog.park(lane, reason, now)


def _longest_first(tenant: TenantState) -> list[Lane]:
    """Its lanes that hold something in memory."""
    lanes = [lane for endpoint in tenant.endpoints.values() for lane in endpoint.lanes if lane.has_work()]
    return sorted(lanes, key=lambda lane: len(lane.queue) + len(lane.later), reverse=True)
