"""I7: at most one owner writes. Fences grow with every claim, and only who claimed last settles."""

from __future__ import annotations

from tests.sim.system.trace import Claimed, Settled, Trace, check


def judge(trace: Trace) -> None:
    owner: dict[int, Claimed] = {}
    settle_no: dict[int, int] = {}
    for entry in trace.of(Claimed, Settled):
        match entry:
            case Claimed():
                before = owner.get(entry.shard)
                check(before is None or entry.fence > before.fence, "a fence that did not grow:", entry)
                owner[entry.shard] = entry
            case Settled():
                claim = owner.get(entry.shard)
                mine = claim is not None and (claim.node, claim.fence) == (entry.node, entry.fence)
                check(mine, "settled without owning the shard:", entry.node, entry.shard, entry.fence)
                check(entry.settle_no == settle_no.get(entry.shard, 0) + 1, "a settle is missing or repeated:", entry)
                settle_no[entry.shard] = entry.settle_no
