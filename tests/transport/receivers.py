"""Receivers that do as they are told: small asyncio servers on loopback whose handler is the test's script."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events


@dataclass
class Receiver:
    """A listening server; ``connections`` counts accepted ones, ``requests`` keeps what ``read_request`` read,
    ``ended`` gets an entry for each connection that is over."""

    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Queue[None] = field(default_factory=asyncio.Queue)

    def url(self, path: str = "/hook", *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        """One request with a Content-Length, head and body; empty when the peer is done."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        request = head + await reader.readexactly(length)
        self.requests.append(request)
        self.arrived.set()
        return request


@asynccontextmanager
async def listening(
    handler: Callable[[Receiver, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    *,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    open_writers: set[asyncio.StreamWriter] = set()
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver.connections += 1
        open_writers.add(writer)
        tasks.add(asyncio.current_task())
        try:
            await handler(receiver, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            open_writers.discard(writer)
            writer.close()
            receiver.ended.put_nowait(None)

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for writer in list(open_writers):
            writer.transport.abort()
        await server.wait_closed()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)


def answering(*answers: bytes, close: bool = False) -> Callable[..., Awaitable[None]]:
    """Read requests and give the answers in turn, the last one for ever; ``close``: hang up after each."""

    async def handler(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await receiver.read_request(reader):
            writer.write(answers[min(len(receiver.requests), len(answers)) - 1])
            await writer.drain()
            if close:
                return

    return handler


def speaking(data: bytes, *, repeat: bytes = b"") -> Callable[..., Awaitable[None]]:
    """Read one request, say ``data``, then ``repeat`` until the peer hangs up, or hang up if there is none."""

    async def handler(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receiver.read_request(reader)
        writer.write(data)
        await writer.drain()
        while repeat:
            writer.write(repeat)
            await writer.drain()

    return handler


def stalling(data: bytes = b"") -> Callable[..., Awaitable[None]]:
    """Read one request, say ``data``, then nothing until the peer hangs up."""

    async def handler(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receiver.read_request(reader)
        writer.write(data)
        await writer.drain()
        await reader.read()

    return handler


async def resetting(_receiver: Receiver, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reset the connection as soon as it is accepted."""
    writer.transport.abort()


def resetting_after(data: bytes, *, read: bool = True) -> Callable[..., Awaitable[None]]:
    """Read the request (or only its first byte), say ``data``, then reset."""

    async def handler(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (receiver.read_request(reader) if read else reader.readexactly(1))
        if data:
            writer.write(data)
            await writer.drain()
        sock = writer.get_extra_info("socket")
        # SO_LINGER with zero seconds makes close() send RST instead of FIN.
        sock.setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()

    return handler


def http2_answering(*fields: tuple[bytes, bytes]) -> Callable[..., Awaitable[None]]:
    """A real HTTP/2 receiver that answers 200 "ok" with these fields to every request."""

    async def handler(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                _answer_h2(receiver, connection, event, fields)
            writer.write(connection.data_to_send())
            await writer.drain()

    return handler


def _answer_h2(
    receiver: Receiver,
    connection: h2.connection.H2Connection,
    event: h2.events.Event,
    fields: tuple[tuple[bytes, bytes], ...],
) -> None:
    if isinstance(event, h2.events.DataReceived):
        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
    elif isinstance(event, h2.events.StreamEnded):
        receiver.requests.append(b"")
        connection.send_headers(event.stream_id, [(b":status", b"200"), *fields])
        connection.send_data(event.stream_id, b"ok", end_stream=True)
