"""The builder's side of the PostgreSQL store: attempts and events are counted once, in the order of their shards, and
minutes added up to half hours, hours and days when they are over.

Relies on two orders that the schema keeps: settles of a shard commit one after the other behind its fence, appends to
it behind its lock. So whatever is visible of a shard, all before it is, too, and a mark that moves in the transaction
that counts is enough.
"""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

from hookpost.policy.grains import FINER, Grain
from hookpost.policy.latency import LOWS
from hookpost.storage.contract import RolledUp
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.grains import ALL, GrainState, grains
from hookpost.storage.postgres.queries import load

SQL = load("rollups")
# No shard keeps the others from their turn, and none that is alone is held up.
SHARD_PART = 4
# How long after its end a bucket is built into a coarser one: by then nearly all of it is settled and counted. What
# comes later is added to both, so this is about work alone.
SETTLED_S = 60.0


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

    async def build_rollups(self, *, rows_max: int) -> bool:
        async with self._connections.use("build rollups") as connection, connection.transaction():
            mine, moment = await connection.fetchrow(SQL["turn"])
            if not mine:
                return False
            built = {grain.grain: grain for grain in await grains(connection)}
            until: float = moment - SETTLED_S
            for coarse, fine in sorted(FINER.items()):
                until = until // coarse * coarse
                place = await _next_place(connection, built[coarse], fine, until)
                if place is not None:
                    await connection.execute(SQL["build"], fine, coarse, *place, rows_max * fine // coarse)
                    return True
        return False

    async def prune_rollups(self, grain: Grain, *, age_s: float, rows_max: int) -> int:
        coarser = next(coarse for coarse, fine in FINER.items() if fine == grain)
        async with self._connections.use("prune rollups") as connection, connection.transaction():
            mine, moment = await connection.fetchrow(SQL["turn"])
            if not mine:
                return 0
            built = next(each for each in await grains(connection) if each.grain == coarser)
            # To whole coarser buckets, so that what is told of the time before needs no parts of them.
            kept_from = min(moment - age_s, built.built_until) // coarser * coarser
            if kept_from <= 0:
                return 0
            await connection.execute(SQL["keep_from"], grain, kept_from)
            removed: int = await connection.fetchval(SQL["prune"], grain, kept_from, rows_max)
            return removed


async def _next_place(connection: Any, built: GrainState, fine: Grain, until: float) -> tuple[float, UUID, UUID] | None:
    """The bucket before ``until``, and the key in it, to build from; None: there is nothing to build."""
    coarse = built.grain
    if not built.whole:
        return built.bucket, built.tenant_id, UUID(int=built.endpoint_id.int + 1)
    oldest = await connection.fetchval(SQL["oldest_unbuilt"], fine, coarse)
    if oldest is not None and oldest < until:
        return oldest // coarse * coarse, ALL, ALL
    await connection.execute(SQL["nothing_to_build"], coarse, until - coarse)
    return None


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
