"""Every class of outcome, end to end: what a receiver does, and what the API then says about it.

One server, one hostile receiver and one endpoint for each case. Retries are half an hour away, so that
what a case shows is one attempt and what was decided after it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from email.utils import formatdate
from typing import Any

import pytest
import pytest_asyncio
import trustme
from standardwebhooks import Webhook

from tests.e2e.harness import WAIT_S, Hookpost, running
from tests.transport.receivers import Receiver, answering, listening, resetting_after, speaking, stalling

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

# What runs into a timeout has these; whatever else a case is about, a receiver may be slow on a busy machine.
CONNECT_S, FIRST_BYTE_S, TOTAL_S = 0.5, 1.0, 4.0
NEVER_CONNECTED = {"connect_s": CONNECT_S, "first_byte_s": 29, "total_s": 30}
NEVER_ANSWERED = {"connect_s": CONNECT_S, "first_byte_s": FIRST_BYTE_S, "total_s": 30}
NEVER_ENDED = {"connect_s": 3, "first_byte_s": TOTAL_S, "total_s": TOTAL_S}
# The first retry lies between half of it and all of it away: no test lives to see it.
RETRY_BASE_S = 3600.0
# An endpoint that would be asked again sooner than its Retry-After says, or sooner than what this is compared with.
SOON = {"base_s": 60.0}
RETRY_AFTER_S = 3000
# From the end of an attempt to the decision, in a busy machine.
SLACK_S = 600.0
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Script = Callable[[Receiver, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Hookpost]:
    async with running(
        connect_timeout_s="28",
        first_byte_timeout_s="29",
        total_timeout_s="30",
        retry_base_s=str(RETRY_BASE_S),
    ) as started:
        yield started


def answer(status: str, *lines: str, body: bytes = b"no") -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def seconds(shown: str) -> float:
    return datetime.fromisoformat(shown).timestamp()


def verify(request: bytes, secret: str) -> None:
    """Raises unless the request is signed as Standard Webhooks says, judged by its own library."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")[1:]
    Webhook(secret).verify(body, {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)})


@dataclass(frozen=True, slots=True)
class Seen:
    """What the API tells of one event to one endpoint after its first attempt."""

    endpoint: dict[str, Any]
    event: dict[str, Any]
    attempt: dict[str, Any]

    @property
    def delivery(self) -> dict[str, Any]:
        [delivery] = self.event["deliveries"]
        return dict(delivery)

    @property
    def wait_s(self) -> float:
        """From the end of the attempt to the next one."""
        return seconds(self.delivery["next_attempt_at"]) - seconds(self.attempt["finished_at"])


async def sent(server: Hookpost, url: str, **fields: Any) -> Seen:
    """One event to one new endpoint at this URL, after its first attempt."""
    endpoint = await server.endpoint(url, **fields)
    event_id = await server.post(payload={"n": 1}, target_endpoints=[endpoint["endpoint_id"]])
    [attempt] = await server.attempts(event_id)
    event = await server.call("GET", f"/v1/events/{event_id}", expect=200)
    seen = Seen(endpoint, event, attempt)
    assert (attempt["endpoint_id"], attempt["retry_count"]) == (endpoint["endpoint_id"], 0)
    assert (seen.delivery["endpoint_id"], seen.delivery["attempt_count"]) == (endpoint["endpoint_id"], 1)
    assert seen.delivery["last_http_status"] == attempt["http_status"]
    return seen


async def sent_to(server: Hookpost, script: Script, **fields: Any) -> Seen:
    """The same to a receiver that follows the script; each request it could read is signed correctly."""
    async with listening(script) as receiver:
        seen = await sent(server, receiver.url(), **fields)
        assert receiver.connections == 1
        for request in receiver.requests:
            verify(request, seen.endpoint["secret"])
    return seen


async def sent_in_time(server: Hookpost, script: Script, *late: str, **fields: Any) -> Seen:
    """The same, and again to another one while the machine is too busy for the request to come as far as it is about:
    it ran into one of these, ``late``, first."""
    async with asyncio.timeout(WAIT_S):
        while (seen := await sent_to(server, script, **fields)).attempt["error_code"] in late:
            pass
    return seen


def judged(seen: Seen) -> tuple[str | None, int | None, str]:
    attempt = seen.attempt
    return attempt["error_code"], attempt["http_status"], attempt["outcome"]


