"""F8: a database that is slow in all it does, or that stands still at one table after the other.

The real ingest and worker, a real PostgreSQL and a real receiver. What was acknowledged arrives, once, and is recorded;
nobody loses a lease for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.app.clock import DatabaseClock
from hookpost.ingest import Ingest, IngestLimits, Overloaded
from hookpost.intake import Submission
from hookpost.model import Timeouts
from hookpost.storage.contract import Appended, StoreUnavailable
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres import connection, worker
from hookpost.storage.postgres.store import PostgresStore
from hookpost.storage.postgres.vault import Vault
from hookpost.transport import Transport
from hookpost.worker import Worker, WorkerSettings
from tests.conftest import KEYS
from tests.patience import PATIENCE_S
from tests.storage.driver import persist, until
from tests.transport.conftest import LOOPBACK
from tests.transport.receivers import Receiver, answering, listening

Handler = Callable[[Receiver, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
# Shorter than in production, as everything is: what a statement may take, and how long a table is held.
TIMEOUT_S = 0.2
LOOK_S, HELD = 0.05, 8
# The tables that a delivery waits for if they are held.
HOT = {"events", "attempts", "progress", "shards", "nodes"}
SLOW_S = 1.0
# Each renewal is a moment's work, and on a crowded machine a moment may be long.
LEASE_S, RENEW_S = 60.0, 0.3


@contextlib.asynccontextmanager
async def slowed(dsn: str, delay_s: list[float]) -> AsyncIterator[str]:
    """The DSN of a relay in front of the server: each of its answers comes ``delay_s[0]`` later."""
    parts = urlsplit(dsn)
    host = parse_qs(parts.query)["host"][0]
    socket = Path(host) / f".s.PGSQL.{parse_qs(parts.query).get('port', [parts.port or 5432])[0]}"
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slow: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if slow and delay_s[0]:
                    await asyncio.sleep(delay_s[0])
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(str(socket))
        for each in (pump(reader, back, False), pump(there, writer, True)):
            tasks.add(asyncio.create_task(each))

    relay = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = relay.sockets[0].getsockname()[1]
    try:
        yield f"{parts.scheme}://{parts.username or 'postgres'}@127.0.0.1:{port}{parts.path}?sslmode=disable"
    finally:
        relay.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class System:
    """One API process and one worker process, but for the processes."""

    ingest: Ingest
    receiver: Receiver
    tenant_id: UUID
    accepted: set[UUID] = field(default_factory=set)
    refused: int = 0

    async def post(self, count: int) -> None:
        """So many at once; a refusal is an answer."""
        events = (self.ingest.submit(self.tenant_id, [Submission("a.b", b"{}")]) for _ in range(count))
        for answer in await asyncio.gather(*events, return_exceptions=True):
            if isinstance(answer, StoreUnavailable | Overloaded):
                self.refused += 1
                continue
            assert not isinstance(answer, BaseException), answer
            [one] = answer
            assert isinstance(one, Appended)
            self.accepted.add(one.event_id)

    def arrivals(self) -> Counter[UUID]:
        """How often each event came."""
        lines = (line for request in self.receiver.requests for line in request.split(b"\r\n"))
        return Counter(UUID(line[16:].decode()) for line in lines if line.startswith(b"webhook-id: evt_"))

    async def post_until_accepted(self, count: int) -> None:
        """As producers do: again, until so many more are acknowledged."""
        goal = len(self.accepted) + count
        async with asyncio.timeout(PATIENCE_S):
            while len(self.accepted) < goal:
                await self.post(count)

    async def until_delivered(self) -> None:
        """All that was acknowledged has come."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.accepted <= self.arrivals().keys():
                self.receiver.arrived.clear()
                await self.receiver.arrived.wait()


@contextlib.asynccontextmanager
async def running(
    dsn: str, setting_up: PostgresStore, handler: Handler | None = None, **options: Any
) -> AsyncIterator[System]:
    """Composed as app/compose.py does; its tenant is made in another process, which is patient. ``options``: of the
    endpoint."""
    clock, stop, payloads = DatabaseClock(), asyncio.Event(), ObjectStore("memory:///")
    # Slow is the database here, and nobody else: a receiver whose machine stands still for a while is waited for.
    store = PostgresStore(dsn, application="slow", vault=Vault(KEYS), timeouts=Timeouts(28.0, 29.0, 30.0))
    await persist(store.open)
    transport = Transport(egress=LOOPBACK, now=clock.now)
    async with listening(handler or answering(OK)) as receiver, contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        stack.push_async_callback(transport.close)
        tenant_id = uuid7()
        await setting_up.create_tenant(tenant_id, {"name": "acme", "home_shards": [0, 1], "spread": 2})
        values = {"endpoint_id": uuid7(), "tenant_id": tenant_id, "url": receiver.url(), "events": ["*"], **options}
        await setting_up.create_endpoint(values, b"k" * 24, endpoints_max=9)
        ingest = Ingest(store, payloads, now=clock.now, limits=IngestLimits())
        stack.push_async_callback(ingest.close)
        working = Worker(
            store=store, payloads=payloads, sender=transport, clock=clock, node_id=uuid7(), name="w",
            settings=WorkerSettings(lease_s=LEASE_S, renew_s=RENEW_S, stop_s=10.0), rng=Random(1),
        )  # fmt: skip
        task = asyncio.create_task(working.run(stop))
        system = System(ingest, receiver, tenant_id)
        await system.post_until_accepted(20)
        await system.until_delivered()
        try:
            yield system
        finally:
            stop.set()
            await asyncio.wait_for(task, PATIENCE_S)


