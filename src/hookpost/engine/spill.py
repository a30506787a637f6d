"""Memory fills, or a settle would have too much to write down: whose deliveries go to the backlog.

Relies on: a look with every settle, and word from the reader when nobody else waits in the journal. Promises: reading
never stops for one tenant while others are behind it, and of what is spilled a settle has a bounded part to write.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from heapq import heapify, heappop, heappush
from uuid import UUID

from hookpost.engine.backlog import Backlog
from hookpost.engine.books import Books
from hookpost.engine.gates import Gates
from hookpost.engine.lanes import Lane, TenantState
from hookpost.engine.limits import Limits
from hookpost.engine.shard import Shard
from hookpost.engine.turns import Turns
from hookpost.model import WaitReason

# From here on memory is emptied: what is left of it is for what the reader brings until settles have made room.
SPILL_FROM = 0.75
# So many deliveries go from memory to the backlog with one settle, as many as a read brings: writing twenty thousand
# rows in one go would hold up everybody else for a tenth of a second.
SPILL_AT_ONCE = 500
# An endpoint holds memory that has more of it than this part of its fair share. Less than all of it: of ten endpoints
# with the same load each has a little more than the others now and then.
HOLDS_PART = 0.5
# With more endpoints than this there is no looking for others: there are always some.
HOLDERS_MAX = 256
# Memory turns over when what it holds starts within this time at the pace of the last look. What is slower than that
# waits for its receivers, and is better off in the backlog, where a deadline is seen.
TURNS_OVER_S = 60.0
# So much of the memory a tenant may hold though it does not turn over.
SLOW_PART = 0.15
# A pause of this length is no slow receiver yet.
STUCK_S = 3.0
# How long the pace is measured, at least and at most.
PACE_S, PACE_S_MAX = 0.25, 0.5

# So many fragments a shard may have, whatever number of shards there are.
FRAGMENTS_MIN = 32

# Which delivery of a lane goes first, the least first of all; None: it has none.
_Place = Callable[[Lane], tuple[float, int] | None]


class Spill:
    """Keeps one worker within its ``limits`` of memory and fragments."""

    def __init__(
        self,
        books: Books,
        backlog: Backlog,
        gates: Gates,
        turns: Turns,
        tenants: Mapping[UUID, TenantState],
        limits: Limits,
    ) -> None:
        self._books = books
        self._backlog = backlog
        self._gates = gates
        self._turns = turns
        self._tenants = tenants
        self._limits = limits
        self._alone_until = 0.0
        self._paced_at = self._turned_over_at = -PACE_S
        self._started = 0
        # Of tenants that hold more than the slow may: how many of its requests had started at the last look, and when
        # what it holds turned over last.
        self._slow_from = limits.buffer * SLOW_PART
        self._looked_at = -PACE_S
        self._paces: dict[TenantState, tuple[int, float]] = {}
        # Of these, since the last look, those that it did not turn over for, as long as they hold so much.
        self._slow: list[TenantState] = []

    def holders(self, now: float) -> list[UUID] | None:
        """The endpoints that hold the memory, when it fills and is turned over: if nobody else has rows in the journal,
        nothing is won by writing theirs to the backlog, which costs two writes each. None: no need to know."""
        if now - self._paced_at >= PACE_S:
            started = self._turns.started
            spent_s = now - self._paced_at
            if self._started == 0 or _turns_over(started - self._started, self._books.buffered, spent_s):
                self._turned_over_at = now
            self._paced_at, self._started = now, started
        if now - self._turned_over_at > STUCK_S or not self.is_filling():
            return None
        held = [
            (sum(len(lane.queue) for lane in endpoint.lanes), endpoint.endpoint_id)
            for tenant in self._tenants.values()
            if tenant.buffered
            for endpoint in tenant.endpoints.values()
        ]
        least = HOLDS_PART * self._books.buffered / max(1, sum(1 for count, _ in held if count))
        holders = [endpoint_id for count, endpoint_id in held if count and count >= least]
        return holders if 0 < len(holders) <= HOLDERS_MAX else None

    def nobody_else(self, until: float) -> None:
        """Until then no row that waits in the journal is another one's than those who hold the memory."""
        self._alone_until = until

    def make_room(self, now: float) -> None:
        """Memory fills, and the rows that come next may be another tenant's: of who holds more than its fair share the
        newest go to the backlog. When it is full, whoever's they are, and what was fetched from there, too. Not while
        nobody else waits. Of a tenant whose receivers are slow only some stay, however much room there is."""
        self._look_at_paces(now)
        for tenant in self._slow:
            if self._books.put_away_now < SPILL_AT_ONCE:
                self._give_way(tenant, partial(self._holds_much, tenant), now)
        self._slow = [tenant for tenant in self._slow if self._holds_much(tenant)]
        if now < self._alone_until or not self.is_filling() or self._books.put_away_now >= SPILL_AT_ONCE:
            return
        full = self._books.room() == (0, 0)
        holders = [tenant for tenant in self._tenants.values() if tenant.buffered]
        # One share more than there are tenants: that of the next one to come.
        share = self._limits.buffer // (len(holders) + 1)
        for tenant in sorted(holders, key=lambda tenant: tenant.buffered, reverse=True):
            if (
                self._books.put_away_now >= SPILL_AT_ONCE
                or not self.is_filling()
                or not (full or tenant.buffered > share)
            ):
                return
            lanes = self._give_way(tenant, self.is_filling, now)
            if full and self._books.put_away_now < SPILL_AT_ONCE:
                self._put_back(lanes, now)

    def _give_way(self, tenant: TenantState, needed: Callable[[], bool], now: float) -> list[Lane]:
        """Its newest go to the backlog, as long as it is needed and a settle may write more; returns its lanes."""
        lanes = [lane for endpoint in tenant.endpoints.values() for lane in endpoint.lanes]
        self._put_away(lanes, _newest, SPILL_AT_ONCE - self._books.put_away_now, needed, now)
        return lanes

    def _holds_much(self, tenant: TenantState) -> bool:
        """More than the slow may?"""
        return tenant.buffered > self._slow_from

    def _look_at_paces(self, now: float) -> None:
        """Now and then: who holds more than the slow may, and when did it turn over last?"""
        spent_s = now - self._looked_at
        if spent_s < PACE_S:
            return
        self._looked_at = now
        paces: dict[TenantState, tuple[int, float]] = {}
        self._slow = []
        if self._books.buffered <= self._slow_from:
            self._paces = paces
            return
        for tenant in self._tenants.values():
            if self._holds_much(tenant):
                started, turned_over_at = self._paces.get(tenant, (0, now))
                if _turns_over(tenant.started - started, tenant.buffered, spent_s):
                    turned_over_at = now
                paces[tenant] = tenant.started, turned_over_at
                if now - turned_over_at > STUCK_S:
                    self._slow.append(tenant)
        self._paces = paces

    def _put_back(self, lanes: Iterable[Lane], now: float) -> None:
        """Retries and replays, of the lanes with most of them. Only when there is no other way, for what was fetched
        will be fetched again."""
        for lane in sorted(lanes, key=lambda lane: len(lane.later), reverse=True):
            if not lane.later or not self.is_filling():
                return
            if lane.endpoint.config is not None:
                self._backlog.park(lane, self._reason(lane, now), now)

    def is_filling(self) -> bool:
        """Does memory fill?"""
        books, limits = self._books, self._limits
        return books.buffered >= limits.buffer * SPILL_FROM or books.buffered_bytes >= limits.buffer_bytes * SPILL_FROM

    def mend(self, shards: Collection[Shard], now: float) -> None:
        """Too much to write down in each settle of these shards: the oldest open deliveries go to the backlog, until
        half of it is left. What is under way cannot go: where that is more, it is tried again at twice as much."""
        fragments = self._limits.fragments
        most = min(fragments, max(FRAGMENTS_MIN, fragments // len(shards)))
        for shard in shards:
            there = shard.progress.fragments
            shard.unmended = min(shard.unmended, there)
            if there > max(most, 2 * shard.unmended):
                self._mend(shard, most // 2, now)

    def _mend(self, shard: Shard, left: int, now: float) -> None:
        progress = shard.progress
        all_gone = self._put_away(shard.lanes.values(), _oldest, SPILL_AT_ONCE, lambda: progress.fragments > left, now)
        shard.unmended = progress.fragments if all_gone else 0

    def _put_away(
        self, lanes: Iterable[Lane], first: _Place, count: int, needed: Callable[[], bool], now: float
    ) -> bool:
        """As long as it is needed, at most ``count``, the ``first`` of all these lanes each time: one lane after the
        other would leave a hole at each of their rows. What keeps an order goes at once, and nothing before its
        endpoint's configuration is known. Is there nothing left that could go?"""
        known = [lane for lane in lanes if lane.endpoint.config is not None]
        heap = [(place, number, lane) for number, lane in enumerate(known) if (place := first(lane)) is not None]
        heapify(heap)
        put_away_to = self._books.put_away_now + count
        reasons: dict[Lane, WaitReason] = {}
        while heap and self._books.put_away_now < put_away_to and needed():
            _, number, lane = heappop(heap)
            if lane not in reasons:
                reasons[lane] = self._reason(lane, now)
            if lane.in_order or lane.ordered or not lane.queue:
                self._backlog.park(lane, reasons[lane], now)
                continue
            self._books.put_away(lane.queue.pop() if first is _newest else lane.queue.popleft(), reasons[lane], now)
            if (place := first(lane)) is not None:
                heappush(heap, (place, number, lane))
        for lane in reasons:
            self._backlog.consider(lane, now)
        return not heap

    def _reason(self, lane: Lane, now: float) -> WaitReason:
        """What its rows are shown to wait for."""
        assert lane.endpoint.config is not None
        wait = self._gates.closed(lane, lane.endpoint.config, now=now)
        return WaitReason.IN_FLIGHT_CAP if wait is None else wait.reason


def _turns_over(started: int, buffered: int, spent_s: float) -> bool:
    """Would what is held start in time, at the pace of so many requests in so long?"""
    # The machine may have stood still since the last look: that says nothing of the receivers.
    return started * TURNS_OVER_S >= buffered * min(spent_s, PACE_S_MAX)


def _newest(lane: Lane) -> tuple[float, int] | None:
    """Where its newest fresh delivery comes, the newest of all lanes first."""
    if not lane.queue:
        return None
    entry = lane.queue[-1].entry
    return -entry.created_at, -entry.seq


def _oldest(lane: Lane) -> tuple[float, int] | None:
    """Where its oldest delivery comes that is open in the journal. What was fetched from the backlog is not: to put
    that back would mend nothing, and it would be fetched again."""
    if lane.queue:
        return 0.0, lane.queue[0].entry.seq
    replay = next((work for work in lane.later if not work.stored), None)
    return None if replay is None else (0.0, replay.entry.seq)
