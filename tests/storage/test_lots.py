"""Appends to several shards at once: each shard's numbers and places as if it were alone, and all or nothing."""

from __future__ import annotations

import asyncio
from random import Random
from uuid import UUID

import pytest

from hookpost.engine.work import JournalRow
from hookpost.relay import decode_told, encode, rows, told
from hookpost.storage.contract import Appended, DataRejected, NewEvent, Place, Stale, Store
from tests.storage.driver import Driver, event, new_tenant, version
from tests.storage.test_append import CONFLICT, DUPLICATE, NEW, verdicts
from tests.storage.test_placed import ALL, drawn, furnished


async def append(
    store: Store, shards: list[int], events: list[NewEvent], versions: dict[UUID, int]
) -> dict[int, list[JournalRow]]:
    """What is told of it, by shard."""
    places: list[Place] = []
    answers = await store.append(shards, events, versions, places.append)
    assert isinstance(answers, list)
    assert [answer.event_id for answer in answers if answer.verdict is NEW] == [
        each.event_id for each, answer in zip(events, answers, strict=True) if answer.verdict is NEW
    ]
    new: dict[int, list[NewEvent]] = {}
    for shard, each, answer in zip(shards, events, answers, strict=True):
        if answer.verdict is NEW:
            new.setdefault(shard, []).append(each)
    assert [place.shard for place in places] == sorted(new)
    return {place.shard: rows(decode_told(encode(told(place, new[place.shard])))) for place in places}


@pytest.mark.parametrize("seed", range(3))
async def test_each_shard_has_its_events_in_their_order_behind_what_it_had(driver: Driver, seed: int) -> None:
    """And what is told of them is what its owner would read."""
    store, rng = await driver.open(), Random(seed)
    tenants, endpoints, versions = await furnished(store)
    keys = [str(n) for n in range(12)]
    at = dict.fromkeys(range(4), (0, 0))
    for size in (1, 2, 5, 20, 60, 1, 30):
        shards = [rng.randrange(4) for _ in range(size)]
        found = await append(store, shards, [drawn(rng, tenants, endpoints, keys) for _ in range(size)], versions)
        assert await store.read(at, **ALL) == found
        at.update({shard: (told_[-1].seq, told_[-1].day) for shard, told_ in found.items()})
    assert len(at) == 4 and sum(seq for seq, _ in at.values()) < 119, "there were duplicates"


async def test_one_key_in_two_shards_is_one_event(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    first = event(tenant, key="k")
    events = [event(tenant), first, event(tenant, key="k"), event(tenant, key="k", request_hash=b"other")]
    answers = await store.append([0, 2, 1, 3], events, versions)
    assert verdicts(answers) == [NEW, NEW, DUPLICATE, CONFLICT]
    assert [len(await driver.journal(shard)) for shard in range(4)] == [1, 0, 1, 0]
    assert await store.append([3, 1], [first, event(tenant)], versions) == [
        Appended(DUPLICATE, first.event_id, 1),
        Appended(NEW, (await driver.journal(1))[0]["event_id"], 1),
    ]


async def test_a_stale_tenant_keeps_everything_out_of_all_shards(driver: Driver) -> None:
    store = await driver.open()
    stale, fresh = await new_tenant(store), await new_tenant(store)
    versions = {stale: 99} | await version(store, fresh)
    events = [event(fresh, key="k"), event(stale, key="k"), event(fresh)]
    places: list[Place] = []
    assert await store.append([0, 1, 2], events, versions, places.append) == Stale(frozenset({stale}))
    assert places == [] and not any([await driver.journal(shard) for shard in range(3)])
    answer = await store.append([2, 1], [event(fresh, key="k"), event(fresh)], await version(store, fresh))
    assert verdicts(answer) == [NEW, NEW], "the key was not taken"


async def test_a_poisoned_event_keeps_everything_out_of_all_shards(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    with pytest.raises(DataRejected):
        await store.append([0, 1, 2], [event(tenant), event(tenant), event(tenant, type="a\0b")], versions)
    assert not any([await driver.journal(shard) for shard in range(3)])


async def test_a_shard_that_does_not_exist_keeps_everything_out(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    with pytest.raises(Exception, match="99"):
        await store.append([0, 99], [event(tenant), event(tenant)], await version(store, tenant))
    assert await driver.journal(0) == []


async def test_lots_that_overlap_wait_for_each_other_and_never_in_a_circle(driver: Driver) -> None:
    """Eight writers, two processes, shards in any order: numbers are gapless in the order of the commits."""
    stores = [await driver.open() for _ in range(2)]
    tenant = await new_tenant(stores[0])
    versions = await version(stores[0], tenant)
    sent: dict[int, list[UUID]] = {shard: [] for shard in range(4)}

    async def write(writer: int) -> None:
        rng = Random(writer)
        for _ in range(12):
            shards = rng.choices(range(4), k=rng.randrange(1, 7))
            events = [event(tenant, payload=b"%d" % writer) for _ in shards]
            assert verdicts(await stores[writer % 2].append(shards, events, versions)) == [NEW] * len(events)
            for shard, each in zip(shards, events, strict=True):
                sent[shard].append(each.event_id)

    await asyncio.gather(*map(write, range(8)))
    for shard, ids in sent.items():
        journal = await driver.journal(shard)
        assert [row["seq"] for row in journal] == list(range(1, len(ids) + 1))
        assert {row["event_id"] for row in journal} == set(ids)
        assert sorted(row["created_at"] for row in journal) == [row["created_at"] for row in journal]


async def test_a_lot_beside_appends_replays_and_controls_of_its_shards(driver: Driver) -> None:
    """All of them lock shards in one order."""
    store, other = await driver.open(), await driver.open()
    tenants, endpoints, versions = await furnished(store)
    firsts = [event(tenants[0], owed=(endpoints[0],)) for _ in range(4)]
    await store.append([0, 1, 2, 3], firsts, versions)

    async def lots() -> None:
        for n in range(10):
            order = [n % 4, (n + 2) % 4, (n + 1) % 4]
            assert isinstance(await store.append(order, [event(tenants[0]) for _ in order], versions), list)

    async def single(shard: int) -> None:
        for _ in range(10):
            assert isinstance(await other.append(shard, [event(tenants[1])], versions), list)

    async def replays() -> None:
        for first in firsts * 2:
            assert await other.append_replay(tenants[0], first.event_id, None) == 1

    await asyncio.gather(lots(), single(3), single(0), replays())
    journals = [await driver.journal(shard) for shard in range(4)]
    assert sum(map(len, journals)) == 4 + 30 + 20 + 8
    for journal in journals:
        assert [row["seq"] for row in journal] == list(range(1, len(journal) + 1))
