"""The builder of rollups leaves the database to deliveries, and catches up all the same. In virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest

from hookpost.maintenance import (
    EVENTS_AT_LEAST,
    EVENTS_AT_ONCE,
    ROLLUPS_BEHIND_S,
    ROLLUPS_EVERY_S,
    ROLLUPS_REST,
    SETTLES_AT_ONCE,
    SPREAD_ATTEMPTS,
    SPREAD_ATTEMPTS_A_ROW,
    STEP_ATTEMPTS_MIN,
    STEP_PARTS_MAX,
    STEP_PARTS_START,
    Rollups,
)
from hookpost.policy.grains import Grain
from hookpost.storage.contract import RolledUp, RollupStore, ToCount

STEP_S = 0.5


@dataclass
class Backlog:
    """So many steps of settles to count and of rows to add up, half a second each as a rule, by a clock of its own. A step
    of settles has so many attempts, of so many rows."""

    settles: int
    buckets: int = 0
    attempts: int = 10_000
    rows: int = 10
    step_s: float = STEP_S
    now: float = 1000.0
    asked: list[tuple[int, int]] = field(default_factory=list)
    handed_back: list[ToCount | None] = field(default_factory=list)

    async def roll_up(self, *, settles_max: int, events_max: int, left: ToCount | None = None) -> RolledUp:
        self.asked.append((settles_max, events_max))
        self.handed_back.append(left)
        self.settles = self._worked(self.settles)
        rest = ToCount(self.now, ((0, self.settles),), ()) if self.settles else None
        return RolledUp(self.attempts, 1, self.rows, rest)

    async def build_rollups(self, *, rows_max: int) -> bool:
        assert rows_max > 0
        some = self.buckets > 0
        self.buckets = self._worked(self.buckets)
        return some

    async def prune_rollups(self, grain: Grain, *, age_s: float, rows_max: int) -> int:
        assert (grain, age_s, rows_max) > (0, 0, 0)
        return 0

    def _worked(self, steps: int) -> int:
        self.now += self.step_s if steps else 0.0
        return max(0, steps - 1)


def builder(store: Backlog) -> Rollups:
    return Rollups(cast(RollupStore, store), minutes_kept_s=3600.0, hours_kept_s=86_400.0, monotonic=lambda: store.now)


async def turn(rollups: Rollups, store: Backlog) -> list[float]:
    """The rests of one turn, each of which is taken."""
    rests: list[float] = []
    while not rests or rests[-1] != ROLLUPS_EVERY_S:
        rests.append(await rollups.once())
        store.now += rests[-1]
    return rests


async def test_between_two_steps_it_rests_in_proportion_to_what_the_first_one_took() -> None:
    store = Backlog(settles=3, buckets=1)
    rests = await turn(builder(store), store)
    assert rests == pytest.approx([STEP_S * ROLLUPS_REST] * 2 + [2 * STEP_S * ROLLUPS_REST, ROLLUPS_EVERY_S])


async def test_once_it_has_not_come_to_the_end_for_long_it_rests_no_more_until_it_has() -> None:
    store = Backlog(settles=100)
    rollups = builder(store)
    rests = await turn(rollups, store)
    rested = rests.index(0.0)
    assert rested == pytest.approx(ROLLUPS_BEHIND_S / (STEP_S * (1 + ROLLUPS_REST)), abs=1)
    assert set(rests[rested:-1]) == {0.0}
    store.settles = 2
    assert (await turn(rollups, store))[0] == pytest.approx(STEP_S * ROLLUPS_REST)


def asked_for(parts: int) -> tuple[int, int]:
    return SETTLES_AT_ONCE // parts, max(EVENTS_AT_LEAST, EVENTS_AT_ONCE // parts)


async def test_steps_that_take_long_become_small_and_short_ones_large_again() -> None:
    store = Backlog(settles=10)
    rollups = builder(store)
    await turn(rollups, store)
    assert store.asked[0] == asked_for(STEP_PARTS_START)
    assert store.asked[-1] == asked_for(STEP_PARTS_MAX)
    for _ in range(STEP_PARTS_MAX):  # with nothing to count a step takes no time
        await turn(rollups, store)
    assert store.asked[-1] == asked_for(1)


async def test_steps_in_which_the_looking_takes_long_do_not_become_small() -> None:
    store = Backlog(settles=10, attempts=STEP_ATTEMPTS_MIN - 1)
    await turn(builder(store), store)
    assert store.asked[-1] == asked_for(STEP_PARTS_START)


async def test_steps_whose_attempts_are_each_another_endpoints_have_as_many_as_pays() -> None:
    """However long they take: small ones would write each row anew for each of its attempts."""
    rows = SPREAD_ATTEMPTS // SPREAD_ATTEMPTS_A_ROW + 1
    much = Backlog(settles=10, attempts=SPREAD_ATTEMPTS, rows=rows)
    await turn(builder(much), much)
    assert much.asked[1] == asked_for(STEP_PARTS_START * 2)
    right = Backlog(settles=10, attempts=SPREAD_ATTEMPTS - 1, rows=rows)
    await turn(builder(right), right)
    assert set(right.asked) == {asked_for(STEP_PARTS_START)}
    little = Backlog(settles=10, attempts=SPREAD_ATTEMPTS // 4 - 1, rows=rows)
    await turn(builder(little), little)
    assert little.asked[-1] == asked_for(1)
    busy = Backlog(settles=10, attempts=SPREAD_ATTEMPTS - 1, rows=rows - 2)
    await turn(builder(busy), busy)
    assert busy.asked[1] == asked_for(STEP_PARTS_START * 2)


async def test_each_step_is_of_what_the_last_one_has_left_and_a_turn_of_all_there_is() -> None:
    store = Backlog(settles=3)
    rollups = builder(store)
    for _ in range(2):
        store.settles = 3
        await turn(rollups, store)
    assert [left and left.settles for left in store.handed_back] == [None, ((0, 2),), ((0, 1),)] * 2
