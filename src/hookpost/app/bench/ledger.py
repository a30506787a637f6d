"""What was posted and what arrived, by running number: losses and duplicates are exact, and cost a few array accesses.

Every payload carries its number; every listener has a slot, so that a delivery is (number, slot). With a fan-out of ten
each event is due in the slots 0 to 9; where each event goes to one of many listeners, all of these have the slot 0.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Room made ahead in the arrays, in events.
GROWTH = 65_536
UNKNOWN, POSTED, ACCEPTED, REFUSED = range(4)


class VoidRun(Exception):
    """The figures mean nothing: something was lost, forged or counted wrong. Carries what was counted."""

    def __init__(self, why: str, figures: dict[str, object] | None = None) -> None:
        super().__init__(why)
        self.figures = figures or {}


class Ledger:
    """One run's events. Times are monotonic seconds; 0 is never."""

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self.posted = 0
        self.accepted = 0
        self.refused = 0
        self.delivered = 0
        self.delivered_to = [0] * slots
        self.duplicates = 0
        self.unknown = 0
        self.forged = 0
        self.verified = 0
        self.due = array("d")
        self.state = bytearray()
        self.arrived = array("d")
        self.copies = bytearray()

    def open(self, count: int, due: float) -> int:
        """Take the next ``count`` numbers, due at ``due``; returns the first."""
        first = self.posted
        self.posted += count
        if self.posted > len(self.state):
            self._grow(max(GROWTH, count))
        if count == 1:
            self.due[first] = due
            self.state[first] = POSTED
        else:
            self.due[first : self.posted] = array("d", [due]) * count
            self.state[first : self.posted] = bytes((POSTED,)) * count
        return first

    def _grow(self, events: int) -> None:
        self.due.frombytes(bytes(8 * events))
        self.state.extend(bytes(events))
        self.arrived.frombytes(bytes(8 * events * self.slots))
        self.copies.extend(bytes(events * self.slots))

    def accept(self, first: int, count: int = 1) -> None:
        """The server acknowledged these."""
        if count == 1:
            self.state[first] = ACCEPTED
        else:
            self.state[first : first + count] = bytes((ACCEPTED,)) * count
        self.accepted += count

    def refuse(self, first: int, count: int = 1) -> None:
        """The server did not take these, or never answered."""
        self.state[first : first + count] = bytes((REFUSED,)) * count
        self.refused += count

    def arrive(self, number: int, slot: int, at: float) -> bool:
        """A delivery came in and is answered with a 2xx; False for one that came before or that nobody posted."""
        if number >= self.posted:
            self.unknown += 1
            return False
        key = number * self.slots + slot
        if self.copies[key]:
            self.duplicates += 1
            self.copies[key] = min(255, self.copies[key] + 1)
            return False
        self.copies[key] = 1
        self.arrived[key] = at
        self.delivered += 1
        self.delivered_to[slot] += 1
        return True

    def accepted_and_arrived(self) -> int:
        """Deliveries of acknowledged events; others may arrive too, a refusal says only that nothing is promised."""
        if not self.refused:
            return self.delivered
        return sum(
            self.copies[key] > 0 for key in range(self.posted * self.slots) if self.state[key // self.slots] == ACCEPTED
        )

    def latencies_ms(self, since: float, until: float, slots: Iterable[int] | None = None) -> list[float]:
        """Scheduled post to arrival, of what was due in between (in these slots), sorted."""
        found: list[float] = []
        for slot in range(self.slots) if slots is None else slots:
            arrived = self.arrived[slot : self.posted * self.slots : self.slots]
            pairs = zip(arrived, self.due, strict=False)
            found += [(at - due) * 1000 for at, due in pairs if at and since <= due < until]
        found.sort()
        return found

    def arrivals(self, since: float, until: float, slots: Iterable[int]) -> int:
        """First arrivals in between, in these slots."""
        return sum(since <= at < until for slot in slots for at in self.arrived[slot :: self.slots])


@dataclass(frozen=True, slots=True)
class Accounts:
    """Deliveries of one run: the receiver's count beside the database's."""

    owed: int
    delivered: int
    stored_owed: int
    stored_delivered: int
    waiting: int
    dead: int
    forged: int = 0
    unknown: int = 0

    def faults(self) -> list[str]:
        """Why the run is void; empty when published = delivered + waiting + dead, on both sides."""
        stored = self.stored_delivered + self.waiting + self.dead
        checks = [
            (self.owed <= self.stored_owed, f"{self.owed} were acknowledged, {self.stored_owed} are stored"),
            (self.stored_owed == stored, f"{self.stored_owed} are owed, {stored} are delivered, waiting or dead"),
            (
                self.stored_delivered <= self.delivered,
                f"{self.stored_delivered} are recorded as delivered, {self.delivered} arrived",
            ),
            (
                self.owed <= self.delivered + self.waiting + self.dead,
                f"{self.owed} are owed, {self.delivered} arrived, {self.waiting} wait, {self.dead} are dead",
            ),
            (self.forged == 0, f"{self.forged} requests had a wrong signature"),
            (self.unknown == 0, f"{self.unknown} requests carried a number that nobody posted"),
        ]
        return [fault for good, fault in checks if not good]


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which ``part`` of the sorted values lie; 0 for none."""
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0
