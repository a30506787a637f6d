"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import msgspec

from hookpost.model import DeadReason, Payload, WaitReason
from hookpost.policy.alerts import Notice

if TYPE_CHECKING:
    from hookpost.engine.lanes import Lane


class Kind(IntEnum):
    """What a journal row asks for."""

    DELIVER = 0
    REPLAY = 1
    CONTROL = 2


# The types of control rows. Each concerns what its shard still holds of its event's deliveries to the endpoints it is
# owed to.
CANCEL = "hookpost.cancel"
RETRY_NOW = "hookpost.retry_now"
# Not a type of a row: what a replay asks for in an ordered lane.
REPLAY = "replay"
# A row is due later than any fetch could reach that was issued before it was stored. PostgreSQL's resolution is 1 µs,
# and rounding to it may take away half of one.
TICK_S = 2e-6


class JournalRow(msgspec.Struct, gc=False):
    """One row of the journal: an event and whom it is owed to, a replay of one, or a control entry. ``ref`` is the
    payload's place as it is stored; whoever hands the row to the engine has put it in the payload's stead.
    ``trace``: of the producer (policy/trace)."""

    shard: int
    seq: int
    day: int
    kind: int
    event_id: UUID
    tenant_id: UUID
    type: str
    payload: Payload
    owed: list[UUID]
    generation: int
    created_at: float
    ref: str | None = None
    trace: bytes | None = None


@dataclass(slots=True)
class BacklogRow:
    """One delivery that waits in the backlog, with its event."""

    position: int
    day: int
    event_id: UUID
    type: str
    payload: Payload
    generation: int
    reason: str
    due_at: float
    retry_count: int
    deadline: float
    created_at: float
    stored_at: float
    trace: bytes | None = None


@dataclass(frozen=True, slots=True)
class LaneSummary:
    """What is known of a lane's backlog without reading its rows. ``blocking``: dead deliveries that block it; no
    position lies before ``first``."""

    endpoint_id: UUID
    tenant_id: UUID
    count: int
    next_due: float
    next_deadline: float
    blocking: int = 0
    first: int = 0


@dataclass(frozen=True, slots=True)
class Takeover:
    """All a new owner of a shard needs: where the last settle left it and what was open then.

    ``rows`` are the journal rows of the open entries, ``done`` the endpoints already done of a partly settled fan-out.
    ``clean`` says that the last owner released it with nothing in flight: then no attempt can be a duplicate. Before
    ``quiet_until`` a request of the last owner may still be on its way: ordered lanes send nothing. The last
    owner's clock may have shown ``doubtful_to``, though the database's was set back since.
    """

    shard: int
    fence: int
    settle_no: int = 0
    read_to: int = 0
    read_day: int = 0
    rows: tuple[JournalRow, ...] = ()
    done: dict[int, tuple[UUID, ...]] = field(default_factory=dict)
    lanes: tuple[LaneSummary, ...] = ()
    clean: bool = True
    quiet_until: float = 0.0
    doubtful_to: float = 0.0


# Most entries are done as a whole. Adding to it raises.
NO_DONE = cast("list[UUID]", ())


class Entry(msgspec.Struct, gc=False, eq=False):
    """One journal row in memory, shared by the deliveries it is owed to.

    ``remaining`` of them are not done, ``queued`` wait in lanes; ``size`` is the payload's, in bytes.
    A struct that the garbage collector does not follow, as deliveries are: a hundred thousand may wait, and each look
    at the young ones stops everything for 10 ms. The lanes, which they are in circles with, let go of them.
    """

    shard: int
    seq: int
    day: int
    event_id: UUID
    tenant_id: UUID
    type: str
    payload: Payload
    generation: int
    created_at: float
    remaining: int
    trace: bytes | None = None
    done: list[UUID] = NO_DONE
    queued: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        if self.payload is not None:
            self.size = len(self.payload)

    def __repr__(self) -> str:
        """Where it stands, and nothing of what it holds: it may be logged."""
        return f"<entry {self.seq} of shard {self.shard}>"


# Marks of a delivery: it is a breaker's probe; it took a part of the retry budget; a gate or an operator let it go, so
# it takes none.
PROBE, RETRY, HELD = 1, 2, 4


