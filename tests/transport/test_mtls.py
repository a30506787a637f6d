"""TLS of an endpoint's own, with receivers that demand it: identities, authorities, and that none is another's."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator

import pytest
import trustme

from hookpost.model import ErrorCode, Outcome, Request, TlsIdentity
from hookpost.transport import Transport
from tests.patience import PATIENCE_S
from tests.transport.conftest import PATIENT, MakeTransport
from tests.transport.receivers import Receiver, listening

SERVER_CA, CLIENT_CA = trustme.CA(), trustme.CA()
TRUST = SERVER_CA.cert_pem.bytes()


def identity(name: str, ca: trustme.CA = CLIENT_CA) -> TlsIdentity:
    leaf = ca.issue_cert(identity_name := f"{name}.example", common_name=identity_name)
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    return TlsIdentity(TRUST, chain, leaf.private_key_pem.bytes())


ALICE, BOB = identity("alice"), identity("bob")
STRANGER = identity("stranger", trustme.CA())
NOBODY = TlsIdentity(ca=TRUST)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["tls1.2", "tls1.3"])
def demanding(request: pytest.FixtureRequest) -> Iterator[ssl.SSLContext]:
    """A receiver's context that takes only certificates of CLIENT_CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    SERVER_CA.issue_cert("127.0.0.1").configure_cert(context)
    CLIENT_CA.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = request.param
    yield context


async def naming(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with the name in the client's certificate, and which connection it is."""
    subject = dict(part[0] for part in writer.get_extra_info("peercert")["subject"])
    body = f"{subject['commonName']} {receiver.connections}".encode()
    while await receiver.read_request(reader):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()


async def sent_as(transport: Transport, url: str, tls: TlsIdentity | None) -> Outcome:
    ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    transport.send(Request(url, "", b"{}", PATIENT, tls=tls), ended.set_result)
    return await asyncio.wait_for(ended, PATIENCE_S)


def seen(outcome: Outcome) -> str:
    return outcome.response_head.rpartition(b"\r\n\r\n")[2].decode()


async def test_each_identity_has_connections_of_its_own(
    make_transport: MakeTransport, demanding: ssl.SSLContext
) -> None:
    transport = make_transport()
    async with listening(naming, tls=demanding) as receiver:
        url = receiver.url(scheme="https")
        answers = [seen(await sent_as(transport, url, who)) for who in (ALICE, BOB, ALICE, BOB, ALICE)]
    assert [answer.split()[0] for answer in answers] == [
        f"{n}.example" for n in ("alice", "bob", "alice", "bob", "alice")
    ]
    assert receiver.connections == 2
    assert len(set(answers)) == 2


@pytest.mark.parametrize("who", [STRANGER, NOBODY], ids=["wrong-authority", "no-certificate"])
async def test_whoever_is_not_known_gets_in_over_nobodys_connection(
    make_transport: MakeTransport, demanding: ssl.SSLContext, who: TlsIdentity
) -> None:
    transport = make_transport()
    async with listening(naming, tls=demanding) as receiver:
        url = receiver.url(scheme="https")
        assert (await sent_as(transport, url, ALICE)).status == 200
        outcome = await sent_as(transport, url, who)
        assert outcome.status is None
        assert outcome.error_code in {ErrorCode.TLS_FAILURE, ErrorCode.CONNECTION_RESET}
        assert len(receiver.requests) == 1


async def test_an_endpoints_authorities_are_trusted_for_it_alone(make_transport: MakeTransport) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    SERVER_CA.issue_cert("127.0.0.1").configure_cert(context)
    transport = make_transport()

    async def plain(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await receiver.read_request(reader):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()

    async with listening(plain, tls=context) as receiver:
        url = receiver.url(scheme="https")
        for _ in range(2):  # the connection of one that trusts must not serve one that does not
            assert (await sent_as(transport, url, NOBODY)).status == 200
            assert (await sent_as(transport, url, None)).error_code is ErrorCode.TLS_UNTRUSTED
        other = TlsIdentity(ca=trustme.CA().cert_pem.bytes())
        assert (await sent_as(transport, url, other)).error_code is ErrorCode.TLS_UNTRUSTED


async def test_a_pair_that_was_checked_and_does_not_fit_can_only_be_our_own_fault(
    make_transport: MakeTransport,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    SERVER_CA.issue_cert("127.0.0.1").configure_cert(context)
    async with listening(naming, tls=context) as receiver:
        url = receiver.url(scheme="https")
        mixed = TlsIdentity(TRUST, ALICE.cert, BOB.key)
        outcome = await sent_as(make_transport(), url, mixed)
    assert outcome.error_code is ErrorCode.INTERNAL_ERROR
    assert b"PRIVATE" not in outcome.detail.encode()
    assert "PRIVATE" not in repr(ALICE)
