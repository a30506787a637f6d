"""Partitions ahead of time, expired keys, old progress: harmless twice, harmless at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hookpost.engine.work import Progress
from hookpost.storage.contract import StoreUnavailable, Verdict
from hookpost.storage.postgres import maintenance
from tests.storage.driver import Driver, Postgres, event, new_tenant, own, settle, takeover, until, version


async def partitions(driver: Postgres, table: str) -> set[int]:
    """The days from today that the table has partitions for."""
    rows = await driver.run(
        "select to_date(right(c.relname, 8), 'YYYYMMDD') - hookpost_today() as day from pg_inherits i"
        " join pg_class c on c.oid = i.inhrelid where i.inhparent = to_regclass($1) and not i.inhdetachpending",
        table,
    )
    return {row["day"] for row in rows}


async def tables(driver: Postgres) -> set[str]:
    rows = await driver.run("select relname from pg_class where relname ~ '^progress_\\d{8}$'")
    return {row["relname"] for row in rows}


@pytest.fixture
async def database_driver(driver: Driver) -> Postgres:
    """What is claimed here is about PostgreSQL's partitions."""
    assert isinstance(driver, Postgres)
    return driver


# ---- partitions ------------------------------------------------------------------------------------------------------


@pytest.mark.postgres
async def test_partitions_are_made_ahead_and_a_second_time_is_harmless(database_driver: Postgres) -> None:
    store = await database_driver.open()
    assert await store.make_partitions(days_ahead=10) == 3 * 7  # the first migration made three days ahead
    assert await store.make_partitions(days_ahead=10) == 0
    assert await store.make_partitions(days_ahead=2) == 0
    for table in ("events", "attempts", "progress"):
        assert await partitions(database_driver, table) == set(range(-1, 11))


@pytest.mark.postgres
async def test_partitions_made_by_two_at_once_are_made_once(database_driver: Postgres) -> None:
    stores = [await database_driver.open() for _ in range(3)]
    assert sorted(await asyncio.gather(*(store.make_partitions(days_ahead=7) for store in stores))) == [0, 0, 12]


@pytest.mark.postgres
async def test_partitions_that_cannot_be_made_now_give_up_soon(
    database_driver: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "DDL_LOCK_TIMEOUT", "20ms")
    store = await database_driver.open(size_max=1)
    other = await database_driver.connect()
    await other.execute("begin; lock table attempts in share update exclusive mode")
    with pytest.raises(StoreUnavailable, match="lock timeout"):
        await store.make_partitions(days_ahead=10)
    await other.execute("commit")
    monkeypatch.undo()
    assert await partitions(database_driver, "events") == set(range(-1, 4))
    assert await store.make_partitions(days_ahead=4) == 3


@pytest.mark.postgres
async def test_appends_go_on_while_partitions_are_made(database_driver: Postgres) -> None:
    """A reader with an open transaction makes DDL wait that is too greedy, and appends would queue behind it."""
    store = await database_driver.open()
    tenant = await new_tenant(store)
    reader = await database_driver.connect()
    await reader.execute("begin; select count(*) from events; select count(*) from progress")
    assert await store.make_partitions(days_ahead=9) == 18
    assert isinstance(await store.append(0, [event(tenant)], await version(store, tenant)), list)
    await reader.execute("commit")


# ---- keys ------------------------------------------------------------------------------------------------------------


