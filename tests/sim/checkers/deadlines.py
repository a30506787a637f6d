"""Deadlines: nothing dies of its deadline before it, and no retry is planned behind it."""

from __future__ import annotations

from uuid import UUID

from tests.sim.system.trace import Configured, Settled, Stored, Trace, check

TICK_S = 1e-3


def judge(trace: Trace) -> None:
    deadline_s: dict[UUID, float] = {}
    rows: dict[tuple[int, int], Stored] = {}
    replayed: set[UUID] = set()
    for entry in trace.of(Configured, Stored, Settled):
        match entry:
            case Configured():
                deadline_s[entry.endpoint_id] = entry.deadline_s
            case Stored():
                rows[entry.shard, entry.seq] = entry
                if entry.kind == 1:
                    replayed.add(entry.event_id)
            case Settled():
                for wait in entry.waits:
                    row = rows[entry.shard, wait.position]
                    if wait.due_at == float("inf") or row.event_id in replayed:
                        continue
                    deadline = row.created_at + deadline_s[wait.endpoint_id]
                    check(abs(wait.deadline - deadline) < TICK_S, "another deadline:", wait, deadline)
                    check(wait.reason != "retry" or wait.due_at <= deadline + TICK_S, "planned too late:", wait)
                for died in entry.dead:
                    row = rows[entry.shard, died.position]
                    if died.reason == "deadline" and row.event_id not in replayed:
                        deadline = row.created_at + deadline_s[died.endpoint_id]
                        check(died.died_at >= deadline - TICK_S, "died before its deadline:", died, deadline)
