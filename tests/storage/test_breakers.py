"""Breakers as the store keeps them: shared, never put back, and one probe for the whole fleet."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost.policy.breaker import BreakerRecord, BreakerState
from hookpost.storage.contract import RECOVERED_S, Store
from tests.storage.driver import Driver, new_tenant

ORIGIN = "https://a.example"


async def opened(store: Store, tenant: UUID, *, ago_s: float = 60.0) -> BreakerRecord:
    """A breaker that opened a while ago, and whose pause ended half of that later."""
    now = (await store.survey("default")).now
    record = BreakerRecord(tenant, ORIGIN, BreakerState.OPEN, now - ago_s, now - ago_s / 2, 1, 5)
    await store.save_breakers([record])
    return record


async def test_one_worker_of_the_fleet_gets_the_probe(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    await opened(store, tenant)
    asked = [(tenant, ORIGIN)]
    [first] = await store.take_probes(uuid7(), asked, probe_s=40.0)
    [second] = await store.take_probes(uuid7(), asked, probe_s=40.0)
    assert (first.granted, second.granted) == (True, False)
    assert second.record.state is BreakerState.HALF_OPEN
    assert second.until > first.record.since + 35


async def test_a_probe_that_was_never_answered_goes_to_the_next(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    await opened(store, tenant)
    asked = [(tenant, ORIGIN)]
    assert (await store.take_probes(uuid7(), asked, probe_s=0.0))[0].granted
    assert (await store.take_probes(uuid7(), asked, probe_s=40.0))[0].granted


async def test_a_worker_whose_failed_probe_is_not_stored_yet_may_probe_again(driver: Driver) -> None:
    store = await driver.open()
    tenant, worker = await new_tenant(store), uuid7()
    await opened(store, tenant)
    asked = [(tenant, ORIGIN)]
    assert (await store.take_probes(worker, asked, probe_s=40.0))[0].granted
    assert (await store.take_probes(worker, asked, probe_s=40.0))[0].granted
    assert not (await store.take_probes(uuid7(), asked, probe_s=40.0))[0].granted


async def test_nobody_probes_before_the_pause_is_over_or_when_it_is_closed(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    record = await opened(store, tenant)
    later = replace(record, since=record.since + 5, reopen_at=record.since + 600)
    await store.save_breakers([later])
    [probe] = await store.take_probes(uuid7(), [(tenant, ORIGIN)], probe_s=40.0)
    assert not probe.granted
    assert abs(probe.until - (record.since + 600)) < 1e-3
    closed = replace(record, state=BreakerState.CLOSED, since=record.since + 9, reopen_at=None)
    await store.save_breakers([closed])
    [probe] = await store.take_probes(uuid7(), [(tenant, ORIGIN)], probe_s=40.0)
    assert (probe.granted, probe.record.state) == (False, BreakerState.CLOSED)


async def test_what_nobody_has_stored_may_be_probed_by_whoever_asks(driver: Driver) -> None:
    store = await driver.open()
    [probe] = await store.take_probes(uuid7(), [(uuid7(), ORIGIN)], probe_s=40.0)
    assert probe.granted


async def test_older_news_changes_nothing_and_a_change_is_found_by_others(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    record = await opened(store, tenant)
    now = await store.ping()
    await store.save_breakers([replace(record, state=BreakerState.CLOSED, since=record.since - 30, reopen_at=None)])
    assert [r.state for r in await store.load_breakers([tenant], since=None)] == [BreakerState.OPEN]
    assert tenant in await store.changed_tenants(now)
    closed = replace(record, state=BreakerState.CLOSED, since=now, reopen_at=None)
    await store.save_breakers([closed])
    # A new owner brings forward what the last one did not live to.
    assert [r.state for r in await store.load_breakers([tenant], since=None)] == [BreakerState.CLOSED]
    assert [r.state for r in await store.load_breakers([tenant], since=now - 1)] == [BreakerState.CLOSED]


async def test_of_a_receiver_that_recovered_long_ago_nobody_hears(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    record = await opened(store, tenant)
    now = await store.ping()
    await store.save_breakers(
        [replace(record, origin="https://b.example", state=BreakerState.CLOSED, since=now - RECOVERED_S - 1)]
    )
    assert [r.origin for r in await store.load_breakers([tenant], since=None)] == [ORIGIN]


async def test_enabling_an_endpoint_closes_the_breaker_of_its_receiver_and_tells_the_workers(driver: Driver) -> None:
    store = await driver.open()
    tenant, other = await new_tenant(store), await new_tenant(store)
    record = await opened(store, tenant)
    await opened(store, other)
    await store.save_breakers([replace(record, origin="https://b.example")])
    endpoint_id = uuid7()
    values = {"endpoint_id": endpoint_id, "tenant_id": tenant, "url": f"{ORIGIN}/hook"}
    await store.create_endpoint(values, b"k" * 24, endpoints_max=100)
    assert (await store.take_probes(uuid7(), [(tenant, ORIGIN)], probe_s=40.0))[0].granted
    before = await store.ping()
    enabled = await store.update_endpoint(tenant, endpoint_id, {"status": "enabled"})
    assert (enabled["breaker_state"], enabled["breaker_reopen_at"]) == ("closed", None)
    changed = await store.changed_tenants(before)
    assert changed[tenant] > before
    [closed] = [r for r in await store.load_breakers([tenant], since=before) if r.origin == ORIGIN]
    assert (closed.state, closed.failures, closed.openings) == (BreakerState.CLOSED, 0, 0)
    assert closed.since > before
    # Neither another receiver of the tenant nor another tenant at the same one.
    left = await store.load_breakers([tenant, other], since=None)
    assert {(r.tenant_id, r.origin) for r in left if r.state is not BreakerState.CLOSED} == {
        (tenant, "https://b.example"),
        (other, ORIGIN),
    }


async def test_what_follows_is_later_than_an_opening_told_of_by_a_clock_ahead(driver: Driver) -> None:
    store = await driver.open()
    tenant, endpoint_id = await new_tenant(store), uuid7()
    await store.create_endpoint(
        {"endpoint_id": endpoint_id, "tenant_id": tenant, "url": f"{ORIGIN}/hook"}, b"k" * 24, endpoints_max=100
    )
    record = await opened(store, tenant)
    ahead = replace(record, since=record.since + 150)
    await store.save_breakers([ahead])
    [probe] = await store.take_probes(uuid7(), [(tenant, ORIGIN)], probe_s=40.0)
    assert probe.granted
    assert probe.record.since > ahead.since
    await store.update_endpoint(tenant, endpoint_id, {"status": "enabled"})
    [closed] = await store.load_breakers([tenant], since=ahead.since)
    assert closed.state is BreakerState.CLOSED
    assert closed.since > probe.record.since


async def test_pausing_an_endpoint_leaves_the_breaker_as_it_is(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    await opened(store, tenant)
    endpoint_id = uuid7()
    values = {"endpoint_id": endpoint_id, "tenant_id": tenant, "url": f"{ORIGIN}/hook"}
    await store.create_endpoint(values, b"k" * 24, endpoints_max=100)
    paused = await store.update_endpoint(tenant, endpoint_id, {"status": "paused"})
    assert paused["breaker_state"] == "open"
