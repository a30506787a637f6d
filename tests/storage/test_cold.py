"""Payloads of days gone by lie in segments, and everybody reads them there as before (ADR 18)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from hookpost.cold import AGAIN_S, EVERY_S, ColdPayloads
from hookpost.engine.lanes import FROM_START
from hookpost.engine.work import Fetch, Kind, Wanted
from hookpost.maintenance import Maintenance
from hookpost.model import REMOVED, PayloadRef
from hookpost.policy.objects import hour_folder, is_segment, segment_key
from hookpost.storage.contract import ControlAction, Moved, MoveState, PayloadMissing, StoreUnavailable
from hookpost.storage.payloads import MARKER, ObjectStore
from hookpost.storage.postgres import cold, sending
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.vault import Vault
from tests.conftest import KEYS
from tests.patience import PATIENCE_S
from tests.storage.driver import Driver, Postgres, attempt, until, waiting
from tests.storage.test_retention import EPOCH, FIRST, KEEP, Dying, Partitions

pytestmark = pytest.mark.postgres

PART = f"events_{FIRST:%Y%m%d}"
FILLED = f"cold_{FIRST:%Y%m%d}"
HOUR_S = 3600.0


class Cold(Partitions):
    """Days whose payloads move into a folder, three rows a segment."""

    def __init__(self, driver: Postgres, store: Any, folder: Path) -> None:
        super().__init__(driver, store)
        self.folder = folder
        self.objects = ObjectStore(folder.as_uri())

    async def move(self, *, rows_max: int = 3, bytes_max: int = 1000) -> Moved | None:
        return await self.store.move_payloads(self.objects.put, age_s=HOUR_S, rows_max=rows_max, bytes_max=bytes_max)

    async def move_all(self, until: MoveState | None = None) -> list[MoveState]:
        """Step by step, until there is nothing to move or a step ends like this."""
        states: list[MoveState] = []
        while (moved := await self.move()) is not None:
            states.append(moved.state)
            if moved.state is until:
                break
        return states

    async def kept(self, event_id: UUID) -> dict[str, Any]:
        [row] = await self.driver.run("select * from events where event_id = $1 and kind = 0", event_id)
        return row

    async def payload(self, event_id: UUID) -> bytes:
        return await self.objects.get(PayloadRef.parse((await self.kept(event_id))["payload_ref"]))

    def segments(self) -> dict[str, bytes]:
        """What lies in the folder, but the marker."""
        files = (path for path in self.folder.rglob("*") if path.is_file() and path.name != MARKER)
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def maintenance(self) -> Maintenance:
        return Maintenance(self.store, self.objects, days_ahead=1, keep_days=KEEP)


@pytest.fixture
async def days(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cold:
    assert isinstance(driver, Postgres)
    monkeypatch.setattr(cold, "SETTLE_S", 0.0)
    made = Cold(driver, await driver.open(deadline_s_max=86_400.0), tmp_path / "payloads")
    await made.objects.claim("us")
    await made.begin()
    await made.move_all()  # the day before the first has none
    return made


def text(number: int) -> bytes:
    return b'{"n":  %d, "text": "%s"}' % (number, b"x" * number)


async def posted(days: Cold, count: int = 7) -> dict[UUID, bytes]:
    """Events of today, each with a payload of its own."""
    return {await days.post(payload=text(number)): text(number) for number in range(count)}


async def test_a_day_that_is_over_moves_and_every_payload_is_read_as_it_was(days: Cold) -> None:
    sent = await posted(days)
    before = {event_id: await days.kept(event_id) for event_id in sent}
    await days.settle()
    assert await days.move() is None, "the day is not over"
    await days.go_on()
    states = await days.move_all()
    assert states == [MoveState.BEGUN, *[MoveState.FILLING] * 3, MoveState.FILLED, MoveState.MOVED]
    for event_id, payload in sent.items():
        row = await days.kept(event_id)
        assert row["payload"] is None
        assert await days.payload(event_id) == payload
        same = ("day", "shard", "seq", "owed", "tenant_id", "type", "created_at", "generation", "trace_id")
        assert [row[name] for name in same] == [before[event_id][name] for name in same]
    assert len(days.segments()) == 3
    assert all(is_segment(key) for key in days.segments())
    assert FILLED not in await days.tables("cold")
    assert await days.move() is None


async def test_workers_replays_and_takeovers_are_told_the_place(days: Cold) -> None:
    [(event_id, payload)] = (await posted(days, 1)).items()
    await days.go_on()
    await days.move_all()
    await days.store.append_replay(days.tenant, event_id, None)
    days.seq += 1
    rows = (await days.store.read({0: (0, 0)}, rows_max=9, bytes_max=9))[0]
    assert [row.kind for row in rows] == [Kind.DELIVER, Kind.REPLAY]
    assert [await days.objects.get(row.payload) for row in rows] == [payload] * 2  # type: ignore[arg-type]
    row = waiting(days.endpoint, 1, tenant_id=days.tenant, event_id=event_id, day=(FIRST - EPOCH).days)
    await days.settle(upserts=[row])
    fetch = Fetch(None, 0, days.endpoint, FROM_START, 2e9, 10, Wanted.DUE)  # type: ignore[arg-type] # no lane is needed
    [found], _, _ = await days.store.fetch(fetch, bytes_max=100)
    assert await days.objects.get(found.payload) == payload  # type: ignore[arg-type]


async def test_control_rows_keep_what_a_worker_reads_in_place(days: Cold) -> None:
    event_id = await days.post(payload=text(1))
    assert await days.store.append_control(days.tenant, event_id, None, ControlAction.CANCEL) == 1
    await days.go_on()
    await days.move_all()
    rows = (await days.store.read({0: (0, 0)}, rows_max=9, bytes_max=99))[0]
    assert rows[1].payload == b"[1]"


async def test_large_payloads_and_removed_ones_keep_their_places(days: Cold) -> None:
    large, gone, small = [await days.post(payload=text(number)) for number in range(3)]
    ref = str(PayloadRef("events/1/02/abc", 0, 5, bytes(32)))
    await days.driver.run("update events set payload = null, payload_ref = $2 where event_id = $1", large, ref)
    await days.store.remove_payload(days.tenant, gone)
    await days.go_on()
    await days.move_all()
    assert (await days.kept(large))["payload_ref"] == ref
    assert (await days.kept(gone))["payload_ref"] == str(REMOVED)
    assert list(days.segments().values()) == [text(2)]
    assert await days.payload(small) == text(2)


async def test_a_day_without_payloads_is_left_as_it_is(days: Cold) -> None:
    await days.go_on()
    assert await days.move_all() == [MoveState.BEGUN]
    assert days.segments() == {}


@pytest.mark.parametrize("when", [MoveState.BEGUN, MoveState.FILLING, MoveState.FILLED, MoveState.MOVED])
async def test_what_is_removed_at_any_time_is_nowhere_in_the_end(days: Cold, when: MoveState) -> None:
    """Out of the row, out of the copy that is being filled, and out of the bytes of the segment."""
    sent = await posted(days)
    await days.go_on()
    await days.move_all(until=when)
    for event_id in list(sent)[2:5]:
        await days.store.remove_payload(days.tenant, event_id)
    await days.move_all()
    assert await days.maintenance().once()
    in_objects = b"".join(days.segments().values())
    for number, (event_id, payload) in enumerate(sent.items()):
        if number in (2, 3, 4):
            assert (await days.kept(event_id))["payload_ref"] == str(REMOVED)
            assert payload not in in_objects
        else:
            assert await days.payload(event_id) == payload
    assert await days.driver.rows("segment_removals") == []


async def test_what_is_removed_while_its_segment_is_put_is_erased_from_it(days: Cold) -> None:
    sent = await posted(days, 3)
    gone = list(sent)[1]
    await days.go_on()
    await days.move()

    async def put(key: str, payload: bytes) -> Any:
        await days.store.remove_payload(days.tenant, gone)
        return await days.objects.put(key, payload)

    await days.store.move_payloads(put, age_s=HOUR_S, rows_max=9, bytes_max=1000)
    await days.move_all()
    assert sent[gone] in b"".join(days.segments().values())
    assert await days.maintenance().once()
    assert sent[gone] not in b"".join(days.segments().values())
    assert (await days.kept(gone))["payload_ref"] == str(REMOVED)
    assert await days.payload(list(sent)[2]) == text(2)


async def test_a_deleted_tenants_bytes_are_erased_from_segments_and_nobody_elses(days: Cold) -> None:
    mine = await posted(days, 4)
    tenant, days.tenant = days.tenant, UUID(int=0)
    await Partitions.begin(days)
    others = await posted(days, 4)
    await days.go_on()
    await days.move_all()
    await days.store.delete_tenant(tenant)
    await days.driver.run("update tenants set deleted_at = deleted_at - interval '2 min'")
    assert await days.maintenance().once()
    in_objects = b"".join(days.segments().values())
    assert in_objects.count(b"text") == 4
    for event_id in mine:
        assert (await days.kept(event_id))["payload_ref"] == str(REMOVED)
    for event_id, payload in others.items():
        assert await days.payload(event_id) == payload


async def test_segments_leave_whole_with_their_day(days: Cold) -> None:
    await posted(days)
    await days.settle()
    await days.go_on()
    await days.move_all()
    [kept] = await posted(days, 1)
    await days.settle()
    await days.go_on()
    await days.move_all()
    assert len(days.segments()) == 4
    await days.count()
    await days.go_to(FIRST + timedelta(days=KEEP + 1))
    assert await days.maintenance().once()
    assert PART not in await days.tables()
    assert list(days.segments().values()) == [text(0)]
    assert await days.payload(kept) == text(0)


async def test_a_day_that_leaves_while_it_is_moved_leaves_nothing_behind(days: Cold) -> None:
    await posted(days)
    await days.settle()
    await days.go_on(KEEP + 1)
    while await days.move():
        if len(days.segments()) == 2:
            break
    await days.count()
    assert await days.maintenance().once()
    assert days.segments() == {}
    assert await days.tables("cold") == set()
    assert PART not in await days.tables()
    assert await days.driver.rows("segments") == []


async def test_the_loop_rests_as_long_as_it_works_and_while_sending_is_paused(days: Cold) -> None:
    """A restored backup must not change the payload store of the installation that it is a copy of."""
    sent = await posted(days)
    await days.go_on()
    moments = iter(float(n) for n in range(1000))
    loop = ColdPayloads(days.store, days.objects, age_s=HOUR_S, monotonic=lambda: next(moments))
    await sending.pause(days.driver.dsn, Vault(KEYS))
    assert await loop.once() == EVERY_S
    assert days.segments() == {}
    await sending.go_on(days.driver.dsn, Vault(KEYS))
    while (wait_s := await loop.once()) != EVERY_S:
        assert wait_s == 1.0
    assert {event_id: await days.payload(event_id) for event_id in sent} == sent


async def test_the_loop_says_what_keeps_it_and_tries_again(days: Cold, caplog: pytest.LogCaptureFixture) -> None:
    await posted(days, 1)
    await days.go_on()
    days.folder.rename(days.folder.with_name("unplugged"))
    days.folder.write_text("no folder")
    loop = ColdPayloads(days.store, ObjectStore(days.folder.as_uri()), age_s=HOUR_S, monotonic=lambda: 0.0)
    assert await loop.once() == 0.0
    with caplog.at_level("ERROR", logger="hookpost"):
        assert await loop.once() == AGAIN_S
    assert "move payloads" in caplog.text


async def test_two_movers_are_as_one(days: Cold) -> None:
    sent = await posted(days, 12)
    await days.go_on()
    other = await days.driver.open()

    async def steps(store: Any) -> None:
        for _ in range(20):
            await store.move_payloads(days.objects.put, age_s=HOUR_S, rows_max=3, bytes_max=1000)

    await asyncio.gather(steps(days.store), steps(other))
    await days.move_all()
    assert len(days.segments()) == len(await days.driver.rows("segments")) == 4
    for event_id, payload in sent.items():
        assert await days.payload(event_id) == payload


async def test_nobody_waits_for_long_when_the_day_cannot_take_its_new_shape(
    days: Cold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump reads for hours: the day stays as it is, and whoever appends meanwhile hardly notices."""
    sent = await posted(days)
    await days.go_on()
    await days.move_all(until=MoveState.FILLED)
    reader = await days.driver.connect()
    transaction = reader.transaction(isolation="repeatable_read")
    await transaction.start()
    await reader.fetch("select * from events")
    monkeypatch.setattr(cold, "SWAP_LOCK_TIMEOUT", "200ms")
    moving = asyncio.create_task(days.move())

    async def waits_or_has_given_up() -> bool:
        return moving.done() or bool(await days.driver.blocked())

    await until(waits_or_has_given_up)
    await days.post()
    held = await moving
    assert held is not None and held.state is MoveState.HELD
    assert (await days.kept(next(iter(sent))))["payload"] is not None
    await transaction.rollback()
    assert await days.move_all() == [MoveState.MOVED]
    assert {event_id: await days.payload(event_id) for event_id in sent} == sent


