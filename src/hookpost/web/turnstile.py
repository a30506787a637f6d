"""Lets large requests through one by one, a turn of the event loop for each.

To take a batch apart keeps the loop for a millisecond. Where many come at once, small requests between them would wait
for all of those: so they wait for one. Relies on the loop, which looks at its sockets once in each turn. Promises:
first come, first served; whoever gives up waiting is passed over.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turnstile:
    """For one event loop: whoever may go does, without waiting, what keeps the loop."""

    __slots__ = ("_taken", "_waiting")

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def enter(self) -> bool:
        """May one more go in this turn of the loop? If not, it may ``wait``."""
        if self._taken:
            return False
        self._take()
        return True

    async def wait(self) -> None:
        """Until it is this one's turn."""
        if self.enter():
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _take(self) -> None:
        self._taken = True
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """The next turn of the loop."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._take()
                return
        self._taken = False
