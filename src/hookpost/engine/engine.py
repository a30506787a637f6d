"""The engine of one worker: shards in, sends and settles out.

Relies on: journal rows contiguous per shard, configuration before deliveries, one owner per shard (the fence).
Promises: an entry leaves `open` only with its outcome, its backlog row or its dead letter in the same settle; a cap is
never exceeded; nothing is sent twice while one owner lives; what a settle says is true when it commits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from random import Random
from typing import assert_never
from uuid import UUID

from hookpost.engine import operations
from hookpost.engine.backlog import Backlog
from hookpost.engine.books import Books
from hookpost.engine.findings import Findings
from hookpost.engine.gates import Gates, Receiver
from hookpost.engine.lanes import NEVER, NO_CANCELS, NO_QUEUE, EndpointState, Lane, TenantState
from hookpost.engine.limits import Limits, Policies
from hookpost.engine.loads import AGAIN_S, Loads
from hookpost.engine.roster import Roster
from hookpost.engine.shard import Shard
from hookpost.engine.spill import Spill
from hookpost.engine.timers import Timers
from hookpost.engine.turns import Turns
from hookpost.engine.work import (
    CANCEL,
    HELD,
    NO_DONE,
    REPLAY,
    RETRY_NOW,
    BacklogRow,
    Entry,
    Fetch,
    Gone,
    Hold,
    JournalRow,
    Kind,
    Named,
    Settle,
    Takeover,
    Work,
)
from hookpost.model import (
    REMOVED,
    Dead,
    DeadReason,
    Decision,
    Delivered,
    Endpoint,
    Health,
    Held,
    Outcome,
    Retry,
    Tenant,
    WaitReason,
)
from hookpost.policy.breaker import BreakerRecord, BreakerState, Probe
from hookpost.policy.gate import Wait, is_shut, parks
from hookpost.policy.retry import decide

# Looking an enum's member up costs more than comparing with it, and every row is compared.
_REPLAY, _CONTROL = Kind.REPLAY, Kind.CONTROL
# While a clock stands, a breaker says of each of its states that it is later than the one before by a little: its own
# word of a recovery, when it comes back from the store, is no other one.
SAME_RECOVERY_S = 0.001
_HELD = Held()


class Engine:
    """All decisions of one worker. Every method takes `now`, which must never go back."""

    def __init__(self, *, worker: str, limits: Limits, rng: Random, policies: Policies | None = None) -> None:
        policies = policies or Policies()
        self._limits = limits
        self._rng = rng
        self._shards: dict[int, Shard] = {}
        self._gates = Gates(breaker=policies.breaker, budget=policies.budget, outage=policies.outage, rng=rng)
        self._findings = Findings(policies.health)
        self._turns = Turns(limits.in_flight)
        self._timers = Timers()
        self._books = Books(self._shards, limits, worker=worker)
        self._roster = Roster(self._shards, self._gates, self._turns, self._findings)
        self._backlog = Backlog(self._books, self._roster, self._gates, self._turns, self._timers, limits)
        self._loads = Loads(limits.loads, limits.in_flight_bytes // 2)
        self._spill = Spill(self._books, self._backlog, self._gates, self._turns, self._roster.tenants, limits)
        self.in_flight = 0
        self.in_flight_bytes = 0

    # ---- shards -----------------------------------------------------------------------------------------------------

    @property
    def shards(self) -> Collection[int]:
        """The shards this worker owns."""
        return self._shards.keys()

    def open_shard(self, takeover: Takeover, *, now: float) -> None:
        """Become the owner: exactly the open entries and what lies past ``read_to`` is to be done."""
        assert takeover.shard not in self._shards
        shard = self._shards[takeover.shard] = Shard(takeover, now)
        self._roster.share_caps(takeover.shard)
        for summary in takeover.lanes:
            lane = self._roster.new_lane(shard, summary.endpoint_id, summary.tenant_id, now)
            lane.stored = summary.count
            lane.inherited = not takeover.clean
            lane.unblock = summary.blocking > 0
            lane.stored_from = summary.first
            lane.next_due = summary.next_due
            lane.next_deadline = summary.next_deadline
            if lane.endpoint.config is not None and lane.endpoint.config.deleted:
                operations.cancel_lane(self._books, lane)
            self._catch_up(lane, now)
            self._backlog.consider(lane, now)
        for row in takeover.rows:
            done = takeover.done.get(row.seq, ())
            owed = [endpoint_id for endpoint_id in row.owed if endpoint_id not in done]
            self._accept(shard, row, owed, done, now=now)

    def drain_shard(self, number: int) -> None:
        """Start nothing more for this shard; what is in flight may end."""
        shard = self._shards[number]
        shard.draining = True
        self._books.touch(shard)

    def touch(self, number: int) -> None:
        """Have this shard's progress written with the next settle, though nothing happened."""
        self._books.touch(self._shards[number])

    def in_flight_of(self, number: int) -> int:
        """Requests under way for this shard."""
        shard = self._shards.get(number)
        return 0 if shard is None else shard.in_flight

    def close_shard(self, number: int) -> None:
        """Forget the shard, as it was released or lost: outcomes that still come in are dropped."""
        shard = self._shards.pop(number, None)
        if shard is None:
            return
        if shard in self._books.touched:
            self._books.touched.remove(shard)
        self._books.pending_attempts -= len(shard.attempts)
        for lane in shard.lanes.values():
            lane.open = False
            for works in (lane.queue, lane.later):
                for work in works:
                    self._books.unbuffer(work)
            for named in lane.forget_names():
                if named.work is not None:
                    self._books.unbuffer(named.work)
            lane.queue = lane.later = NO_QUEUE
            endpoint = lane.endpoint
            endpoint.lanes.remove(lane)
            if lane.blocked:
                endpoint.waiting.remove(lane)
            self._roster.forget_idle(endpoint)
        self._roster.share_caps(number)

    # ---- configuration ----------------------------------------------------------------------------------------------

    @property
    def missing(self) -> dict[UUID, UUID]:
        """Endpoints (and their tenants) that deliveries wait for and that were not configured yet."""
        return self._roster.missing

    @property
    def known_tenants(self) -> Collection[UUID]:
        """The tenants whose configuration this engine holds."""
        return self._roster.tenants.keys()

    def endpoints_of(self, tenants: Collection[UUID]) -> list[UUID]:
        """The endpoints of these tenants whose configuration this engine holds."""
        return self._roster.endpoints_of(tenants)

    def known_among(self, endpoint_ids: Iterable[UUID]) -> list[UUID]:
        """Of these endpoints those whose configuration this engine holds."""
        return self._roster.known_among(endpoint_ids)

    def configure(self, tenants: Iterable[Tenant], endpoints: Iterable[Endpoint], *, now: float) -> None:
        """Take over loaded or changed configuration; lanes open and close as it says."""
        for tenant in tenants:
            state = self._roster.tenants.get(tenant.tenant_id)
            if state is not None and state.config != tenant:
                self._roster.settle_in(state, tenant)
                self._roster.share_tenant(state)
        for config in endpoints:
            self._roster.missing.pop(config.endpoint_id, None)
            known = self._roster.endpoints.get(config.endpoint_id)
            if known is not None:
                self._configure(known, config, now)

    def _configure(self, endpoint: EndpointState, config: Endpoint, now: float) -> None:
        before = endpoint.config
        opened = before is not None and is_shut(before) and not is_shut(config)
        self._roster.limit(endpoint, config, now)
        self._findings.adopt_health(endpoint, config)
        endpoint.config = config
        endpoint.tenant.origins = None
        endpoint.hold_until = max(endpoint.hold_until, config.hold_until)
        self._roster.share_endpoint(endpoint)
        recovered_at = self._books.recover(now) if opened else 0.0
        for lane in endpoint.lanes:
            if config.deleted:
                operations.cancel_lane(self._books, lane)
                continue
            lane.keep_order(config)
            lane.head_due = 0.0
            if opened:
                self._bring_forward(lane, recovered_at)
            elif before is None:
                self._catch_up(lane, now)
            if lane.has_work():
                self._turns.enter(lane)
            self._backlog.consider(lane, now)

    # ---- the journal ------------------------------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """Deliveries that wait in memory."""
        return self._books.buffered

    @property
    def buffered_bytes(self) -> int:
        """What their payloads take."""
        return self._books.buffered_bytes

    def room(self) -> tuple[int, int]:
        """How many rows and payload bytes the reader may bring: 0 when memory is full, until a settle makes room."""
        return self._books.room()

    def has_room_for(self, rows: Sequence[JournalRow]) -> bool:
        """May these come unasked?"""
        room, room_bytes = self._books.room()
        size = sum([len(row.payload) for row in rows if row.payload is not None])
        return sum([len(row.owed) for row in rows]) <= room and size <= room_bytes

    @property
    def is_filling(self) -> bool:
        """Does memory fill? Then it matters whether others wait in the journal (``holders``)."""
        return self._spill.is_filling()

    def holders(self, *, now: float) -> list[UUID] | None:
        """The endpoints that hold the memory, if it helps to know whether anybody else waits in the journal."""
        return self._spill.holders(now)

    def nobody_else(self, *, until: float) -> None:
        """Nobody but the ``holders`` has rows in the journal; nothing has to leave memory for others until then."""
        self._spill.nobody_else(until)

    def read_to(self, number: int) -> tuple[int, int]:
        """(seq, day) of the last journal row read: the reader goes on behind it."""
        progress = self._shards[number].progress
        return progress.read_to, progress.read_day

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
            self._books.touch(shard)

    def _accept(
        self,
        shard: Shard,
        row: JournalRow,
        owed: Sequence[UUID],
        done: Sequence[UUID],
        *,
        now: float,
    ) -> None:
        entry = Entry(
            shard.number, row.seq, row.day, row.event_id, row.tenant_id, row.type, row.payload, row.generation,
            row.created_at, len(owed), row.trace, list(done) if done else NO_DONE,
        )  # fmt: skip
        shard.progress.begin(entry)
        possible_duplicate = row.created_at <= shard.doubtful_until
        for endpoint_id in owed:
            lane = self._roster.lane(shard, endpoint_id, row.tenant_id, now)
            if row.kind == _CONTROL:
                self._name(lane, Named(row.type, entry), now)
                continue
            work = Work(entry, lane, row.created_at, possible_duplicate=possible_duplicate)
            self._books.buffer(work)
            self._enqueue(lane, work, now)

    def _enqueue(self, lane: Lane, work: Work, now: float) -> None:
        config = lane.endpoint.config
        if config is None:
            lane.queue.append(work)
            return
        if config.deleted:
            self._books.unbuffer(work)
            self._books.finish(work)
            return
        if lane.ordered and work.entry.generation:
            self._name(lane, Named(REPLAY, work.entry, work), now)
            return
        wait = self._gates.closed(lane, config, now=now)
        if wait is not None and parks(wait, now=now):
            self._books.put_away(work, wait.reason, now)
            return
        lane.line_up(work)
        self._turns.enter(lane)

    # ---- sending ----------------------------------------------------------------------------------------------------

    def take_sends(self, limit: int, *, now: float) -> list[Work]:
        """Up to ``limit`` deliveries that start now, in fair turns; each must end in one ``on_outcome``. A payload that
        is a PayloadRef is to be read first: ``on_payload`` or ``on_no_payload`` says how that went."""
        sends: list[Work] = []
        limits = self._limits
        while len(sends) < limit and self.in_flight < limits.in_flight:
            if self.in_flight_bytes >= limits.in_flight_bytes:
                break
            lane = self._turns.next()
            if lane is None:
                self._spill.make_room(now)
                break
            work = self._next_of(lane, now)
            if work is not None:
                self._start(work)
                sends.append(work)
                if lane.next_due <= now or (lane.forward_to and not lane.later):
                    self._backlog.consider(lane, now)
        return sends

    def _next_of(self, lane: Lane, now: float) -> Work | None:
        """The next one of the lane if every gate lets it through; else the lane waits for what can open them."""
        endpoint = lane.endpoint
        config = endpoint.config
        if not lane.open or config is None or not lane.has_work() or self._shards[lane.shard].draining:
            self._turns.wake_waiting(endpoint)
            return None
        if lane.ordered_to:
            lane.leave_order()
        work = lane.head(now=now)
        if work is None:
            self._without_head(lane, config, now)
            return None
        wait = self._gates.admit(lane, work, config, now=now)
        fresh = lane.queue and not (lane.in_order or lane.ordered)
        if wait is not None and wait.reason is WaitReason.RETRY_BUDGET and fresh:
            # What is over the budget does not hold up first attempts.
            self._gates.over_budget.wait(lane, now)
            work = lane.queue[0]
            wait = self._gates.admit(lane, work, config, now=now)
        if wait is not None:
            self._hold_back(lane, wait, now)
            return None
        if work.entry.payload.__class__ is not bytes and not self._may_load(work, now):
            return None
        self._take(lane, work)
        if lane.has_work():
            self._turns.enter(lane)
        if work.entry.payload is None or work.entry.payload is REMOVED:
            self._without_payload(lane, work, now)
            return None
        return work

    def _may_load(self, work: Work, now: float) -> bool:
        """May its payload be read from the payload store now, if it lies there?"""
        entry = work.entry
        if entry.payload is None or entry.payload is REMOVED or self._loads.begin(work.lane, entry.size, now=now):
            return True
        self._gates.withdraw(work.lane.endpoint, work, now=now)
        self._turns.wake_waiting(work.lane.endpoint)
        return False

    def _without_head(self, lane: Lane, config: Endpoint, now: float) -> None:
        """Whose turn it is lies in the backlog, or behind something that is under way or being written."""
        wait = self._gates.closed(lane, config, now=now)
        if wait is not None:
            self._hold_back(lane, wait, now)
            return
        self._turns.wake_waiting(lane.endpoint)
        self._backlog.consider(lane, now)

    def _take(self, lane: Lane, work: Work) -> None:
        """Out of its queue, whose first it is."""
        lane.turn += 1
        if lane.later and lane.later[0] is work:
            lane.later.popleft()
        else:
            lane.queue.popleft()

    def _without_payload(self, lane: Lane, work: Work, now: float) -> None:
        """What would be sent is gone, or was taken back."""
        self._books.unbuffer(work)
        self._gates.withdraw(lane.endpoint, work, now=now)
        if work.entry.payload is REMOVED:
            self._books.finish(work)
        else:
            self._books.bury(work, DeadReason.PAYLOAD_MISSING, None, attempts=work.retry_count, now=now)
        self._turns.wake_waiting(lane.endpoint)
        self._backlog.consider(lane, now)

    def _hold_back(self, lane: Lane, wait: Wait, now: float) -> None:
        endpoint = lane.endpoint
        if wait.reason is WaitReason.IN_FLIGHT_CAP:
            self._turns.block(lane)
            return
        # It does not take the place that was free for it: the lanes behind it must hear of the gate, too.
        self._turns.wake_waiting(endpoint)
        if wait.reason is WaitReason.RETRY_BUDGET:
            self._gates.over_budget.wait(lane, now)
            return
        if parks(wait, now=now):
            self._backlog.park(lane, wait.reason, now)
        if wait.until is not None:
            self._timers.wake_at(lane, wait.until)

    def _start(self, work: Work) -> None:
        self._books.unbuffer(work)
        size = work.entry.size
        lane = work.lane
        lane.endpoint.in_flight += 1
        self._turns.start(lane.endpoint.tenant)
        self._shards[lane.shard].in_flight += 1
        self.in_flight += 1
        self.in_flight_bytes += size

    # ---- payloads that lie elsewhere --------------------------------------------------------------------------------

    def on_payload(self, work: Work, *, now: float) -> bool:
        """The payload was read: is it still to be sent? If not, this is its end."""
        self._loaded(work, failed=False, now=now)
        config = work.lane.endpoint.config
        if work.lane.open and config is not None and not config.deleted and not _is_cancelled(work):
            return True
        self._take_back(work, now)
        return False

    def on_no_payload(self, work: Work, *, missing: bool, now: float) -> None:
        """The payload could not be read, which its endpoint has no part in: it is tried again, unless it is ``missing``
        for good or the delivery's time is over."""
        self._loaded(work, failed=not missing, now=now)
        self._take_back(work, now, missing=missing)

    def _loaded(self, work: Work, *, failed: bool, now: float) -> None:
        self._loads.end(work.entry.size, now=now, failed=failed)
        self._wake_loads(now)

    def _wake_loads(self, now: float) -> None:
        for lane in self._loads.take(now=now):
            if lane.has_work():
                self._turns.enter(lane)

    def _take_back(self, work: Work, now: float, *, missing: bool = False) -> None:
        """It was started and is not sent."""
        lane = work.lane
        endpoint = lane.endpoint
        self._gates.withdraw(endpoint, work, now=now)
        self._end(work, lane, endpoint)
        if not lane.open:
            return
        config = endpoint.config
        assert config is not None
        deadline = work.deadline or self._books.deadline_of(work.entry, config)
        if config.deleted or _is_cancelled(work):
            self._books.finish(work)
        elif missing or deadline <= now:
            reason = DeadReason.PAYLOAD_MISSING if missing else DeadReason.DEADLINE
            self._books.bury(work, reason, None, attempts=work.retry_count, now=now)
        else:
            self._store_again(work, WaitReason.PAYLOAD_STORE, now + AGAIN_S, work.retry_count, None, now)
        if lane.cancelled and not endpoint.in_flight:
            lane.cancelled = NO_CANCELS
        for each in endpoint.lanes:
            self._backlog.consider(each, now)

    # ---- outcomes ---------------------------------------------------------------------------------------------------

    def on_outcome(self, work: Work, outcome: Outcome, *, now: float) -> None:
        """An attempt ended: record it, decide, and let the next one of its endpoint go."""
        lane = work.lane
        endpoint = lane.endpoint
        gates = self._gates
        if gates.outage.observe(work, outcome, now=now):
            self._egress_changed(now)
        ours = gates.outage.is_ours(outcome)
        if ours:
            changed = gates.excuse(endpoint, work, now=now)
        else:
            if outcome.error_code is not None:
                gates.outage.charge(endpoint, work.origin, outcome)
            changed = gates.ended(endpoint, work, outcome, now=now)
        self._end(work, lane, endpoint)
        if outcome.retry_after is not None:
            self._findings.note_hold(endpoint, outcome, now)
        if not endpoint.in_flight:
            # What keeps an order waits until nothing of its endpoint is under way, in whichever lane that was.
            for each in endpoint.lanes:
                if each.ordered:
                    self._backlog.consider(each, now)
        if changed is not None:
            self._breaker_changed(endpoint.tenant, work.origin, changed.state, now)
        if not lane.open:
            return
        shard = self._shards[lane.shard]
        config = endpoint.config
        assert config is not None
        if not work.deadline:
            work.deadline = self._books.deadline_of(work.entry, config)
        if not ours:
            self._findings.judge_health(shard, work, outcome, now)
        decision = _HELD if ours else self._decide(work, outcome, config, now)
        match decision:
            case Delivered():
                self._books.record(shard, work, outcome, "delivered")
                if not work.entry.generation:
                    shard.delivered_after_s.append(outcome.finished_at - work.entry.created_at)
                self._books.finish(work)
            case Retry(due_at=due_at):
                self._books.record(shard, work, outcome, "retry")
                self._store_again(work, WaitReason.RETRY, due_at, work.retry_count + 1, outcome, now)
            case Held():
                self._books.record(shard, work, outcome, "retry")
                self._store_again(work, WaitReason.EGRESS_DOWN, now, work.retry_count, outcome, now)
            case Dead(reason=reason):
                self._books.record(shard, work, outcome, "dead")
                if outcome.status == 410:
                    self._findings.note_gone(config)
                self._books.bury(work, reason, outcome, attempts=work.retry_count + 1, now=now)
            case _:
                assert_never(decision)
        if lane.cancelled and not endpoint.in_flight:
            lane.cancelled = NO_CANCELS

    def _decide(self, work: Work, outcome: Outcome, config: Endpoint, now: float) -> Decision:
        return decide(
            outcome,
            retry_count=work.retry_count,
            deadline=work.deadline,
            policy=config.retry,
            now=now,
            rng=self._rng,
        )

    def _store_again(
        self, work: Work, reason: WaitReason, due_at: float, retry_count: int, outcome: Outcome | None, now: float
    ) -> None:
        """It is tried again, unless nobody wants it any more."""
        lane = work.lane
        config = lane.endpoint.config
        assert config is not None
        if config.deleted or _is_cancelled(work):
            self._books.finish(work)
            return
        self._books.store(work, reason, due_at, retry_count, outcome, now)
        if lane.ordered:
            self._books.wait_for_head(lane, due_at)

    def _end(self, work: Work, lane: Lane, endpoint: EndpointState) -> None:
        tenant = endpoint.tenant
        endpoint.in_flight -= 1
        self._turns.end(tenant)
        self.in_flight -= 1
        self.in_flight_bytes -= work.entry.size
        if lane.open:
            self._shards[lane.shard].in_flight -= 1
        else:
            self._roster.forget_idle(endpoint)
        if endpoint.waiting:
            self._turns.wake_waiting(endpoint)
        if tenant.ready and not tenant.turning:
            self._turns.resume(tenant)

    # ---- time -------------------------------------------------------------------------------------------------------

    def tick(self, *, now: float) -> None:
        """Time went on: look again at the lanes that waited for it."""
        for lane in self._timers.ring(now=now):
            if lane.has_work():
                self._turns.enter(lane)
            self._backlog.consider(lane, now)
        self._gates.tick(now=now)
        if self._gates.over_budget.look_at <= now:
            for lane in self._gates.over_budget.share(now):
                if lane.has_work():
                    self._turns.enter(lane)
                self._backlog.consider(lane, now)
        if self._loads.look_at <= now:
            self._wake_loads(now)
        if self._gates.outage.probe_at <= now:
            self._choose_probe(now)
        if self._gates.unused_at <= now:
            self._give_back_probes(now)
        if self._roster.look_at <= now:
            self._roster.forget_lanes(now)

    def next_wakeup(self) -> float | None:
        """When `tick` has something to do, as a Unix time."""
        gates = self._gates
        moment = min(
            self._timers.next(), gates.over_budget.look_at, gates.outage.probe_at, gates.unused_at, self._loads.look_at
        )
        return None if moment == NEVER else moment

    # ---- the backlog ------------------------------------------------------------------------------------------------

    def take_fetches(self, *, now: float) -> list[Fetch]:
        """Backlog reads to start now; each must end in ``on_backlog`` or ``on_fetch_failed``."""
        return self._backlog.take_fetches(in_flight=self.in_flight, now=now)

    def on_fetch_failed(self, fetch: Fetch, *, now: float, again_s: float) -> None:
        """The store did not answer: nothing was learnt, ask again later."""
        self._backlog.on_fetch_failed(fetch, now=now, again_s=again_s)

    def on_backlog(self, fetch: Fetch, rows: Sequence[BacklogRow], *, more: bool, behind: float, now: float) -> None:
        """The rows asked for; ``more`` says that not all fitted; ``behind`` is the least due time (of an expired fetch:
        the least deadline) behind ``fetch.until``, infinite when there is none."""
        self._backlog.on_backlog(fetch, rows, more=more, behind=behind, now=now)

    # ---- settling ---------------------------------------------------------------------------------------------------

    @property
    def unsettled(self) -> bool:
        """Is there anything to settle?"""
        return bool(self._books.touched)

    @property
    def pending_attempts(self) -> int:
        """Attempts that the next settle will write down."""
        return self._books.pending_attempts

    def take_settle(self, *, now: float) -> Settle | None:
        """All that happened since the last one; None when nothing did. Must be committed before the next is taken."""
        if not self._books.touched:
            return None
        self._spill.mend(self._books.touched, now)
        self._spill.make_room(now)
        return self._books.take_settle(now)

    def on_settled(self, settle: Settle, *, now: float) -> None:
        """It is committed: rows it wrote may be fetched, rows it dealt with are gone."""
        for lane, position in settle.released:
            lane.unsettled -= 1
            if lane.unsettled == 0 and lane.open and (lane.ordered or lane.named or lane.unblock):
                self._backlog.consider(lane, now)
            if lane.fetching:
                lane.released.append(position)
            else:
                lane.let_go(position)
        for lane in settle.dying:
            lane.dying -= 1
            if lane.open and not lane.dying and lane.has_work():
                self._turns.enter(lane)
        for lane in settle.lanes:
            lane.next_due = min(lane.next_due, lane.due_settling)
            lane.next_deadline = min(lane.next_deadline, lane.deadline_settling)
            lane.due_settling = lane.deadline_settling = NEVER
            if settle.since <= lane.recovered_at:
                # The look at what was stored before the recovery did not see these rows.
                lane.bring_forward(lane.recovered_at)
            if lane.open:
                self._backlog.consider(lane, now)
        self._backlog.go_on_parking()

    # ---- operations on single deliveries ----------------------------------------------------------------------------

    def _name(self, lane: Lane, named: Named, now: float) -> None:
        """Do something with what the lane holds of an event: at once with what is in memory, then with its backlog."""
        if named.type == CANCEL:
            operations.cancel(self._books, lane, named.entry)
        elif named.type == RETRY_NOW and not lane.ordered and operations.hurry_fetched(lane, named.entry):
            self._turns.enter(lane)
        lane.add_name(named)
        self._backlog.consider(lane, now)
        if lane.stored <= 0 and not lane.fetching and not lane.unsettled and len(lane.named) == 1:
            operations.on_named(self._books, lane, (), now)
            if lane.has_work():
                self._turns.enter(lane)

    # ---- gates that open and close ----------------------------------------------------------------------------------

    def _bring_forward(self, lane: Lane, recovered_at: float) -> None:
        """The receiver is back: what waits does not sit out its schedule."""
        lane.bring_forward(recovered_at)
        lane.head_due = 0.0
        self._gates.over_budget.leave(lane)
        for work in lane.later:
            work.marks |= HELD

    def _catch_up(self, lane: Lane, now: float) -> None:
        """The last owner may have died before all that waits was brought forward. Where the clock was set back since,
        the recovery lies in the time to come: what is stored by then here fails behind it, and keeps its schedule."""
        endpoint = lane.endpoint
        recovered_at = endpoint.tenant.recovered.get(endpoint.origin, 0.0)
        if recovered_at > lane.recovered_at:
            lane.bring_forward(recovered_at)
            if recovered_at > now:
                lane.recovered_at = self._books.recover(now)

    def _breaker_changed(self, tenant: TenantState, origin: str, state: BreakerState, now: float) -> None:
        """Lanes behind this receiver look again at what they may do."""
        recovered_at = 0.0
        if state is BreakerState.CLOSED:
            recovered_at = tenant.recovered[origin] = self._books.recover(now)
        else:
            tenant.recovered.pop(origin, None)
        for endpoint in tenant.of_origin(origin):
            for lane in endpoint.lanes:
                if state is BreakerState.CLOSED:
                    self._bring_forward(lane, recovered_at)
                else:
                    lane.fall_back()
                    self._gates.over_budget.leave(lane)
                if lane.has_work():
                    self._turns.enter(lane)
                self._backlog.consider(lane, now)
            if state is not BreakerState.OPEN:
                self._turns.wake_waiting(endpoint, everyone=True)

    @property
    def egress_down_since(self) -> float | None:
        """Since when our own way out is down, a Unix time; None while it is up."""
        return self._gates.outage.down_since

    def _egress_changed(self, now: float) -> None:
        """Our way out is down: what that cost endpoints is taken back. Or it is up again, and all lanes may go on."""
        outage = self._gates.outage
        if outage.down_since is None:
            self._resume(outage.seen_by, now)
            return
        for endpoint, before in outage.take_charged().items():
            self._findings.take_back(endpoint, before.health)
            if self._gates.take_back(endpoint, before, now=now) is not None:
                self._breaker_changed(endpoint.tenant, endpoint.origin, BreakerState.CLOSED, now)

    def _choose_probe(self, now: float) -> None:
        """Somebody is asked whether our way out is back, with anything that waits for it."""
        outage = self._gates.outage
        endpoint = outage.choose(now=now)
        if outage.down_since is None:
            self._resume(outage.seen_by, now)
        for lane in () if endpoint is None else endpoint.lanes:
            if lane.has_work():
                self._turns.enter(lane)
            self._backlog.consider(lane, now)

    def _resume(self, seen_by: Iterable[EndpointState], now: float) -> None:
        # The answer that ended it may be a failure: that one is written down behind it, and keeps its schedule.
        recovered_at = self._books.recover(now)
        for endpoint in seen_by:
            for lane in endpoint.lanes:
                self._bring_forward(lane, recovered_at)
        for shard in self._shards.values():
            for lane in shard.lanes.values():
                if lane.has_work():
                    self._turns.enter(lane)
                self._backlog.consider(lane, now)

    def take_probes(self) -> dict[Receiver, float | None]:
        """Receivers (tenant, origin) whose probe this worker wants to send, with what the store has heard of each (see
        ``Breaker.grant``); answered by ``on_probes``, before which none is asked for again."""
        found: dict[Receiver, float | None] = {}
        for tenant_id, origin in self._gates.take_probes():
            tenant = self._roster.tenants.get(tenant_id)
            breaker = None if tenant is None else tenant.breakers.get(origin)
            found[tenant_id, origin] = None if breaker is None else breaker.told_since
        return found

    def on_probes(self, probes: Iterable[Probe], asked: Mapping[Receiver, float | None], *, now: float) -> None:
        """What the store said of the probes ``asked`` for."""
        self._gates.answered(asked)
        for probe in probes:
            tenant = self._roster.tenants.get(probe.record.tenant_id)
            if tenant is not None and (breaker := tenant.breakers.get(probe.record.origin)) is not None:
                receiver = tenant.tenant_id, probe.record.origin
                breaker.grant(probe, asked=asked.get(receiver), now=now)
                if breaker.state is BreakerState.HALF_OPEN:
                    self._gates.granted(receiver, now=now)
                self._breaker_changed(tenant, probe.record.origin, breaker.state, now)

    def _give_back_probes(self, now: float) -> None:
        """What was to be the probe may have reached its deadline, or all places here be taken. Others may have
        what waits for this receiver, too."""
        for tenant_id, origin in self._gates.take_unused(now=now):
            tenant = self._roster.tenants.get(tenant_id)
            if tenant is not None and self._gates.give_back(tenant, origin, now=now):
                self._breaker_changed(tenant, origin, BreakerState.OPEN, now)

    def ask_again(self, probes: Iterable[Receiver]) -> None:
        """The store could not be asked about these probes."""
        self._gates.ask_again(probes)

    def take_breakers(self) -> list[BreakerRecord]:
        """Breakers whose state changed, to be stored and shared with the other workers."""
        return self._gates.take_changes()

    def on_told(self, records: Iterable[BreakerRecord]) -> None:
        """The store has these breakers, or later states of them."""
        for record in records:
            if (tenant := self._roster.tenants.get(record.tenant_id)) is not None:
                self._gates.told(tenant, record)

    def tell_again(self, records: Iterable[BreakerRecord]) -> None:
        """These could not be stored."""
        self._gates.tell_again(records)

    def adopt_breakers(self, records: Iterable[BreakerRecord], *, now: float) -> None:
        """Take over what is stored of the breakers of tenants that are known here."""
        for record in records:
            tenant = self._roster.tenants.get(record.tenant_id)
            if tenant is None:
                continue
            if self._gates.adopt(tenant, record):
                state = tenant.breakers[record.origin].state
                self._breaker_changed(tenant, record.origin, state, now)
            elif record.state is BreakerState.CLOSED:
                self._recovered_elsewhere(tenant, record, now)

    def _recovered_elsewhere(self, tenant: TenantState, record: BreakerRecord, now: float) -> None:
        """Another worker, or the last owner, saw a receiver recover that nothing is known of here."""
        breaker = tenant.breakers.get(record.origin)
        known = tenant.recovered.get(record.origin, 0.0)
        if record.since > known + SAME_RECOVERY_S and (breaker is None or breaker.state is BreakerState.CLOSED):
            tenant.recovered[record.origin] = record.since
            for endpoint in tenant.of_origin(record.origin):
                for lane in endpoint.lanes:
                    self._catch_up(lane, now)
                    self._backlog.consider(lane, now)

    def share_budget(self, workers: int) -> None:
        """So many workers share the floor of the retry budget."""
        self._gates.budget.workers = workers

    # ---- what was found out about endpoints -------------------------------------------------------------------------

    def take_holds(self) -> list[Hold]:
        """Retry-After holds to be shared with the other workers."""
        return self._findings.take_holds()

    def take_gone(self) -> list[Gone]:
        """Endpoints that are to be disabled."""
        return self._findings.take_gone()

    def hear_health(self, changed: Mapping[UUID, Health]) -> None:
        """What other workers have written down of endpoints, but for those whose health changed here since."""
        for endpoint_id, health in changed.items():
            known = self._roster.endpoints.get(endpoint_id)
            if known is not None and known.config is not None:
                self._findings.hear_health(known, health)

    def take_health(self) -> dict[UUID, Health]:
        """The health of the endpoints where it has changed, to be written down."""
        return self._findings.take_health()


def _is_cancelled(work: Work) -> bool:
    """Was it asked to be cancelled while it was under way?"""
    return work.entry.seq < work.lane.cancelled.get(work.entry.event_id, 0)
