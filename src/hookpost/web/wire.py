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

uvicorn bounds neither heads nor the time that a request takes to arrive. ``Doors`` says what the bounds are; they are
looked at only for what did not arrive as a whole, and for heads in large pieces. What the parser refuses, and what the
doors refuse, is answered with a problem and an end of the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from hookpost.web.doors import Doors
from hookpost.web.problems import Problem, refusal

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
_FIELD_EXTRA = len(": \r\n")


class _TooMuch(Exception):
    """Raised in a callback of the parser, so that it stops."""


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

    def __init__(self, *arguments: Any, in_place: Mapping[bytes, InPlace], doors: Doors, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._doors = doors
        self._limits = doors.limits
        self._address = ""
        # A request is arriving; its head is; and of one that did not come at once: since when, and how much of it.
        self._arriving = self._in_head = False
        self._since = 0.0
        self._arrived_bytes = self._head_bytes = 0
        # A piece came that may hold a head beyond the limit.
        self._suspect = False
        self._refusal: Problem | None = None
        # Since when its answer is not read, or nothing was ever asked.
        self._unread_since = 0.0
        self._opened_at = 0.0
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
        self._opened_at = self.loop.time()
        self._address = self.client[0] if self.client else ""
        crowded = self._doors.enter(self, self._address)
        if crowded is not None:
            self._refuse(crowded)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
        self._doors.leave(self, self._address)
        if self._idle_timer is not None:
            self._idle_timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Some of a request, one, or several."""
        if len(data) > self._limits.header_bytes:
            self._suspect = True
        super().data_received(data)
        if self._handler is not None and not self.transport.is_closing():
            self._go_uvicorns_way()
        if self._arriving:
            self._wait_for_the_rest(len(data))

    # ---- bounds ---------------------------------------------------------------------------------------------------

    def _wait_for_the_rest(self, more: int) -> None:
        if not self._since:
            self._since = self.loop.time()
            self._arrived_bytes = self._head_bytes = 0
        elif self._in_head:  # the first piece may hold the end of a request before
            self._head_bytes += more
        self._arrived_bytes += more
        if self.transport.is_closing():
            return
        refused = self._limits.message_refusal(self._arrived_bytes)
        if self._in_head:
            self._suspect = True
            refused = self._limits.head_refusal(len(self.url), len(self.headers), self._head_bytes)
        elif len(self.headers) > self._limits.headers:  # trailers are among them
            refused = self._limits.head_refusal(0, len(self.headers), 0)
        if refused is not None:
            self._refuse(refused)

    def _check_head(self) -> None:
        target, headers = len(self.url), len(self.headers)
        size = 0
        if self._suspect:
            size = target + sum(len(name) + len(value) + _FIELD_EXTRA for name, value in self.headers)
        self._refusal = self._limits.head_refusal(target, headers, size)
        if self._refusal is not None:
            raise _TooMuch

    def look(self, now: float) -> None:
        """Close the connection if the client keeps us waiting."""
        if self.transport.is_closing():
            return
        if self.flow.write_paused:
            self._unread_since = self._unread_since or now
            if now - self._unread_since > self._limits.answer_s:
                self.transport.abort()
            return
        self._unread_since = 0.0
        if self._arriving:
            self._look_at_the_rest(now)
        elif self.cycle is None and now - self._opened_at > self._limits.head_s:
            self.transport.close()

    def _look_at_the_rest(self, now: float) -> None:
        if self.flow.read_paused:  # it is we who keep it waiting
            self._since = now
            return
        late = self._limits.late_refusal(
            in_head=self._in_head, message_bytes=self._arrived_bytes, waited_s=now - self._since
        )
        if late is not None:
            self._refuse(late)

    def send_400_response(self, msg: str) -> None:
        """What the parser does not understand, or was told not to."""
        self._refuse(self._refusal or refusal(400, msg, headers={"Connection": "close"}))

    def _refuse(self, problem: Problem) -> None:
        """Answer, unless an answer is due to a request before or has begun, and hang up."""
        cycle: Any = self.cycle
        if self._arriving and not self._in_head:
            answerable = self._unanswered(cycle)
        else:
            answerable = cycle is None or cycle.response_complete
        if answerable:
            body = problem.body()
            fields = (*self.server_state.default_headers, *problem.raw_headers())
            lines = b"".join(b"%b: %b\r\n" % field for field in fields)
            length = b"content-length: %d\r\n\r\n" % len(body)
            self.transport.write_whole(b"%b%b%b%b" % (STATUS_LINE[problem.status], lines, length, body))
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    def _unanswered(self, cycle: Any) -> bool:
        """Has no answer begun to the request whose body is arriving? There is none before it that waits for one."""
        return bool(cycle is not self._in_place_cycle and not self.pipeline and not cycle.response_started)

    # ---- called by the parser -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """uvicorn's scope is made when it is needed."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._handler = None
        self._arriving = self._in_head = True
        self._since = 0.0

    def on_headers_complete(self) -> None:
        """Short cut or not?"""
        if self._suspect or len(self.headers) > self._limits.headers or len(self.url) > self._limits.target_bytes:
            self._check_head()
        self._in_head = False
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
        self._arriving = self._suspect = False
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


def protocol(in_place: Mapping[bytes, InPlace], doors: Doors) -> type[asyncio.Protocol]:
    """What uvicorn calls for each connection."""
    return partial(Protocol, in_place=in_place, doors=doors)  # type: ignore[return-value] # it is a class but for its arguments


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
