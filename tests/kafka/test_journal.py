"""A journal in Kafka: what was acknowledged is found at once, taken over once, and owed to whom it must be."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

import pytest
from confluent_kafka import Producer
from uuid_utils import uuid7 as mint
from uuid_utils.compat import uuid7

from hookpost.model import minted_at
from hookpost.storage.contract import NewEvent, NotFound, StoreUnavailable, Verdict
from hookpost.storage.kafka.record import encode
from tests.kafka.driver import Kafka
from tests.storage.driver import event, new_endpoint, new_tenant, version

pytestmark = pytest.mark.kafka

NEW, DUPLICATE, CONFLICT = Verdict.NEW, Verdict.DUPLICATE, Verdict.CONFLICT


def keyed(tenant: UUID, key: str, request: bytes = b"same") -> NewEvent:
    return event(tenant, key=key, request_hash=request)


def put(driver: Kafka, partition: int, events: list[NewEvent], versions: dict[UUID, int]) -> None:
    """Records as a process writes them that was told of no change, or of no record before."""
    producer = Producer({"bootstrap.servers": driver.address.servers})
    for sent in events:
        data = encode(sent, version=versions[sent.tenant_id], accepted_at=minted_at(sent.event_id))
        producer.produce(driver.address.topic, data, sent.event_id.bytes, partition)
    assert producer.flush(20) == 0


async def test_what_was_acknowledged_is_found_before_it_is_taken_over_and_taken_over_once(driver: Kafka) -> None:
    api, other = driver.store, await driver.open_kafka()
    tenant = await new_tenant(api)
    endpoint = await new_endpoint(api, tenant)
    sent = event(tenant, owed=(endpoint,), payload=b'{"n":1}')
    answer = await api.append(1, [sent], await version(api, tenant))
    assert answer[0].verdict is NEW

    view = await other.get_event(tenant, sent.event_id)
    assert (view.event["payload"], view.event["status"]) == (b'{"n":1}', "pending")
    assert [(d["endpoint_id"], d["status"]) for d in view.deliveries] == [(endpoint, "queued")]
    with pytest.raises(NotFound):
        await other.get_event((await new_tenant(api)), sent.event_id)
    assert await driver.journal(1) == []

    await driver.pump_dry()
    [row] = await driver.journal(1)
    assert (row["event_id"], bytes(row["payload"]), row["owed"]) == (sent.event_id, b'{"n":1}', [endpoint])
    assert (await other.get_event(tenant, sent.event_id)).event["created_at"] == view.event["created_at"]


async def test_an_event_that_never_was_is_not_found(driver: Kafka) -> None:
    api = driver.store
    tenant = await new_tenant(api)
    await api.append(1, [event(tenant)], await version(api, tenant))
    with pytest.raises(NotFound):
        await api.get_event(tenant, uuid7())


async def test_numbers_stay_gapless_when_the_owner_changes_in_between(driver: Kafka) -> None:
    api = driver.store
    tenant = await new_tenant(api)
    versions = await version(api, tenant)
    first = [event(tenant) for _ in range(30)]
    await api.append(0, first, versions)
    await driver.pump_dry()
    await driver.own()
    deposed, (successor, _) = driver.pump, driver.new_pump()
    second = [event(tenant) for _ in range(30)]
    await api.append(0, second, versions)
    # The one before has not heard of it yet, and reads the same records.
    assert await deposed.once(5.0) == 30
    assert len(await driver.journal(0)) == 30
    await driver.pump_dry(successor)
    journal = await driver.journal(0)
    assert [row["event_id"] for row in journal] == [each.event_id for each in (*first, *second)]
    assert [row["seq"] for row in journal] == list(range(1, 61))


# ---- idempotency keys ------------------------------------------------------------------------------------------------


async def test_a_key_is_reserved_then_appended_and_another_request_is_refused_at_both_times(driver: Kafka) -> None:
    api, other = driver.store, await driver.open_kafka()
    tenant = await new_tenant(api)
    versions = await version(api, tenant)
    [first] = await api.append(0, [keyed(tenant, "k")], versions)
    [again] = await other.append(1, [keyed(tenant, "k")], versions)
    [different] = await other.append(1, [keyed(tenant, "k", b"different")], versions)
    assert (first.verdict, again.verdict, different.verdict) == (NEW, DUPLICATE, CONFLICT)
    assert again.event_id == first.event_id

    await driver.pump_dry()
    assert [row["event_id"] for row in (*await driver.journal(0), *await driver.journal(1))] == [first.event_id]
    [late] = await other.append(1, [keyed(tenant, "k")], versions)
    [late_different] = await other.append(1, [keyed(tenant, "k", b"different")], versions)
    assert (late.verdict, late.event_id, late_different.verdict) == (DUPLICATE, first.event_id, CONFLICT)
    assert not any((await api.lag()).values())


async def test_a_key_that_was_reserved_by_a_process_that_died_is_taken_up_by_the_retry(driver: Kafka) -> None:
    api = driver.store
    tenant = await new_tenant(api)
    died = keyed(tenant, "k")
    await api.reserve([died])
    [retry] = await api.append(2, [keyed(tenant, "k")], await version(api, tenant))
    assert retry.event_id == died.event_id
    await driver.pump_dry()
    assert [row["event_id"] for row in await driver.journal(2)] == [died.event_id]


async def test_many_requests_with_one_key_at_once_make_one_event(driver: Kafka) -> None:
    api, other = driver.store, await driver.open_kafka()
    tenant = await new_tenant(api)
    versions = await version(api, tenant)
    calls = ((api, other)[n % 2].append(n % 4, [keyed(tenant, "k")], versions) for n in range(12))
    answers = [answer for [answer] in await asyncio.gather(*calls)]
    assert sorted(a.verdict for a in answers) == [NEW] + [DUPLICATE] * 11
    assert len({a.event_id for a in answers}) == 1
    await driver.pump_dry()
    rows = [row for shard in range(4) for row in await driver.journal(shard)]
    assert [row["event_id"] for row in rows] == [answers[0].event_id]


async def test_a_record_that_lies_there_twice_is_one_event_in_one_batch_or_two(driver: Kafka) -> None:
    api = driver.store
    tenant = await new_tenant(api)
    versions = await version(api, tenant)
    first, second = keyed(tenant, "a"), keyed(tenant, "b")
    await api.reserve([first, second])
    put(driver, 0, [first, first], versions)
    await driver.pump_dry()
    put(driver, 0, [first, first, second, second], versions)
    await driver.pump_dry()
    # Its key is forgotten one day, and a record may be late.
    await driver.run("delete from idempotency_keys")
    put(driver, 1, [first, first], versions)
    await driver.pump_dry()
    assert [row["event_id"] for row in await driver.journal(0)] == [first.event_id, second.event_id]
    assert await driver.journal(1) == []


# ---- the configuration, once more -------------------------------------------------------------------------------------


async def test_an_endpoint_that_was_there_before_the_event_is_owed_it_though_ingest_did_not_know(driver: Kafka) -> None:
    api = driver.store
    tenant = await new_tenant(api)
    known = await new_endpoint(api, tenant)
    outdated = await version(api, tenant)
    created = await new_endpoint(api, tenant)
    sent, aimed = event(tenant, owed=(known,)), event(tenant, owed=(known,), targeted=True)
    not_for = event(tenant, owed=(known,), without=created)
    put(driver, 0, [sent, aimed, not_for], outdated)
    await driver.pump_dry()
    shards = [row for shard in range(4) for row in await driver.journal(shard)]
    owed = {row["event_id"]: set(row["owed"]) for row in shards}
    assert owed == {sent.event_id: {known, created}, aimed.event_id: {known}, not_for.event_id: {known}}


async def test_an_endpoint_that_came_long_after_an_event_is_not_owed_it(driver: Kafka) -> None:
    api = driver.store
    tenant = await new_tenant(api)
    outdated = await version(api, tenant)
    early = event(tenant, event_id=UUID(bytes=mint(nanoseconds=time.time_ns() - 60 * 10**9).bytes))
    await api.append(0, [early], outdated)
    late = await new_endpoint(api, tenant)
    await driver.pump_dry()
    [row] = [row for shard in range(4) for row in await driver.journal(shard)]
    assert row["event_id"] == early.event_id
    assert late not in row["owed"]


async def test_events_of_a_tenant_that_moved_go_to_its_present_home(driver: Kafka) -> None:
    api = driver.store
    tenant = await new_tenant(api)
    [home] = (await api.load_routes(tenant)).home_shards  # type: ignore[union-attr]
    outdated = await version(api, tenant)
    sent = [event(tenant) for _ in range(3)]
    away = (home + 1) % 4
    await api.append(home, sent, outdated)
    await driver.run(
        "update tenants set home_shards = array[$2::int], config_version = config_version + 1 where tenant_id = $1",
        tenant, away,
    )  # fmt: skip
    await driver.pump_dry()
    assert await driver.journal(home) == []
    assert [row["event_id"] for row in await driver.journal(away)] == [each.event_id for each in sent]


async def test_a_deleted_tenants_events_are_dropped_and_hold_nobody_up(driver: Kafka) -> None:
    api = driver.store
    gone, tenant = await new_tenant(api), await new_tenant(api)
    versions = {**await version(api, gone), **await version(api, tenant)}
    after = event(tenant)
    await api.append(0, [event(gone), after], versions)
    await api.delete_tenant(gone)
    await driver.pump_dry()
    assert [row["event_id"] for row in await driver.journal(0)] == [after.event_id]


async def test_a_record_that_is_no_event_is_left_out_and_holds_nobody_up(driver: Kafka) -> None:
    api = driver.store
    tenant = await new_tenant(api)
    producer = Producer({"bootstrap.servers": driver.address.servers})
    producer.produce(driver.address.topic, b"\xc1 not msgpack", b"", 0)
    assert producer.flush(20) == 0
    after = event(tenant)
    await api.append(0, [after], await version(api, tenant))
    await driver.pump_dry()
    assert [row["event_id"] for row in await driver.journal(0)] == [after.event_id]


# ---- what waits ---------------------------------------------------------------------------------------------------------


async def test_a_replay_of_an_event_waits_until_it_was_taken_over(driver: Kafka) -> None:
    api = driver.store
    tenant = await new_tenant(api)
    endpoint = await new_endpoint(api, tenant)
    sent = event(tenant, owed=(endpoint,))
    await api.append(0, [sent], await version(api, tenant))
    with pytest.raises(StoreUnavailable, match="waits for a worker"):
        await api.append_replay(tenant, sent.event_id, None)
    replaying = asyncio.create_task(api.append_replay(tenant, sent.event_id, None))
    await driver.pump_dry()
    assert await replaying == 1


async def test_lag_and_the_topics_state_are_told(driver: Kafka) -> None:
    api = driver.store
    tenant = await new_tenant(api)
    await api.append(3, [event(tenant) for _ in range(7)], await version(api, tenant))
    lag, weakness = await api.journal_state()
    assert (lag, weakness) == ({0: 0, 1: 0, 2: 0, 3: 7}, None)
    figures = await api.platform_figures(backlog_max=10, tenants_max=1)
    assert [shard.lag for shard in figures.shards] == [0, 0, 0, 7]
    # An object of an event that waits is no orphan: nothing behind what was taken over is swept.
    assert await api.sweepable_hours(age_s=0.0) < 0
    await driver.pump_dry()
    assert not any((await api.lag()).values())
    assert await api.sweepable_hours(age_s=0.0) > 0
    assert await api.journal_fault(5.0) is None
