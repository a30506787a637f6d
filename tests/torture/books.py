"""What happened, by three witnesses that know nothing of each other: producers, receiver, database. And the faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Fault(StrEnum):
    """What the rig does to a system."""

    KILL = "kill"
    """kill -9 of a process."""
    STOP = "stop"
    """SIGSTOP for longer than a lease, then SIGCONT."""
    POSTGRES = "postgres"
    """The database ends at once, without a checkpoint, and is started again."""
    HANG = "hang"
    """The database stands still and goes on."""
    CUT_DATABASE = "cut_database"
    """Nothing gets through between a worker and the database; nobody is told."""
    CUT_RECEIVER = "cut_receiver"
    """The same between a worker and the receiver."""
    DISK_FULL = "disk_full"
    """No byte is left where the data lies."""
    BROKER = "broker"
    """kill -9 of one broker of Kafka, which is started again."""
    LEADER = "leader"
    """The same of the one that leads most partitions of the journal."""
    BROKERS = "brokers"
    """The same of all of them at once."""


OF_KAFKA = frozenset({Fault.BROKER, Fault.LEADER, Fault.BROKERS})
"""Faults that there are with the journal in Kafka alone. They are no excuse for anything: a judge does not know them."""


ALL = "all"
"""The name of a fault's target that every process depends on."""


@dataclass(frozen=True, slots=True)
class Window:
    """A fault as it took place. Times of all books are Unix seconds of the machine's one clock."""

    fault: Fault
    target: str
    """The process's name, or ``ALL``."""
    began: float
    ended: float
    pids: tuple[int, ...] = ()
    """The very processes that were hit; empty: whoever had the name."""

    def __str__(self) -> str:
        pids = f" ({', '.join(map(str, self.pids))})" if self.pids else ""
        return f"{self.fault} of {self.target}{pids} at {self.began:.2f} for {self.ended - self.began:.2f} s"


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a producer was answered with 202."""

    event_id: str
    marker: str
    """The producer and its running number: also what the payload says."""
    type: str
    digest: bytes
    """Of the payload as it was posted."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as the receiver saw it."""

    at: float
    done: float
    """When it was answered, or left unanswered."""
    path: str
    event_id: str
    span: str
    """The attempt, by the second half of its id (traceparent)."""
    digest: bytes
    status: int | None
    """What the receiver answered; None: nothing."""
    sender: str | None
    """The worker that holds the other end of the connection; None: it was gone before anyone could look."""
    pid: int | None

    @property
    def taken(self) -> bool:
        """Did the receiver say yes?"""
        return self.status is not None and 200 <= self.status < 300

    @property
    def owed(self) -> tuple[str, str]:
        """The delivery."""
        return self.event_id, self.path


@dataclass(frozen=True, slots=True)
class Recorded:
    """A row of attempts."""

    event_id: str
    path: str
    span: str
    outcome: str
    error: str | None
    possible_duplicate: bool
    started: float
    finished: float
    worker: str

    @property
    def owed(self) -> tuple[str, str]:
        """The delivery."""
        return self.event_id, self.path


@dataclass(slots=True)
class Books:
    """All that a judge may know."""

    paths: Mapping[str, tuple[str, ...]]
    """By the first word of a type: where events of it are owed to."""
    ordered: frozenset[str] = frozenset()
    """Paths whose first arrivals must come in the order of each producer's numbers."""
    accepted: list[Accepted] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    recorded: list[Recorded] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)
    """The ids of all events in the journal."""
    forged: int = 0
    dead: list[tuple[str, str]] = field(default_factory=list)
    waiting: int = 0
    """Deliveries that are still owed at the end."""
    faults: list[Window] = field(default_factory=list)
    starved: list[Window] = field(default_factory=list)
    """When workers lost their leases by their own account, on a machine that had other things to do: as if they had been
    stopped."""
