"""Reading the journal: in order, contiguous, bounded, and never stuck."""

from __future__ import annotations

from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.engine.work import RETRY_NOW, JournalRow, Kind, Progress
from hookpost.storage.contract import ControlAction, Store
from tests.storage.driver import Driver, Postgres, event, new_endpoint, new_tenant, own, settle, takeover, version

BEGIN = (0, 0)
ALL = {"rows_max": 1000, "bytes_max": 1_000_000}


async def fill(store: Store, shard: int, sizes: list[int]) -> None:
    tenant = await new_tenant(store)
    await store.append(shard, [event(tenant, payload=b"x" * size) for size in sizes], await version(store, tenant))


def seqs(rows: list[JournalRow]) -> list[int]:
    return [row.seq for row in rows]


async def read_all(store: Store, shard: int, *, rows_max: int, bytes_max: int) -> list[list[int]]:
    """The batches in which a reader gets the shard."""
    position, batches = BEGIN, []
    while rows := (await store.read({shard: position}, rows_max=rows_max, bytes_max=bytes_max)).get(shard):
        batches.append(seqs(rows))
        position = (rows[-1].seq, rows[-1].day)
    return batches


async def test_rows_come_back_as_they_were_appended(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    events = [event(tenant, payload=b"\0\xff", owed=(uuid7(), uuid7())), event(tenant, payload=b"")]
    await store.append(2, events, await version(store, tenant))
    rows = (await store.read({2: BEGIN}, **ALL))[2]
    for row, given, stored in zip(rows, events, await driver.journal(2), strict=True):
        assert (row.shard, row.kind, row.generation) == (2, Kind.DELIVER, 0)
        assert (row.event_id, row.tenant_id, row.type) == (given.event_id, given.tenant_id, given.type)
        assert (row.payload, tuple(row.owed)) == (given.payload, given.owed)
        assert row.created_at == pytest.approx(stored["created_at"].timestamp(), abs=1e-6)


async def test_a_control_row_names_its_deliveries_and_their_numbers(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint, other = await new_endpoint(store, tenant), await new_endpoint(store, tenant)
    [given] = events = [event(tenant, owed=(endpoint, other))]
    await store.append(0, [event(tenant), *events], await version(store, tenant))
    assert await store.append_replay(tenant, given.event_id, endpoint) == 1
    assert await store.append_control(tenant, given.event_id, endpoint, ControlAction.RETRY_NOW) == 1
    row = (await store.read({0: (3, 0)}, **ALL))[0][0]
    assert (row.kind, row.type, row.event_id, row.tenant_id) == (Kind.CONTROL, RETRY_NOW, given.event_id, tenant)
    assert (row.payload, row.owed, row.generation) == (b"[2,3]", [endpoint], 0)


async def test_reading_goes_on_behind_a_position_in_each_shard(driver: Driver) -> None:
    store = await driver.open()
    for shard, count in ((0, 3), (1, 5), (3, 2)):
        await fill(store, shard, [1] * count)
    day = (await store.read({0: BEGIN}, **ALL))[0][0].day
    found = await store.read({0: (3, day), 1: (2, day), 2: BEGIN, 3: BEGIN}, **ALL)
    assert {shard: seqs(rows) for shard, rows in found.items()} == {1: [3, 4, 5], 3: [1, 2]}
    assert await store.read({}, **ALL) == {}


@pytest.mark.parametrize(
    ("rows_max", "bytes_max", "batches"),
    [
        (2, 1000, [[1, 2], [3, 4], [5, 6], [7]]),
        (1, 1, [[1], [2], [3], [4], [5], [6], [7]]),
        (100, 10, [[1], [2, 3], [4], [5, 6, 7]]),
        (100, 100, [[1, 2, 3, 4], [5, 6, 7]]),
        (100, 1000, [[1, 2, 3, 4, 5, 6, 7]]),
    ],
)
async def test_rows_and_bytes_are_bounded_but_one_row_always_fits(
    driver: Driver, rows_max: int, bytes_max: int, batches: list[list[int]]
) -> None:
    """The row that reaches the bound still comes, so a payload larger than the bound is no wall."""
    store = await driver.open()
    await fill(store, 0, [10, 5, 5, 100, 0, 9, 0])
    assert await read_all(store, 0, rows_max=rows_max, bytes_max=bytes_max) == batches


async def test_a_replay_brings_the_payload_of_its_event(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    original = event(tenant, payload=b'{"n": 1.0e+5}', owed=(endpoint,))
    await store.append(0, [original], await version(store, tenant))
    assert await store.append_replay(tenant, original.event_id, endpoint) == 1
    _, replay = (await store.read({0: BEGIN}, **ALL))[0]
    assert (replay.kind, replay.generation, replay.owed) == (Kind.REPLAY, 1, [endpoint])
    assert (replay.payload, replay.type, replay.event_id) == (original.payload, original.type, original.event_id)
    assert await read_all(store, 0, rows_max=9, bytes_max=5) == [[1], [2]]
    await own(store)
    await store.settle([settle(0, progress=Progress(0, 2, replay.day, ((1, 3),), ()))])
    assert (await takeover(store, 0, 2)).rows[1] == replay


async def test_others_wait_when_a_row_is_owed_to_somebody_else(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    one, two, other = [await new_endpoint(store, tenant) for _ in range(3)]
    known = await version(store, tenant)
    await store.append(0, [event(tenant, owed=owed) for owed in ((one,), (one, two), (), (one, other))], known)
    await store.append(1, [event(tenant, owed=(one,))], known)
    day = (await store.read({0: BEGIN}, **ALL))[0][0].day

    async def waits(behind: dict[int, int], *holders: UUID, rows_max: int = 1000) -> bool:
        positions = {shard: (seq, day if seq else 0) for shard, seq in behind.items()}
        return await store.others_wait(positions, holders, rows_max=rows_max)

    assert await waits({0: 0}, one, two)
    assert not await waits({0: 0}, one, two, other)
    assert not await waits({0: 0}, one, two, rows_max=3), "no further than that"
    assert not await waits({0: 4, 1: 0, 2: 0}, one), "what was read is not behind"
    assert await waits({1: 0, 0: 3}, one), "in any of the shards"
    assert not await waits({}, one)


async def test_a_control_entry_waits_whomever_it_is_about(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    [given] = [event(tenant, owed=(endpoint,))]
    await store.append(0, [given], await version(store, tenant))
    assert not await store.others_wait({0: BEGIN}, [endpoint], rows_max=9)
    await store.append_replay(tenant, given.event_id, endpoint)
    assert not await store.others_wait({0: BEGIN}, [endpoint], rows_max=9)
    await store.append_control(tenant, given.event_id, endpoint, ControlAction.CANCEL)
    assert await store.others_wait({0: BEGIN}, [endpoint], rows_max=9)


@pytest.mark.postgres
async def test_replays_are_bounded_in_bytes_too(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store, (0, 1))
    large, small = (event(tenant, payload=b"x" * size, owed=(uuid7(),)) for size in (100, 1))
    await store.append(0, [large], await version(store, tenant))
    await store.append(1, [small, event(tenant, payload=b"y")], await version(store, tenant))
    assert isinstance(driver, Postgres)
    for replayed, shard in ((large, 0), (large, 0), (large, 1), (small, 1), (large, 1)):
        await driver.run(
            "select hookpost_append_replay($1, $2, $3, 'a', $4)", shard, replayed.event_id, tenant, replayed.owed
        )
    assert await read_all(store, 0, rows_max=9, bytes_max=150) == [[1, 2, 3]]
    assert await read_all(store, 0, rows_max=9, bytes_max=101) == [[1, 2, 3]]
    assert await read_all(store, 0, rows_max=9, bytes_max=100) == [[1], [2], [3]]
    assert await read_all(store, 1, rows_max=9, bytes_max=100) == [[1, 2, 3], [4, 5]]
    found = await store.read({0: (1, 0), 1: (2, 0)}, rows_max=9, bytes_max=100)
    assert {shard: seqs(rows) for shard, rows in found.items()} == {0: [2], 1: [3]}, "each shard by itself"


async def test_what_is_owed_to_nobody_comes_without_its_payload_and_weighs_nothing(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    events = [event(tenant, payload=b"x" * 100, owed=owed) for owed in ((), (), (uuid7(),), (uuid7(),))]
    await store.append(0, events, await version(store, tenant))
    rows = (await store.read({0: BEGIN}, rows_max=9, bytes_max=1))[0]
    assert [row.payload for row in rows] == [None, None, b"x" * 100]


@pytest.mark.postgres
async def test_rows_without_a_payload_leave_no_gap_where_the_bytes_are_bounded(driver: Driver) -> None:
    """A control entry, or a replay whose original was dropped: behind a large row it must not come before its turn."""
    store = await driver.open()
    await fill(store, 0, [100, 100, 1, 1])
    assert isinstance(driver, Postgres)
    await driver.run("update events set payload = null, kind = 2 where seq in (1, 3)")
    assert await read_all(store, 0, rows_max=100, bytes_max=50) == [[1, 2], [3, 4]]
    assert await read_all(store, 0, rows_max=3, bytes_max=50) == [[1, 2], [3, 4]]
    await driver.run("update events set payload = null")
    assert await read_all(store, 0, rows_max=100, bytes_max=1) == [[1, 2, 3, 4]]


@pytest.mark.postgres
async def test_shards_stand_at_different_days(driver: Driver) -> None:
    store = await driver.open()
    await store.make_partitions(days_ahead=3)
    assert isinstance(driver, Postgres)
    for days, shards in ((0, (0, 1, 2)), (1, (0, 1)), (2, (0,))):
        [row] = await driver.run("select (date_trunc('day', now()) + make_interval(days => $1))::text as noon", days)
        await driver.set_clock(row["noon"])
        for shard in shards:
            await fill(store, shard, [1, 1])
    rows = (await store.read({0: BEGIN}, **ALL))[0]
    assert seqs(rows) == [1, 2, 3, 4, 5, 6]
    days = [row.day for row in rows]
    assert days == [days[0], days[0], days[0] + 1, days[0] + 1, days[0] + 2, days[0] + 2]
    found = await store.read({0: (5, days[4]), 1: (2, days[0]), 2: BEGIN}, **ALL)
    assert {shard: seqs(rows) for shard, rows in found.items()} == {0: [6], 1: [3, 4], 2: [1, 2]}
    # An idle shard's old day must not hide the others' rows, nor their recent days its own.
    found = await store.read({0: (6, days[5]), 2: (1, days[0])}, **ALL)
    assert {shard: seqs(rows) for shard, rows in found.items()} == {2: [2]}