def assert_delivered(seen: Seen) -> None:
    assert seen.attempt["outcome"] == "delivered"
    assert (seen.event["status"], seen.delivery["status"], seen.delivery["reason"]) == ("delivered", "delivered", None)
    assert seen.delivery["next_attempt_at"] is None


def assert_waits_for_its_retry(seen: Seen) -> None:
    assert seen.attempt["outcome"] == "retry"
    assert (seen.event["status"], seen.delivery["status"], seen.delivery["reason"]) == ("pending", "waiting", "retry")
    assert RETRY_BASE_S / 2 <= seen.wait_s <= RETRY_BASE_S + SLACK_S


def assert_dead(seen: Seen, reason: str) -> None:
    assert seen.attempt["outcome"] == "dead"
    assert (seen.event["status"], seen.delivery["status"], seen.delivery["reason"]) == ("dead", "dead", reason)
    assert seen.delivery["next_attempt_at"] is None


# ---- statuses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["200 OK", "204 No Content"])
async def test_a_2xx_is_delivered(server: Hookpost, status: str) -> None:
    seen = await sent_to(server, answering(answer(status, body=b"")))
    assert judged(seen) == (None, int(status[:3]), "delivered")
    assert_delivered(seen)


@pytest.mark.parametrize("status", [400, 404])
async def test_a_4xx_is_final(server: Hookpost, status: int) -> None:
    seen = await sent_to(server, answering(answer(f"{status} No")))
    assert judged(seen) == ("http_4xx", status, "dead")
    assert_dead(seen, "http_4xx")


@pytest.mark.parametrize(
    ("status", "code"), [(408, "http_4xx"), (425, "http_4xx"), (429, "http_429"), (500, "http_5xx"), (503, "http_5xx")]
)
async def test_what_may_pass_is_tried_again(server: Hookpost, status: int, code: str) -> None:
    seen = await sent_to(server, answering(answer(f"{status} Later")))
    assert judged(seen) == (code, status, "retry")
    assert_waits_for_its_retry(seen)


async def test_a_redirect_is_a_failure_and_nobody_is_asked_where_it_points(server: Hookpost) -> None:
    async with listening(answering(OK)) as canary:
        seen = await sent_to(server, answering(answer("301 Moved", f"location: {canary.url()}")))
        assert judged(seen) == ("http_3xx", 301, "retry")
        assert_waits_for_its_retry(seen)
        assert canary.url() in seen.attempt["response_head"]
        assert canary.connections == 0


async def test_f25_a_410_disables_the_endpoint_and_what_comes_later_waits_until_it_is_enabled(server: Hookpost) -> None:
    async with listening(answering(answer("410 Gone"), OK)) as receiver:
        seen = await sent(server, receiver.url())
        assert judged(seen) == ("http_410", 410, "dead")
        assert_dead(seen, "http_4xx")
        path = f"/v1/webhook_endpoints/{seen.endpoint['endpoint_id']}"
        shown = await server.polled(path, lambda endpoint: endpoint["status"] == "disabled")
        assert shown["enabled"] is False
        later = await server.post(target_endpoints=[seen.endpoint["endpoint_id"]])
        waiting = await server.settled(later, "waiting")
        assert waiting["deliveries"][0]["reason"] == "disabled"
        assert waiting["deliveries"][0]["attempt_count"] == 0
        assert len(receiver.requests) == 1
        assert (await server.call("PATCH", path, {"enabled": True}, expect=200))["status"] == "enabled"
        await server.settled(later)
        for request in receiver.requests:
            verify(request, seen.endpoint["secret"])
        assert len(receiver.requests) == 2


# ---- Retry-After ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_in_seconds_is_never_undercut(server: Hookpost, status: int) -> None:
    busy = answering(answer(f"{status} Later", f"retry-after: {RETRY_AFTER_S}"))
    seen = await sent_to(server, busy, retry=SOON)
    assert seen.attempt["outcome"] == "retry"
    assert (seen.delivery["status"], seen.delivery["reason"]) == ("waiting", "retry")
    assert RETRY_AFTER_S <= seen.wait_s <= RETRY_AFTER_S + SLACK_S


async def test_retry_after_as_a_date_is_never_undercut(server: Hookpost) -> None:
    moment = int(time.time()) + RETRY_AFTER_S
    busy = answering(answer("429 Later", f"retry-after: {formatdate(moment, usegmt=True)}"))
    seen = await sent_to(server, busy, retry=SOON)
    assert judged(seen) == ("http_429", 429, "retry")
    assert moment - 0.001 <= seconds(seen.delivery["next_attempt_at"]) <= moment + SLACK_S


