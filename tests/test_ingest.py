"""Group commit (I2): nothing acknowledged that is not stored, a poisoned event fails alone, memory stays bounded."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import wraps
from random import Random
from typing import Any, cast
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost import ingest as module
from hookpost import intake
from hookpost.ingest import Ingest, IngestLimits, Overloaded, RateLimited, UnknownTenant, request_hash
from hookpost.intake import Refused, Submission, UnknownEndpoint
from hookpost.policy.looks import Since
from hookpost.storage.contract import (
    ApiKey,
    Appended,
    DataRejected,
    EndpointFilter,
    NewEvent,
    Place,
    SharedDemand,
    Stale,
    StoreUnavailable,
    TenantRoutes,
    Verdict,
)
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres.store import PostgresStore
from hookpost.storage.postgres.vault import Vault
from tests.conftest import KEYS
from tests.patience import PATIENCE_S
from tests.sim.system.loop import Loop
from tests.storage.driver import new_endpoint, new_tenant, until

POISON = b"poison"
PATIENT = IngestLimits(timeout_s=PATIENCE_S)


class ScriptedStore:
    """A store in memory that does as a test says: appends wait at the gate, and may be given a scripted end."""

    def __init__(self, *, shards: Sequence[int] = (0,)) -> None:
        self.tenant = uuid7()
        self.shards = tuple(shards)
        self.version = 1
        self.endpoints: list[EndpointFilter] = [EndpointFilter(uuid7(), ("*",), 64)]
        # The versions in which endpoints changed and went, where that was not before the first.
        self.routed_in: dict[UUID, int] = {}
        self.gone_in: dict[UUID, int] = {}
        self.endpoints_loaded = 0
        # By the database's clock.
        self.time = self.changed_at = 1.8e9
        self.exists = True
        self.limit: float | None = None
        self.told: dict[UUID, dict[UUID, float]] = {}
        self.others: dict[UUID, float] = {}
        self.processes = 1
        self.lot_shards = 8
        self.stored: list[NewEvent] = []
        self.calls: list[tuple[int | tuple[int, ...], list[NewEvent]]] = []
        self.loads = 0
        self.rings = 0
        self.rung: set[int] = set()
        self.homes: dict[UUID, tuple[int, ...]] = {}
        self.places_known = False
        self.under_way: dict[int, int] = {}
        self.open = asyncio.Event()
        self.open.set()
        self.loading = asyncio.Event()
        self.loading.set()
        self.ends: list[Callable[[], Awaitable[None]]] = []

    async def append(
        self,
        shard: int | Sequence[int],
        events: Sequence[NewEvent],
        versions: Mapping[UUID, int],
        placed: Callable[[Place], None] | None = None,
    ) -> list[Appended] | Stale:
        shards = {shard} if isinstance(shard, int) else set(shard)
        assert not any(map(self.under_way.get, shards)), "two appends to one shard at once"
        assert len(shards) <= self.lot_shards
        self.under_way.update(dict.fromkeys(shards, 1))
        self.calls.append((shard if isinstance(shard, int) else tuple(shard), list(events)))
        try:
            await self.open.wait()
            if self.ends:
                await self.ends.pop(0)()
        finally:
            self.under_way.update(dict.fromkeys(shards, 0))
        stale = frozenset(t for t, version in versions.items() if version != self.version or not self.exists)
        if stale:
            return Stale(stale)
        if any(event.payload == POISON for event in events):
            raise DataRejected("poison")
        self.stored += events
        for each in sorted(shards) if placed is not None and self.places_known else ():
            placed(place_in(each))
        return [Appended(Verdict.NEW, event.event_id, len(event.owed)) for event in events]

    async def load_routes(self, tenant_id: UUID, *, since: int | None = None) -> TenantRoutes | None:
        self.loads += 1
        homes = self.homes.get(tenant_id, self.shards)
        told = tuple(e for e in self.endpoints if since is None or self.routed_in.get(e.endpoint_id, 0) >= since)
        gone = frozenset(() if since is None else (e for e, version in self.gone_in.items() if version >= since))
        self.endpoints_loaded += len(told)
        routes = TenantRoutes(tenant_id, self.version, homes, 512, told, self.limit, since=since, gone=gone)
        exists = self.exists
        await self.loading.wait()
        return routes if exists else None

    async def share_demand(
        self, node_id: UUID, demands: Mapping[UUID, float], *, lease_s: float, since: Since
    ) -> SharedDemand:
        self.told[node_id] = dict(demands)
        changed = {self.tenant: self.version} if self.changed_at > since.by(self.time) else {}
        return SharedDemand(self.processes, self.others, changed, self.time)

    async def leave_ingest(self, node_id: UUID) -> None:
        del self.told[node_id]

    async def find_key(self, key_id: str) -> ApiKey | None:
        return None

    async def ring(self, shards: Collection[int] = ()) -> None:
        self.rings += 1
        self.rung |= set(shards)

    def set_limit(self, limit: float | None) -> None:
        self.limit = limit
        self.version += 1
        self.changed_at = self.time

    def change_filter(self, endpoint: EndpointFilter, events: tuple[str, ...]) -> None:
        self.endpoints[self.endpoints.index(endpoint)] = replace(endpoint, events=events)
        self.version += 1
        self.routed_in[endpoint.endpoint_id] = self.version

    def delete_endpoint(self, endpoint_id: UUID) -> None:
        self.endpoints = [each for each in self.endpoints if each.endpoint_id != endpoint_id]
        self.version += 1
        self.gone_in[endpoint_id] = self.version

    def add_endpoint(self) -> UUID:
        endpoint = EndpointFilter(uuid7(), ("*",), 64)
        self.endpoints.append(endpoint)
        self.version += 1
        self.routed_in[endpoint.endpoint_id] = self.version
        return endpoint.endpoint_id


def place_in(shard: int) -> Place:
    return Place(shard, 6, 9000, 1.8e9)


def end_in(error: Exception) -> Callable[[], Awaitable[None]]:
    async def end() -> None:
        raise error

    return end


def make(store: Any, limits: IngestLimits = PATIENT) -> Ingest:
    return Ingest(store, ObjectStore("memory:///"), now=time.time, limits=limits)


def submissions(count: int, **values: Any) -> list[Submission]:
    return [Submission("a.b", **{"payload": b"{}", **values}) for _ in range(count)]


def in_virtual_time(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """What has to come in time does, however long the machine takes: time passes only while nobody has anything to do."""

    @wraps(test)
    def run() -> None:
        loop = Loop(Random(1))
        try:
            loop.run_until_complete(loop.spawn(loop.world, test()))
        finally:
            loop.discard()

    return run


async def spin(happened: Callable[[], bool]) -> None:
    async def look() -> bool:
        return happened()

    await until(look)


async def posted(ingest: Ingest, store: ScriptedStore, count: int, **values: Any) -> list[asyncio.Task[Any]]:
    """So many requests of one event each, under way."""
    tasks = [asyncio.create_task(ingest.submit(store.tenant, submissions(1, **values))) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def as_many_as_at_once(ingest: Ingest, store: ScriptedStore, count: int) -> list[asyncio.Task[Any]]:
    """As many appends of so many events each as one queue may have under way."""
    tasks: list[asyncio.Task[Any]] = []
    for appends in range(1, intake.QUEUE_APPENDS_MAX + 1):
        tasks += await posted(ingest, store, count)
        await spin(lambda appends=appends: len(store.calls) == appends)
    return tasks


# ---- group commit ----------------------------------------------------------------------------------------------------


async def test_while_one_append_is_under_way_the_next_group_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScriptedStore()
    store.open.clear()
    ingest = make(store)
    first = await posted(ingest, store, 1)
    await spin(lambda: len(store.calls) == 1)
    more = await posted(ingest, store, 40)
    assert ingest.queued == (41, 82)
    store.open.set()
    answers = await asyncio.gather(*first, *more)
    assert [len(events) for _, events in store.calls] == [1, 40]
    assert [answer[0].event_id for answer in answers] == [event.event_id for event in store.stored]
    assert ingest.queued == (0, 0)


async def test_an_event_does_not_wait_behind_another_tenants_flood() -> None:
    store = ScriptedStore()
    store.open.clear()
    ingest = make(store)
    first = await posted(ingest, store, 1)
    await spin(lambda: len(store.calls) == 1)
    flood = asyncio.create_task(ingest.submit(store.tenant, submissions(1000)))
    await spin(lambda: ingest.queued[0] == 1001)
    other = uuid7()
    mine = asyncio.create_task(ingest.submit(other, submissions(2)))
    await spin(lambda: ingest.queued[0] == 1003)
    await asyncio.sleep(0)
    store.open.set()
    await asyncio.gather(*first, flood, mine)
    groups = [[event.tenant_id for event in events] for _, events in store.calls]
    assert [len(group) for group in groups] == [1, 200, 200, 200, 200, 200, 2]
    assert groups[1].count(other) == 2, "in the next group, whoever came before"
    assert [event.event_id for event in store.stored if event.tenant_id != other] == [
        answer.event_id for answer in [*first[0].result(), *flood.result()]
    ], "each tenant's events in their order"


def test_groups_are_smaller_for_a_while_where_a_flood_has_company() -> None:
    """Who comes behind a group waits until it is stored, so it is not only the group that has others in it."""
    queue, ticket = intake.Queue((0,)), intake.Ticket(9999, 9999.0, lambda end: None)
    flooding, other = uuid7(), uuid7()

    def post(tenant: UUID, count: int) -> None:
        for _ in range(count):
            event = NewEvent(uuid7(), tenant, "a", b"{}", ())
            submission = Submission("a", b"{}")
            queue.events.append(intake.Pending(ticket, 0, submission, 0, cast(intake.PostRoutes, None), event))

    def take(now: float) -> list[int]:
        lot = intake.Lot()
        queue.take(lot, 0, now=now, timeout_s=3.0)
        assert not lot.late
        return [sum(pending.event.tenant_id == tenant for pending in lot.events) for tenant in (flooding, other)]

    post(flooding, 2500)
    assert take(10.0) == [500, 0]
    post(other, 3)
    assert take(11.0) == [197, 3]
    assert take(11.5) == [200, 0]
    assert take(11.0 + intake.SHARED_S) == [500, 0]


async def test_groups_are_bounded_in_events_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "GROUP_EVENTS_MAX", 4)
    monkeypatch.setattr(intake, "GROUP_BYTES_MAX", 10)
    store = ScriptedStore()
    store.endpoints = []
    ingest = make(store)
    await ingest.submit(store.tenant, [Submission("a", b"x" * size) for size in (1, 1, 1, 1, 9, 9, 9, 50, 1)])
    assert [[len(event.payload) for event in events] for _, events in store.calls] == [
        [1, 1, 1, 1], [9, 9], [9, 50], [1],
    ]  # fmt: skip
    assert ingest.queued == (0, 0)


async def test_wide_fan_outs_make_smaller_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "GROUP_BYTES_MAX", 2 * 100 * intake.OWED_BYTES)
    store = ScriptedStore()
    store.endpoints = [EndpointFilter(uuid7(), ("*",), 64) for _ in range(100)]
    await make(store).submit(store.tenant, submissions(6, payload=b""))
    assert [len(events) for _, events in store.calls] == [2, 2, 2]


async def test_groups_go_to_the_home_shards_side_by_side_and_in_turn() -> None:
    store = ScriptedStore(shards=range(6))
    store.open.clear()
    ingest = make(store)
    tasks = await as_many_as_at_once(ingest, store, 5)
    for _ in range(8):
        tasks += await posted(ingest, store, 5)
    store.open.set()
    await asyncio.gather(*tasks)
    for _ in range(3):
        await ingest.submit(store.tenant, submissions(5))
    shards = [shard for shard, _ in store.calls]
    assert shards == list(range(6)), "each shard had its turn before any had a second"
    assert len(store.stored) == 65


async def test_an_event_for_an_endpoint_with_a_small_cap_goes_to_the_first_home_shard() -> None:
    store = ScriptedStore(shards=(3, 1, 2))
    store.endpoints = [EndpointFilter(uuid7(), ("pinned",), 2), EndpointFilter(uuid7(), ("free",), 64)]
    ingest = make(store)
    await ingest.submit(store.tenant, [Submission("pinned", b"{}") for _ in range(40)])
    assert {shard for shard, _ in store.calls} == {3}
    for _ in range(3):
        await ingest.submit(store.tenant, [Submission("free", b"{}")])
    assert {shard for shard, _ in store.calls} == {1, 2, 3}


@pytest.mark.parametrize(("taken", "gathers_s"), [(0, 0.0), (1, 0.001), (5, 0.005), (8, 0.008), (500, 0.008)])
def test_the_more_events_an_append_took_the_longer_the_next_one_gathers(taken: int, gathers_s: float) -> None:
    assert intake.gather_s(taken) == pytest.approx(gathers_s)


async def test_events_that_gather_go_together_whatever_shard_takes_them() -> None:
    store = ScriptedStore(shards=range(8))
    store.open.clear()
    ingest = make(store)
    tasks = await as_many_as_at_once(ingest, store, 1)
    tasks += await posted(ingest, store, 100)
    store.open.set()
    await asyncio.gather(*tasks)
    assert [len(group) for _, group in store.calls] == [1, 1, 100]


# ---- lots: several queues in one append ------------------------------------------------------------------------------


def neighbours(count: int) -> tuple[ScriptedStore, list[UUID]]:
    """A store, and tenants each of whom is at home in a shard of its own."""
    store, tenants = ScriptedStore(shards=range(count)), [uuid7() for _ in range(count)]
    store.homes = {tenant: (shard,) for shard, tenant in enumerate(tenants)}
    return store, tenants


@asynccontextmanager
async def gathering(ingest: Ingest, events: int) -> AsyncIterator[None]:
    """No append begins before the block has ended and so many events more have come."""
    queued = ingest.queued[0]
    ingest._due = asyncio.get_running_loop().time() + 3600.0
    yield
    await spin(lambda: ingest.queued[0] == queued + events)
    if ingest._timer is not None:
        ingest._timer.cancel()
    ingest._due = 0.0
    ingest._start_all()


def by_shard(call: tuple[int | tuple[int, ...], list[NewEvent]]) -> dict[int, list[UUID]]:
    """Whose events an append put where."""
    shards, events = call
    found: dict[int, list[UUID]] = {}
    for shard, event in zip([shards] * len(events) if isinstance(shards, int) else shards, events, strict=True):
        found.setdefault(shard, []).append(event.tenant_id)
    return found


def submitted(ingest: Ingest, events: dict[UUID, int]) -> list[asyncio.Task[Any]]:
    """Requests of so many events, under way, one for each tenant."""
    return [asyncio.create_task(ingest.submit(tenant, submissions(count))) for tenant, count in events.items()]


async def test_small_groups_of_many_shards_share_an_append() -> None:
    store, tenants = neighbours(8)
    ingest = make(store)
    async with gathering(ingest, 24):
        tasks = submitted(ingest, dict.fromkeys(tenants, 3))
    answers = await asyncio.gather(*tasks)
    assert [by_shard(call) for call in store.calls] == [{n: [tenants[n]] * 3 for n in range(8)}]
    assert [answer.event_id for each in answers for answer in each] == [event.event_id for event in store.stored]
    assert ingest.queued == (0, 0)


async def test_a_large_group_has_an_append_of_its_own() -> None:
    """Small ones need not wait for it."""
    store, tenants = neighbours(4)
    ingest = make(store)
    async with gathering(ingest, 6 + intake.LOT_EVENTS):
        tasks = submitted(ingest, dict(zip(tenants, (2, intake.LOT_EVENTS, 3, 1), strict=True)))
    await asyncio.gather(*tasks)
    assert [{shard: len(events) for shard, events in by_shard(call).items()} for call in store.calls] == [
        {0: 2, 2: 3, 3: 1}, {1: intake.LOT_EVENTS},
    ]  # fmt: skip


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_an_append_goes_to_no_more_shards_than_the_store_can(most: int) -> None:
    store, tenants = neighbours(7)
    store.lot_shards = most
    ingest = make(store)
    async with gathering(ingest, 7):
        tasks = submitted(ingest, dict.fromkeys(tenants, 1))
    await asyncio.gather(*tasks)
    sizes = [len(by_shard(call)) for call in store.calls]
    assert sizes == [most] * (7 // most) + ([7 % most] if 7 % most else [])


async def test_whose_shard_is_taken_waits_and_nobody_waits_for_it() -> None:
    store, tenants = neighbours(3)
    store.open.clear()
    ingest = make(store)
    tasks = submitted(ingest, {tenants[1]: 1})
    await spin(lambda: len(store.calls) == 1)
    async with gathering(ingest, 3):
        tasks += submitted(ingest, dict.fromkeys(tenants, 1))
    await spin(lambda: len(store.calls) == 2)
    assert by_shard(store.calls[1]) == {0: [tenants[0]], 2: [tenants[2]]}
    store.open.set()
    await asyncio.gather(*tasks)
    assert by_shard(store.calls[2]) == {1: [tenants[1]]}


async def test_who_may_go_to_several_shards_goes_where_the_append_goes_anyway() -> None:
    store, tenants = neighbours(4)
    store.homes[tenants[3]] = (3, 2, 1)
    ingest = make(store)
    async with gathering(ingest, 3):
        tasks = submitted(ingest, {tenants[2]: 2, tenants[3]: 1})
    await asyncio.gather(*tasks)
    assert by_shard(store.calls[0]) == {2: [tenants[2], tenants[2], tenants[3]]}


async def test_a_lot_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "GROUP_BYTES_MAX", 10)
    store, tenants = neighbours(4)
    store.endpoints = []
    ingest = make(store)
    async with gathering(ingest, 4):
        tasks = [asyncio.create_task(ingest.submit(each, [Submission("a", b"x" * 6)])) for each in tenants]
    await asyncio.gather(*tasks)
    assert [len(events) for _, events in store.calls] == [2, 2]


async def test_a_poisoned_event_of_a_lot_fails_alone() -> None:
    store, tenants = neighbours(5)
    ingest = make(store)
    payloads = [POISON if n == 2 else b"%d" % n for n in range(5)]
    async with gathering(ingest, 5):
        tasks = [
            asyncio.create_task(ingest.submit(tenant, [Submission("a", payload)]))
            for tenant, payload in zip(tenants, payloads, strict=True)
        ]
    answers = [answer for [answer] in await asyncio.gather(*tasks)]
    assert [isinstance(answer, Refused) for answer in answers] == [False, False, True, False, False]
    assert {event.tenant_id: event.payload for event in store.stored} == {
        tenant: payload for tenant, payload in zip(tenants, payloads, strict=True) if payload != POISON
    }
    assert ingest.queued == (0, 0)


def test_a_lot_is_no_larger_than_a_slow_store_bears() -> None:
    """Whose appends take too long makes the lots it is in smaller, too."""
    line = deque(intake.Queue((shard,)) for shard in range(5))
    ticket = intake.Ticket(99, 9999.0, lambda end: None)
    for queue in line:
        event = NewEvent(uuid7(), uuid7(), "a", b"{}", ())
        queue.events.append(intake.Pending(ticket, 0, Submission("a", b"{}"), 0, cast(intake.PostRoutes, None), event))
    line[2].learn(2.0, timeout_s=3.0)
    assert line[2].group_max == intake.GROUP_EVENTS_MAX // 2
    line[2].group_max = 2
    lots = [intake.next_lot(line, (), shards_max=8, now=10.0, timeout_s=3.0) for _ in range(3)]
    assert [[pending.shard for pending in lot.events] for lot in lots] == [[0, 1, 3, 4], [2], []]


async def test_an_event_nobody_subscribed_to_is_stored_all_the_same() -> None:
    store = ScriptedStore()
    store.endpoints = []
    [answer] = await make(store).submit(store.tenant, submissions(1))
    assert answer == Appended(Verdict.NEW, store.stored[0].event_id, 0)
    assert await make(store).submit(store.tenant, []) == []


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poisoned", [{0}, {7}, {15}, {3, 4, 11}, set(range(16))])
async def test_poisoned_events_fail_alone_and_their_neighbours_are_stored_once(poisoned: set[int]) -> None:
    store = ScriptedStore()
    events = [Submission("a", POISON if n in poisoned else b"%d" % n) for n in range(16)]
    ingest = make(store)
    answers = await ingest.submit(store.tenant, events)
    assert {n for n, answer in enumerate(answers) if isinstance(answer, Refused)} == poisoned
    assert sorted(int(event.payload) for event in store.stored) == sorted(set(range(16)) - poisoned)
    await spin(lambda: ingest.queued == (0, 0))


async def test_a_poisoned_event_costs_its_neighbours_nothing_in_the_real_store(store: PostgresStore) -> None:
    tenant = await new_tenant(store)
    ingest = make(store)
    events = [Submission("a", b"%d" % n, key="a\0b" if n == 5 else f"k{n}") for n in range(12)]
    answers = await ingest.submit(tenant, events)
    assert [n for n, answer in enumerate(answers) if isinstance(answer, Refused)] == [5]
    again = await ingest.submit(tenant, [event for n, event in enumerate(events) if n != 5])
    assert {answer.verdict for answer in again if isinstance(answer, Appended)} == {Verdict.DUPLICATE}
    await ingest.close()


async def test_when_the_store_fails_nobody_of_the_group_is_acknowledged() -> None:
    store = ScriptedStore()
    store.open.clear()
    store.ends = [end_in(StoreUnavailable("gone"))]
    ingest = make(store)
    tasks = [*await posted(ingest, store, 1), *await posted(ingest, store, 5)]
    store.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [result for result in results if isinstance(result, StoreUnavailable)]
    assert len(failed) == 6 - len(store.stored)
    assert len(failed) >= 1
    [answer] = await ingest.submit(store.tenant, submissions(1))
    assert isinstance(answer, Appended)
    assert ingest.queued == (0, 0)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("x"), ZeroDivisionError()])
async def test_an_unexpected_error_is_an_answer_too(error: Exception) -> None:
    store = ScriptedStore()
    store.ends = [end_in(error)]
    ingest = make(store)
    with pytest.raises(StoreUnavailable):
        await ingest.submit(store.tenant, submissions(3))
    assert isinstance((await ingest.submit(store.tenant, submissions(1)))[0], Appended)
    assert ingest.queued == (0, 0)


async def test_a_store_that_answers_too_little_acknowledges_nothing() -> None:
    class Short(ScriptedStore):
        async def append(self, shard: int, events: Any, versions: Any, placed: Any = None) -> Any:
            return (await super().append(shard, events, versions))[:-1]  # type: ignore[index]

    short = Short()
    with pytest.raises(StoreUnavailable):
        await make(short).submit(short.tenant, submissions(3))


# ---- configuration ---------------------------------------------------------------------------------------------------


async def test_a_stale_match_is_made_anew() -> None:
    store = ScriptedStore()
    ingest = make(store)
    await ingest.submit(store.tenant, submissions(1))
    new = store.add_endpoint()
    [answer] = await ingest.submit(store.tenant, submissions(1))
    assert isinstance(answer, Appended)
    assert answer.delivery_count == 2
    assert new in store.stored[-1].owed
    assert [len(events) for _, events in store.calls] == [1, 1, 1]
    assert ingest.queued == (0, 0)


@pytest.mark.parametrize("heard", ["by an append", "by a look"])
async def test_of_the_endpoints_only_those_that_changed_are_loaded_again(heard: str) -> None:
    store = ScriptedStore()
    store.endpoints = [EndpointFilter(uuid7(), ("*",), 64) for _ in range(100)]
    ingest = make(store)
    await ingest.submit(store.tenant, submissions(1))
    for loaded in (101, 102, 102):
        if loaded == 101:
            new = store.add_endpoint()
        elif store.endpoints[0].events == ("*",):
            store.change_filter(store.endpoints[0], ("other",))
        else:
            store.delete_endpoint(new)
        if heard == "by a look":
            await ingest.look()
        [answer] = await ingest.submit(store.tenant, submissions(1))
        assert isinstance(answer, Appended)
        assert set(store.stored[-1].owed) == {e.endpoint_id for e in store.endpoints if e.events == ("*",)}
        # Those of the version that is known may be told once more.
        assert store.endpoints_loaded <= loaded + 2
    assert store.endpoints_loaded > 101


async def test_all_endpoints_are_loaded_again_where_home_shards_changed() -> None:
    store = ScriptedStore()
    store.endpoints = [EndpointFilter(uuid7(), ("*",), 2) for _ in range(10)]
    ingest = make(store)
    await ingest.submit(store.tenant, submissions(1))
    store.shards = (0, 1, 2)
    store.version += 1
    for _ in range(8):
        await ingest.submit(store.tenant, submissions(1))
    # A cap of two cannot be divided among three.
    assert {shard for shard, _ in store.calls} == {0}
    assert store.endpoints_loaded == 20


async def test_all_endpoints_are_loaded_again_where_the_version_went_back() -> None:
    """As behind a failover to a standby that had not heard of the last changes: an endpoint that was created is gone."""
    store = ScriptedStore()
    ingest = make(store)
    await ingest.submit(store.tenant, submissions(1))
    lost = store.add_endpoint()
    await ingest.submit(store.tenant, submissions(1))
    assert lost in store.stored[-1].owed
    store.endpoints = [each for each in store.endpoints if each.endpoint_id != lost]
    store.version -= 1
    await ingest.submit(store.tenant, submissions(1))
    assert lost not in store.stored[-1].owed


async def test_what_was_matched_before_a_change_is_matched_anew_behind_it() -> None:
    """Its routes are changed in place, and still say that they are old."""
    store = ScriptedStore()
    ingest = make(store)
    await ingest.submit(store.tenant, submissions(1))
    store.open.clear()
    tasks = await posted(ingest, store, 2)
    await spin(lambda: len(store.calls) == 2)
    waiting = await posted(ingest, store, 2)
    new = store.add_endpoint()
    [refused] = await ingest.submit(store.tenant, submissions(1, targets=(uuid7(),)))  # it has routes loaded
    assert isinstance(refused, UnknownEndpoint)
    store.open.set()
    await asyncio.gather(*tasks, *waiting)
    assert all(new in each.owed for each in store.stored[1:])
    assert len(store.stored) == 5


async def test_a_configuration_that_never_stands_still_ends_in_an_answer() -> None:
    class Restless(ScriptedStore):
        async def append(self, shard: int, events: Any, versions: Any, placed: Any = None) -> Any:
            self.version += 1
            return await super().append(shard, events, versions)

    store = Restless()
    ingest = make(store)
    with pytest.raises(Overloaded, match="changes too often"):
        await ingest.submit(store.tenant, submissions(2))
    assert store.stored == []
    await spin(lambda: ingest.queued == (0, 0))


async def test_a_tenant_deleted_meanwhile_is_unknown() -> None:
    store = ScriptedStore()
    ingest = make(store)
    await ingest.submit(store.tenant, submissions(1))
    store.exists = False
    for _ in range(2):  # the first by the append, the second by the look-up
        with pytest.raises(UnknownTenant):
            await ingest.submit(store.tenant, submissions(2))
    await spin(lambda: ingest.queued == (0, 0))


async def test_events_of_other_tenants_in_a_stale_group_are_appended(store: PostgresStore) -> None:
    one, two = await new_tenant(store), await new_tenant(store)
    ingest = make(store)
    await asyncio.gather(*(ingest.submit(tenant, submissions(1)) for tenant in (one, two)))
    endpoint = await new_endpoint(store, one)
    first, second = await asyncio.gather(*(ingest.submit(tenant, submissions(2)) for tenant in (one, two)))
    assert [answer.delivery_count for answer in first if isinstance(answer, Appended)] == [1, 1]
    assert [answer.delivery_count for answer in second if isinstance(answer, Appended)] == [0, 0]
    assert endpoint is not None
    await ingest.close()


async def test_an_endpoint_created_on_another_node_can_be_a_target_at_once(store: PostgresStore, database: str) -> None:
    tenant = await new_tenant(store)
    ingest = make(store)
    await ingest.submit(tenant, submissions(1))
    other = PostgresStore(database, vault=Vault(KEYS))
    await other.open()
    endpoint = await new_endpoint(other, tenant, ("other.*",))
    [answer] = await ingest.submit(tenant, submissions(1, targets=(endpoint, endpoint)))
    assert isinstance(answer, Appended)
    assert answer.delivery_count == 1
    unknown = uuid7()
    stranger = await new_endpoint(other, await new_tenant(other))
    for target in (unknown, stranger):
        [refused] = await ingest.submit(tenant, submissions(1, targets=(endpoint, target)))
        assert isinstance(refused, UnknownEndpoint)
        assert refused.endpoint_id == target
    await other.close()
    await ingest.close()


async def test_a_look_that_had_begun_before_the_endpoint_existed_does_not_refuse_it() -> None:
    store = ScriptedStore()
    ingest = make(store)
    await ingest.submit(store.tenant, submissions(1))
    store.loading.clear()
    early = asyncio.create_task(ingest.submit(store.tenant, submissions(1, targets=(uuid7(),))))
    await spin(lambda: store.loads == 2)
    endpoint = store.add_endpoint()
    late = asyncio.create_task(ingest.submit(store.tenant, submissions(1, targets=(endpoint,))))
    await asyncio.sleep(0)
    store.loading.set()
    assert isinstance((await early)[0], UnknownEndpoint)
    assert isinstance((await late)[0], Appended)


async def test_routes_are_loaded_once_for_all_who_ask_at_the_same_time() -> None:
    store = ScriptedStore()
    store.loading.clear()
    ingest = make(store)
    tasks = await posted(ingest, store, 30)
    store.loading.set()
    await asyncio.gather(*tasks)
    assert store.loads == 1


# ---- bounds ----------------------------------------------------------------------------------------------------------


async def test_beyond_the_bounds_of_events_or_bytes_requests_are_refused_at_once() -> None:
    store = ScriptedStore()
    store.open.clear()
    ingest = make(store, IngestLimits(queue_events=10, queue_bytes=100, timeout_s=PATIENCE_S))
    tasks = await posted(ingest, store, 1, payload=b"x" * 40)
    tasks += [asyncio.create_task(ingest.submit(store.tenant, submissions(8, payload=b"x" * 5)))]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="full"):
        await ingest.submit(store.tenant, submissions(1, payload=b"x" * 21))
    with pytest.raises(Overloaded, match="full"):
        await ingest.submit(store.tenant, submissions(2, payload=b""))
    assert ingest.queued == (9, 80)
    store.open.set()
    await asyncio.gather(*tasks)
    assert ingest.queued == (0, 0)
    await ingest.submit(store.tenant, submissions(10, payload=b"x" * 10))


@in_virtual_time
async def test_when_the_store_hangs_an_answer_comes_in_time_and_memory_stays_bounded() -> None:
    store = ScriptedStore()
    store.open.clear()
    ingest = make(store, IngestLimits(queue_events=50, queue_bytes=10_000, timeout_s=0.05))
    for _ in range(4):
        began = asyncio.get_running_loop().time()
        results = await asyncio.gather(
            *(ingest.submit(store.tenant, submissions(10, payload=b"x" * 100)) for _ in range(8)),
            return_exceptions=True,
        )
        assert asyncio.get_running_loop().time() - began < 0.05 + 2 * module.SWEEP_EVERY_S
        assert all(isinstance(result, Overloaded) for result in results), results
        lying = sum(len(queue.events) for queue in ingest._queues.values()) + len(store.calls[0][1])
        assert lying <= 50
        assert ingest.queued[0] >= len(store.calls[0][1]), "what is being appended is still in memory"
    assert len(store.calls) == 1
    store.open.set()
    await spin(lambda: ingest.queued == (0, 0))
    assert len(store.stored) == len(store.calls[0][1]), "who was told to try again was not appended later"


@in_virtual_time
async def test_routes_that_do_not_come_end_in_an_answer_too() -> None:
    store = ScriptedStore()
    store.loading.clear()
    ingest = make(store, IngestLimits(timeout_s=0.05))
    with pytest.raises(Overloaded, match="in time"):
        await ingest.submit(store.tenant, submissions(1))
    assert ingest.queued == (0, 0)
    store.loading.set()
    assert isinstance((await ingest.submit(store.tenant, submissions(1)))[0], Appended)


async def test_a_cancelled_request_is_not_appended_and_leaves_the_counters_right() -> None:
    store = ScriptedStore()
    store.open.clear()
    ingest = make(store)
    [first] = await posted(ingest, store, 1)
    await spin(lambda: len(store.calls) == 1)
    gone = await posted(ingest, store, 5)
    [kept] = await posted(ingest, store, 1)
    for task in (first, *gone):
        task.cancel()
    await asyncio.wait((first, *gone))
    store.open.set()
    await kept
    assert [len(events) for _, events in store.calls] == [1, 1], "what was under way is stored, the others never began"
    assert ingest.queued == (0, 0)


async def test_requests_cancelled_one_after_the_other_do_not_pile_up() -> None:
    store = ScriptedStore()
    store.open.clear()
    ingest = make(store, IngestLimits(queue_events=20, timeout_s=PATIENCE_S))
    await posted(ingest, store, 1)
    await spin(lambda: len(store.calls) == 1)
    for _ in range(200):
        [task] = await posted(ingest, store, 1)
        task.cancel()
        await asyncio.wait((task,))
    assert sum(len(queue.events) for queue in ingest._queues.values()) <= 20
    store.open.set()
    await spin(lambda: ingest.queued == (0, 0))


@in_virtual_time
async def test_errors_that_nobody_waits_for_are_not_complained_about() -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))

    class Failing(ScriptedStore):
        async def load_routes(self, tenant_id: UUID, *, since: int | None = None) -> TenantRoutes | None:
            await super().load_routes(tenant_id, since=since)
            raise StoreUnavailable("gone")

    store = Failing()
    ingest = make(store, IngestLimits(timeout_s=0.05))
    with pytest.raises(StoreUnavailable):
        await ingest.submit(store.tenant, submissions(1))
    store.loading.clear()
    with pytest.raises(Overloaded):
        await ingest.submit(store.tenant, submissions(1))
    [task] = await posted(ingest, store, 1)
    task.cancel()
    await asyncio.wait((task,))
    store.loading.set()
    await spin(lambda: not ingest._loading and ingest._sweeper is None)
    gc.collect()
    assert complaints == []


async def test_closing_answers_what_is_under_way_and_refuses_the_rest() -> None:
    store = ScriptedStore()
    store.open.clear()
    ingest = make(store)
    tasks = await posted(ingest, store, 3)
    closing = asyncio.create_task(ingest.close())
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await ingest.submit(store.tenant, submissions(1))
    store.open.set()
    await closing
    answers = await asyncio.gather(*tasks)
    assert all(isinstance(answer, Appended) for [answer] in answers)
    await ingest.close()


@in_virtual_time
async def test_closing_ends_though_the_store_hangs() -> None:
    store = ScriptedStore()
    store.open.clear()
    ingest = make(store, IngestLimits(timeout_s=0.1))
    tasks = await posted(ingest, store, 3)
    async with asyncio.timeout(PATIENCE_S):
        await ingest.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Overloaded) for result in results)
    assert not ingest._tasks


async def test_workers_are_rung_soon_and_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScriptedStore()
    ingest = make(store)
    for _ in range(50):
        await ingest.submit(store.tenant, submissions(1))
    assert 1 <= store.rings < 50
    await spin(lambda: not ingest._ringing)
    await ingest.close()


async def test_a_ring_names_the_shards_that_were_appended_to() -> None:
    store = ScriptedStore(shards=(3, 1, 2))
    ingest = make(store)
    await ingest.submit(store.tenant, submissions(1))
    await spin(lambda: bool(store.rings))
    assert store.rung == {shard for shard, _ in store.calls}
    await ingest.submit(store.tenant, submissions(1))
    await spin(lambda: not ingest._ringing)
    await ingest.close()
    assert store.rung == {shard for shard, _ in store.calls} < {1, 2, 3}


class Told:
    """A relay that says what a test says."""

    def __init__(self, *heard: bool) -> None:
        self.heard = list(heard)
        self.told: list[tuple[Place, list[UUID]]] = []

    def tell(self, place: Place, events: Sequence[NewEvent], answers: Sequence[Appended]) -> bool:
        assert [event.event_id for event in events] == [answer.event_id for answer in answers]
        self.told.append((place, [event.event_id for event in events]))
        return self.heard.pop(0)


async def test_what_a_worker_at_hand_was_told_is_not_rung_for() -> None:
    store, relay = ScriptedStore(shards=(3,)), Told(True, False)
    store.places_known = True
    ingest = Ingest(store, ObjectStore("memory:///"), now=time.time, limits=PATIENT, relay=relay)
    await ingest.submit(store.tenant, submissions(2))
    assert relay.told == [(place_in(3), [event.event_id for event in store.stored])]
    assert not ingest._ringing and store.rings == 0
    await ingest.submit(store.tenant, submissions(1))
    await spin(lambda: store.rung == {3})
    assert not relay.heard
    await ingest.close()


async def test_of_a_lot_each_shards_owner_is_told_of_its_events_and_the_others_are_rung_for() -> None:
    relay = Told(True, False, True)
    store, tenants = neighbours(3)
    store.places_known = True
    ingest = Ingest(store, ObjectStore("memory:///"), now=time.time, limits=PATIENT, relay=relay)
    async with gathering(ingest, 6):
        tasks = submitted(ingest, dict.fromkeys(tenants, 2))
    answers = [[answer.event_id for answer in await task] for task in tasks]
    assert relay.told == [(place_in(shard), answers[shard]) for shard in range(3)]
    await spin(lambda: store.rung == {1})
    await ingest.close()


async def test_what_stands_nowhere_yet_is_rung_for() -> None:
    """As with a journal in Kafka."""
    store, relay = ScriptedStore(shards=(3,)), Told()
    ingest = Ingest(store, ObjectStore("memory:///"), now=time.time, limits=PATIENT, relay=relay)
    await ingest.submit(store.tenant, submissions(2))
    await spin(lambda: store.rung == {3})
    assert relay.told == []
    await ingest.close()


# ---- idempotency -----------------------------------------------------------------------------------------------------


async def test_of_a_hundred_equal_requests_at_once_one_is_stored_and_all_get_its_id(
    store: PostgresStore, database: str
) -> None:
    tenant = await new_tenant(store, range(4))
    other = PostgresStore(database)
    await other.open()
    nodes = [make(store), make(other)]
    answers = await asyncio.gather(
        *(nodes[n % 2].submit(tenant, [Submission("a", b"{}", key="same")]) for n in range(100))
    )
    first = [answer for [answer] in answers if isinstance(answer, Appended) and answer.verdict is Verdict.NEW]
    assert len(first) == 1
    assert {answer.event_id for [answer] in answers if isinstance(answer, Appended)} == {first[0].event_id}
    assert len(answers) == 100
    for node in nodes:
        assert node.queued == (0, 0)
        await node.close()
    await other.close()


HASHED = Submission("a.b", b"{}")
ONE, TWO = uuid7(), uuid7()


@pytest.mark.parametrize(
    "different",
    [
        Submission("a.c", b"{}"),
        Submission("a.b", b"{ }"),
        Submission("a.b", b"{}", targets=()),
        Submission("a.b", b"{}", targets=(ONE,)),
        Submission("a.b", b"{}", targets=(ONE, TWO)),
        Submission("a.b\0", b"{}"),
    ],
)
def test_requests_that_differ_have_different_hashes(different: Submission) -> None:
    assert request_hash(different) != request_hash(HASHED)


def test_requests_that_ask_for_the_same_have_equal_hashes() -> None:
    def hashes(targets: Iterable[tuple[UUID, ...]]) -> set[bytes]:
        return {request_hash(Submission("a", b"{}", key=str(n), targets=t)) for n, t in enumerate(targets)}

    assert len(hashes([(ONE, TWO), (TWO, ONE), (ONE, TWO, ONE)])) == 1
    assert len(hashes([(ONE,), (TWO,), ()])) == 3


async def test_time_spent_before_counts_towards_the_answer() -> None:
    store = ScriptedStore()
    store.open.clear()
    ingest = make(store, IngestLimits(timeout_s=3600.0))
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(Overloaded):
            await ingest.submit(store.tenant, submissions(1), spent_s=3600.0)
    store.open.set()


# ---- the tenant's limit ----------------------------------------------------------------------------------------------


async def let_in(ingest: Ingest, store: ScriptedStore, count: int, **values: Any) -> bool:
    try:
        await ingest.submit(store.tenant, submissions(count, **values))
    except RateLimited:
        return False
    return True


async def test_what_goes_beyond_the_limit_is_refused_as_a_whole_and_not_stored() -> None:
    store = ScriptedStore()
    store.set_limit(0.01)
    ingest = make(store)
    assert ingest.standing(store.tenant) is None
    assert await let_in(ingest, store, 1)
    with pytest.raises(RateLimited, match=r"0\.01 events a second") as caught:
        await ingest.submit(store.tenant, submissions(3))
    assert caught.value.standing.left == 0
    assert 0 < caught.value.standing.wait_s <= 100
    assert len(store.stored) == 1
    assert ingest.queued == (0, 0)
    standing = ingest.standing(store.tenant)
    assert standing is not None
    assert (standing.limit, standing.left) == (0.01, 0)


async def test_a_batch_larger_than_the_bucket_is_let_in_once_and_paid_for() -> None:
    store = ScriptedStore()
    store.set_limit(5.0)
    ingest = make(store)
    assert await let_in(ingest, store, 1000)
    with pytest.raises(RateLimited) as caught:
        await ingest.submit(store.tenant, submissions(1))
    assert caught.value.standing.wait_s == pytest.approx(996 / 5, rel=0.1)
    assert len(store.stored) == 1000


async def test_events_that_are_not_accepted_cost_nothing() -> None:
    store = ScriptedStore()
    store.set_limit(0.001)
    ingest = make(store)
    for _ in range(3):
        [answer] = await ingest.submit(store.tenant, submissions(1, payload=POISON))
        assert isinstance(answer, Refused)
        [answer] = await ingest.submit(store.tenant, submissions(1, targets=(uuid7(),)))
        assert isinstance(answer, UnknownEndpoint)
    store.ends = [end_in(StoreUnavailable("gone"))]
    with pytest.raises(StoreUnavailable):
        await ingest.submit(store.tenant, submissions(1))
    assert await let_in(ingest, store, 1)
    assert not await let_in(ingest, store, 1)


async def test_what_is_posted_without_a_task_costs_and_is_given_back_alike() -> None:
    store = ScriptedStore()
    store.set_limit(0.001)
    ingest = make(store)
    await ingest.submit(store.tenant, submissions(1, payload=POISON))
    told: asyncio.Queue[Any] = asyncio.Queue()
    assert ingest.post(store.tenant, submissions(1, payload=POISON), told.put_nowait)
    [answer] = await told.get()
    assert isinstance(answer, Refused)
    store.ends = [end_in(StoreUnavailable("gone"))]
    assert ingest.post(store.tenant, submissions(1), told.put_nowait)
    assert isinstance(await told.get(), StoreUnavailable)
    assert ingest.post(store.tenant, submissions(1), told.put_nowait)
    [answer] = await told.get()
    assert isinstance(answer, Appended)
    with pytest.raises(RateLimited):
        ingest.post(store.tenant, submissions(1), told.put_nowait)
    assert told.empty()
    await ingest.close()
    assert ingest.queued == (0, 0)


async def test_duplicates_count_and_conflicts_do_not(store: PostgresStore) -> None:
    tenant = await new_tenant(store)
    await store.update_tenant(tenant, {"ingest_rate_limit": 0.001})
    first, ingest = make(store), make(store)
    await first.submit(tenant, submissions(1, key="k"))
    [answer] = await ingest.submit(tenant, submissions(1, key="k", payload=b"1"))
    assert isinstance(answer, Appended)
    assert answer.verdict is Verdict.CONFLICT
    [answer] = await ingest.submit(tenant, submissions(1, key="k"))
    assert isinstance(answer, Appended)
    assert answer.verdict is Verdict.DUPLICATE
    with pytest.raises(RateLimited):
        await ingest.submit(tenant, submissions(1, key="k"))
    await first.close()
    await ingest.close()


async def test_a_raised_limit_reaches_a_process_that_refuses_everything_with_its_next_look() -> None:
    store = ScriptedStore()
    store.set_limit(0.001)
    ingest = make(store)
    assert await let_in(ingest, store, 1)
    appends, loads = len(store.calls), store.loads
    store.set_limit(1000.0)
    assert not await let_in(ingest, store, 1)
    await ingest.look()
    assert len(store.calls) == appends, "it never appends, so no append could tell it"
    assert not await let_in(ingest, store, 1000), "what is in the bucket stays: next to nothing"
    assert store.loads == loads + 1
    standing = ingest.standing(store.tenant)
    assert standing is not None
    assert standing.limit == 1000.0
    await until(lambda: let_in(ingest, store, 10))
    store.set_limit(None)
    await ingest.look()
    assert await let_in(ingest, store, 5000)
    assert ingest.standing(store.tenant) is None
    await ingest.close()


@pytest.mark.parametrize("set_by_s", [3600.0, -3600.0])
async def test_f29_a_limit_raised_before_the_databases_clock_was_set_is_heard_of(set_by_s: float) -> None:
    store = ScriptedStore()
    store.set_limit(0.001)
    ingest = make(store)
    assert await let_in(ingest, store, 1)
    await ingest.look()
    store.set_limit(None)
    store.time += set_by_s
    assert not await let_in(ingest, store, 1)
    await ingest.look()
    assert await let_in(ingest, store, 1)
    await ingest.close()


async def test_a_lowered_limit_and_a_first_one_are_in_force_with_the_next_look() -> None:
    store = ScriptedStore()
    ingest = make(store)
    assert await let_in(ingest, store, 100)
    store.set_limit(1000.0)
    await ingest.look()
    assert await let_in(ingest, store, 1000)
    store.set_limit(0.001)
    await ingest.look()
    await let_in(ingest, store, 1)  # a bucket holds one at least, and that was in it
    assert not await let_in(ingest, store, 1)
    await ingest.close()


async def test_looks_come_often_enough_for_a_change_to_be_in_force_within_two_seconds() -> None:
    assert 2 * module.LOOK_EVERY_S <= 2.0
    store = ScriptedStore()
    store.set_limit(0.001)
    ingest = make(store)
    assert await let_in(ingest, store, 1)
    following = asyncio.create_task(ingest.follow())
    await spin(lambda: store.told != {})
    store.set_limit(None)
    assert not await let_in(ingest, store, 1)
    await until(lambda: let_in(ingest, store, 1))
    following.cancel()
    await ingest.close()
    assert store.told == {}


async def test_a_process_tells_its_demand_and_takes_its_part() -> None:
    store = ScriptedStore()
    store.set_limit(100.0)
    ingest = make(store)
    store.processes, store.others = 2, {store.tenant: 1e6}
    await ingest.look()
    [told] = store.told.values()
    assert told == {}
    assert await let_in(ingest, store, 1)
    standing = ingest.standing(store.tenant)
    assert standing is not None
    assert standing.left <= 2, "the other one has nearly all of it"
    await ingest.look()
    [told] = store.told.values()
    assert told[store.tenant] > 0
    store.others = {}
    store.processes = 1
    await ingest.look()
    await until(lambda: let_in(ingest, store, 50))
    await ingest.close()


async def test_a_look_without_the_store_changes_nothing_and_the_next_one_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F39: what a limiter knows of the others is in the store."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.001)

    class Away(ScriptedStore):
        looks = 0

        async def share_demand(self, *args: Any, **values: Any) -> SharedDemand:
            self.looks += 1
            if self.looks < 3:
                raise StoreUnavailable("away")
            return await super().share_demand(*args, **values)

    store = Away()
    ingest = make(store)
    following = asyncio.create_task(ingest.follow())
    await spin(lambda: store.looks > 3)
    following.cancel()
    await ingest.close()