async def test_expired_keys_are_deleted_in_batches_and_no_others(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    keys = [f"k{n}" for n in range(10)]
    await store.append(0, [event(tenant, key=key) for key in keys], await version(store, tenant))
    for key in keys[:7]:
        await driver.expire_key(tenant, key)
    assert [await store.expire_idempotency_keys(limit=3) for _ in range(4)] == [3, 3, 1, 0]
    assert {key for _, key in await driver.keys()} == set(keys[7:])


@pytest.mark.postgres
async def test_a_key_that_is_given_to_a_new_event_at_this_moment_stays(driver: Driver) -> None:
    one, two = await driver.open(), await driver.open()
    tenant = await new_tenant(one)
    versions = await version(one, tenant)
    await one.append(0, [event(tenant, key="k")], versions)
    await driver.expire_key(tenant, "k")
    let_go = await driver.hold_shard(0)
    second = event(tenant, key="k")
    append = asyncio.create_task(one.append(0, [second], versions))
    await driver.waiting()  # it holds the key and waits for the shard
    expire = asyncio.create_task(two.expire_idempotency_keys(limit=10))
    await until(lambda: _ended_or_waiting(driver, expire))
    await let_go()
    answer = await append
    assert isinstance(answer, list)
    assert answer[0].verdict is Verdict.NEW
    assert await expire == 0
    assert await driver.keys() == {(tenant, "k"): second.event_id}


async def _ended_or_waiting(driver: Any, task: asyncio.Task[int]) -> bool:
    return task.done() or len(await driver.blocked()) == 2


# ---- progress --------------------------------------------------------------------------------------------------------


async def old_progress(driver: Postgres, *, at: dict[int, list[int]]) -> None:
    """Settles of shards (at days before today), one after the other as time passed."""
    store = await driver.open()
    await own(store)
    await driver.run("select hookpost_make_partitions(hookpost_today() - 12, hookpost_today())")
    numbers = dict.fromkeys(range(4), 0)
    for days_ago, shards in sorted(at.items(), reverse=True):
        [row] = await driver.run("select (now() - make_interval(days => $1))::text as moment", days_ago)
        await driver.set_clock(row["moment"])
        for shard in shards:
            numbers[shard] += 1
            progress = Progress(numbers[shard], numbers[shard], 0, (), ())
            await store.settle([settle(shard, settle_no=numbers[shard], progress=progress)])
    await driver.set_clock(None)


@pytest.mark.postgres
async def test_progress_that_a_later_row_replaced_is_dropped_and_the_last_row_stays(database_driver: Postgres) -> None:
    await old_progress(database_driver, at={10: [0, 1, 2], 8: [1], 5: [0], 3: [0], 0: [0]})
    store = await database_driver.open()
    before = await partitions(database_driver, "progress")
    # The 10th holds the last row of shard 2, the 8th that of shard 1; the others are empty or replaced.
    assert await store.prune_progress() == len({-12, -11, -9, -7, -6, -5, -4, -3, -2})
    assert await partitions(database_driver, "progress") == {-10, -8, -1, 0} | {day for day in before if day > 0}
    assert [(await takeover(store, shard, 2)).settle_no for shard in range(4)] == [4, 2, 1, 0]
    assert [(await takeover(store, shard, 2)).read_to for shard in range(4)] == [4, 2, 1, 0]
    assert await store.prune_progress() == 0


@pytest.mark.postgres
async def test_the_last_row_stays_though_a_clock_went_back(database_driver: Postgres) -> None:
    await old_progress(database_driver, at={3: [0]})
    store = await database_driver.open()
    [row] = await database_driver.run("select (now() - interval '6 days')::text as moment")
    await database_driver.set_clock(row["moment"])
    await store.settle([settle(0, settle_no=2, progress=Progress(7, 7, 0, (), ()))])
    await database_driver.set_clock(None)
    await store.prune_progress()
    assert (await takeover(store, 0, 2)).read_to == 7


@pytest.mark.postgres
async def test_f43_pruning_by_two_at_once_fails_for_none(database_driver: Postgres) -> None:
    await old_progress(database_driver, at={9: [0, 1], 0: [0, 1]})
    stores = [await database_driver.open() for _ in range(3)]
    pruned = await asyncio.gather(*(store.prune_progress() for store in stores))
    assert sum(pruned) == 11
    assert await partitions(database_driver, "progress") >= {-1, 0}


@pytest.mark.postgres
async def test_pruning_goes_on_after_a_reader_has_disturbed_it(
    database_driver: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DETACH CONCURRENTLY given up leaves a pending partition: no other can be detached before that one is finished."""
    monkeypatch.setattr(maintenance, "DDL_LOCK_TIMEOUT", "50ms")
    await old_progress(database_driver, at={9: [0], 0: [0]})
    store = await database_driver.open()
    reader = await database_driver.connect()
    await reader.execute("begin; select count(*) from progress")
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.prune_progress()
        await store.settle([settle(0, settle_no=50 + _)])
    await reader.execute("commit")
    monkeypatch.undo()
    assert await store.prune_progress() == 11
    assert len(await tables(database_driver)) == len(await partitions(database_driver, "progress")) == 5


@pytest.mark.postgres
async def test_a_partition_that_was_detached_and_not_dropped_is_dropped(database_driver: Postgres) -> None:
    await old_progress(database_driver, at={9: [0], 0: [0]})
    name = sorted(await tables(database_driver))[0]
    await database_driver.run(f"alter table progress detach partition {name}")
    store = await database_driver.open()
    assert await store.prune_progress() == 11
    assert name not in await tables(database_driver)


@pytest.mark.postgres
async def test_what_grows_is_analyzed_by_small_samples_and_payloads_not_at_all(database_driver: Postgres) -> None:
    """Autovacuum analyzes a partition again and again while it grows, with 300 rows for each of the most common values."""
    store = await database_driver.open()
    await store.make_partitions(days_ahead=5)
    rows = await database_driver.run(
        "select r.relname as table, a.attname as column, a.attstattarget as target, r.relispartition as partition,"
        " coalesce(r.reloptions, '{}') as options from pg_class r"
        " join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped"
        " where r.relkind = 'r' and r.relname ~ '^((events|attempts|progress)_[0-9]{8}|backlog|idempotency_keys)$'"
    )
    targets: dict[str, dict[str, Any]] = {}
    for row in rows:
        targets.setdefault(row["table"], {})[row["column"]] = row["target"]
        assert ("autovacuum_analyze_scale_factor=1" in row["options"]) == row["partition"], row["table"]
    assert len(targets) >= 3 * 6 + 2
    for table, of in targets.items():
        assert set(of.values()) <= {0, 20}, table
        ignored = {column for column, target in of.items() if target == 0}
        if table.startswith("events"):
            assert {"payload", "owed"} <= ignored
            assert not {"event_id", "tenant_id", "created_at"} & ignored
        if table.startswith("attempts"):
            assert "response_head" in ignored
