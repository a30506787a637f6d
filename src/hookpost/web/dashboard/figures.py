"""Figures of the API as points of plots and numbers of tiles. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hookpost.web.dashboard.charts import Point
from hookpost.web.dashboard.render import count, milliseconds, percent


def outcome_points(series: Sequence[Mapping[str, Any]], *, days: bool) -> list[Point]:
    """Attempts by what became of them."""
    points = []
    for point in series:
        outcomes = point["outcomes"]
        good, warn, bad = outcomes["delivered"], outcomes["retry"], outcomes["dead"]
        title = (
            f"{_moment(point['start'])}\n{count(point['attempts'])} attempts\n{count(good)} delivered "
            f"({percent(good, point['attempts'])})\n{count(warn)} failed, retried\n{count(bad)} failed for good"
        )
        points.append(Point(_label(point["start"], days), title, {"good": good, "warn": warn, "bad": bad}))
    return points


def latency_points(series: Sequence[Mapping[str, Any]], *, days: bool) -> list[Point]:
    """How long attempts took."""
    points = []
    for point in series:
        latency = point["latency"]
        values = {name: None if latency is None else latency[name]["estimate_ms"] for name in ("p50", "p95", "p99")}
        told = "no attempts" if latency is None else "\n".join(f"{n} {milliseconds(v)}" for n, v in values.items())
        points.append(Point(_label(point["start"], days), f"{_moment(point['start'])}\n{told}", values))
    return points


def histogram_buckets(totals: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """The buckets from the first to the last that holds anything, empty ones between them too."""
    return [(b["low_ms"], b["high_ms"], b["attempts"]) for b in totals["latency_buckets"]]


def rank(ordered: Sequence[float], part: float) -> float | None:
    """The value that ``part`` of the sorted values do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else None


def _label(start: str, days: bool) -> str:
    return start[5:10] if days else start[11:16]


def _moment(start: str) -> str:
    return f"{start[:10]} {start[11:16]} UTC"
