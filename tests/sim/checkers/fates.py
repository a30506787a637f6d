"""I5, I6, I9: every owed delivery ends once: delivered, dead with a reason, or cancelled by somebody; none is invented."""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from tests.sim.system.trace import Configured, Ended, Left, Settled, Stored, Trace, check

CANCEL = "hookpost.cancel"
_Delivery = tuple[UUID, UUID, int]


def judge(trace: Trace) -> None:
    owed: dict[_Delivery, Stored] = {}
    cancels: dict[tuple[int, UUID, UUID], int] = defaultdict(int)
    deleted: set[UUID] = set()
    ended: dict[_Delivery, str] = {}
    left: set[tuple[int, int]] = set()

    def end(key: _Delivery, how: str) -> None:
        check(key in owed, "the end of a delivery that was never owed:", key, how)
        check(key not in ended, "ended twice:", key, ended.get(key), "and", how)
        ended[key] = how

    for entry in trace.of(Stored, Left, Configured, Settled):
        match entry:
            case Stored() if entry.kind == 2 and entry.type == CANCEL:
                for endpoint_id in entry.owed:
                    cancels[entry.shard, entry.event_id, endpoint_id] = entry.seq
            case Stored() if entry.kind < 2:
                for endpoint_id in entry.owed:
                    key = entry.event_id, endpoint_id, entry.generation
                    before = owed.get(key)
                    # What kept its event may outlive a replay: the next one is counted from those that are there.
                    if before is not None and (before.shard, before.seq) in left:
                        ended.pop(key, None)
                    owed[key] = entry
            case Left():
                left.add((entry.shard, entry.seq))
            case Configured() if entry.deleted:
                deleted.add(entry.endpoint_id)
            case Settled():
                for attempt in entry.attempts:
                    if attempt.outcome == "delivered":
                        end((attempt.event_id, attempt.endpoint_id, attempt.generation), "delivered")
                for died in entry.dead:
                    check(bool(died.reason), "died without a reason:", died)
                    end((died.event_id, died.endpoint_id, died.generation), "dead")
            case _:
                pass
    if not any(trace.of(Ended)):
        return
    for key, row in owed.items():
        event_id, endpoint_id, _ = key
        cancelled = cancels[row.shard, event_id, endpoint_id] > row.seq or endpoint_id in deleted
        check(key in ended or cancelled, "a delivery without an end:", key, row.shard, row.seq)
