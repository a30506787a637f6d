"""Plots as SVG, drawn here: axes with round numbers, and the exact values of a point where the pointer rests on it.

Geometry only: colours come from the style sheet by class, so that a plot is readable in light and dark. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log, log10

from markupsafe import Markup, escape

from hookpost.web.dashboard.render import count, duration, milliseconds

WIDTH, HEIGHT = 720, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 8, 10, 26
_PLOT_W, _PLOT_H = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
# So many labels fit under the axis without touching.
_X_LABELS = 7
_Y_TICKS = 4
# Of a logarithmic axis, which begins and ends where the values do: more lines than that are no help.
_LOG_TICKS_MAX = 7
_COLUMN_MAX = 72
_S, _MIN, _H, _D = 1_000, 60_000, 3_600_000, 86_400_000
# What people call round, in milliseconds: for a wide range of times, and for a narrow one.
_TIMES_FAR_APART = (1, 10, 100, _S, 10 * _S, _MIN, 10 * _MIN, _H, 10 * _H, 4 * _D, 40 * _D)
_TIMES_CLOSE = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, _S, 2 * _S, 5 * _S, 10 * _S, 20 * _S, 30 * _S, _MIN, 2 * _MIN, 5 * _MIN,
    10 * _MIN, 20 * _MIN, 30 * _MIN, _H, 2 * _H, 5 * _H, 10 * _H, _D, 2 * _D, 4 * _D, 10 * _D, 40 * _D,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """One place on the axis: its label (or ""), what it says in full, its values by series (None: nothing known)."""

    label: str
    title: str
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class _Scale:
    """The upright axis: ``at`` tells how high a value is, from 0 to 1; ``ticks``: height and label, from the foot."""

    at: Callable[[float], float]
    ticks: Sequence[tuple[float, str]]


def stacked(points: Sequence[Point], series: Sequence[str], *, name: str) -> Markup:
    """Columns of counts, the series of each upon one another."""
    top = _nice(max((sum(v or 0 for v in point.values.values()) for point in points), default=0))
    width = _width(points)
    scale = _linear(top)
    parts = [_axes(scale, points)]
    for index, point in enumerate(points):
        x, y = _LEFT + index * width, float(_TOP + _PLOT_H)
        bars = []
        for key in series:
            value = point.values.get(key) or 0
            if value:
                height = max(scale.at(value) * _PLOT_H, 1.0)
                y -= height
                bars.append(
                    f'<rect class="{key}" x="{x + width * 0.1:.2f}" y="{y:.2f}" width="{width * 0.8:.2f}" '
                    f'height="{height:.2f}"/>'
                )
        parts.append(_column(x, width, point.title, "".join(bars)))
    return _svg([*parts, _scale_at_the_end(scale)], name)


def lines(points: Sequence[Point], series: Sequence[str], *, name: str) -> Markup:
    """Latencies over time, one line for each series; where nothing is known the line has a gap.

    The axis is logarithmic: a median of 20 ms and a p99 of two hours, of what was retried, are told by the same plot.
    """
    scale = _logarithmic([v for point in points for v in point.values.values() if v is not None])
    width = _width(points)
    parts = [_axes(scale, points)]
    for key in series:
        runs: list[list[tuple[float, float]]] = [[]]
        for index, point in enumerate(points):
            value = point.values.get(key)
            if value is None:
                runs.append([])
            else:
                runs[-1].append((_LEFT + (index + 0.5) * width, _TOP + _PLOT_H * (1 - scale.at(value))))
        for run in runs:
            if len(run) == 1:
                parts.append(f'<circle class="dot {key}" cx="{run[0][0]:.2f}" cy="{run[0][1]:.2f}" r="2.5"/>')
            elif run:
                path = " ".join(f"{x:.2f},{y:.2f}" for x, y in run)
                parts.append(f'<polyline class="line {key}" points="{path}"/>')
    parts += [_column(_LEFT + index * width, width, point.title, "") for index, point in enumerate(points)]
    return _svg([*parts, _scale_at_the_end(scale)], name)


def histogram(buckets: Sequence[tuple[int, int, int]], *, name: str) -> Markup:
    """Attempts by how long they took: (from, to, attempts), in milliseconds, both ends included."""
    points = [
        Point(milliseconds(low), f"{milliseconds(low)} to {milliseconds(high)}: {count(attempts)}", {"bar": attempts})
        for low, high, attempts in buckets
    ]
    return stacked(points, ("bar",), name=name)


def strip(points: Sequence[Point], *, name: str) -> Markup:
    """How well each span of time went, as one row: delivered, failed in part, or failed for the most part."""
    width = 1000 / max(1, len(points))
    parts = []
    for index, point in enumerate(points):
        good, total = point.values.get("good") or 0, sum(value or 0 for value in point.values.values())
        tone = "none" if not total else "good" if good == total else "warn" if good >= total / 2 else "bad"
        parts.append(
            f'<rect class="{tone}" x="{index * width + 1:.2f}" y="0" width="{max(width - 2, 1):.2f}" height="34">'
            f"<title>{escape(point.title)}</title></rect>"
        )
    return Markup(  # noqa: S704 - numbers and escaped text
        f'<svg class="chart strip" viewBox="0 0 1000 34" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(name)}">{"".join(parts)}</svg>'
    )


def _svg(parts: Sequence[str], name: str) -> Markup:
    return Markup(  # noqa: S704 - numbers and escaped text
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">'
        f"{''.join(parts)}</svg>"
    )


def _width(points: Sequence[Point]) -> float:
    """Of a column: few of them do not fill the plot."""
    return min(_PLOT_W / max(1, len(points)), _COLUMN_MAX)


def _linear(top: float) -> _Scale:
    """From 0 to ``top``, a count."""
    heights = [tick / _Y_TICKS for tick in range(_Y_TICKS + 1)]
    return _Scale(lambda value: value / top, [(height, count(top * height)) for height in heights])


def _logarithmic(values: Sequence[float]) -> _Scale:
    """From one round time below all values, in milliseconds, to one above them."""
    least, most = max(min(values, default=1), 1), max(max(values, default=1), 1)
    times = _TIMES_CLOSE if most < 100 * least else _TIMES_FAR_APART
    first = max(at for at, time in enumerate(times) if time <= max(least, times[0]))
    last = next((at for at, time in enumerate(times) if time >= most), len(times) - 1)
    shown = times[first : max(last, first + 1) + 1]
    low, high = shown[0], shown[-1]

    def at(value: float) -> float:
        return min(max(log(max(value, low) / low) / log(high / low), 0.0), 1.0)

    step = ceil(len(shown) / _LOG_TICKS_MAX)
    ticked = shown[::-step][::-1] if step > 1 else shown
    return _Scale(at, [(at(time), duration(time / 1000) if time >= _S else f"{time} ms") for time in ticked])


def _axes(scale: _Scale, points: Sequence[Point]) -> str:
    foot = _TOP + _PLOT_H
    parts = [f'<line class="axis" x1="{_LEFT}" y1="{foot:.1f}" x2="{WIDTH - _RIGHT}" y2="{foot:.1f}"/>']
    for height, label in scale.ticks:
        y = foot - _PLOT_H * height
        if height:
            parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    labelled = [index for index, point in enumerate(points) if point.label]
    width = _width(points)
    for index in labelled[:: max(1, ceil(len(labelled) / _X_LABELS))]:
        x = _LEFT + (index + 0.5) * width
        anchor = "start" if x < _LEFT + 20 else "end" if x > WIDTH - 30 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{escape(points[index].label)}</text>')
    return "".join(parts)


def _scale_at_the_end(scale: _Scale) -> str:
    """The axis once more, upon the newest values: on a phone the left end is out of sight, and this is shown."""
    parts = []
    for height, label in scale.ticks:
        if height:
            at = f'x="{WIDTH - _RIGHT}" y="{_TOP + _PLOT_H * (1 - height) + 13:.1f}"'
            parts.append(f'<text class="near" {at} text-anchor="end">{escape(label)}</text>')
    return "".join(parts)


def _column(x: float, width: float, title: str, inside: str) -> str:
    return (
        f'<g><rect class="hit" x="{x:.2f}" y="{_TOP}" width="{width:.2f}" height="{_PLOT_H}"/>{inside}'
        f"<title>{escape(title)}</title></g>"
    )


def _nice(value: float) -> float:
    """The least round number, a multiple of the ticks, that is not less."""
    if value <= _Y_TICKS:
        return _Y_TICKS
    size = 10.0 ** floor(log10(value))
    return next(size * factor for factor in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if size * factor >= value)
