"""libcurl as an application would drive it: its multi interface on an event loop, a future for each request.

Not the limit, but what the first sketch was measured with, and the figures that are wanted were set against: the two
tricks of it are that easy handles are used again, and that one call answers all of libcurl's zero timers of a turn.
``curl`` has, beyond that, a loop of its own that does nothing else, and leaves sockets registered between requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections import Counter
from typing import Any

import pycurl

from hookpost.app.bench.curl import IN_FLIGHT, Endless, Feed, Pipe, new_easy


class PlainLoop:
    """Requests to one URL, at most ``IN_FLIGHT`` at once, until the feed ends: ``await run()``."""

    def __init__(self, url: str, feed: Feed) -> None:
        self.answers: Counter[str] = Counter()
        self._url = url
        self._feed = feed
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._waiting: dict[Any, asyncio.Future[Any]] = {}
        self._idle: list[Any] = []
        self._timer: asyncio.TimerHandle | None = None
        self._kicked = False
        self._watched: dict[int, int] = {}
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, 2 * IN_FLIGHT)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)

    async def run(self) -> None:
        """Send until the feed ends and all is answered."""
        for fd in self._feed.fds:
            self._loop.add_reader(fd, self._read, fd)
        self._fill()
        await self._ended

    def _read(self, fd: int) -> None:
        if self._feed.read(fd):
            self._loop.remove_reader(fd)
        self._fill()

    def _fill(self) -> None:
        feed = self._feed
        while len(self._waiting) < IN_FLIGHT and (request := feed.next()) is not None:
            self.send(*request).add_done_callback(self._answered)
        if feed.ended and not self._waiting and not feed.waiting and not self._ended.done():
            self._ended.set_result(None)

    def send(self, body: bytes, headers: list[str] | None) -> asyncio.Future[Any]:
        """Make a request; its handle comes when it has ended."""
        easy = self._idle.pop() if self._idle else new_easy(self._url)
        easy.setopt(pycurl.POSTFIELDS, body)
        if headers is not None:
            easy.setopt(pycurl.HTTPHEADER, headers)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[easy] = future
        self._multi.add_handle(easy)
        return future

    def _answered(self, future: asyncio.Future[Any]) -> None:
        easy, answer = future.result()
        self._idle.append(easy)
        self.answers[answer] += 1
        self._fill()

    # Driving libcurl.

    def _set_timer(self, timeout_ms: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if timeout_ms > 0:
            self._timer = self._loop.call_later(timeout_ms / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0)
        elif timeout_ms == 0 and not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._kick)

    def _kick(self) -> None:
        self._kicked = False
        self._act(pycurl.SOCKET_TIMEOUT, 0)

    def _watch(self, what: int, fd: int, _multi: object, _data: object) -> None:
        before = self._watched.pop(fd, 0)
        wanted = 0 if what == pycurl.POLL_REMOVE else what
        if wanted:
            self._watched[fd] = wanted
        for bit, add, remove, event in (
            (pycurl.POLL_IN, self._loop.add_reader, self._loop.remove_reader, pycurl.CSELECT_IN),
            (pycurl.POLL_OUT, self._loop.add_writer, self._loop.remove_writer, pycurl.CSELECT_OUT),
        ):
            if wanted & bit and not before & bit:
                add(fd, self._act, fd, event)
            elif before & bit and not wanted & bit:
                remove(fd)

    def _act(self, fd: int, events: int) -> None:
        self._multi.socket_action(fd, events)
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
        self._waiting.pop(easy).set_result((easy, answer))


def send_endlessly(url: str) -> None:
    """The process of the scenario ``plain_curl``."""
    _run(url, Endless())


def send_from_pipe(url: str, fd: int, key: str) -> None:
    """The second process of the scenario ``plain``."""
    _run(url, Pipe(fd, bytes.fromhex(key)))


def _run(url: str, feed: Feed) -> None:
    import uvloop

    async def run() -> Counter[str]:
        loop = PlainLoop(url, feed)
        gc.freeze()
        await loop.run()
        return loop.answers

    with contextlib.suppress(KeyboardInterrupt):
        print(json.dumps(uvloop.run(run())), flush=True)
