"""Payloads of past days move into segments, objects that hold many of them (ADR 18).

Relies on partitions of past days, to which nothing is added any more, and on one session that holds the turn: whoever
loses it can commit nothing. Promises: a segment is durable before anything refers to it; a day changes from "all in the
database" to "none in the database" in one short transaction; whoever dies, the next one goes on behind the last row
that was copied; and what is removed on request meanwhile is removed from both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import date
from typing import Any

import asyncpg

from hookpost.policy.objects import HOUR_S, segment_key
from hookpost.storage.contract import Moved, MoveState
from hookpost.storage.postgres.connection import Connections, translated
from hookpost.storage.postgres.maintenance import DDL_LOCK_TIMEOUT
from hookpost.storage.postgres.queries import load

SQL = load("cold")
# Everybody who reads or appends waits behind the one who waits for this lock: rather try again a minute later.
SWAP_LOCK_TIMEOUT = "200ms"
# A day takes its new place so long after it was filled: whoever took a snapshot before that has its locks by now.
SETTLE_S = 60.0

Put = Callable[[str, bytes], Awaitable[Any]]


class ColdQueries:
    """Implements what MaintenanceStore says about payloads that move into segments."""

    _connections: Connections

    async def move_payloads(self, put: Put, *, age_s: float, rows_max: int, bytes_max: int) -> Moved | None:
        async with self._moving() as connection:
            found = await connection.fetchrow(SQL["cold_day"], age_s, SETTLE_S) if connection else None
            if found is None:
                return None
            day = found["day"]
            if not found["begun"]:
                await connection.execute(SQL["begin_cold"], day)
                return Moved(day.isoformat(), MoveState.BEGUN)
            if not await connection.fetchval(SQL["cold_fits"], day):
                await connection.execute(SQL["abandon_cold"], day)
                return Moved(day.isoformat(), MoveState.ABANDONED)
            if found["filled"]:
                return Moved(day.isoformat(), await _swap(connection, day))
            return await _copy(connection, day, put, rows_max, bytes_max)

    @asynccontextmanager
    async def _moving(self) -> AsyncIterator[Any]:
        """A session of its own, as its lock must end with it, however it ends; None while somebody else is at it."""
        connection = await self._connections.connect_alone("move payloads", lock_timeout=DDL_LOCK_TIMEOUT)
        try:
            with translated("move payloads into segments"):
                if not await connection.fetchval(SQL["cold_turn"]):
                    yield None
                    return
                yield connection
                # The end of the session would do it, a moment later.
                await connection.execute(SQL["cold_end_turn"])
        finally:
            connection.terminate()


async def _copy(connection: Any, day: date, put: Put, rows_max: int, bytes_max: int) -> Moved:
    """One segment and the rows that refer to it; or that there are no more."""
    rows = await connection.fetchrow(SQL["cold_rows"], day, rows_max, bytes_max)
    if rows["to_shard"] is None:
        await connection.execute(f"analyze cold_{day:%Y%m%d}")
        await connection.execute(SQL["cold_filled"], day)
        return Moved(day.isoformat(), MoveState.FILLED)
    key = None
    if rows["shards"] is not None:
        key = segment_key(int(rows["moment"].timestamp()) // HOUR_S, rows["number"])
        await put(key, rows["body"])
    columns = [rows[name] for name in ("to_shard", "to_seq", "shards", "seqs", "lengths", "hashes")]
    await connection.execute(SQL["copy_cold"], day, *columns, key, rows["moment"])
    return Moved(day.isoformat(), MoveState.FILLING, len(rows["shards"] or ()), len(rows["body"] or b""))


async def _swap(connection: Any, day: date) -> MoveState:
    try:
        async with connection.transaction():
            await connection.execute(f"set local lock_timeout = '{SWAP_LOCK_TIMEOUT}'")
            moved = await connection.fetchval(SQL["swap_cold"], day)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        return MoveState.HELD
    return MoveState.MOVED if moved else MoveState.FILLING
