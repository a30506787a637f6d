"""A server whose tables grow has their plans made anew."""

from __future__ import annotations

import asyncpg
import pytest

from hookpost.storage.postgres.embedded import find_running
from tests.e2e.harness import running

pytestmark = pytest.mark.process

# The database's own look is kept away. One transaction, which holds the lock that ours leaves a table alone for: it sees all.
FILL = """
alter table breakers set (autovacuum_enabled = false);
insert into breakers (tenant_id, origin, state, since)
select (select tenant_id from tenants limit 1), 'https://' || n, 'closed', now() - interval '1 day'
from generate_series(1, 10000) n;
"""


async def test_a_table_that_has_grown_is_known_to_be_large_in_a_moment() -> None:
    async with running(log_level="debug") as server:
        operator = await asyncpg.connect(find_running(server.folder))
        await operator.execute(FILL)
        await server.until_line("table_grown.*breakers")
        assert await operator.fetchval("select reltuples from pg_class where relname = 'breakers'") == 10_000
        await operator.close()
