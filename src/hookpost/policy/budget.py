"""The retry budget: retries that fail may be no more than a part of all attempts of the last minute.

A worker shares it out among the tenants that it retries for. The platform's budget is the sum of its workers': each
counts its own attempts, so all of them together keep to the same part, and of the floor each has an equal share. A
retry that succeeds costs nothing. First attempts, and what only a gate held back, are no retries. Pure: `now` is an
argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from uuid import UUID

WINDOW_S = 60


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    """``part`` of the attempts of a minute, and at least ``floor`` retries a minute on the whole platform."""

    part: float = 0.2
    floor: int = 600


class RetryBudget:
    """One worker's budget. ``workers``: how many share the floor."""

    __slots__ = ("_attempts", "_policy", "_used", "_used_by", "_window", "workers")

    def __init__(self, policy: BudgetPolicy) -> None:
        self._policy = policy
        self.workers = 1
        # Of each second of the window: its number, attempts, and failed retries by tenant. The window begins within the
        # first of them: failures still count there, attempts no more, so that no minute holds too many.
        self._window: deque[tuple[int, list[int], dict[UUID, int]]] = deque()
        self._attempts = 0
        # Retries that failed within the window or are under way, in all and by tenant.
        self._used = 0
        self._used_by: dict[UUID, int] = {}

    def size(self, *, now: float) -> int:
        """How many retries may fail within the window that ends now."""
        self._roll(now)
        floor = -(-self._policy.floor // max(1, self.workers))
        second, (attempts,), _ = self._window[0]
        whole = self._attempts - (attempts if second == int(now) - WINDOW_S else 0)
        return max(floor, int(whole * self._policy.part))

    def free(self, *, now: float) -> int:
        """How many more retries may start now, whoever asks."""
        return max(0, self.size(now=now) - self._used)

    def admits(self, tenant_id: UUID, *, now: float) -> bool:
        """May this tenant start a retry? There is one share more than there are tenants. It is left for the tenant that
        comes next, whatever the others had taken while they were fewer."""
        size = self.size(now=now)
        used = self._used_by.get(tenant_id, 0)
        if used == 0:
            return self._used < size
        share = size // (len(self._used_by) + 1)
        return used < share and self._used < size - share

    def start(self, tenant_id: UUID) -> None:
        """A retry that was admitted is under way: its part of the budget is taken until it is known how it ends."""
        self._use(tenant_id, 1)

    def end(self, tenant_id: UUID, *, failed: bool, now: float) -> None:
        """A retry that was started has ended; a success gives its part back."""
        if failed:
            failures = self._roll(now)[1]
            failures[tenant_id] = failures.get(tenant_id, 0) + 1
        else:
            self._use(tenant_id, -1)

    def count(self, attempts: int, *, now: float) -> None:
        """So many attempts have ended, of whatever kind."""
        self._roll(now)[0][0] += attempts
        self._attempts += attempts

    def _roll(self, now: float) -> tuple[list[int], dict[UUID, int]]:
        """Forget what is older than the window; the books of this second."""
        second = int(now)
        window = self._window
        if not window or second > window[-1][0]:
            window.append((second, [0], {}))
        while window[0][0] < second - WINDOW_S:
            _, (attempts,), failed = window.popleft()
            self._attempts -= attempts
            for tenant_id, count in failed.items():
                self._use(tenant_id, -count)
        return window[-1][1], window[-1][2]

    def _use(self, tenant_id: UUID, count: int) -> None:
        self._used += count
        used = self._used_by.get(tenant_id, 0) + count
        if used:
            self._used_by[tenant_id] = used
        else:
            self._used_by.pop(tenant_id, None)
