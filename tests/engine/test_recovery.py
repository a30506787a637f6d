"""When a receiver is back, what waits for it does not sit out its schedule, however slow the store and whoever owns it.

All retries here lie an hour or more ahead, so what has not arrived within minutes of the recovery was forgotten.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from uuid import UUID

import pytest

from hookpost.engine.engine import Engine
from hookpost.engine.limits import Limits, Policies
from hookpost.model import Endpoint, ErrorCode, Outcome, RetryPolicy, Tenant
from hookpost.policy.breaker import BreakerPolicy, BreakerState
from tests.engine.driver import COMMIT_S, OK, START, STORE_S, Driver
from tests.engine.model import check

SHARDS = 8
TENANT = Tenant(UUID(int=1 << 64), tuple(range(SHARDS)))
ENDPOINT = Endpoint(
    UUID(int=2 << 64), TENANT.tenant_id, "https://receiver.example/", retry=RetryPolicy(base_s=3600.0, cap_s=7200.0)
)
BREAKER = BreakerPolicy(failures=5, pause_s=1.0, pause_max_s=1.0)
EVENTS = 20
FAILED = Outcome(ErrorCode.HTTP_5XX, 500)
BUSY = Outcome(ErrorCode.HTTP_429, 429, retry_after=b"30")
# How often a worker looks at what the others have learnt.
LOOK_S = 0.5
# A recovery and all that follows it are over by then.
SOON_S = 150.0
# A store that answers at once, and one that takes longer than the breaker's pause.
SLOWNESS = (1, 50, 300)


class Slow(Driver):
    """A worker of eight shards on a store that takes its time, differently each time. ``sick``: what the receiver
    answers now, in vain."""

    def __init__(self, seed: int) -> None:
        super().__init__([TENANT], [ENDPOINT], {ENDPOINT.endpoint_id: self.answer}, shards=SHARDS)
        self.rng = Random(seed)
        self.slowness = self.rng.choice(SLOWNESS)
        self.sick: Outcome | None = FAILED
        self.failures = 0
        self.arrived = 0
        self._look_at = START
        self._owner = 0
        self.own()

    def own(self) -> None:
        """A worker that knows nothing takes over; the last one is dead, and so is all it had under way."""
        self._owner += 1
        self._settling = None
        policies = Policies(breaker=BREAKER)
        self.engine = Engine(worker="w", limits=Limits(), rng=Random(self._owner), policies=policies)
        self.open_shards()

    def answer(self, now: float) -> tuple[Outcome, float]:
        if self.sick is not None:
            self.failures += 1
            return self.sick, self.rng.expovariate(100)
        self.arrived += 1
        return OK, self.rng.choice((0.01, 2.0))

    def append_some(self, count: int) -> None:
        """Events, each in some shard."""
        for _ in range(count):
            home = replace(TENANT, home_shards=(self.rng.randrange(SHARDS),))
            self.tenants[TENANT.tenant_id] = home
            self.append(ENDPOINT, self.now)
        self.tenants[TENANT.tenant_id] = TENANT

    def _later(self, delay_s, action):  # type: ignore[no-untyped-def] # as the driver's
        """What the store takes varies; what a dead owner still waits for never comes."""
        if delay_s in (STORE_S, COMMIT_S):
            delay_s *= self.rng.expovariate(1) * self.slowness
        owner = self._owner
        super()._later(delay_s, lambda: action() if owner == self._owner else None)

    def _turn(self) -> None:
        super()._turn()
        for record in self.engine.take_breakers():
            self._later(STORE_S, lambda record=record: self.store.save_breaker(record))
        if self.now >= self._look_at:
            self._look_at = self.now + LOOK_S
            self._later(STORE_S, self._look)

    def _look(self) -> None:
        records = list(self.store.breakers.values())
        self._later(STORE_S, lambda: self.engine.adopt_breakers(records, now=self.now))

    def go_down(self) -> None:
        """Some deliveries fail, the others wait behind the breaker, and some probes fail, too."""
        self.append_some(BREAKER.failures)
        self.run(START + self.rng.uniform(0.5, 6.0))
        self.append_some(EVENTS - BREAKER.failures)
        while self.failures < BREAKER.failures + 2:
            self.run(self.now + 0.2)

    def check_all_arrived(self) -> None:
        self.run(self.now + SOON_S)
        check(self.waiting() == 0, self.waiting(), "sit out their schedule")


@pytest.mark.parametrize("seeds", [range(start, start + 30) for start in range(0, 90, 30)], ids=str)
def test_everything_comes_forward_however_slow_the_store_is(seeds: range) -> None:
    for seed in seeds:
        world = Slow(seed)
        world.go_down()
        world.sick = None
        world.check_all_arrived()
        assert len(world.books.over) == EVENTS, seed


@pytest.mark.parametrize("seed", range(8))
def test_a_new_owner_goes_on_with_what_the_last_one_brought_forward(seed: int) -> None:
    world = Slow(seed)
    world.slowness = 1
    world.go_down()
    world.sick = None
    receiver = (TENANT.tenant_id, "https://receiver.example")
    while world.store.breakers[receiver].state is not BreakerState.CLOSED:
        world.run(world.now + 0.02)
    world.own()
    check(world.waiting() > 0, "nothing is left to bring forward")
    world.check_all_arrived()


@pytest.mark.parametrize("seed", range(8))
def test_what_a_retry_after_holds_on_its_way_forward_goes_on_behind_it(seed: int) -> None:
    world = Slow(seed)
    world.slowness = 1
    world.go_down()
    world.sick = None
    while not world.arrived:
        world.run(world.now + 0.02)
    world.sick, before = BUSY, world.failures
    while world.failures == before and world.waiting():
        world.run(world.now + 0.001)
    world.sick, busy = None, world.failures - before
    world.run(world.now + SOON_S)
    # What was answered with it has failed anew, behind the recovery, and waits for its next try.
    assert world.waiting() <= busy
