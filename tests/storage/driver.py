"""What a test does behind a store's back, for each driver, and makers of what goes into a store.

Nothing here decides; a second driver joins by an entry in ``DRIVERS``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from hookpost.engine.work import ATTEMPT_COLUMNS, Attempt, BacklogChange, DeadLetter, Progress, ShardSettle, Takeover
from hookpost.model import DeadReason, WaitReason
from hookpost.storage.contract import NewEvent, Store, StoreUnavailable
from hookpost.storage.memory.store import MemoryStore
from hookpost.storage.memory.tables import Database
from hookpost.storage.postgres import shards
from hookpost.storage.postgres.store import PostgresStore
from hookpost.storage.postgres.vault import Vault
from tests.conftest import KEYS
from tests.patience import PATIENCE_S

SHARDS = 4
# Between two questions to a store that is away.
AGAIN_S = 0.1
# Between two looks at something that comes in a moment.
LOOK_S = 0.005


class Driver(Protocol):
    """A store and what happens behind its back."""

    async def open(self, **options: Any) -> Store:
        """One more store on the same data, closed with the driver."""

    async def close(self) -> None:
        """End."""

    async def journal(self, shard: int) -> list[dict[str, Any]]:
        """All rows of a shard's journal in their order."""

    async def keys(self) -> dict[tuple[UUID, str], UUID]:
        """The stored idempotency keys and their events."""

    async def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table."""

    async def set_clock(self, moment: str | None) -> None:
        """Make the store's clock stand at a time; None lets it run."""

    async def expire_key(self, tenant_id: UUID, key: str) -> None:
        """Let the time of an idempotency key be over."""

    async def expire_lease(self, node_id: UUID) -> None:
        """Let a worker's lease be over."""

    async def age(self, seconds: float) -> None:
        """Let the store have been up for so long."""

    async def turn_replays(self, *, ago_s: float) -> None:
        """Let it have been every bulk replay's turn so long ago."""

    async def drain(self, shard: int) -> tuple[int, int]:
        """Take a shard out of use; how many tenants moved, how many stay."""

    async def undrain(self, shard: int) -> None:
        """Into use again."""

    async def hold_shard(self, shard: int) -> Callable[[], Awaitable[None]]:
        """Keep appends to a shard waiting until the answer is called."""

    async def waiting(self, count: int = 1) -> None:
        """Return when so many calls of stores wait for a lock."""


