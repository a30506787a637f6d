"""What is older than it is kept leaves, whole partitions at a time, and never what is still to be delivered (I24)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.engine.work import Progress
from hookpost.maintenance import Maintenance
from hookpost.model import PayloadRef
from hookpost.storage.contract import NotFound, ReplayFilter, ReplayLimits, Store, StoreUnavailable
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres.connection import Connections
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
    settle,
    takeover,
    until,
    version,
    waiting,
)

KEEP = 3
# Each life costs a second or two: `make whole` ends one at every statement, every other run at each third.
KILL_STRIDE = 1 if os.environ.get("WHOLE_TESTS") else 3
FIRST = date(2030, 1, 1)
EPOCH = date(2000, 1, 1)


class Years:
    """A store whose days go by as a test says, with one worker that owns all its shards."""

    def __init__(self, driver: Driver, store: Store) -> None:
        self.driver = driver
        self.store = store
        self.day = FIRST
        self.settles = 0
        self.tenant = self.endpoint = UUID(int=0)
        self.forgotten: list[str] = []
        self.seq = 0

    async def begin(self) -> None:
        await self.go_to(FIRST)
        self.tenant = await new_tenant(self.store)
        self.endpoint = await new_endpoint(self.store, self.tenant)
        await own(self.store)
        await self.retire()  # the partitions of the days on which the test was written and runs

    async def go_to(self, day: date) -> None:
        self.day = day
        await self.driver.set_clock(f"{day} 12:00Z")
        await self.store.make_partitions(days_ahead=1)

    async def go_on(self, days: int = 1) -> None:
        await self.go_to(self.day + timedelta(days=days))

    def minted(self) -> UUID:
        """An id of this day."""
        return uuid7(nanoseconds=(int((self.day - date(1970, 1, 1)).total_seconds()) + 3600) * 10**9)

    async def post(self, count: int = 1, **values: Any) -> UUID:
        """Events of today to shard 0; the id of the last."""
        events = [
            event(self.tenant, **{"event_id": self.minted(), "owed": (self.endpoint,), **values}) for _ in range(count)
        ]
        await self.store.append(0, events, await version(self.store, self.tenant))
        self.seq += count
        return events[-1].event_id

    async def settle(self, *, read_to: int | None = None, **values: Any) -> None:
        """All up to here is done; 0 by default: nothing is left open."""
        self.settles += 1
        done = self.seq if read_to is None else read_to
        progress = Progress(done, done, (self.day - EPOCH).days, (), ())
        await self.store.settle([settle(settle_no=self.settles, progress=progress, **values)])

    async def forget(self, keys: Any) -> None:
        self.forgotten += keys

    async def count(self) -> None:
        """Bring the rollups up to date: what is not counted does not leave."""
        left = None
        while step := await self.store.roll_up(settles_max=1_000, events_max=10_000, left=left):
            left = step.left
            if left is None:
                break

    async def retire(self) -> tuple[int, int]:
        """Count, and let leave what is over: how many partitions of events were dropped, and how many held."""
        await self.count()
        return await self.leave()

    async def leave(self) -> tuple[int, int]:
        """The same with what is counted already."""
        retired = await self.store.retire_events(keep_days=KEEP, forget=self.forget)
        return len(retired.dropped), len(retired.held)

    async def left(self) -> list[int]:
        """The numbers in the journal."""
        return [row["seq"] for row in await self.driver.journal(0)]


class Partitions(Years):
    """The same on PostgreSQL, with what is to be seen there only."""

    driver: Postgres

    async def finish(self, day: date) -> None:
        """Let what is over go until this day has left; a session that was cut off may have its turn for a moment."""
        async with asyncio.timeout(PATIENCE_S):
            await self.count()
            while f"events_{day:%Y%m%d}" in await self.tables():
                await self.leave()

    async def tables(self, table: str = "events") -> set[str]:
        rows = await self.driver.run(
            "select relname from pg_class where relkind = 'r' and relname ~ $1", f"^{table}_\\d"
        )
        return {row["relname"] for row in rows}


@pytest.fixture
async def years(driver: Driver) -> Years:
    kind = Partitions if isinstance(driver, Postgres) else Years
    made = kind(driver, await driver.open(deadline_s_max=86_400.0))
    await made.begin()
    return made


async def test_what_is_done_leaves_on_its_day_and_numbers_go_on_behind_it(years: Years) -> None:
    await years.post(5)
    await years.settle()
    for _ in range(KEEP):
        await years.go_on()
        assert (await years.retire())[1] == 0
        assert await years.left() == [1, 2, 3, 4, 5]
    await years.go_on()
    dropped, held = await years.retire()
    assert (dropped > 0, held) == (True, 0)
    assert await years.left() == []
    await years.post(2)
    assert await years.left() == [6, 7]
    assert await years.retire() == (0, 0)


async def test_a_shard_whose_rows_are_all_gone_is_read_on_from_where_it_was(years: Years) -> None:
    await years.post(5)
    await years.settle()
    await years.go_on(KEEP + 1)
    await years.retire()
    await years.post(1)
    last = await takeover(years.store, 0, 1)
    rows = await years.store.read({0: (last.read_to, last.read_day)}, rows_max=10, bytes_max=1000)
    assert [row.seq for row in rows[0]] == [6]


@pytest.mark.parametrize("what", ["unread", "waiting", "a waiting replay", "an unread replay"])
async def test_nothing_leaves_that_is_still_to_be_delivered(years: Years, what: str) -> None:
    event_id = await years.post(2)
    days = (FIRST - EPOCH).days
    row = {"tenant_id": years.tenant, "event_id": event_id}
    if what == "unread":
        await years.settle(read_to=1)
    elif what == "waiting":
        await years.settle(upserts=[waiting(years.endpoint, 2, day=days, **row)])
    else:
        await years.settle()
        await years.go_on(2)
        await years.store.append_replay(years.tenant, event_id, None)
        years.seq += 1
        if what == "a waiting replay":
            await years.settle(upserts=[waiting(years.endpoint, 3, day=days + 2, generation=1, **row)])
    await years.go_to(FIRST + timedelta(days=KEEP + 1))
    assert (await years.retire())[1] == 1
    assert await years.left() == list(range(1, years.seq + 1))
    # It is over.
    deletes = [(years.endpoint, 2 if what == "waiting" else 3)]
    await years.settle(deletes=deletes)
    assert (await years.retire())[1] == 0
    assert 1 not in await years.left()


@pytest.mark.parametrize("what", ["attempts", "dead letters"])
async def test_a_replay_is_not_numbered_as_one_that_has_left_of_which_something_is_recorded(
    years: Years, what: str
) -> None:
    """The replay's row goes with its day, the event's own stays as another of that day waits."""
    event_id = await years.post(2)
    shared = {"tenant_id": years.tenant, "event_id": event_id}
    other = waiting(years.endpoint, 1, day=(FIRST - EPOCH).days, tenant_id=years.tenant)
    await years.go_on()
    for _ in range(2):
        await years.store.append_replay(years.tenant, event_id, None)
        years.seq += 1
    await years.settle(upserts=[other])
    await years.go_on(2)
    if what == "attempts":
        done = [attempt(years.endpoint, settle_no=2, generation=2, **shared)]
        await years.settle(attempts=done)
    else:
        await years.settle(dead=[dead(years.endpoint, event_id, generation=2, tenant_id=years.tenant)])
    await years.go_to(FIRST + timedelta(days=KEEP + 2))
    await years.retire()
    assert await years.left() == [1, 2]
    await years.store.append_replay(years.tenant, event_id, None)
    assert [row["generation"] for row in await years.driver.journal(0)] == [0, 0, 3]


@pytest.mark.postgres
async def test_dead_letters_and_objects_leave_with_their_events(years: Partitions) -> None:
    ref = PayloadRef("events/1/02/abc", 0, 5, bytes(32))
    gone = years.minted()
    await years.store.append(
        0, [event(years.tenant, event_id=gone, owed=(years.endpoint,))], await version(years.store, years.tenant)
    )
    years.seq += 1
    await years.driver.run("update events set payload = null, payload_ref = $1", str(ref))
    await years.settle(dead=[dead(years.endpoint, gone, tenant_id=years.tenant)])
    await years.go_on()
    kept = await years.post()
    await years.settle(dead=[dead(years.endpoint, kept, tenant_id=years.tenant)])
    await years.go_to(FIRST + timedelta(days=KEEP + 1))
    await years.retire()
    assert [row["event_id"] for row in await years.driver.rows("dead_letters")] == [kept]
    assert years.forgotten == ["events/1/02/abc"]
    with pytest.raises(NotFound):
        await years.store.append_replay(years.tenant, gone, None)


@pytest.mark.postgres
async def test_while_the_payload_store_is_away_a_partition_is_kept_out_of_sight_and_leaves_later(
    years: Partitions,
) -> None:
    ref = PayloadRef("events/1/02/abc", 0, 5, bytes(32))
    await years.post()
    await years.driver.run("update events set payload = null, payload_ref = $1", str(ref))
    await years.settle()
    await years.count()
    await years.go_on(KEEP + 1)

    async def away(keys: Any) -> None:
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        await years.store.retire_events(keep_days=KEEP, forget=away)
    assert await years.left() == []
    await years.finish(FIRST)
    assert years.forgotten == ["events/1/02/abc"]


async def test_what_is_not_counted_yet_does_not_leave(years: Years) -> None:
    """Neither the attempts nor the events of a day whose figures are not complete: nobody could count them later."""
    await years.post(3)
    await years.settle(attempts=[attempt(years.endpoint)])
    await years.go_on(KEEP + 1)
    events, attempts = f"events_{FIRST:%Y%m%d}", f"attempts_{FIRST:%Y%m%d}"
    retired = await years.store.retire_events(keep_days=KEEP, forget=years.forget)
    assert (events in retired.dropped, events in retired.held) == (False, True)
    retired = await years.store.retire_attempts(keep_days=KEEP)
    assert (attempts in retired.dropped, attempts in retired.held) == (False, True)
    await years.count()
    assert events in (await years.store.retire_events(keep_days=KEEP, forget=years.forget)).dropped
    assert attempts in (await years.store.retire_attempts(keep_days=KEEP)).dropped
    counted = await years.driver.rows("metering")
    assert (sum(row["accepted"] for row in counted), sum(row["attempts"] for row in counted)) == (3, 1)


async def test_attempts_leave_on_their_day(years: Years) -> None:
    await years.post()
    await years.settle(attempts=[attempt(years.endpoint)])
    await years.count()
    await years.go_on(KEEP)
    assert f"attempts_{FIRST:%Y%m%d}" not in (await years.store.retire_attempts(keep_days=KEEP)).dropped
    await years.go_on()
    assert f"attempts_{FIRST:%Y%m%d}" in (await years.store.retire_attempts(keep_days=KEEP)).dropped
    assert await years.driver.rows("attempts") == []


async def test_two_at_once_are_as_one(years: Years) -> None:
    await years.post(5)
    await years.settle()
    await years.go_on(KEEP + 1)
    both = await asyncio.gather(years.retire(), years.retire())
    assert await years.left() == []
    assert sum(held for _, held in both) == 0


@pytest.mark.postgres
async def test_nobody_waits_while_a_partition_leaves_that_somebody_reads_for_long(years: Partitions) -> None:
    await years.post(5)
    await years.settle()
    await years.go_on(KEEP + 1)
    reader = await years.driver.connect()
    transaction = reader.transaction(isolation="repeatable_read")
    await transaction.start()
    await reader.fetch("select * from events")
    retiring = asyncio.create_task(years.retire())
    await years.driver.waiting()
    await years.post()
    assert 6 in await years.left()
    assert not retiring.done()
    # As when its time for the lock is over.
    [blocked] = await years.driver.blocked()
    await years.driver.run("select pg_cancel_backend($1)", blocked["pid"])
    with pytest.raises(StoreUnavailable, match="canceling"):
        await retiring
    await transaction.rollback()
    await years.finish(FIRST)
    assert await years.left() == [6]


class Dying:
    """A connection that dies at its ``left``-th statement."""

    def __init__(self, connection: Any, left: Callable[[], bool]) -> None:
        self._connection = connection
        self._left = left

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._connection, name)
        if name not in ("execute", "fetch", "fetchval"):
            return call

        async def counted(*arguments: Any) -> Any:
            if self._left():
                self._connection.terminate()
            return await call(*arguments)

        return counted


class Telling:
    """A connection that calls ``before`` when it is about to detach the first day's partition of events."""

    def __init__(self, connection: Any, before: Callable[[], Awaitable[None]]) -> None:
        self._connection = connection
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, statement: str, *arguments: Any) -> Any:
        if statement.startswith(f"alter table events detach partition events_{FIRST:%Y%m%d}"):
            await self._before()
        return await self._connection.execute(statement, *arguments)


