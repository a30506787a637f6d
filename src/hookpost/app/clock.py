"""The Clock seam for real: the database's time, carried on by this machine's monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable

# An answer that took longer says too little about when it was true: better to go on by what is known.
ROUND_TRIP_S_MAX = 1.0


class DatabaseClock:
    """Unix seconds as the database counts them.

    Between two corrections time goes on by the monotonic clock, so steps of the wall clock (an operator, NTP, a leap)
    do not reach the engine. It never goes back: a correction into the past makes it stand until time has caught up. But
    for the first one: this machine's clock may be hours wrong, and any answer of the database is better.
    """

    def __init__(
        self, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset = wall() - monotonic()
        self._last = 0.0
        self._corrected = False

    def now(self) -> float:
        """Unix seconds; never goes back."""
        now = self._monotonic() + self._offset
        if now > self._last:
            self._last = now
        return self._last

    def monotonic(self) -> float:
        """Seconds for local deadlines."""
        return self._monotonic()

    def correct(self, database_now: float, *, sent: float, received: float) -> float:
        """Take over the database's time, read somewhere between two monotonic times.

        Returns by how many seconds this machine's own clock differs from it; 0 where the answer came too late to tell.
        """
        if not self._corrected:
            self._corrected, self._last = True, 0.0
        elif received - sent > ROUND_TRIP_S_MAX:
            return 0.0
        self._offset = database_now - (sent + received) / 2
        return self._wall() - (received + self._offset)
