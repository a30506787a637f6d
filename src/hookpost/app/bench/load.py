"""The load: one epoll loop that posts events and receives their deliveries, at a few microseconds each.

Both sides live in one process and one plain loop, without asyncio, so that they take as little as possible of the cores
they share with the server. Requests are prepared bytes with a place for the running number; connections are kept alive,
with TCP_NODELAY. Every answer is read by its content-length and counted: 202, or refused with its status. Two modes:

- ``open_loop``: a fixed rate. Each event has a time at which it is due, and its latency counts from that, however late
  a free connection let it be sent (no coordinated omission).
- ``sustained``: as fast as the system goes while at most ``window`` deliveries are posted and not arrived: the
  throughput at which posting and delivering are in balance.

Everything binds and connects to 127/8 alone.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import resource
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from hookpost.app.bench.ledger import Ledger
from hookpost.policy.signing import VerificationError, verify

# Connections that post. Fewer leave the server's group commits half empty: with 64 both `bare` and `e2e` reach two
# thirds of what they reach with 256.
CONNECTIONS = 256
# Deliveries under way in balance: enough for several commits and settles at once, little enough to be no backlog.
WINDOW = 2_000
# Every so many deliveries the signature is checked: often enough to notice, at a tenth of a microsecond each.
VERIFY_EVERY = 50
# A post without an answer for that long is refused; far above the server's own limit.
POST_TIMEOUT_S = 60.0
SWEEP_S = 1.0
# A refused connection pauses, as a producer would.
BACK_OFF_S = 0.1
# Nothing arrives for that long: what is missing will not come.
QUIET_S = 60.0
# Sockets served in one turn.
EVENTS_MAX = 512
RECEIVE_BYTES = 65_536
LISTEN_BACKLOG = 1024
# epoll waits in whole milliseconds and select in microseconds: shorter waits go through select.
COARSE_S = 0.02
# select takes descriptors below 1024 only, so those of several loads are made before their sockets, and used again.
LOADS_AT_ONCE = 8

EVENT_TYPE = "invoice.paid"
PAYLOAD_BYTES = 500
NUMBER_DIGITS = 10
_BEFORE_NUMBER = b'{"number":"'
NUMBER_FROM = len(_BEFORE_NUMBER)
NUMBER_TO = NUMBER_FROM + NUMBER_DIGITS
_AFTER_NUMBER = (
    b'","object":"invoice","status":"paid","currency":"EUR","amount":12900,"customer":{"id":"cus_8Zq41x","name":'
    b'"Example GmbH & Co. KG","email":"billing@example.org","country":"DE"},"lines":[{"sku":"plan-team","quantity":12,'
    b'"unit_amount":900},{"sku":"support","quantity":1,"unit_amount":2100}],"paid_at":"2025-11-22T20:15:30.123Z",'
    b'"metadata":{"order":"A-2025-118734","channel":"web","note":"'
)
_END = b'"}}'
_FILL = PAYLOAD_BYTES - NUMBER_TO - len(_AFTER_NUMBER) - len(_END)
PAYLOAD = _BEFORE_NUMBER + b"%010d" + _AFTER_NUMBER + b"x" * _FILL + _END
"""A payload of ``PAYLOAD_BYTES`` as a format: ``PAYLOAD % number``."""

_OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"
_ERROR = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"
_LOST = "lost"
_TIMEOUT = "timeout"


_epolls: list[select.epoll] = []


def _make_epolls() -> None:
    """For this process alone: what a forked one inherits is its parent's."""
    while _epolls:
        _epolls.pop().close()
    _epolls.extend(select.epoll() for _ in range(LOADS_AT_ONCE))


_make_epolls()
os.register_at_fork(after_in_child=_make_epolls)


@dataclass(slots=True, eq=False)
class Listener:
    """One receiver: an address of 127/8 with a port. ``key`` checks signatures; unset, they are not looked at."""

    host: str
    port: int
    slot: int = 0
    healthy: bool = True
    delay_s: float = 0.0
    key: bytes | None = None
    received: int = 0
    connections: int = 0
    endpoint_id: str = ""
    socket: socket.socket | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}/webhooks"


