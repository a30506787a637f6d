"""What follows when payloads are removed on request: objects, bytes of segments, and the payloads of deleted tenants.

Relies on: whoever takes a payload out of its event's row notes its object, or its bytes in a segment, in the same
transaction. Promises: the object is removed, or the bytes are erased, after it, however often somebody dies in between;
of a deleted tenant's events only the rows stay.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.queries import load

SQL = load("removals")
# Events emptied at once: short transactions, and the rest right after.
EMPTIED_AT_ONCE = 500
_FIRST = (0.0, UUID(int=0))

Forget = Callable[[Sequence[str]], Awaitable[None]]
Erase = Callable[[str, Sequence[tuple[int, int]]], Awaitable[None]]


class RemovalQueries:
    """Implements what MaintenanceStore says about removed payloads."""

    _connections: Connections

    async def remove_objects(self, forget: Forget, *, limit: int) -> int:
        async with self._connections.use("look for objects to remove") as connection:
            keys = [row["key"] for row in await connection.fetch(SQL["removals"], limit)]
        if keys:
            await forget(keys)
            async with self._connections.use("note removed objects") as connection:
                await connection.execute(SQL["forget_removals"], keys)
        return len(keys)

    async def erase_payloads(self, erase: Erase, *, limit: int) -> int:
        async with self._connections.use("look for payloads to erase") as connection:
            segments = await connection.fetch(SQL["erasable"], limit)
        for segment in segments:
            await erase(segment["key"], list(zip(segment["starts"], segment["lengths"], strict=True)))
            async with self._connections.use("note erased payloads") as connection:
                await connection.execute(SQL["erased"], segment["key"], segment["starts"])
        return len(segments)

    async def empty_tenant(self) -> UUID | None:
        async with self._connections.use("look for deleted tenants") as connection:
            tenant_id: UUID | None = await connection.fetchval(SQL["tenant_to_empty"])
            if tenant_id is None:
                return None
            after = _FIRST
            while rows := await connection.fetch(SQL["payloads_of"], tenant_id, *after, EMPTIED_AT_ONCE):
                places = [[row[name] for row in rows] for name in ("day", "shard", "seq")]
                await connection.execute(SQL["empty"], *places)
                after = rows[-1]["created_at"], rows[-1]["event_id"]
            await connection.execute(SQL["emptied"], tenant_id)
        return tenant_id
