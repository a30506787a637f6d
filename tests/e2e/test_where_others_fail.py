"""Where the field fails today (design.md §8): each of these is a promise of ours, tested from outside.

"Accepted, then lost" is tests/e2e/test_crashes.py; "the retry needs a log that was not flushed" and "rows that are
never deleted" have their tests at the engine and the store. Each test has a tenant of its own on one shared server.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from standardwebhooks import Webhook, WebhookVerificationError

from tests.conftest import require
from tests.e2e.harness import WAIT_S, Arrival, Hookpost, Receiver, answer, receiver, running

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

# So short that a queue can be deeper than a lease is long.
LEASE_S = 4
# Retries that come soon, and again and again.
SOON = {"base_s": 0.2, "cap_s": 0.4}
# A retry that no test lives to see.
LATE = {"base_s": 3600, "cap_s": 3600}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Hookpost]:
    # Breakers close soon: these tests are about what is tried again, and all of their receivers share a host.
    pauses = {"breaker_pause_s": "1", "breaker_pause_max_s": "1"}
    async with running("--workers", "2", **pauses) as started:
        for name in ("worker-1", "worker-2"):
            await started.until_line(rf"{name}\s+shards_acquired")
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def key(server: Hookpost) -> str:
    """A tenant of the test's own."""
    return await server.tenant(f"tenant {uuid4().hex[:8]}")


@pytest_asyncio.fixture(loop_scope="module")
async def ledger() -> AsyncIterator[Receiver]:
    async with receiver() as found:
        yield found
        assert not found.forged


