"""`hookpost bench growth`: what a delivery costs as the store grows, and what that means for a large installation.

Three axes, each point on a fresh server: rows kept (journal and attempts, in daily partitions), shards, workers. Each
point is one JSON line. The projection is a pure function of one point and of stated assumptions.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from uuid_utils.compat import uuid7

from hookpost.app.bench import fill
from hookpost.app.bench.ledger import VoidRun
from hookpost.app.bench.limits import curl_at_rest
from hookpost.app.bench.load import EVENT_TYPE, PAYLOAD, Load
from hookpost.app.bench.run import Figures, Run
from hookpost.app.bench.server import Server
from hookpost.app.bench.slices import Contender, alternate, costs
from hookpost.app.bench.waiting import (
    EVENT_TYPES,
    QUIET_S,
    add_tenants,
    drain_beside,
    of_all_tenants,
    on_database,
    receivers,
    refill,
    take_over,
    until_none,
)
from hookpost.storage.contract import NewEvent
from hookpost.storage.postgres.store import PostgresStore

# Rows kept for each second of `--seconds`, so that ten seconds mean 1, 10 and 30 million; a delivery keeps two.
SIZES = (100_000, 1_000_000, 3_000_000)
ROWS_A_DELIVERY = 2
SHARDS = (10, 100, 1000)
WORKERS = (1, 2, 4, 8)
# The other axes are measured on the smallest store.
USUAL_SHARDS, USUAL_WORKERS = 16, 1
# Of many tenants, each at home in one shard: at a rate that few installations exceed, then in balance.
TENANTS, CALM_RATE = 1_000, 1_000.0
# Kept in so many daily partitions.
DAYS = 10
# The journal that is drained at each point, for each second of `--seconds`.
DRAIN_PER_S = 10_000
# The largest spread: the tenant is at home in every shard, and with a smaller cap it would be pinned to its first.
CAP = 1000
# Appends behind the server's back: as large as a busy group commit, enough to see a hundredth of a millisecond.
APPENDS, APPEND_EVENTS = 200, 100

AVERAGE_PER_S, PEAK_PER_S = 12_000, 50_000
DAY_S, MONTH_HOURS = 86_400, 730


@dataclass(frozen=True, slots=True)
class Cost:
    """What one delivery costs, measured: CPU in µs by role, bytes of WAL, bytes kept (rows and indexes)."""

    api_us: float
    worker_us: float
    postgres_us: float
    wal_bytes: float
    kept_bytes: float


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What was not measured: how full cores may be, how long rows are kept, and what things cost in USD."""

    core_used_max: float = 0.7
    days_kept: int = 30
    core_hour_usd: float = 0.045
    gb_month_usd: float = 0.10


@dataclass(frozen=True, slots=True)
class Projection:
    """What a load asks for. Cores are filled to ``core_used_max``; GB are 10⁹ bytes; a month has 730 hours."""

    cores_average: float
    cores_peak: float
    gb_per_day: float
    gb_kept: float
    wal_mb_per_s_average: float
    wal_mb_per_s_peak: float
    usd_per_month: float


def project(
    cost: Cost, *, average_per_s: float, peak_per_s: float, assumptions: Assumptions = Assumptions()
) -> Projection:
    """Scale the cost of one delivery: cores are bought for the peak, the disk for the average."""
    cores_a_delivery = (cost.api_us + cost.worker_us + cost.postgres_us) / 1e6 / assumptions.core_used_max
    gb_per_day = average_per_s * DAY_S * cost.kept_bytes / 1e9
    cores_peak = peak_per_s * cores_a_delivery
    gb_kept = gb_per_day * assumptions.days_kept
    return Projection(
        cores_average=average_per_s * cores_a_delivery,
        cores_peak=cores_peak,
        gb_per_day=gb_per_day,
        gb_kept=gb_kept,
        wal_mb_per_s_average=average_per_s * cost.wal_bytes / 1e6,
        wal_mb_per_s_peak=peak_per_s * cost.wal_bytes / 1e6,
        usd_per_month=cores_peak * MONTH_HOURS * assumptions.core_hour_usd + gb_kept * assumptions.gb_month_usd,
    )


def growth(run: Run) -> Figures:
    """All points, a line each; then the projection from the largest store."""
    growth_shards(run)
    growth_tenants(run)
    growth_workers(run)
    return {"points": len(SIZES) + 2 * len(SHARDS) + len(WORKERS), **[_rows(run, size) for size in SIZES][-1]}


