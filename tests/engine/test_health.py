"""The engine and an endpoint's health: what a settle announces, what is written down, when it is disabled."""

from __future__ import annotations

from random import Random
from typing import Any
from uuid import UUID

import pytest

from hookpost.engine.engine import Engine
from hookpost.engine.limits import Limits, Policies
from hookpost.engine.work import JournalRow, Takeover
from hookpost.model import HEALTHY, EndpointStatus, Health, Outcome
from hookpost.policy.health import HealthPolicy
from tests.engine.test_engine_cases import BROKEN, E1, GONE, NOW, OK, REFUSED, TENANT, Bench, endpoint

POLICY = HealthPolicy(announce_after=3, disable_after_s=100.0)
FAILING, RECOVERED = "hookpost.endpoint.failing", "hookpost.endpoint.recovered"


def bench(**changes: Any) -> Bench:
    made = Bench(endpoint(**changes))
    made.engine = Engine(worker="w", limits=Limits(), rng=Random(1), policies=Policies(health=POLICY))
    made.engine.open_shard(Takeover(0, 1), now=made.now)
    return made


def attempt(made: Bench, outcome: Outcome, *, type: str = "order.paid") -> None:
    """One event, posted, sent and answered so."""
    made.seqs[0] += 1
    seq = made.seqs[0]
    event = JournalRow(0, seq, 9000, 0, UUID(int=0x1000 + seq), TENANT, type, b"{}", [E1], 0, made.now)
    made.engine.on_rows(0, [event], now=made.now)
    made.configure()
    [work] = made.sends()
    made.end(work, outcome)


def announced(made: Bench) -> list[tuple[str, int, float | None]]:
    return [(notice.type, notice.failures, notice.since) for notice in made.settle().notices]


def test_the_third_failure_in_a_row_is_announced_with_the_settle_that_records_it() -> None:
    made = bench()
    for _ in range(2):
        attempt(made, BROKEN)
    assert announced(made) == []
    made.wait(5)
    attempt(made, BROKEN)
    assert announced(made) == [(FAILING, 3, NOW)]
    attempt(made, BROKEN)
    attempt(made, OK)
    assert announced(made) == [(RECOVERED, 4, NOW)]
    attempt(made, OK)
    assert announced(made) == []


def test_refusals_neither_count_nor_end_a_run() -> None:
    made = bench()
    for outcome in (BROKEN, REFUSED, BROKEN, REFUSED, BROKEN):
        attempt(made, outcome)
    assert announced(made) == [(FAILING, 3, NOW)]


@pytest.mark.parametrize("type", ["hookpost.endpoint.failing", "hookpost.delivery.dead"])
def test_deliveries_of_operational_events_say_nothing_of_health(type: str) -> None:
    made = bench()
    for _ in range(5):
        attempt(made, BROKEN, type=type)
    assert announced(made) == []
    assert made.engine.take_health() == {}


def test_changed_health_is_handed_out_once() -> None:
    made = bench()
    attempt(made, OK)
    assert made.engine.take_health() == {}
    attempt(made, BROKEN)
    attempt(made, BROKEN)
    assert made.engine.take_health() == {E1: Health(2, NOW)}
    assert made.engine.take_health() == {}
    attempt(made, OK)
    assert made.engine.take_health() == {E1: HEALTHY}


def test_the_success_of_another_worker_ends_a_run_and_its_failures_go_on_here() -> None:
    """The endpoints of a spread tenant have several owners. Two failures with days of others' successes between them
    disabled an endpoint; and what one worker had charged stood for ever where it sent nothing more."""
    made = bench()
    attempt(made, BROKEN)
    made.wait(200)
    made.engine.hear_health({E1: HEALTHY})
    attempt(made, BROKEN)
    assert made.engine.take_gone() == []
    made.engine.take_health()
    made.engine.hear_health({E1: Health(2, NOW + 150)})
    attempt(made, BROKEN)
    assert announced(made) == [(FAILING, 3, NOW + 150)]
    attempt(made, OK)
    assert made.engine.take_health() == {E1: HEALTHY}


def test_who_hears_that_it_is_well_still_has_its_recovery_told_that_was_announced_from_here() -> None:
    made = bench()
    for _ in range(3):
        attempt(made, BROKEN)
    assert announced(made) == [(FAILING, 3, NOW)]
    made.engine.hear_health({E1: HEALTHY})
    attempt(made, OK)
    assert [type for type, _, _ in announced(made)] == [RECOVERED]


def test_the_recovery_is_told_by_another_worker_than_the_failure() -> None:
    made = bench()
    attempt(made, OK)
    made.engine.hear_health({E1: Health(7, NOW, announced=True)})
    attempt(made, OK)
    assert announced(made) == [(RECOVERED, 7, NOW)]


def test_what_is_heard_of_an_endpoint_nobody_needs_here_is_dropped() -> None:
    made = bench()
    made.engine.hear_health({UUID(int=99): Health(7, NOW)})
    attempt(made, OK)
    assert made.engine.take_health() == {}


def test_a_new_owner_goes_on_counting_where_it_was_written_down() -> None:
    made = bench(health=Health(2, NOW - 50))
    attempt(made, BROKEN)
    assert announced(made) == [(FAILING, 3, NOW - 50)]
    made = bench(health=Health(7, NOW - 50, announced=True))
    attempt(made, OK)
    assert announced(made) == [(RECOVERED, 7, NOW - 50)]


def test_what_is_counted_is_not_overwritten_by_what_was_stored_before() -> None:
    made = bench()
    attempt(made, BROKEN)
    attempt(made, BROKEN)
    made.configure(endpoint(max_in_flight=3))
    attempt(made, BROKEN)
    assert announced(made) == [(FAILING, 3, NOW)]


def test_days_of_nothing_but_failures_disable_the_endpoint_and_what_is_owed_to_it_waits_until_it_opens() -> None:
    made = bench()
    attempt(made, BROKEN)
    made.wait(99)
    attempt(made, BROKEN)
    assert made.engine.take_gone() == []
    made.wait(1)
    attempt(made, BROKEN)
    [gone] = made.engine.take_gone()
    assert (gone.tenant_id, gone.endpoint_id) == (TENANT, E1)
    assert gone.reason.startswith("nothing but failures for ")
    made.configure(endpoint(status=EndpointStatus.DISABLED))
    made.settle()
    made.post()
    assert made.sends() == []
    part = made.settle()
    assert [change.reason for change in part.upserts.values()] == ["disabled"]
    assert part.dead == []
    # Opened again, it starts anew: the first failure does not close it at once.
    made.configure(endpoint())
    attempt(made, BROKEN)
    assert made.engine.take_gone() == []
    assert made.engine.take_health() == {E1: Health(1, made.now, announced=True)}


@pytest.mark.parametrize("moved", [True, False])
def test_an_endpoint_that_moves_begins_anew(moved: bool) -> None:
    made = bench()
    attempt(made, BROKEN)
    made.wait(100)
    made.configure(endpoint(url="https://elsewhere.example/") if moved else endpoint())
    attempt(made, BROKEN)
    assert len(made.engine.take_gone()) == (0 if moved else 1)


def test_a_410_says_why_the_endpoint_is_disabled() -> None:
    made = bench()
    attempt(made, GONE)
    assert [gone.reason for gone in made.engine.take_gone()] == ["it answered 410 Gone"]
