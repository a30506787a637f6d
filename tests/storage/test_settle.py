"""What a settle promises: one transaction behind the fence, and the truth about its end."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from hookpost.engine.work import Fetch, LaneSummary, Progress
from hookpost.model import DeadReason, WaitReason
from hookpost.storage.contract import CommitUnknown, ControlAction, DataRejected, FenceLost, Store, StoreUnavailable
from hookpost.storage.postgres import worker
from tests.patience import PATIENCE_S
from tests.storage.driver import (
    Driver,
    Postgres,
    attempt,
    dead,
    event,
    new_endpoint,
    new_tenant,
    own,
    persist,
    settle,
    takeover,
    until,
    version,
    waiting,
)  # fmt: skip

WRITTEN = ("attempts", "backlog", "dead_letters", "progress")


async def counts(driver: Driver) -> dict[str, int]:
    return {table: len(await driver.rows(table)) for table in WRITTEN}


NOTHING = dict.fromkeys(WRITTEN, 0)


# ---- the fence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [(0,), (1,), (0, 1)])
async def test_a_settle_with_a_lost_fence_writes_nothing_and_names_the_shards(
    driver: Driver, lost: tuple[int, ...]
) -> None:
    store = await driver.open()
    node = await own(store)
    await store.release(node, dict.fromkeys(lost, 1))
    await own(store, limit=len(lost))
    endpoint = uuid7()
    parts = [
        settle(
            shard,
            attempts=[attempt(endpoint, shard=shard)],
            upserts=[waiting(endpoint, 1)],
            dead=[dead(endpoint, uuid7())],
        )
        for shard in (0, 1, 2)
    ]
    with pytest.raises(FenceLost) as caught:
        await store.settle(parts)
    assert sorted(caught.value.shards) == list(lost)
    with pytest.raises(FenceLost):
        await store.settle_by_row(parts)
    assert await counts(driver) == NOTHING
    await store.settle([part for part in parts if part.shard not in lost])
    assert await counts(driver) == dict.fromkeys(WRITTEN, 3 - len(lost))


async def test_a_settle_of_a_shard_that_does_not_exist_is_lost(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    with pytest.raises(FenceLost) as caught:
        await store.settle([settle(0), settle(77)])
    assert caught.value.shards == (77,)
    assert await counts(driver) == NOTHING


async def test_a_claim_during_a_settle_waits_or_takes_another_shard(driver: Driver) -> None:
    """Whatever a settle wrote is there when the next owner takes over: nothing can be settled after the fence moved."""
    store = await driver.open()
    await own(store, lease_s=0.001)
    settles, fence = 0, 1
    for settle_no in range(1, 30):
        outcome, claimed = await asyncio.gather(
            store.settle([settle(0, fence=fence, settle_no=settle_no)]), _steal(driver, store), return_exceptions=True
        )
        assert not isinstance(claimed, BaseException)
        if outcome is None:
            settles += 1
        else:
            assert isinstance(outcome, FenceLost)
        if claimed is not None:
            fence = claimed
            last = max([0, *(row["settle_no"] for row in await driver.rows("progress"))])
            assert (await takeover(store, 0, fence)).settle_no == last
    assert len(await driver.rows("progress")) == settles


async def _steal(driver: Driver, store: Store) -> int | None:
    node = uuid7()
    await store.register(node, pool="default", name="thief", lease_s=0.0001)
    claimed = {each.shard: each.fence for each in await store.claim(node, pool="default", limit=9, lease_s=0.0001)}
    return claimed.get(0)


# ---- what is written comes back --------------------------------------------------------------------------------------


async def test_progress_open_and_partial_entries_come_back_in_the_takeover(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    await own(store)
    events = [event(tenant, payload=b"%d" % n, owed=(uuid7(), uuid7())) for n in range(1, 13)]
    await store.append(0, events, await version(store, tenant))
    day = (await driver.journal(0))[0]["day"]
    rows = (await store.read({0: (0, 0)}, rows_max=100, bytes_max=1000))[0]
    open_ranges, done = ((3, 5), (7, 8), (10, 12)), ((4, (events[3].owed[0],)), (10, (events[9].owed[1],)))
    progress = Progress(cursor=2, read_to=12, read_day=rows[-1].day, open=open_ranges, partial=done)
    endpoint, other = uuid7(), uuid7()
    upserts = [waiting(endpoint, n, tenant_id=tenant, due_at=1.8e9 + n, deadline=1.9e9 - n) for n in (1, 2)]
    upserts.append(waiting(other, 2, tenant_id=tenant, due_at=1.7e9, deadline=2.0e9))
    await store.settle([settle(0, settle_no=1, progress=progress, upserts=upserts)])
    await store.settle([settle(0, settle_no=2, progress=progress, clean=True)])

    taken = await takeover(store, 0, 2)
    assert (taken.shard, taken.fence, taken.settle_no, taken.clean) == (0, 2, 2, True)
    assert (taken.read_to, taken.read_day) == (12, rows[-1].day)
    assert [row.seq for row in taken.rows] == [3, 4, 7, 10, 11]
    assert list(taken.rows) == [row for row in rows if row.seq in {3, 4, 7, 10, 11}]
    assert taken.done == dict(done)
    assert sorted(taken.lanes, key=lambda lane: lane.count) == [
        LaneSummary(other, tenant, 1, 1.7e9, 2.0e9, first=2),
        LaneSummary(endpoint, tenant, 2, 1.8e9 + 1, 1.9e9 - 2, first=1),
    ]
    assert day is not None


async def test_many_shards_are_taken_over_at_once_and_kept_apart(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    await own(store)
    endpoint, parts = uuid7(), []
    for shard in (0, 1):
        events = [event(tenant, payload=b"%d" % shard) for _ in range(5)]
        await store.append(shard, events, await version(store, tenant))
        progress = Progress(cursor=1, read_to=4 + shard, read_day=9000, open=((2, 3 + shard), (4, 5)), partial=())
        upserts = [waiting(endpoint, n, tenant_id=tenant, due_at=1.8e9 + n) for n in range(1 + shard, 4)]
        parts.append(settle(shard, progress=progress, upserts=upserts, clean=True))
    await store.settle(parts)
    taken = {each.shard: each for each in await store.takeovers({0: 2, 1: 3, 2: 1, 3: 2})}
    assert {shard: (t.fence, t.settle_no, t.read_to, t.clean) for shard, t in taken.items()} == {
        0: (2, 1, 4, True), 1: (3, 1, 5, False), 2: (1, 0, 0, True), 3: (2, 0, 0, False),
    }  # fmt: skip
    rows = {shard: [(row.shard, row.seq, row.payload) for row in t.rows] for shard, t in taken.items()}
    assert rows == {0: [(0, 2, b"0"), (0, 4, b"0")], 1: [(1, 2, b"1"), (1, 3, b"1"), (1, 4, b"1")], 2: [], 3: []}
    lanes = {shard: [(lane.count, lane.next_due) for lane in t.lanes] for shard, t in taken.items()}
    assert lanes == {0: [(3, 1.8e9 + 1)], 1: [(2, 1.8e9 + 2)], 2: [], 3: []}
    assert await store.takeovers({}) == []


async def test_a_fresh_shard_is_taken_over_from_its_beginning(driver: Driver) -> None:
    store = await driver.open()
    taken = await takeover(store, 0, 1)
    assert (taken.settle_no, taken.read_to, taken.rows, taken.lanes, taken.clean) == (0, 0, (), (), True)


async def test_an_owner_that_never_settled_leaves_doubt(driver: Driver) -> None:
    """It may have sent requests and died before it wrote them down."""
    store = await driver.open()
    assert not (await takeover(store, 0, 2)).clean
    await own(store)
    await store.settle([settle(0, clean=True)])
    assert (await takeover(store, 0, 2)).clean
    assert not (await takeover(store, 0, 3)).clean


async def test_a_settle_that_was_not_clean_leaves_doubt(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    await store.settle([settle(0, clean=False)])
    assert not (await takeover(store, 0, 2)).clean


async def test_attempts_are_stored_as_they_were(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    endpoint = uuid7()
    values = {
        "response_head": os.urandom(4096), "response_hash": None, "http_status": None, "error_code": "dns_failure",
        "outcome": "dead", "possible_duplicate": True, "scheduled_at": 1_800_000_000.123456, "retry_count": 49,
    }  # fmt: skip
    await store.settle([settle(0, settle_no=5, attempts=[attempt(endpoint, settle_no=5, **values), attempt(endpoint)])])
    first, second = sorted(await driver.rows("attempts"), key=lambda row: row["outcome"])
    assert {name: first[name] for name in values if name != "scheduled_at"} == {
        name: value for name, value in values.items() if name != "scheduled_at"
    }
    assert first["scheduled_at"].timestamp() == pytest.approx(1_800_000_000.123456, abs=1e-7)
    assert (second["outcome"], second["endpoint_id"]) == ("delivered", endpoint)
    assert first["day"] == second["day"] == (await driver.rows("progress"))[0]["day"]


async def test_an_upsert_changes_the_row_that_is_there(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    endpoint, event_id = uuid7(), uuid7()
    await store.settle([settle(0, settle_no=1, upserts=[waiting(endpoint, 7, event_id=event_id)])])
    changed = waiting(
        endpoint, 7, event_id=event_id, reason=WaitReason.PAUSED, due_at=2e9, retry_count=4, deadline=2.1e9,
        last_http_status=503, last_error_code="http_5xx",
    )  # fmt: skip
    await store.settle([settle(0, settle_no=2, upserts=[changed, waiting(endpoint, 8)])])
    one, two = sorted(await driver.rows("backlog"), key=lambda row: row["position"])
    assert (one["reason"], one["due_at"].timestamp(), one["retry_count"], one["deadline"].timestamp()) == (
        "paused", 2e9, 4, 2.1e9,
    )  # fmt: skip
    assert (one["event_id"], one["last_http_status"], one["last_error_code"]) == (event_id, 503, "http_5xx")
    assert two["position"] == 8


async def test_deletes_and_dropped_lanes_take_only_what_they_name(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    kept, dropped = uuid7(), uuid7()
    rows = [waiting(endpoint, position) for endpoint in (kept, dropped) for position in (1, 2, 3)]
    await store.settle([settle(shard, settle_no=1, upserts=rows) for shard in (0, 1)])
    await store.settle([settle(0, settle_no=2, deletes=[(kept, 2), (kept, 99)], dropped_lanes=[dropped])])
    left = {(row["shard"], row["endpoint_id"], row["position"]) for row in await driver.rows("backlog")}
    everything = {(shard, change.endpoint_id, change.position) for shard in (0, 1) for change in rows}
    assert everything - left == {(0, kept, 2), *((0, dropped, position) for position in (1, 2, 3))}


async def test_a_replay_takes_the_dead_letter_away_and_a_later_death_brings_it_back(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    endpoint, event_id, other = uuid7(), uuid7(), uuid7()
    await store.settle([settle(0, settle_no=1, dead=[dead(endpoint, event_id), dead(endpoint, other)])])
    await store.settle([settle(0, settle_no=2, revived=[(event_id, endpoint), (uuid7(), endpoint)])])
    assert [row["event_id"] for row in await driver.rows("dead_letters")] == [other]
    again = dead(endpoint, event_id, generation=1, reason=DeadReason.DEADLINE, attempt_count=9)
    await store.settle([settle(0, settle_no=3, dead=[again], revived=[(event_id, endpoint)])])
    [row] = [row for row in await driver.rows("dead_letters") if row["event_id"] == event_id]
    assert (row["generation"], row["reason"], row["attempt_count"]) == (1, "deadline", 9)


async def test_of_two_deaths_in_one_settle_the_later_generation_stays(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    endpoint, event_id = uuid7(), uuid7()
    deaths = [dead(endpoint, event_id, generation=generation, attempt_count=generation) for generation in (2, 0, 1)]
    await store.settle([settle(0, dead=deaths)])
    assert [row["generation"] for row in await driver.rows("dead_letters")] == [2]


async def test_a_dead_letter_without_a_type_takes_that_of_its_event(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    await own(store)
    stored = event(tenant, type="invoice.paid")
    await store.append(0, [stored], await version(store, tenant))
    await store.settle([settle(0, dead=[dead(uuid7(), stored.event_id, type=""), dead(uuid7(), uuid7(), type="")])])
    assert sorted(row["type"] for row in await driver.rows("dead_letters")) == ["", "invoice.paid"]


@pytest.mark.postgres
async def test_a_dead_letter_never_takes_the_type_of_a_control_row(driver: Driver) -> None:
    """Here the event itself is gone with its partition."""
    assert isinstance(driver, Postgres)
    store = await driver.open()
    tenant, endpoint = await new_tenant(store), uuid7()
    await own(store)
    stored = event(tenant, owed=(endpoint,))
    await store.append(0, [stored], await version(store, tenant))
    assert await store.append_control(tenant, stored.event_id, None, ControlAction.CANCEL) == 1
    await driver.run("delete from events where kind = 0")
    await store.settle([settle(0, dead=[dead(endpoint, stored.event_id, type="")])])
    assert [row["type"] for row in await driver.rows("dead_letters")] == [""]


async def test_a_time_without_end_comes_back_as_such(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    endpoint, forever = uuid7(), float("inf")
    await store.settle([settle(0, upserts=[waiting(endpoint, 1, due_at=forever)])])
    [lane] = (await takeover(store, 0, 2)).lanes
    assert lane.next_due == forever


# ---- the end is unknown ----------------------------------------------------------------------------------------------


async def test_settled_tells_what_was_committed(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    part = settle(0, settle_no=3)
    assert not await store.settled(part)
    await store.settle([part])
    assert await store.settled(part)
    assert not await store.settled(settle(0, settle_no=4))
    assert not await store.settled(settle(1, settle_no=3))
    assert not await store.settled(settle(0, settle_no=3, fence=2))


async def test_a_settle_repeated_after_its_commit_changes_nothing(driver: Driver) -> None:
    """A commit whose answer got lost may still be under way when the worker looks it up, finds nothing and repeats."""
    store = await driver.open()
    await own(store)
    endpoint, event_id = uuid7(), uuid7()
    parts = [
        settle(0, attempts=[attempt(endpoint)], upserts=[waiting(endpoint, 1)], dead=[dead(endpoint, event_id)]),
        settle(1, attempts=[attempt(endpoint, shard=1)]),
    ]
    await store.settle(parts)
    before = [await driver.rows(table) for table in WRITTEN]
    await store.settle(parts)
    await store.settle(parts[1:])
    assert await store.settle_by_row(parts) == 0
    assert [await driver.rows(table) for table in WRITTEN] == before


@pytest.mark.postgres
async def test_a_settle_repeated_on_the_next_day_changes_nothing_either(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    parts = [settle(0, attempts=[attempt(uuid7())])]
    await store.settle(parts)
    assert isinstance(driver, Postgres)
    [row] = await driver.run("select (hookpost_now() + interval '1 day')::text as tomorrow")
    await driver.set_clock(row["tomorrow"])
    await store.settle(parts)
    assert (await counts(driver))["attempts"] == (await counts(driver))["progress"] == 1


@pytest.mark.postgres
async def test_a_settle_repeated_while_the_first_is_still_committing_waits_for_it(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    assert isinstance(driver, Postgres)
    part = settle(0, attempts=[attempt(uuid7())])
    # The first one, as another connection that has not come to its commit.
    first = await driver.connect()
    await first.execute("begin")
    await first.execute("select 1 from shards where shard = 0 for no key update")
    await first.execute(
        "insert into progress (day, shard, settle_no, fence, cursor, read_to, read_day)"
        " values (hookpost_today(), 0, 1, 1, 0, 0, hookpost_today())"
    )
    assert not await store.settled(part)
    second = asyncio.create_task(store.settle([part]))
    await driver.waiting()
    await first.execute("commit")
    await second
    assert (await counts(driver))["progress"] == 1
    assert await store.settled(part)


@pytest.mark.postgres
@pytest.mark.parametrize("statement", ["settle", "attempts", "rare"])
async def test_a_backend_killed_before_the_commit_leaves_nothing(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    store = await driver.open()
    await own(store)
    assert isinstance(driver, Postgres)

    async def kill(connection: Any, *arguments: Any) -> None:
        await driver.run("select pg_terminate_backend($1, 5000)", connection.get_server_pid())

    kept = worker._copy_attempts, worker._settle_rare

    async def attempts(connection: Any, *arguments: Any) -> None:
        if statement == "settle":
            await kill(connection)
        await kept[0](connection, *arguments)
        if statement == "attempts":
            await kill(connection)

    async def rare(connection: Any, *arguments: Any) -> None:
        await kept[1](connection, *arguments)
        if statement == "rare":
            await kill(connection)

    monkeypatch.setattr(worker, "_copy_attempts", attempts)
    monkeypatch.setattr(worker, "_settle_rare", rare)
    endpoint = uuid7()
    part = settle(0, attempts=[attempt(endpoint)], upserts=[waiting(endpoint, 1)])
    with pytest.raises(StoreUnavailable) as caught:
        await store.settle([part])
    # What is killed while it waits for the commit may have committed; the store must not claim to know. Where the driver
    # heard of the end before it could ask for the commit, that was not asked for.
    unasked = statement != "rare" or "another operation" in str(caught.value)
    assert isinstance(caught.value, CommitUnknown) is not unasked
    monkeypatch.undo()
    assert not await persist(lambda: store.settled(part))
    assert await counts(driver) == NOTHING
    await persist(lambda: store.settle([part]))
    assert await store.settled(part)


@pytest.mark.postgres
async def test_f8_a_server_that_stands_still_is_given_up_and_the_repeat_is_harmless(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that swallows packets looks like this: no error ever comes."""
    monkeypatch.setattr(worker, "SETTLE_TIMEOUT_S", 0.2)
    store = await driver.open(size_max=1)
    await own(store)
    assert isinstance(driver, Postgres)
    [row] = await driver.run(
        "select pid from pg_stat_activity where application_name = 'test' and datname = current_database()"
    )
    part = settle(0, attempts=[attempt(uuid7())])
    os.kill(row["pid"], signal.SIGSTOP)
    try:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(StoreUnavailable):
                await store.settle([part])
    finally:
        os.kill(row["pid"], signal.SIGCONT)
    monkeypatch.undo()
    await persist(lambda: store.settle([part]))
    assert (await counts(driver))["attempts"] == 1


