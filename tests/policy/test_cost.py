"""The cost formula, term by term."""

from __future__ import annotations

import pytest

from hookpost.policy.cost import HOURS_A_MONTH, Measured, Prices, monthly

HOUR_S, DAY_S = 3600.0, 86_400.0
PRICES = Prices(
    worker_cost_per_hour=0.05,
    requests_per_worker=1.0,
    storage_cost_per_gb_month=0.1,
    egress_cost_per_gb=0.09,
    retention_days=30.0,
)


def test_compute_is_pace_times_duration_times_price_of_an_hour() -> None:
    # 100 attempts a second of 200 ms each keep twenty workers busy that wait for every answer.
    measured = Measured(attempts=360_000, total_ms=360_000 * 200, request_bytes=0, response_bytes=0)
    cost = monthly(measured, PRICES, seconds=HOUR_S, attempt_row_bytes=0)
    assert cost.compute == pytest.approx(100 * 200 / 1000 * 0.05 * HOURS_A_MONTH)
    many = Prices(worker_cost_per_hour=0.05, requests_per_worker=500.0)
    assert monthly(measured, many, seconds=HOUR_S, attempt_row_bytes=0).compute == pytest.approx(cost.compute / 500)


def test_storage_is_row_size_times_attempts_times_days_kept() -> None:
    measured = Measured(attempts=1_000_000, total_ms=0, request_bytes=0, response_bytes=0)
    cost = monthly(measured, PRICES, seconds=DAY_S, attempt_row_bytes=500)
    assert cost.storage == pytest.approx(500 * 1_000_000 * 30 / 1e9 * 0.1)
    assert (cost.compute, cost.egress) == (0, 0)


def test_egress_is_bytes_both_ways_times_price_of_a_gb() -> None:
    measured = Measured(attempts=1000, total_ms=0, request_bytes=3 * 10**9, response_bytes=10**9)
    cost = monthly(measured, PRICES, seconds=HOURS_A_MONTH * HOUR_S, attempt_row_bytes=0)
    assert cost.egress == pytest.approx(4 * 0.09)


def test_the_total_is_all_parts_and_parts_of_attempts_add_up() -> None:
    first = Measured(10, 5_000, 700, 300)
    rest = Measured(90, 45_000, 6_300, 2_700)
    whole = Measured(100, 50_000, 7_000, 3_000)
    costs = [monthly(each, PRICES, seconds=60.0, attempt_row_bytes=600) for each in (first, rest, whole)]
    assert costs[0].total + costs[1].total == pytest.approx(costs[2].total)
    assert costs[2].total == costs[2].compute + costs[2].storage + costs[2].egress


def test_nothing_costs_nothing() -> None:
    assert monthly(Measured(0, 0, 0, 0), PRICES, seconds=1.0, attempt_row_bytes=600).total == 0
