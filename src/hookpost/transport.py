"""One HTTP request → one Outcome. It never raises, and it never waits in the caller.

Relies on libcurl's multi interface, driven by the running event loop (``socket_action``), on ``resolver`` for names and
on ``policy.egress`` for where we may connect to: every candidate address is judged right before its socket is opened.
With an egress proxy, addresses are judged here just so, and the proxy is told the address, never the name: its tunnels
(CONNECT) lead where we may connect to, and TLS is between us and the receiver. What fails before a tunnel stands is not
the receiver's fault.
Promises: ``done`` is called exactly once per request, from the loop, never inside ``send``; what the receiver does
(stall, flood, lie, hang up, speak another protocol) ends within the request's timeouts, in bounded memory; an answer
counts by its status as soon as its final header block is complete, whatever becomes of the body.

This is the hot path: no Task and no Future per request, easy handles keep their options from request to request, and
all of libcurl's zero timers of a loop turn are answered by one call (25 µs a request instead of 90).
"""

from __future__ import annotations

import asyncio
import errno
import math
import select
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from http import HTTPStatus
from typing import Any

import certifi
import pycurl

from hookpost.model import ErrorCode, Outcome, Request, Timeouts, TlsIdentity
from hookpost.policy.classify import http_error_code
from hookpost.policy.egress import (
    ANYWHERE,
    EgressPolicy,
    EgressProxy,
    Target,
    UrlError,
    reachable,
    split_url,
    verdict,
)
from hookpost.policy.signing import acknowledged
from hookpost.resolver import Answer, Resolver

__all__ = ["Transport"]

BODY_BYTES_MAX = 64 * 1024  # kept and hashed; whoever sends more is cut off, not drained
HEADER_BYTES_MAX = 64 * 1024  # over all interim responses too; Apache and nginx stop at 8 KiB a line, 100 lines
HEADER_LINES_MAX = 256  # status lines and blank lines included: 128 interim responses
HEAD_BYTES_SUCCESS = 1024  # of a 2xx answer shown in the attempt log
HEAD_BYTES_FAILURE = 4096  # of any other: enough for the error page that explains it
CONNECTIONS_MAX = 5000  # idle ones kept; the oldest goes first, and with more hosts than this each request connects
IDLE_HANDLES_MAX = 2000  # easy handles kept for reuse, about 6 KiB each
EVENTS_MAX = 1024  # sockets served in one turn of the loop; the rest in the next
CONNECTION_AGE_S = 60  # a policy change reaches kept connections within it
NAME_AGE_S = 60.0  # a name is looked up again after it
NAMES_MAX = 20_000  # fresh names remembered, below libcurl's 29,999
STREAMS_MAX = 100  # concurrent requests on one HTTP/2 connection
TICK_S = 0.05  # grain of the first-byte and look-up timeouts
DETAIL_CHARS_MAX = 300

_SUPPRESSED = ["Accept:", "Expect:", "Content-Type:"]  # libcurl sends its own unless the name stands here bare
_SUPPRESSED_BESIDE_TYPE = _SUPPRESSED[:2]  # what the first line names need not be suppressed
_TYPE = "content-type:"
_EPOLL_MASKS = {
    pycurl.POLL_NONE: 0,
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
    pycurl.POLL_REMOVE: 0,
}
_SHORT_BODY_BYTES = 128
_PROTOCOLS = {b"HTTP/1.0": "1.0", b"HTTP/1.1": "1.1", b"HTTP/2": "2"}


