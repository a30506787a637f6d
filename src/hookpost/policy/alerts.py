"""Alerts: what of the notices of workers a tenant hears, in which words, and how often telling it is tried.

A notice is what one worker saw; an alert is what is told. Between them stands what was told of the endpoint before
(`Standing`), so that several workers that see the same make one alert, and a burst of deaths makes one a minute.
Pure: `now` is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, assert_never
from uuid import UUID

import msgspec

from hookpost.model import OperationalType, show_id

__all__ = ["Alert", "Notice", "Standing", "again_s", "check_mail_address", "gather", "mail_text"]

# An endpoint's deaths are told at most once in so many seconds, and that it fails once more as well.
EVERY_S = 60.0
# Dead events that an alert names; all of them are in the list of dead letters.
EVENTS_NAMED_MAX = 10
# Waits between two tries to tell an alert by mail or to the operator: 10 s, 20 s … an hour, some 3.5 hours in all.
AGAIN_S, AGAIN_S_MAX = 10.0, 3600.0
TRIES_MAX = 12


@dataclass(frozen=True, slots=True)
class Notice:
    """What one worker saw of an endpoint at a time (Unix seconds).

    ``failures`` in a row since ``since``; ``reason`` it was disabled for; ``deaths`` of deliveries, and whose. Of a
    certificate that ends: which (``reason``) and when (``since``).
    """

    type: OperationalType
    tenant_id: UUID
    endpoint_id: UUID
    at: float
    failures: int = 0
    since: float | None = None
    reason: str | None = None
    deaths: int = 0
    event_ids: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of an endpoint that still exists, and what was told of it.

    ``failing_told``: it was told that it fails, and not yet that it has recovered. ``deaths`` are those not told yet.
    """

    tenant_id: UUID
    url: str
    disabled: bool = False
    failing_told: bool = False
    failing_told_at: float | None = None
    deaths: int = 0
    deaths_since: float | None = None
    event_ids: tuple[UUID, ...] = ()
    deaths_told_at: float | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """Something to tell about an endpoint; ``payload`` is that of the event, as JSON."""

    type: OperationalType
    tenant_id: UUID
    endpoint_id: UUID
    payload: bytes


def gather(
    notices: Iterable[Notice], standings: Mapping[UUID, Standing], *, now: float
) -> tuple[list[Alert], dict[UUID, Standing]]:
    """The alerts that notices (in their order) make, and how the endpoints stand after them.

    An endpoint without a standing is gone, and so is what there was to tell. A notice is used up even when it makes no
    alert: who goes on failing says so again (`health.judge`), and deaths are kept in the standing.
    """
    alerts: list[Alert] = []
    after = dict(standings)
    for notice in notices:
        standing = after.get(notice.endpoint_id)
        if standing is not None:
            told, after[notice.endpoint_id] = _take(notice, standing)
            if told is not None:
                alerts.append(_alert(notice.endpoint_id, standing, notice.type, notice.at, told))
    for endpoint_id, standing in after.items():
        if standing.deaths and _rested(standing.deaths_told_at, now):
            told = {
                "count": standing.deaths,
                "since": _shown(standing.deaths_since),
                "event_ids": [show_id("evt", event_id) for event_id in standing.event_ids],
            }
            alerts.append(_alert(endpoint_id, standing, OperationalType.DELIVERY_DEAD, now, told))
            after[endpoint_id] = replace(standing, deaths=0, deaths_since=None, event_ids=(), deaths_told_at=now)
    return alerts, after


