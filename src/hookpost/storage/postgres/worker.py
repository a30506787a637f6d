"""The worker's side of the PostgreSQL store: leases, journal, backlog, settle."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from hookpost.engine.lanes import NEVER
from hookpost.engine.work import (
    ATTEMPT_COLUMNS,
    Attempt,
    BacklogChange,
    BacklogRow,
    Fetch,
    JournalRow,
    LaneSummary,
    ShardSettle,
    Takeover,
)
from hookpost.model import Endpoint, EndpointStatus, RetryPolicy, Secret, Tenant, Timeouts
from hookpost.storage.contract import Claimed, CommitUnknown, DataRejected, FenceLost, StoreUnavailable, Survey
from hookpost.storage.postgres.connection import Connections, translated
from hookpost.storage.postgres.queries import load

SQL = load("worker")
# Configuration changes are looked for this much further back than the last look: a transaction may be slow to commit.
CHANGES_OVERLAP_S = 10.0
# A settle that takes longer is given up, looked up and repeated; well below the lease.
SETTLE_TIMEOUT_S = 10.0
# A worker that cannot listen looks more often.
DEAF_S = 0.1
_COPY_COLUMNS = ("day", *ATTEMPT_COLUMNS)
_ERROR_CODE = ATTEMPT_COLUMNS.index("error_code")
_STATUS = ATTEMPT_COLUMNS.index("http_status")
_HEAD = ATTEMPT_COLUMNS.index("response_head")
_RANGE = re.compile(r"\[(\d+),(\d+)\)")


class WorkerQueries:
    """Implements WorkerStore."""

    _connections: Connections
    _listener: Any
    _rung: asyncio.Event
    _retry: RetryPolicy
    _timeouts: Timeouts
    _endpoint_cap: int

    # ---- leases -------------------------------------------------------------------------------------------------

    async def register(self, node_id: UUID, *, pool: str, name: str, lease_s: float) -> float:
        async with self._connections.use("register the worker") as connection:
            now: float = await connection.fetchval(SQL["register"], node_id, pool, name, lease_s)
            return now

    async def renew(self, node_id: UUID, *, lease_s: float) -> float | None:
        async with self._connections.use("renew the lease") as connection:
            now: float | None = await connection.fetchval(SQL["renew"], node_id, lease_s)
            return now

    async def survey(self, pool: str) -> Survey:
        async with self._connections.use("survey the shards") as connection:
            nodes = await connection.fetch(SQL["living"], pool)
            owners = await connection.fetch(SQL["survey"], pool)
            now = await connection.fetchval(SQL["now"])
        return Survey(tuple(row["node_id"] for row in nodes), {row["shard"]: row["owner"] for row in owners}, now)

    async def claim(self, node_id: UUID, *, pool: str, limit: int, lease_s: float) -> list[Claimed]:
        async with self._connections.use("claim shards") as connection:
            rows = await connection.fetch(SQL["claim"], node_id, pool, limit, lease_s)
        return sorted((Claimed(row["shard"], row["fence"]) for row in rows), key=lambda claimed: claimed.shard)

    async def release(self, node_id: UUID, shards: Mapping[int, int]) -> None:
        async with self._connections.use("release shards") as connection:
            await connection.executemany(SQL["release"], [(shard, node_id, fence) for shard, fence in shards.items()])

    async def leave(self, node_id: UUID) -> None:
        async with self._connections.use("leave") as connection, connection.transaction():
            await connection.execute(SQL["free_all"], node_id)
            await connection.execute(SQL["leave"], node_id)

    async def takeover(self, shard: int, fence: int) -> Takeover:
        async with self._connections.use(f"take over shard {shard}") as connection:
            last = await connection.fetchrow(SQL["last_progress"], shard)
            if last is None:
                floor = await connection.fetchrow(SQL["floor"], shard)
                return Takeover(shard, fence, read_to=floor["floor_seq"], read_day=0)
            open_seqs = [seq for start, end in _ranges(last["open"]) for seq in range(start, end)]
            rows = await connection.fetch(SQL["open_rows"], shard, open_seqs) if open_seqs else []
            lanes = await connection.fetch(SQL["lane_summaries"], shard)
        partial = msgspec.json.decode(last["partial"] or "{}", type=dict[int, tuple[UUID, ...]])
        return Takeover(
            shard=shard,
            fence=fence,
            settle_no=last["settle_no"],
            read_to=last["read_to"],
            read_day=last["read_day"],
            rows=tuple(_journal_row(row) for row in rows),
            done=partial,
            lanes=tuple(
                LaneSummary(row["endpoint_id"], row["tenant_id"], row["count"], row["next_due"], row["next_deadline"])
                for row in lanes
            ),
            clean=last["clean"],
        )

    # ---- reading ------------------------------------------------------------------------------------------------

    async def read(
        self, positions: Mapping[int, tuple[int, int]], *, rows_max: int, bytes_max: int
    ) -> dict[int, list[JournalRow]]:
        day = min(read_day for _, read_day in positions.values())
        async with self._connections.use("read the journal") as connection:
            rows = await connection.fetch(
                SQL["read"], list(positions), [seq for seq, _ in positions.values()], day, rows_max, bytes_max
            )
        found: dict[int, list[JournalRow]] = {}
        for row in rows:
            found.setdefault(row["shard"], []).append(_journal_row(row))
        return found

    async def fetch(self, fetch: Fetch, *, bytes_max: int) -> tuple[list[BacklogRow], bool, float]:
        lane = (fetch.shard, fetch.endpoint_id)
        async with self._connections.use(f"fetch the backlog of shard {fetch.shard}") as connection:
            if fetch.expired:
                rows = await connection.fetch(SQL["fetch_expired"], *lane, fetch.until, fetch.limit + 1)
                behind = await connection.fetchval(SQL["next_deadline"], *lane, fetch.until)
            else:
                rows = await connection.fetch(SQL["fetch_due"], *lane, *fetch.after, fetch.until, fetch.limit + 1)
                behind = await connection.fetchval(SQL["next_due"], *lane, fetch.until)
        kept: list[BacklogRow] = []
        size = 0
        for row in rows[: fetch.limit]:
            kept.append(_backlog_row(row))
            size += len(row["payload"] or b"")
            if size >= bytes_max:
                break
        return kept, len(kept) < len(rows), NEVER if behind is None else behind

    # ---- settling -----------------------------------------------------------------------------------------------

    async def settle(self, parts: Sequence[ShardSettle]) -> None:
        await self._settle(parts, _copy_attempts)

    async def settle_by_row(self, parts: Sequence[ShardSettle]) -> int:
        cut = 0

        async def one_by_one(connection: Any, day: int, attempts: Sequence[Attempt]) -> None:
            nonlocal cut
            for attempt in attempts:
                try:
                    with translated("store an attempt"):
                        async with connection.transaction():
                            await _copy_attempts(connection, day, [attempt])
                except DataRejected:
                    cut += 1
                    await _copy_attempts(connection, day, [_cut(attempt)])

        await self._settle(parts, one_by_one)
        return cut

    async def _settle(self, parts: Sequence[ShardSettle], store_attempts: Callable[..., Any]) -> None:
        async with self._connections.use("settle") as connection, asyncio.timeout(SETTLE_TIMEOUT_S):
            transaction = connection.transaction()
            await transaction.start()
            try:
                lost, day = await connection.fetchrow(SQL["settle"], *_progress_columns(parts))
                if lost:
                    raise FenceLost(lost)
                attempts = [attempt for part in parts for attempt in part.attempts]
                if attempts:
                    await store_attempts(connection, day, attempts)
                await _settle_rare(connection, parts)
            except BaseException:
                await _rollback(transaction)
                raise
            try:
                await transaction.commit()
            except (asyncpg.InterfaceError, OSError, TimeoutError, asyncpg.PostgresConnectionError) as error:
                raise CommitUnknown(f"settle: the connection was lost while committing: {error}") from error
            except asyncpg.OperatorInterventionError as error:
                raise CommitUnknown(f"settle: the server went away while committing: {error}") from error

    async def settled(self, part: ShardSettle) -> bool:
        async with self._connections.use("look up a settle") as connection:
            found: bool = await connection.fetchval(SQL["settled"], part.shard, part.settle_no, part.fence)
            return found

    # ---- configuration ------------------------------------------------------------------------------------------

    async def load_endpoints(self, endpoint_ids: Collection[UUID]) -> list[Endpoint]:
        async with self._connections.use("load endpoints") as connection:
            rows = await connection.fetch(SQL["load_endpoints"], list(endpoint_ids))
        return [self._endpoint(row) for row in rows]

    def _endpoint(self, row: Any) -> Endpoint:
        retry, timeouts = self._retry, self._timeouts
        return Endpoint(
            endpoint_id=row["endpoint_id"],
            tenant_id=row["tenant_id"],
            url=row["url"],
            status=EndpointStatus(row["status"]),
            deleted=row["deleted"],
            secrets=tuple(map(Secret, row["keys"], row["created"], row["expires"])),
            retry=RetryPolicy(
                base_s=_or(row["base_s"], retry.base_s),
                cap_s=_or(row["cap_s"], retry.cap_s),
                max_attempts=_or(row["max_attempts"], retry.max_attempts),
                deadline_s=_or(row["deadline_s"], retry.deadline_s),
            ),
            timeouts=Timeouts(
                connect_s=_or(row["connect_s"], timeouts.connect_s),
                first_byte_s=_or(row["first_byte_s"], timeouts.first_byte_s),
                total_s=_or(row["total_s"], timeouts.total_s),
            ),
            max_in_flight=_or(row["max_in_flight"], self._endpoint_cap),
            hold_until=row["hold_until"] or 0.0,
        )

    async def load_tenants(self, tenant_ids: Collection[UUID]) -> list[Tenant]:
        async with self._connections.use("load tenants") as connection:
            rows = await connection.fetch(SQL["load_tenants"], list(tenant_ids))
        return [Tenant(row["tenant_id"], tuple(row["home_shards"]), row["max_in_flight"]) for row in rows]

    async def changed_tenants(self, since: float) -> tuple[list[UUID], float]:
        async with self._connections.use("look for changed tenants") as connection:
            now: float = await connection.fetchval(SQL["now"])
            rows = await connection.fetch(SQL["changed_tenants"], since - CHANGES_OVERLAP_S)
        return [row["tenant_id"] for row in rows], now

    async def hold_endpoint(self, endpoint_id: UUID, until: float) -> None:
        async with self._connections.use("hold an endpoint") as connection:
            await connection.execute(SQL["hold_endpoint"], endpoint_id, until)

    async def disable_endpoint(self, tenant_id: UUID, endpoint_id: UUID, reason: str) -> None:
        async with self._connections.use("disable an endpoint") as connection:
            await connection.execute(SQL["disable_endpoint"], tenant_id, endpoint_id, reason)

    # ---- the doorbell -------------------------------------------------------------------------------------------

    async def wait_for_ring(self, timeout_s: float) -> bool:
        if self._listener is None or self._listener.is_closed():
            await self._listen()
        if self._listener is None:
            timeout_s = min(timeout_s, DEAF_S)
        try:
            await asyncio.wait_for(self._rung.wait(), timeout_s)
        except TimeoutError:
            return False
        self._rung.clear()
        return True

    async def _listen(self) -> None:
        """Listening is a favour: without it (a pooler in between, the store away) workers look by themselves."""
        try:
            self._listener = await self._connections.connect_alone()
            with translated("listen"):
                await self._listener.add_listener("hookpost", lambda *_: self._rung.set())
        except StoreUnavailable:
            self._listener = None


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _ranges(multirange: str) -> list[tuple[int, int]]:
    return [(int(start), int(end)) for start, end in _RANGE.findall(multirange)]


def _journal_row(row: Any) -> JournalRow:
    return JournalRow(
        row["shard"], row["seq"], row["day"], row["kind"], row["event_id"], row["tenant_id"], row["type"],
        row["payload"], row["owed"], row["generation"], row["created_at"],
    )  # fmt: skip


def _backlog_row(row: Any) -> BacklogRow:
    return BacklogRow(
        row["position"], row["day"], row["event_id"], row["type"] or "", row["payload"], row["generation"],
        row["reason"], row["due_at"], row["retry_count"], row["deadline"], row["created_at"],
    )  # fmt: skip


def _progress_columns(parts: Sequence[ShardSettle]) -> tuple[list[Any], ...]:
    progress = [part.progress for part in parts]
    return (
        [part.shard for part in parts],
        [part.fence for part in parts],
        [part.settle_no for part in parts],
        [p.cursor for p in progress],
        [p.read_to for p in progress],
        [p.read_day for p in progress],
        ["{" + ",".join(f"[{start},{end})" for start, end in p.open) + "}" for p in progress],
        [msgspec.json.encode(dict(p.partial)).decode() if p.partial else None for p in progress],
        [part.clean for part in parts],
    )


async def _copy_attempts(connection: Any, day: int, attempts: Sequence[Attempt]) -> None:
    await connection.copy_records_to_table(
        "attempts", records=[(day, *attempt) for attempt in attempts], columns=_COPY_COLUMNS
    )


def _cut(attempt: Attempt) -> Attempt:
    """The same attempt without what a receiver could have put into it."""
    values = list(attempt)
    values[_ERROR_CODE] = "internal_error"
    values[_STATUS] = None
    values[_HEAD] = b""
    return tuple(values)


async def _settle_rare(connection: Any, parts: Sequence[ShardSettle]) -> None:
    """What a delivery that works the first time never writes. Lock order: dead letters, then backlog, each sorted."""
    revived = sorted({pair for part in parts for pair in part.revived})
    if revived:
        await connection.execute(SQL["settle_revived"], *_columns(revived))
    dead = sorted(
        ((letter, part.shard) for part in parts for letter in part.dead),
        key=lambda pair: (pair[0].event_id, pair[0].endpoint_id, pair[0].generation),
    )
    if dead:
        latest = {(d.event_id, d.endpoint_id): (d, shard) for d, shard in dead}
        rows = [
            (
                d.event_id, d.endpoint_id, d.tenant_id, shard, d.position, d.day, d.generation, d.type, d.reason,
                d.died_at, d.attempt_count, d.last_http_status, d.last_error_code,
            )
            for d, shard in latest.values()
        ]  # fmt: skip
        await connection.execute(SQL["settle_dead"], *_columns(rows))
    dropped = sorted((part.shard, endpoint_id) for part in parts for endpoint_id in part.dropped_lanes)
    if dropped:
        await connection.execute(SQL["settle_dropped_lanes"], *_columns(dropped))
    deletes = sorted((part.shard, endpoint_id, position) for part in parts for endpoint_id, position in part.deletes)
    if deletes:
        await connection.execute(SQL["settle_deletes"], *_columns(deletes))
    upserts = [(part.shard, change) for part in parts for change in part.upserts.values()]
    if upserts:
        rows = sorted((_upsert_row(shard, change) for shard, change in upserts), key=lambda row: row[:3])
        await connection.execute(SQL["settle_upserts"], *_columns(rows))


def _upsert_row(shard: int, change: BacklogChange) -> tuple[Any, ...]:
    return (
        shard, change.endpoint_id, change.position, change.day, change.tenant_id, change.event_id, change.generation,
        change.reason, change.due_at, change.retry_count, change.deadline, change.created_at, change.last_http_status,
        change.last_error_code,
    )  # fmt: skip


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


async def _rollback(transaction: Any) -> None:
    """The connection may be gone; the first error is the one to tell."""
    try:
        await transaction.rollback()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        return
