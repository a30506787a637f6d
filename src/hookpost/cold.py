"""Cold payloads: those of days gone by move out of the database into segments, objects that hold many of them.

Harmless on several nodes at once: one does it, and whoever dies leaves it to the next. Rests as long as it works, so
that it takes half of one database connection at most from those who deliver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hookpost import telemetry
from hookpost.steps import note_failure, repeat
from hookpost.storage.contract import DataRejected, MaintenanceStore, Moved, MoveState, PayloadStore, StoreUnavailable

# A segment: put within the time of one request of the payload store also over 10 Mbit/s, and large enough that a
# million payloads of 500 bytes are 120 objects.
SEGMENT_BYTES = 4 * 2**20
# Rows copied in one transaction: some tenths of a second.
SEGMENT_ROWS = 10_000
# Between two looks whether a day has become old enough.
EVERY_S = 300.0
# After a failure, or while somebody reads a day for long.
AGAIN_S = 60.0


class ColdPayloads:
    """The loop that moves payloads of days that ended more than ``age_s`` ago: ``await run(stop)``."""

    def __init__(
        self, store: MaintenanceStore, payloads: PayloadStore, *, age_s: float, monotonic: Callable[[], float]
    ) -> None:
        self._store = store
        self._payloads = payloads
        self._age_s = age_s
        self._monotonic = monotonic

    async def run(self, stop: asyncio.Event) -> None:
        """Move what there is to move until ``stop`` is set."""
        await repeat(self.once, stop)

    async def once(self) -> float:
        """One step; returns the seconds until the next. While sending is paused there is none: a restored backup leaves
        the payload store as it is."""
        began = self._monotonic()
        try:
            if await self._store.is_paused():
                return EVERY_S
            moved = await self._store.move_payloads(
                self._payloads.put, age_s=self._age_s, rows_max=SEGMENT_ROWS, bytes_max=SEGMENT_BYTES
            )
        except (StoreUnavailable, DataRejected) as error:
            note_failure("move payloads", error)
            return AGAIN_S
        if moved is None:
            return EVERY_S
        self._tell(moved)
        return AGAIN_S if moved.state is MoveState.HELD else self._monotonic() - began

    def _tell(self, moved: Moved) -> None:
        telemetry.count("payloads_moved", moved.payloads)
        if moved.state is MoveState.MOVED:
            telemetry.log("day_moved", day=moved.day)
        elif moved.state is MoveState.HELD:
            telemetry.log("day_held", day=moved.day)