class Transport:
    """Sends requests on the running event loop until ``close``."""

    def __init__(
        self,
        *,
        egress: EgressPolicy,
        now: Callable[[], float],
        ca_file: str | None = None,
        body_bytes_max: int = BODY_BYTES_MAX,
        header_bytes_max: int = HEADER_BYTES_MAX,
        header_lines_max: int = HEADER_LINES_MAX,
        head_bytes_success: int = HEAD_BYTES_SUCCESS,
        head_bytes_failure: int = HEAD_BYTES_FAILURE,
        connections_max: int = CONNECTIONS_MAX,
        connection_age_s: int = CONNECTION_AGE_S,
        name_age_s: float = NAME_AGE_S,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._egress = egress
        self._now = now
        self._ca_file = ca_file or certifi.where()
        self._limits = _Limits(
            body_bytes_max, header_bytes_max, header_lines_max, head_bytes_success, head_bytes_failure
        )
        self._connection_age_s = connection_age_s
        self._name_age_s = name_age_s
        self._resolver = Resolver(self._loop)
        self._fresh_names: dict[tuple[str, int], float] = {}
        # With a proxy: until when the addresses of a name hold, and which. Their turn grows by one with each request.
        self._addresses: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._turn = 0
        self._lookups: dict[str, dict[_Exchange, None]] = {}
        self._name_deadlines = _Deadlines()
        self._active: dict[Any, _Exchange] = {}
        # No request under way can miss its first byte before this.
        self._first_byte_due = math.inf
        self._idle: list[_Exchange] = []
        self._in_flight = 0
        self._wanted: set[int] = set()
        self._registered: dict[int, int] = {}
        self._kicked = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._closed = False
        self._connections_max = connections_max
        self._open()

    def _open(self) -> None:
        self._curl_wants_at = math.inf
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._poll)
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, self._connections_max)
        self._multi.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, STREAMS_MAX)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)

    @property
    def in_flight(self) -> int:
        """Requests whose ``done`` has not been called yet."""
        return self._in_flight

    def send(self, request: Request, done: Callable[[Outcome], None]) -> None:
        """Make the request; ``done`` gets its Outcome later, from the loop."""
        assert not self._closed, "send after close"
        self._in_flight += 1
        started_at = self._now()
        try:
            target = split_url(request.url)
        except UrlError as error:
            return self._refuse(ErrorCode.INVALID_URL, str(error), started_at, done)
        if (refusal := self._refusal(target)) is not None:
            return self._refuse(*refusal, started_at, done)
        exchange = self._idle.pop() if self._idle else self._new_exchange()
        try:
            exchange.begin(request, target, done, started_at, self._loop.time())
        except (pycurl.error, TypeError, ValueError, OverflowError) as error:
            exchange.easy.close()
            return self._refuse(ErrorCode.INTERNAL_ERROR, f"libcurl refused the request: {error}", started_at, done)
        if self._timer_at > exchange.began + TICK_S:
            self._schedule()
        if self._egress.proxy is not None and not target.literal:
            self._start_in_tunnel(exchange)
        elif target.literal or self._fresh_names.get((target.host, target.port), 0.0) > exchange.began:
            self._start(exchange)
        else:
            self._look_up(exchange)
        return None

    async def close(self) -> None:
        """End what is under way without calling its ``done``, close all connections, free everything."""
        if self._closed:
            return
        self._closed = True
        self._resolver.close()
        if self._timer is not None:
            self._timer.cancel()  # and ``_schedule`` sets no other
        waiting = [exchange for exchanges in self._lookups.values() for exchange in exchanges]
        for easy in self._active:
            self._multi.remove_handle(easy)
        self._multi.close()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        for exchange in [*self._active.values(), *self._idle, *waiting]:
            exchange.easy.close()
        self._active.clear()
        self._idle.clear()
        self._lookups.clear()
        self._in_flight = 0

    # Starting.

    def _refusal(self, target: Target) -> tuple[ErrorCode, str] | None:
        """Why the request is not made at all."""
        if self._egress.https_only and target.scheme != "https":
            return ErrorCode.INVALID_URL, "this installation sends to https only"
        if not self._egress.port_allowed(target.port):
            return ErrorCode.ADDRESS_FORBIDDEN, f"port {target.port} is not allowed"
        if self._egress.proxy is not None and target.literal:  # there will be no socket to its address
            reason = verdict(target.host, self._egress.allow_networks)
            if reason is not None:
                return ErrorCode.ADDRESS_FORBIDDEN, f"{target.host}: {reason}"
        return None

    def _refuse(self, code: ErrorCode, detail: str, at: float, done: Callable[[Outcome], None]) -> None:
        outcome = Outcome(code, started_at=at, finished_at=at, detail=detail[:DETAIL_CHARS_MAX])
        self._loop.call_soon(self._report, done, outcome)

    def _new_exchange(self) -> _Exchange:
        easy = pycurl.Curl()
        for option, value in _CONSTANT_OPTIONS:
            easy.setopt(option, value)
        if self._egress.proxy is not None:
            for option, value in _proxy_options(self._egress.proxy):
                easy.setopt(option, value)
        easy.setopt(pycurl.CAINFO, self._ca_file)
        easy.setopt(pycurl.MAXAGE_CONN, self._connection_age_s)
        easy.setopt(pycurl.MAXLIFETIME_CONN, self._connection_age_s)
        return _Exchange(easy, self._limits, self._egress, self._registered)

    def _start(self, exchange: _Exchange) -> None:
        self._active[exchange.easy] = exchange
        if exchange.first_byte_at < self._first_byte_due:
            self._first_byte_due = exchange.first_byte_at
        try:
            self._multi.add_handle(exchange.easy)
        except pycurl.error as error:
            self._renew(error)

    def _look_up(self, exchange: _Exchange) -> None:
        host = exchange.target.host
        self._name_deadlines.add(exchange, exchange.lookup_s_max)
        if host in self._lookups:
            self._lookups[host][exchange] = None
            return
        self._lookups[host] = {exchange: None}
        self._resolver.lookup(host, partial(self._looked_up, host))

    def _looked_up(self, host: str, answer: Answer) -> None:
        for exchange in self._lookups.pop(host):
            self._name_deadlines.discard(exchange, exchange.lookup_s_max)
            if answer.addresses and self._egress.proxy is not None:
                self._tunnel_to(exchange, answer.addresses)
            elif answer.addresses:
                exchange.found(answer.addresses, self._loop.time())
                self._remember(exchange.target)
                self._start(exchange)
            else:
                self._conclude(exchange, exchange.unresolved(answer.error, self._loop.time()))

    def _remember(self, target: Target) -> None:
        if len(self._fresh_names) >= NAMES_MAX:
            self._fresh_names.clear()
        self._fresh_names[target.host, target.port] = self._loop.time() + self._name_age_s

    # Through the proxy.

    def _start_in_tunnel(self, exchange: _Exchange) -> None:
        until, allowed = self._addresses.get(exchange.target.host, (0.0, ()))
        if until > exchange.began:
            exchange.tunnel_to(self._next_of(allowed), exchange.began)
            self._start(exchange)
        else:
            self._look_up(exchange)

    def _tunnel_to(self, exchange: _Exchange, addresses: tuple[str, ...]) -> None:
        """The proxy opens the socket, so the addresses are judged before it hears of one."""
        allowed, reason = reachable(addresses, self._egress.allow_networks)
        at = self._loop.time()
        if not allowed:
            self._conclude(exchange, exchange.forbidden(reason))
            return
        if len(self._addresses) >= NAMES_MAX:
            self._addresses.clear()
        self._addresses[exchange.target.host] = at + self._name_age_s, allowed
        exchange.tunnel_to(self._next_of(allowed), at)
        self._start(exchange)

    def _next_of(self, addresses: tuple[str, ...]) -> str:
        """In turn, as nobody tries the next one when the first does not answer."""
        self._turn += 1
        return addresses[self._turn % len(addresses)]

    # Driving libcurl.

    def _watch(self, what: int, fd: int, _multi: object, _data: object) -> None:
        """libcurl says what it wants to know about a socket.

        A socket stays registered when libcurl has had its answer: the kept connection's next request is a moment
        away, and to remove and add it would be a third of the cost of a request. ``_poll`` removes it if it wakes us
        for nothing; if libcurl closes it, the kernel does.
        """
        wanted = _EPOLL_MASKS[what]
        if not wanted:
            self._wanted.discard(fd)
            return
        self._wanted.add(fd)
        if self._registered.get(fd) != wanted:
            self._register(fd, wanted)

    def _register(self, fd: int, mask: int) -> None:
        try:
            if fd in self._registered:
                self._epoll.modify(fd, mask)
            else:
                self._epoll.register(fd, mask)
        except FileNotFoundError:  # the number was another socket's, closed since
            self._epoll.register(fd, mask)
        self._registered[fd] = mask

    def _poll(self) -> None:
        """Some sockets are ready: tell libcurl about all of them, then see which requests have ended."""
        for fd, events in self._epoll.poll(0, EVENTS_MAX):
            if fd in self._wanted:
                try:
                    self._multi.socket_action(fd, _SELECT_BITS.get(events) or _select_bits(events))
                except pycurl.error as error:
                    self._renew(error)
                    return
            else:  # a kept connection that the receiver closed: libcurl finds out when it wants to use it
                self._registered.pop(fd, None)
                with suppress(OSError):  # closed since
                    self._epoll.unregister(fd)
        self._collect()

    def _set_timer(self, timeout_ms: int) -> None:
        """libcurl says when it wants to be called: now (0), in a while, or not at all (-1)."""
        if timeout_ms == 0:
            if not self._kicked:
                self._kicked = True
                self._loop.call_soon(self._kick)
        elif timeout_ms < 0:
            self._curl_wants_at = math.inf
        else:
            self._curl_wants_at = self._loop.time() + timeout_ms / 1000
            if self._curl_wants_at < self._timer_at:
                self._schedule()

    def _kick(self) -> None:
        self._kicked = False
        if not self._closed:
            self._run_timers()

    def _run_timers(self) -> None:
        try:
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        except pycurl.error as error:
            self._renew(error)
        else:
            self._collect()

    def _renew(self, error: pycurl.error) -> None:
        """libcurl works no more for a multi handle once a callback of ours has failed in it: what is under way ends as
        our own fault, to be tried again, and a new handle goes on."""
        self._loop.call_exception_handler({"message": "libcurl's multi handle broke", "exception": error})
        broken = list(self._active.values())
        self._active.clear()
        self._loop.remove_reader(self._epoll.fileno())
        for exchange in broken:
            with suppress(pycurl.error):
                self._multi.remove_handle(exchange.easy)
            exchange.easy.close()
        with suppress(pycurl.error):
            self._multi.close()
        self._epoll.close()
        self._wanted.clear()
        self._registered.clear()
        self._open()
        for exchange in broken:
            self._loop.call_soon(self._report, exchange.done, exchange.broken(str(error), self._now()))

    def _schedule(self) -> None:
        """Tick every ``TICK_S`` while something is in flight, sooner or else only when libcurl wants it."""
        at = min(self._curl_wants_at, self._loop.time() + TICK_S) if self._in_flight else self._curl_wants_at
        if self._closed or at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        # Not asked of the timer: uvloop's has no ``when`` if it is due at once.
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        at = self._loop.time()
        if at >= self._curl_wants_at:
            self._curl_wants_at = math.inf
            self._run_timers()
        self._sweep(at)
        self._schedule()

    def _sweep(self, at: float) -> None:
        """End what hangs before the first byte: libcurl has no timeout for that, nor for a look-up of ours."""
        for exchange in self._name_deadlines.expired(at):
            del self._lookups[exchange.target.host][exchange]
            detail = f"{exchange.target.host}: no answer within {exchange.lookup_s_max:g} s"
            self._conclude(exchange, exchange.unresolved(detail, at))
        if at >= self._first_byte_due:
            silent = [exchange for exchange in self._active.values() if not exchange.heard]
            self._first_byte_due = min((e.first_byte_at for e in silent if e.first_byte_at > at), default=math.inf)
            for exchange in silent:
                if exchange.first_byte_at <= at and exchange.easy in self._active:
                    self._end(exchange, exchange.late(at))

    # Finishing.

    def _collect(self) -> None:
        while True:
            queued, succeeded, failed = self._multi.info_read()
            for easy in succeeded:
                exchange = self._active[easy]
                self._end(exchange, exchange.outcome(0, ""))
            for easy, code, message in failed:
                exchange = self._active[easy]
                self._end(exchange, exchange.outcome(code, message))
            if not queued:
                return

    def _end(self, exchange: _Exchange, outcome: Outcome) -> None:
        self._multi.remove_handle(exchange.easy)
        del self._active[exchange.easy]
        self._conclude(exchange, outcome)

    def _conclude(self, exchange: _Exchange, outcome: Outcome) -> None:
        outcome.finished_at = self._now()
        outcome.total_ms = int((outcome.finished_at - outcome.started_at) * 1000)
        done = exchange.done
        # A handle that holds somebody's identity is not used for anybody else.
        if exchange.request.tls is None and len(self._idle) < IDLE_HANDLES_MAX:
            self._idle.append(exchange)
        else:
            exchange.easy.close()
        self._report(done, outcome)

    def _report(self, done: Callable[[Outcome], None], outcome: Outcome) -> None:
        if self._closed:
            return
        self._in_flight -= 1
        try:
            done(outcome)
        except Exception as error:  # noqa: BLE001 - a fault of one receiver of outcomes must not lose the others'
            self._loop.call_exception_handler({"message": "the callback of a request failed", "exception": error})


