"""Why, on a real server: what a worker does with an event is told in words, gate by gate, by the API and the command."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from tests.e2e.harness import Arrival, Handler, Hookpost, answer, command, receiver, running

pytestmark = pytest.mark.process


def answering(status: int, *lines: str) -> Handler:
    async def handle(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(status, b"", *lines))

    return handle


async def told(server: Hookpost, event_id: str, endpoint_id: str, *reasons: str | None) -> dict[str, Any]:
    """What is told of the event at the endpoint, once it is one of these reasons."""
    path = f"/v1/events/{event_id}/explain?endpoint_id={endpoint_id}"
    why = await server.polled(path, lambda found: found["endpoints"][0]["reason"] in reasons)
    [only] = why["endpoints"]
    assert only["summary"].endswith((".", "cancelled"))
    return dict(only)


async def test_every_gate_tells_what_it_holds_and_until_when() -> None:
    async with (
        running(retry_base_s="3600", retry_cap_s="7200", breaker_failures="3", breaker_pause_s="600") as server,
        receiver() as well,
        contextlib.AsyncExitStack() as stack,
    ):
        well.handlers["/404"] = answering(404)

        async def sick(*answered: Any) -> str:
            """A breaker is of a host and port, so each sick receiver has its own."""
            found = await stack.enter_async_context(receiver())
            found.handlers["/hook"] = answering(*answered)
            return found.url()

        async def endpoint(url: str, **fields: Any) -> str:
            return str((await server.endpoint(url, **fields))["endpoint_id"])

        async def post(*endpoints: str) -> str:
            return await server.post(target_endpoints=list(endpoints))

        fine, failing, refusing = (
            await endpoint(well.url()),
            await endpoint(await sick(503)),
            await endpoint(well.url("/404")),
        )
        event = await post(fine, failing, refusing)
        assert (await told(server, event, failing, "retry"))["until"] is not None
        assert "HTTP 404" in (await told(server, event, refusing, "http_4xx"))["summary"]
        await server.polled(
            f"/v1/events/{event}",
            lambda found: any(d["endpoint_id"] == fine and d["status"] == "delivered" for d in found["deliveries"]),
        )
        delivered = await told(server, event, fine, None)
        assert (delivered["status"], delivered["generation"]) == ("delivered", 0)

        down = await endpoint(await sick(500))
        for _ in range(3):
            held = await post(down)
            await server.attempts(held)
        event_of_breaker = await post(down)
        breaker = await told(server, event_of_breaker, down, "breaker_open")
        assert breaker["until"] is not None and "one probe" in breaker["summary"]

        resting = await endpoint(await sick(429, "retry-after: 3600"))
        await server.attempts(await post(resting))
        rest = await told(server, await post(resting), resting, "rate_limited")
        assert rest["until"] is not None and "Retry-After" in rest["summary"]

        ordered = await endpoint(await sick(503), ordered=True)
        first = await post(ordered)
        await told(server, first, ordered, "retry")
        assert f"event {first} goes first" in (await told(server, await post(ordered), ordered, "ordered"))["summary"]

        gone = await endpoint(await sick(410))
        await server.attempts(await post(gone))
        await server.polled(f"/v1/webhook_endpoints/{gone}", lambda found: found["status"] == "disabled")
        assert "410" in (await told(server, await post(gone), gone, "disabled"))["summary"]

        paused = await endpoint(well.url())
        await server.call("POST", f"/v1/webhook_endpoints/{paused}/pause", expect=200)
        waits = await post(paused)
        await told(server, waits, paused, "paused")
        await server.call("POST", f"/v1/events/{waits}/cancel", expect=202)
        await told(server, waits, paused, "requested")

        later = await endpoint(well.url())
        not_owed = await told(server, event, later, "created_later")
        assert (not_owed["status"], not_owed["generation"]) == ("not_matched", None)
        filtered = await endpoint(well.url(), events=["nothing.else"])
        assert (await told(server, await post(fine), filtered, "filter"))["status"] == "not_matched"

        client = {"url": server.url, "api_key": server.key}
        asked = await command("events", "why", event_of_breaker, "--endpoint", down, **client)
        assert asked.code == 0 and f"{down}  waiting (breaker_open)" in asked.out and "->" in asked.out
        assert (await command("events", event_of_breaker, **client)).out.count('"attempt_id"') == 0
        assert event in (await command("events", **client)).out
        assert (await command("events", "why", "evt_nonsense", **client)).code == 1
