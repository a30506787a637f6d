"""Moves: what a barrier waits for, exactly; when it is lifted; and that nothing comes behind it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.engine.work import Kind, Progress
from hookpost.model import Endpoint, Tenant
from hookpost.storage.contract import RECONFIGURED, Conflict, NewEvent, Stale, Store, Unfit
from tests.patience import PATIENCE_S
from tests.storage.driver import Driver, Postgres, dead, event, new_tenant, own, settle, version, waiting


@pytest.fixture
async def store(driver: Driver) -> Store:
    """A store with two more shards, 4 and 5, in the pool `acme`."""
    opened = await driver.open()
    await opened.grow_pool("acme", 2, shards_max=100)
    return opened


async def tenant_at(store: Store, *home_shards: int, **changes: Any) -> UUID:
    tenant = await new_tenant(store, home_shards)
    await store.update_tenant(tenant, {"spread": len(home_shards), **changes})
    return tenant


async def add_endpoint(store: Store, tenant: UUID, **values: Any) -> UUID:
    endpoint_id = uuid7()
    row = {"endpoint_id": endpoint_id, "tenant_id": tenant, "url": "https://example.com/", **values}
    await store.create_endpoint(row, b"k" * 24, endpoints_max=100)
    return endpoint_id


async def append(store: Store, tenant: UUID, shard: int, *owed: UUID, count: int = 1) -> list[NewEvent]:
    events = [event(tenant, owed=owed) for _ in range(count)]
    assert isinstance(await store.append(shard, events, await version(store, tenant)), list)
    return events


async def barriers(driver: Driver) -> set[tuple[UUID, int, int]]:
    return {(row["endpoint_id"], row["shard"], row["seq"]) for row in await driver.rows("barriers")}


async def departures(driver: Driver) -> set[tuple[int, int]]:
    return {(row["shard"], row["seq"]) for row in await driver.rows("departures")}


async def endpoint_of(store: Store, endpoint_id: UUID) -> Endpoint:
    [loaded] = await store.load_endpoints([endpoint_id])
    return loaded


async def tenant_of(store: Store, tenant_id: UUID) -> Tenant:
    [loaded] = await store.load_tenants([tenant_id])
    return loaded


async def moving(store: Store, tenant: UUID) -> bool:
    return bool((await store.get_tenant(tenant))["moving"])


def progress(cursor: int, read_to: int | None = None) -> Progress:
    end = cursor if read_to is None else read_to
    return Progress(cursor, end, 9000, ((cursor + 1, end + 1),) if end > cursor else (), ())


# ---- what is waited for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"ordered": True}, {"rate_limit": 5.0}, {"spread": False}, {"max_in_flight": 2}])
async def test_an_endpoint_that_gets_pinned_waits_for_the_other_home_shards(
    driver: Driver, store: Store, change: dict[str, Any]
) -> None:
    tenant = await tenant_at(store, 0, 1, 2)
    endpoint, other = await add_endpoint(store, tenant), await add_endpoint(store, tenant)
    await append(store, tenant, 1, endpoint, count=3)
    await store.update_endpoint(tenant, endpoint, change)
    assert await barriers(driver) == {(endpoint, 1, 3), (endpoint, 2, 0)}
    assert (await endpoint_of(store, endpoint)).barred
    assert not (await endpoint_of(store, other)).barred
    assert await moving(store, tenant)


async def test_an_endpoint_that_was_pinned_already_waits_for_nothing(driver: Driver, store: Store) -> None:
    tenant = await tenant_at(store, 0, 1, 2)
    endpoint = await add_endpoint(store, tenant, rate_limit=5.0)
    assert (await endpoint_of(store, endpoint)).pinned
    for change in ({"ordered": True}, {"max_in_flight": 1}, {"rate_limit": None}, {"url": "https://example.com/b"}):
        await store.update_endpoint(tenant, endpoint, change)
    assert await barriers(driver) == set()
    assert not await moving(store, tenant)


async def test_a_tenants_cap_below_its_spread_pins_all_its_endpoints(driver: Driver, store: Store) -> None:
    tenant = await tenant_at(store, 0, 1)
    endpoint, pinned = await add_endpoint(store, tenant), await add_endpoint(store, tenant, ordered=True)
    await store.update_tenant(tenant, {"max_in_flight": 1})
    assert await barriers(driver) == {(endpoint, 1, 0)}
    assert not (await endpoint_of(store, pinned)).barred


async def test_a_change_of_the_spread_keeps_the_first_home_shard_and_bars_nobody(driver: Driver, store: Store) -> None:
    tenant = await new_tenant(store, (2,))
    pinned = await add_endpoint(store, tenant, ordered=True)
    await append(store, tenant, 2, pinned)
    grown = await store.update_tenant(tenant, {"spread": 4})
    assert (grown["home_shards"][0], set(grown["home_shards"])) == (2, {0, 1, 2, 3})
    await append(store, tenant, grown["home_shards"][3], count=5)
    shrunk = await store.update_tenant(tenant, {"spread": 1})
    assert shrunk["home_shards"] == [2]
    assert await barriers(driver) == set()
    assert await departures(driver) == {
        (grown["home_shards"][1], 0),
        (grown["home_shards"][2], 0),
        (grown["home_shards"][3], 5),
    }


async def test_a_move_of_the_pool_bars_what_is_pinned_and_leaves_the_old_shards(driver: Driver, store: Store) -> None:
    tenant = await tenant_at(store, 1, 2)
    pinned, free = await add_endpoint(store, tenant, ordered=True), await add_endpoint(store, tenant)
    await append(store, tenant, 1, pinned, free, count=2)
    await append(store, tenant, 2, free, count=7)
    moved = await store.update_tenant(tenant, {"pool": "acme"})
    assert (moved["pool"], sorted(moved["home_shards"]), moved["moving"]) == ("acme", [4, 5], True)
    assert await barriers(driver) == {(pinned, 1, 2)}
    assert await departures(driver) == {(1, 2), (2, 7)}
    assert not (await endpoint_of(store, free)).barred


async def test_what_was_spread_once_is_waited_for_after_the_tenant_has_left_those_shards(
    driver: Driver, store: Store
) -> None:
    tenant = await tenant_at(store, 0, 1)
    endpoint = await add_endpoint(store, tenant)
    await append(store, tenant, 1, endpoint)
    await store.update_tenant(tenant, {"spread": 1})
    await store.update_endpoint(tenant, endpoint, {"ordered": True})
    assert await barriers(driver) == {(endpoint, 1, 1)}


async def test_a_shard_that_is_left_keeps_its_part_of_the_caps_until_it_is_drained(store: Store) -> None:
    tenant = await tenant_at(store, 0, 1, 2)
    await store.update_tenant(tenant, {"spread": 1})
    assert (await tenant_of(store, tenant)).home_shards == (0, 1, 2)
    await own(store)
    assert await store.lift_barriers() == 2
    assert (await tenant_of(store, tenant)).home_shards == (0,)


async def test_the_owner_of_the_first_home_shard_is_told_in_the_order_of_the_journal(
    driver: Driver, store: Store
) -> None:
    tenant = await tenant_at(store, 0, 1)
    endpoint = await add_endpoint(store, tenant)
    await append(store, tenant, 0, endpoint)
    await store.update_endpoint(tenant, endpoint, {"ordered": True})
    await append(store, tenant, 0, endpoint)
    rows = [(row["seq"], row["kind"], row["type"], row["owed"]) for row in await driver.journal(0)]
    assert rows == [
        (1, Kind.DELIVER, "a.b", [endpoint]),
        (2, Kind.CONTROL, RECONFIGURED, []),
        (3, Kind.DELIVER, "a.b", [endpoint]),
    ]
    assert await driver.journal(1) == []


async def test_what_was_accepted_while_ordered_keeps_its_order(driver: Driver, store: Store) -> None:
    tenant = await tenant_at(store, 3, 1)
    endpoint = await add_endpoint(store, tenant, ordered=True)
    assert (await endpoint_of(store, endpoint)).ordered_to is None
    await append(store, tenant, 3, endpoint, count=4)
    await store.update_endpoint(tenant, endpoint, {"ordered": False})
    loaded = await endpoint_of(store, endpoint)
    assert (loaded.ordered, loaded.ordered_to, loaded.barred) == (False, (3, 4), False)
    await append(store, tenant, 3, endpoint)
    await store.update_endpoint(tenant, endpoint, {"url": "https://example.com/b"})
    assert (await endpoint_of(store, endpoint)).ordered_to == (3, 4)


# ---- nothing comes behind it -----------------------------------------------------------------------------------------


@pytest.mark.postgres
async def test_an_append_that_waited_behind_a_move_is_refused_as_stale(driver: Driver, store: Store) -> None:
    other = await driver.open()
    tenant = await tenant_at(store, 1)
    endpoint = await add_endpoint(store, tenant, ordered=True)
    versions = await version(store, tenant)
    let_go = await driver.hold_shard(1)
    move = asyncio.create_task(store.update_tenant(tenant, {"pool": "acme"}))
    await driver.waiting(1)
    late = asyncio.create_task(other.append(1, [event(tenant, owed=(endpoint,))], versions))
    await driver.waiting(2)
    await let_go()
    await move
    assert isinstance(await late, Stale)
    assert await barriers(driver) == {(endpoint, 1, 0)}
    assert await driver.journal(1) == []


@pytest.mark.postgres
async def test_an_append_that_came_first_is_counted(driver: Driver, store: Store) -> None:
    other = await driver.open()
    tenant = await tenant_at(store, 1)
    endpoint = await add_endpoint(store, tenant, ordered=True)
    versions = await version(store, tenant)
    let_go = await driver.hold_shard(1)
    first = asyncio.create_task(other.append(1, [event(tenant, owed=(endpoint,))], versions))
    await driver.waiting(1)
    move = asyncio.create_task(store.update_tenant(tenant, {"pool": "acme"}))
    await driver.waiting(2)
    await let_go()
    assert isinstance(await first, list)
    await move
    assert await barriers(driver) == {(endpoint, 1, 1)}


async def test_barriers_are_exact_under_appends_from_all_sides(driver: Driver, store: Store) -> None:
    """Whatever was accepted by the old configuration lies at or before the barrier, the rest in the new shard."""
    writers = [await driver.open() for _ in range(2)]
    tenant = await tenant_at(store, 0)
    endpoint = await add_endpoint(store, tenant, ordered=True)
    stop = asyncio.Event()

    async def write(writer: Store) -> None:
        while not stop.is_set():
            routes = await writer.load_routes(tenant)
            assert routes is not None
            versions = {tenant: routes.config_version}
            await writer.append(routes.home_shards[0], [event(tenant, owed=(endpoint,))], versions)

    writing = [asyncio.create_task(write(writer)) for writer in writers for _ in range(2)]
    for count in range(1, 4):
        while len(await driver.journal(0)) < 5 * count:
            await asyncio.sleep(0)
        await store.update_endpoint(tenant, endpoint, {"description": str(count)})
    await store.update_tenant(tenant, {"pool": "acme"})
    home = (await store.get_tenant(tenant))["home_shards"][0]
    while len(await driver.journal(home)) < 10:
        await asyncio.sleep(0)
    stop.set()
    await asyncio.gather(*writing)
    assert await barriers(driver) == {(endpoint, 0, len(await driver.journal(0)))}
    assert (await driver.journal(home))[0]["type"] == RECONFIGURED


async def test_moves_of_many_tenants_and_appends_to_the_same_shards_do_not_wait_for_each_other_for_ever(
    driver: Driver, store: Store
) -> None:
    tenants = [await tenant_at(store, *homes) for homes in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (3, 0, 1))]
    endpoints = [await add_endpoint(store, tenant) for tenant in tenants]
    other = await driver.open()

    async def change(tenant: UUID, endpoint: UUID) -> None:
        for ordered in (True, False, True):
            await store.update_endpoint(tenant, endpoint, {"ordered": ordered})
        for spread in (1, 4, 2):
            await store.update_tenant(tenant, {"spread": spread})

    async def write(tenant: UUID, shard: int) -> None:
        for _ in range(10):
            routes = await other.load_routes(tenant)
            assert routes is not None
            await other.append(shard, [event(tenant, key=str(uuid7()))], {tenant: routes.config_version})

    async def rest(endpoint: UUID) -> None:
        for until in range(5):
            await other.hold_endpoint(endpoint, 1.8e9 + until)
            await other.lift_barriers()

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        for number, (tenant, endpoint) in enumerate(zip(tenants, endpoints, strict=True)):
            tasks.create_task(change(tenant, endpoint))
            tasks.create_task(write(tenant, number))
            tasks.create_task(rest(endpoint))


@pytest.mark.postgres
async def test_a_replay_goes_where_the_configuration_of_its_moment_says(driver: Driver, store: Store) -> None:
    tenant = await tenant_at(store, 0)
    endpoint = await add_endpoint(store, tenant, ordered=True)
    [first] = await append(store, tenant, 0, endpoint)
    other = await driver.open()
    let_go = await driver.hold_shard(0)
    move = asyncio.create_task(store.update_tenant(tenant, {"pool": "acme"}))
    await driver.waiting(1)
    replay = asyncio.create_task(other.append_replay(tenant, first.event_id, None))
    await driver.waiting(2)
    await let_go()
    home = (await move)["home_shards"][0]
    assert await replay == 1
    assert [row["kind"] for row in await driver.journal(0)] == [Kind.DELIVER]
    assert [row["kind"] for row in await driver.journal(home)] == [Kind.CONTROL, Kind.REPLAY]


async def test_a_replay_to_a_pinned_endpoint_goes_to_the_first_home_shard(driver: Driver, store: Store) -> None:
    tenant = await tenant_at(store, 3, 0, 1, 2)
    endpoint = await add_endpoint(store, tenant, ordered=True)
    events = await append(store, tenant, 3, endpoint, count=8)
    for each in events:
        await store.append_replay(tenant, each.event_id, None)
    assert len(await driver.journal(3)) == 16


async def blocked(driver: Driver, store: Store, *home_shards: int) -> tuple[UUID, UUID, UUID]:
    """An ordered endpoint with a dead letter that blocks its lane in shard 0; its tenant, itself, the event."""
    tenant = await tenant_at(store, *home_shards)
    endpoint = await add_endpoint(store, tenant, ordered=True)
    [first] = await append(store, tenant, 0, endpoint)
    await own(store)
    row = waiting(endpoint, 1, tenant_id=tenant, event_id=first.event_id, due_at=float("inf"), deadline=float("inf"))
    letter = dead(endpoint, first.event_id, tenant_id=tenant)
    await store.settle([settle(0, progress=progress(1), upserts=[row], dead=[letter])])
    return tenant, endpoint, first.event_id


async def test_a_replay_of_what_blocks_goes_to_its_shard_though_the_endpoint_is_ordered_no_more(
    driver: Driver, store: Store
) -> None:
    tenant, endpoint, event_id = await blocked(driver, store, 0, 1, 2, 3)
    await store.update_endpoint(tenant, endpoint, {"ordered": False})
    for _ in range(4):
        await store.append_replay(tenant, event_id, None)
    assert [row["kind"] for row in await driver.journal(0)] == [Kind.DELIVER, *[Kind.REPLAY] * 4]


async def test_a_replay_of_what_blocks_in_a_shard_that_was_left_ends_what_the_endpoint_waits_for(
    driver: Driver, store: Store
) -> None:
    tenant, endpoint, event_id = await blocked(driver, store, 0)
    await store.update_tenant(tenant, {"pool": "acme"})
    assert await barriers(driver) == {(endpoint, 0, 1)}
    await store.append_replay(tenant, event_id, None)
    assert [row["kind"] for row in await driver.journal(0)] == [Kind.DELIVER, Kind.REPLAY]


async def test_a_replay_that_another_shard_reads_leaves_the_dead_letter_of_what_blocks(
    driver: Driver, store: Store
) -> None:
    """It was asked for just before the delivery died."""
    _, endpoint, event_id = await blocked(driver, store, 0, 1)
    await store.settle([settle(1, revived=[(event_id, endpoint)])])
    assert [row["event_id"] for row in await driver.rows("dead_letters")] == [event_id]
    await store.settle([settle(0, settle_no=2, progress=progress(1), revived=[(event_id, endpoint)])])
    assert not await driver.rows("dead_letters")


@pytest.mark.postgres
async def test_of_a_fan_out_only_what_blocks_is_replayed_in_its_shard(driver: Driver, store: Store) -> None:
    tenant, endpoint, event_id = await blocked(driver, store, 0)
    other = await add_endpoint(store, tenant)
    await driver.run("update events set owed = $2 where event_id = $1", event_id, [endpoint, other])
    await store.update_tenant(tenant, {"pool": "acme"})
    await store.append_replay(tenant, event_id, None)
    home = (await store.get_tenant(tenant))["home_shards"][0]
    here, there = await driver.journal(0), await driver.journal(home)
    assert (here[-1]["owed"], there[-1]["owed"]) == ([endpoint], [other])
    assert here[-1]["generation"] == there[-1]["generation"] == 1


# ---- when it is lifted -----------------------------------------------------------------------------------------------


async def barred(driver: Driver, store: Store, count: int = 3) -> tuple[UUID, UUID]:
    """An ordered endpoint that moved from shard 0, where it is owed ``count`` events; shards 0 to 3 have an owner."""
    tenant = await tenant_at(store, 0)
    endpoint = await add_endpoint(store, tenant, ordered=True)
    await append(store, tenant, 0, endpoint, count=count)
    await store.update_tenant(tenant, {"pool": "acme"})
    await own(store)
    assert await barriers(driver) == {(endpoint, 0, count)}
    return tenant, endpoint


async def test_it_is_lifted_when_all_before_it_is_done_and_not_before(driver: Driver, store: Store) -> None:
    tenant, endpoint = await barred(driver, store)
    assert await store.lift_barriers() == 0, "a shard that was never settled has done nothing"
    await store.settle([settle(progress=progress(2, 3))])
    assert await store.lift_barriers() == 0
    changed = await store.changed_tenants(0.0)
    told = await store.changed_endpoints([tenant], 0.0)
    await store.settle([settle(settle_no=2, progress=progress(3))])
    assert await store.lift_barriers() == 2
    assert not (await endpoint_of(store, endpoint)).barred
    assert not await moving(store, tenant)
    assert (await store.changed_tenants(0.0))[tenant] > changed[tenant]
    assert (await store.changed_endpoints([tenant], 0.0))[endpoint] > told[endpoint]
    assert await store.lift_barriers() == 0


async def test_it_waits_for_what_is_in_the_backlog(driver: Driver, store: Store) -> None:
    tenant, endpoint = await barred(driver, store)
    await store.settle([settle(progress=progress(3), upserts=[waiting(endpoint, 2), waiting(uuid7(), 1)])])
    assert await store.lift_barriers() == 0
    await store.settle([settle(settle_no=2, progress=progress(3), deletes=[(endpoint, 2)])])
    assert await store.lift_barriers() == 2
    assert not await moving(store, tenant)


async def test_a_shard_holds_something_of_a_tenant_as_long_as_any_endpoint_waits(driver: Driver, store: Store) -> None:
    tenant, _ = await barred(driver, store)
    free = await add_endpoint(store, tenant)
    await store.settle([settle(progress=progress(3), upserts=[waiting(free, 1)])])
    assert await store.lift_barriers() == 1
    assert await barriers(driver) == set()
    assert await moving(store, tenant)
    await store.settle([settle(settle_no=2, progress=progress(3), deletes=[(free, 1)])])
    assert await store.lift_barriers() == 1
    assert not await moving(store, tenant)


async def test_what_comes_later_is_not_waited_for(driver: Driver, store: Store) -> None:
    """Other tenants go on in the shard, and their rows need not be done."""
    tenant, _ = await barred(driver, store)
    neighbour = await new_tenant(store, (0,))
    await append(store, neighbour, 0, uuid7(), count=2)
    await store.settle([settle(progress=progress(3, 5))])
    assert await store.lift_barriers() == 2
    assert not await moving(store, tenant)


async def test_an_idle_shard_and_one_that_was_never_used_hold_nobody_up(driver: Driver, store: Store) -> None:
    tenant = await tenant_at(store, 0, 1)
    endpoint = await add_endpoint(store, tenant)
    await append(store, tenant, 1, endpoint)
    await own(store)
    await store.settle([settle(shard=1, progress=progress(1))])
    await store.update_tenant(tenant, {"spread": 4})
    await store.update_endpoint(tenant, endpoint, {"ordered": True})
    assert await barriers(driver) == {(endpoint, 1, 1), (endpoint, 2, 0), (endpoint, 3, 0)}
    assert await store.lift_barriers() == 3


@pytest.mark.postgres
async def test_a_shard_whose_rows_were_all_dropped_holds_nobody_up(driver: Driver, store: Store) -> None:
    assert isinstance(driver, Postgres)
    await driver.run("update shards set floor_seq = 7 where shard = 1")
    tenant = await tenant_at(store, 0, 1)
    endpoint = await add_endpoint(store, tenant)
    await store.update_endpoint(tenant, endpoint, {"ordered": True})
    assert await barriers(driver) == {(endpoint, 1, 7)}
    assert await store.lift_barriers() == 1


async def test_it_waits_for_an_owner_that_is_gone_for_a_while(driver: Driver, store: Store) -> None:
    _tenant, endpoint = await barred(driver, store)
    await store.settle([settle(progress=progress(1, 3))])
    for node in await driver.rows("nodes"):
        await store.leave(node["node_id"])
    assert await store.lift_barriers() == 0
    node = await own(store)
    [fence] = [row["fence"] for row in await driver.rows("shards") if row["shard"] == 0 and row["owner"] == node]
    await store.settle([settle(fence=fence, settle_no=2, progress=progress(3))])
    assert await store.lift_barriers() == 2
    assert not (await endpoint_of(store, endpoint)).barred


@pytest.mark.postgres
async def test_a_tenant_that_is_just_being_changed_has_its_turn_later(driver: Driver, store: Store) -> None:
    tenant, _ = await barred(driver, store)
    await store.settle([settle(progress=progress(3))])
    assert isinstance(driver, Postgres)
    connection = await driver.connect()
    await connection.execute("begin")
    await connection.execute("select from tenants where tenant_id = $1 for no key update", tenant)
    assert await store.lift_barriers() == 0
    await connection.execute("commit")
    assert await store.lift_barriers() == 2


async def test_what_is_deleted_is_not_waited_for(driver: Driver, store: Store) -> None:
    tenant = await tenant_at(store, 0)
    first, second = [await add_endpoint(store, tenant, ordered=True) for _ in range(2)]
    await append(store, tenant, 0, first, second)
    await store.update_tenant(tenant, {"pool": "acme"})
    await store.delete_endpoint(tenant, first)
    assert await barriers(driver) == {(second, 0, 1)}
    await store.delete_tenant(tenant)
    assert await barriers(driver) == set()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pool": "nowhere"}, "pool"),
        ({"spread": 5}, "spread"),
        ({"pool": "acme", "spread": 3}, "spread"),
        ({"pool": "acme"}, "pool"),
    ],
)
async def test_a_place_that_there_is_not_is_refused_and_nothing_changes(
    driver: Driver, store: Store, changes: dict[str, Any], field: str
) -> None:
    tenant = await tenant_at(store, 0, 1, 2)
    before = await store.get_tenant(tenant)
    with pytest.raises(Unfit) as refused:
        await store.update_tenant(tenant, changes)
    assert refused.value.field == field
    assert await store.get_tenant(tenant) == before


async def test_a_tenant_whose_last_move_is_not_over_stays_until_it_is(driver: Driver, store: Store) -> None:
    """What waits in the second pool for the first one would be overtaken in a third."""
    tenant, _ = await barred(driver, store)
    with pytest.raises(Conflict):
        await store.update_tenant(tenant, {"pool": "default"})
    await store.settle([settle(progress=progress(3))])
    await store.lift_barriers()
    moved = await store.update_tenant(tenant, {"pool": "default"})
    assert (moved["pool"], len(moved["home_shards"])) == ("default", 1)


async def test_order_does_not_end_while_what_was_accepted_in_order_waits_in_another_pool(
    driver: Driver, store: Store
) -> None:
    tenant, endpoint = await barred(driver, store)
    with pytest.raises(Conflict):
        await store.update_endpoint(tenant, endpoint, {"ordered": False})
    assert (await endpoint_of(store, endpoint)).ordered
    await store.settle([settle(progress=progress(3))])
    await store.lift_barriers()
    await store.update_endpoint(tenant, endpoint, {"ordered": False})


# ---- pools and loads -------------------------------------------------------------------------------------------------


async def test_a_pool_grows_and_never_shrinks(driver: Driver, store: Store) -> None:
    assert (await store.grow_pool("acme", 2, shards_max=100))["shards"] == 2
    assert (await store.grow_pool("acme", 4, shards_max=8))["shards"] == 4
    for shards, limit in ((3, 8), (5, 8)):
        with pytest.raises(Unfit) as refused:
            await store.grow_pool("acme", shards, shards_max=limit)
        assert refused.value.field == "shards"
    await own(store, pool="acme")
    pools = {row["name"]: (row["shards"], row["tenants"], row["workers"]) for row in await store.list_pools()}
    assert pools == {"acme": (4, 0, 1), "default": (4, 1, 0)}
    assert sorted(row["shard"] for row in await driver.rows("shards")) == list(range(8))


async def test_shards_added_by_two_at_once_have_numbers_of_their_own(driver: Driver, store: Store) -> None:
    other = await driver.open()
    await asyncio.gather(store.grow_pool("a", 5, shards_max=100), other.grow_pool("b", 5, shards_max=100))
    assert len(await driver.rows("shards")) == 4 + 2 + 10


async def test_the_load_of_a_shard_is_what_is_not_read_or_open(driver: Driver, store: Store) -> None:
    tenant, other = await new_tenant(store, (0,)), await new_tenant(store, (0,))
    await append(store, tenant, 0, uuid7(), count=30)
    await append(store, other, 0, uuid7(), count=10)
    await own(store)
    found = {each.shard: (each.last_seq, each.depth) for each in await store.shard_loads()}
    assert found == {0: (40, 40), 1: (0, 0), 2: (0, 0), 3: (0, 0), 4: (0, 0), 5: (0, 0)}
    await store.settle([settle(progress=Progress(3, 35, 9000, ((4, 5), (7, 10)), ()))])
    assert {each.shard: (each.last_seq, each.depth) for each in await store.shard_loads()}[0] == (40, 9)
    assert await store.tenant_shares([0, 1], rows_max=20) == {0: {tenant: 0.5, other: 0.5}}


async def test_a_tenant_is_spread_by_its_load_unless_its_spread_is_set_or_has_changed(
    driver: Driver, store: Store
) -> None:
    free, fixed = await new_tenant(store, (0,)), await tenant_at(store, 1)
    assert [each.tenant_id for each in await store.spread_tenants([free, fixed])] == [free]
    assert not await store.set_spread(fixed, known=1, wanted=2)
    assert not await store.set_spread(free, known=2, wanted=4)
    assert await store.set_spread(free, known=1, wanted=4)
    [spread] = await store.spread_tenants([])
    assert (spread.home_shards[0], len(spread.home_shards), spread.pool_shards) == (0, 4, 4)
    assert await store.set_spread(free, known=4, wanted=2)
    assert len(await departures(driver)) == 2


async def test_the_eldest_of_the_living_is_one(driver: Driver, store: Store) -> None:
    first, second = await own(store), await own(store)
    assert [await store.is_eldest(node) for node in (first, second, uuid7())] == [True, False, False]
    await driver.expire_lease(first)
    assert [await store.is_eldest(node) for node in (first, second)] == [False, True]
