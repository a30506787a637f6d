"""Plan tests: the statements of the API that touch the large tables read them through their indexes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hookpost.storage.postgres.queries import load

SQL = {**load("admin"), **{f"explain_{name}": text for name, text in load("explain").items()}}
LARGE = ("events", "attempts", "backlog", "dead_letters", "progress")

FILL = """
create temp table owners as select gen_random_uuid() as tenant_id, gen_random_uuid() as endpoint_id, g as n
from generate_series(1, 20) g;
insert into tenants (tenant_id, name, home_shards) select tenant_id, 'filled', '{0}' from owners;
insert into endpoints (endpoint_id, tenant_id, url) select endpoint_id, tenant_id, 'https://example.com/' from owners;
create temp table filled as
select gen_random_uuid() as event_id, g as seq, o.tenant_id, o.endpoint_id,
       now() - make_interval(secs => g) as at, hookpost_today() - (g % 2) as day
from generate_series(1, 8000) g join owners o on o.n = 1 + g % 20;
insert into events (day, shard, seq, event_id, tenant_id, type, payload, owed, created_at)
select day, 0, seq, event_id, tenant_id, 'a.b', '{}', array[endpoint_id], at from filled;
insert into attempts
select day, gen_random_uuid(), 0, 1, seq, event_id, endpoint_id, tenant_id, 0, at, at, at, 0, 1, 1, 1, 1, 1, 1, 1, 200,
       false, 'delivered', null, 'w', '', '', null, '' from filled;
insert into backlog (shard, endpoint_id, position, day, tenant_id, event_id, generation, reason, due_at, retry_count,
                     deadline, created_at)
select 0, endpoint_id, seq, day, tenant_id, event_id, 0, 'retry', at, 1, at, at from filled;
insert into dead_letters select event_id, endpoint_id, tenant_id, 0, seq, day, 0, 'a.b', 'deadline', at, 1 from filled;
insert into progress (day, shard, settle_no, fence, cursor, read_to, read_day)
select hookpost_today(), seq % 4, seq, 1, 1, 8000, hookpost_today() from filled;
"""
# As autovacuum does: partitions of days to come are empty and were never analysed.
ANALYZE = """
do $$ declare t regclass; begin
    for t in select oid from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace
             and pg_relation_size(oid) > 0 loop
        execute format('analyze %s', t);
    end loop;
end $$
"""

PLANS: list[tuple[str, str, str]] = [
    # statement, its parameters over one row of `filled` (f), the index that must carry it
    ("list_events_of_tenant", "tenant, null, null, null, null, null, 51", "tenant_id_created_at_idx"),
    ("list_events_of_all", "null, null, null, null, 51", "event_id_idx"),
    ("list_attempts_of_endpoint", "tenant, endpoint, null, null, null, null, null, 51", "endpoint_id_scheduled_at_idx"),
    ("list_attempts_of_tenant", "tenant, null, null, null, null, null, 51", "tenant_id_scheduled_at_idx"),
    ("list_attempts_of_event", "tenant, event, endpoint, null, null, null, null, null, 51", "event_id_endpoint_id_idx"),
    ("list_attempts_of_all", "null, null, null, null, null, 51", "tenant_id_scheduled_at_idx"),
    ("get_event", "event, tenant, extract(epoch from now())", "event_id_idx"),
    ("delivery_states", "event, tenant, null", "event_id_endpoint_id_idx"),
    ("delivery_states", "event, tenant, endpoint", "event_id_endpoint_id_idx"),
    ("list_waiting", "tenant, endpoint, null, null, 51", "backlog_"),
    ("list_dead_of_endpoint", "tenant, endpoint, null, null, null, null, null, 51", "dead_letters_endpoint"),
    ("list_dead_of_tenant", "tenant, null, null, null, null, null, null, 51", "dead_letters_tenant"),
    ("explain_waiting", "array[0], array[endpoint], array[100]::bigint[]", "backlog_pkey"),
    ("explain_queued", "array[0], array[100]::bigint[]", "progress_"),
    ("explain_dead", "event, array[endpoint]", "dead_letters_pkey"),
    ("explain_tries", "event, array[endpoint]", "event_id_endpoint_id_idx"),
    ("explain_replayed", "event, tenant", "event_id_idx"),
    ("explain_cancelled", "event, tenant", "event_id_idx"),
    ("list_dead_of_all", "null, null, null, null, null, null, 51", "dead_letters_died"),
]


@pytest.fixture
async def filled(sql: Any) -> Any:
    await sql.execute(FILL)
    await sql.execute(ANALYZE)
    await sql.execute("set plan_cache_mode = force_generic_plan")
    return sql


async def plan_of(sql: Any, name: str, parameters: str) -> str:
    """The plan that the pool's connections get: generic, partitions pruned when it runs."""
    row = await sql.fetchrow("select event_id, tenant_id, endpoint_id from filled limit 1")
    values = {"event": row["event_id"], "tenant": row["tenant_id"], "endpoint": row["endpoint_id"]}
    arguments = re.sub(r"\b(event|tenant|endpoint)\b", lambda named: f"'{values[named[0]]}'::uuid", parameters)
    await sql.execute(f"prepare {name} as {SQL[name]}")
    rows = await sql.fetch(f"explain (analyze, costs off, timing off, buffers off) execute {name}({arguments})")
    await sql.execute(f"deallocate {name}")
    return "\n".join(row[0] for row in rows)


async def test_every_hot_statement_uses_its_index(filled: Any) -> None:
    for name, parameters, index in PLANS:
        plan = await plan_of(filled, name, parameters)
        scanned = re.findall(r"Seq Scan on (\w+)", plan)
        executed = [table for table in scanned if table.rstrip("_0123456789") in LARGE]
        assert executed == [], f"{name}\n{plan}"
        assert index in plan, f"{name}\n{plan}"


async def test_the_newest_events_are_read_without_sorting_the_tenant(filled: Any) -> None:
    """A page costs a page: at most a few rows more than it shows are read in each partition."""
    plan = await plan_of(filled, "list_events_of_tenant", "tenant, null, null, null, null, null, 11")
    read = [float(rows) for rows in re.findall(r"Index Scan.*actual rows=([\d.]+)", plan)]
    assert read and max(read) <= 40, plan


async def test_old_partitions_are_pruned_by_since(filled: Any) -> None:
    plan = await plan_of(
        filled, "list_events_of_tenant", "tenant, null, now() + interval '1 day', null, null, null, 11"
    )
    assert "Subplans Removed" in plan
