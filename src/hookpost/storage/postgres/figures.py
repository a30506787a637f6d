"""How the platform stands now, for a page of metrics."""

from __future__ import annotations

from hookpost.storage.contract import PlatformFigures, ShardFigures, TenantFigures
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.queries import load

SQL = load("figures")


class FiguresQueries:
    """Implements FiguresStore."""

    _connections: Connections

    async def platform_figures(self, *, backlog_max: int, tenants_max: int) -> PlatformFigures:
        async with self._connections.use("look how the platform stands") as connection:
            shards = await connection.fetch(SQL["shards"])
            backlog = await connection.fetch(SQL["backlog"], backlog_max + 1)
            tenants = await connection.fetch(SQL["tenants"], tenants_max)
            behind_s = await connection.fetchval(SQL["rollups_behind"])
        waiting = {row["reason"]: row["deliveries"] for row in backlog}
        return PlatformFigures(
            shards=tuple(
                ShardFigures(
                    row["shard"], row["pool"], row["depth"], row["age_s"] or 0.0, row["unread_s"] or 0.0, row["owned"]
                )
                for row in shards
            ),
            backlog=waiting,
            backlog_exact=sum(waiting.values()) <= backlog_max,
            tenants=tuple(TenantFigures(*row) for row in tenants),
            rollups_behind_s=behind_s,
        )
