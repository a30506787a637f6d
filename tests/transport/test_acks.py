"""A 2xx that must be signed: judged by its final head, whatever comes before and after it."""

from __future__ import annotations

import pytest

from hookpost.model import ErrorCode, Timeouts
from hookpost.policy.signing import expected_acks, signature_header
from hookpost.transport import Transport
from tests.transport.conftest import Identities, MakeTransport, sent
from tests.transport.receivers import answering, http2_answering, listening, speaking, stalling

KEY = b"k" * 24
ACKS = expected_acks("evt_1", 1_800_000_000, [KEY])
ACK = signature_header("evt_1", 1_800_000_000, b"ack", [KEY]).encode()
WRONG = b"v1," + b"A" * 43 + b"="


def head(*fields: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"", b""])


SHORT = Timeouts(connect_s=60.0, first_byte_s=60.0, total_s=1.0)
EMPTY = b"content-length: 0"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(head(b"webhook-ack: " + ACK, EMPTY), id="plain"),
        pytest.param(head(b"Webhook-ACK:" + ACK, status=b"204 No Content"), id="another-case"),
        pytest.param(head(b"webhook-ack: " + WRONG, b"webhook-ack: " + ACK, EMPTY), id="two-fields"),
        pytest.param(head(b"webhook-ack: " + WRONG + b", " + ACK, EMPTY), id="joined-fields"),
        pytest.param(head(b"webhook-ack:", b" " + ACK, EMPTY), id="folded"),
        pytest.param(b"HTTP/1.1 103 Early\r\nlink: </a>\r\n\r\n" + head(b"webhook-ack: " + ACK, EMPTY), id="interim"),
        pytest.param(head(b"webhook-ack: " + ACK, b"content-length: 9") + b"cut", id="body-cut"),
    ],
)
async def test_a_2xx_with_a_valid_ack_is_a_success(transport: Transport, said: bytes) -> None:
    async with listening(speaking(said)) as receiver:
        outcome = await sent(transport, receiver.url(), acks=ACKS)
    assert outcome.error_code is None, outcome


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(head(EMPTY), id="missing"),
        pytest.param(head(b"webhook-ack: " + WRONG, EMPTY), id="wrong"),
        pytest.param(head(status=b"204 No Content"), id="204"),
        pytest.param(b"HTTP/1.1 103 Early\r\nwebhook-ack: " + ACK + b"\r\n\r\n" + head(EMPTY), id="interim-only"),
        pytest.param(
            head(b"transfer-encoding: chunked") + b"2\r\nok\r\n0\r\nwebhook-ack: " + ACK + b"\r\n\r\n",
            id="trailer-only",
        ),
        pytest.param(head(b"content-length: 70") + b"webhook-ack: " + ACK, id="body-only"),
    ],
)
async def test_a_2xx_without_a_valid_ack_is_a_bad_ack(transport: Transport, said: bytes) -> None:
    async with listening(speaking(said)) as receiver:
        outcome = await sent(transport, receiver.url(), acks=ACKS)
    assert outcome.error_code is ErrorCode.BAD_ACK
    assert outcome.status in (200, 204)
    assert outcome.response_head.startswith(b"HTTP/1.1 20")


async def test_a_failure_is_judged_by_its_status_whatever_it_acknowledges(transport: Transport) -> None:
    async with listening(answering(head(b"webhook-ack: " + ACK, EMPTY, status=b"503 Busy"))) as receiver:
        outcome = await sent(transport, receiver.url(), acks=ACKS)
    assert (outcome.error_code, outcome.status) == (ErrorCode.HTTP_5XX, 503)


async def test_who_asked_for_no_ack_needs_none_and_a_handle_forgets_what_the_last_one_asked(
    transport: Transport,
) -> None:
    async with listening(answering(head(EMPTY))) as receiver:
        outcomes = [await sent(transport, receiver.url(), acks=acks) for acks in (ACKS, None, (), ACKS)]
    assert [outcome.error_code for outcome in outcomes] == [
        ErrorCode.BAD_ACK, None, ErrorCode.BAD_ACK, ErrorCode.BAD_ACK,
    ]  # fmt: skip


async def test_a_head_that_never_ends_is_no_ack(transport: Transport) -> None:
    async with listening(stalling(b"HTTP/1.1 200 OK\r\nwebhook-ack: " + ACK + b"\r\n")) as receiver:
        outcome = await sent(transport, receiver.url(), acks=ACKS, timeouts=SHORT)
    assert outcome.error_code is ErrorCode.TOTAL_TIMEOUT


@pytest.mark.parametrize(("ack", "code"), [(ACK, None), (WRONG, ErrorCode.BAD_ACK), (None, ErrorCode.BAD_ACK)])
async def test_an_ack_over_http2_counts_as_well(
    make_transport: MakeTransport, identities: Identities, ack: bytes | None, code: ErrorCode | None
) -> None:
    fields = [] if ack is None else [(b"webhook-ack", ack)]
    identities.good.set_alpn_protocols(["h2", "http/1.1"])
    try:
        async with listening(http2_answering(*fields), tls=identities.good) as receiver:
            outcome = await sent(make_transport(ca_file=identities.ca_file), receiver.url(scheme="https"), acks=ACKS)
    finally:
        identities.good.set_alpn_protocols(["http/1.1"])
    assert (outcome.error_code, outcome.status, outcome.protocol) == (code, 200, "2")
