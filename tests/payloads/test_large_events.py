"""Payloads that are too large for the database: durable before they are acknowledged, swept when they never are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.engine.lanes import FROM_START
from hookpost.engine.work import Fetch, Wanted
from hookpost.ingest import Ingest, IngestLimits, Overloaded
from hookpost.intake import Submission
from hookpost.maintenance import Maintenance
from hookpost.model import REMOVED, PayloadRef
from hookpost.policy.objects import event_of, minted_hour, object_key
from hookpost.storage.contract import Appended, StoreUnavailable, Verdict
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres.store import PostgresStore
from tests.patience import PATIENCE_S
from tests.payloads.conftest import S3
from tests.storage.driver import event, new_endpoint, new_tenant, version, waiting
from tests.storage.driver import settle as settled

LARGE = b'{"text": "' + b"x" * 100 + b'"}'
SMALL = b"{}"
READ = {"rows_max": 100, "bytes_max": 2**20}


@pytest.fixture
async def tenant(store: PostgresStore) -> UUID:
    tenant_id = await new_tenant(store)
    await new_endpoint(store, tenant_id)
    return tenant_id


@pytest.fixture
async def ingest(store: PostgresStore, bucket: str) -> AsyncIterator[Ingest]:
    """Whatever is larger than 50 bytes goes to the S3."""
    made = Ingest(store, ObjectStore(bucket), now=time.time, limits=IngestLimits(timeout_s=PATIENCE_S, inline_max=50))
    yield made
    await made.close()


async def stored(sql: Any) -> list[tuple[bytes | None, str | None]]:
    rows = await sql.fetch("select payload, payload_ref from events order by shard, seq")
    return [(row["payload"], row["payload_ref"]) for row in rows]


async def test_a_large_payload_goes_to_the_store_once_and_a_small_one_to_the_database(
    ingest: Ingest, tenant: UUID, sql: Any, s3: S3, bucket: str
) -> None:
    answers = await ingest.submit(tenant, [Submission("a.b", SMALL), Submission("a.b", LARGE)])
    [(small, nowhere), (nothing, ref)] = await stored(sql)
    assert (small, nowhere, nothing) == (SMALL, None, None)
    assert ref is not None
    place = PayloadRef.parse(ref)
    assert await ObjectStore(bucket).get(place) == LARGE
    assert event_of(place.key) == answers[1].event_id  # type: ignore[union-attr]
    assert [method for method, _, _ in s3.requests].count("PUT") == 2  # the bucket's own, and one


async def test_with_a_bound_of_0_every_payload_goes_to_the_store(
    store: PostgresStore, tenant: UUID, sql: Any, bucket: str
) -> None:
    ingest = Ingest(store, ObjectStore(bucket), now=time.time, limits=IngestLimits(timeout_s=PATIENCE_S, inline_max=0))
    await ingest.submit(tenant, [Submission("a.b", b"1"), Submission("a.b", SMALL)])
    assert [payload for payload, _ in await stored(sql)] == [None, None]
    assert all(ref is not None for _, ref in await stored(sql))
    await ingest.close()


async def test_a_failed_put_is_refused_and_nothing_of_the_request_is_stored(
    ingest: Ingest, tenant: UUID, sql: Any, s3: S3
) -> None:
    s3.failing.add("PUT")
    with pytest.raises(StoreUnavailable):
        await ingest.submit(tenant, [Submission("a.b", SMALL), Submission("a.b", LARGE, key="k")])
    assert await stored(sql) == []
    assert ingest.queued == (0, 0)
    s3.failing.clear()
    [answer] = await ingest.submit(tenant, [Submission("a.b", LARGE, key="k")])
    assert isinstance(answer, Appended) and answer.verdict is Verdict.NEW


async def test_a_slow_put_ends_in_time_and_holds_up_no_small_event(
    ingest: Ingest, tenant: UUID, sql: Any, s3: S3
) -> None:
    s3.slow.add("PUT")
    soon = {"spent_s": PATIENCE_S - 1.0}
    large = asyncio.create_task(ingest.submit(tenant, [Submission("a.b", LARGE)], **soon))
    [answer] = await ingest.submit(tenant, [Submission("a.b", SMALL)])
    assert isinstance(answer, Appended)
    with pytest.raises(Overloaded, match="payload store"):
        await large
    assert await stored(sql) == [(SMALL, None)]
    assert ingest.queued == (0, 0)


async def test_a_large_payload_is_not_for_the_path_without_a_task(ingest: Ingest, tenant: UUID) -> None:
    await ingest.submit(tenant, [Submission("a.b", SMALL)])
    assert not ingest.post(tenant, [Submission("a.b", LARGE)], print)


async def test_the_same_large_event_twice_is_one_event(ingest: Ingest, tenant: UUID, sql: Any) -> None:
    [first] = await ingest.submit(tenant, [Submission("a.b", LARGE, key="k")])
    [second] = await ingest.submit(tenant, [Submission("a.b", LARGE, key="k")])
    assert isinstance(first, Appended) and isinstance(second, Appended)
    assert (second.verdict, second.event_id) == (Verdict.DUPLICATE, first.event_id)
    assert len(await stored(sql)) == 1


async def test_workers_are_told_the_place_wherever_they_meet_the_event(
    store: PostgresStore, tenant: UUID, sql: Any
) -> None:
    endpoint_id = await new_endpoint(store, tenant)
    ref = PayloadRef("a/b", 0, 9, bytes(32))
    posted = event(tenant, payload=ref, owed=(endpoint_id,))
    await store.append(0, [posted, event(tenant, payload=b"[]")], await version(store, tenant))
    await store.append_replay(tenant, posted.event_id, None)
    rows = (await store.read({0: (0, 0)}, **READ))[0]
    assert [row.payload for row in rows] == [ref, b"[]", ref]
    day = rows[0].day
    row = waiting(endpoint_id, 1, tenant_id=tenant, event_id=posted.event_id, day=day)
    fences = {claimed.shard: claimed.fence for claimed in await owned(store)}
    await store.settle([settled(fence=fences[0], upserts=[row])])
    fetch = Fetch(None, 0, endpoint_id, FROM_START, 2e9, 10, Wanted.DUE)  # type: ignore[arg-type] # no lane is needed
    [found], _, _ = await store.fetch(fetch, bytes_max=2**20)
    assert found.payload == ref
    await sql.execute("update events set payload_ref = 'removed 0 0 00' where kind = 0 and seq = 1")
    assert (await store.read({0: (0, 0)}, **READ))[0][0].payload is REMOVED


async def owned(store: PostgresStore) -> Any:
    node_id = uuid7()
    await store.register(node_id, pool="default", name="w", lease_s=1000)
    return await store.claim(node_id, pool="default", limit=4, lease_s=1000)


# ---- what is put and never appended ---------------------------------------------------------------------------------

HOUR_S = 3600


def minted(hours_ago: float) -> UUID:
    return uuid7(nanoseconds=int((time.time() - hours_ago * HOUR_S) * 1e9))


async def test_what_was_never_appended_is_swept_away_and_what_was_stays(
    store: PostgresStore, tenant: UUID, sql: Any, objects: ObjectStore
) -> None:
    old, orphan, fresh = minted(5), minted(5), minted(0)
    for event_id in (old, orphan, fresh):
        await objects.put(object_key(event_id), LARGE)
    await objects.put("segments/1/other", LARGE)
    ref = PayloadRef(object_key(old), 0, len(LARGE), bytes(32))
    await store.append(0, [event(tenant, event_id=uuid7())], await version(store, tenant))
    await sql.execute("update events set event_id = $1, payload = null, payload_ref = $2", old, str(ref))
    await store.swept_to()
    await sql.execute("update platform set value = $1 where name = 'payloads_swept'", str(minted_hour(old) - 1))
    maintenance = Maintenance(store, objects, days_ahead=3, keep_days=30)
    for _ in range(2):
        assert await maintenance.once()
        left = {
            key
            for hour in {minted_hour(old), minted_hour(fresh)}
            async for keys in objects.list_hour(hour)
            for key in keys
        }
        assert left == {object_key(old), object_key(fresh)}


async def test_a_sweep_never_looks_at_an_hour_in_which_an_append_may_be_under_way(store: PostgresStore) -> None:
    before = time.time()
    begun = await store.swept_to()
    hour = await store.sweepable_hours(age_s=HOUR_S)
    assert before // HOUR_S <= begun <= time.time() // HOUR_S
    assert before // HOUR_S - 1 <= hour <= time.time() // HOUR_S - 1
    await store.note_swept(begun + 2)
    await store.note_swept(begun + 1)
    assert await store.swept_to() == begun + 2


async def test_a_process_that_was_frozen_between_putting_and_appending_appends_nothing(
    store: PostgresStore, tenant: UUID, sql: Any
) -> None:
    late = minted(0.25)
    ref = PayloadRef(object_key(late), 0, 1, bytes(32))
    with pytest.raises(StoreUnavailable, match="too long ago"):
        await store.append(0, [event(tenant, event_id=late, payload=ref)], await version(store, tenant))
    assert await stored(sql) == []


async def test_a_sweep_that_cannot_reach_the_store_is_tried_again(
    store: PostgresStore, sql: Any, s3: S3, bucket: str
) -> None:
    objects = ObjectStore(bucket)
    await store.swept_to()
    await sql.execute("update platform set value = (value::bigint - 3)::text where name = 'payloads_swept'")
    begun = await store.swept_to()
    s3.failing.add("GET")
    maintenance = Maintenance(store, objects, days_ahead=3, keep_days=30)
    assert not await maintenance.once()
    assert await store.swept_to() == begun
    s3.failing.clear()
    assert await maintenance.once()
    assert await store.swept_to() > begun
