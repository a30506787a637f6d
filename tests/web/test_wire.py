"""Head and body of an answer leave together; nothing is held back for long, and nothing is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn

from hookpost.web.wire import JoiningTransport, Protocol

HEAD, BODY = b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n", b"{}"


class Sent:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def joining() -> tuple[JoiningTransport, Sent]:
    sent = Sent()
    return JoiningTransport(sent, asyncio.get_running_loop()), sent  # type: ignore[arg-type]


async def test_head_and_body_are_one_write() -> None:
    transport, sent = joining()
    for _ in range(2):
        transport.write(HEAD)
        transport.write(BODY)
    await asyncio.sleep(0)
    assert sent.writes == [HEAD + BODY, HEAD + BODY]


async def test_a_head_without_a_body_leaves_by_itself() -> None:
    transport, sent = joining()
    transport.write(HEAD)
    assert sent.writes == []
    await asyncio.sleep(0)
    assert sent.writes == [HEAD]


async def test_an_interim_answer_leaves_at_once() -> None:
    transport, sent = joining()
    transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert sent.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]


async def test_closing_sends_what_is_held_back() -> None:
    transport, sent = joining()
    transport.write(HEAD)
    transport.close()
    assert sent.writes == [HEAD]
    assert transport.is_closing()


async def test_pipelined_requests_and_streams_are_answered_in_order_by_a_real_server() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = scope["path"].encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (body, b"|", body):
            await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    server = uvicorn.Server(
        uvicorn.Config(app, http=Protocol, port=0, ws="none", lifespan="off", log_config=None, access_log=False)
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(20)))
    for number in range(20):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        body = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
        assert body.replace(b"\r\n", b" ") == b"2 /%d 1 | 2 /%d 0  " % (number, number) if number < 10 else body
    writer.close()
    server.should_exit = True
    await serving
