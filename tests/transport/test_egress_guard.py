"""I20: the address of every socket is judged before it connects: canaries on forbidden addresses must see nothing."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from hookpost.model import ErrorCode
from hookpost.policy.egress import EgressPolicy
from tests.transport.conftest import MakeTransport, sent
from tests.transport.receivers import answering, listening

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "localhost"])
async def test_n1_n4_n28_a_forbidden_address_gets_no_connection(make_transport: MakeTransport, host: str) -> None:
    transport = make_transport(egress=EgressPolicy())
    async with listening(answering(OK)) as canary:
        outcome = await sent(transport, canary.url(host=host))
        assert canary.connections == 0
    assert (outcome.error_code, outcome.address) == (ErrorCode.ADDRESS_FORBIDDEN, "")
    assert "not a public address" in outcome.detail


async def test_only_the_allowed_network_is_open(make_transport: MakeTransport) -> None:
    transport = make_transport()
    async with listening(answering(OK), host="127.0.0.2") as canary:
        outcome = await sent(transport, canary.url(host="127.0.0.2"))
        assert canary.connections == 0
    assert outcome.error_code is ErrorCode.ADDRESS_FORBIDDEN


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[::ffff:169.254.169.254]", "168.63.129.16", "[fd00:ec2::254]", "[64:ff9b::a9fe:a9fe]"]
)
async def test_n2_n18_metadata_stays_closed_whatever_is_allowed(make_transport: MakeTransport, host: str) -> None:
    outcome = await sent(make_transport(egress=EgressPolicy(allow_networks=EVERYTHING)), f"http://{host}/latest/")
    assert outcome.error_code is ErrorCode.ADDRESS_FORBIDDEN
    assert "metadata" in outcome.detail


async def test_n21_a_denied_port_is_not_connected(make_transport: MakeTransport) -> None:
    async with listening(answering(OK)) as canary:
        policy = EgressPolicy(allow_networks=EVERYTHING, deny_ports=frozenset({canary.port}))
        outcome = await sent(make_transport(egress=policy), canary.url())
        assert canary.connections == 0
    assert (outcome.error_code, "port" in outcome.detail) == (ErrorCode.ADDRESS_FORBIDDEN, True)


async def test_https_only_holds_for_stored_urls_too(make_transport: MakeTransport) -> None:
    async with listening(answering(OK)) as canary:
        policy = EgressPolicy(allow_networks=EVERYTHING, https_only=True)
        outcome = await sent(make_transport(egress=policy), canary.url())
        assert canary.connections == 0
    assert outcome.error_code is ErrorCode.INVALID_URL
