"""Look-ups that many ask for at the same time, made by few statements.

When a process starts under load, each request of its first second needs a key and a tenant's routes that it does not
know yet: of ten thousand tenants that is twenty thousand statements, one by one behind eight connections, while
deliveries need the same database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from itertools import chain, islice
from typing import Generic, TypeVar

from hookpost.storage.contract import DataRejected

# Keys of one statement: a few milliseconds of the database's time.
KEYS_MAX = 200
# Statements under way at once. While they are, others gather.
ASKING_MAX = 2

_K = TypeVar("_K")
_V = TypeVar("_V")


class Gathered(Generic[_K, _V]):
    """Asks for the keys of all who wait, by ``ask``, which answers with what there is of them.

    An answer is never older than its question: a statement has the keys that were asked for before it was sent. A
    question alone is sent at once.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[_K]], Awaitable[Mapping[_K, _V]]],
        *,
        keys_max: int = KEYS_MAX,
        asking_max: int = ASKING_MAX,
    ) -> None:
        self._ask = ask
        self._keys_max = keys_max
        self._asking_max = asking_max
        self._waiting: dict[_K, list[asyncio.Future[_V | None]]] = {}
        self._asking = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, key: _K) -> _V | None:
        """What there is of the key; None: nothing. Raises what ``ask`` raises; DataRejected only for this key."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_V | None] = loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._asking < self._asking_max:
            # It takes its keys when it begins to run: all that are asked for in this turn of the loop.
            self._asking += 1
            task = loop.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                keys = list(islice(self._waiting, self._keys_max))
                await self._answer({key: self._waiting.pop(key) for key in keys})
        finally:
            # At once, not when the task is found to be done: who asks in between would find nobody at work.
            self._asking -= 1

    async def _answer(self, asked: Mapping[_K, list[asyncio.Future[_V | None]]]) -> None:
        """Every future gets its end; those of whoever went away are cancelled already."""
        found: Mapping[_K, _V] = {}
        failure: Exception | None = None
        try:
            found = await self._ask(list(asked))
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            failure = error
        except asyncio.CancelledError:
            for future in chain.from_iterable(asked.values()):
                future.cancel()
            raise
        if isinstance(failure, DataRejected) and len(asked) > 1:  # the others are not to blame
            for key, futures in asked.items():
                await self._answer({key: futures})
            return
        for key, futures in asked.items():
            for future in futures:
                if future.done():
                    continue
                if failure is None:
                    future.set_result(found.get(key))
                else:  # one of its own for each: raised in many places, it would collect their tracebacks
                    future.set_exception(copy(failure))
