"""Shards do not get lost between a worker and the store: what the store says is owned, somebody works for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from random import Random
from typing import Any
from uuid import UUID

import pytest
from msgspec import structs
from uuid_utils.compat import uuid7

from hookpost import telemetry
from hookpost import worker as module
from hookpost.engine.limits import Limits
from hookpost.engine.work import Fetch, JournalRow, Kind, LaneSummary, Takeover
from hookpost.model import HEALTHY, Endpoint, EndpointStatus, ErrorCode, Health, Outcome, Request, Tenant
from hookpost.policy.breaker import BreakerRecord, BreakerState
from hookpost.storage.contract import RECONFIGURED, Claimed, FenceLost, StoreUnavailable, Survey
from hookpost.storage.payloads import ObjectStore
from hookpost.worker import Worker, WorkerSettings
from tests.patience import PATIENCE_S

SHARDS = frozenset(range(4))
LEASE_S = 100.0
TENANT = uuid7()


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.skew_s = 0.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def correct(self, database_now: float, *, sent: float, received: float) -> float:
        return self.skew_s


class Leases:
    """A store of leases alone, with an empty journal; tells what is read, and waits where a test says so."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.owners: dict[int, UUID | None] = dict.fromkeys(SHARDS)
        self.fences = dict.fromkeys(SHARDS, 0)
        self.expires: dict[UUID, float] = {}
        self.reading: set[int] = set()
        self.positions: dict[int, int] = {}
        self.changed = asyncio.Condition()
        self.surveys = self.renewals = 0
        self.before_renewal: asyncio.Event | None = None
        self.asked_for_others: list[set[UUID]] = []
        # What the survey of one of the worker's loops waits for, before it looks and with its answer in hand.
        self.slow_loop = ""
        self.look, self.answer = asyncio.Event(), asyncio.Event()
        self.asked, self.looked = asyncio.Event(), asyncio.Event()
        self.answers_lost = 0
        self.rung: Collection[int] | None = None
        self.rows: dict[int, list[JournalRow]] = {}
        self.changes: dict[UUID, float] = {}
        self.endpoint_changes: dict[UUID, float] = {}
        self.health: dict[UUID, Health] = {}
        self.health_heard = 0
        self.breakers: list[BreakerRecord] = []
        self.lanes: tuple[LaneSummary, ...] = ()
        self.looks = 0
        self.status = EndpointStatus.PAUSED
        self.loads: list[str] = []
        self.taken_over: list[int] = []
        self.paused = False
        self.settled_to: dict[int, int] = {}
        # Rung for by the worker: its own reader, and whoever owns the shards.
        self.rung_here: list[int] = []
        self.rung_elsewhere: list[int] = []
        # What a read waits for with its rows in hand.
        self.reading_on = asyncio.Event()
        self.reading_on.set()
        # What a settle waits for.
        self.settling_on = asyncio.Event()
        self.settling_on.set()
        # What a takeover waits for with its answer in hand.
        self.taking_on = asyncio.Event()
        self.taking_on.set()
        # What the look for others waits for.
        self.others_known = asyncio.Event()
        self.others_known.set()

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(condition)

    async def register(self, node_id: UUID, *, pool: str, name: str, lease_s: float) -> float:
        self.expires[node_id] = self.clock.time + lease_s
        return self.clock.time

    async def renew(self, node_id: UUID, *, lease_s: float) -> float | None:
        if self.before_renewal is not None:
            await self.before_renewal.wait()
        if node_id not in self.expires:
            return None
        self.expires[node_id] = self.clock.time + lease_s
        self.renewals += 1
        await self.tell()
        return self.clock.time

    async def survey(self, pool: str) -> Survey:
        task = asyncio.current_task()
        slow = task is not None and task.get_name() == self.slow_loop
        if slow:
            self.asked.set()
            await self.look.wait()
        nodes = tuple(node for node, until in self.expires.items() if until > self.clock.time)
        found = Survey(nodes, {s: o if o in nodes else None for s, o in self.owners.items()}, self.clock.time)
        if slow:
            self.looked.set()
            await self.answer.wait()
        self.surveys += 1
        await self.tell()
        return found

    async def claim(self, node_id: UUID, *, pool: str, limit: int, lease_s: float) -> list[Claimed]:
        free = [
            shard
            for shard, owner in self.owners.items()
            if owner != node_id and (owner is None or self.expires.get(owner, 0.0) <= self.clock.time)
        ][:limit]
        for shard in free:
            self.owners[shard] = node_id
            self.fences[shard] += 1
        if self.answers_lost:
            self.answers_lost -= 1
            raise StoreUnavailable("the answer got lost")
        return [Claimed(shard, self.fences[shard]) for shard in free]

    async def release(self, node_id: UUID, shards: Mapping[int, int]) -> None:
        await self.disown(node_id, shards)

    async def disown(self, node_id: UUID, shards: Collection[int]) -> None:
        for shard in shards:
            if self.owners[shard] == node_id:
                self.owners[shard] = None

    async def leave(self, node_id: UUID) -> None:
        self.expires.pop(node_id, None)
        await self.disown(node_id, SHARDS)

    async def takeovers(self, shards: Mapping[int, int]) -> list[Takeover]:
        self.taken_over.append(len(shards))
        await self.tell()
        found = [
            Takeover(shard, fence, read_to=0, read_day=0, lanes=self.lanes if shard == 0 else ())
            for shard, fence in shards.items()
            if self.fences[shard] == fence
        ]
        await self.taking_on.wait()
        return found

    async def read(self, positions: Mapping[int, Any], *, rows_max: int, bytes_max: int) -> dict[int, Any]:
        self.reading = set(positions)
        self.positions = {shard: seq for shard, (seq, _) in positions.items()}
        found = {shard: self.rows.pop(shard) for shard in positions if shard in self.rows}
        await self.tell()
        await self.reading_on.wait()
        return found

    async def others_wait(self, positions: Mapping[int, Any], holders: Collection[UUID], *, rows_max: int) -> bool:
        self.asked_for_others.append(set(holders))
        await self.tell()
        await self.others_known.wait()
        return False

    async def fetch(self, fetch: Fetch, *, bytes_max: int) -> tuple[list[Any], bool, float]:
        self.loads.append("fetch")
        await self.tell()
        return [], False, 1e9

    async def settle(self, parts: Collection[Any]) -> None:
        await self.settling_on.wait()
        for part in parts:
            self.settled_to[part.shard] = part.progress.read_to
        await self.tell()

    async def settled(self, part: Any) -> bool:
        return part.shard in self.settled_to

    async def ping(self) -> float:
        return self.clock.time

    async def changed_tenants(self, since: float) -> dict[UUID, float]:
        self.looks += 1
        await self.tell()
        return dict(self.changes)

    async def changed_endpoints(self, tenant_ids: Collection[UUID], since: float) -> dict[UUID, float]:
        assert set(tenant_ids) == {TENANT}
        return dict(self.endpoint_changes)

    async def health_changes(self, since: float, *, limit: int) -> tuple[dict[UUID, Health], float | None]:
        self.health_heard += 1
        await self.tell()
        return dict(self.health), None

    async def write_health(self, changed: Mapping[UUID, Health]) -> None:
        self.health.update(changed)
        await self.tell()

    async def is_paused(self) -> bool:
        return self.paused

    async def lift_barriers(self) -> int:
        return 0

    async def load_tenants(self, tenant_ids: Collection[UUID]) -> list[Tenant]:
        self.loads.append("tenants")
        return [Tenant(tenant_id, (0,)) for tenant_id in tenant_ids]

    async def load_endpoints(self, endpoint_ids: Collection[UUID]) -> list[Endpoint]:
        self.loads.append("endpoints")
        self.loaded = list(endpoint_ids)
        return [Endpoint(each, TENANT, "https://a.example/", self.status) for each in endpoint_ids]

    async def save_breakers(self, records: Collection[BreakerRecord]) -> None:
        self.breakers += records
        await self.tell()

    async def load_breakers(self, tenant_ids: Collection[UUID], *, since: float | None) -> list[BreakerRecord]:
        return []

    async def wait_for_ring(self, timeout_s: float) -> Collection[int] | None:
        await asyncio.sleep(0.001)
        rung, self.rung = self.rung, None
        return rung

    def ring_here(self, shards: Collection[int]) -> None:
        self.rung_here += shards

    async def ring(self, shards: Collection[int] = ()) -> None:
        self.rung_elsewhere += shards
        await self.tell()


