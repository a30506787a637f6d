"""Faults that no seed lives through by chance, told to the real processes in virtual time: one long, and one of our own."""

from __future__ import annotations

import asyncio
from uuid import UUID

from hookpost.ingest import SWEEP_EVERY_S, IngestLimits, Submission
from hookpost.model import DeadReason, ErrorCode
from tests.sim.checkers import broken
from tests.sim.system.nodes import ApiProcess
from tests.sim.system.trace import Away, Ended, Healed, Refused, Sent, Settled
from tests.sim.system.world import LEASE_S, Kind, World, live_in

QUIET = Kind(brief=0.0)
TRAFFIC_S = 15.0
AWAY_S = 600.0
POST_EVERY_S = 2.0
# A process that asks in vain asks no more often than this, a second.
ASKED_MAX = 10.0
# Behind the outage: the lease that everybody is given time to renew, and what waited.
DRAINED_S = 60.0


class StoreAway(World):
    """The database goes away for ten minutes while there is traffic, and events are posted all the time."""

    def __init__(self) -> None:
        super().__init__(6, QUIET)
        self.slowest_s = 0.0
        self.asked: dict[str, float] = {}

    async def live(self) -> None:
        await self._furnish()
        self._start_worker("default")
        self._start_api()
        producers = [self.loop.spawn(self.loop.world, self._produce()) for _ in range(2)]
        await asyncio.sleep(TRAFFIC_S)
        self.chaos = False
        await asyncio.wait(producers)
        await self._be_away()
        await self._heal()

    async def _be_away(self) -> None:
        server, began = self.server, self.loop.time()
        server.away_until = began + AWAY_S
        server.database.started_at = server.clock() + AWAY_S
        self.trace.add(Away(began, AWAY_S))
        server.calls.clear()
        while self.loop.time() < began + AWAY_S - POST_EVERY_S:
            await self._post(self.rng.choice(self.tenants), Submission("order.paid", b"{}"))
            await asyncio.sleep(POST_EVERY_S)
        self.asked = {name: calls / AWAY_S for name, calls in server.calls.items()}

    async def _post_once(self, api: ApiProcess, tenant_id: UUID, submission: Submission) -> bool:
        began = self.loop.time()
        accepted = await super()._post_once(api, tenant_id, submission)
        self.slowest_s = max(self.slowest_s, self.loop.time() - began)
        return accepted


def test_f6_a_store_that_is_away_for_ten_minutes_costs_no_attempts_no_event_and_no_rest() -> None:
    world = StoreAway()
    trace = live_in(world)
    assert broken(trace) == {}
    [away] = trace.of(Away)
    [healed], [ended] = trace.of(Healed), trace.of(Ended)
    refused = [entry for entry in trace.of(Refused) if entry.at > away.at]
    assert len(refused) > AWAY_S / 10
    assert world.slowest_s < IngestLimits().timeout_s + 2 * SWEEP_EVERY_S
    # Whoever has lost its lease sends nothing, and nobody is charged with what could not be written down.
    lease_over_at = away.at + LEASE_S
    assert not [entry for entry in trace.of(Sent) if lease_over_at < entry.at < away.at + AWAY_S]
    assert not world.server.database.breakers
    assert max(world.asked.values()) < ASKED_MAX, world.asked
    assert ended.at - healed.at < DRAINED_S


class Poisoned(World):
    """One event that no request can be made of, among others to the same endpoint."""

    POISON = "order.paid\r\nx-other: header"

    def __init__(self) -> None:
        super().__init__(6, QUIET)

    async def live(self) -> None:
        tenant_id = self.ids.uuid7()
        await self.operator.create_tenant(tenant_id, {"name": "t"})
        self.tenants.append(tenant_id)
        await self._create(tenant_id, events=("*",), ordered=False, on_dead=None, max_in_flight=64, rate_limit=None)
        self._start_worker("default")
        self._start_api()
        await self._post(tenant_id, Submission(self.POISON, b"{}", key="poison"))
        for number in range(20):
            await self._post(tenant_id, Submission("order.paid", b"{}", key=f"k{number}"))
            await asyncio.sleep(POST_EVERY_S)
        await self._heal()


def test_f44_an_event_that_breaks_the_worker_dies_behind_three_tries_and_stops_nobody() -> None:
    world = Poisoned()
    trace = live_in(world)
    poison, *others = [event_id for _, event_id in world.events]
    attempts = [attempt for part in trace.of(Settled) for attempt in part.attempts]
    tries = [(each.error, each.outcome) for each in attempts if each.event_id == poison]
    assert tries == [(ErrorCode.INTERNAL_ERROR, "retry")] * 2 + [(ErrorCode.INTERNAL_ERROR, "dead")]
    [dead] = [dead for part in trace.of(Settled) for dead in part.dead]
    assert (dead.event_id, dead.reason) == (poison, DeadReason.INTERNAL_ERROR)
    assert len(others) == 20
    assert {each.event_id for each in attempts if each.outcome == "delivered"} >= set(others)
    assert not world.server.database.breakers
