"""A tenant's limit at ingest: so many events a second over all API processes, shared out by recent demand. Pure.

Each process tells the others about once a second how many events it was asked to take, and takes its part of the
limit. The parts of processes that know the same numbers add up to the limit. Over any window of ``w`` seconds all of
them let in at most ``limit * w`` events and their buckets: one second's worth in all, and at least one event for each
process. While demand moves from one process to another, both may hold a part for as long as a look or two take.

What is asked for at once is let in or refused as a whole. More than a bucket ever holds is let in when the bucket is
full, and paid for afterwards. Times are seconds on one clock of the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import nlargest
from uuid import UUID

from hookpost.policy.rate import TokenBucket

# Of the limit, in equal parts for all however busy some are: who has no demand yet must be able to show some.
HEADROOM = 0.05
# After so long half of what is known of the demand is new: about one look, so that parts follow demand within two.
HALF_LIFE_S = 0.5
# Events a second below which nobody asks any more.
DEMAND_MIN = 0.001
# Tenants that one process tells the others of, those with the most demand: each process hears of all of them.
REPORTED_MAX = 1_000


def part(limit: float, *, own: float, others: float, processes: int) -> float:
    """Events a second that one process may let in, of a limit for all.

    ``own``, ``others``: events a second that this process and all others together were asked for. Each gets what it was
    asked for, cut down in proportion when it is too much in all, and an equal part of what is left.
    """
    demand = own + others
    headroom = max(limit - demand, HEADROOM * limit)
    asked = own / demand if demand > 0 else 0.0
    return asked * (limit - headroom) + headroom / processes


@dataclass(frozen=True, slots=True)
class Standing:
    """What a producer is told: the limit in events a second, events left at this process now, and in how many seconds
    it is worth to ask again (refused) or the bucket is full (let in)."""

    limit: float
    left: int
    wait_s: float


class Allowance:
    """One tenant's part of its limit in one process. It starts with a full bucket: one second's worth of its part."""

    __slots__ = ("_bucket", "_demand", "_due", "_measured_at", "_offered", "_processes", "limit", "tenant_id")

    def __init__(self, tenant_id: UUID, limit: float, *, others: float, processes: int, now: float) -> None:
        self.tenant_id = tenant_id
        self.limit = limit
        self._processes = processes
        rate = part(limit, own=0.0, others=others, processes=processes)
        self._bucket = TokenBucket(rate, since=now - max(1.0, 1.0 / rate))
        self._due = rate
        self._offered = 0
        self._demand = 0.0
        self._measured_at = now

    def take(self, events: int, *, now: float) -> float:
        """Let so many events in: 0. Else none of them; the answer is in how many seconds it is worth to try again."""
        self._offered += events
        missing_s = self._bucket.take(now=now, tokens=events)
        return missing_s * self._bucket.rate / self._reached()

    def give_back(self, events: int) -> None:
        """So many of those that were let in were not accepted."""
        self._bucket.give_back(events)

    def standing(self, *, now: float, wait_s: float | None = None) -> Standing:
        """What to tell the producer; ``wait_s`` if it was refused."""
        left = self._bucket.left(now=now)
        full_s = max(0.0, max(1.0, self._bucket.rate) - left) / self._reached()
        return Standing(self.limit, max(0, int(left)), full_s if wait_s is None else wait_s)

    def _reached(self) -> float:
        """Events a second: a part below the fair one grows to it within two looks if somebody asks."""
        return max(self._bucket.rate, self.limit / self._processes)

    def measure(self, *, now: float) -> float:
        """Events a second that were asked for of late; no more than the limit, or who asks in vain and without end
        would be given all of it."""
        elapsed_s = now - self._measured_at
        if elapsed_s > 0:
            asked = min(self._offered / elapsed_s, self.limit)
            self._demand += (1 - 0.5 ** (elapsed_s / HALF_LIFE_S)) * (asked - self._demand)
            self._offered = 0
            self._measured_at = now
        return min(self._demand, self.limit) if self._demand >= DEMAND_MIN else 0.0

    def share(self, *, own: float, others: float, processes: int, now: float) -> None:
        """Go on with the part that these demands give. It shrinks at once and grows a look later: by then the others
        have heard of the demand and made room."""
        self._processes = processes
        due = part(self.limit, own=own, others=others, processes=processes)
        self._bucket.change(min(due, self._due), now=now)
        self._due = due

    def change(self, limit: float, *, now: float) -> None:
        """Go on with another limit, and with as much of it as of the old one."""
        if limit != self.limit:
            self._bucket.change(self._bucket.rate * limit / self.limit, now=now)
            self._due *= limit / self.limit
            self.limit = limit

    def is_idle(self, *, now: float) -> bool:
        """Did nobody ask of late, and would a new one hold no more?"""
        return self._offered == 0 and self._demand < DEMAND_MIN and self._bucket.is_full(now=now)


class IngestGate:
    """The limits of one process's tenants.

    ``expected``: how many processes begin together with it: until ``settled_at`` the limits are cut in at least so many
    parts, as some of them may not have been heard of.
    """

    def __init__(self, *, expected: int = 1, settled_at: float = 0.0) -> None:
        self._expected = expected
        self._settled_at = settled_at
        self._processes = expected
        self._others: Mapping[UUID, float] = {}
        # Those that were asked for of late, or have something to pay for.
        self._active: dict[UUID, Allowance] = {}

    def allowance(self, tenant_id: UUID, limit: float | None, *, now: float) -> Allowance | None:
        """That of a tenant whose limit was just read; None when it has none."""
        if limit is None:
            self._active.pop(tenant_id, None)
            return None
        known = self._active.get(tenant_id)
        if known is None:
            others = self._others.get(tenant_id, 0.0)
            return Allowance(tenant_id, limit, others=others, processes=self._processes, now=now)
        known.change(limit, now=now)
        return known

    def take(self, allowance: Allowance, events: int, *, now: float) -> float:
        """As ``Allowance.take``; one that slept has its part by what is known of the others now."""
        tenant_id = allowance.tenant_id
        if tenant_id not in self._active:
            self._active[tenant_id] = allowance
            others = self._others.get(tenant_id, 0.0)
            allowance.share(own=0.0, others=others, processes=self._processes, now=now)
        return allowance.take(events, now=now)

    def charged(self, tenant_id: UUID) -> Allowance | None:
        """That of a tenant whose events were let in a moment ago; None when it has no limit."""
        return self._active.get(tenant_id)

    def demands(self, *, now: float) -> dict[UUID, float]:
        """What to tell the other processes: events a second by tenant."""
        measured = {tenant_id: allowance.measure(now=now) for tenant_id, allowance in self._active.items()}
        asked = {tenant_id: demand for tenant_id, demand in measured.items() if demand > 0}
        if len(asked) > REPORTED_MAX:
            return dict(nlargest(REPORTED_MAX, asked.items(), key=lambda item: item[1]))
        return asked

    def share(self, own: Mapping[UUID, float], others: Mapping[UUID, float], *, processes: int, now: float) -> None:
        """Take this process's part of each limit, by what it has told and what all others together have."""
        self._others = others
        self._processes = processes if now >= self._settled_at else max(processes, self._expected)
        for tenant_id, allowance in list(self._active.items()):
            asked = own.get(tenant_id, 0.0), others.get(tenant_id, 0.0)
            allowance.share(own=asked[0], others=asked[1], processes=self._processes, now=now)
            if allowance.is_idle(now=now):
                del self._active[tenant_id]