E1 = uuid7()
WELL = Outcome(None, 200)


class Nowhere:
    """Nothing is ever sent here."""

    def send(self, request: Any, done: Any) -> None:
        raise AssertionError(request)


class Hanging:
    """Requests under way until a test ends them, by their bodies."""

    def __init__(self, store: Leases) -> None:
        self._store = store
        self._done: dict[bytes, Callable[[Outcome], None]] = {}

    @property
    def under_way(self) -> set[bytes]:
        return set(self._done)

    def send(self, request: Request, done: Callable[[Outcome], None]) -> None:
        self._done[request.body] = done
        asyncio.get_running_loop().create_task(self._store.tell())

    def end(self, body: bytes, outcome: Outcome = WELL) -> None:
        self._done.pop(body)(outcome)


def new_worker(store: Leases, node_id: UUID, limits: Limits, sender: Any) -> Worker:
    return Worker(
        store=store, payloads=ObjectStore("memory:///"), sender=sender, clock=store.clock, node_id=node_id, name="w",  # type: ignore[arg-type]
        settings=WorkerSettings(lease_s=LEASE_S, renew_s=0.005, limits=limits), rng=Random(1),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def working(
    store: Leases, monkeypatch: pytest.MonkeyPatch, limits: Limits | None = None, sender: Any = None
) -> AsyncIterator[UUID]:
    node_id = uuid7()
    async with at_work(new_worker(store, node_id, limits or Limits(), sender or Nowhere()), store, monkeypatch):
        yield node_id


@contextlib.asynccontextmanager
async def at_work(worker: Worker, store: Leases, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    for pace in ("SURVEY_S", "SURVEY_EAGER_S", "IDLE_S_MAX", "STORE_RETRY_S", "CONFIG_S"):
        monkeypatch.setattr(module, pace, 0.005)
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(stop))
    try:
        await store.until(lambda: store.reading == SHARDS)
        yield worker
    finally:
        stop.set()
        await running


async def test_shards_nobody_took_while_the_lease_had_expired_are_worked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Leases(Clock())
    async with working(store, monkeypatch):
        store.before_renewal = asyncio.Event()
        store.slow_loop = "survey"
        await asyncio.wait_for(store.asked.wait(), PATIENCE_S)
        store.clock.time += LEASE_S + 1
        store.look.set()
        await asyncio.wait_for(store.looked.wait(), PATIENCE_S)
        # The survey saw no lease; a claim that follows it finds one.
        store.before_renewal.set()
        await store.until(lambda: max(store.expires.values()) > store.clock.time)
        store.answer.set()
        seen = store.surveys
        await store.until(lambda: store.surveys > seen + 3)
        store.reading = set()
        await store.until(lambda: store.reading == SHARDS)


async def test_f3_a_worker_that_renews_too_late_reads_nothing_before_it_knows_whose_its_shards_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It sent what others were sending, from its renewal to the answer of the survey behind it."""
    store = Leases(Clock())
    async with working(store, monkeypatch) as node_id:
        other = uuid7()
        store.look.set()
        store.slow_loop = "lease"
        # Half of them are the other's, but none is handed over before it is settled.
        store.settling_on.clear()
        store.owners[0] = other
        store.clock.time += LEASE_S + 1
        store.expires[other] = store.clock.time + LEASE_S
        await asyncio.wait_for(store.looked.wait(), PATIENCE_S)
        store.reading = set()
        looks = store.looks
        await store.until(lambda: store.looks > looks + 3)
        assert store.reading == set()
        store.answer.set()
        await store.until(lambda: store.reading == SHARDS - {0})
        # What it has lost it may have again like any other.
        store.settling_on.set()
        await store.leave(other)
        await store.until(lambda: store.owners[0] == node_id and store.reading == SHARDS)
        assert store.fences[0] == 2


async def test_shards_whose_claim_was_not_answered_are_freed_and_claimed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Leases(Clock())
    store.answers_lost = 1
    async with working(store, monkeypatch) as node_id:
        assert set(store.owners.values()) == {node_id}
        assert set(store.fences.values()) == {2}


async def test_shards_that_it_still_holds_stay_its_own_though_its_lease_runs_out_before_a_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between its look at who owns what and its claim of what is free: by the database's clock, which was set forward, or
    as the worker was frozen."""
    store = Leases(Clock())
    async with working(store, monkeypatch) as node_id:
        store.before_renewal = asyncio.Event()
        store.owners[max(SHARDS)] = uuid7()  # and whoever that is has died
        store.slow_loop = "survey"
        store.look.set()
        await asyncio.wait_for(store.looked.wait(), PATIENCE_S)
        store.expires[node_id] = 0.0
        store.answer.set()
        await store.until(lambda: store.owners[max(SHARDS)] == node_id)
        store.before_renewal.set()
        store.reading = set()
        await store.until(lambda: store.reading == SHARDS)
        assert set(store.owners.values()) == {node_id}
        assert store.fences == {shard: 1 + (shard == max(SHARDS)) for shard in store.fences}


async def test_f3_shards_whose_takeover_outlasts_the_lease_are_not_worked_for_before_it_is_known_whose_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The renewal asks whose the shards are that it works for, and knew nothing of those; another had taken one."""
    store = Leases(Clock())
    store.taking_on.clear()
    other, read = uuid7(), store.read

    async def read_ours(positions: Mapping[int, Any], *, rows_max: int, bytes_max: int) -> dict[int, Any]:
        assert not [shard for shard in positions if store.owners[shard] == other]
        return await read(positions, rows_max=rows_max, bytes_max=bytes_max)

    monkeypatch.setattr(store, "read", read_ours)

    async def meanwhile() -> None:
        await store.until(lambda: bool(store.taken_over))
        store.clock.time += LEASE_S + 1
        store.owners[0], store.expires[other] = other, store.clock.time + LEASE_S
        store.fences[0] += 1
        await store.until(lambda: min(store.expires.values()) > store.clock.time)
        seen = store.renewals
        await store.until(lambda: store.renewals > seen + 3)
        store.taking_on.set()
        await store.until(lambda: bool(store.reading))
        await store.leave(other)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(meanwhile())
        async with working(store, monkeypatch) as node_id:
            assert set(store.owners.values()) == {node_id}


async def test_many_shards_are_taken_over_in_a_few_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAKEOVERS_AT_ONCE", 3)
    store = Leases(Clock())
    async with working(store, monkeypatch):
        assert store.taken_over == [3, 1]


async def test_a_worker_whose_lease_was_removed_comes_back_for_its_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Leases(Clock())
    async with working(store, monkeypatch) as node_id:
        del store.expires[node_id]
        await store.until(lambda: set(store.fences.values()) == {2})
        store.reading = set()
        await store.until(lambda: store.reading == SHARDS)
        assert set(store.owners.values()) == {node_id}


def of(store: Leases, owner: UUID | None) -> set[int]:
    return {shard for shard, found in store.owners.items() if found == owner}


async def test_a_shard_is_handed_over_when_its_own_requests_have_ended_and_others_are_taken_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Leases(Clock())
    store.status = EndpointStatus.ENABLED
    sender = Hanging(store)
    async with working(store, monkeypatch, sender=sender) as node_id:
        store.rows = {shard: [structs.replace(row(shard, 1), payload=str(shard).encode())] for shard in (2, 3)}
        await store.until(lambda: sender.under_way == {b"2", b"3"})
        joined, third = uuid7(), uuid7()
        store.expires[joined] = store.expires[third] = store.clock.time + 9 * LEASE_S
        sender.end(b"3")
        await store.until(lambda: of(store, None) == {3})
        store.owners[3] = joined
        # The second one is still under way, and the others are gone: theirs are taken at once.
        del store.expires[joined], store.expires[third]
        await store.until(lambda: of(store, node_id) == SHARDS)
        assert sender.under_way == {b"2"}
        sender.end(b"2")
        await store.until(lambda: store.fences[2] == 2 and of(store, node_id) == SHARDS)


async def test_a_run_of_failures_that_another_worker_wrote_down_is_ended_by_a_success_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HEALTH_S", 0.0)
    store = Leases(Clock())
    store.status = EndpointStatus.ENABLED
    sender = Hanging(store)
    first, second = (structs.replace(row(2, n), payload=str(n).encode(), owed=[E1]) for n in (1, 2))
    async with working(store, monkeypatch, sender=sender):
        store.rows = {2: [first]}
        await store.until(lambda: sender.under_way == {b"1"})
        sender.end(b"1")
        store.health = {E1: Health(3, 900.0)}
        heard = store.health_heard
        await store.until(lambda: store.health_heard > heard + 1)
        assert store.health == {E1: Health(3, 900.0)}
        store.rows = {2: [second]}
        await store.until(lambda: sender.under_way == {b"2"})
        sender.end(b"2")
        await store.until(lambda: store.health == {E1: HEALTHY})


async def test_a_worker_that_is_told_to_stop_while_it_hands_over_stops_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Leases(Clock())
    store.status = EndpointStatus.ENABLED
    sender = Hanging(store)
    async with working(store, monkeypatch, sender=sender):
        store.rows = {3: [structs.replace(row(3, 1), payload=b"3")]}
        await store.until(lambda: sender.under_way == {b"3"})
        store.expires[uuid7()] = store.clock.time + LEASE_S
        await store.until(lambda: of(store, None) == {2})
        asyncio.get_running_loop().call_soon(sender.end, b"3")
    assert of(store, None) == SHARDS


async def test_a_worker_that_loses_a_shard_while_it_hands_back_hands_back_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last settle had hung until the stop's time was over; done again, it met another owner."""
    store, others = Leases(Clock()), {0}

    async def settle(parts: Collection[Any]) -> None:
        if lost := others & {part.shard for part in parts}:
            raise FenceLost(sorted(lost))
        store.settled_to.update((part.shard, part.progress.read_to) for part in parts)

    async def over_at_once(_worker: Worker, _timeout_s: float) -> None:
        return None

    monkeypatch.setattr(Worker, "_drain", over_at_once)
    store.settling_on.clear()
    async with working(store, monkeypatch) as node_id:
        monkeypatch.setattr(store, "settle", settle)
    assert set(store.settled_to) == SHARDS - others
    assert node_id not in store.expires


async def test_f41_a_clock_that_is_off_is_told_once_and_again_when_it_was_right_meanwhile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="hookpost")
    store = Leases(Clock())
    async with working(store, monkeypatch):
        for skew_s in (60.0, 0.0, -60.0):
            store.clock.skew_s, seen = skew_s, store.renewals
            await store.until(lambda seen=seen: store.renewals > seen + 4)  # type: ignore[misc]
    assert [record.hookpost_event for record in caplog.records] == ["clock_skew"] * 2  # type: ignore[attr-defined]


