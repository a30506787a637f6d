"""One real PostgreSQL for each test process, and a fresh, migrated database for each test that asks."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import pytest
from uuid_utils.compat import uuid7

from hookpost import mail, metrics
from hookpost.policy.sealing import Keyring
from hookpost.storage import payloads
from hookpost.storage.postgres import cold, connection, maintenance, retention, vault, worker
from hookpost.storage.postgres import store as postgres
from hookpost.storage.postgres.embedded import EmbeddedPostgres
from hookpost.storage.postgres.vault import Vault
from hookpost.web import auth, health
from tests.patience import PATIENCE_S, until_tomorrow_s

# An example that takes long says something of the machine only, and a run is the same each time: what is to be found by
# chance is for `make fuzz`, which goes on until the time is up.
hypothesis.settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "fuzz", max_examples=20_000, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("steady")

# What stores, who asks them, and senders of mail give up after, in seconds, and how long the database waits for a lock or
# for us. In production somebody waits for the answer; here a machine that has no time for us must not look like a database
# that is away. Who tests them sets them.
GIVES_UP = {
    connection: ("STATEMENT_TIMEOUT_S", "ACQUIRE_TIMEOUT_S", "CONNECT_TIMEOUT_S", "IDLE_TRANSACTION"),
    auth: ("LOOK_UP_S_MAX",),
    health: ("READY_S",),
    metrics: ("ASK_S_MAX",),
    postgres: ("CONNECT_TIMEOUT_S",),
    vault: ("CONNECT_TIMEOUT_S",),
    worker: ("SETTLE_TIMEOUT_S",),
    maintenance: ("DDL_LOCK_TIMEOUT",),
    retention: ("DDL_LOCK_TIMEOUT",),
    cold: ("DDL_LOCK_TIMEOUT", "SWAP_LOCK_TIMEOUT"),
    payloads: ("REQUEST_S",),
    mail: ("TIMEOUT_S",),
}

# To make and drop a database for each test is some five hundred files and a checkpoint each time: most of what a test with
# a database took. In memory they are cheap. What must outlive a crash is tested on the disk, with servers of its own.
MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 4 * 2**30
# A database is 10 MB of WAL, of which an embedded server keeps 4 GB.
WAL_MAX = "512MB"

SHARDS = 4
KEYS = Keyring({"k1": b"1" * 32})
TEMPLATE = "hookpost_template"


@pytest.fixture(scope="session", autouse=True)
def patient_stores() -> Iterator[None]:
    """Stores that do not give up while the machine is busy with others."""
    with pytest.MonkeyPatch.context() as patch:
        for module, names in GIVES_UP.items():
            for name in names:
                patch.setattr(
                    module, name, f"{PATIENCE_S:g}s" if isinstance(getattr(module, name), str) else PATIENCE_S
                )
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The DSN of a running PostgreSQL."""
    folder = Path(tempfile.mkdtemp(prefix="hookpost-test-", dir=MEMORY if _roomy(MEMORY) else None))
    folder.chmod(0o755)
    embedded = EmbeddedPostgres(folder)
    dsn = embedded.start()
    try:
        asyncio.run(_prepare(dsn))
        yield dsn
    finally:
        embedded.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _roomy(folder: Path) -> bool:
    """Is there enough for the WAL of a whole run? Containers mostly give 64 MiB."""
    return folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= MEMORY_BYTES_MIN


async def _prepare(dsn: str) -> None:
    await _execute(dsn, f"alter system set max_wal_size = '{WAL_MAX}'")
    await _execute(dsn, "select pg_reload_conf()")


async def template_of_today(dsn: str) -> str:
    """The name of a migrated database of SHARDS shards. It has partitions for the days around the one it was made on: a run
    that goes on over midnight makes another."""
    await asyncio.sleep(until_tomorrow_s())
    name = f"{TEMPLATE}_{datetime.now(UTC):%Y%m%d}"
    if (dsn, name) not in _templates:
        await _execute(dsn, f"create database {name}")
        await postgres.migrate_database(in_database(dsn, name))
        await postgres.bootstrap(in_database(dsn, name), shards=SHARDS, tenant_id=uuid7(), pool="default")
        _templates.add((dsn, name))
    return name


_templates: set[tuple[str, str]] = set()


async def _execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


def in_database(dsn: str, name: str) -> str:
    """The same server, another database."""
    return dsn.replace("/hookpost?", f"/{name}?", 1)


@pytest.fixture
async def database(server: str) -> AsyncIterator[str]:
    """The DSN of a fresh database with the newest schema, SHARDS shards and the tenant `default`."""
    name, template = f"t_{uuid7().hex}", await template_of_today(server)
    await _execute(server, f"create database {name} template {template} strategy wal_log")
    yield in_database(server, name)
    await _execute(server, f"drop database {name} with (force)")


@pytest.fixture
async def store(database: str) -> AsyncIterator[postgres.PostgresStore]:
    """The store on a fresh database."""
    opened = postgres.PostgresStore(database, application="test", append_timeout_s=PATIENCE_S, vault=Vault(KEYS))
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def sql(database: str) -> AsyncIterator[Any]:
    """A plain connection to the test's database, to look behind the store's back."""
    connection = await asyncpg.connect(database, server_settings={"timezone": "UTC"})
    yield connection
    await connection.close()


def require(capable: bool, reason: str) -> None:
    """Skip a test for want of a capability; in CI a skip is a failure, as nobody would notice it."""
    if capable:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI lacks a capability: {reason}")
    pytest.skip(reason)