class Postgres:
    """PostgreSQL, with a plain connection for what is done behind the store's back."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._stores: list[PostgresStore] = []
        self._others: list[Any] = []

    async def open(self, **options: Any) -> PostgresStore:
        store = PostgresStore(
            self.dsn, **{"application": "test", "append_timeout_s": PATIENCE_S, "vault": Vault(KEYS), **options}
        )
        await store.open()
        self._stores.append(store)
        return store

    async def close(self) -> None:
        for connection in self._others:
            connection.terminate()
        for store in self._stores:
            await store.close()

    async def connect(self) -> Any:
        connection = await asyncpg.connect(self.dsn, server_settings={"timezone": "UTC"})
        self._others.append(connection)
        return connection

    async def run(self, sql: str, *arguments: Any) -> list[dict[str, Any]]:
        if not self._others:
            await self.connect()
        return [dict(row) for row in await self._others[0].fetch(sql, *arguments)]

    async def journal(self, shard: int) -> list[dict[str, Any]]:
        return await self.run("select * from events where shard = $1 order by seq", shard)

    async def keys(self) -> dict[tuple[UUID, str], UUID]:
        rows = await self.run("select tenant_id, key, event_id from idempotency_keys")
        return {(row["tenant_id"], row["key"]): row["event_id"] for row in rows}

    async def rows(self, table: str) -> list[dict[str, Any]]:
        return await self.run(f"select * from {table}")

    async def set_clock(self, moment: str | None) -> None:
        now = "clock_timestamp()" if moment is None else f"timestamptz '{moment}'"
        await self.run(
            f"create or replace function hookpost_now() returns timestamptz language sql volatile as $$ select {now} $$"
        )

    async def expire_key(self, tenant_id: UUID, key: str) -> None:
        await self.run(
            "update idempotency_keys set expires_at = now() - interval '1 s' where tenant_id = $1 and key = $2",
            tenant_id, key,
        )  # fmt: skip

    async def expire_lease(self, node_id: UUID) -> None:
        await self.run("update nodes set expires_at = now() - interval '1 s' where node_id = $1", node_id)

    async def age(self, seconds: float) -> None:
        """Wait for it: the start of a postmaster cannot be moved. Ask for less than it is old."""
        await until(
            lambda: self.run("select 1 where pg_postmaster_start_time() + make_interval(secs => $1) < now()", seconds)
        )

    async def turn_replays(self, *, ago_s: float) -> None:
        await self.run("update replays set next_at = now() - make_interval(secs => $1)", ago_s)

    async def drain(self, shard: int) -> tuple[int, int]:
        done = await shards.drain(self.dsn, Vault(KEYS), shard)
        return done.moved, done.staying

    async def undrain(self, shard: int) -> None:
        await shards.undrain(self.dsn, Vault(KEYS), shard)

    async def hold_shard(self, shard: int) -> Callable[[], Awaitable[None]]:
        connection = await self.connect()
        await connection.execute("select pg_advisory_lock(7700, $1)", shard)

        async def let_go() -> None:
            await connection.execute("select pg_advisory_unlock(7700, $1)", shard)

        return let_go

    async def waiting(self, count: int = 1) -> None:
        await until(lambda: self._waiting(count))

    async def _waiting(self, count: int) -> bool:
        return len(await self.blocked()) >= count

    async def blocked(self) -> list[dict[str, Any]]:
        """The stores' connections that wait for a lock."""
        return await self.run(
            "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
            " and application_name <> ''"
        )


class Memory:
    """The store in memory. It has no locks and no connections: what is about those is marked ``postgres``."""

    def __init__(self) -> None:
        self._moment: float | None = None
        self.database = Database(shards=SHARDS, clock=lambda: time.time() if self._moment is None else self._moment)
        self._stores: list[MemoryStore] = []

    async def open(self, **options: Any) -> MemoryStore:
        options = {name: value for name, value in options.items() if name in _MEMORY_OPTIONS}
        store = MemoryStore(self.database, **options)
        if not self._stores:
            await store.create_tenant(uuid7(), {"name": "default", "home_shards": range(SHARDS), "spread": SHARDS})
        self._stores.append(store)
        return store

    async def close(self) -> None:
        for store in self._stores:
            store.close()

    async def journal(self, shard: int) -> list[dict[str, Any]]:
        return [_shown(asdict(event)) for event in self.database.shards[shard].journal]

    async def keys(self) -> dict[tuple[UUID, str], UUID]:
        return {name: key.event_id for name, key in self.database.keys.items()}

    async def rows(self, table: str) -> list[dict[str, Any]]:
        return [_shown(row) for row in self._rows(table)]

    def _rows(self, table: str) -> Iterator[dict[str, Any]]:
        db = self.database
        match table:
            case "attempts":
                for day, attempts in db.attempts.items():
                    yield from ({**dict(zip(ATTEMPT_COLUMNS, each, strict=True)), "day": day} for each in attempts)
            case "backlog":
                for (shard, _), lane in db.backlog.items():
                    yield from ({**asdict(change), "shard": shard} for change in lane.values())
            case "dead_letters":
                yield from ({**asdict(each.letter), "shard": each.shard} for each in db.dead.values())
            case "progress":
                yield from (asdict(row) for shard in db.shards.values() for row in shard.progress)
            case "shards":
                for each in db.shards.values():
                    yield {name: getattr(each, name) for name in ("shard", "pool", "owner", "fence", "quiet_until")}
            case "metering":
                for (day, tenant_id), metered in db.metering.items():
                    yield {"day": day, "tenant_id": tenant_id, **asdict(metered)}
            case "endpoints":
                yield from db.endpoints.values()
            case "outbox":
                yield from map(asdict, db.outbox)
            case "alerts":
                yield from ({"alert_id": alert_id, "channel": channel} for alert_id, channel in db.alerts)
            case "nodes" | "ingest_nodes":
                yield from ({"node_id": node_id} for node_id in getattr(db, table))
            case "barriers":
                for (endpoint_id, shard), seq in db.barriers.items():
                    yield {"endpoint_id": endpoint_id, "shard": shard, "seq": seq}
            case "departures":
                for (tenant_id, shard), seq in db.departures.items():
                    yield {"tenant_id": tenant_id, "shard": shard, "seq": seq}
            case _:
                raise AssertionError(f"there is no table {table}")

    async def set_clock(self, moment: str | None) -> None:
        self._moment = None if moment is None else datetime.fromisoformat(moment).timestamp()

    async def expire_key(self, tenant_id: UUID, key: str) -> None:
        known = self.database.keys[tenant_id, key]
        self.database.keys[tenant_id, key] = replace(known, expires_at=self.database.now() - 1)

    async def expire_lease(self, node_id: UUID) -> None:
        self.database.nodes[node_id].expires_at = self.database.now() - 1

    async def age(self, seconds: float) -> None:
        self.database.started_at -= seconds

    async def turn_replays(self, *, ago_s: float) -> None:
        for job in self.database.replays.values():
            job["next_at"] = self.database.now() - ago_s

    async def drain(self, shard: int) -> tuple[int, int]:
        return await self._stores[0].drain(shard)

    async def undrain(self, shard: int) -> None:
        await self._stores[0].undrain(shard)

    async def hold_shard(self, shard: int) -> Callable[[], Awaitable[None]]:
        raise NotImplementedError("nothing waits here")

    async def waiting(self, count: int = 1) -> None:
        raise NotImplementedError("nothing waits here")


