"""The shards of all pools as they stand, more of them and fewer in use: for an operator with access to the database.

Adding shards moves nobody, so it needs no word to anybody either: the workers of the pool find them at their next look,
take them and read them from their first entry; tenants come when their spread or their pool is changed
(docs/adr/0010). A shard that is drained gets no new tenant, and those who are there leave it by the same moves, a
transaction each; what it holds is delivered from there (docs/adr/0031).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from hookpost.model import show_id
from hookpost.policy.audit import changed
from hookpost.policy.routing import ENDPOINT_CAP, SHARDS_MAX
from hookpost.storage.contract import Conflict, Unfit
from hookpost.storage.postgres import moves
from hookpost.storage.postgres.audit import record
from hookpost.storage.postgres.connection import connected
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.vault import PLATFORM, Vault

SQL = load("shards")


@dataclass(frozen=True, slots=True)
class Listed:
    """A shard now. ``owner``: the name of the living worker that has it; ``depth``: entries of its journal that are not
    done; ``age_s``: since when the oldest of them is there; ``tenants``: how many are at home in it; ``leaving``: how
    many have left it and something of theirs is still to be delivered from there."""

    shard: int
    pool: str
    owner: str | None
    fence: int
    depth: int
    age_s: float | None
    tenants: int
    draining: bool = False
    leaving: int = 0

    @property
    def empty(self) -> bool:
        """Nothing is there, and nothing can come: it is drained."""
        return self.draining and not self.tenants and not self.depth and not self.leaving


@dataclass(frozen=True, slots=True)
class Drained:
    """One step of draining a shard: how many tenants were moved away, how many still live there because an earlier move
    of theirs is not over."""

    moved: int
    staying: int


async def listing(dsn: str, pool: str | None = None) -> list[Listed]:
    """The shards of a pool, or of all, by number. Raises StoreUnavailable."""
    async with connected(dsn, "shards") as connection:
        return [Listed(*row) for row in await connection.fetch(SQL["listing"], pool)]


async def add(dsn: str, vault: Vault, pool: str, count: int) -> int:
    """Give the pool so many more shards; how many it has then. Two at once add up. Raises Unfit for a pool that there
    is not, or when there would be too many, and StoreUnavailable."""
    async with connected(dsn, "shards") as connection, connection.transaction():
        await connection.execute(SQL["lock"])
        before: int = await connection.fetchval(SQL["of_pool"], pool)
        if not before:
            raise Unfit("pool", f"there is no pool {pool}: `hookpost pools add {pool} --shards {count}` makes one")
        await moves.grow_pool(connection, pool, before + count, SHARDS_MAX)
        await record(connection, vault, PLATFORM, "pool.grow", pool, {"shards": before}, {"shards": before + count})
        return before + count


async def drain(dsn: str, vault: Vault, shard: int) -> Drained:
    """Give nobody a home in the shard any more, and move those away who have one and can. Repeated, it goes on. Raises
    Unfit for a shard that there is not and for the last one of its pool, and StoreUnavailable."""
    async with connected(dsn, "shards") as connection:
        await _use(connection, vault, shard, draining=True)
        tenants = [row["tenant_id"] for row in await connection.fetch(SQL["at_home"], shard)]
        moved = [await _leaves(connection, vault, tenant_id) for tenant_id in tenants]
        return Drained(moved=sum(moved), staying=len(moved) - sum(moved))


async def undrain(dsn: str, vault: Vault, shard: int) -> None:
    """The shard may be a home again; nobody comes back by it. Raises Unfit, Conflict while something waits in order for
    what the shard still holds, and StoreUnavailable."""
    async with connected(dsn, "shards") as connection:
        await _use(connection, vault, shard, draining=False)


async def _use(connection: Any, vault: Vault, shard: int, *, draining: bool) -> None:
    async with connection.transaction():
        await connection.execute(SQL["lock"])
        before = await connection.fetchrow(SQL["use_of"], shard)
        if before is None:
            raise Unfit("shard", f"there is no shard {shard}: `hookpost shards list` shows all of them")
        if before["draining"] == draining:
            return
        if draining and not before["others"]:
            text = f"it is the last one in use of the pool {before['pool']}: give the pool another one before"
            raise Unfit("shard", f"{text} (`hookpost shards add 1 --pool {before['pool']}`)")
        if not draining and before["waited_for"]:
            raise Conflict(f"endpoints still wait, in order, for what shard {shard} holds: try again when it is empty")
        await connection.execute(SQL["use"], shard, draining)
        was, now = {"draining": not draining}, {"draining": draining}
        await record(connection, vault, PLATFORM, "shard.drain" if draining else "shard.undrain", str(shard), was, now)


async def _leaves(connection: Any, vault: Vault, tenant_id: UUID) -> bool:
    """Move the tenant out of the drained shards; False: it has to wait for an earlier move."""
    try:
        async with connection.transaction():
            before = await connection.fetchrow(SQL["bump_tenant"], tenant_id)
            if before is not None:  # else it was deleted a moment ago, and what it had there is dropped
                await moves.leave_drained(connection, before, ENDPOINT_CAP)
                was, now = changed(_place(before), _place(await connection.fetchrow(SQL["tenant"], tenant_id)))
                await record(connection, vault, tenant_id, "tenant.drain", show_id("ten", tenant_id), was, now)
    except Conflict:
        return False
    return True


def _place(tenant: Any) -> dict[str, Any]:
    return {name: tenant[name] for name in ("spread", "home_shards")}
