"""Alerts: makes them of what workers noted in the outbox, and tells them: as events, by mail, to the operator.

Relies on the store to hand an alert to one teller at a time, and to let it fall due again when that one dies. Promises:
an event is published once, as its idempotency key is the alert's id; mail and operator hear of it at least once, or it
is given up after a bounded number of tries, with a log line. Harmless on several nodes at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from hookpost import telemetry
from hookpost.model import Outcome, Request, Timeouts, show_id
from hookpost.policy.alerts import AGAIN_S_MAX, again_s
from hookpost.policy.signing import signature_header
from hookpost.steps import note_failure, repeat
from hookpost.storage.contract import AlertStore, Channel, DataRejected, DueAlert, StoreUnavailable

# How often the outbox and what is due are looked at.
EVERY_S = 1.0
# Notices taken in one transaction; the rest right after.
NOTICES_AT_ONCE = 500
# Alerts of one channel under way at once.
ALERTS_AT_ONCE = 20
# Whoever has taken an alert has so long to tell it; the ways to tell it give up well before.
LEASE_S = 120.0

Tell = Callable[[DueAlert], Awaitable[None]]
Send = Callable[[Request, Callable[[Outcome], None]], None]


class Untold(Exception):
    """It was not told; the text says why. ``final``: another try is of no use."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class Alerts:
    """The alerting of one process: ``await run(stop)``. ``ways``: how to tell an alert in each channel there is."""

    def __init__(self, store: AlertStore, ways: Mapping[Channel, Tell]) -> None:
        self._store = store
        self._ways = ways

    async def run(self, stop: asyncio.Event) -> None:
        """Look after alerts until ``stop`` is set. A slow channel holds up none of the others."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self.gather, stop))
            for channel in self._ways:
                tasks.create_task(self._repeat(partial(self.tell, channel), stop))

    async def _repeat(self, turn: Callable[[], Awaitable[int]], stop: asyncio.Event) -> None:
        async def step() -> float:
            try:
                return 0.0 if await turn() else EVERY_S
            except (StoreUnavailable, DataRejected) as error:
                note_failure("alerts", error)
                return EVERY_S

        await repeat(step, stop)

    async def gather(self) -> int:
        """One transaction's worth of notices; how many there were."""
        return await self._store.gather_alerts(self._ways.keys(), limit=NOTICES_AT_ONCE)

    async def tell(self, channel: Channel) -> int:
        """Tell what is due in a channel; how many there were."""
        due = await self._store.claim_alerts(channel, limit=ALERTS_AT_ONCE, lease_s=LEASE_S)
        ends = await asyncio.gather(*(self._tell(alert) for alert in due), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        return len(due)

    async def _tell(self, due: DueAlert) -> None:
        about = {
            "type": due.alert.type,
            "endpoint_id": show_id("ep", due.alert.endpoint_id),
            "channel": due.channel,
        }
        try:
            await self._told(due)
        except Untold as error:
            wait_s = _wait_s(due, error)
            if wait_s is not None:
                telemetry.log("alert_failed", **about, tries=due.tries, reason=error)
                await self._store.postpone_alert(due, wait_s=wait_s)
                return
            telemetry.count("alerts_given_up")
            telemetry.log("alert_given_up", **about, tries=due.tries, reason=error)
        else:
            telemetry.count("alerts_told")
            telemetry.log("alert_told", **about)
        await self._store.finish_alert(due)

    async def _told(self, due: DueAlert) -> None:
        try:
            await self._ways[due.channel](due)
        except Untold:
            raise
        except Exception as error:
            telemetry.log_error("tell an alert", error, channel=due.channel)
            raise Untold(f"internal error: {error}") from error


def _wait_s(due: DueAlert, error: Untold) -> float | None:
    """Until the next try; an event waits for its store for as long as that takes."""
    if error.final:
        return None
    again = again_s(due.tries)
    return AGAIN_S_MAX if again is None and due.channel is Channel.EVENT else again


def alert_key(due: DueAlert) -> str:
    """The idempotency key of an alert's event."""
    return f"hookpost-alert-{due.alert_id.hex}"


class OperatorUrl:
    """Tells alerts to the operator: a POST like a webhook, signed when there are keys."""

    def __init__(
        self, url: str, keys: Sequence[bytes], *, send: Send, now: Callable[[], float], user_agent: str
    ) -> None:
        self._url = url
        self._keys = keys
        self._send = send
        self._now = now
        self._user_agent = user_agent

    async def tell(self, due: DueAlert) -> None:
        """Raises Untold unless a 2xx comes back."""
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._send(self._request(due), lambda outcome: None if done.done() else done.set_result(outcome))
        outcome = await done
        if outcome.error_code is not None:
            raise Untold(f"{outcome.error_code} {outcome.status or outcome.detail}")

    def _request(self, due: DueAlert) -> Request:
        message_id, timestamp, body = f"alert_{due.alert_id.hex}", int(self._now()), due.alert.payload
        headers = [
            "content-type: application/json",
            f"user-agent: {self._user_agent}",
            f"webhook-id: {message_id}",
            f"webhook-timestamp: {timestamp}",
            f"x-webhook-event-type: {due.alert.type}",
        ]
        if self._keys:
            headers.append(f"webhook-signature: {signature_header(message_id, timestamp, body, self._keys)}")
        return Request(self._url, "\r\n".join(headers), body, Timeouts())
