"""Shards that are taken out of use: who moves, what is waited for, and that nobody comes."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.storage.contract import Conflict, Stale, Store, Unfit
from hookpost.storage.postgres import shards
from hookpost.storage.postgres.shards import Drained, Listed
from hookpost.storage.postgres.store import PostgresStore
from hookpost.storage.postgres.vault import Vault
from tests.conftest import KEYS, SHARDS
from tests.patience import PATIENCE_S
from tests.storage.driver import Driver, event, new_tenant, own, settle, version
from tests.storage.test_moves import add_endpoint, barriers, progress

VAULT = Vault(KEYS)


async def homes(store: Store, tenant: UUID) -> list[int]:
    found: list[int] = (await store.get_tenant(tenant))["home_shards"]
    return found


async def drain(database: str, shard: int) -> tuple[Drained, Listed]:
    done = await shards.drain(database, VAULT, shard)
    return done, next(each for each in await shards.listing(database) if each.shard == shard)


@pytest.fixture
async def opened(driver: Driver) -> Store:
    return await driver.open()


async def test_who_lives_there_moves_with_as_many_homes_and_who_does_not_stays(driver: Driver, opened: Store) -> None:
    there, elsewhere, spread = [await new_tenant(opened, at) for at in ((1,), (2,), (3, 1))]
    # The tenant `default` of the first start is one of them: it has all shards as homes.
    assert await driver.drain(1) == (3, 0)
    assert await homes(opened, there) != [1] and len(await homes(opened, there)) == 1
    assert await homes(opened, elsewhere) == [2]
    kept, other = await homes(opened, spread)
    assert kept == 3 and other in (0, 2)
    assert {row["shard"] for row in await driver.rows("departures")} == {1}


async def test_a_spread_that_is_set_and_that_the_rest_cannot_hold_becomes_what_they_can(
    driver: Driver, opened: Store
) -> None:
    tenant = await new_tenant(opened, (0,))
    await opened.update_tenant(tenant, {"spread": SHARDS})
    await driver.drain(0)
    row = await opened.get_tenant(tenant)
    assert (row["spread"], sorted(row["home_shards"])) == (SHARDS - 1, [1, 2, 3])


async def test_nobody_new_comes_and_who_stays_may_change_meanwhile(driver: Driver, opened: Store) -> None:
    staying = await new_tenant(opened, (1, 2))
    endpoint = await add_endpoint(opened, staying, ordered=True)
    await opened.update_tenant(staying, {"spread": 2})
    other = await new_tenant(opened, (2,))
    # What it owes its ordered endpoint in this home keeps it there, when the next one is drained.
    await opened.append(1, [event(staying, owed=(endpoint,))], await version(opened, staying))
    await driver.drain(1)
    assert (await homes(opened, staying))[0] == 2
    assert (await driver.drain(2))[1] == 1
    for _ in range(2 * SHARDS):
        created = await opened.create_tenant(uuid7(), {"name": "new"})
        assert created["home_shards"][0] in (0, 3)
    grown = await opened.update_tenant(staying, {"spread": 3, "max_in_flight": 100})
    assert grown["home_shards"][0] == 2 and sorted(grown["home_shards"]) == [0, 2, 3]
    # A spread by load asks for no more than there is, or it would ask again and again.
    [spread] = [each for each in await opened.spread_tenants([other]) if each.tenant_id == other]
    assert spread.pool_shards == SHARDS - 2
    assert 1 not in (await opened.create_tenant(uuid7(), {"name": "wide", "spread": SHARDS - 2}))["home_shards"]
    with pytest.raises(Unfit):
        await opened.create_tenant(uuid7(), {"name": "too wide", "spread": SHARDS - 1})


async def test_an_ordered_endpoint_waits_in_its_new_home_for_what_it_left(driver: Driver, opened: Store) -> None:
    tenant = await new_tenant(opened, (1,))
    endpoint = await add_endpoint(opened, tenant, ordered=True)
    versions = await version(opened, tenant)
    await opened.append(1, [event(tenant, owed=(endpoint,)) for _ in range(3)], versions)
    await driver.drain(1)
    assert await barriers(driver) == {(endpoint, 1, 3)}
    # An append that was matched before the move is refused, so nothing comes behind it.
    assert isinstance(await opened.append(1, [event(tenant, owed=(endpoint,))], versions), Stale)
    with pytest.raises(Conflict):
        await opened.update_endpoint(tenant, endpoint, {"ordered": False})
    with pytest.raises(Conflict):
        await driver.undrain(1)
    await own(opened)
    await opened.settle([settle(shard=1, progress=progress(3))])
    assert await opened.lift_barriers() >= 2
    assert await driver.drain(1) == (0, 0)
    await opened.update_endpoint(tenant, endpoint, {"ordered": False})
    await driver.undrain(1)


@pytest.mark.postgres
async def test_a_shard_is_empty_when_nobody_lives_there_and_all_it_held_is_done(
    database: str, store: PostgresStore
) -> None:
    tenant = await new_tenant(store, (1,))
    endpoint = await add_endpoint(store, tenant)
    await store.append(1, [event(tenant, owed=(endpoint,)) for _ in range(3)], await version(store, tenant))
    done, now = await drain(database, 1)
    assert done == Drained(moved=2, staying=0)
    assert (now.draining, now.tenants, now.leaving, now.depth, now.empty) == (True, 0, 2, 3, False)
    await own(store)
    await store.settle([settle(shard=1, progress=progress(3))])
    assert await store.lift_barriers() >= 2
    assert (await drain(database, 1))[1].empty


async def test_a_tenant_whose_first_home_would_change_again_stays_until_its_last_move_is_over(
    driver: Driver, opened: Store
) -> None:
    """What waits in the second home for the first would be overtaken in a third."""
    tenant = await new_tenant(opened, (1,))
    endpoint = await add_endpoint(opened, tenant, ordered=True)
    await opened.append(1, [event(tenant, owed=(endpoint,))], await version(opened, tenant))
    await driver.drain(1)
    [second] = await homes(opened, tenant)
    assert (await driver.drain(second))[1] == 1
    assert await homes(opened, tenant) == [second]
    await own(opened)
    await opened.settle([settle(shard=1, progress=progress(1))])
    await opened.lift_barriers()
    assert await driver.drain(second) == (1, 0)
    assert await homes(opened, tenant) != [second]


async def test_the_last_shard_in_use_of_a_pool_is_refused(driver: Driver, opened: Store) -> None:
    assert (await homes(opened, await new_tenant(opened))) == [0]
    for shard in range(1, SHARDS):
        await driver.drain(shard)
    with pytest.raises(Unfit, match="last one in use"):
        await driver.drain(0)
    await driver.undrain(1)
    await driver.drain(0)


@pytest.mark.postgres
async def test_what_is_refused_says_what_to_do(database: str, store: PostgresStore) -> None:
    for shard in range(1, SHARDS):
        await shards.drain(database, VAULT, shard)
    for shard, what in ((0, "shards add 1 --pool default"), (SHARDS, "there is no shard")):
        with pytest.raises(Unfit, match=what):
            await shards.drain(database, VAULT, shard)


@pytest.mark.postgres
async def test_several_at_once_leave_one_and_a_tenant_made_meanwhile_is_moved_or_lives_elsewhere(
    database: str, store: PostgresStore
) -> None:
    async def tried(shard: int) -> bool:
        try:
            await shards.drain(database, VAULT, shard)
        except Unfit:
            return False
        return True

    async with asyncio.timeout(PATIENCE_S):
        done = await asyncio.gather(
            *(tried(shard) for shard in range(SHARDS)),
            *(store.create_tenant(uuid7(), {"name": "new"}) for _ in range(8)),
        )
    assert sorted(done[:SHARDS]) == [False, *[True] * (SHARDS - 1)]
    for each in await shards.listing(database):
        await shards.drain(database, VAULT, each.shard) if each.draining else None
    assert [each.tenants > 0 for each in await shards.listing(database)] == [not each for each in done[:SHARDS]]


@pytest.mark.postgres
async def test_each_step_is_in_the_audit_log(database: str, store: PostgresStore, sql: Any) -> None:
    tenant = await new_tenant(store, (1,))
    await drain(database, 1)
    await drain(database, 1)
    await shards.undrain(database, VAULT, 1)
    told = [tuple(row) for row in await sql.fetch("select chain, action, target from audit_log order by at, seq")]
    platform = [row[1:] for row in told if row[1].startswith("shard.")]
    assert platform == [("shard.drain", "1"), ("shard.undrain", "1")]
    assert [row[1] for row in told if row[0] == tenant].count("tenant.drain") == 1
