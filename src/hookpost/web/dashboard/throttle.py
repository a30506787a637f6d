"""Sign-in attempts that failed, by where they came from: after a few an address waits. Pure but for its memory.

A key cannot be guessed; this keeps those who try from keeping the store busy. What a process remembers is bounded and
asked for first; what other processes have refused stands in the audit log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

FAILURES_MAX = 10
WINDOW_S = 60.0
# Addresses remembered; some 500 bytes each. The one that failed longest ago is forgotten first.
ADDRESSES_MAX = 10_000


def wait_after_s(ages_s: Sequence[float]) -> float:
    """Seconds to wait after failures so many seconds ago, the newest first, whichever process refused them."""
    return max(0.0, WINDOW_S - ages_s[FAILURES_MAX - 1]) if len(ages_s) >= FAILURES_MAX else 0.0


class Throttle:
    """What one process remembers."""

    def __init__(self) -> None:
        self._failures: dict[str, deque[float]] = {}

    def wait_s(self, address: str, now: float) -> float:
        """Seconds until this address may try again; 0: it may."""
        failures = self._failures.get(address)
        if failures is None or len(failures) < FAILURES_MAX:
            return 0.0
        return max(0.0, failures[0] + WINDOW_S - now)

    def failed(self, address: str, now: float) -> None:
        """An attempt from there failed."""
        failures = self._failures.pop(address, None) or deque(maxlen=FAILURES_MAX)
        failures.append(now)
        if len(self._failures) >= ADDRESSES_MAX:
            del self._failures[next(iter(self._failures))]
        self._failures[address] = failures

    def succeeded(self, address: str) -> None:
        """Whoever has a key may mistype it again."""
        self._failures.pop(address, None)