async def test_rows_that_come_late_are_copied_before_the_day_takes_its_new_shape(days: Cold) -> None:
    """The database's clock may go back."""
    sent = await posted(days)
    await days.go_on()
    await days.move_all(until=MoveState.FILLED)
    await days.go_to(FIRST)
    late = await days.post(payload=text(50))
    await days.go_on()
    assert await days.move_all() == [MoveState.FILLING, MoveState.FILLING, MoveState.FILLED, MoveState.MOVED]
    assert await days.payload(late) == text(50)
    assert await days.left() == list(range(1, len(sent) + 2))


async def test_a_migration_in_between_begins_anew(days: Cold) -> None:
    sent = await posted(days)
    await days.go_on()
    await days.move_all(until=MoveState.FILLING)
    await days.driver.run("alter table events add column extra text default 'e'")
    assert MoveState.ABANDONED in await days.move_all()
    assert {event_id: await days.payload(event_id) for event_id in sent} == sent
    assert (await days.kept(next(iter(sent))))["extra"] == "e"
    assert await days.maintenance().once()
    assert len(days.segments()) == len(await days.driver.rows("segments"))


async def test_a_payload_store_that_is_away_moves_nothing_and_loses_nothing(days: Cold) -> None:
    sent = await posted(days)
    await days.go_on()
    await days.move()

    async def away(key: str, payload: bytes) -> Any:
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        await days.store.move_payloads(away, age_s=HOUR_S, rows_max=3, bytes_max=1000)
    assert (await days.kept(next(iter(sent))))["payload"] is not None
    assert await days.move_all()
    assert {event_id: await days.payload(event_id) for event_id in sent} == sent


