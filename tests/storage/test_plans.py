"""Every hot statement finds its rows by the index that is meant for it, under the generic plan that production uses:
dead rows that nobody has cleaned up (F11) are not walked over.

The tables hold thousands of rows over thirty days, of several shards, and are analysed. Of statements inside functions
the rows that they touch are counted, as PostgreSQL counts them for each table.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from hashlib import md5
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from hookpost.storage.postgres.connection import prepare
from hookpost.storage.postgres.queries import load
from tests.conftest import in_database, template_of_today
from tests.patience import PATIENCE_S, until_tomorrow_s

WORKER, INGEST, MAINTENANCE, REPLAYS = load("worker"), load("ingest"), load("maintenance"), load("replays")
ROLLUPS, STATS = load("rollups"), load("stats")
DAYS = 30
LOOKED_AT_S = 600.0
HOT = ("events", "attempts", "progress", "backlog", "dead_letters", "idempotency_keys", "endpoints", "endpoint_secrets",
       "rollup_tallies", "metering")  # fmt: skip
FILL = """
select hookpost_make_partitions(hookpost_today() - 29, hookpost_today() + 3);
insert into tenants (tenant_id, name, home_shards)
    select md5('t' || t)::uuid, 't', '{0}' from generate_series(1, 2000) t;
insert into endpoints (endpoint_id, tenant_id, url)
    select md5('e' || e)::uuid, md5('t' || 1 + e % 1000)::uuid, 'https://example.com' from generate_series(1, 5000) e;
insert into endpoint_secrets (endpoint_id, key)
    select md5('e' || e)::uuid, 'k' from generate_series(1, 5000) e;
insert into api_keys (key_id, tenant_id, name, key_hash)
    select 'k' || k, md5('t' || k)::uuid, 'k', 'h' from generate_series(1, 2000) k;
insert into events (day, shard, seq, event_id, tenant_id, type, payload, owed, created_at)
    select hookpost_today() - (29 - (n - 1) / 200)::int, shard, n, md5(shard || 'v' || n)::uuid,
           md5('t' || n % 100)::uuid, 'a', 'p', array[md5('e' || n % 50)::uuid],
           now() - make_interval(days => (29 - (n - 1) / 200)::int)
    from generate_series(0, 3) shard, generate_series(1, 200 * 30) n;
insert into progress (day, shard, settle_no, fence, cursor, read_to, read_day)
    select hookpost_today() - (29 - (n - 1) / 100)::int, shard, n, 1, n, n, hookpost_today()
    from generate_series(0, 3) shard, generate_series(1, 100 * 30) n;
insert into attempts
    select hookpost_today() - (29 - (n - 1) / 100)::int, md5(shard || 'a' || n)::uuid, shard, n, n, md5(shard || 'v' || n)::uuid,
           md5('e' || n % 50)::uuid, md5('t' || n % 100)::uuid, 0, now(), now(), now(), 0, n % 500, 1, 1, 1, 1, 10, 20, 200,
           false, 'delivered', null, 'w', '', '', null, ''
    from generate_series(0, 3) shard, generate_series(1, 100 * 30) n;
insert into rollup_progress select shard, 2990, 5990, hookpost_today() from generate_series(0, 3) shard;
insert into rollup_tallies
    select grain, timestamptz '2026-01-01 00:00:00Z' + make_interval(secs => grain * b), md5('t' || e % 10)::uuid,
           case when e < 50 then md5('e' || e)::uuid else '00000000-0000-0000-0000-000000000000' end, 0,
           array[row('delivered', '', false, 8, 9, 1)::rollup_tally]
    from unnest(array[60, 1800, 3600, 86400]) grain, generate_series(0, 99) b, generate_series(0, 59) e;
insert into metering (day, tenant_id, attempts)
    select date '2026-01-01' + n, md5('t' || t)::uuid, 1 from generate_series(0, 99) n, generate_series(1, 100) t;
insert into backlog (shard, endpoint_id, position, day, tenant_id, event_id, generation, reason, due_at, retry_count,
                     deadline, created_at)
    select n % 4, md5('e' || case when n % 5 = 0 then 1 else n % 500 end)::uuid, n, hookpost_today() - n % 3,
           md5('t1')::uuid, md5(n % 4 || 'v' || n)::uuid, 0, 'retry', now() + make_interval(secs => n % 997 - 500), 1,
           now() + make_interval(secs => n), now()
    from generate_series(1, 20000) n;
insert into dead_letters (event_id, endpoint_id, tenant_id, shard, position, day, generation, type, reason, died_at,
                          attempt_count)
    select md5(n % 4 || 'v' || n)::uuid, md5('e' || n % 50)::uuid, md5('t1')::uuid, 0, n, hookpost_today(), 0, 'a',
           'deadline', now(), 1 from generate_series(1, 10000) n;
