"""What happened in a world, as somebody sees it who knows nothing of the code. ``at`` is the true time, in seconds.

Entries come in the order they happened. A request is named by its ``span``, the part of its traceparent that is its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

_Entry = TypeVar("_Entry")


class Violation(AssertionError):
    """A promise was broken."""


def check(holds: bool, *what: object) -> None:
    """Raise Violation unless it holds."""
    if not holds:
        raise Violation(" ".join(map(str, what)))


# ---- configuration --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Began:
    """The platform's own settings: this part of the attempts of a minute may be retries that fail, and at least so many.
    An endpoint's failures are told behind so many in a row, its deaths at most once in so many seconds. Events and attempts
    are kept for ``keep_s``, and leave by the day, within ``retire_s`` of its end."""

    at: float
    retry_part: float
    retry_floor: int
    announce_after: int
    deaths_every_s: float
    keep_s: float
    day_s: float
    retire_s: float


@dataclass(frozen=True, slots=True)
class Configured:
    """A change of an endpoint was asked for at ``asked_at`` and acknowledged; these are its values from then on."""

    at: float
    asked_at: float
    tenant_id: UUID
    endpoint_id: UUID
    url: str
    events: tuple[str, ...]
    status: str
    ordered: bool
    on_dead: str
    rate_limit: float | None
    max_in_flight: int
    deadline_s: float
    deleted: bool


@dataclass(frozen=True, slots=True)
class Moved:
    """A tenant's pool or spread was changed."""

    at: float
    tenant_id: UUID
    home_shards: tuple[int, ...]


# ---- producers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Posted:
    """A producer posts an event, for the first time or again."""

    at: float
    post: int
    tenant_id: UUID
    type: str
    payload: bytes
    key: str | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """... and was told that it is stored. ``verdict``: new, duplicate or conflict."""

    at: float
    post: int
    event_id: UUID
    verdict: str
    deliveries: int


@dataclass(frozen=True, slots=True)
class Refused:
    """... and was told that it is not."""

    at: float
    post: int
    reason: str


# ---- the store ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of the journal was committed."""

    at: float
    shard: int
    seq: int
    kind: int
    event_id: UUID
    tenant_id: UUID
    type: str
    payload: bytes | None
    owed: tuple[UUID, ...]
    generation: int
    created_at: float
    key: str | None


@dataclass(frozen=True, slots=True)
class Claimed:
    """A worker became the owner of a shard."""

    at: float
    node: str
    shard: int
    fence: int


@dataclass(frozen=True, slots=True)
class Attempted:
    """A recorded attempt."""

    span: str
    event_id: UUID
    endpoint_id: UUID
    tenant_id: UUID
    position: int
    generation: int
    retry_count: int
    outcome: str
    error: str | None
    started_at: float
    possible_duplicate: bool


@dataclass(frozen=True, slots=True)
class Waits:
    """A row of the backlog."""

    endpoint_id: UUID
    position: int
    reason: str
    due_at: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Died:
    """A dead letter."""

    event_id: UUID
    endpoint_id: UUID
    position: int
    generation: int
    reason: str
    died_at: float


@dataclass(frozen=True, slots=True)
class Settled:
    """One shard's part of a settle was committed."""

    at: float
    node: str
    shard: int
    fence: int
    settle_no: int
    cursor: int
    read_to: int
    open: tuple[tuple[int, int], ...]
    done: tuple[tuple[int, tuple[UUID, ...]], ...]
    attempts: tuple[Attempted, ...]
    waits: tuple[Waits, ...]
    gone: tuple[tuple[UUID, int], ...]
    dropped: tuple[UUID, ...]
    dead: tuple[Died, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """A row of the journal has left: it was kept for long enough."""

    at: float
    shard: int
    seq: int


@dataclass(frozen=True, slots=True)
class AttemptsLeft:
    """Recorded attempts have left."""

    at: float
    spans: tuple[str, ...]


# ---- receivers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sent:
    """A worker sends a request."""

    at: float
    node: str
    span: str
    event_id: UUID
    endpoint_id: UUID
    body: bytes


@dataclass(frozen=True, slots=True)
class Arrived:
    """The receiver gets it, whatever became of its sender."""

    at: float
    span: str
    event_id: UUID
    endpoint_id: UUID


@dataclass(frozen=True, slots=True)
class Answered:
    """The request is over: its worker is told (if it is there to hear it). ``retry_after_s``: it asked to be left alone."""

    at: float
    node: str
    span: str
    event_id: UUID
    endpoint_id: UUID
    status: int | None
    error: str | None
    retry_after_s: float | None


# ---- trouble --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """A process began."""

    at: float
    node: str


@dataclass(frozen=True, slots=True)
class Killed:
    """A process ended at once."""

    at: float
    node: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """A process was asked to stop."""

    at: float
    node: str


@dataclass(frozen=True, slots=True)
class Paused:
    """A process stands still."""

    at: float
    node: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Jumped:
    """A clock jumped: a node's own, or ``database``."""

    at: float
    whose: str
    by_s: float


@dataclass(frozen=True, slots=True)
class Away:
    """The store answers nobody for so long."""

    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Healed:
    """No faults from now on, and all receivers are well."""

    at: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The world's end: what the store says is left, and what it has counted: (tenant, events, attempts)."""

    at: float
    backlog: int
    depth: int
    stored_attempts: int
    counted: tuple[tuple[UUID, int, int], ...]


class Trace:
    """All entries in their order, and their digest."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self._digest = hashlib.blake2b(digest_size=8)

    def add(self, entry: Any) -> None:
        """The next one."""
        self.entries.append(entry)
        self._digest.update(repr(entry).encode())

    def of(self, *kinds: type[_Entry]) -> Iterator[_Entry]:
        """All entries of these kinds."""
        return (entry for entry in self.entries if isinstance(entry, kinds))

    def set_forward(self) -> Iterator[tuple[float, float]]:
        """When the database's clock was set forward, and by how many seconds."""
        return ((jump.at, jump.by_s) for jump in self.of(Jumped) if jump.whose == "database" and jump.by_s > 0)

    @property
    def digest(self) -> str:
        """Sixteen hex digits."""
        return self._digest.hexdigest()
