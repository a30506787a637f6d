"""Actors that work in steps: one after the other, each telling how long to rest before the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from hookpost import telemetry


async def repeat(step: Callable[[], Awaitable[float]], stop: asyncio.Event) -> None:
    """Call ``step`` until ``stop`` is set; it returns the seconds to rest. What it raises ends it, and is raised."""
    while not stop.is_set():
        wait_s = await step()
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), wait_s)


def note_failure(task: str, reason: Exception) -> None:
    """A turn of maintenance has failed: counted and logged. The next turn tries again."""
    telemetry.count("maintenance_failures")
    telemetry.log("maintenance_failed", task=task, reason=reason)
