"""Where a tenant's events go, and what must be waited for when that changes (docs/adr/0010).

Every function here works inside the transaction of a configuration change, behind the tenant's row lock and its raised
version. It seals the shards that are left, notes what is waited for, and tells the owner of the first home shard by a
row of the journal, so that nothing which comes behind the change is handled by an older configuration.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost.policy.routing import homes_after, is_pinned, shards_to_wait_for
from hookpost.storage.contract import RECONFIGURED, Conflict, Unfit
from hookpost.storage.postgres.queries import load

SQL = load("moves")


async def first_homes(connection: Any, pool: str, spread: int | None) -> tuple[int, ...]:
    """The home shards of a new tenant. Raises Unfit."""
    shards = await _pool_shards(connection, pool)
    _check_spread(spread, pool, shards, "spread")
    return homes_after((), shards, spread or 1)


async def grow_pool(connection: Any, name: str, shards: int, shards_max: int) -> None:
    """Have so many shards in the pool. Raises Unfit."""
    await connection.execute(SQL["pools_lock"])
    counts = await connection.fetchrow(SQL["count_shards"], name)
    more = shards - counts["own"]
    if more < 0:
        raise Unfit("shards", f"the pool has {counts['own']} shards, and shards are never taken away")
    if counts["every"] + more > shards_max:
        raise Unfit("shards", f"there would be {counts['every'] + more} shards in all pools, {shards_max} is the limit")
    if more:
        await connection.execute(SQL["add_shards"], name, more)


async def move_tenant(
    connection: Any, before: Mapping[str, Any], changes: Mapping[str, Any], endpoint_cap: int
) -> None:
    """A tenant's pool, spread or cap was changed as ``changes`` say. Raises Unfit, Conflict."""
    if not changes.keys() & {"pool", "spread", "max_in_flight"}:
        return
    pool, spread = changes.get("pool", before["pool"]), changes.get("spread", before["spread"])
    shards = await _pool_shards(connection, pool, at_home=before["home_shards"])
    _check_spread(spread, pool, shards, "spread" if "spread" in changes else "pool")
    if pool != before["pool"] and await connection.fetchval(SQL["has_barriers"], before["tenant_id"]):
        raise Conflict("endpoints of the tenant still wait for what was queued before the last change: try again later")
    homes = homes_after(before["home_shards"], shards, spread or len(before["home_shards"]))
    await _place(connection, before, pool, spread, homes, endpoint_cap)


async def spread_tenant(connection: Any, before: Mapping[str, Any], count: int, endpoint_cap: int) -> None:
    """The tenant's load asks for so many home shards."""
    shards = await _pool_shards(connection, before["pool"], at_home=before["home_shards"])
    homes = homes_after(before["home_shards"], shards, count)
    await _place(connection, before, before["pool"], None, homes, endpoint_cap)


async def leave_drained(connection: Any, before: Mapping[str, Any], endpoint_cap: int) -> None:
    """The tenant leaves the shards of its pool that are drained, for others if there are as many. Raises Conflict."""
    shards, spread = await _pool_shards(connection, before["pool"]), before["spread"]
    homes = homes_after(before["home_shards"], shards, spread or len(before["home_shards"]))
    if homes[0] != before["home_shards"][0] and await connection.fetchval(SQL["has_barriers"], before["tenant_id"]):
        # What waits in this first home for the one before would be overtaken in the next.
        raise Conflict("endpoints of the tenant still wait for what was queued before the last change: try again later")
    await _place(connection, before, before["pool"], spread and min(spread, len(shards)), homes, endpoint_cap)


async def change_endpoint(
    connection: Any, before: Mapping[str, Any], after: Mapping[str, Any], endpoint_cap: int
) -> None:
    """An endpoint was changed: it may be pinned now and was not, or no longer ordered. Raises Conflict."""
    tenant_id, endpoint_id = after["tenant_id"], after["endpoint_id"]
    tenant = await connection.fetchrow(SQL["tenant_of"], tenant_id)
    homes, cap = tenant["home_shards"], tenant["max_in_flight"]
    shards = shards_to_wait_for(
        pinned_before=_lives_in_first(before, homes, cap, endpoint_cap),
        pinned_after=_lives_in_first(after, homes, cap, endpoint_cap),
        homes_before=homes,
        homes_after=homes,
        departed=await _departed(connection, tenant_id),
    )
    barred = await _bar(connection, tenant_id, {endpoint_id: shards}, (), homes[0])
    if barred or (after["ordered"] and not before["ordered"]):
        await _announce(connection, tenant_id, homes[0])
    if before["ordered"] and not after["ordered"]:
        if await connection.fetchval(SQL["moves_in_order"], endpoint_id):
            raise Conflict("the endpoint still waits, in order, for what its former pool holds: try again later")
        [(shard, seq)] = (await _seal(connection, homes[:1])).items()
        await connection.execute(SQL["keep_order"], endpoint_id, shard, seq)


