"""Figures of all processes of a server, brought together for the page of metrics (exposition.py).

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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from hookpost import telemetry
from hookpost.storage.contract import FiguresStore, PlatformFigures, StoreUnavailable

# How often a process writes its figures down: well below the usual interval of scrapes.
WRITE_EVERY_S = 1.0
# However often the page is asked for, the store is asked so often at most, and waited for so long.
ASK_EVERY_S = 5.0
ASK_S_MAX = 2.0
# Rows of the backlog that are counted for a page: some 20 ms.
BACKLOG_MAX = 100_000
DEAD = "dead"
"""The name under which the figures of processes that ended are added up."""
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
        self.folder = folder

    def write(self, name: str, found: Snapshot) -> None:
        """Replace what stands under the name. Readers see the old or the new as a whole."""
        place = self.folder / f"{name}.json"
        fresh = place.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(found))
        fresh.replace(place)

    def read(self) -> dict[str, Snapshot]:
        """All that was written, by name. One that cannot be read is left out: figures must not stop anything."""
        found: dict[str, Snapshot] = {}
        for place in sorted(self.folder.glob("*.json")):
            with suppress(OSError, msgspec.DecodeError):
                found[place.stem] = msgspec.json.decode(place.read_bytes(), type=Snapshot)
        return found

    def bury(self, name: str) -> None:
        """The process of that name is dead: its counters go to those of the dead."""
        found = self.read()
        if name in found:
            self.write(DEAD, added(found[each] for each in (DEAD, name) if each in found))
            (self.folder / f"{name}.json").unlink(missing_ok=True)


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
