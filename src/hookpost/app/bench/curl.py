"""libcurl at its best: the multi interface on an epoll loop of its own, and the process that sends with it.

What the product's transport adds (egress checks, timeouts, outcomes, an event loop for everything else) is left out on
purpose: this is the limit that it is measured against. Easy handles keep their options, sockets stay registered between
requests, one call answers all of libcurl's zero timers of a turn.
"""

from __future__ import annotations

import gc
import json
import math
import os
import select
import socket
import struct
import time
from collections import Counter, deque
from typing import Any, Protocol

import pycurl

from hookpost import __version__
from hookpost.app.bench.load import PAYLOAD
from hookpost.policy.signing import signature_header

# As many as the product has in flight to one endpoint.
IN_FLIGHT = 64
EVENTS_MAX = 512
TURN_S = 1.0
STDIN = 0
READ_BYTES = 1024 * 1024
# A frame: its size, the event's id, the length of the type; type and payload follow.
FRAME = struct.Struct("<I16sH")

_MASKS = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}
# libcurl adds its own unless the name stands here bare. All other lines are given to it as one: copying and searching a
# list of them costs 3 µs (see `transport`).
_SUPPRESSED = ["Accept:", "Expect:"]
_swallowed: deque[bytes] = deque(maxlen=1)
_ALWAYS = f"content-type: application/json\r\nuser-agent: Hookpost/{__version__}"


class CurlLoop:
    """Requests to one URL, at most ``in_flight`` at once, until the source ends."""

    def __init__(self, url: str, feed: Feed) -> None:
        self.answers: Counter[str] = Counter()
        self._url = url
        self._feed = feed
        self._active = 0
        self._idle: list[Any] = []
        self._timer_at = math.inf
        self._wanted: set[int] = set()
        self._registered: dict[int, int] = {}
        self._epoll = select.epoll()
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, 2 * IN_FLIGHT)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)

    def run(self) -> None:
        """Send until the feed ends and all is answered."""
        feed = self._feed
        for fd in feed.fds:
            self._epoll.register(fd, select.EPOLLIN)
        while not feed.ended or self._active or feed.waiting:
            while self._active < IN_FLIGHT and (request := feed.next()) is not None:
                self._send(*request)
            self._turn()

    def _send(self, body: bytes, headers: list[str] | None) -> None:
        easy = self._idle.pop() if self._idle else new_easy(self._url)
        easy.setopt(pycurl.POSTFIELDS, body)
        if headers is not None:
            easy.setopt(pycurl.HTTPHEADER, headers)
        self._active += 1
        self._multi.add_handle(easy)

    def _turn(self) -> None:
        now = time.monotonic()
        for fd, events in self._epoll.poll(max(0.0, min(TURN_S, self._timer_at - now)), EVENTS_MAX):
            if fd in self._wanted:
                readable = pycurl.CSELECT_IN if events & ~select.EPOLLOUT else 0
                self._multi.socket_action(fd, readable | (pycurl.CSELECT_OUT if events & select.EPOLLOUT else 0))
            elif fd in self._feed.fds:
                if self._feed.read(fd):
                    self._epoll.unregister(fd)
            else:  # closed by the receiver while nobody used it
                self._registered.pop(fd, None)
                self._epoll.unregister(fd)
        if self._timer_at <= time.monotonic():
            self._timer_at = math.inf
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._collect()

    def _collect(self) -> None:
        while True:
            queued, succeeded, failed = self._multi.info_read()
            for easy in succeeded:
                self._end(easy, str(easy.getinfo(pycurl.RESPONSE_CODE)))
            for easy, code, _ in failed:
                self._end(easy, f"curl {code}")
            if not queued:
                return

    def _end(self, easy: Any, answer: str) -> None:
        self._multi.remove_handle(easy)
        self._active -= 1
        self._idle.append(easy)
        self.answers[answer] += 1

    def _set_timer(self, timeout_ms: int) -> None:
        self._timer_at = math.inf if timeout_ms < 0 else 0.0 if not timeout_ms else time.monotonic() + timeout_ms / 1000

    def _watch(self, what: int, fd: int, _multi: object, _data: object) -> None:
        """libcurl's wishes; a socket whose request has ended stays registered for the next one."""
        mask = _MASKS.get(what)
        if mask is None:
            self._wanted.discard(fd)
            return
        self._wanted.add(fd)
        if self._registered.get(fd) == mask:
            return
        try:
            self._epoll.register(fd, mask)
        except FileExistsError:
            self._epoll.modify(fd, mask)
        self._registered[fd] = mask


