"""The relay between the processes of a world, as bad as it may be: what is told comes late, twice, in another order, to
workers whose shard it is not, or never, and who told it may believe that it was heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Protocol

from hookpost.relay import decode_told, encode, new_of, rows, told
from hookpost.storage.contract import Appended, NewEvent, Place
from hookpost.worker import Worker
from tests.sim.system.loop import Loop, Node

# The parts of what is told that are rung for in its place, are lost, go to whoever, and come twice.
RUNG, LOST, ASTRAY, TWICE = 0.1, 0.05, 0.1, 0.1
# How long it takes, at most: mostly less than a read of the journal.
DELAYS_S = (0.0002, 0.0002, 0.002, 0.01, 2.0)


class WorkerNode(Protocol):
    """A process with a worker."""

    node: Node
    worker: Worker


class BadRelay:
    """One API process's end. ``workers``: those of the world at any time."""

    def __init__(self, loop: Loop, rng: Random, workers: Sequence[WorkerNode]) -> None:
        self._loop = loop
        self._rng = rng
        self._workers = workers

    def tell(self, place: Place, events: Sequence[NewEvent], answers: Sequence[Appended]) -> bool:
        """See ``ingest.Relay``."""
        rng = self._rng
        new = new_of(events, answers)
        owners = [each for each in self._workers if place.shard in each.worker.fences]
        heard = self._workers if rng.random() < ASTRAY else owners
        if not new or not heard or rng.random() < RUNG:
            return False
        if rng.random() < LOST:
            return True
        message = encode(told(place, new))
        for _ in range(2 if rng.random() < TWICE else 1):
            one = rng.choice(heard)
            self._loop.after(rng.random() * rng.choice(DELAYS_S), one.node, _hear, one.worker, message)
        return True


def _hear(worker: Worker, message: bytes) -> None:
    worker.take_told(rows(decode_told(message)))
