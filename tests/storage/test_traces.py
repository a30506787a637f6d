"""The trace that an event was posted in comes back to whoever sends it, from the journal and from the backlog."""

from __future__ import annotations

from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.engine.work import ATTEMPT_COLUMNS
from hookpost.storage.contract import NewEvent
from tests.storage.driver import Driver, attempt, new_endpoint, new_tenant, own, settle

TRACE, SPAN = UUID("4bf92f3577b34da6a3ce929d0e0e4736"), bytes.fromhex("00f067aa0ba902b701")


async def test_the_trace_of_an_event_is_read_with_it_and_only_its_own(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    routes = await store.load_routes(tenant)
    assert routes is not None
    events = [
        NewEvent(uuid7(), tenant, "a.b", b"{}", (endpoint,), trace_id=TRACE, span=SPAN),
        NewEvent(uuid7(), tenant, "a.b", b"{}", (endpoint,)),
        NewEvent(uuid7(), tenant, "a.b", b"{}", (endpoint,), trace_id=TRACE),
    ]
    await store.append(0, events, {tenant: routes.config_version})
    found = await store.read({0: (0, 0)}, rows_max=10, bytes_max=1000)
    assert [row.trace for row in found[0]] == [TRACE.bytes + SPAN, None, None]


async def test_an_endpoint_is_told_the_producers_trace_only_if_it_says_so(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    [loaded] = await store.load_endpoints([endpoint])
    assert loaded.forward_trace is False
    await store.update_endpoint(tenant, endpoint, {"forward_trace": True})
    [loaded] = await store.load_endpoints([endpoint])
    assert loaded.forward_trace is True


@pytest.mark.postgres
async def test_an_attempt_keeps_the_trace_that_its_receiver_was_told(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    tries = [attempt(uuid7(), trace_id=TRACE.bytes), attempt(uuid7())]
    await store.settle([settle(attempts=tries)])
    kept = {row["endpoint_id"]: row["trace_id"] for row in await driver.rows("attempts")}
    assert kept == {
        row[ATTEMPT_COLUMNS.index("endpoint_id")]: trace for row, trace in zip(tries, [TRACE, None], strict=True)
    }