def new_easy(url: str) -> Any:
    """A handle for requests to this URL, whose answers nobody reads."""
    easy = pycurl.Curl()
    easy.setopt(pycurl.URL, url)
    easy.setopt(pycurl.NOSIGNAL, 1)
    easy.setopt(pycurl.USERAGENT, "")
    easy.setopt(pycurl.PROXY, "")
    easy.setopt(pycurl.WRITEFUNCTION, _swallowed.append)
    easy.setopt(pycurl.HTTPHEADER, [_ALWAYS, *_SUPPRESSED])
    return easy


class Feed(Protocol):
    """Where requests come from."""

    fds: list[int]
    ended: bool

    @property
    def waiting(self) -> int:
        """Requests there already."""

    def next(self) -> tuple[bytes, list[str] | None] | None:
        """The next body, with its headers if they differ from the last one's."""

    def read(self, fd: int) -> bool:
        """One of the descriptors can be read; True when it has ended."""


class Endless:
    """The next number, always, until standard input ends."""

    waiting = 0

    def __init__(self) -> None:
        self.fds = [STDIN]
        self.ended = False
        self._number = -1

    def next(self) -> tuple[bytes, list[str] | None] | None:
        """The next payload, with the headers of every request."""
        if self.ended:
            return None
        self._number += 1
        return PAYLOAD % self._number, None

    def read(self, fd: int) -> bool:
        """Standard input is a leash: nothing but its end comes."""
        self.ended = not os.read(fd, 1)
        return self.ended


class Pipe:
    """What the bare server hands over, signed here."""

    def __init__(self, fd: int, key: bytes) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self.fds = [fd]
        self.ended = False
        self._keys = [key]
        self._rest = b""
        self._frames: deque[tuple[bytes, str, bytes]] = deque()

    @property
    def waiting(self) -> int:
        """Events handed over and not sent yet."""
        return len(self._frames)

    def next(self) -> tuple[bytes, list[str] | None] | None:
        """The next event as a signed request."""
        if not self._frames:
            return None
        event_id, event_type, payload = self._frames.popleft()
        trace, at = event_id.hex(), int(time.time())
        message_id = "evt_" + trace
        signature = signature_header(message_id, at, payload, self._keys)
        lines = (
            f"{_ALWAYS}\r\nwebhook-id: {message_id}\r\nwebhook-timestamp: {at}\r\nwebhook-signature: {signature}\r\n"
            f"x-webhook-event-id: {message_id}\r\nx-webhook-event-type: {event_type}\r\nx-webhook-attempt: 1\r\n"
            f"traceparent: 00-{trace}-{trace[16:]}-01"
        )
        return payload, [lines, *_SUPPRESSED]

    def read(self, fd: int) -> bool:
        """Take what there is."""
        assert fd == self._socket.fileno()
        data = self._socket.recv(READ_BYTES)
        self.ended = not data
        self._rest = self._cut(self._rest + data if self._rest else data)
        return self.ended

    def close(self) -> None:
        """Let go of the pipe."""
        self._socket.close()

    def _cut(self, data: bytes) -> bytes:
        """Queue all complete frames; returns the rest."""
        at, end, head = 0, len(data), FRAME.size
        while end - at >= head:
            size, event_id, type_size = FRAME.unpack_from(data, at)
            if end - at < size:
                break
            type_at = at + head
            payload_at = type_at + type_size
            self._frames.append((event_id, data[type_at:payload_at].decode(), data[payload_at : at + size]))
            at += size
        return data[at:]


def frame(event_id: bytes, event_type: bytes, payload: bytes) -> bytes:
    """An event as ``Pipe`` reads it."""
    return FRAME.pack(FRAME.size + len(event_type) + len(payload), event_id, len(event_type)) + event_type + payload


def send_endlessly(url: str) -> None:
    """The process of the scenario ``curl``."""
    _run(CurlLoop(url, Endless()))


def send_from_pipe(url: str, fd: int, key: str) -> None:
    """The second process of the scenario ``bare``."""
    _run(CurlLoop(url, Pipe(fd, bytes.fromhex(key))))


def _run(loop: CurlLoop) -> None:
    gc.freeze()
    try:
        loop.run()
    except KeyboardInterrupt:
        return
    print(json.dumps(loop.answers), flush=True)
