"""A journal in Kafka: what was acknowledged is found at once, taken over once, and owed to whom it must be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from uuid_utils import uuid7 as mint
from uuid_utils.compat import uuid7

from hookpost.app.config import load
from hookpost.app.sharding import add
from hookpost.model import minted_at
from hookpost.pump import READ_AGAIN_S, TEND_S
from hookpost.storage.contract import NewEvent, NotFound, StoreUnavailable, TopicReplaced, Verdict
from hookpost.storage.kafka.clients import Patience
from hookpost.storage.kafka.record import encode
from tests.e2e.harness import ENCRYPTION_KEYS
from tests.e2e.processes import stopped
from tests.kafka.driver import LEASE_S, PATIENT, TAKE_S, Kafka
from tests.storage.driver import AGAIN_S, PATIENCE_S, SHARDS, event, new_endpoint, new_tenant, persist, version

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
    assert producer.flush(PATIENCE_S) == 0


def admin_of(driver: Kafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": driver.address.servers})


async def until_refused(
    ask: Callable[[], Awaitable[object]], said: str, by: type[StoreUnavailable] = StoreUnavailable
) -> None:
    """Ask until it is refused for this reason: brokers that are busy may say another one first, but never yes."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with pytest.raises(StoreUnavailable) as refused:
                await ask()
            if said in str(refused.value) and isinstance(refused.value, by):
                return
            await asyncio.sleep(AGAIN_S)


async def make_topic_anew(driver: Kafka) -> None:
    """Delete the topic and let it be made by whoever starts next."""
    tail = driver.store.tail
    before = await persist(tail.topic_id)
    admin = admin_of(driver)
    for done in admin.delete_topics([driver.address.topic]).values():
        done.result(PATIENCE_S)

    async def anew() -> None:
        await driver.store.prepare_topic()
        if await tail.topic_id() == before:
            raise StoreUnavailable("a broker has not heard yet that it was deleted")

    await persist(anew)


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
    taken = await other.get_event(tenant, sent.event_id)
    assert taken.event["created_at"] == view.event["created_at"]
    assert view.event.keys() == taken.event.keys() == (await api.event_of_any_day(tenant, sent.event_id)).event.keys()


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
    await driver.take_over(deposed)
    assert len(await driver.journal(0)) == 30
    await driver.pump_dry(successor)
    journal = await driver.journal(0)
    assert [row["event_id"] for row in journal] == [each.event_id for each in (*first, *second)]
    assert [row["seq"] for row in journal] == list(range(1, 61))


async def test_wide_fan_outs_are_taken_over_as_they_were_accepted(driver: Kafka) -> None:
    """A hundred events owed to 1000 endpoints each."""
    api = driver.store
    tenant = await new_tenant(api)
    wide, other = tuple(uuid7() for _ in range(1000)), tuple(uuid7() for _ in range(1000))
    events = [event(tenant, owed=wide if n % 2 else other) for n in range(100)]
    answers = await api.append(0, events, await version(api, tenant))
    assert {answer.delivery_count for answer in answers} == {1000}
    await driver.pump_dry()
    assert [tuple(row["owed"]) for row in await driver.journal(0)] == [other, wide] * 50


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
    unknown, not_for = event(tenant, owed=()), event(tenant, owed=(known,), without=created)
    put(driver, 0, [sent, aimed, unknown, not_for], outdated)
    views = [await api.get_event(tenant, each.event_id) for each in (sent, aimed, unknown, not_for)]
    await driver.pump_dry()
    shards = [row for shard in range(4) for row in await driver.journal(shard)]
    owed = {row["event_id"]: set(row["owed"]) for row in shards}
    both = {known, created}
    assert owed == {sent.event_id: both, aimed.event_id: {known}, unknown.event_id: both, not_for.event_id: {known}}
    # And so it was shown while it waited.
    shown = {view.event["event_id"]: {delivery["endpoint_id"] for delivery in view.deliveries} for view in views}
    assert shown == owed
    assert {view.event["status"] for view in views} == {"pending"}


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
    dropped, after = event(gone), event(tenant)
    await api.append(0, [dropped, after], versions)
    await api.delete_tenant(gone)
    with pytest.raises(NotFound):
        await api.get_event(None, dropped.event_id)
    await driver.pump_dry()
    assert [row["event_id"] for row in await driver.journal(0)] == [after.event_id]


async def test_a_record_that_is_no_event_is_left_out_and_holds_nobody_up(driver: Kafka) -> None:
    api = driver.store
    tenant = await new_tenant(api)
    producer = Producer({"bootstrap.servers": driver.address.servers})
    producer.produce(driver.address.topic, b"\xc1 not msgpack", b"", 0)
    assert producer.flush(PATIENCE_S) == 0
    after = event(tenant)
    await api.append(0, [after], await version(api, tenant))
    await driver.pump_dry()
    assert [row["event_id"] for row in await driver.journal(0)] == [after.event_id]


