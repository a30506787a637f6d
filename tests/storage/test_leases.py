"""Leases and fences: one owner a shard, and a late one changes nothing."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.storage.contract import FenceLost, Store
from tests.storage.driver import SHARDS, Driver, Postgres, own, settle, until

LEASE_S = 1000.0


async def claim(store: Store, node: UUID, *, limit: int = SHARDS, lease_s: float = 0.0) -> dict[int, int]:
    """Shards and fences; a lease of no length leaves no grace after the server's start."""
    return {each.shard: each.fence for each in await store.claim(node, pool="default", limit=limit, lease_s=lease_s)}


async def register(store: Store, *, lease_s: float = LEASE_S, pool: str = "default") -> UUID:
    node = uuid7()
    await store.register(node, pool=pool, name="w", lease_s=lease_s)
    return node


async def test_a_claim_takes_free_shards_up_to_the_limit_and_raises_their_fence(driver: Driver) -> None:
    store = await driver.open()
    one, two = await register(store), await register(store)
    assert await claim(store, one, limit=3) == {0: 1, 1: 1, 2: 1}
    assert await claim(store, two) == {3: 1}
    assert await claim(store, two) == {}
    survey = await store.survey("default")
    assert survey.owners == {0: one, 1: one, 2: one, 3: two}
    assert set(survey.nodes) == {one, two}


async def test_a_claim_stays_in_its_pool(driver: Driver) -> None:
    store = await driver.open()
    node = await register(store, pool="other")
    assert await store.claim(node, pool="other", limit=9, lease_s=LEASE_S) == []
    assert (await store.survey("other")).owners == {}
    assert (await store.survey("other")).nodes == (node,)
    assert (await store.survey("default")).nodes == ()


async def test_a_silent_owner_is_replaced_and_a_living_one_is_not(driver: Driver) -> None:
    store = await driver.open()
    silent, living, heir = await register(store), await register(store), await register(store)
    assert await claim(store, silent, limit=2) == {0: 1, 1: 1}
    assert await claim(store, living) == {2: 1, 3: 1}
    await driver.expire_lease(silent)
    assert (await store.survey("default")).owners == {0: None, 1: None, 2: living, 3: living}
    assert await claim(store, heir) == {0: 2, 1: 2}
    with pytest.raises(FenceLost):
        await store.settle([settle(0, fence=1)])
    await store.settle([settle(0, fence=2)])


async def test_a_late_renewal_keeps_what_nobody_took(driver: Driver) -> None:
    store = await driver.open()
    node = await own(store)
    await driver.expire_lease(node)
    before = (await store.survey("default")).now
    assert (await store.renew(node, lease_s=LEASE_S) or 0.0) >= before
    assert set((await store.survey("default")).owners.values()) == {node}
    await store.settle([settle(0)])


async def test_nobody_claims_what_is_its_own_though_its_lease_has_run_out(driver: Driver) -> None:
    """Its next renewal keeps it; nothing that it has under way is in doubt."""
    store = await driver.open()
    node, silent = await register(store), await register(store)
    assert await claim(store, node, limit=2) == {0: 1, 1: 1}
    assert await claim(store, silent) == {2: 1, 3: 1}
    await driver.expire_lease(node)
    await driver.expire_lease(silent)
    assert await claim(store, node) == {2: 2, 3: 2}
    await store.renew(node, lease_s=LEASE_S)
    kept, taken = await store.takeovers({0: 1, 2: 2})
    assert not kept.quiet_until
    assert taken.quiet_until
    await store.settle([settle(0, fence=1)])


async def test_a_removed_lease_cannot_be_renewed_but_registered_anew(driver: Driver) -> None:
    store = await driver.open()
    node = await own(store)
    await store.leave(node)
    assert await store.renew(node, lease_s=LEASE_S) is None
    assert (await store.survey("default")).nodes == ()
    await store.register(node, pool="default", name="w", lease_s=LEASE_S)
    await store.register(node, pool="default", name="w", lease_s=LEASE_S)
    assert (await store.survey("default")).nodes == (node,)


