"""The egress proxy on a real server (F40): all deliveries leave through it, and its faults are charged to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.harness import Arrival, Hookpost, Receiver, answer, receiver, running
from tests.transport.proxies import Handler, tunnelling
from tests.transport.receivers import Receiver as Listener
from tests.transport.receivers import listening, resetting, speaking, stalling

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

# More failures than open a breaker or tell a tenant that an endpoint fails.
FAILURES = 4
REFUSED = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


async def accept_and_close(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    """No tunnel stays open: the next request has to ask the proxy."""
    writer.write(answer(200, b"ok", "connection: close"))
    await writer.drain()
    writer.close()


class Moods:
    """A proxy that does as the test says; each new mood begins with new connections."""

    def __init__(self) -> None:
        self.mood: Handler = tunnelling()
        self.listener = Listener()

    async def __call__(self, listener: Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.mood(listener, reader, writer)


class World:
    def __init__(self, server: Hookpost, proxy: Moods, far: Receiver) -> None:
        self.server = server
        self.proxy = proxy
        self.far = far

    async def endpoint(self, path: str, **fields: Any) -> dict[str, Any]:
        made = await self.server.endpoint(
            self.far.url(path), events=[path[1:]], retry={"base_s": 0.2, "cap_s": 0.3}, **fields
        )
        self.far.secrets[path] = made["secret"]
        self.far.handlers[path] = accept_and_close
        return made

    async def health(self, endpoint: dict[str, Any]) -> tuple[str, int]:
        shown = await self.server.call("GET", f"/v1/webhook_endpoints/{endpoint['endpoint_id']}", expect=200)
        return shown["health"]["state"], shown["health"]["consecutive_failures"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    proxy = Moods()
    async with listening(proxy) as listener, receiver() as far:
        proxy.listener = listener
        async with running(
            workers="1", api_processes="1", egress_proxy=f"http://us:pw@127.0.0.1:{listener.port}", breaker_failures="3",
            alert_after_failures="3",
        ) as server:  # fmt: skip
            yield World(server, proxy, far)


async def test_deliveries_leave_through_the_proxy_and_by_no_other_way(world: World) -> None:
    await world.endpoint("/through")
    before = len(world.proxy.listener.requests)
    event = await world.server.post("through", {"n": 1})
    await world.far.until_all({event}, "/through")
    assert (await world.server.settled(event))["status"] == "delivered"
    asked = world.proxy.listener.requests[before:]
    assert [request.split(b"\r\n")[0] for request in asked] == [b"CONNECT 127.0.0.1:%d HTTP/1.1" % world.far.port]
    assert not world.far.forged


@pytest.mark.parametrize("mood", ["bad-gateway", "hangs", "resets"])
async def test_f40_what_the_proxy_fails_is_tried_again_and_charged_to_no_endpoint(world: World, mood: str) -> None:
    moods: dict[str, Handler] = {"bad-gateway": speaking(BAD_GATEWAY), "hangs": stalling(), "resets": resetting}
    # A proxy that hangs is given up soon; one that works may be slow on a busy machine.
    soon = {"connect_s": 0.3, "first_byte_s": 29, "total_s": 30}
    endpoint = await world.endpoint(f"/{mood}", **({"timeouts": soon} if mood == "hangs" else {}))
    world.proxy.mood = moods[mood]
    event = await world.server.post(mood, {"n": 1})
    failed = await world.server.attempts(event, FAILURES)
    assert {attempt["error_code"] for attempt in failed} == {"egress_proxy_error"}
    assert {(attempt["http_status"], attempt["outcome"]) for attempt in failed} == {(None, "retry")}
    assert await world.health(endpoint) == ("closed", 0)
    world.proxy.mood = tunnelling()
    await world.far.until_all({event}, f"/{mood}")
    await world.server.settled(event)
    assert world.far.counts[f"/{mood}", event] == 1
    assert await world.health(endpoint) == ("closed", 0)


async def test_f40_a_proxy_that_refuses_us_suspends_sending_and_costs_no_attempts(world: World) -> None:
    endpoint = await world.endpoint("/refused")
    world.proxy.mood = speaking(REFUSED)
    event = await world.server.post("refused", {"n": 1})
    shown = await world.server.polled(
        f"/v1/events/{event}",
        lambda found: any(each["reason"] == "egress_down" for each in found["deliveries"]),
    )
    assert shown["status"] == "pending"
    await world.server.until_line("egress_down")
    assert await world.health(endpoint) == ("closed", 0)
    world.proxy.mood = tunnelling()
    await world.far.until_all({event}, "/refused")
    attempts = (await world.server.settled(event))["deliveries"][0]["attempt_count"]
    assert attempts <= 2, "probes are no attempts of a delivery"
    assert not [line for line in world.server.lines if "breaker_opened" in line or "alert_told" in line]
