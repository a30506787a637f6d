"""Subjects measured beside each other, in alternating slices of one run.

The speed of a shared or throttled machine changes by a factor of five from one minute to the next, so the ratio of two
scenarios that ran one after the other says as much about the minutes as about them. Here all subjects are up the whole
time. In each round each of them works for one slice while the others rest, and the next round goes the other way
round. A figure is the median over the slices, a ratio the median of the rounds' ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hookpost.app.bench.ledger import VoidRun
from hookpost.app.bench.load import Load
from hookpost.app.bench.run import Figures, Run, Subject, Window

SLICE_S = 1.0
# Before the clock of a slice runs: queues fill, and caches that another subject has emptied.
LEAD_S = 0.4


def _nothing() -> None:
    """Nothing is to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """``work`` loads the subject for so many seconds, ``ready`` comes before, and after ``rest`` it does nothing."""

    subject: Subject
    load: Load
    work: Callable[[float], None]
    ready: Callable[[], object] = _nothing
    rest: Callable[[], object] = _nothing
    per: str = "delivery"


class Rounds:
    """What was measured: a window for each contender in each round."""

    def __init__(self, contenders: Mapping[str, Contender]) -> None:
        self._per = {name: contender.per for name, contender in contenders.items()}
        self._windows: dict[str, list[Window]] = {name: [] for name in contenders}

    def __bool__(self) -> bool:
        """Was anything measured?"""
        return all(self._windows.values())

    def add(self, name: str, window: Window) -> None:
        """One more slice of this contender."""
        self._windows[name].append(window)

    def windows(self, name: str) -> Sequence[Window]:
        """The slices of this contender."""
        return self._windows[name]

    def figures(self, name: str) -> Figures:
        """Medians over the slices. ``measured_us``: CPU of the subject alone, without the load."""
        found = [self._of(name, window) for window in self._windows[name]]
        medians = {figure: median(each[figure] for each in found) for figure in found[0]}
        return {
            figure: round(value) if figure == "per_second" else round(value, 2) for figure, value in medians.items()
        }

    def latencies(self, name: str) -> Figures:
        """Medians over the slices, of percentiles of the time from scheduled post to arrival."""
        found = [window.latencies() for window in self._windows[name]]
        return {figure: round(median(float(str(each[figure])) for each in found), 2) for figure in found[0]}

    def ratio(self, above: str, below: str, figure: str = "per_second", figure_below: str = "") -> float:
        """The median over the rounds of one contender's figure by another's (the same one unless it is named)."""
        pairs = zip(self._windows[above], self._windows[below], strict=True)
        figure_below = figure_below or figure
        return round(
            median(self._of(above, a)[figure] / max(1e-9, self._of(below, b)[figure_below]) for a, b in pairs), 3
        )

    def _of(self, name: str, window: Window) -> dict[str, float]:
        figures = window.figures(per=self._per[name])
        return {figure: float(str(value)) for figure, value in figures.items()}


def alternate(run: Run, contenders: Mapping[str, Contender], *, more: Callable[[], bool] = lambda: True) -> Rounds:
    """Measure each for ``run.seconds`` in all, a slice at a time, as long as there is ``more`` to do.

    The first slice of each is not measured: connections open, caches fill, the database's plans are made. Raises
    VoidRun when nothing was.
    """
    rounds = Rounds(contenders)
    order = list(contenders)
    for name in order:
        measured_slice(run, contenders[name], lead_s=run.warm_up_s, slice_s=0.0)
    for _ in range(slices(run)):
        windows = {name: measured_slice(run, contenders[name]) for name in order if more()}
        if len(windows) < len(order):
            break
        for name, window in windows.items():
            rounds.add(name, window)
        order.reverse()
    if not rounds:
        raise VoidRun("there was nothing left to do before one round was measured: try more --seconds")
    return rounds


def slices(run: Run) -> int:
    """How many of each contender."""
    return max(1, round(run.seconds / SLICE_S))


def measured_slice(run: Run, contender: Contender, *, lead_s: float = LEAD_S, slice_s: float = SLICE_S) -> Window:
    """One slice of a contender."""
    contender.ready()
    contender.work(lead_s)
    with run.measure(contender.subject, contender.load) as window:
        contender.work(slice_s)
    contender.rest()
    return window


def costs(rounds: Rounds, name: str, roles: Sequence[str], *, unit: str = "curl") -> Figures:
    """What these roles cost, as multiples of a request of libcurl's loop: microseconds differ between machines."""
    return {f"{role}_in_curls": rounds.ratio(name, unit, f"{role}_us", "curl_us") for role in roles}