async def test_a_process_that_was_frozen_behind_its_put_commits_nothing(days: Cold) -> None:
    await posted(days)
    await days.go_on()
    await days.move()
    rows = [
        "select hookpost_copy_cold($1, 0, 1, '{0}', '{1}', '{5}', '{aa}', 'cold/1/1', clock_timestamp() - $2::interval)",
        FIRST,
    ]
    with pytest.raises(Exception, match="too long ago"):
        await days.driver.run(*rows, timedelta(minutes=11))
    assert await days.driver.rows("segments") == []


async def test_killed_at_each_statement_and_run_again_it_loses_nothing_and_leaves_no_orphan(
    days: Cold, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_alone = Connections.connect_alone
    left = 0

    async def dying(self: Connections, doing: str, **settings: str) -> Any:
        return Dying(await connect_alone(self, doing, **settings), spent)

    def spent() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    async def patiently(step: Callable[[], Any]) -> Any:
        """The session of the one that died may have its turn for a moment."""
        while await days.driver.run("select from pg_locks where locktype = 'advisory' and classid = 7706"):
            await asyncio.sleep(0)
        return await step()

    sent: dict[UUID, bytes] = {}
    killed_at = 0
    while True:
        sent |= await posted(days, 4)
        await days.go_on()
        left = killed_at
        monkeypatch.setattr(Connections, "connect_alone", dying)
        try:
            await days.move_all()
            died = False
        except StoreUnavailable:
            died = True
        monkeypatch.setattr(Connections, "connect_alone", connect_alone)
        while (await patiently(days.move)) is not None:
            pass
        for event_id, payload in sent.items():
            assert await days.payload(event_id) == payload
        if not died:
            break
        killed_at += 1
    assert killed_at >= 12, "a day has more statements than that"
    # What was put and never referred to is swept, and nothing else.
    hours = {int(key.split("/")[1]) for key in days.segments()}
    assert len(days.segments()) > len(await days.driver.rows("segments"))
    await days.store.swept_to()
    await days.driver.run("update platform set value = $1 where name = 'payloads_swept'", str(min(hours)))
    for hour in hours:
        async for keys in days.objects.list_hour(hour):
            await days.objects.delete(await days.store.orphans(keys))
    assert sorted(days.segments()) == sorted(row["key"] for row in await days.driver.rows("segments"))
    for event_id, payload in sent.items():
        assert await days.payload(event_id) == payload


async def test_an_altered_or_missing_segment_is_told(days: Cold) -> None:
    sent = await posted(days, 2)
    first, second = sent
    await days.go_on()
    await days.move_all()
    ref = PayloadRef.parse((await days.kept(first))["payload_ref"])
    path = days.folder / ref.key
    path.write_bytes(path.read_bytes().replace(sent[first], sent[first][::-1]))
    with pytest.raises(PayloadMissing, match="other bytes"):
        await days.payload(first)
    assert await days.payload(second) == sent[second]
    path.unlink()
    with pytest.raises(PayloadMissing):
        await days.payload(second)


def test_names_of_segments_are_told_from_all_others() -> None:
    assert is_segment(segment_key(500_000, 7))
    assert not is_segment(f"{hour_folder(500_000)}/{'a' * 32}")
    assert not is_segment(MARKER)


async def test_days_go_by_under_load_and_nothing_grows_and_nobody_waits_for_long(days: Cold) -> None:
    """The short form of `make soak`: posts and settles without a pause, while partitions come, move and leave."""
    waits: list[float] = []
    turns = asyncio.Condition()
    over = False
    time = asyncio.get_running_loop().time
    sent: dict[UUID, bytes] = {}
    quota = 0

    async def load() -> None:
        while not over:
            # However unevenly a busy machine shares its time out, no day has many times as many as another.
            async with turns:
                await turns.wait_for(lambda: over or len(waits) < quota)
            began = time()
            event_id = await days.post(payload=text(300))
            await days.settle(
                attempts=[attempt(days.endpoint, settle_no=days.settles + 1, event_id=event_id, tenant_id=days.tenant)]
            )
            waits.append(time() - began)
            sent[event_id] = text(300)
            async with turns:
                turns.notify_all()

    async def more() -> None:
        nonlocal quota
        goal, quota = len(waits) + 12, len(waits) + 50
        async with turns:
            turns.notify_all()
            await turns.wait_for(lambda: len(waits) >= goal or loading.done())

    loading = asyncio.create_task(load())
    sizes: list[int] = []
    for day in range(9):
        await more()
        await days.go_on()
        await days.count()
        assert await days.maintenance().once()
        while await days.move(rows_max=100, bytes_max=10_000):
            pass
        if day > KEEP + 1:
            [row] = await days.driver.run(
                "select sum(pg_total_relation_size(oid)) as bytes from pg_class"
                " where relkind = 'r' and relname ~ '^(events|attempts|cold|segments)'"
            )
            sizes.append(int(row["bytes"]))
    over = True
    async with turns:
        turns.notify_all()
    await loading
    assert max(sizes) <= min(sizes) * 1.5, "as much as the days differ"
    assert max(waits) < PATIENCE_S / 2, "maintenance waits for a lock for 2 s at most; the rest is a slow machine's"
    assert await days.left() == list(range(days.seq - len(await days.left()) + 1, days.seq + 1))
    last = list(sent)[-1]
    assert (await days.kept(last))["payload"] == sent[last]
    [moved] = await days.driver.run(
        "select event_id from events where payload_ref is not null order by seq desc limit 1"
    )
    assert await days.payload(moved["event_id"]) == sent[moved["event_id"]]
