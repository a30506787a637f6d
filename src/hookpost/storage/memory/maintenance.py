"""The maintenance side of the store in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from hookpost.storage.contract import Moved, ShardLoad, Spread
from hookpost.storage.memory.tables import Database

HOUR_S = 3600


class MaintenanceTables:
    """Implements what MaintenanceStore says of the store itself and of loads. There are no partitions to make, and no
    payload is moved or removed."""

    _db: Database
    _pause: Callable[[], Awaitable[None]]

    async def make_partitions(self, *, days_ahead: int) -> int:  # noqa: ARG002 - rows lie in one place here
        await self._pause()
        return 0

    async def retire_audit(self, *, keep_days: int) -> int:  # noqa: ARG002 - nothing is audited here
        await self._pause()
        return 0

    async def seal_plain_secrets(self) -> int:
        await self._pause()
        return 0

    async def look_at_certificates(self, *, limit: int) -> int:  # noqa: ARG002 - nobody is alerted here
        await self._pause()
        return 0

    async def expire_idempotency_keys(self, *, limit: int) -> int:
        await self._pause()
        now = self._db.now()
        over = sorted((key.expires_at, name) for name, key in self._db.keys.items() if key.expires_at < now)[:limit]
        for _, name in over:
            del self._db.keys[name]
        return len(over)

    async def is_paused(self) -> bool:
        await self._pause()
        return False

    async def move_payloads(
        self,
        put: Callable[[str, bytes], Awaitable[Any]],  # noqa: ARG002 - no day is ever over here
        *,
        age_s: float,  # noqa: ARG002
        rows_max: int,  # noqa: ARG002
        bytes_max: int,  # noqa: ARG002
    ) -> Moved | None:
        await self._pause()
        return None

    async def erase_payloads(
        self,
        erase: Callable[[str, Sequence[tuple[int, int]]], Awaitable[None]],  # noqa: ARG002 - there are no segments
        *,
        limit: int,  # noqa: ARG002
    ) -> int:
        await self._pause()
        return 0

    async def remove_objects(
        self,
        forget: Callable[[Sequence[str]], Awaitable[None]],  # noqa: ARG002 - none was removed
        *,
        limit: int,  # noqa: ARG002
    ) -> int:
        await self._pause()
        return 0

    async def empty_tenant(self) -> UUID | None:
        await self._pause()
        return None

    async def swept_to(self) -> int:
        await self._pause()
        return hour_of(self._db.now())

    async def sweepable_hours(self, *, age_s: float) -> int:
        await self._pause()
        return hour_of(self._db.now() - age_s)

    async def is_eldest(self, node_id: UUID) -> bool:
        await self._pause()
        now = self._db.now()
        return node_id == min((n for n, node in self._db.nodes.items() if node.expires_at > now), default=None)

    async def analyse_grown(self) -> list[str]:
        """Nothing is planned here."""
        await self._pause()
        return []

    async def shard_loads(self) -> list[ShardLoad]:
        await self._pause()
        return [ShardLoad(s.shard, s.journal.last_seq, s.depth) for s in self._db.shards.values()]

    async def tenant_shares(self, shards: Collection[int], *, rows_max: int) -> dict[int, dict[UUID, float]]:
        await self._pause()
        counts = {s: Counter(e.tenant_id for e in self._db.shards[s].journal.rows[-rows_max:]) for s in sorted(shards)}
        return {s: {t: n / count.total() for t, n in count.items()} for s, count in counts.items() if count}

    async def spread_tenants(self, tenant_ids: Collection[UUID]) -> list[Spread]:
        await self._pause()
        return [
            Spread(t, tuple(row["home_shards"]), self._usable(row))
            for t, row in self._db.tenants.items()
            if row["spread"] is None and row["deleted_at"] is None and (t in tenant_ids or len(row["home_shards"]) > 1)
        ]

    def _usable(self, tenant: Mapping[str, Any]) -> int:
        shards = (s for s in self._db.shards.values() if s.pool == tenant["pool"])
        return sum(not s.draining or s.shard in tenant["home_shards"] for s in shards)


def hour_of(moment: float) -> int:
    """Hours since 1970."""
    return int(moment // HOUR_S)
