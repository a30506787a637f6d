"""The alerting side of the PostgreSQL store: from the outbox to alerts, and who tells them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import astuple
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost.model import OperationalType
from hookpost.policy.alerts import EVERY_S, Alert, Notice, Standing, gather
from hookpost.storage.contract import Channel, DueAlert
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.queries import load

SQL = load("alerts")


class AlertQueries:
    """Implements AlertStore."""

    _connections: Connections

    async def gather_alerts(self, channels: Collection[Channel], *, limit: int) -> int:
        async with self._connections.use("gather alerts") as connection, connection.transaction():
            if not await connection.fetchval(SQL["gather_turn"]):
                return 0
            now = await connection.fetchval(SQL["now"])
            taken = sorted(await connection.fetch(SQL["take_notices"], limit), key=lambda row: row["notice_id"])
            untold = await connection.fetch(SQL["untold_deaths"], now - EVERY_S, limit)
            if taken or untold:
                concerned = {row["endpoint_id"] for row in (*taken, *untold)}
                before = {row[0]: _standing(row) for row in await connection.fetch(SQL["standings"], list(concerned))}
                alerts, after = gather(map(_notice, taken), before, now=now)
                changed = [(e, *astuple(s)[3:]) for e, s in after.items() if s != before[e]]
                await connection.executemany(SQL["write_standing"], changed)
                if told := [e for e, s in after.items() if s.failing_told != before[e].failing_told]:
                    await connection.execute(SQL["tell_health"], told)
                await connection.executemany(SQL["write_alert"], [_alert(alert, channels) for alert in alerts])
            return len(taken)

    async def claim_alerts(self, channel: Channel, *, limit: int, lease_s: float) -> list[DueAlert]:
        async with self._connections.use("claim alerts") as connection:
            rows = await connection.fetch(SQL["claim_alerts"], channel, limit, lease_s)
        return [_due(row) for row in rows]

    async def finish_alert(self, alert: DueAlert) -> None:
        async with self._connections.use("finish an alert") as connection:
            await connection.execute(SQL["finish_alert"], alert.alert_id, alert.channel)

    async def postpone_alert(self, alert: DueAlert, *, wait_s: float) -> None:
        async with self._connections.use("postpone an alert") as connection:
            await connection.execute(SQL["postpone_alert"], alert.alert_id, alert.channel, wait_s)


def _notice(row: Any) -> Notice:
    return Notice(
        type=OperationalType(row["type"]),
        tenant_id=row["tenant_id"],
        endpoint_id=row["endpoint_id"],
        at=row["at"],
        failures=row["failures"],
        since=row["since"],
        reason=row["reason"],
        deaths=row["deaths"],
        event_ids=tuple(row["event_ids"]),
    )


def _standing(row: Any) -> Standing:
    _, tenant_id, url, disabled, failing_told, failing_told_at, deaths, deaths_since, event_ids, deaths_told_at = row
    return Standing(
        tenant_id, url, disabled, failing_told, failing_told_at, deaths, deaths_since, tuple(event_ids), deaths_told_at
    )


def _alert(alert: Alert, channels: Collection[Channel]) -> tuple[UUID, list[Channel], UUID, UUID, str, bytes]:
    return uuid7(), sorted(channels), alert.tenant_id, alert.endpoint_id, alert.type, alert.payload


def _due(row: Any) -> DueAlert:
    return DueAlert(
        alert_id=row["alert_id"],
        channel=Channel(row["channel"]),
        alert=Alert(OperationalType(row["type"]), row["tenant_id"], row["endpoint_id"], row["payload"]),
        tries=row["tries"],
        alert_email=row["alert_email"],
    )
