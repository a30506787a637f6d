"""A store in memory, with the semantics of storage/postgres, and a ledger that judges what an engine does to it.

The ledger knows nothing of the engine's insides: it sees what was appended, what was sent, what came back and what was
committed, and raises Violation when these cannot be true together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID

from hookpost.engine.work import (
    ATTEMPT_COLUMNS,
    BacklogChange,
    BacklogRow,
    Fetch,
    JournalRow,
    LaneSummary,
    Progress,
    ShardSettle,
    Takeover,
    Work,
)
from hookpost.model import Endpoint, Outcome

NEVER = float("inf")
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


def us(moment: float) -> int:
    """Microseconds, as the database counts."""
    return round(moment * 1e6)


class Store:
    """What is committed: journal, progress, backlog, fences. Same keyset and settle semantics as worker.sql."""

    def __init__(self, shards: int) -> None:
        self.shards = range(shards)
        self.journal: dict[int, list[JournalRow]] = {shard: [] for shard in self.shards}
        self.fences = dict.fromkeys(self.shards, 0)
        self.last: dict[int, ShardSettle | None] = dict.fromkeys(self.shards)
        self.backlog: dict[tuple[int, UUID], dict[int, BacklogChange]] = {}
        self.dead: set[tuple[UUID, UUID]] = set()

    def claim(self, shard: int) -> int:
        """A new owner: the old one's settles change nothing from now on."""
        self.fences[shard] += 1
        return self.fences[shard]

    def read(self, shard: int, after: int, rows_max: int) -> list[JournalRow]:
        """Journal rows behind ``after``."""
        return self.journal[shard][after : after + rows_max]

    def takeover(self, shard: int) -> Takeover:
        """Where the last settle left the shard. Clean only if the very last owner said so."""
        fence = self.fences[shard]
        last = self.last[shard]
        if last is None:
            return Takeover(shard, fence, clean=fence == 1)
        progress = last.progress
        rows = [row for row in self.journal[shard] if any(a <= row.seq < b for a, b in progress.open)]
        lanes = []
        for (number, endpoint_id), waiting in self.backlog.items():
            if number == shard and waiting:
                tenant_id = next(iter(waiting.values())).tenant_id
                due = min(us(row.due_at) for row in waiting.values()) / 1e6
                deadline = min(us(row.deadline) for row in waiting.values()) / 1e6
                lanes.append(LaneSummary(endpoint_id, tenant_id, len(waiting), due, deadline))
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
        waiting = self.backlog.get((fetch.shard, fetch.endpoint_id), {}).values()
        if fetch.expired:
            found = sorted((row for row in waiting if us(row.deadline) <= us(fetch.until)), key=lambda r: r.position)
        else:
            after, until = (us(fetch.after[0]), fetch.after[1]), us(fetch.until)
            keyed = sorted((us(row.due_at), row.position) for row in waiting)
            lane = self.backlog.get((fetch.shard, fetch.endpoint_id), {})
            found = [lane[position] for due, position in keyed if (due, position) > after and due <= until]
        return [self._row(fetch, change) for change in found[: fetch.limit + 1]]

    def fetch_behind(self, fetch: Fetch) -> float:
        """The least due time (or deadline) behind ``until``: a statement of its own, later than the rows'."""
        waiting = self.backlog.get((fetch.shard, fetch.endpoint_id), {}).values()
        times = [us(row.deadline if fetch.expired else row.due_at) for row in waiting]
        return min((t / 1e6 for t in times if t > us(fetch.until)), default=NEVER)

    def _row(self, fetch: Fetch, change: BacklogChange) -> BacklogRow:
        event = self.journal[fetch.shard][change.position - 1]
        return BacklogRow(
            position=change.position,
            day=change.day,
            event_id=change.event_id,
            type="" if fetch.expired else event.type,
            payload=None if fetch.expired else event.payload,
            generation=change.generation,
            reason=change.reason,
            due_at=us(change.due_at) / 1e6,
            retry_count=change.retry_count,
            deadline=us(change.deadline) / 1e6,
            created_at=us(change.created_at) / 1e6,
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
    live: dict[Key, UUID] = field(default_factory=dict)
    ended: set[Key] = field(default_factory=set)
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

    def appended(self, row: JournalRow) -> None:
        """The event is owed to these endpoints."""
        for endpoint_id in row.owed:
            self.live[row.shard][row.seq, endpoint_id] = Fate.UNREAD

    @property
    def owed(self) -> int:
        """Deliveries that are not over."""
        return sum(map(len, self.live.values()))

    def send(self, owner: Owner, work: Work, attempt_id: UUID, now: float) -> None:
        """A request starts."""
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
        check(work.entry.generation == row.generation, "wrong generation:", shard, key)
        if fate is Fate.WAITING:
            waiting = self.store.backlog[shard, key[1]][key[0]]
            check(us(now) + 1 >= us(waiting.due_at), "sent before it is due:", shard, key, waiting.due_at - now)
        doubts = self.doubts.setdefault((shard, key), set())
        earlier = any(self.sent[attempt].fence != owner.fence for attempt in doubts)
        check(work.possible_duplicate or not earlier, "a duplicate that does not say so:", shard, key)
        doubts.add(attempt_id)
        owner.live[key] = attempt_id
        self.sent[attempt_id] = Sent(key, owner.fence, work)

    def ended(self, owner: Owner, attempt_id: UUID, outcome: Outcome, now: float) -> None:
        """A request's outcome reaches the engine, while it still owns the shard."""
        sent = self.sent[attempt_id]
        sent.ended_at, sent.outcome = now, outcome
        del owner.live[sent.key]
        if outcome.error_code is None:
            owner.ended.add(sent.key)

    def committed(self, part: ShardSettle, parts_policy: dict[UUID, Endpoint]) -> None:
        """The store has this part: all of it must be true, and nothing may be missing."""
        shard, progress = part.shard, part.progress
        self._check_progress(part)
        verdicts = dict(map(self._attempt(part), part.attempts))
        check(len(verdicts) == len(part.attempts), "a delivery was attempted twice in one settle", shard)
        dead = {(letter.position, letter.endpoint_id) for letter in part.dead}
        check(len(dead) == len(part.dead), "died twice in one settle", shard)
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
            waits = key[0] in self.store.backlog.get((shard, key[1]), {})
            verdict = "dead" if key in dead else verdicts.get(key)
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
                deleted = self.endpoints[key[1]].deleted
                check(verdict in ("delivered", "dead") or deleted, "lost:", shard, key, fate, verdict)
                del self.live[shard][key]
                self.ends[verdict if verdict in self.ends else "cancelled"] += 1  # type: ignore[index]

    def _lives(self, shard: int, key: Key) -> bool:
        """Not over; or cancelled with its endpoint, then a request that was under way may still report."""
        return key in self.live[shard] or self.endpoints[key[1]].deleted

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
        deadline = self.store.journal[part.shard][key[0] - 1].created_at + policy.deadline_s
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
