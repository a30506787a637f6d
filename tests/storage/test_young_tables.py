"""Plans that are made while a table is empty, and are kept while it grows: the server analyses nothing for the first
minute, and where a plan reads the whole table each row costs as much as all that came before it.

What an append looks up it finds by an index whatever the planner knows (migrations/0021). All else has its plans made
anew as the tables grow (`analyse_grown`).
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import md5
from typing import Any, cast
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.maintenance import PLANS_AGAIN_S, PLANS_EVERY_S, Plans
from hookpost.storage.contract import MaintenanceStore, StoreUnavailable
from hookpost.storage.postgres import maintenance
from hookpost.storage.postgres.connection import prepare
from hookpost.storage.postgres.queries import load
from tests.storage.driver import Driver, Postgres, new_tenant, own, version

pytestmark = pytest.mark.postgres

INGEST, WORKER = load("ingest"), load("worker")
READ = """
select coalesce(sum(seq_tup_read), 0)::bigint from pg_stat_xact_user_tables where relname = any ($1::text[])
"""
# With what was found by an index, and that is all of a table where all of an index is read.
LOOKED_AT = READ.replace("seq_tup_read", "seq_tup_read + coalesce(idx_tup_fetch, 0)")


@pytest.mark.parametrize("shards", [1, 3])
async def test_keys_are_looked_up_by_their_index_however_young_the_table_is(driver: Driver, shards: int) -> None:
    assert isinstance(driver, Postgres)
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    connection: Any = await driver.connect()
    await connection.execute("set plan_cache_mode = force_generic_plan")

    async def post(first: int, count: int) -> None:
        keys = [f"key-{n}" for n in range(first, first + count)]
        await connection.fetch(
            INGEST["append"], list(range(shards)), None if shards == 1 else [1 + n % shards for n in range(count)],
            60.0, list(versions), list(versions.values()), [uuid7() for _ in keys], [tenant], ["t"],
            [b"p"] * count, [], [1], [0], None, keys, [b"h"] * count, None, None, None,
        )  # fmt: skip

    await connection.execute("truncate idempotency_keys")
    await post(0, 4)
    await connection.execute("begin")
    for first in range(4, 2_004, 200):
        await post(first, 200)
    read = await connection.fetchval(READ, ["idempotency_keys"])
    await connection.execute("rollback")
    assert read == 0


FILL = {
    "backlog": """
        insert into backlog (shard, endpoint_id, position, day, tenant_id, event_id, generation, reason, due_at,
                             retry_count, deadline, created_at)
        select 1, md5('e' || n)::uuid, n, hookpost_today(), md5('t')::uuid, gen_random_uuid(), 0, 'retry', now(), 1, now(),
               now() from generate_series($1::int, $2::int) n
    """,
    "dead_letters": """
        insert into dead_letters (event_id, endpoint_id, tenant_id, shard, position, day, generation, type, reason, died_at,
                                  attempt_count)
        select md5('v' || n)::uuid, md5('e' || n)::uuid, md5('t')::uuid, 1, n, hookpost_today(), 0, 'a', 'deadline', now(),
               1 from generate_series($1::int, $2::int) n
    """,
    "tenants": """
        insert into tenants (tenant_id, name, home_shards)
        select md5('t' || n)::uuid, 't', '{0}' from generate_series($1::int, $2::int) n
    """,
    "endpoints": """
        insert into endpoints (endpoint_id, tenant_id, url)
        select md5('e' || n)::uuid, md5('t' || n)::uuid, 'https://example.com/' || n from generate_series($1::int, $2::int) n
    """,
    "breakers": """
        insert into breakers (tenant_id, origin, state, since, reopen_at)
        select md5('t' || n)::uuid, 'https://' || n, 'open', now(), now() from generate_series($1::int, $2::int) n
    """,
}


def _ids(letter: str) -> Callable[[range], list[UUID]]:
    return lambda asked: [UUID(md5(f"{letter}{n}".encode(), usedforsecurity=False).hexdigest()) for n in asked]


def _each(value: Any) -> Callable[[range], list[Any]]:
    return lambda asked: [value for _ in asked]


def _origins(asked: range) -> list[str]:
    return [f"https://{n}" for n in asked]


# What workers and the API ask again and again of some rows of these tables.
ASKED: dict[str, tuple[tuple[str, ...], str, list[Any]]] = {
    "settle_deletes": (("backlog",), WORKER["settle_deletes"], [_each(1), _ids("e"), list]),
    "settle_dropped_lanes": (("backlog",), WORKER["settle_dropped_lanes"], [_each(1), _ids("e")]),
    "settle_dead_locks": (("dead_letters",), WORKER["settle_dead_locks"], [_ids("v"), _ids("e")]),
    "settle_revived": (("dead_letters",), WORKER["settle_revived"], [_ids("v"), _ids("e"), _each(1)]),
    "settle_dead_notices": (("dead_letters",), WORKER["settle_dead_notices"], [_ids("v"), _ids("e"), [], 10]),
    "load_endpoints": (("tenants", "endpoints"), WORKER["load_endpoints"], [_ids("e")]),
    "write_health": (("tenants", "endpoints"), WORKER["write_health"], [_ids("e"), _each(1), _each(1.0)]),
    "asked_breakers": (("breakers",), WORKER["asked_breakers"], [_ids("t"), _origins]),
    "take_probes": (("breakers",), WORKER["take_probes"], [_ids("t"), _origins, uuid7(), 1.0, 0.001]),
    "load_routes": (("tenants", "endpoints"), INGEST["load_routes"], [_ids("t")]),
    "load_route_changes": (("tenants", "endpoints"), INGEST["load_route_changes"], [_ids("t"), _each(1)]),
}
NODE = UUID(int=1)
ROWS, STEP, ASKED_AT_ONCE = 20_000, 500, 5


@pytest.mark.parametrize("statement", ASKED)
async def test_plans_are_made_anew_as_tables_grow(driver: Driver, statement: str) -> None:
    """However little of a table there was when a statement was planned, it reads what it asks for, and not the rest."""
    assert isinstance(driver, Postgres)
    tables, text, parameters = ASKED[statement]
    store = await driver.open()
    connection: Any = await driver.connect()
    await connection.execute("set plan_cache_mode = force_generic_plan")
    await prepare(connection)
    read = 0
    execute = await connection.prepare(text)
    for last in range(STEP, ROWS + 1, STEP):
        for table in tables:
            await driver.run(FILL[table], last - STEP + 1, last)
        await store.analyse_grown()
        asked = range(last - ASKED_AT_ONCE, last)
        await connection.execute("begin")
        before = await connection.fetchval(LOOKED_AT, list(tables))
        await execute.fetch(*(each(asked) if callable(each) else each for each in parameters))
        read = await connection.fetchval(LOOKED_AT, list(tables)) - before
        await connection.execute("rollback")
    assert read <= 4 * ASKED_AT_ONCE * len(tables)


async def test_only_the_eldest_worker_looks_and_only_until_a_table_is_known_to_be_large(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(driver, Postgres)
    monkeypatch.setattr(maintenance, "YOUNG_PAGES_MAX", 100)
    store = await driver.open()
    first, second = await own(store), await own(store)
    await driver.run("alter table breakers set (autovacuum_enabled = false)")
    await driver.run(FILL["breakers"], 1, 5_000)

    async def analysed(node_id: UUID) -> list[str]:
        caplog.clear()
        with caplog.at_level("DEBUG", logger="hookpost"):
            assert await Plans(store, node_id=node_id).once() == PLANS_EVERY_S
        return [record.hookpost_fields["table"] for record in caplog.records if record.hookpost_event == "table_grown"]  # type: ignore[attr-defined]

    assert await analysed(second) == []
    assert await analysed(first) == ["breakers"]
    assert await analysed(first) == []
    await driver.run(FILL["breakers"], 5_001, 25_000)
    assert await analysed(first) == ["breakers"]
    await driver.run(FILL["breakers"], 25_001, 125_000)
    assert await analysed(first) == []


async def test_a_table_that_somebody_looks_at_is_left_to_them(driver: Driver) -> None:
    assert isinstance(driver, Postgres)
    store = await driver.open()
    await driver.run("alter table breakers set (autovacuum_enabled = false)")
    await driver.run(FILL["breakers"], 1, 5_000)
    other = await driver.connect()
    await other.execute("begin; lock table breakers in share update exclusive mode")
    assert await store.analyse_grown() == []
    await other.execute("rollback")
    assert await store.analyse_grown() == ["breakers"]


async def test_a_store_that_is_away_is_asked_again_later(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="hookpost")
    answers: list[list[str] | Exception] = [["backlog"], StoreUnavailable("away"), []]

    class Tables:
        async def is_eldest(self, node_id: UUID) -> bool:
            return node_id == NODE

        async def analyse_grown(self) -> list[str]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    plans = Plans(cast(MaintenanceStore, Tables()), node_id=NODE)
    assert [await plans.once() for _ in range(3)] == [PLANS_EVERY_S, PLANS_AGAIN_S, PLANS_EVERY_S]
    assert [record.hookpost_event for record in caplog.records] == ["table_grown", "maintenance_failed"]
