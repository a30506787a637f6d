"""Which rollups are read: coarse where they are whole, fine for the rest, nothing twice and nothing left out."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from hookpost.policy.grains import FINER, Grain, Piece, Reach, grain_of, needed, pieces

M, HH, H, Q, D = sorted(Grain)
INF = float("inf")
DAY = 86_400.0
# On day 100 at 13:40, with minutes and half hours of two days, hours of ninety.
NOW = 100 * DAY + 13 * 3600 + 40 * 60
REACH = {
    M: Reach(98 * DAY, INF),
    HH: Reach(98 * DAY, 100 * DAY + 13.5 * 3600),
    H: Reach(10 * DAY, 100 * DAY + 13 * 3600),
    Q: Reach(10 * DAY, 100 * DAY + 12 * 3600),
    D: Reach(-INF, 100 * DAY),
}


def test_each_grain_divides_the_next() -> None:
    assert all(coarse % fine == 0 for fine, coarse in pairwise(sorted(Grain)))
    assert FINER == {HH: M, H: HH, Q: H, D: Q}


@pytest.mark.parametrize(
    ("step_s", "grain"), [(60, M), (600, M), (1800, HH), (5400, HH), (3600, H), (10_800, H), (43_200, Q), (86_400, D)]
)
def test_the_grain_of_a_step_is_the_coarsest_that_it_is_made_of(step_s: int, grain: Grain) -> None:
    assert grain_of(step_s) is grain


def test_a_month_is_read_by_the_day_and_the_rest_by_ever_finer_grains() -> None:
    assert pieces(70 * DAY, NOW, D, REACH) == [
        Piece(D, 70 * DAY, 100 * DAY),
        Piece(Q, 100 * DAY, 100 * DAY + 12 * 3600),
        Piece(H, 100 * DAY + 12 * 3600, 100 * DAY + 13 * 3600),
        Piece(HH, 100 * DAY + 13 * 3600, 100 * DAY + 13.5 * 3600),
        Piece(M, 100 * DAY + 13.5 * 3600, NOW),
    ]


def test_minutes_are_read_where_minutes_are_asked_for_or_nothing_else_is_built() -> None:
    assert pieces(NOW - 3600, NOW, M, REACH) == [Piece(M, NOW - 3600, NOW)]
    unbuilt = {grain: Reach(-INF, INF if grain is M else -INF) for grain in Grain}
    assert pieces(0.0, NOW, D, unbuilt) == [Piece(M, 0.0, NOW)]


@pytest.mark.parametrize(
    ("start", "grain"), [(NOW, M), (98 * DAY, M), (98 * DAY - 60, H), (10 * DAY - 60, D), (0.0, D)]
)
def test_of_a_time_long_ago_the_finest_grain_that_is_kept_is_told(start: float, grain: Grain) -> None:
    assert needed(start, REACH) is grain


def test_an_end_within_what_is_gone_is_that_of_the_coarser_bucket() -> None:
    assert pieces(50 * DAY, 50 * DAY + 1800, H, REACH) == [Piece(H, 50 * DAY, 50 * DAY + 3600)]
    assert pieces(99 * DAY, 99 * DAY + 5400, H, REACH) == [
        Piece(H, 99 * DAY, 99 * DAY + 3600),
        Piece(HH, 99 * DAY + 3600, 99 * DAY + 5400),
    ]


def test_pieces_cover_every_minute_once_and_begin_where_their_grain_does() -> None:
    rng = Random(5)
    for _ in range(2_000):
        grain = rng.choice(list(Grain))
        start = max(rng.randrange(98 * 1440, 100 * 1440) * 60 // grain * grain, 98 * DAY)
        end = start + rng.randrange(1, 3 * 1440) * 60
        found = pieces(start, end, grain, REACH)
        assert [found[0].since, *(piece.until for piece in found)] == [*(piece.since for piece in found), end]
        for piece in found:
            assert piece.since % piece.grain == 0
            assert piece.grain <= grain
            assert piece.since >= REACH[piece.grain].kept_from
            assert piece.until <= REACH[piece.grain].built_until
