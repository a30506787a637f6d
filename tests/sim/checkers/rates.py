"""I17: of an endpoint with a rate limit at most rate × window + max(1, rate) requests start in any window.

The limit is kept by the database's clock: what it jumps forward counts as time, and a correction of a worker's clock may
be wrong by half of the round trip that it took; the first one is taken however long that was.
"""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from tests.sim.system.trace import Configured, Sent, Started, Trace, check

CLOCK_S, FIRST_S = 0.6, 4.0


def judge(trace: Trace) -> None:
    limit: dict[UUID, float] = {}
    sent: dict[UUID, list[float]] = defaultdict(list)
    jumps = list(trace.set_forward())
    jumps += [(entry.at, FIRST_S) for entry in trace.of(Started)]
    for entry in trace.of(Configured, Sent):
        match entry:
            case Configured():
                if entry.rate_limit is None:
                    limit.pop(entry.endpoint_id, None)
                else:
                    limit[entry.endpoint_id] = entry.rate_limit
            case Sent() if entry.endpoint_id in limit:
                rate, times = limit[entry.endpoint_id], sent[entry.endpoint_id]
                times.append(entry.at)
                for count, start in enumerate(reversed(times), 1):
                    window_s = entry.at - start + CLOCK_S + sum(by for at, by in jumps if start - 8 <= at <= entry.at)
                    check(count <= rate * window_s + max(1.0, rate), "too fast:", count, "in", window_s, "s", entry)
            case _:
                pass
