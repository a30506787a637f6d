"""What is stored, as plain values: one Database is what all stores of a world see.

Rows that the API shows are dicts with the columns of the schema; times are Unix seconds, rounded to the microsecond as
PostgreSQL keeps them; days are days since 2000-01-01.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from hookpost.engine.work import (
    ATTEMPT_COLUMNS,
    Attempt,
    BacklogChange,
    DeadLetter,
    Kind,
    Progress,
    ShardSettle,
)
from hookpost.model import Endpoint
from hookpost.policy.alerts import Alert, Notice, Standing
from hookpost.policy.breaker import BreakerRecord
from hookpost.storage.contract import Channel, NotFound, StoreUnavailable
from hookpost.storage.memory.journal import Event, Journal

_EPOCH = 946_684_800
DAY_S = 86_400.0
_EVENT, _GENERATION = (ATTEMPT_COLUMNS.index(name) for name in ("event_id", "generation"))


def at(moment: float) -> float:
    """The time as it is stored."""
    return round(moment * 1e6) / 1e6 if math.isfinite(moment) else moment


def day_of(moment: float, day_s: float = DAY_S) -> int:
    """The day of a time."""
    return int((moment - _EPOCH) // day_s)


def first_moment(day: int, day_s: float = DAY_S) -> float:
    """When a day begins."""
    return _EPOCH + day * day_s


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """What one settle wrote of one shard."""

    day: int
    shard: int
    settle_no: int
    fence: int
    progress: Progress
    clean: bool


@dataclass(slots=True)
class Shard:
    """One shard: whose it is, its journal and what was settled of it."""

    shard: int
    pool: str
    owner: UUID | None = None
    fence: int = 0
    quiet_until: float | None = None
    doubtful_to: float = 0.0
    draining: bool = False
    journal: Journal = field(default_factory=Journal)
    progress: list[ProgressRow] = field(default_factory=list)

    @property
    def last(self) -> ProgressRow | None:
        """The last settle's row."""
        return self.progress[-1] if self.progress else None

    @property
    def cursor(self) -> int:
        """All up to here is done or in the backlog."""
        return self.progress[-1].progress.cursor if self.progress else 0

    @property
    def depth(self) -> int:
        """Entries that are not read or open."""
        if not self.progress:
            return self.journal.last_seq
        progress = self.progress[-1].progress
        return self.journal.last_seq - progress.read_to + sum(end - start for start, end in progress.open)


@dataclass(slots=True)
class Node:
    """A worker's lease."""

    pool: str
    name: str
    expires_at: float
    clock_to: float


@dataclass(slots=True)
class IngestNode:
    """An API process, and what it was asked for."""

    demands: dict[UUID, float]
    expires_at: float


@dataclass(frozen=True, slots=True)
class Key:
    """A stored idempotency key."""

    event_id: UUID
    request_hash: bytes
    delivery_count: int
    expires_at: float


@dataclass(frozen=True, slots=True)
class Breaker:
    """A stored breaker, and who may send its probe until when."""

    record: BreakerRecord
    probe_by: UUID | None = None
    probe_until: float = -math.inf


@dataclass(slots=True)
class Letter:
    """A dead letter of a shard."""

    shard: int
    letter: DeadLetter


@dataclass(slots=True)
class Untold:
    """An alert that is to be told in one channel, and how often that was tried."""

    alert: Alert
    due_at: float
    tries: int = 0


@dataclass(slots=True)
class Marks:
    """How far the rollups have counted a shard: its settles and its journal."""

    settle_no: int = 0
    seq: int = 0


@dataclass(slots=True)
class Metered:
    """What was counted of a tenant's day."""

    accepted: int = 0
    attempts: int = 0
    delivered: int = 0


