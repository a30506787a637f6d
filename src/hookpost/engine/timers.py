"""When which lane is looked at again.

Relies on: whoever is woken says when it wants to be woken next. Promises: no lane is woken late, and of each lane there
are not more timers than a heap swept now and then has room for.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from hookpost.engine.lanes import NEVER, Lane

# Timers overtaken by earlier ones are swept when there are this many, and twice as many as were left last time.
TIMERS_SWEPT_AT = 1024


class Timers:
    """Of each lane the earliest moment counts; the others are swept now and then."""

    def __init__(self) -> None:
        self._timers: list[tuple[float, int, Lane]] = []
        self._timer_no = 0
        self._timers_max = TIMERS_SWEPT_AT

    def wake_at(self, lane: Lane, moment: float) -> None:
        """Look at this lane at this moment, a Unix time, unless it is looked at before."""
        if moment >= lane.alarm:
            return
        lane.alarm = moment
        self._timer_no += 1
        heapq.heappush(self._timers, (moment, self._timer_no, lane))
        if len(self._timers) > self._timers_max:
            self._sweep()

    def _sweep(self) -> None:
        """Of each lane only the earliest timer counts; without this a lane would leave one behind with every retry."""
        valid = {id(timer[2]): timer for timer in self._timers if timer[2].open and timer[0] == timer[2].alarm}
        self._timers = sorted(valid.values())
        self._timers_max = max(TIMERS_SWEPT_AT, 2 * len(self._timers))

    def next(self) -> float:
        """The earliest moment."""
        return self._timers[0][0] if self._timers else NEVER

    def ring(self, *, now: float) -> Iterator[Lane]:
        """The lanes whose moment has come, one by one: their next ones may be set meanwhile."""
        while self._timers and self._timers[0][0] <= now:
            moment, _, lane = heapq.heappop(self._timers)
            if lane.open and moment >= lane.alarm:
                lane.alarm = NEVER
                yield lane
