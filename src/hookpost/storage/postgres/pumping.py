"""The PostgreSQL side of a journal in Kafka: reserved idempotency keys, and records taken over into `events`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from hookpost.model import PayloadRef
from hookpost.storage.contract import (
    INGEST_LEASE_S,
    EventView,
    FenceLost,
    NewEvent,
    NotFound,
    OffsetMoved,
    PumpBatch,
    Reserved,
    Stale,
    StoreUnavailable,
    Verdict,
)
from hookpost.storage.postgres.admin import view_of
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.queries import load

SQL = load("pumping")
# What hookpost_reserve answers, besides a Verdict: the first event of the key has just expired; it is on its way.
_TRY_AGAIN, _ON_ITS_WAY = 3, 4
_FENCE_LOST, _OFFSET_MOVED = "HP020", "HP021"


class PumpQueries:
    """Implements PumpStore."""

    _connections: Connections
    _idempotency_s: float
    _append_timeout_s: float

    async def reserve(self, events: Sequence[NewEvent]) -> list[Reserved]:
        """Reserve the keys of these events, each of which has one; durable when this returns. What is not a conflict
        and not in the journal is to be sent under the id that is returned. Raises StoreUnavailable, DataRejected."""
        async with self._connections.use("reserve idempotency keys") as connection:
            row = await connection.fetchrow(
                SQL["reserve"],
                self._idempotency_s,
                [event.tenant_id for event in events],
                [event.key for event in events],
                [event.event_id for event in events],
                [event.request_hash for event in events],
                [len(event.owed) for event in events],
                timeout=self._append_timeout_s,
            )
        verdicts, ids, counts = row
        if _TRY_AGAIN in verdicts:
            raise StoreUnavailable("an idempotency key expired at this very moment")
        return [
            Reserved(
                Verdict.DUPLICATE if verdict == _ON_ITS_WAY else Verdict(verdict),
                event_id,
                count,
                send=verdict in (Verdict.NEW, _ON_ITS_WAY),
            )
            for verdict, event_id, count in zip(verdicts, ids, counts, strict=True)
        ]

    async def outdated(self, versions: Mapping[UUID, int]) -> frozenset[UUID]:
        """Tenants whose configuration has another version now. Raises StoreUnavailable."""
        async with self._connections.use("look for changed tenants") as connection:
            rows = await connection.fetch(SQL["outdated"], list(versions), list(versions.values()))
        return frozenset(row["tenant_id"] for row in rows)

    async def pump(self, batch: PumpBatch) -> Stale | int:
        owed: list[UUID] = []
        starts: list[int] = []
        events = batch.events
        for event in events:
            starts.append(len(owed) + 1)
            owed.extend(event.owed)
        keyed = any(event.key is not None for event in events)
        traced = any(event.trace_id is not None for event in events)
        stored = any(type(event.payload) is PayloadRef for event in events)
        try:
            async with self._connections.use(f"take partition {batch.shard} over") as connection:
                row = await connection.fetchrow(
                    SQL["pump"],
                    batch.shard,
                    batch.fence,
                    batch.start,
                    batch.end,
                    batch.reached_at,
                    list(batch.homes),
                    list(batch.versions),
                    list(batch.versions.values()),
                    [event.event_id for event in events],
                    [event.tenant_id for event in events],
                    [event.type for event in events],
                    [None if type(event.payload) is PayloadRef else event.payload for event in events],
                    owed,
                    starts,
                    [len(event.owed) for event in events],
                    list(batch.accepted_at),
                    [event.trace_id for event in events] if traced else None,
                    [event.key for event in events] if keyed else None,
                    [str(event.payload) if type(event.payload) is PayloadRef else None for event in events]
                    if stored
                    else None,
                    [event.span for event in events] if traced else None,
                    list(batch.left) or None,
                )
        except StoreUnavailable as error:
            cause = error.__cause__
            state = cause.sqlstate if isinstance(cause, asyncpg.PostgresError) else None
            if state == _FENCE_LOST:
                raise FenceLost([batch.shard]) from error
            if state == _OFFSET_MOVED:
                raise OffsetMoved(str(error)) from error
            raise
        stale, written = row
        return int(written) if stale is None else Stale(frozenset(stale))

    async def pumped_to(self, shards: Collection[int]) -> dict[int, tuple[int, float]]:
        async with self._connections.use("look how far partitions were taken over") as connection:
            rows = await connection.fetch(SQL["pumped_to"], list(shards))
        return {row["shard"]: (row["next_offset"], row["reached_at"]) for row in rows}

    async def trim_offsets(self, shard: int) -> None:
        async with self._connections.use("trim offsets") as connection:
            await connection.execute(SQL["trim_offsets"], shard)

    async def remember_topic(self, topic_id: str) -> str:
        """The id of the topic that records are taken over from: the first that was told."""
        async with self._connections.use("recognise the topic") as connection:
            known: str = await connection.fetchval(SQL["remember_topic"], topic_id)
            return known

    async def unsealed(self, settled_s: float, outage_s: float) -> tuple[datetime, list[int]] | None:
        """Shards whose partitions somebody waits for and whose ends are to be looked at now; and up to which time of a
        change that look will be good: ``settled_s`` ago, but for processes that are cut off and accept events for
        ``outage_s``. None: nobody waits."""
        async with self._connections.use("look who waits for Kafka") as connection:
            rows = await connection.fetch(SQL["unsealed"], settled_s, outage_s, INGEST_LEASE_S)
        return (rows[0]["covers"], [row["shard"] for row in rows]) if rows else None

    async def note_ends(self, ends: Mapping[int, int], covers: datetime) -> None:
        """What was accepted by configurations older than ``covers`` lies before these offsets."""
        async with self._connections.use("note the ends of partitions") as connection:
            await connection.execute(SQL["note_ends"], list(ends), list(ends.values()), covers)

    async def shard_count(self) -> int:
        async with self._connections.use("count the shards") as connection:
            count: int = await connection.fetchval(SQL["shard_count"])
            return count

    async def event_of_any_day(self, tenant_id: UUID | None, event_id: UUID) -> EventView:
        """Like ``get_event``, wherever its row lies. Raises NotFound."""
        async with self._connections.use(f"get event {event_id}") as connection:
            row = await connection.fetchrow(SQL["event_of_any_day"], event_id, tenant_id)
            if row is None:
                raise NotFound("event")
            return await view_of(connection, dict(row))
