"""The sizing table of docs/operations.md is what its formulas give: a reader can recompute every figure."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
SECTION = GUIDE.partition("## Sizing\n")[2].partition("\n## ")[0]
# Of its busy time a core is filled to so much.
FILLED = 0.7
# Figures in the table are rounded to two or three digits.
ROUNDING = 0.04


def factor(row: str, pattern: str) -> list[float]:
    """The numbers that a row of the formulas names."""
    line = re.search(rf"^\| {row} \| ([^|]+) \|", SECTION, re.MULTILINE)
    assert line is not None, row
    found = re.search(pattern, line[1])
    assert found is not None, (row, line[1])
    return [float(each) for each in found.groups()]


def formula(rate: float) -> list[float]:
    """API, workers, cores of PostgreSQL, shards, WAL MB/s, GB a day, GB for 30 days, GB of memory."""
    [api_us] = factor("cores of the API", r"^events/s × (\d+) µs ÷ 0\.7")
    one_us, several_us = factor("cores of workers", r"^deliveries/s × (\d+) µs ÷ 0\.7; .*: × (\d+) µs ÷ 0\.7")
    [database_us] = factor("cores of PostgreSQL", r"× (\d+) µs ÷ 0\.7")
    [wal_kb] = factor("WAL", r"× ([\d.]+) KB")
    [row_kb] = factor("disk a day", r"× ([\d.]+) KB")
    api_mb, worker_mb, first_gb, further_gb = factor(
        "memory", r"API (\d+) MB, worker (\d+) MB; PostgreSQL (\d+) GB, and (\d+) GB"
    )

    def cores(us: float) -> float:
        return rate * us / 1e6 / FILLED

    api, database = math.ceil(cores(api_us)), math.ceil(cores(database_us))
    workers = 1 if cores(one_us) <= 1 else math.ceil(cores(several_us))
    day_gb = rate * 86_400 * row_kb / 1e6
    memory_gb = (api * api_mb + workers * worker_mb) / 1000 + first_gb + further_gb * (database - 1)
    shards = 8 * math.ceil(2 * workers / 8)
    return [api, workers, database, shards, rate * wal_kb / 1000, day_gb, 31 * day_gb, math.ceil(memory_gb)]


def table() -> list[tuple[float, list[float]]]:
    rows = re.findall(r"^\| ([\d,]+)[^|]*((?:\| [\d.,]+ )+)\|$", SECTION, re.MULTILINE)
    return [(number(rate), [number(each) for each in rest.split("|")[1:]]) for rate, rest in rows]


def number(text: str) -> float:
    return float(text.strip().replace(",", ""))


def test_every_row_of_the_table_is_the_formulas() -> None:
    rows = table()
    assert [rate for rate, _ in rows] == [10, 100, 1_000, 2_000, 5_000, 12_000, 25_000, 50_000]
    for rate, shown in rows:
        assert shown == pytest.approx(formula(rate), rel=ROUNDING), rate


def test_what_workers_carry_is_the_formulas() -> None:
    one_us, several_us = factor("cores of workers", r"^deliveries/s × (\d+) µs ÷ 0\.7; .*: × (\d+) µs ÷ 0\.7")
    told = re.search(r"one worker carries ([\d,]+) .*two carry ([\d,]+) and four ([\d,]+)", SECTION)
    assert told is not None
    carried = [FILLED / one_us * 1e6, 2 * FILLED / several_us * 1e6, 4 * FILLED / several_us * 1e6]
    assert [number(each) for each in told.groups()] == pytest.approx(carried, rel=ROUNDING)
