"""Alerts in the store in memory: from the outbox to alerts, and who tells them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost.model import EndpointStatus
from hookpost.policy.alerts import Standing, gather
from hookpost.storage.contract import Channel, DueAlert
from hookpost.storage.memory.tables import Database, Untold, at


class AlertTables:
    """Implements AlertStore."""

    _db: Database
    _pause: Callable[[], Awaitable[None]]

    async def gather_alerts(self, channels: Collection[Channel], *, limit: int) -> int:
        await self._pause()
        db, now = self._db, self._db.now()
        taken, db.outbox = db.outbox[:limit], db.outbox[limit:]
        untold = (endpoint_id for endpoint_id, standing in db.standings.items() if standing.deaths)
        concerned = dict.fromkeys((*(notice.endpoint_id for notice in taken), *untold))
        before = {each: self._standing(each) for each in concerned if db.exists(each)}
        alerts, after = gather(taken, before, now=now)
        db.standings.update(after)
        for endpoint_id, standing in after.items():
            if standing.failing_told != before[endpoint_id].failing_told:
                db.endpoints[endpoint_id]["health_at"] = now
        for alert in alerts:
            alert_id, email = uuid7(), db.tenants[alert.tenant_id]["alert_email"]
            for channel in sorted(channels):
                if channel is not Channel.MAIL or email is not None:
                    db.alerts[alert_id, channel] = Untold(alert, now)
        return len(taken)

    def _standing(self, endpoint_id: UUID) -> Standing:
        """What was told of it, with what it is now."""
        row = self._db.endpoints[endpoint_id]
        known = self._db.standings.get(endpoint_id, Standing(row["tenant_id"], row["url"]))
        return replace(known, url=row["url"], disabled=row["status"] == EndpointStatus.DISABLED)

    async def claim_alerts(self, channel: Channel, *, limit: int, lease_s: float) -> list[DueAlert]:
        await self._pause()
        now, found = self._db.now(), []
        due = [(each.due_at, key) for key, each in self._db.alerts.items() if key[1] is channel and each.due_at <= now]
        for _, (alert_id, _) in sorted(due)[:limit]:
            untold = self._db.alerts[alert_id, channel]
            untold.tries += 1
            untold.due_at = at(now + lease_s)
            email = self._db.tenants[untold.alert.tenant_id]["alert_email"]
            found.append(DueAlert(alert_id, channel, untold.alert, untold.tries, email))
        return found

    async def finish_alert(self, alert: DueAlert) -> None:
        await self._pause()
        self._db.alerts.pop((alert.alert_id, alert.channel), None)

    async def postpone_alert(self, alert: DueAlert, *, wait_s: float) -> None:
        await self._pause()
        if (untold := self._db.alerts.get((alert.alert_id, alert.channel))) is not None:
            untold.due_at = at(self._db.now() + wait_s)
