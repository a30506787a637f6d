"""The audit log in the PostgreSQL store: a row in the transaction of the change it tells of, or neither.

Rows of one chain are written one after the other, behind the lock of the chain's head, which is held until the commit.
A change of the configuration takes it last; a replay or cancel takes it before its shards, as appends wait for those:
both hold the tenant's row by then, so they cannot wait for each other. Events never come here, as nothing of ingest and
of deliveries is a change. A change whose chain cannot be keyed, for want of an encryption key, is refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import msgspec

from hookpost.policy.audit import (
    BEGINNING,
    BROKEN,
    RETENTION,
    Anchor,
    Entry,
    Head,
    Verifier,
    derive_key,
    entry_hash,
    head_seal,
)
from hookpost.policy.sealing import Locked
from hookpost.storage.acting import acting
from hookpost.storage.contract import Page
from hookpost.storage.postgres.connection import connected
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.rows import after as after_key
from hookpost.storage.postgres.rows import page
from hookpost.storage.postgres.vault import PLATFORM, Vault, VaultQueries, data_key

SQL = load("audit")
# Chains that one step of retention shortens, and rows that it takes from each.
CHAINS_AT_ONCE = 20
ROWS_RETIRED_AT_ONCE = 5_000
# Rows that are verified between two questions to the database.
ROWS_READ_AT_ONCE = 1_000


async def record(
    connection: Any,
    vault: Vault,
    chain: UUID,
    action: str,
    target: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write down a change, in its own transaction and last in it. ``target``: the public id of what was changed.

    Nothing secret may stand in ``before`` and ``after``. Raises SecretLocked.
    """
    assert connection.is_in_transaction(), "a change and its row commit together"
    key = derive_key(await data_key(connection, vault, chain))
    head = await _locked_head(connection, key, chain)
    if head_seal(key, chain, head.seq, head.hash) != head.sealed:
        # Go on, as nobody could change anything any more; the row tells of it whenever the chain is verified.
        head = await _append(connection, key, head, BROKEN, target, None, None)
    await _append(connection, key, head, action, target, before, after)


async def _locked_head(connection: Any, key: bytes, chain: UUID) -> Head:
    row = await connection.fetchrow(SQL["lock_head"], chain)
    if row is None:
        await connection.execute(SQL["begin_chain"], chain, BEGINNING, head_seal(key, chain, 0, BEGINNING))
        row = await connection.fetchrow(SQL["lock_head"], chain)
    return Head(*row)


