"""I16, F27: three tenants in virtual time; what two of them do is not noticed by the third.

One has a hundred endpoints that never answer and a backlog for each of them; one floods 100,000 fresh events, faster
than the API of one node accepts them; the third one posts a hundred a second, at random times. Measured is the
third one's time from acceptance to the request, while the flood comes in and drains: beside the two, in a shard of its
own or in theirs, against alone. One worker has all shards.

What costs time is the store (`driver`): a read of the journal takes 2 ms and 5 µs a row, and the next one begins 3 ms
later, or at once when the last one was full. The worker's own CPU costs nothing here; what that does is for the
benchmark to say.
"""

from __future__ import annotations

import os
from random import Random
from uuid import UUID

import pytest

from hookpost.engine.limits import Limits
from hookpost.engine.work import Work
from hookpost.model import Endpoint, ErrorCode, Outcome, Tenant
from tests.engine.driver import OK, START, Driver

# The benchmark has 200,000, and so has `make whole`. A worker knows a number and a time of them, and brings in 64 of each
# lane: to make them took most of the test's time.
WAITING = 200_000 if os.environ.get("WHOLE_TESTS") else 20_000
FLOOD = 100_000
# `ingest_batch` of bench/runs.md: 37,435.
FLOOD_RATE = 40_000.0
RATE = 100.0
ROUND_TRIP_S = 0.05
FIRST_BYTE_S = 10.0
FLOOD_AT = START + 1.0
# The flood has come in by 3.5 s, and fills the memory four times over; the mute ones hold their places all the time.
UNTIL = START + 5.0
# A fifth of what a worker has: bigger floods are the same to it.
BUFFER = 20_000
RATIO_MAX = 1.5


def _healthy(now: float) -> tuple[Outcome, float]:
    return OK, ROUND_TRIP_S


def _mute(now: float) -> tuple[Outcome, float]:
    return Outcome(ErrorCode.FIRST_BYTE_TIMEOUT, None), FIRST_BYTE_S


class World:
    """The tenants' places are 0, 1 and 2: in this order in `homes`."""

    def __init__(self, homes: tuple[int, int, int], *, neighbours: bool, buffer: int = BUFFER) -> None:
        self.latencies: list[float] = []
        self.flood_sent = 0
        mute, flooding, measured = tenants = [Tenant(UUID(int=1 + i << 64), (homes[i],)) for i in range(3)]
        self._measured, self._flooding = measured.tenant_id, flooding.tenant_id
        silent, flooded, endpoints = _endpoints(mute, 100), _endpoints(flooding, 10), _endpoints(measured, 4)
        receivers = {e.endpoint_id: _mute for e in silent} | {e.endpoint_id: _healthy for e in (*flooded, *endpoints)}
        everyone = [*silent, *flooded, *endpoints]
        self.driver = Driver(
            tenants, everyone, receivers, shards=1 + max(homes), sent=self._sent, limits=Limits(buffer=buffer)
        )
        if neighbours:
            for endpoint in silent:
                self.driver.fill_backlog(endpoint, WAITING // len(silent))
            for number, endpoint in enumerate(flooded):
                rate, count = FLOOD_RATE / len(flooded), FLOOD // len(flooded)
                self.driver.produce(endpoint, rate=rate, first_at=FLOOD_AT + number / FLOOD_RATE, count=count)
        self.driver.open_shards()
        at, rng = START, Random(1)
        while (at := at + rng.expovariate(RATE)) < UNTIL:
            self.driver.produce(rng.choice(endpoints), rate=1.0, first_at=at, count=1)
        self.driver.run(UNTIL)

    def _sent(self, work: Work, now: float) -> None:
        self.flood_sent += work.entry.tenant_id == self._flooding
        if work.entry.tenant_id == self._measured and work.entry.created_at >= FLOOD_AT:
            self.latencies.append(now - work.entry.created_at)

    def percentile(self, part: float) -> float:
        """Of the latencies while the flood comes in and drains."""
        return sorted(self.latencies)[int(len(self.latencies) * part)]


def _endpoints(tenant: Tenant, count: int) -> list[Endpoint]:
    first = tenant.tenant_id.int + 1
    host = f"t{first >> 64}.example"
    return [Endpoint(UUID(int=first + i), tenant.tenant_id, f"https://h{i}.{host}/") for i in range(count)]


@pytest.fixture(scope="module")
def alone() -> World:
    return World((0, 0, 0), neighbours=False)


@pytest.mark.parametrize("homes", [pytest.param((0, 1, 2), id="a shard each"), pytest.param((0, 0, 0), id="one shard")])
def test_neighbours_that_flood_and_never_answer_leave_the_99th_percentile(
    homes: tuple[int, int, int], alone: World
) -> None:
    beside = World(homes, neighbours=True)
    assert len(beside.latencies) >= 0.99 * len(alone.latencies)
    assert beside.percentile(0.99) <= RATIO_MAX * alone.percentile(0.99)
    # That it is not for the flood's having been put off: it drains as fast as its places let it.
    assert beside.flood_sent > 10_000
    assert beside.driver.engine.buffered <= BUFFER
