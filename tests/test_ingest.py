"""Ingest: group commit, one poisoned event, changed configuration, full queues, a store that is slow or gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from hookpost.ingest import (
    Ingest,
    IngestLimits,
    Overloaded,
    Refused,
    Submission,
    UnknownEndpoint,
    UnknownTenant,
    request_hash,
)
from hookpost.storage.contract import (
    ApiKey,
    Appended,
    DataRejected,
    EndpointFilter,
    NewEvent,
    Stale,
    StoreUnavailable,
    TenantRoutes,
    Verdict,
)
from hookpost.storage.postgres.store import PostgresStore

NOW = 1_800_000_000.0
TENANT, ENDPOINT = UUID(int=1), UUID(int=2)
POISON = b'"poison"'

Hook = Callable[[int, Sequence[NewEvent]], Awaitable[list[Appended] | Stale | None]]


class Scripted:
    """A store that does what the test says, and keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, list[NewEvent]]] = []
        self.stored: list[NewEvent] = []
        self.version = 1
        self.endpoints = [EndpointFilter(ENDPOINT, ("*",), 64)]
        self.shards: tuple[int, ...] = (0,)
        self.before: Hook | None = None
        self.rings = 0
        self.under_way: dict[int, int] = {}

    async def append(
        self, shard: int, events: Sequence[NewEvent], versions: Mapping[UUID, int]
    ) -> list[Appended] | Stale:
        self.calls.append((shard, list(events)))
        self.under_way[shard] = self.under_way.get(shard, 0) + 1
        assert self.under_way[shard] == 1, "two appends for one shard at the same time"
        try:
            answer = None if self.before is None else await self.before(shard, events)
            if answer is not None:
                return answer
            if any(version != self.version for version in versions.values()):
                return Stale(frozenset(versions))
            if any(event.payload == POISON for event in events):
                raise DataRejected("poison")
            self.stored.extend(events)
            return [Appended(Verdict.NEW, event.event_id, len(event.owed)) for event in events]
        finally:
            self.under_way[shard] -= 1

    async def load_routes(self, tenant_id: UUID) -> TenantRoutes | None:
        if tenant_id != TENANT:
            return None
        return TenantRoutes(TENANT, self.version, self.shards, 512, tuple(self.endpoints))

    async def find_key(self, key_id: str) -> ApiKey | None:
        raise AssertionError("ingest looks up no keys")

    async def ring(self) -> None:
        self.rings += 1


def ingest(store: Any, **limits: Any) -> Ingest:
    return Ingest(store, now=lambda: NOW, limits=IngestLimits(**limits))


def event(payload: bytes = b"{}", **fields: Any) -> Submission:
    return Submission("invoice.paid", payload, **fields)


async def one(target: Ingest, submission: Submission | None = None) -> Any:
    return (await target.submit(TENANT, [submission or event()]))[0]


async def test_an_answer_names_the_event_and_to_how_many_it_is_owed() -> None:
    store = Scripted()
    answer = await one(ingest(store))
    assert (answer.verdict, answer.delivery_count) == (Verdict.NEW, 1)
    assert store.stored[0].event_id == answer.event_id
    assert store.stored[0].owed == (ENDPOINT,)


async def test_while_one_append_is_under_way_the_next_group_gathers() -> None:
    store, release = Scripted(), asyncio.Event()

    async def wait(shard: int, events: Sequence[NewEvent]) -> None:
        await release.wait()

    store.before = wait
    target = ingest(store, timeout_s=30)
    requests = [asyncio.create_task(one(target)) for _ in range(50)]
    while not store.calls:
        await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*requests)
    assert [len(events) for _, events in store.calls] == [50] or len(store.calls) == 2
    assert len(store.stored) == 50


async def test_each_shard_takes_one_append_at_a_time() -> None:
    store = Scripted()
    store.shards = tuple(range(8))
    target = ingest(store, timeout_s=30)
    answers = await asyncio.gather(*(one(target) for _ in range(500)))
    assert len({answer.event_id for answer in answers}) == 500
    assert {shard for shard, _ in store.calls} == set(range(8))
    assert len(store.stored) == 500


async def test_a_poisoned_event_fails_alone_and_its_neighbours_are_stored_once() -> None:
    store = Scripted()
    target = ingest(store, timeout_s=30)
    payloads = [POISON if number == 13 else b"%d" % number for number in range(40)]
    answers = await target.submit(TENANT, [event(payload) for payload in payloads])
    assert [isinstance(answer, Refused) for answer in answers] == [payload is POISON for payload in payloads]
    assert sorted(stored.payload for stored in store.stored) == sorted(p for p in payloads if p is not POISON)


