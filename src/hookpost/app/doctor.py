"""`hookpost doctor`: what a server needs, checked one by one, each with what to do when it is missing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pycurl

from hookpost.app.children import raise_file_limit
from hookpost.app.compose import check_journal, make_store
from hookpost.app.config import ConfigError, Settings, unknown_variables
from hookpost.app.keyring import load_keyring
from hookpost.storage.contract import KeysMissing, StoreUnavailable
from hookpost.storage.postgres import migrate
from hookpost.storage.postgres.embedded import EmbeddedPostgresError, bin_dir
from hookpost.storage.postgres.migrate import SchemaTooNew
from hookpost.storage.postgres.store import UnsafeDatabase, check_database
from hookpost.storage.postgres.vault import check_keys

# Sockets to receivers, to clients and to the database, with room to spare.
FILES_MIN = 4096
# A journal of a busy day; below it a start is a bad idea.
FREE_BYTES_MIN = 1024**3

_PARTITIONS_AHEAD = (
    "select count(*) from pg_inherits i join pg_class c on c.oid = i.inhrelid"
    " where i.inhparent = 'events'::regclass and c.relname > 'events_' || to_char(hookpost_today(), 'YYYYMMDD')"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    good: bool
    what: str
    detail: str


async def examine(settings: Settings, running: str | None) -> list[Finding]:
    """All findings; ``running`` is the DSN of an embedded database that runs on the data directory."""
    findings = [_python(), _curl(), _files(), _disk(settings), *_variables()]
    dsn = settings.database_url or running
    if dsn is None:
        findings.append(_embedded(f"not running on {settings.data_dir}"))
    else:
        if dsn == running:
            findings.append(_embedded(f"running, at {running}"))
        findings += [finding async for finding in _database(settings, dsn)]
    return findings


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(sys.version_info >= (3, 11), "Python", f"{version} (3.11 or newer is needed)")


def _curl() -> Finding:
    features = pycurl.version
    return Finding(
        "nghttp2" in features and "OpenSSL" in features, "libcurl", f"{features} (HTTP/2 and OpenSSL needed)"
    )


def _files() -> Finding:
    limit = raise_file_limit()
    return Finding(limit >= FILES_MIN, "open files", f"at most {limit} (ulimit -Hn {FILES_MIN} or more is needed)")


def _disk(settings: Settings) -> Finding:
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Finding(free >= FREE_BYTES_MIN, "disk", f"{free // 1024**2} MiB free at {folder}")


def _variables() -> list[Finding]:
    return [
        Finding(False, unknown.variable, f"not a setting; did you mean {unknown.suggestion or 'another one'}?")
        for unknown in unknown_variables()
    ]


def _embedded(how: str) -> Finding:
    """Whoever dumps it or looks into it needs its programs and its address."""
    try:
        return Finding(True, "embedded PostgreSQL", f"{how}; its programs are in {bin_dir()}")
    except EmbeddedPostgresError as error:
        return Finding(False, "embedded PostgreSQL", str(error))


async def _database(settings: Settings, dsn: str) -> AsyncIterator[Finding]:
    try:
        warnings = await check_database(dsn, unsafe_ok=settings.database_unsafe_ok)
    except (StoreUnavailable, UnsafeDatabase, SchemaTooNew) as error:
        yield Finding(False, "database", str(error))
        return
    yield Finding(not warnings, "database", "; ".join(warnings) or "reachable, durable")
    connection = await asyncpg.connect(dsn)
    try:
        yield await _write_ahead_log(connection)
        revision = await migrate.current_revision(connection)
        newest = migrate.head()
        yield Finding(revision == newest, "schema", f"revision {revision or 'empty'} of {newest} (`hookpost migrate`)")
        if revision == newest:
            ahead = await connection.fetchval(_PARTITIONS_AHEAD)
            yield Finding(ahead > 0, "partitions", f"{ahead} days ahead (a worker makes them)")
            yield await _keys(settings, dsn)
            if settings.journal_url is not None:
                yield await _journal(settings, dsn)
    finally:
        await connection.close()


async def _write_ahead_log(connection: Any) -> Finding:
    """How it grows. No fault either way: where PostgreSQL is rented it may not be yours to set."""
    zeros = await connection.fetchval("show wal_init_zero")
    grows = "it grows without a pause"
    if zeros == "on":
        grows = "a pause of 60 ms or more in all commits when it grows by a segment; set it to off, if you may"
    return Finding(True, "write-ahead log", f"wal_init_zero is {zeros}: {grows}")


async def _journal(settings: Settings, dsn: str) -> Finding:
    try:
        await check_journal(settings, dsn)
        store = make_store(settings, dsn, application="hookpost doctor")
        await store.open()
        try:
            lag, weakness = await store.journal_state()  # type: ignore[attr-defined] # a KafkaStore
        finally:
            await store.close()
    except (ConfigError, StoreUnavailable) as error:
        return Finding(False, "Kafka", str(error))
    waiting = ", ".join(f"shard {shard}: {records}" for shard, records in sorted(lag.items()) if records) or "none"
    detail = f"records not taken over: {waiting}; {weakness or 'any one broker may fail'}"
    return Finding(weakness is None, "Kafka", detail)


async def _keys(settings: Settings, dsn: str) -> Finding:
    try:
        ring = load_keyring(settings)
        await check_keys(dsn, ring)
    except (ConfigError, KeysMissing, StoreUnavailable) as error:
        return Finding(False, "encryption keys", str(error))
    return Finding(True, "encryption keys", f"{', '.join(ring.ids)}: the first seals, what is sealed opens")