class Work(msgspec.Struct, gc=False, eq=False):
    """One delivery in memory: an entry and the lane it waits in.

    ``stored`` says that a backlog row exists for it. ``attempt_id`` and ``trace_id`` (of the trace it is sent in,
    where that is the producer's) are set by the worker before the request is sent.
    ``origin``: the receiver it was let go to; its endpoint may have another one by the time it ends.
    """

    entry: Entry
    lane: Lane
    due_at: float
    retry_count: int = 0
    deadline: float = 0.0
    stored: bool = False
    possible_duplicate: bool = False
    attempt_id: UUID | None = None
    trace_id: bytes | None = None
    marks: int = 0
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """Something to be done with what a lane still holds of one event: ``type`` is CANCEL, RETRY_NOW or REPLAY.

    ``work`` is the replay, which takes the place of a dead delivery that blocks the lane, if there is one. ``entry`` is
    the journal row that asks for it: done when this is.
    """

    type: str
    entry: Entry
    work: Work | None = None


class Wanted(Enum):
    """Which rows of its backlog a lane wants.

    DUE: due at or before ``until``, behind ``after``, in the order of (due_at, position).
    FORWARD: due behind ``until``, but stored at or before ``stored_by``; behind ``after``, in the same order.
    EXPIRED: whose deadline is at or before ``until``, in the order of position.
    HEAD: the first ones in the order of position, due or not.
    BLOCKING: dead deliveries that block an ordered lane: due never, in the order of position.
    NAMED: those of one event.
    """

    DUE = auto()
    FORWARD = auto()
    EXPIRED = auto()
    HEAD = auto()
    BLOCKING = auto()
    NAMED = auto()


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read backlog rows of one lane, at most ``limit``; which ones, Wanted says."""

    lane: Lane
    shard: int
    endpoint_id: UUID
    after: tuple[float, int]
    until: float
    limit: int
    wanted: Wanted = Wanted.DUE
    stored_by: float = 0.0
    event_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a shard is: all up to ``cursor`` is done or in the backlog, all up to ``read_to`` was read.

    ``open`` are the ranges [from, to) of seqs between them not done; ``partial`` names, for a fan-out that is done in
    part, the endpoints that are done.
    """

    cursor: int
    read_to: int
    read_day: int
    open: tuple[tuple[int, int], ...]
    partial: tuple[tuple[int, tuple[UUID, ...]], ...]


@dataclass(frozen=True, slots=True)
class BacklogChange:
    """A backlog row to write, new or changed."""

    endpoint_id: UUID
    position: int
    day: int
    tenant_id: UUID
    event_id: UUID
    generation: int
    reason: WaitReason
    due_at: float
    retry_count: int
    deadline: float
    created_at: float
    stored_at: float
    last_http_status: int | None = None
    last_error_code: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery that gave up."""

    endpoint_id: UUID
    position: int
    day: int
    tenant_id: UUID
    event_id: UUID
    generation: int
    type: str
    reason: DeadReason
    died_at: float
    attempt_count: int
    last_http_status: int | None = None
    last_error_code: str | None = None


# The columns of an attempt in the order of its tuple, the day aside. A tuple, as there are a billion a day.
ATTEMPT_COLUMNS = (
    "attempt_id", "shard", "settle_no", "position", "event_id", "endpoint_id", "tenant_id", "generation",
    "scheduled_at", "started_at", "finished_at", "http_status", "error_code", "retry_count", "latency_ms", "dns_ms",
    "connect_ms", "tls_ms", "first_byte_ms", "response_hash", "response_head", "request_bytes", "response_bytes",
    "worker", "outcome", "possible_duplicate", "address", "protocol",
    "trace_id",
)  # fmt: skip
Attempt = tuple[Any, ...]


@dataclass(slots=True)
class ShardSettle:
    """What happened in one shard since its last settle. ``delivered_after_s``: how long after their acceptance events
    were delivered, replays left out; for the figures alone."""

    shard: int
    fence: int
    settle_no: int
    progress: Progress
    attempts: list[Attempt]
    upserts: dict[tuple[UUID, int], BacklogChange]
    deletes: list[tuple[UUID, int]]
    dead: list[DeadLetter]
    revived: list[tuple[UUID, UUID]]
    dropped_lanes: list[UUID]
    clean: bool = False
    notices: list[Notice] = field(default_factory=list)
    delivered_after_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Settle:
    """One transaction: the parts of all shards that something happened in, and what to let go when it is committed.

    ``lanes``: those that it writes rows of; all of them were stored at ``since`` or later.
    ``dying``: ordered lanes, once for each delivery of theirs that died.
    """

    shards: list[ShardSettle]
    released: list[tuple[Lane, int]]
    lanes: list[Lane]
    dying: list[Lane]
    since: float


@dataclass(frozen=True, slots=True)
class Hold:
    """The receiver asked to be left alone until then (Retry-After)."""

    endpoint_id: UUID
    until: float


@dataclass(frozen=True, slots=True)
class Gone:
    """Disable it: the receiver answered 410, or has failed for so long that nobody is there any more."""

    tenant_id: UUID
    endpoint_id: UUID
    reason: str
