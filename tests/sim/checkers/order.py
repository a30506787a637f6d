"""I15: an ordered endpoint gets first arrivals in the order of acceptance, whoever dies and wherever its tenant moves.

Of events that were replayed nothing is said: a replay has a place of its own.
"""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from tests.sim.system.trace import Arrived, Configured, Stored, Trace, check


def judge(trace: Trace) -> None:
    ordered: set[UUID] = set()
    place: dict[tuple[UUID, UUID], int] = {}
    accepted: dict[UUID, int] = defaultdict(int)
    last: dict[UUID, int] = defaultdict(int)
    seen: set[tuple[UUID, UUID]] = set()
    replayed = {entry.event_id for entry in trace.of(Stored) if entry.kind == 1}
    for entry in trace.of(Configured, Stored, Arrived):
        match entry:
            case Configured() if entry.ordered:
                ordered.add(entry.endpoint_id)
            case Stored() if entry.kind == 0:
                for endpoint_id in entry.owed:
                    accepted[endpoint_id] += 1
                    place[entry.event_id, endpoint_id] = accepted[endpoint_id]
            case Arrived() if entry.endpoint_id in ordered and entry.event_id not in replayed:
                key = (entry.event_id, entry.endpoint_id)
                if key not in seen:
                    seen.add(key)
                    check(place[key] > last[entry.endpoint_id], "arrived behind a later one:", entry, place[key])
                    last[entry.endpoint_id] = place[key]
            case _:
                pass