insert into idempotency_keys (tenant_id, key, event_id, request_hash, delivery_count, expires_at)
    select md5('t' || n % 10)::uuid, 'key' || n, md5('i' || n)::uuid, 'h', 1, now() + make_interval(hours => n)
    from generate_series(1, 20000) n;
"""
# All but the partitions of days to come: nobody analyses an empty table.
ANALYSE = """
do $$ declare name text; begin
    for name in select relname from pg_class
                where relkind = 'r' and relnamespace = 'public'::regnamespace
                and (relname !~ '_[0-9]{8}$' or right(relname, 8) <= to_char(hookpost_today(), 'YYYYMMDD'))
    loop execute format('analyze %I', name); end loop;
end $$
"""


@pytest.fixture(scope="module")
def filled(server: str) -> Iterator[str]:
    """A database with thousands of rows of everything over thirty days; tests change nothing in it."""
    name = f"p_{uuid7().hex}"
    asyncio.run(_fill(server, name))
    yield in_database(server, name)
    asyncio.run(_execute(server, f"drop database {name} with (force)"))


async def _fill(server: str, name: str) -> None:
    # What is today here has to be today as long as tests look at it.
    await asyncio.sleep(until_tomorrow_s(LOOKED_AT_S))
    template = await template_of_today(server)
    await _execute(server, f"create database {name} template {template} strategy wal_log")
    await _execute(in_database(server, name), FILL)
    await _execute(in_database(server, name), ANALYSE)


async def _execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=PATIENCE_S)
    await connection.execute(sql)
    await connection.close()


@pytest.fixture
async def db(filled: str) -> AsyncIterator[Any]:
    """A connection with the settings of production."""
    settings = {"plan_cache_mode": "force_generic_plan", "jit": "off", "timezone": "UTC"}
    connection = await asyncpg.connect(filled, server_settings=settings)
    await connection.execute("begin")
    yield connection
    await connection.close()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


class Plan:
    """What the generic plan of a statement did."""

    def __init__(self, text: str) -> None:
        self.root = json.loads(text)[0]["Plan"]
        self.nodes = list(nodes(self.root))

    def kinds(self) -> set[str]:
        return {node["Node Type"] for node in self.nodes}

    def scanned_whole(self) -> set[str]:
        """Hot tables that were read from end to end, or an index of theirs without a condition."""
        return {
            node["Relation Name"]
            for node in self.nodes
            if node.get("Relation Name", "").startswith(HOT)
            and (
                node["Node Type"] == "Seq Scan" or (node["Node Type"].startswith("Index") and "Index Cond" not in node)
            )
            and node["Actual Loops"] > 0
        }

    def scanned(self, table: str) -> set[str]:
        """Partitions of a table that were opened."""
        return {
            node["Relation Name"]
            for node in self.nodes
            if node.get("Relation Name", "").startswith(table) and node["Actual Loops"] > 0
        }

    def indexes(self) -> set[str]:
        names = {node["Index Name"] for node in self.nodes if "Index Name" in node and node.get("Actual Loops", 1) > 0}
        return {name.split("_2")[0] + "_…" + name[name.index("_2") + 9 :] if "_2" in name else name for name in names}

    def rows_read(self, table: str) -> float:
        """Rows that were fetched from a table, also in vain."""
        return sum(
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            for node in self.nodes
            if node.get("Relation Name", "").startswith(table)
        )

    def __repr__(self) -> str:
        return json.dumps(self.root, indent=1)


async def explain(db: Any, statement: str, *literals: str) -> Plan:
    """Run a statement by its generic plan; the literals are SQL expressions."""
    await db.execute(f"prepare hot as {statement}")
    arguments = f"({', '.join(literals)})" if literals else ""
    text = await db.fetchval(f"explain (analyze, format json, buffers off, summary off) execute hot{arguments}")
    await db.execute("deallocate hot")
    return Plan(text)


E1 = "md5('e1')::uuid"
TODAY = "hookpost_today()"


async def test_read_opens_only_recent_partitions_and_sorts_nothing_it_need_not(db: Any) -> None:
    plan = await explain(
        db, WORKER["read"], "array[0,1,2,3]", "array[5900,5901,5902,5903]::bigint[]", TODAY, "50", "100000",
        f"array[{TODAY},{TODAY},{TODAY},{TODAY}]",
    )  # fmt: skip
    assert plan.scanned_whole() == set(), plan
    assert len(plan.scanned("events")) <= 4, plan.scanned("events")
    assert plan.indexes() == {"events_…_pkey"}
    assert plan.rows_read("events") <= 4 * 53 * 2, plan


async def test_read_of_an_idle_shard_does_not_open_old_partitions_for_the_others(db: Any) -> None:
    plan = await explain(
        db, WORKER["read"], "array[0,1,2,3]", "array[10,5901,5902,5903]::bigint[]", f"{TODAY} - 29", "20", "100000",
        f"array[{TODAY} - 29,{TODAY},{TODAY},{TODAY}]",
    )  # fmt: skip
    assert plan.scanned_whole() == set(), plan
    old = await db.fetchval("select 'events_' || to_char(hookpost_today() - 5, 'YYYYMMDD')")
    assert sum(node["Actual Loops"] for node in plan.nodes if node.get("Relation Name") == old) == 1, plan
    assert plan.rows_read("events") <= 20 * 4 + 40, plan.rows_read("events")


async def test_read_stops_at_the_limit(db: Any) -> None:
    plan = await explain(
        db, WORKER["read"], "array[0]", "array[0]::bigint[]", f"{TODAY} - 29", "10", "100000", f"array[{TODAY} - 29]"
    )
    assert plan.scanned_whole() == set(), plan
    assert plan.rows_read("events") <= 10 + DAYS + 4, plan


async def test_looking_for_others_ends_with_the_first_and_at_the_limit(db: Any) -> None:
    behind, days = ("array[0,1]", "array[5801,5801]::bigint[]", TODAY), f"array[{TODAY},{TODAY}]"
    plan = await explain(db, WORKER["others_wait"], *behind, "500", "'{}'::uuid[]", days)
    assert plan.scanned_whole() == set(), plan
    assert plan.indexes() == {"events_…_pkey"}, plan
    assert plan.rows_read("events") <= 10, plan
    ids = ",".join(f"md5('e{number}')::uuid" for number in range(50))
    everyone = f"array[{ids}]"
    plan = await explain(db, WORKER["others_wait"], *behind, "50", everyone, days)
    assert plan.rows_read("events") <= 2 * 60, plan


async def test_open_rows(db: Any) -> None:
    ranges = ("array[1,1,2]", "array[5990,5995,10]::bigint[]", "array[5991,5997,12]::bigint[]")
    plan = await explain(db, WORKER["open_rows"], *ranges)
    assert plan.scanned_whole() == set(), plan
    assert plan.indexes() == {"events_…_pkey"}
    assert plan.rows_read("events") == pytest.approx(5, abs=0.1)


async def test_last_progress_reads_one_row_of_each_partition_at_most(db: Any) -> None:
    plan = await explain(db, WORKER["last_progress"], "array[2,3]")
    assert plan.scanned_whole() == set(), plan
    assert plan.rows_read("progress") <= 2 * (DAYS + 5)


async def test_the_events_of_replays_are_looked_up(db: Any) -> None:
    events = "array[md5('1v5990')::uuid, md5('1v10')::uuid, md5('none')::uuid]"
    plan = await explain(db, WORKER["replayed"], "array[1,1,1]", events, "100000")
    assert plan.scanned_whole() == set(), plan
    assert plan.indexes() == {"events_…_event_id_idx"}, plan
    assert plan.rows_read("events") <= 2


async def test_settled(db: Any) -> None:
    plan = await explain(db, WORKER["settled"], "2", "2990", "1")
    assert plan.scanned_whole() == set(), plan
    assert plan.rows_read("progress") == 1


async def test_fetch_due_goes_along_its_index(db: Any) -> None:
    plan = await explain(db, WORKER["fetch_due"], "1", E1, "now() - interval '100 s'", "5", "now()", "11")
    assert plan.indexes() == {"backlog_due"}, plan
    assert plan.rows_read("backlog") <= 11, plan
    assert "Sort" not in plan.kinds(), plan


async def test_the_events_of_due_rows_open_the_partitions_of_their_days_alone(db: Any) -> None:
    """All partitions in a plan are opened before it runs, however few it reads: 1.5 ms of a fetch, at 93 of them."""
    days = f"array[{TODAY},{TODAY} - 1,{TODAY}]"
    plan = await explain(
        db, WORKER["due_events"], "1", "array[6000,5800,7777]::bigint[]", days, f"{TODAY} - 1", TODAY, "100000"
    )
    assert plan.scanned_whole() == set(), plan
    assert plan.indexes() == {"events_…_pkey"}, plan
    assert plan.rows_read("events") == 2
    assert len([node for node in plan.nodes if node.get("Relation Name", "").startswith("events")]) == 2, plan


async def test_read_does_not_open_old_partitions_at_all(db: Any) -> None:
    plan = await explain(
        db, WORKER["read"], "array[0]", "array[5900]::bigint[]", TODAY, "50", "100000", f"array[{TODAY}]"
    )
    assert len([node for node in plan.nodes if node.get("Relation Name", "").startswith("events")]) <= 4, plan


async def test_next_due(db: Any) -> None:
    plan = await explain(db, WORKER["next_due"], "1", E1, "now()")
    assert plan.indexes() == {"backlog_due"}, plan
    assert plan.rows_read("backlog") == 1


async def test_fetch_expired(db: Any) -> None:
    plan = await explain(db, WORKER["fetch_expired"], "1", E1, "now() + interval '300 s'", "3")
    assert plan.scanned_whole() == set(), plan
    assert plan.indexes() == {"backlog_pkey"}, plan
    assert plan.rows_read("backlog") <= 3
    assert "Sort" not in plan.kinds()


async def test_rows_brought_forward_go_along_their_index(db: Any) -> None:
    keyset = ("now() - interval '100 s'", "5", "now() - interval '50 s'", "now()", "11")
    plan = await explain(db, WORKER["fetch_forward"], "1", E1, *keyset)
    assert plan.indexes() == {"backlog_due"}, plan
    assert "Sort" not in plan.kinds(), plan


async def test_the_first_of_an_ordered_lane_are_read_by_position(db: Any) -> None:
    plan = await explain(db, WORKER["fetch_head"], "1", E1, "3")
    assert plan.indexes() == {"backlog_pkey"}, plan
    assert plan.rows_read("backlog") <= 3, plan
    assert "Sort" not in plan.kinds(), plan


async def test_dead_deliveries_that_block_a_lane_are_looked_up(db: Any) -> None:
    plan = await explain(db, WORKER["fetch_blocking"], "1", E1, "3")
    assert plan.scanned_whole() == set(), plan
    assert plan.rows_read("backlog") <= 3, plan


async def test_the_rows_of_one_event_are_looked_up(db: Any) -> None:
    plan = await explain(db, WORKER["fetch_named"], "1", E1, "md5('1v5990')::uuid", "3")
    assert plan.scanned_whole() == set(), plan
    assert plan.rows_read("backlog") <= 3, plan


async def test_next_deadline_and_lane_summaries_stay_in_their_lane_and_shard(db: Any) -> None:
    plan = await explain(db, WORKER["next_deadline"], "1", E1, "now()")
    assert plan.scanned_whole() == set(), plan
    assert plan.rows_read("backlog") <= 1100
    plan = await explain(db, WORKER["lane_summaries"], "array[1]")
    assert plan.scanned_whole() <= {"backlog"}, plan  # a quarter of the table: reading it all may be right


SETTLE = {
    "settle_dead_locks": ("array[md5('1v1')::uuid, md5('1v5')::uuid]", f"array[{E1}, md5('e5')::uuid]"),
    "settle_revived": (
        "array[md5('1v1')::uuid, md5('1v5')::uuid]", f"array[{E1}, md5('e5')::uuid]", "array[1, 1]",
    ),
    "settle_dead": (
        "array[md5('1v5')::uuid]", f"array[{E1}]", f"array[{E1}]", "array[0]", "array[1]", f"array[{TODAY}]",
        "array[0]", "array['']", "array['deadline']", "array[now()]", "array[1]", "array[null]::smallint[]", "array[null]",
    ),
    "settle_dropped_lanes": ("array[1, 2]", "array[md5('e7')::uuid, md5('e2')::uuid]"),
    "settle_deletes": ("array[1, 1]", f"array[{E1}, {E1}]", "array[1, 101]::bigint[]"),
    "settle_upserts": (
        "array[1]", f"array[{E1}]", "array[1]::bigint[]", f"array[{TODAY}]", f"array[{E1}]", f"array[{E1}]", "array[0]",
        "array['retry']", "array[now()]", "array[1]", "array[now()]", "array[now()]", "array[now()]",
        "array[null]::smallint[]", "array[null]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTLE)
async def test_the_statements_of_a_settle_look_rows_up(db: Any, name: str) -> None:
    plan = await explain(db, WORKER[name], *SETTLE[name])
    assert plan.scanned_whole() == set(), plan
    assert plan.rows_read("backlog") <= (100 if name == "settle_dropped_lanes" else 2), plan
    assert plan.rows_read("dead_letters") <= 2, plan


async def test_configuration_is_looked_up(db: Any) -> None:
    plan = await explain(db, WORKER["load_endpoints"], f"array[{E1}, md5('e2')::uuid]")
    assert plan.scanned_whole() == set(), plan
    plan = await explain(db, INGEST["load_routes"], "array[md5('t7')::uuid, md5('t8')::uuid]")
    assert plan.scanned_whole() == set(), plan
    assert "tenants_pkey" in plan.indexes(), plan
    await db.execute("update endpoints set tenant_id = md5('t7')::uuid where endpoint_id <> md5('e1')::uuid")
    await db.execute("update tenants set config_version = 2 where tenant_id = md5('t7')::uuid")
    await db.execute("update endpoints set max_in_flight = 7 where endpoint_id in (md5('e2')::uuid, md5('e3')::uuid)")
    await db.execute("analyze endpoints")
    plan = await explain(
        db, INGEST["load_route_changes"], "array[md5('t7')::uuid, md5('t8')::uuid]", "array[2, 2]::bigint[]"
    )
    assert plan.scanned_whole() == set(), plan
    assert plan.rows_read("endpoints") == 2, plan
    plan = await explain(db, INGEST["find_keys"], "array['k7', 'k8']")
    assert {"api_keys_pkey", "tenants_pkey"} == plan.indexes(), plan
    plan = await explain(db, INGEST["revoked_keys"], "now() - interval '10 s'", "11")
    assert plan.indexes() == {"api_keys_revoked"}, plan
    await db.execute("update tenants set changed_at = now() - interval '1 day'")
    plan = await explain(db, WORKER["changed_tenants"], "now() - interval '10 s'")
    assert "tenants_changed_at" in plan.indexes(), plan
    plan = await explain(db, INGEST["changed_versions"], "now() - interval '10 s'", "10")
    assert "tenants_changed_at" in plan.indexes(), plan
    await db.execute("update endpoints set health_at = now() - interval '1 day'")
    plan = await explain(db, WORKER["health_changes"], "now() - interval '10 s'", "100")
    assert plan.indexes() <= {"endpoints_health_at", "alert_states_pkey"}, plan
    assert plan.scanned_whole() == set(), plan
    plan = await explain(db, WORKER["hold_endpoint"], E1, "now()")
    assert plan.scanned_whole() == set(), plan


async def test_expiring_keys_ends_where_nothing_is_expired(db: Any) -> None:
    plan = await explain(db, MAINTENANCE["expire_keys"], "100")
    assert plan.scanned_whole() == set(), plan
    assert plan.rows_read("idempotency_keys") == 0, plan
    await db.execute("update idempotency_keys set expires_at = now() where tenant_id = md5('t1')::uuid")
    plan = await explain(db, MAINTENANCE["expire_keys"], "100")
    assert plan.rows_read("idempotency_keys") <= 300, plan


async def test_whether_progress_is_needed_is_looked_up(db: Any) -> None:
    plan = await explain(db, MAINTENANCE["progress_needed"], f"{TODAY} - 10")
    assert plan.scanned_whole() == set(), plan
    assert plan.rows_read("progress") <= 4 * 2 * (DAYS + 5), plan


# ---- rollups and figures --------------------------------------------------------------------------------------------


async def test_pending_settles_are_found_behind_the_marks(db: Any) -> None:
    plan = await explain(db, ROLLUPS["to_count"])
    assert plan.scanned_whole() <= {"shards", "rollup_progress"}, plan  # a row for each shard
    assert plan.rows_read("progress") <= 4 * DAYS, plan
    assert plan.rows_read("events") <= 4 * DAYS, plan
    plan = await explain(
        db, ROLLUPS["settles"], "array[0, 1]", "array[2990, 2980]::bigint[]", "array[2995, 2982]::bigint[]"
    )
    assert plan.scanned_whole() == set(), plan
    assert plan.indexes() == {"progress_…_pkey"}, plan
    assert plan.rows_read("progress") <= 5 + 2 + 2 * DAYS, plan


async def test_a_step_reads_the_attempts_of_its_settles_in_their_partitions_alone(db: Any) -> None:
    days = f"array[{TODAY}, {TODAY}, {TODAY} - 1]"
    plan = await explain(
        db, ROLLUPS["roll_up"], "array[0, 1, 1]", "array[2999, 2998, 2899]::bigint[]", days, f"{TODAY} - 1", TODAY,
        "array[0, 8, 100, 200]", "array[0, 1]", "array[2999, 2998]::bigint[]",
    )  # fmt: skip
    assert plan.scanned_whole() == set(), plan
    assert {index for index in plan.indexes() if index.startswith("attempts")} == {"attempts_…_shard_settle_no_idx"}
    assert plan.rows_read("attempts") == pytest.approx(3, abs=0.1), plan
    assert len(plan.scanned("attempts")) <= 2, plan


async def test_accepted_events_are_read_behind_the_marks(db: Any) -> None:
    plan = await explain(
        db,
        ROLLUPS["count_accepted"],
        "array[0, 1, 2, 3]",
        "array[5990, 5990, 5990, 5980]::bigint[]",
        "array[6000, 6000, 5995, 5990]::bigint[]",
        f"array[{TODAY}, {TODAY}, {TODAY}, {TODAY}]",
    )
    assert plan.scanned_whole() == set(), plan
    assert {index for index in plan.indexes() if index.startswith("events")} == {"events_…_pkey"}, plan
    assert plan.rows_read("events") <= 4 * 10 * 2, plan


async def test_building_and_pruning_look_up_what_they_touch(db: Any) -> None:
    plan = await explain(db, ROLLUPS["oldest_unbuilt"], "60", "3600")
    assert plan.scanned_whole() <= {"rollup_reach"}, plan  # four rows
    assert plan.rows_read("rollup_tallies") <= 1, plan
    plan = await explain(
        db, ROLLUPS["build"], "60", "1800", "'2026-01-01 00:00:00Z'", "md5('t1')::uuid", "md5('e1')::uuid", "7"
    )
    assert plan.scanned_whole() <= {"rollup_reach"}, plan
    assert plan.rows_read("rollup_tallies") <= 30 * 60 * 2, plan  # the limit looked for, then read: of one half hour
    plan = await explain(db, ROLLUPS["prune"], "60", "'2026-01-01 01:00:00Z'", "50")
    assert plan.scanned_whole() == set(), plan
    assert "Tid Scan" in plan.kinds(), plan
    assert plan.rows_read("rollup_tallies") <= 50 * 3, plan  # found, fetched, deleted


async def test_a_series_reads_the_rows_it_shows(db: Any) -> None:
    window = (
        "array[1800, 60]", "array['2026-01-01 00:00:00Z', '2026-01-01 01:00:00Z']::timestamptz[]",
        "array['2026-01-01 01:00:00Z', '2026-01-01 01:20:00Z']::timestamptz[]", "'2026-01-01 00:00:00Z'", "1800",
    )  # fmt: skip
    plan = await explain(db, STATS["series"], "md5('t7')::uuid", "md5('e7')::uuid", *window)
    assert plan.scanned_whole() == set(), plan
    assert plan.indexes() == {"rollup_tallies_pkey"}, plan
    assert plan.rows_read("rollup_tallies") <= 22 + 8, plan


PRESENT = {
    "waiting_of_endpoint": (E1, "11"),
    "waiting_of_tenant": ("md5('t2')::uuid", "11"),
    "dead_of_endpoint": (E1, "11"),
    "usage_of_tenant": ("md5('t1')::uuid", "date '2026-01-01'", "date '2027-01-01'", "null", "11"),
    "usage_of_all": ("date '2026-01-01'", "date '2027-01-01'", "date '2026-02-01'", E1, "11"),
    "endpoint_owner": (E1, "null"),
}


@pytest.mark.parametrize("name", PRESENT)
async def test_figures_are_looked_up_no_further_than_their_limit(db: Any, name: str) -> None:
    plan = await explain(db, STATS[name], *PRESENT[name])
    assert plan.scanned_whole() == set(), plan
    for table in ("backlog", "dead_letters", "metering"):
        assert plan.rows_read(table) <= 22, plan


async def test_all_that_waits_is_counted_up_to_the_limit(db: Any) -> None:
    """All dead letters here are of one tenant: any way to them is right that ends."""
    for name, key in (("waiting_of_all", ()), ("dead_of_all", ()), ("dead_of_tenant", ("md5('t1')::uuid",))):
        plan = await explain(db, STATS[name], *key, "11")
        assert plan.rows_read("backlog") + plan.rows_read("dead_letters") <= 11, plan


async def test_whether_a_day_is_rolled_up_is_looked_up(db: Any) -> None:
    touched = await Touched(db).by(("select hookpost_rolled_up(hookpost_today() - 3)",))
    hot = {name: count for name, count in touched.items() if name.startswith(HOT)}
    assert len(hot) == 2, touched
    assert all(scans == 0 and fetched <= 4 for scans, _, fetched in hot.values()), touched


# ---- inside the functions -------------------------------------------------------------------------------------------


class Touched:
    """Rows read and scans made of hot tables by this transaction, as PostgreSQL counts them."""

    def __init__(self, db: Any) -> None:
        self.db = db

    async def look(self) -> dict[str, tuple[int, int, int]]:
        rows = await self.db.fetch(
            "select relname, coalesce(seq_scan, 0), coalesce(seq_tup_read, 0), coalesce(idx_tup_fetch, 0)"
            " from pg_stat_xact_user_tables where schemaname = 'public'"
        )
        return {name: (scans, read, fetched) for name, scans, read, fetched in rows}

    async def by(self, *statements: tuple[Any, ...]) -> dict[str, tuple[int, int, int]]:
        before = await self.look()
        for statement, *arguments in statements:
            await self.db.fetch(statement, *arguments)
        after = await self.look()
        changed = {}
        for name, count in after.items():
            old = before.get(name, (0, 0, 0))
            if count != old:
                changed[name] = (count[0] - old[0], count[1] - old[1], count[2] - old[2])
        return changed


def append_of(
    events: int, *, keys: list[str] | None, tenant: str = "t1", version: int = 1, shards: int = 1
) -> tuple[Any, ...]:
    tenant_id = UUID(md5(tenant.encode()).hexdigest())
    places = None if shards == 1 else [1 + n % shards for n in range(events)]
    return (
        INGEST["append"], list(range(shards)), places, 60.0, [tenant_id], [version], [uuid7() for _ in range(events)], [tenant_id] * events,
        ["t"] * events, [b"p"] * events, [uuid7()] * events, list(range(1, events + 1)), [1] * events, None,
        keys, None if keys is None else [b"h"] * events, None, None, None,
    )  # fmt: skip


@pytest.mark.parametrize("keys", [None, ["new1", "new2", "key1", "key11"]])
@pytest.mark.parametrize("shards", [1, 3])
async def test_an_append_looks_up_one_row_of_few_partitions(db: Any, keys: list[str] | None, shards: int) -> None:
    touched = await Touched(db).by(append_of(4, keys=keys, shards=shards))
    old = {name for name in touched if name.startswith("events_")}
    assert len(old) <= 6, touched  # yesterday, today and those ahead
    assert sum(count[1] for name, count in touched.items() if name.startswith(HOT)) == 0, touched
    assert sum(count[2] for name, count in touched.items() if name.startswith("events")) <= 6 * shards, touched
    assert touched.get("idempotency_keys", (0, 0, 0))[2] <= 8, touched


async def test_a_stale_append_takes_its_keys_back_by_their_index(db: Any) -> None:
    touched = await Touched(db).by(append_of(3, keys=["n1", "n2", "key1"], version=77))
    assert touched["idempotency_keys"][:2] == (0, 0), touched
    assert touched["idempotency_keys"][2] <= 8, touched


async def test_an_append_after_days_of_silence_does_not_read_the_past(db: Any) -> None:
    """Under the shard's lock: a look through all rows of the shard would time out, again and again."""
    await db.execute("delete from events where day >= hookpost_today() - 4")
    touched = await Touched(db).by(append_of(1, keys=None))
    assert sum(count[1] for name, count in touched.items() if name.startswith("events")) == 0, touched
    # A row of each partition, once; deleted ones of this test's own are passed over.
    assert sum(count[2] for name, count in touched.items() if name.startswith("events")) <= 2 * DAYS, touched


