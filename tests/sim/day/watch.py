"""What is counted while a fleet's workers live: requests, what waits, and how long each delivery took."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from uuid import UUID

from tests.engine.driver import START

# Sixteen buckets for a doubling: a quantile is told to 4.4 %.
FINENESS = 16
_SCALE = FINENESS / math.log(2.0)
# A delay is at least so long: a tenth of a millisecond.
_LEAST_S = 1e-4

Point = tuple[float, float]


class Delays:
    """Delays in seconds, in buckets that double."""

    __slots__ = ("buckets", "count", "most")

    def __init__(self) -> None:
        self.buckets: Counter[int] = Counter()
        self.count = 0
        self.most = 0.0

    def add(self, delay_s: float) -> None:
        """One more."""
        self.buckets[math.ceil(math.log(max(delay_s, _LEAST_S) / _LEAST_S) * _SCALE)] += 1
        self.count += 1
        self.most = max(self.most, delay_s)

    def quantile(self, part: float) -> float:
        """So many of them took no longer; never less than the true value, nor more than the longest."""
        left = part * self.count
        for bucket in sorted(self.buckets):
            left -= self.buckets[bucket]
            if left <= 0:
                return min(self.most, _LEAST_S * math.exp(bucket / _SCALE))
        return self.most


class Watch:
    """Adds up what the sampled workers do. Times are seconds from the start, ``bin_s`` apart. ``phase`` names a time of
    acceptance; ``lived``: requests count that start then."""

    def __init__(
        self, *, bin_s: float, phase: Callable[[float], str], lived: Callable[[float], bool] = lambda at: True
    ) -> None:
        self.bin_s = bin_s
        self._phase = phase
        self._lived = lived
        self.sent: dict[str, Counter[int]] = defaultdict(Counter)
        self.failed: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.gauges: dict[str, Counter[int]] = defaultdict(Counter)
        # By group and time of delivery; by phase of acceptance and group; by phase and tenant of each worker.
        self.over_time: dict[str, dict[int, Delays]] = defaultdict(lambda: defaultdict(Delays))
        self.by_phase: dict[tuple[str, str], Delays] = defaultdict(Delays)
        self.by_tenant: dict[tuple[str, int, UUID], Delays] = defaultdict(Delays)
        # Requests to receivers that are back, by the second since each of them answered first.
        self.ramp: Counter[int] = Counter()

    def request(self, group: str, now: float, back_at: float) -> None:
        """A request starts; its receiver answers again since ``back_at``, if it was away."""
        if not self._lived(now - START):
            return
        self.sent[group][int(now - START)] += 1
        if back_at:
            self.ramp[int(now - back_at)] += 1

    @property
    def attempts(self) -> int:
        """Requests in all."""
        return sum(map(Counter.total, self.sent.values()))

    def arrived(self, group: str, worker: int, tenant_id: UUID, created_at: float, at: float) -> None:
        """A delivery was accepted and is delivered now."""
        self.delivered[group] += 1
        delay_s, phase = at - created_at, self._phase(created_at - START)
        self.over_time[group][int((at - START) / self.bin_s)].add(delay_s)
        self.by_phase[phase, group].add(delay_s)
        self.by_tenant[phase, worker, tenant_id].add(delay_s)

    def gauge(self, now: float, **values: float) -> None:
        """How much there is of something now."""
        for name, value in values.items():
            self.gauges[name][int((now - START) / self.bin_s)] += round(value)

    def series(self, name: str, scale: float) -> list[Point]:
        """A gauge over time."""
        return [(index * self.bin_s, count * scale) for index, count in sorted(self.gauges[name].items())]

    def requests(
        self, groups: Iterable[str], scale: float, *, first: float = 0.0, last: float = math.inf
    ) -> list[Point]:
        """Requests a second, by bins, within a time."""
        bins: Counter[int] = Counter()
        for group in groups:
            for second, count in self.sent[group].items():
                if first <= second < last:
                    bins[int(second / self.bin_s)] += count
        if not bins:
            return []
        return [(i * self.bin_s, bins[i] * scale / self.bin_s) for i in range(min(bins), max(bins) + 1)]

    def quantiles(self, group: str, part: float) -> list[Point]:
        """Of the delays of what was delivered in each bin."""
        return [(index * self.bin_s, found.quantile(part)) for index, found in sorted(self.over_time[group].items())]

    def worst_tenant(self, phase: str, tenants: set[tuple[int, UUID]], *, least: int = 100) -> float:
        """The largest of these tenants' 99th percentiles, of those with enough deliveries to speak of one."""
        found = (self.by_tenant[phase, *each] for each in tenants)
        return max((delays.quantile(0.99) for delays in found if delays.count >= least), default=0.0)
