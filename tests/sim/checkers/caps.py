"""I17: an endpoint never has more requests under way than its cap, over all workers.

Shares of a cap move with shards and changes of configuration: behind one of these nothing is said until the requests of
the former shares must have ended. What is left in a former home shard of its tenant drains there, one request at a time.
"""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from tests.sim.system.trace import (
    Answered,
    Away,
    Claimed,
    Configured,
    Killed,
    Moved,
    Paused,
    Sent,
    Started,
    Stopping,
    Trace,
    check,
)

QUIET_S = 8.0
FIRST_HOME = -1


def judge(trace: Trace) -> None:
    caps: dict[UUID, int] = {}
    tenants: dict[UUID, UUID] = {}
    homes: dict[UUID, set[int]] = {}
    former: dict[UUID, set[int]] = defaultdict(set)
    under_way: dict[UUID, set[str]] = defaultdict(set)
    unrest = 0.0
    for entry in trace.of(Configured, Moved, Claimed, Killed, Paused, Away, Started, Stopping, Sent, Answered):
        match entry:
            case Sent():
                requests = under_way[entry.endpoint_id]
                requests.add(entry.span)
                if entry.at > unrest + QUIET_S:
                    draining = len(former[tenants[entry.endpoint_id]])
                    check(len(requests) <= caps[entry.endpoint_id] + draining, "over the cap:", len(requests), entry)
            case Answered():
                under_way[entry.endpoint_id].discard(entry.span)
            case Configured():
                if caps.get(entry.endpoint_id) != entry.max_in_flight:
                    unrest = entry.at
                caps[entry.endpoint_id] = entry.max_in_flight
                tenants[entry.endpoint_id] = entry.tenant_id
            case Moved():
                # Where it lived before its first move is not told, and is one shard more.
                before = homes.get(entry.tenant_id, {FIRST_HOME})
                homes[entry.tenant_id] = set(entry.home_shards)
                former[entry.tenant_id] = (former[entry.tenant_id] | before) - homes[entry.tenant_id]
                unrest = max(unrest, entry.at)
            case Paused():
                unrest = max(unrest, entry.at + entry.seconds)
            case Away():
                unrest = max(unrest, entry.at + entry.seconds)
            case Killed():
                unrest = max(unrest, entry.at)
                under_way.clear()  # those of the dead go on without anybody; a quiet time will tell
            case _:
                unrest = max(unrest, entry.at)