async def test_f24_retry_after_on_a_503_holds_the_whole_endpoint(server: Hookpost) -> None:
    arrived: list[float] = []

    async def script(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await receiver.read_request(reader):
            arrived.append(time.monotonic())
            writer.write(answer("503 Busy", "retry-after: 2") if len(arrived) == 1 else OK)
            await writer.drain()

    async with listening(script) as receiver:
        seen = await sent(server, receiver.url(), retry={"base_s": 0.1})
        second = await server.post(target_endpoints=[seen.endpoint["endpoint_id"]])
        await server.settled(second)
        await server.settled(seen.event["event_id"])
    assert len(arrived) == 3
    assert min(arrived[1:]) - arrived[0] >= 2


async def test_an_endpoint_held_for_long_says_so(server: Hookpost) -> None:
    async with listening(answering(answer("503 Busy", f"retry-after: {RETRY_AFTER_S}"))) as receiver:
        seen = await sent(server, receiver.url())
        second = await server.post(target_endpoints=[seen.endpoint["endpoint_id"]])
        waiting = await server.settled(second, "waiting")
        assert waiting["deliveries"][0]["reason"] == "rate_limited"
        assert waiting["deliveries"][0]["attempt_count"] == 0
        assert len(receiver.requests) == 1


async def test_retry_after_beyond_the_deadline_is_dead_at_once(server: Hookpost) -> None:
    busy = answering(answer("429 Later", "retry-after: 3600"))
    seen = await sent_to(server, busy, retry={"deadline_s": 120, "base_s": 1, "cap_s": 60})
    assert judged(seen) == ("http_429", 429, "dead")
    assert_dead(seen, "retry_after_beyond_deadline")


# ---- connections ----------------------------------------------------------------------------------------------------


async def test_a_refused_connection(server: Hookpost) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        seen = await sent(server, f"http://127.0.0.1:{bound.getsockname()[1]}/hook")
    assert judged(seen) == ("connect_refused", None, "retry")
    assert_waits_for_its_retry(seen)


async def test_a_connection_nobody_accepts(server: Hookpost) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # the backlog takes a connection or two, later ones get no answer
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        seen = await sent(server, f"http://127.0.0.1:{full.getsockname()[1]}/hook", timeouts=NEVER_CONNECTED)
        for filler in fillers:
            filler.close()
    assert judged(seen) == ("connect_timeout", None, "retry")
    assert CONNECT_S * 1000 - 50 <= seen.attempt["latency_ms"] < 29_000
    assert_waits_for_its_retry(seen)


async def test_a_reset_in_the_middle_of_the_headers(server: Hookpost) -> None:
    seen = await sent_to(server, resetting_after(b"HTTP/1.1 200 OK\r\nx-a"))
    assert judged(seen) == ("connection_reset", None, "retry")
    assert_waits_for_its_retry(seen)


async def test_https_to_a_port_that_speaks_plain_http(server: Hookpost) -> None:
    async def plain(_: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(answer("400 Bad Request"))
        await writer.drain()
        await reader.read()

    async with listening(plain) as receiver:
        seen = await sent(server, receiver.url(scheme="https"))
    assert judged(seen) == ("tls_failure", None, "retry")
    assert_waits_for_its_retry(seen)


def self_signed() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_a_certificate_that_nobody_vouches_for(server: Hookpost) -> None:
    async with listening(answering(OK), tls=self_signed()) as receiver:
        seen = await sent(server, receiver.url(scheme="https"))
        assert receiver.requests == []
    assert judged(seen) == ("tls_untrusted", None, "retry")
    assert_waits_for_its_retry(seen)


async def test_a_name_that_does_not_exist(server: Hookpost) -> None:
    # RFC 6761 §6.4 lets no resolver know it; without any resolver the answer may take its time.
    seen = await sent(server, "http://nobody.invalid/hook")
    assert judged(seen) == ("dns_failure", None, "retry")
    assert_waits_for_its_retry(seen)


# ---- answers that take their time, or too much room ------------------------------------------------------------------


async def test_f23_no_answer_at_all(server: Hookpost) -> None:
    seen = await sent_in_time(server, stalling(), "connect_timeout", timeouts=NEVER_ANSWERED)
    assert judged(seen) == ("first_byte_timeout", None, "retry")
    assert FIRST_BYTE_S * 1000 - 50 <= seen.attempt["latency_ms"] < 29_000
    assert_waits_for_its_retry(seen)


async def test_headers_that_stall_half_way(server: Hookpost) -> None:
    half = stalling(b"HTTP/1.1 200 OK\r\nx-a: b\r\n")
    seen = await sent_in_time(server, half, "connect_timeout", "first_byte_timeout", timeouts=NEVER_ENDED)
    assert judged(seen) == ("total_timeout", None, "retry")
    assert seen.attempt["latency_ms"] >= TOTAL_S * 1000 - 50
    assert_waits_for_its_retry(seen)


async def test_a_body_that_drips_after_a_200_is_delivered(server: Hookpost) -> None:
    async def dripping(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receiver.read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.05)  # the drip itself

    late = ("connect_timeout", "first_byte_timeout", "total_timeout")
    seen = await sent_in_time(server, dripping, *late, timeouts=NEVER_ENDED)
    assert judged(seen) == (None, 200, "delivered")
    assert_delivered(seen)
    assert seen.attempt["latency_ms"] <= (TOTAL_S + SLACK_S) * 1000


async def test_a_body_of_100_mb_after_a_200_is_delivered_and_cut(server: Hookpost) -> None:
    flood = speaking(b"HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n", repeat=b"z" * 65536)
    seen = await sent_to(server, flood)
    assert judged(seen) == (None, 200, "delivered")
    assert_delivered(seen)
    assert 64 * 1024 <= seen.attempt["response_bytes"] < 200_000
    assert len(b64decode(seen.attempt["response_head_base64"])) <= 4096


# ---- answers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="ssh"),
        pytest.param(b"<html>hello</html>", id="html"),
        pytest.param(b"\x00\xff\xfe" * 50, id="binary"),
    ],
)
async def test_garbage_instead_of_http(server: Hookpost, said: bytes) -> None:
    seen = await sent_to(server, speaking(said))
    assert judged(seen) == ("protocol_error", None, "retry")
    assert_waits_for_its_retry(seen)


