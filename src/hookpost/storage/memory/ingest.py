"""The ingest side of the store in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from uuid import UUID

from hookpost.engine.work import Kind
from hookpost.policy.looks import Since
from hookpost.storage.contract import (
    Appended,
    DataRejected,
    EndpointFilter,
    NewEvent,
    Place,
    Recalled,
    SharedDemand,
    Stale,
    TenantRoutes,
    Verdict,
)
from hookpost.storage.memory.tables import Database, IngestNode, Key

# What any store may be expected to refuse: PostgreSQL cannot index a longer key.
KEY_CHARS_MAX = 2_000
# An API process that was silent for so long is forgotten.
GONE_S = 60.0
# Shards that one append goes to.
LOT_SHARDS_MAX = 32
# Shards that one ring names, beyond which it means all.
RING_SHARDS_MAX = 500


class IngestTables:
    """Implements what IngestStore says of events and limits."""

    _db: Database
    _pause: Callable[[], Awaitable[None]]
    _idempotency_s: float
    _endpoint_cap: int
    lot_shards = LOT_SHARDS_MAX

    async def append(
        self,
        shard: int | Sequence[int],
        events: Sequence[NewEvent],
        versions: Mapping[UUID, int],
        placed: Callable[[Place], None] | None = None,
    ) -> list[Appended] | Stale:
        await self._pause()
        db = self._db
        shards = [shard] * len(events) if isinstance(shard, int) else shard
        journals = {each: db.shard(each).journal for each in sorted(set(shards))}
        for event in events:
            _refuse(event)
        stale = frozenset(tenant_id for tenant_id, version in versions.items() if self._version(tenant_id) != version)
        if stale:
            return Stale(stale)
        after = {each: journal.last_seq for each, journal in journals.items()}
        now = db.now()
        answers = [self._append(each, event, now) for each, event in zip(shards, events, strict=True)]
        for each, journal in journals.items():
            if placed is not None and journal.last_seq > after[each]:
                placed(Place(each, after[each], journal.rows[-1].day, now))
        return answers

    def _version(self, tenant_id: UUID) -> int | None:
        row = self._db.tenants.get(tenant_id)
        return None if row is None or row["deleted_at"] is not None else int(row["config_version"])

    def _append(self, shard: int, event: NewEvent, now: float) -> Appended:
        db = self._db
        if event.key is not None:
            assert event.request_hash is not None
            known = db.keys.get((event.tenant_id, event.key))
            if known is not None and known.expires_at > now:
                same = known.request_hash == event.request_hash
                verdict = Verdict.DUPLICATE if same else Verdict.CONFLICT
                return Appended(verdict, known.event_id, known.delivery_count)
            expires_at = now + self._idempotency_s
            key = Key(event.event_id, event.request_hash, len(event.owed), expires_at)
            db.keys[event.tenant_id, event.key] = key
        db.append(
            shard, event.event_id, event.tenant_id, Kind.DELIVER, event.type, payload=event.payload,
            owed=tuple(event.owed), idempotency_key=event.key, trace_id=event.trace_id, span=event.span,
            created_at=now,
        )  # fmt: skip
        return Appended(Verdict.NEW, event.event_id, len(event.owed))

    async def load_routes(self, tenant_id: UUID, *, since: int | None = None) -> TenantRoutes | None:
        await self._pause()
        row = self._db.tenants.get(tenant_id)
        if row is None or row["deleted_at"] is not None:
            return None
        return TenantRoutes(
            tenant_id=tenant_id,
            config_version=row["config_version"],
            home_shards=tuple(row["home_shards"]),
            max_in_flight=row["max_in_flight"],
            endpoints=tuple(
                EndpointFilter(
                    e["endpoint_id"], tuple(e["events"]), e["max_in_flight"] or self._endpoint_cap, e["pinned"]
                )
                for e in self._db.endpoints_of(tenant_id)
                if since is None or e["routed_in"] >= since
            ),
            ingest_rate_limit=row["ingest_rate_limit"],
            schemas={
                name: kind["schema"]
                for (of, name), kind in self._db.event_types.items()
                if of == tenant_id and kind["schema"] is not None
            },
            since=since,
            gone=frozenset() if since is None else self._gone(tenant_id, since),
        )

    def _gone(self, tenant_id: UUID, since: int) -> frozenset[UUID]:
        rows = [self._db.endpoints[endpoint_id] for endpoint_id in self._db.by_tenant.get(tenant_id, ())]
        return frozenset(r["endpoint_id"] for r in rows if r["deleted_at"] is not None and r["routed_in"] >= since)

    async def recall(self, tenant_id: UUID, key: str | None) -> Recalled | None:
        await self._pause()
        version = self._version(tenant_id)
        if version is None:
            return None
        known = None if key is None else self._db.keys.get((tenant_id, key))
        if known is None or known.expires_at <= self._db.now():
            return Recalled(version)
        first = Appended(Verdict.DUPLICATE, known.event_id, known.delivery_count)
        return Recalled(version, first, known.request_hash)

    async def share_demand(
        self, node_id: UUID, demands: Mapping[UUID, float], *, lease_s: float, since: Since
    ) -> SharedDemand:
        await self._pause()
        db, now = self._db, self._db.now()
        db.ingest_nodes = {n: each for n, each in db.ingest_nodes.items() if each.expires_at >= now - GONE_S}
        db.ingest_nodes[node_id] = IngestNode(dict(demands), now + lease_s)
        living = [each for n, each in db.ingest_nodes.items() if n != node_id and each.expires_at > now]
        others: dict[UUID, float] = {}
        for each in living:
            for tenant_id, demand in each.demands.items():
                others[tenant_id] = others.get(tenant_id, 0.0) + demand
        behind = since.by(now)
        changed = {t: row["config_version"] for t, row in db.tenants.items() if row["changed_at"] > behind}
        return SharedDemand(1 + len(living), others, changed, now)

    async def leave_ingest(self, node_id: UUID) -> None:
        await self._pause()
        self._db.ingest_nodes.pop(node_id, None)

    async def ring(self, shards: Collection[int] = ()) -> None:
        await self._pause()
        for listener in self._db.listeners:
            listener(shards if len(shards) <= RING_SHARDS_MAX else ())


def _refuse(event: NewEvent) -> None:
    """Raise DataRejected for what no store can keep."""
    if event.key is not None and (event.request_hash is None or len(event.key) > KEY_CHARS_MAX):
        raise DataRejected("append: a key needs a hash, and cannot be so long")
    for text in (event.type, event.key or ""):
        refuse_text(text)


def refuse_text(text: str) -> None:
    """Raise DataRejected for a NUL or a lone surrogate."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise DataRejected("a text holds a NUL or a lone surrogate")