def growth_rows_1(run: Run) -> Figures:
    """The smallest store, and what it projects."""
    return _rows(run, SIZES[0])


def growth_rows_10(run: Run) -> Figures:
    """Ten times as large."""
    return _rows(run, SIZES[1])


def growth_rows_30(run: Run) -> Figures:
    """Thirty times as large."""
    return _rows(run, SIZES[2])


def growth_shards(run: Run) -> Figures:
    """The smallest store at 10, 100, 1000 shards."""
    return {"points": [point(run, SIZES[0], shards=shards)["shards"] for shards in SHARDS]}


def growth_workers(run: Run) -> Figures:
    """The smallest store at 1 to 8 workers."""
    return {"points": [point(run, SIZES[0], workers=workers)["workers"] for workers in WORKERS]}


def growth_tenants(run: Run) -> Figures:
    """A thousand tenants at 10, 100, 1000 shards, on an empty store."""
    return {"points": [_tenants(run, shards)["shards"] for shards in SHARDS]}


_UNCOUNTED = """
select 1 from progress p left join rollup_progress m on m.shard = p.shard
where p.settle_no > coalesce(m.settle_no, 0) limit 1
"""


def _tenants(run: Run, shards: int) -> Figures:
    """Events of tenants each of whom is at home in another shard: a thousand a second, then in balance."""
    with run.server(shards=shards) as server, run.load() as load:
        made = add_tenants(server, load, TENANTS, TENANTS * len(EVENT_TYPES))
        server.start()
        of_all_tenants(server, load, made)
        until_none(server, _UNCOUNTED)
        with run.measure(server, load) as calm:
            load.open_loop(run.seconds, CALM_RATE)
        load.drain(quiet_s=QUIET_S)
        full = run.in_balance(server, load)
        shown = ("per_second", "api_us", "worker_us", "postgres_us", "all_us")
        figures = {
            "shards": shards, "tenants": TENANTS,
            **{name: full.figures()[name] for name in shown}, **full.latencies(),
            **{f"calm_{name}": value for name, value in calm.figures().items() if name in shown},
            **{f"calm_{name}": value for name, value in calm.latencies().items()},
            **run.writes(server, load), **run.accounts(server, load),
        }  # fmt: skip
    print(json.dumps({"scenario": "growth", "point": figures}), flush=True)
    return figures


def _rows(run: Run, rows_per_s: int) -> Figures:
    return projection(point(run, rows_per_s))


def projection(figures: Figures) -> Figures:
    """What the largest store's cost means, with the assumptions."""
    cost = Cost(**{part.name: float(str(figures[part.name])) for part in fields(Cost)})
    projected = project(cost, average_per_s=AVERAGE_PER_S, peak_per_s=PEAK_PER_S)
    return {
        "average_per_s": AVERAGE_PER_S, "peak_per_s": PEAK_PER_S, **asdict(cost),
        **{name: round(value, 1) for name, value in asdict(projected).items()}, "assumed": asdict(Assumptions()),
    }  # fmt: skip


def point(run: Run, rows_per_s: int, *, shards: int = USUAL_SHARDS, workers: int = USUAL_WORKERS) -> Figures:
    """One store of finished rows: a journal drained, then events posted and delivered, both beside libcurl's loop, in
    whose requests costs are told; then appends alone."""
    drained, rows = round(run.seconds * DRAIN_PER_S), round(run.seconds * rows_per_s)
    started = time.monotonic()
    with (
        curl_at_rest(run) as unit,
        run.server(shards=shards, workers=workers) as server,
        run.load() as load,
    ):
        server.sql("update tenants set max_in_flight = $1", CAP)
        owed = receivers(server, load, max_in_flight=CAP)
        refill(server, lambda c: _fill(c, owed, rows, drained))
        filled_s = time.monotonic() - started
        take_over(load.ledger, drained)
        server.start()
        figures = {
            "rows": rows, "shards": shards, "workers": workers, "filled_s": round(filled_s, 1),
            "started_in_s": round(server.started_in_s, 2),
            **_drained(run, unit, server, load, drained), **_posted(run, unit, server, load),
            **_check(server, load),
            "worker_mb": server.rss_mb()["worker"],
        }  # fmt: skip
        server.stop()
        figures |= on_database(server, lambda connection: _appends(connection, server.dsn, owed))
    print(json.dumps({"scenario": "growth", "point": figures}), flush=True)
    return figures