async def _append(
    connection: Any,
    key: bytes,
    head: Head,
    action: str,
    target: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> Head:
    actor = acting()
    now: float = await connection.fetchval(SQL["now"])
    entry = Entry(
        head.chain, head.seq + 1, now, actor.name, actor.address, action, target, _text(before), _text(after), head.hash
    )
    entry = replace(entry, hash=entry_hash(key, entry))
    await connection.execute(
        SQL["append"], entry.chain, entry.seq, entry.at, entry.actor, entry.address, entry.action, entry.target,
        entry.before, entry.after, entry.previous, entry.hash,
    )  # fmt: skip
    sealed = head_seal(key, entry.chain, entry.seq, entry.hash)
    await connection.execute(SQL["move_head"], entry.chain, entry.seq, entry.hash, sealed)
    return Head(entry.chain, entry.seq, entry.hash, sealed)


def _text(values: Mapping[str, Any] | None) -> str | None:
    return None if values is None else msgspec.json.encode(values).decode()


class AuditQueries(VaultQueries):
    """Implements what AdminStore and MaintenanceStore say of the audit log."""

    async def _record(
        self,
        connection: Any,
        chain: UUID | None,
        action: str,
        target: str,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """In the chain of a tenant, or (None) of the platform."""
        await record(connection, self._sealing, chain or PLATFORM, action, target, before, after)

    async def note(self, tenant_id: UUID | None, action: str, target: str, told: Mapping[str, Any] | None) -> None:
        async with self._connections.use(f"enter {action}") as connection, connection.transaction():
            await self._record(connection, tenant_id, action, target, None, told)

    async def list_audit(
        self,
        tenant_id: UUID | None,
        *,
        action: str | None,
        since: float | None,
        until: float | None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> Page:
        window = (action, since, until, limit + 1)
        async with self._connections.use("list the audit log") as connection:
            if tenant_id is not None:
                rows = await connection.fetch(SQL["list_of_chain"], tenant_id, *after_key(after, 1), *window)
                return page(rows, limit, ("seq",))
            rows = await connection.fetch(SQL["list_of_all"], *after_key(after, 3), *window)
        return page(rows, limit, ("at", "chain", "seq"))

    async def refused_sign_ins(self, address: str, *, within_s: float, limit: int) -> list[float]:
        async with self._connections.use("look for refused sign-ins") as connection:
            rows = await connection.fetch(SQL["refused_sign_ins"], address, within_s, limit)
        return [row["age_s"] for row in rows]

    async def retire_audit(self, *, keep_days: int) -> int:
        async with self._connections.use("retire old rows of the audit log") as connection:
            chains = await connection.fetch(SQL["old_chains"], keep_days, CHAINS_AT_ONCE)
            return sum([await self._retire(connection, row["chain"], row["first"], keep_days) for row in chains])

    async def _retire(self, connection: Any, chain: UUID, first: int, keep_days: int) -> int:
        async with connection.transaction():
            # The head is locked with the row that says it; what was read before may be gone by then: it does no harm.
            kept_from = await connection.fetchval(SQL["kept_from"], chain, first, keep_days, ROWS_RETIRED_AT_ONCE)
            await self._record(connection, chain, RETENTION, "audit_log", None, {"kept_from": kept_from})
            await connection.execute(SQL["let_retention"])
            answer: str = await connection.execute(SQL["retire"], chain, kept_from)
        return int(answer.rpartition(" ")[2])


async def record_rotation(dsn: str, vault: Vault, key_id: str, count: int) -> None:
    """That data keys are wrapped with another encryption key now, in the platform's chain."""
    async with connected(dsn, "record the rotation") as connection, connection.transaction():
        await record(connection, vault, PLATFORM, "encryption.rotate", key_id, None, {"data_keys": count})


# ---- verifying ------------------------------------------------------------------------------------------------------


class Verified:
    """What a look at all chains found: faults by chain, rows read, and where each chain ends."""

    def __init__(self) -> None:
        self.faults: dict[UUID, list[str]] = {}
        self.rows = 0
        self.heads: dict[UUID, Anchor] = {}


async def verify(dsn: str, vault: Vault, anchors: Mapping[UUID, Anchor]) -> Verified:
    """Read every chain in one snapshot and say what is wrong. ``anchors``: heads noted elsewhere, earlier."""
    found = Verified()
    async with _snapshot(dsn) as connection:
        heads = {row["chain"]: row for row in await connection.fetch(SQL["heads"])}
        rows = {row["chain"]: row for row in await connection.fetch(SQL["chains"])}
        for chain in sorted(heads.keys() | rows.keys() | anchors.keys()):
            keyed = heads.get(chain) or rows.get(chain)
            head = None if chain not in heads else Head(*list(heads[chain].values())[:4])
            try:
                if keyed is None:
                    raise Locked("the chain and its head are gone, and stood here when they were noted before")
                key = derive_key(vault.opened_key(chain, keyed["key_id"], keyed["wrapped"]))
            except Locked as error:
                found.faults[chain] = [str(error)]
                continue
            verifier = Verifier(key, chain, head, anchors.get(chain))
            await _read(connection, chain, verifier)
            found.rows += verifier.rows
            if faults := verifier.faults():
                found.faults[chain] = faults
            if head is not None:
                found.heads[chain] = Anchor(head.seq, head.hash)
    return found


async def _read(connection: Any, chain: UUID, verifier: Verifier) -> None:
    seq = 0
    while True:
        rows = await connection.fetch(SQL["rows"], chain, seq, ROWS_READ_AT_ONCE)
        for row in rows:
            verifier.read(Entry(*row))
        if len(rows) < ROWS_READ_AT_ONCE:
            return
        seq = rows[-1]["seq"]


@asynccontextmanager
async def _snapshot(dsn: str) -> AsyncIterator[Any]:
    async with (
        connected(dsn, "verify the audit log") as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield connection
