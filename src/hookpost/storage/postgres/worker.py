"""The worker's side of the PostgreSQL store: leases, journal, backlog, settle."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar
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
    Kind,
    LaneSummary,
    ShardSettle,
    Takeover,
    Wanted,
)
from hookpost.model import (
    Endpoint,
    EndpointStatus,
    Health,
    OperationalType,
    Payload,
    PayloadRef,
    Tenant,
    show_id,
)
from hookpost.policy.alerts import EVENTS_NAMED_MAX, Notice
from hookpost.policy.breaker import STEP_S, BreakerRecord, BreakerState, Probe
from hookpost.storage.contract import (
    RECOVERED_S,
    Claimed,
    CommitUnknown,
    DataRejected,
    FenceLost,
    SecretLocked,
    StoreUnavailable,
    Survey,
)
from hookpost.storage.endpoints import EndpointDefaults, read_health
from hookpost.storage.postgres.attempts import COLUMNS as COPY_COLUMNS
from hookpost.storage.postgres.attempts import packed
from hookpost.storage.postgres.audit import AuditQueries
from hookpost.storage.postgres.connection import Connections, translated
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.vault import opened
from hookpost.storage.rings import Rings

SQL = load("worker")
# A settle that takes longer is given up, looked up and repeated; well below the lease.
SETTLE_TIMEOUT_S = 10.0
# So much for undoing what failed; then the connection is cut, and the server undoes it by itself.
ROLLBACK_TIMEOUT_S = 1.0
# A worker that cannot listen looks more often, and tries again to listen as often at most.
DEAF_S = 0.1
# What an attempt that the database refuses is stored without: what a receiver could have put into it, then the rest.
_CUTS: tuple[dict[str, Any], ...] = (
    {"http_status": None, "error_code": "internal_error", "response_hash": None, "response_head": b"", "address": "",
     "protocol": ""},
    {"started_at": 0.0, "finished_at": 0.0, "latency_ms": 0, "dns_ms": 0, "connect_ms": 0, "tls_ms": 0,
     "first_byte_ms": 0, "request_bytes": 0, "response_bytes": 0},
)  # fmt: skip
_RANGE = re.compile(r"\[(\d+),(\d+)\)")
# A takeover needs all open entries; the last owner had them in its memory.
ALL_BYTES = 2**62

_Replay = TypeVar("_Replay", JournalRow, BacklogRow)


class WorkerQueries(AuditQueries):
    """Implements WorkerStore."""

    _connections: Connections
    _listener: Any
    _listen_due: float
    _rings: Rings
    _defaults: EndpointDefaults
    _longest_s: float

    # ---- leases -------------------------------------------------------------------------------------------------

    async def register(self, node_id: UUID, *, pool: str, name: str, lease_s: float) -> float:
        async with self._connections.use("register the worker") as connection:
            now: float = await connection.fetchval(SQL["register"], node_id, pool, name, lease_s, self._key_ids)
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
            rows = await connection.fetch(SQL["claim"], node_id, pool, limit, lease_s, self._longest_s)
        return sorted((Claimed(row["shard"], row["fence"]) for row in rows), key=lambda claimed: claimed.shard)

    async def release(self, node_id: UUID, shards: Mapping[int, int]) -> None:
        async with self._connections.use("release shards") as connection:
            await connection.executemany(
                SQL["release"], [(shard, node_id, shards[shard], self._longest_s) for shard in sorted(shards)]
            )

    async def disown(self, node_id: UUID, shards: Collection[int]) -> None:
        async with self._connections.use("disown shards") as connection:
            await connection.execute(SQL["disown"], node_id, sorted(shards), self._longest_s)

    async def leave(self, node_id: UUID) -> None:
        async with self._connections.use("leave") as connection, connection.transaction():
            await connection.execute(SQL["free_all"], node_id, self._longest_s)
            await connection.execute(SQL["leave"], node_id)

    async def takeovers(self, shards: Mapping[int, int]) -> list[Takeover]:
        async with self._connections.use(f"take over {len(shards)} shards") as connection:
            last = await connection.fetch(SQL["last_progress"], list(shards))
            ranges = [(row["shard"], *each) for row in last for each in _ranges(row["open"] or "")]
            found = await connection.fetch(SQL["open_rows"], *_columns(ranges)) if ranges else []
            rows = await _replayed(connection, _by_shard(found), ALL_BYTES)
            lanes: dict[int, list[LaneSummary]] = {}
            for row in await connection.fetch(SQL["lane_summaries"], list(shards)):
                lanes.setdefault(row["shard"], []).append(_lane_summary(row))
        return [
            _takeover(row, shards[row["shard"]], rows.get(row["shard"], ()), lanes.get(row["shard"], ()))
            for row in last
        ]

    # ---- reading ------------------------------------------------------------------------------------------------

    async def read(
        self, positions: Mapping[int, tuple[int, int]], *, rows_max: int, bytes_max: int
    ) -> dict[int, list[JournalRow]]:
        seqs = [seq for seq, _ in positions.values()]
        days = [day for _, day in positions.values()]
        async with self._connections.use("read the journal") as connection:
            rows = await connection.fetch(
                SQL["read"], list(positions), seqs, min(days, default=0), rows_max, bytes_max, days
            )
            return await _replayed(connection, _by_shard(rows), bytes_max)

    async def others_wait(
        self, positions: Mapping[int, tuple[int, int]], holders: Collection[UUID], *, rows_max: int
    ) -> bool:
        seqs = [seq for seq, _ in positions.values()]
        days = [day for _, day in positions.values()]
        async with self._connections.use("look for others in the journal") as connection:
            found: bool = await connection.fetchval(
                SQL["others_wait"], list(positions), seqs, min(days, default=0), rows_max, list(holders), days
            )
            return found

    async def fetch(self, fetch: Fetch, *, bytes_max: int) -> tuple[list[BacklogRow], bool, float]:
        async with self._connections.use(f"fetch the backlog of shard {fetch.shard}") as connection:
            match fetch.wanted:
                case Wanted.DUE:
                    return await _fetch_due(connection, fetch, bytes_max)
                case Wanted.EXPIRED:
                    return await _fetch_expired(connection, fetch)
                case _:
                    return await _fetch_others(connection, fetch, bytes_max)

    # ---- settling -----------------------------------------------------------------------------------------------

    async def settle(self, parts: Sequence[ShardSettle]) -> None:
        await self._settle(parts, _whole)

    async def settle_by_row(self, parts: Sequence[ShardSettle]) -> int:
        by_row = _ByRow()
        await self._settle(parts, by_row)
        return by_row.cut

    async def _settle(self, parts: Sequence[ShardSettle], store: _StoreRows) -> None:
        async with self._connections.use("settle") as connection:
            transaction = connection.transaction()
            try:
                async with asyncio.timeout(SETTLE_TIMEOUT_S):
                    await transaction.start()
                    lost, already, day = await connection.fetchrow(SQL["settle"], *_progress_columns(parts))
                    if lost:
                        raise FenceLost(lost)
                    if not already:
                        attempts = [attempt for part in parts for attempt in part.attempts]
                        await store(connection, partial(_copy_attempts, connection, day), attempts, _CUT_ATTEMPT)
                        await _settle_rare(connection, parts, store)
            except BaseException:
                await _roll_back(connection, transaction)
                raise
            await _commit(connection, transaction)

    async def settled(self, part: ShardSettle) -> bool:
        async with self._connections.use("look up a settle") as connection:
            found: bool = await connection.fetchval(SQL["settled"], part.shard, part.settle_no, part.fence)
            return found

    async def is_paused(self) -> bool:
        async with self._connections.use("look whether sending is paused") as connection:
            paused: bool = await connection.fetchval(SQL["is_paused"])
            return paused

    # ---- configuration ------------------------------------------------------------------------------------------

    async def load_endpoints(self, endpoint_ids: Collection[UUID]) -> list[Endpoint]:
        async with self._connections.use("load endpoints") as connection:
            rows = await connection.fetch(SQL["load_endpoints"], list(endpoint_ids))
        return [self._defaults.endpoint(row) for row in opened(self._vault, rows)]

    async def load_tenants(self, tenant_ids: Collection[UUID]) -> list[Tenant]:
        async with self._connections.use("load tenants") as connection:
            rows = await connection.fetch(SQL["load_tenants"], list(tenant_ids))
        return [Tenant(row["tenant_id"], tuple(row["home_shards"]), row["max_in_flight"]) for row in rows]

    async def changed_tenants(self, since: float) -> dict[UUID, float]:
        async with self._connections.use("look for changed tenants") as connection:
            rows = await connection.fetch(SQL["changed_tenants"], since)
        return {row["tenant_id"]: row["changed_at"] for row in rows}

    async def changed_endpoints(self, tenant_ids: Collection[UUID], since: float) -> dict[UUID, float]:
        async with self._connections.use("look for changed endpoints") as connection:
            rows = await connection.fetch(SQL["changed_endpoints"], list(tenant_ids), since)
        return {row["endpoint_id"]: row["changed_at"] for row in rows}

    async def lift_barriers(self) -> int:
        async with self._connections.use("lift barriers") as connection:
            lifted: int = await connection.fetchval(SQL["lift_barriers"])
            return lifted

    async def hold_endpoint(self, endpoint_id: UUID, until: float) -> None:
        async with self._connections.use("hold an endpoint") as connection:
            await connection.execute(SQL["hold_endpoint"], endpoint_id, until)

    async def write_health(self, changed: Mapping[UUID, Health]) -> None:
        rows = [(endpoint_id, h.consecutive_failures, h.failing_since) for endpoint_id, h in changed.items()]
        async with self._connections.use("write endpoints' health") as connection:
            await connection.execute(SQL["write_health"], *_columns(rows))

    async def health_changes(self, since: float, *, limit: int) -> tuple[dict[UUID, Health], float | None]:
        async with self._connections.use("look for changed health") as connection:
            rows = await connection.fetch(SQL["health_changes"], since, limit)
        more_after = rows[-1]["health_at"] if len(rows) == limit else None
        return {row["endpoint_id"]: read_health(row) for row in rows}, more_after

    async def disable_endpoint(self, tenant_id: UUID, endpoint_id: UUID, reason: str) -> bool:
        async with self._connections.use("disable an endpoint") as connection, connection.transaction():
            if await connection.fetchval(SQL["disable_endpoint"], tenant_id, endpoint_id, reason) is None:
                return False
            told = {"status": EndpointStatus.DISABLED, "status_reason": reason}
            try:
                await self._record(connection, tenant_id, "endpoint.disable", show_id("ep", endpoint_id), None, told)
            except SecretLocked as error:
                raise StoreUnavailable(f"disable an endpoint: {error}") from error
            return True

    # ---- breakers -----------------------------------------------------------------------------------------------

    async def load_breakers(self, tenant_ids: Collection[UUID], *, since: float | None) -> list[BreakerRecord]:
        async with self._connections.use("load breakers") as connection:
            rows = await connection.fetch(SQL["load_breakers"], list(tenant_ids), since, RECOVERED_S)
        return [_breaker(row) for row in rows]

    async def save_breakers(self, records: Sequence[BreakerRecord]) -> None:
        columns = _columns(
            [(r.tenant_id, r.origin, r.state, r.since, r.reopen_at, r.openings, r.failures) for r in records]
        )
        async with self._connections.use("save breakers") as connection, connection.transaction():
            await connection.execute(SQL["touch_tenants"], sorted({record.tenant_id for record in records}))
            await connection.execute(SQL["save_breakers"], *columns)

    async def take_probes(self, node_id: UUID, asked: Sequence[tuple[UUID, str]], *, probe_s: float) -> list[Probe]:
        columns = _columns(asked)
        async with self._connections.use("take probes") as connection, connection.transaction():
            taken = await connection.fetch(SQL["take_probes"], *columns, node_id, probe_s, STEP_S)
            now = await connection.fetchval(SQL["now"])
            rows = await connection.fetch(SQL["asked_breakers"], *columns)
        granted = {(row["tenant_id"], row["origin"]) for row in taken}
        stored = {(row["tenant_id"], row["origin"]): _probe(row, granted, now) for row in rows}
        # Of what nobody has stored nobody else knows.
        return [stored.get(each) or _unknown_probe(*each, until=now + probe_s) for each in asked]

    # ---- the doorbell -------------------------------------------------------------------------------------------

    async def wait_for_ring(self, timeout_s: float) -> Collection[int] | None:
        deaf = self._listener is None or self._listener.is_closed()
        now = asyncio.get_running_loop().time()
        if deaf and timeout_s and now >= self._listen_due:
            self._listen_due = now + DEAF_S
            await self._listen()
            deaf = self._listener is None
        if deaf:
            timeout_s = min(timeout_s, DEAF_S)
        return await self._rings.wait(timeout_s)

    def ring_here(self, shards: Collection[int]) -> None:
        self._rings.hear(shards)

    def _hear(self, _connection: Any, _pid: int, _channel: str, shards: str) -> None:
        """A ring names shards, or none; one that cannot be read is for all."""
        try:
            self._rings.hear([int(shard) for shard in shards.split(",")])
        except ValueError:
            self._rings.hear(())

    async def _listen(self) -> None:
        """Listening is a favour: without it (a pooler in between, the store away) workers look by themselves."""
        try:
            listener = await self._connections.connect_alone("listen")
            self._listener = listener
            with translated("listen"):
                await listener.add_listener("hookpost", self._hear)
        except StoreUnavailable:
            if self._listener is not None:
                self._listener.terminate()
            self._listener = None


def _breaker(row: Any) -> BreakerRecord:
    return BreakerRecord(
        row["tenant_id"], row["origin"], BreakerState(row["state"]), row["since"], row["reopen_at"], row["openings"],
        row["failures"],
    )  # fmt: skip


def _probe(row: Any, granted: Collection[tuple[UUID, str]], now: float) -> Probe:
    """Not before the pause is over that another worker has set, or its probe must have ended."""
    until = max(now, row["probe_until"] or 0.0, row["reopen_at"] or 0.0)
    return Probe((row["tenant_id"], row["origin"]) in granted, until, _breaker(row))


def _unknown_probe(tenant_id: UUID, origin: str, *, until: float) -> Probe:
    return Probe(True, until, BreakerRecord(tenant_id, origin, BreakerState.OPEN, 0.0, None, 1, 0))


def _ranges(multirange: str) -> list[tuple[int, int]]:
    return [(int(start), int(end)) for start, end in _RANGE.findall(multirange)]


def _by_shard(rows: Iterable[Any]) -> dict[int, list[JournalRow]]:
    """Rows come in the order of their shards."""
    return {shard: [JournalRow(*row) for row in of_shard] for shard, of_shard in groupby(rows, itemgetter(0))}


def _payload(row: Any) -> Payload:
    """The bytes, or where they lie."""
    ref: str | None = row["payload_ref"]
    return row["payload"] if ref is None else PayloadRef.parse(ref)


def _backlog_row(row: Any, event: Any = None) -> BacklogRow:
    return BacklogRow(
        row["position"], row["day"], row["event_id"], (event and event["type"]) or "", event and _payload(event),
        row["generation"], row["reason"], row["due_at"], row["retry_count"], row["deadline"], row["created_at"],
        row["stored_at"], event and event["trace"],
    )  # fmt: skip


def _lane_summary(row: Any) -> LaneSummary:
    return LaneSummary(
        row["endpoint_id"], row["tenant_id"], row["count"], row["next_due"], row["next_deadline"], row["blocking"],
        row["first"],
    )  # fmt: skip


def _takeover(last: Any, fence: int, rows: Iterable[JournalRow], lanes: Iterable[LaneSummary]) -> Takeover:
    quiet_until, doubtful_to = last["quiet_until"] or 0.0, last["doubtful_to"] or 0.0
    if last["settle_no"] is None:
        # An owner that never settled may have sent all the same.
        return Takeover(
            last["shard"], fence, read_to=last["floor_seq"], read_day=0, clean=fence == 1, quiet_until=quiet_until,
            doubtful_to=doubtful_to,
        )  # fmt: skip
    return Takeover(
        shard=last["shard"],
        fence=fence,
        settle_no=last["settle_no"],
        read_to=last["read_to"],
        read_day=last["read_day"],
        rows=tuple(rows),
        done=msgspec.json.decode(last["partial"] or "{}", type=dict[int, tuple[UUID, ...]]),
        lanes=tuple(lanes),
        clean=last["clean"] and last["fence"] == fence - 1,
        quiet_until=quiet_until,
        doubtful_to=doubtful_to,
    )


async def _replayed(connection: Any, found: dict[int, list[JournalRow]], bytes_max: int) -> dict[int, list[JournalRow]]:
    """Give what lies in the payload store its place, and the replays their payloads. Of each shard come as many rows as
    fit into the bytes."""
    elsewhere = {shard: [row for row in rows if row.payload is None] for shard, rows in found.items()}
    replays: dict[int, list[JournalRow]] = {}
    for shard, rows in elsewhere.items():
        for row in rows:
            if row.ref is not None:
                row.payload = PayloadRef.parse(row.ref)
        replays[shard] = [row for row in rows if row.kind == Kind.REPLAY and row.owed]
    asked = [(shard, row.event_id) for shard, rows in replays.items() for row in rows]
    if not asked:
        return found
    payloads = await _payloads(connection, asked, bytes_max)
    return {shard: _filled(rows, replays[shard], payloads.get(shard, ())) for shard, rows in found.items()}


async def _payloads(connection: Any, asked: Sequence[tuple[int, UUID]], bytes_max: int) -> dict[int, list[Payload]]:
    """Of each shard the payloads of the first of these events."""
    payloads: dict[int, list[Payload]] = {}
    for row in await connection.fetch(SQL["replayed"], *_columns(asked), bytes_max) if asked else ():
        payloads.setdefault(row["shard"], []).append(_payload(row))
    return payloads


def _filled(rows: list[_Replay], replays: Sequence[_Replay], payloads: Sequence[Payload]) -> list[_Replay]:
    """The rows up to the first replay that there was no room for."""
    for replay, payload in zip(replays, payloads, strict=False):
        replay.payload = payload
    if len(payloads) == len(replays):
        return rows
    return rows[: rows.index(replays[len(payloads)])]


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


async def _fetch_due(connection: Any, fetch: Fetch, bytes_max: int) -> tuple[list[BacklogRow], bool, float]:
    lane = (fetch.shard, fetch.endpoint_id)
    found = await connection.fetch(SQL["fetch_due"], *lane, *fetch.after, fetch.until, fetch.limit + 1)
    rows = await _with_events(connection, fetch.shard, found[: fetch.limit], bytes_max) if found else []
    if len(found) > len(rows):
        return rows, True, NEVER
    behind = await connection.fetchval(SQL["next_due"], *lane, fetch.until)
    return rows, False, NEVER if behind is None else behind


async def _fetch_others(connection: Any, fetch: Fetch, bytes_max: int) -> tuple[list[BacklogRow], bool, float]:
    lane = (fetch.shard, fetch.endpoint_id)
    name, parameters = {
        Wanted.FORWARD: ("fetch_forward", (*fetch.after, fetch.until, fetch.stored_by)),
        Wanted.HEAD: ("fetch_head", ()),
        Wanted.BLOCKING: ("fetch_blocking", ()),
        Wanted.NAMED: ("fetch_named", (fetch.event_id,)),
    }[fetch.wanted]
    found = await connection.fetch(SQL[name], *lane, *parameters, fetch.limit + 1)
    rows = await _with_events(connection, fetch.shard, found[: fetch.limit], bytes_max) if found else []
    return rows, len(found) > len(rows), NEVER


async def _with_events(connection: Any, shard: int, due: Sequence[Any], bytes_max: int) -> list[BacklogRow]:
    """The first of these rows, as many as fit into the bytes: replays' payloads are loaded after, and bounded alike."""
    days = [row["day"] for row in due]
    events = await connection.fetch(
        SQL["due_events"], shard, [row["position"] for row in due], days, min(days), max(days), bytes_max
    )
    rows = [_backlog_row(row, event) for row, event in zip(due, events, strict=False)]
    replays = [row for row, event in zip(rows, events, strict=True) if event["kind"] == Kind.REPLAY]
    payloads = await _payloads(connection, [(shard, row.event_id) for row in replays], bytes_max)
    return _filled(rows, replays, payloads.get(shard, ()))


