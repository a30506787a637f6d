"""Metering equals attempts: the store holds as many as were recorded and have not left, no tenant has more than were sent
for it, and of each tenant all attempts and all events of its own are counted, once.
"""

from __future__ import annotations

from collections import Counter
from uuid import UUID

from tests.sim.system.trace import AttemptsLeft, Ended, Sent, Settled, Stored, Trace, check

# What Hookpost publishes itself is not counted.
OWN = "hookpost."


def judge(trace: Trace) -> None:
    tenants: dict[UUID, UUID] = {}
    events: Counter[UUID] = Counter()
    sent: Counter[UUID] = Counter()
    recorded: Counter[UUID] = Counter()
    left = 0
    for entry in trace.of(Stored, Sent, Settled, AttemptsLeft, Ended):
        match entry:
            case Stored():
                tenants[entry.event_id] = entry.tenant_id
                events[entry.tenant_id] += entry.kind == 0 and not entry.type.startswith(OWN)
            case Sent():
                sent[tenants[entry.event_id]] += 1
            case Settled():
                recorded.update(attempt.tenant_id for attempt in entry.attempts)
                for tenant_id, count in recorded.items():
                    check(count <= sent[tenant_id], "more attempts than requests:", tenant_id, count)
            case AttemptsLeft():
                left += len(entry.spans)
            case Ended():
                check(entry.stored_attempts + left == recorded.total(), "attempts stored:", entry, recorded.total())
                for tenant_id, of_events, of_attempts in entry.counted:
                    owned = events[tenant_id], recorded[tenant_id]
                    check((of_events, of_attempts) == owned, "counted:", of_events, of_attempts, "of", owned, tenant_id)
                counted = {tenant_id for tenant_id, _, _ in entry.counted}
                check(counted >= {each for each in recorded if recorded[each]}, "attempts of nobody:", counted)
