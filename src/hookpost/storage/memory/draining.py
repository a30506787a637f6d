"""Shards that are taken out of use, in memory (docs/adr/0031): the steps of storage/postgres/shards.py."""

from __future__ import annotations

from uuid import UUID

from hookpost.storage.contract import Conflict, NotFound
from hookpost.storage.memory.admin import AdminTables


class DrainingTables(AdminTables):
    """What an operator with access to the database asks for."""

    async def drain(self, shard: int) -> tuple[int, int]:
        """Give nobody a home in the shard any more, and move those away who have one and can; how many were moved, how
        many stay. Repeated, it goes on. Raises Unfit for the last one of its pool."""
        await self._pause()
        self._moves.use(shard, draining=True)
        homes = {t: row["home_shards"] for t, row in self._db.tenants.items() if row["deleted_at"] is None}
        moved = [await self._leaves(tenant_id) for tenant_id in sorted(homes) if shard in homes[tenant_id]]
        return sum(moved), len(moved) - sum(moved)

    async def undrain(self, shard: int) -> None:
        """The shard may be a home again. Raises Conflict while something waits in order for what it still holds."""
        await self._pause()
        self._moves.use(shard, draining=False)

    async def _leaves(self, tenant_id: UUID) -> bool:
        await self._pause()
        try:
            with self._changing(tenant_id) as tenant:
                self._moves.leave_drained(dict(tenant))
        except Conflict:
            return False
        except NotFound:
            return True  # it was deleted a moment ago
        return True
