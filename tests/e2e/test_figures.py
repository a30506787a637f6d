"""Figures of a real server: what was sent is counted once, whoever is killed, and told by API and command."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import Any

import pytest

from tests.e2e.harness import Arrival, answer, command, receiver, running

pytestmark = pytest.mark.process

EVENTS = 40


async def test_what_was_sent_is_counted_once_though_workers_are_killed() -> None:
    """Each attempt of the history is in the figures once, and nothing else."""
    refused: set[str] = set()

    async def first_429(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        """Each delivery is tried twice."""
        known = arrival.event_id in refused
        refused.add(arrival.event_id)
        writer.write(answer(200 if known else 429))

    async with (
        running(retry_base_s="0.1", breaker_failures="1000") as server,
        receiver() as ledger,
    ):
        ledger.handlers["/hook"] = first_429
        endpoint = await server.endpoint(ledger.url())
        ledger.secrets["/hook"] = endpoint["secret"]
        batch = {"events": [{"type": "a.b", "payload": {"n": n}} for n in range(EVENTS)]}
        results = (await server.call("POST", "/v1/events/batch", batch, expect=202))["results"]
        await ledger.until(lambda: len(refused) > EVENTS // 2)
        await server.replace_child("worker-1")
        for result in results:
            await server.settled(result["event_id"])
        history = (await server.call("GET", "/v1/attempts?limit=500", expect=200))["data"]
        assert len(history) >= EVENTS  # what a killed worker had not written down yet is no attempt

        def counted(stats: Any) -> bool:
            assert stats["totals"]["attempts"] <= len(history)
            return bool(stats["totals"]["attempts"] == len(history))

        stats = await server.polled(f"/v1/stats?endpoint_id={endpoint['endpoint_id']}", counted)
        assert stats["totals"]["outcomes"] == {
            outcome: sum(attempt["outcome"] == outcome for attempt in history)
            for outcome in ("delivered", "retry", "dead")
        }
        refusals = sum(attempt["error_code"] == "http_429" for attempt in history)
        assert stats["totals"]["errors"] == ({"http_429": refusals} if refusals else {})
        assert stats["now"] == {"waiting": 0, "waiting_exact": True, "dead": 0, "dead_exact": True, "depth": None}

        own = {"url": server.url, "api_key": server.key}
        shown = await command("cost", "--worker-hour", "0.5", **own)
        assert shown.code == 0, shown
        cost = json.loads(shown.out)
        assert cost["prices"]["worker_cost_per_hour"] == 0.5
        exported = await command("cost", "--usage", "--format", "csv", **own)
        rows = list(csv.DictReader(io.StringIO(exported.out)))
        lines = (await command("cost", "--usage", "--format", "ndjson", **own)).out.splitlines()
        for usage in (rows, [json.loads(line) for line in lines]):
            assert sum(int(row["attempts"]) for row in usage) == len(history)
            assert sum(int(row["accepted"]) for row in usage) == EVENTS
            assert sum(int(row["request_bytes"]) for row in usage) == sum(row["request_bytes"] for row in history)
        wrong = await command("cost", "--usage", "--egress-gb", "1", **own)
        assert (wrong.code, "leave them out" in wrong.said) == (1, True)
