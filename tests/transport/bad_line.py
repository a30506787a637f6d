"""A line that loses packets, delays them, or carries few of them, inside a network namespace.

Two wires (veth) end here; what comes in at one leaves at the other, unless it is lost, and as late and as slowly as the
line is. So the kernel's TCP has real losses to deal with, and no kernel module is needed for them. The receiver's end
of the line lies in a namespace of its own, or packets would take the short way over loopback.

Not a test module: ``python -m tests.transport.bad_line SCENARIO`` prints JSON (see test_bad_lines.py).
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_network
from random import Random

from hookpost.model import Outcome, Timeouts
from hookpost.policy.egress import EgressPolicy
from hookpost.transport import Transport
from tests.transport.conftest import sent
from tests.transport.receivers import Receiver, answering

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
SENDER, RECEIVER = "10.72.0.1", "10.72.0.2"
# linux/if_packet.h, linux/sched.h, linux/if_ether.h
SOL_PACKET, PACKET_VNET_HDR = 263, 15
CLONE_NEWNET = 0x40000000
ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800
# In front of each frame stands what the kernel has left for the hardware to do (checksums, cutting into segments); handed
# on with the frame it is done there.
VNET_HEADER = 10
FRAME_MAX = 70_000
# What waits for its turn on the line; more is lost, as in any router.
QUEUE_S_MAX = 20.0
STANDING_LOOK_S = 0.02


@dataclass
class Line:
    """``loss``: the part of all IP packets that is lost; ``delay_s`` one way; ``bytes_s``: what it carries, each way;
    ``good``: it does nothing of this any more."""

    loss: float = 0.0
    delay_s: float = 0.0
    bytes_s: float = 1e9
    good: bool = False
    lost: int = 0


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def lay(line: Line) -> socket.socket:
    """Both ends and what lies between; a listening socket at the receiver's."""
    _ip("link", "add", "near", "type", "veth", "peer", "name", "m0")
    _ip("link", "add", "far", "type", "veth", "peer", "name", "m1")
    for device in ("near", "m0", "m1"):
        # Neither router solicitations nor address checks are to meet the line.
        _ip("link", "set", device, "addrgenmode", "none")
        _ip("link", "set", device, "up")
    _ip("addr", "add", f"{SENDER}/30", "dev", "near")
    listener = _listen_apart()
    ends = [_tap("m0"), _tap("m1")]
    rng, loop = Random(1), asyncio.get_running_loop()
    for here, there in ((ends[0], ends[1]), (ends[1], ends[0])):
        loop.add_reader(here, _forward(line, here, there, rng))
    return listener


def _listen_apart() -> socket.socket:
    """In a new namespace, with the other end of the line. A socket stays in the namespace that it was made in."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    apart = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    back = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{home}", "--"]
    subprocess.run([*back, "ip", "link", "set", "far", "netns", f"/proc/{os.getpid()}/fd/{apart}"], check=True)
    _ip("link", "set", "far", "addrgenmode", "none")
    _ip("link", "set", "far", "up")
    _ip("addr", "add", f"{RECEIVER}/30", "dev", "far")
    listener = socket.create_server((RECEIVER, 0), backlog=100)
    if libc.setns(home, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    return listener


def _tap(device: str) -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    tap.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    tap.bind((device, ETH_P_ALL))
    tap.setblocking(False)
    return tap


def _forward(line: Line, here: socket.socket, there: socket.socket, rng: Random) -> Callable[[], None]:
    loop, free_at = asyncio.get_running_loop(), 0.0

    def forward() -> None:
        nonlocal free_at
        frame = here.recv(FRAME_MAX)
        ethertype = int.from_bytes(frame[VNET_HEADER + 12 : VNET_HEADER + 14], "big")
        # Who asks for a hardware address is heard: it is the line that is bad.
        if line.good or ethertype != ETH_P_IP:
            there.send(frame)
            return
        if rng.random() < line.loss or free_at - loop.time() > QUEUE_S_MAX:
            line.lost += 1
            return
        free_at = max(free_at, loop.time()) + len(frame) / line.bytes_s
        loop.call_at(free_at + line.delay_s, there.send, frame)

    return forward


async def serving(listener: socket.socket) -> Receiver:
    """A healthy receiver at the other end."""
    receiver, handler = Receiver(port=listener.getsockname()[1]), answering(OK)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver.connections += 1
        try:
            await handler(receiver, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    await asyncio.start_server(serve, sock=listener)
    return receiver


@dataclass
class Standing:
    """For how long at most nothing here had its turn, in seconds: neither the line nor its ends."""

    longest_s: float = 0.0

    async def look(self) -> None:
        """Until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + STANDING_LOOK_S
            await asyncio.sleep(STANDING_LOOK_S)
            self.longest_s = max(self.longest_s, clock() - due)


async def tried(line: Line, timeouts: Timeouts, bodies: list[int], *, at_once: bool = True) -> dict[str, object]:
    """What became of requests of these sizes, all at once or one after the other; and of one more when the line is good
    again."""
    receiver = await serving(lay(line))
    standing = Standing()
    looking = asyncio.create_task(standing.look())
    turn = asyncio.Semaphore(len(bodies) if at_once else 1)
    transport = Transport(egress=EgressPolicy(allow_networks=(ip_network("10.72.0.0/24"),)), now=time.time)
    url = receiver.url(host=RECEIVER)

    async def one(number: int, size: int) -> Outcome:
        async with turn:
            return await sent(transport, url, body=b"x" * size, timeouts=timeouts, headers=[f"x-n: {number}"])

    outcomes = await asyncio.gather(*(one(number, size) for number, size in enumerate(bodies)))
    looking.cancel()
    in_flight = transport.in_flight
    line.good = True
    last = await sent(transport, url, headers=["x-n: last"])
    await transport.close()
    arrived = {request.partition(b"x-n: ")[2].partition(b"\r\n")[0].decode() for request in receiver.requests}
    return {
        "codes": [None if each.error_code is None else str(each.error_code) for each in outcomes],
        "arrived": [str(n) in arrived for n in range(len(bodies))],
        "longest_ms": max(each.total_ms for each in outcomes),
        "shortest_ms": min(each.total_ms for each in outcomes),
        "lost": line.lost,
        "in_flight": in_flight,
        "stood_ms": round(standing.longest_s * 1000),
        "last": last.status,
    }


async def lossy() -> dict[str, object]:
    """Thirty of a hundred packets are lost."""
    return await tried(Line(loss=0.3), Timeouts(4.0, 6.0, 8.0), [500] * 40)


async def distant() -> dict[str, object]:
    """Three seconds there and back, with the timeouts that everybody has."""
    return await tried(Line(delay_s=1.5), Timeouts(), [500] * 5)


async def narrow() -> dict[str, object]:
    """A thousand bytes a second, for a small one and one that takes half a minute."""
    return await tried(Line(bytes_s=1000.0), Timeouts(5.0, 6.0, 7.0), [500, 30_000], at_once=False)


if __name__ == "__main__":
    scenarios: tuple[Callable[[], Awaitable[dict[str, object]]], ...] = (lossy, distant, narrow)
    chosen = next(scenario for scenario in scenarios if scenario.__name__ == sys.argv[1])  # type: ignore[attr-defined]
    print(json.dumps(asyncio.run(chosen())))  # type: ignore[arg-type]
