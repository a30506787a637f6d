"""A store in memory, with the semantics of storage/postgres, and a ledger that judges what an engine does to it.

The ledger knows nothing of the engine's insides: it sees what was appended, what was sent, what came back and what was
committed, and raises Violation when these cannot be true together.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random
from typing import Any
from uuid import UUID

from hookpost.engine.work import (
    ATTEMPT_COLUMNS,
    CANCEL,
    BacklogChange,
    BacklogRow,
    Fetch,
    JournalRow,
    Kind,
    LaneSummary,
    Progress,
    ShardSettle,
    Takeover,
    Wanted,
    Work,
)
from hookpost.model import Endpoint, Outcome, Retry
from hookpost.policy.breaker import BreakerRecord, BreakerState, Probe
from hookpost.policy.rate import TIME_GRAIN_S
from hookpost.policy.retry import decide

NEVER = float("inf")
# How long the right to a probe lasts.
PROBE_S = 40.0
# PostgreSQL keeps microseconds; the ledger forgives one more, for the engine keeps rows apart by one.
TICK_S = 2.5e-6
_COLUMN = {name: index for index, name in enumerate(ATTEMPT_COLUMNS)}

Key = tuple[int, UUID]  # (seq, endpoint) inside one shard


class Violation(AssertionError):
    """The engine broke a promise."""


def check(holds: bool, *what: object) -> None:
    """Raise Violation unless it holds."""
    if not holds:
        raise Violation(" ".join(map(str, what)))


def column(attempt: tuple[Any, ...], name: str) -> Any:
    """A column of an attempt's tuple."""
    return attempt[_COLUMN[name]]


def us(moment: float) -> float:
    """Microseconds, as the database counts."""
    return moment if moment == NEVER else round(moment * 1e6)


