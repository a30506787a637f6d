"""A worker's clock never goes back: when the database's is set back by twenty seconds, it stands for twenty seconds (ADR 32).

All that happens then happens at one moment, and still what waited before a recovery is told from what failed behind it.
"""

from __future__ import annotations

import pytest

from hookpost.model import Endpoint, EndpointStatus, Outcome, RetryPolicy, WaitReason
from tests.engine.test_engine_cases import BROKEN, OK, Bench, endpoint
from tests.engine.test_gates import PAUSE_OVER_S, Shelf, answer_probes, break_it, shelved

PAUSED = endpoint(status=EndpointStatus.PAUSED)
ROUNDS = 8


def all_that_goes_now(bench: Bench, shelf: Shelf, *outcomes: Outcome) -> list[int]:
    """What is sent while the clock stands, answered with these outcomes and then with the last one for ever: no moment
    passes between one round and the next."""
    sent: list[int] = []
    for _ in range(ROUNDS):
        for work in bench.sends():
            bench.end(work, outcomes[min(len(sent), len(outcomes) - 1)])
            sent.append(work.entry.seq)
        if bench.engine.unsettled:
            shelf.settle()
        shelf.fetch()
    return sent


@pytest.mark.parametrize("config", [endpoint(), endpoint(ordered=True)], ids=["unordered", "ordered"])
def test_what_fails_behind_a_recovery_keeps_its_schedule(config: Endpoint) -> None:
    bench, shelf = shelved(PAUSED)
    bench.post()
    bench.sends()
    shelf.settle()
    bench.configure(config)
    assert all_that_goes_now(bench, shelf, BROKEN) == [1]
    [row] = shelf.rows.values()
    assert (row.reason, row.retry_count) == (WaitReason.RETRY, 1)


def test_what_failed_behind_one_recovery_comes_forward_with_the_next() -> None:
    bench, shelf = shelved(PAUSED)
    bench.post()
    bench.sends()
    shelf.settle()
    for _ in range(3):
        bench.configure(endpoint())
        assert all_that_goes_now(bench, shelf, BROKEN) == [1]
        bench.configure(PAUSED)
    bench.configure(endpoint())
    assert all_that_goes_now(bench, shelf, OK) == [1]


def test_what_fails_behind_a_breaker_that_closes_keeps_its_schedule_and_what_waited_does_not() -> None:
    bench, shelf = shelved(endpoint(retry=RetryPolicy(base_s=10_000)))
    break_it(bench)
    bench.post(count=3)
    shelf.go_on()
    bench.wait(PAUSE_OVER_S)
    assert answer_probes(bench) == 1
    shelf.fetch()
    [probe] = bench.sends()
    bench.end(probe, OK)
    shelf.settle()
    first, *others = all_that_goes_now(bench, shelf, BROKEN, OK)
    assert sorted([probe.entry.seq, first, *others]) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [position for _, position in shelf.rows] == [first]