def _take(notice: Notice, standing: Standing) -> tuple[dict[str, Any] | None, Standing]:
    """What to tell of one notice, if anything, and how its endpoint stands then."""
    run = {"consecutive_failures": notice.failures, "failing_since": _shown(notice.since)}
    match notice.type:
        case OperationalType.ENDPOINT_FAILING:
            if standing.failing_told or standing.disabled or not _rested(standing.failing_told_at, notice.at):
                return None, standing
            return run, replace(standing, failing_told=True, failing_told_at=notice.at)
        case OperationalType.ENDPOINT_RECOVERED:
            return (run if standing.failing_told else None), replace(standing, failing_told=False)
        case OperationalType.ENDPOINT_DISABLED:
            return {"reason": notice.reason}, replace(standing, failing_told=False, failing_told_at=None)
        case OperationalType.CERTIFICATE_ENDING:
            # Each is noted once (policy/expiry).
            return {"certificate": notice.reason, "expires_at": _shown(notice.since)}, standing
        case OperationalType.DELIVERY_DEAD:
            since = notice.at if standing.deaths_since is None else standing.deaths_since
            named = (*standing.event_ids, *notice.event_ids)[:EVENTS_NAMED_MAX]
            deaths = standing.deaths + notice.deaths
            return None, replace(standing, deaths=deaths, deaths_since=since, event_ids=named)
        case _:
            assert_never(notice.type)


def _rested(told_at: float | None, now: float) -> bool:
    return told_at is None or now - told_at >= EVERY_S


def _alert(endpoint_id: UUID, standing: Standing, type: OperationalType, at: float, told: Mapping[str, Any]) -> Alert:
    """A URL's query may hold a secret, and an alert goes to more than the endpoint's owner."""
    data = {
        "tenant_id": show_id("ten", standing.tenant_id),
        "endpoint_id": show_id("ep", endpoint_id),
        "url": standing.url.partition("?")[0],
        **told,
    }
    payload = msgspec.json.encode({"type": type, "timestamp": _shown(at), "data": data})
    return Alert(type, standing.tenant_id, endpoint_id, payload)


def _shown(moment: float | None) -> str | None:
    """RFC 3339 in UTC with milliseconds."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def again_s(tries: int) -> float | None:
    """Seconds until the next try after so many (1 or more) that failed; None: it is given up."""
    return None if tries >= TRIES_MAX else min(AGAIN_S_MAX, AGAIN_S * 2.0 ** (tries - 1))


MAIL_ADDRESS_CHARS_MAX = 254  # RFC 5321 §4.5.3.1.3, without the angle brackets
# A dot-atom, not what RFC 5322 lets quote or comment besides: those are typing mistakes, or worse.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_MAIL_ADDRESS = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})+", re.ASCII)


def check_mail_address(text: str) -> str:
    """One plain mail address, or ValueError."""
    if len(text) > MAIL_ADDRESS_CHARS_MAX or not _MAIL_ADDRESS.fullmatch(text):
        raise ValueError("must be one mail address such as ops@example.com")
    return text


_SUBJECTS = {
    OperationalType.ENDPOINT_FAILING: "Webhook endpoint is failing",
    OperationalType.ENDPOINT_RECOVERED: "Webhook endpoint has recovered",
    OperationalType.ENDPOINT_DISABLED: "Webhook endpoint was disabled",
    OperationalType.DELIVERY_DEAD: "Webhook deliveries were given up",
    OperationalType.CERTIFICATE_ENDING: "A certificate of a webhook endpoint ends",
}
_ADVICE = {
    OperationalType.ENDPOINT_FAILING: "Deliveries to it are tried again until their deadline.",
    OperationalType.ENDPOINT_RECOVERED: "What waits for it is being delivered.",
    OperationalType.ENDPOINT_DISABLED: "What is owed to it waits until its deadline. Enable it to have it delivered.",
    OperationalType.CERTIFICATE_ENDING: "Give the endpoint a new one (`tls`), or its deliveries fail from then on.",
    OperationalType.DELIVERY_DEAD: "They are in the list of dead letters, from where they can be replayed.",
}


def mail_text(type: OperationalType, payload: bytes) -> tuple[str, str]:
    """Subject and text of an alert as a mail."""
    told = msgspec.json.decode(payload)
    data = {"type": told["type"], "time": told["timestamp"], **told["data"]}
    lines = [f"{name}: {', '.join(value) if isinstance(value, list) else value}" for name, value in data.items()]
    return f"{_SUBJECTS[type]}: {data['endpoint_id']}", "\n".join([_ADVICE[type], "", *lines, ""])
