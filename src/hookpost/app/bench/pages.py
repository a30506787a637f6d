"""Every page of the dashboard with a million events of thirty days behind it: after a start, then later.

The server is otherwise at rest. Times are those of a client on the same machine, so a little more than the server's.
Between two looks at a page lie more than the seconds for which answers are shared: each asks the database.
"""

from __future__ import annotations

import http.client
import time
from typing import Any
from urllib.parse import urlencode, urlsplit

from hookpost.app.bench import fill
from hookpost.app.bench.ledger import percentile
from hookpost.app.bench.run import Figures, Run
from hookpost.app.bench.server import Server
from hookpost.app.bench.waiting import on_database, receivers, refill
from hookpost.policy.latency import LOWS
from hookpost.web.dashboard.recent import GOOD_S

# Ten seconds are the million that the target speaks of.
EVENTS_PER_S = 100_000
DAYS, ENDPOINTS = 30, 50
ROUNDS = 12
# What the builder of rollups leaves behind, at once: it takes a minute for a million, and is measured elsewhere.
_COUNT = """
with tries as materialized (
    select a.finished_at, a.tenant_id, a.endpoint_id, a.outcome, coalesce(a.error_code, '') as error_code,
           ($1::int[])[width_bucket(a.latency_ms, $1::int[])] as latency_ms,
           ($1::int[])[width_bucket(a.latency_ms + 3, $1::int[])] as arrived_ms
    from attempts a
), counted as (
    select g.grain,
           date_bin(make_interval(secs => g.grain), c.finished_at, timestamptz '2000-01-01 00:00:00Z') as bucket,
           c.tenant_id, c.endpoint_id, c.outcome, c.error_code, c.latency_ms,
           case when outcome = 'delivered' then c.arrived_ms end as arrived_ms, count(*) as attempts
    from (values (60, 2), (1800, 2), (3600, 90), (21600, 90), (86400, 90)) g (grain, days)
    join tries c on c.finished_at >= hookpost_today() - g.days
    group by 1, 2, 5, 6, 7, 8, grouping sets ((c.tenant_id, c.endpoint_id), (c.tenant_id), ())
)
insert into rollup_tallies
select grain, bucket, coalesce(tenant_id, '00000000-0000-0000-0000-000000000000'),
       coalesce(endpoint_id, '00000000-0000-0000-0000-000000000000'),
       coalesce(sum(attempts) filter (where outcome in ('retry', 'dead')), 0),
       hookpost_add_up(array_agg(row(outcome, error_code, false, latency_ms, arrived_ms, attempts)::rollup_tally))
from counted group by grain, bucket, tenant_id, endpoint_id
"""
_BUILT = """
update rollup_reach set
    bucket = date_bin(make_interval(secs => grain), now(), timestamptz '2000-01-01 00:00:00Z')
             - make_interval(secs => grain),
    kept_from = case when grain <= 1800 then hookpost_today() - 2 else '-infinity' end
where grain > 60
"""
_SOME = """
select 'evt_' || replace(event_id::text, '-', '') as event, 'att_' || replace(attempt_id::text, '-', '') as attempt,
       'ep_' || replace(endpoint_id::text, '-', '') as endpoint
from attempts
where outcome = 'delivered' and day = hookpost_today() - 3 limit 1
"""
_KEPT = "select count(*) as rollups from rollup_tallies"


def pages(run: Run) -> Figures:
    """Fill, count, then look at every page again and again."""
    count = round(run.seconds * EVENTS_PER_S)
    with run.server() as server, run.load() as load:
        owed = receivers(server, load, count=ENDPOINTS)
        refill(server, lambda connection: fill.finished(connection, owed, count, days=DAYS, varied=True))
        kept = on_database(server, _count)
        server.start()
        some = server.sql(_SOME)[0]
        first, later = _look(server, some)
        slowest = max(percentile(times, 0.95) for times in later.values())
        return {
            "events": count, **kept, "p95_ms": slowest, "first_ms_max": max(first.values()),
            "pages": [
                {"page": page, "first_ms": first[page], "p50_ms": percentile(later[page], 0.5),
                 "p95_ms": percentile(later[page], 0.95)}
                for page in first
            ],
        }  # fmt: skip


async def _count(connection: Any) -> Figures:
    await connection.execute("set work_mem = '256MB'")
    await connection.execute(_COUNT, LOWS, timeout=None)
    await connection.execute(_BUILT)
    await connection.execute("vacuum (analyze) rollup_tallies")
    return dict(await connection.fetchrow(_KEPT))


def _paths(some: dict[str, str]) -> list[str]:
    event, endpoint = f"/events/{some['event']}", f"/endpoints/{some['endpoint']}"
    return [
        *(f"?span={span}" for span in ("1h", "24h", "7d", "30d")),
        event, f"{event}/attempts/{some['attempt']}", "/endpoints", endpoint, f"{endpoint}/edit", "/search",
        f"/search?q={some['event']}", "/search?q=invoice.paid", "/search?q=no.such.type", "/search?outcome=dead",
        f"/search?q={endpoint[11:]}&outcome=retry", "/search?http_status=418", "/dead-letters", "/replays", "/verifier",
    ]  # fmt: skip


def _look(server: Server, some: dict[str, str]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The first time of each page, and the later ones, in milliseconds; of the tenant, then of the admin."""
    first: dict[str, float] = {}
    later: dict[str, list[float]] = {}
    who = {"": _sign_in(server, server.key), "admin: ": _sign_in(server, server.admin_key)}
    for number in range(ROUNDS + 1):
        began = time.monotonic()
        for name, cookie in who.items():
            for path in [*_paths(some), *(["/tenants", "/audit-log"] if name else [])]:
                took = _get(server, f"/dashboard{path}", cookie)
                page = name + path.replace(some["event"], "EVENT").replace(some["endpoint"], "ENDPOINT")
                page = page.replace(some["attempt"], "ATTEMPT")
                if number == 0:
                    first[page] = took
                else:
                    later.setdefault(page, []).append(took)
        time.sleep(max(0.0, GOOD_S + 0.1 - (time.monotonic() - began)))
    return first, {page: sorted(times) for page, times in later.items()}


def _sign_in(server: Server, key: str) -> str:
    address = urlsplit(server.url).netloc
    connection = http.client.HTTPConnection(address)
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": server.url}
    connection.request("POST", "/dashboard/sign-in", urlencode({"key": key}), form)
    answer = connection.getresponse()
    answer.read()
    return (answer.getheader("set-cookie") or "").partition(";")[0]


def _get(server: Server, path: str, cookie: str) -> float:
    """Milliseconds until a page is there; raises OSError for one that is not."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    connection.connect()
    began = time.monotonic()
    connection.request("GET", path, headers={"Cookie": cookie})
    answer = connection.getresponse()
    body = answer.read()
    took_ms = (time.monotonic() - began) * 1000
    connection.close()
    if answer.status != 200:
        raise OSError(1, f"{path} answered {answer.status}: {body[-300:]!r}")
    return round(took_ms, 1)


SCENARIOS = {"pages": pages}
