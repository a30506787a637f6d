"""An answer is shared for a few seconds, and no longer; failures and other people's answers are not shared."""

from __future__ import annotations

import asyncio

import pytest

from hookpost.web.dashboard.recent import GOOD_S, KEPT_MAX, Recent


class Source:
    """Counts how often it was asked, and moves the clock when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked = 0
        self.recent = Recent(lambda: self.now)

    async def ask(self) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        return self.asked

    async def get(self, key: object = "all") -> int:
        found: int = await self.recent.get(key, self.ask)
        return found


async def test_those_who_ask_at_once_ask_the_source_once() -> None:
    source = Source()
    assert await asyncio.gather(*(source.get() for _ in range(5))) == [1] * 5


async def test_an_answer_is_asked_for_anew_when_it_is_old() -> None:
    source = Source()
    assert await source.get() == 1
    source.now += GOOD_S - 0.1
    assert await source.get() == 1
    source.now += 0.1
    assert await source.get() == 2


async def test_a_failure_is_not_kept_and_the_next_one_asks_again() -> None:
    source = Source()

    async def fails() -> int:
        raise OSError

    with pytest.raises(OSError):
        await source.recent.get("all", fails)
    assert await source.get() == 1


async def test_keys_are_apart_and_no_more_are_kept_than_a_bound() -> None:
    source = Source()
    assert [await source.get(key) for key in range(KEPT_MAX + 1)] == list(range(1, KEPT_MAX + 2))
    assert await source.get(KEPT_MAX) == KEPT_MAX + 1
    assert await source.get(0) == KEPT_MAX + 2, "the one that came first had to go"
