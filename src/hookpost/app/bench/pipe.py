"""The limit: what two processes could do if nothing had to be stored.

The same HTTP server as `hookpost api`'s (uvicorn with uvloop and httptools, `web.wire` answering in place, the same
options) answers 202 at once and hands the events of a turn of its loop over, in one write, to a second process that
signs them with the same code and sends them with ``CurlLoop``. (Events that gather for 2 or 8 ms, as those of a group
commit do, and are answered then, were tried: a tenth fewer a second.) Each half also runs by itself.

``plain`` is that pipe as an application would have it: a plain ASGI application on uvicorn, and libcurl on the event
loop (``plain.py``). What answering in place and a loop of libcurl's own save is in the limit as well, and this tells
how much that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import msgspec
import uuid_utils
import uvicorn

from hookpost.app.bench.curl import frame
from hookpost.app.bench.machine import CORES, processes
from hookpost.web.wire import Fields, Reply

STOP_S_MAX = 15.0
_JSON = (b"content-type", b"application/json")
_PLAIN = [_JSON, (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Event(msgspec.Struct):
    type: str
    payload: msgspec.Raw


# ---- in the server's process ----------------------------------------------------------------------------------------


class BareApp:
    """Answers 202 and hands over; without a pipe it only answers."""

    def __init__(self, pipe: asyncio.WriteTransport | None) -> None:
        self._pipe = pipe
        self._frames: list[bytes] = []
        self._decode = msgspec.json.Decoder(_Event).decode
        self._loop = asyncio.get_running_loop()

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Refuse what did not arrive as a whole: the load sends nothing of the kind, and counts it."""
        await send({"type": "http.response.start", "status": 501, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def in_place(self, _fields: Fields, body: bytes, reply: Reply) -> bool:
        """Take an event as the product does."""
        reply(202, _PLAIN, self.take(body))
        return True

    def take(self, body: bytes) -> bytes:
        """The answer to an event, which is handed over."""
        event_id = uuid_utils.uuid7()
        event = self._decode(body)
        if self._pipe is not None:
            if not self._frames:
                self._loop.call_soon(self._hand_over)
            self._frames.append(frame(event_id.bytes, event.type.encode(), bytes(event.payload)))
        return b'{"event_id":"evt_%b","delivery_count":1,"duplicate":false}' % event_id.hex.encode()

    def _hand_over(self) -> None:
        assert self._pipe is not None
        self._pipe.write(b"".join(self._frames))
        self._frames.clear()


class PlainApp(BareApp):
    """The same as an ASGI application does it, in a task for each request."""

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Take an event; all of it arrives at once, as the load sends it, and half of one ends as a 500."""
        message = await receive()
        answer = self.take(message["body"])
        headers = [*_PLAIN, (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


class _Server(uvicorn.Server):
    """Ends with its leash, not by signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def serve(listener_fd: int, pipe_fd: int, plain: bool) -> None:
    """The process of the bare server; ``pipe_fd`` below 0 hands nothing over. Ends when standard input does."""
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(listener_fd, pipe_fd, plain=plain))


async def _serve(listener_fd: int, pipe_fd: int, *, plain: bool) -> None:
    from hookpost.app.compose import tune_gc
    from hookpost.web.doors import Doors
    from hookpost.web.wire import protocol

    loop = asyncio.get_running_loop()
    pipe = None
    if pipe_fd >= 0:
        pipe, _ = await loop.create_connection(asyncio.Protocol, sock=socket.socket(fileno=pipe_fd))
    app = PlainApp(pipe) if plain else BareApp(pipe)
    # The options of compose.run_api.
    server = _Server(
        uvicorn.Config(
            app, http="httptools" if plain else protocol({b"/v1/events": app.in_place}, Doors()), ws="none",
            lifespan="off", log_config=None, access_log=False, server_header=False, proxy_headers=False,
            timeout_keep_alive=75, timeout_graceful_shutdown=1,
        )
    )  # fmt: skip
    tune_gc()

    def stop() -> None:
        if not os.read(0, 1):
            loop.remove_reader(0)
            server.should_exit = True

    loop.add_reader(0, stop)
    await server.serve(sockets=[socket.socket(fileno=listener_fd)])
    if pipe is not None:
        pipe.close()


# ---- in the bench's process -----------------------------------------------------------------------------------------


class Processes:
    """Processes of the limit, by role; ``with bare(…) as processes``."""

    def __init__(self) -> None:
        self.url = ""
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, role: str, function: str, *arguments: object, fds: tuple[int, ...] = ()) -> None:
        """Start a function of this package in a process of its own. Its standard input is its leash."""
        module, _, name = function.rpartition(".")
        code = f"from hookpost.app.bench.{module} import {name}; {name}(*{arguments!r})"
        self._started[role] = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds,
            start_new_session=True,
        )  # fmt: skip

    def cpu(self) -> dict[str, float]:
        """CPU seconds used so far, by role."""
        table = processes()
        return {role: table[process.pid].own_s for role, process in self._started.items()}

    def pin(self) -> None:
        """All of them to the first core."""
        for process in self._started.values():
            os.sched_setaffinity(process.pid, CORES[:1])

    def release(self) -> None:
        """Let them finish."""
        for process in self._started.values():
            assert process.stdin is not None
            process.stdin.close()

    def ended(self) -> bool:
        """Have all finished?"""
        return all(process.poll() is not None for process in self._started.values())

    def stop(self) -> dict[str, int]:
        """End them in order; returns the sender's answers by status, if there is a sender."""
        answers: dict[str, int] = {}
        self.release()
        for process in self._started.values():
            assert process.stdout is not None
            try:
                process.wait(STOP_S_MAX)
                answers |= json.loads(process.stdout.read() or b"{}")
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        self._started.clear()
        return answers


@contextlib.contextmanager
def limit(*, receiver: str = "", key: bytes = b"", server: bool = True, plain: bool = False) -> Iterator[Processes]:
    """The bare server, with a sender to ``receiver`` behind it if there is one; or the endless sender alone."""
    found = Processes()
    try:
        if not server:
            found.start("curl", _sender("send_endlessly", plain=plain), receiver)
        else:
            _start_server(found, receiver, key, plain=plain)
        yield found
    finally:
        found.stop()


def _sender(function: str, *, plain: bool) -> str:
    return f"plain.{function}" if plain else f"curl.{function}"


def _start_server(found: Processes, receiver: str, key: bytes, *, plain: bool) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048))
        found.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if not receiver:
            found.start("server", "pipe.serve", listener.fileno(), -1, plain, fds=(listener.fileno(),))
            return
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        stack.enter_context(theirs)
        fds = (listener.fileno(), ours.fileno())
        found.start("server", "pipe.serve", *fds, plain, fds=fds)
        found.start(
            "sender",
            _sender("send_from_pipe", plain=plain),
            receiver,
            theirs.fileno(),
            key.hex(),
            fds=(theirs.fileno(),),
        )
