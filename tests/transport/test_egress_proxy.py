"""The egress proxy (attack list N25, fault F40): what it is told, and whose fault it is when it fails."""

from __future__ import annotations

import socket
from base64 import b64encode
from ipaddress import ip_network

import pytest

from hookpost.model import ErrorCode, Timeouts
from hookpost.policy.egress import EgressPolicy, EgressProxy, UrlError, parse_proxy, reachable
from tests.transport.conftest import Identities, MakeTransport, sent
from tests.transport.proxies import Handler, dying_in_the_tunnel, tunnelling
from tests.transport.receivers import answering, listening, resetting, speaking, stalling

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
LOOPBACK = (ip_network("127.0.0.1/32"),)
ELSEWHERE = "http://8.8.8.8/hook"


def through(port: int, **changes: object) -> EgressPolicy:
    return EgressPolicy(allow_networks=LOOPBACK, proxy=EgressProxy("127.0.0.1", port, **changes))  # type: ignore[arg-type]


async def test_the_proxy_is_told_the_address_and_neither_name_nor_headers(make_transport: MakeTransport) -> None:
    async with listening(answering(OK)) as receiver, listening(tunnelling()) as proxy:
        transport = make_transport(egress=through(proxy.port, user="us", password="p:w"))
        for _ in range(3):
            outcome = await sent(transport, receiver.url(host="localhost"), headers=["x-secret: s"])
            assert (outcome.status, outcome.address) == (200, "127.0.0.1")
    [asked] = proxy.requests
    assert asked.startswith(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n" % receiver.port)
    assert b"localhost" not in asked
    assert b"x-secret" not in asked.lower()
    assert b"Proxy-Authorization: Basic " + b64encode(b"us:p:w") in asked
    assert (proxy.connections, receiver.connections, len(receiver.requests)) == (1, 1, 3)
    assert all(b"proxy-authorization" not in request.lower() for request in receiver.requests)


async def test_tls_is_with_the_receiver_by_its_name(make_transport: MakeTransport, identities: Identities) -> None:
    async with listening(answering(OK), tls=identities.good) as receiver, listening(tunnelling()) as proxy:
        transport = make_transport(egress=through(proxy.port), ca_file=identities.ca_file)
        assert (await sent(transport, receiver.url(scheme="https", host="localhost"))).status == 200
    async with listening(answering(OK), tls=identities.wrong_host) as receiver, listening(tunnelling()) as proxy:
        transport = make_transport(egress=through(proxy.port), ca_file=identities.ca_file)
        outcome = await sent(transport, receiver.url(scheme="https", host="localhost"))
    assert (outcome.error_code, outcome.ours) == (ErrorCode.TLS_UNTRUSTED, False)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.2/",
        "http://169.254.169.254/latest/",
        "http://[::ffff:169.254.169.254]/",
        "http://10.0.0.1/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://localhost:8022/",
    ],
)
async def test_n25_a_proxy_hears_nothing_of_what_is_forbidden(make_transport: MakeTransport, url: str) -> None:
    async with listening(tunnelling()) as proxy:
        nothing = EgressPolicy(proxy=EgressProxy("127.0.0.1", proxy.port))
        outcome = await sent(make_transport(egress=nothing), url)
        assert proxy.connections == 0
    assert (outcome.error_code, outcome.ours) == (ErrorCode.ADDRESS_FORBIDDEN, False)


async def test_the_receivers_answer_counts_as_ever(make_transport: MakeTransport) -> None:
    answer = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nretry-after: 7\r\n\r\n"
    async with listening(answering(answer)) as receiver, listening(tunnelling()) as proxy:
        outcome = await sent(make_transport(egress=through(proxy.port)), receiver.url())
    assert (outcome.error_code, outcome.status, outcome.retry_after) == (ErrorCode.HTTP_5XX, 503, b"7")


async def test_f40_a_proxy_that_cannot_be_reached_is_our_own_fault(make_transport: MakeTransport) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        outcome = await sent(make_transport(egress=through(taken.getsockname()[1])), ELSEWHERE)
    assert (outcome.error_code, outcome.status, outcome.ours) == (ErrorCode.EGRESS_PROXY_ERROR, None, True)


async def test_f40_a_proxy_whose_name_is_not_known_is_our_own_fault(make_transport: MakeTransport) -> None:
    policy = EgressPolicy(proxy=EgressProxy("proxy.invalid", 3128))
    outcome = await sent(make_transport(egress=policy), ELSEWHERE)
    assert (outcome.error_code, outcome.ours) == (ErrorCode.EGRESS_PROXY_ERROR, True)


