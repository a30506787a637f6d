"""Token buckets: the bound over any window, saturation, changes, debt. All in virtual time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.policy.rate import TokenBucket

START = 1_800_000_000.0
RATES = st.floats(0.01, 10_000, allow_nan=False)
# Seconds until the next try and how many tokens it asks for.
TRIES = st.lists(st.tuples(st.one_of(st.just(0.0), st.floats(0, 5)), st.integers(1, 3)), max_size=200)


def size(rate: float) -> float:
    return max(1.0, rate)


def most_in_a_window(taken: list[tuple[float, int]], allowed: float, rate: float) -> bool:
    """Does any window between two takes hold more than rate * w + allowed?"""
    for first, (since, _) in enumerate(taken):
        total = 0
        for at, tokens in taken[first:]:
            total += tokens
            if total > rate * (at - since) + allowed + 1e-6 * max(1.0, total, rate):
                return True
    return False


@given(RATES, TRIES)
def test_no_window_holds_more_than_its_time_and_one_bucket(rate: float, tries: list[tuple[float, int]]) -> None:
    bucket = TokenBucket(rate, since=0.0)
    now, taken = 0.0, []
    for wait_s, tokens in tries:
        now += wait_s
        # More at once than it ever holds is let in on credit; that is another claim.
        if tokens <= size(rate) and bucket.take(now=now, tokens=tokens) == 0:
            taken.append((now, tokens))
    assert not most_in_a_window(taken, size(rate), rate)


@given(RATES, st.floats(0, 3600))
def test_a_new_one_is_empty(rate: float, since: float) -> None:
    bucket = TokenBucket(rate, since=since)
    assert bucket.left(now=since) == 0
    assert bucket.take(now=since) == pytest.approx(1 / rate)
    assert not bucket.is_full(now=since)
    assert bucket.is_full(now=since + 2 * size(rate) / rate)


@pytest.mark.parametrize("rate", [0.05, 0.7, 1.0, 3.0, 50.0, 999.0])
def test_a_saturated_one_gives_its_rate_within_one_percent(rate: float) -> None:
    bucket, now, taken = TokenBucket(rate, since=START), START, 0
    end = START + max(10.0, 1000 / rate)
    while now < end:
        wait_s = bucket.take(now=now)
        taken += wait_s == 0
        assert wait_s == 0 or now + wait_s > now, "a wait that does not end"
        now += wait_s
    assert taken == pytest.approx(rate * (end - START), rel=0.01, abs=1)


@given(RATES, st.integers(1, 5))
def test_who_waits_as_long_as_told_gets_it(rate: float, tokens: int) -> None:
    bucket = TokenBucket(rate, since=0.0)
    wait_s = bucket.take(now=0.0, tokens=tokens)
    assert wait_s > 0
    assert bucket.take(now=wait_s * (1 + 1e-9), tokens=tokens) == 0


@given(st.floats(0.1, 100), st.integers(2, 50))
def test_more_than_it_ever_holds_is_paid_for_afterwards(rate: float, times: int) -> None:
    bucket = TokenBucket(rate, since=0.0)
    tokens = math.ceil(size(rate)) * times
    full_at = size(rate) / rate
    assert bucket.take(now=full_at * 0.5, tokens=tokens) == pytest.approx(full_at * 0.5)
    assert bucket.take(now=full_at * 1.001, tokens=tokens) == 0
    assert bucket.left(now=full_at * 1.001) == pytest.approx(size(rate) - tokens)
    assert bucket.take(now=full_at * 1.001) == pytest.approx((1 + tokens - size(rate)) / rate)


def test_a_change_keeps_what_is_in_it_as_far_as_it_holds_so_much() -> None:
    bucket = TokenBucket(10.0, since=0.0)
    bucket.change(2.0, now=100.0)
    assert bucket.left(now=100.0) == 2.0
    bucket.change(50.0, now=100.0)
    assert bucket.left(now=100.0) == 2.0
    assert bucket.left(now=100.5) == 27.0
    bucket.change(0.5, now=100.5)
    assert bucket.left(now=100.5) == 1.0


@given(st.lists(st.tuples(st.floats(0.01, 50), st.floats(0, 2)), min_size=1, max_size=50))
def test_over_changes_no_more_comes_out_than_the_rates_allow(changes: list[tuple[float, float]]) -> None:
    bucket, now, taken, allowed = TokenBucket(1.0, since=0.0), 0.0, 0, 0.0
    rate = 1.0
    for next_rate, wait_s in changes:
        now += wait_s
        allowed += rate * wait_s
        while taken <= allowed + 1 and bucket.take(now=now) == 0:
            taken += 1
        bucket.change(next_rate, now=now)
        rate = next_rate
    assert taken <= allowed + 0.02


def test_what_is_given_back_can_be_taken_again_and_no_more_than_it_holds() -> None:
    bucket = TokenBucket(2.0, since=0.0)
    assert bucket.take(now=10.0, tokens=2) == 0
    bucket.give_back(1)
    assert bucket.left(now=10.0) == 1.0
    bucket.give_back(5)
    assert bucket.left(now=10.0) == 2.0
    assert bucket.is_full(now=10.0)


def test_time_that_goes_back_fills_nothing() -> None:
    bucket = TokenBucket(1.0, since=100.0)
    assert bucket.left(now=50.0) == 0.0
    assert bucket.left(now=100.5) == 0.5
    assert bucket.left(now=100.2) == 0.5
