"""What libcurl knows of names: as few as we tell it, for as long as we let it.

Names end in ``.localhost``: whatever libcurl does not know of them it takes for 127.0.0.1, without asking anybody, so a
receiver on 127.0.0.2 is met only by what it was told.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import pytest

from hookpost import resolver
from hookpost.model import ErrorCode
from hookpost.policy.egress import EgressPolicy
from hookpost.resolver import Answer
from tests.transport.conftest import MakeTransport, sent
from tests.transport.receivers import Receiver, answering, listening

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
ALL_LOOPBACK = EgressPolicy(allow_networks=(ip_network("127.0.0.0/8"), ip_network("::1/128")))


@pytest.fixture
async def receiver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    """On 127.0.0.2, where every name leads; it hangs up, so that each request has to know an address."""
    monkeypatch.setattr(resolver, "_resolve", lambda _host: Answer(("127.0.0.2",)))
    async with listening(answering(OK, close=True), host="127.0.0.2") as receiver:
        yield receiver


def believe(transport: Any, *hosts: str, port: int) -> None:
    """Make the transport sure that libcurl knows these."""
    transport._known_until.update({(host, port): math.inf for host in hosts})


async def test_libcurl_keeps_what_it_was_told(make_transport: MakeTransport, receiver: Receiver) -> None:
    transport = make_transport(egress=ALL_LOOPBACK)
    url = receiver.url(host="a.localhost")
    assert (await sent(transport, url)).status == 200
    believe(transport, "a.localhost", port=receiver.port)
    assert (await sent(transport, url)).status == 200


async def test_the_oldest_name_is_forgotten_by_libcurl_too(make_transport: MakeTransport, receiver: Receiver) -> None:
    transport = make_transport(egress=ALL_LOOPBACK, names_max=2)
    for host in ("a.localhost", "b.localhost", "c.localhost"):
        assert (await sent(transport, receiver.url(host=host))).status == 200
    believe(transport, "a.localhost", "b.localhost", "c.localhost", port=receiver.port)
    codes = [(await sent(transport, receiver.url(host=f"{name}.localhost"))).error_code for name in "abc"]
    assert codes == [ErrorCode.CONNECT_REFUSED, None, None]


async def test_a_name_looked_up_again_is_the_youngest(make_transport: MakeTransport, receiver: Receiver) -> None:
    transport = make_transport(egress=ALL_LOOPBACK, names_max=2, name_age_s=0.0)
    for host in ("a.localhost", "b.localhost", "a.localhost", "c.localhost"):
        assert (await sent(transport, receiver.url(host=host))).status == 200
    believe(transport, "a.localhost", "b.localhost", port=receiver.port)
    codes = [(await sent(transport, receiver.url(host=f"{name}.localhost"))).error_code for name in "ab"]
    assert codes == [None, ErrorCode.CONNECT_REFUSED]


async def test_what_is_known_is_bounded_for_addresses_too(make_transport: MakeTransport, receiver: Receiver) -> None:
    """libcurl keeps addresses as it keeps names, and would keep them for ever."""
    transport = make_transport(egress=ALL_LOOPBACK, names_max=2)
    assert (await sent(transport, receiver.url(host="a.localhost"))).status == 200
    for host in ("127.0.0.2", "[::1]", "127.0.0.1"):
        outcome = await sent(transport, receiver.url(host=host))
        assert outcome.error_code is (None if host == "127.0.0.2" else ErrorCode.CONNECT_REFUSED)
    assert len(transport._known_until) == 2
    believe(transport, "a.localhost", port=receiver.port)
    outcome = await sent(transport, receiver.url(host="a.localhost"))
    assert outcome.error_code is ErrorCode.CONNECT_REFUSED, "it was the oldest"


async def test_a_new_libcurl_is_told_anew(make_transport: MakeTransport, receiver: Receiver) -> None:
    """After a fault of ours in a callback nothing that the old handle knew is known."""
    import pycurl

    transport = make_transport(egress=ALL_LOOPBACK)
    url = receiver.url(host="a.localhost")
    assert (await sent(transport, url)).status == 200
    transport._renew(pycurl.error("broken"))
    assert (await sent(transport, url)).status == 200
