"""Gates: may a delivery to this endpoint start now, and if not, why and until when.

Here is the word for it, and the gate of the endpoint's own state. Rate limit, circuit breaker and retry budget are
policies of their own (`rate`, `breaker`, `budget`); `engine/gates.py` asks all of them in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from hookpost.model import Endpoint, EndpointStatus, WaitReason

# A lane that stays closed longer than this is written to the backlog at once instead of filling memory.
PARK_AFTER_S = 10.0


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now. ``until`` is a Unix time, or None when only an event (a change, an outcome) can open the gate."""

    reason: WaitReason
    until: float | None = None


_ENABLED = EndpointStatus.ENABLED  # looking a member up costs more than comparing with it
_PAUSED = Wait(WaitReason.PAUSED)
_DISABLED = Wait(WaitReason.DISABLED)
_LOCKED = Wait(WaitReason.SECRET_LOCKED)


def endpoint_gate(endpoint: Endpoint, *, hold_until: float, now: float) -> Wait | None:
    """The endpoint's own state: paused, disabled, its secrets locked, or held by its Retry-After."""
    if endpoint.status is not _ENABLED:
        return _PAUSED if endpoint.status is EndpointStatus.PAUSED else _DISABLED
    if endpoint.locked:
        return _LOCKED
    if hold_until > now:
        return Wait(WaitReason.RATE_LIMITED, hold_until)
    return None


def is_shut(endpoint: Endpoint) -> bool:
    """Can only a change of the endpoint let anything through to it?"""
    return endpoint.locked or endpoint.status is not _ENABLED


def parks(wait: Wait, *, now: float) -> bool:
    """Should what waits here be written down with its reason rather than be kept in memory?"""
    if wait.reason is WaitReason.IN_FLIGHT_CAP:
        return False
    return wait.until is None or wait.until - now > PARK_AFTER_S
