"""The maintenance side of the PostgreSQL store: partitions, expired keys, old progress."""

from __future__ import annotations

from typing import Any

from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.queries import load

SQL = load("maintenance")
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

    async def prune_progress(self) -> int:
        pruned = 0
        async with self._connections.use("prune progress") as connection:
            for row in await connection.fetch(SQL["old_progress"]):
                if await self._drop_if_replaced(connection, row["relname"]):
                    pruned += 1
        return pruned

    async def _drop_if_replaced(self, connection: Any, partition: str) -> bool:
        """A partition may go when each of its shards has a later row elsewhere: the last row of a shard is its memory."""
        query = (
            f"select exists (select from {partition} p where not exists"  # noqa: S608 - the name is the catalogue's own
            f" (select from progress q where q.shard = p.shard and q.day > p.day))"
        )
        if await connection.fetchval(query):
            return False
        await connection.execute(f"alter table progress detach partition {partition} concurrently")
        await connection.execute(f"drop table {partition}")
        return True