async def _fetch_expired(connection: Any, fetch: Fetch) -> tuple[list[BacklogRow], bool, float]:
    """What expires next is looked for when all that has expired is gone: it takes a look at the whole lane."""
    lane = (fetch.shard, fetch.endpoint_id)
    rows = await connection.fetch(SQL["fetch_expired"], *lane, fetch.until, fetch.limit + 1)
    more = len(rows) > fetch.limit
    behind = None if more else await connection.fetchval(SQL["next_deadline"], *lane, fetch.until)
    return [_backlog_row(row) for row in rows[: fetch.limit]], more, NEVER if behind is None else behind


# ---- rows of a settle ---------------------------------------------------------------------------------------------

_Row = tuple[Any, ...]
_Write = Callable[[Sequence[_Row]], Awaitable[None]]
# How to store a row that was refused, tried one after the other; after the last one it may be left out, or not.
_Cut = tuple[Callable[[_Row], _Row], ...]
_StoreRows = Callable[[Any, _Write, Sequence[_Row], tuple[_Cut, bool]], Awaitable[None]]


async def _whole(connection: Any, write: _Write, rows: Sequence[_Row], cut: tuple[_Cut, bool]) -> None:  # noqa: ARG001
    """Store the rows in one go."""
    if rows:
        await write(rows)


