"""Large requests go one by one, and small ones between them."""

from __future__ import annotations

import asyncio

from hookpost.web.turnstile import Turnstile


async def turn_of_the_loop() -> None:
    """The next one has begun."""
    await asyncio.sleep(0)


async def test_each_turn_of_the_loop_lets_one_through_in_the_order_in_which_they_came() -> None:
    turnstile, gone = Turnstile(), []

    async def large(number: int) -> None:
        await turnstile.wait()
        gone.append(number)

    tasks = [asyncio.create_task(large(number)) for number in range(5)]
    seen = []
    while not all(task.done() for task in tasks):
        await turn_of_the_loop()
        seen.append(list(gone))
    assert gone == [0, 1, 2, 3, 4]
    steps = [len(after) - len(before) for before, after in zip([[], *seen], seen, strict=False)]
    assert max(steps) == 1


async def test_who_need_not_wait_goes_at_once_and_nobody_passes_those_that_wait() -> None:
    turnstile = Turnstile()
    assert turnstile.enter()
    assert not turnstile.enter()
    waiting = asyncio.create_task(turnstile.wait())
    await turn_of_the_loop()
    assert not turnstile.enter()
    await waiting
    assert not turnstile.enter(), "it has had this turn"
    await turn_of_the_loop()
    await turn_of_the_loop()
    assert turnstile.enter()


async def test_who_gives_up_is_passed_over() -> None:
    turnstile = Turnstile()
    goes, gives_up, last = (asyncio.create_task(turnstile.wait()) for _ in range(3))
    await turn_of_the_loop()
    gives_up.cancel()
    await last
    assert goes.done()
    assert gives_up.cancelled()