@pytest.mark.postgres
@pytest.mark.parametrize("bulk", [False, True])
async def test_a_replay_asked_for_while_its_event_leaves_finds_it_whole_or_not_at_all(
    years: Partitions, monkeypatch: pytest.MonkeyPatch, bulk: bool
) -> None:
    """What was owed once more behind the look whether a day is needed was read without its payload, and died of that."""
    event_id = await years.post()
    await years.settle()
    await years.go_on(KEEP + 1)
    await years.count()
    other = await years.driver.open(deadline_s_max=86_400.0)
    asked: list[asyncio.Task[Any]] = []
    if bulk:
        wanted = ReplayFilter(status="any")
        await other.create_replay(years.tenant, uuid7(), wanted, rate_limit=100.0, running_max=9)

    async def ask() -> None:
        limits = ReplayLimits(step_s=1.0, deliveries_max=9, depth_max=99, waiting_max=99, hold_s=1.0)
        replay = other.replay_step(limits) if bulk else other.append_replay(years.tenant, event_id, None)
        asked.append(asyncio.ensure_future(replay))
        await until(done_or_waiting)

    async def done_or_waiting() -> bool:
        return asked[-1].done() or len(await years.driver.blocked()) > 0

    connect_alone = Connections.connect_alone

    async def telling(self: Connections, doing: str, **settings: str) -> Any:
        return Telling(await connect_alone(self, doing, **settings), ask)

    monkeypatch.setattr(Connections, "connect_alone", telling)
    await years.leave()
    assert await years.left() == []
    if bulk:
        step = await asked[0]
        assert step is not None
        assert step.appended == 0
    else:
        with pytest.raises(NotFound):
            await asked[0]