class _ByRow:
    """Stores rows one by one when they are refused together; counts those that had to be cut."""

    def __init__(self) -> None:
        self.cut = 0

    async def __call__(self, connection: Any, write: _Write, rows: Sequence[_Row], cut: tuple[_Cut, bool]) -> None:
        if not rows or await _refusal(connection, write, rows) is None:
            return
        for row in rows:
            await self._store(connection, write, row, *cut)

    async def _store(self, connection: Any, write: _Write, row: _Row, cuts: _Cut, may_go: bool) -> None:
        refusal = await _refusal(connection, write, [row])
        if refusal is None:
            return
        self.cut += 1
        for cut in cuts:
            row = cut(row)
            refusal = await _refusal(connection, write, [row])
            if refusal is None:
                return
        if not may_go:
            raise refusal


async def _refusal(connection: Any, write: _Write, rows: Sequence[_Row]) -> DataRejected | None:
    """Store the rows, or say why the database refuses them."""
    try:
        with translated("store a row of a settle"):
            async with connection.transaction():
                await write(rows)
    except DataRejected as error:
        return error
    return None


async def _copy_attempts(connection: Any, day: int, attempts: Sequence[_Row]) -> None:
    await connection.copy_to_table(
        "attempts", source=memoryview(packed(day, attempts)), columns=COPY_COLUMNS, format="binary"
    )


