"""From the settle to the alert: nothing that was seen is lost in a crash, and nothing is told twice."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
import trustme
from uuid_utils.compat import uuid7

from hookpost.model import HEALTHY, EndpointStatus, Health, OperationalType
from hookpost.policy.alerts import Notice
from hookpost.storage.contract import Channel, DueAlert, FenceLost, Store
from tests.storage.driver import Driver, dead, event, new_endpoint, new_tenant, own, settle, version

EVENT = (Channel.EVENT,)
# The store's clock stands where there are partitions.
START = datetime.now(UTC) + timedelta(hours=1)


def after(seconds: int) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def notice(tenant: UUID, endpoint: UUID, type: str = "failing", failures: int = 50) -> Notice:
    return Notice(OperationalType(f"hookpost.endpoint.{type}"), tenant, endpoint, 1.8e9, failures, 1.8e9 - 60)


async def gathered(store: Store, *channels: Channel) -> list[DueAlert]:
    """All alerts that there are to tell now."""
    while await store.gather_alerts(channels or EVENT, limit=2):
        pass
    return [
        due for channel in channels or EVENT for due in await store.claim_alerts(channel, limit=100, lease_s=1000.0)
    ]


async def told(store: Store, *channels: Channel) -> list[tuple[str, UUID]]:
    return [
        (due.alert.type.removeprefix("hookpost."), due.alert.endpoint_id) for due in await gathered(store, *channels)
    ]


async def test_notices_are_written_with_the_settle_and_not_without_it(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    await own(store)
    with pytest.raises(FenceLost):
        await store.settle([settle(fence=7, notices=[notice(tenant, endpoint)], dead=[dead(endpoint, uuid7())])])
    assert await driver.rows("outbox") == []
    part = settle(notices=[notice(tenant, endpoint)])
    await store.settle([part])
    await store.settle([part])  # its commit was of unknown end
    assert len(await driver.rows("outbox")) == 1
    assert await told(store) == [("endpoint.failing", endpoint)]
    assert await driver.rows("outbox") == []


async def test_what_two_workers_saw_is_told_once_and_so_is_the_recovery(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    await own(store)
    failing, recovered = notice(tenant, endpoint), notice(tenant, endpoint, "recovered")
    await store.settle([settle(shard, notices=[failing]) for shard in (0, 1)])
    assert await told(store) == [("endpoint.failing", endpoint)]
    await store.settle([settle(2, notices=[failing])])
    assert await told(store) == []
    await store.settle([settle(shard, settle_no=2, notices=[recovered]) for shard in (0, 1)])
    assert await told(store) == [("endpoint.recovered", endpoint)]


async def test_nodes_that_gather_at_once_make_each_alert_once(driver: Driver) -> None:
    stores = [await driver.open() for _ in range(4)]
    tenant = await new_tenant(stores[0])
    endpoints = [await new_endpoint(stores[0], tenant) for _ in range(20)]
    await own(stores[0])
    await stores[0].settle([settle(notices=[notice(tenant, endpoint) for endpoint in endpoints])])
    await asyncio.gather(*(store.gather_alerts(EVENT, limit=3) for store in stores for _ in range(10)))
    claims = await asyncio.gather(*(gathered(store) for store in stores))
    assert sorted(due.alert.endpoint_id for claim in claims for due in claim) == sorted(endpoints)


async def test_dead_letters_are_told_at_once_and_then_once_a_minute_with_their_number(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint, other = [await new_endpoint(store, tenant) for _ in range(2)]
    await own(store)

    async def die(settle_no: int, count: int, of: UUID) -> list[UUID]:
        ids = [uuid7() for _ in range(count)]
        await store.settle([settle(settle_no=settle_no, dead=[dead(of, e, tenant_id=tenant) for e in ids])])
        return ids

    await driver.set_clock(after(0))
    first = await die(1, 3, endpoint)
    [due] = await gathered(store)
    assert said(due)["count"] == 3
    assert set(said(due)["event_ids"]) == {f"evt_{e.hex}" for e in first}
    await die(2, 30, endpoint)
    await die(3, 40, endpoint)
    await die(4, 1, other)
    assert await told(store) == [("delivery.dead", other)]
    await driver.set_clock(after(60))
    [due] = await gathered(store)
    assert (due.alert.endpoint_id, said(due)["count"]) == (endpoint, 70)


def said(due: DueAlert) -> dict[str, Any]:
    return dict(msgspec.json.decode(due.alert.payload)["data"])


async def test_the_death_of_an_operational_event_is_not_told_not_even_when_it_expires_unread(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant, ["hookpost.*"])
    await own(store)
    alert = event(tenant, type="hookpost.endpoint.failing", owed=(endpoint,))
    await store.append(0, [alert], await version(store, tenant))
    letters = [dead(endpoint, alert.event_id, tenant_id=tenant, type="")]
    letters += [dead(endpoint, uuid7(), tenant_id=tenant, type=type) for type in OperationalType]
    await store.settle([settle(dead=letters)])
    assert len(await driver.rows("dead_letters")) == 1 + len(OperationalType)
    assert await told(store) == []
    await store.settle([settle(settle_no=2, dead=[dead(endpoint, uuid7(), tenant_id=tenant, type="hookpost.test")])])
    assert await told(store) == [("delivery.dead", endpoint)]


async def test_an_endpoint_is_disabled_and_told_of_once(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    assert await store.disable_endpoint(tenant, endpoint, "it answered 410 Gone")
    assert not await store.disable_endpoint(tenant, endpoint, "nothing but failures for 5 days")
    [due] = await gathered(store)
    assert (due.alert.type, said(due)["reason"]) == ("hookpost.endpoint.disabled", "it answered 410 Gone")
    [row] = [row for row in await driver.rows("endpoints") if row["endpoint_id"] == endpoint]
    assert (row["status"], row["status_reason"]) == ("disabled", "it answered 410 Gone")


async def test_what_concerns_a_deleted_endpoint_or_tenant_is_dropped(driver: Driver) -> None:
    store = await driver.open()
    tenant, gone = [await new_tenant(store) for _ in range(2)]
    deleted, of_gone = await new_endpoint(store, tenant), await new_endpoint(store, gone)
    await own(store)
    await store.settle([settle(notices=[notice(tenant, deleted), notice(gone, of_gone)])])
    await store.delete_endpoint(tenant, deleted)
    await store.delete_tenant(gone)
    assert await told(store) == []
    assert await driver.rows("outbox") == []


async def test_an_alert_is_claimed_by_one_and_falls_due_again_when_that_one_dies(driver: Driver) -> None:
    stores = [await driver.open() for _ in range(3)]
    tenant = await new_tenant(stores[0])
    endpoint = await new_endpoint(stores[0], tenant)
    await own(stores[0])
    await driver.set_clock(after(0))
    await stores[0].settle([settle(notices=[notice(tenant, endpoint)])])
    await stores[0].gather_alerts(EVENT, limit=10)

    async def claim() -> list[DueAlert]:
        claims = await asyncio.gather(*(store.claim_alerts(Channel.EVENT, limit=10, lease_s=60.0) for store in stores))
        return [due for claim in claims for due in claim]

    [due] = await claim()
    assert due.tries == 1
    await driver.set_clock(after(59))
    assert await claim() == []
    await driver.set_clock(after(60))
    [again] = await claim()
    assert (again.alert_id, again.alert, again.tries) == (due.alert_id, due.alert, 2)
    await stores[0].postpone_alert(again, wait_s=3600.0)
    await driver.set_clock(after(3659))
    assert await claim() == []
    await driver.set_clock(after(3660))
    [last] = await claim()
    await stores[1].finish_alert(last)
    assert await driver.rows("alerts") == []


async def test_a_mail_goes_to_the_address_that_the_tenant_has_now(driver: Driver) -> None:
    store = await driver.open()
    tenant, silent = [await new_tenant(store) for _ in range(2)]
    endpoints = [await new_endpoint(store, of) for of in (tenant, silent)]
    await own(store)
    await store.update_tenant(tenant, {"alert_email": "old@example.com"})
    notices = [notice(of, endpoint) for of, endpoint in zip((tenant, silent), endpoints, strict=True)]
    await store.settle([settle(notices=notices)])
    await store.gather_alerts(list(Channel), limit=10)
    await store.update_tenant(tenant, {"alert_email": "new@example.com"})
    found = [due for channel in Channel for due in await store.claim_alerts(channel, limit=10, lease_s=9.0)]
    assert sorted((due.channel, due.alert.endpoint_id) for due in found) == sorted(
        [(channel, endpoints[0]) for channel in Channel]
        + [(channel, endpoints[1]) for channel in (Channel.EVENT, Channel.OPERATOR)]
    )
    assert {due.alert_email for due in found if due.alert.tenant_id == tenant} == {"new@example.com"}


# ---- health ----------------------------------------------------------------------------------------------------------


async def test_health_comes_back_to_the_next_owner_with_what_was_told(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    sick, well = [await new_endpoint(store, tenant) for _ in range(2)]
    await own(store)
    await store.write_health({sick: Health(51, 1.8e9, announced=True), well: HEALTHY})
    assert await health(store, sick) == Health(51, 1.8e9)
    assert await health(store, well) is HEALTHY
    await store.settle([settle(notices=[notice(tenant, sick)])])
    await store.gather_alerts(EVENT, limit=10)
    assert await health(store, sick) == Health(51, 1.8e9, announced=True)
    await store.write_health({sick: HEALTHY})
    await store.settle([settle(settle_no=2, notices=[notice(tenant, sick, "recovered")])])
    await store.gather_alerts(EVENT, limit=10)
    assert await health(store, sick) is HEALTHY


async def test_other_workers_hear_when_a_run_of_failures_begins_ends_or_is_announced(driver: Driver) -> None:
    store, other = [await driver.open() for _ in range(2)]
    tenant = await new_tenant(store)
    sick, well = [await new_endpoint(store, tenant) for _ in range(2)]
    await own(store)
    now = await store.ping()
    assert (await other.health_changes(now - 60, limit=10))[0] == {}
    await store.write_health({sick: Health(1, 1.8e9), well: HEALTHY})
    heard, more_after = await other.health_changes(now - 60, limit=10)
    assert heard == {sick: Health(1, 1.8e9)}
    assert more_after is None
    await store.settle([settle(notices=[notice(tenant, sick)])])
    await store.gather_alerts(EVENT, limit=10)
    assert (await other.health_changes(now - 60, limit=10))[0] == {sick: Health(1, 1.8e9, announced=True)}
    await other.write_health({sick: HEALTHY})
    assert (await store.health_changes(now - 60, limit=10))[0] == {sick: Health(0, None, announced=True)}


async def test_only_what_begins_or_ends_a_run_is_told_and_of_many_the_first(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoints = [await new_endpoint(store, tenant) for _ in range(3)]
    for endpoint in endpoints:
        await store.write_health({endpoint: Health(1, 1.8e9)})
    first, later = await store.health_changes(0.0, limit=2)
    assert list(first) == endpoints[:2]
    assert later is not None
    rest, more_after = await store.health_changes(later, limit=2)
    assert list(rest) == endpoints[2:]
    assert more_after is None
    await store.write_health({endpoints[0]: Health(2, 1.8e9)})
    assert list((await store.health_changes(later, limit=2))[0]) == endpoints[2:]


async def health(store: Store, endpoint_id: UUID) -> Health:
    [endpoint] = await store.load_endpoints([endpoint_id])
    return endpoint.health


@pytest.mark.parametrize(
    ("before", "change", "kept"),
    [
        ({"status": EndpointStatus.DISABLED}, {"status": EndpointStatus.ENABLED}, False),
        ({"status": EndpointStatus.PAUSED}, {"status": EndpointStatus.ENABLED}, False),
        ({}, {"url": "https://elsewhere.example/"}, False),
        ({}, {"status": EndpointStatus.ENABLED}, True),
        ({}, {"status": EndpointStatus.PAUSED}, True),
        ({}, {"description": "x"}, True),
    ],
)
async def test_an_endpoint_that_is_opened_again_or_moves_begins_anew(
    driver: Driver, before: dict[str, Any], change: dict[str, Any], kept: bool
) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    await store.update_endpoint(tenant, endpoint, before)
    await store.write_health({endpoint: Health(7, 1.8e9)})
    row = await store.update_endpoint(tenant, endpoint, change)
    assert (row["consecutive_failures"], row["failing_since"]) == ((7, 1.8e9) if kept else (0, None))


async def test_workers_that_write_the_same_endpoints_at_once_do_not_block_each_other(driver: Driver) -> None:
    stores = [await driver.open() for _ in range(4)]
    tenant = await new_tenant(stores[0])
    endpoints = [await new_endpoint(stores[0], tenant) for _ in range(30)]
    orders = (endpoints, endpoints[::-1])
    await asyncio.gather(
        *(store.write_health({e: Health(n, 1.8e9) for e in orders[n % 2]}) for store in stores for n in range(1, 11)),
        *(stores[0].update_endpoint(tenant, e, {"description": "x"}) for e in endpoints),
    )
    assert {(await health(stores[0], e)).failing_since for e in endpoints} == {1.8e9}


# Certificates are no part of the store in memory.
@pytest.mark.postgres
async def test_certificates_that_end_are_told_of_once_at_each_distance(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint, other = await new_endpoint(store, tenant), await new_endpoint(store, tenant)
    end = START + timedelta(days=30)
    leaf = trustme.CA().issue_cert("client.example", not_before=START - timedelta(days=30), not_after=end)
    pem = leaf.cert_chain_pems[0].bytes().decode()
    await store.update_endpoint(tenant, endpoint, {"tls": {"ca": pem}})

    async def look(days: float) -> list[tuple[str, str]]:
        await driver.set_clock(after(int(days * 86_400)))
        while await store.look_at_certificates(limit=1):
            pass
        found = await gathered(store)
        for due in found:
            await store.finish_alert(due)
        return [(said(due)["certificate"][:23], said(due)["expires_at"][:10]) for due in found]

    on = end.date().isoformat()
    assert await look(0) == [] == await look(15)
    assert await look(16.1) == [("the trusted certificate", on)] and await look(16.2) == []
    assert await look(29.1) == [("the trusted certificate", on)] and await look(31) == []
    await store.update_endpoint(tenant, endpoint, {"description": "x"})
    assert await look(32) == []
    await store.update_endpoint(tenant, other, {"tls": {"ca": pem}})
    assert await look(33) == [("the trusted certificate", on)], "another endpoint hears of its own"
    await store.update_endpoint(tenant, endpoint, {"tls": None})
    assert await look(34) == []
