"""`hookpost bench soak`: a month of days in a minute, under load. Do tables stay as large, and deliveries as fast?

The database's clock (hookpost_now) is made to jump a day every now and then. Events go on being posted at half of what
was sustained before, while all that a worker process does in the background is done for each day: partitions come and
go, payloads move into segments, rollups are built. At the end nothing may be missing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

from hookpost.app.bench.ledger import VoidRun
from hookpost.app.bench.run import Figures, Run, Window, number
from hookpost.app.bench.server import Server
from hookpost.cold import SEGMENT_BYTES, SEGMENT_ROWS
from hookpost.maintenance import EVENTS_AT_ONCE, SETTLES_AT_ONCE, Maintenance
from hookpost.storage.contract import DataRejected, StoreUnavailable
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres import cold
from hookpost.storage.postgres.store import PostgresStore

DAYS = 30
KEEP_DAYS = 3
# All that is kept is there from then on; compared are the days behind it.
STEADY_FROM = KEEP_DAYS + 4
DAYS_AHEAD = 3
# A day lasts until all that is to be done on it was done: a round that began on it has ended.
ROUNDS_A_DAY = 2
DAY_S_MAX = 60.0
LOAD_PART = 0.5
PAUSE_S = 0.1

_CLOCK = """
create or replace function hookpost_now() returns timestamptz language sql volatile as
$$ select clock_timestamp() + make_interval(days => {days}) $$
"""
_SIZES = """
select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint as bytes, count(*) as tables
from pg_class c
where c.relkind = 'r' and c.relname ~ '^(events|attempts|progress|cold|dead_letters|backlog|shards|segments)'
"""


def soak(run: Run) -> Figures:
    """Day after day: latencies, and the sizes of all tables that hold what is kept for a time."""
    day_s = run.seconds / DAYS
    with run.server(partition_days_ahead=DAYS_AHEAD) as server, run.load() as load:
        server.subscribe(load.listen())
        load.target(server.url, server.key)
        load.sustained(run.warm_up_s)
        with run.measure(server, load) as full:
            load.sustained(run.warm_up_s)
        load.drain()
        rate = LOAD_PART * full.delivered / full.seconds
        days: list[tuple[Window, dict[str, int]]] = []
        with _maintained(server) as rounds:
            for day in range(1, DAYS + 1):
                server.sql(_CLOCK.format(days=day))
                ended, last = load.now() + day_s, rounds[0] + ROUNDS_A_DAY
                with run.measure(server, load) as window:
                    load.open_loop(DAY_S_MAX, rate, done=lambda: load.now() >= ended and rounds[0] >= last)  # noqa: B023
                days.append((window, server.sql(_SIZES)[0]))
            load.drain()
        if not load.all_arrived():
            raise VoidRun("not all that was accepted has arrived", {"accepted": load.ledger.accepted})
        return {"rate": round(rate), "accepted": load.ledger.accepted, **_compared(days)}


def _compared(days: list[tuple[Window, dict[str, int]]]) -> Figures:
    steady = days[STEADY_FROM:]
    third = len(steady) // 3
    sizes = [size["bytes"] / 1e6 for _, size in steady]
    told = [window.latencies() for window, _ in steady]

    def typical(figure: str, part: slice) -> float:
        return round(median(number(each, figure) for each in told[part]), 1)

    first, last = slice(0, third), slice(len(told) - third, None)
    return {
        "days": len(days),
        "mb_early": round(median(sizes[first])),
        "mb_late": round(median(sizes[last])),
        "mb_max": round(max(sizes)),
        "tables_max": max(size["tables"] for _, size in steady),
        **{f"{name}_early": typical(name, first) for name in ("p50_ms", "p99_ms")},
        **{f"{name}_late": typical(name, last) for name in ("p50_ms", "p99_ms")},
        "max_ms": max(number(each, "max_ms") for each in told),
    }


@contextmanager
def _maintained(server: Server) -> Iterator[list[int]]:
    """All that is done in the background, again and again, in a thread of its own; how many rounds have ended."""
    over, rounds = threading.Event(), [0]
    folder = server.folder / "segments"
    thread = threading.Thread(target=lambda: asyncio.run(_maintain(server.dsn, folder, over, rounds)))
    thread.start()
    try:
        yield rounds
    finally:
        over.set()
        thread.join()


async def _maintain(dsn: str, folder: Path, over: threading.Event, rounds: list[int]) -> None:
    cold.SETTLE_S = 0.0  # no dump is under way, and days are short
    store, objects = PostgresStore(dsn, size_max=2), ObjectStore(folder.as_uri())
    maintenance = Maintenance(store, objects, days_ahead=DAYS_AHEAD, keep_days=KEEP_DAYS)
    await store.open()
    try:
        while not over.is_set():
            with suppress(StoreUnavailable, DataRejected):  # tried again, as a worker does
                await _count(store)
                await _move(store, objects)
            await maintenance.once()
            rounds[0] += 1
            await asyncio.sleep(PAUSE_S)
    finally:
        await store.close()


async def _count(store: PostgresStore) -> None:
    """All there is; while the worker's own builder has its turn there is some more."""
    step = None
    while step is None or step.left is not None:
        left = None if step is None else step.left
        step = await store.roll_up(settles_max=SETTLES_AT_ONCE, events_max=EVENTS_AT_ONCE, left=left)


async def _move(store: PostgresStore, objects: ObjectStore) -> None:
    while await store.move_payloads(objects.put, age_s=0.0, rows_max=SEGMENT_ROWS, bytes_max=SEGMENT_BYTES):
        pass


SCENARIOS = {"soak": soak}
