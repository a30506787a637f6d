"""One process of a server, as its supervisor starts it, and as `hookpost api` and `hookpost worker` run it alone.

A supervised process holds one end of a socket pair: it writes `ready` into it, and when the other end closes (an order,
or the supervisor's death, even by kill -9) it stops in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Awaitable, Callable

import uvloop

READY = b"ready\n"
# Sockets that a worker or an API process may hold. Many systems allow 1,024 unless a program asks for more.
FILES_MAX = 65_536
Main = Callable[[asyncio.Event, asyncio.Event], Awaitable[None]]


def run(main: Main, *, supervisor_fd: int | None = None) -> None:
    """Run ``main(stop, ready)`` on a fresh loop until it ends by itself or by SIGTERM, SIGINT or the supervisor."""
    raise_file_limit()
    write_no_core()
    uvloop.run(_run(main, supervisor_fd))


def raise_file_limit() -> int:
    """Ask for as many open files as we are allowed to have, up to ``FILES_MAX``; returns how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def write_no_core() -> None:
    """A crash leaves no file with signing secrets and payloads in it. A collector that the kernel pipes cores to, as
    systemd's, is not bound by it."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


async def _run(main: Main, supervisor_fd: int | None) -> None:
    stop, ready = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    leash = None if supervisor_fd is None else asyncio.create_task(_leash(supervisor_fd, stop, ready))
    try:
        await main(stop, ready)
    finally:
        if leash is not None:
            leash.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leash


async def _leash(fd: int, stop: asyncio.Event, ready: asyncio.Event) -> None:
    """Tell the supervisor when we are ready; stop when it lets go."""
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    try:
        await ready.wait()
        with contextlib.suppress(OSError):
            writer.write(READY)
            await writer.drain()
        with contextlib.suppress(OSError):
            await reader.read()
        stop.set()
    finally:
        writer.close()
