"""Read your writes: an event that is posted after a change was acknowledged is owed to exactly whom it says.

Where a change was under way between the post and the commit, either is right.
"""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from tests.sim.system.trace import Configured, Posted, Stored, Trace, check


def matches(filters: tuple[str, ...], type_: str) -> bool:
    """Does one of these filters want the type?"""
    wild = not type_.startswith("hookpost.")
    return any(f == type_ or (f == "*" and wild) or (f.endswith(".*") and type_.startswith(f[:-1])) for f in filters)


def judge(trace: Trace) -> None:
    changes: dict[UUID, list[Configured]] = defaultdict(list)
    for change in trace.of(Configured):
        changes[change.endpoint_id].append(change)
    posted: dict[tuple[UUID, bytes], float] = {}
    for entry in trace.of(Posted, Stored):
        match entry:
            case Posted():
                posted.setdefault((entry.tenant_id, entry.payload), entry.at)
            case Stored() if entry.kind == 0 and entry.payload is not None:
                began = posted[entry.tenant_id, entry.payload]
                for endpoint_id, history in changes.items():
                    _check(entry, endpoint_id, history, began)
            case _:
                pass


def _check(row: Stored, endpoint_id: UUID, history: list[Configured], began: float) -> None:
    if history[0].tenant_id != row.tenant_id:
        check(endpoint_id not in row.owed, "owed to another tenant's endpoint:", row)
        return
    if any(change.asked_at <= row.at and change.at >= began for change in history):
        return
    known = [change for change in history if change.at < began]
    wanted = bool(known) and not known[-1].deleted and matches(known[-1].events, row.type)
    check(
        (endpoint_id in row.owed) == wanted, "owed" if wanted else "not owed", "by the configuration:", endpoint_id, row
    )
