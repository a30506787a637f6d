"""What lends connections to the PostgreSQL store: kept at hand between uses, and only while they are good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hookpost.storage.contract import StoreUnavailable
from hookpost.storage.postgres.connection import Connections
from tests.patience import PATIENCE_S
from tests.storage.driver import Driver, Postgres

pytestmark = pytest.mark.postgres

OF_THIS_TEST = "select from pg_stat_activity where application_name = 'test of connections'"
PID = "select pg_backend_pid()"


@asynccontextmanager
async def opened(driver: Driver, *, size_max: int = 8) -> AsyncIterator[Connections]:
    assert isinstance(driver, Postgres)
    connections = Connections(driver.dsn, application="test of connections", size_max=size_max)
    await connections.open()
    try:
        yield connections
    finally:
        await connections.close()


async def pid(connections: Connections) -> int:
    async with connections.use("ask for the pid") as connection:
        found: int = await connection.fetchval(PID)
        return found


async def test_the_same_connection_is_used_again_and_again(driver: Driver) -> None:
    async with opened(driver) as connections:
        assert len({await pid(connections) for _ in range(5)}) == 1


async def test_a_transaction_left_open_is_ended_before_its_connection_is_used_again(driver: Driver) -> None:
    async with opened(driver, size_max=1) as connections:
        async with connections.use("begin") as connection:
            await connection.execute("begin")
        async with connections.use("look") as connection:
            assert not connection.is_in_transaction()


async def test_a_connection_that_broke_is_replaced(driver: Driver) -> None:
    assert isinstance(driver, Postgres)
    async with opened(driver, size_max=1) as connections:
        broken = await pid(connections)
        await driver.run(f"select pg_terminate_backend({broken}, 10000)")
        try:
            found = await pid(connections)
        except StoreUnavailable:  # it had not heard of it yet
            found = await pid(connections)
        assert found != broken


async def test_after_an_error_and_after_a_cancel_a_connection_can_be_used(driver: Driver) -> None:
    async with opened(driver, size_max=1) as connections:
        with pytest.raises(StoreUnavailable):
            async with connections.use("fail") as connection:
                await connection.execute("select from nowhere")
        begun = asyncio.Event()

        async def hang() -> None:
            async with connections.use("hang") as connection:
                begun.set()
                await connection.execute("select pg_sleep(1000)")

        hanging = asyncio.create_task(hang())
        await begun.wait()
        hanging.cancel()
        await asyncio.wait([hanging])
        assert await pid(connections)


async def test_who_waits_gets_a_connection_as_soon_as_one_is_free(driver: Driver) -> None:
    async with opened(driver, size_max=2) as connections, asyncio.timeout(PATIENCE_S):
        found = await asyncio.gather(*(pid(connections) for _ in range(20)))
        assert 1 <= len(set(found)) <= 2


async def test_whoever_waits_has_a_turn_before_those_who_came_later(driver: Driver) -> None:
    async with opened(driver, size_max=1) as connections, asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as users:
        turns: list[int] = []

        async def use(name: int) -> None:
            async with connections.use("take a turn") as connection:
                turns.append(name)
                await connection.fetchval(PID)

        for name in range(300):
            users.create_task(use(name))
            await asyncio.sleep(0)
    assert turns == list(range(300))


async def test_who_gives_up_waiting_leaves_its_turn_to_the_next(driver: Driver) -> None:
    async with opened(driver, size_max=1) as connections, asyncio.timeout(PATIENCE_S):
        async with connections.use("hold it") as connection:
            gone, stays = asyncio.create_task(pid(connections)), asyncio.create_task(pid(connections))
            await connection.fetchval(PID)
            gone.cancel()
            await asyncio.wait([gone])
        assert await stays
        assert await pid(connections)


async def test_closing_ends_all_of_them(driver: Driver) -> None:
    assert isinstance(driver, Postgres)
    async with opened(driver) as connections:
        await pid(connections)
    async with asyncio.timeout(PATIENCE_S):
        while await driver.run(OF_THIS_TEST):
            await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable):
        await pid(connections)