@pytest.mark.postgres
async def test_f43_killed_at_each_statement_and_run_again_during_a_replay(
    years: Partitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I24: whatever statement is the last one, nothing that is owed is lost, and the next run finishes the work."""
    connect_alone = Connections.connect_alone
    statements = 0

    async def dying(self: Connections, doing: str, **settings: str) -> Any:
        return Dying(await connect_alone(self, doing, **settings), budget)

    def budget() -> bool:
        nonlocal statements
        statements -= 1
        return statements < 0

    killed_at = 0
    while True:
        start = years.day
        first = years.seq + 1
        event_id = await years.post(3)
        await years.settle()
        await years.go_on()
        replayed = await years.post()
        await years.settle()
        await years.go_to(start + timedelta(days=KEEP + 1))
        await years.store.append_replay(years.tenant, replayed, None)
        years.seq += 1
        statements = killed_at
        monkeypatch.setattr(Connections, "connect_alone", dying)
        await years.count()
        try:
            await years.leave()
            died = False
        except StoreUnavailable:
            died = True
        monkeypatch.setattr(Connections, "connect_alone", connect_alone)
        await years.finish(start)
        assert not {first, first + 1, first + 2} & set(await years.left())
        with pytest.raises(NotFound):
            await years.store.append_replay(years.tenant, event_id, None)
        # The replay that is not read yet, and its event, are still there, on the day its event would have left.
        await years.go_on()
        assert (await years.retire())[1] == 1
        assert {years.seq - 1, years.seq} <= set(await years.left())
        await years.settle()
        await years.go_on(KEEP + 2)
        await years.retire()
        if not died:
            break
        killed_at += KILL_STRIDE
    assert killed_at >= 10, "the run has more statements than that"


@pytest.mark.postgres
async def test_after_many_days_everything_is_as_large_as_after_a_few(years: Partitions) -> None:
    """Roll-over, day by day, with traffic: tables come and go, sizes stay, numbers go on."""
    maintenance = Maintenance(years.store, ObjectStore("memory:///"), days_ahead=1, keep_days=KEEP)
    sizes: list[int] = []
    counts: list[int] = []
    for day in range(12):
        event_id = await years.post(200, payload=b'"' + b"x" * 300 + b'"')
        await years.settle(
            attempts=[attempt(years.endpoint, settle_no=years.settles + 1, position=n) for n in range(200)],
            dead=[dead(years.endpoint, event_id, tenant_id=years.tenant, day=(years.day - EPOCH).days)],
        )
        await years.count()
        await years.go_on()
        assert await maintenance.once()
        if day > KEEP + 1:
            [row] = await years.driver.run(
                "select count(*) as tables, sum(pg_total_relation_size(oid)) as bytes from pg_class"
                " where relkind = 'r' and relname ~ '^(events|attempts|progress|dead_letters|shards)'"
            )
            sizes.append(int(row["bytes"]))
            counts.append(row["tables"])
    assert max(counts) - min(counts) <= 1
    assert max(sizes) <= min(sizes) * 1.05
    assert await years.left() == list(range(years.seq - 200 * KEEP + 1, years.seq + 1))
    assert len(await years.driver.rows("dead_letters")) == KEEP


@pytest.mark.postgres
async def test_all_who_ask_first_how_far_the_payload_store_was_swept_hear_the_same(years: Partitions) -> None:
    stores = [await years.driver.open() for _ in range(6)]
    hours = await asyncio.gather(*(store.swept_to() for store in stores))
    assert len(set(hours)) == 1
