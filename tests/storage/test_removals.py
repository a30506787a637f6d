"""Payloads removed on request: gone from the database and the payload store, cancelled, and still on record."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.engine.work import CANCEL, Kind, Progress
from hookpost.maintenance import Maintenance
from hookpost.model import REMOVED, PayloadRef
from hookpost.policy.objects import object_key
from hookpost.storage.contract import Conflict, NotFound, PayloadMissing, ReplayFilter, ReplayLimits, StoreUnavailable
from hookpost.storage.payloads import MARKER, ObjectStore
from hookpost.storage.postgres.store import PostgresStore
from tests.storage.driver import event, new_endpoint, new_tenant, own, settle, version

LIMITS = ReplayLimits(step_s=1.0, deliveries_max=100, depth_max=1000, waiting_max=1000, hold_s=0.1)


@pytest.fixture
async def objects() -> ObjectStore:
    opened = ObjectStore("memory:///")
    await opened.put(MARKER, b"us")
    return opened


async def post(store: PostgresStore, tenant: UUID, owed: UUID, objects: ObjectStore | None = None) -> UUID:
    """An event; with a payload store its payload lies there."""
    event_id = uuid7()
    payload: bytes | PayloadRef = b'{"name": "Ada"}'
    if objects is not None:
        payload = await objects.put(object_key(event_id), b'{"name": "Ada"}')
    posted = event(tenant, event_id=event_id, owed=(owed,), payload=payload)
    await store.append(0, [posted], await version(store, tenant))
    return event_id


async def kept(sql: Any, event_id: UUID) -> Any:
    return await sql.fetchrow("select * from events where event_id = $1 and kind = 0", event_id)


async def test_the_bytes_go_and_the_record_stays(store: PostgresStore, sql: Any, objects: ObjectStore) -> None:
    tenant = await new_tenant(store)
    owed = await new_endpoint(store, tenant)
    inline, large = await post(store, tenant, owed), await post(store, tenant, owed, objects)
    ref = PayloadRef.parse((await kept(sql, large))["payload_ref"])
    for event_id in (inline, large):
        for _ in range(2):
            await store.remove_payload(tenant, event_id)
        row = await kept(sql, event_id)
        assert (row["payload"], row["payload_ref"], row["owed"]) == (None, str(REMOVED), [owed])
    assert await store.remove_objects(objects.delete, limit=10) == 1
    assert await store.remove_objects(objects.delete, limit=10) == 0
    with pytest.raises(PayloadMissing):
        await objects.get(ref)


async def test_what_is_not_over_is_cancelled_behind_it_in_the_journal(store: PostgresStore) -> None:
    tenant = await new_tenant(store)
    owed = await new_endpoint(store, tenant)
    event_id = await post(store, tenant, owed)
    assert await store.remove_payload(tenant, event_id) == 1
    first, asked = (await store.read({0: (0, 0)}, rows_max=10, bytes_max=1000))[0]
    assert first.payload is REMOVED
    assert (asked.kind, asked.type, asked.owed, asked.event_id) == (Kind.CONTROL, CANCEL, [owed], event_id)
    # Its owner has read both.
    await own(store)
    await store.settle([settle(progress=Progress(2, 2, 9000, (), ()))])
    view = await store.get_event(tenant, event_id)
    assert [delivery["status"] for delivery in view.deliveries] == ["cancelled"]


async def test_nothing_that_was_removed_is_replayed(store: PostgresStore) -> None:
    tenant = await new_tenant(store)
    owed = await new_endpoint(store, tenant)
    gone, there = await post(store, tenant, owed), await post(store, tenant, owed)
    await store.remove_payload(tenant, gone)
    with pytest.raises(Conflict, match="removed"):
        await store.append_replay(tenant, gone, None)
    await store.create_replay(tenant, uuid7(), ReplayFilter(status="any"), rate_limit=1000, running_max=10)
    step = await store.replay_step(LIMITS)
    assert step is not None and step.appended == 1
    rows = (await store.read({0: (0, 0)}, rows_max=10, bytes_max=1000))[0]
    assert [row.event_id for row in rows if row.kind == Kind.REPLAY] == [there]


async def test_another_tenants_payload_cannot_be_removed(store: PostgresStore, sql: Any) -> None:
    tenant, other = await new_tenant(store), await new_tenant(store)
    event_id = await post(store, tenant, uuid7())
    with pytest.raises(NotFound):
        await store.remove_payload(other, event_id)
    assert (await kept(sql, event_id))["payload"] is not None


async def test_a_deleted_tenants_payloads_all_go_and_nobody_elses(
    store: PostgresStore, sql: Any, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hookpost.storage.postgres.removals.EMPTIED_AT_ONCE", 2)
    tenant, other = await new_tenant(store), await new_tenant(store)
    owed = await new_endpoint(store, tenant)
    events = [await post(store, tenant, owed, where) for where in (None, objects, None, objects, None)]
    refs = [PayloadRef.parse(row["payload_ref"]) for e in events if (row := await kept(sql, e))["payload_ref"]]
    foreign = await post(store, other, uuid7(), objects)
    maintenance = Maintenance(store, objects, days_ahead=3, keep_days=30)
    await store.delete_tenant(tenant)
    assert await maintenance.once()
    assert (await kept(sql, events[0]))["payload"] is not None, "an append may still be under way"
    await sql.execute("update tenants set deleted_at = deleted_at - interval '2 min'")
    for _ in range(2):
        assert await maintenance.once()
    for event_id in events:
        row = await kept(sql, event_id)
        assert (row["payload"], row["payload_ref"]) == (None, str(REMOVED))
    for ref in refs:
        with pytest.raises(PayloadMissing):
            await objects.get(ref)
    assert await objects.get(PayloadRef.parse((await kept(sql, foreign))["payload_ref"]))
    assert await store.empty_tenant() is None


async def test_an_object_whose_store_is_away_is_removed_later(
    store: PostgresStore, sql: Any, objects: ObjectStore
) -> None:
    tenant = await new_tenant(store)
    event_id = await post(store, tenant, uuid7(), objects)
    await store.remove_payload(tenant, event_id)

    async def away(keys: Any) -> None:
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        await store.remove_objects(away, limit=10)
    assert await store.remove_objects(objects.delete, limit=10) == 1