@dataclass
class Script:
    """A handler that answers with a status until it is told another."""

    status: int = 500
    lines: tuple[str, ...] = ()
    at: list[float] = field(default_factory=list)

    async def __call__(self, arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        self.at.append(time.monotonic())
        writer.write(answer(self.status, b"as told", *self.lines))


async def subscribe(server: Hookpost, ledger: Receiver, path: str, key: str, **fields: Any) -> str:
    """An endpoint at this path of the receiver, whose every request is checked; its id."""
    created = await server.endpoint(ledger.url(path), key=key, **fields)
    ledger.secrets[path] = created["secret"]
    return str(created["endpoint_id"])


def at(ledger: Receiver, path: str) -> list[Arrival]:
    return [arrival for arrival in ledger.arrivals if arrival.path == path]


async def post_many(server: Hookpost, key: str, count: int, type: str = "load.test") -> list[str]:
    events = [{"type": type, "payload": {"n": n}} for n in range(count)]
    answered = await server.call("POST", "/v1/events/batch", {"events": events}, key=key, expect=202)
    return [result["event_id"] for result in answered["results"]]


# ---- one receiver must not cost the others --------------------------------------------------------------------------


async def test_a_dripping_body_does_not_pin_a_slot(server: Hookpost, key: str, ledger: Receiver) -> None:
    async def dripping(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.05)  # the drip itself

    ledger.handlers["/drip"] = dripping
    short = {"connect_s": 2, "first_byte_s": 3, "total_s": 3}
    await subscribe(server, ledger, "/drip", key, max_in_flight=1, timeouts=short, retry=SOON)
    for event_id in await post_many(server, key, 3):
        await server.settled(event_id, key=key)
        # A busy receiver may have come too late to begin; once its head is there, it is delivered.
        *late, last = await server.attempts(event_id, key=key)
        assert (last["outcome"], last["http_status"]) == ("delivered", 200)
        assert {attempt["http_status"] for attempt in late} <= {None}


# The longest that a request may take. Whoever needs longer for the scene below sees the first of them given up.
REQUEST_S = 30.0


async def test_f26_slow_endpoints_of_one_tenant_do_not_take_all_slots(server: Hookpost) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await _slow_ones_leave_room(server):
            pass


async def _slow_ones_leave_room(server: Hookpost) -> bool:
    """The scene; False when the machine was too slow for it. Nothing of it is left."""
    key = await server.tenant(f"tenant {uuid4().hex[:8]}")
    async with receiver() as ledger:
        seen = await _slow_ones_at(server, key, ledger)
    for endpoint in (await server.call("GET", "/v1/webhook_endpoints", key=key, expect=200))["data"]:
        await server.call("DELETE", f"/v1/webhook_endpoints/{endpoint['endpoint_id']}", key=key, expect=204)
    return seen


async def _slow_ones_at(server: Hookpost, key: str, ledger: Receiver) -> bool:
    clock = asyncio.get_running_loop().time
    release = asyncio.Event()
    hanging: dict[str, int] = {}
    most: dict[str, int] = {}

    async def hang(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        path = arrival.path
        hanging[path] = hanging.get(path, 0) + 1
        most[path] = max(most.get(path, 0), hanging[path])
        await release.wait()
        hanging[path] -= 1
        writer.write(answer())

    patient = {"connect_s": 28, "first_byte_s": REQUEST_S, "total_s": REQUEST_S}
    paths = [f"/slow-{number}" for number in range(10)]
    for path in paths:
        ledger.handlers[path] = hang
        await subscribe(server, ledger, path, key, timeouts=patient)
    began = clock()
    posted = await post_many(server, key, 100)
    # A worker's places are scarce from the half of them on; alone, a tenant has one of two shares, the other is for the next.
    await ledger.until(lambda: sum(hanging.values()) >= 500, what="A to use all that a tenant may")

    other = await server.tenant("the neighbour")
    await subscribe(server, ledger, "/quick", other)
    quick = {await server.post(key=other) for _ in range(20)}
    # Those of the slow ones hang until they are released.
    await ledger.until_all(quick, "/quick")
    if clock() - began > REQUEST_S / 2:
        release.set()
        return False
    assert 500 <= sum(hanging.values()) <= 512
    assert max(most.values()) <= 64

    release.set()
    for path in paths:
        await ledger.until_all(set(posted), path)
    if clock() - began > REQUEST_S:
        return False
    assert all(count == 1 for (path, _), count in ledger.counts.items() if path in paths)
    assert max(most.values()) <= 64
    assert not ledger.forged
    return True


async def test_a_queue_deeper_than_the_lease_repeats_nothing() -> None:
    """Unless the lease is lost, as on a machine that stands still for longer: that one is looked at again."""
    async with running("--workers", "2", lease_s=str(LEASE_S), renew_s="1") as server, receiver() as ledger:
        for name in ("worker-1", "worker-2"):
            await server.until_line(rf"{name}\s+shards_acquired")

        def lost() -> int:
            return sum("lease_lost" in line for line in server.lines)

        async with asyncio.timeout(WAIT_S):
            while True:
                known = lost()
                repeated = await _queue(server, ledger)
                if lost() == known:
                    break
        assert repeated == 0


async def _queue(server: Hookpost, ledger: Receiver) -> int:
    """Work through a queue for longer than a lease; how many were sent again."""
    key = await server.tenant(f"tenant {uuid4().hex[:8]}")

    async def slow(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)  # the receiver's slowness
        writer.write(answer())

    ledger.handlers["/slow"] = slow
    await subscribe(server, ledger, "/slow", key, max_in_flight=1)
    before = time.monotonic()
    posted = set(await post_many(server, key, 10 * (LEASE_S + 1)))
    await ledger.until_all(posted, "/slow")
    assert time.monotonic() - before > LEASE_S
    for event_id in posted:
        await server.settled(event_id, key=key)
    return sum(ledger.counts["/slow", event_id] - 1 for event_id in posted)


# ---- what the receiver asks for -------------------------------------------------------------------------------------


async def test_retry_after_is_honoured_and_not_clamped_to_our_schedule(
    server: Hookpost, key: str, ledger: Receiver
) -> None:
    script = Script(429, ("retry-after: 2",))
    ledger.handlers["/busy"] = script
    await subscribe(server, ledger, "/busy", key, retry=SOON)
    event_id = await server.post(key=key)
    await ledger.until(lambda: len(script.at) == 1)
    script.status, script.lines = 200, ()
    await server.settled(event_id, key=key)
    assert len(script.at) == 2
    assert script.at[1] - script.at[0] >= 2


@pytest.mark.parametrize("status", [302, 303, 307, 308])
async def test_redirects_are_never_followed(server: Hookpost, key: str, ledger: Receiver, status: int) -> None:
    ledger.handlers["/moved"] = Script(status, (f"location: {ledger.url('/canary')}",))
    await subscribe(server, ledger, "/moved", key, retry={**SOON, "max_attempts": 2})
    event_id = await server.post(key=key)
    await server.settled(event_id, "dead", key=key)
    attempts = await server.attempts(event_id, 2, key=key)
    assert [(a["error_code"], a["http_status"], a["outcome"]) for a in attempts] == [
        ("http_3xx", status, "retry"),
        ("http_3xx", status, "dead"),
    ]
    assert at(ledger, "/canary") == []


async def test_nul_and_broken_utf8_in_an_answer_do_not_stop_the_retries(
    server: Hookpost, key: str, ledger: Receiver
) -> None:
    body = b"nul\x00 broken \xff\xfe\xc3("
    told = 500

    async def broken(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(told, body))

    ledger.handlers["/broken"] = broken
    await subscribe(server, ledger, "/broken", key, retry=SOON)
    event_id = await server.post(key=key)
    await server.attempts(event_id, 2, key=key)
    told = 200
    await server.settled(event_id, key=key)
    attempts = await server.attempts(event_id, 3, key=key)
    assert all(b64decode(attempt["response_head_base64"]).endswith(body) for attempt in attempts)
    assert attempts[-1]["outcome"] == "delivered"


# ---- idempotency ----------------------------------------------------------------------------------------------------


async def test_idempotency_keys_belong_to_the_tenant(server: Hookpost, key: str) -> None:
    other = await server.tenant("another")
    body = {"type": "invoice.paid", "payload": {"n": 1}, "idempotency_key": "the same"}
    first = await server.call("POST", "/v1/events", body, key=key, expect=202)
    second = await server.call("POST", "/v1/events", body, key=other, expect=202)
    assert (first["duplicate"], second["duplicate"]) == (False, False)
    assert first["event_id"] != second["event_id"]
    again = await server.call("POST", "/v1/events", body, key=other, expect=202)
    assert (again["event_id"], again["duplicate"]) == (second["event_id"], True)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"payload": {"n": 2}}, id="payload"),
        pytest.param({"type": "invoice.sent"}, id="type"),
        pytest.param({"target_endpoints": []}, id="targets"),
    ],
)
async def test_a_key_used_again_for_something_else_is_refused(
    server: Hookpost, key: str, changed: dict[str, Any]
) -> None:
    body = {"type": "invoice.paid", "payload": {"n": 1}, "idempotency_key": "used"}
    first = await server.call("POST", "/v1/events", body, key=key, expect=202)
    await server.call("POST", "/v1/events", body | changed, key=key, expect=422)
    again = await server.call("POST", "/v1/events", body, key=key, Idempotency_Key="used", expect=202)
    assert (again["event_id"], again["duplicate"]) == (first["event_id"], True)


