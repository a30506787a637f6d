"""The schema comes up whole or not at all, and a database that may lose what it acknowledged is refused."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from uuid_utils.compat import uuid7

from hookpost.model import Endpoint
from hookpost.policy.routing import is_pinned
from hookpost.storage.contract import StoreUnavailable
from hookpost.storage.postgres import migrate, store
from hookpost.storage.postgres.embedded import EmbeddedPostgres
from tests.conftest import in_database
from tests.storage.driver import until


@pytest.fixture
async def empty(server: str) -> AsyncIterator[str]:
    """The DSN of a database without a schema."""
    name = f"m_{uuid7().hex}"
    connection = await asyncpg.connect(server)
    await connection.execute(f"create database {name} strategy wal_log")
    yield in_database(server, name)
    await connection.execute(f"drop database {name} with (force)")
    await connection.close()


async def ask(dsn: str, sql: str, *arguments: Any) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()


JAN_3 = 1_767_398_400.0


@asynccontextmanager
async def connected_store(dsn: str) -> AsyncIterator[store.PostgresStore]:
    opened = store.PostgresStore(dsn, size_max=2)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


def as_user(dsn: str, user: str) -> str:
    assert "//postgres@" in dsn
    return dsn.replace("//postgres@", f"//{user}@", 1)


# ---- migrations -----------------------------------------------------------------------------------------------------


def test_the_migrations_names_tell_their_revisions_in_order() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    chain = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(chain)) == migrate.revisions()


async def test_an_empty_database_is_migrated_once(empty: str) -> None:
    with pytest.raises(migrate.SchemaTooOld, match=r"at revision empty.*run `hookpost migrate`"):
        await store.require_migrated(empty)
    assert await store.check_database(empty, unsafe_ok=False) == []
    assert await store.migrate_database(empty) == ["empty", migrate.head()]
    assert await store.migrate_database(empty) == []
    await store.require_migrated(empty)
    assert await store.check_database(empty, unsafe_ok=False) == []


async def test_of_servers_that_start_at_once_one_migrates(empty: str) -> None:
    results = await asyncio.gather(*(store.migrate_database(empty) for _ in range(4)))
    assert sorted(results) == [[], [], [], ["empty", migrate.head()]]


async def test_a_migration_killed_in_the_middle_leaves_nothing_and_can_be_repeated(empty: str) -> None:
    # The migration stops at its first table: the name is taken by a transaction that has not ended.
    other = await asyncpg.connect(empty)
    await other.execute("begin; create table progress ()")
    migrating = asyncio.create_task(store.migrate_database(empty))
    blocked = "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    await until(lambda: ask(empty, blocked))

    async def killed() -> bool:
        """One that waited for too long meanwhile, as the machine stood still, waits anew."""
        await ask(empty, f"select pg_terminate_backend(({blocked} limit 1), 5000)")
        return migrating.done()

    await until(killed)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await migrating
    await other.execute("rollback")
    await other.close()
    assert await ask(empty, "select count(*) from pg_class where relnamespace = 'public'::regnamespace") == 0
    assert await store.migrate_database(empty) == ["empty", migrate.head()]


async def test_a_migration_that_stands_in_a_circle_with_a_worker_gives_way_and_is_begun_anew(empty: str) -> None:
    """The one to 0016 locks `nodes`, then `shards`; a worker has them the other way round."""
    before, _ = re.split(r"(?=-- Running upgrade \w+ -> 0016)", migrate.upgrade_sql(None))
    migrator, worker, watcher = [await asyncpg.connect(empty) for _ in range(3)]
    try:
        await migrator.execute(before)
        # Who finds the circle gives way; the worker does not look for it.
        await worker.execute("set deadlock_timeout = '1h'")
        await worker.execute("begin; lock table shards in access share mode")
        migrating = asyncio.create_task(migrate.migrate(migrator))
        waits = "select exists (select from pg_locks where relation = 'shards'::regclass and not granted)"
        await until(lambda: watcher.fetchval(waits))
        await worker.execute("lock table nodes in access share mode")
        await worker.execute("commit")
        assert (await migrating)[1] == migrate.head()
    finally:
        for connection in (migrator, worker, watcher):
            await connection.close()


async def test_a_newer_schema_is_refused_with_advice(empty: str) -> None:
    await store.migrate_database(empty)
    await ask(empty, "update alembic_version set version_num = '9999'")
    for call in (store.migrate_database(empty), store.check_database(empty, unsafe_ok=True)):
        with pytest.raises(migrate.SchemaTooNew, match=r"at revision 9999.*start the newer Hookpost"):
            await call
    with pytest.raises(migrate.SchemaTooOld):
        await store.require_migrated(empty)


async def test_the_sql_for_a_database_administrator_makes_the_same_schema(empty: str, database: str) -> None:
    connection = await asyncpg.connect(empty)
    await connection.execute(migrate.upgrade_sql(None))
    await connection.close()
    await store.require_migrated(empty)
    described = (
        "select array_agg(format('%s.%s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod))"
        " order by c.relname, a.attnum)::text from pg_class c join pg_attribute a on a.attrelid = c.oid"
        " where c.relnamespace = 'public'::regnamespace and a.attnum > 0"
    )
    assert await ask(empty, described) == await ask(database, described)
    assert "alembic_version" in await ask(empty, described)


HOUR = "timestamptz '2026-01-05 08:00:00Z'"
BEFORE_GRAINS = f"""
insert into rollups
select grain, {HOUR} + at * interval '1 minute', tenant, endpoint, 'delivered', '', false, 8, attempts, 9, 10, 20
from (values
    (86400, -480 - 1440 * 2, 7), (3600, -480 - 1440, 5), (3600, -480, 11),
    -- of two hours that were being moved, and of the day before that one
    (60, 30, 1), (3600, 0, 3), (3600, -480 - 1440 * 2, 2),
    (60, 61, 1), (60, 95, 1)
) r (grain, at, attempts)
cross join (values ('00000000-0000-0000-0000-000000000000'::uuid), (gen_random_uuid())) t (tenant)
cross join (values ('00000000-0000-0000-0000-000000000000'::uuid)) e (endpoint);
update rollup_state set minutes_from = {HOUR} + interval '1 hour', hours_from = '2026-01-04'
"""


async def test_rollups_of_the_release_before_count_the_same_in_all_grains_and_its_builder_stands_still(
    empty: str,
) -> None:
    before, after = re.split(r"(?=-- Running upgrade \w+ -> 0013)", migrate.upgrade_sql(None))
    of_all = "select sum(attempts) from {} where tenant_id = '00000000-0000-0000-0000-000000000000'"
    connection = await asyncpg.connect(empty)
    try:
        await connection.execute(before)
        await connection.execute(BEFORE_GRAINS)
        assert await connection.fetchval(of_all.format("rollups")) == 31
        await connection.execute(after)
        rows = await connection.fetch(
            "select grain, sum(attempts)::int from rollup_counts"
            " where tenant_id = '00000000-0000-0000-0000-000000000000' group by grain"
        )
        assert dict(rows) == {86_400: 9, 3_600: 20, 60: 2}
        async with connected_store(empty) as whole:
            for width, start in ((86_400, JAN_3), (86_400, JAN_3 - 86_400)):
                series = await whole.series(None, None, start=start, end=JAN_3 + 4 * 86_400, step_s=width)
                assert sum(sum(point.counts.values()) for point in series.points.values()) == 31
            while await whole.build_rollups(rows_max=1_000):
                pass
            series = await whole.series(None, None, start=JAN_3, end=JAN_3 + 4 * 86_400, step_s=86_400)
            assert sum(sum(point.counts.values()) for point in series.points.values()) == 31
        assert await connection.fetchval(of_all.format("rollups")) == 31
        with pytest.raises(asyncpg.PostgresError, match="by processes of a newer release"):
            await connection.execute("insert into rollup_marks (shard) select 0 where false")
    finally:
        await connection.close()


BEFORE_TALLIES = f"""
insert into rollup_counts
select 60, {HOUR}, t.tenant, e.endpoint, k.outcome, k.error_code, false, k.ms, k.attempts, 9, 10, 20
from (values ('00000000-0000-0000-0000-000000000000'::uuid), ('10000000-0000-0000-0000-000000000000')) t (tenant)
cross join (values ('00000000-0000-0000-0000-000000000000'::uuid), ('20000000-0000-0000-0000-000000000000')) e (endpoint)
cross join (values ('delivered', '', 8, 5), ('delivered', '', 64, 1), ('retry', 'http_5xx', 8, 2),
                   ('dead', 'total_timeout', 8, 1), ('arrived', '', 16, 4), ('arrived', '', 64, 2))
     k (outcome, error_code, ms, attempts);
