"""Ports for who listens later, or again: nobody's now, and no connection's meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket

# Below those that Linux gives to outgoing connections.
PORTS = range(20_000, 32_000)
# Each process of a run has its own part of them: none takes what another one has chosen and not yet bound.
PARTS = 16
_given: set[int] = set()
"""What was chosen here: it may not be bound yet either."""


def _ours() -> range:
    number = re.search(r"\d+", os.environ.get("PYTEST_XDIST_WORKER", ""))
    return PORTS[int(number[0]) % PARTS :: PARTS] if number else PORTS


def free_ports(count: int) -> list[int]:
    """So many of loopback that nobody listens on now. Raises RuntimeError when there are none."""
    sockets: list[socket.socket] = []
    try:
        for port in random.sample(_ours(), len(_ours())):
            if port in _given:
                continue
            with contextlib.suppress(OSError):
                sockets.append(socket.create_server(("127.0.0.1", port)))
            if len(sockets) == count:
                found = [each.getsockname()[1] for each in sockets]
                _given.update(found)
                return found
        raise RuntimeError(f"no {count} ports are free")
    finally:
        for each in sockets:
            each.close()


def free_port() -> int:
    """One of them."""
    [port] = free_ports(1)
    return port