async def test_interim_answers_without_end(server: Hookpost) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    seen = await sent_to(server, speaking(early, repeat=early))
    assert judged(seen) == ("protocol_error", None, "retry")
    assert_waits_for_its_retry(seen)
    assert seen.attempt["response_bytes"] < 1_000_000


BYTES = b"nul\x00 broken \xff\xfe\xc3( rtl \xe2\x80\xae <script> \x1b[31m"
SAID = b"HTTP/1.1 %d caf\xe9\r\nx-bad: \xff\xfe\r\ncontent-length: " + str(len(BYTES)).encode() + b"\r\n\r\n" + BYTES


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_nul_and_broken_utf8_in_an_answer_are_kept_byte_for_byte(server: Hookpost, status: int) -> None:
    said = SAID.replace(b"%d", str(status).encode())
    seen = await sent_to(server, answering(said))
    assert seen.attempt["http_status"] == status
    assert seen.attempt["outcome"] == {200: "delivered", 400: "dead", 500: "retry"}[status]
    assert b64decode(seen.attempt["response_head_base64"]) == said
    assert seen.attempt["response_head"] == said.decode("utf-8", "replace")


async def test_a_nul_in_a_header_is_no_http_and_is_recorded(server: Hookpost) -> None:
    seen = await sent_to(server, speaking(b"HTTP/1.1 200 OK\r\nx-nul: a\x00b\r\ncontent-length: 0\r\n\r\n"))
    assert judged(seen) == ("protocol_error", None, "retry")
    assert_waits_for_its_retry(seen)


# ---- the books ------------------------------------------------------------------------------------------------------


async def test_an_attempt_carries_what_an_operator_asks_for(server: Hookpost) -> None:
    seen = await sent_to(server, answering(OK))
    attempt = seen.attempt
    assert attempt["event_id"] == seen.event["event_id"]
    assert attempt["trace_id"] == seen.event["event_id"].removeprefix("evt_")
    assert attempt["response_hash"].startswith("sha256:")
    assert (attempt["address"], attempt["protocol"], attempt["worker"]) == ("127.0.0.1", "1.1", "worker-1")
    assert (attempt["request_bytes"] > 0, attempt["possible_duplicate"]) == (True, False)
    assert set(attempt["timings_ms"]) == {"dns", "connect", "tls", "first_byte", "total"}
    moments = [seconds(attempt[name]) for name in ("scheduled_at", "started_at", "finished_at")]
    assert moments == sorted(moments)
    dead = await server.call("GET", "/v1/dead_letters?limit=500", expect=200)
    assert seen.event["event_id"] not in {letter["event_id"] for letter in dead["data"]}