class Load:
    """Posts to one target, receives on many listeners; ``with Load() as load``."""

    def __init__(
        self,
        *,
        connections: int = CONNECTIONS,
        slots: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        allow_many_sockets()
        self.ledger = Ledger(slots)
        self.answers: Counter[str] = Counter()
        # Status and seconds of every answer, where a scenario asks for them by a list.
        self.answer_s: list[tuple[str, float]] | None = None
        self.listeners: list[Listener] = []
        # Another load, whose receivers go on answering while this one is at work.
        self.beside: Load | None = None
        self.batch = 1
        self._keyed = False
        self._clock = self.now = clock
        self._connections = connections
        self._epoll = _epolls.pop()
        self._ready: dict[int, Callable[[], None]] = {}
        self._posters: list[_Poster] = []
        self.idle_posters: list[_Poster] = []
        # The requests as formats, gone through in turn.
        self.forms: Sequence[bytes] = ()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = itertools.count()
        self._receivers: set[_Receiver] = set()

    def __enter__(self) -> Self:
        self._every(SWEEP_S, self._sweep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for socket_ in [
            *(poster.socket for poster in self._posters),
            *(receiver.socket for receiver in self._receivers),
            *(listener.socket for listener in self.listeners if listener.socket is not None),
        ]:
            socket_.close()
        _epolls.append(self._epoll)

    # ---- setting up -------------------------------------------------------------------------------------------------

    def listen(
        self, count: int = 1, *, own_slots: bool = False, healthy: bool = True, dead: bool = False, delay_s: float = 0.0
    ) -> list[Listener]:
        """Open receivers, each on an address of its own; ``own_slots`` for a fan-out to all of them.

        ``dead`` refuses connections, not ``healthy`` answers 500, ``delay_s`` answers that late.
        """
        added = []
        for _ in range(count):
            index = len(self.listeners)
            opened = socket.socket()
            host = f"127.{1 + index // 62_500}.{index // 250 % 250}.{1 + index % 250}"
            opened.bind((host, 0))
            listener = Listener(
                host, opened.getsockname()[1], index if own_slots else 0, healthy, delay_s, socket=opened
            )
            if not dead:
                opened.listen(LISTEN_BACKLOG)
                opened.setblocking(False)
                self._watch(opened, _Accepting(self, listener).accept)
            self.listeners.append(listener)
            added.append(listener)
        return added

    def target(self, url: str, key: str, *, batch: int = 1, endpoints: Sequence[str] = (), keyed: bool = False) -> None:
        """Post to this server from now on, ``batch`` events a request; ``keyed``: each with an idempotency key.

        With ``endpoints`` each request goes to one of them: the sequence, which may repeat them, is gone through in
        turn.
        """
        host, _, port = url.removeprefix("http://").partition(":")
        self.batch, self._keyed = batch, keyed
        forms = {endpoint: _form(host, key, batch, endpoint, keyed=keyed) for endpoint in endpoints or ("",)}
        self.forms = [forms[endpoint] for endpoint in endpoints or ("",)]
        for poster in self._posters:
            self.forget(poster.socket)
        self._posters = [_Poster(self, (host, int(port))) for _ in range(self._connections)]
        self.idle_posters = list(self._posters)

    # ---- running ----------------------------------------------------------------------------------------------------

    def sustained(self, seconds: float, *, window: int = WINDOW) -> None:
        """Post for so long, as fast as at most ``window`` deliveries under way allow."""
        until = self._clock() + seconds
        ledger = self.ledger
        while (now := self._clock()) < until:
            limit = window + ledger.delivered
            while self.idle_posters and (ledger.posted - ledger.refused) * ledger.slots < limit:
                self.idle_posters.pop().post(ledger.open(self.batch, self._clock()))
            self._turn(min(0.1, until - now))

    def unbounded(self, seconds: float) -> None:
        """Post for so long as fast as answers come, whatever becomes of the events."""
        until = self._clock() + seconds
        while (now := self._clock()) < until:
            while self.idle_posters:
                self.idle_posters.pop().post(self.ledger.open(self.batch, self._clock()))
            self._turn(min(0.1, until - now))

    def open_loop(
        self,
        seconds: float,
        rate: float,
        *,
        done: Callable[[], bool] = lambda: False,
        patience_s: float = float("inf"),
    ) -> None:
        """Post ``rate`` events a second for so long, or until ``done()``; each is due when the schedule says, sent or
        not. What has found no free connection ``patience_s`` after it was due is not posted at all."""
        started = self._clock()
        schedule = Schedule(started, rate / self.batch, round(seconds * rate / self.batch))
        while not (schedule.finished or done()):
            now = self._clock()
            while schedule.next_due < now - patience_s:
                schedule.take()
            while self.idle_posters and schedule.next_due <= now:
                self.idle_posters.pop().post(self.ledger.open(self.batch, schedule.take()))
            # With no free connection an answer must come first.
            self._turn(0.1 if not self.idle_posters else min(0.1, max(0.0, schedule.next_due - self._clock())))

    def receive(self, done: Callable[[], bool], *, quiet_s: float = QUIET_S, limit_s: float = 3600.0) -> bool:
        """Receive until ``done()``; False when nothing came for ``quiet_s``, or after ``limit_s``."""
        started = quiet_since = self._clock()
        seen = -1
        while not done():
            now = self._clock()
            if self.ledger.delivered != seen:
                seen, quiet_since = self.ledger.delivered, now
            if now - quiet_since > quiet_s or now - started > limit_s:
                return False
            self._turn(0.05)
        return True

    def drain(self, *, quiet_s: float = QUIET_S) -> bool:
        """Until every post is answered and all that was accepted has arrived; False if something is missing."""
        return self.answered() and self.receive(self.all_arrived, quiet_s=quiet_s)

    def answered(self) -> bool:
        """Until every post is answered (each has a deadline)."""
        return self.receive(
            lambda: self.ledger.accepted + self.ledger.refused == self.ledger.posted, quiet_s=2 * POST_TIMEOUT_S
        )

    def idle(self, seconds: float) -> None:
        """Post nothing for so long."""
        until = self._clock() + seconds
        self.receive(lambda: self._clock() >= until, quiet_s=seconds + 1)

    def all_arrived(self) -> bool:
        """Has all that was accepted arrived?"""
        return self.ledger.delivered >= self.ledger.accepted * self.ledger.slots

    def _turn(self, timeout_s: float) -> None:
        """Wait for sockets or timers, and serve them; then those of the load beside, without waiting."""
        self._serve(timeout_s)
        if self.beside is not None:
            self.beside._serve(0.0)

    def _serve(self, timeout_s: float) -> None:
        timers = self._timers
        if timers:
            timeout_s = max(0.0, min(timeout_s, timers[0][0] - self._clock()))
        if 0.0 < timeout_s < COARSE_S:
            select.select([self._epoll], [], [], timeout_s)
            timeout_s = 0.0
        ready = self._ready
        for fd, _ in self._epoll.poll(timeout_s, EVENTS_MAX):
            # A handler before this one may have closed it.
            if (serve := ready.get(fd)) is not None:
                serve()
        while timers and timers[0][0] <= self._clock():
            heapq.heappop(timers)[2]()

    # ---- for connections --------------------------------------------------------------------------------------------

    def _watch(self, opened: socket.socket, serve: Callable[[], None]) -> None:
        self._ready[opened.fileno()] = serve
        self._epoll.register(opened.fileno(), select.EPOLLIN)

    def forget(self, opened: socket.socket) -> None:
        """Close a connection."""
        if opened.fileno() >= 0:
            self._ready.pop(opened.fileno(), None)
            opened.close()

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call in so many seconds."""
        heapq.heappush(self._timers, (self._clock() + delay_s, next(self._ticket), action))

    def _every(self, period_s: float, action: Callable[[], None]) -> None:
        def act() -> None:
            action()
            self.later(period_s, act)

        self.later(period_s, act)

    def request(self, first: int) -> bytes:
        """The request that posts the events from ``first``."""
        form = self.forms[first // self.batch % len(self.forms)]
        if self._keyed:
            return form % tuple([number for number in range(first, first + self.batch) for _ in range(2)])
        return form % first if self.batch == 1 else form % tuple(range(first, first + self.batch))

    def _sweep(self) -> None:
        """Give up posts that nobody answers."""
        late = self._clock() - POST_TIMEOUT_S
        for poster in self._posters:
            if poster.first >= 0 and poster.sent_at < late:
                poster.fail(_TIMEOUT)


class Schedule:
    """When the events of a fixed rate are due: the k-th at ``started + k / rate``, exactly, however late it is sent."""

    def __init__(self, started: float, rate: float, count: int) -> None:
        self._started = started
        self._rate = rate
        self._count = count
        self._taken = 0

    @property
    def finished(self) -> bool:
        """Were all taken?"""
        return self._taken >= self._count

    @property
    def next_due(self) -> float:
        """When the next one is due; never, when there is none."""
        return float("inf") if self.finished else self._started + self._taken / self._rate

    def take(self) -> float:
        """Take the next one; returns when it was due."""
        due = self.next_due
        self._taken += 1
        return due


def _received(opened: socket.socket) -> bytes | None:
    """What has come; nothing (b"") at the end of the connection, None when it was a false alarm."""
    try:
        return opened.recv(RECEIVE_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""


class _Poster:
    """A connection to the server: one request at a time."""

    __slots__ = ("_address", "_buffer", "_load", "first", "posted_at", "sent_at", "socket")

    def __init__(self, load: Load, address: tuple[str, int]) -> None:
        self._load = load
        self._address = address
        self.first = -1
        self.sent_at = 0.0
        self.posted_at = 0.0
        self._connect()

    def _connect(self) -> None:
        self._buffer = b""
        self.socket = socket.create_connection(self._address, timeout=POST_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._load._watch(self.socket, self.ready)

    def post(self, first: int) -> None:
        """Send the events from ``first``. A request fits into the socket's buffer, as there is one at a time."""
        load = self._load
        request = load.request(first)
        self.first = first
        self.sent_at = load.ledger.due[first]
        if load.answer_s is not None:
            self.posted_at = load.now()
        try:
            if self.socket.send(request) < len(request):
                self.fail("the socket's buffer is too small")
        except OSError:
            self.fail(_LOST)

    def ready(self) -> None:
        """An answer, or a part of it, or the end of the connection."""
        data = _received(self.socket)
        if data is None:
            return
        if not data or self.first < 0:  # ended, or an answer to nothing
            self.fail(_LOST)
            return
        if self._buffer:
            data = self._buffer + data
        end = message_end(data)
        if end < 0:
            self._buffer = data
            return
        self._buffer = b""
        self._answered(data[9:12])

    def _answered(self, status: bytes) -> None:
        load, first = self._load, self.first
        self.first = -1
        if load.answer_s is not None:
            load.answer_s.append((status.decode("latin-1"), load.now() - self.posted_at))
        if status == b"202":
            load.ledger.accept(first, load.batch)
            load.idle_posters.append(self)
            return
        load.ledger.refuse(first, load.batch)
        load.answers[status.decode("latin-1")] += 1
        load.later(BACK_OFF_S, lambda: load.idle_posters.append(self))

    def fail(self, why: str) -> None:
        """The connection is of no use any more: count what was under way and open another."""
        load, first = self._load, self.first
        load.forget(self.socket)
        if first >= 0:
            self.first = -1
            load.ledger.refuse(first, load.batch)
            load.answers[why] += 1
        else:
            load.idle_posters.remove(self)
        load.later(BACK_OFF_S, self._again)

    def _again(self) -> None:
        try:
            self._connect()
            self._load.idle_posters.append(self)
        except OSError:
            self._load.later(BACK_OFF_S, self._again)


class _Accepting:
    """Takes a listener's connections."""

    def __init__(self, load: Load, listener: Listener) -> None:
        self._load = load
        self._listener = listener

    def accept(self) -> None:
        """All that wait."""
        assert self._listener.socket is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                opened, _ = self._listener.socket.accept()
                opened.setblocking(False)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._listener.connections += 1
                receiver = _Receiver(self._load, self._listener, opened)
                self._load._receivers.add(receiver)
                self._load._watch(opened, receiver.ready)


class _Receiver:
    """A connection of a worker."""

    __slots__ = ("_buffer", "_ledger", "_listener", "_load", "_now", "socket")

    def __init__(self, load: Load, listener: Listener, opened: socket.socket) -> None:
        self._load = load
        self._ledger = load.ledger
        self._now = load.now
        self._listener = listener
        self._buffer = b""
        self.socket = opened

    def ready(self) -> None:
        """Requests, or parts of one, or the end of the connection."""
        data = _received(self.socket)
        if data is None:
            return
        if not data:
            self._end()
            return
        if self._buffer:
            data = self._buffer + data
        # As a rule there is one request, complete: libcurl sends head and body together and waits for the answer.
        while data and (end := message_end(data)) >= 0:
            self._serve(data if end == len(data) else data[:end])
            data = data[end:]
        self._buffer = data

    def _serve(self, request: bytes) -> None:
        listener, at = self._listener, self._now()
        listener.received += 1
        if listener.delay_s:
            self._load.later(listener.delay_s, lambda: self._answer(request, at))
        else:
            self._answer(request, at)

    def _answer(self, request: bytes, at: float) -> None:
        """Count it, then answer; a peer that has gone learns nothing and counts for nothing."""
        listener, ledger = self._listener, self._ledger
        try:
            self.socket.send(_OK if listener.healthy else _ERROR)
        except OSError:
            return
        if not listener.healthy:
            return
        number = number_of(request)
        if number < 0:
            ledger.unknown += 1
        elif ledger.arrive(number, listener.slot, at) and ledger.delivered % VERIFY_EVERY == 0 and listener.key:
            self._verify(request, listener.key)

    def _verify(self, request: bytes, key: bytes) -> None:
        self._ledger.verified += 1
        head, _, body = request.partition(b"\r\n\r\n")
        lines = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
        try:
            verify({name: value.strip() for name, _, value in lines}, body, [key], time.time())
        except VerificationError:
            self._ledger.forged += 1

    def _end(self) -> None:
        self._load.forget(self.socket)
        self._load._receivers.discard(self)


def message_end(data: bytes) -> int:
    """Where the first HTTP message of ``data`` ends, by its content-length; -1 while it is not complete."""
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return -1
    # As libcurl writes it, and as uvicorn does, before any other spelling.
    at = data.find(b"\nContent-Length:", 0, head_end)
    if at < 0 and (at := data.find(b"\ncontent-length:", 0, head_end)) < 0:
        at = data[:head_end].lower().find(b"\ncontent-length:")
    size = 0 if at < 0 else int(data[at + 16 : data.find(b"\r", at)])
    end = head_end + 4 + size
    return end if len(data) >= end else -1


def number_of(request: bytes) -> int:
    """The running number in the payload of a complete request; -1 if there is none."""
    at = request.find(b"\r\n\r\n") + 4 + NUMBER_FROM
    try:
        return int(request[at : at + NUMBER_DIGITS])
    except ValueError:
        return -1


def _form(host: str, key: str, batch: int, endpoint: str, *, keyed: bool = False) -> bytes:
    """A whole request as a format: ``form % number``, for a batch ``form % (number, …)``; with keys each twice."""
    to = f',"target_endpoints":["{endpoint}"]'.encode() if endpoint else b""
    own = b',"idempotency_key":"key-%010d"' if keyed else b""
    event = b'{"type":"%b"%b%b,"payload":%b}' % (EVENT_TYPE.encode(), to, own, PAYLOAD)
    body = event if batch == 1 else b'{"events":[' + b",".join([event] * batch) + b"]}"
    size = len(body) + batch * (1 + keyed) * (NUMBER_DIGITS - len(b"%010d"))
    path = "/v1/events" if batch == 1 else "/v1/events/batch"
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {size}\r\n\r\n"
    )
    return head.encode() + body


def allow_many_sockets() -> None:
    """Thousands of receivers are thousands of sockets; processes started later inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
