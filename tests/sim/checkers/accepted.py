"""I1, I3: no accepted event is lost. What a producer was told is stored is in the journal before it is told, whole."""

from __future__ import annotations

from uuid import UUID

from tests.sim.system.trace import Accepted, Posted, Stored, Trace, check


def judge(trace: Trace) -> None:
    posts: dict[int, Posted] = {}
    stored: dict[UUID, Stored] = {}
    last: dict[int, int] = {}
    for entry in trace.of(Posted, Stored, Accepted):
        match entry:
            case Posted():
                posts[entry.post] = entry
            case Stored():
                check(entry.seq == last.get(entry.shard, 0) + 1, "a gap in the journal:", entry)
                last[entry.shard] = entry.seq
                if entry.kind == 0:
                    check(entry.event_id not in stored, "an event was stored twice:", entry)
                    stored[entry.event_id] = entry
            case Accepted():
                row, post = stored.get(entry.event_id), posts[entry.post]
                check(row is not None, "accepted and not stored:", entry)
                assert row is not None
                check(row.tenant_id == post.tenant_id, "stored for another tenant:", entry)
                check(entry.deliveries == len(row.owed), "told of another number of deliveries:", entry)
                if entry.verdict != "conflict":
                    check((row.type, row.payload) == (post.type, post.payload), "stored otherwise:", entry)
