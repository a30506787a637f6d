"""What the dashboard asks costs a page's worth of rows, whatever there is: plans of its statements, and of the search."""

from __future__ import annotations

import re
from typing import Any

from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.search import STATES_OF_MANY
from tests.web.test_plans import LARGE, filled  # noqa: F401 - a fixture

SQL = {**load("search"), "states_of_many": STATES_OF_MANY}
HOT = (*LARGE, "rollup_tallies", "metering")
ROLLUPS = """
insert into rollup_tallies select 60, date_trunc('minute', at), tenant_id, endpoint_id, 1,
    array[row('retry', 'http_5xx', false, 1, null, 1)::rollup_tally]
from filled on conflict do nothing;
insert into breakers (tenant_id, origin, state, since)
select o.tenant_id, 'https://' || g || '.example.com', case when g % 50 = 0 then 'open' else 'closed' end, now()
from owners o, generate_series(1, 100) g;
update events set trace_id = event_id, idempotency_key = seq::text;
analyze rollup_tallies; analyze breakers; analyze events; analyze endpoints
"""
ANY = "null, null, null, null"
PIECES = "array[60, 3600], array[now() - interval '1 day', now() - interval '30 days'], array[now(), now() - interval '1 day']"

PLANS: list[tuple[str, str, str]] = [
    ("events_by_trace", "tenant, event, 20", "trace_id_idx"),
    ("events_by_trace", "null, event, 20", "trace_id_idx"),
    ("events_by_key", "tenant, '17', 20", "idempotency_key_idx"),
    ("endpoints_by_host", "tenant, 'moc.elpmaxe', 'moc.elpmaxe.%', 20", ""),
    ("states_of_many", "array[event]::uuid[], array[tenant]::uuid[], null", "event_id_idx"),
    ("endpoint_urls", "tenant, array[endpoint]::uuid[]", ""),
    ("scan_events_of_tenant", f"tenant, 'a.b', {ANY}, 200, 51, null", "tenant_id_created_at_idx"),
    ("scan_events_of_tenant", f"tenant, null, {ANY}, 200, 51, 'INV'", "tenant_id_created_at_idx"),
    ("scan_events_of_all", "'a.b', null, null, null, 200, 51, null", "event_id_idx"),
    ("scan_events_of_all", "null, null, null, null, 200, 51, 'INV'", "event_id_idx"),
    ("scan_attempts_of_tenant", f"tenant, 'retry', 500, 599, {ANY}, 200, 51", "tenant_id_scheduled_at_idx"),
    ("scan_attempts_of_all", "'retry', 500, 599, null, null, 50, 51", "shard_settle_no_idx"),
    ("waiting_of_tenant", "tenant, null, null, null, 51", "backlog_pkey"),
    ("waiting_of_all", "null, null, null, 51", "backlog_pkey"),
    ("failing_of_tenant", f"tenant, {PIECES}, 200, 8", "rollup_tallies_failed"),
    ("failing_of_all", f"{PIECES}, 200, 8", "rollup_tallies_pkey"),
    ("open_breakers_of_tenant", "tenant, 8", "breakers_pkey"),
    # One row for each receiver that ever failed: read whole, and sorted no further than what is told.
    ("open_breakers_of_all", "8", "top-N heapsort"),
    ("dead_groups_of_tenant", "tenant, 200, 20", "dead_letters_tenant"),
    ("dead_groups_of_all", "200, 20", "dead_letters_died"),
]


async def test_every_statement_of_the_dashboard_uses_its_index(filled: Any) -> None:  # noqa: F811
    await filled.execute(ROLLUPS)
    row = await filled.fetchrow("select event_id, tenant_id, endpoint_id from filled limit 1")
    found = await filled.fetch("select relname from pg_class where relkind = 'r' and pg_relation_size(oid) = 0")
    empty = {row["relname"] for row in found}
    for number, (name, parameters, index) in enumerate(PLANS):
        for word in ("event", "tenant", "endpoint"):
            parameters = re.sub(rf"\b{word}\b", f"'{row[word + '_id']}'", parameters)
        await filled.execute(f"prepare s{number} as {SQL[name]}")
        rows = await filled.fetch(
            f"explain (analyze, costs off, timing off, buffers off) execute s{number}({parameters})"
        )
        plan = "\n".join(line[0] for line in rows)
        # Partitions of days to come are empty: to read them is to do nothing.
        scanned = [
            table.rstrip("_0123456789") for table in re.findall(r"Seq Scan on (\w+)", plan) if table not in empty
        ]
        assert not set(scanned) & set(HOT), f"{name}\n{plan}"
        assert index in plan, f"{name}\n{plan}"


async def test_a_search_for_what_is_not_there_looks_at_no_more_than_it_may(filled: Any) -> None:  # noqa: F811
    """Without the bound, a type that nobody uses would be looked for in all the history."""
    await filled.execute(ROLLUPS)
    tenant = await filled.fetchval("select tenant_id from filled limit 1")
    for name, parameters in (
        ("scan_events_of_tenant", f"'{tenant}', 'no.such', {ANY}, 50, 51, null"),
        ("scan_events_of_tenant", f"'{tenant}', null, {ANY}, 50, 51, 'no such text'"),
        ("scan_attempts_of_tenant", f"'{tenant}', 'dead', 500, 599, {ANY}, 50, 51"),
    ):
        await filled.execute(f"prepare scan as {SQL[name]}")
        rows = await filled.fetch(f"explain (analyze, costs off, timing off, buffers off) execute scan({parameters})")
        await filled.execute("deallocate scan")
        plan = "\n".join(line[0] for line in rows)
        read = [float(rows) for rows in re.findall(r"Index Scan.*actual rows=([\d.]+)", plan)]
        assert read and max(read) <= 60, plan
