"""What ingest hears of a tenant's routes when it knows them as of an older version (I2)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid4, uuid7

from hookpost.storage.contract import Conflict, Store, TenantRoutes
from hookpost.storage.postgres.queries import load as statements
from hookpost.storage.routes import Routes
from tests.storage.driver import Driver, Postgres, new_endpoint, new_tenant

TYPES = ("order.paid", "order.paid.late", "order", "user.gone", "other", "hookpost.endpoint.disabled")
FILTERS = (("*",), ("order.*",), ("order.paid",), ("order.paid.*", "user.gone"), ("hookpost.*",), ("other", "order"))
# What ingest knows of an endpoint, and what it need not know.
ROUTING: dict[str, dict[str, object]] = {
    "events": {"events": ["other"]},
    "cap": {"max_in_flight": 1},
    "order": {"ordered": True},
    "rate": {"rate_limit": 5.0},
    "spread": {"spread": False},
}
OTHER: dict[str, dict[str, object]] = {
    "url": {"url": "https://elsewhere.example/"},
    "pause": {"status": "paused"},
    "retry": {"max_attempts": 3},
    "the same filter": {"events": ["*"]},
}


async def known(store: Store, tenant: UUID, since: int | None = None) -> TenantRoutes:
    routes = await store.load_routes(tenant, since=since)
    assert routes is not None
    return routes


@pytest.mark.parametrize("change", ROUTING)
async def test_who_knows_a_version_is_told_of_the_endpoint_that_has_changed_since(driver: Driver, change: str) -> None:
    store = await driver.open()
    tenant = await new_tenant(store, (0, 1))
    changed, _ = await new_endpoint(store, tenant), await new_endpoint(store, tenant)
    before = await known(store, tenant)
    await store.update_endpoint(tenant, changed, ROUTING[change])
    told = await known(store, tenant, before.config_version + 1)
    assert [each.endpoint_id for each in told.endpoints] == [changed]
    assert told.gone == frozenset()
    assert told.since == told.config_version == before.config_version + 1
    after = await known(store, tenant)
    assert told.endpoints == tuple(each for each in after.endpoints if each.endpoint_id == changed)
    assert told.endpoints != tuple(each for each in before.endpoints if each.endpoint_id == changed)
    assert (await known(store, tenant, told.config_version + 1)).endpoints == ()


@pytest.mark.parametrize("change", OTHER)
async def test_what_ingest_need_not_know_is_no_change_of_a_route(driver: Driver, change: str) -> None:
    store = await driver.open()
    tenant = await new_tenant(store, (0, 1))
    endpoint = await new_endpoint(store, tenant)
    before = await known(store, tenant)
    await store.update_endpoint(tenant, endpoint, OTHER[change])
    told = await known(store, tenant, before.config_version + 1)
    assert (told.endpoints, told.config_version) == ((), before.config_version + 1)


async def test_an_endpoint_that_is_deleted_is_gone(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    gone, _ = await new_endpoint(store, tenant), await new_endpoint(store, tenant)
    before = await known(store, tenant)
    await store.delete_endpoint(tenant, gone)
    told = await known(store, tenant, before.config_version + 1)
    assert (told.endpoints, told.gone) == ((), {gone})
    assert (await known(store, tenant)).gone == frozenset()


async def test_nobody_is_told_of_a_tenant_that_is_gone(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    await new_endpoint(store, tenant)
    await store.delete_tenant(tenant)
    assert await store.load_routes(tenant, since=1) is None
    assert await store.load_routes(uuid4(), since=1) is None


@pytest.mark.parametrize("seed", range(4))
async def test_routes_made_of_changes_are_those_that_are_loaded_whole(driver: Driver, seed: int) -> None:
    """Whatever was changed, and however many changes came together; another tenant's are left out."""
    rng = Random(seed)
    store = await driver.open()
    tenant, other = await new_tenant(store, (0, 1, 2)), await new_tenant(store)
    living: list[UUID] = []
    routes = Routes(await known(store, tenant))
    parts = 0
    for _ in range(60):
        await new_endpoint(store, other)
        await one_change(store, tenant, living, rng)
        if rng.random() < 0.5:
            continue
        changed = await known(store, tenant, routes.routes.config_version)
        if routes.fit(changed):
            routes = Routes(changed, routes)
            parts += 1
        else:
            routes = Routes(await known(store, tenant))
        whole = Routes(await known(store, tenant))
        assert {t: routes.matcher.match(t) for t in TYPES} == {t: whole.matcher.match(t) for t in TYPES}
        assert (routes.pinned, routes.home) == (whole.pinned, whole.home)
        assert routes.routes.config_version == whole.routes.config_version
        assert routes.routes.schemas == whole.routes.schemas
    assert parts > 10


async def one_change(store: Store, tenant: UUID, living: list[UUID], rng: Random) -> None:
    if not living or rng.random() < 0.3:
        living.append(await created(store, tenant, rng))
        return
    endpoint = rng.choice(living)
    changes: list[Callable[[], Awaitable[Any]]] = [
        partial(deleted, store, tenant, living, endpoint),
        partial(store.update_tenant, tenant, {"max_in_flight": rng.choice((2, 512))}),
        partial(store.disable_endpoint, tenant, endpoint, "gone"),
        *(partial(store.update_endpoint, tenant, endpoint, values) for values in (*ROUTING.values(), *OTHER.values())),
        partial(store.update_endpoint, tenant, endpoint, {"events": list(rng.choice(FILTERS))}),
        partial(store.update_endpoint, tenant, endpoint, {"ordered": False, "rate_limit": None, "spread": None}),
    ]
    with suppress(Conflict):  # it waits for what it is owed elsewhere
        await rng.choice(changes)()


async def created(store: Store, tenant: UUID, rng: Random) -> UUID:
    endpoint = uuid7()
    values = {
        "endpoint_id": endpoint,
        "tenant_id": tenant,
        "url": "https://example.com/",
        "events": list(rng.choice(FILTERS)),
        "max_in_flight": rng.choice((None, 1, 64)),
        "ordered": rng.random() < 0.2,
    }
    await store.create_endpoint(values, b"k" * 24, endpoints_max=100)
    return endpoint


async def deleted(store: Store, tenant: UUID, living: list[UUID], endpoint: UUID) -> None:
    await store.delete_endpoint(tenant, endpoint)
    living.remove(endpoint)


LISTED = """
select a.attname from pg_trigger t cross join unnest(t.tgattr::int2[]) n join pg_attribute a on a.attrelid = t.tgrelid and a.attnum = n
where t.tgname = 'endpoint_routed'
"""
# Never changed; and what another is made of.
NO_CHANGE, MADE_OF = {"endpoint_id", "created_at", "pinned"}, {"ordered", "rate_limit", "spread"}


@pytest.mark.postgres
async def test_no_column_that_ingest_loads_is_forgotten(driver: Driver) -> None:
    assert isinstance(driver, Postgres)
    loaded = set(re.findall(r"\bp\.(\w+)", statements("ingest")["load_routes"]))
    listed = {row["attname"] for row in await driver.run(LISTED)}
    assert listed == loaded - NO_CHANGE | MADE_OF
    # The trigger compares what it is called for.
    [trigger] = await driver.run("select prosrc from pg_proc where proname = 'hookpost_endpoint_routed'")
    assert set(re.findall(r"\bold\.(\w+)", trigger["prosrc"])) == listed
