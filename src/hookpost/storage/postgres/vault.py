"""Secrets at rest in the PostgreSQL store: sealed when they are written, opened when an endpoint is loaded.

Relies on ``policy/sealing`` for what is sealed with what. Promises: nothing secret of an endpoint is written in the
clear (but for as long as a process of the release before lives, which could not read it); a data key is unwrapped once
in a process; what does not open locks its endpoint, and nothing else.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from hookpost import telemetry
from hookpost.policy.sealing import (
    KEY_BYTES,
    NONCE_BYTES,
    Keyring,
    Locked,
    bound_to,
    choose_key,
    open_sealed,
    seal,
    unwrap,
    wrap,
)
from hookpost.storage.contract import KeysMissing, Rewrapped, SecretLocked, TlsChange
from hookpost.storage.postgres.connection import CONNECT_TIMEOUT_S, Connections, prepare, translated
from hookpost.storage.postgres.queries import load

SQL = load("sealing")
# The platform's own data key and chain of the audit log.
PLATFORM = UUID(int=0)
# Data keys kept ready, some 300 bytes each.
DATA_KEYS_MAX = 50_000
# Rows in one transaction: they are locked, and it must be over before anyone notices.
ROWS_AT_ONCE = 200


class Vault:
    """What one process opens and seals with."""

    def __init__(self, ring: Keyring, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self.ring = ring
        self._random_bytes = random_bytes
        # Each with what it was unwrapped from: a transaction that made it may have been rolled back since.
        self._data_keys: dict[UUID, tuple[bytes, bytes]] = {}

    def opened_key(self, tenant_id: UUID, key_id: str | None, wrapped: bytes | None) -> bytes:
        """A tenant's data key; raises Locked."""
        if key_id is None or wrapped is None:
            raise Locked(f"the tenant {tenant_id} has no data key")
        known = self._data_keys.get(tenant_id)
        if known is not None and known[0] == wrapped:
            return known[1]
        data_key = unwrap(self.ring, key_id, wrapped, tenant_id=tenant_id)
        while len(self._data_keys) >= DATA_KEYS_MAX:
            del self._data_keys[next(iter(self._data_keys))]
        self._data_keys[tenant_id] = wrapped, data_key
        return data_key

    def wrapped(self, tenant_id: UUID, key_id: str, data_key: bytes) -> bytes:
        """A data key as it is stored."""
        return wrap(self.ring, key_id, data_key, tenant_id=tenant_id, nonce=self._random_bytes(NONCE_BYTES))

    def wrapped_anew(self, tenant_id: UUID, key_id: str, wrapped: bytes) -> bytes:
        """The same data key, wrapped with the ring's first key. Raises Locked."""
        return self.wrapped(tenant_id, self.ring.ids[0], unwrap(self.ring, key_id, wrapped, tenant_id=tenant_id))

    def fresh_key(self) -> bytes:
        """A new data key."""
        return self._random_bytes(KEY_BYTES)

    def seal(self, data_key: bytes, plain: bytes, bound: bytes) -> bytes:
        """What is stored of ``plain``."""
        return seal(data_key, plain, bound=bound, nonce=self._random_bytes(NONCE_BYTES))


# ---- where the sealed values lie ------------------------------------------------------------------------------------


def _of_secret(tenant_id: UUID, endpoint_id: UUID, created_at: float) -> bytes:
    """Of one secret of one endpoint: no two were made in the same microsecond."""
    return bound_to("endpoint_secrets", "sealed", tenant_id, endpoint_id, round(created_at * 1e6))


def _of_headers(tenant_id: UUID, endpoint_id: UUID) -> bytes:
    return bound_to("endpoints", "sealed_headers", tenant_id, endpoint_id)


def _of_tls_key(tenant_id: UUID, endpoint_id: UUID) -> bytes:
    return bound_to("endpoints", "sealed_tls_key", tenant_id, endpoint_id)


# ---- in a transaction of the caller's -------------------------------------------------------------------------------


async def data_key(connection: Any, vault: Vault, tenant_id: UUID) -> bytes:
    """The tenant's data key, which is made if there is none. Raises SecretLocked."""
    return (await _data_keys(connection, vault, [tenant_id]))[tenant_id]


