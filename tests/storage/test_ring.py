"""The doorbell: who appends says for which shards there is something to read."""

from __future__ import annotations

import pytest

from hookpost.storage.contract import Store
from tests.patience import PATIENCE_S
from tests.storage.driver import Driver, Postgres


async def listening(driver: Driver) -> Store:
    store = await driver.open()
    assert await store.wait_for_ring(0.001) is None
    return store


async def test_rings_tell_their_shards_and_are_heard_once(driver: Driver) -> None:
    listener, other = await listening(driver), await driver.open()
    await other.ring([3, 17])
    assert await listener.wait_for_ring(PATIENCE_S) == {3, 17}
    assert await listener.wait_for_ring(0.0) is None
    assert await listener.wait_for_ring(0.001) is None


@pytest.mark.parametrize("shards", [[], range(501)])
async def test_a_ring_for_none_or_for_very_many_is_for_all(driver: Driver, shards: range | list[int]) -> None:
    listener = await listening(driver)
    await listener.ring([1])
    await listener.ring(shards)
    heard = set(await listener.wait_for_ring(PATIENCE_S) or ())
    while heard:
        assert heard == {1}, "the second one may come a moment later"
        heard = set(await listener.wait_for_ring(PATIENCE_S) or ())
    assert await listener.wait_for_ring(0.0) is None


async def test_a_ring_may_name_five_hundred_shards(driver: Driver) -> None:
    listener = await listening(driver)
    shards = set(range(2**31 - 500, 2**31))
    await listener.ring(shards)
    assert await listener.wait_for_ring(PATIENCE_S) == shards


@pytest.mark.postgres
async def test_a_ring_that_cannot_be_read_is_for_all(driver: Driver) -> None:
    listener = await listening(driver)
    assert isinstance(driver, Postgres)
    await driver.run("select pg_notify('hookpost', 'soon')")
    rung = await listener.wait_for_ring(PATIENCE_S)
    assert rung is not None
    assert not rung
