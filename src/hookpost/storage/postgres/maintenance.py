"""The maintenance side of the PostgreSQL store: partitions, expired keys, old progress."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from hookpost.policy.objects import event_of, is_segment
from hookpost.storage.contract import ShardLoad, Spread
from hookpost.storage.postgres.connection import Connections, translated
from hookpost.storage.postgres.queries import load

SQL = load("maintenance")
# Pages (8 KiB) below which it does not matter how a table is read, and above which it is known to be large.
YOUNG_PAGES_MIN, YOUNG_PAGES_MAX = 10, 1_000
# DDL gives up rather than make appends queue behind it.
DDL_LOCK_TIMEOUT = "2s"


class MaintenanceQueries:
    """Implements MaintenanceStore."""

    _connections: Connections

    async def make_partitions(self, *, days_ahead: int) -> int:
        async with self._connections.use("make partitions") as connection, connection.transaction():
            await connection.execute(f"set local lock_timeout = '{DDL_LOCK_TIMEOUT}'")
            made: int = await connection.fetchval(SQL["make_partitions"], days_ahead)
            return made

    async def expire_idempotency_keys(self, *, limit: int) -> int:
        async with self._connections.use("expire idempotency keys") as connection:
            answer: str = await connection.execute(SQL["expire_keys"], limit)
            return int(answer.split()[-1])

    async def swept_to(self) -> int:
        async with self._connections.use("look how far the payload store was swept") as connection:
            # Of two who ask first at once the second one neither writes the row nor sees it yet: it asks again.
            while (hour := await connection.fetchval(SQL["swept_to"])) is None:
                pass
            return int(hour)

    async def sweepable_hours(self, *, age_s: float) -> int:
        async with self._connections.use("look how far the payload store may be swept") as connection:
            hour: int = await connection.fetchval(SQL["sweepable"], age_s)
            return hour

    async def orphans(self, keys: Sequence[str]) -> list[str]:
        owners = {key: owner for key in keys if (owner := event_of(key)) is not None}
        segments = [key for key in keys if is_segment(key)]
        async with self._connections.use("look who refers to objects") as connection:
            events = {row["event_id"] for row in await connection.fetch(SQL["with_events"], list(owners.values()))}
            known = {row["key"] for row in await connection.fetch(SQL["known_segments"], segments)}
        return [
            *(key for key, owner in owners.items() if owner not in events),
            *(key for key in segments if key not in known),
        ]

    async def note_swept(self, hour: int) -> None:
        async with self._connections.use("note how far the payload store was swept") as connection:
            await connection.execute(SQL["note_swept"], hour)

    async def prune_progress(self) -> int:
        # A session of its own, as its lock and its settings must end with it, however it ends.
        connection = await self._connections.connect_alone("prune", lock_timeout=DDL_LOCK_TIMEOUT)
        try:
            with translated("prune progress"):
                return await _prune(connection)
        finally:
            connection.terminate()

    async def is_eldest(self, node_id: UUID) -> bool:
        async with self._connections.use("look for the eldest worker") as connection:
            eldest: bool = await connection.fetchval(SQL["is_eldest"], node_id)
            return eldest

    async def analyse_grown(self) -> list[str]:
        async with self._connections.use("look which tables have grown") as connection:
            rows = await connection.fetch(SQL["grown"], YOUNG_PAGES_MIN, YOUNG_PAGES_MAX)
            names = [row["name"] for row in rows]
            for name in names:
                # All sessions make their plans anew where the table occurs.
                await connection.execute(f"analyze (skip_locked) {name}")
        return names

    async def shard_loads(self) -> list[ShardLoad]:
        async with self._connections.use("look how much shards hold") as connection:
            rows = await connection.fetch(SQL["shard_loads"])
        return [ShardLoad(row["shard"], row["last_seq"], row["depth"]) for row in rows]

    async def tenant_shares(self, shards: Collection[int], *, rows_max: int) -> dict[int, dict[UUID, float]]:
        found: dict[int, dict[UUID, float]] = {}
        async with self._connections.use("look whose rows shards hold") as connection:
            for row in await connection.fetch(SQL["tenant_shares"], sorted(shards), rows_max):
                found.setdefault(row["shard"], {})[row["tenant_id"]] = row["share"]
        return found

    async def spread_tenants(self, tenant_ids: Collection[UUID]) -> list[Spread]:
        async with self._connections.use("look for spread tenants") as connection:
            rows = await connection.fetch(SQL["spread_tenants"], list(tenant_ids))
        return [Spread(row["tenant_id"], tuple(row["home_shards"]), row["pool_shards"]) for row in rows]


async def _prune(connection: Any) -> int:
    pruned = 0
    if await connection.fetchval(SQL["prune_turn"]):
        for partition in await connection.fetch(SQL["old_progress"]):
            pruned += await _prune_one(connection, partition)
    return pruned


async def _prune_one(connection: Any, partition: Any) -> bool:
    """Drop the partition unless it is needed; one that a disturbed turn has left half detached is finished first."""
    name = partition["name"]
    if partition["pending"]:
        await connection.execute(f"alter table progress detach partition {name} finalize")
    elif partition["attached"]:
        if await connection.fetchval(SQL["progress_needed"], partition["day"]):
            return False
        await connection.execute(f"alter table progress detach partition {name} concurrently")
    await connection.execute(f"drop table {name}")
    return True
