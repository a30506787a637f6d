"""Lanes: all deliveries of one endpoint inside one shard.

A lane keeps a short queue in memory and, of what waits in the backlog, only a count and the next due time: a million
waiting deliveries cost no memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import MappingProxyType
from typing import cast
from uuid import UUID

from hookpost.engine.work import HELD, REPLAY, Named, Work
from hookpost.model import HEALTHY, Endpoint, OnDead, Tenant
from hookpost.policy.breaker import Breaker
from hookpost.policy.rate import TokenBucket

NEVER = float("inf")
# Sorts before every backlog row: rescan the lane from its beginning.
FROM_START = (0.0, -1)
# What a lane and its endpoint hold before they need containers of their own: of a hundred thousand most have nothing to
# do now, and their empty containers took 1.5 KB each. Adding to one of these raises.
NO_QUEUE = cast("deque[Work]", ())
NO_LANES = cast("list[Lane]", ())
NO_POSITIONS = cast("set[int]", frozenset())
NONE_RELEASED = cast("list[int]", ())
NO_NAMES = cast("deque[Named]", ())
NO_CANCELS = cast("dict[UUID, int]", MappingProxyType({}))
# Behind every position of a journal.
NO_POSITION = 2**63 - 1
# Of so many turns of a lane that has both, one goes to a retry, a replay or what a gate held; the others to fresh ones.
LATER_EVERY = 4


class TenantState:
    """One tenant's share of this worker.

    ``buffered``: its deliveries that wait in memory; ``started``: requests since the beginning; ``ready``: a turn for
    each ready lane, of its endpoint; ``breakers``: of its receivers that are not at rest, by origin; ``recovered``:
    when others were seen to recover; ``origins``: all of its endpoints by origin, made when a breaker asks for it and
    forgotten with the next change.
    """

    __slots__ = (
        "breakers", "buffered", "cap", "config", "endpoints", "in_flight", "origins", "ready", "recovered", "started",
        "tenant_id", "turning",
    )  # fmt: skip

    def __init__(self, tenant_id: UUID) -> None:
        self.tenant_id = tenant_id
        self.config: Tenant | None = None
        self.endpoints: dict[UUID, EndpointState] = {}
        self.in_flight = 0
        self.buffered = 0
        self.started = 0
        self.cap = 0
        self.ready: deque[EndpointState] = deque()
        self.turning = False
        self.breakers: dict[str, Breaker] = {}
        self.recovered: dict[str, float] = {}
        self.origins: dict[str, list[EndpointState]] | None = None

    def lives_in(self, shard: int) -> bool:
        """Is this where what is owed to its pinned endpoints is appended to?"""
        return self.config is not None and self.config.home_shards[0] == shard

    def of_origin(self, origin: str) -> list[EndpointState]:
        """Its endpoints that this receiver stands behind."""
        if self.origins is None:
            self.origins = {}
            for endpoint in self.endpoints.values():
                self.origins.setdefault(endpoint.origin, []).append(endpoint)
        return self.origins.get(origin, [])


class EndpointState:
    """One endpoint's share of this worker; ``config`` is None until it was loaded.

    ``origin``: its receiver's scheme, host and port. ``bucket``: of its rate limit; no token before ``rate_until``.
    ``ready``: its lanes that have something that may start; ``waiting``: those that wait for a place.
    """

    __slots__ = (
        "bucket", "cap", "config", "endpoint_id", "health", "hold_until", "in_flight", "lanes", "origin", "rate_until",
        "ready", "tenant", "waiting",
    )  # fmt: skip

    def __init__(self, endpoint_id: UUID, tenant: TenantState) -> None:
        self.endpoint_id = endpoint_id
        self.tenant = tenant
        self.config: Endpoint | None = None
        self.origin = ""
        self.bucket: TokenBucket | None = None
        self.rate_until = 0.0
        self.health = HEALTHY
        self.in_flight = 0
        self.cap = 0
        self.hold_until = 0.0
        self.lanes: list[Lane] = []
        self.ready = NO_LANES
        self.waiting = NO_LANES


class Lane:
    """The deliveries of one endpoint in one shard.

    Of the backlog: ``stored`` rows in all; of those that are committed and not in memory none is due before
    ``next_due`` or has a deadline before ``next_deadline``; ``busy`` are the positions in memory or settled but not yet
    committed, which a fetch must not bring back; every other row lies behind ``after``.
    ``due_*`` and ``deadline_*`` are the least of the rows not yet committed, in the settle that is being gathered and
    in the one under way. No fetch may reach them; when they are committed they count as next.
    ``ready`` says that the lane is in the round of turns, ``blocked`` that it waits for a place of its endpoint,
    ``alarm`` is the earliest time it will be looked at again.

    ``queue`` holds fresh deliveries, ``later`` those that are second to them: retries, replays and what a gate held,
    fetched from the backlog. Both are NO_QUEUE until something is to be queued, and again when the lane was found idle.
    ``unsettled`` rows of the backlog are not committed as they are. ``inherited``: some are of an owner that crashed.

    ``in_order`` (a rate limit) sends what is due in the backlog before what is fresh. ``ordered`` sends one at a time,
    in the order of positions: no row of the backlog that is not in memory lies before ``stored_from``; the first one is
    not due before ``head_due``, or is ``forced`` (an event whose retry was asked for now). Nothing is sent before
    ``quiet_until``. ``ordered_to``: it is ordered only as long as it holds something up to there. ``blocks``: a dead
    delivery holds up those behind it; ``unblock``: some may, and should no more; ``revive``: the event of the one that
    does, when a replay of it may lie in the backlog already.

    ``dying`` of an ordered lane: deaths that are not committed. Nothing may follow them before, as an owner that takes
    over and knows nothing of them tries them once more.

    ``named``: operations on deliveries of one event, which are looked up in the backlog; ``cancelled``: events, and up
    to which position, that are to be dropped when what is under way of them comes back. ``forward_to``: the receiver
    recovered then, and what was stored before is brought forward, behind ``forward_after``; 0: all of it was, as far as
    it is committed. ``recovered_at``: when that was the last time.
    """

    __slots__ = (
        "after", "alarm", "blocked", "blocks", "busy", "cancelled", "deadline_building", "deadline_settling",
        "due_building", "due_settling", "dying", "endpoint", "fetching", "forced", "forward_after", "forward_to",
        "head_due", "in_order", "inherited", "later", "named", "next_deadline", "next_due", "open", "ordered",
        "ordered_to", "over_budget", "queue", "quiet_until", "ready", "recovered_at", "released", "rescan", "revive",
        "shard", "stored", "stored_from", "turn", "unblock", "unsettled", "wanted",
    )  # fmt: skip

    def __init__(self, shard: int, endpoint: EndpointState) -> None:
        self.shard = shard
        self.endpoint = endpoint
        self.queue = NO_QUEUE
        self.open = True
        self.ready = False
        self.blocked = False
        self.wanted = False
        self.alarm = NEVER
        self.stored = 0
        self.next_due = NEVER
        self.next_deadline = NEVER
        self.after = FROM_START
        self.busy = NO_POSITIONS
        self.fetching = False
        self.rescan = False
        self.released = NONE_RELEASED
        self.due_building = NEVER
        self.due_settling = NEVER
        self.deadline_building = NEVER
        self.deadline_settling = NEVER
        self.later = NO_QUEUE
        self.turn = 0
        self.in_order = False
        self.ordered = False
        self.ordered_to = 0
        self.blocks = False
        self.quiet_until = 0.0
        self.head_due = 0.0
        self.stored_from = NO_POSITION
        self.forced: UUID | None = None
        self.named = NO_NAMES
        self.cancelled = NO_CANCELS
        self.unsettled = 0
        self.dying = 0
        self.unblock = False
        self.revive: UUID | None = None
        self.recovered_at = 0.0
        self.forward_to = 0.0
        self.forward_after = FROM_START
        self.over_budget = False
        self.inherited = False

    def has_work(self) -> bool:
        """Is something in memory that may start?"""
        return bool(self.queue or self.later)

    def is_behind(self, other: Lane) -> bool:
        """Was what it would start earlier accepted than what the other one would? Of fresh deliveries alone."""
        ours, theirs = self.queue, other.queue
        return bool(ours and theirs) and ours[0].entry.created_at < theirs[0].entry.created_at

    def due_soonest(self) -> float:
        """No row of the backlog that is not in memory is due before, committed or not."""
        return min(self.next_due, self.due_building, self.due_settling)

    def head(self, *, now: float) -> Work | None:
        """Whose turn it is; None when that one lies in the backlog."""
        queue, later = self.queue, self.later
        if self.ordered:
            return self._first()
        if self.in_order:
            if later:
                return later[0]
            behind = self.stored and (self.fetching or self.due_soonest() <= now)
            return queue[0] if queue and not behind else None
        if later and (not queue or self.turn % LATER_EVERY == LATER_EVERY - 1):
            return later[0]
        return queue[0] if queue else None

    def _first(self) -> Work | None:
        """The one in memory with the lowest position, if none in the backlog or still looked up lies before it."""
        queue, later = self.queue, self.later
        if not later or (queue and queue[0].entry.seq < later[0].entry.seq):
            first = queue[0] if queue else None
        else:
            first = later[0]
        if first is None or self.dying or (self.stored and self.stored_from < first.entry.seq):
            return None
        return None if self.named and self.named[0].entry.seq < first.entry.seq else first

    def occupy(self, position: int) -> None:
        """From here on a fetch must not bring this row."""
        if self.busy:
            self.busy.add(position)
        else:
            self.busy = {position}

    def let_go(self, position: int) -> None:
        """A fetch may bring this row, if it still exists."""
        if position in self.busy:
            self.busy.remove(position)
        if not self.busy:
            self.busy = NO_POSITIONS

    def add_later(self, work: Work) -> None:
        """It is second to fresh deliveries."""
        if self.later is NO_QUEUE:
            self.later = deque()
        self.later.append(work)

    def put_back(self, work: Work) -> None:
        """What was fetched lies in the backlog as it did before."""
        self.let_go(work.entry.seq)
        self.after = FROM_START
        self.rescan |= self.fetching
        self.next_due = min(self.next_due, work.due_at)
        self.next_deadline = min(self.next_deadline, work.deadline)
        self.stored_from = min(self.stored_from, work.entry.seq)
        if work.marks & HELD and self.recovered_at:
            self.bring_forward(self.recovered_at)

    def bring_forward(self, recovered_at: float) -> None:
        """Its receiver was back then: what was stored before does not sit out its schedule."""
        self.recovered_at = recovered_at
        if self.stored:
            self.forward_to = recovered_at
            self.forward_after = FROM_START
            self.rescan |= self.fetching

    def fall_back(self) -> None:
        """Its receiver is down again: what is stored waits for the next recovery."""
        self.recovered_at = self.forward_to = 0.0

    def leave_order(self) -> None:
        """Its order has ended, and nothing is left of what kept it."""
        first = min(
            self.queue[0].entry.seq if self.queue else NO_POSITION,
            self.later[0].entry.seq if self.later else NO_POSITION,
            self.stored_from if self.stored else NO_POSITION,
        )
        if first > self.ordered_to and not self.endpoint.in_flight and not self.named:
            self.unblock |= self.blocks and self.stored > 0
            self.ordered_to = 0
            self.ordered = self.blocks = False

    def remove(self, work: Work) -> None:
        """Out of its queue, wherever in it."""
        (self.later if work in self.later else self.queue).remove(work)

    def add_name(self, named: Named) -> None:
        """Something is to be done with what it holds of an event."""
        if self.named is NO_NAMES:
            self.named = deque()
        self.named.append(named)

    def forget_names(self) -> Sequence[Named]:
        """Nothing of it is to be done any more: what was."""
        names, self.named = self.named, NO_NAMES
        return names

    def line_up(self, work: Work) -> None:
        """A replay is second to what is fresh, unless the lane keeps an order."""
        if work.entry.generation and not self.ordered:
            self.add_later(work)
            return
        if self.queue is NO_QUEUE:
            self.queue = deque()
        self.queue.append(work)

    def keep_order(self, config: Endpoint) -> None:
        """Does the lane keep an order? Called with every change of its endpoint's configuration."""
        self.in_order = config.rate_limit is not None
        # What it was owed while it was ordered keeps its order when that ends.
        to = config.ordered_to
        self.ordered_to = to[1] if to is not None and to[0] == self.shard and not config.ordered else 0
        was_ordered, self.ordered = self.ordered, config.ordered or self.ordered_to > 0
        did_block, self.blocks = self.blocks, self.ordered and config.on_dead is OnDead.BLOCK
        if did_block and not self.blocks:
            self.unblock = self.stored > 0
        if self.ordered and not was_ordered:
            self._set_replays_apart()

    def _set_replays_apart(self) -> None:
        """The lane keeps an order from now on: replays in it may be for a delivery that blocks it."""
        for work in [work for works in (self.queue, self.later) for work in works if work.entry.generation]:
            if not work.stored:
                self.remove(work)
                self.add_name(Named(REPLAY, work.entry, work))