async def _fill(connection: Any, owed: fill.Owed, rows: int, drained: int) -> None:
    await fill.finished(connection, owed, rows // ROWS_A_DELIVERY, days=DAYS, first=drained)
    await fill.journal(connection, owed, drained)


def _drained(run: Run, unit: Contender, server: Server, load: Load, count: int) -> Figures:
    figures = drain_beside(run, unit, server, load, count)
    shown = ("per_second", "of_curl", "worker_us", "worker_in_curls", "postgres_us", "postgres_in_curls")
    return {f"deliver_{name}": figures[name] for name in shown}


def _posted(run: Run, unit: Contender, server: Server, load: Load) -> Figures:
    load.target(server.url, server.key, endpoints=[listener.endpoint_id for listener in load.listeners])
    before, counted = load.ledger.delivered, server.counters()["wal_bytes"]
    posted = Contender(subject=server, load=load, work=load.sustained, rest=partial(load.drain, quiet_s=QUIET_S))
    rounds = alternate(run, {"curl": unit, "posted": posted})
    wal_bytes = (server.counters()["wal_bytes"] - counted) / max(1, load.ledger.delivered - before)
    figures = rounds.figures("posted")
    return {
        "e2e_per_second": figures["per_second"],
        "e2e_of_curl": rounds.ratio("posted", "curl"),
        **{name: figures[name] for name in ("api_us", "worker_us", "postgres_us", "cores_used_by_others")},
        **costs(rounds, "posted", ("api", "worker", "postgres")),
        "curl_us": rounds.figures("curl")["curl_us"],
        **rounds.latencies("posted"),
        "wal_bytes": round(wal_bytes),
    }


_BOOKS = """
select (select count(*) from attempts where worker <> $1 and outcome = 'delivered' and day >= hookpost_today() - 1)
           as delivered,
       (select count(*) from backlog) + (select count(*) from dead_letters) as others
"""
_OPEN = """
select 1 from shards s cross join lateral hookpost_last(s.shard) l cross join lateral (
    select p.cursor from progress p where p.shard = s.shard order by p.settle_no desc limit 1
) p where p.cursor < l.last_seq limit 1
"""
_KEPT = """
select (select sum(pg_total_relation_size(inhrelid)) from pg_inherits
        where inhparent in ('events'::regclass, 'attempts'::regclass))::bigint as bytes,
       (select sum(reltuples) from pg_class c join pg_inherits on inhrelid = c.oid
        where inhparent = 'attempts'::regclass and reltuples > 0)::bigint as deliveries
"""


def _check(server: Server, load: Load) -> Figures:
    """Published = delivered, by the receiver and by the database, the filled rows aside. Raises VoidRun."""
    until_none(server, _OPEN)
    ledger = load.ledger
    books = server.sql(_BOOKS, fill.WORKER)[0]
    if not ledger.accepted <= books["delivered"] <= ledger.delivered + ledger.duplicates or books["others"]:
        raise VoidRun(f"{ledger.accepted} were accepted, {ledger.delivered} arrived, the database says {books}", {})
    return {"published": ledger.accepted, "delivered": ledger.delivered, "duplicates": ledger.duplicates}


async def _appends(connection: Any, dsn: str, owed: fill.Owed) -> Figures:
    """Groups of events appended over one connection, shard after shard; and what a delivery takes on disk."""
    await connection.execute("analyze events, attempts")
    kept = await connection.fetchrow(_KEPT)
    store = PostgresStore(dsn, size_max=1, append_timeout_s=QUIET_S)
    await store.open()
    try:
        routes = await store.load_routes(owed.tenant_id)
        assert routes is not None
        groups = [(owed.shards[number % len(owed.shards)], _events(owed)) for number in range(APPENDS)]
        started = time.monotonic()
        for shard, events in groups:
            await store.append(shard, events, {owed.tenant_id: routes.config_version})
        took_s = time.monotonic() - started
    finally:
        await store.close()
    return {
        "append_per_second": round(APPENDS * APPEND_EVENTS / took_s),
        "append_ms": round(took_s / APPENDS * 1000, 2),
        "kept_bytes": round(kept["bytes"] / max(1, kept["deliveries"])),
    }


def _events(owed: fill.Owed) -> list[NewEvent]:
    return [
        NewEvent(uuid7(), owed.tenant_id, EVENT_TYPE, PAYLOAD % 0, (owed.endpoints[0],)) for _ in range(APPEND_EVENTS)
    ]


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        growth, growth_rows_1, growth_rows_10, growth_rows_30, growth_shards, growth_tenants, growth_workers,
    )
}  # fmt: skip
