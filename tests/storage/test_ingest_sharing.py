"""How API processes tell each other what they are asked for, and hear of tenants that changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.policy.looks import Since
from hookpost.storage.contract import SharedDemand, Store
from tests.storage.driver import Driver, new_endpoint, new_tenant, version

ONE, TWO = uuid7(), uuid7()


async def tell(store: Store, node_id: UUID, demands: dict[UUID, float], **values: Any) -> SharedDemand:
    return await store.share_demand(node_id, demands, **{"lease_s": 60.0, "since": Since(None, 0.0), **values})


def heard(shared: SharedDemand) -> tuple[int, Mapping[UUID, float]]:
    assert shared.changed == {}
    return shared.processes, shared.others


async def test_a_process_hears_what_all_others_were_asked_for(driver: Driver) -> None:
    store = await driver.open()
    nodes = [uuid7() for _ in range(3)]
    assert heard(await tell(store, nodes[0], {ONE: 10.0})) == (1, {})
    assert heard(await tell(store, nodes[1], {ONE: 20.5, TWO: 1.0})) == (2, {ONE: 10.0})
    assert heard(await tell(store, nodes[2], {})) == (3, {ONE: 30.5, TWO: 1.0})
    assert heard(await tell(store, nodes[0], {TWO: 5.0})) == (3, {ONE: 20.5, TWO: 1.0})
    assert heard(await tell(store, nodes[2], {})) == (3, {ONE: 20.5, TWO: 6.0})


async def test_who_is_silent_or_leaves_drops_out_and_may_come_back(driver: Driver) -> None:
    store = await driver.open()
    silent, leaving, other = uuid7(), uuid7(), uuid7()
    await tell(store, silent, {ONE: 10.0}, lease_s=0.0)
    await tell(store, leaving, {ONE: 20.0})
    assert heard(await tell(store, other, {})) == (2, {ONE: 20.0})
    await store.leave_ingest(leaving)
    await store.leave_ingest(leaving)
    assert heard(await tell(store, other, {})) == (1, {})
    await tell(store, silent, {ONE: 1.0})
    assert heard(await tell(store, other, {})) == (2, {ONE: 1.0})


async def test_who_is_long_gone_is_removed(driver: Driver) -> None:
    store = await driver.open()
    await tell(store, uuid7(), {ONE: 10.0}, lease_s=-120.0)
    await tell(store, uuid7(), {}, lease_s=-1.0)
    await tell(store, uuid7(), {})
    assert len(await driver.rows("ingest_nodes")) == 2


async def test_tenants_that_changed_are_told_with_their_version(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    await new_endpoint(store, tenant)
    told = await tell(store, uuid7(), {}, since=Since(None, 60.0))
    assert told.changed[tenant] == 2
    # Whichever reaches further back counts.
    for since in (Since(told.now - 60.0, 0.0), Since(told.now + 60.0, 60.0)):
        assert (await tell(store, uuid7(), {}, since=since)).changed[tenant] == 2
    assert {tenant: 2} == await version(store, tenant)
    await store.update_tenant(tenant, {"ingest_rate_limit": 5.0})
    assert (await tell(store, uuid7(), {}, since=Since(None, 60.0))).changed[tenant] == 3


@pytest.mark.parametrize("limit", [None, 0.5, 1_000_000.0])
async def test_the_limit_travels_with_the_routes(driver: Driver, limit: float | None) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    await store.update_tenant(tenant, {"ingest_rate_limit": limit})
    routes = await store.load_routes(tenant)
    assert routes is not None
    assert routes.ingest_rate_limit == limit
    await store.update_tenant(tenant, {"name": "another"})
    assert (await store.get_tenant(tenant))["ingest_rate_limit"] == limit