async def _data_keys(connection: Any, vault: Vault, tenant_ids: Collection[UUID]) -> dict[UUID, bytes]:
    """The data keys of these tenants, made for those that have none. Raises SecretLocked."""
    rows = await connection.fetch(SQL["get_data_keys"], tenant_ids)
    missing = sorted(set(tenant_ids).difference(row["tenant_id"] for row in rows))
    if missing:
        held = [each["key_ids"] for each in await connection.fetch(SQL["held_keys"]) if each["key_ids"] is not None]
        key_id = choose_key(vault.ring, held)
        fresh = [vault.wrapped(tenant_id, key_id, vault.fresh_key()) for tenant_id in missing]
        await connection.execute(SQL["add_data_keys"], missing, key_id, fresh)
        rows = await connection.fetch(SQL["get_data_keys"], tenant_ids)
    try:
        return {row["tenant_id"]: vault.opened_key(row["tenant_id"], row["key_id"], row["wrapped"]) for row in rows}
    except Locked as error:
        raise _locked(error) from error


async def add_secret(connection: Any, vault: Vault, tenant_id: UUID, endpoint_id: UUID, key: bytes) -> None:
    """A new signing secret of an endpoint."""
    sealing = await data_key(connection, vault, tenant_id)
    now: float = await connection.fetchval(SQL["now"])
    sealed = vault.seal(sealing, key, _of_secret(tenant_id, endpoint_id, now))
    await connection.execute(SQL["add_secret"], endpoint_id, now, sealed, key)


async def valid_secrets(connection: Any, vault: Vault, tenant_id: UUID, endpoint_id: UUID) -> list[dict[str, Any]]:
    """The secrets {key, created_at, expires_at} that sign now, newest first. Raises SecretLocked."""
    rows = await connection.fetch(SQL["valid_secrets"], endpoint_id, tenant_id)
    if not rows:
        return []
    sealing = await data_key(connection, vault, tenant_id)
    try:
        return [
            {
                "key": _opened_secret(sealing, tenant_id, endpoint_id, row["created_at"], row["sealed"], row["key"]),
                "created_at": row["created_at"],
                "expires_at": row["expires_at"],
            }
            for row in rows
        ]
    except Locked as error:
        raise _locked(error) from error


async def secret_headers(connection: Any, vault: Vault, row: Mapping[str, Any]) -> dict[str, str]:
    """The secret values among an endpoint's headers, by name. Raises SecretLocked."""
    if row["sealed_headers"] is None:
        return {}
    sealing = await data_key(connection, vault, row["tenant_id"])
    try:
        return _opened_headers(sealing, row)
    except Locked as error:
        raise _locked(error) from error


async def set_headers(
    connection: Any, vault: Vault, row: Mapping[str, Any], plain: Mapping[str, str | None], hidden: Mapping[str, str]
) -> Any:
    """Write an endpoint's headers: those with null in ``plain`` are secrets, whose values ``hidden`` holds. Returns the
    row as it is then."""
    tenant_id, endpoint_id = row["tenant_id"], row["endpoint_id"]
    sealed = None
    if hidden:
        sealing = await data_key(connection, vault, tenant_id)
        sealed = vault.seal(sealing, msgspec.json.encode(hidden), _of_headers(tenant_id, endpoint_id))
    shown = msgspec.json.encode(plain).decode()
    return await connection.fetchrow(SQL["set_headers"], endpoint_id, tenant_id, shown, sealed)


async def set_tls(connection: Any, vault: Vault, row: Mapping[str, Any], change: TlsChange) -> Any:
    """Write an endpoint's TLS. Returns the row as it is then."""
    tenant_id, endpoint_id = row["tenant_id"], row["endpoint_id"]
    wanted = dict.fromkeys(("ca", "cert", "key")) if change is None else change
    sealed = row["sealed_tls_key"]
    if "key" in wanted:
        key, sealed = wanted["key"], None
        if key is not None:
            sealing = await data_key(connection, vault, tenant_id)
            sealed = vault.seal(sealing, key.encode(), _of_tls_key(tenant_id, endpoint_id))
    columns = wanted.get("ca", row["tls_ca"]), wanted.get("cert", row["tls_cert"]), sealed
    return await connection.fetchrow(SQL["set_tls"], endpoint_id, tenant_id, *columns)


