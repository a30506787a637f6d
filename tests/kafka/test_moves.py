"""A tenant moves, or an endpoint gets an order, while records lie in Kafka: what was accepted before is not overtaken."""

from __future__ import annotations

from uuid import UUID

import pytest

from hookpost.pump import Pump
from hookpost.storage.contract import NewEvent
from tests.kafka.driver import LEASE_S, Kafka
from tests.kafka.test_journal import put
from tests.storage.driver import SHARDS, event, settle, version
from tests.storage.test_moves import add_endpoint, barriers, progress, tenant_at

pytestmark = pytest.mark.kafka

FRESH = SHARDS
"""The shard of the pool acme."""


@pytest.fixture
async def driver(driver: Kafka) -> Kafka:
    """With a shard in the pool `acme`, and a database that knows where its journal is."""
    await driver.store.grow_pool("acme", 1, shards_max=100)
    await driver.store.prepare_topic()
    await driver.run("insert into platform (name, value) values ('journal', 'kafka')")
    claimed = await driver.store.claim(driver.node_id, pool="acme", limit=1, lease_s=LEASE_S)
    driver.owned.update((each.shard, each.fence) for each in claimed)
    driver.pump, driver.reader = driver.new_pump()
    return driver


def pump_of(driver: Kafka, *shards: int) -> Pump:
    """Of a worker that owns these alone."""
    return driver.new_pump({shard: driver.owned[shard] for shard in shards})[0]


async def append(driver: Kafka, tenant: UUID, shard: int, endpoint: UUID, count: int = 1) -> list[NewEvent]:
    events = [event(tenant, owed=(endpoint,)) for _ in range(count)]
    await driver.store.append(shard, events, await version(driver.store, tenant))
    return events


async def ids(driver: Kafka, shard: int) -> list[UUID]:
    return [row["event_id"] for row in await driver.journal(shard) if row["kind"] == 0]


async def lift(driver: Kafka, *, long_ago: bool = True) -> int:
    """Lift what is done; ``long_ago``: when no process remembers the configuration before."""
    if long_ago:
        for table in ("barriers", "departures"):
            await driver.run(f"update {table} set created_at = created_at - interval '1 hour'")
    return await driver.store.lift_barriers()


async def test_records_of_a_tenant_that_moved_to_another_pool_are_waited_for_where_they_are(driver: Kafka) -> None:
    api = driver.store
    tenant = await tenant_at(api, 0)
    endpoint = await add_endpoint(api, tenant, ordered=True)
    before = await append(driver, tenant, 0, endpoint, 3)
    await api.update_tenant(tenant, {"pool": "acme"})
    after = await append(driver, tenant, FRESH, endpoint)

    new_owner = pump_of(driver, FRESH)
    await new_owner.follow()
    await driver.take_over(new_owner)
    assert await ids(driver, FRESH) == [each.event_id for each in after]
    assert await lift(driver, long_ago=False) == 0, "somebody may still accept for the former home"
    assert await lift(driver) == 0, "nothing of it was taken over"

    await driver.pump_dry()
    assert await ids(driver, 0) == [each.event_id for each in before]
    assert await ids(driver, FRESH) == [each.event_id for each in after]
    assert await barriers(driver) == {(endpoint, 0, 3)}
    await api.settle([settle(progress=progress(2, 3))])
    assert await lift(driver) == 0
    await api.settle([settle(settle_no=2, progress=progress(3))])
    assert await lift(driver) == 2


async def test_records_in_other_shards_are_waited_for_when_an_endpoint_becomes_ordered(driver: Kafka) -> None:
    api = driver.store
    tenant = await tenant_at(api, 0, 1)
    endpoint = await add_endpoint(api, tenant)
    before = await append(driver, tenant, 1, endpoint, 2)
    await api.update_endpoint(tenant, endpoint, {"ordered": True})
    after = await append(driver, tenant, 0, endpoint)

    first = pump_of(driver, 0)
    await first.follow()
    await driver.take_over(first)
    assert await ids(driver, 0) == [each.event_id for each in after]
    assert await lift(driver) == 0
    await driver.pump_dry()
    assert await ids(driver, 1) == [each.event_id for each in before]
    assert await ids(driver, 0) == [each.event_id for each in after]
    assert await barriers(driver) == {(endpoint, 1, 2)}
    await api.settle([settle(1, progress=progress(2))])
    assert await lift(driver) == 1


async def test_a_record_that_comes_when_nobody_waits_any_more_goes_to_the_present_home(driver: Kafka) -> None:
    api = driver.store
    tenant = await tenant_at(api, 0)
    endpoint = await add_endpoint(api, tenant)
    outdated = await version(api, tenant)
    await api.update_tenant(tenant, {"pool": "acme"})
    waited_for, late = event(tenant, owed=(endpoint,)), event(tenant, owed=(endpoint,))
    put(driver, 0, [waited_for], outdated)
    await driver.pump_dry()
    await api.settle([settle(progress=progress(1))])
    assert await lift(driver) == 1
    # The pump remembers that it is waited for.
    put(driver, 0, [late], outdated)
    await driver.pump_dry()
    assert (await ids(driver, 0), await ids(driver, FRESH)) == ([waited_for.event_id], [late.event_id])
