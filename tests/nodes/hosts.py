"""Hosts on one network: namespaces whose one wire each ends in the same bridge, and cuts between any two of them.

Relies on root, iproute2 and network namespaces (``tests.torture.network.why_not``), and on being in a network namespace of
its own. Two hosts are cut off from each other by telling each a hardware address of the other that nobody has: packets
leave and arrive nowhere, as behind a switch that died. Connections find out by their own timeouts only.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.torture.network import NOBODY

BRIDGE = "nodes0"
# Left to itself a bridge has the lowest hardware address of its ports, and another one when that host is gone: whoever
# remembers the old one then sends to nobody.
BRIDGE_LINK = "02:00:00:00:00:01"
WIRE = "wire"


@dataclass(slots=True)
class Host:
    """One of them. The first holds this process, and the bridge; the others live as long as their holders."""

    addresses: tuple[str, ...]
    device: str = WIRE
    command: list[str] = field(default_factory=list)
    """What to put in front of a command that is to run there."""
    holder: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it listens, and what its connections come from."""
        return self.addresses[0]

    def run(self, arguments: str, *, check: bool = True) -> None:
        """An `ip` command there."""
        subprocess.run([*self.command, "ip", *arguments.split()], check=check, capture_output=not check)

    def close(self) -> None:
        """Its namespace goes with its last process, and the wire with it."""
        if self.holder is not None:
            self.holder.kill()
            self.holder.wait()


def here(addresses: int) -> Host:
    """The host that this process is on, with so many addresses: a receiver is known by its own."""
    host = Host(tuple(f"10.72.1.{number}" for number in range(1, addresses + 1)), BRIDGE)
    host.run("link set lo up")
    host.run(f"link add {BRIDGE} type bridge")
    host.run(f"link set {BRIDGE} address {BRIDGE_LINK}")
    for address in host.addresses:
        host.run(f"addr add {address}/16 dev {BRIDGE}")
    host.run(f"link set {BRIDGE} up")
    return host


def made(number: int) -> Host:
    """Another host on the bridge; each has a number of its own below 255."""
    # It ends with us, whatever kills us: its standard input is a pipe of ours.
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo made; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    host = Host(
        (f"10.72.0.{number}",), command=["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"], holder=holder
    )  # fmt: skip
    end = f"host{number}"
    subprocess.run(f"ip link add {end} type veth peer name {WIRE} netns {holder.pid}".split(), check=True)
    subprocess.run(f"ip link set {end} master {BRIDGE} up".split(), check=True)
    host.run("link set lo up")
    host.run(f"addr add {host.address}/16 dev {WIRE}")
    host.run(f"link set {WIRE} up")
    return host


@contextmanager
def cut(one: Host, other: Host) -> Iterator[None]:
    """Nothing gets through between the two, and nobody is told."""
    for host, peer in ((one, other), (other, one)):
        for address in peer.addresses:
            host.run(f"neigh replace {address} lladdr {NOBODY} dev {host.device} nud permanent")
    try:
        yield
    finally:
        for host, peer in ((one, other), (other, one)):
            for address in peer.addresses:
                # They ask for each other's address again.
                host.run(f"neigh del {address} dev {host.device}", check=False)
