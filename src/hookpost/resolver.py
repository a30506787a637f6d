"""Host names to addresses, off the event loop, so that names that hang delay nobody but themselves.

libcurl's own resolver queues all look-ups for 20 threads (since 8.20; pycurl cannot set the limit) and asks for A and
AAAA apart: measured with 8.23, ten names whose servers do not answer stop every other look-up for the 10 s and more
that getaddrinfo waits. Here a look-up belongs to a *group*, and a group holds at most ``GROUP_THREADS_MAX`` of the
``THREADS_MAX`` threads. The group is the name's parent domain, so that a wildcard zone cannot take all threads;
names whose last look-up was slow share one group, whatever their domain.

Relies on getaddrinfo being thread-safe. Promises: one look-up per name at a time is the caller's business; ``answered``
is called on the loop, once per look-up, never after ``close``; hung threads are daemons and never hold up an exit.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

__all__ = ["GROUP_THREADS_MAX", "THREADS_MAX", "Answer", "Resolver"]

THREADS_MAX = 256  # started as needed; so many names of as many domains may hang at once (40 KiB each, measured)
GROUP_THREADS_MAX = 16  # what one domain, or all names known to be slow, can take
SLOW_S = 1.0  # an answer usually takes 1–100 ms; who needs longer waits among its like next time
SLOW_NAMES_MAX = 10_000  # remembered; the oldest is forgotten first
_SLOW_GROUP = ""  # no parent domain is empty


@dataclass(frozen=True, slots=True)
class Answer:
    """What a look-up came to: addresses in the order to try them (RFC 6724), or why there are none."""

    addresses: tuple[str, ...] = ()
    error: str = ""


class Resolver:
    """Looks names up in a bounded number of daemon threads, fairly by group."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[str | None] = SimpleQueue()
        self._answered: dict[str, Callable[[Answer], None]] = {}
        self._waiting: dict[str, deque[str]] = {}
        self._running: dict[str, str] = {}
        self._threads = 0
        self._slow: OrderedDict[str, None] = OrderedDict()
        self._closed = False

    def lookup(self, host: str, answered: Callable[[Answer], None]) -> None:
        """Look ``host`` up; it must not be being looked up already."""
        assert host not in self._answered, host
        self._answered[host] = answered
        self._waiting.setdefault(self._group(host), deque()).append(host)
        self._start_some()

    def close(self) -> None:
        """Forget all look-ups; threads end as soon as getaddrinfo lets them."""
        self._closed = True
        self._answered.clear()
        self._waiting.clear()
        for _ in range(self._threads):
            self._jobs.put(None)

    def _group(self, host: str) -> str:
        return _SLOW_GROUP if host in self._slow else ".".join(host.rsplit(".", 2)[-2:])

    def _start_some(self) -> None:
        while len(self._running) < THREADS_MAX and (group := self._next_group()) is not None:
            hosts = self._waiting.pop(group)
            host = hosts.popleft()
            if hosts:
                self._waiting[group] = hosts  # to the end: groups take turns
            self._running[host] = group
            self._jobs.put(host)
            if len(self._running) > self._threads:
                self._threads += 1
                threading.Thread(target=self._run, name=f"hookpost-dns-{self._threads}", daemon=True).start()

    def _next_group(self) -> str | None:
        """The first waiting group with a thread left to it; at most sixteen others can be in the way."""
        full = list(self._running.values())
        return next((group for group in self._waiting if full.count(group) < GROUP_THREADS_MAX), None)

    def _run(self) -> None:
        while (host := self._jobs.get()) is not None:
            started = time.monotonic()
            answer = _resolve(host)
            try:
                self._loop.call_soon_threadsafe(self._finish, host, answer, time.monotonic() - started)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _finish(self, host: str, answer: Answer, took_s: float) -> None:
        if self._closed:
            return
        del self._running[host]
        self._remember(host, slow=took_s > SLOW_S)
        self._start_some()
        self._answered.pop(host)(answer)

    def _remember(self, host: str, *, slow: bool) -> None:
        self._slow.pop(host, None)
        if slow:
            self._slow[host] = None
            if len(self._slow) > SLOW_NAMES_MAX:
                self._slow.popitem(last=False)


def _resolve(host: str) -> Answer:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except socket.gaierror as error:
        return Answer(error=f"{host}: {error.strerror}")
    except (OSError, UnicodeError) as error:
        return Answer(error=f"{host}: {error}")
    addresses = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    return Answer(tuple(addresses)) if addresses else Answer(error=f"{host}: the name has no address")
