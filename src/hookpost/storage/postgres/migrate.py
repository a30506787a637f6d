"""Brings the schema up to date: Alembic orders the migrations and writes their SQL, this module runs it under a lock.

One transaction holds the lock, the migrations and the version stamp, so a crash leaves either the old schema or the
new one. Several servers may start at once: one migrates, the others wait and find it done.

Alembic takes longer to import than all the rest of Hookpost, and every process asks which revision it needs. So that is
told by the files' names, and Alembic comes in when there is something to migrate.
"""

from __future__ import annotations

import asyncio
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import asyncpg

_MIGRATIONS = Path(__file__).parent / "migrations"
# Any number that no other advisory lock of ours uses; held by the migrating transaction.
MIGRATION_LOCK = 7_702
# DDL must not queue behind a long transaction while everything else queues behind it.
LOCK_TIMEOUT = "10s"
# Migrations lock one table after the other, and so do the processes that run: whoever stands in a circle with them, or
# behind one for too long, gives way and begins anew.
TRIES = 10
AGAIN_S = 0.5


class SchemaTooNew(Exception):
    """The database was migrated by a newer Hookpost than this one."""


class SchemaTooOld(Exception):
    """The database must be migrated first."""


@cache
def revisions() -> tuple[str, ...]:
    """The revisions that this code knows, oldest first; each migration's file name begins with its own."""
    return tuple(sorted(path.stem.partition("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py")))


def head() -> str:
    """The revision this code needs."""
    return revisions()[-1]


def upgrade_sql(current: str | None) -> str:
    """The SQL from a revision (None: an empty database) to the newest, version stamps included."""
    from alembic import command
    from alembic.config import Config

    output = StringIO()
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(_MIGRATIONS))
    command.upgrade(config, f"{current or 'base'}:head", sql=True)
    return output.getvalue()


async def current_revision(connection: Any) -> str | None:
    """The revision of the connected database, None when it is empty."""
    if await connection.fetchval("select to_regclass('alembic_version')") is None:
        return None
    revision: str | None = await connection.fetchval("select version_num from alembic_version")
    return revision


def check_known(revision: str | None) -> None:
    """Raise SchemaTooNew for a revision that this code has never heard of."""
    if revision is not None and revision not in revisions():
        raise SchemaTooNew(
            f"the database's schema is at revision {revision}, this Hookpost knows revisions up to {head()}: "
            "start the newer Hookpost that migrated it, or restore a backup from before"
        )


async def migrate(connection: Any) -> list[str]:
    """Migrate to the newest revision; returns [from, to], or [] when there was nothing to do."""
    for _ in range(TRIES - 1):
        try:
            return await _migrate(connection)
        except (asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError):
            await asyncio.sleep(AGAIN_S)
    return await _migrate(connection)


async def _migrate(connection: Any) -> list[str]:
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1, 0)", MIGRATION_LOCK)
        revision = await current_revision(connection)
        check_known(revision)
        if revision == head():
            return []
        await connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
        await connection.execute(upgrade_sql(revision))
        return [revision or "empty", head()]
