"""Partitions that leave: events and attempts whose time is over.

Relies on deadlines: whatever is owed ends two days before its event's partition may leave (app/config). Promises all
the same that nothing leaves that is still to be delivered, as it looks before a partition is detached and again after
it, when nobody can refer to it any more; that nothing leaves that the rollups have not counted; and that, whoever dies
in between, the next one goes on from what the catalogue says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from hookpost.storage.contract import Retired
from hookpost.storage.postgres.connection import Connections, translated
from hookpost.storage.postgres.maintenance import DDL_LOCK_TIMEOUT
from hookpost.storage.postgres.queries import load

SQL = load("retention")
# Dead letters deleted, objects removed and replays forgotten at once: short transactions, and the rest right after.
FORGOTTEN_AT_ONCE = 1_000

Forget = Callable[[Sequence[str]], Awaitable[None]]


class RetentionQueries:
    """Implements what MaintenanceStore says about partitions that leave."""

    _connections: Connections

    async def retire_events(self, *, keep_days: int, forget: Forget) -> Retired:
        dropped: list[str] = []
        held: list[str] = []
        async with self._alone("events", keep_days) as (connection, leaving):
            for partition in leaving:
                gone = await _retire(connection, partition, forget)
                (dropped if gone else held).append(partition["name"])
        return Retired(tuple(dropped), tuple(held))

    async def retire_attempts(self, *, keep_days: int) -> Retired:
        dropped: list[str] = []
        held: list[str] = []
        async with self._alone("attempts", keep_days) as (connection, leaving):
            for partition in leaving:
                name = partition["name"]
                if _is_whole(partition) and not await connection.fetchval(SQL["counted"], partition["day"]):
                    held.append(name)
                    continue
                await _detach(connection, "attempts", partition)
                await connection.execute(f"drop table {name}")
                dropped.append(name)
        return Retired(tuple(dropped), tuple(held))

    async def forget_replays(self, *, keep_days: int) -> int:
        async with self._connections.use("forget ended replays") as connection:
            answer: str = await connection.execute(SQL["forget_replays"], keep_days, FORGOTTEN_AT_ONCE)
            return int(answer.split()[-1])

    @asynccontextmanager
    async def _alone(self, table: str, keep_days: int) -> AsyncIterator[tuple[Any, list[Any]]]:
        """A session of its own, as its lock and its settings must end with it, however it ends; and what leaves the
        table, which is nothing while somebody else is at it."""
        connection = await self._connections.connect_alone("retention", lock_timeout=DDL_LOCK_TIMEOUT)
        try:
            with translated(f"retire {table}"):
                if not await connection.fetchval(SQL["retire_turn"], table):
                    yield connection, []
                    return
                yield connection, await connection.fetch(SQL["leaving"], table, keep_days)
                await connection.execute(SQL["end_turn"], table)
        finally:
            connection.terminate()


async def _retire(connection: Any, partition: Any, forget: Forget) -> bool:
    """Let one partition of events go; False when it is still needed, and then it stays, or comes back."""
    name, day = partition["name"], partition["day"]
    await connection.execute(SQL["begin_leaving"])
    hidden = await _hide(connection, partition)
    await connection.execute(SQL["end_leaving"])
    if not hidden:
        return False
    while await connection.fetchval(SQL["forget_dead_letters"], name, day, FORGOTTEN_AT_ONCE) == FORGOTTEN_AT_ONCE:
        pass
    after = ""
    while objects := await connection.fetchval(SQL["partition_objects"], name, after, FORGOTTEN_AT_ONCE):
        await forget(objects)
        after = objects[-1]
    await connection.execute(SQL["abandon_cold"], day)
    await connection.execute(f"drop table {name}")
    return True


async def _hide(connection: Any, partition: Any) -> bool:
    """Out of everybody's sight, unless it is needed. Replays wait meanwhile, but for those of a process of the release
    before: hence the second look."""
    name, day = partition["name"], partition["day"]
    if _is_whole(partition):
        if not await connection.fetchval(SQL["counted"], day) or await connection.fetchval(SQL["needed"], name, day):
            return False
        await connection.execute(SQL["raise_floors"], name)
    await _detach(connection, "events", partition)
    if await connection.fetchval(SQL["needed"], name, day):
        await _attach(connection, name, day)
        return False
    return True


def _is_whole(partition: Any) -> bool:
    """Is it in its table as it always was? What is on its way out was looked at before."""
    return bool(partition["attached"]) and not partition["pending"]


async def _detach(connection: Any, table: str, partition: Any) -> None:
    """Out of its table without a lock that anybody waits for; one that was left detached by half is finished."""
    if partition["pending"]:
        await connection.execute(f"alter table {table} detach partition {partition['name']} finalize")
    elif partition["attached"]:
        await connection.execute(f"alter table {table} detach partition {partition['name']} concurrently")


async def _attach(connection: Any, name: str, day: Any) -> None:
    """Back in its place, which nobody else can have taken. The constraint that detaching has left spares the scan."""
    end = day + timedelta(days=1)
    await connection.execute(f"alter table events attach partition {name} for values from ('{day}') to ('{end}')")
