"""Metering equals attempts: the store holds as many as were recorded, and to no tenant more than were sent for it."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

from tests.sim.system.trace import Ended, Sent, Settled, Stored, Trace, check


def judge(trace: Trace) -> None:
    tenants: dict[UUID, UUID] = {}
    sent: Counter[UUID] = Counter()
    recorded: Counter[UUID] = Counter()
    for entry in trace.of(Stored, Sent, Settled, Ended):
        match entry:
            case Stored():
                tenants[entry.event_id] = entry.tenant_id
            case Sent():
                sent[tenants[entry.event_id]] += 1
            case Settled():
                recorded.update(attempt.tenant_id for attempt in entry.attempts)
                for tenant_id, count in recorded.items():
                    check(count <= sent[tenant_id], "more attempts than requests:", tenant_id, count)
            case Ended():
                check(entry.stored_attempts == recorded.total(), "attempts stored:", entry, recorded.total())
