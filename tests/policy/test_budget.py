"""The retry budget: its size, refunds, the window that slides, fair shares. All in virtual time."""

from __future__ import annotations

from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.policy.budget import WINDOW_S, BudgetPolicy, RetryBudget

NOW = 1_800_000_000.0
TENANTS = [UUID(int=number) for number in range(1, 40)]
A, B, C, D = TENANTS[:4]


def budget(*, part: float = 0.2, floor: int = 600, attempts: int = 0) -> RetryBudget:
    made = RetryBudget(BudgetPolicy(part, floor))
    if attempts:
        made.count(attempts, now=NOW)
    return made


def fail(made: RetryBudget, tenant_id: UUID, *, now: float = NOW, most: int = 10_000) -> int:
    """Retries of this tenant start and fail for as long as they are admitted; how many."""
    failed = 0
    while failed < most and made.admits(tenant_id, now=now):
        made.start(tenant_id)
        made.end(tenant_id, failed=True, now=now)
        failed += 1
    return failed


@pytest.mark.parametrize(
    ("attempts", "workers", "size"),
    [
        (0, 1, 600),
        (2999, 1, 600),
        (3000, 1, 600),
        (3005, 1, 601),
        (100_000, 1, 20_000),
        (0, 7, 86),
        (0, 0, 600),
        (5000, 4, 1000),
    ],
)
def test_it_is_a_part_of_the_attempts_and_at_least_an_equal_share_of_the_floor(
    attempts: int, workers: int, size: int
) -> None:
    made = budget(attempts=attempts)
    made.workers = workers
    assert made.size(now=NOW) == size


def test_the_shares_of_the_floor_are_never_less_than_the_floor_and_at_most_one_more_each() -> None:
    for workers in range(1, 50):
        made = budget(floor=100)
        made.workers = workers
        assert 100 <= workers * made.size(now=NOW) < 100 + workers


def test_no_more_retries_may_fail_than_it_holds() -> None:
    made = budget(floor=20)
    failed = sum(fail(made, tenant_id) for tenant_id in TENANTS)
    assert failed == 20
    assert made.free(now=NOW) == 0
    assert not made.admits(UUID(int=99), now=NOW)


def test_a_retry_under_way_takes_its_part_until_it_has_ended() -> None:
    made = budget(floor=4)
    made.start(A)
    made.start(A)
    assert (made.free(now=NOW), made.admits(A, now=NOW)) == (2, False)
    made.end(A, failed=False, now=NOW)
    assert (made.free(now=NOW), made.admits(A, now=NOW)) == (3, True)


def test_successes_cost_nothing() -> None:
    made = budget(floor=1)
    for _ in range(1000):
        assert made.admits(A, now=NOW)
        made.start(A)
        made.end(A, failed=False, now=NOW)
    assert made.free(now=NOW) == 1


def test_a_failure_is_forgotten_after_a_minute_and_not_before() -> None:
    """Kept by the second, it was forgotten up to a second too early: 59.1 s held two budgets."""
    made = budget(floor=1)
    assert fail(made, A, now=NOW + 0.9) == 1
    assert not made.admits(A, now=NOW + WINDOW_S + 0.89)
    assert made.admits(A, now=NOW + WINDOW_S + 1)


def test_attempts_count_for_a_minute() -> None:
    made = budget(floor=1, attempts=100)
    assert made.size(now=NOW + WINDOW_S - 1) == 20
    assert made.size(now=NOW + WINDOW_S) == 1


def test_a_retry_that_takes_longer_than_the_window_still_counts_from_when_it_fails() -> None:
    made = budget(floor=1)
    made.start(A)
    assert not made.admits(A, now=NOW + 200)
    made.end(A, failed=True, now=NOW + 200)
    assert not made.admits(A, now=NOW + 200 + WINDOW_S - 1)
    assert made.admits(A, now=NOW + 200 + WINDOW_S + 1)


def test_an_idle_year_leaves_no_books_behind() -> None:
    made = budget(floor=10)
    fail(made, A)
    assert made.free(now=NOW + 365 * 86_400) == 10
    assert len(made._window) == 1


# ---- fair by tenant -------------------------------------------------------------------------------------------------


def test_one_tenant_alone_leaves_a_share_for_the_next() -> None:
    made = budget(floor=600)
    assert fail(made, A) == 300


def test_a_newcomer_finds_some_however_many_have_had_their_shares() -> None:
    """Each took its share of what there was when it came, 1/2 + 1/3 + 1/4: the fourth found nothing left."""
    made = budget(floor=600)
    for tenant_id in TENANTS[:20]:
        assert fail(made, tenant_id) > 0


def test_tenants_that_keep_failing_come_to_equal_shares() -> None:
    made = budget(floor=600)
    for second in range(5 * WINDOW_S):
        for tenant_id in (A, B, C):
            fail(made, tenant_id, now=NOW + second, most=50)
    assert {made._used_by[tenant_id] for tenant_id in (A, B, C)} == {150}


def test_a_tenant_that_has_its_share_gets_no_more_however_much_is_free() -> None:
    made = budget(floor=600)
    fail(made, A)
    assert made.free(now=NOW) == 300
    assert not made.admits(A, now=NOW)
    assert made.admits(B, now=NOW)


def test_a_tenant_whose_failures_are_forgotten_has_no_share_any_more() -> None:
    made = budget(floor=600)
    fail(made, A)
    assert fail(made, B, now=NOW + WINDOW_S + 1) == 300


# ---- always ---------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "fail", "succeed", "count"]),
        st.integers(0, 4),
        st.one_of(st.just(0.0), st.floats(0, 3), st.floats(50, 70)),
    ),
    max_size=200,
)


@given(STEPS, st.integers(1, 12))
def test_in_no_minute_do_more_retries_fail_than_it_held_when_the_last_of_them_started(
    steps: list[tuple[str, int, float]], floor: int
) -> None:
    made, now = RetryBudget(BudgetPolicy(0.2, floor)), NOW + 0.9
    under_way: list[tuple[UUID, int]] = []
    failed: list[tuple[float, int]] = []
    for step, number, wait_s in steps:
        now += wait_s
        match step:
            case "start":
                size = made.size(now=now)
                if made.admits(TENANTS[number], now=now):
                    made.start(TENANTS[number])
                    under_way.append((TENANTS[number], size))
            case "fail" if under_way:
                tenant_id, size = under_way.pop(0)
                made.end(tenant_id, failed=True, now=now)
                failed.append((now, size))
            case "succeed" if under_way:
                made.end(under_way.pop()[0], failed=False, now=now)
            case _:
                made.count(10 * number, now=now)
    for at, _ in failed:
        minute = [size for moment, size in failed if at <= moment < at + WINDOW_S]
        assert len(minute) <= max(minute)


@given(STEPS)
def test_what_it_has_lent_is_what_is_under_way_and_what_has_failed_lately(steps: list[tuple[str, int, float]]) -> None:
    made, now = budget(floor=50), NOW
    under_way: list[UUID] = []
    for step, number, wait_s in steps:
        now += wait_s
        if step == "start" and made.admits(TENANTS[number], now=now):
            made.start(TENANTS[number])
            under_way.append(TENANTS[number])
        elif under_way and step in ("fail", "succeed"):
            made.end(under_way.pop(0), failed=step == "fail", now=now)
        made.free(now=now)
        assert made._used == sum(made._used_by.values()) >= len(under_way)
        assert all(first[0] < second[0] for first, second in pairwise(made._window))
        assert len(made._window) <= WINDOW_S + 1, "one book a second, and that of the second it begins in"
