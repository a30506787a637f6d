"""Every kind of receiver, and what its answer comes to (I21, attack list R, and the classes of api.md)."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import socket
import time

import pycurl
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hookpost.model import ErrorCode, Outcome, Request, Timeouts
from hookpost.transport import Transport
from tests.patience import PATIENCE_S
from tests.transport.conftest import LOOPBACK, PATIENT, MakeTransport, sent
from tests.transport.receivers import answering, listening, resetting, resetting_after, speaking, stalling

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
# One of them is over before the others, however late the loop looks.
SHORT = Timeouts(connect_s=60.0, first_byte_s=60.0, total_s=1.0)
SILENCE = Timeouts(connect_s=60.0, first_byte_s=1.0, total_s=60.0)
UNCONNECTED = Timeouts(connect_s=0.2, first_byte_s=60.0, total_s=60.0)


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def test_a_2xx_is_a_success_with_everything_measured(transport: Transport) -> None:
    async with listening(answering(OK)) as receiver:
        before = time.time()
        outcome = await sent(transport, receiver.url(), body=b"x" * 500)
    assert outcome.error_code is None
    assert outcome.status == 200
    assert outcome.response_head == OK
    assert outcome.response_hash == hashlib.sha256(b"ok").digest()
    assert outcome.response_bytes == len(OK)
    assert outcome.request_bytes == len(receiver.requests[0])
    assert not outcome.body_cut
    assert (outcome.address, outcome.protocol, outcome.detail) == ("127.0.0.1", "1.1", "")
    assert before <= outcome.started_at <= outcome.finished_at <= time.time()
    assert outcome.total_ms >= outcome.first_byte_ms >= 0
    assert transport.in_flight == 0


async def test_the_request_on_the_wire_is_what_was_asked_and_nothing_else(transport: Transport) -> None:
    async with listening(answering(OK)) as receiver:
        await sent(
            transport, receiver.url("/a%0d%0ab/../c?d"), body=b"\x00\xff\r\n", headers=["webhook-id: evt_1", "x-b: c"]
        )
        await sent(transport, receiver.url(), body=b"")
        await sent(transport, receiver.url(), body=b"y" * 2_000_000)
    head, _, body = receiver.requests[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /a%0D%0Ab/../c?d HTTP/1.1",  # libcurl writes the hex digits in capitals (RFC 3986 §6.2.2.1)
        f"Host: 127.0.0.1:{receiver.port}".encode(),
        b"webhook-id: evt_1",
        b"x-b: c",
        b"Content-Length: 4",
    ]
    assert body == b"\x00\xff\r\n"
    assert b"Content-Length: 0" in receiver.requests[1]
    assert receiver.requests[2].endswith(b"y" * 2_000_000)
    assert b"expect" not in receiver.requests[2].partition(b"\r\n\r\n")[0].lower()
    assert receiver.connections == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("204 No Content", None),
        ("404 Not Found", ErrorCode.HTTP_4XX),
        ("408 Request Timeout", ErrorCode.HTTP_4XX),
        ("401 Unauthorized", ErrorCode.HTTP_4XX),
        ("417 Expectation Failed", ErrorCode.HTTP_4XX),
        ("410 Gone", ErrorCode.HTTP_410),
        ("429 Too Many Requests", ErrorCode.HTTP_429),
        ("500 Oops", ErrorCode.HTTP_5XX),
        ("503 Busy", ErrorCode.HTTP_5XX),
        ("999 R8", ErrorCode.HTTP_5XX),
    ],
)
async def test_the_status_decides(transport: Transport, status: str, code: ErrorCode | None) -> None:
    async with listening(answering(answer(status, "www-authenticate: Basic"), close=True)) as receiver:
        outcome = await sent(transport, receiver.url())
    assert (outcome.error_code, outcome.status) == (code, int(status[:3]))
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent", "300 Choices"]
)
async def test_n22_a_redirect_is_a_failure_and_never_followed(transport: Transport, status: str) -> None:
    async with listening(answering(OK)) as canary:
        location = f"Location: {canary.url()}"
        async with listening(answering(answer(status, location, "Refresh: 0; url=/x"))) as receiver:
            outcome = await sent(transport, receiver.url())
            assert len(receiver.requests) == 1
        assert canary.connections == 0
    assert outcome.error_code is ErrorCode.HTTP_3XX
    assert location.encode() in outcome.response_head


async def test_n23_what_a_2xx_points_to_is_left_alone(transport: Transport) -> None:
    """Refresh, preloads, other services for the same origin, in headers and in HTML: a browser would go there."""
    async with listening(answering(OK)) as canary:
        there = canary.url()
        page = f'<meta http-equiv="refresh" content="0; url={there}">'.encode()
        pointing = answer(
            "200 OK", f"Refresh: 0; url={there}", f"Link: <{there}>; rel=preload", f'Alt-Svc: h2=":{canary.port}"',
            f"Content-Location: {there}", f"Location: {there}", "Content-Type: text/html", body=page,
        )  # fmt: skip
        async with listening(answering(pointing)) as receiver:
            for _ in range(2):
                assert (await sent(transport, receiver.url())).error_code is None
            assert len(receiver.requests) == 2
        assert canary.connections == 0


@pytest.mark.parametrize(
    ("headers", "value"),
    [
        (["Retry-After: 120"], b"120"),
        (["retry-after:Fri, 31 Dec 1999 23:59:59 GMT  "], b"Fri, 31 Dec 1999 23:59:59 GMT"),
        (["Retry-After: 1", "RETRY-AFTER: 2"], b"2"),
        (["Retry-After: 1e309"], b"1e309"),
        (["X-Retry-After: 5"], None),
        ([], None),
    ],
)
async def test_r14_retry_after_is_handed_on_raw(transport: Transport, headers: list[str], value: bytes | None) -> None:
    async with listening(answering(answer("429 Slow down", *headers))) as receiver:
        outcome = await sent(transport, receiver.url())
    assert outcome.error_code is ErrorCode.HTTP_429
    assert outcome.retry_after == value


async def test_response_heads_are_kept_in_bounds(transport: Transport) -> None:
    async with listening(answering(answer("200 OK", body=b"a" * 9000), answer("500 No", body=b"b" * 9000))) as receiver:
        success = await sent(transport, receiver.url())
        failure = await sent(transport, receiver.url())
    assert (len(success.response_head), len(failure.response_head)) == (1024, 4096)
    assert success.response_hash == hashlib.sha256(b"a" * 9000).digest()


async def test_a_refused_connection(transport: Transport) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        outcome = await sent(transport, f"http://127.0.0.1:{bound.getsockname()[1]}/")
    assert outcome.error_code is ErrorCode.CONNECT_REFUSED
    assert (outcome.status, outcome.address) == (None, "127.0.0.1")


async def test_a_connection_nobody_accepts_times_out(transport: Transport) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # the backlog takes a connection or two, later SYNs are dropped
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        outcome = await sent(transport, f"http://127.0.0.1:{full.getsockname()[1]}/", timeouts=UNCONNECTED)
        for filler in fillers:
            filler.close()
    assert outcome.error_code is ErrorCode.CONNECT_TIMEOUT


async def test_a_name_under_invalid_is_a_dns_failure(transport: Transport) -> None:
    outcome = await sent(transport, "http://nobody.invalid/", timeouts=Timeouts(connect_s=3, first_byte_s=5, total_s=6))
    assert outcome.error_code is ErrorCode.DNS_FAILURE
    assert "nobody.invalid" in outcome.detail


async def test_localhost_is_looked_up_and_reached(transport: Transport) -> None:
    async with listening(answering(OK)) as receiver:
        outcomes = [await sent(transport, receiver.url(host="localhost")) for _ in range(3)]
    assert [outcome.status for outcome in outcomes] == [200, 200, 200]
    assert receiver.connections == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_r1_no_answer_is_a_first_byte_timeout(transport: Transport, host: str) -> None:
    async with listening(stalling()) as receiver:
        outcome = await sent(transport, receiver.url(host=host), timeouts=SILENCE)
    assert outcome.error_code is ErrorCode.FIRST_BYTE_TIMEOUT
    assert 990 <= outcome.total_ms < 60_000
    assert transport.in_flight == 0


async def test_r2_half_a_head_is_a_total_timeout(transport: Transport) -> None:
    async with listening(stalling(b"HTTP/1.1 200 OK\r\nx-a: b\r\n")) as receiver:
        outcome = await sent(transport, receiver.url(), timeouts=SHORT)
    assert (outcome.error_code, outcome.status) == (ErrorCode.TOTAL_TIMEOUT, None)
    assert 990 <= outcome.total_ms < 60_000


@pytest.mark.parametrize(("status", "code"), [("200 OK", None), ("500 No", ErrorCode.HTTP_5XX)])
async def test_r2_a_body_that_stalls_after_the_head_leaves_the_status_standing(
    transport: Transport, status: str, code: ErrorCode | None
) -> None:
    async with listening(stalling(f"HTTP/1.1 {status}\r\ncontent-length: 100\r\n\r\npart".encode())) as receiver:
        outcome = await sent(transport, receiver.url(), timeouts=SHORT)
    assert (outcome.error_code, outcome.body_cut) == (code, True)
    assert outcome.response_head.endswith(b"part")
    assert outcome.response_hash == hashlib.sha256(b"part").digest()


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 1000000000000000000",
        b"transfer-encoding: chunked",
        b"content-encoding: gzip",
        b"x-until: close",
    ],
)
async def test_r3_r4_an_endless_body_is_cut_at_64_kib(transport: Transport, head: bytes) -> None:
    chunk = b"10000\r\n" + b"z" * 0x10000 + b"\r\n" if b"chunked" in head else b"z" * 0x10000
    async with listening(speaking(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n", repeat=chunk)) as receiver:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcomes = [await sent(transport, receiver.url()) for _ in range(20)]
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert {(outcome.error_code, outcome.body_cut) for outcome in outcomes} == {(None, True)}
    assert outcomes[0].response_hash == hashlib.sha256(b"z" * 0x10000).digest()
    assert max(outcome.response_bytes for outcome in outcomes) < 200_000
    assert grown_kib < 20 * 1024


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param((b"HTTP/1.1 200 OK\r\n", b"x-a: b\r\n"), id="R5-lines"),
        pytest.param((b"HTTP/1.1 200 OK\r\nx-a: ", b"b" * 4096), id="R5-one-line"),
        pytest.param((b"HTTP/1.1 200 ", b"O" * 4096), id="R5-status-line"),
        pytest.param((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"), id="R6-100"),
        pytest.param((b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"), id="R6-103"),
        pytest.param((b"", b"HTTP/1.1 103 Early Hints\r\nlink: " + b"a" * 9000 + b"\r\n\r\n"), id="R6-large"),
    ],
)
async def test_floods_of_headers_end_as_protocol_errors(transport: Transport, flood: tuple[bytes, bytes]) -> None:
    async with listening(speaking(flood[0], repeat=flood[1])) as receiver:
        outcome = await sent(transport, receiver.url())
    assert (outcome.error_code, outcome.status) == (ErrorCode.PROTOCOL_ERROR, None)
    assert outcome.response_bytes < 1_000_000


async def test_r6_a_slow_1xx_drip_ends_by_the_total_timeout(transport: Transport) -> None:
    async def handler(receiver, reader, writer):  # type: ignore[no-untyped-def]  # a script, not an interface
        await receiver.read_request(reader)
        while True:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)  # the drip itself

    async with listening(handler) as receiver:
        outcome = await sent(transport, receiver.url(), timeouts=SHORT)
    assert outcome.error_code is ErrorCode.TOTAL_TIMEOUT


async def test_interim_responses_before_the_final_one_are_left_out(transport: Transport) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    async with listening(answering(early + b"HTTP/1.1 100 Continue\r\n\r\n" + OK)) as receiver:
        outcome = await sent(transport, receiver.url())
    assert (outcome.status, outcome.response_head) == (200, OK)


async def test_trailers_are_not_taken_for_headers(transport: Transport) -> None:
    said = (
        b"HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n"
        b"2\r\nno\r\n0\r\nretry-after: 9\r\nHTTP/1.1: 200 OK\r\n\r\n"
    )
    async with listening(answering(said)) as receiver:
        outcome = await sent(transport, receiver.url())
    assert (outcome.status, outcome.retry_after, outcome.body_cut) == (503, None, False)
    assert outcome.response_head.endswith(b"\r\n\r\nno")


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="R8-ssh"),
        pytest.param(b"220 ftp.example ready\r\n", id="R8-ftp"),
        pytest.param(b"<html>hello</html>", id="R8-http09"),
        pytest.param(b"\x15\x03\x03\x00\x02\x02\x28", id="R8-tls-alert"),
        pytest.param(b"\x00\xff\xfe" * 50, id="R8-binary"),
        pytest.param(b"HTTP/1.1 2000 Eh\r\n\r\n", id="R8-2000"),
        pytest.param(b"HTTP/1.1 0 Eh\r\n\r\n", id="R8-0"),
        pytest.param(b"HTTP/1.1 abc Eh\r\n\r\n", id="R8-abc"),
        pytest.param(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", id="R10-101"),
        pytest.param(b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n", id="R10-101-h2c"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", id="R7-negative"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", id="R7-two"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx-nul: a\x00b\r\ncontent-length: 0\r\n\r\n", id="R12-nul"),
        pytest.param(b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n", id="R12-no-colon"),
    ],
)
async def test_what_is_not_http_is_a_protocol_error(transport: Transport, said: bytes) -> None:
    async with listening(speaking(said)) as receiver:
        outcome = await sent(transport, receiver.url())
    assert (outcome.error_code, outcome.status) == (ErrorCode.PROTOCOL_ERROR, None), outcome


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nx", id="chunk-overflow"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\nxyz\r\n", id="chunk-garbage"),
        pytest.param(b"content-length: 9\r\n\r\nshort", id="short"),
    ],
)
async def test_r7_a_broken_body_after_a_complete_2xx_head_is_a_success_cut(transport: Transport, rest: bytes) -> None:
    """F22."""
    async with listening(speaking(b"HTTP/1.1 200 OK\r\n" + rest)) as receiver:
        outcome = await sent(transport, receiver.url())
    assert (outcome.error_code, outcome.status, outcome.body_cut) == (None, 200, True)


async def test_r7_an_endless_chunk_extension_is_a_success_cut(transport: Transport) -> None:
    said = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a="
    async with listening(speaking(said, repeat=b"e" * 4096)) as receiver:
        outcome = await sent(transport, receiver.url(), timeouts=SHORT)
    assert (outcome.error_code, outcome.body_cut) == (None, True)


async def test_r12_r13_headers_and_body_are_kept_as_bytes(transport: Transport) -> None:
    body = b"nul\x00 \xff\xfe \xe2\x80\xae <script> \x1b[31m"
    said = (
        b"HTTP/1.1 200 caf\xe9\r\nx-latin: \xe9\r\nx-utf8: \xc3\xa9\r\nx-bad: \xff\xfe\r\n"
        + b"content-length: %d\r\n\r\n" % len(body)
    )
    async with listening(answering(said + body)) as receiver:
        outcome = await sent(transport, receiver.url())
    assert outcome.response_head == said + body


async def test_r9_a_204_with_a_body_does_not_poison_the_next_request(transport: Transport) -> None:
    poison = b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 500 Poison\r\ncontent-length: 0\r\n\r\n"
    async with listening(answering(poison, OK)) as receiver:
        outcomes = [await sent(transport, receiver.url()) for _ in range(2)]
    assert [outcome.status for outcome in outcomes] == [204, 200]


@pytest.mark.parametrize(
    ("handler", "body"),
    [
        pytest.param(resetting, b"{}", id="after-syn"),
        pytest.param(resetting_after(b"", read=False), b"x" * 5_000_000, id="mid-request"),
        pytest.param(resetting_after(b""), b"{}", id="before-response"),
        pytest.param(resetting_after(b"HTTP/1.1 200 OK\r\nx-a"), b"{}", id="mid-headers"),
        pytest.param(speaking(b""), b"{}", id="closed-before-response"),
        pytest.param(speaking(b"HTTP/1.1 200 OK\r\nx-a: b\r\n"), b"{}", id="closed-mid-headers"),
    ],
)
async def test_r11_a_reset_before_the_head_is_complete(transport: Transport, handler: object, body: bytes) -> None:
    async with listening(handler) as receiver:  # type: ignore[arg-type]  # the scripts share a loose signature
        outcome = await sent(transport, receiver.url(), body=body)
    assert (outcome.error_code, outcome.status) == (ErrorCode.CONNECTION_RESET, None)


async def test_r11_a_reset_in_the_body_leaves_the_status_standing(transport: Transport) -> None:
    async with listening(resetting_after(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\npart")) as receiver:
        outcome = await sent(transport, receiver.url())
    assert (outcome.error_code, outcome.status, outcome.body_cut) == (None, 200, True)


async def test_r19_a_kept_connection_closed_after_each_answer_costs_nobody_a_failure(transport: Transport) -> None:
    async with listening(answering(OK, close=True)) as receiver:
        outcomes = [await sent(transport, receiver.url()) for _ in range(20)]
    assert {outcome.error_code for outcome in outcomes} == {None}
    assert receiver.connections == 20


async def test_r12_a_cookie_is_not_sent_back(transport: Transport) -> None:
    async with listening(answering(answer("200 OK", "Set-Cookie: a=b; path=/"))) as receiver:
        for _ in range(2):
            await sent(transport, receiver.url())
    assert all(b"cookie" not in request.lower() for request in receiver.requests)


async def test_a_header_that_cannot_be_encoded_is_never_sent(transport: Transport) -> None:
    async with listening(answering(OK)) as receiver:
        outcome = await sent(transport, receiver.url(), headers=["ok: fine", "a: café"])
        assert receiver.connections == 0
    assert outcome.error_code is ErrorCode.INTERNAL_ERROR


async def test_many_requests_share_one_connection(transport: Transport) -> None:
    async with listening(answering(OK)) as receiver:
        for _ in range(50):
            assert (await sent(transport, receiver.url())).status == 200
    assert receiver.connections == 1


async def test_n27_a_connection_is_not_kept_beyond_its_age(make_transport: MakeTransport) -> None:
    transport = make_transport(connection_age_s=1)
    async with listening(answering(OK)) as receiver:
        await sent(transport, receiver.url())
        await asyncio.sleep(2.1)  # libcurl counts the age in whole seconds of its own clock
        await sent(transport, receiver.url())
    assert receiver.connections == 2


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "dict://127.0.0.1/",
        "ftp://127.0.0.1/",
        "http://127.0.0.1/\r\nX-Evil: 1",
        "http://user:pw@127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://a..b/",
        "http:///x",
        "",
        "\0",
        "http://\ud800/",
        "http://127.0.0.1/" + "x" * 60_000,
    ],
)
async def test_u5_u6_n8_a_bad_url_is_an_outcome_not_an_exception(transport: Transport, url: str) -> None:
    outcome = await sent(transport, url)
    assert outcome.error_code is ErrorCode.INVALID_URL
    assert transport.in_flight == 0


async def test_what_libcurl_cannot_take_is_an_internal_error(transport: Transport) -> None:
    """F44."""
    async with listening(answering(OK)) as receiver:
        endless = Timeouts(connect_s=float("inf"), first_byte_s=1.0, total_s=1.0)
        assert (await sent(transport, receiver.url(), timeouts=endless)).error_code is ErrorCode.INTERNAL_ERROR
        assert (await sent(transport, receiver.url())).status == 200


async def test_n24_proxies_and_netrc_of_the_environment_are_ignored(
    make_transport: MakeTransport, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    from pathlib import Path

    Path(f"{tmp_path}/.netrc").write_text("machine 127.0.0.1 login user password secret\n")
    async with listening(answering(OK)) as proxy, listening(answering(OK)) as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url(""))
        monkeypatch.setenv("HOME", str(tmp_path))
        outcome = await sent(make_transport(), receiver.url())
        assert (outcome.status, proxy.connections) == (200, 0)
        assert b"authorization" not in receiver.requests[0].lower()


async def test_a_failing_callback_costs_the_others_nothing(transport: Transport) -> None:
    loop = asyncio.get_running_loop()
    told: list[str] = []
    loop.set_exception_handler(lambda _loop, context: told.append(context["message"]))
    async with listening(answering(OK)) as receiver:

        def fail(_outcome: Outcome) -> None:
            raise RuntimeError("a bug of the caller")

        transport.send(Request(receiver.url(), "", b"", PATIENT), fail)
        assert (await sent(transport, receiver.url())).status == 200
        while transport.in_flight:
            await asyncio.sleep(0)
    assert told == ["the callback of a request failed"]


async def test_close_ends_what_is_under_way_and_calls_nobody(make_transport: MakeTransport) -> None:
    transport = make_transport()
    called: list[Outcome] = []
    async with listening(stalling()) as receiver:
        transport.send(Request(receiver.url(), "", b"", PATIENT), called.append)
        await receiver.arrived.wait()
        transport.send(Request(receiver.url(host="localhost"), "", b"", PATIENT), called.append)
        transport.send(Request("nonsense", "", b"", PATIENT), called.append)
        assert transport.in_flight == 3
        await transport.close()
        await asyncio.wait_for(receiver.ended.get(), PATIENCE_S)
    assert (called, transport.in_flight) == ([], 0)


async def test_close_closes_the_kept_connections(make_transport: MakeTransport) -> None:
    transport = make_transport()
    async with listening(answering(OK)) as receiver:
        await asyncio.gather(*(sent(transport, receiver.url()) for _ in range(20)))
        await transport.close()
        for _ in range(receiver.connections):
            await asyncio.wait_for(receiver.ended.get(), PATIENCE_S)


def test_it_runs_on_uvloop_with_hundreds_in_flight() -> None:
    async def run() -> list[int | None]:
        transport = Transport(egress=LOOPBACK, now=time.time)
        async with listening(answering(OK)) as receiver:
            outcomes = await asyncio.gather(*(sent(transport, receiver.url()) for _ in range(300)))
            outcomes += await asyncio.gather(*(sent(transport, receiver.url()) for _ in range(300)))
        await transport.close()
        return [outcome.status for outcome in outcomes]

    assert uvloop.run(run()) == [200] * 600


def test_a_timer_of_uvloop_that_is_due_at_once_is_no_surprise() -> None:
    """It is a handle without ``when``; asking for that raised inside a callback of libcurl, which then refused to go on."""

    async def run() -> int | None:
        transport = Transport(egress=LOOPBACK, now=time.time)
        transport._curl_wants_at = transport._loop.time() - 1
        transport._schedule()
        transport._curl_wants_at -= 1
        transport._schedule()
        async with listening(answering(OK)) as receiver:
            outcome = await sent(transport, receiver.url())
        await transport.close()
        return outcome.status

    assert uvloop.run(run()) == 200


async def test_a_broken_multi_handle_costs_what_is_under_way_one_attempt_and_no_more(
    make_transport: MakeTransport,
) -> None:
    transport = make_transport()
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))

    def fails(_timeout_ms: int) -> None:
        raise RuntimeError("a fault of ours")

    ended: asyncio.Queue[Outcome] = asyncio.Queue()
    async with listening(stalling()) as hanging, listening(answering(OK)) as receiver:
        transport.send(Request(hanging.url(), "", b"", PATIENT), ended.put_nowait)
        await hanging.arrived.wait()
        transport._multi.setopt(pycurl.M_TIMERFUNCTION, fails)
        transport.send(Request(receiver.url(), "", b"", PATIENT), ended.put_nowait)
        outcomes = [await asyncio.wait_for(ended.get(), PATIENCE_S) for _ in range(2)]
        assert [outcome.error_code for outcome in outcomes] == [ErrorCode.INTERNAL_ERROR] * 2
        assert transport.in_flight == 0
        assert len(faults) == 1
        for _ in range(20):
            assert (await sent(transport, receiver.url())).status == 200
    assert ended.empty()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    answers=st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.binary(max_size=200).map(lambda tail: b"HTTP/1.1 " + tail),
            st.binary(max_size=200).map(lambda tail: b"HTTP/1.1 200 OK\r\n" + tail),
            st.binary(max_size=200).map(lambda tail: b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + tail),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_random_bytes_always_come_to_exactly_one_outcome(answers: list[bytes]) -> None:
    async def run() -> None:
        transport = Transport(egress=LOOPBACK, now=time.time)
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
        async with listening(speaking(b"".join(answers))) as receiver:
            for _ in range(2):
                outcome = await sent(transport, receiver.url(), timeouts=Timeouts(1.0, 2.0, 3.0))
                assert isinstance(outcome, Outcome)
                assert outcome.error_code is not ErrorCode.INTERNAL_ERROR, outcome
                assert (outcome.status is None) == (outcome.response_hash is None)
        assert transport.in_flight == 0
        await transport.close()
        assert faults == []

    asyncio.run(run())


async def test_f38_no_descriptors_left_is_our_fault_not_the_receivers(transport: Transport) -> None:
    async with listening(answering(OK)) as receiver:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        await sent(transport, "http://127.0.0.1:1024/")  # what is opened once, is open
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            outcome = await sent(transport, receiver.url())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert outcome.error_code is ErrorCode.INTERNAL_ERROR
        assert "no socket" in outcome.detail
        assert (await sent(transport, receiver.url())).status == 200


async def test_a_refused_request_beside_a_slow_name_keeps_the_clock_running(transport: Transport) -> None:
    ended: list[Outcome] = []
    async with listening(stalling()) as receiver:
        transport.send(Request("nonsense", "", b"", PATIENT), ended.append)
        outcome = await sent(transport, receiver.url(host="localhost"), timeouts=SILENCE)
    assert outcome.error_code is ErrorCode.FIRST_BYTE_TIMEOUT
    assert [other.error_code for other in ended] == [ErrorCode.INVALID_URL]
