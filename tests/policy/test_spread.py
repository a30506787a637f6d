"""When a tenant gets more home shards, and when fewer."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import pytest

from hookpost.policy.spread import CALM_S, Bounds, Load, Watch, judge, loads

BOUNDS = Bounds(depth=1000.0, rate=100.0)
CALM, DEEP, FAST = Load(0.0, 0.0), Load(1001.0, 0.0), Load(0.0, 101.0)


def looks(found: Iterable[Load], *, homes: int = 1, homes_max: int = 8, every_s: float = 10.0) -> list[int]:
    """The home shards after each look."""
    watch, now, history = Watch(), 0.0, []
    for load in found:
        watch, homes = judge(watch, load, homes=homes, homes_max=homes_max, bounds=BOUNDS, now=now)
        history.append(homes)
        now += every_s
    return history


@pytest.mark.parametrize(
    ("found", "history"),
    [
        ([CALM, CALM, CALM], [1, 1, 1]),
        ([DEEP, CALM, DEEP, CALM], [1, 1, 1, 1]),
        ([DEEP, DEEP, DEEP, DEEP], [1, 2, 2, 2]),
        ([FAST, FAST], [2, 2]),
        ([Load(0.0, 500.0)] * 4, [2, 4, 8, 8]),
        ([Load(5000.0, 0.0)] * 7, [1, 2, 2, 4, 4, 8, 8]),
        ([Load(1000.0, 100.0)] * 3, [1, 1, 1]),
    ],
)
def test_what_is_too_much_for_its_home_shards_doubles_them(found: list[Load], history: list[int]) -> None:
    assert looks(found) == history


def test_a_pool_that_has_no_more_is_the_end() -> None:
    assert looks([Load(0.0, 10_000.0)] * 4, homes_max=3) == [2, 3, 3, 3]
    assert looks([Load(0.0, 10_000.0)] * 2, homes=4, homes_max=3) == [4, 4]


def test_an_hour_far_below_halves_them_and_no_less() -> None:
    below = round(CALM_S / 10)
    history = looks([CALM] * (2 * below + 10), homes=4)
    assert history[:below] == [4] * below
    assert history[below] == 2
    assert history[2 * below + 1] == 1
    assert history[-1] == 1


def test_a_single_look_that_is_not_far_below_begins_the_hour_anew() -> None:
    below = round(CALM_S / 10)
    found = [CALM] * (below - 1) + [Load(0.0, 60.0)] + [CALM] * (below - 1)
    assert set(looks(found, homes=4)) == {4}


def test_halving_never_leads_straight_back() -> None:
    for rate in range(0, 800, 5):
        after = looks([Load(0.0, float(rate))] * (round(CALM_S / 10) + 2), homes=8)
        assert sorted(after, reverse=True) == after


def test_a_tenants_load_is_its_part_of_what_its_shards_hold() -> None:
    a, b = UUID(int=1), UUID(int=2)
    shares = {0: {a: 0.25, b: 0.75}, 1: {a: 1.0}}
    assert loads({0: 100.0, 1: 10.0}, {0: 8.0}, shares) == {a: Load(35.0, 2.0), b: Load(75.0, 6.0)}
    assert loads({}, {}, {}) == {}