async def test_leaving_frees_the_shards(driver: Driver) -> None:
    store = await driver.open()
    node = await own(store)
    await store.leave(node)
    await store.leave(node)
    assert set((await store.survey("default")).owners.values()) == {None}
    assert await claim(store, await register(store)) == dict.fromkeys(range(SHARDS), 2)


async def test_an_owner_that_left_no_lease_at_all_counts_as_silent(driver: Driver) -> None:
    store = await driver.open()
    ghost = uuid7()
    assert await claim(store, ghost) == dict.fromkeys(range(SHARDS), 1)
    assert set((await store.survey("default")).owners.values()) == {None}
    assert await claim(store, await register(store)) == dict.fromkeys(range(SHARDS), 2)


async def test_a_release_with_an_old_fence_or_of_a_stranger_changes_nothing(driver: Driver) -> None:
    store = await driver.open()
    node = await own(store)
    await store.release(node, {0: 0, 1: 2})
    await store.release(uuid7(), {0: 1, 1: 1})
    await store.release(node, {})
    assert set((await store.survey("default")).owners.values()) == {node}
    await store.release(node, {2: 1, 1: 1})
    assert (await store.survey("default")).owners == {0: node, 1: None, 2: None, 3: node}
    await store.settle([settle(1)])  # the fence moves with the next owner, not before


async def test_the_fence_grows_with_every_owner(driver: Driver) -> None:
    store = await driver.open()
    for fence in range(1, 6):
        node = await register(store)
        assert await claim(store, node) == dict.fromkeys(range(SHARDS), fence)
        if fence % 2:
            await store.release(node, dict.fromkeys(range(SHARDS), fence))
        else:
            await driver.expire_lease(node)


async def test_after_a_restart_a_silent_owner_keeps_its_shards_for_a_lease(driver: Driver) -> None:
    """While the database was away nobody could renew: expired says nothing yet."""
    store = await driver.open()
    silent = await register(store)
    await claim(store, silent, limit=2)
    await driver.expire_lease(silent)
    heir = await register(store)
    assert await claim(store, heir, lease_s=1e6) == {2: 1, 3: 1}, "free ones may be taken at once"
    await driver.age(0.01)
    assert await claim(store, heir, lease_s=0.01) == {0: 2, 1: 2}


async def test_f4_concurrent_claims_never_overlap(driver: Driver) -> None:
    stores = [await driver.open(size_min=2, size_max=2) for _ in range(3)]
    nodes = [await register(store) for store in stores for _ in range(2)]
    for fence in range(1, 26):
        claims = await asyncio.gather(*(claim(stores[n % 3], node, limit=2) for n, node in enumerate(nodes)))
        taken = [shard for claimed in claims for shard in claimed]
        assert sorted(taken) == sorted(set(taken)), "two workers were given one shard"
        assert {fence_ for claimed in claims for fence_ in claimed.values()} <= {fence}
        owners = (await stores[0].survey("default")).owners
        for node, claimed in zip(nodes, claims, strict=True):
            assert {shard for shard, owner in owners.items() if owner == node} == set(claimed)
        missing = await claim(stores[0], nodes[0])
        assert len(missing) + len(taken) == SHARDS
        for node in nodes:
            await stores[0].release(node, dict.fromkeys(range(SHARDS), fence))


@pytest.mark.postgres
async def test_a_claim_that_looked_before_another_one_committed_does_not_take_its_shards(driver: Driver) -> None:
    assert isinstance(driver, Postgres)
    for setting in ("enable_nestloop", "enable_mergejoin"):  # a hash join looks at the leases even if none is needed
        await driver.run(
            f"do $$ begin execute format('alter database %I set {setting} = off', current_database()); end $$"
        )
    fast, slow = await driver.open(), await driver.open(application="slow")
    first, second = await register(fast), await register(slow)
    # The slow one stops when it looks at the leases: behind its snapshot, before the first lock on a shard.
    await driver.run("select pg_advisory_lock(1, 1)")
    await driver.run("alter table nodes rename to nodes_kept")
    await driver.run(
        "create function gate() returns boolean language plpgsql volatile as $$ begin"
        " if current_setting('application_name') = 'slow' then perform pg_advisory_xact_lock_shared(1, 1); end if;"
        " return true; end $$"
    )
    await driver.run("create view nodes as select * from nodes_kept where gate() offset 0")
    overtaken = asyncio.create_task(claim(slow, second))
    await driver.waiting()
    overtaking = asyncio.create_task(claim(fast, first))
    await until(lambda: _done_or_waiting(driver, overtaking))
    await driver.run("select pg_advisory_unlock(1, 1)")
    taken = [*await overtaken, *await overtaking]
    assert sorted(taken) == list(range(SHARDS))


