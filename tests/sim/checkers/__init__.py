"""Judges of a trace, one promise each. None knows the code: they see what was accepted, sent, answered and recorded."""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.checkers import (
    accepted,
    alerts,
    attempts,
    breakers,
    budget,
    caps,
    configuration,
    cursors,
    deadlines,
    drained,
    duplicates,
    fates,
    idempotency,
    metering,
    order,
    owners,
    rates,
    rests,
    retention,
    retry_after,
)
from tests.sim.system.trace import Trace, Violation

CHECKERS: dict[str, Callable[[Trace], None]] = {
    module.__name__.rpartition(".")[2]: module.judge
    for module in (
        accepted, alerts, attempts, breakers, budget, caps, configuration, cursors, deadlines, drained, duplicates, fates,
        idempotency, metering, order, owners, rates, rests, retention, retry_after,
    )
}  # fmt: skip


def broken(trace: Trace) -> dict[str, Violation]:
    """The checkers that a trace does not satisfy, and why."""
    found = {}
    for name, judge in CHECKERS.items():
        try:
            judge(trace)
        except Violation as violation:
            found[name] = violation
        except LookupError as error:
            found[name] = Violation(f"something was said of what nobody knows: {error!r}")
    return found
