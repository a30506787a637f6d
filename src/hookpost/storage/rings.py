"""Rings of the doorbell that a worker has not answered yet. The same for every driver, which brings them here."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from contextlib import suppress


class Rings:
    """What was rung for since the last answer: these shards, or all of them."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._shards: set[int] = set()
        self._all = False

    def hear(self, shards: Iterable[int]) -> None:
        """It rang for these shards; for all if it names none."""
        named = set(shards)
        self._shards |= named
        self._all |= not named
        self._rung.set()

    async def wait(self, timeout_s: float) -> Collection[int] | None:
        """The shards it rang for, none standing for all; None when it did not ring within the time."""
        if timeout_s and not self._rung.is_set():
            # Not wait_for, which makes a task: a busy worker waits here a hundred times a second.
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._rung.wait()
        if not self._rung.is_set():
            return None
        self._rung.clear()
        shards, self._shards = self._shards, set()
        all_of_them, self._all = self._all, False
        return () if all_of_them else shards
