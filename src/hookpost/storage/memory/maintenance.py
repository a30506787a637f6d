"""The maintenance side of the store in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any
from uuid import UUID

from hookpost.storage.contract import Moved, Retired, ShardLoad, Spread
from hookpost.storage.memory.tables import Database, day_of

HOUR_S = 3600


class MaintenanceTables:
    """Implements what MaintenanceStore says of the store itself and of loads. There are no partitions to make, nothing
    is old enough to leave, and no payload is removed."""

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

    async def prune_progress(self) -> int:
        await self._pause()
        pruned, first_day = 0, day_of(self._db.now()) - 1
        for shard in self._db.shards.values():
            kept = [row for row in shard.progress if row.day >= first_day or row is shard.last]
            pruned += len(kept) < len(shard.progress)
            shard.progress = kept
        return pruned

    async def is_paused(self) -> bool:
        await self._pause()
        return False

    async def retire_events(
        self,
        *,
        keep_days: int,  # noqa: ARG002 - nothing leaves here
        forget: Callable[[Sequence[str]], Awaitable[None]],  # noqa: ARG002
    ) -> Retired:
        await self._pause()
        return Retired((), ())

    async def retire_attempts(self, *, keep_days: int) -> Retired:  # noqa: ARG002
        await self._pause()
        return Retired((), ())

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

    async def forget_replays(self, *, keep_days: int) -> int:  # noqa: ARG002
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

    async def shard_loads(self) -> list[ShardLoad]:
        await self._pause()
        return [ShardLoad(s.shard, len(s.journal), s.depth) for s in self._db.shards.values()]

    async def tenant_shares(self, shards: Collection[int], *, rows_max: int) -> dict[int, dict[UUID, float]]:
        await self._pause()
        counts = {s: Counter(e.tenant_id for e in self._db.shards[s].journal[-rows_max:]) for s in sorted(shards)}
        return {s: {t: n / count.total() for t, n in count.items()} for s, count in counts.items() if count}

    async def spread_tenants(self, tenant_ids: Collection[UUID]) -> list[Spread]:
        await self._pause()
        return [
            Spread(t, tuple(row["home_shards"]), sum(s.pool == row["pool"] for s in self._db.shards.values()))
            for t, row in self._db.tenants.items()
            if row["spread"] is None and row["deleted_at"] is None and (t in tenant_ids or len(row["home_shards"]) > 1)
        ]


def hour_of(moment: float) -> int:
    """Hours since 1970."""
    return int(moment // HOUR_S)
