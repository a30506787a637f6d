"""Sending paused and resumed for the whole platform, and what would be sent: for whoever has restored a backup."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from hookpost.storage.contract import SecretLocked
from hookpost.storage.postgres.audit import record
from hookpost.storage.postgres.connection import connected
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.vault import PLATFORM, Vault

SQL = load("sending")


@dataclass(frozen=True, slots=True)
class Owed:
    """What is owed to one endpoint and not done: how many deliveries, of events accepted between these times."""

    endpoint_id: UUID
    url: str
    deliveries: int
    oldest: float
    newest: float


async def pause(dsn: str, vault: Vault) -> None:
    """Have all workers stop sending, those that start later too. It stands in the audit log; where that cannot be
    written for want of a key, nothing is sent all the same: whoever pulls the brake must not have to look for a key."""
    async with connected(dsn, "sending") as connection, connection.transaction():
        await connection.execute(SQL["pause"])
        with suppress(SecretLocked):
            async with connection.transaction():
                await record(connection, vault, PLATFORM, "sending.pause", "platform")


async def go_on(dsn: str, vault: Vault) -> None:
    """Have all workers send again. Raises SecretLocked when the audit log cannot be written."""
    async with connected(dsn, "sending") as connection, connection.transaction():
        await connection.execute(SQL["go_on"])
        await record(connection, vault, PLATFORM, "sending.go_on", "platform")


async def owed(dsn: str) -> tuple[list[Owed], float | None]:
    """What would be sent if sending went on, and when the database last recorded something (Unix seconds)."""
    async with connected(dsn, "sending") as connection:
        rows = await connection.fetch(SQL["owed"])
        last: float | None = await connection.fetchval(SQL["last_recorded"])
    return [Owed(*row) for row in rows], last
