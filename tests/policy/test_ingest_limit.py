"""A tenant's limit shared by API processes: parts by recent demand, and what they let in together. In virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.policy import ingest_limit
from hookpost.policy.ingest_limit import Allowance, IngestGate, part

TENANT = UUID(int=1)
LOOK_S, LEASE_S, STEP_S = 0.75, 3.0, 0.01
DEMANDS = st.one_of(st.just(0.0), st.floats(0.001, 1e6))


# ---- the rule -------------------------------------------------------------------------------------------------------


@given(st.floats(0.001, 1e6), st.lists(DEMANDS, min_size=1, max_size=20))
def test_the_parts_add_up_to_the_limit_and_none_is_nothing(limit: float, demands: list[float]) -> None:
    total = sum(demands)
    parts = [part(limit, own=own, others=total - own, processes=len(demands)) for own in demands]
    assert sum(parts) == pytest.approx(limit)
    assert min(parts) >= limit * ingest_limit.HEADROOM / len(demands) * 0.999


@given(st.floats(1, 1e4), st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_while_the_limit_is_not_reached_all_get_what_they_ask_for_and_equal_room_for_more(
    limit: float, weights: list[float]
) -> None:
    demands = [weight * limit / 2 / len(weights) for weight in weights]
    total = sum(demands)
    for own in demands:
        room = part(limit, own=own, others=total - own, processes=len(demands)) - own
        assert room == pytest.approx((limit - total) / len(demands))


@pytest.mark.parametrize(
    ("own", "others", "processes", "expected"),
    [
        (0, 0, 1, 100),
        (0, 0, 4, 25),
        (5000, 0, 1, 100),
        (100, 0, 2, 97.5),
        (0, 100, 2, 2.5),
        (100, 100, 2, 50),
        (100, 300, 4, 25),
        (10, 0, 2, 55),
        (0, 10, 2, 45),
    ],
)
def test_parts_of_a_hundred(own: float, others: float, processes: int, expected: float) -> None:
    assert part(100, own=own, others=others, processes=processes) == pytest.approx(expected)


# ---- one process ----------------------------------------------------------------------------------------------------


def alone(limit: float = 10.0, now: float = 0.0) -> tuple[IngestGate, Allowance]:
    gate = IngestGate()
    allowance = gate.allowance(TENANT, limit, now=now)
    assert allowance is not None
    return gate, allowance


def test_a_batch_is_let_in_or_refused_as_a_whole_and_says_when_to_come_again() -> None:
    gate, allowance = alone()
    assert gate.take(allowance, 7, now=0.0) == 0
    assert gate.take(allowance, 7, now=0.0) == pytest.approx(0.4)
    assert allowance.standing(now=0.0).left == 3
    assert gate.take(allowance, 3, now=0.0) == 0
    assert gate.take(allowance, 7, now=0.7) == 0


def test_a_batch_that_is_larger_than_the_bucket_is_let_in_when_it_is_full_and_paid_for_afterwards() -> None:
    gate, allowance = alone()
    assert gate.take(allowance, 1, now=0.0) == 0
    assert gate.take(allowance, 1000, now=0.0) == pytest.approx(0.1)
    assert gate.take(allowance, 1000, now=0.2) == 0
    assert gate.take(allowance, 1, now=0.2) == pytest.approx(99.1)
    standing = allowance.standing(now=0.2)
    assert (standing.left, standing.wait_s) == (0, pytest.approx(100.0))


def test_a_debt_is_not_forgotten_when_nobody_asks_any_more() -> None:
    gate, allowance = alone()
    assert gate.take(allowance, 1000, now=0.0) == 0
    now = 0.0
    while now < 60:
        now += LOOK_S
        gate.share(gate.demands(now=now), {}, processes=1, now=now)
    assert gate.allowance(TENANT, 10.0, now=now) is allowance
    assert gate.take(allowance, 1, now=now) == pytest.approx(99.1 - now)


def test_what_is_given_back_was_not_used() -> None:
    gate, allowance = alone()
    assert gate.take(allowance, 10, now=0.0) == 0
    allowance.give_back(4)
    assert gate.take(allowance, 5, now=0.0) > 0
    assert gate.take(allowance, 4, now=0.0) == 0


def test_another_limit_is_in_force_at_once_and_none_ends_it() -> None:
    gate, allowance = alone(1.0)
    gate.take(allowance, 1, now=0.0)
    assert gate.allowance(TENANT, 100.0, now=0.0) is allowance
    assert allowance.standing(now=0.5).left == 50
    assert gate.allowance(TENANT, 2.0, now=0.5) is allowance
    assert allowance.standing(now=0.5).left == 2
    assert gate.allowance(TENANT, None, now=0.5) is None
    assert gate.charged(TENANT) is None


def test_a_limit_below_one_a_second_lets_one_in_at_a_time() -> None:
    gate, allowance = alone(0.1)
    assert gate.take(allowance, 1, now=0.0) == 0
    assert gate.take(allowance, 1, now=5.0) == pytest.approx(5.0)
    assert gate.take(allowance, 1, now=10.0) == 0


def test_a_tenant_that_nobody_asks_for_is_forgotten() -> None:
    gate, allowance = alone()
    gate.take(allowance, 1, now=0.0)
    for now in range(1, 20):
        gate.share(gate.demands(now=float(now)), {}, processes=1, now=float(now))
    assert gate.charged(TENANT) is None
    assert gate.demands(now=20.0) == {}


def test_only_the_busiest_tenants_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_limit, "REPORTED_MAX", 2)
    gate = IngestGate()
    for number in range(1, 6):
        allowance = gate.allowance(UUID(int=number), 1000.0, now=0.0)
        assert allowance is not None
        gate.take(allowance, number, now=0.5)
    assert set(gate.demands(now=1.0)) == {UUID(int=4), UUID(int=5)}


# ---- several processes ----------------------------------------------------------------------------------------------


@dataclass
class Process:
    """One API process: a gate that looks in turns, and a producer that posts one event after the other."""

    gate: IngestGate
    look_at: float
    limit: float
    offered: float = 0.0
    dead: bool = False
    told: tuple[float, dict[UUID, float]] = (0.0, {})
    owed: float = 0.0
    allowance: Allowance | None = None
    accepted: list[float] = field(default_factory=list)

    def step(self, now: float) -> None:
        self.owed += self.offered * STEP_S
        while self.owed >= 1:
            self.owed -= 1
            if self.allowance is None:
                self.allowance = self.gate.allowance(TENANT, self.limit, now=now)
                assert self.allowance is not None
            if self.gate.take(self.allowance, 1, now=now) == 0:
                self.accepted.append(now)


class World:
    """Processes that tell each other their demand as the store would pass it on."""

    def __init__(self, limit: float, *offered: float) -> None:
        self.limit = limit
        self.now = 0.0
        self.processes: list[Process] = []
        for rate in offered:
            self.start(rate, expected=len(offered))

    def start(self, offered: float, *, expected: int = 1) -> Process:
        gate = IngestGate(expected=expected, settled_at=self.now + LEASE_S)
        process = Process(gate, self.now, self.limit, offered)
        self.processes.append(process)
        self._look(process)
        return process

    def run(self, seconds: float) -> World:
        end = self.now + seconds
        while self.now < end:
            self.now += STEP_S
            for number, process in enumerate(self.processes):
                if not process.dead:
                    process.step(self.now)
                    if self.now >= process.look_at + LOOK_S * (1 + 0.1 * (number % 3)):
                        self._look(process)
        return self

    def _look(self, process: Process) -> None:
        demands = process.gate.demands(now=self.now)
        process.told = (self.now + LEASE_S, demands)
        process.look_at = self.now
        living = [other.told[1] for other in self.processes if other is not process and other.told[0] > self.now]
        others = {TENANT: sum(told.get(TENANT, 0.0) for told in living)}
        process.gate.share(demands, others, processes=1 + len(living), now=self.now)

    def accepted(self, since: float, until: float) -> int:
        return sum(since < at <= until for process in self.processes for at in process.accepted)


@pytest.mark.parametrize(
    "offered",
    [(500,), (500, 500), (500, 20), (500, 0), (60, 60), (300, 0, 0, 0), (400, 100, 30, 1, 0, 0), (100,) * 8],
    ids=str,
)
@pytest.mark.parametrize("limit", [20.0, 100.0])
def test_the_sum_holds_within_ten_percent(limit: float, offered: tuple[float, ...]) -> None:
    world = World(limit, *offered).run(23.0)
    assert world.accepted(3.0, 23.0) == pytest.approx(limit * 20, rel=0.1)
    for since in range(3, 13):
        assert world.accepted(since, since + 10.0) <= limit * 10 * 1.1
    # From the start on: the buckets, which hold one second's worth in all, come to it.
    assert world.accepted(0.0, 5.0) <= limit * 5 * 1.1 + limit


@pytest.mark.parametrize("offered", [(80,), (40, 40), (80, 0), (70, 5, 5), (10,) * 8], ids=str)
def test_below_the_limit_nobody_is_refused(offered: tuple[float, ...]) -> None:
    world = World(100.0, *offered).run(20.0)
    # A process that has all of the demand has but its part of the limit until it has told so.
    assert world.accepted(4.0, 20.0) == pytest.approx(sum(offered) * 16, abs=len(offered) + 1)


def test_when_demand_moves_to_another_process_the_limit_follows_within_three_looks() -> None:
    world = World(100.0, 500.0, 0.0).run(10.0)
    one, other = world.processes
    one.offered, other.offered = 0.0, 500.0
    world.run(12.0)
    assert world.accepted(10.0 + 3 * LOOK_S, 22.0) == pytest.approx(100 * (12 - 3 * LOOK_S), rel=0.1)
    assert world.accepted(10.0, 15.0) <= 100 * 5 * 1.1


def test_a_process_that_died_drops_out_within_seconds() -> None:
    world = World(100.0, 500.0, 500.0).run(10.0)
    world.processes[0].dead = True
    world.run(12.0)
    settled = 10.0 + LEASE_S + 3 * LOOK_S
    assert world.accepted(settled, 22.0) == pytest.approx(100 * (22 - settled), rel=0.1)


def test_a_process_that_joins_takes_no_more_than_its_part() -> None:
    world = World(100.0, 500.0).run(10.0)
    fresh = world.start(500.0)
    world.run(10.0)
    assert sum(at <= 10.0 + LOOK_S for at in fresh.accepted) <= 50 * (1 + LOOK_S)
    assert world.accepted(10.0, 20.0) <= 100 * 10 * 1.1
    assert world.accepted(13.0, 20.0) == pytest.approx(700, rel=0.1)


def test_processes_that_start_at_once_and_have_not_heard_of_each_other_take_but_their_parts() -> None:
    gates = [IngestGate(expected=4, settled_at=LEASE_S) for _ in range(4)]
    let_in = 0
    for gate in gates:
        gate.share({}, {}, processes=1, now=0.0)
        allowance = gate.allowance(TENANT, 100.0, now=0.0)
        assert allowance is not None
        let_in += sum(gate.take(allowance, 1, now=0.0) == 0 for _ in range(200))
    assert let_in == 100


def test_who_asks_in_vain_without_end_does_not_get_all_of_it() -> None:
    world = World(100.0, 20_000.0, 150.0).run(13.0)
    hammering, steady = world.processes
    assert sum(at > 3.0 for at in steady.accepted) == pytest.approx(500, rel=0.1)
    assert sum(at > 3.0 for at in hammering.accepted) == pytest.approx(500, rel=0.1)
