"""Latency buckets: fixed bounds, exact sums, estimates whose error is known."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from hookpost.policy.latency import LOWS, RELATIVE_ERROR, bucket_high, bucket_low, quantile


def test_the_bounds_are_those_that_are_stored_for_ever() -> None:
    assert LOWS[:24] == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 19, 23, 27, 32, 38, 45, 54, 64, 76, 91, 108)
    assert LOWS[61:65] == (77_936, 92_682, 110_218, 131_072)
    assert LOWS[-1] == 2**30
    assert len(LOWS) == 117


@pytest.mark.parametrize(
    ("latency_ms", "low_ms"), [(-5, 0), (0, 0), (1, 1), (9, 8), (10, 10), (14, 13), (2**31, 2**30)]
)
def test_a_latency_falls_into_the_bucket_that_begins_at_or_below_it(latency_ms: int, low_ms: int) -> None:
    assert bucket_low(latency_ms) == low_ms


def test_buckets_leave_no_gap() -> None:
    for low, following in pairwise(LOWS):
        assert bucket_high(low) == following - 1
        assert bucket_low(following - 1) == low


def test_an_estimate_is_off_by_no_more_than_it_says() -> None:
    of_all = (value for low in LOWS[1:] for value in (low - 1, low))
    for latency_ms in (*range(20_000), *of_all):
        found = quantile([(bucket_low(latency_ms), 1)], 0.5)
        assert found is not None
        assert found.low_ms <= latency_ms <= found.high_ms
        assert abs(found.estimate_ms - latency_ms) <= found.relative_error * max(latency_ms, 1) * (1 + 1e-12)
        assert found.relative_error <= RELATIVE_ERROR


@pytest.mark.parametrize("part", [0.5, 0.95, 0.99, 1.0])
def test_a_quantile_lies_in_the_bucket_of_the_true_one(part: float) -> None:
    rng = Random(7)
    for size in (1, 2, 3, 10, 100, 999):
        latencies = sorted(int(rng.lognormvariate(4, 1.5)) for _ in range(size))
        counts: dict[int, int] = {}
        for latency_ms in latencies:
            counts[bucket_low(latency_ms)] = counts.get(bucket_low(latency_ms), 0) + 1
        true = latencies[max(1, -int(-part * size // 1)) - 1]
        found = quantile(counts.items(), part)
        assert found is not None
        assert found.low_ms == bucket_low(true)


def test_of_nothing_there_is_no_quantile() -> None:
    assert quantile([], 0.5) is None
