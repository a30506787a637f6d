"""One real PostgreSQL for each test process, and a fresh, migrated database for each test that asks."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import pytest
from uuid_utils.compat import uuid7

from hookpost.policy.sealing import Keyring
from hookpost.storage.postgres import store as postgres
from hookpost.storage.postgres.embedded import EmbeddedPostgres
from hookpost.storage.postgres.vault import Vault

# For `make fuzz`: it goes on until the time is up.
hypothesis.settings.register_profile("fuzz", max_examples=20_000, deadline=None)

SHARDS = 4
KEYS = Keyring({"k1": b"1" * 32})
TEMPLATE = "hookpost_template"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The DSN of a running PostgreSQL with a migrated template database of SHARDS shards."""
    folder = Path(tempfile.mkdtemp(prefix="hookpost-test-"))
    folder.chmod(0o755)
    embedded = EmbeddedPostgres(folder)
    dsn = embedded.start()
    try:
        asyncio.run(_make_template(dsn))
        yield dsn
    finally:
        embedded.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _make_template(dsn: str) -> None:
    await _execute(dsn, f"create database {TEMPLATE}")
    await postgres.migrate_database(in_database(dsn, TEMPLATE))
    await postgres.bootstrap(in_database(dsn, TEMPLATE), shards=SHARDS, tenant_id=uuid7(), pool="default")


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
    name = f"t_{uuid7().hex}"
    await _execute(server, f"create database {name} template {TEMPLATE} strategy wal_log")
    yield in_database(server, name)
    await _execute(server, f"drop database {name} with (force)")


@pytest.fixture
async def store(database: str) -> AsyncIterator[postgres.PostgresStore]:
    """The store on a fresh database."""
    opened = postgres.PostgresStore(database, application="test", vault=Vault(KEYS))
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