async def test_opening_a_settle_looks_up_its_shards_and_one_row(db: Any) -> None:
    n = [0, 1, 2, 3]
    today = await db.fetchval(f"select {TODAY}")
    await db.execute("set enable_seqscan = off")  # four shards are one page
    touched = await Touched(db).by(
        (
            WORKER["settle"], n, [0] * 4, [9999] * 4, n, n, [today] * 4, ["{}"] * 4, [None] * 4, [False] * 4,
        )
    )  # fmt: skip
    assert not [name for name, count in touched.items() if name.startswith("progress") and count[1]], touched
    assert sum(count[2] for name, count in touched.items() if name.startswith("progress")) == 0, touched
    assert touched["shards"][2] <= 12, touched


# ---- replays and control rows ---------------------------------------------------------------------------------------

T1, NOBODY = UUID(md5(b"t1").hexdigest()), UUID(int=0)


async def test_the_source_of_a_replay_is_looked_up(db: Any) -> None:
    plan = await explain(
        db, REPLAYS["replay_source"], "md5('1v5990')::uuid", "md5('t90')::uuid", "extract(epoch from now())"
    )
    assert plan.scanned_whole() == set(), plan
    assert plan.rows_read("events") <= 1, plan
    plan = await explain(db, REPLAYS["pins"], f"array[{E1}, md5('e2')::uuid]")
    assert plan.scanned_whole() == set(), plan


