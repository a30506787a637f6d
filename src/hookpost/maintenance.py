"""Maintenance: partitions ahead of time, expired idempotency keys, old progress.

Every task is harmless when it runs twice or on several nodes at once; one that fails is tried again at the next turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hookpost import telemetry
from hookpost.storage.contract import DataRejected, MaintenanceStore, StoreUnavailable

# Partitions are made days ahead; an hour between looks leaves many tries before they are needed.
EVERY_S = 600.0
# After a failure the next look comes sooner.
AGAIN_S = 30.0
# Keys deleted in one statement: short transactions, and the rest right after.
KEYS_AT_ONCE = 5_000


class Maintenance:
    """The maintenance loop of one server: ``await run(stop)``."""

    def __init__(self, store: MaintenanceStore, *, days_ahead: int) -> None:
        self._store = store
        self._days_ahead = days_ahead

    async def run(self, stop: asyncio.Event) -> None:
        """Look after the store until ``stop`` is set."""
        while not stop.is_set():
            wait_s = EVERY_S if await self.once() else AGAIN_S
            try:
                await asyncio.wait_for(stop.wait(), wait_s)
            except TimeoutError:
                continue

    async def once(self) -> bool:
        """Every task once; False when one failed."""
        results = [
            await self._attempt("make partitions", self._make_partitions),
            await self._attempt("expire idempotency keys", self._expire_keys),
            await self._attempt("prune progress", self._prune_progress),
        ]
        return all(results)

    async def _attempt(self, name: str, task: Callable[[], Awaitable[None]]) -> bool:
        try:
            await task()
        except (StoreUnavailable, DataRejected) as error:
            telemetry.count("maintenance_failures")
            telemetry.log("maintenance_failed", task=name, reason=error)
            return False
        return True

    async def _make_partitions(self) -> None:
        made = await self._store.make_partitions(days_ahead=self._days_ahead)
        if made:
            telemetry.log("partition_created", partition=f"{made} partitions up to {self._days_ahead} days ahead")

    async def _expire_keys(self) -> None:
        while await self._store.expire_idempotency_keys(limit=KEYS_AT_ONCE) == KEYS_AT_ONCE:
            pass

    async def _prune_progress(self) -> None:
        await self._store.prune_progress()
