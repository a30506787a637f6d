"""Alerts end to end: an endpoint that fails, and everybody who should hear of it, once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import pytest_asyncio

from hookpost.policy.signing import show_secret
from tests.e2e.harness import ADMIN_KEY, Arrival, Hookpost, Receiver, answer, receiver, running
from tests.smtp import Mailbox, mailbox

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

ALERT_AFTER = 3
OPERATOR_SECRET = show_secret(b"o" * 24)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box() -> AsyncIterator[Mailbox]:
    async with mailbox() as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hooks() -> AsyncIterator[Receiver]:
    async with receiver() as opened:
        opened.secrets["/operator"] = OPERATOR_SECRET
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(box: Mailbox, hooks: Receiver) -> AsyncIterator[Hookpost]:
    async with serving(box, hooks) as started:
        yield started


def serving(box: Mailbox, hooks: Receiver, **settings: str) -> AbstractAsyncContextManager[Hookpost]:
    """A server that alerts soon, everywhere. All receivers of these tests share a host, so no breaker may open: it would
    hold the alerts together with what they tell of."""
    return running(
        "--workers",
        "2",
        breaker_failures="1000",
        alert_after_failures=str(ALERT_AFTER),
        retry_base_s="0.3",
        alert_url=hooks.url("/operator"),
        alert_secret=OPERATOR_SECRET,
        smtp_host="127.0.0.1",
        smtp_port=str(box.port),
        smtp_tls="none",
        smtp_from="hookpost@example.org",
        **settings,
    )


async def new_tenant(server: Hookpost, name: str) -> str:
    """A tenant on one shard with an address; its key."""
    body = {"name": name, "alert_email": f"{name}@example.com"}
    tenant = await server.call("POST", "/v1/tenants", body, key=ADMIN_KEY, expect=201)
    path = f"/v1/tenants/{tenant['tenant_id']}/api_keys"
    return str((await server.call("POST", path, {"name": "all"}, key=ADMIN_KEY, expect=201))["key"])


def saying(hooks: Receiver, path: str, status: int) -> None:
    """From now on this path answers with the status."""

    async def handler(_: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(status))

    hooks.handlers[path] = handler


def heard(hooks: Receiver, path: str, endpoint: dict[str, Any]) -> list[str]:
    """What arrived at a path about an endpoint. What was answered too late for whoever told it is told again, under the
    same id, and counted once."""
    told = {arrival.event_id: arrival for arrival in hooks.arrivals if arrival.path == path}
    return [
        arrival.headers["x-webhook-event-type"].removeprefix("hookpost.")
        for arrival in told.values()
        if about(arrival, endpoint)
    ]


def about(arrival: Arrival, endpoint: dict[str, Any]) -> bool:
    """Is it an alert of this endpoint?"""
    if not arrival.headers["x-webhook-event-type"].startswith("hookpost."):
        return False
    return bool(json.loads(arrival.body)["data"]["endpoint_id"] == endpoint["endpoint_id"])


async def test_a_failing_endpoint_is_told_of_once_and_its_recovery_too(
    server: Hookpost, hooks: Receiver, box: Mailbox
) -> None:
    key = await new_tenant(server, "flaky")
    saying(hooks, "/flaky", 500)
    sick = await server.endpoint(hooks.url("/flaky"), key=key, events=["invoice.*", "hookpost.*"])
    await server.endpoint(hooks.url("/alerts"), key=key, events=["hookpost.*"])
    await server.endpoint(hooks.url("/everything"), key=key)
    for _ in range(2 * ALERT_AFTER):
        await server.post(key=key)
    await hooks.until(lambda: "endpoint.failing" in heard(hooks, "/alerts", sick))
    path = f"/v1/webhook_endpoints/{sick['endpoint_id']}"
    shown = await server.polled(path, lambda found: found["health"]["consecutive_failures"] >= ALERT_AFTER, key=key)
    assert shown["health"]["failing_since"] is not None
    saying(hooks, "/flaky", 200)
    await server.post(key=key)
    await hooks.until(lambda: "endpoint.recovered" in heard(hooks, "/alerts", sick))
    await hooks.until(lambda: len(heard(hooks, "/operator", sick)) == 2)
    await box.until("flaky@example.com", 2)
    for at in ("/alerts", "/operator"):
        assert sorted(heard(hooks, at, sick)) == ["endpoint.failing", "endpoint.recovered"]
    assert heard(hooks, "/flaky", sick) == heard(hooks, "/everything", sick) == []
    assert box.subjects("flaky@example.com") == [
        f"Webhook endpoint has recovered: {sick['endpoint_id']}",
        f"Webhook endpoint is failing: {sick['endpoint_id']}",
    ]
    assert hooks.forged == []
    await server.polled(path, lambda endpoint: endpoint["health"]["consecutive_failures"] == 0, key=key)


async def test_alerts_that_fail_raise_no_alerts(server: Hookpost, hooks: Receiver) -> None:
    key = await new_tenant(server, "recursive")
    saying(hooks, "/dead", 404)
    saying(hooks, "/broken", 500)
    saying(hooks, "/refusing", 404)
    dead = await server.endpoint(hooks.url("/dead"), key=key, events=["invoice.*"])
    broken = await server.endpoint(
        hooks.url("/broken"), key=key, events=["hookpost.*"], retry={"max_attempts": 2 * ALERT_AFTER}
    )
    refusing = await server.endpoint(hooks.url("/refusing"), key=key, events=["hookpost.*"])
    event_id = await server.post(key=key)
    await hooks.until(lambda: heard(hooks, "/refusing", dead) == ["delivery.dead"])
    listed = await server.polled("/v1/dead_letters", lambda found: len(found["data"]) == 3, key=key)
    assert {letter["endpoint_id"] for letter in listed["data"]} == {
        endpoint["endpoint_id"] for endpoint in (dead, broken, refusing)
    }
    tried = [arrival for arrival in hooks.arrivals if arrival.path == "/broken" and about(arrival, dead)]
    assert len(tried) == 2 * ALERT_AFTER and heard(hooks, "/broken", dead) == ["delivery.dead"]
    # An alert of a later death shows that none of the failures before it was made one.
    saying(hooks, "/late", 404)
    late = await server.endpoint(hooks.url("/late"), key=key, events=["other"])
    await server.post("other", key=key)
    await hooks.until(lambda: heard(hooks, "/operator", late) == ["delivery.dead"])
    [told] = [json.loads(a.body) for a in hooks.arrivals if a.path == "/refusing"][:1]
    assert (told["data"]["count"], told["data"]["event_ids"]) == (1, [event_id])
    assert heard(hooks, "/operator", broken) == heard(hooks, "/operator", refusing) == []


async def test_days_of_failures_disable_an_endpoint_and_what_is_owed_to_it_waits_until_it_is_enabled(
    hooks: Receiver, box: Mailbox
) -> None:
    saying(hooks, "/gone", 503)
    async with serving(box, hooks, disable_after_days="0.00002") as server:  # 1.7 s
        sick = await server.endpoint(hooks.url("/gone"), retry={"cap_s": 1.0})
        path = f"/v1/webhook_endpoints/{sick['endpoint_id']}"
        first = await server.post()
        shown = await server.polled(path, lambda endpoint: endpoint["status"] == "disabled")
        assert shown["status_reason"].startswith("nothing but failures for ")
        await hooks.until(lambda: "endpoint.disabled" in heard(hooks, "/operator", sick))
        later = await server.post()
        event = await server.settled(later, "waiting")
        assert event["deliveries"][0]["reason"] == "disabled"
        saying(hooks, "/gone", 200)
        await server.call("POST", f"{path}/resume", expect=200)
        for event_id in (first, later):
            await server.settled(event_id)
        assert (await server.call("GET", "/v1/dead_letters", expect=200))["data"] == []
        assert heard(hooks, "/operator", sick).count("endpoint.disabled") == 1


async def test_a_410_disables_at_once_and_is_told(server: Hookpost, hooks: Receiver, box: Mailbox) -> None:
    key = await new_tenant(server, "moved")
    saying(hooks, "/moved", 410)
    moved = await server.endpoint(hooks.url("/moved"), key=key)
    await server.post(key=key)
    await hooks.until(lambda: "endpoint.disabled" in heard(hooks, "/operator", moved))
    told = [
        json.loads(arrival.body)["data"]
        for arrival in hooks.arrivals
        if arrival.path == "/operator" and b"endpoint.disabled" in arrival.body
        and moved["endpoint_id"].encode() in arrival.body
    ]  # fmt: skip
    assert {data["reason"] for data in told} == {"it answered 410 Gone"}
    assert heard(hooks, "/operator", moved).count("endpoint.disabled") == 1