@pytest.mark.parametrize(
    ("status", "endpoint", "table"),
    [
        ("dead", None, "dead_letters"),
        ("dead", UUID(md5(b"e7").hexdigest()), "dead_letters"),
        ("dead:deadline", None, "dead_letters"),
        ("any", None, "events"),
        ("delivered", None, "events"),
    ],
)
@pytest.mark.parametrize("since", [None, 1.7e9])
async def test_a_step_of_a_replay_reads_what_it_looks_at(
    db: Any, status: str, endpoint: UUID | None, table: str, since: float | None
) -> None:
    """However far the job is, and however few of the candidates match."""
    await prepare(db)
    now = await db.fetchval("select extract(epoch from now())::float8")
    place = (0.0, NOBODY, NOBODY)
    asked = (T1, endpoint, "none", status, since, None, now, *place, 50)
    touched = await Touched(db).by((REPLAYS["replayable"], *asked))
    assert sum(count[1] for name, count in touched.items() if name.startswith(HOT)) == 0, touched
    read = sum(count[2] for name, count in touched.items() if name.startswith(table))
    # A merge of the partitions reads one row of each ahead.
    assert read <= 50 + (DAYS + 5 if table == "events" else 0), touched


async def test_a_replays_append_looks_up_each_event_and_the_ends_of_its_shards(db: Any) -> None:
    ids = [UUID(md5(f"1v{n}".encode()).hexdigest()) for n in (10, 3000, 5990)]
    touched = await Touched(db).by(
        (REPLAYS["append_replays"], T1, 1.7e9, [0, 1, 0], ids, ["a"] * 3, [NOBODY] * 3, [1, 2, 3], [1, 1, 1])
    )
    assert sum(count[1] for name, count in touched.items() if name.startswith(HOT)) == 0, touched
    assert sum(count[2] for name, count in touched.items() if name.startswith("events")) <= 3 + 2 * 3, touched


