"""The gates of one worker: may deliveries of a lane start now, and if not, why and until when.

Holds what is shared between lanes: the breakers of each tenant's receivers and the retry budget. What a gate decides is
policy (`policy/`); here it is looked up, and remembered what the other workers and the store are to be told.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from random import Random
from uuid import UUID

from hookpost.engine.lanes import NEVER, EndpointState, Lane, TenantState
from hookpost.engine.outage import Before, Outage
from hookpost.engine.work import HELD, PROBE, RETRY, Work
from hookpost.model import Endpoint, Outcome, WaitReason
from hookpost.policy.breaker import Breaker, BreakerPolicy, BreakerRecord, BreakerState, Verdict, verdict
from hookpost.policy.budget import BudgetPolicy, RetryBudget
from hookpost.policy.egress import origin_of
from hookpost.policy.egress_health import OutagePolicy
from hookpost.policy.gate import Wait, endpoint_gate
from hookpost.policy.rate import TokenBucket

# A lane that waits for a token looks again no sooner: floats of the time of day are a quarter of a microsecond apart,
# and tokens that come meanwhile are not lost.
RATE_TICK_S = 0.001
# A probe begins so soon behind the right to it, or another worker gets that: a fetch of what waits takes milliseconds.
PROBE_BEGINS_S = 3.0
# How often what waits for the retry budget is looked at again: its books are kept by the second.
BUDGET_LOOK_S = 1.0
_EGRESS_DOWN = Wait(WaitReason.EGRESS_DOWN)
_NOTHING_MORE = Wait(WaitReason.BREAKER_OPEN)
_BARRED = Wait(WaitReason.ORDERED)
_FULL = Wait(WaitReason.IN_FLIGHT_CAP)
_OVER_BUDGET = Wait(WaitReason.RETRY_BUDGET)

Receiver = tuple[UUID, str]


class OverBudget:
    """Lanes that wait for the retry budget, in the order they came. ``look_at``: when they are looked at again."""

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._lanes: dict[Lane, None] = {}
        self.look_at = NEVER

    def wait(self, lane: Lane, now: float) -> None:
        """It has nothing else to send."""
        if not lane.over_budget:
            lane.over_budget = True
            self._lanes[lane] = None
            self.look_at = min(self.look_at, now + BUDGET_LOOK_S)

    def leave(self, lane: Lane) -> None:
        """What it holds waits for another gate, or has: that is exempt."""
        if lane.over_budget:
            lane.over_budget = False
            self._lanes.pop(lane, None)

    def share(self, now: float) -> list[Lane]:
        """Those that may go on now, the ones that waited longest first."""
        waiting, self._lanes = self._lanes, {}
        free, may_go = self._budget.free(now=now), []
        for lane in waiting:
            if lane.open and free > 0 and self._budget.admits(lane.endpoint.tenant.tenant_id, now=now):
                free -= 1
                lane.over_budget = False
                may_go.append(lane)
            elif lane.open:
                self._lanes[lane] = None
        self.look_at = now + BUDGET_LOOK_S if self._lanes else NEVER
        return may_go


class Gates:
    """Rate limits, breakers, the retry budget and our own way out of one worker."""

    def __init__(self, *, breaker: BreakerPolicy, budget: BudgetPolicy, outage: OutagePolicy, rng: Random) -> None:
        self._breaker_policy = breaker
        self._rng = rng
        self.budget = RetryBudget(budget)
        self.over_budget = OverBudget(self.budget)
        self.outage = Outage(outage)
        self._ended = 0
        # Receivers whose probe is to be asked for, and those of whom the answer has not come.
        self._probes: set[Receiver] = set()
        self._asked: set[Receiver] = set()
        self._changed: dict[Receiver, BreakerRecord] = {}
        # Probes that this worker has the right to, and when they are to have begun, in the order of that.
        self._granted: dict[Receiver, float] = {}

    # ---- may it start? --------------------------------------------------------------------------------------------

    def closed(self, lane: Lane, config: Endpoint, *, now: float) -> Wait | None:
        """Why nothing of this lane may start now, whatever it is."""
        endpoint = lane.endpoint
        wait = endpoint_gate(config, hold_until=endpoint.hold_until, now=now)
        if wait is not None:
            return wait
        if self.outage.down_since is not None and self.outage.holds(endpoint, now=now):
            return _EGRESS_DOWN
        if config.barred and endpoint.tenant.lives_in(lane.shard):
            return _BARRED
        if endpoint.tenant.breakers:
            wait = self._breaker_gate(endpoint, now)
            if wait is not None:
                return wait
        if endpoint.rate_until > now:
            return Wait(WaitReason.RATE_LIMITED, endpoint.rate_until)
        if lane.ordered and lane.quiet_until > now:
            return Wait(WaitReason.ORDERED, lane.quiet_until)
        return None

    def _breaker_gate(self, endpoint: EndpointState, now: float) -> Wait | None:
        breaker = endpoint.tenant.breakers.get(endpoint.origin)
        if breaker is None or breaker.state is BreakerState.CLOSED:
            return None
        if breaker.wants_probe(now=now):
            receiver = endpoint.tenant.tenant_id, endpoint.origin
            if receiver not in self._asked:
                self._probes.add(receiver)
            return _NOTHING_MORE
        if breaker.state is BreakerState.HALF_OPEN:
            return _NOTHING_MORE if breaker.probing else None
        return Wait(WaitReason.BREAKER_OPEN, breaker.closed_until)

    def admit(self, lane: Lane, work: Work, config: Endpoint, *, now: float) -> Wait | None:
        """None: it starts now, and the gates have counted it. A Wait: they have counted nothing."""
        wait = self.closed(lane, config, now=now)
        if wait is not None:
            return wait
        endpoint = lane.endpoint
        breaker = endpoint.tenant.breakers.get(endpoint.origin) if endpoint.tenant.breakers else None
        cap = 1 if lane.ordered else endpoint.cap
        if endpoint.in_flight >= cap or (breaker is not None and breaker.closed_to(endpoint.in_flight)):
            return _FULL
        probe = breaker is not None and breaker.state is BreakerState.HALF_OPEN
        retry = work.retry_count > 0 and not (probe or work.marks & HELD)
        if retry and not self.budget.admits(endpoint.tenant.tenant_id, now=now):
            return _OVER_BUDGET
        if endpoint.bucket is not None and (wait := self._rate_gate(endpoint, endpoint.bucket, now)) is not None:
            return wait
        if retry:
            self.budget.start(endpoint.tenant.tenant_id)
            work.marks |= RETRY
        if breaker is not None and breaker.start():
            work.marks |= PROBE
        if endpoint is self.outage.chosen:
            self.outage.start(work)
        work.origin = endpoint.origin
        return None

    def _rate_gate(self, endpoint: EndpointState, bucket: TokenBucket, now: float) -> Wait | None:
        wait_s = bucket.take(now=now)
        if wait_s <= 0:
            return None
        endpoint.rate_until = now + max(wait_s, RATE_TICK_S)
        return Wait(WaitReason.RATE_LIMITED, endpoint.rate_until)

    def withdraw(self, endpoint: EndpointState, work: Work, *, now: float) -> None:
        """What was admitted does not start after all."""
        if work.marks & RETRY:
            self.budget.end(endpoint.tenant.tenant_id, failed=False, now=now)
        if work.marks & PROBE and (breaker := endpoint.tenant.breakers.get(work.origin)) is not None:
            breaker.probing = False
        if endpoint.bucket is not None:
            endpoint.bucket.give_back()
        self.outage.withdraw(work)
        work.marks = 0

    def probing(self, endpoint: EndpointState) -> bool:
        """May this endpoint's receiver be probed now, with anything there is?"""
        if endpoint is self.outage.chosen:
            return True
        breakers = endpoint.tenant.breakers
        breaker = breakers.get(endpoint.origin) if breakers else None
        return breaker is not None and breaker.state is BreakerState.HALF_OPEN and not breaker.probing

    # ---- what became of it ----------------------------------------------------------------------------------------

    def ended(self, endpoint: EndpointState, work: Work, outcome: Outcome, *, now: float) -> Breaker | None:
        """Learn from an attempt that was admitted; the receiver's breaker if its state changed."""
        self._ended += 1
        failed = outcome.error_code is not None
        tenant = endpoint.tenant
        if work.marks & RETRY:
            self.budget.end(tenant.tenant_id, failed=failed, now=now)
        probe = bool(work.marks & PROBE)
        work.marks = 0
        if not (failed or tenant.breakers):
            return None
        return self._observe(tenant, work.origin, verdict(outcome), probe=probe, now=now)

    def excuse(self, endpoint: EndpointState, work: Work, *, now: float) -> Breaker | None:
        """An attempt that was admitted failed, and that was ours: nobody is charged. A breaker whose probe it was stays
        open for another pause; that breaker if its state changed."""
        self._ended += 1
        tenant = endpoint.tenant
        if work.marks & RETRY:
            self.budget.end(tenant.tenant_id, failed=False, now=now)
        probe, work.marks = bool(work.marks & PROBE), 0
        return self._observe(tenant, work.origin, Verdict.NOTHING, probe=True, now=now) if probe else None

    def take_back(self, endpoint: EndpointState, before: Before, *, now: float) -> Breaker | None:
        """What its receiver's breaker was charged with was ours; the breaker if its state changed."""
        tenant, origin = endpoint.tenant, endpoint.origin
        breaker = tenant.breakers.get(origin)
        if breaker is None or not before.closed:
            return None
        if breaker.forgive(before.failures, before.openings, now=now):
            self._note_change(tenant, origin, breaker)
            return breaker
        if breaker.at_rest:
            del tenant.breakers[origin]
        return None

    def _observe(self, tenant: TenantState, origin: str, seen: Verdict, *, probe: bool, now: float) -> Breaker | None:
        breaker = tenant.breakers.get(origin)
        if breaker is None:
            if seen is not Verdict.SICK:
                return None
            # What is known of it already may bear a later time, by a clock that was set back since.
            known = tenant.recovered.get(origin, 0.0)
            breaker = tenant.breakers[origin] = Breaker(self._breaker_policy, now=max(now, known))
        changed = breaker.observe(seen, probe=probe, now=now, rng=self._rng)
        if changed:
            self._note_change(tenant, origin, breaker)
        elif breaker.at_rest:
            del tenant.breakers[origin]
        return breaker if changed else None

    def _note_change(self, tenant: TenantState, origin: str, breaker: Breaker) -> None:
        """It is to be stored, and shared."""
        self._changed[tenant.tenant_id, origin] = breaker.record(tenant.tenant_id, origin)

    def tick(self, *, now: float) -> None:
        """Time went on: enter what has ended into the budget's books."""
        if self._ended:
            self.budget.count(self._ended, now=now)
            self._ended = 0

    # ---- limits ---------------------------------------------------------------------------------------------------

    def configure(self, endpoint: EndpointState, config: Endpoint, *, since: float, part: float, now: float) -> None:
        """Take over a new configuration. ``since``: from when on a new bucket fills up; ``part``: of the rate."""
        if endpoint.config is None or endpoint.config.url != config.url:
            endpoint.origin = origin_of(config.url)
        if config.rate_limit is None:
            endpoint.bucket = None
            endpoint.rate_until = 0.0
            return
        rate = config.rate_limit * part
        # Whoever owned the shards that it came from has sent at this rate until now, and may have emptied its bucket.
        moved_in = endpoint.config is not None and endpoint.config.barred and not config.barred
        if endpoint.bucket is None or moved_in:
            endpoint.bucket = TokenBucket(rate, since=since)
            endpoint.rate_until = 0.0
        elif endpoint.bucket.rate != rate:
            endpoint.bucket.change(rate, now=now)
            endpoint.rate_until = 0.0

    # ---- the fleet ------------------------------------------------------------------------------------------------

    def take_probes(self) -> list[Receiver]:
        """Receivers whose probe this worker wants to send, if the store grants it."""
        probes, self._probes = sorted(self._probes), set()
        self._asked.update(probes)
        return probes

    def answered(self, probes: Iterable[Receiver]) -> None:
        """The store has said of these what it had to say; they may be asked for again."""
        self._asked.difference_update(probes)

    def granted(self, receiver: Receiver, *, now: float) -> None:
        """This worker may send the receiver's probe."""
        self._granted.pop(receiver, None)
        self._granted[receiver] = now + PROBE_BEGINS_S

    @property
    def unused_at(self) -> float:
        """When to look whether a probe has begun."""
        return next(iter(self._granted.values()), NEVER)

    def take_unused(self, *, now: float) -> list[Receiver]:
        """Receivers whose probe should have begun."""
        due = [receiver for receiver, _ in takewhile(lambda granted: granted[1] <= now, self._granted.items())]
        for receiver in due:
            del self._granted[receiver]
        return due

    def give_back(self, tenant: TenantState, origin: str, *, now: float) -> bool:
        """Let another worker send the probe, unless it has begun here; True when it changes what may start."""
        breaker = tenant.breakers.get(origin)
        if breaker is None or not breaker.give_back(now=now):
            return False
        self._note_change(tenant, origin, breaker)
        return True

    def ask_again(self, probes: Iterable[Receiver]) -> None:
        """The store could not be asked."""
        probes = list(probes)
        self.answered(probes)
        self._probes.update(probes)

    def take_changes(self) -> list[BreakerRecord]:
        """Breakers whose state changed here, to be stored and shared."""
        changed, self._changed = self._changed, {}
        return list(changed.values())

    def told(self, tenant: TenantState, record: BreakerRecord) -> None:
        """This is stored, or something later is."""
        breaker = tenant.breakers.get(record.origin)
        if breaker is not None and breaker.since == record.since:
            breaker.told = True

    def tell_again(self, records: Iterable[BreakerRecord]) -> None:
        """These could not be stored; what changed since comes before them."""
        for record in records:
            self._changed.setdefault((record.tenant_id, record.origin), record)

    def adopt(self, tenant: TenantState, record: BreakerRecord) -> bool:
        """Take over what another worker has learnt; True when it changes what may start."""
        breaker = tenant.breakers.get(record.origin)
        if breaker is None:
            if record.state is BreakerState.CLOSED:
                return False
            breaker = tenant.breakers[record.origin] = Breaker(self._breaker_policy, now=0.0)
        return breaker.adopt(record)