async def test_a_key_posted_many_times_at_once_is_one_event(server: Hookpost, key: str, ledger: Receiver) -> None:
    await subscribe(server, ledger, "/hook", key)
    body = {"type": "invoice.paid", "payload": 1, "idempotency_key": "at once"}
    answers = await asyncio.gather(*(server.call("POST", "/v1/events", body, key=key, expect=202) for _ in range(20)))
    assert len({answered["event_id"] for answered in answers}) == 1
    assert sorted(answered["duplicate"] for answered in answers) == [False] + [True] * 19
    # What is posted behind them arrives behind them, on the same shard: the one event came once.
    last = await server.post(key=key)
    await ledger.until_all({last, answers[0]["event_id"]})
    assert len(at(ledger, "/hook")) == 2


# ---- replays --------------------------------------------------------------------------------------------------------


def by_generation(attempts: list[dict[str, Any]]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for attempt in attempts:
        found.setdefault(attempt["generation"], []).append(attempt["outcome"])
    return found


async def test_a_manual_replay_of_a_waiting_delivery_does_not_end_its_automatic_retries(
    server: Hookpost, key: str, ledger: Receiver
) -> None:
    script = Script(500)
    ledger.handlers["/sick"] = script
    await subscribe(server, ledger, "/sick", key, retry=SOON)
    event_id = await server.post(key=key)
    await server.attempts(event_id, 1, key=key)
    replayed = await server.call("POST", f"/v1/events/{event_id}/replay", {}, key=key, expect=202)
    assert replayed == {"delivery_count": 1}
    path = f"/v1/deliveries?event_id={event_id}&limit=500"
    await server.polled(
        path,
        lambda found: all(len(by_generation(found["data"]).get(number, ())) >= 3 for number in (0, 1)),
        key=key,
    )
    script.status = 200
    found = await server.polled(
        path, lambda found: [a["outcome"] for a in found["data"]].count("delivered") == 2, key=key
    )
    outcomes = by_generation(sorted(found["data"], key=lambda attempt: str(attempt["attempt_id"])))
    assert set(outcomes) == {0, 1}
    assert all(ends[-1] == "delivered" and set(ends[:-1]) == {"retry"} for ends in outcomes.values())
    assert (await server.settled(event_id, key=key))["status"] == "delivered"


async def test_a_replay_reaches_only_the_endpoint_it_names(server: Hookpost, key: str, ledger: Receiver) -> None:
    one = await subscribe(server, ledger, "/one", key)
    await subscribe(server, ledger, "/two", key)
    event_id = await server.post(key=key)
    for path in ("/one", "/two"):
        await ledger.until_all({event_id}, path)
    await server.attempts(event_id, 2, key=key)
    body = {"endpoint_id": one}
    assert await server.call("POST", f"/v1/events/{event_id}/replay", body, key=key, expect=202) == {
        "delivery_count": 1
    }
    await ledger.until(lambda: ledger.counts["/one", event_id] == 2)
    last = await server.post(key=key)
    await ledger.until_all({last}, "/two")
    assert ledger.counts["/two", event_id] == 1
    everyone = await server.call("POST", f"/v1/events/{event_id}/replay", {}, key=key, expect=202)
    assert everyone == {"delivery_count": 2}
    await ledger.until(lambda: (ledger.counts["/one", event_id], ledger.counts["/two", event_id]) == (3, 2))


async def test_a_dead_letter_is_listed_and_leaves_the_list_when_its_replay_delivers(
    server: Hookpost, key: str, ledger: Receiver
) -> None:
    script = Script(400)
    ledger.handlers["/picky"] = script
    endpoint_id = await subscribe(server, ledger, "/picky", key)
    event_id = await server.post("invoice.paid", key=key)
    event = await server.settled(event_id, "dead", key=key)
    assert event["deliveries"][0]["reason"] == "http_4xx"
    listed = await server.call("GET", "/v1/dead_letters", key=key, expect=200)
    [letter] = listed["data"]
    assert (letter["event_id"], letter["endpoint_id"], letter["type"]) == (event_id, endpoint_id, "invoice.paid")
    assert (letter["reason"], letter["attempt_count"]) == ("http_4xx", 1)
    assert (letter["last_http_status"], letter["last_error_code"]) == (400, "http_4xx")
    script.status = 200
    await server.call("POST", f"/v1/events/{event_id}/replay", {}, key=key, expect=202)
    await ledger.until(lambda: len(script.at) == 2)
    await server.settled(event_id, "delivered", key=key)
    await server.polled("/v1/dead_letters", lambda found: found["data"] == [], key=key)


# ---- nothing vanishes -----------------------------------------------------------------------------------------------


async def until_it_waits(server: Hookpost, key: str, reason: str) -> list[str]:
    """Post until an event waits for this reason: from then on the workers know. All ids posted."""
    posted = []
    while True:
        posted.append(await server.post(key=key))
        event = await server.settled(posted[-1], "waiting", "delivered", key=key)
        [delivery] = event["deliveries"]
        if delivery["status"] == "waiting":
            assert delivery["reason"] == reason
            return posted


@pytest.mark.parametrize("how", ["paused", "disabled"])
async def test_events_for_an_endpoint_that_is_off_wait_and_arrive_when_it_is_on_again(
    server: Hookpost, key: str, ledger: Receiver, how: str
) -> None:
    endpoint_id = await subscribe(server, ledger, "/hook", key)
    path = f"/v1/webhook_endpoints/{endpoint_id}"
    if how == "paused":
        shown = await server.call("POST", f"{path}/pause", key=key, expect=200)
    else:
        shown = await server.call("PATCH", path, {"enabled": False}, key=key, expect=200)
    assert shown["status"] == how
    posted = await until_it_waits(server, key, how)
    arrived = len(at(ledger, "/hook"))
    assert arrived == len(posted) - 1
    posted += await post_many(server, key, 5)
    waiting = await server.polled(f"{path}/deliveries?status=waiting", lambda found: len(found["data"]) == 6, key=key)
    assert {delivery["reason"] for delivery in waiting["data"]} == {how}
    assert len(at(ledger, "/hook")) == arrived
    if how == "paused":
        shown = await server.call("POST", f"{path}/resume", key=key, expect=200)
    else:
        shown = await server.call("PATCH", path, {"enabled": True}, key=key, expect=200)
    assert shown["status"] == "enabled"
    await ledger.until_all(set(posted))
    for event_id in posted:
        await server.settled(event_id, key=key)
    assert all(count == 1 for count in ledger.counts.values())


async def test_f35_deleting_an_endpoint_cancels_what_waits_for_it(server: Hookpost, key: str, ledger: Receiver) -> None:
    ledger.handlers["/sick"] = Script(500)
    endpoint_id = await subscribe(server, ledger, "/sick", key, retry=LATE)
    await subscribe(server, ledger, "/well", key)
    event_id = await server.post(key=key)
    await server.attempts(event_id, 2, key=key)
    path = f"/v1/webhook_endpoints/{endpoint_id}"
    await server.call("DELETE", path, key=key, expect=204)
    await server.call("GET", path, key=key, expect=404)
    event = await server.polled(
        f"/v1/events/{event_id}",
        lambda event: {d["status"] for d in event["deliveries"]} == {"cancelled", "delivered"},
        key=key,
    )
    cancelled = next(d for d in event["deliveries"] if d["endpoint_id"] == endpoint_id)
    assert (cancelled["status"], cancelled["attempt_count"], cancelled["next_attempt_at"]) == ("cancelled", 1, None)
    later = await server.call("POST", "/v1/events", {"type": "a", "payload": 1}, key=key, expect=202)
    assert later["delivery_count"] == 1
    await ledger.until_all({later["event_id"]}, "/well")
    assert len(at(ledger, "/sick")) == 1


async def test_an_endpoint_gets_every_event_posted_after_its_creation(
    server: Hookpost, key: str, ledger: Receiver
) -> None:
    for number in range(20):
        path = f"/fresh-{number}"
        await subscribe(server, ledger, path, key, events=[f"fresh.{number}"])
        body = {"type": f"fresh.{number}", "payload": number}
        answered = await server.call("POST", "/v1/events", body, key=key, expect=202)
        assert answered["delivery_count"] == 1
        await ledger.until_all({answered["event_id"]}, path)


async def test_an_event_that_nobody_wants_is_kept_and_says_so(server: Hookpost, key: str, ledger: Receiver) -> None:
    await subscribe(server, ledger, "/other", key, events=["invoice.*"])
    body = {"type": "payment.done", "payload": {"n": 1}}
    answered = await server.call("POST", "/v1/events", body, key=key, expect=202)
    assert (answered["delivery_count"], answered["duplicate"]) == (0, False)
    event = await server.call("GET", f"/v1/events/{answered['event_id']}", key=key, expect=200)
    assert (event["status"], event["deliveries"], event["payload"]) == ("no_endpoints", [], {"n": 1})


# ---- what a receiver gets -------------------------------------------------------------------------------------------


PAYLOADS = [
    b'{ "b" : 1.0E+5,\t"a":[ 1 ,2,\n 3 ] , "b":"twice" }',
    b'{"escaped":"\\u00e9\\ud83d\\ude00\\/\\u0000","raw":"\xc3\xa9\xf0\x9f\x98\x80 \x7f"}',
    b'{"big":12345678901234567890123,"small":1e-999}',
    b"-0.0e-0",
    b'"just text"',
    b"null",
    b"[ ]",
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
async def test_the_payload_arrives_byte_for_byte(server: Hookpost, key: str, ledger: Receiver, payload: bytes) -> None:
    await subscribe(server, ledger, "/hook", key)
    body = b'{"payload":  ' + payload + b' , "type": "odd.one"}'
    answered = await server.bytes_of("POST", "/v1/events", body, expect=202, key=key, Idempotency_Key="odd")
    event_id = json.loads(answered)["event_id"]
    await ledger.until_all({event_id})
    [arrival] = ledger.arrivals
    assert arrival.body == payload
    shown = await server.bytes_of("GET", f"/v1/events/{event_id}", None, expect=200, key=key)
    assert b'"payload":' + payload in shown


async def test_every_attempt_of_an_event_has_one_id_a_number_and_a_time_of_its_own(
    server: Hookpost, key: str, ledger: Receiver
) -> None:
    script = Script(500)
    ledger.handlers["/sick"] = script
    await subscribe(server, ledger, "/sick", key, retry={"base_s": 2.2, "cap_s": 2.2})
    event_id = await server.post("invoice.paid", key=key)
    await ledger.until(lambda: len(script.at) == 1)
    script.status = 200
    await server.settled(event_id, key=key)
    await server.call("POST", f"/v1/events/{event_id}/replay", {}, key=key, expect=202)
    await ledger.until(lambda: len(script.at) == 3)
    heads = [arrival.headers for arrival in ledger.arrivals]
    assert [head["webhook-id"] for head in heads] == [event_id] * 3
    assert [head["x-webhook-event-id"] for head in heads] == [event_id] * 3
    assert [head["x-webhook-event-type"] for head in heads] == ["invoice.paid"] * 3
    # A replay is a new generation: it counts its own attempts.
    assert [head["x-webhook-attempt"] for head in heads] == ["1", "2", "1"]
    assert int(heads[0]["webhook-timestamp"]) < int(heads[1]["webhook-timestamp"])
    assert heads[0]["webhook-signature"] != heads[1]["webhook-signature"]
    assert all(abs(int(head["webhook-timestamp"]) - time.time()) < 600 for head in heads)
    assert all(head["content-type"] == "application/json" for head in heads)
    assert all(head["user-agent"].startswith("Hookpost/") for head in heads)


def accepts(secret: str, arrival: Arrival) -> bool:
    try:
        Webhook(secret).verify(arrival.body, arrival.headers)
    except WebhookVerificationError:
        return False
    return True


async def until_signed(server: Hookpost, ledger: Receiver, key: str, secrets: Callable[[Arrival], bool]) -> Arrival:
    """The workers take over a rotation within a moment: the first request that fits."""
    async with asyncio.timeout(WAIT_S):
        while True:
            event_id = await server.post(key=key)
            await ledger.until_all({event_id})
            if secrets(ledger.arrivals[-1]):
                return ledger.arrivals[-1]


async def test_f35_in_the_grace_period_of_a_rotation_both_secrets_fit(
    server: Hookpost, key: str, ledger: Receiver
) -> None:
    created = await server.endpoint(ledger.url(), key=key)
    path = f"/v1/webhook_endpoints/{created['endpoint_id']}/secret"
    rotated = await server.call("POST", f"{path}/rotate", {"grace_period_s": 600}, key=key, expect=200)
    old, new = created["secret"], rotated["secret"]
    assert old != new
    arrival = await until_signed(server, ledger, key, lambda arrival: accepts(new, arrival))
    assert accepts(old, arrival)
    assert arrival.headers["webhook-signature"].count("v1,") == 2
    shown = await server.call("GET", path, key=key, expect=200)
    assert shown["secret"] == new
    assert [secret["secret"] for secret in shown["secrets"]] == [new, old]
    at_once = await server.call("POST", f"{path}/rotate", {"grace_period_s": 0}, key=key, expect=200)
    arrival = await until_signed(server, ledger, key, lambda arrival: accepts(at_once["secret"], arrival))
    assert not accepts(new, arrival)
    # No request went out without a signature by a secret that was valid when it was sent.
    assert all(any(accepts(secret, arrival) for secret in (old, new, at_once["secret"])) for arrival in ledger.arrivals)


async def test_the_trace_of_the_producer_is_kept_inside(server: Hookpost, key: str, ledger: Receiver) -> None:
    await subscribe(server, ledger, "/hook", key)
    theirs = "4bf92f3577b34da6a3ce929d0e0e4736"
    answered = await server.call(
        "POST", "/v1/events", {"type": "a", "payload": 1}, key=key, expect=202,
        traceparent=f"00-{theirs}-00f067aa0ba902b7-01", tracestate="vendor=secret", baggage="user=secret",
    )  # fmt: skip
    await ledger.until_all({answered["event_id"]})
    [arrival] = ledger.arrivals
    version, trace, span, flags = arrival.headers["traceparent"].split("-")
    assert (version, len(trace), len(span), flags) == ("00", 32, 16, "01")
    assert theirs not in str(arrival.headers)
    assert "secret" not in str(arrival.headers)
    event = await server.call("GET", f"/v1/events/{answered['event_id']}", key=key, expect=200)
    assert event["trace_id"] == theirs


# ---- who must not be reached ----------------------------------------------------------------------------------------


def own_private_name() -> str:
    """A name of this machine that leads to a loopback or private address, and does not look like it."""
    name = socket.gethostname().lower()
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)}
    except OSError:
        return ""
    private = all(not ip_address(str(address).partition("%")[0]).is_global for address in addresses)
    return name if private and name != "localhost" else ""


