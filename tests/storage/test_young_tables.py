"""Plans that are made while a table is empty, and are kept while it grows: nothing is analysed for the first minute, and
each key costs as much as all that came before it where a plan reads them all."""

from __future__ import annotations

from typing import Any

import pytest
from uuid_utils.compat import uuid7

from hookpost.storage.postgres.queries import load
from tests.storage.driver import Driver, Postgres, new_tenant, version

pytestmark = pytest.mark.postgres

INGEST = load("ingest")
READ = """
select coalesce(sum(seq_tup_read), 0)::bigint from pg_stat_xact_user_tables where relname = any ($1::text[])
"""


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