_MEMORY_OPTIONS = frozenset({"idempotency_s", "retry", "timeouts", "endpoint_cap", "longest_s"})
_TIMES = frozenset({"created_at", "due_at", "deadline", "stored_at", "died_at", "quiet_until", "scheduled_at",
                    "started_at", "finished_at"})  # fmt: skip


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """As PostgreSQL's client shows it: times and lists."""
    times = {name: datetime.fromtimestamp(row[name], UTC) for name in _TIMES & row.keys() if row[name] is not None}
    return {name: list(value) if name == "owed" else value for name, value in row.items()} | times


DRIVERS: dict[str, Callable[[Any], Driver]] = {"postgres": Postgres, "memory": lambda _: Memory()}


async def until(happened: Callable[[], Awaitable[Any]]) -> None:
    """Ask again and again until the answer is true, leaving the machine to who is waited for in between; fail after
    PATIENCE_S."""
    async with asyncio.timeout(PATIENCE_S):
        while not await happened():
            await asyncio.sleep(LOOK_S)


# ---- what goes in ----------------------------------------------------------------------------------------------------


async def new_tenant(store: Store, home_shards: Sequence[int] = (0,)) -> UUID:
    """A tenant at config version 1."""
    tenant_id = uuid7()
    await store.create_tenant(tenant_id, {"name": "acme", "home_shards": list(home_shards)})
    return tenant_id


async def new_endpoint(store: Store, tenant_id: UUID, events: Sequence[str] = ("*",)) -> UUID:
    """An endpoint; the tenant's config version grows by one."""
    endpoint_id = uuid7()
    values = {"endpoint_id": endpoint_id, "tenant_id": tenant_id, "url": "https://example.com/", "events": list(events)}
    await store.create_endpoint(values, b"k" * 24, endpoints_max=100)
    return endpoint_id


async def version(store: Store, tenant_id: UUID) -> dict[UUID, int]:
    """The tenant's config version as `append` wants it."""
    routes = await store.load_routes(tenant_id)
    assert routes is not None
    return {tenant_id: routes.config_version}


