"""I14: one event for each tenant and key. Whoever posts it gets its id; who posts something else is told of a conflict."""

from __future__ import annotations

from uuid import UUID

from tests.sim.system.trace import Accepted, Posted, Stored, Trace, check


def judge(trace: Trace) -> None:
    posts: dict[int, Posted] = {}
    events: dict[tuple[UUID, str], Stored] = {}
    for entry in trace.of(Posted, Stored, Accepted):
        match entry:
            case Posted():
                posts[entry.post] = entry
            case Stored() if entry.kind == 0 and entry.key is not None:
                check((entry.tenant_id, entry.key) not in events, "two events of one key:", entry)
                events[entry.tenant_id, entry.key] = entry
            case Accepted() if (post := posts[entry.post]).key is not None:
                event = events.get((post.tenant_id, post.key))
                check(event is not None, "accepted and not stored:", entry)
                assert event is not None
                check(entry.event_id == event.event_id, "the id of another event:", entry)
                same = (post.type, post.payload) == (event.type, event.payload)
                check((entry.verdict == "conflict") == (not same), "a wrong verdict:", entry, post)
            case _:
                pass