async def test_a_control_row_looks_up_its_event(db: Any) -> None:
    event_id, tenant, endpoint = (UUID(md5(text).hexdigest()) for text in (b"1v3000", b"t0", b"e0"))
    shards: list[list[int]] = []

    async def append() -> None:
        statement = "select hookpost_append_control($1, $2, 'hookpost.cancel', $3)"
        shards.append(await db.fetchval(statement, event_id, tenant, [endpoint]))

    before = await Touched(db).look()
    await append()
    after = await Touched(db).look()
    scanned = {name for name in after if name.startswith("events") and after[name][1] != before.get(name, (0, 0))[1]}
    assert (scanned, shards) == (set(), [[1]])


async def test_the_looks_of_a_runner_are_cheap(db: Any) -> None:
    await db.execute(
        "insert into replays (replay_id, tenant_id, status, rate_limit, matched, matched_exact, after_at, created_at,"
        " state, finished_at) select gen_random_uuid(), md5('t' || 1 + n % 50)::uuid, 'dead', 1, 0, true, now(), now(),"
        " case when n <= 3 then 'running' else 'done' end, case when n <= 3 then null else now() end"
        " from generate_series(1, 3000) n"
    )
    await db.execute("analyze replays")
    for name in ("take_replay", "next_replay_in"):
        plan = await explain(db, REPLAYS[name])
        assert plan.indexes() == {"replays_running"}, (name, plan)
    for name, parameters, index in (
        ("list_replays_of_tenant", (f"'{T1}'", "null", "null", "51"), "replays_tenant"),
        ("list_replays_of_all", ("null", "null", "51"), "replays_created"),
    ):
        plan = await explain(db, REPLAYS[name], *parameters)
        assert plan.indexes() == {index}, (name, plan)
        assert plan.rows_read("replays") <= 51, (name, plan)
    plan = await explain(db, REPLAYS["pressure"], f"'{T1}'", "array[0, 1, 2, 3]", "1001")
    assert plan.scanned_whole() == set(), plan
    assert plan.rows_read("progress") <= 4 * (DAYS + 5), plan


