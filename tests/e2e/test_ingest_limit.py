"""A tenant's limit over two API processes that share a listening socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.e2e.harness import ADMIN_KEY, WAIT_S, Hookpost, read_response, running

pytestmark = pytest.mark.process
# A slow machine that has other things to do must still ask for more than this.
LIMIT = 20.0
TOLERANCE = 0.1
WINDOW_S = 16
# Connections that post one event after the other; whichever process accepted one serves it to its end.
PRODUCERS = 12


class Producers:
    """Post without a pause and count what is accepted."""

    def __init__(self, server: Hookpost, key: str) -> None:
        self._server = server
        self._key = key
        self.accepted = 0
        self.refused = 0

    async def run(self) -> None:
        host, _, port = self._server.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"type": "a.b", "payload": None}).encode()
        request = (
            f"POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self._key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body
        try:
            while True:
                writer.write(request)
                status, headers, _ = await read_response(reader)
                assert status in (202, 429, 503)
                if status != 503:
                    assert headers["ratelimit-policy"] == f'"ingest";q={int(LIMIT)};w=1'
                self.accepted += status == 202
                self.refused += status == 429
                # A client that is refused does not spin: two cores carry all of this.
                await asyncio.sleep(0.05)
        finally:
            writer.close()


async def limited_tenant(server: Hookpost, limit: float) -> tuple[str, str]:
    fields = {"name": "limited", "ingest_rate_limit": limit}
    tenant: dict[str, Any] = await server.call("POST", "/v1/tenants", fields, key=ADMIN_KEY, expect=201)
    path = f"/v1/tenants/{tenant['tenant_id']}"
    created = await server.call("POST", f"{path}/api_keys", {"name": "k"}, key=ADMIN_KEY, expect=201)
    return path, str(created["key"])


async def test_the_sum_over_two_processes_holds_within_ten_percent_and_a_change_reaches_both() -> None:
    async with running("--api-processes", "2") as server:
        loop = asyncio.get_running_loop()
        path, key = await limited_tenant(server, LIMIT)
        producers = Producers(server, key)
        tasks = [asyncio.create_task(producers.run()) for _ in range(PRODUCERS)]
        # The buckets are emptied and the demand is known after some looks: what is measured begins then.
        while producers.accepted < 4 * LIMIT:
            await asyncio.sleep(0.05)
        share = 0.0
        # What is not used within a second is gone, and what a machine that stood still has saved, or has answered and we
        # read later, is another window's: it is looked at again.
        async with asyncio.timeout(WAIT_S):
            while abs(share - 1) >= TOLERANCE:
                began, before, refused = loop.time(), producers.accepted, producers.refused
                while producers.accepted < before + WINDOW_S * LIMIT:
                    await asyncio.sleep(0.05)
                share = (producers.accepted - before) / (LIMIT * (loop.time() - began))
        assert producers.refused > refused
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
        # Whichever process gets one of these connections, it has heard of the end of the limit.
        await server.call("PATCH", path, {"ingest_rate_limit": 1 / 3600}, key=ADMIN_KEY, expect=200)
        await until_all(server, key, 429)
        await server.call("PATCH", path, {"ingest_rate_limit": None}, key=ADMIN_KEY, expect=200)
        await until_all(server, key, 202)


async def until_all(server: Hookpost, key: str, wanted: int) -> None:
    """Ask over fresh connections until twenty in a row have the wanted answer."""
    in_a_row = 0
    async with asyncio.timeout(WAIT_S):
        while in_a_row < 20:
            status, _, _ = await server.call("POST", "/v1/events", {"type": "a.b", "payload": 1}, key=key)
            in_a_row = in_a_row + 1 if status == wanted else 0
