"""Latency buckets: fixed for ever, so that counts of any two minutes, endpoints or years add up exactly.

Bounds are the whole milliseconds next to 2^(n/4): four buckets for each doubling. A quantile is estimated by the value
that is least wrong for everything in its bucket; how wrong, at most, is known of each bucket and bounded for all by
``RELATIVE_ERROR``. Rollups store a bucket's least latency, not its number: they mean the same whatever is added here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

_STEPS_PER_DOUBLING = 4
# No attempt takes longer than some minutes, but retries go on for days: 2^30 ms are 12 of them. What is longer all the
# same falls into the last bucket.
_DOUBLINGS = 30

LOWS: tuple[int, ...] = (
    0,
    *sorted({round(2 ** (n / _STEPS_PER_DOUBLING)) for n in range(_DOUBLINGS * _STEPS_PER_DOUBLING + 1)}),
)
"""The least latency of each bucket, in milliseconds."""

_HIGHS: dict[int, int] = {low: following - 1 for low, following in pairwise(LOWS)}

RELATIVE_ERROR = 0.087
"""An estimate is off by this part of the true value at most, but for latencies beyond the last bound."""


@dataclass(frozen=True, slots=True)
class Quantile:
    """An estimate, and between which values the true one lies, in milliseconds."""

    estimate_ms: float
    low_ms: int
    high_ms: int

    @property
    def relative_error(self) -> float:
        """By which part of the true value the estimate may be off."""
        spread = self.high_ms + self.low_ms
        return (self.high_ms - self.low_ms) / spread if spread else 0.0


def bucket_low(latency_ms: int) -> int:
    """The least latency of the bucket that a latency falls into; a negative one counts as 0."""
    return LOWS[bisect_right(LOWS, max(latency_ms, 0)) - 1]


def bucket_high(low_ms: int) -> int:
    """The greatest latency of the bucket that begins there; of the last one its beginning, as it has no end."""
    return _HIGHS.get(low_ms, low_ms)


def quantile(counts: Iterable[tuple[int, int]], part: float) -> Quantile | None:
    """The latency that ``part`` of all attempts do not exceed; ``counts`` by the least latency of their bucket."""
    ordered = sorted(counts)
    rank = max(1, ceil(part * sum(count for _, count in ordered)))
    for low_ms, count in ordered:
        rank -= count
        if rank <= 0:
            return _estimate(low_ms, bucket_high(low_ms))
    return None


def _estimate(low_ms: int, high_ms: int) -> Quantile:
    """The harmonic mean is as far from both ends, as a part of each."""
    spread = low_ms + high_ms
    return Quantile(2 * low_ms * high_ms / spread if spread else 0.0, low_ms, high_ms)
