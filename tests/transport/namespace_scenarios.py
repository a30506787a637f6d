"""Run inside a network namespace by test_names.py: a DNS server of our own, receivers, a transport; prints JSON.

Not a test module: ``python -m tests.transport.namespace_scenarios SCENARIO``.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network
from typing import cast

from hookpost.model import Outcome, Request, Timeouts
from hookpost.policy.egress import EgressPolicy
from hookpost.transport import Transport
from tests.transport.conftest import LOOPBACK, PATIENT, sent
from tests.transport.receivers import answering, listening

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
A, CNAME, AAAA = 1, 5, 28
NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3
Answers = Callable[[str, int], tuple[int, list[str]] | None]
"""Name and query type to (response code, addresses, before them `=name` for each alias); None: no answer at all."""


class Dns(asyncio.DatagramProtocol):
    """A DNS server over UDP that counts what it is asked."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: Counter[tuple[str, int]] = Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)
        # Hundreds of queries at one moment must not be dropped here (SO_RCVBUFFORCE).
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, 33, 4_000_000)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        labels, at = [], 12
        while length := data[at]:
            labels.append(data[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name, kind = ".".join(labels).lower(), int.from_bytes(data[at + 1 : at + 3], "big")
        self.asked[name, kind] += 1
        if (answer := self.answers(name, kind)) is None:
            return
        code, found = answer
        records, owner = [], b"\xc0\x0c"
        for text in found:
            if text.startswith("="):
                alias = b"".join(bytes([len(label)]) + label.encode() for label in text[1:].split(".")) + b"\0"
                records.append(_record(owner, CNAME, alias))
                owner = alias
            elif (address := ip_address(text)).version == (4 if kind == A else 6):
                records.append(_record(owner, kind, address.packed))
        flags = (0x8180 | code).to_bytes(2, "big")
        counts = b"\0\1" + len(records).to_bytes(2, "big") + b"\0\0\0\0"
        self.transport.sendto(data[:2] + flags + counts + data[12 : at + 5] + b"".join(records), addr)


def _record(owner: bytes, kind: int, data: bytes) -> bytes:
    return owner + kind.to_bytes(2, "big") + b"\0\1" + (60).to_bytes(4, "big") + len(data).to_bytes(2, "big") + data


async def dns(answers: Answers) -> Dns:
    _, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Dns(answers), local_addr=("127.0.0.1", 53)
    )
    return server


async def counted() -> dict[str, object]:
    """One look-up serves a minute of requests, and a burst before its answer."""
    server = await dns(lambda _name, _kind: (NOERROR, ["127.0.0.1"]))
    transport = Transport(egress=LOOPBACK, now=time.time)
    async with listening(answering(OK)) as receiver:
        url = receiver.url(host="one.test")
        outcomes = await asyncio.gather(*(sent(transport, url) for _ in range(20)))
        outcomes += [await sent(transport, url) for _ in range(20)]
    await transport.close()
    return {"statuses": [outcome.status for outcome in outcomes], "asked": server.asked["one.test", A]}


async def aged() -> dict[str, object]:
    """A name is looked up again once its answer is old."""
    server = await dns(lambda _name, _kind: (NOERROR, ["127.0.0.1"]))
    transport = Transport(egress=LOOPBACK, now=time.time, name_age_s=0.0)
    async with listening(answering(OK)) as receiver:
        statuses = [(await sent(transport, receiver.url(host="one.test"))).status for _ in range(5)]
    await transport.close()
    return {"statuses": statuses, "asked": server.asked["one.test", A]}


async def hanging() -> dict[str, object]:
    """Names that never get an answer, of many domains and of one, and names that do."""
    await dns(lambda name, _kind: None if "hang" in name else (NOERROR, ["127.0.0.1"]))
    transport = Transport(egress=LOOPBACK, now=time.time)
    hung: list[Outcome] = []
    async with listening(answering(OK)) as receiver:
        for index in range(int(os.environ.get("HANGING", "30"))):
            for name in (f"www.hang{index}.test", f"x{index}.hang.test"):
                transport.send(Request(receiver.url(host=name), "", b"", PATIENT), hung.append)
        good = await asyncio.gather(*(sent(transport, receiver.url(host=f"good{n}.test")) for n in range(10)))
        hung_before = len(hung)
        given_up = await asyncio.gather(
            *(
                sent(
                    transport,
                    receiver.url(host=name),
                    timeouts=Timeouts(connect_s=0.5, first_byte_s=60.0, total_s=60.0),
                )
                for name in ("www.hang.test", "y.hang.test", "www.hang0.test")
            )
        )
    await transport.close()
    return {
        "good": [outcome.status for outcome in good],
        "hung_before": hung_before,
        "given_up": [str(outcome.error_code) for outcome in given_up],
        "given_up_ms": [min(outcome.total_ms for outcome in given_up), max(outcome.total_ms for outcome in given_up)],
    }


async def rebinding() -> dict[str, object]:
    """N12: the first answer is allowed, the second is not, and the other way round."""
    turns = {"first.test": ["127.0.0.1", "127.0.0.2"], "second.test": ["127.0.0.2", "127.0.0.1"]}

    def answers(name: str, kind: int) -> tuple[int, list[str]]:
        return NOERROR, [turns[name].pop(0)] if kind == A else []

    await dns(answers)
    transport = Transport(egress=LOOPBACK, now=time.time, name_age_s=0.0)
    async with listening(answering(OK, close=True)) as receiver:
        canary = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.2", receiver.port)
        first = [await sent(transport, receiver.url(host="first.test")) for _ in range(2)]
        second = [await sent(transport, receiver.url(host="second.test")) for _ in range(2)]
        canary.close()
    await transport.close()
    return {"codes": [str(outcome.error_code) for outcome in first + second]}


async def mixed() -> dict[str, object]:
    """N13, N14: forbidden and allowed addresses for one name; only the allowed one is connected."""
    table = {
        "mixed.test": ["127.0.0.2", "10.0.0.1", "127.0.0.1"],
        "aaaa.test": ["::1", "127.0.0.1"],
        "only6.test": ["::1"],
        "mapped.test": ["::ffff:127.0.0.2"],
        "meta.test": ["169.254.169.254"],
    }
    touched: list[str] = []
    await dns(lambda name, _kind: (NOERROR, table[name]))
    transport = Transport(egress=EgressPolicy(allow_networks=(ip_network("127.0.0.1/32"),)), now=time.time)
    async with listening(answering(OK, close=True)) as receiver:
        canaries = [
            await asyncio.start_server(lambda _r, w: (touched.append("!"), w.close()), host, receiver.port)
            for host in ("127.0.0.2", str(IPv6Address(1)))
        ]
        outcomes = {name: await sent(transport, receiver.url(host=name)) for name in table}
        for canary in canaries:
            canary.close()
    await transport.close()
    return {
        "touched": len(touched),
        "codes": {name: str(outcome.error_code) for name, outcome in outcomes.items()},
        "addresses": {name: outcome.address for name, outcome in outcomes.items()},
    }


async def failing() -> dict[str, object]:
    """N16: what DNS can answer instead of an address; the transport goes on."""
    table = {"nx.test": (NXDOMAIN, []), "servfail.test": (SERVFAIL, []), "empty.test": (NOERROR, [])}
    await dns(lambda name, _kind: table.get(name, (NOERROR, ["127.0.0.1"])))
    transport = Transport(egress=LOOPBACK, now=time.time)
    async with listening(answering(OK)) as receiver:
        outcomes = [await sent(transport, receiver.url(host=name)) for name in (*table, "good.test")]
    await transport.close()
    return {"codes": [str(outcome.error_code) for outcome in outcomes], "details": [o.detail for o in outcomes]}


async def aliased() -> dict[str, object]:
    """N15: aliases that lead inside, in circles, and on and on."""
    table = {
        "inside.test": ["=db.internal.test", "127.0.0.2"],
        "metadata.test": ["=a.test", "=metadata.google.internal", "169.254.169.254"],
        "circle.test": ["=circle.test"],
        "circles.test": ["=b.test", "=circles.test", "=b.test"],
        "long.test": [f"=hop{n}.test" for n in range(30)],
        "good.test": ["=c.test", "127.0.0.1"],
    }
    touched: list[str] = []
    await dns(lambda name, _kind: (NOERROR, table.get(name, [])))
    transport = Transport(egress=EgressPolicy(allow_networks=(ip_network("127.0.0.1/32"),)), now=time.time)
    async with listening(answering(OK, close=True)) as receiver:
        canary = await asyncio.start_server(lambda _r, w: (touched.append("!"), w.close()), "127.0.0.2", receiver.port)
        outcomes = {name: await sent(transport, receiver.url(host=name)) for name in table}
        canary.close()
    await transport.close()
    return {"touched": len(touched), "codes": {name: str(outcome.error_code) for name, outcome in outcomes.items()}}


if __name__ == "__main__":
    scenarios = (counted, aged, hanging, rebinding, mixed, failing, aliased)
    chosen = next(scenario for scenario in scenarios if scenario.__name__ == sys.argv[1])
    print(json.dumps(asyncio.run(chosen())))
