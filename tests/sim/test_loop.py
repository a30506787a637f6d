"""The loop of the simulator: virtual time, nodes that pause and die, and an order that comes from the seed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest

from tests.sim.system.loop import Loop, Stalled


def run(loop: Loop, main: Coroutine[Any, Any, Any]) -> None:
    try:
        loop.run_until_complete(loop.spawn(loop.world, main))
    finally:
        loop.discard()


def test_time_jumps_to_the_next_timer() -> None:
    loop = Loop(Random(1))
    run(loop, asyncio.sleep(3600.0))
    assert 3600.0 <= loop.time() < 3600.1


def test_of_a_killed_node_nothing_runs_any_more_not_even_finally() -> None:
    loop, said = Loop(Random(1)), []

    async def victim() -> None:
        try:
            await asyncio.sleep(1.0)
        finally:
            said.append("finally")

    async def main() -> None:
        node = loop.add("victim")
        loop.spawn(node, victim())
        await asyncio.sleep(0.5)
        loop.kill(node)
        await asyncio.sleep(1.0)
        assert said == []

    run(loop, main())


def test_a_paused_node_goes_on_where_it_stood_and_sees_how_late_it_is() -> None:
    loop, seen = Loop(Random(1)), []

    async def sleeper() -> None:
        await asyncio.sleep(1.0)
        seen.append(loop.time())

    async def main() -> None:
        node = loop.add("sleeper")
        loop.spawn(node, sleeper())
        await asyncio.sleep(0.5)
        loop.pause(node, 10.0)
        await asyncio.sleep(20.0)

    run(loop, main())
    assert 10.5 <= seen[0] < 10.6


def story(seed: int) -> list[str]:
    loop, said = Loop(Random(seed)), []

    async def talk(name: str) -> None:
        for number in range(5):
            said.append(f"{name}{number}")
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.wait([loop.spawn(loop.add(name), talk(name)) for name in "abc"])

    run(loop, main())
    return said


def test_nodes_take_turns_as_the_seed_says_and_each_keeps_its_own_order() -> None:
    assert story(1) == story(1)
    assert len({tuple(story(seed)) for seed in range(5)}) > 1
    for name in "abc":
        assert [each for each in story(1) if each[0] == name] == [f"{name}{number}" for number in range(5)]


def test_waiting_for_nothing_is_told() -> None:
    loop = Loop(Random(1))
    with pytest.raises(Stalled):
        run(loop, asyncio.Event().wait())


def test_a_callback_that_fails_is_kept() -> None:
    loop = Loop(Random(1))
    loop.call_later(1.0, lambda: 1 / 0)
    run(loop, asyncio.sleep(2.0))
    assert isinstance(loop.failures[0], ZeroDivisionError)