def row(shard: int, seq: int) -> JournalRow:
    return JournalRow(shard, seq, 9000, Kind.DELIVER, uuid7(), TENANT, "a.b", b"{}", [uuid7()], 0, 1000.0)


async def test_of_many_shards_those_are_read_that_were_rung_for_or_brought_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Leases(Clock())
    async with working(store, monkeypatch):
        monkeypatch.setattr(module, "READ_ALL_MAX", 3)
        store.rung = {2, 77}
        await store.until(lambda: store.reading == {2})
        store.rows = {1: [row(1, 1)]}
        store.rung = {1, 3}
        await store.until(lambda: store.reading == {1, 3})
        await store.until(lambda: store.reading == {1})
        store.rung = {77}
        looks = store.looks
        await store.until(lambda: store.rung is None and store.looks > looks + 1)
        assert store.reading == {1}, "those of others are none of ours"
        store.rung = ()
        await store.until(lambda: store.reading == SHARDS)


class Ringing(Leases):
    """What it was asked behind the rows that it brought, which two rings follow: one of others, one for the worker."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.asked_for: list[str] = []
        self.rings: list[Collection[int]] = []

    async def read(self, positions: Mapping[int, Any], *, rows_max: int, bytes_max: int) -> dict[int, Any]:
        self.asked_for.append("rows")
        if self.rows:
            self.asked_for, self.rings = [], [{77}, {2}]
        return await super().read(positions, rows_max=rows_max, bytes_max=bytes_max)

    async def wait_for_ring(self, timeout_s: float) -> Collection[int] | None:
        self.asked_for.append("a ring")
        return self.rings.pop(0) if self.rings else await super().wait_for_ring(timeout_s)


async def test_behind_rows_the_next_read_waits_for_a_ring_for_a_shard_of_the_workers_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Ringing(Clock())
    async with working(store, monkeypatch):
        store.rows = {1: [row(1, 1)]}
        await store.until(lambda: not store.rows and "rows" in store.asked_for)
        assert store.asked_for[:3] == ["a ring", "a ring", "rows"]


async def test_f36_now_and_then_all_shards_are_read_though_nobody_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Leases(Clock())
    async with working(store, monkeypatch):
        monkeypatch.setattr(module, "READ_ALL_MAX", 3)
        store.reading = set()
        looks = store.looks
        await store.until(lambda: store.looks > looks + 3)
        assert store.reading == set()
        store.clock.time += module.IDLE_S_MAX
        await store.until(lambda: store.reading == SHARDS)


async def test_a_worker_whose_memory_is_full_asks_whether_others_wait_behind_those_who_hold_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Leases(Clock())
    store.status = EndpointStatus.ENABLED
    async with working(store, monkeypatch, Limits(buffer=8, in_flight=0)):
        store.rows = {1: [row(1, seq) for seq in range(1, 9)]}
        owed = {endpoint_id for each in store.rows[1] for endpoint_id in each.owed}
        await store.until(lambda: not store.rows)
        assert store.asked_for_others == []
        store.clock.time += module.OTHERS_EVERY_S
        await store.until(lambda: bool(store.asked_for_others))
        assert store.asked_for_others == [owed]


async def test_a_shard_that_goes_while_it_is_asked_whether_others_wait_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ended the worker: found by a simulated world with bursts."""
    store = Leases(Clock())
    store.status = EndpointStatus.ENABLED
    worker = new_worker(store, uuid7(), Limits(buffer=10, in_flight=0), Nowhere())
    async with at_work(worker, store, monkeypatch):
        store.rows = {1: [row(1, seq) for seq in range(1, 9)]}
        await store.until(lambda: not store.rows)
        store.others_known.clear()
        store.clock.time += module.OTHERS_EVERY_S
        await store.until(lambda: bool(store.asked_for_others))
        worker._lose([3], "a test")
        store.reading = set()
        store.others_known.set()
        await store.until(lambda: bool(store.reading))
        assert store.reading >= SHARDS - {3}