def _cut_attempt(cut: Mapping[str, Any], attempt: Attempt) -> Attempt:
    return tuple(cut.get(column, value) for column, value in zip(ATTEMPT_COLUMNS, attempt, strict=True))


def _cut_note(row: _Row) -> _Row:
    """A backlog row or a dead letter without the note about its last attempt."""
    return (*row[:-2], None, None)


# The history may lack an attempt rather than that a shard stands still; a delivery must never get lost.
_CUT_ATTEMPT: tuple[_Cut, bool] = (tuple(partial(_cut_attempt, cut) for cut in _CUTS), True)
_CUT_NOTE: tuple[_Cut, bool] = ((_cut_note,), False)
_NO_CUT: tuple[_Cut, bool] = ((), False)
# Nor may a shard stand still for want of an alert.
_MAY_GO: tuple[_Cut, bool] = ((), True)


async def _settle_rare(connection: Any, parts: Sequence[ShardSettle], store: _StoreRows) -> None:
    """What a delivery that works the first time never writes. Lock order: dead letters, then backlog, each sorted; to
    the outbox rows are only added."""
    revived = sorted({(*pair, part.shard) for part in parts for pair in part.revived})
    dead = _dead_rows(parts)
    if revived:
        await connection.execute(SQL["settle_dead_locks"], *_columns([row[:2] for row in (*revived, *dead)]))
    dropped = sorted((part.shard, endpoint_id) for part in parts for endpoint_id in part.dropped_lanes)
    deletes = sorted((part.shard, endpoint_id, position) for part in parts for endpoint_id, position in part.deletes)
    upserts = [_upsert_row(part.shard, change) for part in parts for change in part.upserts.values()]
    upserts.sort(key=lambda row: row[:3])
    for name, rows, cut in (
        ("settle_revived", revived, _NO_CUT),
        ("settle_dead", dead, _CUT_NOTE),
        ("settle_dropped_lanes", dropped, _NO_CUT),
        ("settle_deletes", deletes, _NO_CUT),
        ("settle_upserts", upserts, _CUT_NOTE),
    ):
        await store(connection, partial(_execute, connection, name), rows, cut)
    notices = [_notice_row(notice) for part in parts for notice in part.notices]
    await store(connection, partial(_execute, connection, "settle_notices"), notices, _MAY_GO)
    await store(connection, partial(_announce_dead, connection), [row[:2] for row in dead], _MAY_GO)


