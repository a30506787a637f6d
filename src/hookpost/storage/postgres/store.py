"""The PostgreSQL store of one process, and the checks a database must pass before it is used."""

from __future__ import annotations

from typing import Any

import asyncpg

from hookpost.model import RetryPolicy, Timeouts
from hookpost.policy.routing import ENDPOINT_CAP, HOMES_MAX
from hookpost.storage.contract import StoreUnavailable
from hookpost.storage.endpoints import EndpointDefaults
from hookpost.storage.postgres import migrate
from hookpost.storage.postgres.alerts import AlertQueries
from hookpost.storage.postgres.certificates import CertificateQueries
from hookpost.storage.postgres.cold import ColdQueries
from hookpost.storage.postgres.connection import CONNECT_TIMEOUT_S, Connections
from hookpost.storage.postgres.event_types import EventTypeQueries
from hookpost.storage.postgres.explain import ExplainQueries
from hookpost.storage.postgres.figures import FiguresQueries
from hookpost.storage.postgres.ingest import IngestQueries
from hookpost.storage.postgres.maintenance import MaintenanceQueries
from hookpost.storage.postgres.pumping import PumpQueries
from hookpost.storage.postgres.removals import RemovalQueries
from hookpost.storage.postgres.replays import ReplayQueries
from hookpost.storage.postgres.retention import RetentionQueries
from hookpost.storage.postgres.rollups import RollupQueries
from hookpost.storage.postgres.search import SearchQueries
from hookpost.storage.postgres.stats import StatsQueries
from hookpost.storage.postgres.vault import Vault
from hookpost.storage.postgres.worker import WorkerQueries
from hookpost.storage.rings import Rings

# The oldest PostgreSQL with multiranges, `merge`-free SQL and generic-plan pruning as used here.
VERSION_MIN = 15
# With these an acknowledged commit may be lost: local and remote flushes are left out.
_UNSAFE_SYNCHRONOUS_COMMIT = ("off",)


class UnsafeDatabase(Exception):
    """The database may lose what it has acknowledged, or is too old; the text says what to do."""


class PostgresStore(
    IngestQueries,
    PumpQueries,
    WorkerQueries,
    MaintenanceQueries,
    RollupQueries,
    RetentionQueries,
    ColdQueries,
    RemovalQueries,
    AlertQueries,
    CertificateQueries,
    EventTypeQueries,
    ReplayQueries,
    StatsQueries,
    SearchQueries,
    ExplainQueries,
    FiguresQueries,
):
    """Implements the whole contract on one pool of connections."""

    def __init__(
        self,
        dsn: str,
        *,
        application: str = "hookpost",
        size_min: int = 1,
        size_max: int = 8,
        idempotency_s: float = 86_400.0,
        append_timeout_s: float = 0.9,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        endpoint_cap: int = ENDPOINT_CAP,
        longest_s: float = 30.0,
        deadline_s_max: float = 28 * 86_400.0,
        vault: Vault | None = None,
    ) -> None:
        """``vault``: what secrets are sealed and opened with; a store that has none writes no secrets."""
        self._connections = Connections(dsn, application=application, size_min=size_min, size_max=size_max)
        self._idempotency_s = idempotency_s
        self._append_timeout_s = append_timeout_s
        self._defaults = EndpointDefaults(
            retry or RetryPolicy(), timeouts or Timeouts(), endpoint_cap, longest_s, deadline_s_max
        )
        self._endpoint_cap = endpoint_cap
        self._longest_s = longest_s
        self._vault = vault
        self._listener: Any = None
        self._listen_due = 0.0
        self._rings = Rings()
        self._gather()

    async def open(self) -> None:
        """Connect; raises StoreUnavailable."""
        await self._connections.open()

    async def close(self) -> None:
        """Close every connection."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.terminate()
        await self._connections.close()


async def _connect(dsn: str) -> Any:
    try:
        return await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S, server_settings={"timezone": "UTC"})
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        raise StoreUnavailable(
            f"the database cannot be reached ({type(error).__name__}: {error}): check HOOKPOST_DATABASE_URL and that "
            "PostgreSQL runs and lets this user in"
        ) from error


async def check_database(dsn: str, *, unsafe_ok: bool) -> list[str]:
    """Refuse a database that may lose acknowledged commits, is too old, or was migrated by a newer Hookpost.

    Returns warnings: what was found and let pass because a setting says so.
    """
    connection = await _connect(dsn)
    try:
        warnings = await _durability_faults(connection)
        if warnings and not unsafe_ok:
            raise UnsafeDatabase("; ".join(warnings))
        migrate.check_known(await migrate.current_revision(connection))
        return warnings
    finally:
        await connection.close()


async def _durability_faults(connection: Any) -> list[str]:
    if connection.get_server_version().major < VERSION_MIN:
        raise UnsafeDatabase(f"PostgreSQL {VERSION_MIN} or newer is needed, this is {connection.get_server_version()}")
    faults = []
    for name, unsafe in (("fsync", ("off",)), ("synchronous_commit", _UNSAFE_SYNCHRONOUS_COMMIT)):
        value = await connection.fetchval(f"show {name}")
        if value in unsafe:
            faults.append(
                f"the database runs with {name}={value}, so events it has acknowledged can be lost in a crash: "
                f"set {name}=on, or accept the loss with HOOKPOST_DATABASE_UNSAFE_OK=true"
            )
    return faults


async def migrate_database(dsn: str) -> list[str]:
    """Bring the schema up to date; returns [from, to], or [] when it was."""
    connection = await _connect(dsn)
    try:
        return await migrate.migrate(connection)
    finally:
        await connection.close()


async def require_migrated(dsn: str) -> None:
    """Raise SchemaTooOld unless the schema is the one this code needs."""
    connection = await _connect(dsn)
    try:
        revision = await migrate.current_revision(connection)
        if revision != migrate.head():
            raise migrate.SchemaTooOld(
                f"the database's schema is at revision {revision or 'empty'}, {migrate.head()} is needed: "
                "run `hookpost migrate`"
            )
    finally:
        await connection.close()


async def bootstrap(dsn: str, *, shards: int, tenant_id: Any, pool: str) -> Any | None:
    """Make the shards and the tenant `default` (at home in all of them, or in HOMES_MAX) at the first start.

    Returns the default tenant's id if it was made by this call, else None. Two servers may start at once.
    """
    connection = await _connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1, 0)", migrate.MIGRATION_LOCK)
            if await connection.fetchval("select exists (select from platform where name = 'default_tenant')"):
                return None
            await connection.execute(
                "insert into shards (shard, pool) select g, $2 from generate_series(0, $1 - 1) g", shards, pool
            )
            homes = min(shards, HOMES_MAX)
            await connection.execute(
                "insert into tenants (tenant_id, name, pool, home_shards, spread) values ($1, 'default', $2, $3, $4)",
                tenant_id,
                pool,
                [shards * home // homes for home in range(homes)],
                homes,
            )
            await connection.execute("insert into platform values ('default_tenant', $1)", str(tenant_id))
            return tenant_id
    finally:
        await connection.close()


async def platform_value(dsn: str, name: str, default: str | None = None) -> str | None:
    """A fact of the installation; ``default`` is stored first when it is given and there is none."""
    connection = await _connect(dsn)
    try:
        if default is not None:
            await connection.execute(
                "insert into platform (name, value) values ($1, $2) on conflict do nothing", name, default
            )
        value: str | None = await connection.fetchval("select value from platform where name = $1", name)
        return value
    finally:
        await connection.close()