async def test_a_change_that_was_taken_over_is_not_taken_over_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Leases(Clock())
    async with working(store, monkeypatch):
        store.rows = {0: [structs.replace(row(0, 1), owed=[E1])]}
        await store.until(lambda: store.loads == ["tenants", "endpoints"])
        for changed_at in (7.0, 8.0):
            store.loads.clear()
            store.endpoint_changes = {E1: changed_at, uuid7(): 7.0}
            store.changes = {TENANT: changed_at, uuid7(): 7.0}
            looks = store.looks
            await store.until(lambda seen=looks: store.looks > seen + 4)  # type: ignore[misc]
            assert sorted(store.loads) == ["endpoints", "tenants"]
            assert store.loaded == [E1]


async def test_of_a_tenant_that_has_changed_only_the_endpoints_that_have_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A breaker of one receiver, or one endpoint edited: the others, a hundred thousand maybe, are left alone."""
    store = Leases(Clock())
    async with working(store, monkeypatch):
        store.rows = {0: [structs.replace(row(0, 1), owed=[E1])]}
        await store.until(lambda: store.loads == ["tenants", "endpoints"])
        store.loads.clear()
        store.changes = {TENANT: 7.0}
        looks = store.looks
        await store.until(lambda: store.looks > looks + 4)
        assert store.loads == ["tenants"]


class Dated(Leases):
    """Answers with what has changed since then, by a clock of its own, as a database does; when it is let."""

    def __init__(self) -> None:
        super().__init__(Clock())
        self.back_s = 0.0
        self.answering = asyncio.Event()
        self.answering.set()
        self.waiting = asyncio.Event()
        self.health_since: list[float] = []
        self.unheard_after: float | None = None

    async def ping(self) -> float:
        self.waiting.set()
        await self.answering.wait()
        return self.clock.time - self.back_s

    async def changed_tenants(self, since: float) -> dict[UUID, float]:
        return {tenant: at for tenant, at in (await super().changed_tenants(since)).items() if at > since}

    async def changed_endpoints(self, tenant_ids: Collection[UUID], since: float) -> dict[UUID, float]:
        return {each: at for each, at in (await super().changed_endpoints(tenant_ids, since)).items() if at > since}

    async def health_changes(self, since: float, *, limit: int) -> tuple[dict[UUID, Health], float | None]:
        self.health_since.append(since)
        await super().health_changes(since, limit=limit)
        return {}, self.unheard_after


async def test_f29_what_was_changed_after_the_databases_clock_was_set_back_is_heard_by_who_looks_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As behind a failover to a machine whose clock is behind. The change bore an earlier time than the look before it, by
    more than looks overlap, and was never heard of: a paused endpoint that was resumed rested until the next change."""
    store = Dated()
    async with working(store, monkeypatch):
        store.rows = {0: [structs.replace(row(0, 1), owed=[E1])]}
        await store.until(lambda: store.loads == ["tenants", "endpoints"])
        looks = store.looks
        await store.until(lambda: store.looks > looks + 2)
        store.loads.clear()
        store.answering.clear()
        store.waiting.clear()
        await asyncio.wait_for(store.waiting.wait(), PATIENCE_S)
        store.back_s = 20.0
        store.changes = {TENANT: store.clock.time - 19.0}
        store.endpoint_changes = {E1: store.clock.time - 19.0}
        store.clock.time += 15.0
        store.answering.set()
        await store.until(lambda: sorted(store.loads) == ["endpoints", "tenants"])
        assert store.loaded == [E1]


