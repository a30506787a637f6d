"""Figures of a real server on one page: counted over all processes, over a kill, by key and without, and no secret."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

import pytest

from tests.e2e.harness import ADMIN_KEY, WAIT_S, Arrival, Hookpost, answer, read_response, receiver, running
from tests.e2e.ports import free_port

pytestmark = pytest.mark.process

CANARY = "canary-3f9a1c"


async def refuse(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(404, CANARY.encode()))


def value(page: str, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def page_when(server: Hookpost, sample: str, least: float) -> str:
    """The page once that sample has grown so far: processes write their figures once a second."""
    while True:
        page = (await server.bytes_of("GET", "/metrics", None, expect=200, key=ADMIN_KEY)).decode()
        if value(page, sample) >= least:
            return page
        await asyncio.sleep(0.05)


def processes_of(page: str) -> set[str]:
    return set(re.findall(r'hookpost_process_cpu_seconds{process="([^"]+)"}', page))


async def scraped(port: int, path: str) -> tuple[int, dict[str, str], bytes]:
    """The answer, which whoever says nothing for some seconds does not get: a busy machine asks again."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                return await asked(port, path)


async def asked(port: int, path: str) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\naccept: application/openmetrics-text\r\n\r\n".encode())
    try:
        return await read_response(reader)
    finally:
        writer.close()


async def test_one_page_tells_of_all_processes_and_goes_on_over_a_kill() -> None:
    port = free_port()
    settings: dict[str, Any] = {"workers": "2", "metrics_listen": f"127.0.0.1:{port}"}
    async with running(**settings) as server, receiver() as ledger:
        ledger.handlers["/no"] = refuse
        secret = (await server.endpoint(ledger.url(f"/hook?token={CANARY}"), description=CANARY))["secret"]
        await server.endpoint(ledger.url("/no"), events=[CANARY])
        delivered = 'hookpost_attempts_total{error_code="",outcome="delivered"}'
        for _ in range(20):
            await server.post("a.b", {"secret": CANARY}, idempotency_key=None)
        await server.post(CANARY, {})
        page = await page_when(server, delivered, 21)
        page = await page_when(server, 'hookpost_dead_letters_total{reason="http_4xx"}', 1)
        page = await page_when(server, "hookpost_events_accepted_total", 21)  # and an alert of the dead letter, later
        page = await page_when(server, "hookpost_store_up", 1)  # a look at it may have come too late
        while len(processes := processes_of(page)) < 4:  # of which each writes its own once a second
            page = await page_when(server, "hookpost_store_up", 1)
        assert value(page, delivered) == 21
        assert value(page, "hookpost_delivery_seconds_count") == 21
        assert value(page, "hookpost_store_up") == 1
        assert processes == {"serve", "api-1", "worker-1", "worker-2"}

        # What a worker was killed before it wrote it down would be sent again.
        await server.polled("/v1/attempts?limit=500", lambda found: len(found["data"]) >= 22)
        for name in ("worker-1", "worker-2"):
            await server.replace_child(name)
        await server.post("a.b", {})
        page = await page_when(server, delivered, 22)
        assert value(page, delivered) == 22
        page = await page_when(server, "hookpost_child_exits_total", 2)
        assert value(page, "hookpost_child_exits_total") <= sum("child_exited" in line for line in server.lines)

        status, head, body = await scraped(port, "/metrics")
        assert (status, body.endswith(b"# EOF\n")) == (200, True)
        assert head["content-type"].startswith("application/openmetrics-text")
        assert (await scraped(port, "/v1/tenants"))[0] == 404
        await server.call("GET", "/metrics", expect=403)
        for text in (page, body.decode(), "\n".join(server.lines)):
            for hidden in (CANARY, secret, server.key, ADMIN_KEY):
                assert hidden not in text