@pytest.mark.postgres
async def test_f5_a_commit_that_does_not_answer_is_unknown(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await driver.open(size_max=1)
    await own(store)
    stopped: list[int] = []
    kept = worker._settle_rare

    async def stop(connection: Any, *arguments: Any) -> None:
        await kept(connection, *arguments)
        monkeypatch.setattr(worker, "SETTLE_TIMEOUT_S", 0.2)  # for the commit alone: what comes before it has time
        stopped.append(connection.get_server_pid())
        os.kill(stopped[0], signal.SIGSTOP)

    monkeypatch.setattr(worker, "_settle_rare", stop)
    part = settle(0, attempts=[attempt(uuid7())])
    try:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(CommitUnknown):
                await store.settle([part])
    finally:
        os.kill(stopped[0], signal.SIGCONT)
    monkeypatch.undo()
    await persist(lambda: store.settle([part]))
    assert (await counts(driver))["attempts"] == (await counts(driver))["progress"] == 1


@pytest.mark.postgres
async def test_a_missing_partition_is_no_fault_of_the_data(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    await driver.set_clock("2099-01-01 00:00+00")
    with pytest.raises(StoreUnavailable, match="no partition"):
        await store.settle([settle(0, attempts=[attempt(uuid7())])])


# ---- data errors -----------------------------------------------------------------------------------------------------

REFUSED = {
    "a NUL in the address": {"address": "a\0b"},
    "a lone surrogate in the protocol": {"protocol": "\ud800"},
    "a status out of range": {"http_status": 99_999},
    "a latency out of range": {"latency_ms": 2**40},
    "an unknown outcome": {"outcome": "perhaps"},
    "a time that is none": {"finished_at": float("nan")},
    "an error code with a NUL": {"error_code": "\0"},
}


@pytest.mark.parametrize("refused", REFUSED)
async def test_a_refused_attempt_is_isolated_and_the_others_are_stored(driver: Driver, refused: str) -> None:
    store = await driver.open()
    await own(store)
    endpoint = uuid7()
    good = [attempt(endpoint) for _ in range(4)]
    bad = attempt(endpoint, **REFUSED[refused])
    parts = [
        settle(0, attempts=[*good[:2], bad, good[2]], upserts=[waiting(endpoint, 1)]),
        settle(1, attempts=[good[3]], dead=[dead(endpoint, uuid7())]),
    ]
    with pytest.raises(DataRejected):
        await store.settle(parts)
    assert await counts(driver) == NOTHING
    assert await store.settle_by_row(parts) == 1
    stored = {row["attempt_id"] for row in await driver.rows("attempts")}
    assert stored >= {each[0] for each in good}
    assert stored <= {each[0] for each in (*good, bad)}
    assert await counts(driver) == {"attempts": len(stored), "backlog": 1, "dead_letters": 1, "progress": 2}
    if refused != "an unknown outcome":
        assert bad[0] in stored


async def test_a_refused_note_in_the_backlog_never_costs_the_delivery(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    endpoint = uuid7()
    rows = [
        waiting(endpoint, 1),
        waiting(endpoint, 2, last_http_status=70_000),
        waiting(endpoint, 3, last_error_code="\0"),
    ]
    letters = [dead(endpoint, uuid7(), last_error_code="\0"), dead(endpoint, uuid7())]
    part = settle(0, upserts=rows, dead=letters)
    with pytest.raises(DataRejected):
        await store.settle([part])
    assert await store.settle_by_row([part]) == 3
    assert sorted(row["position"] for row in await driver.rows("backlog")) == [1, 2, 3]
    assert len(await driver.rows("dead_letters")) == 2


# ---- side by side ----------------------------------------------------------------------------------------------------


@pytest.mark.postgres
async def test_f9_settles_of_two_workers_do_not_deadlock(driver: Driver) -> None:
    """Replays of one event may live in two shards: both settles then touch the same dead letters, in any order."""
    stores = [await driver.open(), await driver.open()]
    await own(stores[0])
    pairs = [(uuid7(), uuid7()) for _ in range(60)]

    async def work(shard: int, turn: int) -> None:
        mine = pairs[turn % 7 :: 2] if (turn + shard) % 2 else pairs[::-1][turn % 5 :]
        others = [pair for pair in pairs if pair not in mine]
        letters = [dead(endpoint, event_id) for event_id, endpoint in (others[::-1] if shard else others)]
        await stores[shard].settle([settle(shard, settle_no=turn, dead=letters, revived=mine)])

    for turn in range(1, 25):
        await asyncio.gather(work(0, turn), work(1, turn))
    assert isinstance(driver, Postgres)
    [row] = await driver.run("select deadlocks from pg_stat_database where datname = current_database()")
    assert row["deadlocks"] == 0


async def test_a_hold_and_a_change_of_the_endpoint_do_not_deadlock(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)

    async def change() -> None:
        for n in range(25):
            await store.update_endpoint(tenant, endpoint, {"description": str(n)})

    async def hold() -> None:
        for n in range(25):
            await store.hold_endpoint(endpoint, 1.9e9 + n)
            await store.disable_endpoint(tenant, endpoint, "gone")

    await asyncio.gather(change(), hold(), change(), hold())


@pytest.mark.postgres
async def test_nothing_hot_is_updated_in_place_under_a_held_snapshot(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    await own(store)
    assert isinstance(driver, Postgres)
    watcher = await driver.connect()
    snapshot = watcher.transaction(isolation="repeatable_read")
    await snapshot.start()
    assert await watcher.fetchval("select count(*) from events") == 0
    endpoint, day = uuid7(), 0
    for number in range(1, 31):
        await store.append(0, [event(tenant, key=f"{number}-{n}") for n in range(5)], versions)
        rows = (await store.read({0: ((number - 1) * 5, day)}, rows_max=100, bytes_max=1000))[0]
        day = rows[-1].day
        await store.settle([
            settle(
                0, settle_no=number, attempts=[attempt(endpoint, settle_no=number)],
                progress=Progress(rows[-1].seq, rows[-1].seq, day, (), ()),
                upserts=[waiting(endpoint, number)], deletes=[(endpoint, number - 1)],
            )
        ])  # fmt: skip
        await store.fetch(Fetch(None, 0, endpoint, (0.0, -1), 2e9, 10), bytes_max=1000)  # type: ignore[arg-type]
    assert await watcher.fetchval("select count(*) from events") == 0
    await snapshot.rollback()
    await store.close()
    assert await _written(driver, "events", "attempts", "progress", "idempotency_keys") == {
        ("events", 150, 0, 0), ("attempts", 30, 0, 0), ("progress", 30, 0, 0), ("idempotency_keys", 150, 0, 0),
    }  # fmt: skip
    assert await _written(driver, "shards") == {("shards", 0, 4, 0)}  # claimed, and no more


async def _written(driver: Postgres, *tables: str) -> set[tuple[str, int, int, int]]:
    """(table, inserted, updated, deleted), when the statistics of closed connections have come in."""
    query = (
        "select split_part(relname, '_2', 1) as name, sum(n_tup_ins)::int as ins, sum(n_tup_upd)::int as upd,"
        " sum(n_tup_del)::int as del from pg_stat_user_tables"
        " where split_part(relname, '_2', 1) = any ($1) group by 1"
    )
    await until(
        lambda: driver.run(
            "select 1 where not exists (select from pg_stat_activity"
            " where application_name = 'test' and datname = current_database())"
        )
    )
    await driver.run("select pg_stat_clear_snapshot()")
    return {(row["name"], row["ins"], row["upd"], row["del"]) for row in await driver.run(query, list(tables))}
