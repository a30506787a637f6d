"""The loop that spreads tenants as their load asks, on a real store whose clock a test moves."""

from __future__ import annotations

from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost.maintenance import SPREAD_EVERY_S, Spreading
from hookpost.policy.spread import CALM_S, Bounds
from hookpost.storage.contract import NewEvent
from hookpost.storage.postgres.store import PostgresStore


class Clock:
    """Moves when a test says so."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


async def spreading(store: PostgresStore, clock: Clock, *, depth: float = 1e9, rate: float = 1e9) -> Spreading:
    node = uuid7()
    await store.register(node, pool="default", name="w", lease_s=1000.0)
    return Spreading(store, node_id=node, bounds=Bounds(depth, rate), monotonic=clock)


async def new_tenant(store: PostgresStore) -> UUID:
    tenant = uuid7()
    await store.create_tenant(tenant, {"name": "hot", "home_shards": [2]})
    return tenant


async def post(store: PostgresStore, tenant: UUID, count: int) -> None:
    routes = await store.load_routes(tenant)
    assert routes is not None
    events = [NewEvent(uuid7(), tenant, "a.b", b"{}", (uuid7(),)) for _ in range(count)]
    await store.append(routes.home_shards[0], events, {tenant: routes.config_version})


async def homes(store: PostgresStore, tenant: UUID) -> int:
    return len((await store.get_tenant(tenant))["home_shards"])


async def test_a_fast_tenant_is_spread_and_its_neighbours_are_not(store: PostgresStore) -> None:
    clock = Clock()
    loop = await spreading(store, clock, rate=10.0)
    hot, quiet = await new_tenant(store), await new_tenant(store)
    for expected in (1, 2, 4, 4):
        await loop.look()
        assert (await homes(store, hot), await homes(store, quiet)) == (expected, 1)
        clock.time += SPREAD_EVERY_S
        await post(store, hot, 450)
        await post(store, quiet, 5)


async def test_a_deep_tenant_is_spread_at_the_second_look(store: PostgresStore) -> None:
    clock = Clock()
    loop = await spreading(store, clock, depth=100.0)
    tenant = await new_tenant(store)
    await post(store, tenant, 150)
    for expected in (1, 2, 2):
        await loop.look()
        assert await homes(store, tenant) == expected
        clock.time += SPREAD_EVERY_S


async def test_an_hour_of_calm_brings_it_back(store: PostgresStore) -> None:
    clock = Clock()
    loop = await spreading(store, clock)
    tenant = await new_tenant(store)
    assert await store.set_spread(tenant, known=1, wanted=2)
    for expected in (2, 1):
        await loop.look()
        assert await homes(store, tenant) == expected
        clock.time += CALM_S


async def test_a_tenant_with_a_spread_of_its_own_is_left_alone(store: PostgresStore) -> None:
    clock = Clock()
    loop = await spreading(store, clock, depth=1.0)
    tenant = await new_tenant(store)
    await store.update_tenant(tenant, {"spread": 1})
    await post(store, tenant, 50)
    for _ in range(3):
        await loop.look()
        clock.time += SPREAD_EVERY_S
    assert await homes(store, tenant) == 1


async def test_only_the_eldest_worker_looks(store: PostgresStore) -> None:
    clock = Clock()
    await spreading(store, clock)
    second = await spreading(store, clock, depth=1.0)
    tenant = await new_tenant(store)
    await post(store, tenant, 50)
    for _ in range(3):
        await second.look()
    assert await homes(store, tenant) == 1
