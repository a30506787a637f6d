"""Cancel and retry-now on a real server: the owners of the shards act on the control rows of the journal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.harness import WAIT_S, Arrival, Hookpost, Receiver, accept, answer, command, receiver, running

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Hookpost]:
    """Retries are an hour away: what is tried sooner was hurried."""
    async with running(retry_base_s="3600", retry_cap_s="7200") as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def ledger() -> AsyncIterator[Receiver]:
    async with receiver() as found:
        yield found


async def busy(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(503))


async def waiting(server: Hookpost, ledger: Receiver, *paths: str) -> tuple[str, dict[str, str]]:
    """An event whose first attempt to each of these endpoints has failed, and the endpoints by path."""
    endpoints = {}
    for path in paths:
        ledger.handlers[path] = busy
        endpoints[path] = (await server.endpoint(ledger.url(path)))["endpoint_id"]
    event_id = await server.post(target_endpoints=list(endpoints.values()))
    await server.polled(
        f"/v1/events/{event_id}", lambda event: {each["status"] for each in event["deliveries"]} == {"waiting"}
    )
    return event_id, endpoints


async def test_a_cancelled_delivery_is_not_tried_again_and_is_shown_as_cancelled(
    server: Hookpost, ledger: Receiver
) -> None:
    event_id, _ = await waiting(server, ledger, "/a")
    asked = await server.call("POST", f"/v1/events/{event_id}/cancel", expect=202)
    assert asked == {"delivery_count": 1}
    event = await server.settled(event_id, "cancelled")
    [delivery] = event["deliveries"]
    assert (delivery["status"], delivery["attempt_count"], delivery["last_http_status"]) == ("cancelled", 1, 503)
    assert await server.call("POST", f"/v1/events/{event_id}/cancel", expect=202) == {"delivery_count": 0}
    assert await server.call("POST", f"/v1/events/{event_id}/retry_now", expect=202) == {"delivery_count": 0}
    ledger.handlers["/a"] = accept
    assert await server.call("POST", f"/v1/events/{event_id}/replay", expect=202) == {"delivery_count": 1}
    await server.settled(event_id, "delivered")
    assert ledger.counts["/a", event_id] == 2


async def test_one_endpoint_is_cancelled_and_the_other_hurried(server: Hookpost, ledger: Receiver) -> None:
    event_id, endpoints = await waiting(server, ledger, "/b", "/c")
    ledger.handlers["/c"] = accept
    for action, path in (("cancel", "/b"), ("retry_now", "/c")):
        body = {"endpoint_id": endpoints[path]}
        asked = await server.call("POST", f"/v1/events/{event_id}/{action}", body, expect=202)
        assert asked == {"delivery_count": 1}
    event = await server.polled(f"/v1/events/{event_id}", lambda found: found["status"] == "delivered")
    states = {each["endpoint_id"]: (each["status"], each["attempt_count"]) for each in event["deliveries"]}
    assert states == {endpoints["/b"]: ("cancelled", 1), endpoints["/c"]: ("delivered", 2)}


async def test_what_fails_again_after_it_was_hurried_waits_again(server: Hookpost, ledger: Receiver) -> None:
    event_id, _ = await waiting(server, ledger, "/d")
    await server.call("POST", f"/v1/events/{event_id}/retry_now", expect=202)
    attempts = await server.attempts(event_id, 2)
    assert [(attempt["outcome"], attempt["retry_count"]) for attempt in attempts] == [("retry", 0), ("retry", 1)]
    event = await server.settled(event_id, "waiting")
    assert event["deliveries"][0]["reason"] == "retry"


async def test_what_would_be_retried_while_it_is_cancelled_is_dropped(server: Hookpost, ledger: Receiver) -> None:
    held, release = asyncio.Event(), asyncio.Event()

    async def hold(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        held.set()
        await release.wait()
        writer.write(answer(503))

    ledger.handlers["/e"] = hold
    endpoint = await server.endpoint(ledger.url("/e"))
    event_id = await server.post(target_endpoints=[endpoint["endpoint_id"]])
    await asyncio.wait_for(held.wait(), WAIT_S)
    asked = await server.call("POST", f"/v1/events/{event_id}/cancel", expect=202)
    assert asked == {"delivery_count": 1}
    # The control row must be read before the answer comes: a marker behind it in every shard has arrived by then.
    marker = await server.endpoint(ledger.url("/marker"))
    markers = {await server.post(target_endpoints=[marker["endpoint_id"]]) for _ in range(64)}
    await ledger.until_all(markers, "/marker")
    release.set()
    event = await server.settled(event_id, "cancelled")
    assert event["deliveries"][0]["attempt_count"] == 1


async def test_cancelling_the_dead_head_of_an_ordered_lane_lets_the_next_one_go(
    server: Hookpost, ledger: Receiver
) -> None:
    async def refuse_the_first(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(404 if b"first" in arrival.body else 200))

    ledger.handlers["/f"] = refuse_the_first
    endpoint = await server.endpoint(ledger.url("/f"), ordered=True)
    targets = [endpoint["endpoint_id"]]
    first, second = [await server.post(payload=text, target_endpoints=targets) for text in ("first", "second")]
    await server.settled(first, "dead")
    assert (await server.call("GET", f"/v1/events/{second}", expect=200))["status"] == "pending"
    asked = await server.call("POST", f"/v1/events/{first}/cancel", expect=202)
    assert asked == {"delivery_count": 1}
    await server.settled(second, "delivered")
    assert (await server.call("GET", f"/v1/events/{first}", expect=200))["status"] == "dead"


async def test_the_commands_cancel_and_hurry(server: Hookpost, ledger: Receiver) -> None:
    tenant = {"url": server.url, "api_key": server.key}
    event_id, endpoints = await waiting(server, ledger, "/g", "/h")
    ledger.handlers["/h"] = accept
    ended = [
        await command("cancel", event_id, "--endpoint", endpoints["/g"], **tenant),
        await command("retry-now", event_id, **tenant),
    ]
    assert [finished.code for finished in ended] == [0, 0], ended
    assert json.loads(ended[0].out) == {"delivery_count": 1}
    await server.polled(f"/v1/events/{event_id}", lambda found: found["status"] == "delivered")
    assert (ledger.counts["/g", event_id], ledger.counts["/h", event_id]) == (1, 2)
