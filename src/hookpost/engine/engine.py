"""The engine of one worker: shards in, sends and settles out.

Relies on: journal rows contiguous per shard, configuration before deliveries, one owner per shard (the fence).
Promises: an entry leaves `open` only with its outcome, its backlog row or its dead letter in the same settle; a cap is
never exceeded; nothing is sent twice while one owner lives; what a settle says is true when it commits.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import assert_never
from uuid import UUID

from hookpost.engine.gates import Gates, Receiver
from hookpost.engine.lanes import (
    FROM_START,
    NEVER,
    NO_CANCELS,
    NO_LANES,
    NO_NAMES,
    NO_POSITION,
    NO_QUEUE,
    NONE_RELEASED,
    EndpointState,
    Lane,
    TenantState,
    Turns,
)
from hookpost.engine.progress import ShardProgress
from hookpost.engine.work import (
    CANCEL,
    HELD,
    REPLAY,
    RETRY_NOW,
    Attempt,
    BacklogChange,
    BacklogRow,
    DeadLetter,
    Entry,
    Fetch,
    Gone,
    Hold,
    JournalRow,
    Kind,
    Named,
    Settle,
    ShardSettle,
    Takeover,
    Wanted,
    Work,
)
from hookpost.model import (
    HEALTHY,
    Dead,
    DeadReason,
    Delivered,
    Endpoint,
    EndpointStatus,
    Health,
    OnDead,
    OperationalType,
    Outcome,
    Retry,
    Tenant,
    WaitReason,
)
from hookpost.policy.alerts import Notice
from hookpost.policy.breaker import BreakerPolicy, BreakerRecord, BreakerState, Probe
from hookpost.policy.budget import BudgetPolicy
from hookpost.policy.gate import PARK_AFTER_S, Wait, parks
from hookpost.policy.health import HealthPolicy, judge, resumed
from hookpost.policy.retry import decide, retry_after_s
from hookpost.policy.routing import cap_share

# Backlog rows of one lane that are brought into memory at once; small, as each brings its payload along.
FETCH_MAX = 64
# Retries of a lane become due one by one; those of the same tenth of a second are fetched together. An endpoint that is
# down would cost a fetch for each of its deliveries.
FETCH_GRID_S = 0.1
# Lanes whose backlog is being read at the same time; bounds memory and the load of a mass recovery on the store.
FETCHES_MAX = 8
# A hold is worth a write when it reaches this much further than the one already written.
HOLD_STEP_S = 1.0
# When memory is full it is emptied down to this part, so that one spill serves many reads.
ROOM_LEFT = 0.75
# A row is due later than any fetch could reach that was issued before it was stored. PostgreSQL's resolution is 1 µs,
# and rounding to it may take away half of one.
TICK_S = 2e-6
# Timers overtaken by earlier ones are swept when there are this many, and twice as many as were left last time.
TIMERS_SWEPT_AT = 1024
# A lane without work for so long is forgotten, with its endpoint's configuration: memory follows what is active.
IDLE_S = 600.0
# Why an endpoint is disabled, as its owner reads it.
ANSWERED_GONE = "it answered 410 Gone"
FAILED_FOR_LONG = "nothing but failures for {days:g} days"
# What is sent about endpoints says nothing of the health of those it is sent to: an alert never makes another one.
OPERATIONAL = frozenset(OperationalType)
# Idle lanes are looked for this often, in so many lanes at a time: it must not hold up what is sent.
IDLE_LOOK_S = 1.0
IDLE_LOOK_LANES = 1000
# Of a lane that fills the memory so many go to the backlog at once: writing twenty thousand rows in one go would hold
# up everybody else for a tenth of a second.
SPILL_AT_ONCE = 1000
# When a receiver may be probed and its lane has nothing to send, it is looked at again so much later.
FORWARD_AGAIN_S = 1.0
# How often what waits for the retry budget is looked at again: its books are kept by the second.
BUDGET_LOOK_S = 1.0
# When more than this part of a worker's requests are under way, a tenant may not have more of them than its fair share.
SCARCE_PART = 0.5
# Looking an enum's member up costs more than comparing with it, and every row is compared.
_REPLAY, _CONTROL = Kind.REPLAY, Kind.CONTROL


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one worker. ``buffer_*``: fresh deliveries waiting in memory; ``in_flight_*``: requests under way.

    ``fragments``: ranges of open entries and fan-outs done in part that a shard may have, as every settle writes them
    down. Where a slow endpoint leaves holes behind healthy ones, what waits longest goes to the backlog.
    """

    in_flight: int = 1000
    in_flight_bytes: int = 128 * 1024 * 1024
    buffer: int = 20_000
    buffer_bytes: int = 64 * 1024 * 1024
    fragments: int = 512


@dataclass(frozen=True, slots=True)
class Policies:
    """The platform's policies that are not an endpoint's own."""

    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    budget: BudgetPolicy = field(default_factory=BudgetPolicy)
    health: HealthPolicy = field(default_factory=HealthPolicy)


class _Shard:
    """One owned shard: its progress and what happened since the last settle."""

    __slots__ = (
        "attempts", "dead", "deletes", "doubt_stored", "doubtful_until", "draining", "dropped_lanes", "fence",
        "in_flight", "lanes", "notices", "number", "opened_at", "progress", "quiet_until", "read_created_at", "revived",
        "settle_no", "touched", "upserts",
    )  # fmt: skip

    def __init__(self, takeover: Takeover, now: float) -> None:
        self.number = takeover.shard
        self.fence = takeover.fence
        self.settle_no = takeover.settle_no
        self.progress = ShardProgress(takeover.read_to, takeover.read_day)
        self.lanes: dict[UUID, Lane] = {}
        self.opened_at = now
        self.quiet_until = takeover.quiet_until
        # What existed by then may have been sent by the last owner, who did not live to record it.
        self.doubtful_until = 0.0 if takeover.clean else now + TICK_S
        self.doubt_stored = False
        self.read_created_at = 0.0
        self.in_flight = 0
        self.draining = False
        self.touched = False
        self.attempts: list[Attempt] = []
        self.upserts: dict[tuple[UUID, int], BacklogChange] = {}
        self.deletes: list[tuple[UUID, int]] = []
        self.dead: list[DeadLetter] = []
        self.revived: list[tuple[UUID, UUID]] = []
        self.dropped_lanes: list[UUID] = []
        self.notices: list[Notice] = []

    def take(self) -> ShardSettle:
        """Close the books of this shard up to now and open new ones."""
        self.settle_no += 1
        part = ShardSettle(
            shard=self.number,
            fence=self.fence,
            settle_no=self.settle_no,
            progress=self.progress.snapshot(),
            attempts=self.attempts,
            upserts=self.upserts,
            deletes=self.deletes,
            dead=self.dead,
            revived=self.revived,
            dropped_lanes=self.dropped_lanes,
            clean=self.draining and self.in_flight == 0 and not self._doubtful(),
            notices=self.notices,
        )
        self.attempts, self.upserts, self.deletes = [], {}, []
        self.dead, self.revived, self.dropped_lanes, self.notices = [], [], [], []
        self.touched = False
        return part

    def _doubtful(self) -> bool:
        """Is something left that the last owner may have sent and not recorded?"""
        return self.doubtful_until > 0 and (
            self.doubt_stored
            or self.read_created_at <= self.doubtful_until
            or any(
                lane.fetching
                or (lane.inherited and lane.stored > 0)
                or any(w.possible_duplicate for w in lane.queue)
                or any(w.possible_duplicate for w in lane.later)
                or lane.named
                for lane in self.lanes.values()
            )
        )


