"""`hookpost shards`: a line a shard, and refusals that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from hookpost.app import sharding
from hookpost.app.config import ConfigError
from hookpost.storage.postgres.shards import Drained, Listed
from tests.app.test_keyring import GIVEN, settings


def test_a_table_has_a_line_for_each_shard_and_says_when_nobody_owns_one() -> None:
    found = [
        Listed(0, "default", "host-1-worker-1", fence=12, depth=0, age_s=None, tenants=3),
        Listed(10, "acme", None, fence=0, depth=1234, age_s=61.25, tenants=1, draining=True),
        Listed(11, "acme", None, fence=0, depth=0, age_s=None, tenants=0, draining=True),
    ]
    assert list(sharding.table(found)) == [
        "shard  pool     tenants  depth  oldest  fence  owner            use",
        "0      default  3        0      -       12     host-1-worker-1  yes",
        "10     acme     1        1234   61.2 s  0      nobody           draining",
        "11     acme     0        0      -       0      nobody           empty",
    ]


async def test_a_pool_that_there_is_not_is_refused_with_what_to_do(database: str, tmp_path: Path) -> None:
    given = settings(tmp_path, database_url=database, encryption_keys=GIVEN)
    with pytest.raises(ConfigError, match="hookpost pools add acme --shards 2"):
        await sharding.add(given, database, pool="acme", count=2)
    with pytest.raises(ConfigError, match="there is no pool acme"):
        await sharding.listed(database, "acme")
    assert await sharding.add(given, database, pool="default", count=2) == len(await sharding.listed(database, None))


async def test_draining_says_what_is_left_and_refuses_what_there_is_not(database: str, tmp_path: Path) -> None:
    given = settings(tmp_path, database_url=database, encryption_keys=GIVEN)
    done, now = await sharding.drain(given, database, 0, wait=False)
    assert sharding.told(done, now) == (
        "shard 0 gets no new tenants; 1 moved away; "
        "still to be done there: 0 entries, and what 1 tenants have left behind"
    )
    await sharding.undrain(given, database, 0)
    for refused in (sharding.drain(given, database, 99, wait=False), sharding.undrain(given, database, 99)):
        with pytest.raises(ConfigError, match="there is no shard 99"):
            await refused


def test_what_waits_for_an_earlier_move_is_told_with_what_to_do() -> None:
    now = Listed(3, "default", "w", fence=1, depth=0, age_s=None, tenants=0, draining=True)
    assert sharding.told(Drained(moved=1, staying=0), now) == (
        "shard 3 gets no new tenants; 1 moved away, and nothing is left there"
    )
    now = Listed(3, "default", "w", fence=1, depth=7, age_s=1.0, tenants=2, draining=True, leaving=4)
    assert sharding.told(Drained(moved=4, staying=2), now) == (
        "shard 3 gets no new tenants; 4 moved away, 2 stay until an earlier move of theirs is over "
        "(run it again, or with --wait); still to be done there: 7 entries, and what 4 tenants have left behind"
    )
