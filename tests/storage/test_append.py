"""What an append promises (I3, I14): gapless numbers in commit order, all or nothing, one event per idempotency key."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.storage.contract import Appended, DataRejected, Stale, StoreUnavailable, Verdict
from tests.storage.driver import SHARDS, Driver, Postgres, event, new_endpoint, new_tenant, until, version

NEW, DUPLICATE, CONFLICT = Verdict.NEW, Verdict.DUPLICATE, Verdict.CONFLICT


def verdicts(answer: list[Appended] | Stale) -> list[Verdict]:
    assert isinstance(answer, list), answer
    return [appended.verdict for appended in answer]


# ---- numbers ---------------------------------------------------------------------------------------------------------


async def test_numbers_are_gapless_in_each_shard_under_eight_writers(driver: Driver) -> None:
    stores = [await driver.open() for _ in range(2)]
    tenant = await new_tenant(stores[0])
    versions = await version(stores[0], tenant)
    sent: dict[int, set[UUID]] = {shard: set() for shard in range(3)}

    async def write(writer: int) -> None:
        for call in range(9):
            shard = (writer + call) % 3
            events = [event(tenant, payload=b"%d" % n) for n in range(1 + (writer + call) % 5)]
            assert isinstance(await stores[writer % 2].append(shard, events, versions), list)
            sent[shard] |= {each.event_id for each in events}

    await asyncio.gather(*map(write, range(8)))
    for shard, ids in sent.items():
        journal = await driver.journal(shard)
        assert [row["seq"] for row in journal] == list(range(1, len(ids) + 1))
        assert {row["event_id"] for row in journal} == ids
        assert sorted(row["created_at"] for row in journal) == [row["created_at"] for row in journal]


async def test_a_reader_never_sees_a_number_before_a_smaller_one(driver: Driver) -> None:
    store, reader = await driver.open(), await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    done = asyncio.Event()

    async def follow() -> int:
        seq = day = 0
        last = False
        while True:
            rows = (await reader.read({0: (seq, day)}, rows_max=7, bytes_max=10_000)).get(0, [])
            assert [row.seq for row in rows] == list(range(seq + 1, seq + 1 + len(rows)))
            if rows:
                seq, day = rows[-1].seq, rows[-1].day
            elif last:
                return seq
            last = done.is_set()

    async def write() -> None:
        for size in (1, 3, 2, 5, 1, 4):
            await store.append(0, [event(tenant) for _ in range(size)], versions)

    following = asyncio.create_task(follow())
    await asyncio.gather(*(write() for _ in range(6)))
    done.set()
    assert await following == 6 * 16


async def test_an_append_and_a_replay_share_the_numbers(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    versions = await version(store, tenant)
    first = event(tenant, owed=(endpoint,))
    await store.append(0, [first], versions)
    await asyncio.gather(
        *(store.append(0, [event(tenant)], versions) for _ in range(5)),
        *(store.append_replay(tenant, first.event_id, None) for _ in range(5)),
    )
    journal = await driver.journal(0)
    assert [row["seq"] for row in journal] == list(range(1, 12))
    assert sorted(row["generation"] for row in journal if row["kind"] == 1) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("tenants", [1, 2])
@pytest.mark.parametrize("types", [["a"], ["a", "b"]], ids=["one type", "two types"])
@pytest.mark.parametrize("owed", [[1], [0], [1, 2], [2, 0]], ids=["one list", "nobody", "two lists", "some"])
async def test_what_events_have_in_common_and_what_not(
    driver: Driver, tenants: int, types: list[str], owed: list[int]
) -> None:
    store = await driver.open()
    known = [await new_tenant(store) for _ in range(tenants)]
    versions = {tenant: of for each in known for tenant, of in (await version(store, each)).items()}
    lists = [tuple(uuid7() for _ in range(count)) for count in owed]
    events = [
        event(known[n // 4 % tenants], owed=lists[n // 2 % len(lists)], type=types[n % len(types)]) for n in range(8)
    ]
    assert verdicts(await store.append(0, events, versions)) == [NEW] * 8
    kept = [(row["event_id"], row["tenant_id"], row["type"], tuple(row["owed"])) for row in await driver.journal(0)]
    assert kept == [(each.event_id, each.tenant_id, each.type, each.owed) for each in events]


async def test_the_event_is_stored_as_it_was_given(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    payloads = [b"", b"\0", bytes(range(256)), os.urandom(1024 * 1024), b'{"n": 1.0e+5}']
    counts = [0, 1, 1000, 2, 3]
    events = [
        event(tenant, payload=payload, owed=tuple(uuid7() for _ in range(count)), type=f"t.{count}", trace_id=trace)
        for payload, count, trace in zip(payloads, counts, [uuid7(), None, None, uuid7(), None], strict=True)
    ]
    answer = await store.append(0, events, await version(store, tenant))
    assert answer == [Appended(NEW, each.event_id, len(each.owed)) for each in events]
    for row, each in zip(await driver.journal(0), events, strict=True):
        assert (row["event_id"], row["tenant_id"], row["type"]) == (each.event_id, each.tenant_id, each.type)
        assert row["payload"] == each.payload
        assert tuple(row["owed"]) == each.owed
        assert row["trace_id"] == each.trace_id
        assert (row["kind"], row["generation"], row["idempotency_key"]) == (0, 0, None)


@pytest.mark.postgres
async def test_a_full_group_with_wide_fan_outs_is_appended_in_one_call(driver: Driver) -> None:
    """500 events owed to 1000 endpoints each: half a million ids. How long it takes is for `make bench` to say."""
    store = await driver.open(append_timeout_s=60.0)
    tenant = await new_tenant(store)
    wide, other = tuple(uuid7() for _ in range(1000)), tuple(uuid7() for _ in range(1000))
    events = [event(tenant, owed=wide if n % 2 else other) for n in range(500)]
    assert verdicts(await store.append(0, events, await version(store, tenant))) == [NEW] * 500
    assert [tuple(row["owed"]) for row in await driver.journal(0)] == [other, wide] * 250


# ---- days ------------------------------------------------------------------------------------------------------------


@pytest.mark.postgres
async def test_the_store_gives_the_day_and_never_an_earlier_one(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    await store.make_partitions(days_ahead=3)
    assert isinstance(driver, Postgres)
    [row] = await driver.run("select hookpost_today() as day")
    today = row["day"]
    days = []
    clocks = [(0, "23:59:59.9"), (1, "00:00:00"), (0, "23:59:59.95"), (-1, "12:00"), (2, "00:00"), (1, "1:00")]
    for offset, clock in clocks:
        await driver.set_clock(f"{today + timedelta(offset)} {clock}+00")
        await store.append(1, [event(tenant), event(tenant)], versions)
        days.append([(row["day"] - today).days for row in await driver.journal(1)][-2:])
    assert days == [[0, 0], [1, 1], [1, 1], [1, 1], [2, 2], [2, 2]]
    assert [row["seq"] for row in await driver.journal(1)] == list(range(1, 13))
    assert (await store.read({1: (0, 0)}, rows_max=100, bytes_max=10_000))[1][-1].seq == 12


@pytest.mark.postgres
async def test_a_shard_goes_on_after_a_long_silence(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    await store.append(0, [event(tenant), event(tenant)], versions)
    assert isinstance(driver, Postgres)
    await driver.run("select hookpost_make_partitions(hookpost_today(), hookpost_today() + 40)")
    [row] = await driver.run("select (hookpost_now() + interval '30 days')::text as moment")
    await driver.set_clock(row["moment"])
    await store.append(0, [event(tenant)], versions)
    assert [row["seq"] for row in await driver.journal(0)] == [1, 2, 3]


# ---- config versions -------------------------------------------------------------------------------------------------


async def test_a_stale_version_writes_nothing_at_all(driver: Driver) -> None:
    store = await driver.open()
    stale, fresh = await new_tenant(store), await new_tenant(store)
    versions = await version(store, stale) | await version(store, fresh)
    await new_endpoint(store, stale)
    answer = await store.append(0, [event(stale, key="k"), event(fresh, key="k"), event(fresh)], versions)
    assert answer == Stale(frozenset({stale}))
    assert await driver.journal(0) == []
    assert await driver.keys() == {}
    versions = await version(store, stale) | versions | await version(store, stale)
    assert verdicts(await store.append(0, [event(stale, key="k"), event(fresh, key="k")], versions)) == [NEW, NEW]


async def test_a_stale_append_leaves_the_keys_of_earlier_events_alone(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    first = event(tenant, key="old")
    await store.append(0, [first], versions)
    await new_endpoint(store, tenant)
    assert isinstance(await store.append(0, [event(tenant, key="old"), event(tenant, key="new")], versions), Stale)
    assert await driver.keys() == {(tenant, "old"): first.event_id}


async def test_a_version_from_the_future_and_a_deleted_tenant_are_stale(driver: Driver) -> None:
    store = await driver.open()
    gone, there = await new_tenant(store), await new_tenant(store)
    versions = await version(store, gone)
    await store.delete_tenant(gone)
    assert await store.append(0, [event(gone)], versions) == Stale(frozenset({gone}))
    assert await store.append(0, [event(there)], {there: 99}) == Stale(frozenset({there}))
    unknown = uuid7()
    assert await store.append(0, [event(unknown)], {unknown: 1}) == Stale(frozenset({unknown}))
    assert await driver.journal(0) == []


@pytest.mark.postgres
async def test_an_endpoint_created_while_an_append_waits_for_the_shard_makes_it_stale(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    let_go = await driver.hold_shard(0)
    append = asyncio.create_task(store.append(0, [event(tenant, key="k")], versions))
    await driver.waiting()
    await new_endpoint(store, tenant)
    await let_go()
    assert await append == Stale(frozenset({tenant}))
    assert await driver.journal(0) == []
    assert await driver.keys() == {}


# ---- idempotency -----------------------------------------------------------------------------------------------------


async def test_within_one_group_the_first_of_a_key_wins(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    first, again = event(tenant, key="k", owed=(uuid7(), uuid7())), event(tenant, key="k")
    other, plain = event(tenant, key="k", request_hash=b"x" * 32), event(tenant)
    answer = await store.append(0, [first, plain, again, other], await version(store, tenant))
    assert answer == [
        Appended(NEW, first.event_id, 2),
        Appended(NEW, plain.event_id, 1),
        Appended(DUPLICATE, first.event_id, 2),
        Appended(CONFLICT, first.event_id, 2),
    ]
    assert [row["event_id"] for row in await driver.journal(0)] == [first.event_id, plain.event_id]


async def test_a_later_call_gets_the_first_id_and_count_or_a_conflict(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store, (0, 1))
    versions = await version(store, tenant)
    first = event(tenant, key="k", owed=(uuid7(), uuid7(), uuid7()))
    await store.append(0, [first], versions)
    for shard in (0, 1):
        assert await store.append(shard, [event(tenant, key="k", owed=())], versions) == [
            Appended(DUPLICATE, first.event_id, 3)
        ]
        answer = await store.append(shard, [event(tenant, key="k", request_hash=b"other")], versions)
        assert verdicts(answer) == [CONFLICT]
    assert len(await driver.journal(0)) == 1
    assert await driver.journal(1) == []


async def test_the_same_event_appended_twice_is_a_duplicate_of_itself(driver: Driver) -> None:
    """Whoever repeats a call whose answer got lost may keep the id."""
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    repeated = event(tenant, key="k")
    assert verdicts(await store.append(0, [repeated], versions)) == [NEW]
    assert await store.append(0, [repeated], versions) == [Appended(DUPLICATE, repeated.event_id, 1)]
    assert len(await driver.journal(0)) == 1


async def test_keys_belong_to_their_tenant(driver: Driver) -> None:
    store = await driver.open()
    one, two = await new_tenant(store), await new_tenant(store)
    versions = await version(store, one) | await version(store, two)
    answer = await store.append(0, [event(one, key="k"), event(two, key="k", request_hash=b"2")], versions)
    assert verdicts(answer) == [NEW, NEW]


@pytest.mark.postgres
async def test_of_concurrent_calls_one_wins_and_the_loser_waits_for_its_commit(driver: Driver) -> None:
    one, two = await driver.open(), await driver.open()
    tenant = await new_tenant(one, (0, 1))
    versions = await version(one, tenant)
    winner, loser = event(tenant, key="k"), event(tenant, key="k")
    let_go = await driver.hold_shard(0)
    first = asyncio.create_task(one.append(0, [winner], versions))
    await driver.waiting(1)
    second = asyncio.create_task(two.append(1, [event(tenant), loser], versions))
    await driver.waiting(2)
    assert not second.done()
    await let_go()
    assert verdicts(await first) == [NEW]
    answer = await second
    assert isinstance(answer, list)
    assert answer[1] == Appended(DUPLICATE, winner.event_id, 1)
    assert [len(await driver.journal(shard)) for shard in (0, 1)] == [1, 1]


@pytest.mark.postgres
async def test_when_the_winner_is_rolled_back_the_loser_wins(driver: Driver) -> None:
    assert isinstance(driver, Postgres)
    one, two = await driver.open(), await driver.open()
    tenant = await new_tenant(one, (0, 1))
    versions = await version(one, tenant)
    let_go = await driver.hold_shard(0)
    first = asyncio.create_task(one.append(0, [event(tenant, key="k")], versions))
    await driver.waiting(1)
    [blocked] = await driver.blocked()
    second = asyncio.create_task(two.append(1, [event(tenant, key="k")], versions))
    await driver.waiting(2)
    await driver.run("select pg_cancel_backend($1)", blocked["pid"])
    with pytest.raises(StoreUnavailable):
        await first
    assert verdicts(await second) == [NEW]
    await let_go()
    assert len(await driver.journal(1)) == 1
    assert await driver.journal(0) == []


async def test_many_equal_keys_over_all_shards_make_one_event(driver: Driver) -> None:
    stores = [await driver.open() for _ in range(2)]
    tenant = await new_tenant(stores[0], range(SHARDS))
    versions = await version(stores[0], tenant)

    async def post(n: int) -> list[Appended]:
        # Two keys in both orders: whoever does not sort them deadlocks.
        events = [event(tenant, key=key) for key in (("a", "b") if n % 2 else ("b", "a"))]
        answer = await stores[n % 2].append(n % SHARDS, events, versions)
        assert isinstance(answer, list)
        return answer if n % 2 else answer[::-1]

    answers = await asyncio.gather(*(post(n) for n in range(24)))
    keys = await driver.keys()
    assert {tuple(a.event_id for a in answer) for answer in answers} == {(keys[(tenant, "a")], keys[(tenant, "b")])}
    assert sum(appended.verdict is NEW for answer in answers for appended in answer) == 2
    assert sum([len(await driver.journal(shard)) for shard in range(SHARDS)]) == 2


async def test_an_expired_key_is_free_again(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    await store.append(0, [event(tenant, key="k")], versions)
    await driver.expire_key(tenant, "k")
    second = event(tenant, key="k", request_hash=b"other", owed=())
    assert verdicts(await store.append(0, [second], versions)) == [NEW]
    assert await store.append(0, [event(tenant, key="k", request_hash=b"other")], versions) == [
        Appended(DUPLICATE, second.event_id, 0)
    ]


@pytest.mark.postgres
async def test_a_key_lives_as_long_as_was_set(driver: Driver) -> None:
    store = await driver.open(idempotency_s=3600.0)
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    assert isinstance(driver, Postgres)
    [row] = await driver.run(
        "select hookpost_now() + interval '59 min' as soon, hookpost_now() + interval '61 min' as late"
    )
    await store.append(0, [event(tenant, key="k")], versions)
    await store.make_partitions(days_ahead=3)
    await driver.set_clock(str(row["soon"]))
    assert verdicts(await store.append(0, [event(tenant, key="k")], versions)) == [DUPLICATE]
    await driver.set_clock(str(row["late"]))
    assert verdicts(await store.append(0, [event(tenant, key="k")], versions)) == [NEW]


# ---- refusals --------------------------------------------------------------------------------------------------------

POISON = {
    "a NUL in the key": {"key": "a\0b"},
    "a lone surrogate in the key": {"key": "a\ud800"},
    "a key too long for an index": {"key": os.urandom(8000).hex()},
    "a NUL in the type": {"type": "a\0"},
    "a lone surrogate in the type": {"type": "\udfff"},
    "a key without a hash": {"key": "k", "request_hash": None},
}


@pytest.mark.parametrize("poison", POISON)
async def test_a_poisoned_event_is_rejected_and_its_group_writes_nothing(driver: Driver, poison: str) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    with pytest.raises(DataRejected):
        await store.append(0, [event(tenant, key="good"), event(tenant, **POISON[poison])], versions)
    assert await driver.journal(0) == []
    assert await driver.keys() == {}
    assert verdicts(await store.append(0, [event(tenant, key="good")], versions)) == [NEW]


async def test_a_missing_shard_is_no_fault_of_the_data(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    with pytest.raises(StoreUnavailable, match="shard 99 does not exist"):
        await store.append(99, [event(tenant, key="k")], await version(store, tenant))
    assert await driver.keys() == {}


@pytest.mark.postgres
async def test_a_missing_partition_is_no_fault_of_the_data(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    await driver.set_clock("2099-01-01 00:00+00")
    with pytest.raises(StoreUnavailable, match="no partition"):
        await store.append(0, [event(tenant, key="k")], await version(store, tenant))
    assert await driver.keys() == {}


@pytest.mark.postgres
async def test_the_store_goes_on_after_its_connections_were_killed(driver: Driver) -> None:
    store = await driver.open(size_max=2)
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    let_go = await driver.hold_shard(0)
    append = asyncio.create_task(store.append(0, [event(tenant)], versions))
    await driver.waiting()
    assert isinstance(driver, Postgres)
    await driver.run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'test'")
    with pytest.raises(StoreUnavailable):
        await append
    await let_go()
    await until(lambda: _stored(store, tenant, versions))
    assert [row["seq"] for row in await driver.journal(0)] == [1]


@pytest.mark.postgres
async def test_f7_a_database_that_became_read_only_acknowledges_nothing_and_goes_on_when_it_may_write(
    driver: Driver,
) -> None:
    """As one that was replaced by its standby, or whose disk is full."""
    store = await driver.open(size_max=2)
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    assert isinstance(driver, Postgres)
    for read_only in ("on", "off"):
        await driver.run(
            "do $$ begin execute format('alter database %I set default_transaction_read_only = "
            f"{read_only}', current_database()); end $$"
        )
        await driver.run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'test'")
        if read_only == "on":
            for _ in range(4):
                with pytest.raises(StoreUnavailable) as refusal:
                    await store.append(0, [event(tenant, key="k")], versions)
            assert "read-only" in str(refusal.value)
            assert await driver.journal(0) == []
    await until(lambda: _stored(store, tenant, versions))


async def _stored(store: object, tenant: UUID, versions: dict[UUID, int]) -> bool:
    try:
        return isinstance(await store.append(0, [event(tenant)], versions), list)  # type: ignore[attr-defined]
    except StoreUnavailable:
        return False


# ---- upgrades --------------------------------------------------------------------------------------------------------


@pytest.mark.postgres
async def test_an_append_of_the_release_before_does_what_ours_does(driver: Driver) -> None:
    """It calls the function with fourteen arguments: one code sees to keys, versions and numbers."""
    assert isinstance(driver, Postgres)
    store = await driver.open()
    tenant = await new_tenant(store)
    first, second, owed = uuid7(), uuid7(), uuid7()
    append = "select * from hookpost_append(0, interval '1 h', $1, $2, $3, $4, $5, $6, $7, array[1, 2], array[1, 1], null, $8, $9)"

    async def old(*ids: UUID, version: int = 1) -> dict[str, Any]:
        keys, hashes = ["k", None], [b"h" * 32, None]
        columns = [tenant] * 2, ["a.b"] * 2, [b"1", b"2"], [owed] * 2, keys, hashes
        [row] = await driver.run(append, [tenant], [version], list(ids), *columns)
        return row

    # Every release takes it so that all were new.
    assert await old(first, second) == {"stale": None, "verdicts": None, "first_ids": None, "first_counts": None}
    assert await old(uuid7(), uuid7()) == {
        "stale": None, "verdicts": [1, 0], "first_ids": [first, None], "first_counts": [1, None],
    }  # fmt: skip
    assert (await old(uuid7(), uuid7(), version=7))["stale"] == [tenant]
    rows = await driver.journal(0)
    assert [row["seq"] for row in rows] == [1, 2, 3]
    assert [row["payload"] for row in rows] == [b"1", b"2", b"2"]
