"""I5: no delivery rests that is due, whose gate is open, and for which there are places.

Told of the time behind the trouble, when little else can hold it: in front of each row of the backlog that is due a
request to its endpoint starts within REST_S, counting from the last thing that may have kept it. What may keep it is told
from what happened alone: failures (a breaker, a Retry-After, the retry budget), processes that begin or end, a claim of
its shard, a change of its endpoint, another request to the endpoint, and in an ordered lane all that lies before it.
What is pinned of a tenant that was moved may wait for all that its other shards hold of it, or have not read.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from uuid import UUID

from tests.sim.system.trace import (
    Answered,
    Away,
    Began,
    Claimed,
    Configured,
    Ended,
    Healed,
    Jumped,
    Killed,
    Moved,
    Paused,
    Sent,
    Settled,
    Started,
    Stopping,
    Stored,
    Trace,
    check,
)

REST_S = 6.0
# A lease that runs out, a survey, a new owner that is quiet until the last one's requests have ended.
HAND_OVER_S = 15.0
# A breaker is open behind so many failures in a row, for so long at most; the right to its probe may lie with the dead.
FAILURES, PAUSE_S, PROBE_S = 4, 12.0, 40.0
# What one worker has learnt the others hear of.
TOLD_S = 2.0
# Barriers are looked at so often, and their end is heard of within seconds.
LIFTED_S = 15.0
# So many workers share the floor of the retry budget.
WORKERS_MAX = 4
# A failure counts for a minute, by a clock that may go a little slower.
BUDGET_S = 65.0
_Receiver = tuple[UUID, str]
_Lane = tuple[int, UUID]


class _Watch:
    """What is known at a moment."""

    def __init__(self) -> None:
        self.rows: dict[_Lane, dict[int, float]] = defaultdict(dict)
        self.config: dict[UUID, Configured] = {}
        self.moved: set[UUID] = set()
        # Endpoints that were ordered or had a rate limit at some time: these wait behind a move.
        self.pinned: set[UUID] = set()
        self.in_a_row: dict[tuple[str, _Receiver], int] = defaultdict(int)
        # Per endpoint, shard or receiver: nothing is said before.
        self.busy_until: dict[UUID, float] = defaultdict(float)
        self.barred_until: dict[UUID, float] = defaultdict(float)
        self.last: dict[int, int] = defaultdict(int)
        self.cursor: dict[int, int] = defaultdict(int)
        self.claimed_until: dict[int, float] = defaultdict(float)
        # By node: when it saw the last failure of a receiver that it may have a breaker open for, and how long that may be.
        self.sick: dict[_Receiver, dict[str, tuple[float, float]]] = defaultdict(dict)
        self.back_at = 0.0
        # A worker's clock never goes back: it stands until the database's is there again. What is seen then ends later.
        self.stands_until = 0.0
        self.unrest_until = 0.0
        # Written down or not: its worker may have lost the shard meanwhile.
        self.failed_retries: deque[tuple[float, UUID]] = deque()
        self.tried: set[tuple[UUID, UUID]] = set()
        self.retries: set[str] = set()
        self.floor = 0
        # Until when a tenant may have been short of the retry budget, and when anything was sent: retries that are under
        # way take their part of it, too.
        self.short: set[UUID] = set()
        self.short_until: dict[UUID, float] = defaultdict(float)
        self.sent_at = 0.0
        # What the database's clock shows more than the true time.
        self.ahead_s = 0.0

    def receiver(self, endpoint_id: UUID) -> _Receiver:
        config = self.config[endpoint_id]
        return config.tenant_id, config.url.split("/")[2]

    def go_on(self, at: float, by_s: float) -> None:
        """The database's clock was set, forward or back."""
        self.ahead_s += by_s
        self.stands_until = max(self.stands_until, at) - by_s
        self._go_back(at, max(0.0, -by_s))

    def _go_back(self, at: float, by_s: float) -> None:
        """The database's clock, by which all of them wait, lives through this time again."""
        for until in (self.busy_until, self.claimed_until):
            for each in until:
                until[each] += by_s if until[each] > at else 0.0  # type: ignore[index]
        for nodes in self.sick.values():
            nodes.update({node: (since, end + by_s if end > at else end) for node, (since, end) in nodes.items()})
        self.back_at = at if by_s else self.back_at
        self.unrest_until += by_s if self.unrest_until > at else 0.0
        self.failed_retries = deque((failed_at + by_s, tenant_id) for failed_at, tenant_id in self.failed_retries)

    def sent(self, entry: Sent) -> None:
        """Again, or for the first time?"""
        delivery = entry.event_id, entry.endpoint_id
        if delivery in self.tried:
            self.retries.add(entry.span)
        self.tried.add(delivery)
        self.busy_until[entry.endpoint_id] = max(entry.at, self.busy_until[entry.endpoint_id])
        self.sent_at = entry.at

    def answered(self, entry: Answered) -> None:
        """What the receiver's breaker and its hold may be now."""
        key, seen_at = self.receiver(entry.endpoint_id), max(entry.at, self.stands_until)
        if entry.error is not None and entry.span in self.retries:
            self.failed_retries.append((seen_at, key[0]))
        until = seen_at + entry.retry_after_s if entry.retry_after_s else entry.at
        self.busy_until[entry.endpoint_id] = max(until, self.busy_until[entry.endpoint_id])
        if entry.error is None:
            self.in_a_row[entry.node, key] = 0
            for node, (since, end) in self.sick[key].items():
                # A worker takes another's word for younger than its own by the clock: if that went back, its pause must end.
                if node == entry.node or since > self.back_at:
                    self.sick[key][node] = since, min(end, entry.at + TOLD_S)
            return
        self.in_a_row[entry.node, key] += 1
        if self.in_a_row[entry.node, key] >= FAILURES:
            self.sick[key][entry.node] = entry.at, seen_at + PAUSE_S + PROBE_S

    def sick_until(self, receiver: _Receiver) -> float:
        """Until when any worker may have its breaker open."""
        return max((end for _, end in self.sick[receiver].values()), default=0.0)

    def settled(self, entry: Settled) -> None:
        """What waits is what the backlog holds."""
        self.cursor[entry.shard] = entry.cursor
        for endpoint_id, position in entry.gone:
            self.rows[entry.shard, endpoint_id].pop(position, None)
        for endpoint_id in entry.dropped:
            self.rows.pop((entry.shard, endpoint_id), None)
        for died in entry.dead:
            self.rows[entry.shard, died.endpoint_id].pop(died.position, None)
        for wait in entry.waits:
            self.rows[entry.shard, wait.endpoint_id][wait.position] = wait.due_at

    def short_of_budget(self, now: float) -> set[UUID]:
        """The tenants whose share of the retry budget the failures of the last minute may have used up, on one worker."""
        while self.failed_retries and self.failed_retries[0][0] < now - BUDGET_S:
            over_at = self.failed_retries.popleft()[0] + BUDGET_S
            # Nothing may have happened since it was looked last.
            self.short_until.update({each: max(over_at, self.short_until[each]) for each in self.short})
        size, used = -(-self.floor // WORKERS_MAX), Counter(tenant_id for _, tenant_id in self.failed_retries)
        share = size // (len(used) + 2)
        tenants = {config.tenant_id for config in self.config.values()}
        self.short = {each for each in tenants if used and (used[each] >= share or used.total() >= size - share)}
        return self.short

    def free_of_budget_since(self, tenant_id: UUID) -> float:
        """Where the budget is small, retries wait for each other: nothing is said while any is sent."""
        until = self.short_until[tenant_id]
        return max(until, self.sent_at) if until else 0.0

    def elsewhere(self, shard: int, endpoint_id: UUID) -> bool:
        """Does another shard hold something of it, or may it?"""
        return any(
            other != shard and (self.rows.get((other, endpoint_id)) or self.cursor[other] < last)
            for other, last in self.last.items()
        )

    def check(self, healed: float, now: float) -> None:
        """Does anything rest?"""
        short = self.short_of_budget(now)
        for (shard, endpoint_id), rows in self.rows.items():
            config = self.config[endpoint_id]
            if config.tenant_id in short:
                self.short_until[config.tenant_id] = now
                continue
            if not rows or config.deleted or config.status != "enabled":
                continue
            if config.tenant_id in self.moved and endpoint_id in self.pinned and self.elsewhere(shard, endpoint_id):
                self.barred_until[endpoint_id] = now + LIFTED_S
                continue
            due = (rows[min(rows)] if config.ordered else min(rows.values())) - self.ahead_s
            since = max(
                due, healed, self.unrest_until, self.claimed_until[shard], self.busy_until[endpoint_id],
                self.barred_until[endpoint_id], self.free_of_budget_since(config.tenant_id),
                self.sick_until(self.receiver(endpoint_id)),
            )  # fmt: skip
            check(now - since <= REST_S, "rests, due since", due, "and free since", since, shard, endpoint_id, rows)


def judge(trace: Trace) -> None:
    watch, healed = _Watch(), float("inf")
    for entry in trace.entries:
        if entry.at > healed:
            watch.check(healed, entry.at)
        match entry:
            case Began():
                watch.floor = entry.retry_floor
            case Stored():
                watch.last[entry.shard] = entry.seq
                watch.ahead_s = watch.ahead_s or entry.created_at - entry.at
            case Jumped() if entry.whose == "database" and watch.ahead_s:
                watch.go_on(entry.at, entry.by_s)
            case Configured():
                watch.config[entry.endpoint_id] = entry
                if entry.ordered or entry.rate_limit is not None:
                    watch.pinned.add(entry.endpoint_id)
                watch.busy_until[entry.endpoint_id] = max(entry.at + TOLD_S, watch.busy_until[entry.endpoint_id])
            case Moved():
                watch.moved.add(entry.tenant_id)
            case Claimed():
                watch.claimed_until[entry.shard] = entry.at + HAND_OVER_S
            case Sent():
                watch.sent(entry)
            case Answered():
                watch.answered(entry)
            case Settled():
                watch.settled(entry)
            case Killed() | Started() | Stopping():
                watch.unrest_until = max(watch.unrest_until, entry.at + HAND_OVER_S)
            case Paused() | Away():
                watch.unrest_until = max(watch.unrest_until, entry.at + entry.seconds + HAND_OVER_S)
            case Healed():
                healed = entry.at
            case Ended():
                return
            case _:
                pass