async def _place(
    connection: Any,
    before: Mapping[str, Any],
    pool: str,
    spread: int | None,
    homes: Sequence[int],
    endpoint_cap: int,
) -> None:
    """Give the tenant its pool, spread and home shards; depart from the others, bar what moved with the first one."""
    tenant_id, homes_before = before["tenant_id"], before["home_shards"]
    await connection.execute(SQL["place_tenant"], tenant_id, pool, list(homes), spread)
    cap = (await connection.fetchrow(SQL["tenant_of"], tenant_id))["max_in_flight"]
    if tuple(homes) == tuple(homes_before) and cap == before["max_in_flight"]:
        return
    departed = await _departed(connection, tenant_id)
    waits = {
        row["endpoint_id"]: shards_to_wait_for(
            pinned_before=_lives_in_first(row, homes_before, before["max_in_flight"], endpoint_cap),
            pinned_after=_lives_in_first(row, homes, cap, endpoint_cap),
            homes_before=homes_before,
            homes_after=homes,
            departed=departed,
        )
        for row in await connection.fetch(SQL["endpoints_of"], tenant_id)
    }
    if await _bar(connection, tenant_id, waits, set(homes_before) - set(homes), homes[0]):
        await _announce(connection, tenant_id, homes[0])
    await connection.execute(SQL["return_home"], tenant_id, list(homes))


async def _bar(
    connection: Any, tenant_id: UUID, waits: Mapping[UUID, Collection[int]], left: Collection[int], first_home: int
) -> bool:
    """Note which endpoints wait for which shards, and which shards the tenant has left, up to their last numbers; is
    there anybody who waits?"""
    pairs = [(endpoint_id, shard) for endpoint_id, shards in waits.items() for shard in sorted(shards)]
    if not pairs and not left:
        return False
    seqs = await _seal(connection, {first_home, *left, *(shard for _, shard in pairs)})
    if left:
        shards = sorted(left)
        await connection.execute(SQL["depart"], tenant_id, shards, [seqs[shard] for shard in shards])
    if pairs:
        await connection.execute(
            SQL["bar"],
            tenant_id,
            [endpoint_id for endpoint_id, _ in pairs],
            [shard for _, shard in pairs],
            [seqs[shard] for _, shard in pairs],
        )
    return bool(pairs)


async def _announce(connection: Any, tenant_id: UUID, first_home: int) -> None:
    """Whoever owns this shard is to know of the change before it sees what comes behind it."""
    await connection.execute(SQL["announce"], first_home, uuid7(), tenant_id, RECONFIGURED)


async def _seal(connection: Any, shards: Iterable[int]) -> dict[int, int]:
    """The last numbers of these shards, behind which nothing of the old configuration can come."""
    return {row["shard"]: row["seq"] for row in await connection.fetch(SQL["seal"], sorted(shards))}


async def _departed(connection: Any, tenant_id: UUID) -> list[int]:
    return [row["shard"] for row in await connection.fetch(SQL["departed"], tenant_id)]


async def _pool_shards(connection: Any, pool: str, *, at_home: Collection[int] = ()) -> list[int]:
    """Where a tenant may live that is ``at_home`` in these. None of them is taken out of use before this is over."""
    await connection.execute(SQL["pools_stay"])
    shards = [row["shard"] for row in await connection.fetch(SQL["pool_shards"], pool, list(at_home))]
    if not shards:
        raise Unfit("pool", f"there is no pool {pool}: POST /v1/pools makes one")
    return shards


def _check_spread(spread: int | None, pool: str, shards: Sequence[int], field: str) -> None:
    if spread is not None and spread > len(shards):
        text = f"the pool {pool} has {len(shards)} shards and the spread is {spread}: take fewer, or add shards to it"
        raise Unfit(field, text)


def _lives_in_first(row: Mapping[str, Any], homes: Sequence[int], tenant_cap: int, endpoint_cap: int) -> bool:
    """Does all that an endpoint is owed go to the first home shard? As ingest decides it."""
    return row["pinned"] or is_pinned(tenant_cap, homes) or is_pinned(row["max_in_flight"] or endpoint_cap, homes)
