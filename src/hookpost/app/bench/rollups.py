"""What the builder of rollups costs: attempts of a day and of this minute are counted, then added up to half
hours, hours and days, and removed.

Two stores: busy endpoints, with many attempts a minute each, and quiet ones, where nearly every attempt is a row of its
own. Only the builder is at work, over one connection: its seconds are those of one busy backend.
"""

from __future__ import annotations

import time
from typing import Any

from hookpost.app.bench import fill
from hookpost.app.bench.run import Figures, Run
from hookpost.app.bench.waiting import on_database, receivers, refill
from hookpost.maintenance import EVENTS_AT_ONCE, ROLLUPS_AT_ONCE, SETTLES_AT_ONCE
from hookpost.policy.grains import FINER
from hookpost.storage.postgres.store import PostgresStore

ATTEMPTS_PER_S = 20_000
# Endpoints of the two stores.
BUSY, QUIET = 10, 200
MILLION = 1e6

# A settle's progress, as the builder finds attempts by it.
_PROGRESS = """
insert into progress (day, shard, settle_no, fence, cursor, read_to, read_day)
select distinct a.day, a.shard, a.settle_no, 1, 0, 0, a.day from attempts a on conflict do nothing
"""
_UNCOUNT = """
truncate rollup_progress, rollup_counts, metering;
update rollup_grains set bucket = '-infinity', kept_from = '-infinity' where grain > 60
"""
_KEPT = "select count(*) as rows, pg_total_relation_size('rollup_counts') as bytes from rollup_counts"
_WAL = "select pg_current_wal_lsn() - '0/0'"


def rollups(run: Run) -> Figures:
    """Both stores."""
    count = round(run.seconds * ATTEMPTS_PER_S)
    return {
        "attempts": count,
        **{f"busy_{name}": value for name, value in _store(run, count, BUSY).items()},
        **{f"quiet_{name}": value for name, value in _store(run, count, QUIET).items()},
    }


def _store(run: Run, count: int, endpoints: int) -> Figures:
    with run.server() as server, run.load() as load:
        owed = receivers(server, load, count=endpoints)

        async def filling(connection: Any) -> None:
            await fill.finished(connection, owed, count, days=2)
            await connection.execute(_PROGRESS)

        refill(server, filling)
        return on_database(server, lambda connection: _build(connection, server.dsn, count))


async def _build(connection: Any, dsn: str, count: int) -> Figures:
    await connection.execute(_UNCOUNT)
    store = PostgresStore(dsn, size_max=1)
    await store.open()
    try:
        before, started = await connection.fetchval(_WAL), time.monotonic()
        steps = attempts = 0
        while True:
            step = await store.roll_up(settles_max=SETTLES_AT_ONCE, events_max=EVENTS_AT_ONCE)
            assert step is not None, "nobody else builds"
            steps, attempts = steps + 1, attempts + step.attempts
            if not step.more:
                break
        built_s, wal = time.monotonic() - started, await connection.fetchval(_WAL) - before
        assert attempts == count, f"{attempts} of {count} were counted"
        kept = await connection.fetchrow(_KEPT)
        started = time.monotonic()
        while await store.build_rollups(rows_max=ROLLUPS_AT_ONCE):
            pass
        coarser_s, started = time.monotonic() - started, time.monotonic()
        removed = 0
        for grain in FINER.values():
            while some := await store.prune_rollups(grain, age_s=0.0, rows_max=ROLLUPS_AT_ONCE):
                removed += some
        pruned_s = time.monotonic() - started
    finally:
        await store.close()
    return {
        "s_a_million": round(built_s / count * MILLION, 1),
        "step_ms": round(built_s / steps * 1000),
        "wal_bytes": round(wal / count),
        "rows_a_million": round(kept["rows"] / count * MILLION),
        "bytes_a_row": round(kept["bytes"] / kept["rows"]),
        "coarser_s_a_million": round(coarser_s / count * MILLION, 1),
        "prune_s_a_million": round(pruned_s / count * MILLION, 1),
        "pruned_rows": removed,
    }


SCENARIOS = {"rollups": rollups}
