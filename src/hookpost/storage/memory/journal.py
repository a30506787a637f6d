"""The journal of one shard in memory: numbers without gaps at its end, and days that leave, in whichever order."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from hookpost.engine.work import JournalRow, Kind


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the journal."""

    shard: int
    seq: int
    day: int
    kind: Kind
    event_id: UUID
    tenant_id: UUID
    type: str
    payload: bytes | None
    owed: tuple[UUID, ...]
    generation: int
    created_at: float
    idempotency_key: str | None = None
    trace_id: UUID | None = None
    span: bytes | None = None

    @property
    def trace(self) -> bytes | None:
        """Of the producer (policy/trace)."""
        return None if self.trace_id is None or self.span is None else self.trace_id.bytes + self.span

    def row(self, payload: bytes | None) -> JournalRow:
        """As a worker reads it."""
        return JournalRow(
            self.shard, self.seq, self.day, self.kind, self.event_id, self.tenant_id, self.type, payload,
            list(self.owed), self.generation, self.created_at, None, self.trace,
        )  # fmt: skip


def _seq(event: Event) -> int:
    return event.seq


class Journal:
    """The rows that are kept, in their order. ``last_seq``: the last number that was given, to what has left, too."""

    def __init__(self) -> None:
        self.rows: list[Event] = []
        self.last_seq = 0

    def __iter__(self) -> Iterator[Event]:
        return iter(self.rows)

    def append(self, event: Event) -> None:
        """One more, with the number that follows."""
        self.rows.append(event)
        self.last_seq = event.seq

    def behind(self, seq: int, count: int) -> Sequence[Event]:
        """The first so many rows behind this number."""
        start = bisect_left(self.rows, seq + 1, key=_seq)
        return self.rows[start : start + count]

    def get(self, seq: int) -> Event | None:
        """The row of this number, if it is kept."""
        found = self.behind(seq - 1, 1)
        return found[0] if found and found[0].seq == seq else None

    def take_day(self, day: int) -> list[Event]:
        """Take the rows of a day out."""
        leaving = [event for event in self.rows if event.day == day]
        self.rows = [event for event in self.rows if event.day != day]
        return leaving

    def put_back(self, events: Iterable[Event]) -> None:
        """Undo it."""
        self.rows = sorted((*self.rows, *events), key=_seq)
