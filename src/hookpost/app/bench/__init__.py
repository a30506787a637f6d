"""`hookpost bench`: how fast is this machine? Real processes, PostgreSQL with fsync on, everything on the same cores.

The flow: ``bench`` runs scenarios one after the other. Each starts what it needs (``run.server()``, ``run.load()``),
measures for ``run.seconds``, and returns the fields of its JSON line. A scenario is a plain function:

    def e2e(run: Run) -> dict[str, object]:
        with run.server() as server, run.load() as load:      # both end by themselves, also on Ctrl-C
            listener = load.listen()[0]                        # a receiver on 127.0.0.1
            server.subscribe([listener])                       # an endpoint; its key goes to listener.key
            load.target(server.url, server.key)
            load.sustained(WARM_UP_S)                          # post and receive in balance
            with run.measure(server, load) as window:          # the clock, and CPU before and after
                load.sustained(run.seconds)
            load.drain()                                       # until all that was accepted has arrived
            return {**window.figures(), **run.accounts(server, load)}      # raises VoidRun

- `ledger`     what was posted and what arrived, by running number, exactly; the rule that makes a run void
- `load`       one epoll loop that posts and receives; open loop (fixed rate) and sustained (in balance)
- `curl`       libcurl at its best;  `pipe` the bare HTTP server, alone or with that behind it: the limit
- `plain`      libcurl as an application would drive it, for the pipe that the targets were set with
- `machine`    /proc: CPU seconds and memory of processes; what machine this is
- `server`     a `hookpost serve` of its own, its processes, its database
- `slices`     several subjects measured in turns;  `limits` those that the others are measured against
- `run`        what a scenario is given: the above, and `Window` for what a measurement cost
- `scenarios`  what is measured;  `waiting` what drains a full store, `growth` what a growing one costs, `fill` fills it
- `overload`   three times what it can carry, and whether it recovers
- `isolation`  a tenant beside one that floods and one that never answers
- `report`     the table at the end, with the targets

A run is void unless published = delivered + waiting + dead, by the receiver's ledger and by the database, and every
signature looked at was right. Times are CLOCK_MONOTONIC.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
from collections.abc import Callable
from types import FrameType

from hookpost.app.bench import (
    cold,
    growth,
    isolation,
    kafka,
    limits,
    overload,
    pages,
    report,
    rollups,
    scenarios,
    soak,
    waiting,
)
from hookpost.app.bench.ledger import VoidRun
from hookpost.app.bench.machine import describe_machine
from hookpost.app.bench.run import Figures, Run

__all__ = ["SCENARIOS", "USUAL", "Figures", "Run", "Scenario", "VoidRun", "bench"]

Scenario = Callable[[Run], Figures]

USUAL: dict[str, Scenario] = {
    **limits.SCENARIOS,
    **scenarios.SCENARIOS,
    **waiting.SCENARIOS,
    **isolation.SCENARIOS,
}
"""What runs, in this order, when no scenario is named: a quarter of an hour with the default of ten seconds each."""

SCENARIOS: dict[str, Scenario] = {
    **USUAL,
    **overload.SCENARIOS,
    **growth.SCENARIOS,
    **rollups.SCENARIOS,
    **pages.SCENARIOS,
    **cold.SCENARIOS,
    **soak.SCENARIOS,
    **kafka.SCENARIOS,
}
"""All there are; those that are not usual take minutes, and fill up to tens of millions of rows first."""


def bench(names: list[str], *, seconds: float) -> int:
    """Run scenarios one after the other, a JSON line for each, then a table. The exit code is 1 when one is void."""
    signal.signal(signal.SIGTERM, _interrupt)
    # The load makes no cycles, and a collection would be a pause of the clock.
    gc.disable()
    _print({"machine": describe_machine(), "seconds": seconds})
    run, void = Run(seconds), False
    for name in names:
        before = set(run.results)
        if name in before:
            continue  # measured already, as a part of another one
        try:
            run.results[name] = SCENARIOS[name](run)
        except VoidRun as error:
            void = True
            _print({"scenario": name, "void": str(error), **error.figures})
        for new, figures in run.results.items():
            if new not in before:
                _print({"scenario": new, **figures})
        gc.collect()
    report.show(run.results)
    return int(void)


def _print(line: Figures) -> None:
    print(json.dumps(line), flush=True)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """End like Ctrl-C: everything that was started is ended on the way out."""
    sys.exit(128 + number)
