"""An event loop without a selector: time is virtual, and whose turn it is comes from a seed.

Each callback belongs to a node, by its context. Within a node callbacks run in the order of asyncio; among nodes, which
are processes of their own, in any order. A node that is paused keeps its callbacks, one that is killed loses them:
nothing of it runs any more, no ``finally`` and no handler, as after kill -9.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any

# What one callback takes.
STEP_S = 2e-6


class Node:
    """One process of the world, or (``world``) what is around them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.resumes_at = 0.0
        self.ready: deque[asyncio.Handle] = deque()
        self.context: Context = copy_context()
        self.context.run(_NODE.set, self)


_NODE: ContextVar[Node] = ContextVar("node")


class Stalled(RuntimeError):
    """Nothing is left to do, and somebody still waits."""


class Loop(asyncio.BaseEventLoop):
    """Runs callbacks one by one until nobody is ready, then lets time jump to the next timer."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self._rng = rng
        self._now = 0.0
        self.steps = 0
        self.failures: list[BaseException] = []
        self.set_exception_handler(self._note_failure)
        self.world = Node("world")
        self._nodes: list[Node] = [self.world]
        # Kept to the end, as the collector would run what a killed node has left half done.
        self._tasks: list[asyncio.Task[Any]] = []

    def time(self) -> float:
        return self._now

    # ---- nodes ------------------------------------------------------------------------------------------------------

    def add(self, name: str) -> Node:
        """A process that starts now."""
        node = Node(name)
        self._nodes.append(node)
        return node

    def spawn(self, node: Node, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of this process."""
        task = self.create_task(coroutine, context=node.context)
        self._tasks.append(task)
        return task

    def after(self, delay_s: float, node: Node, call: Callable[..., Any], *arguments: Any) -> asyncio.TimerHandle:
        """Call it in this process later."""
        return self.call_later(delay_s, call, *arguments, context=node.context)

    def kill(self, node: Node) -> None:
        """It runs no further."""
        node.alive = False
        node.ready.clear()
        self._nodes.remove(node)

    def pause(self, node: Node, seconds: float) -> None:
        """It does nothing for so long and does not know it."""
        node.resumes_at = max(node.resumes_at, self._now + seconds)

    # ---- the loop -----------------------------------------------------------------------------------------------------

    def _run_once(self) -> None:
        self._sort()
        turn = [node for node in self._nodes if node.ready and node.resumes_at <= self._now]
        if not turn:
            self._advance()
            return
        handle = (turn[0] if len(turn) == 1 else self._rng.choice(turn)).ready.popleft()
        if not handle._cancelled:
            self.steps += 1
            self._now += STEP_S
            handle._run()

    def _sort(self) -> None:
        """What has become ready goes to its node."""
        while self._scheduled and (self._scheduled[0]._cancelled or self._scheduled[0]._when <= self._now):
            timer = heapq.heappop(self._scheduled)
            timer._scheduled = False
            if not timer._cancelled:
                self._ready.append(timer)
        while self._ready:
            handle = self._ready.popleft()
            node = handle._context.get(_NODE, self.world)
            if node.alive:
                node.ready.append(handle)

    def _advance(self) -> None:
        moments = [node.resumes_at for node in self._nodes if node.ready]
        if self._scheduled:
            moments.append(self._scheduled[0]._when)
        if not moments:
            raise Stalled("nothing is planned any more")
        self._now = max(self._now, min(moments))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers go when their time comes."""

    def _process_events(self, event_list: Any) -> None:
        """There are no files."""

    def _write_to_self(self) -> None:
        """There are no threads."""

    def _note_failure(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback has failed: in production a line in the log, here the end of the world."""
        if "handle" in context:
            self.failures.append(context["exception"])

    def discard(self) -> None:
        """The world is over: let go of everything that was left half done."""
        self.set_exception_handler(lambda _loop, _context: None)
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False
            with suppress(BaseException):
                task.get_coro().close()
        self._ready.clear()
        self._scheduled.clear()
        for node in self._nodes:
            node.ready.clear()
        self.close()
