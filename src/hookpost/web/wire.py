"""The HTTP server's wire: uvicorn's, with a short cut for the requests that carry the load.

A request costs uvicorn a scope, a task, and a coroutine for each thing read or written: more than all that we do with
an event. One for a target of ``in_place`` that arrives as a whole while nothing else is under way on its connection
goes straight to its handler, which may answer by and by. Whatever is not so simple (a body in pieces or with trailers,
a client that waits for "100 Continue", a request behind one that is not answered yet, a handler that cannot) goes
uvicorn's way, as if the short cut had not been tried. While a request is answered in place, ``_InPlaceCycle`` stands
where uvicorn looks for the state of the current one: pipelining, shutdown and lost connections remain uvicorn's affair.
Its limit of concurrent requests and its access log do not know of such requests; we use neither.

On uvicorn's way head and body of an answer leave in one write: it writes them one after the other, and uvloop sends
each write at once: two system calls for us, and for the client often two wake-ups.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

Headers = list[tuple[bytes, bytes]]
Fields = dict[bytes, bytes]
Reply = Callable[[int, Headers, bytes], None]
"""Takes status, headers (all but content-length and connection) and body of the answer, once."""
InPlace = Callable[[Fields, bytes, Reply], bool]
"""Takes headers (of each name the last one) and body of a request; False, having done nothing, leaves it to uvicorn."""

# A connection with a request under way is looked at again so much later, at the soonest.
KEEP_ALIVE_LOOK_S = 1.0
_HEAD = b"HTTP/1.1 "
_INTERIM = b"HTTP/1.1 1"


class _InPlaceCycle:
    """The state of a request that is answered in place, by the names of uvicorn's RequestResponseCycle."""

    def __init__(self) -> None:
        self.response_complete = True
        self.keep_alive = True
        self.disconnected = False
        self.message_event = asyncio.Event()


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with the short cut, on a transport that joins writes."""

    transport: JoiningTransport  # type: ignore[assignment]

    def __init__(self, *arguments: Any, in_place: Mapping[bytes, InPlace], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_place = in_place
        self._in_place_cycle = _InPlaceCycle()
        # The handler of the request that is being received, its headers and its body.
        self._handler: InPlace | None = None
        self._fields: Fields = {}
        self._body = b""
        # When the last answer was given in place, and what looks for connections that are not used any more.
        self._answered_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None
        # The last head that was written, and what it was made of.
        self._head = b""
        self._head_of: tuple[int, Headers, Headers] | None = None

    def connection_made(self, transport: Any) -> None:
        """A client connected."""
        super().connection_made(JoiningTransport(transport, self.loop))  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
        if self._idle_timer is not None:
            self._idle_timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Some of a request, one, or several."""
        super().data_received(data)
        if self._handler is not None and not self.transport.is_closing():
            self._go_uvicorns_way()

    # ---- called by the parser -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """uvicorn's scope is made when it is needed."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._handler = None

    def on_headers_complete(self) -> None:
        """Short cut or not?"""
        cycle, parser = self.cycle, self.parser
        self._body = b""
        self._handler = self._in_place.get(self.url)
        self._fields = dict(self.headers)
        if (
            self._handler is None
            or b"content-length" not in self._fields
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or parser.should_upgrade()
            or self.expect_100_continue
            or self.flow.write_paused
            or not (cycle is None or cycle.response_complete)
        ):
            self._go_uvicorns_way()

    def on_body(self, body: bytes) -> None:
        """All of it, as in pieces it would not have come so far."""
        if self._handler is None:
            super().on_body(body)
        else:
            self._body = body

    def on_message_complete(self) -> None:
        """Serve it."""
        handler, cycle = self._handler, self._in_place_cycle
        if handler is None:
            super().on_message_complete()
            return
        cycle.response_complete = False
        cycle.keep_alive = self.parser.should_keep_alive()
        before, self.cycle = self.cycle, cycle  # type: ignore[assignment] # what uvicorn asks it for is there
        if handler(self._fields, self._body, self._reply):
            self._handler = None
        else:
            cycle.response_complete = True
            self.cycle = before
            self._go_uvicorns_way()
            super().on_message_complete()

    def _go_uvicorns_way(self) -> None:
        """Tell uvicorn what has come so far."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        self._handler = None
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers
        super().on_headers_complete()
        if self._body:
            super().on_body(self._body)
            self._body = b""

    # ---- the answer -----------------------------------------------------------------------------------------------

    def _reply(self, status: int, headers: Headers, body: bytes) -> None:
        cycle = self._in_place_cycle
        cycle.response_complete = True
        if cycle.disconnected or self.transport.is_closing():
            return
        end = b"\r\n\r\n" if cycle.keep_alive else b"\r\nconnection: close\r\n\r\n"
        self.transport.write_whole(b"%b%d%b%b" % (self._head_for(status, headers), len(body), end, body))
        if not cycle.keep_alive:
            self.transport.close()
        if self.pipeline or self.flow.read_paused:
            self.on_response_complete()
        else:
            self._wait_for_more()

    def _wait_for_more(self) -> None:
        """uvicorn's end of an answer without its timer, which is made and cancelled for each request."""
        self.server_state.total_requests += 1
        self._answered_at = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def _close_if_idle(self) -> None:
        idle_s = self.loop.time() - self._answered_at
        self._idle_timer = None
        if self.cycle is not self._in_place_cycle:  # type: ignore[comparison-overlap] # see on_message_complete
            return  # uvicorn has a timer of its own since its last answer
        if self.cycle.response_complete and idle_s >= self.timeout_keep_alive:
            self.transport.close()
        else:
            wait_s = max(self.timeout_keep_alive - idle_s, KEEP_ALIVE_LOOK_S)
            self._idle_timer = self.loop.call_later(wait_s, self._close_if_idle)

    def _head_for(self, status: int, headers: Headers) -> bytes:
        """The head up to the length of the body; mostly the last one, as uvicorn's own headers change with the date."""
        made_of = (status, headers, self.server_state.default_headers)
        if self._head_of != made_of:
            fields = [b"%b: %b\r\n" % field for field in (*made_of[2], *headers)]
            self._head = b"".join([STATUS_LINE[status], *fields, b"content-length: "])
            self._head_of = made_of
        return self._head


def protocol(in_place: Mapping[bytes, InPlace]) -> type[asyncio.Protocol]:
    """What uvicorn calls for each connection."""
    return partial(Protocol, in_place=in_place)  # type: ignore[return-value] # it is a class but for its arguments


class JoiningTransport:
    """Holds the head of an answer back until its body follows, in the same turn of the loop at the latest."""

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        """Send, or hold back for a moment."""
        if self._head:
            data = self._head + data
            self._head = b""
        elif data.startswith(_HEAD) and not data.startswith(_INTERIM):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def write_whole(self, data: bytes) -> None:
        """Send at once a head with its body."""
        self._flush()
        self._transport.write(data)

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        """Close when all is sent."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Asked for each request; ``__getattr__`` would answer it slowly."""
        return self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
