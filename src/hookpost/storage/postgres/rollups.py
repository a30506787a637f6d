"""The builder's side of the PostgreSQL store: attempts and events are counted once, in the order of their shards.

Relies on two orders that the schema keeps: settles of a shard commit one after the other behind its fence, appends to
it behind its lock. So whatever is visible of a shard, all before it is, too, and a mark that moves in the transaction
that counts is enough.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hookpost.policy.latency import LOWS
from hookpost.storage.contract import Grain, RolledUp
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.queries import load

SQL = load("rollups")
# No shard keeps the others from their turn, and none that is alone is held up.
SHARD_PART = 4


class RollupQueries:
    """Implements RollupStore."""

    _connections: Connections

    async def roll_up(self, *, settles_max: int, events_max: int) -> RolledUp | None:
        async with self._connections.use("roll up") as connection, connection.transaction():
            mine, moment = await connection.fetchrow(SQL["turn"])
            if not mine:
                return None
            attempts, more_attempts = await _roll_up(connection, settles_max)
            events, more_events = await _count_accepted(connection, events_max)
            more = more_attempts or more_events
            if not more:
                await connection.execute(SQL["complete"], moment)
            return RolledUp(attempts, events, more)

    async def compact_rollups(self, fine: Grain, coarse: Grain, *, age_s: float, rows_max: int) -> int:
        async with self._connections.use("compact rollups") as connection, connection.transaction():
            mine, _ = await connection.fetchrow(SQL["turn"])
            bucket = await connection.fetchval(SQL["oldest_bucket"], fine, coarse, age_s) if mine else None
            if bucket is None:
                return 0
            moved: int = await connection.fetchval(SQL["compact"], fine, coarse, bucket, rows_max * fine // coarse)
            await connection.execute(SQL["compacted"], fine, bucket + coarse)
            return moved


async def _roll_up(connection: Any, settles_max: int) -> tuple[int, bool]:
    """How many attempts were counted, and whether there may be more."""
    shard_max = settles_max // SHARD_PART
    settles = await connection.fetch(SQL["pending_settles"], shard_max, settles_max)
    if not settles:
        return 0, False
    shards, numbers, days = (list(column) for column in zip(*settles, strict=True))
    attempts = await connection.fetchval(SQL["roll_up"], shards, numbers, days, min(days), max(days), LOWS)
    return attempts, len(settles) == settles_max or max(Counter(shards).values()) == shard_max


async def _count_accepted(connection: Any, events_max: int) -> tuple[int, bool]:
    shard_max = events_max // SHARD_PART
    events, most = await connection.fetchrow(SQL["count_accepted"], shard_max, events_max)
    return events, events == events_max or most == shard_max
