"""Retry-After is never undercut: who was asked to leave a receiver alone sends nothing to it before that time.

By the database's clock, to which a worker's own is corrected: around its jumps, and when a worker has just begun,
nothing is said.
"""

from __future__ import annotations

from uuid import UUID

from tests.sim.system.trace import Answered, Sent, Started, Trace, check

CLOCK_S = 0.6
# A worker hears of a jump with the next renewal of its lease.
RENEW_S = 8.0


def judge(trace: Trace) -> None:
    jumps = [at for at, _ in trace.set_forward()]
    jumps += [entry.at for entry in trace.of(Started)]
    held: dict[tuple[str, UUID], tuple[float, float]] = {}
    for entry in trace.of(Answered, Sent):
        key = (entry.node, entry.endpoint_id)
        match entry:
            case Answered() if entry.retry_after_s is not None:
                until = max(entry.at + entry.retry_after_s, held.get(key, (0.0, 0.0))[1])
                held[key] = (entry.at, until)
            case Sent() if key in held:
                asked_at, until = held[key]
                jumped = any(asked_at - RENEW_S <= at <= until for at in jumps)
                check(jumped or entry.at >= until - CLOCK_S, "sent though asked not to until", until, entry)
            case _:
                pass