async def test_lifting_barriers_probes_what_they_wait_for_and_reads_no_backlog(db: Any) -> None:
    await db.execute(
        "insert into barriers select md5('e' || e)::uuid, md5('t1')::uuid, 1, 100 from generate_series(1, 50) e;"
        "insert into departures values (md5('t2')::uuid, 1, 100), (md5('t3')::uuid, 2, 100)"
    )
    touched = await Touched(db).by((WORKER["lift_barriers"],))
    read_whole = {name for name, count in touched.items() if name.startswith(HOT) and count[1]}
    assert read_whole == set(), touched
    # A look into an index alone, where a vacuum has just been, counts as no row read.
    assert touched.get("backlog", (0, 0, 0))[2] <= 2 * 50, touched
    assert touched["barriers"][2] + touched["barriers"][1] <= 4 * 50, touched


async def test_a_look_at_the_load_reads_a_few_rows_of_each_shard(db: Any) -> None:
    touched = await Touched(db).by((MAINTENANCE["shard_loads"],), (MAINTENANCE["spread_tenants"], []))
    assert not {name for name, count in touched.items() if name.startswith(HOT) and count[1]}, touched
    assert sum(count[2] for name, count in touched.items() if name.startswith("events")) <= 4 * 6, touched
    touched = await Touched(db).by((MAINTENANCE["tenant_shares"], [0, 1], 100))
    assert not {name for name, count in touched.items() if name.startswith(HOT) and count[1]}, touched
    assert sum(count[2] for name, count in touched.items() if name.startswith("events")) <= 2 * 110, touched
