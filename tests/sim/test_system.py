"""The whole system under seeded chaos, judged by what happened alone (tests/sim/checkers)."""

from __future__ import annotations

import pytest

from tests.sim.checkers import CHECKERS, broken
from tests.sim.mutants import MUTANTS, convict
from tests.sim.system.trace import Accepted, Settled, Trace
from tests.sim.system.world import live

SEEDS = range(5)
# Cheap to find, and of many kinds; `make mutants` tries all of them.
IN_EVERY_RUN = ("ingest_answers_202_though_the_store_failed", "the_fence_is_not_checked", "a_bucket_is_never_empty")


def judged(seed: int) -> Trace:
    try:
        trace = live(seed)
        assert broken(trace) == {}
    except BaseException as error:
        error.add_note(f"replay it: make sim SEED={seed}")
        raise
    return trace


@pytest.mark.parametrize("seed", SEEDS)
def test_the_system_keeps_its_promises(seed: int) -> None:
    trace = judged(seed)
    assert any(trace.of(Accepted)) and any(trace.of(Settled))


@pytest.mark.parametrize("name", IN_EVERY_RUN)
def test_the_fault_is_found(name: str) -> None:
    assert convict(name) is not None


def test_each_checker_has_a_fault_that_it_must_find() -> None:
    assert {checker for mutant in MUTANTS.values() for checker in mutant.by} == set(CHECKERS)
