"""`hookpost shards`: what the shards of all pools hold, more of them and fewer in use, on the database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from hookpost.app.compose import prepare_journal
from hookpost.app.config import ConfigError, Settings
from hookpost.app.keyring import make_vault
from hookpost.storage.acting import Actor, act_as
from hookpost.storage.contract import Conflict, Unfit
from hookpost.storage.postgres import shards as store
from hookpost.storage.postgres.shards import Drained, Listed
from hookpost.storage.postgres.vault import check_keys

_HEADS = ("shard", "pool", "tenants", "depth", "oldest", "fence", "owner", "use")
# Between two looks of `hookpost shards drain --wait`: moves are lifted twice a second.
LOOK_S = 1.0


async def add(settings: Settings, dsn: str, *, pool: str, count: int) -> int:
    """Give the pool so many more; how many it has then. Raises ConfigError and KeysMissing."""
    vault = make_vault(settings)
    await check_keys(dsn, vault.ring)
    act_as(Actor("cli"))
    try:
        total = await store.add(dsn, vault, pool, count)
    except Unfit as error:
        raise ConfigError(str(error)) from None
    # Where the journal is a topic: its partitions, before anybody spreads a tenant over them.
    await prepare_journal(settings, dsn)
    return total


async def drain(settings: Settings, dsn: str, shard: int, *, wait: bool) -> tuple[Drained, Listed]:
    """One step; with ``wait`` as many as it takes until nothing is left there. What was moved in all and stays, and the
    shard then. Raises ConfigError and KeysMissing."""
    vault = make_vault(settings)
    await check_keys(dsn, vault.ring)
    act_as(Actor("cli"))
    moved = 0
    while True:
        try:
            step = await store.drain(dsn, vault, shard)
        except Unfit as error:
            raise ConfigError(str(error)) from None
        moved += step.moved
        now = next(each for each in await store.listing(dsn) if each.shard == shard)
        if now.empty or not wait:
            return Drained(moved, step.staying), now
        await asyncio.sleep(LOOK_S)


async def undrain(settings: Settings, dsn: str, shard: int) -> None:
    """Raises ConfigError and KeysMissing."""
    vault = make_vault(settings)
    await check_keys(dsn, vault.ring)
    act_as(Actor("cli"))
    try:
        await store.undrain(dsn, vault, shard)
    except (Unfit, Conflict) as error:
        raise ConfigError(str(error)) from None


def told(done: Drained, now: Listed) -> str:
    """What a step has done, and what is left to do."""
    text = f"shard {now.shard} gets no new tenants; {done.moved} moved away"
    if now.empty:
        return f"{text}, and nothing is left there"
    left = f"still to be done there: {now.depth} entries, and what {now.leaving} tenants have left behind"
    if done.staying:
        text += f", {done.staying} stay until an earlier move of theirs is over (run it again, or with --wait)"
    return f"{text}; {left}"


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
        "empty" if each.empty else "draining" if each.draining else "yes",
    )  # fmt: skip
