"""The page of metrics, as Prometheus reads it: figures of processes and of the platform (metrics.py) as text.

Apart from metrics.py because every process writes its figures down and few ever write the page: a worker under a
supervisor does not load the client library for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from hookpost import telemetry
from hookpost.metrics import DEAD, Platform, Snapshot, added, process_figures, snapshot
from hookpost.model import show_id
from hookpost.storage.contract import FiguresStore, PlatformFigures

# Tenants with figures of their own on the page, unless METRICS_TENANTS says otherwise.
TENANTS_MAX = 20
_PREFIX = "hookpost_"


class Metrics:
    """The page of metrics of a server. ``read``: the figures of its processes, by their names."""

    def __init__(self, platform: Platform, read: Callable[[], Mapping[str, Snapshot]]) -> None:
        self._platform = platform
        self._read = read

    async def page(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its media type: OpenMetrics for a client that asks for it, else Prometheus's text."""
        return render(self._read(), await self._platform.figures(), accept=accept, now=time.time())


def alone(
    store: FiguresStore,
    *,
    name: str = "hookpost",
    figures: Callable[[], Mapping[str, float]] = dict,
    tenants_max: int = TENANTS_MAX,
) -> Metrics:
    """The page of a process that belongs to no server of several."""

    def own() -> dict[str, Snapshot]:
        now = time.time()
        return {name: snapshot({**figures(), **process_figures()}, now=now)}

    return Metrics(Platform(store, tenants_max=tenants_max), own)


def render(
    processes: Mapping[str, Snapshot], platform: PlatformFigures | None, *, accept: str, now: float
) -> tuple[bytes, str]:
    """The text of a page and its media type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected([*_of_processes(processes, now), *_of_platform(platform)]))
    encode, media_type = exposition.choose_encoder(accept)
    return encode(registry), media_type


@dataclass(frozen=True, slots=True, eq=False)
class _Collected:
    """What the client library asks for when it writes a page."""

    families: list[Metric]

    def collect(self) -> list[Metric]:
        return self.families


def _of_processes(processes: Mapping[str, Snapshot], now: float) -> Iterator[Metric]:
    total = added(processes.values())
    counted = {(name, values): by for name, values, by in total.counters}
    for name, meaning in telemetry.COUNTERS.items():
        family = CounterMetricFamily(_PREFIX + name, meaning)
        family.add_metric((), counted.get((name, ()), 0))
        yield family
    for name, (labels, meaning) in telemetry.LABELLED.items():
        family = CounterMetricFamily(_PREFIX + name, meaning, labels=labels)
        shown = dict.fromkeys(telemetry.FROM_ZERO[name], 0)
        shown |= {values: by for (known, values), by in counted.items() if known == name}
        for values, by in shown.items():
            family.add_metric(values, by)
        yield family
    for name, (bounds, meaning) in telemetry.HISTOGRAMS.items():
        yield _histogram(name, meaning, bounds, total.histograms.get(name, ([0] * (len(bounds) + 1), 0.0)))
    living = {name: each for name, each in processes.items() if name != DEAD}
    for name, meaning in telemetry.GAUGES.items():
        gauge = GaugeMetricFamily(_PREFIX + name, meaning, labels=("process",))
        for process, each in living.items():
            if name in each.gauges:
                gauge.add_metric((process,), each.gauges[name])
        yield gauge
    silent = GaugeMetricFamily(_PREFIX + "process_silent_seconds", SILENT, labels=("process",))
    for process, each in living.items():
        silent.add_metric((process,), max(0.0, now - each.written_at))
    yield silent


def _histogram(name: str, meaning: str, bounds: tuple[float, ...], found: tuple[list[int], float]) -> Metric:
    counts, total = found
    family, below, buckets = HistogramMetricFamily(_PREFIX + name, meaning), 0, []
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        below += count
        buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", below))
    family.add_metric((), buckets, total)
    return family


SILENT = "How long ago the process wrote its figures down; it is frozen when this grows."
STORE_UP = "1: the store answered for this page; 0: it did not, and what the store knows is left out."
DEPTH = "Entries of the shard's journal that are not done."
LAG = "Records of the shard's partition in Kafka that were not taken over into its journal yet."
KAFKA_UP = "1: the brokers of Kafka answered for this page; 0: they did not, and their lag is left out."
AGE = "Age of the oldest entry of the shard's journal that is not done; 0 when there is none."
UNREAD = "Age of the oldest entry of the shard's journal that no worker has read; 0 when there is none."
UNOWNED = "Shards that no living worker owns."
BACKLOG = "Deliveries that wait in the backlog, by the reason that was written down."
EXACT = "1: all of the backlog was counted; 0: there is more."
TENANT = "What the tenants with the most attempts have had today (UTC), by what became of it; all are in /v1/stats."
BEHIND = "How long ago the time ended up to which rollups are complete."


def _of_platform(platform: PlatformFigures | None) -> Iterator[Metric]:
    yield _gauge("store_up", STORE_UP, float(platform is not None))
    if platform is None:
        return
    depth = GaugeMetricFamily(_PREFIX + "journal_depth", DEPTH, labels=("shard", "pool"))
    age = GaugeMetricFamily(_PREFIX + "journal_age_seconds", AGE, labels=("shard", "pool"))
    unread = GaugeMetricFamily(_PREFIX + "journal_unread_seconds", UNREAD, labels=("shard", "pool"))
    for shard in platform.shards:
        depth.add_metric((str(shard.shard), shard.pool), shard.depth)
        age.add_metric((str(shard.shard), shard.pool), shard.age_s)
        unread.add_metric((str(shard.shard), shard.pool), shard.unread_s)
    yield depth
    yield age
    yield unread
    if platform.journal_up is not None:
        yield _gauge("kafka_up", KAFKA_UP, float(platform.journal_up))
    if any(shard.lag is not None for shard in platform.shards):
        lag = GaugeMetricFamily(_PREFIX + "kafka_lag_records", LAG, labels=("shard", "pool"))
        for shard in platform.shards:
            if shard.lag is not None:
                lag.add_metric((str(shard.shard), shard.pool), shard.lag)
        yield lag
    yield _gauge("shards_unowned", UNOWNED, sum(not shard.owned for shard in platform.shards))
    backlog = GaugeMetricFamily(_PREFIX + "backlog_deliveries", BACKLOG, labels=("reason",))
    for reason, deliveries in sorted(platform.backlog.items()):
        backlog.add_metric((reason,), deliveries)
    yield backlog
    yield _gauge("backlog_exact", EXACT, float(platform.backlog_exact))
    if platform.rollups_behind_s is not None:
        yield _gauge("rollups_behind_seconds", BEHIND, platform.rollups_behind_s)
    tenants = CounterMetricFamily(_PREFIX + "tenant_attempts", TENANT, labels=("tenant", "outcome"))
    for tenant in platform.tenants:
        failed = tenant.attempts - tenant.delivered - tenant.dead
        for outcome, attempts in (("delivered", tenant.delivered), ("retry", failed), ("dead", tenant.dead)):
            tenants.add_metric((show_id("ten", tenant.tenant_id), outcome), attempts)
    yield tenants


def _gauge(name: str, meaning: str, value: float) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, meaning)
    family.add_metric((), value)
    return family