async def test_changed_configuration_is_matched_anew() -> None:
    store = Scripted()
    target = ingest(store)
    await one(target)
    store.version, store.endpoints = 2, [EndpointFilter(UUID(int=7), ("invoice.*",), 64)]
    answer = await one(target)
    assert answer.delivery_count == 1
    assert store.stored[-1].owed == (UUID(int=7),)


async def test_configuration_that_changes_with_every_try_ends_in_an_answer() -> None:
    store = Scripted()

    async def change(shard: int, events: Sequence[NewEvent]) -> None:
        store.version += 1

    store.before = change
    with pytest.raises(Overloaded):
        await one(ingest(store, timeout_s=30))
    assert store.stored == []


async def test_an_endpoint_that_another_node_has_just_made_is_found() -> None:
    store = Scripted()
    target = ingest(store)
    await one(target)
    store.endpoints.append(EndpointFilter(UUID(int=9), ("never",), 64))
    store.version = 2
    answer = await one(target, event(targets=(UUID(int=9),)))
    assert answer.delivery_count == 1
    assert store.stored[-1].owed == (UUID(int=9),)


async def test_an_unknown_target_is_named_and_the_rest_of_the_batch_is_stored() -> None:
    store = Scripted()
    answers = await ingest(store).submit(TENANT, [event(targets=(UUID(int=99),)), event(targets=(ENDPOINT, ENDPOINT))])
    assert isinstance(answers[0], UnknownEndpoint)
    assert answers[0].endpoint_id == UUID(int=99)
    assert isinstance(answers[1], Appended)
    assert answers[1].delivery_count == 1


async def test_an_unknown_tenant_is_refused() -> None:
    with pytest.raises(UnknownTenant):
        await ingest(Scripted()).submit(UUID(int=77), [event()])


@pytest.mark.parametrize("limits", [{"queue_events": 10}, {"queue_bytes": 10 * 100}])
async def test_a_full_queue_refuses_at_once_and_empties_again(limits: dict[str, int]) -> None:
    store, release = Scripted(), asyncio.Event()

    async def wait(shard: int, events: Sequence[NewEvent]) -> None:
        await release.wait()

    store.before = wait
    target = ingest(store, timeout_s=30, **limits)
    requests = [asyncio.create_task(one(target, event(b"x" * 100))) for _ in range(10)]
    while target.queued[0] < 10:
        await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await one(target, event(b"x" * 100))
    release.set()
    await asyncio.gather(*requests)
    assert target.queued == (0, 0)
    assert len(store.stored) == 10


async def test_a_store_that_hangs_is_answered_for_in_time_and_what_waited_is_not_sent_later() -> None:
    store, hang = Scripted(), asyncio.Event()

    async def wait(shard: int, events: Sequence[NewEvent]) -> None:
        await hang.wait()

    store.before = wait
    target = ingest(store, timeout_s=0.1)
    first = asyncio.create_task(one(target))
    while not store.calls:
        await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await one(target)
    with pytest.raises(Overloaded):
        await first
    assert target.queued == (0, 0)
    hang.set()
    await target.close()
    assert len(store.calls) == 1, "a request that was refused is not appended afterwards"


