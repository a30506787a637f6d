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
import math
import select
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import certifi
import pycurl

from hookpost.exchange import DETAIL_CHARS_MAX, Exchange, Limits, Name, bracketed
from hookpost.model import ErrorCode, Outcome, Request
from hookpost.policy.egress import EgressPolicy, EgressProxy, Target, UrlError, reachable, split_url, verdict
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
NAMES_MAX = 20_000  # names libcurl knows the addresses of, about half a KiB each; the oldest is forgotten first
STREAMS_MAX = 100  # concurrent requests on one HTTP/2 connection
TICK_S = 0.05  # grain of the first-byte and look-up timeouts

_EPOLL_MASKS = {
    pycurl.POLL_NONE: 0,
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
    pycurl.POLL_REMOVE: 0,
}


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
        names_max: int = NAMES_MAX,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._egress = egress
        self._now = now
        self._ca_file = ca_file or certifi.where()
        self._limits = Limits(
            body_bytes_max, header_bytes_max, header_lines_max, head_bytes_success, head_bytes_failure
        )
        self._connection_age_s = connection_age_s
        self._name_age_s = name_age_s
        self._names_max = names_max
        self._resolver = Resolver(self._loop)
        # Whom libcurl has addresses of, and until when they hold, the oldest first.
        self._known_until: dict[Name, float] = {}
        # With a proxy: until when the addresses of a name hold, and which. Their turn grows by one with each request.
        self._addresses: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._turn = 0
        self._lookups: dict[str, dict[Exchange, None]] = {}
        self._name_deadlines = _Deadlines()
        self._active: dict[Any, Exchange] = {}
        # No request under way can miss its first byte before this.
        self._first_byte_due = math.inf
        self._idle: list[Exchange] = []
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
        self._known_until.clear()
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
        elif self._known_until.get((target.host, target.port), 0.0) > exchange.began:
            self._start(exchange)
        elif target.literal:
            if (forgotten := self._remember(target, math.inf)) is not None:
                exchange.forget(forgotten)
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

    def _new_exchange(self) -> Exchange:
        easy = pycurl.Curl()
        for option, value in _CONSTANT_OPTIONS:
            easy.setopt(option, value)
        if self._egress.proxy is not None:
            for option, value in _proxy_options(self._egress.proxy):
                easy.setopt(option, value)
        easy.setopt(pycurl.CAINFO, self._ca_file)
        easy.setopt(pycurl.MAXAGE_CONN, self._connection_age_s)
        easy.setopt(pycurl.MAXLIFETIME_CONN, self._connection_age_s)
        return Exchange(easy, self._limits, self._egress, self._registered)

    def _start(self, exchange: Exchange) -> None:
        self._active[exchange.easy] = exchange
        if exchange.first_byte_at < self._first_byte_due:
            self._first_byte_due = exchange.first_byte_at
        try:
            self._multi.add_handle(exchange.easy)
        except pycurl.error as error:
            self._renew(error)

    def _look_up(self, exchange: Exchange) -> None:
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
                at = self._loop.time()
                exchange.found(answer.addresses, at, self._remember(exchange.target, at + self._name_age_s))
                self._start(exchange)
            else:
                self._conclude(exchange, exchange.unresolved(answer.error, self._loop.time()))

    def _remember(self, target: Target, until: float) -> Name | None:
        """libcurl is about to know the target's addresses; the name it is to forget for that."""
        name, known = (target.host, target.port), self._known_until
        known.pop(name, None)
        forgotten = next(iter(known)) if len(known) >= self._names_max else None
        if forgotten is not None:
            del known[forgotten]
        known[name] = until
        return forgotten

    # Through the proxy.

    def _start_in_tunnel(self, exchange: Exchange) -> None:
        until, allowed = self._addresses.get(exchange.target.host, (0.0, ()))
        if until > exchange.began:
            exchange.tunnel_to(self._next_of(allowed), exchange.began)
            self._start(exchange)
        else:
            self._look_up(exchange)

    def _tunnel_to(self, exchange: Exchange, addresses: tuple[str, ...]) -> None:
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

    def _end(self, exchange: Exchange, outcome: Outcome) -> None:
        self._multi.remove_handle(exchange.easy)
        del self._active[exchange.easy]
        self._conclude(exchange, outcome)

    def _conclude(self, exchange: Exchange, outcome: Outcome) -> None:
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


class _Deadlines:
    """Whose name must be found by when; one queue per duration, so that each queue is in order of its deadlines."""

    def __init__(self) -> None:
        self._queues: dict[float, OrderedDict[Exchange, float]] = {}

    def add(self, exchange: Exchange, duration_s: float) -> None:
        queue = self._queues.get(duration_s)
        if queue is None:
            queue = self._queues[duration_s] = OrderedDict()
        queue[exchange] = exchange.began + duration_s

    def discard(self, exchange: Exchange, duration_s: float) -> None:
        queue = self._queues.get(duration_s)
        if queue is not None:
            queue.pop(exchange, None)

    def expired(self, at: float) -> Iterator[Exchange]:
        """Take out, one by one, whose deadline has passed; the caller may add and discard in between."""
        for duration_s in list(self._queues):
            queue = self._queues[duration_s]
            while queue and next(iter(queue.values())) <= at:
                yield queue.popitem(last=False)[0]
            if not queue:
                del self._queues[duration_s]


def _select_bits(events: int) -> int:
    """What epoll saw, in libcurl's words; a hang-up is read, so that libcurl meets its cause."""
    bits = int(pycurl.CSELECT_OUT) if events & select.EPOLLOUT else 0
    if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
        bits |= pycurl.CSELECT_IN
    return bits | pycurl.CSELECT_ERR if events & select.EPOLLERR else bits


_SELECT_BITS = {events: _select_bits(events) for events in (select.EPOLLIN, select.EPOLLOUT)}


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
    # For ever: with a limit libcurl looks through all the names it knows after each request (28 % of the worker with
    # 2,500). ``found`` replaces what has grown old, and ``_remember`` keeps them few.
    (pycurl.DNS_CACHE_TIMEOUT, -1),
)

_SUPPRESS_CONNECT_HEADERS = 265  # CURLOPT_SUPPRESS_CONNECT_HEADERS, not named by pycurl


def _proxy_options(proxy: EgressProxy) -> Iterator[tuple[int, Any]]:
    """A tunnel for http:// as for https://, so that the proxy's answers are never taken for the receiver's; the headers
    of a request are for the receiver alone."""
    yield pycurl.DNS_CACHE_TIMEOUT, int(NAME_AGE_S)  # the proxy's is the only name that libcurl looks up itself
    yield pycurl.PROXY, f"http://{bracketed(proxy.host)}:{proxy.port}"
    yield pycurl.NOPROXY, ""
    yield pycurl.HTTPPROXYTUNNEL, 1
    yield pycurl.HEADEROPT, pycurl.HEADER_SEPARATE
    yield _SUPPRESS_CONNECT_HEADERS, 1
    if proxy.user is not None:
        yield pycurl.PROXYUSERNAME, proxy.user
        yield pycurl.PROXYPASSWORD, proxy.password