class Store:
    """What is committed: journal, progress, backlog, fences. Same keyset and settle semantics as worker.sql."""

    def __init__(self, shards: int) -> None:
        self.shards = range(shards)
        self.journal: dict[int, list[JournalRow]] = {shard: [] for shard in self.shards}
        self.fences = dict.fromkeys(self.shards, 0)
        self.last: dict[int, ShardSettle | None] = dict.fromkeys(self.shards)
        self.backlog: dict[tuple[int, UUID], dict[int, BacklogChange]] = {}
        self.dead: set[tuple[UUID, UUID]] = set()
        self.quiet_until = dict.fromkeys(self.shards, 0.0)
        self.breakers: dict[tuple[UUID, str], BreakerRecord] = {}
        self.probes: dict[tuple[UUID, str], float] = {}

    def claim(self, shard: int) -> int:
        """A new owner: the old one's settles change nothing from now on."""
        self.fences[shard] += 1
        return self.fences[shard]

    def take_probe(self, tenant_id: UUID, origin: str, now: float) -> Probe:
        """One worker of the fleet gets it, until it lapses."""
        key = (tenant_id, origin)
        record = self.breakers.get(key)
        if record is None:
            return Probe(True, now + PROBE_S, BreakerRecord(*key, BreakerState.OPEN, 0.0, None, 1, 0))
        free = self.probes.get(key, 0.0) <= now and (record.reopen_at or 0.0) <= now
        granted = free and record.state is not BreakerState.CLOSED
        if granted:
            record = self.breakers[key] = replace(record, state=BreakerState.HALF_OPEN, since=now)
            self.probes[key] = now + PROBE_S
        return Probe(granted, max(now, self.probes.get(key, 0.0), record.reopen_at or 0.0), record)

    def save_breaker(self, record: BreakerRecord) -> None:
        """Unless something later is stored."""
        stored = self.breakers.get((record.tenant_id, record.origin))
        if stored is None or stored.since < record.since + 1.0:
            self.breakers[record.tenant_id, record.origin] = record
            self.probes.pop((record.tenant_id, record.origin), None)

    def read(self, shard: int, after: int, rows_max: int) -> list[JournalRow]:
        """Journal rows behind ``after``."""
        return self.journal[shard][after : after + rows_max]

    def takeover(self, shard: int) -> Takeover:
        """Where the last settle left the shard. Clean only if the very last owner said so."""
        fence = self.fences[shard]
        last = self.last[shard]
        if last is None:
            return Takeover(shard, fence, clean=fence == 1, quiet_until=self.quiet_until[shard])
        progress = last.progress
        rows = [row for row in self.journal[shard] if any(a <= row.seq < b for a, b in progress.open)]
        lanes = []
        for (number, endpoint_id), waiting in self.backlog.items():
            if number == shard and waiting:
                tenant_id = next(iter(waiting.values())).tenant_id
                due = min(us(row.due_at) for row in waiting.values()) / 1e6
                deadline = min(us(row.deadline) for row in waiting.values()) / 1e6
                blocking = sum(row.due_at == NEVER for row in waiting.values())
                first = min(waiting)
                lanes.append(LaneSummary(endpoint_id, tenant_id, len(waiting), due, deadline, blocking, first))
        return Takeover(
            shard=shard,
            fence=fence,
            settle_no=last.settle_no,
            read_to=progress.read_to,
            read_day=progress.read_day,
            rows=tuple(rows),
            done=dict(progress.partial),
            lanes=tuple(lanes),
            clean=last.clean and last.fence == fence - 1,
            quiet_until=self.quiet_until[shard],
        )

    def lost(self, parts: list[ShardSettle]) -> list[int]:
        """The shards of a settle whose fence has moved on."""
        return [part.shard for part in parts if self.fences[part.shard] != part.fence]

    def settle(self, part: ShardSettle) -> None:
        """Write one shard's part, in the order of the SQL: revived, dead, dropped lanes, deletes, upserts."""
        self.last[part.shard] = part
        self.dead.difference_update(part.revived)
        self.dead.update((letter.event_id, letter.endpoint_id) for letter in part.dead)
        for endpoint_id in part.dropped_lanes:
            self.backlog.pop((part.shard, endpoint_id), None)
        for endpoint_id, position in part.deletes:
            self.backlog.get((part.shard, endpoint_id), {}).pop(position, None)
        for change in part.upserts.values():
            self.backlog.setdefault((part.shard, change.endpoint_id), {})[change.position] = change

    def fetch_rows(self, fetch: Fetch) -> list[BacklogRow]:
        """One more than the limit tells that there are more."""
        lane = self.backlog.get((fetch.shard, fetch.endpoint_id), {})
        after, until = (us(fetch.after[0]), fetch.after[1]), us(fetch.until)
        by_position = sorted(lane.values(), key=lambda row: row.position)
        keyed = sorted(lane.values(), key=lambda row: (us(row.due_at), row.position))
        behind = [row for row in keyed if (us(row.due_at), row.position) > after]
        match fetch.wanted:
            case Wanted.DUE:
                found = [row for row in behind if us(row.due_at) <= until]
            case Wanted.FORWARD:
                soon = [row for row in behind if until < us(row.due_at) < NEVER]
                found = [row for row in soon if us(row.stored_at) <= us(fetch.stored_by)]
            case Wanted.EXPIRED:
                found = [row for row in by_position if us(row.deadline) <= until]
            case Wanted.HEAD:
                found = by_position
            case Wanted.BLOCKING:
                found = [row for row in by_position if row.due_at == NEVER]
            case Wanted.NAMED:
                found = [row for row in by_position if row.event_id == fetch.event_id]
        return [self._row(fetch, change) for change in found[: fetch.limit + 1]]

    def fetch_behind(self, fetch: Fetch) -> float:
        """The least due time (or deadline) behind ``until``: a statement of its own, later than the rows'."""
        waiting = self.backlog.get((fetch.shard, fetch.endpoint_id), {}).values()
        times = [us(row.deadline if fetch.wanted is Wanted.EXPIRED else row.due_at) for row in waiting]
        return min((t / 1e6 for t in times if t > us(fetch.until)), default=NEVER)

    def _row(self, fetch: Fetch, change: BacklogChange) -> BacklogRow:
        event = self.journal[fetch.shard][change.position - 1]
        expired = fetch.wanted is Wanted.EXPIRED
        return BacklogRow(
            position=change.position,
            day=change.day,
            event_id=change.event_id,
            type="" if expired else event.type,
            payload=None if expired else event.payload,
            generation=change.generation,
            reason=change.reason,
            due_at=us(change.due_at) / 1e6,
            retry_count=change.retry_count,
            deadline=us(change.deadline) / 1e6,
            created_at=us(change.created_at) / 1e6,
            stored_at=us(change.stored_at) / 1e6,
        )


