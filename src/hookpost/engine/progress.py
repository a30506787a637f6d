"""What of one shard is done: the open entries between cursor and read_to."""

from __future__ import annotations

from uuid import UUID

from hookpost.engine.work import Entry, Progress


class GapError(RuntimeError):
    """The journal's numbers are not contiguous: the reader must stop, for a row may be missing."""


class ShardProgress:
    """Tracks the entries that were read and are not done.

    ``open`` is in the order of seq, as entries are opened in that order and dicts keep it.
    """

    __slots__ = ("open", "read_day", "read_to")

    def __init__(self, read_to: int, read_day: int) -> None:
        self.open: dict[int, Entry] = {}
        self.read_to = read_to
        self.read_day = read_day

    def reopen(self, entry: Entry) -> None:
        """An entry that the last owner had read and not finished."""
        self.open[entry.seq] = entry

    def advance(self, seq: int, day: int) -> None:
        """The next journal row was read; raises GapError unless it follows the last one directly."""
        if seq != self.read_to + 1:
            raise GapError(f"journal row {seq} follows {self.read_to}")
        self.read_to = seq
        self.read_day = day

    def finish(self, entry: Entry, endpoint_id: UUID) -> None:
        """One delivery of the entry is done or in the backlog."""
        entry.remaining -= 1
        if entry.remaining == 0:
            del self.open[entry.seq]
        else:
            entry.done.append(endpoint_id)

    def snapshot(self) -> Progress:
        """The state to be written down."""
        ranges: list[tuple[int, int]] = []
        start = end = -1
        for seq in self.open:
            if seq != end:
                if end != -1:
                    ranges.append((start, end))
                start = seq
            end = seq + 1
        if end != -1:
            ranges.append((start, end))
        return Progress(
            cursor=ranges[0][0] - 1 if ranges else self.read_to,
            read_to=self.read_to,
            read_day=self.read_day,
            open=tuple(ranges),
            partial=tuple((entry.seq, tuple(entry.done)) for entry in self.open.values() if entry.done),
        )
