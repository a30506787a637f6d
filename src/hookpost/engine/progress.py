"""What of one shard is done: the open entries between cursor and read_to.

Open entries are kept as the ranges they are written down as: reading makes the last range longer, finishing cuts one
shorter or in two. A settle copies the ranges, however many entries they hold (walking 20,000 entries each settle took a
fifth of a worker's time).
"""

from __future__ import annotations

from bisect import bisect_right
from uuid import UUID

from hookpost.engine.work import NO_DONE, Entry, Progress


class GapError(RuntimeError):
    """The journal's numbers are not contiguous: the reader must stop, for a row may be missing."""


class ShardProgress:
    """Tracks the entries that were read and are not done; entries are opened in the order of seq."""

    __slots__ = ("_ends", "_partial", "_starts", "read_day", "read_to")

    def __init__(self, read_to: int, read_day: int) -> None:
        self.read_to = read_to
        self.read_day = read_day
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._partial: dict[int, Entry] = {}

    @property
    def fragments(self) -> int:
        """How much there is to write down in each settle: ranges, and fan-outs that are done in part."""
        return len(self._starts) + len(self._partial)

    def advance(self, seq: int, day: int) -> None:
        """The next journal row was read; raises GapError unless it follows the last one directly."""
        if seq != self.read_to + 1:
            raise GapError(f"journal row {seq} follows {self.read_to}")
        self.read_to = seq
        self.read_day = day

    def begin(self, entry: Entry) -> None:
        """An entry is open: just read, or by the last owner and not finished."""
        if self._ends and self._ends[-1] == entry.seq:
            self._ends[-1] += 1
        else:
            self._starts.append(entry.seq)
            self._ends.append(entry.seq + 1)
        if entry.done:
            self._partial[entry.seq] = entry

    def finish(self, entry: Entry, endpoint_id: UUID) -> None:
        """One delivery of the entry is done or in the backlog."""
        entry.remaining -= 1
        if entry.remaining:
            if entry.done is NO_DONE:
                entry.done = []
            entry.done.append(endpoint_id)
            self._partial[entry.seq] = entry
            return
        if entry.done:
            del self._partial[entry.seq]
        self._take_out(entry.seq)

    def _take_out(self, seq: int) -> None:
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, seq) - 1
        assert at >= 0 and seq < ends[at], "an entry is finished once"
        if starts[at] == seq:
            if ends[at] == seq + 1:
                del starts[at], ends[at]
            else:
                starts[at] = seq + 1
            return
        if ends[at] != seq + 1:
            starts.insert(at + 1, seq + 1)
            ends.insert(at + 1, ends[at])
        ends[at] = seq

    def snapshot(self) -> Progress:
        """The state to be written down."""
        return Progress(
            cursor=self._starts[0] - 1 if self._starts else self.read_to,
            read_to=self.read_to,
            read_day=self.read_day,
            open=tuple(zip(self._starts, self._ends, strict=True)),
            partial=tuple((entry.seq, tuple(entry.done)) for entry in self._partial.values()),
        )
