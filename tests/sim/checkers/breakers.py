"""I18: behind so many failures in a row a worker sends one request at a time to a receiver, until it is well again.

A receiver is one origin of one tenant. A healthy answer to anybody, or the tenant's word, ends it; a worker that hears
of that word late has counted what was under way then to the time before it.
"""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from tests.sim.system.trace import Answered, Claimed, Configured, Sent, Trace, check

FAILURES = 4
_Receiver = tuple[UUID, str]


def judge(trace: Trace) -> None:
    origin: dict[UUID, _Receiver] = {}
    row: dict[tuple[str, _Receiver], int] = defaultdict(int)
    since: dict[tuple[str, _Receiver], set[str]] = defaultdict(set)
    under_way: dict[str, _Receiver] = {}
    excused: set[str] = set()
    for entry in trace.of(Configured, Claimed, Sent, Answered):
        match entry:
            case Claimed():
                # It may have been without a shard of the tenant, and only what has opened is remembered elsewhere.
                for key in [key for key, failures in row.items() if key[0] == entry.node and failures < FAILURES]:
                    row[key] = 0
            case Configured():
                receiver = (entry.tenant_id, entry.url.split("/")[2])
                origin[entry.endpoint_id] = receiver
                for key in [key for key in row if key[1] == receiver]:
                    row[key] = 0
                excused.update(span for span, to in under_way.items() if to == receiver)
            case Sent():
                key = (entry.node, origin[entry.endpoint_id])
                under_way[entry.span] = key[1]
                if row[key] >= FAILURES:
                    check(not since[key], "two requests behind an open breaker:", entry, since[key])
                    since[key].add(entry.span)
            case Answered():
                receiver = origin[entry.endpoint_id]
                key = (entry.node, receiver)
                since[key].discard(entry.span)
                under_way.pop(entry.span, None)
                if entry.error is None or entry.status == 400:
                    for each in [each for each in row if each[1] == receiver]:
                        row[each] = 0
                        since[each].clear()
                elif entry.span not in excused:
                    row[key] += 1
