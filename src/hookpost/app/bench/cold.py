"""What a million events cost before and after their payloads have moved into segments, and what moving them takes.

One day of finished events is filled, then moved over one connection into a folder, as a worker process does it but
without its rests. Sizes are those of the partition of events, indexes included; attempts are not touched by it.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from hookpost.app.bench import fill
from hookpost.app.bench.run import Figures, Run
from hookpost.app.bench.waiting import on_database, receivers, refill
from hookpost.cold import SEGMENT_BYTES, SEGMENT_ROWS
from hookpost.model import PayloadRef
from hookpost.policy.cost import GB, Prices
from hookpost.storage.contract import MoveState
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres import cold as moving
from hookpost.storage.postgres.store import PostgresStore

EVENTS_PER_S = 20_000
READS = 500
LOOK_S = 0.005
MILLION = 1e6
# S3 Standard, us-east-1; the database's price is that of `hookpost cost`.
OBJECTS_USD_GB_MONTH = 0.023
OBJECTS_USD_PUT = 0.005 / 1000

_SIZES = """
select pg_total_relation_size(c.oid) as total, pg_indexes_size(c.oid) as indexes
from pg_class c where c.relname = 'events_' || to_char(hookpost_today() - 1, 'YYYYMMDD')
"""
# By the index, in whichever partition: it needs the lock that the change of a day takes away for a moment.
_LOOK = "select 1 from events where event_id = '00000000-0000-0000-0000-000000000000'"
_WAL = "select pg_current_wal_lsn() - '0/0'"
_PLACES = "select payload_ref from events where payload_ref is not null order by event_id limit $1"


def cold(run: Run) -> Figures:
    """Yesterday's events: before, moved, after."""
    count = round(run.seconds * EVENTS_PER_S)
    with run.server() as server, run.load() as load:
        owed = receivers(server, load)
        # As many again are today's, which stay.
        refill(server, lambda connection: fill.finished(connection, owed, 2 * count, days=2))
        folder = server.folder / "segments"
        return {
            "events": count,
            **on_database(server, lambda connection: _measure(connection, server.dsn, folder, count)),
        }


async def _measure(connection: Any, dsn: str, folder: Path, count: int) -> Figures:
    objects = ObjectStore(folder.as_uri())
    store = PostgresStore(dsn, size_max=1)
    await store.open()
    try:
        before, wal_before = await connection.fetchrow(_SIZES), await connection.fetchval(_WAL)
        began = time.monotonic()
        steps, waited_s = await _move(store, objects, connection)
        took_s, wal = time.monotonic() - began, await connection.fetchval(_WAL) - wal_before
        after = await connection.fetchrow(_SIZES)
        places = [PayloadRef.parse(row["payload_ref"]) for row in await connection.fetch(_PLACES, READS)]
        began = time.monotonic()
        for place in places:
            await objects.get(place)
        read_s = (time.monotonic() - began) / len(places)
    finally:
        await store.close()
    sizes = _sizes_of(folder)
    a_million = MILLION / count
    return {
        "before_mb_a_million": round(before["total"] * a_million / 1e6),
        "after_mb_a_million": round(after["total"] * a_million / 1e6),
        "indexes_before_mb": round(before["indexes"] * a_million / 1e6),
        "indexes_after_mb": round(after["indexes"] * a_million / 1e6),
        "objects_a_million": round(len(sizes) * a_million),
        "objects_mb_a_million": round(sum(sizes) * a_million / 1e6),
        "before_usd_month_a_million": _usd(before["total"] * a_million, 0, 0),
        "after_usd_month_a_million": _usd(after["total"] * a_million, sum(sizes) * a_million, len(sizes) * a_million),
        "s_a_million": round(took_s * a_million, 1),
        "step_ms": round(took_s / steps * 1000),
        "reader_waits_ms": round(waited_s * 1000, 1),
        "wal_bytes_an_event": round(wal / count),
        "read_ms": round(read_s * 1000, 2),
    }


async def _move(store: PostgresStore, objects: ObjectStore, reader: Any) -> tuple[int, float]:
    """Steps, and the longest that somebody waited who read events one after the other meanwhile."""
    moving.SETTLE_S = 0.0  # no dump is under way
    steps, moved = 0, None
    over = asyncio.Event()
    reading = asyncio.create_task(_read(reader, over))
    while moved is None or moved.state is not MoveState.MOVED:
        moved = await store.move_payloads(objects.put, age_s=0.0, rows_max=SEGMENT_ROWS, bytes_max=SEGMENT_BYTES)
        assert moved is not None and moved.state is not MoveState.HELD, "nobody else is at work"
        steps += 1
    over.set()
    return steps, await reading


async def _read(connection: Any, over: asyncio.Event) -> float:
    longest_s = 0.0
    while not over.is_set():
        began = time.monotonic()
        await connection.fetchval(_LOOK)
        longest_s = max(longest_s, time.monotonic() - began)
        await asyncio.sleep(LOOK_S)
    return longest_s


def _sizes_of(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def _usd(database_bytes: float, object_bytes: float, puts: float) -> float:
    """For the month in which they are put."""
    database = database_bytes / GB * Prices().storage_cost_per_gb_month
    return round(database + object_bytes / GB * OBJECTS_USD_GB_MONTH + puts * OBJECTS_USD_PUT, 4)


SCENARIOS = {"cold": cold}
