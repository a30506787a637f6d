"""I4: when the trouble is over everything that is owed comes to its end, and nothing is left anywhere."""

from __future__ import annotations

from tests.sim.system.trace import Ended, Trace, check


def judge(trace: Trace) -> None:
    ended = list(trace.of(Ended))
    check(len(ended) == 1, "the world did not come to its end")
    check((ended[0].backlog, ended[0].depth) == (0, 0), "something is left:", ended[0])