async def _announce_dead(connection: Any, letters: Sequence[_Row]) -> None:
    await connection.execute(SQL["settle_dead_notices"], *_columns(letters), list(OperationalType), EVENTS_NAMED_MAX)


def _notice_row(notice: Notice) -> _Row:
    return notice.type, notice.tenant_id, notice.endpoint_id, notice.at, notice.failures, notice.since


async def _execute(connection: Any, name: str, rows: Sequence[_Row]) -> None:
    await connection.execute(SQL[name], *_columns(rows))


def _dead_rows(parts: Sequence[ShardSettle]) -> list[_Row]:
    """Of several deaths of one delivery the latest generation's."""
    letters = sorted(
        ((letter, part.shard) for part in parts for letter in part.dead),
        key=lambda pair: (pair[0].event_id, pair[0].endpoint_id, pair[0].generation),
    )
    latest = {(letter.event_id, letter.endpoint_id): (letter, shard) for letter, shard in letters}
    return [
        (
            d.event_id, d.endpoint_id, d.tenant_id, shard, d.position, d.day, d.generation, d.type, d.reason,
            d.died_at, d.attempt_count, d.last_http_status, d.last_error_code,
        )
        for d, shard in latest.values()
    ]  # fmt: skip


def _upsert_row(shard: int, change: BacklogChange) -> tuple[Any, ...]:
    return (
        shard, change.endpoint_id, change.position, change.day, change.tenant_id, change.event_id, change.generation,
        change.reason, change.due_at, change.retry_count, change.deadline, change.created_at, change.stored_at,
        change.last_http_status, change.last_error_code,
    )  # fmt: skip


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


async def _commit(connection: Any, transaction: Any) -> None:
    try:
        async with asyncio.timeout(SETTLE_TIMEOUT_S):
            await transaction.commit()
    except (
        asyncpg.InterfaceError, OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError,
    ) as error:  # fmt: skip
        _cut_off(connection)
        raise CommitUnknown(f"settle: no answer to the commit: {type(error).__name__} {error}") from error


async def _roll_back(connection: Any, transaction: Any) -> None:
    """The connection may be gone; the first error is the one to tell."""
    try:
        async with asyncio.timeout(ROLLBACK_TIMEOUT_S):
            await transaction.rollback()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        _cut_off(connection)


def _cut_off(connection: Any) -> None:
    """Never to be used again; the pool may have found out first."""
    with suppress(asyncpg.InterfaceError):
        connection.terminate()
