"""The table at the end: what was measured beside what is wanted, as ratios within one run wherever they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from hookpost.app.bench import run
from hookpost.app.bench.run import Figures

# The tables need this much; a narrow terminal wraps them, which is still better than cut numbers.
WIDTH_MIN = 120
# Of a core: more than the usual background of a machine at rest.
OTHERS_MAX = 0.1

Results = Mapping[str, Figures]


@dataclass(frozen=True, slots=True)
class Target:
    """One claim: how it is computed from the results (a KeyError: not measured), and its bound."""

    name: str
    value: Callable[[Results], float]
    bound: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Does the value keep the bound?"""
        return value <= self.bound if self.at_most else value >= self.bound


def number(results: Results, scenario: str, name: str = "per_second") -> float:
    """A figure of a scenario; KeyError when it was not measured."""
    return run.number(results[scenario], name)


def _ratio(above: str, below: str, name: str) -> Callable[[Results], float]:
    return lambda results: number(results, above, name) / number(results, below, name)


def _figure(scenario: str, name: str) -> Callable[[Results], float]:
    return lambda results: number(results, scenario, name)


TARGETS = [
    Target("e2e / bare", _figure("e2e", "of_bare"), 0.50),
    # The same by CPU, which other programs on the machine disturb less than the clock.
    Target("e2e / bare, by CPU of all processes", _figure("e2e", "of_bare_by_cpu"), 0.50),
    # The pipe that this was set with: its HTTP server and its libcurl loop were those of an application.
    Target("e2e / plain pipe", _figure("e2e", "of_plain"), 0.50),
    Target("e2e / plain pipe, by CPU of all processes", _figure("e2e", "of_plain_by_cpu"), 0.50),
    Target("e2e, deliveries a second", _figure("e2e", "per_second"), 11_574),
    Target("bare / (curl + server), µs", _figure("bare", "of_its_parts"), 2.0, at_most=True),
    Target("deliver / curl", _figure("deliver", "of_curl"), 0.40),
    Target("deliver / plain curl", _figure("deliver", "of_plain_curl"), 0.40),
    Target("worker on a core of its own, µs a delivery", _figure("own_core", "worker_us"), 60, at_most=True),
    Target("API on a core of its own, µs a single event", _figure("own_core", "api_us"), 70, at_most=True),
    Target("API on a core of its own, µs an event in a batch", _figure("own_core", "api_batch_us"), 15, at_most=True),
    # The same where a request of libcurl's loop does not cost the 20 µs that it cost where these were set.
    Target("worker on a core of its own, curls a delivery", _figure("own_core", "worker_in_curls"), 3, at_most=True),
    Target("API on a core of its own, curls a single event", _figure("own_core", "api_in_curls"), 3.5, at_most=True),
    Target(
        "API on a core of its own, curls an event in a batch",
        _figure("own_core", "api_batch_in_curls"),
        0.75,
        at_most=True,
    ),
    # An event and an attempt; the progress rows of the settles are what is above 2.
    Target("row writes a delivery", _figure("e2e", "row_writes_per_delivery"), 2.05, at_most=True),
    Target("row writes, with an idempotency key", _figure("e2e_keyed", "row_writes_per_delivery"), 3.05, at_most=True),
    Target("transactions a delivery", _figure("e2e", "transactions_per_delivery"), 0.05, at_most=True),
    Target(
        "attempt row, bytes without response head",
        lambda results: (
            number(results, "e2e", "attempt_row_bytes") - number(results, "e2e", "attempt_response_head_bytes")
        ),
        500,
        at_most=True,
    ),
    Target("latency p99 at half load, ms", _figure("latency", "p99_ms"), 25, at_most=True),
    Target("latency p50 idle, ms", _figure("latency", "idle_p50_ms"), 10, at_most=True),
    Target("outage, healthy throughput ratio", _figure("outage", "healthy_throughput_ratio"), 0.9),
    Target("outage, healthy p99 ratio", _figure("outage", "healthy_p99_ratio"), 1.5, at_most=True),
    Target("isolation, p99 beside the neighbours, ratio", _figure("isolation", "p99_ratio"), 1.5, at_most=True),
    Target("recover / deliver, each by the curl beside it", _ratio("recover", "deliver", "of_curl"), 0.7),
    Target("worker with 1,000,000 waiting, MB", _figure("memory", "worker_mb_paused"), 300, at_most=True),
    Target("scale, of one tenant's throughput", _figure("scale", "of_one_tenant"), 0.9),
    Target("scale, start-up, s", _figure("scale", "owned_s"), 5, at_most=True),
    Target("two workers, times one", _figure("workers", "speedup_2"), 1.8),
]


def show(results: Results, targets: list[Target] | None = None) -> None:
    """Print what there is, on standard error: standard output is for the JSON lines."""
    console = Console(file=sys.stderr, highlight=False, width=max(WIDTH_MIN, Console(stderr=True).width))
    console.print(_measured(results))
    claims = _claims(results, TARGETS if targets is None else targets)
    if claims.row_count:
        console.print(claims)
    if disturbed := _disturbed(results):
        console.print(f"Other programs were busy during {', '.join(disturbed)}: measure again when they are not.")


def _disturbed(results: Results) -> list[str]:
    """Scenarios that did not have the machine for themselves."""
    others = {scenario: figures.get("cores_used_by_others") for scenario, figures in results.items()}
    return [name for name, cores in others.items() if isinstance(cores, float) and cores > OTHERS_MAX]


def _measured(results: Results) -> Table:
    table = Table("scenario", title="measured", title_justify="left")
    columns = [
        "per_second",
        "p50_ms",
        "p99_ms",
        "api_us",
        "worker_us",
        "postgres_us",
        "load_us",
        "cores_used",
        "cores_used_by_others",
    ]
    for column in columns:
        table.add_column(column.removesuffix("_us") + " µs" if column.endswith("_us") else column.replace("_", " "),
                         justify="right")  # fmt: skip
    for scenario, figures in results.items():
        table.add_row(scenario, *(_shown(figures.get(column)) for column in columns))
    return table


def _claims(results: Results, targets: list[Target]) -> Table:
    table = Table("target", title="targets", title_justify="left")
    for column in ("measured", "wanted", ""):
        table.add_column(column, justify="right")
    for target in targets:
        try:
            value = target.value(results)
        except (KeyError, ZeroDivisionError):
            continue
        wanted = f"{'≤' if target.at_most else '≥'} {target.bound:,g}"
        table.add_row(target.name, _shown(round(value, 3)), wanted, "met" if target.met(value) else "NOT MET")
    return table


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else "" if value is None else str(value)