async def test_without_allow_networks_nothing_private_is_reached_by_address_or_by_name() -> None:
    async with running(allow_networks="none") as guarded, receiver() as ledger:
        port = ledger.port
        for host in (
            "127.0.0.1", "localhost", "localhost.", "app.localhost", "[::1]", "[::ffff:127.0.0.1]", "[::]", "0.0.0.0",
            "10.0.0.1", "192.168.0.1", "172.16.0.1", "100.64.0.1", "169.254.169.254", "[fd00:ec2::254]", "[fe80::1]",
            "224.0.0.1", "metadata.google.internal", "[64:ff9b::7f00:1]", "2130706433", "0x7f.1", "127.1",
        ):  # fmt: skip
            problem = await guarded.call(
                "POST", "/v1/webhook_endpoints", {"url": f"http://{host}:{port}/hook"}, expect=422
            )
            assert problem["errors"][0]["field"] == "url", host
        name = own_private_name()
        require(bool(name), "this machine's own name leads nowhere private")
        endpoint = await guarded.endpoint(f"http://{name}:{port}/hook")
        event_id = await guarded.post()
        [attempt] = await guarded.attempts(event_id)
        assert (attempt["error_code"], attempt["http_status"]) == ("address_forbidden", None)
        assert attempt["outcome"] == "retry"
        assert ledger.arrivals == []
        assert endpoint["status"] == "enabled"


async def test_metadata_services_are_refused_although_networks_are_allowed(server: Hookpost, key: str) -> None:
    for host in ("169.254.169.254", "[fd00:ec2::254]", "metadata.google.internal", "10.0.0.1"):
        await server.call("POST", "/v1/webhook_endpoints", {"url": f"http://{host}/"}, key=key, expect=422)
