"""Line charts as SVG, readable on light and on dark pages. Pure: a Chart in, text out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

Point = tuple[float, float]

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 78, 16, 62, 46
# More points than pixels are not seen.
POINTS_MAX = 700
# A line is broken where the next point is so many times farther than usual.
GAP = 10.0
# Told apart also by those who see no red or green (Okabe and Ito), dark enough for white, light enough for near-black.
LIGHT = ("#0072b2", "#d55e00", "#00795a", "#a8407a")
DARK = ("#56b4e9", "#f0a04b", "#3fcf9f", "#e79cc9")
_DASHES = ("", "6 3", "2 2", "8 3 2 3")
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Series:
    """One line."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Chart:
    """``bands``: (from, to, what is the matter then) in units of x. ``log``: of y, from the decade of its least value."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    bands: Sequence[tuple[float, float, str]] = ()
    log: bool = False


def short(value: float) -> str:
    """A number as an axis tells it."""
    for size, letter in _UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def ticks(least: float, most: float, count: int = 6) -> list[float]:
    """Round numbers within these bounds."""
    step = 10.0 ** math.floor(math.log10(max(most - least, 1e-9) / count))
    step = next(step * each for each in (1, 2, 2.5, 5, 10, 20) if (most - least) / (step * each) <= count)
    first = math.ceil(least / step - 1e-9)
    return [index * step for index in range(first, math.floor(most / step + 1e-9) + 1)]


def decades(least: float, most: float) -> list[float]:
    """Powers of ten around these bounds."""
    return [10.0**power for power in range(math.floor(math.log10(least)), math.ceil(math.log10(most) - 1e-9) + 1)]


def thin(points: Sequence[Point]) -> list[Point]:
    """No more points than can be seen; of those left out in a row the highest stays, so that no peak is lost."""
    every = -(-len(points) // POINTS_MAX)
    return [max(points[at : at + every], key=lambda point: point[1]) for at in range(0, len(points), every or 1)]


def unbroken(points: Sequence[Point]) -> list[list[Point]]:
    """The line in parts: where there was nothing for long nothing is drawn."""
    steps = sorted(after[0] - before[0] for before, after in pairwise(points))
    far = GAP * steps[len(steps) // 2] if steps else 0.0
    parts: list[list[Point]] = []
    for point in points:
        if not parts or point[0] - parts[-1][-1][0] > far:
            parts.append([])
        parts[-1].append(point)
    return parts


def svg(chart: Chart) -> str:
    """The chart as a document of its own."""
    values = [point for series in chart.series for point in series.points]
    left, right = min(x for x, _ in values), max(x for x, _ in values)
    if chart.log:
        y_ticks = decades(min(y for _, y in values if y > 0), max(y for _, y in values))
        least, most = y_ticks[0], max(y_ticks[-1], 10 * y_ticks[0])
    else:
        least, most = 0.0, 1.08 * max(max(y for _, y in values), 1e-9)
        y_ticks = ticks(least, most)

    def at_x(x: float) -> float:
        return LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        part = math.log(max(y, least) / least) / math.log(most / least) if chart.log else (y - least) / (most - least)
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

    body = [f'<text class="title" x="{LEFT}" y="20">{escape(chart.title)}</text>']
    for start, end, name in chart.bands:
        start, end = at_x(max(start, left)), at_x(min(end, right))
        body.append(
            f'<rect class="band" x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
        )
        body.append(f'<text class="small" x="{start + 4:.1f}" y="{TOP + 13}">{escape(name)}</text>')
    for y in y_ticks:
        body.append(f'<path class="grid" d="M{LEFT} {at_y(y):.1f}H{WIDTH - RIGHT}"/>')
        body.append(f'<text class="small" text-anchor="end" x="{LEFT - 6}" y="{at_y(y) + 4:.1f}">{short(y)}</text>')
    for x in ticks(left, right, 8):
        body.append(f'<path class="axis" d="M{at_x(x):.1f} {HEIGHT - BOTTOM}v4"/>')
        body.append(
            f'<text class="small" text-anchor="middle" x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 17}">{x:g}</text>'
        )
    body.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    body.append(
        f'<text class="small" text-anchor="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">{escape(chart.x)}</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    body.append(
        f'<text class="small" text-anchor="middle" transform="translate(16 {middle}) rotate(-90)">{escape(chart.y)}</text>'
    )
    legend_x = float(LEFT)
    for index, series in enumerate(chart.series):
        kind = f'class="line c{index}" stroke-dasharray="{_DASHES[index]}"'
        body.append(f'<path {kind} d="M{legend_x:.1f} 40h22"/>')
        body.append(f'<text class="small" x="{legend_x + 28:.1f}" y="44">{escape(series.name)}</text>')
        legend_x += 48 + 6.4 * len(series.name)
        for points in unbroken(thin(series.points)):
            line = "L".join(f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in points)
            body.append(f'<path {kind} d="M{line}"/>')
    return _document(chart.title, body)


def _document(title: str, body: Sequence[str]) -> str:
    def colours(of: Sequence[str]) -> str:
        return "".join(f".c{index}{{stroke:{colour}}}" for index, colour in enumerate(of))

    style = (
        "text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-size:15px;font-weight:600}.small{font-size:12px}"
        ".page{fill:#fff}.grid{stroke:#d9dee3;stroke-width:1}.axis{stroke:#656d76;stroke-width:1}"
        f".band{{fill:#0072b2;fill-opacity:.09}}.line{{fill:none;stroke-width:1.6}}{colours(LIGHT)}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.page{fill:#0d1117}.grid{stroke:#30363d}.axis{stroke:#9198a1}"
        f".band{{fill:#56b4e9;fill-opacity:.14}}{colours(DARK)}}}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return "\n".join(
        [
            head,
            f"<style>{style}</style>",
            f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
            *body,
            "</svg>",
            "",
        ]
    )
