"""A transport that may reach loopback, TLS identities, and network namespaces where the machine has them."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import trustme

from hookpost.model import Outcome, Request, Timeouts
from hookpost.policy.egress import EgressPolicy
from hookpost.transport import Transport
from tests.patience import PATIENCE_S

LOOPBACK = EgressPolicy(allow_networks=(ip_network("127.0.0.1/32"),))
# For whoever is to be answered; a busy machine is no reason for another outcome.
PATIENT = Timeouts(connect_s=60.0, first_byte_s=60.0, total_s=60.0)

Send = Callable[..., Awaitable[Outcome]]
MakeTransport = Callable[..., Transport]


async def sent(
    transport: Transport,
    url: str,
    *,
    body: bytes = b"{}",
    headers: list[str] | None = None,
    timeouts: Timeouts = PATIENT,
    acks: tuple[bytes, ...] | None = None,
) -> Outcome:
    """The outcome of one request; a second call of ``done`` fails the test (see ``no_loop_errors``)."""
    ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    lines = ["content-type: application/json"] if headers is None else headers
    transport.send(Request(url, "\r\n".join(lines), body, timeouts, acks), ended.set_result)
    assert not ended.done(), "done must not be called inside send"
    return await asyncio.wait_for(ended, PATIENCE_S)


@pytest.fixture
async def make_transport() -> AsyncIterator[MakeTransport]:
    """Transports that are closed at the end; nothing they do may reach the loop's exception handler."""
    made: list[Transport] = []
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))

    def make(*, egress: EgressPolicy = LOOPBACK, **options: Any) -> Transport:
        made.append(Transport(egress=egress, now=time.time, **options))
        return made[-1]

    yield make
    for transport in made:
        await transport.close()
    assert [error for error in errors if "exception" in error and "callback of a request" in error["message"]] == []


@pytest.fixture
async def transport(make_transport: MakeTransport) -> Transport:
    return make_transport()


@dataclass(frozen=True)
class Identities:
    """A CA file that the transport trusts, and server contexts good and bad."""

    ca_file: str
    good: ssl.SSLContext
    expired: ssl.SSLContext
    wrong_host: ssl.SSLContext
    unknown_ca: ssl.SSLContext


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    from datetime import UTC, datetime

    ca, other = trustme.CA(), trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    past = datetime(2020, 1, 1, tzinfo=UTC)
    return Identities(
        ca_file=str(path),
        good=_context(ca.issue_cert("127.0.0.1", "localhost")),
        expired=_context(ca.issue_cert("127.0.0.1", not_before=datetime(2019, 1, 1, tzinfo=UTC), not_after=past)),
        wrong_host=_context(ca.issue_cert("elsewhere.example")),
        unknown_ca=_context(other.issue_cert("127.0.0.1")),
    )


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def _why_no_namespaces() -> str:
    """Why network namespaces cannot be used here; empty if they can."""
    if shutil.which("ip") is None:
        return "iproute2 (ip) is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"hpprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return "" if made.returncode == 0 else f"ip netns add failed: {made.stderr.strip()}"


@pytest.fixture
def namespace() -> Iterator[str]:
    """The name of a network namespace with loopback up and 127.0.0.1 as its only DNS server."""
    if why := _why_no_namespaces():
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    name = f"hp{os.getpid()}"
    config = Path("/etc/netns") / name
    config.mkdir(parents=True)
    # So late that a server that has no time for a while is not asked twice, nor a name given up.
    (config / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
    (config / "nsswitch.conf").write_text("hosts: files dns\n")
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)
        shutil.rmtree(config)