async def forget(connection: Any, tenant_id: UUID, endpoint_id: UUID | None) -> None:
    """Take away what is secret of a deleted endpoint, or of all of a tenant's."""
    await connection.execute(SQL["forget_all_secrets"], tenant_id, endpoint_id)
    await connection.execute(SQL["forget_sealed_columns"], tenant_id, endpoint_id)


def _opened_secret(
    sealing: bytes, tenant_id: UUID, endpoint_id: UUID, created_at: float, sealed: bytes | None, plain: bytes | None
) -> bytes:
    if sealed is None:
        assert plain is not None, "a constraint says so"
        return plain
    return open_sealed(sealing, sealed, bound=_of_secret(tenant_id, endpoint_id, created_at))


def _opened_headers(sealing: bytes, row: Mapping[str, Any]) -> dict[str, str]:
    plain = open_sealed(sealing, row["sealed_headers"], bound=_of_headers(row["tenant_id"], row["endpoint_id"]))
    return msgspec.json.decode(plain, type=dict[str, str])


def _locked(error: Locked) -> SecretLocked:
    telemetry.log("secret_locked", reason=error)
    return SecretLocked(
        "a secret that this needs cannot be opened: the operator has to give Hookpost the encryption key that sealed it"
        " (the log names it); a signing secret can also be replaced, by a rotation with grace_period_s 0"
    )


# What is open of an endpoint that is locked.
_NOTHING: Mapping[str, Any] = {"keys": [], "created": [], "expires": [], "secret_headers": {}, "tls_key": None}


# ---- endpoints as workers load them ---------------------------------------------------------------------------------


