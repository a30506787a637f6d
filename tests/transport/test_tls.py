"""TLS identities and HTTP/2 (attack list R17)."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from hookpost.model import ErrorCode
from tests.transport.conftest import Identities, MakeTransport, sent
from tests.transport.receivers import answering, http2_answering, listening, stalling

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def test_a_trusted_certificate_is_accepted(make_transport: MakeTransport, identities: Identities) -> None:
    transport = make_transport(ca_file=identities.ca_file)
    async with listening(answering(OK), tls=identities.good) as receiver:
        outcomes = [await sent(transport, receiver.url(scheme="https")) for _ in range(5)]
    assert {outcome.status for outcome in outcomes} == {200}
    assert (receiver.connections, outcomes[0].protocol) == (1, "1.1")
    assert outcomes[1].tls_ms == outcomes[1].connect_ms == 0


@pytest.mark.parametrize("identity", ["expired", "wrong_host", "unknown_ca"])
async def test_r17_an_untrusted_certificate_is_named_and_gets_no_request(
    make_transport: MakeTransport, identities: Identities, identity: str
) -> None:
    transport = make_transport(ca_file=identities.ca_file)
    async with listening(answering(OK), tls=getattr(identities, identity)) as receiver:
        outcome = await sent(transport, receiver.url(scheme="https"))
        assert receiver.requests == []
    assert outcome.error_code is ErrorCode.TLS_UNTRUSTED
    assert outcome.detail


async def test_r17_the_public_cas_do_not_trust_a_private_one(
    make_transport: MakeTransport, identities: Identities
) -> None:
    async with listening(answering(OK), tls=identities.good) as receiver:
        outcome = await sent(make_transport(), receiver.url(scheme="https"))
    assert outcome.error_code is ErrorCode.TLS_UNTRUSTED


async def test_r17_a_plain_port_is_a_tls_failure(make_transport: MakeTransport, identities: Identities) -> None:
    async def plain(_receiver, reader, writer):  # type: ignore[no-untyped-def]  # a script, not an interface
        await reader.readexactly(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with listening(plain) as receiver:
        outcome = await sent(make_transport(ca_file=identities.ca_file), receiver.url(scheme="https"))
    assert outcome.error_code is ErrorCode.TLS_FAILURE


async def test_r17_tls_1_1_is_refused(make_transport: MakeTransport, identities: Identities) -> None:
    identities.good.set_ciphers("DEFAULT:@SECLEVEL=0")
    identities.good.minimum_version = ssl.TLSVersion.TLSv1
    identities.good.maximum_version = ssl.TLSVersion.TLSv1_1
    try:
        async with listening(answering(OK), tls=identities.good) as receiver:
            outcome = await sent(make_transport(ca_file=identities.ca_file), receiver.url(scheme="https"))
    finally:
        identities.good.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        identities.good.minimum_version = ssl.TLSVersion.TLSv1_2
    assert outcome.error_code is ErrorCode.TLS_FAILURE


async def test_http2_is_negotiated_and_shares_one_connection(
    make_transport: MakeTransport, identities: Identities
) -> None:
    identities.good.set_alpn_protocols(["h2", "http/1.1"])
    transport = make_transport(ca_file=identities.ca_file)
    try:
        async with listening(http2_answering((b"x-kind", b"h2")), tls=identities.good) as receiver:
            outcomes = await asyncio.gather(
                *(sent(transport, receiver.url(scheme="https"), body=b"x" * 500) for _ in range(100))
            )
            outcomes += [await sent(transport, receiver.url(scheme="https")) for _ in range(20)]
    finally:
        identities.good.set_alpn_protocols(["http/1.1"])
    assert {(outcome.status, outcome.protocol, outcome.error_code) for outcome in outcomes} == {(200, "2", None)}
    assert outcomes[0].response_head == b"HTTP/2 200 \r\nx-kind: h2\r\n\r\nok"
    assert (receiver.connections, len(receiver.requests)) == (1, 120)


async def test_a_stalled_handshake_is_a_connect_timeout_and_frees_the_slot(make_transport: MakeTransport) -> None:
    from hookpost.model import Timeouts

    transport = make_transport()
    async with listening(stalling()) as receiver:
        outcome = await sent(transport, receiver.url(scheme="https"), timeouts=Timeouts(0.2, 60.0, 60.0))
    assert (outcome.error_code, transport.in_flight) == (ErrorCode.CONNECT_TIMEOUT, 0)
