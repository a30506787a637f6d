"""Our own way out is down: every receiver that was well refuses at once, on a real server and real sockets.

The receivers are ours, so what is cut off is they; the server cannot tell the difference, and must not: nobody is
charged, and when one of them answers again everything comes forward at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from hookpost.policy.egress_health import OutagePolicy
from tests.e2e.harness import Arrival, Hookpost, Receiver, answer, running, why

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

HOSTS = [f"127.0.9.{number}" for number in range(1, 13)]
# What arrives sooner than this was brought forward, and no breaker may have held it.
RETRY_BASE_S = 3600.0
PAUSE_S = 600.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Hookpost]:
    # One worker, for each finds out for itself.
    async with running(
        workers="1", retry_base_s=str(RETRY_BASE_S), retry_cap_s=str(RETRY_BASE_S),
        breaker_failures="3", breaker_pause_s=str(PAUSE_S),
    ) as started:  # fmt: skip
        yield started


async def accept_and_close(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    """No connection stays open: the next request has to connect."""
    writer.write(answer(200, b"ok", "connection: close"))
    await writer.drain()
    writer.close()


class World:
    """All receivers of the tenant: one ledger, one listening socket for each host."""

    def __init__(self) -> None:
        self.ledger = Receiver(handlers={f"/{host}": accept_and_close for host in HOSTS})
        self.ports = dict.fromkeys(HOSTS, 0)
        self._listening: list[asyncio.Server] = []

    async def connect(self) -> None:
        for host, port in self.ports.items():
            listening = await asyncio.start_server(self.ledger.serve, host, port)
            self.ports[host] = listening.sockets[0].getsockname()[1]
            self._listening.append(listening)

    def cut(self) -> None:
        for listening in self._listening:
            listening.close()
        self._listening.clear()


async def test_f18_our_own_outage_charges_nobody_and_everything_arrives_at_its_end(server: Hookpost) -> None:
    assert len(HOSTS) > 2 * OutagePolicy().receivers
    world = World()
    await world.connect()
    endpoints = [await server.endpoint(f"http://{host}:{port}/{host}") for host, port in world.ports.items()]
    paths = [f"/v1/webhook_endpoints/{endpoint['endpoint_id']}" for endpoint in endpoints]
    known = await server.post()
    await asyncio.gather(*(world.ledger.until_all({known}, f"/{host}") for host in HOSTS))

    world.cut()
    lost = [await server.post()]
    await server.until_line(r"egress_down")
    lost += [await server.post() for _ in range(2)]
    for path in paths:
        listed = await server.polled(f"{path}/deliveries?status=waiting", lambda found: len(found["data"]) == len(lost))
        reasons = {each["event_id"]: (each["reason"], each["attempt_count"]) for each in listed["data"]}
        assert {reasons[event_id] for event_id in lost[1:]} == {("egress_down", 0)}
    told, said = await why(server, lost[1], endpoints[0]["endpoint_id"])
    assert (told["status"], told["reason"]) == ("waiting", "egress_down")
    assert "The platform's own way out is down" in said and "No attempt is counted" in said
    assert "-> The operator checks network, resolver and egress proxy" in said
    shown = [await server.call("GET", path, expect=200) for path in paths]
    assert {each["health"]["state"] for each in shown} == {"closed"}

    await world.connect()
    await asyncio.gather(*(world.ledger.until_all(set(lost), f"/{host}") for host in HOSTS))
    for event_id in lost:
        event = await server.polled(f"/v1/events/{event_id}", lambda found: found["status"] == "delivered")
        assert {each["status"] for each in event["deliveries"]} == {"delivered"}
    assert max(world.ledger.counts.values()) == 1, "what is cut off repeats nothing"
    world.cut()
