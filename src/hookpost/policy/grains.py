"""Which rollups to read for a span of time: the coarsest that are whole, so that a month is not read by the minute.

Each grain holds everything, from when it is kept to when it is built. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from math import ceil
from typing import NamedTuple


class Grain(IntEnum):
    """How long the time is that a rollup stands for, in seconds. Each divides the next."""

    MINUTE = 60
    HALF_HOUR = 1_800
    HOUR = 3_600
    QUARTER_DAY = 21_600
    DAY = 86_400

    @property
    def words(self) -> str:
        """As a person says it."""
        return self.name.lower().replace("_", " ")


FINER: Mapping[Grain, Grain] = {coarse: fine for fine, coarse in pairwise(sorted(Grain))}
"""What each grain is added up from."""


@dataclass(frozen=True, slots=True)
class Reach:
    """From when to before when (Unix seconds) a grain tells of everything; what is counted later is added to it."""

    kept_from: float
    built_until: float


class Piece(NamedTuple):
    """Rollups of one grain in [since, until)."""

    grain: Grain
    since: float
    until: float


def grain_of(step_s: int) -> Grain:
    """The coarsest grain that steps of so many seconds (a multiple of 60) are made of."""
    return next(grain for grain in sorted(Grain, reverse=True) if step_s % grain == 0)


def needed(start: float, reach: Mapping[Grain, Reach]) -> Grain:
    """The finest grain that is still kept of a time."""
    return next((grain for grain in sorted(Grain) if start >= reach[grain].kept_from), Grain.DAY)


def pieces(start: float, end: float, grain: Grain, reach: Mapping[Grain, Reach]) -> list[Piece]:
    """[start, end) in rollups no coarser than ``grain``, which ``start`` is a multiple of; ``end`` is one of minutes.

    An end within a bucket whose parts are gone is that bucket's.
    """
    found: list[Piece] = []
    at = start
    for each in sorted((g for g in Grain if g <= grain), reverse=True):
        until = min(_end(end, each, reach), reach[each].built_until)
        if until > at:
            found.append(Piece(each, at, until))
            at = until
    return found


def _end(end: float, grain: Grain, reach: Mapping[Grain, Reach]) -> float:
    if grain not in FINER:
        return end
    parts_are_gone = end < reach[FINER[grain]].kept_from
    return (ceil(end / grain) if parts_are_gone else end // grain) * grain