async def _done_or_waiting(driver: Postgres, task: asyncio.Task[dict[int, int]]) -> bool:
    return task.done() or len(await driver.blocked()) == 2


async def test_quiet_until_is_set_only_when_a_silent_owner_is_replaced(driver: Driver) -> None:
    store = await driver.open()
    silent = await register(store)
    await claim(store, silent)
    assert [row["quiet_until"] for row in await driver.rows("shards")] == [None] * SHARDS
    await store.settle([settle(0, clean=True)])
    await store.release(silent, {0: 1})
    before = (await store.survey("default")).now
    await driver.expire_lease(silent)
    await claim(store, await register(store))
    quiet = {row["shard"]: row["quiet_until"] for row in await driver.rows("shards")}
    assert quiet[0] is None
    now = (await store.survey("default")).now
    assert all(before + 25 < quiet[shard].timestamp() <= now + 30 for shard in (1, 2, 3))


@pytest.mark.parametrize("clean", [True, False, None])
async def test_a_shard_let_go_is_quiet_unless_this_owner_had_nothing_under_way(
    driver: Driver, clean: bool | None
) -> None:
    store = await driver.open()
    before = await register(store)
    await claim(store, before)
    await store.settle([settle(0, clean=True)])
    await store.release(before, {0: 1})
    owner = await register(store)
    assert (await claim(store, owner))[0] == 2
    if clean is not None:
        await store.settle([settle(0, fence=2, settle_no=2, clean=clean)])
    await store.leave(owner)
    [quiet] = [row["quiet_until"] for row in await driver.rows("shards") if row["shard"] == 0]
    assert (quiet is None) == (clean is True)
    takeover = (await store.takeovers({0: 2}))[0]
    assert takeover.quiet_until == (0.0 if quiet is None else quiet.timestamp())


@pytest.mark.parametrize("end", ["dies", "gives it back", "leaves", "lost track of it"])
async def test_a_successor_hears_how_late_the_clock_of_the_last_owner_may_have_been(driver: Driver, end: str) -> None:
    """A clock that is set back lets a lease end before its last end."""
    store = await driver.open()
    before = (await store.survey("default")).now
    owner, heir = await register(store, lease_s=5000.0), await register(store, lease_s=3000.0)
    await claim(store, owner, limit=1)
    await store.renew(owner, lease_s=1000.0)
    await store.register(owner, pool="default", name="w", lease_s=1000.0)
    match end:
        case "dies":
            await driver.expire_lease(owner)
        case "gives it back":
            await store.release(owner, {0: 1})
        case "leaves":
            await store.leave(owner)
        case _:
            await store.disown(owner, [0])
    assert (await claim(store, heir))[0] == 2
    now = (await store.survey("default")).now
    [first, never_owned] = await store.takeovers({0: 2, 1: 1})
    assert before + 5000 <= first.doubtful_to <= now + 5000
    assert never_owned.doubtful_to == 0.0


async def test_disowned_shards_are_free_and_those_of_others_stay(driver: Driver) -> None:
    store = await driver.open()
    one, two = await register(store), await register(store)
    await claim(store, one, limit=2)
    await claim(store, two)
    await store.disown(one, [1, 2])
    assert (await store.survey("default")).owners == {0: one, 1: None, 2: two, 3: two}
    assert await claim(store, two) == {1: 2}