update rollup_grains set bucket = {HOUR} where grain = 1800;
update rollup_state set counted_until = {HOUR}
"""


async def test_rollups_become_tallies_that_say_the_same_and_the_builder_of_before_stands_still(empty: str) -> None:
    before, after = re.split(r"(?=-- Running upgrade \w+ -> 0025)", migrate.upgrade_sql(None))
    connection = await asyncpg.connect(empty)
    try:
        await connection.execute(before)
        await connection.execute(BEFORE_TALLIES)
        await connection.execute(after)
        async with connected_store(empty) as whole:
            start = JAN_3 + 2 * 86_400 + 8 * 3_600
            series = await whole.series(None, None, start=start, end=start + 60, step_s=60)
        assert series.complete_until == start
        point = series.points[0]
        assert point.counts == {
            ("delivered", "", False): 6, ("retry", "http_5xx", False): 2, ("dead", "total_timeout", False): 1
        }  # fmt: skip
        assert (point.latencies, point.arrivals) == ({8: 8, 64: 1}, {16: 4, 64: 2})
        rows = await connection.fetch("select failed, cardinality(tallies) as tallies from rollup_tallies")
        assert [(row["failed"], row["tallies"]) for row in rows] == [(3, 6)] * 4
        reached = await connection.fetchval(f"select bucket = {HOUR} from rollup_reach where grain = 1800")
        assert reached is True
        for statement in (
            "insert into rollup_counts select * from rollup_counts where false",
            "update rollup_grains set bucket = bucket where false",
            "update rollup_state set counted_until = counted_until where false",
        ):
            with pytest.raises(asyncpg.PostgresError, match="by processes of a newer release"):
                await connection.execute(statement)
        assert await connection.fetchval("select count(*) from rollup_counts") == 24
    finally:
        await connection.close()


# ---- bootstrap ------------------------------------------------------------------------------------------------------


async def test_the_first_start_makes_the_shards_and_the_default_tenant_once(empty: str) -> None:
    await store.migrate_database(empty)
    ids = [uuid7() for _ in range(4)]
    made = await asyncio.gather(
        *(store.bootstrap(empty, shards=6, tenant_id=tenant_id, pool="default") for tenant_id in ids)
    )
    [winner] = [tenant_id for tenant_id in made if tenant_id is not None]
    assert winner in ids
    assert await store.bootstrap(empty, shards=9, tenant_id=uuid7(), pool="default") is None
    assert await ask(empty, "select array_agg(shard order by shard) from shards") == list(range(6))
    assert await ask(empty, "select home_shards from tenants where name = 'default'") == list(range(6))
    assert await ask(empty, "select count(*) from tenants") == 1
    assert await store.platform_value(empty, "default_tenant") == str(winner)


@pytest.mark.parametrize(("shards", "homes"), [(64, list(range(64))), (128, list(range(0, 128, 2)))])
async def test_the_default_tenant_is_not_spread_so_far_that_its_endpoints_are_pinned(
    empty: str, shards: int, homes: list[int]
) -> None:
    """At 1,000 shards a cap of 64 could not be shared out: all of its events went to the first."""
    await store.migrate_database(empty)
    await store.bootstrap(empty, shards=shards, tenant_id=uuid7(), pool="default")
    found = await ask(empty, "select home_shards from tenants where name = 'default'")
    assert found == homes
    assert not is_pinned(Endpoint(uuid7(), uuid7(), "").max_in_flight, found)


async def test_a_fact_of_the_installation_is_kept_by_whoever_comes_first(database: str) -> None:
    assert await store.platform_value(database, "secret") is None
    values = await asyncio.gather(*(store.platform_value(database, "secret", f"s{n}") for n in range(5)))
    assert len(set(values)) == 1
    assert await store.platform_value(database, "secret", "late") == values[0]


# ---- what a database must be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["database", "role", "role in database"])
async def test_a_database_that_does_not_wait_for_the_disk_is_refused(empty: str, server: str, level: str) -> None:
    name = empty.split("?")[0].rsplit("/", 1)[1]
    role = f"r_{uuid7().hex}"
    await ask(server, f"create role {role} login superuser")
    targets = [f"database {name}", f"role {role}", f"role {role} in database {name}"]
    target = dict(zip(("database", "role", "role in database"), targets, strict=True))
    dsn = as_user(empty, role)
    try:
        assert await ask(dsn, "select current_user") == role
        assert await store.check_database(dsn, unsafe_ok=False) == []
        await ask(server, f"alter {target[level]} set synchronous_commit = off")
        with pytest.raises(store.UnsafeDatabase, match=r"synchronous_commit=off.*HOOKPOST_DATABASE_UNSAFE_OK=true"):
            await store.check_database(dsn, unsafe_ok=False)
        [warning] = await store.check_database(dsn, unsafe_ok=True)
        assert "synchronous_commit=off" in warning
        for safe in ("on", "local", "remote_write"):
            await ask(server, f"alter {target[level]} set synchronous_commit = {safe}")
            assert await store.check_database(dsn, unsafe_ok=False) == []
    finally:
        await ask(server, f"alter role {role} in database {name} reset all")
        await ask(server, f"drop role {role}")


@pytest.fixture
def careless() -> Iterator[EmbeddedPostgres]:
    """A server of its own that does not flush, as some tuning guides advise."""
    folder = Path(tempfile.mkdtemp(prefix="hookpost-test-"))
    folder.chmod(0o755)
    embedded = EmbeddedPostgres(folder)
    try:
        yield embedded
    finally:
        embedded.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def test_a_server_without_fsync_is_refused(careless: EmbeddedPostgres) -> None:
    """F12: what a loss of power leaves is what fsync has written."""
    dsn = await asyncio.to_thread(careless.start)
    await ask(dsn, "alter system set fsync = off")
    await ask(dsn, "select pg_reload_conf()")
    await until(lambda: ask(dsn, "select current_setting('fsync') = 'off'"))
    with pytest.raises(store.UnsafeDatabase, match=r"fsync=off.*set fsync=on"):
        await store.check_database(dsn, unsafe_ok=False)
    await ask(dsn, "alter system set synchronous_commit = off")
    await ask(dsn, "select pg_reload_conf()")
    await until(lambda: ask(dsn, "select current_setting('synchronous_commit') = 'off'"))
    first, second = await store.check_database(dsn, unsafe_ok=True)
    assert "fsync=off" in first
    assert "synchronous_commit=off" in second


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://nobody@127.0.0.1:1/none",
        "postgresql://nobody@/none?host=/nonexistent",
        "mysql://root@127.0.0.1/x",
        "postgresql://host:port/x",
        "not a url",
    ],
)
async def test_a_database_that_cannot_be_reached_says_what_to_check(dsn: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"cannot be reached.*check HOOKPOST_DATABASE_URL"):
        await store.check_database(dsn, unsafe_ok=False)
    with pytest.raises(StoreUnavailable):
        await store.PostgresStore(dsn).open()


async def test_an_unknown_database_and_a_wrong_user_say_what_to_check(server: str) -> None:
    for dsn in (in_database(server, "nowhere"), as_user(server, "stranger")):
        with pytest.raises(StoreUnavailable, match=r"cannot be reached.*check HOOKPOST_DATABASE_URL"):
            await store.check_database(dsn, unsafe_ok=True)


async def test_a_closed_store_says_so(database: str) -> None:
    opened = store.PostgresStore(database)
    with pytest.raises(StoreUnavailable, match="closed"):
        await opened.ping()
    await opened.open()
    assert await opened.ping() > 1.7e9
    await opened.close()
    await opened.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await opened.ping()