async def test_f29_so_is_what_was_written_of_an_endpoints_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEALTH_S", 0.0)
    store = Dated()
    async with working(store, monkeypatch):
        heard = store.health_heard
        await store.until(lambda: store.health_heard > heard + 1)
        store.back_s = 20.0
        written_at = store.clock.time - store.back_s
        heard = store.health_heard
        await store.until(lambda: store.health_heard > heard + 1)
        assert store.health_since[-2] < written_at


async def test_of_more_health_than_can_be_heard_at_once_the_rest_is_heard_with_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HEALTH_S", 0.0)
    store = Dated()
    async with working(store, monkeypatch):
        store.unheard_after = 5.0
        await store.until(lambda: store.health_since[-1:] == [5.0])
        store.unheard_after = None
        heard = store.health_heard
        await store.until(lambda: store.health_heard > heard + 1)
        assert store.health_since[-1] > 5.0


async def test_a_breaker_that_opened_is_told_though_a_settle_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told behind the next settle, which a store in trouble does not end; and when the shards were lost and came
    back meanwhile, it was forgotten."""
    store = Leases(Clock())
    store.status = EndpointStatus.ENABLED
    sender = Hanging(store)
    async with working(store, monkeypatch, sender=sender):
        store.settling_on.clear()
        names = [str(seq).encode() for seq in range(1, 6)]
        store.rows = {2: [structs.replace(row(2, int(name)), payload=name, owed=[E1]) for name in names]}
        await store.until(lambda: sender.under_way == set(names))
        for name in names:
            sender.end(name, Outcome(ErrorCode.CONNECT_REFUSED))
        await store.until(lambda: [each.state for each in store.breakers] == [BreakerState.OPEN])
        store.settling_on.set()


async def test_what_is_missing_is_loaded_at_once_and_what_has_changed_looked_for_in_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Leases(Clock())
    async with working(store, monkeypatch):
        monkeypatch.setattr(module, "CONFIG_S", 1e6)
        looks = store.looks
        await store.until(lambda: store.looks > looks)
        looks = store.looks
        for seq in range(1, 4):
            store.loads.clear()
            store.rows = {0: [structs.replace(row(0, seq), owed=[uuid7()])]}
            await store.until(lambda: store.loads == ["tenants", "endpoints"])
        assert store.looks == looks


async def test_a_notice_in_the_journal_has_the_configuration_loaded_before_the_rows_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Leases(Clock())
    async with working(store, monkeypatch):
        store.rows = {0: [row(0, 1)]}
        await store.until(lambda: store.loads == ["tenants", "endpoints"])
        store.loads.clear()
        notice = structs.replace(row(0, 2), kind=Kind.CONTROL, type=RECONFIGURED, owed=[])
        store.rows = {0: [notice, structs.replace(row(0, 3), owed=[])]}
        await store.until(lambda: not store.rows and store.positions[0] == 3)
        assert store.loads == ["tenants", "endpoints"]


async def test_a_notice_of_a_tenant_of_which_nothing_is_known_has_nothing_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Leases(Clock())
    async with working(store, monkeypatch):
        store.rows = {0: [structs.replace(row(0, 1), kind=Kind.CONTROL, type=RECONFIGURED, owed=[])]}
        await store.until(lambda: not store.rows and store.positions[0] == 1)
        assert store.loads == []


@pytest.mark.parametrize(("shards", "pace_s"), [(0, 0.01), (16, 0.01), (400, 0.02), (1000, 0.05), (9000, 0.05)])
def test_the_more_shards_a_settle_touched_the_longer_the_next_one_gathers(
    shards: int, pace_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE_PACE_S", 0.01)
    assert module.settle_pace_s(shards) == pytest.approx(pace_s)


def test_the_operator_hears_of_an_outage_of_ours_and_of_its_end(caplog: pytest.LogCaptureFixture) -> None:
    worker = new_worker(Leases(Clock()), uuid7(), Limits(), Nowhere())
    outages = telemetry.counters["egress_outages"]
    with caplog.at_level(logging.INFO, "hookpost"):
        worker._tell_egress(1000.0, 1000.0)
        worker._tell_egress(None, 1090.0)
    assert [record.hookpost_event for record in caplog.records] == ["egress_down", "egress_back"]  # type: ignore[attr-defined]
    assert "back after 90" in caplog.text
    assert telemetry.counters["egress_outages"] == outages + 1


async def test_an_endpoint_whose_deliveries_wait_is_loaded_when_they_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Leases(Clock())
    store.status = EndpointStatus.ENABLED
    store.lanes = (LaneSummary(uuid7(), TENANT, 1, store.clock.time + 60, store.clock.time + 90),)
    async with working(store, monkeypatch):
        looks = store.looks
        await store.until(lambda: store.looks > looks + 3)
        assert store.loads == []
        store.clock.time += 60
        await store.until(lambda: store.loads == ["tenants", "endpoints", "fetch"])


async def test_a_paused_platform_reads_nothing_until_the_operator_says_go(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Leases(Clock())
    async with working(store, monkeypatch):
        store.paused = True
        looks = store.looks
        await store.until(lambda: store.looks > looks + 3)
        store.rows = {0: [row(0, 1)]}
        looks = store.looks
        await store.until(lambda: store.looks > looks + 3)
        assert store.rows, "what is posted meanwhile waits in the journal"
        store.paused = False
        await store.until(lambda: not store.rows)


# ---- what is told ----------------------------------------------------------------------------------------------------


class Telling(Leases):
    """With endpoints that take what they are sent."""

    def __init__(self) -> None:
        super().__init__(Clock())
        self.status = EndpointStatus.ENABLED
        self.sender = Hanging(self)

    @contextlib.asynccontextmanager
    async def told(self, monkeypatch: pytest.MonkeyPatch, limits: Limits | None = None) -> AsyncIterator[Worker]:
        """A worker that is told rows."""
        worker = new_worker(self, uuid7(), limits or Limits(), self.sender)
        async with at_work(worker, self, monkeypatch):
            yield worker
            for body in self.sender.under_way:
                self.sender.end(body)

    async def sent(self, *bodies: str) -> None:
        await self.until(lambda: self.sender.under_way == {body.encode() for body in bodies})


def told(shard: int, *seqs: int) -> list[JournalRow]:
    return [structs.replace(row(shard, seq), payload=f"{shard}.{seq}".encode()) for seq in seqs]


async def test_told_rows_that_follow_are_sent_and_settled_and_need_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Telling()
    counted = telemetry.counters["rows_told"]
    async with store.told(monkeypatch) as worker:
        worker.take_told(told(1, 1, 2))
        worker.take_told(told(1, 3))
        await store.sent("1.1", "1.2", "1.3")
        assert telemetry.counters["rows_told"] == counted + 3
        await store.until(lambda: store.positions[1] == 3)
        await store.until(lambda: store.settled_to.get(1) == 3)
        assert store.rung_here == []


async def test_what_is_told_twice_or_was_read_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Telling()
    async with store.told(monkeypatch) as worker:
        store.rows = {1: told(1, 1, 2)}
        await store.sent("1.1", "1.2")
        again = telemetry.counters["rows_told"]
        worker.take_told(told(1, 1))
        worker.take_told(told(1, 2, 3))
        worker.take_told(told(1, 2, 3))
        await store.sent("1.1", "1.2", "1.3")
        assert telemetry.counters["rows_told"] == again + 1
        assert store.rung_here == []


async def test_while_rows_are_told_the_next_read_waits_for_a_ring_whatever_the_last_one_brought(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flood is faster in the journal than on its way: each read would bring rows, and the next one hurry."""
    store = Telling()
    waits: list[float] = []
    ring = store.wait_for_ring

    async def waiting(timeout_s: float) -> Collection[int] | None:
        waits.append(timeout_s)
        return await ring(timeout_s)

    async def waits_behind_row(shard: int, seq: int) -> list[float]:
        waits.clear()
        store.rows = {shard: told(shard, seq)}
        await store.until(lambda: store.positions[shard] == seq)
        return waits

    monkeypatch.setattr(store, "wait_for_ring", waiting)
    async with store.told(monkeypatch) as worker:
        worker.take_told(told(1, 1))
        assert module.READ_WAIT_S not in await waits_behind_row(1, 2)
        assert module.READ_WAIT_S in await waits_behind_row(2, 1), "of another shard nothing was told"
        store.clock.time += module.TOLD_S
        assert module.READ_WAIT_S in await waits_behind_row(1, 3)


