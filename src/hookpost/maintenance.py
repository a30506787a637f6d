"""Maintenance: partitions ahead of time, expired idempotency keys, old progress; and bulk replays, step by step.

Every task is harmless when it runs twice or on several nodes at once; one that fails is tried again at the next turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from hookpost import telemetry
from hookpost.model import show_id
from hookpost.storage.contract import (
    DataRejected,
    MaintenanceStore,
    ReplayLimits,
    ReplayState,
    ReplayStep,
    StoreUnavailable,
)

# Partitions are made days ahead; an hour between looks leaves many tries before they are needed.
EVERY_S = 600.0
# After a failure the next look comes sooner.
AGAIN_S = 30.0
# Keys deleted in one statement: short transactions, and the rest right after.
KEYS_AT_ONCE = 5_000
# A new bulk replay starts within so long; an idle look is one small statement.
REPLAYS_EVERY_S = 1.0
REPLAYS_AGAIN_S = 5.0
# A job that is due and cannot be had is being worked on by another runner.
REPLAYS_TAKEN_S = 0.1
# Steps are short transactions, as they hold shards that ingest appends to. In front of the workers a replay keeps no
# more than they do in some seconds: what it has not appended yet costs nothing and can be cancelled.
REPLAY_LIMITS = ReplayLimits(step_s=0.5, deliveries_max=1_000, depth_max=10_000, waiting_max=10_000, hold_s=1.0)


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


class Replays:
    """The loop that takes bulk replays further: ``await run(stop)``. Any number of them share the jobs."""

    def __init__(self, store: MaintenanceStore, *, limits: ReplayLimits = REPLAY_LIMITS) -> None:
        self._store = store
        self._limits = limits

    async def run(self, stop: asyncio.Event) -> None:
        """Go on with whatever is due until ``stop`` is set."""
        while not stop.is_set():
            wait_s = await self.once()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait_s)

    async def once(self) -> float:
        """One step of the job whose turn it is; returns the seconds until the next."""
        try:
            step = await self._store.replay_step(self._limits)
            if step is not None:
                await self._tell(step)
                return 0.0
            due_in_s = await self._store.next_replay_in()
        except (StoreUnavailable, DataRejected) as error:
            telemetry.count("maintenance_failures")
            telemetry.log("maintenance_failed", task="go on with replays", reason=error)
            return REPLAYS_AGAIN_S
        return REPLAYS_EVERY_S if due_in_s is None else min(max(due_in_s, REPLAYS_TAKEN_S), REPLAYS_EVERY_S)

    async def _tell(self, step: ReplayStep) -> None:
        telemetry.count("deliveries_replayed", step.appended)
        if step.state is ReplayState.FAILED:
            telemetry.log("replay_failed", replay_id=show_id("rpl", step.replay_id), reason=step.failure)
        elif step.state is not ReplayState.RUNNING:
            telemetry.log("replay_ended", replay_id=show_id("rpl", step.replay_id), state=step.state)
        if step.shards:
            with suppress(StoreUnavailable):  # workers look by themselves
                await self._store.ring(step.shards)
