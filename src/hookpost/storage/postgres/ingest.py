"""The ingest side of the PostgreSQL store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from asyncpg.pgproto.pgproto import UUID as DriverUUID

from hookpost.model import PayloadRef, minted_at
from hookpost.policy.looks import Since
from hookpost.storage.contract import (
    ApiKey,
    Appended,
    EndpointFilter,
    NewEvent,
    Place,
    Recalled,
    SharedDemand,
    Stale,
    StoreUnavailable,
    TenantRoutes,
    Verdict,
)
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.gathered import Gathered
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.vault import VaultQueries

SQL = load("ingest")
# The function's word for "the first event of this key has just expired": rare, and the caller's next try succeeds.
_TRY_AGAIN = 3
# Shards that one append goes to: whoever else appends to one of them waits for all of it.
LOT_SHARDS_MAX = 64
# Shards that one ring names, beyond which it means all: a notification carries less than 8,000 bytes.
RING_SHARDS_MAX = 500


_T = TypeVar("_T")


class IngestQueries(VaultQueries):
    """Implements IngestStore."""

    _connections: Connections
    _idempotency_s: float
    _append_timeout_s: float
    _endpoint_cap: int
    lot_shards = LOT_SHARDS_MAX

    def _gather(self) -> None:
        """Of keys and routes, what many ask for at the same time is asked together."""
        self._keys = Gathered(self._find_keys)
        self._routes = Gathered(self._load_routes)
        self._route_changes = Gathered(self._load_route_changes)

    async def append(
        self,
        shard: int | Sequence[int],
        events: Sequence[NewEvent],
        versions: Mapping[UUID, int],
        placed: Callable[[Place], None] | None = None,
    ) -> list[Appended] | Stale:
        shards, places = _places(shard)
        owed, starts = _owed_lists(events)
        # The driver's own class, as what the database tells of an event later is compared with the answer.
        ids = [DriverUUID(event.event_id.bytes) for event in events]
        keyed = any(event.key is not None for event in events)
        traced = any(event.trace_id is not None for event in events)
        stored = any(type(event.payload) is PayloadRef for event in events)
        async with self._connections.use(f"append to shard {', '.join(map(str, shards))}") as connection:
            row = await connection.fetchrow(
                SQL["append"],
                shards,
                places,
                self._idempotency_s,
                list(versions),
                list(versions.values()),
                ids,
                _once([event.tenant_id for event in events]),
                _once([event.type for event in events]),
                [None if type(event.payload) is PayloadRef else event.payload for event in events],
                owed,
                _once(starts),
                _once([len(event.owed) for event in events]),
                [event.trace_id for event in events] if traced else None,
                [event.key for event in events] if keyed else None,
                [event.request_hash for event in events] if keyed else None,
                [str(event.payload) if type(event.payload) is PayloadRef else None for event in events]
                if stored
                else None,
                min(minted_at(event.event_id) for event in events if type(event.payload) is PayloadRef)
                if stored
                else None,
                [event.span for event in events] if traced else None,
                timeout=self._append_timeout_s,
            )
        stale, verdicts, first_ids, first_counts, after, days, created_at = row
        if stale is not None:
            return Stale(frozenset(stale))
        if placed is not None:
            new_in = None if verdicts is None else _with_new(places, verdicts)
            for place, in_shard in enumerate(shards):
                if new_in is None or place + 1 in new_in:
                    placed(Place(in_shard, after[place], days[place], created_at))
        new = [Appended(Verdict.NEW, event_id, len(event.owed)) for event_id, event in zip(ids, events, strict=True)]
        if verdicts is None:
            return new
        if _TRY_AGAIN in verdicts:
            raise StoreUnavailable("an idempotency key expired at this very moment")
        return [
            appended if verdict == Verdict.NEW else Appended(Verdict(verdict), first_id, first_count)
            for appended, verdict, first_id, first_count in zip(new, verdicts, first_ids, first_counts, strict=True)
        ]

    async def load_routes(self, tenant_id: UUID, *, since: int | None = None) -> TenantRoutes | None:
        row = await (self._routes.get(tenant_id) if since is None else self._route_changes.get((tenant_id, since)))
        if row is None:
            return None
        # Taken apart by each who asked: a row that cannot be is nobody else's trouble.
        filters = msgspec.json.decode(row["filters"], type=list[tuple[tuple[str, ...], int | None, bool]])
        return TenantRoutes(
            tenant_id=row["tenant_id"],
            config_version=row["config_version"],
            home_shards=tuple(row["home_shards"]),
            max_in_flight=row["max_in_flight"],
            endpoints=tuple(
                EndpointFilter(endpoint_id, events, cap or self._endpoint_cap, pinned)
                for endpoint_id, (events, cap, pinned) in zip(row["ids"], filters, strict=True)
            ),
            ingest_rate_limit=row["ingest_rate_limit"],
            schemas={} if row["schemas"] is None else msgspec.json.decode(row["schemas"], type=dict[str, str]),
            left_behind=frozenset(row["left_behind"]),
            since=since,
            gone=frozenset() if since is None else frozenset(row["gone"]),
        )

    async def _load_routes(self, tenant_ids: Sequence[UUID]) -> Mapping[UUID, Any]:
        of = f"tenant {tenant_ids[0]}" if len(tenant_ids) == 1 else f"{len(tenant_ids)} tenants"
        async with self._connections.use(f"load routes of {of}") as connection:
            rows = await connection.fetch(SQL["load_routes"], tenant_ids)
        return {row["tenant_id"]: row for row in rows}

    async def _load_route_changes(self, known: Sequence[tuple[UUID, int]]) -> Mapping[tuple[UUID, int], Any]:
        of = f"tenant {known[0][0]}" if len(known) == 1 else f"{len(known)} tenants"
        async with self._connections.use(f"load what changed of the routes of {of}") as connection:
            rows = await connection.fetch(
                SQL["load_route_changes"], [tenant_id for tenant_id, _ in known], [since for _, since in known]
            )
        return {(row["tenant_id"], row["since"]): row for row in rows}

    async def recall(self, tenant_id: UUID, key: str | None) -> Recalled | None:
        async with self._connections.use(f"recall a key of tenant {tenant_id}") as connection:
            row = await connection.fetchrow(SQL["recall"], tenant_id, key)
        if row is None or row["event_id"] is None:
            return None if row is None else Recalled(row["config_version"])
        first = Appended(Verdict.DUPLICATE, row["event_id"], row["delivery_count"])
        return Recalled(row["config_version"], first, row["request_hash"], row["reserved"])

    async def share_demand(
        self, node_id: UUID, demands: Mapping[UUID, float], *, lease_s: float, since: Since
    ) -> SharedDemand:
        async with self._connections.use("share the demand of limited tenants") as connection:
            row = await connection.fetchrow(
                SQL["share_demand"], node_id, list(demands), list(demands.values()), lease_s, self._key_ids
            )
            changed = await connection.fetch(SQL["changed_versions"], *since)
        return SharedDemand(
            processes=row["processes"],
            others=dict(zip(row["tenants"], row["demands"], strict=True)),
            changed={tenant["tenant_id"]: tenant["config_version"] for tenant in changed},
            now=row["now"],
        )

    async def leave_ingest(self, node_id: UUID) -> None:
        async with self._connections.use("leave the sharing of limits") as connection:
            await connection.execute(SQL["leave_ingest"], node_id)

    async def find_key(self, key_id: str) -> ApiKey | None:
        return await self._keys.get(key_id)

    async def _find_keys(self, key_ids: Sequence[str]) -> Mapping[str, ApiKey]:
        async with self._connections.use("look up API keys") as connection:
            rows = await connection.fetch(SQL["find_keys"], key_ids)
        return {
            row["key_id"]: ApiKey(
                key_id=row["key_id"],
                tenant_id=row["tenant_id"],
                key_hash=row["key_hash"],
                scopes=frozenset(row["scopes"]),
                expires_at=row["expires_at"],
                revoked=row["revoked"],
            )
            for row in rows
        }

    async def revoked_keys(self, since: Since) -> tuple[frozenset[str], float]:
        async with self._connections.use("look for revoked API keys") as connection:
            row = await connection.fetchrow(SQL["revoked_keys"], *since)
        return frozenset(row["key_ids"]), row["now"]

    async def ring(self, shards: Collection[int] = ()) -> None:
        names = ",".join(map(str, shards)) if len(shards) <= RING_SHARDS_MAX else ""
        async with self._connections.use("ring") as connection:
            await connection.execute(SQL["ring"], names)


def _places(shard: int | Sequence[int]) -> tuple[list[int], list[int] | None]:
    """The shards of an append, ascending, and which of them each event goes to, from 1 on; None where there is one."""
    if isinstance(shard, int):
        return [shard], None
    shards = sorted(set(shard))
    place_of = {each: place for place, each in enumerate(shards, 1)}
    return shards, [place_of[each] for each in shard]


def _with_new(places: Sequence[int] | None, verdicts: Sequence[int]) -> set[int]:
    """In which places of an append anything is new."""
    if places is None:
        return {1} if Verdict.NEW in verdicts else set()
    return {place for place, verdict in zip(places, verdicts, strict=True) if verdict == Verdict.NEW}


def _once(column: list[_T]) -> list[_T]:
    """A column that says the same of all events, once; the statement repeats it. The driver asks of each element of
    an array whether it is an array itself, which takes longer than to encode it."""
    return column[:1] if column.count(column[0]) == len(column) else column


def _owed_lists(events: Sequence[NewEvent]) -> tuple[list[UUID], list[int]]:
    """All that events are owed to, and where in it each event's list begins, from 1 on.

    Events of a tenant and type mostly share one list, the matcher's: it goes to the database once.
    """
    owed: list[UUID] = []
    places: dict[int, int] = {}
    starts: list[int] = []
    for event in events:
        place = places.get(id(event.owed))
        if place is None:
            place = places[id(event.owed)] = len(owed) + 1
            owed.extend(event.owed)
        starts.append(place)
    return owed, starts