async def test_behind_a_gap_nothing_is_taken_and_the_journal_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Telling()
    async with store.told(monkeypatch) as worker:
        worker.take_told(told(1, 2))
        assert store.rung_here == [1]
        assert worker.figures()["buffered_deliveries"] == 0
        store.rows = {1: told(1, 1, 2)}
        await store.sent("1.1", "1.2")
        worker.take_told(told(1, 3))
        await store.sent("1.1", "1.2", "1.3")


async def test_what_is_told_while_a_read_has_it_in_hand_is_sent_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Telling()
    caplog.set_level("WARNING", logger="hookpost")
    async with store.told(monkeypatch) as worker:
        store.reading_on.clear()
        store.rows = {1: told(1, 1, 2, 3)}
        await store.until(lambda: not store.rows)
        worker.take_told(told(1, 1, 2))
        await store.sent("1.1", "1.2")
        store.reading_on.set()
        await store.sent("1.1", "1.2", "1.3")
    assert not caplog.records, "no gap"


@pytest.mark.parametrize("by", ["a read", "an API"])
async def test_what_was_appended_behind_the_end_of_the_lease_is_not_sent_before_it_is_known_whose_the_shard_is(
    monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The database's clock was set forward, and the worker has not heard of it: by that clock its lease has ended."""
    store, other = Telling(), uuid7()
    [late] = (structs.replace(row, created_at=store.clock.time + LEASE_S + 1) for row in told(1, 2))
    async with store.told(monkeypatch) as worker:
        worker.take_told(told(1, 1))
        await store.sent("1.1")
        store.before_renewal = asyncio.Event()
        # The look at who owns what, which would tell as well, is not to come first.
        store.slow_loop = "survey"
        await asyncio.wait_for(store.asked.wait(), PATIENCE_S)
        store.owners[1], store.expires[other] = other, store.clock.time + 3 * LEASE_S
        if by == "a read":
            store.rows = {1: [late]}
            await store.until(lambda: not store.rows)
        else:
            worker.take_told([late])
        looks = store.looks
        await store.until(lambda: store.looks > looks + 3)
        assert store.sender.under_way == {b"1.1"}
        store.before_renewal.set()
        await store.until(lambda: store.reading == SHARDS - {1})
        assert store.sender.under_way == {b"1.1"}


async def test_what_was_appended_before_the_clock_was_set_back_costs_one_renewal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Telling()
    ahead = [structs.replace(row, created_at=store.clock.time + 3 * LEASE_S) for row in told(1, 1, 2, 3)]
    async with store.told(monkeypatch) as worker:
        store.rows = {1: ahead[:1]}
        await store.sent("1.1")
        store.rows = {2: told(2, 1)}
        await store.sent("1.1", "2.1")
        seen = store.renewals
        await store.until(lambda: store.renewals > seen + 1)
        store.before_renewal = asyncio.Event()
        worker.take_told(ahead[1:2])
        store.rows = {1: ahead[2:]}
        await store.sent("1.1", "1.2", "1.3", "2.1")
        store.before_renewal.set()


async def test_what_is_told_while_the_notice_before_it_is_heeded_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read has brought the notice, and the configuration is being loaded: rows behind it are not handled by the old."""
    store = Telling()
    heeding, go_on = asyncio.Event(), asyncio.Event()
    async with store.told(monkeypatch) as worker:
        worker.take_told(told(1, 1))
        await store.sent("1.1")
        load = store.load_tenants

        async def slow(tenant_ids: Collection[UUID]) -> list[Tenant]:
            heeding.set()
            await go_on.wait()
            return await load(tenant_ids)

        monkeypatch.setattr(store, "load_tenants", slow)
        store.rows = {1: [structs.replace(row(1, 2), kind=Kind.CONTROL, type=RECONFIGURED, owed=[])]}
        await asyncio.wait_for(heeding.wait(), PATIENCE_S)
        worker.take_told(told(1, 3))
        assert store.rung_here == [1]
        go_on.set()
        await store.until(lambda: store.positions[1] == 2)
        worker.take_told(told(1, 3))
        await store.sent("1.1", "1.3")


async def test_rows_of_a_shard_of_others_are_rung_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever told them has not heard yet that it is another's, and rings for nobody."""
    store = Telling()
    async with store.told(monkeypatch) as worker:
        worker.take_told(told(77, 1))
        worker.take_told(told(77, 2))
        worker.take_told(told(78, 1))
        await store.until(lambda: sorted(store.rung_elsewhere) == [77, 78])
        assert store.rung_here == []


async def test_what_memory_has_no_room_for_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Telling()
    wide = structs.replace(row(0, 1), owed=[uuid7() for _ in range(13)])
    long = structs.replace(row(2, 1), payload=bytes(1100))
    async with store.told(monkeypatch, Limits(buffer=12, in_flight=0, buffer_bytes=1000)) as worker:
        worker.take_told([wide])
        worker.take_told([long])
        assert store.rung_here == [0, 2]
        worker.take_told(told(1, 1, 2))
        assert worker.figures()["buffered_deliveries"] == 2
        assert store.rung_here == [0, 2]


async def test_while_memory_fills_what_is_told_does_not_pass_by_the_look_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Telling()
    async with store.told(monkeypatch, Limits(buffer=12, in_flight=0)) as worker:
        await store.until(lambda: worker._others_at > store.clock.time)
        worker.take_told(told(1, *range(1, 10)))
        assert worker.figures()["buffered_deliveries"] == 9
        assert store.rung_here == [], "it has looked a moment ago"
        store.clock.time += module.OTHERS_EVERY_S
        worker.take_told(told(1, 10))
        assert store.rung_here == [1]
        assert worker.figures()["buffered_deliveries"] == 10


@pytest.mark.parametrize("why", ["paused", "no lease", "stopping", "gap"])
async def test_who_may_not_send_takes_nothing_and_reads_as_soon_as_it_may(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Telling()
    async with store.told(monkeypatch) as worker:
        match why:
            case "paused":
                store.paused = True
                await store.until(lambda: worker._paused)
            case "no lease":
                store.before_renewal = asyncio.Event()
                store.clock.time += LEASE_S + 1
            case "gap":
                store.rows = {1: told(1, 7)}
                await store.until(lambda: 1 in worker._gaps)
            case _:
                worker._stopping = True
        worker.take_told(told(1, 1))
        assert store.rung_here == [1]
        assert worker.figures()["buffered_deliveries"] == 0
        if store.before_renewal is not None:
            store.before_renewal.set()


async def test_what_was_told_and_not_settled_before_a_shard_went_is_the_next_owners(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Telling()
    async with store.told(monkeypatch) as worker:
        worker.take_told(told(3, 1))
        await store.sent("3.1")
        worker._lose([3], "a test")
        worker.take_told(told(3, 2))
        assert 3 not in worker.fences
        assert store.rung_here == []
        await store.until(lambda: store.rung_elsewhere == [3])
