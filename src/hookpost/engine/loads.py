"""Deliveries whose payloads lie in the payload store: how many are read at once, and who waits for it.

Relies on: `end` for every `begin`. Promises: a payload store that is slow or away holds up the lanes whose next
delivery needs it, and no others; one that is away is asked now and then only; no lane that waits is forgotten.
"""

from __future__ import annotations

from hookpost.engine.lanes import NEVER, Lane

# A store that has just failed is left alone for so long.
PAUSE_S = 1.0
# A delivery whose payload could not be read is tried again after so long: short beside the deadlines of days, and so
# long that a store which is away costs the database next to nothing.
AGAIN_S = 10.0
# Lanes that wait are looked at so often, besides whenever a read ends: the one woken for it may not need it any more.
LOOK_S = 0.1


class Loads:
    """The reads under way, at most ``reads_max`` of at most ``bytes_max`` (one always may), and the lanes that wait for
    one. ``look_at``: when to look again."""

    def __init__(self, reads_max: int, bytes_max: int) -> None:
        self._reads_max = reads_max
        self._bytes_max = bytes_max
        self._under_way = 0
        self._bytes = 0
        self._open_at = 0.0
        self._waiting: dict[Lane, None] = {}
        self.look_at = NEVER

    def begin(self, lane: Lane, size: int, *, now: float) -> bool:
        """May so many bytes more be read now? If not, the lane waits."""
        fits = self._under_way < self._reads_max and self._bytes + size <= self._bytes_max
        if (fits or not self._under_way) and self._open_at <= now:
            self._under_way += 1
            self._bytes += size
            return True
        self._waiting[lane] = None
        self.look_at = min(self.look_at, max(self._open_at, now + LOOK_S))
        return False

    def end(self, size: int, *, now: float, failed: bool = False) -> None:
        """A read ended."""
        self._under_way -= 1
        self._bytes -= size
        if failed:
            self._open_at = now + PAUSE_S

    def take(self, *, now: float) -> list[Lane]:
        """Lanes that may try again, those that waited longest first."""
        free = self._reads_max - self._under_way if self._open_at <= now else 0
        woken = list(self._waiting)[:free] if self._waiting and free else []
        for lane in woken:
            del self._waiting[lane]
        self.look_at = max(self._open_at, now + LOOK_S) if self._waiting else NEVER
        return [lane for lane in woken if lane.open]