class Database:
    """All that is stored. ``clock`` tells the store's time, in Unix seconds; it may jump, as clocks do. ``day_s``: how
    long a day lasts, for worlds that do not wait for one."""

    def __init__(self, *, shards: int, clock: Callable[[], float], pool: str = "default", day_s: float = DAY_S) -> None:
        self._clock = clock
        self.day_s = day_s
        self.started_at = clock()
        self.shards: dict[int, Shard] = {}
        self.add_shards(pool, shards)
        self.nodes: dict[UUID, Node] = {}
        self.ingest_nodes: dict[UUID, IngestNode] = {}
        self.tenants: dict[UUID, dict[str, Any]] = {}
        self.endpoints: dict[UUID, dict[str, Any]] = {}
        self.by_tenant: dict[UUID, list[UUID]] = {}
        # Endpoints as workers were told last, and since when they are so.
        self.shown: dict[UUID, tuple[Endpoint, float]] = {}
        self.secrets: dict[UUID, list[tuple[bytes, float, float | None]]] = {}
        self.by_event: dict[UUID, list[Event]] = {}
        self.keys: dict[tuple[UUID, str], Key] = {}
        # By the day on which they were settled.
        self.attempts: dict[int, list[Attempt]] = {}
        self.backlog: dict[tuple[int, UUID], dict[int, BacklogChange]] = {}
        self.dead: dict[tuple[UUID, UUID], Letter] = {}
        self.breakers: dict[tuple[UUID, str], Breaker] = {}
        self.outbox: list[Notice] = []
        self.standings: dict[UUID, Standing] = {}
        self.alerts: dict[tuple[UUID, Channel], Untold] = {}
        self.barriers: dict[tuple[UUID, int], int] = {}
        self.departures: dict[tuple[UUID, int], int] = {}
        self.replays: dict[UUID, dict[str, Any]] = {}
        self.marks: dict[int, Marks] = {}
        self.metering: dict[tuple[int, UUID], Metered] = {}
        # Days of events that are on their way out: nobody sees these rows any more, and some may come back.
        self.detached: dict[int, list[Event]] = {}
        self.retiring = False
        # Held while a day goes out of sight, and while something is owed once more.
        self.leaving = asyncio.Lock()
        self.event_types: dict[tuple[UUID, str], dict[str, Any]] = {}
        self.listeners: list[Callable[[Collection[int]], None]] = []

    def blocks(self, letter: Letter) -> bool:
        """Does this dead delivery hold up its lane, whose endpoint keeps an order, or did when it died?"""
        died = letter.letter
        row = self.backlog.get((letter.shard, died.endpoint_id), {}).get(died.position)
        return row is not None and row.due_at == float("inf")

    def now(self) -> float:
        """The time."""
        return at(self._clock())

    def today(self) -> int:
        """The day."""
        return day_of(self._clock(), self.day_s)

    def add_shards(self, pool: str, count: int) -> None:
        """Shards are numbered on."""
        for number in range(len(self.shards), len(self.shards) + count):
            self.shards[number] = Shard(number, pool)

    def shard(self, number: int) -> Shard:
        """Raises StoreUnavailable for one that there is not: no fault of the data."""
        if number not in self.shards:
            raise StoreUnavailable(f"shard {number} does not exist")
        return self.shards[number]

    # ---- configuration ------------------------------------------------------------------------------------------

    def tenant(self, tenant_id: UUID) -> dict[str, Any]:
        """Raises NotFound, also for a deleted one."""
        row = self.tenants.get(tenant_id)
        if row is None or row["deleted_at"] is not None:
            raise NotFound("there is no such tenant")
        return row

    def endpoint(self, tenant_id: UUID | None, endpoint_id: UUID) -> dict[str, Any]:
        """Raises NotFound, also for a deleted one and another tenant's."""
        row = self.endpoints.get(endpoint_id)
        if row is None or row["deleted_at"] is not None or tenant_id not in (None, row["tenant_id"]):
            raise NotFound("there is no such endpoint")
        return row

    def endpoints_of(self, tenant_id: UUID) -> list[dict[str, Any]]:
        """Those that are not deleted, in the order they were created."""
        rows = (self.endpoints[endpoint_id] for endpoint_id in self.by_tenant.get(tenant_id, ()))
        return [row for row in rows if row["deleted_at"] is None]

    def exists(self, endpoint_id: UUID) -> bool:
        """Is there such an endpoint, not deleted?"""
        row = self.endpoints.get(endpoint_id)
        return row is not None and row["deleted_at"] is None

    # ---- the journal --------------------------------------------------------------------------------------------

    def append(self, number: int, event_id: UUID, tenant_id: UUID, kind: Kind, type_: str, **values: Any) -> None:
        """One more row, behind all others of the shard and never of an earlier day."""
        journal = self.shards[number].journal
        day = max(self.today(), journal.rows[-1].day) if journal.rows else self.today()
        row = {"payload": None, "owed": (), "generation": 0, "created_at": self.now(), **values}
        event = Event(number, journal.last_seq + 1, day, kind, event_id, tenant_id, type_, **row)
        journal.append(event)
        self.by_event.setdefault(event_id, []).append(event)

    def original(self, event_id: UUID) -> Event | None:
        """The event as it was posted, if it is to be seen."""
        rows = (event for event in self.by_event.get(event_id, ()) if event.day not in self.detached)
        return next((event for event in rows if event.kind == Kind.DELIVER), None)

    def newest_generation(self, event_id: UUID) -> int:
        """The highest number that anything recorded of the event bears, in the journal, of its attempts and deaths."""
        found = [event.generation for event in self.by_event[event_id]]
        found += [row[_GENERATION] for rows in self.attempts.values() for row in rows if row[_EVENT] == event_id]
        found += [dead.letter.generation for (of, _), dead in self.dead.items() if of == event_id]
        return max(found)

    # ---- what is settled ----------------------------------------------------------------------------------------

    def settled(self, part: ShardSettle) -> bool:
        """Was this part committed?"""
        shard = self.shards.get(part.shard)
        rows = () if shard is None else reversed(shard.progress)
        return any(row.settle_no == part.settle_no and row.fence == part.fence for row in rows)

    def waits(self, number: int, endpoint_id: UUID, *, up_to: float = math.inf) -> bool:
        """Does anything of the endpoint up to this position lie in the shard's backlog?"""
        return any(position <= up_to for position in self.backlog.get((number, endpoint_id), ()))