async def test_a_store_that_fails_fails_the_group_and_acknowledges_nothing() -> None:
    store = Scripted()

    async def fail(shard: int, events: Sequence[NewEvent]) -> None:
        raise StoreUnavailable("gone")

    store.before = fail
    target = ingest(store)
    answers = await asyncio.gather(*(one(target) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    assert target.queued == (0, 0)
    store.before = None
    assert (await one(target)).verdict is Verdict.NEW


async def test_a_bug_in_the_store_is_an_answer_too() -> None:
    store = Scripted()

    async def fail(shard: int, events: Sequence[NewEvent]) -> None:
        raise ZeroDivisionError

    store.before = fail
    with pytest.raises(StoreUnavailable):
        await one(ingest(store))


async def test_a_client_that_goes_away_leaves_the_counters_right() -> None:
    store, release = Scripted(), asyncio.Event()

    async def wait(shard: int, events: Sequence[NewEvent]) -> None:
        await release.wait()

    store.before = wait
    target = ingest(store, timeout_s=30)
    request = asyncio.create_task(one(target))
    while not store.calls:
        await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert target.queued == (0, 0)
    release.set()
    assert (await one(target)).verdict is Verdict.NEW


async def test_closing_answers_what_is_under_way_and_refuses_the_rest() -> None:
    store, release = Scripted(), asyncio.Event()

    async def wait(shard: int, events: Sequence[NewEvent]) -> None:
        await release.wait()

    store.before = wait
    target = ingest(store, timeout_s=30)
    request = asyncio.create_task(one(target))
    while not store.calls:
        await asyncio.sleep(0)
    closing = asyncio.create_task(target.close())
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await one(target)
    release.set()
    await closing
    assert (await request).verdict is Verdict.NEW


async def test_workers_are_rung_after_an_append_and_not_for_each_of_a_burst() -> None:
    store = Scripted()
    target = ingest(store)
    await asyncio.gather(*(one(target) for _ in range(200)))
    await target.close()
    assert 1 <= store.rings < 20


def test_the_request_hash_tells_type_payload_and_targets_apart() -> None:
    hashes = {
        request_hash(Submission("a", b"b")),
        request_hash(Submission("a\0b", b"")),
        request_hash(Submission("a", b"c")),
        request_hash(Submission("a", b"b", targets=())),
        request_hash(Submission("a", b"b", targets=(ENDPOINT,))),
    }
    assert len(hashes) == 5
    one_way = Submission("a", b"b", targets=(ENDPOINT, TENANT))
    other_way = Submission("a", b"b", targets=(TENANT, ENDPOINT))
    assert request_hash(one_way) == request_hash(other_way)


# ---- on PostgreSQL --------------------------------------------------------------------------------------------------


async def default_tenant(sql: Any) -> UUID:
    return UUID(await sql.fetchval("select value from platform where name = 'default_tenant'"))


async def test_a_hundred_equal_keys_at_the_same_moment_are_one_event(
    store: PostgresStore, database: str, sql: Any
) -> None:
    tenant_id = await default_tenant(sql)
    other = PostgresStore(database)
    await other.open()
    try:
        nodes = [ingest(store, timeout_s=30), ingest(other, timeout_s=30)]
        answers = await asyncio.gather(
            *(nodes[number % 2].submit(tenant_id, [event(b"1", key="k")]) for number in range(100))
        )
        assert len({answer[0].event_id for answer in answers}) == 1  # type: ignore[union-attr] # all are Appended
        assert sorted(answer[0].verdict for answer in answers).count(Verdict.NEW) == 1  # type: ignore[union-attr]
        assert await sql.fetchval("select count(*) from events") == 1
        conflict = (await nodes[0].submit(tenant_id, [event(b"2", key="k")]))[0]
        assert isinstance(conflict, Appended)
        assert conflict.verdict is Verdict.CONFLICT
        for node in nodes:
            await node.close()
    finally:
        await other.close()


async def test_equal_keys_in_one_group_are_one_event(store: PostgresStore, sql: Any) -> None:
    tenant_id = await default_tenant(sql)
    target = ingest(store, timeout_s=30)
    batch = [event(b"1", key="k"), event(b"1", key="k"), event(b"2", key="k"), event(b"1", key="other"), event(b"1")]
    answers = await target.submit(tenant_id, batch)
    verdicts = [answer.verdict for answer in answers if isinstance(answer, Appended)]
    assert sorted(verdicts) == sorted([Verdict.NEW, Verdict.DUPLICATE, Verdict.CONFLICT, Verdict.NEW, Verdict.NEW])
    assert await sql.fetchval("select count(*) from events") == 3
    await target.close()


async def test_every_event_posted_after_an_endpoint_was_made_is_owed_to_it(
    store: PostgresStore, sql: Any, database: str
) -> None:
    tenant_id = await default_tenant(sql)
    target = ingest(store, timeout_s=30)
    operator = await asyncpg.connect(database)
    try:
        for count in range(1, 15):
            async with operator.transaction():
                await operator.execute("update tenants set config_version = config_version + 1")
                await operator.execute(
                    "insert into endpoints (endpoint_id, tenant_id, url) values ($1, $2, 'http://a/')",
                    uuid7(),
                    tenant_id,
                )
            answer = (await target.submit(tenant_id, [event()]))[0]
            assert isinstance(answer, Appended)
            assert answer.delivery_count == count
    finally:
        await operator.close()
        await target.close()