@dataclass(frozen=True, slots=True)
class _Limits:
    body_bytes_max: int
    header_bytes_max: int
    header_lines_max: int
    head_bytes_success: int
    head_bytes_failure: int


class _Deadlines:
    """Whose name must be found by when; one queue per duration, so that each queue is in order of its deadlines."""

    def __init__(self) -> None:
        self._queues: dict[float, OrderedDict[_Exchange, float]] = {}

    def add(self, exchange: _Exchange, duration_s: float) -> None:
        queue = self._queues.get(duration_s)
        if queue is None:
            queue = self._queues[duration_s] = OrderedDict()
        queue[exchange] = exchange.began + duration_s

    def discard(self, exchange: _Exchange, duration_s: float) -> None:
        queue = self._queues.get(duration_s)
        if queue is not None:
            queue.pop(exchange, None)

    def expired(self, at: float) -> Iterator[_Exchange]:
        """Take out, one by one, whose deadline has passed; the caller may add and discard in between."""
        for duration_s in list(self._queues):
            queue = self._queues[duration_s]
            while queue and next(iter(queue.values())) <= at:
                yield queue.popitem(last=False)[0]
            if not queue:
                del self._queues[duration_s]


class _Exchange:
    """A reusable easy handle with what it has received for the request it is working on."""

    __slots__ = (
        "_body_bytes",
        "_chunks",
        "_complete",
        "_egress",
        "_fault",
        "_first_line",
        "_head",
        "_limits",
        "_lines",
        "_lookup_s",
        "_no_socket",
        "_ours",
        "_refused",
        "_registered",
        "_scheme",
        "_started_at",
        "_status",
        "_timeouts",
        "_tried",
        "_tunnel_end",
        "_url",
        "began",
        "done",
        "easy",
        "first_byte_at",
        "request",
        "target",
    )

    request: Request
    target: Target
    done: Callable[[Outcome], None]

    def __init__(self, easy: Any, limits: _Limits, egress: EgressPolicy, registered: dict[int, int]) -> None:
        self.easy = easy
        self._limits = limits
        self._egress = egress
        self._registered = registered
        self._url = self._scheme = ""
        self._timeouts: Timeouts | None = None
        self._lines: list[bytes] = []
        self._chunks: list[bytes] = []
        easy.setopt(pycurl.HEADERFUNCTION, self._on_header)
        easy.setopt(pycurl.WRITEFUNCTION, self._on_body)
        easy.setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)

    def begin(
        self,
        request: Request,
        target: Target,
        done: Callable[[Outcome], None],
        started_at: float,
        began: float,
    ) -> None:
        """Take the next request: ``started_at`` in Unix seconds, ``began`` on the loop's clock.

        All header lines are given to libcurl as one: it sends them as they are, and copying and searching a list of
        them costs 3 µs.
        """
        self.request, self.target, self.done = request, target, done
        self._started_at, self.began = started_at, began
        self._lines.clear()
        self._chunks.clear()
        self._first_line = self._body_bytes = self._status = 0
        self._head = b""
        self._complete = False
        self._refused = self._tried = self._fault = self._no_socket = ""
        self._tunnel_end = target.host
        self._ours = False
        self._lookup_s = 0.0
        setopt = self.easy.setopt
        own = _SUPPRESSED_BESIDE_TYPE if request.headers.startswith(_TYPE) else _SUPPRESSED
        setopt(pycurl.HTTPHEADER, [request.headers, *own])
        setopt(pycurl.POSTFIELDS, request.body)
        if target.url != self._url:
            setopt(pycurl.URL, target.url)
            self._url = target.url
        if target.scheme != self._scheme:
            setopt(pycurl.PIPEWAIT, target.scheme == "https")
            self._scheme = target.scheme
        if request.tls is not None:
            self._identify(request.tls)
        timeouts = request.timeouts
        self.first_byte_at = began + timeouts.first_byte_s
        if timeouts is not self._timeouts:
            self._set_timeouts(timeouts.connect_s, timeouts.total_s)
            self._timeouts = timeouts

    def _identify(self, tls: TlsIdentity) -> None:
        """Trust whom the endpoint trusts, and be who it expects. libcurl reuses connections only where all of it is the
        same; the handle is thrown away (see ``_conclude``)."""
        if tls.ca:
            self.easy.setopt(pycurl.CAINFO_BLOB, tls.ca)
        if tls.cert:
            self.easy.setopt(pycurl.SSLCERT_BLOB, tls.cert)
            self.easy.setopt(pycurl.SSLKEY_BLOB, tls.key)

    @property
    def lookup_s_max(self) -> float:
        """How long its name may be looked up."""
        return min(self.request.timeouts.connect_s, self.request.timeouts.first_byte_s)

    def found(self, addresses: tuple[str, ...], at: float) -> None:
        """The name is looked up: give libcurl the addresses, and what is left of the time."""
        self._lookup_s = at - self.began
        self.easy.setopt(pycurl.RESOLVE, [f"+{self.target.host}:{self.target.port}:{','.join(map(_shown, addresses))}"])
        timeouts = self.request.timeouts
        self._set_timeouts(timeouts.connect_s - self._lookup_s, timeouts.total_s - self._lookup_s)
        self._timeouts = None  # these are this request's alone

    def tunnel_to(self, address: str, at: float) -> None:
        """The proxy is to open a tunnel to this address of the target's; what is left of the time."""
        self._tunnel_end = address
        port = self.target.port
        self.easy.setopt(pycurl.CONNECT_TO, [f"{self.target.host}:{port}:{_shown(address)}:{port}"])
        self._lookup_s = at - self.began
        timeouts = self.request.timeouts
        self._set_timeouts(timeouts.connect_s - self._lookup_s, timeouts.total_s - self._lookup_s)
        self._timeouts = None

    def _set_timeouts(self, connect_s: float, total_s: float) -> None:
        self.easy.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, math.ceil(connect_s * 1000)))
        self.easy.setopt(pycurl.TIMEOUT_MS, max(1, math.ceil(total_s * 1000)))

    @property
    def heard(self) -> bool:
        """Has any line of an answer come?"""
        return bool(self._lines)

    # What libcurl calls. Returning 0 ends the transfer, returning None takes all.

    def _on_header(self, line: bytes) -> int | None:
        self._lines.append(line)
        if len(line) < 3:  # only the line that ends a block
            return self._end_of_block()
        return None if len(self._lines) < self._limits.header_lines_max else self._too_many_headers()

    def _too_many_headers(self) -> int:
        self._fault = "more header lines or bytes than the limit"
        return 0

    def _end_of_block(self) -> int | None:
        if self._complete:
            return None  # of the trailers
        status = _status_line(self._lines[self._first_line])[0]
        if 100 <= status < 200 and status != 101:
            self._first_line = len(self._lines)  # an interim response: the final one follows
            return None if len(self._lines) < self._limits.header_lines_max else self._too_many_headers()
        if status < 200:
            self._fault = f"the answer has status {status}"
            return 0
        self._head = b"".join(self._lines[self._first_line :])
        if len(self._head) > self._limits.header_bytes_max:
            return self._too_many_headers()
        self._status = status
        self._complete = True
        return None

    def _on_body(self, chunk: bytes) -> int | None:
        kept = self._body_bytes
        self._body_bytes += len(chunk)
        if self._body_bytes > self._limits.body_bytes_max:
            self._chunks.append(chunk[: self._limits.body_bytes_max - kept])
            return 0
        self._chunks.append(chunk)
        return None

    def _open_socket(self, _purpose: int, address: Any) -> int:
        family, kind, protocol, where = address
        if family not in (socket.AF_INET, socket.AF_INET6):
            self._refused = f"address family {family}"
            return int(pycurl.SOCKET_BAD)
        host, port = where[0], where[1]
        proxy = self._egress.proxy  # all sockets lead to it, if there is one
        reason = verdict(host, self._egress.allow_networks if proxy is None else ANYWHERE)
        if reason is None and proxy is None and not self._egress.port_allowed(port):
            reason = f"port {port} is not allowed"
        if reason is not None:
            self._refused = f"{host}: {reason}"
            return int(pycurl.SOCKET_BAD)
        try:
            opened = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:  # no IPv6 here: the next candidate may do
                self._no_socket = f"no socket: {error}"
            return int(pycurl.SOCKET_BAD)
        self._tried = host
        self._registered.pop(opened.fileno(), None)  # whatever had this number is closed
        return opened.detach()

    # What it came to.

    def outcome(self, code: int, message: str) -> Outcome:
        """The outcome of a transfer that libcurl ended with ``code`` (0 is success)."""
        if self._complete:
            return self._answered(body_cut=code != 0)
        error_code = self._error_code(code, message)
        detail = (
            self._fault
            or self._no_socket
            or (self._refused or message if error_code is ErrorCode.ADDRESS_FORBIDDEN else message)
        )
        return self._measured(Outcome(error_code, detail=detail[:DETAIL_CHARS_MAX], ours=self._ours))

    def late(self, at: float) -> Outcome:
        """The outcome when no byte has come in time."""
        if self._before_the_tunnel():
            code = self._proxy_error()
        else:
            code = ErrorCode.FIRST_BYTE_TIMEOUT if self._connected() else ErrorCode.CONNECT_TIMEOUT
        detail = f"no byte of an answer within {at - self.began:.2f} s"
        return self._measured(Outcome(code, detail=detail, ours=self._ours))

    def broken(self, detail: str, finished_at: float) -> Outcome:
        """The outcome when libcurl itself gave up."""
        return Outcome(
            ErrorCode.INTERNAL_ERROR,
            started_at=self._started_at,
            finished_at=finished_at,
            detail=detail[:DETAIL_CHARS_MAX],
        )

    def forbidden(self, reason: str) -> Outcome:
        """The outcome when the proxy may be told none of the name's addresses."""
        return Outcome(ErrorCode.ADDRESS_FORBIDDEN, started_at=self._started_at, detail=reason[:DETAIL_CHARS_MAX])

    def unresolved(self, detail: str, at: float) -> Outcome:
        """The outcome when the name could not be looked up."""
        return Outcome(
            ErrorCode.DNS_FAILURE,
            started_at=self._started_at,
            dns_ms=int((at - self.began) * 1000),
            detail=detail[:DETAIL_CHARS_MAX],
        )

    def _answered(self, *, body_cut: bool) -> Outcome:
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        error_code = http_error_code(self._status)
        acks = self.request.acks
        if acks is not None and error_code is None and not acknowledged(self._head, acks):
            error_code = ErrorCode.BAD_ACK
        kept = self._limits.head_bytes_success if error_code is None else self._limits.head_bytes_failure
        outcome = Outcome(error_code, self._status)
        if error_code is not None:
            outcome.retry_after = _retry_after(self._head)
        outcome.response_head = (self._head + body[:kept])[:kept]
        outcome.response_hash = _short_hash(body) if len(body) <= _SHORT_BODY_BYTES else sha256(body).digest()
        outcome.body_cut = body_cut
        return self._measured(outcome)

    def _error_code(self, code: int, message: str) -> ErrorCode:
        if self._fault:
            return ErrorCode.PROTOCOL_ERROR
        if sum(map(len, self._lines)) > self._limits.header_bytes_max:
            return ErrorCode.PROTOCOL_ERROR  # libcurl's own limit, 300 KiB, calls it a receive error
        if self._no_socket and not self._tried:
            return ErrorCode.INTERNAL_ERROR
        if self._refused and not self._tried:
            return ErrorCode.ADDRESS_FORBIDDEN
        if self._before_the_tunnel():
            return self._proxy_error()
        if code == pycurl.E_COULDNT_CONNECT:
            return _CONNECT_ERRORS.get(self.easy.getinfo(pycurl.OS_ERRNO), ErrorCode.NETWORK_UNREACHABLE)
        if code == pycurl.E_RECV_ERROR and self.target.scheme == "https" and " alert " in message:
            # TLS 1.3: a receiver that wants another certificate says so behind the handshake.
            return ErrorCode.TLS_FAILURE
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return ErrorCode.TOTAL_TIMEOUT if self._connected() else ErrorCode.CONNECT_TIMEOUT
        return _CURL_ERRORS.get(code, ErrorCode.INTERNAL_ERROR)

    def _before_the_tunnel(self) -> bool:
        """Is there a proxy, and did it not (yet) say that its tunnel stands?"""
        if self._egress.proxy is None:
            return False
        if not self._tried:
            return not self.easy.getinfo(pycurl.PRIMARY_IP)  # else a tunnel that was kept
        return bool(self.easy.getinfo(pycurl.HTTP_CONNECTCODE) // 100 != 2)

    def _proxy_error(self) -> ErrorCode:
        """What the proxy's failure is. One that answers nothing, or 5xx, may have met a sick receiver; one that cannot
        be reached, or does not let us in, is our own affair for certain."""
        answered = self.easy.getinfo(pycurl.HTTP_CONNECTCODE)
        if answered == HTTPStatus.FORBIDDEN:
            return ErrorCode.ADDRESS_FORBIDDEN  # the operator's policy, told by the proxy
        unreached = not answered and not self.easy.getinfo(pycurl.CONNECT_TIME_T)
        self._ours = unreached or answered == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
        return ErrorCode.EGRESS_PROXY_ERROR

    def _connected(self) -> bool:
        """Was there a connection to send on, TLS included?"""
        if not self._tried:
            return bool(self.easy.getinfo(pycurl.PRIMARY_IP))  # a kept one, or none yet
        done_at = pycurl.APPCONNECT_TIME_T if self.target.scheme == "https" else pycurl.CONNECT_TIME_T
        return bool(self.easy.getinfo(done_at) > 0)

    def _measured(self, outcome: Outcome) -> Outcome:
        """Add what was measured: dns, connect and tls are spans, first_byte counts from the start."""
        info = self.easy.getinfo
        outcome.started_at = self._started_at
        outcome.dns_ms = lookup_ms = int(self._lookup_s * 1000)
        if self._lines:
            outcome.first_byte_ms = lookup_ms + info(pycurl.STARTTRANSFER_TIME_T) // 1000
            outcome.protocol = _status_line(self._lines[0])[1]
        if self._tried:  # a new connection
            named, connected = info(pycurl.NAMELOOKUP_TIME_T), info(pycurl.CONNECT_TIME_T)
            outcome.dns_ms += named // 1000
            outcome.connect_ms = max(0, connected - named) // 1000
            outcome.tls_ms = max(0, info(pycurl.APPCONNECT_TIME_T) - connected) // 1000
        outcome.address = info(pycurl.PRIMARY_IP) or self._tried
        if self._egress.proxy is not None:
            outcome.address = self._tunnel_end
        outcome.request_bytes = info(pycurl.REQUEST_SIZE)
        outcome.response_bytes = (len(self._head) or sum(map(len, self._lines))) + self._body_bytes
        return outcome


def _select_bits(events: int) -> int:
    """What epoll saw, in libcurl's words; a hang-up is read, so that libcurl meets its cause."""
    bits = int(pycurl.CSELECT_OUT) if events & select.EPOLLOUT else 0
    if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
        bits |= pycurl.CSELECT_IN
    return bits | pycurl.CSELECT_ERR if events & select.EPOLLERR else bits


_SELECT_BITS = {events: _select_bits(events) for events in (select.EPOLLIN, select.EPOLLOUT)}


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@lru_cache(maxsize=1024)
def _status_line(line: bytes) -> tuple[int, str]:
    """The status in a status line that libcurl has accepted, 0 if there is none; and the protocol."""
    parts = line.split(None, 2)
    status = int(parts[1]) if len(parts) > 1 and len(parts[1]) == 3 and parts[1].isdigit() else 0
    return status, _PROTOCOLS.get(line.partition(b" ")[0], "")


def _retry_after(head: bytes) -> bytes | None:
    """The value of the last Retry-After header of a head, as it came."""
    at = head.lower().rfind(b"\nretry-after:")
    if at < 0:
        return None
    return head[at + len(b"\nretry-after:") :].partition(b"\n")[0].strip()


@lru_cache(maxsize=1024)
def _short_hash(body: bytes) -> bytes:
    """Most answers are empty or one of a few words; OpenSSL takes 3 µs to begin a hash."""
    return sha256(body).digest()


_CONSTANT_OPTIONS: tuple[tuple[int, Any], ...] = (
    (pycurl.NOSIGNAL, 1),
    (pycurl.USERAGENT, ""),
    (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
    (pycurl.PROXY, ""),
    (pycurl.NOPROXY, "*"),
    (pycurl.NETRC, pycurl.NETRC_IGNORED),
    (pycurl.FOLLOWLOCATION, 0),
    (pycurl.HTTP09_ALLOWED, 0),
    (pycurl.HTTP_CONTENT_DECODING, 0),
    (pycurl.PATH_AS_IS, 1),
    (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS),
    (pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2),
    (pycurl.SSL_VERIFYPEER, 1),
    (pycurl.SSL_VERIFYHOST, 2),
    (pycurl.DNS_CACHE_TIMEOUT, 2 * int(NAME_AGE_S)),  # ``found`` replaces entries before libcurl would look them up
)

_SUPPRESS_CONNECT_HEADERS = 265  # CURLOPT_SUPPRESS_CONNECT_HEADERS, not named by pycurl


def _proxy_options(proxy: EgressProxy) -> Iterator[tuple[int, Any]]:
    """A tunnel for http:// as for https://, so that the proxy's answers are never taken for the receiver's; the headers
    of a request are for the receiver alone."""
    yield pycurl.PROXY, f"http://{_shown(proxy.host)}:{proxy.port}"
    yield pycurl.NOPROXY, ""
    yield pycurl.HTTPPROXYTUNNEL, 1
    yield pycurl.HEADEROPT, pycurl.HEADER_SEPARATE
    yield _SUPPRESS_CONNECT_HEADERS, 1
    if proxy.user is not None:
        yield pycurl.PROXYUSERNAME, proxy.user
        yield pycurl.PROXYPASSWORD, proxy.password


_CONNECT_ERRORS = {
    errno.ECONNREFUSED: ErrorCode.CONNECT_REFUSED,
    errno.ETIMEDOUT: ErrorCode.CONNECT_TIMEOUT,
    errno.ECONNRESET: ErrorCode.CONNECTION_RESET,
}
"""What ``connect`` failed with; everything else (ENETUNREACH, EHOSTUNREACH, …) means that there is no way there."""

_CURL_ERRORS = {
    pycurl.E_OK: ErrorCode.CONNECTION_RESET,  # the receiver hung up inside the header block; libcurl lets it pass
    pycurl.E_UNSUPPORTED_PROTOCOL: ErrorCode.PROTOCOL_ERROR,  # an HTTP/0.9 answer: other schemes never reach libcurl
    pycurl.E_URL_MALFORMAT: ErrorCode.INVALID_URL,
    pycurl.E_COULDNT_RESOLVE_HOST: ErrorCode.DNS_FAILURE,
    pycurl.E_FTP_WEIRD_SERVER_REPLY: ErrorCode.PROTOCOL_ERROR,  # CURLE_WEIRD_SERVER_REPLY, 8
    pycurl.E_HTTP2: ErrorCode.PROTOCOL_ERROR,
    pycurl.E_PARTIAL_FILE: ErrorCode.CONNECTION_RESET,
    pycurl.E_SSL_CONNECT_ERROR: ErrorCode.TLS_FAILURE,
    pycurl.E_GOT_NOTHING: ErrorCode.CONNECTION_RESET,
    pycurl.E_SEND_ERROR: ErrorCode.CONNECTION_RESET,
    pycurl.E_RECV_ERROR: ErrorCode.CONNECTION_RESET,
    pycurl.E_SSL_CERTPROBLEM: ErrorCode.TLS_FAILURE,
    pycurl.E_SSL_CIPHER: ErrorCode.TLS_FAILURE,
    pycurl.E_PEER_FAILED_VERIFICATION: ErrorCode.TLS_UNTRUSTED,
    pycurl.E_BAD_CONTENT_ENCODING: ErrorCode.PROTOCOL_ERROR,
    pycurl.E_SSL_INVALIDCERTSTATUS: ErrorCode.TLS_UNTRUSTED,
    92: ErrorCode.PROTOCOL_ERROR,  # CURLE_HTTP2_STREAM, not named by pycurl
    100: ErrorCode.PROTOCOL_ERROR,  # CURLE_TOO_LARGE, a header line beyond libcurl's own limit
}
