"""What an operator sees of the shards, and how there come to be more of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from hookpost.policy.routing import SHARDS_MAX
from hookpost.storage.contract import Unfit
from hookpost.storage.postgres import shards
from hookpost.storage.postgres.store import PostgresStore
from hookpost.storage.postgres.vault import Vault
from tests.conftest import KEYS, SHARDS
from tests.patience import PATIENCE_S
from tests.storage.driver import event, new_tenant, own, settle

pytestmark = pytest.mark.postgres


def vault() -> Vault:
    return Vault(KEYS)


async def test_shards_are_added_behind_the_last_one_by_several_at_once_and_moving_nobody(
    database: str, store: PostgresStore, sql: Any
) -> None:
    homes = await sql.fetch("select tenant_id, home_shards from tenants")
    totals = await asyncio.gather(*(shards.add(database, vault(), "default", 3) for _ in range(2)))
    assert sorted(totals) == [SHARDS + 3, SHARDS + 6]
    assert [each.shard for each in await shards.listing(database)] == list(range(SHARDS + 6))
    assert await sql.fetch("select tenant_id, home_shards from tenants") == homes
    recorded = await sql.fetch("select action, target from audit_log")
    assert [tuple(row) for row in recorded] == [("pool.grow", "default")] * 2


async def test_a_pool_that_there_is_not_and_more_shards_than_there_may_be_are_refused(database: str) -> None:
    for pool, count, field in (("acme", 1, "pool"), ("default", SHARDS_MAX, "shards")):
        with pytest.raises(Unfit) as refused:
            await shards.add(database, vault(), pool, count)
        assert refused.value.field == field
    assert len(await shards.listing(database)) == SHARDS


async def test_a_listing_tells_owner_fence_depth_age_and_who_is_at_home(database: str, store: PostgresStore) -> None:
    tenant = await new_tenant(store, (1,))
    await store.append(1, [event(tenant, owed=[uuid7()]) for _ in range(2)], {tenant: 1})
    await own(store)
    await store.settle([settle(0)])
    [zero, one, *_] = await shards.listing(database, "default")
    assert (zero.owner, zero.fence, zero.depth, zero.age_s, zero.tenants) == ("w", 1, 0, None, 1)
    assert (one.depth, one.tenants) == (2, 2)
    assert one.age_s is not None and 0 <= one.age_s < PATIENCE_S
    assert await shards.listing(database, "acme") == []


async def test_a_shard_whose_owner_has_died_is_shown_without_one(database: str, store: PostgresStore, sql: Any) -> None:
    await own(store)
    await sql.execute("update nodes set expires_at = now() - interval '1 s'")
    assert {each.owner for each in await shards.listing(database)} == {None}
