"""An egress proxy of the tests' own: it opens tunnels (CONNECT), or fails in the ways that proxies fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tests.transport.receivers import Receiver

Handler = Callable[[Receiver, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def tunnelling(*, ends: dict[str, tuple[str, int]] | None = None) -> Handler:
    """Open what is asked for; ``ends`` leads an address that the tests cannot have elsewhere."""

    async def handler(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = (await receiver.read_request(reader)).split(b" ")[1].decode()
        host, _, port = asked.rpartition(":")
        where = (ends or {}).get(asked, (host.strip("[]"), int(port)))
        far_reader, far_writer = await asyncio.open_connection(*where)
        writer.write(b"HTTP/1.1 200 Connection established\r\nproxy-agent: tests\r\n\r\n")
        with suppress(ConnectionError):
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))

    return handler


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    finally:
        sink.close()


def dying_in_the_tunnel() -> Handler:
    """Say that the tunnel stands, take the request, and hang up."""

    async def handler(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receiver.read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await reader.readexactly(1)
        writer.transport.abort()

    return handler
