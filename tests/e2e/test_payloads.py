"""Payloads outside of the database, with real processes: exact, refused when they cannot be stored, and missed aloud."""

from __future__ import annotations

import json
import shutil

import asyncpg
import pytest

from hookpost.app.compose import make_payloads
from hookpost.app.config import load
from hookpost.storage.postgres.embedded import find_running
from hookpost.storage.postgres.store import PostgresStore
from tests.e2e.harness import Hookpost, Receiver, receiver, running, why

pytestmark = pytest.mark.process


def bodies(found: Receiver) -> dict[str, bytes]:
    return {arrival.event_id: arrival.body for arrival in found.arrivals}


async def test_with_every_payload_in_the_store_all_arrive_as_they_were_posted() -> None:
    async with receiver() as found, running(payload_inline_max="0") as server:
        await server.endpoint(found.url())
        sent: dict[str, bytes] = {}
        for number in range(20):
            text = f'{{"n":  {number}, "pi": 3.1400, "filler": "{"é" * number * 500}"}}'.encode()
            body = b'{"type": "a.b", "payload": ' + text + b', "idempotency_key": "%d"}' % number
            answered = await server.bytes_of("POST", "/v1/events", body, expect=202)
            sent[json.loads(answered)["event_id"]] = text
        await found.until_all(set(sent))
        assert bodies(found) == sent
        event_id, text = next(iter(sent.items()))
        answered = await server.bytes_of("GET", f"/v1/events/{event_id}", None, expect=200)
        assert text in answered
        assert json.loads(answered)["payload_state"] == "stored"

        await server.call("POST", f"/v1/events/{event_id}/replay", {}, expect=202)
        await found.until(lambda: found.counts["/hook", event_id] == 2, what="the replay")
        assert [arrival.body for arrival in found.arrivals if arrival.event_id == event_id] == [text, text]

        # Everything but the marker, so that the store is there and its objects are not.
        shutil.rmtree(server.folder / "payloads" / "events")
        await server.call("POST", f"/v1/events/{event_id}/replay", {}, expect=202)
        event = await server.settled(event_id, "dead")
        assert [delivery["reason"] for delivery in event["deliveries"]] == ["payload_missing"]
        assert (event["payload"], event["payload_state"]) == (None, "missing")
        await found.until_all({await server.post("a.b", {})})  # the folders are made anew


async def test_a_payload_store_that_is_away_refuses_large_events_and_delays_large_deliveries_alone() -> None:
    async with receiver() as found, running(payload_inline_max="1000", breaker_failures="1000") as server:
        endpoint = await server.endpoint(found.url())
        early = await server.post("large", "x" * 2000)
        await found.until_all({early})
        folder = server.folder / "payloads"
        folder.rename(server.folder / "unplugged")
        folder.write_text("no folder")
        status, _, _ = await server.call("POST", "/v1/events", {"type": "large", "payload": "x" * 2000})
        assert status == 503
        await server.call("POST", f"/v1/events/{early}/replay", {}, expect=202)
        small = await server.post("small", "x")
        await found.until_all({small})
        listed = await server.polled(
            f"/v1/webhook_endpoints/{endpoint['endpoint_id']}/deliveries?status=waiting",
            lambda page: bool(page["data"]),
        )
        assert [waiting["reason"] for waiting in listed["data"]] == ["payload_store"]
        told, said = await why(server, early, endpoint["endpoint_id"])
        assert (told["status"], told["reason"], told["generation"]) == ("waiting", "payload_store", 1)
        assert "cannot be read from the payload store" in said and "It is tried every few seconds" in said
        assert "-> The operator looks why" in said
        folder.unlink()
        (server.folder / "unplugged").rename(folder)
        await found.until(lambda: found.counts["/hook", early] == 2, what="the replay")
        attempts = await server.attempts(early, 2)
        assert [attempt["retry_count"] for attempt in attempts] == [0, 0]


async def test_a_folder_that_is_not_the_installations_is_refused_at_the_start() -> None:
    async with receiver(), running(payload_inline_max="0") as server:
        await server.post("a.b", {})
        await server.stop()
        shutil.rmtree(server.folder / "payloads")
        await server.start(wait=False)
        await server.until_line("payload store is empty")
        assert server.process is not None
        assert await server.process.wait() == 1


async def test_what_has_moved_into_segments_is_shown_delivered_and_replayed_as_it_was_posted() -> None:
    async with receiver() as found, running() as server:
        await server.endpoint(found.url(), events=["now"])
        later = await server.endpoint(found.url("/later"), events=["later"])
        path = f"/v1/webhook_endpoints/{later['endpoint_id']}"
        await server.call("POST", f"{path}/pause", {}, expect=200)
        text = b'{"n":  1, "pi": 3.1400}'
        ids = []
        for kind in (b"now", b"later"):
            body = b'{"type": "' + kind + b'", "payload": ' + text + b', "idempotency_key": "' + kind + b'"}'
            answered = await server.bytes_of("POST", "/v1/events", body, expect=202)
            ids.append(json.loads(answered)["event_id"])
        now, waiting = ids
        await server.settled(now)
        await server.settled(waiting, "waiting")

        assert await moved_by_tomorrow(server) == 2
        answered = await server.bytes_of("GET", f"/v1/events/{now}", None, expect=200)
        assert text in answered
        await server.call("POST", f"/v1/events/{now}/replay", {}, expect=202)
        await server.call("POST", f"{path}/resume", {}, expect=200)
        await found.until(lambda: found.counts.get(("/hook", now)) == 2, what="the replay")
        await found.until_all({waiting}, "/later")
        assert {arrival.body for arrival in found.arrivals} == {text}

        await server.call("DELETE", f"/v1/events/{now}/payload", expect=200)
        answered = await server.call("GET", f"/v1/events/{now}", expect=200)
        assert (answered["payload"], answered["payload_state"]) == (None, "removed")


async def moved_by_tomorrow(server: Hookpost) -> int:
    """Let two days pass in the database and move what is over; how many payloads that were."""
    dsn = find_running(server.folder)
    assert dsn is not None
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "create or replace function hookpost_now() returns timestamptz language sql volatile as"
        " $$ select clock_timestamp() + interval '2 days' $$"
    )
    store, payloads = PostgresStore(dsn), make_payloads(load(data_dir=server.folder), dsn)
    await store.open()
    try:
        count = 0
        while (moved := await store.move_payloads(payloads.put, age_s=0, rows_max=100, bytes_max=10_000)) is not None:
            count += moved.payloads
            await connection.execute("update cold_days set filled_at = filled_at - interval '1 h'")
        return count
    finally:
        await store.close()
        await connection.close()