DENIED = b"HTTP/1.1 %d No\r\ncontent-length: 4\r\n\r\nno\r\n"


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [
        (403, ErrorCode.ADDRESS_FORBIDDEN, False),
        (407, ErrorCode.EGRESS_PROXY_ERROR, True),
        (500, ErrorCode.EGRESS_PROXY_ERROR, False),
        (502, ErrorCode.EGRESS_PROXY_ERROR, False),
        (503, ErrorCode.EGRESS_PROXY_ERROR, False),
        (504, ErrorCode.EGRESS_PROXY_ERROR, False),
        (302, ErrorCode.EGRESS_PROXY_ERROR, False),
        (429, ErrorCode.EGRESS_PROXY_ERROR, False),
    ],
)
async def test_n25_f40_what_the_proxy_answers_is_never_taken_for_the_receivers_answer(
    make_transport: MakeTransport, status: int, code: ErrorCode, ours: bool
) -> None:
    async with listening(speaking(DENIED % status)) as proxy:
        outcome = await sent(make_transport(egress=through(proxy.port)), ELSEWHERE)
    assert (outcome.error_code, outcome.status, outcome.ours) == (code, None, ours)
    assert str(status) in outcome.detail
    assert outcome.response_head == b""


@pytest.mark.parametrize(
    "handler",
    [
        stalling(),
        stalling(b"HTTP/1.1 2"),
        stalling(b"HTTP/1.1 200 OK\r\n"),
        resetting,
        speaking(b"HTTP/1.1 20"),
    ],
    ids=["silent", "mid-status", "mid-head", "reset", "hangs-up-mid-status"],
)
@pytest.mark.parametrize("timeouts", [Timeouts(0.2, 5.0, 6.0), Timeouts(5.0, 0.2, 6.0)], ids=["connect", "first-byte"])
@pytest.mark.parametrize("url", [ELSEWHERE, "https://8.8.8.8/"], ids=["http", "https"])
async def test_n25_f40_a_proxy_that_hangs_or_dies_half_way_is_not_the_receivers_fault(
    make_transport: MakeTransport, handler: Handler, timeouts: Timeouts, url: str
) -> None:
    async with listening(handler) as proxy:
        transport = make_transport(egress=through(proxy.port))
        outcome = await sent(transport, url, timeouts=timeouts)
    assert (outcome.error_code, outcome.status, transport.in_flight) == (ErrorCode.EGRESS_PROXY_ERROR, None, 0)


async def test_f40_what_breaks_inside_the_tunnel_cannot_be_told_from_the_receiver(
    make_transport: MakeTransport,
) -> None:
    async with listening(dying_in_the_tunnel()) as proxy:
        outcome = await sent(make_transport(egress=through(proxy.port)), ELSEWHERE)
    assert (outcome.error_code, outcome.ours) == (ErrorCode.CONNECTION_RESET, False)


async def test_a_proxy_that_works_again_is_used_at_once(make_transport: MakeTransport) -> None:
    answers = iter([speaking(DENIED % 502), tunnelling()])

    async def by_turns(*arguments):  # type: ignore[no-untyped-def]  # a script, not an interface
        await next(answers)(*arguments)

    async with listening(answering(OK)) as receiver, listening(by_turns) as proxy:
        transport = make_transport(egress=through(proxy.port))
        outcomes = [await sent(transport, receiver.url()) for _ in range(3)]
    assert [outcome.error_code for outcome in outcomes] == [ErrorCode.EGRESS_PROXY_ERROR, None, None]


def test_of_a_names_addresses_the_proxy_is_told_those_that_are_allowed_and_of_one_family() -> None:
    assert reachable(("10.0.0.1", "8.8.8.8", "2606:4700::1111", "1.1.1.1"), ()) == (
        ("8.8.8.8", "1.1.1.1"),
        "10.0.0.1: not a public address",
    )
    assert reachable(("::1", "2606:4700::1111", "8.8.8.8"), ())[0] == ("2606:4700::1111",)
    assert reachable(("10.0.0.1", "::1"), ()) == ((), "10.0.0.1: not a public address")


def test_a_proxys_address_is_taken_apart() -> None:
    assert parse_proxy("http://proxy.internal:3128") == EgressProxy("proxy.internal", 3128)
    assert parse_proxy("HTTP://us%40home:p%3Aw@[fd00::1]:80/") == EgressProxy("fd00::1", 80, "us@home", "p:w")
    assert "p:w" not in repr(parse_proxy("http://us:p%3Aw@proxy:1"))


@pytest.mark.parametrize(
    "text", ["proxy:3128", "https://proxy:3128", "socks5h://proxy:1080", "http://proxy", "http://proxy:0", "http://:1",
             "http://proxy:1/path", "http://proxy:1?x", "http://a@b@c:1", "http://pro xy:1", "http://proxy:1\r\n", ""],
)  # fmt: skip
def test_what_is_no_http_proxy_is_refused(text: str) -> None:
    with pytest.raises(UrlError, match=r"proxy|host|port"):
        parse_proxy(text)
