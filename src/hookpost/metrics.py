"""Figures of all processes of a server on one page, for Prometheus.

A process keeps its figures in plain Python (`telemetry`) and writes them, once a second, into a file of its own in a
folder that the supervisor made: a line of JSON, replaced as a whole. Whoever is asked for the page reads what lies
there, adds it up, and asks the store how the platform stands. A process that died leaves its counters: the supervisor
adds them to those of the dead before it starts another one in its place, so counters only grow. Of a killed process the
last second is missing; what has to be exact is in the rollups.

Promises: labels are enumerations, shards and a bounded number of tenants' ids; no name, URL, type or key is among them.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from hookpost import telemetry
from hookpost.model import show_id
from hookpost.storage.contract import FiguresStore, PlatformFigures, StoreUnavailable

# How often a process writes its figures down: well below the usual interval of scrapes.
WRITE_EVERY_S = 1.0
# However often the page is asked for, the store is asked so often at most, and waited for so long.
ASK_EVERY_S = 5.0
ASK_S_MAX = 2.0
# Rows of the backlog that are counted for a page: some 20 ms.
BACKLOG_MAX = 100_000
# Tenants with figures of their own on the page, unless METRICS_TENANTS says otherwise.
TENANTS_MAX = 20
DEAD = "dead"
"""The name under which the figures of processes that ended are added up."""
_PREFIX = "hookpost_"
_PAGE_BYTES = Path("/proc/self/statm")


class Snapshot(msgspec.Struct):
    """The figures of a process, or of several together. ``counters`` by name and labels' values; ``histograms`` by
    name: counts by bucket, and the sum; ``gauges`` by name, of one process alone."""

    counters: list[tuple[str, tuple[str, ...], int]] = []
    histograms: dict[str, tuple[list[int], float]] = {}
    gauges: dict[str, float] = {}
    written_at: float = 0.0


def snapshot(gauges: Mapping[str, float], *, now: float) -> Snapshot:
    """What this process has counted so far and how it stands now."""
    unknown = gauges.keys() - telemetry.GAUGES.keys()
    if unknown:
        raise telemetry.UndeclaredError(f"gauges {sorted(unknown)} are not declared in hookpost.telemetry.GAUGES")
    return Snapshot(
        counters=[
            *((name, (), by) for name, by in telemetry.counters.items()),
            *((key[0], key[1:], by) for key, by in telemetry.labelled.items()),
        ],
        histograms={name: (list(found.counts), found.sum) for name, found in telemetry.histograms.items()},
        gauges=dict(gauges),
        written_at=now,
    )


def added(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Counters and histograms of several processes together; how each of them stands is left out."""
    counters: dict[tuple[str, tuple[str, ...]], int] = {}
    histograms: dict[str, tuple[list[int], float]] = {}
    for each in snapshots:
        for name, values, by in each.counters:
            counters[name, values] = counters.get((name, values), 0) + by
        for name, (counts, total) in each.histograms.items():
            known, so_far = histograms.get(name, ([0] * len(counts), 0.0))
            # A process of another release may have other buckets: it counts once it is upgraded.
            if len(known) == len(counts):
                histograms[name] = [a + b for a, b in zip(known, counts, strict=True)], so_far + total
    return Snapshot([(name, values, by) for (name, values), by in counters.items()], histograms)


# ---- the folder -----------------------------------------------------------------------------------------------------


class Board:
    """The folder of one server's processes. A process writes under its own name and reads all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, found: Snapshot) -> None:
        """Replace what stands under the name. Readers see the old or the new as a whole."""
        place = self._folder / f"{name}.json"
        fresh = place.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(found))
        fresh.replace(place)

    def read(self) -> dict[str, Snapshot]:
        """All that was written, by name. One that cannot be read is left out: figures must not stop anything."""
        found: dict[str, Snapshot] = {}
        for place in sorted(self._folder.glob("*.json")):
            with suppress(OSError, msgspec.DecodeError):
                found[place.stem] = msgspec.json.decode(place.read_bytes(), type=Snapshot)
        return found

    def bury(self, name: str) -> None:
        """The process of that name is dead: its counters go to those of the dead."""
        found = self.read()
        if name in found:
            self.write(DEAD, added(found[each] for each in (DEAD, name) if each in found))
            (self._folder / f"{name}.json").unlink(missing_ok=True)


class Reporter:
    """Writes one process's figures down while it lives. ``figures``: how its parts stand (telemetry.GAUGES)."""

    def __init__(self, board: Board, name: str, figures: Callable[[], Mapping[str, float]] = dict) -> None:
        self._board = board
        self._name = name
        self._figures = figures

    def report(self) -> None:
        """Write it down now. A full disk costs the figures, and nothing else."""
        with suppress(OSError):
            self._board.write(self._name, snapshot({**self._figures(), **process_figures()}, now=time.time()))

    async def run(self) -> None:
        """Until cancelled; then once more, so that what was counted last is not lost."""
        try:
            while True:
                self.report()
                await asyncio.sleep(WRITE_EVERY_S)
        finally:
            self.report()


def process_figures() -> dict[str, float]:
    """What the system knows of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"process_cpu_seconds": round(used.ru_utime + used.ru_stime, 3)}
    if sys.platform == "linux":
        figures["process_resident_bytes"] = int(_PAGE_BYTES.read_text().split()[1]) * resource.getpagesize()
    return figures


# ---- the platform ---------------------------------------------------------------------------------------------------


class Platform:
    """How the platform stands, asked of the store for whoever wants it at about the same time."""

    def __init__(
        self, store: FiguresStore, *, tenants_max: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._tenants_max = tenants_max
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._known: PlatformFigures | None = None
        self._asked_at: float | None = None

    async def figures(self) -> PlatformFigures | None:
        """None: the store does not answer."""
        async with self._lock:
            now = self._monotonic()
            if self._asked_at is None or now - self._asked_at >= ASK_EVERY_S:
                self._known, self._asked_at = await self._ask(), now
            return self._known

    async def _ask(self) -> PlatformFigures | None:
        try:
            async with asyncio.timeout(ASK_S_MAX):
                return await self._store.platform_figures(backlog_max=BACKLOG_MAX, tenants_max=self._tenants_max)
        except (StoreUnavailable, TimeoutError):
            return None


# ---- the page -------------------------------------------------------------------------------------------------------


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
        for (known, values), by in counted.items():
            if known == name:
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
AGE = "Age of the oldest entry of the shard's journal that is not done; 0 when there is none."
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
    for shard in platform.shards:
        depth.add_metric((str(shard.shard), shard.pool), shard.depth)
        age.add_metric((str(shard.shard), shard.pool), shard.age_s)
    yield depth
    yield age
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