def event(tenant_id: UUID, **values: Any) -> NewEvent:
    """An event with what a test says of it."""
    if "key" in values:
        values.setdefault("request_hash", b"h" * 32)
    return NewEvent(
        **{"event_id": uuid7(), "tenant_id": tenant_id, "type": "a.b", "payload": b"{}", "owed": (uuid7(),), **values}
    )


def attempt(endpoint_id: UUID, *, shard: int = 0, settle_no: int = 1, **values: Any) -> Attempt:
    """A delivered attempt with what a test says of it."""
    row = {
        "attempt_id": uuid7(), "shard": shard, "settle_no": settle_no, "position": 1, "event_id": uuid7(),
        "endpoint_id": endpoint_id, "tenant_id": uuid7(), "generation": 0, "scheduled_at": 1.8e9, "started_at": 1.8e9,
        "finished_at": 1.8e9 + 0.25, "http_status": 200, "error_code": None, "retry_count": 0, "latency_ms": 250,
        "dns_ms": 1, "connect_ms": 2, "tls_ms": 3, "first_byte_ms": 4, "response_hash": bytes(32),
        "response_head": b"HTTP/1.1 200 OK\r\n\xff\0", "request_bytes": 10, "response_bytes": 20, "worker": "w",
        "outcome": "delivered", "possible_duplicate": False, "address": "192.0.2.1", "protocol": "HTTP/2",
        "trace_id": None, **values,
    }  # fmt: skip
    return tuple(row[column] for column in ATTEMPT_COLUMNS)


def waiting(endpoint_id: UUID, position: int, **values: Any) -> BacklogChange:
    """A backlog row with what a test says of it."""
    row = {
        "day": 9000, "tenant_id": uuid7(), "event_id": uuid7(), "generation": 0, "reason": WaitReason.RETRY,
        "due_at": 1.8e9, "retry_count": 1, "deadline": 1.9e9, "created_at": 1.7e9, "stored_at": 1.75e9,
        **values,
    }  # fmt: skip
    return BacklogChange(endpoint_id, position, **row)


def dead(endpoint_id: UUID, event_id: UUID, **values: Any) -> DeadLetter:
    """A dead letter with what a test says of it."""
    row = {
        "position": 1, "day": 9000, "tenant_id": uuid7(), "generation": 0, "type": "a.b",
        "reason": DeadReason.HTTP_4XX, "died_at": 1.8e9, "attempt_count": 1, "last_http_status": 404, **values,
    }  # fmt: skip
    return DeadLetter(endpoint_id, event_id=event_id, **row)


def settle(shard: int = 0, *, fence: int = 1, settle_no: int = 1, **values: Any) -> ShardSettle:
    """What happened in a shard: nothing but what a test says."""
    progress = values.pop("progress", Progress(cursor=0, read_to=0, read_day=9000, open=(), partial=()))
    upserts = {(change.endpoint_id, change.position): change for change in values.pop("upserts", ())}
    empty: dict[str, Any] = {"attempts": [], "deletes": [], "dead": [], "revived": [], "dropped_lanes": []}
    return ShardSettle(shard, fence, settle_no, progress, upserts=upserts, **{**empty, **values})


async def own(store: Store, *, lease_s: float = 1000.0, limit: int = SHARDS, pool: str = "default") -> UUID:
    """A worker that owns free shards; the fences of a fresh store are 1."""
    node_id = uuid7()
    await store.register(node_id, pool=pool, name="w", lease_s=lease_s)
    await store.claim(node_id, pool=pool, limit=limit, lease_s=lease_s)
    return node_id


async def takeover(store: Store, shard: int, fence: int) -> Takeover:
    """What a new owner of this one shard starts from."""
    [taken] = await store.takeovers({shard: fence})
    return taken


async def persist(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until the store answers, as every caller of it does: now and then, as who waits must not take the machine from
    who is waited for. In the end it raises what the store said."""
    until = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            if asyncio.get_running_loop().time() >= until:
                raise
            await asyncio.sleep(AGAIN_S)
