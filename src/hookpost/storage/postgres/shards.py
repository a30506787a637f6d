"""The shards of all pools as they stand, and more of them: for an operator with access to the database.

Adding shards moves nobody, so it needs no word to anybody either: the workers of the pool find them at their next look,
take them and read them from their first entry; tenants come when their spread or their pool is changed
(docs/adr/0010).
"""

from __future__ import annotations

from dataclasses import dataclass

from hookpost.policy.routing import SHARDS_MAX
from hookpost.storage.contract import Unfit
from hookpost.storage.postgres import moves
from hookpost.storage.postgres.audit import record
from hookpost.storage.postgres.connection import connected
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.vault import PLATFORM, Vault

SQL = load("shards")


@dataclass(frozen=True, slots=True)
class Listed:
    """A shard now. ``owner``: the name of the living worker that has it; ``depth``: entries of its journal that are not
    done; ``age_s``: since when the oldest of them is there; ``tenants``: how many are at home in it."""

    shard: int
    pool: str
    owner: str | None
    fence: int
    depth: int
    age_s: float | None
    tenants: int


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
