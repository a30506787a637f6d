"""Bulk replays on a real server: what died comes back once, whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.e2e.harness import Arrival, Hookpost, Receiver, accept, answer, command, database, receiver, running

pytestmark = pytest.mark.process

EVENTS = 60
# The slowest that may be asked for: one an hour.
RATE_MIN = 1 / 3600


async def refuse(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    """Not to be tried again."""
    writer.write(answer(404))


async def died(server: Hookpost, ledger: Receiver, count: int = EVENTS) -> tuple[str, set[str]]:
    """An endpoint and its dead letters; from now on its receiver is healthy."""
    ledger.handlers["/hook"] = refuse
    endpoint = await server.endpoint(ledger.url())
    ledger.secrets["/hook"] = endpoint["secret"]
    batch = {"events": [{"type": "a.b", "payload": {"n": n}} for n in range(count)]}
    results = (await server.call("POST", "/v1/events/batch", batch, expect=202))["results"]
    await server.polled("/v1/dead_letters?limit=500", lambda listed: len(listed["data"]) == count)
    ledger.handlers["/hook"] = accept
    return endpoint["endpoint_id"], {result["event_id"] for result in results}


async def ended(server: Hookpost, replay_id: str) -> dict[str, Any]:
    replay: dict[str, Any] = await server.polled(f"/v1/replays/{replay_id}", lambda job: job["state"] != "running")
    return replay


async def journal_rows_of_replays(server: Hookpost) -> list[int]:
    """How many each event has."""
    async with database(server) as operator:
        rows = await operator.fetch("select count(*) from events where kind = 1 group by event_id")
    return [row["count"] for row in rows]


async def test_what_died_is_delivered_once_more_by_the_command() -> None:
    async with running() as server, receiver() as ledger:
        tenant = {"url": server.url, "api_key": server.key}

        async def done(*arguments: str) -> Any:
            finished = await command(*arguments, **tenant)
            assert finished.code == 0, finished
            return json.loads(finished.out)

        endpoint_id, events = await died(server, ledger)
        counted = await done("replay", "--endpoint", endpoint_id, "--status", "dead", "--dry-run")
        assert counted == {"replay_id": None, "matched": EVENTS, "matched_exact": True}
        replay = await done("replay", "--endpoint", endpoint_id, "--since", "2020-01-01T00:00:00Z", "--wait")
        assert (replay["state"], replay["matched"], replay["replayed"]) == ("done", EVENTS, EVENTS)
        await ledger.until(lambda: all(ledger.counts["/hook", event_id] == 2 for event_id in events))
        await server.polled("/v1/dead_letters", lambda listed: listed["data"] == [])
        for event_id in list(events)[:3]:
            event = await server.settled(event_id)
            assert (event["status"], event["deliveries"][0]["generation"]) == ("delivered", 1)
        assert [listed["replay_id"] for listed in await done("replays")] == [replay["replay_id"]]
        assert await done("replays", replay["replay_id"]) == replay
        refused = await command("replay", next(iter(events)), "--wait", **tenant)
        assert (refused.code, "either its id" in refused.said) == (1, True)
        assert not ledger.forged


async def test_f42_workers_and_servers_killed_during_a_replay_repeat_and_skip_nothing() -> None:
    async with running() as server, receiver() as ledger:
        endpoint_id, events = await died(server, ledger)
        body = {"endpoint_id": endpoint_id, "rate_limit": 20}
        replay_id = (await server.call("POST", "/v1/replays", body, expect=202))["replay_id"]
        for wanted in (5, 15):
            await server.polled(f"/v1/replays/{replay_id}", lambda job, wanted=wanted: job["replayed"] >= wanted)
            await server.replace_child("worker-1")
        await server.kill()
        await server.start()
        replay = await ended(server, replay_id)
        assert (replay["state"], replay["matched"], replay["replayed"]) == ("done", EVENTS, EVENTS)
        assert await journal_rows_of_replays(server) == [1] * EVENTS
        await ledger.until(lambda: all(ledger.counts["/hook", event_id] >= 2 for event_id in events))
        await server.polled("/v1/dead_letters", lambda listed: listed["data"] == [])


async def test_a_cancelled_replay_leaves_the_rest_dead() -> None:
    async with running() as server, receiver() as ledger:
        _, events = await died(server, ledger, 20)
        # So slow that nobody comes too late to cancel it.
        replay_id = (await server.call("POST", "/v1/replays", {"rate_limit": RATE_MIN}, expect=202))["replay_id"]
        await server.polled(f"/v1/replays/{replay_id}", lambda job: job["replayed"] >= 1)
        await server.call("DELETE", f"/v1/replays/{replay_id}", expect=204)
        replay = await ended(server, replay_id)
        assert replay["state"] == "cancelled"
        assert 1 <= replay["replayed"] < 20
        rest = 20 - replay["replayed"]
        await server.polled("/v1/dead_letters", lambda listed: len(listed["data"]) == rest)
        assert sum(ledger.counts["/hook", event_id] == 1 for event_id in events) == rest
