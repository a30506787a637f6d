"""What the builder of rollups costs: attempts of a day and of this minute are counted, then added up to half
hours, hours and days, and removed.

Three stores: busy endpoints, with many attempts a minute each; quiet ones, most of whose attempts are a day's; and the
endpoints of ten thousand tenants within a minute, where each attempt of a step is another tenant's, as in `scale`, and
nearly each is a row of its own. Only the builder is at work, over one connection.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from hookpost.app.bench import fill
from hookpost.app.bench.run import Figures, Run
from hookpost.app.bench.waiting import on_database, receivers, refill
from hookpost.maintenance import EVENTS_AT_ONCE, ROLLUPS_AT_ONCE, SETTLES_AT_ONCE
from hookpost.policy.grains import FINER
from hookpost.storage.postgres.store import PostgresStore

ATTEMPTS_PER_S = 20_000
# Endpoints of the first two stores, tenants of the third, each with its endpoints.
BUSY, QUIET = 10, 200
SPREAD_TENANTS, SPREAD_ENDPOINTS = 10_000, 10
# What a shard settles at once of 6,000 a second.
SPREAD_ATTEMPTS_A_SETTLE = 8
MILLION = 1e6
NANO = 1e-9

# Tenants and endpoints by chance, each tenant at home in one shard, and small settles.
_TENANT_OF = """
create function pg_temp.tenant_of(p_number bigint, p_shard int, p_tenants int) returns text language sql as $$
    select 't' || abs(hashint8(p_number * 64 + p_shard) % (p_tenants / k.shards)) * k.shards + p_shard
    from (select count(*) as shards from shards) k
$$
"""
_SPREAD_ATTEMPTS = """
update attempts a set settle_no = 1 + a.position / $3, tenant_id = md5(t.tenant)::uuid,
                      endpoint_id = md5(t.tenant || ' ' || abs(hashint8(a.position * 64 + a.shard + 1) % $2))::uuid
from (select attempt_id, pg_temp.tenant_of(position, shard, $1) as tenant from attempts) t
where t.attempt_id = a.attempt_id
"""
_SPREAD_EVENTS = "update events set tenant_id = md5(pg_temp.tenant_of(seq, shard, $1))::uuid"

# A settle's progress, as the builder finds attempts by it.
_PROGRESS = """
insert into progress (day, shard, settle_no, fence, cursor, read_to, read_day)
select distinct a.day, a.shard, a.settle_no, 1, 0, 0, a.day from attempts a on conflict do nothing
"""
_UNCOUNT = """
truncate rollup_progress, rollup_tallies, metering;
update rollup_reach set bucket = '-infinity', kept_from = '-infinity' where grain > 60
"""
_KEPT = "select count(*) as rows, pg_total_relation_size('rollup_tallies') as bytes from rollup_tallies"
_WAL = "select pg_current_wal_lsn() - '0/0'"
_BUILDER = "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"


def rollups(run: Run) -> Figures:
    """All stores."""
    count = round(run.seconds * ATTEMPTS_PER_S)
    stores = {
        "busy": _store(run, count, BUSY, partial(fill.finished, count=count, days=2)),
        "quiet": _store(run, count, QUIET, partial(fill.finished, count=count, days=2)),
        "spread": _store(run, count, BUSY, partial(_spread, count=count)),
    }
    return {
        "attempts": count,
        **{f"{store}_{name}": value for store, figures in stores.items() for name, value in figures.items()},
    }


async def _spread(connection: Any, owed: fill.Owed, *, count: int) -> None:
    await fill.finished(connection, owed, count, days=1, varied=True)
    await connection.execute(_TENANT_OF)
    await connection.execute(_SPREAD_ATTEMPTS, SPREAD_TENANTS, SPREAD_ENDPOINTS, SPREAD_ATTEMPTS_A_SETTLE)
    await connection.execute(_SPREAD_EVENTS, SPREAD_TENANTS)


def _store(run: Run, count: int, endpoints: int, filler: Callable[[Any, fill.Owed], Awaitable[None]]) -> Figures:
    with run.server() as server, run.load() as load:
        owed = receivers(server, load, count=endpoints)

        async def filling(connection: Any) -> None:
            await filler(connection, owed)
            await connection.execute(_PROGRESS)

        refill(server, filling)
        return on_database(server, lambda connection: _build(connection, server.dsn, count))


async def _build(connection: Any, dsn: str, count: int) -> Figures:
    await connection.execute(_UNCOUNT)
    store = PostgresStore(dsn, size_max=1)
    await store.open()
    try:
        await store.ping()
        pid = await connection.fetchval(_BUILDER)
        before, used_s, started = await connection.fetchval(_WAL), _cpu_s(pid), time.monotonic()
        steps, attempts, left = 0, 0, None
        while steps == 0 or left is not None:
            step = await store.roll_up(settles_max=SETTLES_AT_ONCE, events_max=EVENTS_AT_ONCE, left=left)
            assert step is not None, "nobody else builds"
            steps, attempts, left = steps + 1, attempts + step.attempts, step.left
        built_s, cpu_s = time.monotonic() - started, _cpu_s(pid) - used_s
        wal = await connection.fetchval(_WAL) - before
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
        "cpu_s_a_million": round(cpu_s / count * MILLION, 1),
        "step_ms": round(built_s / steps * 1000),
        "wal_bytes": round(wal / count),
        "rows_a_million": round(kept["rows"] / count * MILLION),
        "bytes_a_row": round(kept["bytes"] / kept["rows"]),
        "coarser_s_a_million": round(coarser_s / count * MILLION, 1),
        "prune_s_a_million": round(pruned_s / count * MILLION, 1),
        "pruned_rows": removed,
    }


def _cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) * NANO


SCENARIOS = {"rollups": rollups}
