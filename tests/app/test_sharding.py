"""`hookpost shards`: a line a shard, and refusals that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from hookpost.app import sharding
from hookpost.app.config import ConfigError
from hookpost.storage.postgres.shards import Listed
from tests.app.test_keyring import GIVEN, settings


def test_a_table_has_a_line_for_each_shard_and_says_when_nobody_owns_one() -> None:
    found = [
        Listed(0, "default", "host-1-worker-1", fence=12, depth=0, age_s=None, tenants=3),
        Listed(10, "acme", None, fence=0, depth=1234, age_s=61.25, tenants=1),
    ]
    assert list(sharding.table(found)) == [
        "shard  pool     tenants  depth  oldest  fence  owner",
        "0      default  3        0      -       12     host-1-worker-1",
        "10     acme     1        1234   61.2 s  0      nobody",
    ]


async def test_a_pool_that_there_is_not_is_refused_with_what_to_do(database: str, tmp_path: Path) -> None:
    given = settings(tmp_path, database_url=database, encryption_keys=GIVEN)
    with pytest.raises(ConfigError, match="hookpost pools add acme --shards 2"):
        await sharding.add(given, database, pool="acme", count=2)
    with pytest.raises(ConfigError, match="there is no pool acme"):
        await sharding.listed(database, "acme")
    assert await sharding.add(given, database, pool="default", count=2) == len(await sharding.listed(database, None))
