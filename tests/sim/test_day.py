"""The stories of `make day`, small: some thousand deliveries of one worker in place of a fleet's billion."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from statistics import median

import pytest

from hookpost.policy.breaker import BreakerPolicy
from tests.sim.day.fleet import Fleet
from tests.sim.day.plots import Chart, Series, decades, short, svg, thin, ticks
from tests.sim.day.scenarios import Day, FullHour, Outage, Result, SameMoment

SEED = 3
SEEDS = (3, 4, 5)
# Nobody's 99th percentile may grow by more, whatever others go through (I16).
RATIO_MAX = 1.5
# The quantiles are those of buckets, and of few deliveries.
NOISE_S = 0.1


def drawn(result: Result) -> None:
    """All of its charts can be drawn, and are SVG."""
    assert result.charts
    for chart in result.charts.values():
        ET.fromstring(svg(chart))


def test_f20_a_mass_outage_costs_probes_is_not_noticed_by_others_and_drains_behind_a_ramp() -> None:
    outage = Outage(before_s=60.0, away_s=600.0, after_s=700.0)
    result = outage.live(Fleet(workers=1024, tenants_each=16), SEED)
    found = result.figures
    drawn(result)
    # That nothing is lost and nothing ends twice is judged within. What was sent in vain: the five failures that open a
    # breaker, what was under way then, and probes after 30, 90, 210 and 450 s at the earliest; retries of receivers that get too little
    # for five failures in a row.
    assert found["in_vain_a_receiver"] <= 30
    assert found["drained_s"] <= BreakerPolicy().pause_max_s + 60
    assert found["away_well_p99"] <= RATIO_MAX * found["before_well_p99"] + NOISE_S
    assert found["after_well_p99"] <= RATIO_MAX * found["before_well_p99"] + NOISE_S
    # Of 30 % that wait nothing else grows.
    assert found["growth_a_second"] == pytest.approx(0.3 * found["requests_before"], rel=0.25)


def test_a_herd_at_the_full_hour_is_taken_in_turns_and_drains_as_fast_as_the_core_allows() -> None:
    result = FullHour(before_s=20.0, burst_s=40.0, within_s=0.5, after_s=30.0).live(Fleet(), SEED)
    found = result.figures
    drawn(result)
    # Some 7,300 at once, 170 µs each, while the usual ones go on.
    assert found["drained_s"] <= 5.0
    assert found["herd_small_tenants_worst_p99"] <= found["herd_large_tenants_worst_p99"]
    assert found["after_p99"] <= RATIO_MAX * found["before_p99"] + NOISE_S
    assert found["attempts"] <= 1.01 * found["deliveries"]


def test_f24_when_all_holds_end_at_one_moment_none_was_undercut_and_all_that_waited_goes() -> None:
    result = SameMoment(before_s=30.0, held_s=90.0, after_s=60.0).live(Fleet(workers=256), SEED)
    found = result.figures
    drawn(result)
    assert found["undercut"] == 0
    assert found["drained_s"] <= 45.0
    # Whoever was under way when the first one was told, and the end of the five in a row.
    assert found["in_vain_a_receiver"] <= 10
    assert found["after_p99"] <= 30.0


def test_i16_a_hot_tenant_delays_none_of_its_neighbours() -> None:
    results = [Day(hot=0.02, lived_s=2.0, slot_s=10_800.0).live(Fleet(workers=256), seed) for seed in SEEDS]
    for result in results:
        drawn(result)
        assert result.figures["hot_rate"] > 5 * result.figures["plain_rate"]
        assert result.figures["deliveries"] == pytest.approx(1e9, rel=0.05)
        assert result.figures["attempts"] <= 1.05 * result.figures["deliveries"]
    # So few deliveries decide over a 99th percentile that with or without the hot tenant it is twice as much in some days.
    beside, plain = (median(result.figures[name] for result in results) for name in ("beside_hot_p99", "plain_p99"))
    assert beside <= RATIO_MAX * plain + NOISE_S


def test_the_same_seed_lives_the_same_day() -> None:
    story = FullHour(before_s=5.0, burst_s=20.0, within_s=1.0, after_s=5.0)
    first, second = (story.live(Fleet(workers=1024), SEED).figures for _ in range(2))
    assert first == second


def test_axes_have_round_numbers_and_thin_lines_keep_their_peaks() -> None:
    assert ticks(0.0, 108.0) == [0, 20, 40, 60, 80, 100]
    assert decades(0.02, 3.0) == [0.01, 0.1, 1.0, 10.0]
    assert [short(value) for value in (0, 0.05, 12_500, 3.25e6)] == ["0", "0.05", "12.5k", "3.25M"]
    points = [(float(x), 1.0 if x == 4321 else 0.0) for x in range(10_000)]
    assert len(thin(points)) <= 700
    assert (4321.0, 1.0) in thin(points)


def test_what_a_chart_says_cannot_break_out_of_it() -> None:
    text = svg(Chart("a < b & c", "<x>", "y", [Series("<script>", [(0.0, 1.0), (1.0, 2.0)])]))
    assert "<script>" not in text and ET.fromstring(text) is not None
