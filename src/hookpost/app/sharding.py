"""`hookpost shards`: what the shards of all pools hold, and more of them, on the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hookpost.app.config import ConfigError, Settings
from hookpost.app.keyring import make_vault
from hookpost.storage.acting import Actor, act_as
from hookpost.storage.contract import Unfit
from hookpost.storage.postgres import shards as store
from hookpost.storage.postgres.shards import Listed
from hookpost.storage.postgres.vault import check_keys

_HEADS = ("shard", "pool", "tenants", "depth", "oldest", "fence", "owner")


async def add(settings: Settings, dsn: str, *, pool: str, count: int) -> int:
    """Give the pool so many more; how many it has then. Raises ConfigError and KeysMissing."""
    vault = make_vault(settings)
    await check_keys(dsn, vault.ring)
    act_as(Actor("cli"))
    try:
        return await store.add(dsn, vault, pool, count)
    except Unfit as error:
        raise ConfigError(str(error)) from None


async def listed(dsn: str, pool: str | None) -> list[Listed]:
    """Raises ConfigError for a pool that there is not."""
    found = await store.listing(dsn, pool)
    if pool is not None and not found:
        raise ConfigError(f"there is no pool {pool}: `hookpost shards list` shows all shards with their pools")
    return found


def table(found: Sequence[Listed]) -> Iterator[str]:
    """A line a shard, in columns."""
    rows = [_HEADS, *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _row(each: Listed) -> tuple[str, ...]:
    oldest = "-" if each.age_s is None else f"{each.age_s:.1f} s"
    return (
        str(each.shard), each.pool, str(each.tenants), str(each.depth), oldest, str(each.fence), each.owner or "nobody",
    )  # fmt: skip