class Engine:
    """All decisions of one worker. Every method takes `now`, which must never go back."""

    def __init__(self, *, worker: str, limits: Limits, rng: Random, policies: Policies | None = None) -> None:
        policies = policies or Policies()
        self._worker = worker
        self._health_policy = policies.health
        self._limits = limits
        self._rng = rng
        self._gates = Gates(breaker=policies.breaker, budget=policies.budget)
        self._over_budget: dict[Lane, None] = {}
        self._budget_look = NEVER
        self._shards: dict[int, _Shard] = {}
        self._tenants: dict[UUID, TenantState] = {}
        self._at_home: dict[int, dict[TenantState, None]] = {}
        self._endpoints: dict[UUID, EndpointState] = {}
        self._turns = Turns(limits.in_flight, SCARCE_PART)
        self._timers: list[tuple[float, int, Lane]] = []
        self._timer_no = 0
        self._timers_max = TIMERS_SWEPT_AT
        self._to_look_at: list[Lane] = []
        self._look_at = 0.0
        self._wanted: deque[Lane] = deque()
        self._fetching = 0
        self._missing: dict[UUID, UUID] = {}
        self._holds: dict[UUID, Hold] = {}
        self._gone: dict[UUID, Gone] = {}
        self._health: dict[UUID, Health] = {}
        self._touched: list[_Shard] = []
        self._released: list[tuple[Lane, int]] = []
        self._unsettled_lanes: list[Lane] = []
        self.in_flight = 0
        self.in_flight_bytes = 0
        self.buffered = 0
        self.buffered_bytes = 0
        self.pending_attempts = 0

    # ---- shards -------------------------------------------------------------------------------------------------

    @property
    def shards(self) -> Collection[int]:
        """The shards this worker owns."""
        return self._shards.keys()

    def open_shard(self, takeover: Takeover, *, now: float) -> None:
        """Become the owner: exactly the open entries and what lies past ``read_to`` is to be done."""
        assert takeover.shard not in self._shards
        shard = self._shards[takeover.shard] = _Shard(takeover, now)
        self._share_caps(takeover.shard)
        for summary in takeover.lanes:
            lane = self._new_lane(shard, summary.endpoint_id, summary.tenant_id, now)
            lane.stored = summary.count
            lane.inherited = not takeover.clean
            lane.unblock = summary.blocking > 0
            lane.stored_from = summary.first
            lane.next_due = summary.next_due
            lane.next_deadline = summary.next_deadline
            if lane.endpoint.config is not None and lane.endpoint.config.deleted:
                self._cancel_lane(lane)
            self._consider(lane, now)
        for row in takeover.rows:
            done = takeover.done.get(row.seq, ())
            owed = [endpoint_id for endpoint_id in row.owed if endpoint_id not in done]
            self._accept(shard, row, owed, done, now=now)

    def drain_shard(self, number: int) -> None:
        """Start nothing more for this shard; what is in flight may end."""
        shard = self._shards[number]
        shard.draining = True
        self._touch(shard)

    def touch(self, number: int) -> None:
        """Have this shard's progress written with the next settle, though nothing happened."""
        self._touch(self._shards[number])

    def in_flight_of(self, number: int) -> int:
        """Requests under way for this shard."""
        shard = self._shards.get(number)
        return 0 if shard is None else shard.in_flight

    def close_shard(self, number: int) -> None:
        """Forget the shard, as it was released or lost: outcomes that still come in are dropped."""
        shard = self._shards.pop(number, None)
        if shard is None:
            return
        if shard in self._touched:
            self._touched.remove(shard)
        self.pending_attempts -= len(shard.attempts)
        for lane in shard.lanes.values():
            lane.open = False
            for works in (lane.queue, lane.later):
                for work in works:
                    self._unbuffer(work)
            for named in self._forget_names(lane):
                if named.work is not None:
                    self._unbuffer(named.work)
            lane.queue = lane.later = NO_QUEUE
            endpoint = lane.endpoint
            endpoint.lanes.remove(lane)
            if lane.blocked:
                endpoint.waiting.remove(lane)
            self._forget_idle(endpoint)
        self._share_caps(number)

    def _forget_idle(self, endpoint: EndpointState) -> None:
        if endpoint.lanes or endpoint.in_flight:
            return
        tenant = endpoint.tenant
        self._endpoints.pop(endpoint.endpoint_id, None)
        self._missing.pop(endpoint.endpoint_id, None)
        tenant.endpoints.pop(endpoint.endpoint_id, None)
        tenant.origins = None
        if not tenant.endpoints and not tenant.lanes:
            self._tenants.pop(tenant.tenant_id, None)
            self._leave_home(tenant)

    def _leave_home(self, tenant: TenantState) -> None:
        for shard in () if tenant.config is None else tenant.config.home_shards:
            self._at_home[shard].pop(tenant, None)

    def _share_caps(self, number: int) -> None:
        """The shard came or went: with it a part of the caps of the tenants at home there."""
        for tenant in self._at_home.get(number, ()):
            self._share_tenant(tenant)

    def _share_tenant(self, tenant: TenantState) -> None:
        if tenant.config is not None:
            tenant.cap = cap_share(tenant.config.max_in_flight, tenant.config.home_shards, self._shards)
            self._turns.resume(tenant)
            for endpoint in tenant.endpoints.values():
                self._share_endpoint(endpoint)

    def _share_endpoint(self, endpoint: EndpointState) -> None:
        tenant = endpoint.tenant.config
        if endpoint.config is not None and tenant is not None:
            config = endpoint.config
            endpoint.cap = cap_share(config.max_in_flight, tenant.home_shards, self._shards, pinned=config.pinned)
            self._wake_waiting(endpoint, everyone=True)

    # ---- configuration ------------------------------------------------------------------------------------------

    @property
    def missing(self) -> dict[UUID, UUID]:
        """Endpoints (and their tenants) that deliveries wait for and that were not configured yet."""
        return self._missing

    @property
    def known_tenants(self) -> Collection[UUID]:
        """The tenants whose configuration this engine holds."""
        return self._tenants.keys()

    def endpoints_of(self, tenants: Collection[UUID]) -> list[UUID]:
        """The endpoints of these tenants whose configuration this engine holds."""
        known = (self._tenants[tenant_id] for tenant_id in tenants if tenant_id in self._tenants)
        return [e.endpoint_id for tenant in known for e in tenant.endpoints.values() if e.config is not None]

    def configure(self, tenants: Iterable[Tenant], endpoints: Iterable[Endpoint], *, now: float) -> None:
        """Take over loaded or changed configuration; lanes open and close as it says."""
        for tenant in tenants:
            state = self._tenants.get(tenant.tenant_id)
            if state is not None and state.config != tenant:
                self._settle_in(state, tenant)
                self._share_tenant(state)
        for config in endpoints:
            self._missing.pop(config.endpoint_id, None)
            known = self._endpoints.get(config.endpoint_id)
            if known is not None:
                self._configure(known, config, now)

    def _configure(self, endpoint: EndpointState, config: Endpoint, now: float) -> None:
        before = endpoint.config
        opened = before is not None and before.status is not EndpointStatus.ENABLED is config.status
        self._limit(endpoint, config, now)
        self._adopt_health(endpoint, config)
        endpoint.config = config
        endpoint.tenant.origins = None
        endpoint.hold_until = max(endpoint.hold_until, config.hold_until)
        self._share_endpoint(endpoint)
        for lane in endpoint.lanes:
            if config.deleted:
                self._cancel_lane(lane)
                continue
            self._order(lane, config)
            lane.head_due = 0.0
            if opened:
                self._bring_forward(lane, now)
            if lane.has_work():
                self._turns.enter(lane)
            self._consider(lane, now)

    def _limit(self, endpoint: EndpointState, config: Endpoint, now: float) -> None:
        """Its rate limit. It lives in the first home shard; where it has lanes in others, of a time before it was
        pinned there, none of these knows of the rest, and each has a part of the rate: all together keep to it."""
        tenant = endpoint.tenant
        homes = () if tenant.config is None else tenant.config.home_shards
        away = homes and not any(tenant.lives_in(lane.shard) for lane in endpoint.lanes)
        opened_at = max((self._shards[lane.shard].opened_at for lane in endpoint.lanes), default=now)
        # A limit that is new is not filled up by the time before it was one.
        since = opened_at if endpoint.config is None else now
        part = 1 / max(1, len(homes) - 1) if away else 1.0
        self._gates.configure(endpoint, config, since=since, part=part, now=now)

    def _order(self, lane: Lane, config: Endpoint) -> None:
        """Does the lane keep an order? Called with every change of its endpoint's configuration."""
        lane.in_order = config.rate_limit is not None
        # What it was owed while it was ordered keeps its order when that ends.
        to = config.ordered_to
        lane.ordered_to = to[1] if to is not None and to[0] == lane.shard and not config.ordered else 0
        was_ordered, lane.ordered = lane.ordered, config.ordered or lane.ordered_to > 0
        did_block, lane.blocks = lane.blocks, lane.ordered and config.on_dead is OnDead.BLOCK
        if did_block and not lane.blocks:
            lane.unblock = lane.stored > 0
        if lane.ordered and not was_ordered:
            self._set_replays_apart(lane)

    def _leave_order(self, lane: Lane) -> None:
        """Its order has ended, and nothing is left of what kept it."""
        first = min(
            lane.queue[0].entry.seq if lane.queue else NO_POSITION,
            lane.later[0].entry.seq if lane.later else NO_POSITION,
            lane.stored_from if lane.stored else NO_POSITION,
        )
        if first > lane.ordered_to and not lane.endpoint.in_flight and not lane.named:
            lane.unblock |= lane.blocks and lane.stored > 0
            lane.ordered_to = 0
            lane.ordered = lane.blocks = False

    def _adopt_health(self, known: EndpointState, config: Endpoint) -> None:
        """What is stored counts when it is loaded first; later we know better, until its tenant opens or moves it."""
        before, open_now = known.config, config.status is EndpointStatus.ENABLED
        if before is None:
            known.health = self._health.get(known.endpoint_id, config.health)
        elif (open_now and before.status is not EndpointStatus.ENABLED) or config.url != before.url:
            known.health = self._health[known.endpoint_id] = resumed(known.health)

    def _settle_in(self, state: TenantState, config: Tenant) -> None:
        self._leave_home(state)
        for shard in config.home_shards:
            self._at_home.setdefault(shard, {})[state] = None
        state.config = config

    def _tenant(self, tenant_id: UUID) -> TenantState:
        state = self._tenants.get(tenant_id)
        if state is None:
            state = self._tenants[tenant_id] = TenantState(tenant_id)
        return state

    def _lane(self, shard: _Shard, endpoint_id: UUID, tenant_id: UUID, now: float) -> Lane:
        """The lane for a delivery that comes in."""
        lane = shard.lanes.get(endpoint_id)
        if lane is None:
            lane = self._new_lane(shard, endpoint_id, tenant_id, now)
        if lane.queue is NO_QUEUE:
            lane.queue = deque()
            self._ask_for(lane.endpoint)
        return lane

    def _later(self, lane: Lane) -> deque[Work]:
        """Where what is second to fresh deliveries waits."""
        if lane.later is NO_QUEUE:
            lane.later = deque()
        return lane.later

    def _ask_for(self, endpoint: EndpointState) -> None:
        """Its configuration is needed now."""
        if endpoint.config is None:
            self._missing[endpoint.endpoint_id] = endpoint.tenant.tenant_id

    def _new_lane(self, shard: _Shard, endpoint_id: UUID, tenant_id: UUID, now: float) -> Lane:
        endpoint = self._endpoints.get(endpoint_id)
        if endpoint is None:
            tenant = self._tenant(tenant_id)
            endpoint = self._endpoints[endpoint_id] = EndpointState(endpoint_id, tenant)
            tenant.endpoints[endpoint_id] = endpoint
            if endpoint_id in self._holds:
                # Noted for a shard that was closed since, and not yet part of any configuration.
                endpoint.hold_until = self._holds[endpoint_id].until
        lane = shard.lanes[endpoint_id] = Lane(shard.number, endpoint)
        lane.quiet_until = shard.quiet_until
        endpoint.lanes.append(lane)
        endpoint.tenant.origins = None
        if endpoint.config is not None:
            self._order(lane, endpoint.config)
            # The shard's last owner may have emptied its bucket a moment ago.
            endpoint.bucket = None
            self._limit(endpoint, endpoint.config, now)
        return lane

    # ---- the journal --------------------------------------------------------------------------------------------

    def read_to(self, number: int) -> tuple[int, int]:
        """(seq, day) of the last journal row read: the reader goes on behind it."""
        progress = self._shards[number].progress
        return progress.read_to, progress.read_day

    def room(self) -> tuple[int, int]:
        """How many rows and payload bytes the reader may bring: 0 when memory is full of work that can start."""
        limits = self._limits
        if self.buffered >= limits.buffer or self.buffered_bytes >= limits.buffer_bytes:
            return 0, 0
        return limits.buffer - self.buffered, limits.buffer_bytes - self.buffered_bytes

    def on_rows(self, number: int, rows: Sequence[JournalRow], *, now: float) -> None:
        """Journal rows of one shard, contiguous; raises GapError (and takes none further) when they are not."""
        shard = self._shards[number]
        for row in rows:
            shard.progress.advance(row.seq, row.day)
            if row.kind == _REPLAY:
                shard.revived.extend((row.event_id, endpoint_id) for endpoint_id in row.owed)
            if row.owed:
                self._accept(shard, row, row.owed, (), now=now)
        if rows:
            shard.read_created_at = rows[-1].created_at
            self._touch(shard)

    def _accept(
        self,
        shard: _Shard,
        row: JournalRow,
        owed: Sequence[UUID],
        done: Sequence[UUID],
        *,
        now: float,
    ) -> None:
        entry = Entry(
            shard.number, row.seq, row.day, row.event_id, row.tenant_id, row.type, row.payload, row.generation,
            row.created_at, len(owed),
        )  # fmt: skip
        entry.done.extend(done)
        shard.progress.begin(entry)
        possible_duplicate = row.created_at <= shard.doubtful_until
        for endpoint_id in owed:
            lane = self._lane(shard, endpoint_id, row.tenant_id, now)
            if row.kind == _CONTROL:
                self._name(lane, Named(row.type, entry), now)
                continue
            work = Work(entry, lane, row.created_at, possible_duplicate=possible_duplicate)
            self._buffer(work)
            self._enqueue(lane, work, now)

    def _enqueue(self, lane: Lane, work: Work, now: float) -> None:
        config = lane.endpoint.config
        if config is None:
            lane.queue.append(work)
            return
        if config.deleted:
            self._unbuffer(work)
            self._finish(work)
            return
        if lane.ordered and work.entry.generation:
            self._name(lane, Named(REPLAY, work.entry, work), now)
            return
        wait = self._gates.closed(lane, config, now=now)
        if wait is not None and parks(wait, now=now):
            self._put_away(work, wait.reason, now)
            return
        self._line_up(lane, work)
        self._turns.enter(lane)

    def _line_up(self, lane: Lane, work: Work) -> None:
        """A replay is second to what is fresh, unless the lane keeps an order."""
        if work.entry.generation and not lane.ordered:
            self._later(lane).append(work)
            return
        if lane.queue is NO_QUEUE:
            lane.queue = deque()
        lane.queue.append(work)

    # ---- sending ------------------------------------------------------------------------------------------------

    def take_sends(self, limit: int, *, now: float) -> list[Work]:
        """Up to ``limit`` deliveries that start now, in fair turns; each must end in one ``on_outcome``."""
        sends: list[Work] = []
        limits = self._limits
        while len(sends) < limit and self.in_flight < limits.in_flight:
            if self.in_flight_bytes >= limits.in_flight_bytes:
                break
            lane = self._turns.next()
            if lane is None:
                self._make_room(now)
                break
            work = self._next_of(lane, now)
            if work is not None:
                self._start(work)
                sends.append(work)
                if lane.next_due <= now or (lane.forward_to and not lane.later):
                    self._consider(lane, now)
        return sends

    def _next_of(self, lane: Lane, now: float) -> Work | None:
        """The next one of the lane if every gate lets it through; else the lane waits for what can open them."""
        endpoint = lane.endpoint
        config = endpoint.config
        if not lane.open or config is None or not lane.has_work() or self._shards[lane.shard].draining:
            self._wake_waiting(endpoint)
            return None
        if lane.ordered_to:
            self._leave_order(lane)
        work = lane.head(now=now)
        if work is None:
            self._without_head(lane, config, now)
            return None
        wait = self._gates.admit(lane, work, config, now=now)
        fresh = lane.queue and not (lane.in_order or lane.ordered)
        if wait is not None and wait.reason is WaitReason.RETRY_BUDGET and fresh:
            # What is over the budget does not hold up first attempts.
            self._wait_for_budget(lane, now)
            work = lane.queue[0]
            wait = self._gates.admit(lane, work, config, now=now)
        if wait is not None:
            self._hold_back(lane, wait, now)
            return None
        self._take(lane, work)
        if lane.has_work():
            self._turns.enter(lane)
        if work.entry.payload is None:
            self._without_payload(lane, work, now)
            return None
        return work

    def _without_head(self, lane: Lane, config: Endpoint, now: float) -> None:
        """Whose turn it is lies in the backlog, or behind something that is under way or being written."""
        wait = self._gates.closed(lane, config, now=now)
        if wait is not None:
            self._hold_back(lane, wait, now)
            return
        self._wake_waiting(lane.endpoint)
        self._consider(lane, now)

    def _take(self, lane: Lane, work: Work) -> None:
        """Out of its queue, whose first it is."""
        lane.turn += 1
        if lane.later and lane.later[0] is work:
            lane.later.popleft()
        else:
            lane.queue.popleft()

    def _without_payload(self, lane: Lane, work: Work, now: float) -> None:
        """What would be sent is gone."""
        self._unbuffer(work)
        self._gates.withdraw(lane.endpoint, work, now=now)
        self._bury(work, DeadReason.PAYLOAD_MISSING, None, attempts=work.retry_count, now=now)
        self._wake_waiting(lane.endpoint)
        self._consider(lane, now)

    def _hold_back(self, lane: Lane, wait: Wait, now: float) -> None:
        endpoint = lane.endpoint
        if wait.reason is WaitReason.IN_FLIGHT_CAP:
            lane.blocked = True
            if endpoint.waiting is NO_LANES:
                endpoint.waiting = deque()
            endpoint.waiting.append(lane)
            return
        # It does not take the place that was free for it: the lanes behind it must hear of the gate, too.
        self._wake_waiting(endpoint)
        if wait.reason is WaitReason.RETRY_BUDGET:
            self._wait_for_budget(lane, now)
            return
        if parks(wait, now=now):
            self._park(lane, wait.reason, now)
        if wait.until is not None:
            self._wake_at(lane, wait.until)

    def _wait_for_budget(self, lane: Lane, now: float) -> None:
        if not lane.over_budget:
            lane.over_budget = True
            self._over_budget[lane] = None
            self._budget_look = min(self._budget_look, now + BUDGET_LOOK_S)

    def _start(self, work: Work) -> None:
        self._unbuffer(work)
        size = work.entry.size
        lane = work.lane
        lane.endpoint.in_flight += 1
        self._turns.start(lane.endpoint.tenant)
        self._shards[lane.shard].in_flight += 1
        self.in_flight += 1
        self.in_flight_bytes += size

    def _wake_waiting(self, endpoint: EndpointState, *, everyone: bool = False) -> None:
        """A place of the endpoint is free: the lane that waited longest gets its turn."""
        while endpoint.waiting:
            lane = endpoint.waiting.popleft()
            lane.blocked = False
            if lane.has_work():
                self._turns.enter(lane)
                if not everyone:
                    return

    def _buffer(self, work: Work) -> None:
        entry = work.entry
        if entry.queued == 0:
            self.buffered_bytes += entry.size
        entry.queued += 1
        self.buffered += 1

    def _unbuffer(self, work: Work) -> None:
        """Out of the memory of waiting ones. A fan-out's payload counts until the last of them leaves."""
        entry = work.entry
        entry.queued -= 1
        if entry.queued == 0:
            self.buffered_bytes -= entry.size
        self.buffered -= 1

    # ---- outcomes -----------------------------------------------------------------------------------------------

    def on_outcome(self, work: Work, outcome: Outcome, *, now: float) -> None:
        """An attempt ended: record it, decide, and let the next one of its endpoint go."""
        lane = work.lane
        endpoint = lane.endpoint
        changed = self._gates.ended(endpoint, work, outcome, now=now)
        self._end(work, lane, endpoint)
        if outcome.retry_after is not None:
            self._note_hold(endpoint, outcome, now)
        if lane.ordered:
            for each in endpoint.lanes:
                self._consider(each, now)
        if changed is not None:
            self._breaker_changed(endpoint.tenant, work.origin, changed.state, now)
        if not lane.open:
            return
        shard = self._shards[lane.shard]
        config = endpoint.config
        assert config is not None
        if not work.deadline:
            work.deadline = work.entry.created_at + config.retry.deadline_s
        self._judge_health(shard, work, outcome, now)
        decision = decide(
            outcome,
            retry_count=work.retry_count,
            deadline=work.deadline,
            policy=config.retry,
            now=now,
            rng=self._rng,
        )
        match decision:
            case Delivered():
                self._record(shard, work, outcome, "delivered")
                self._finish(work)
            case Retry(due_at=due_at):
                self._record(shard, work, outcome, "retry")
                if config.deleted or work.entry.seq < lane.cancelled.get(work.entry.event_id, 0):
                    self._finish(work)
                else:
                    self._store(work, WaitReason.RETRY, due_at, work.retry_count + 1, outcome, now)
                    if lane.ordered:
                        self._wait_for_head(lane, due_at)
            case Dead(reason=reason):
                self._record(shard, work, outcome, "dead")
                if outcome.status == 410:
                    self._gone[endpoint.endpoint_id] = Gone(config.tenant_id, endpoint.endpoint_id, ANSWERED_GONE)
                self._bury(work, reason, outcome, attempts=work.retry_count + 1, now=now)
            case _:
                assert_never(decision)
        if lane.cancelled and not endpoint.in_flight:
            lane.cancelled = NO_CANCELS

    def _end(self, work: Work, lane: Lane, endpoint: EndpointState) -> None:
        tenant = endpoint.tenant
        endpoint.in_flight -= 1
        self._turns.end(tenant)
        self.in_flight -= 1
        self.in_flight_bytes -= work.entry.size
        if lane.open:
            self._shards[lane.shard].in_flight -= 1
        else:
            self._forget_idle(endpoint)
        if endpoint.waiting:
            self._wake_waiting(endpoint)
        if tenant.lanes and not tenant.turning:
            self._turns.resume(tenant)

    def _record(self, shard: _Shard, work: Work, outcome: Outcome, verdict: str) -> None:
        entry = work.entry
        assert work.attempt_id is not None
        latency_ms = round((outcome.finished_at - outcome.started_at) * 1000)
        shard.attempts.append((
            work.attempt_id, shard.number, shard.settle_no + 1, entry.seq, entry.event_id,
            work.lane.endpoint.endpoint_id, entry.tenant_id, entry.generation, work.due_at, outcome.started_at,
            outcome.finished_at, outcome.status, outcome.error_code, work.retry_count, latency_ms, outcome.dns_ms,
            outcome.connect_ms, outcome.tls_ms, outcome.first_byte_ms, outcome.response_hash, outcome.response_head,
            outcome.request_bytes, outcome.response_bytes, self._worker, verdict, work.possible_duplicate,
            outcome.address, outcome.protocol,
        ))  # fmt: skip
        self.pending_attempts += 1
        if not shard.touched:
            self._touch(shard)

    def _judge_health(self, shard: _Shard, work: Work, outcome: Outcome, now: float) -> None:
        """Count it for the endpoint's health; announcements go out with the settle, so that a crash loses none."""
        endpoint = work.lane.endpoint
        entry = work.entry
        if (outcome.error_code is None and endpoint.health is HEALTHY) or entry.type in OPERATIONAL:
            return
        before, policy = endpoint.health, self._health_policy
        judged = judge(before, outcome, now=now, policy=policy)
        if judged.health is before:
            return
        endpoint.health = self._health[endpoint.endpoint_id] = judged.health
        if judged.announcement is not None:
            run = judged.health if judged.announcement is OperationalType.ENDPOINT_FAILING else before
            shard.notices.append(
                Notice(
                    type=judged.announcement,
                    tenant_id=entry.tenant_id,
                    endpoint_id=endpoint.endpoint_id,
                    at=now,
                    failures=run.consecutive_failures,
                    since=run.failing_since,
                )
            )
        if judged.disable:
            reason = FAILED_FOR_LONG.format(days=policy.disable_after_s / 86_400)
            self._gone[endpoint.endpoint_id] = Gone(entry.tenant_id, endpoint.endpoint_id, reason)

    def _note_hold(self, endpoint: EndpointState, outcome: Outcome, now: float) -> None:
        """Retry-After holds the endpoint, not only the delivery that was answered with it."""
        until = now + retry_after_s(outcome, now=now)
        if until > now and until > endpoint.hold_until + HOLD_STEP_S:
            self._holds[endpoint.endpoint_id] = Hold(endpoint.endpoint_id, until)
        endpoint.hold_until = max(endpoint.hold_until, until)

    def _bury(self, work: Work, reason: DeadReason, outcome: Outcome | None, *, attempts: int, now: float) -> None:
        entry = work.entry
        shard = self._shards[work.lane.shard]
        shard.dead.append(
            DeadLetter(
                endpoint_id=work.lane.endpoint.endpoint_id,
                position=entry.seq,
                day=entry.day,
                tenant_id=entry.tenant_id,
                event_id=entry.event_id,
                generation=entry.generation,
                type=entry.type,
                reason=reason,
                died_at=now,
                attempt_count=attempts,
                last_http_status=None if outcome is None else outcome.status,
                last_error_code=None if outcome is None else outcome.error_code,
            )
        )
        if work.lane.blocks:
            # The row stays, never due: whoever owns the shard next must find the lane blocked.
            self._store(work, WaitReason.ORDERED, NEVER, attempts, outcome, now, deadline=NEVER)
            self._wait_for_head(work.lane, NEVER)
        else:
            self._finish(work)

    def _finish(self, work: Work) -> None:
        """Nothing more is owed: out of the journal's open entries, or out of the backlog."""
        lane = work.lane
        shard = self._shards[lane.shard]
        if not shard.touched:
            self._touch(shard)
        if work.stored:
            lane.stored -= 1
            shard.deletes.append((lane.endpoint.endpoint_id, work.entry.seq))
            self._release(lane, work.entry.seq)
        else:
            shard.progress.finish(work.entry, lane.endpoint.endpoint_id)

    def _release(self, lane: Lane, position: int) -> None:
        """Its row changes with this settle, and may be fetched again when that is committed."""
        lane.unsettled += 1
        self._released.append((lane, position))

    def _store(
        self,
        work: Work,
        reason: WaitReason,
        due_at: float,
        retry_count: int,
        outcome: Outcome | None,
        now: float,
        *,
        deadline: float = 0.0,
    ) -> None:
        """Write the delivery to the backlog, or write its row anew."""
        lane = work.lane
        entry = work.entry
        config = lane.endpoint.config
        assert config is not None
        shard = self._shards[lane.shard]
        # A row must lie behind all that was or is being fetched, or no fetch would find it again.
        due_at = max(due_at, now + TICK_S)
        deadline = deadline or work.deadline or entry.created_at + config.retry.deadline_s
        key = (lane.endpoint.endpoint_id, entry.seq)
        shard.upserts[key] = BacklogChange(
            endpoint_id=key[0],
            position=entry.seq,
            day=entry.day,
            tenant_id=entry.tenant_id,
            event_id=entry.event_id,
            generation=entry.generation,
            reason=reason,
            due_at=due_at,
            retry_count=retry_count,
            deadline=deadline,
            created_at=entry.created_at,
            stored_at=now,
            last_http_status=None if outcome is None else outcome.status,
            last_error_code=None if outcome is None else outcome.error_code,
        )
        self._touch(shard)
        lane.stored_from = min(lane.stored_from, entry.seq)
        if lane.ordered:
            lane.rescan = lane.fetching
        if not work.stored:
            shard.progress.finish(entry, key[0])
            lane.stored += 1
            lane.occupy(entry.seq)
        self._release(lane, entry.seq)
        self._look_again(lane, due_at, deadline)

    def _look_again(self, lane: Lane, due_at: float, deadline: float) -> None:
        """Once this settle is committed, the lane's backlog has a row due then, with that deadline."""
        if due_at == deadline == NEVER:
            return
        if lane.due_building == lane.deadline_building == NEVER:
            self._unsettled_lanes.append(lane)
        lane.due_building = min(lane.due_building, due_at)
        lane.deadline_building = min(lane.deadline_building, deadline)

    # ---- memory full, gates closed --------------------------------------------------------------------------------

    def _make_room(self, now: float) -> None:
        """Nothing can start and memory is full: the longest lanes go to the backlog, so that reading goes on."""
        limits = self._limits
        if self.buffered < limits.buffer and self.buffered_bytes < limits.buffer_bytes:
            return
        lanes = [lane for shard in self._shards.values() for lane in shard.lanes.values() if lane.has_work()]
        lanes.sort(key=lambda lane: len(lane.queue) + len(lane.later), reverse=True)
        spilled_to = self.buffered - SPILL_AT_ONCE
        for lane in lanes:
            if self.buffered <= limits.buffer * ROOM_LEFT and self.buffered_bytes <= limits.buffer_bytes * ROOM_LEFT:
                return
            if self.buffered <= spilled_to:
                return
            self._spill(lane, now, self.buffered - spilled_to)

    def _mend(self, shard: _Shard, now: float) -> None:
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
                self._put_away(lane.queue.pop(), reason, now)
            self._consider(lane, now)
        else:
            self._park(lane, reason, now)

    def _park(self, lane: Lane, reason: WaitReason, now: float) -> None:
        later, lane.later = lane.later, NO_QUEUE
        queue, lane.queue = lane.queue, NO_QUEUE
        for works in (later, queue):
            for work in works:
                self._put_away(work, reason, now)
        self._consider(lane, now)

    def _put_away(self, work: Work, reason: WaitReason, now: float) -> None:
        """Out of memory: a fresh delivery becomes a backlog row, a fetched one is one already."""
        lane = work.lane
        self._unbuffer(work)
        if not work.stored:
            if work.possible_duplicate:
                self._shards[lane.shard].doubt_stored = True
            self._store(work, reason, now, work.retry_count, None, now)
            return
        self._let_go(lane, work)

    def _cancel_lane(self, lane: Lane) -> None:
        """The endpoint was deleted: what is owed to it is cancelled, also in the backlog."""
        shard = self._shards[lane.shard]
        for works in (lane.queue, lane.later):
            for work in works:
                self._unbuffer(work)
                if work.stored:
                    lane.let_go(work.entry.seq)
                else:
                    self._finish(work)
        lane.queue = lane.later = NO_QUEUE
        for named in self._forget_names(lane):
            self._named_done(lane, named)
        shard.dropped_lanes.append(lane.endpoint.endpoint_id)
        for key in [key for key in shard.upserts if key[0] == lane.endpoint.endpoint_id]:
            del shard.upserts[key]
        lane.stored = 0
        lane.next_due = lane.next_deadline = NEVER
        self._touch(shard)

    # ---- the backlog ----------------------------------------------------------------------------------------------

    def _wake_at(self, lane: Lane, moment: float) -> None:
        if moment >= lane.alarm:
            return
        lane.alarm = moment
        self._timer_no += 1
        heapq.heappush(self._timers, (moment, self._timer_no, lane))
        if len(self._timers) > self._timers_max:
            self._sweep_timers()

    def _sweep_timers(self) -> None:
        """Of each lane only the earliest timer counts; without this a lane would leave one behind with every retry."""
        valid = {id(timer[2]): timer for timer in self._timers if timer[2].open and timer[0] == timer[2].alarm}
        self._timers = sorted(valid.values())
        self._timers_max = max(TIMERS_SWEPT_AT, 2 * len(self._timers))

    def tick(self, *, now: float) -> None:
        """Time went on: look again at the lanes that waited for it."""
        while self._timers and self._timers[0][0] <= now:
            moment, _, lane = heapq.heappop(self._timers)
            if lane.open and moment >= lane.alarm:
                lane.alarm = NEVER
                if lane.has_work():
                    self._turns.enter(lane)
                self._consider(lane, now)
        self._gates.tick(now=now)
        if self._budget_look <= now:
            self._share_budget(now)
        if self._look_at <= now:
            self._forget_lanes(now)

    def _leave_budget(self, lane: Lane) -> None:
        """What it holds waits for another gate, or has: that is exempt."""
        if lane.over_budget:
            lane.over_budget = False
            self._over_budget.pop(lane, None)

    def _share_budget(self, now: float) -> None:
        """Some of the lanes that wait for the retry budget may go on, those that waited longest first."""
        waiting, self._over_budget = self._over_budget, {}
        free = self._gates.budget.free(now=now)
        for lane in waiting:
            if lane.open and free > 0 and self._gates.budget.admits(lane.endpoint.tenant.tenant_id, now=now):
                free -= 1
                lane.over_budget = False
                if lane.has_work():
                    self._turns.enter(lane)
                self._consider(lane, now)
            elif lane.open:
                self._over_budget[lane] = None
        self._budget_look = now + BUDGET_LOOK_S if self._over_budget else NEVER

    def _forget_lanes(self, now: float) -> None:
        """Look through some lanes. One that is found idle twice in a row, with all of IDLE_S between, is forgotten."""
        lanes = self._to_look_at
        if not lanes:
            lanes.extend(lane for shard in self._shards.values() for lane in shard.lanes.values())
        some = lanes[-IDLE_LOOK_LANES:]
        del lanes[-IDLE_LOOK_LANES:]
        for lane in some:
            if not lane.open or not _is_idle(lane, now):
                continue
            if lane.queue is NO_QUEUE:
                self._forget_lane(lane)
            else:
                lane.queue = lane.later = NO_QUEUE
        self._look_at = now + (IDLE_LOOK_S if lanes else IDLE_S)

    def _forget_lane(self, lane: Lane) -> None:
        endpoint = lane.endpoint
        lane.open = False
        del self._shards[lane.shard].lanes[endpoint.endpoint_id]
        endpoint.lanes.remove(lane)
        self._forget_idle(endpoint)

    def next_wakeup(self) -> float | None:
        """When `tick` has something to do, as a Unix time."""
        moment = min(self._timers[0][0] if self._timers else NEVER, self._budget_look)
        return None if moment == NEVER else moment

    def _consider(self, lane: Lane, now: float) -> None:
        """Does this lane want rows of its backlog? If not now, it is looked at again when it will."""
        if not lane.fetching and not lane.wanted and self._wants(lane, now) is not None:
            lane.wanted = True
            self._wanted.append(lane)

    def _wants(self, lane: Lane, now: float) -> Wanted | None:
        config = lane.endpoint.config
        if lane.stored <= 0 and not lane.named:
            return None
        if config is None:
            self._wants_unknown(lane, now)
            return None
        if lane.named:
            # Whatever the gates say: what is cancelled must not wait for its receiver.
            return Wanted.NAMED if lane.unsettled == 0 else None
        if config.deleted:
            return None
        if lane.unblock and not lane.blocks:
            return Wanted.BLOCKING if lane.unsettled == 0 else None
        wait = self._gates.closed(lane, config, now=now)
        if wait is not None:
            return self._wants_closed(lane, wait, now)
        if lane.ordered_to:
            self._leave_order(lane)
            if not lane.ordered and lane.has_work():
                self._turns.enter(lane)
        return self._wants_ordered(lane, now) if lane.ordered else self._wants_open(lane, now)

    def _wants_open(self, lane: Lane, now: float) -> Wanted | None:
        """What is due goes first, then what the receiver's recovery brings forward."""
        if len(lane.later) >= FETCH_MAX // 2 or lane.over_budget:
            return None
        if lane.next_due <= now:
            return Wanted.DUE if min(lane.due_building, lane.due_settling) > lane.next_due else None
        if lane.forward_to or (not lane.has_work() and self._gates.probing(lane.endpoint)):
            return Wanted.FORWARD
        self._wake_at(lane, _on_grid(lane.next_due))
        return None

    def _wants_ordered(self, lane: Lane, now: float) -> Wanted | None:
        """The next one in order, when nothing of the lane is under way or being written."""
        if lane.later or lane.endpoint.in_flight or lane.unsettled:
            return None
        if lane.head_due <= now or lane.forced is not None or self._gates.probing(lane.endpoint):
            return Wanted.HEAD
        if lane.next_deadline <= now:
            return Wanted.EXPIRED
        if lane.queue and lane.head_due - now > PARK_AFTER_S:
            # What waits behind it must be written down, or nobody would see it reach its deadline.
            self._park(lane, WaitReason.ORDERED, now)
        self._wake_at(lane, min(lane.head_due, lane.next_deadline))
        return None

    def _wants_unknown(self, lane: Lane, now: float) -> None:
        """Whether its endpoint is open matters when a row is due or reaches its deadline, not before."""
        moment = min(lane.next_due, lane.next_deadline)
        if moment > now:
            self._wake_at(lane, moment)
        else:
            self._ask_for(lane.endpoint)

    def _wants_closed(self, lane: Lane, wait: Wait, now: float) -> Wanted | None:
        """A lane that is closed for long lets go of what reaches its deadline meanwhile."""
        until = NEVER if wait.until is None else wait.until
        if wait.until is not None and not parks(wait, now=now):
            self._wake_at(lane, until)
        elif lane.next_deadline > now:
            self._wake_at(lane, min(until, lane.next_deadline))
        else:
            return Wanted.EXPIRED
        return None

    def take_fetches(self, *, now: float) -> list[Fetch]:
        """Backlog reads to start now; each must end in ``on_backlog`` or ``on_fetch_failed``."""
        fetches: list[Fetch] = []
        while self._wanted and self._fetching < FETCHES_MAX:
            if self.in_flight and self.room() == (0, 0):
                break
            lane = self._wanted.popleft()
            lane.wanted = False
            wanted = self._wants(lane, now) if lane.open and not self._shards[lane.shard].draining else None
            if wanted is not None:
                fetches.append(self._fetch(lane, wanted, now))
        return fetches

    def _fetch(self, lane: Lane, wanted: Wanted, now: float) -> Fetch:
        """What is due (or expires) next is not known from here on until the answer tells it."""
        lane.fetching = True
        lane.released = []
        lane.rescan = False
        self._fetching += 1
        limit = 1 if wanted is Wanted.FORWARD and not lane.forward_to else FETCH_MAX
        fetch = partial(Fetch, lane, lane.shard, lane.endpoint.endpoint_id, limit=limit, wanted=wanted)
        match wanted:
            case Wanted.DUE:
                lane.next_due = NEVER
                until = min(now, lane.due_building - TICK_S, lane.due_settling - TICK_S)
                return fetch(after=lane.after, until=until)
            case Wanted.EXPIRED:
                lane.next_deadline = NEVER
                return fetch(after=FROM_START, until=now)
            case Wanted.FORWARD:
                return fetch(after=lane.forward_after, until=now, stored_by=lane.forward_to or NEVER)
            case Wanted.NAMED:
                return fetch(after=FROM_START, until=NEVER, event_id=lane.named[0].entry.event_id)
            case Wanted.HEAD | Wanted.BLOCKING:
                return fetch(after=FROM_START, until=NEVER)
            case _:
                assert_never(wanted)

    def on_fetch_failed(self, fetch: Fetch, *, now: float, again_s: float) -> None:
        """The store did not answer: nothing was learnt, ask again later."""
        self._fetched(fetch)
        if fetch.wanted is Wanted.EXPIRED:
            fetch.lane.next_deadline = min(fetch.lane.next_deadline, now + again_s)
        elif fetch.wanted is Wanted.DUE:
            fetch.lane.next_due = min(fetch.lane.next_due, now + again_s)
        if fetch.lane.open:
            # What is due by now is not known any more.
            self._shards[fetch.shard].doubt_stored = True
            self._wake_at(fetch.lane, now + again_s)

    def on_backlog(self, fetch: Fetch, rows: Sequence[BacklogRow], *, more: bool, behind: float, now: float) -> None:
        """The rows asked for; ``more`` says that not all fitted; ``behind`` is the least due time (of an expired fetch:
        the least deadline) behind ``fetch.until``, infinite when there is none."""
        lane = fetch.lane
        busy = lane.busy.copy()
        self._fetched(fetch)
        config = lane.endpoint.config
        if not lane.open or config is None or (config.deleted and fetch.wanted is not Wanted.NAMED):
            return
        free = [row for row in rows if row.position not in busy]
        match fetch.wanted:
            case Wanted.DUE:
                if not lane.rescan and rows:
                    lane.after = (rows[-1].due_at, rows[-1].position)
                lane.next_due = min(lane.next_due, rows[-1].due_at if more else behind)
                for row in free:
                    if row.stored_at <= lane.forward_to:
                        self._load_early(lane, row, now)
                    else:
                        self._load(lane, row)
            case Wanted.EXPIRED:
                self._on_expired(lane, free, more, behind, now)
            case Wanted.FORWARD:
                self._on_forward(lane, rows, free, more, now)
                if not free:
                    # Nothing to send though something is stored: it is under way, or blocks. Not again at once.
                    self._wake_at(lane, now + FORWARD_AGAIN_S)
                    return
            case Wanted.HEAD:
                if not lane.rescan:
                    lane.stored_from = rows[-1].position + 1 if more else NO_POSITION
                    self._on_head(lane, free, now)
            case Wanted.BLOCKING:
                lane.unblock = more
                for row in free:
                    self._drop(lane, row)
            case Wanted.NAMED:
                if lane.named and lane.named[0].entry.event_id == fetch.event_id:
                    self._on_named(lane, free, now, more=more)
            case _:
                assert_never(fetch.wanted)
        if lane.has_work():
            self._turns.enter(lane)
        self._consider(lane, now)

    def _on_expired(self, lane: Lane, rows: Sequence[BacklogRow], more: bool, behind: float, now: float) -> None:
        lane.next_deadline = min(lane.next_deadline, behind)
        for row in rows:
            self._expire(lane, row, now)
        if more:
            # The next ones can be told from these when these are gone.
            self._look_again(lane, NEVER, now)
            self._touch(self._shards[lane.shard])

    def _on_forward(
        self, lane: Lane, rows: Sequence[BacklogRow], free: Sequence[BacklogRow], more: bool, now: float
    ) -> None:
        """Not due yet, but their receiver is back. A probe needs one of them, whoever wins."""
        if lane.forward_to and rows:
            lane.forward_after = (rows[-1].due_at, rows[-1].position)
        if not more:
            lane.forward_to = 0.0
        for row in free:
            self._load_early(lane, row, now)

    def _on_head(self, lane: Lane, rows: Sequence[BacklogRow], now: float) -> None:
        """The first of an ordered lane: sent when it is due, together with what may follow it."""
        forced, lane.forced = lane.forced, None
        lane.head_due = 0.0
        for place, row in enumerate(rows):
            early = row.event_id == forced or row.stored_at <= lane.forward_to or self._gates.probing(lane.endpoint)
            hurry = place == 0 and early
            if row.due_at == NEVER and not lane.blocks:
                self._drop(lane, row)
            elif row.due_at <= now or (hurry and row.due_at != NEVER):
                self._load_early(lane, row, now) if hurry else self._load(lane, row)
            else:
                lane.stored_from = row.position
                lane.head_due = 0.0 if lane.later else row.due_at
                return

    def _on_named(self, lane: Lane, rows: Sequence[BacklogRow], now: float, *, more: bool = False) -> None:
        """What the backlog holds of an event that something is to be done with. Of what is cancelled the rest is asked
        for when these are gone."""
        named = lane.named[0]
        older = [row for row in rows if row.position < named.entry.seq]
        if named.type == CANCEL:
            self._cancel(lane, named.entry)
            for row in older:
                self._drop(lane, row)
            lane.head_due = 0.0
            if more and older:
                return
        elif named.type == RETRY_NOW:
            for row in older:
                if row.due_at != NEVER:
                    self._hurry(lane, row, now)
        lane.named.popleft()
        if not lane.named:
            lane.named = NO_NAMES
        config = lane.endpoint.config
        if named.work is None or config is None or config.deleted:
            self._named_done(lane, named)
        else:
            self._replay_in_order(lane, named.work, config, older, now)

    def _hurry(self, lane: Lane, row: BacklogRow, now: float) -> None:
        """Tried now, whatever its schedule says. In an ordered lane only the first one can be."""
        if lane.ordered:
            lane.forced = row.event_id
        else:
            self._put_first(lane, self._load_early(lane, row, now))

    def _hurry_fetched(self, lane: Lane, asked: Entry) -> None:
        """Of what was fetched and waits for a gate or its turn."""
        for work in [w for w in lane.later if w.entry.event_id == asked.event_id and w.entry.seq < asked.seq]:
            self._put_first(lane, work)
            self._turns.enter(lane)

    def _put_first(self, lane: Lane, work: Work) -> None:
        """Before what waits for the retry budget, and exempt from it."""
        lane.later.remove(work)
        lane.later.appendleft(work)
        work.marks |= HELD

    def _replay_in_order(
        self, lane: Lane, work: Work, config: Endpoint, rows: Sequence[BacklogRow], now: float
    ) -> None:
        """A replay of a dead delivery that blocks the lane takes its place in the order; any other is one more."""
        blocking = [row for row in rows if row.due_at == NEVER]
        if not blocking:
            if lane.queue and lane.queue[-1].entry.seq > work.entry.seq:
                # Others have lined up while it was looked for.
                self._put_away(work, WaitReason.ORDERED, now)
            else:
                self._line_up(lane, work)
            return
        self._unbuffer(work)
        # Of one event there is one dead letter, whichever of its replays died, too.
        for row in blocking[1:]:
            self._drop(lane, row)
        revived = self._work_of(lane, blocking[0])
        revived.entry.generation = work.entry.generation
        lane.occupy(blocking[0].position)
        deadline = work.entry.created_at + config.retry.deadline_s
        self._store(revived, WaitReason.ORDERED, now, 0, None, now, deadline=deadline)
        self._finish(work)
        lane.head_due = 0.0

    def _drop(self, lane: Lane, row: BacklogRow) -> None:
        """Nothing more is to become of this row."""
        lane.occupy(row.position)
        self._finish(self._work_of(lane, row))

    def _fetched(self, fetch: Fetch) -> None:
        lane = fetch.lane
        self._fetching -= 1
        lane.fetching = False
        for position in lane.released:
            lane.let_go(position)
        lane.released = NONE_RELEASED

    def _entry_of(self, lane: Lane, row: BacklogRow) -> Entry:
        return Entry(
            lane.shard, row.position, row.day, row.event_id, lane.endpoint.tenant.tenant_id, row.type, row.payload,
            row.generation, row.created_at, 0,
        )  # fmt: skip

    def _work_of(self, lane: Lane, row: BacklogRow) -> Work:
        return Work(self._entry_of(lane, row), lane, row.due_at, retry_count=row.retry_count, stored=True)

    def _load(self, lane: Lane, row: BacklogRow) -> Work:
        doubtful_until = self._shards[lane.shard].doubtful_until
        work = self._work_of(lane, row)
        work.deadline = row.deadline
        untried = row.retry_count == 0 and row.created_at <= doubtful_until
        # The last owner may have sent it before it was due: its receiver was back, or somebody asked for it.
        early = lane.inherited and row.stored_at <= doubtful_until
        work.possible_duplicate = untried or early or row.due_at <= doubtful_until
        lane.occupy(row.position)
        self._later(lane).append(work)
        self._buffer(work)
        return work

    def _load_early(self, lane: Lane, row: BacklogRow, now: float) -> Work:
        """Before it is due, and no matter what the retry budget says."""
        work = self._load(lane, row)
        work.due_at = min(work.due_at, now)
        work.marks = HELD
        return work

    def _expire(self, lane: Lane, row: BacklogRow, now: float) -> None:
        """Kept back by its tenant or its receiver until its deadline: dead, without an attempt."""
        lane.occupy(row.position)
        self._bury(self._work_of(lane, row), DeadReason.DEADLINE, None, attempts=row.retry_count, now=now)

    # ---- settling -------------------------------------------------------------------------------------------------

    def _touch(self, shard: _Shard) -> None:
        if not shard.touched:
            shard.touched = True
            self._touched.append(shard)

    @property
    def unsettled(self) -> bool:
        """Is there anything to settle?"""
        return bool(self._touched)

    def take_settle(self, *, now: float) -> Settle | None:
        """All that happened since the last one; None when nothing did. Must be committed before the next is taken."""
        if not self._touched:
            return None
        for shard in self._touched:
            if shard.progress.fragments > self._limits.fragments:
                self._mend(shard, now)
        touched, self._touched = self._touched, []
        released, self._released = self._released, []
        lanes, self._unsettled_lanes = self._unsettled_lanes, []
        for lane in lanes:
            lane.due_settling, lane.due_building = lane.due_building, NEVER
            lane.deadline_settling, lane.deadline_building = lane.deadline_building, NEVER
        self.pending_attempts = 0
        return Settle([shard.take() for shard in touched], released, lanes)

    def on_settled(self, settle: Settle, *, now: float) -> None:
        """It is committed: rows it wrote may be fetched, rows it dealt with are gone."""
        for lane, position in settle.released:
            lane.unsettled -= 1
            if lane.unsettled == 0 and lane.open and (lane.ordered or lane.named or lane.unblock):
                self._consider(lane, now)
            if lane.fetching:
                lane.released.append(position)
            else:
                lane.let_go(position)
        for lane in settle.lanes:
            lane.next_due = min(lane.next_due, lane.due_settling)
            lane.next_deadline = min(lane.next_deadline, lane.deadline_settling)
            lane.due_settling = lane.deadline_settling = NEVER
            if lane.open:
                self._consider(lane, now)

    # ---- order, operations on single deliveries, recovery ---------------------------------------------------------

    def _wait_for_head(self, lane: Lane, due_at: float) -> None:
        """The first of an ordered lane is tried again then; those behind it that were fetched go back."""
        lane.head_due = due_at
        later, lane.later = lane.later, NO_QUEUE
        for work in later:
            self._unbuffer(work)
            self._let_go(lane, work)

    def _let_go(self, lane: Lane, work: Work) -> None:
        """What was fetched lies in the backlog as it did before."""
        lane.let_go(work.entry.seq)
        lane.after = FROM_START
        lane.rescan = lane.fetching
        lane.next_due = min(lane.next_due, work.due_at)
        lane.next_deadline = min(lane.next_deadline, work.deadline)
        lane.stored_from = min(lane.stored_from, work.entry.seq)

    def _set_replays_apart(self, lane: Lane) -> None:
        """The lane keeps an order from now on: replays in it may be for a delivery that blocks it."""
        for work in [work for works in (lane.queue, lane.later) for work in works if work.entry.generation]:
            if not work.stored:
                self._remove(lane, work)
                self._add_name(lane, Named(REPLAY, work.entry, work))

    def _name(self, lane: Lane, named: Named, now: float) -> None:
        """Do something with what the lane holds of an event: at once with what is in memory, then with its backlog."""
        if named.type == CANCEL:
            self._cancel(lane, named.entry)
        elif named.type == RETRY_NOW and not lane.ordered:
            self._hurry_fetched(lane, named.entry)
        self._add_name(lane, named)
        self._consider(lane, now)
        if lane.stored <= 0 and not lane.fetching and not lane.unsettled and len(lane.named) == 1:
            self._on_named(lane, (), now)
            if lane.has_work():
                self._turns.enter(lane)

    def _add_name(self, lane: Lane, named: Named) -> None:
        if lane.named is NO_NAMES:
            lane.named = deque()
        lane.named.append(named)

    def _cancel(self, lane: Lane, asked: Entry) -> None:
        for work in [work for works in (lane.queue, lane.later) for work in works]:
            if work.entry.event_id == asked.event_id and work.entry.seq < asked.seq:
                self._remove(lane, work)
                self._unbuffer(work)
                self._finish(work)
        if lane.endpoint.in_flight:
            lane.cancelled = {**lane.cancelled, asked.event_id: asked.seq}

    def _remove(self, lane: Lane, work: Work) -> None:
        (lane.later if work in lane.later else lane.queue).remove(work)

    def _named_done(self, lane: Lane, named: Named) -> None:
        """The journal row has been acted on; a replay is acted on when it ends as any delivery."""
        shard = self._shards[lane.shard]
        if named.work is not None:
            self._unbuffer(named.work)
        shard.progress.finish(named.entry, lane.endpoint.endpoint_id)
        self._touch(shard)

    def _forget_names(self, lane: Lane) -> Sequence[Named]:
        names, lane.named = lane.named, NO_NAMES
        return names

    def _bring_forward(self, lane: Lane, now: float) -> None:
        """The receiver is back: what waits does not sit out its schedule."""
        lane.head_due = 0.0
        self._leave_budget(lane)
        for work in lane.later:
            work.marks |= HELD
        if lane.stored:
            lane.forward_to = now
            lane.forward_after = FROM_START

    def _breaker_changed(self, tenant: TenantState, origin: str, state: BreakerState, now: float) -> None:
        """Lanes behind this receiver look again at what they may do."""
        for endpoint in tenant.of_origin(origin):
            for lane in endpoint.lanes:
                if state is BreakerState.CLOSED:
                    self._bring_forward(lane, now)
                else:
                    self._leave_budget(lane)
                if lane.has_work():
                    self._turns.enter(lane)
                self._consider(lane, now)
            if state is not BreakerState.OPEN:
                self._wake_waiting(endpoint, everyone=True)

    def take_probes(self) -> list[Receiver]:
        """Receivers (tenant, origin) whose probe this worker wants to send; answered by ``on_probes``."""
        return self._gates.take_probes()

    def on_probes(self, probes: Iterable[Probe], *, now: float) -> None:
        """What the store said of the probes asked for."""
        for probe in probes:
            tenant = self._tenants.get(probe.record.tenant_id)
            if tenant is not None and (breaker := tenant.breakers.get(probe.record.origin)) is not None:
                breaker.grant(probe, now=now)
                self._breaker_changed(tenant, probe.record.origin, breaker.state, now)

    def ask_again(self, probes: Iterable[Receiver]) -> None:
        """The store could not be asked about these probes."""
        self._gates.ask_again(probes)

    def take_breakers(self) -> list[BreakerRecord]:
        """Breakers whose state changed, to be stored and shared with the other workers."""
        return self._gates.take_changes()

    def tell_again(self, records: Iterable[BreakerRecord]) -> None:
        """These could not be stored."""
        self._gates.tell_again(records)

    def adopt_breakers(self, records: Iterable[BreakerRecord], *, now: float) -> None:
        """Take over what is stored of the breakers of tenants that are known here."""
        for record in records:
            tenant = self._tenants.get(record.tenant_id)
            if tenant is not None and self._gates.adopt(tenant, record):
                state = tenant.breakers[record.origin].state
                self._breaker_changed(tenant, record.origin, state, now)

    def share_budget(self, workers: int) -> None:
        """So many workers share the floor of the retry budget."""
        self._gates.budget.workers = workers

    def take_holds(self) -> list[Hold]:
        """Retry-After holds to be shared with the other workers."""
        holds, self._holds = list(self._holds.values()), {}
        return holds

    def take_gone(self) -> list[Gone]:
        """Endpoints that are to be disabled."""
        gone, self._gone = list(self._gone.values()), {}
        return gone

    def take_health(self) -> dict[UUID, Health]:
        """The health of the endpoints where it has changed, to be written down."""
        health, self._health = self._health, {}
        return health


def _is_idle(lane: Lane, now: float) -> bool:
    """Has it nothing to do and nothing to remember? What a gate has learnt would be lost with its endpoint."""
    endpoint = lane.endpoint
    return not (
        lane.has_work()
        or lane.named
        or lane.stored > 0
        or lane.busy
        or lane.ready
        or lane.blocked
        or lane.wanted
        or lane.fetching
        or endpoint.in_flight
        or endpoint.hold_until > now
        or not (endpoint.bucket is None or endpoint.bucket.is_full(now=now))
        or endpoint.origin in endpoint.tenant.breakers
    )


def _on_grid(due: float) -> float:
    """The next moment, at or behind ``due``, at which backlogs are looked at."""
    return due if due == NEVER else max(due, math.ceil(due / FETCH_GRID_S) * FETCH_GRID_S)
