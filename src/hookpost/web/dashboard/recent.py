"""Answers that are good for a few seconds: many who look at the same page at once ask the database once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

# Below the five seconds after which an open page asks anew, so that nobody sees the same figures twice.
GOOD_S = 3.0
# Tenants and spans that are looked at at once; what is kept is some ten KB each.
KEPT_MAX = 256


@dataclass(slots=True)
class _Answer:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked_at: float | None = None
    value: Any = None


class Recent:
    """Answers by key. Whoever is given one must not change it. ``monotonic``: seconds."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._answers: dict[Hashable, _Answer] = {}

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[Any]]) -> Any:
        """The answer that was asked for at most GOOD_S ago, or that of ``ask``; its errors are raised and not kept."""
        answer = self._answers.setdefault(key, _Answer())
        if len(self._answers) > KEPT_MAX:
            del self._answers[next(iter(self._answers))]
        async with answer.lock:
            now = self._monotonic()
            if answer.asked_at is None or now - answer.asked_at >= GOOD_S:
                answer.value = await ask()
                answer.asked_at = now
            return answer.value
