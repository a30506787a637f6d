"""The loop of bulk replays: it goes on while something is due, rings workers, and outlives the store."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from uuid import UUID

import pytest

from hookpost import maintenance
from hookpost.maintenance import Replays
from hookpost.storage.contract import ReplayLimits, ReplayState, ReplayStep, StoreUnavailable
from tests.patience import PATIENCE_S

JOB = UUID(int=7)


@dataclass
class Jobs:
    """A store whose steps are given; None stands for a store that is away."""

    steps: list[ReplayStep | None] = field(default_factory=list)
    due_in_s: float | None = None
    rung: list[tuple[int, ...]] = field(default_factory=list)
    deaf: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def replay_step(self, limits: ReplayLimits) -> ReplayStep | None:
        if not self.steps:
            self.ended.set()
            return None
        step = self.steps.pop(0)
        if step is None:
            raise StoreUnavailable("away")
        return step

    async def next_replay_in(self) -> float | None:
        return self.due_in_s

    async def ring(self, shards: Collection[int] = ()) -> None:
        if self.deaf:
            raise StoreUnavailable("away")
        self.rung.append(tuple(shards))

    async def make_partitions(self, *, days_ahead: int) -> int:
        raise AssertionError("not asked for")

    async def expire_idempotency_keys(self, *, limit: int) -> int:
        raise AssertionError("not asked for")

    async def prune_progress(self) -> int:
        raise AssertionError("not asked for")


RUNNING = ReplayStep(JOB, ReplayState.RUNNING, 5, (1, 3))


@pytest.mark.parametrize(
    ("due_in_s", "wait_s"),
    [(None, 1.0), (0.25, 0.25), (-3.0, maintenance.REPLAYS_TAKEN_S), (900.0, maintenance.REPLAYS_EVERY_S)],
)
async def test_without_a_step_it_waits_for_the_next_job_but_not_long(due_in_s: float | None, wait_s: float) -> None:
    assert await Replays(Jobs(due_in_s=due_in_s)).once() == wait_s


async def test_a_step_is_followed_by_another_at_once_and_wakes_the_workers_of_its_shards() -> None:
    jobs = Jobs([RUNNING, ReplayStep(JOB, ReplayState.RUNNING, held=True)])
    replays = Replays(jobs)
    assert [await replays.once(), await replays.once()] == [0.0, 0.0]
    assert jobs.rung == [(1, 3)]


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (RUNNING, []),
        (ReplayStep(JOB, ReplayState.DONE, 5, (1,)), ["replay_ended"]),
        (ReplayStep(JOB, ReplayState.CANCELLED), ["replay_ended"]),
        (ReplayStep(JOB, ReplayState.FAILED, failure="because"), ["replay_failed"]),
        (None, ["maintenance_failed"]),
    ],
)
async def test_the_end_of_a_job_and_a_store_that_is_away_are_told(
    caplog: pytest.LogCaptureFixture, step: ReplayStep | None, line: list[str]
) -> None:
    caplog.set_level("INFO", logger="hookpost")
    wait_s = await Replays(Jobs([step])).once()
    assert [record.hookpost_event for record in caplog.records] == line
    assert wait_s == (maintenance.REPLAYS_AGAIN_S if step is None else 0.0)


async def test_workers_that_cannot_be_rung_look_by_themselves() -> None:
    assert await Replays(Jobs([RUNNING], deaf=True)).once() == 0.0


async def test_it_runs_until_it_is_stopped() -> None:
    jobs, stop = Jobs([RUNNING] * 3), asyncio.Event()
    running = asyncio.create_task(Replays(jobs).run(stop))
    async with asyncio.timeout(PATIENCE_S):
        await jobs.ended.wait()
        stop.set()
        await running
    assert len(jobs.rung) == 3
