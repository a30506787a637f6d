"""Who may connect, and how long and how large a request may be while it arrives. The server's wire asks here.

Relies on ``sweep`` being called each second (`keep`); a request that arrives as a whole is never looked at, so all of
this costs the hot path next to nothing. Promises: nobody holds a connection by sending slowly, by sending nothing, or
by not reading his answer; one address cannot take all connections; a refusal is a problem (RFC 9457) that says what to
change.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from hookpost import telemetry
from hookpost.web.problems import Problem, refusal

__all__ = ["SWEEP_S", "Doors", "Guest", "WireLimits"]

# Deadlines are of seconds, so this is close enough; five thousand connections take a millisecond.
SWEEP_S = 1.0
# A refused client that tries again at once is refused again.
CROWDED_RETRY_AFTER_S = 5
_CLOSE = {"Connection": "close"}


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What a client may take of one API process. ``body_rate_min``: bytes a second, counted from ``body_s`` on."""

    target_bytes: int = 8 * 1024
    header_bytes: int = 32 * 1024
    headers: int = 100
    message_bytes: int = 4 * 1024 * 1024
    head_s: float = 10.0
    body_s: float = 15.0
    body_rate_min: float = 16 * 1024
    answer_s: float = 30.0
    connections: int = 8_000
    connections_per_address: int = 2_000

    def head_refusal(self, target: int, headers: int, head_bytes: int) -> Problem | None:
        """Why a head, or what has come of it, is too large: the length of its target, fields and bytes."""
        if target > self.target_bytes:
            return refusal(414, f"a request target may have {self.target_bytes} bytes", headers=_CLOSE)
        if headers > self.headers:
            return refusal(431, f"a request may have {self.headers} header fields", headers=_CLOSE)
        if head_bytes > self.header_bytes + target:
            return refusal(431, f"the header fields may have {self.header_bytes} bytes in all", headers=_CLOSE)
        return None

    def message_refusal(self, message_bytes: int) -> Problem | None:
        """Chunks of a few bytes, their extensions and trailers can be more than the body they carry, within reason."""
        if message_bytes > self.message_bytes:
            return refusal(413, f"a request may have {self.message_bytes} bytes, chunks and all", headers=_CLOSE)
        return None

    def late_refusal(self, *, in_head: bool, message_bytes: int, waited_s: float) -> Problem | None:
        """Why a request that began to arrive so long ago is not waited for any longer."""
        if in_head:
            return (
                self._late(f"the header fields did not arrive within {self.head_s:g} s")
                if (waited_s > self.head_s)
                else None
            )
        if waited_s > self.body_s + message_bytes / self.body_rate_min:
            return self._late(
                f"the body came more slowly than {self.body_rate_min:g} bytes a second, {self.body_s:g} s allowed for"
            )
        return None

    @staticmethod
    def _late(detail: str) -> Problem:
        return refusal(408, detail, headers=_CLOSE)


class Guest(Protocol):
    """A connection, as the doors see it."""

    def look(self, now: float) -> None:
        """Is it overdue? ``now`` on the loop's clock."""
        ...


class Doors:
    """The connections of one API process."""

    def __init__(self, limits: WireLimits | None = None) -> None:
        self.limits = limits or WireLimits()
        self._guests: set[Guest] = set()
        self._by_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._guests)

    def enter(self, guest: Guest, address: str) -> Problem | None:
        """Let it in, or say why not. It leaves in either case."""
        self._guests.add(guest)
        self._by_address[address] += 1
        again = {**_CLOSE, "Retry-After": str(CROWDED_RETRY_AFTER_S)}
        if len(self._guests) > self.limits.connections:
            return self._refused(refusal(503, "there are too many connections: try again later", headers=again))
        if self._by_address[address] > self.limits.connections_per_address:
            most = self.limits.connections_per_address
            return self._refused(
                refusal(429, f"there are {most} connections from your address, which is the limit", headers=again)
            )
        return None

    def leave(self, guest: Guest, address: str) -> None:
        """It is closed."""
        self._guests.discard(guest)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _refused(self, problem: Problem) -> Problem:
        telemetry.count("connections_refused")
        return problem

    def sweep(self, now: float) -> None:
        """Look after all of them."""
        guests: Iterable[Guest] = tuple(self._guests)
        for guest in guests:
            guest.look(now)

    async def keep(self, time: Callable[[], float]) -> None:
        """Sweep for ever; ``time`` is the loop's clock."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep(time())