class Fate(StrEnum):
    """What is committed of a delivery."""

    UNREAD = "unread"
    OPEN = "open"
    WAITING = "waiting"


@dataclass(slots=True)
class Sent:
    """A request that was made and is not recorded yet."""

    key: Key
    fence: int
    work: Work
    ended_at: float = 0.0
    outcome: Outcome | None = None


@dataclass(slots=True)
class Owner:
    """One worker's time with one shard."""

    shard: int
    fence: int
    claimed_at: float = 0.0
    live: dict[Key, UUID] = field(default_factory=dict)
    ended: set[Key] = field(default_factory=set)
    over: set[Key] = field(default_factory=set)
    taken: Progress | None = None
    draining: bool = False


class Ledger:
    """Judges sends and settles. ``live`` are the deliveries that are owed and not over, by shard."""

    def __init__(self, store: Store, endpoints: dict[UUID, Endpoint]) -> None:
        self.store = store
        self.endpoints = endpoints
        self.live: dict[int, dict[Key, Fate]] = {shard: {} for shard in store.shards}
        self.tried: dict[tuple[int, Key], int] = {}
        self.sent: dict[UUID, Sent] = {}
        self.doubts: dict[tuple[int, Key], set[UUID]] = {}
        self.ends = {"delivered": 0, "dead": 0, "cancelled": 0}
        self.deadlines: dict[tuple[int, Key], float] = {}
        self.controls: dict[tuple[int, UUID, UUID], dict[str, int]] = {}
        # Of each lane (shard, endpoint): the positions that arrived at the receiver.
        self.arrivals: dict[tuple[int, UUID], set[int]] = {}
        # Of limited endpoints, by owner's fence: when its bucket was looked at last, and what was left.
        self.buckets: dict[tuple[int, int, UUID], tuple[float, float]] = {}

    def appended(self, row: JournalRow) -> None:
        """The event is owed to these endpoints, or something is to be done with what is."""
        for endpoint_id in row.owed:
            if row.kind == Kind.CONTROL:
                self.controls.setdefault((row.shard, row.event_id, endpoint_id), {})[row.type] = row.seq
            self.live[row.shard][row.seq, endpoint_id] = Fate.UNREAD

    def _controlled(self, shard: int, key: Key, event_id: UUID, type_: str) -> bool:
        """Has somebody asked for it behind this delivery?"""
        return self.controls.get((shard, event_id, key[1]), {}).get(type_, 0) > key[0]

    def arrived(self, shard: int, work: Work) -> None:
        """A request reaches its receiver, the owner alive or not. In an ordered lane none comes for the first time
        behind a later one; what a crash repeats has been there."""
        endpoint_id, seq = work.lane.endpoint.endpoint_id, work.entry.seq
        arrived = self.arrivals.setdefault((shard, endpoint_id), set())
        if self.endpoints[endpoint_id].ordered and seq not in arrived:
            last = max(arrived, default=0)
            check(seq > last, "arrived behind a later one:", shard, seq, "behind", last)
        arrived.add(seq)

    @property
    def owed(self) -> int:
        """Deliveries that are not over."""
        return sum(map(len, self.live.values()))

    def send(self, owner: Owner, work: Work, attempt_id: UUID, now: float, *, early: bool) -> None:
        """A request starts; ``early``: its receiver is back or probed, or somebody asked for it, so it may be early."""
        key = (work.entry.seq, work.lane.endpoint.endpoint_id)
        shard = owner.shard
        fate = self.live[shard].get(key)
        check(fate is not None, "sent after it was over:", shard, key)
        check(key not in owner.live, "two requests at once:", shard, key)
        check(key not in owner.ended, "sent again though it had ended:", shard, key)
        check(not owner.draining, "sent while draining:", shard, key)
        tried = self.tried.get((shard, key), 0)
        check(work.retry_count == tried, "retry_count", work.retry_count, "after", tried, "attempts:", shard, key)
        row = self.store.journal[shard][key[0] - 1]
        check(row.event_id == work.entry.event_id and row.payload == work.entry.payload, "wrong event:", shard, key)
        check(row.payload is not None, "sent without a payload:", shard, key)
        waiting = self.store.backlog.get((shard, key[1]), {}).get(key[0])
        generation = row.generation if waiting is None else waiting.generation
        check(work.entry.generation == generation, "wrong generation:", shard, key)
        self._check_order(owner, key, now)
        self._check_rate(owner, key[1], now)
        if fate is Fate.WAITING and not early:
            assert waiting is not None
            check(us(now) + 1 >= us(waiting.due_at), "sent before it is due:", shard, key, waiting.due_at - now)
        doubts = self.doubts.setdefault((shard, key), set())
        earlier = any(self.sent[attempt].fence != owner.fence for attempt in doubts)
        check(work.possible_duplicate or not earlier, "a duplicate that does not say so:", shard, key)
        doubts.add(attempt_id)
        owner.live[key] = attempt_id
        self.sent[attempt_id] = Sent(key, owner.fence, work)

    def _check_order(self, owner: Owner, key: Key, now: float) -> None:
        """One at a time, and none while an earlier one is not over."""
        if not self.endpoints[key[1]].ordered:
            return
        check(not any(e == key[1] for _, e in owner.live), "two at once in an ordered lane", owner.shard, key)
        earlier = [k for k in self.live[owner.shard] if k[1] == key[1] and k[0] < key[0]]
        before = [seq for seq, _ in earlier if not self._may_be_over(owner, (seq, key[1]), now)]
        check(not before, "sent before", before, owner.shard, key)

    def _may_be_over(self, owner: Owner, key: Key, now: float) -> bool:
        """Its end may not be committed yet: its last attempt has ended, or it dies or goes without one."""
        row = self.store.journal[owner.shard][key[0] - 1]
        expired = row.created_at + self.endpoints[key[1]].retry.deadline_s <= now
        cancelled = self._controlled(owner.shard, key, row.event_id, CANCEL)
        return key in owner.over or row.kind == Kind.CONTROL or row.payload is None or expired or cancelled

    def _check_rate(self, owner: Owner, endpoint_id: UUID, now: float) -> None:
        rate = self.endpoints[endpoint_id].rate_limit
        if rate is None:
            return
        key = (owner.shard, owner.fence, endpoint_id)
        at, tokens = self.buckets.get(key, (owner.claimed_at, 0.0))
        tokens = min(max(1.0, rate), tokens + (now - at) * rate) - 1.0
        # As early as the bucket itself lets one go, and what a float loses in a sum.
        check(tokens >= -rate * TIME_GRAIN_S - 1e-6, "over the rate limit by", -tokens, owner.shard, endpoint_id)
        self.buckets[key] = (now, tokens)

    def ended(self, owner: Owner, attempt_id: UUID, outcome: Outcome, now: float) -> None:
        """A request's outcome reaches the engine, while it still owns the shard."""
        sent = self.sent[attempt_id]
        sent.ended_at, sent.outcome = now, outcome
        del owner.live[sent.key]
        if outcome.error_code is None:
            owner.ended.add(sent.key)
        policy = self.endpoints[sent.key[1]].retry
        decision = decide(
            outcome,
            retry_count=sent.work.retry_count,
            deadline=sent.work.deadline or sent.work.entry.created_at + policy.deadline_s,
            policy=policy,
            now=now,
            rng=Random(0),
        )
        if not isinstance(decision, Retry):
            owner.over.add(sent.key)

    def committed(self, part: ShardSettle, parts_policy: dict[UUID, Endpoint]) -> None:
        """The store has this part: all of it must be true, and nothing may be missing."""
        shard, progress = part.shard, part.progress
        self._check_progress(part)
        verdicts = dict(map(self._attempt(part), part.attempts))
        check(len(verdicts) == len(part.attempts), "a delivery was attempted twice in one settle", shard)
        dead = {(letter.position, letter.endpoint_id) for letter in part.dead}
        check(len(dead) == len(part.dead), "died twice in one settle", shard)
        self._revive(part)
        for key in (*dead, *((change.position, change.endpoint_id) for change in part.upserts.values())):
            check(self._lives(shard, key), "dead or in the backlog after it was over:", shard, key)
        partial = dict(progress.partial)
        is_open = {
            (seq, endpoint_id)
            for start, end in progress.open
            for seq in range(start, end)
            for endpoint_id in self.store.journal[shard][seq - 1].owed
            if endpoint_id not in partial.get(seq, ())
        }
        for key in is_open:
            check(key in self.live[shard], "open after it was over:", shard, key)
        for key, fate in list(self.live[shard].items()):
            row = self.store.backlog.get((shard, key[1]), {}).get(key[0])
            verdict = "dead" if key in dead else verdicts.get(key)
            # What blocks an ordered lane is dead, though its row stays.
            waits = row is not None and row.due_at != NEVER
            if key[0] > progress.read_to:
                check(not waits and verdict is None, "not read yet, but touched:", shard, key)
            elif key in is_open:
                check(not waits, "open and in the backlog:", shard, key)
                check(fate is not Fate.WAITING, "left the backlog to be open:", shard, key)
                check(verdict is None, "settled and still open:", shard, key)
                self.live[shard][key] = Fate.OPEN
            elif waits:
                check(verdict in (None, "retry"), "over, but in the backlog:", shard, key)
                self.live[shard][key] = Fate.WAITING
                if verdict == "retry":
                    self._check_schedule(part, key, parts_policy[key[1]])
            else:
                event = self.store.journal[shard][key[0] - 1]
                cancelled = self.endpoints[key[1]].deleted or event.kind == Kind.CONTROL
                cancelled |= self._controlled(shard, key, event.event_id, CANCEL)
                check(verdict in ("delivered", "dead") or cancelled, "lost:", shard, key, fate, verdict)
                del self.live[shard][key]
                self.ends[verdict if verdict in self.ends else "cancelled"] += 1  # type: ignore[index]

    def _revive(self, part: ShardSettle) -> None:
        """A replay of a dead delivery that blocks an ordered lane takes its place: another generation of that row."""
        shard = part.shard
        for change in part.upserts.values():
            journal = self.store.journal[shard]
            if change.generation == journal[change.position - 1].generation:
                continue
            key = (change.position, change.endpoint_id)
            for row in journal[change.position :]:
                replay = (row.seq, change.endpoint_id)
                same = row.event_id == change.event_id and row.generation == change.generation
                if same and row.kind == Kind.REPLAY and replay in self.live[shard]:
                    del self.live[shard][replay]
                    self.live[shard][key] = Fate.WAITING
                    self.tried.pop((shard, key), None)
                    self.deadlines[shard, key] = row.created_at

    def _lives(self, shard: int, key: Key) -> bool:
        """Not over; or cancelled (with its endpoint), then a request that was under way may still report."""
        event_id = self.store.journal[shard][key[0] - 1].event_id
        cancelled = self._controlled(shard, key, event_id, CANCEL)
        return key in self.live[shard] or self.endpoints[key[1]].deleted or cancelled

    def _check_progress(self, part: ShardSettle) -> None:
        shard, progress = part.shard, part.progress
        before = self.store.last[shard]
        check(progress.read_to <= len(self.store.journal[shard]), "read what was not written", shard)
        check(progress.cursor <= progress.read_to, "cursor behind read_to", shard)
        if before is not None:
            check(part.settle_no > before.settle_no, "settle numbers must grow", shard)
            check(progress.read_to >= before.progress.read_to, "read_to went back", shard)
            check(progress.cursor >= before.progress.cursor, "cursor went back", shard)
        end_before = progress.cursor
        for start, end in progress.open:
            check(end_before < start < end <= progress.read_to + 1, "open ranges", progress.open, "cursor", end_before)
            end_before = end
        if progress.open:
            check(progress.cursor == progress.open[0][0] - 1, "cursor and the first open entry", shard)
        else:
            check(progress.cursor == progress.read_to, "nothing is open, yet cursor < read_to", shard)

    def _attempt(self, part: ShardSettle) -> Any:
        def record(attempt: tuple[Any, ...]) -> tuple[Key, str]:
            attempt_id, verdict = column(attempt, "attempt_id"), column(attempt, "outcome")
            sent = self.sent.get(attempt_id)
            check(sent is not None, "an attempt nobody made, or recorded twice", attempt_id)
            assert sent is not None
            key = (column(attempt, "position"), column(attempt, "endpoint_id"))
            check(key == sent.key and part.fence == sent.fence, "an attempt of another delivery or owner", key)
            check(self._lives(part.shard, key), "an attempt of a delivery that is over:", part.shard, key)
            assert sent.outcome is not None
            check((verdict == "delivered") == (sent.outcome.error_code is None), "verdict", verdict, sent.outcome)
            check(column(attempt, "settle_no") == part.settle_no, "the attempt names another settle")
            early_s = column(attempt, "scheduled_at") - column(attempt, "started_at")
            check(early_s <= 1e-6, "started before it was scheduled:", key, early_s)
            tried = self.tried[part.shard, key] = self.tried.get((part.shard, key), 0) + 1
            check(column(attempt, "retry_count") == tried - 1, "retry_count in the attempt", key)
            doubts = self.doubts[part.shard, key]
            doubts.discard(attempt_id)
            if sent.work.possible_duplicate:
                doubts.clear()
            return key, verdict

        return record

    def _check_schedule(self, part: ShardSettle, key: Key, endpoint: Endpoint) -> None:
        """Backoff within its bounds, Retry-After never undercut, nothing planned behind the deadline."""
        attempt = next(a for a in part.attempts if (column(a, "position"), column(a, "endpoint_id")) == key)
        sent = self.sent[column(attempt, "attempt_id")]
        outcome, ended_at = sent.outcome, sent.ended_at
        assert outcome is not None
        row = self.store.backlog[part.shard, key[1]][key[0]]
        policy = endpoint.retry
        created_at = self.store.journal[part.shard][key[0] - 1].created_at
        deadline = self.deadlines.get((part.shard, key), created_at) + policy.deadline_s
        check(abs(row.deadline - deadline) < TICK_S, "the deadline moved:", part.shard, key, row.deadline - deadline)
        check(ended_at < deadline + TICK_S, "retried after its deadline:", part.shard, key)
        check(row.retry_count < policy.max_attempts, "more retries than allowed", part.shard, key)
        step = min(policy.cap_s, policy.base_s * 2.0 ** (row.retry_count - 1))
        asked = float(outcome.retry_after) if outcome.retry_after and outcome.status in (429, 503) else 0.0
        least = min(deadline, ended_at + max(step / 2, asked))
        check(ended_at + asked <= deadline + TICK_S, "Retry-After beyond the deadline is dead at once:", key)
        check(row.due_at >= least - TICK_S, "retried too early by", least - row.due_at, part.shard, key)
        most = min(deadline, ended_at + max(step, asked))
        check(row.due_at <= most + TICK_S, "retried too late by", row.due_at - most, part.shard, key)
