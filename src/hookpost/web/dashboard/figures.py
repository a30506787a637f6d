"""Figures of the API as points of plots and numbers of tiles. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from hookpost.policy.latency import LOWS, bucket_high
from hookpost.web.dashboard.charts import Point
from hookpost.web.dashboard.render import count, milliseconds, percent

# Axes are labelled at round times, this far apart, and not more often than so.
_APART_S = (300, 600, 1_800, 3_600, 7_200, 14_400, 86_400, 5 * 86_400, 30 * 86_400)
_LABELS_MAX = 8
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def outcome_points(series: Sequence[Mapping[str, Any]], *, step_s: int) -> list[Point]:
    """Attempts by what became of them."""
    points = []
    for point, label in zip(series, _labels(series, step_s), strict=True):
        outcomes = point["outcomes"]
        good, warn, bad = outcomes["delivered"], outcomes["retry"], outcomes["dead"]
        title = (
            f"{_moment(point['start'])}\n{count(point['attempts'])} attempt{'' if point['attempts'] == 1 else 's'}\n"
            f"{count(good)} delivered "
            f"({percent(good, point['attempts'])})\n{count(warn)} failed, retried\n{count(bad)} failed for good"
        )
        points.append(Point(label, title, {"good": good, "warn": warn, "bad": bad}))
    return points


def arrival_points(series: Sequence[Mapping[str, Any]], *, step_s: int) -> list[Point]:
    """How long it took from acceptance to the 2xx; hovering tells how long the attempts alone took."""
    points = []
    for point, label in zip(series, _labels(series, step_s), strict=True):
        arrival, attempt = point["acceptance_to_2xx"], point["latency"]
        values = {name: None if arrival is None else arrival[name]["estimate_ms"] for name in ("p50", "p95", "p99")}
        told = (
            "nothing delivered" if arrival is None else "\n".join(f"{n} {milliseconds(v)}" for n, v in values.items())
        )
        alone = "" if attempt is None else f"\nan attempt alone: p50 {milliseconds(attempt['p50']['estimate_ms'])}"
        points.append(Point(label, f"{_moment(point['start'])}\n{told}{alone}", values))
    return points


def histogram_buckets(totals: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """The buckets from the first to the last that holds anything; what is between them holds none and has its place."""
    held = {bucket["low_ms"]: bucket["attempts"] for bucket in totals["latency_buckets"]}
    lows = [low for low in LOWS if min(held) <= low <= max(held)] if held else []
    return [(low, bucket_high(low), held.get(low, 0)) for low in lows]


def _labels(series: Sequence[Mapping[str, Any]], step_s: int) -> list[str]:
    """At round times the time of day, at midnight the day; empty between them."""
    apart_s = next((apart for apart in _APART_S if len(series) * step_s <= _LABELS_MAX * apart), _APART_S[-1])
    return [_label(datetime.fromisoformat(point["start"]), apart_s) for point in series]


def _label(start: datetime, apart_s: int) -> str:
    if start.timestamp() % apart_s:
        return ""
    return f"{start:%H:%M}" if start.hour or start.minute else f"{start.day} {_MONTHS[start.month - 1]}"


def _moment(start: str) -> str:
    return f"{start[:10]} {start[11:16]} UTC"