async def recorded(sql: Any) -> Counter[UUID]:
    """The attempts of each event, all of which succeeded and none of which may be a repetition."""
    rows = await sql.fetch("select event_id, outcome, possible_duplicate from attempts")
    assert {(row["outcome"], row["possible_duplicate"]) for row in rows} == {("delivered", False)}
    return Counter(row["event_id"] for row in rows)


async def fences(sql: Any) -> set[int]:
    return {row["fence"] for row in await sql.fetch("select fence from shards")}


async def test_f8_a_database_that_answers_each_call_a_second_late_costs_no_lease_and_repeats_nothing(
    database: str, store: PostgresStore, sql: Any
) -> None:
    delay_s = [0.0]
    async with slowed(database, delay_s) as dsn, running(dsn, store) as system:
        before = await fences(sql)
        delay_s[0] = SLOW_S
        lease = await sql.fetchval("select expires_at from nodes")
        # Some are refused, as an answer takes longer than a producer is to wait; what is stored is sent.
        await system.post(20)
        delay_s[0] = SLOW_S / 4
        await system.post(20)
        await until(
            lambda: sql.fetchval("select 1 from nodes where expires_at > $1::timestamptz + interval '2 s'", lease)
        )
        assert system.refused
        delay_s[0] = 0.0
        await system.post_until_accepted(20)
        await system.until_delivered()
        # What was refused may have been stored, and is then delivered like the rest: twice none of them.
        owed = {row["event_id"] for row in await sql.fetch("select event_id from events")}
        await until(lambda: settled(sql, len(owed)))
        assert await recorded(sql) == system.arrivals() == Counter(owed)
        assert await fences(sql) == before


async def settled(sql: Any, count: int) -> bool:
    """Are so many attempts recorded?"""
    return bool(await sql.fetchval("select count(*) >= $1 from attempts", count))


async def test_f8_a_table_that_is_locked_for_longer_than_a_statement_may_take_loses_nothing_whichever_it_is(
    database: str, store: PostgresStore, sql: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STATEMENT_TIMEOUT_S", TIMEOUT_S)
    monkeypatch.setattr(worker, "SETTLE_TIMEOUT_S", TIMEOUT_S)
    tables = [
        row["relname"]
        for row in await sql.fetch(
            "select relname from pg_class where relkind in ('r', 'p') and not relispartition"
            " and relnamespace = 'public'::regnamespace and relname <> 'alembic_version' order by relname"
        )
    ]
    clock = asyncio.get_running_loop().time
    async with running(database, store) as system:
        before = await fences(sql)
        touched = set[str]()
        for table in tables:
            async with sql.transaction():
                await sql.execute(f"lock table {table} in access exclusive mode")
                posting = asyncio.create_task(system.post(5))
                looks, deadline = 0, clock() + LEASE_S / 4
                # Longer where a busy machine has not come as far as that yet; one that accepts nothing is asked again.
                while looks < HELD or (table in HOT - touched and clock() < deadline):
                    await sql.execute(f"select pg_sleep({LOOK_S})")
                    looks += 1
                    if await sql.fetchval("select count(*) from pg_locks where not granted"):
                        touched.add(table)
                    if table in HOT - touched and posting.done():
                        await posting
                        posting = asyncio.create_task(system.post(5))
            await posting
        assert touched >= HOT
        # What is late now is so because of the machine.
        monkeypatch.setattr(worker, "SETTLE_TIMEOUT_S", PATIENCE_S)
        await system.post_until_accepted(5)
        await system.until_delivered()
        owed = {row["event_id"] for row in await sql.fetch("select event_id from events")}
        await until(lambda: settled(sql, len(owed)))
        assert await recorded(sql) == system.arrivals() == Counter(owed)
        assert await fences(sql) == before
