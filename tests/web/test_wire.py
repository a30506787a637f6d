"""Head and body of an answer leave together, nothing is held back for long or lost; and the short cut is not seen."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from hookpost.web.doors import Doors, WireLimits
from hookpost.web.wire import Fields, JoiningTransport, Protocol, Reply, protocol
from tests.patience import PATIENCE_S

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


# An idle connection, and one whose answer is owed at the end, are kept for so long: no machine stands still as long.
IDLE_S = 600


def unsent(socket: Any) -> int:
    """Bytes that the other side's kernel has not confirmed."""
    return int.from_bytes(fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class Wire:
    """A real server: its handler of /in-place answers when it is told to, its ASGI application says what it got."""

    def __init__(self, limits: WireLimits | None = None) -> None:
        self.doors = Doors(limits)
        self.replies: asyncio.Queue[Reply] = asyncio.Queue()
        self.at_once = True
        self.able = True
        self.connections: list[asyncio.StreamWriter] = []
        self.accepted = 0

    def handle(self, fields: Fields, body: bytes, reply: Reply) -> bool:
        if not self.able:
            return False
        if self.at_once:
            reply(202, [(b"x-way", b"in place")], body)
        else:
            self.replies.put_nowait(reply)
        return True

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", scope["path"] != "/early"
        if not more:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
            await send({"type": "http.response.body", "body": b"early"})
            return
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        answer = b"|".join([scope["method"].encode(), scope["path"].encode(), body])
        head = [(b"x-way", b"uvicorn"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": answer})

    def guest(self, **options: Any) -> Protocol:
        self.accepted += 1
        return self.protocol(**options)

    async def start(self) -> None:
        self.protocol = protocol({b"/in-place": self.handle}, self.doors)
        self.server = uvicorn.Server(
            uvicorn.Config(
                self.app, http=self.guest, port=0, ws="none", lifespan="off", interface="asgi3",
                log_config=None, access_log=False, timeout_keep_alive=IDLE_S, timeout_graceful_shutdown=IDLE_S,
            )
        )  # fmt: skip
        self.serving = asyncio.create_task(self.server.serve())
        while not self.server.started:
            await asyncio.sleep(0)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port = self.server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self.connections.append(writer)
        while self.accepted < len(self.connections):
            await asyncio.sleep(0)
        return reader, writer

    async def heard(self) -> None:
        """The server has read whatever was written: it is in its kernel's hands (the sender's queue is empty, which a busy
        machine takes a moment for), and the loop, which is the server's too, has taken it in."""
        for writer in self.connections:
            while (socket := writer.get_extra_info("socket")).fileno() >= 0 and unsent(socket):
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        for writer in self.connections:
            writer.close()
        self.server.should_exit = True
        await asyncio.wait_for(self.serving, PATIENCE_S)


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    wire = Wire()
    await wire.start()
    yield wire
    await wire.stop()


def post(
    body: bytes, *fields: bytes, target: bytes = b"/in-place", method: bytes = b"POST", http: bytes = b"1.1"
) -> bytes:
    head = [b"%b %b HTTP/%b" % (method, target, http), b"host: x", b"content-length: %d" % len(body), *fields]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Status, headers and body of the next answer."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    first, *lines = head.rstrip().split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    length = int(headers.get(b"content-length", b"0"))
    return first.split(b" ")[1], headers, await asyncio.wait_for(reader.readexactly(length), PATIENCE_S)


async def test_a_whole_request_is_answered_in_place_with_uvicorns_own_headers(wire: Wire) -> None:
    reader, writer = await wire.connect()
    for body in (b"one", b"two", b""):
        writer.write(post(body))
        status, headers, got = await answer(reader)
        assert (status, headers[b"x-way"], got) == (b"202", b"in place", body)
        assert b"date" in headers and b"connection" not in headers


@pytest.mark.parametrize(
    "request_",
    [
        post(b"x", target=b"/in-place?a=b"),
        post(b"x", target=b"/elsewhere"),
        post(b"x", method=b"PUT"),
        post(b"", method=b"GET"),
        post(b"x", http=b"1.0"),
        b"POST /in-place HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    ],
)
async def test_what_is_not_so_simple_goes_uvicorns_way(wire: Wire, request_: bytes) -> None:
    reader, writer = await wire.connect()
    writer.write(request_)
    status, headers, body = await answer(reader)
    method, target = request_.split(b" ")[:2]
    sent = b"" if method == b"GET" else b"x"
    assert (status, headers[b"x-way"]) == (b"200", b"uvicorn")
    assert body == b"|".join([method, target.partition(b"?")[0], sent])


async def test_a_head_request_gets_no_body(wire: Wire) -> None:
    reader, writer = await wire.connect()
    writer.write(post(b"", b"connection: close", method=b"HEAD"))
    assert (await asyncio.wait_for(reader.read(), PATIENCE_S)).endswith(b"\r\n\r\n")


async def test_a_handler_that_cannot_leaves_the_whole_request_to_uvicorn(wire: Wire) -> None:
    wire.able = False
    reader, writer = await wire.connect()
    for body in (b"one", b"two"):
        writer.write(post(body))
        assert (await answer(reader))[2] == b"POST|/in-place|" + body


async def test_a_body_in_pieces_arrives_whole(wire: Wire) -> None:
    reader, writer = await wire.connect()
    request = post(b"0123456789")
    for cut in (-10, -4, 30):
        writer.write(request[:cut])
        await writer.drain()
        while not wire.server.server_state.tasks:
            if cut == 30:  # the head itself is cut: nothing has begun
                break
            await asyncio.sleep(0)
        writer.write(request[cut:])
        _, _, body = await answer(reader)
        assert body.endswith(b"0123456789")


async def test_a_client_may_wait_for_100_continue(wire: Wire) -> None:
    reader, writer = await wire.connect()
    writer.write(post(b"later", b"expect: 100-continue")[:-5])
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"later")
    assert (await answer(reader))[2] == b"POST|/in-place|later"


async def test_pipelined_requests_are_answered_in_order_whichever_way_they_go(wire: Wire) -> None:
    wire.at_once = False
    reader, writer = await wire.connect()
    writer.write(b"".join([post(b"1"), post(b"2", target=b"/asgi"), post(b"3"), post(b"4", target=b"/asgi")]))
    reply = await asyncio.wait_for(wire.replies.get(), PATIENCE_S)
    assert wire.replies.empty()
    reply(202, [], b"1")
    found = [(await answer(reader))[2] for _ in range(4)]
    assert found == [b"1", b"POST|/asgi|2", b"POST|/in-place|3", b"POST|/asgi|4"]
    writer.write(post(b"5"))
    (await asyncio.wait_for(wire.replies.get(), PATIENCE_S))(202, [], b"5")
    assert (await answer(reader))[2] == b"5"


async def test_pipelined_requests_that_are_answered_at_once_stay_in_place(wire: Wire) -> None:
    reader, writer = await wire.connect()
    writer.write(b"".join([post(b"%d" % number) for number in range(20)]))
    for number in range(20):
        _, headers, body = await answer(reader)
        assert (headers[b"x-way"], body) == (b"in place", b"%d" % number)


async def test_connection_close_is_said_and_done(wire: Wire) -> None:
    reader, writer = await wire.connect()
    writer.write(post(b"last", b"connection: close"))
    _, headers, body = await answer(reader)
    assert (headers[b"connection"], body) == (b"close", b"last")
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""


async def test_an_answer_to_a_client_that_has_hung_up_goes_nowhere(wire: Wire) -> None:
    wire.at_once = False
    _, writer = await wire.connect()
    writer.write(post(b"x"))
    reply = await asyncio.wait_for(wire.replies.get(), PATIENCE_S)
    writer.close()
    while wire.server.server_state.connections:
        await asyncio.sleep(0)
    reply(202, [], b"x")


async def test_a_shutdown_waits_for_the_answer_under_way_and_closes_idle_connections(wire: Wire) -> None:
    wire.at_once = False
    idle, _ = await wire.connect()
    reader, writer = await wire.connect()
    writer.write(post(b"x"))
    reply = await asyncio.wait_for(wire.replies.get(), PATIENCE_S)
    wire.server.should_exit = True
    assert await asyncio.wait_for(idle.read(), PATIENCE_S) == b""
    reply(202, [], b"done")
    _, headers, body = await answer(reader)
    assert (headers[b"connection"], body) == (b"close", b"done")
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    await asyncio.wait_for(wire.serving, PATIENCE_S)


async def test_an_idle_connection_is_closed_and_one_with_a_request_under_way_is_not(wire: Wire) -> None:
    reader, writer = await wire.connect()
    writer.write(post(b"1"))
    await answer(reader)
    (connection,) = wire.server.server_state.connections
    assert isinstance(connection, Protocol)
    connection._close_if_idle()
    assert not connection.transport.is_closing(), "it was used a moment ago"
    wire.at_once = False
    writer.write(post(b"2"))
    reply = await asyncio.wait_for(wire.replies.get(), PATIENCE_S)
    connection.timeout_keep_alive = 0
    connection._close_if_idle()
    assert not connection.transport.is_closing(), "its answer is owed"
    reply(202, [], b"2")
    assert (await answer(reader))[2] == b"2"
    connection._close_if_idle()
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""


async def test_rubbish_behind_a_request_gets_a_400_and_no_second_answer(wire: Wire) -> None:
    reader, writer = await wire.connect()
    writer.write(post(b"x") + b"rubbish\r\n\r\n")
    assert (await answer(reader))[0] == b"202"
    assert (await answer(reader))[0] == b"400"
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""


async def test_pipelined_requests_and_streams_are_answered_in_order_by_a_real_server() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = scope["path"].encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (body, b"|", body):
            await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol({}, Doors()),
            port=0,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=IDLE_S,
        )
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(20)))
    for number in range(20):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        body = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), PATIENCE_S)
        assert body.replace(b"\r\n", b" ") == b"2 /%d 1 | 2 /%d 0  " % (number, number) if number < 10 else body
    writer.close()
    server.should_exit = True
    await serving
