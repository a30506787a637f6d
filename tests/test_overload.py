"""F28, I2: three times what the store takes is offered for a minute, in virtual time, to the real ingest.

`e2e/test_overload` offers it to real processes for some seconds, and `make bench ARGS="overload --seconds 60"` for a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import pytest

from hookpost.ingest import SWEEP_EVERY_S, Ingest, IngestLimits, Overloaded
from hookpost.intake import GROUP_EVENTS_MAX
from hookpost.storage.contract import Appended, NewEvent, Place, Stale
from tests.test_ingest import ScriptedStore, in_virtual_time, make, submissions

SECONDS = 60.0
# Events in one request.
REQUEST = 10
LIMITS = IngestLimits()
# What an event in front of a store that is not overloaded waits for at most: an append under way, and its own.
SOON_S = LIMITS.timeout_s / 2


class BusyStore(ScriptedStore):
    """A store that takes its time: for each append, and for each event of it."""

    def __init__(self, call_s: float, event_s: float) -> None:
        super().__init__()
        self._call_s, self._event_s = call_s, event_s

    async def append(
        self,
        shard: int | Sequence[int],
        events: Sequence[NewEvent],
        versions: Mapping[UUID, int],
        placed: Callable[[Place], None] | None = None,
    ) -> list[Appended] | Stale:
        await asyncio.sleep(self._call_s + self._event_s * len(events))
        return await super().append(shard, events, versions, placed)


@dataclass
class Offered:
    """What became of all that was offered."""

    accepted: set[UUID] = field(default_factory=set)
    refused: int = 0
    slowest_s: float = 0.0
    queued: int = 0

    async def post(self, ingest: Ingest, store: ScriptedStore) -> None:
        """One request."""
        began = asyncio.get_running_loop().time()
        try:
            answers = await ingest.submit(store.tenant, submissions(REQUEST))
            self.accepted |= {answer.event_id for answer in answers if isinstance(answer, Appended)}
        except Overloaded:
            self.refused += REQUEST
        self.slowest_s = max(self.slowest_s, asyncio.get_running_loop().time() - began)
        self.queued = max(self.queued, ingest.queued[0])


async def offer(ingest: Ingest, store: ScriptedStore, *, per_second: float) -> Offered:
    """A minute of so many events a second, until the last of them has its answer."""
    offered = Offered()
    async with asyncio.TaskGroup() as producers:
        for _ in range(round(per_second * SECONDS / REQUEST)):
            producers.create_task(offered.post(ingest, store))
            await asyncio.sleep(REQUEST / per_second)
    return offered


# What the store takes a second, and a store where that is so: each event costs, or each call.
STORES = {"slow events": (200.0, (0.0, 0.005)), "slow calls": (200.0, (0.2, 0.002))}


@pytest.mark.parametrize("kind", STORES)
def test_f28_of_three_times_what_is_stored_a_third_is_acknowledged_and_the_rest_refused_in_time(kind: str) -> None:
    capacity, costs = STORES[kind]

    @in_virtual_time
    async def minute() -> None:
        store = BusyStore(*costs)
        ingest = make(store, LIMITS)
        offered = await offer(ingest, store, per_second=3 * capacity)
        assert offered.slowest_s <= LIMITS.timeout_s + 2 * SWEEP_EVERY_S
        stored = {event.event_id for event in store.stored}
        assert offered.accepted <= stored
        assert len(offered.accepted) + offered.refused == round(3 * capacity * SECONDS)
        # Next to all that is stored is acknowledged, once groups are as small as they have to be.
        assert len(offered.accepted) >= 0.85 * len(stored)
        assert len(offered.accepted) >= 0.7 * capacity * SECONDS
        # What waits for its answer, and what is being appended for nobody any more.
        assert offered.queued <= 3 * capacity * (LIMITS.timeout_s + 2 * SWEEP_EVERY_S) + GROUP_EVENTS_MAX
        assert ingest.queued == (0, 0)
        after = Offered()
        await after.post(ingest, store)
        assert after.refused == 0
        assert after.slowest_s < SOON_S

    minute()


@in_virtual_time
async def test_who_waited_while_the_store_hung_for_a_moment_is_not_refused_for_it() -> None:
    store = BusyStore(0.002, 0.0)
    ingest = make(store, LIMITS)
    offered = Offered()
    for _ in range(8):
        await offered.post(ingest, store)
    store.open.clear()
    async with asyncio.TaskGroup() as producers:
        for _ in range(4):
            producers.create_task(offered.post(ingest, store))
            await asyncio.sleep(0.2)
        store.open.set()
    assert offered.refused == 0
