"""What a worker loads of tenants and endpoints, and how it hears of changes."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeAlias
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.model import HEALTHY, Endpoint, Health, RetryPolicy, Timeouts
from hookpost.storage.contract import HeaderValue, Store
from hookpost.storage.postgres.queries import load as statements
from tests.storage.driver import Driver, Postgres, event, new_endpoint, new_tenant, version

Change: TypeAlias = Callable[[Store, UUID, UUID], Awaitable[None]]


async def load(store: Store, endpoint_id: UUID) -> Endpoint:
    [endpoint] = await store.load_endpoints([endpoint_id])
    return endpoint


async def test_endpoints_without_a_policy_of_their_own_share_the_platforms(driver: Driver) -> None:
    """A worker holds a hundred thousand of them."""
    retry, timeouts = RetryPolicy(base_s=7.0), Timeouts(total_s=17.0)
    store = await driver.open(retry=retry, timeouts=timeouts)
    tenant = await new_tenant(store)
    plain, own = await new_endpoint(store, tenant), uuid7()
    values = {
        "endpoint_id": own,
        "tenant_id": tenant,
        "url": "https://example.com/",
        "max_attempts": 3,
        "connect_s": 1.5,
    }
    await store.create_endpoint(values, b"k" * 24, endpoints_max=9)
    loaded = await load(store, plain)
    assert loaded.retry is retry
    assert loaded.timeouts is timeouts
    loaded = await load(store, own)
    assert loaded.retry == RetryPolicy(base_s=7.0, max_attempts=3)
    assert loaded.timeouts == Timeouts(connect_s=1.5, total_s=17.0)


async def rotate(store: Store, tenant: UUID, endpoint: UUID) -> None:
    await store.rotate_secret(tenant, endpoint, b"n" * 24, grace_s=60.0)


async def hold(store: Store, _: UUID, endpoint: UUID) -> None:
    await store.hold_endpoint(endpoint, await store.ping() + 60.0)


async def disable(store: Store, tenant: UUID, endpoint: UUID) -> None:
    assert await store.disable_endpoint(tenant, endpoint, "gone")


async def delete(store: Store, tenant: UUID, endpoint: UUID) -> None:
    await store.delete_endpoint(tenant, endpoint)


async def pin(store: Store, tenant: UUID, endpoint: UUID) -> None:
    """It waits for what it is owed in its other home shards."""
    await store.append(1, [event(tenant, owed=[endpoint])], await version(store, tenant))
    await store.update_endpoint(tenant, endpoint, {"ordered": True})
    assert (await load(store, endpoint)).barred


async def keep_order(store: Store, tenant: UUID, endpoint: UUID) -> None:
    await store.update_endpoint(tenant, endpoint, {"ordered": True})
    await store.update_endpoint(tenant, endpoint, {"ordered": False})


def updating(**changes: object) -> Change:
    async def update(store: Store, tenant: UUID, endpoint: UUID) -> None:
        await store.update_endpoint(tenant, endpoint, changes)

    return update


CHANGES: dict[str, Change] = {
    **{change.__name__: change for change in (hold, disable, delete, pin, keep_order)},
    "url": updating(url="https://elsewhere.example/"),
    "pause": updating(status="paused"),
    "retry": updating(max_attempts=3),
    "rate": updating(rate_limit=5.0),
    "headers": updating(headers={"x-a": HeaderValue("1", secret=False)}),
    "secret header": updating(headers={"x-a": HeaderValue("1", secret=True)}),
    "certificate": updating(tls={"ca": "-----BEGIN CERTIFICATE-----"}),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_whatever_a_worker_knows_of_an_endpoint_is_told_when_it_changes_and_of_no_other(
    driver: Driver, change: str
) -> None:
    await check_told(await driver.open(), CHANGES[change])


@pytest.mark.postgres
async def test_a_new_secret_is_told_as_a_change_of_its_endpoint(driver: Driver) -> None:
    await check_told(await driver.open(), rotate)


async def check_told(store: Store, change: Change) -> None:
    tenant = await new_tenant(store, (0, 1))
    changed, other = await new_endpoint(store, tenant), await new_endpoint(store, tenant)
    foreign = await new_endpoint(store, await new_tenant(store))
    before = await store.changed_endpoints([tenant], 0.0)
    since = await store.ping()
    known = await load(store, changed)
    assert before.keys() == {changed, other}
    await change(store, tenant, changed)
    assert await load(store, changed) != known
    after = await store.changed_endpoints([tenant], since)
    assert after[changed] > before[changed]
    assert other not in after
    assert foreign not in after
    assert tenant in await store.changed_tenants(since)
    assert await store.changed_endpoints([tenant], since + 1e6) == {}


async def test_what_has_changed_back_is_news_to_who_loaded_it_meanwhile(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    before = await store.changed_endpoints([tenant], 0.0)
    await store.update_endpoint(tenant, endpoint, {"status": "paused"})
    await load(store, endpoint)
    await store.update_endpoint(tenant, endpoint, {"status": "enabled"})
    assert (await store.changed_endpoints([tenant], 0.0))[endpoint] > before[endpoint]


async def test_how_an_endpoint_is_doing_is_no_change_of_it(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    before, known = await store.changed_endpoints([tenant], 0.0), await load(store, endpoint)
    await store.write_health({endpoint: Health(3, 1_000.0)})
    loaded = await load(store, endpoint)
    assert loaded != known
    assert replace(loaded, health=HEALTHY) == known
    assert await store.changed_endpoints([tenant], 0.0) == before


LISTED = """
select a.attname from pg_trigger t cross join unnest(t.tgattr::int2[]) n join pg_attribute a on a.attrelid = t.tgrelid and a.attnum = n
where t.tgname = 'endpoint_changed'
"""
# Never changed, or how it is doing; and what another is made of.
NO_CHANGE, MADE_OF = {"endpoint_id", "consecutive_failures", "failing_since", "pinned"}, {"spread"}


@pytest.mark.postgres
async def test_no_column_that_workers_load_is_forgotten(driver: Driver) -> None:
    assert isinstance(driver, Postgres)
    loaded = set(re.findall(r"\be\.(\w+)", statements("worker")["load_endpoints"]))
    assert {row["attname"] for row in await driver.run(LISTED)} == loaded - NO_CHANGE | MADE_OF