async def test_an_event_without_a_key_is_accepted_while_the_database_stands_still(driver: Kafka) -> None:
    api = await driver.open_kafka(patience=Patience())
    tenant = await new_tenant(api)
    versions = await version(api, tenant)
    [row] = await driver.run("select pg_backend_pid() as pid")
    postmaster = int(Path(f"/proc/{row['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    sent = [event(tenant), event(tenant)]
    with stopped(postmaster):
        for each in sent:
            [answer] = await api.append(0, [each], versions)
            assert answer.verdict is NEW
    await driver.pump_dry()
    assert [row["event_id"] for row in await driver.journal(0)] == [each.event_id for each in sent]


# ---- more shards ------------------------------------------------------------------------------------------------------


async def test_shards_that_are_added_take_events_at_once_from_whoever_runs_already(
    driver: Kafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`hookpost shards add` beside an API process that has written, and a worker that has read."""
    api = driver.store
    tenant = await new_tenant(api)
    versions = await version(api, tenant)
    owned = dict(driver.owned)
    pump, _ = driver.new_pump(owned)
    await api.append(0, [event(tenant)], versions)
    await driver.pump_dry(pump)

    monkeypatch.setenv("HOOKPOST_ENCRYPTION_KEYS", ENCRYPTION_KEYS)
    monkeypatch.setenv("HOOKPOST_JOURNAL_URL", f"kafka://{driver.address.servers}/{driver.address.topic}")
    assert await add(load(), driver.dsn, pool="default", count=2) == SHARDS + 2
    sent = event(tenant)
    await api.append(SHARDS + 1, [sent], versions)
    claimed = await api.claim(driver.node_id, pool="default", limit=2, lease_s=LEASE_S)
    owned.update((each.shard, each.fence) for each in claimed)
    await driver.pump_dry(pump)
    assert [row["event_id"] for row in await driver.journal(SHARDS + 1)] == [sent.event_id]
    assert "cannot be read" not in caplog.text


async def test_an_event_that_waits_in_a_shard_added_a_moment_ago_is_found_by_whoever_looked_before(
    driver: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka would remember for a quarter of an hour how many partitions there were."""
    api, other = driver.store, await driver.open_kafka()
    tenant = await new_tenant(api)
    versions = await version(api, tenant)
    before, sent = event(tenant), event(tenant)
    await api.append(0, [before], versions)
    assert (await other.get_event(tenant, before.event_id)).event["event_id"] == before.event_id

    monkeypatch.setenv("HOOKPOST_ENCRYPTION_KEYS", ENCRYPTION_KEYS)
    monkeypatch.setenv("HOOKPOST_JOURNAL_URL", f"kafka://{driver.address.servers}/{driver.address.topic}")
    await add(load(), driver.dsn, pool="default", count=2)
    await api.append(SHARDS + 1, [sent], versions)
    assert (await other.get_event(tenant, sent.event_id)).event["event_id"] == sent.event_id
    assert (await other.lag())[SHARDS + 1] == 1


async def test_partitions_that_are_there_are_read_though_those_of_new_shards_cannot_be_made(driver: Kafka) -> None:
    """A user that may not alter the topic, or brokers that are too few: a worker that starts reads what is there."""
    api = driver.store
    tenant = await new_tenant(api)
    sent = event(tenant)
    await api.append(0, [sent], await version(api, tenant))

    async def refuse(_partitions: int) -> None:
        raise StoreUnavailable("prepare the topic: not allowed")

    pump = driver.new_pump(ensure=refuse)[0]
    await pump.follow()
    await driver.take_over(pump)
    assert [row["event_id"] for row in await driver.journal(0)] == [sent.event_id]


async def test_an_event_is_not_said_to_be_nowhere_while_a_shard_has_no_partition(driver: Kafka) -> None:
    """Others may know of the partition already, and have written to it."""
    api = driver.store
    tenant = await new_tenant(api)
    sent = event(tenant)
    await api.append(0, [sent], await version(api, tenant))
    await api.grow_pool("default", SHARDS + 1, shards_max=100)
    hurried = await driver.open_kafka(patience=replace(PATIENT, heard_s=0.1))
    # A broker that is busy may not have heard yet of the others either.
    found = await persist(lambda: hurried.get_event(tenant, sent.event_id))
    assert found.event["event_id"] == sent.event_id
    await until_refused(lambda: hurried.get_event(tenant, uuid7()), f"no partition {SHARDS} yet")
    async with asyncio.timeout(PATIENCE_S):
        while len(lag := await persist(hurried.lag)) < SHARDS:
            await asyncio.sleep(AGAIN_S)
    assert lag == {0: 1, 1: 0, 2: 0, 3: 0}
    # Nor is it known which payloads are nobody's.
    assert await hurried.sweepable_hours(age_s=0.0) < 0
    await api.prepare_topic()
    with pytest.raises(NotFound):
        await api.get_event(tenant, uuid7())


# ---- records that are gone --------------------------------------------------------------------------------------------


async def test_a_shard_whose_records_are_gone_stands_still_until_somebody_says_where_to_go_on(
    driver: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """Retention has passed; here it is let pass by hand."""
    api = driver.store
    tenant = await new_tenant(api)
    versions = await version(api, tenant)
    first, gone, left = event(tenant), event(tenant), event(tenant)
    await api.append(0, [first], versions)
    await driver.pump_dry()
    await api.append(0, [gone, left], versions)
    admin = admin_of(driver)
    done = admin.delete_records([TopicPartition(driver.address.topic, 0, 2)])
    assert [answer.result(PATIENCE_S).low_watermark for answer in done.values()] == [2]

    now = 0.0
    pump, _ = driver.new_pump(monotonic=lambda: now)
    await persist(pump.follow)
    async with asyncio.timeout(PATIENCE_S):
        while "partition of shard 0 cannot be read" not in caplog.text:
            await pump.once(TAKE_S)
    assert [row["event_id"] for row in await driver.journal(0)] == [first.event_id]

    # As docs/kafka.md has it.
    await driver.run("insert into journal_offsets values (0, 2, now())")
    now += READ_AGAIN_S
    await driver.pump_dry(pump)
    assert [row["event_id"] for row in await driver.journal(0)] == [first.event_id, left.event_id]


async def test_a_partition_whose_records_do_not_come_is_read_anew(
    driver: Kafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that has stopped to bring them and says nothing; here it is one that loses what it was assigned."""
    api, now = driver.store, 0.0
    tenant = await new_tenant(api)
    sent = event(tenant)
    pump, reader = driver.new_pump(monotonic=lambda: now)
    await persist(pump.follow)
    assigned = [place for place in reader._consumer.assignment() if place.partition == 0]
    await reader.drop([0])
    assert assigned and not [place for place in reader._consumer.assignment() if place.partition == 0]
    await api.append(0, [sent], await version(api, tenant))
    for _ in range(2):  # a look remembers, the next one finds that nothing came in between
        now += TEND_S
        await persist(pump.follow)
        assert await driver.journal(0) == []
    await driver.pump_dry(pump)
    assert [row["event_id"] for row in await driver.journal(0)] == [sent.event_id]
    assert "1 records of the partition of shard 0 did not come" in caplog.text


async def test_a_topic_that_was_made_anew_is_read_by_nobody_until_somebody_says_so(driver: Kafka) -> None:
    """By then it may hold more than the old one did: whoever read on at the old offset would leave events out."""
    api, other = driver.store, await driver.open_kafka()
    tenant = await new_tenant(api)
    versions = await version(api, tenant)
    old, looked_at, now = [event(tenant) for _ in range(3)], event(tenant), 0.0
    await api.append(0, old, versions)
    running, _ = driver.new_pump(monotonic=lambda: now)
    await driver.pump_dry(running)
    await api.append(1, [looked_at], versions)
    assert (await other.get_event(tenant, looked_at.event_id)).event["event_id"] == looked_at.event_id

    await make_topic_anew(driver)
    # Whoever ran before writes and finds what waits there, also behind the old offset.
    sent = [event(tenant) for _ in range(2)]
    await persist(lambda: api.append(0, sent[:1], versions))
    assert (await persist(lambda: other.get_event(tenant, sent[0].event_id))).event["event_id"] == sent[0].event_id
    assert (await persist(other.lag))[0] >= 1
    await persist(lambda: api.append(0, [*sent[1:], *(event(tenant) for _ in range(3))], versions))
    now = TEND_S
    # Whoever read it lets go of it, and whoever starts does not begin.
    for ask in (running.follow, running.follow, driver.new_pump()[0].follow, api.journal_state):
        await until_refused(ask, "made anew", TopicReplaced)
    assert await running.once(TAKE_S) == 0
    assert [row["event_id"] for row in await driver.journal(0)] == [each.event_id for each in old]

    # As docs/kafka.md has it.
    await driver.run("truncate journal_offsets, journal_ends")
    await driver.run("delete from platform where name = 'journal_topic'")
    await driver.pump_dry(driver.new_pump()[0])
    taken = [row["event_id"] for row in await driver.journal(0)]
    assert {each.event_id for each in (*old, *sent)} <= set(taken)


# ---- what waits ---------------------------------------------------------------------------------------------------------


async def test_a_replay_of_an_event_waits_until_it_was_taken_over(driver: Kafka) -> None:
    api = driver.store
    tenant = await new_tenant(api)
    endpoint = await new_endpoint(api, tenant)
    sent = event(tenant, owed=(endpoint,))
    await api.append(0, [sent], await version(api, tenant))
    hurried = await driver.open_kafka(patience=replace(PATIENT, taken_over_s=0.1))
    with pytest.raises(StoreUnavailable, match="waits for a worker"):
        await hurried.append_replay(tenant, sent.event_id, None)
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
    assert ([shard.lag for shard in figures.shards], figures.journal_up) == ([0, 0, 0, 7], True)
    # An object of an event that waits is no orphan: nothing behind what was taken over is swept.
    assert await api.sweepable_hours(age_s=0.0) < 0
    await driver.pump_dry()
    assert not any((await api.lag()).values())
    assert await api.sweepable_hours(age_s=0.0) > 0
    assert await api.journal_fault(PATIENCE_S) is None