def opened(vault: Vault | None, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of ``load_endpoints`` with open ``keys`` and ``secret_headers``; ``locked`` where one does not open."""
    answer, faults = [], []
    for row in rows:
        try:
            answer.append(_opened(vault, row))
        except Locked as error:
            faults.append(error)
            answer.append({**row, **_NOTHING, "locked": True})
    if faults:
        telemetry.log("endpoints_locked", endpoints=len(faults), reason=faults[0])
    return answer


def _opened(vault: Vault | None, row: Mapping[str, Any]) -> dict[str, Any]:
    hidden: dict[str, str] = {}
    keys = row["keys"]
    headers = msgspec.json.decode(row["headers"])
    tls_key = None
    if (
        row["sealed_headers"] is not None
        or row["sealed_tls_key"] is not None
        or any(sealed is not None for sealed in row["sealed"])
    ):
        if vault is None:
            raise Locked("this process has no encryption keys")
        tenant_id, endpoint_id = row["tenant_id"], row["endpoint_id"]
        sealing = vault.opened_key(tenant_id, row["key_id"], row["wrapped"])
        keys = [
            _opened_secret(sealing, tenant_id, endpoint_id, created_at, sealed, plain)
            for created_at, sealed, plain in zip(row["created"], row["sealed"], row["keys"], strict=True)
        ]
        if row["sealed_headers"] is not None:
            hidden = _opened_headers(sealing, row)
        if row["sealed_tls_key"] is not None:
            tls_key = open_sealed(sealing, row["sealed_tls_key"], bound=_of_tls_key(tenant_id, endpoint_id)).decode()
    return {**row, "keys": keys, "headers": headers, "secret_headers": hidden, "tls_key": tls_key, "locked": False}


# ---- the store's own ------------------------------------------------------------------------------------------------


class VaultQueries:
    """Implements what MaintenanceStore and AdminStore say of encryption keys."""

    _connections: Connections
    _vault: Vault | None

    @property
    def _sealing(self) -> Vault:
        assert self._vault is not None, "a store that writes secrets is given a vault"
        return self._vault

    @property
    def _key_ids(self) -> list[str] | None:
        """What this process says that it holds."""
        return None if self._vault is None else list(self._vault.ring.ids)

    async def missing_keys(self) -> list[str]:
        async with self._connections.use("look which encryption keys are needed") as connection:
            rows = await connection.fetch(SQL["needed_keys"])
        return [row["key_id"] for row in rows if row["key_id"] not in self._sealing.ring.keys]

    async def seal_plain_secrets(self) -> int:
        """Some of those of the release before, once none of its processes lives; returns how many."""
        async with self._connections.use("seal plain secrets") as connection, connection.transaction():
            if await connection.fetchval(SQL["older_processes"]):
                return 0
            rows = await connection.fetch(SQL["plain_secrets"], ROWS_AT_ONCE)
            keys = await _data_keys(connection, self._sealing, {row["tenant_id"] for row in rows})
            sealed = [row["sealed"] or self._sealed(keys[row["tenant_id"]], row) for row in rows]
            places = [row["endpoint_id"] for row in rows], [row["created_at"] for row in rows]
            await connection.execute(SQL["seal_secrets"], *places, sealed)
            return len(rows)

    def _sealed(self, sealing: bytes, row: Mapping[str, Any]) -> bytes:
        place = _of_secret(row["tenant_id"], row["endpoint_id"], row["created_at"])
        return self._sealing.seal(sealing, row["key"], place)

    async def rewrap(self) -> Rewrapped:
        """Wrap some of the data keys with the ring's first key; a step of a rotation, each a transaction of its own."""
        vault = self._sealing
        first = vault.ring.ids[0]
        async with self._connections.use("rotate the encryption key") as connection, connection.transaction():
            for row in await connection.fetch(SQL["held_keys"]):
                if row["key_ids"] is None or first not in row["key_ids"]:
                    raise KeysMissing(
                        f"{row['name']} does not hold the encryption key {first}: give it to all processes, restart "
                        "them, and rotate then"
                    )
            rows = await connection.fetch(SQL["data_keys_of_others"], first, ROWS_AT_ONCE)
            try:
                anew = [vault.wrapped_anew(row["tenant_id"], row["key_id"], row["wrapped"]) for row in rows]
            except Locked as error:
                raise KeysMissing(str(error)) from error
            await connection.execute(SQL["rewrap"], [row["tenant_id"] for row in rows], first, anew)
            left: int = await connection.fetchval(SQL["count_others"], first)
        return Rewrapped(len(rows), left)


# ---- before a process starts ----------------------------------------------------------------------------------------


async def needed_keys(dsn: str) -> list[str]:
    """The ids of the encryption keys that rows of this database need."""
    with translated("look which encryption keys are needed"):
        connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
        try:
            return [row["key_id"] for row in await connection.fetch(SQL["needed_keys"])]
        finally:
            await connection.close()


async def check_keys(dsn: str, ring: Keyring) -> None:
    """Raise KeysMissing unless the ring opens what is sealed in this database. Ids are named, never material."""
    with translated("check the encryption keys"):
        connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
        try:
            needed = [row["key_id"] for row in await connection.fetch(SQL["needed_keys"])]
            samples = {key_id: await connection.fetchrow(SQL["sample_data_key"], key_id) for key_id in needed}
        finally:
            await connection.close()
    missing = [key_id for key_id in needed if key_id not in ring.keys]
    if missing:
        raise KeysMissing(
            f"secrets in the database are sealed with the encryption key {', '.join(missing)}, which is not configured "
            "here: add it to HOOKPOST_ENCRYPTION_KEYS, or put the file of keys that was made with this installation "
            "back (encryption.keys in its data directory)"
        )
    for key_id, sample in samples.items():
        try:
            unwrap(ring, key_id, sample["wrapped"], tenant_id=sample["tenant_id"])
        except Locked as error:
            raise KeysMissing(f"{error}: give the key that this installation was used with") from error


async def make_platform_key(dsn: str, vault: Vault) -> None:
    """Have the platform's own data key, so that from the first start on the keys of an installation are known."""
    with translated("make the platform's data key"):
        connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
        try:
            await prepare(connection)
            await data_key(connection, vault, PLATFORM)
        finally:
            await connection.close()
