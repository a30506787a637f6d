"""An endpoint as the engine needs it, made of its stored row and the platform's defaults. The same for every driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hookpost.model import (
    HEALTHY,
    Endpoint,
    EndpointStatus,
    Health,
    OnDead,
    OwnHeaders,
    RetryPolicy,
    Secret,
    Timeouts,
    TlsIdentity,
)
from hookpost.policy.headers import HeaderRefused, check_headers
from hookpost.storage.contract import HeaderChange, Unfit

_Policy = TypeVar("_Policy", RetryPolicy, Timeouts)


@dataclass(frozen=True, slots=True)
class EndpointDefaults:
    """What an endpoint takes that says nothing of its own. ``longest_s``: no request may take longer, as a change of
    owner waits for so long. ``deadline_s_max``: nothing may be owed for longer, as its event leaves then."""

    retry: RetryPolicy
    timeouts: Timeouts
    max_in_flight: int
    longest_s: float
    deadline_s_max: float

    def endpoint(self, row: Mapping[str, Any]) -> Endpoint:
        """Of a row with the columns of `load_endpoints`, its secrets opened."""
        return Endpoint(
            endpoint_id=row["endpoint_id"],
            tenant_id=row["tenant_id"],
            url=row["url"],
            status=EndpointStatus(row["status"]),
            deleted=row["deleted"],
            secrets=tuple(map(Secret, row["keys"], row["created"], row["expires"])),
            retry=_ended(_with_own(self.retry, row), self.deadline_s_max),
            timeouts=_bounded(_with_own(self.timeouts, row), self.longest_s),
            max_in_flight=self.max_in_flight if row["max_in_flight"] is None else row["max_in_flight"],
            hold_until=row["hold_until"] or 0.0,
            rate_limit=row["rate_limit"],
            ordered=row["ordered"],
            on_dead=OnDead(row["on_dead"] or OnDead.BLOCK),
            signed_ack=row["ack"] is not None,
            forward_trace=row["forward_trace"],
            health=read_health(row),
            pinned=row["pinned"],
            barred=row["barred"],
            ordered_to=None if row["ordered_seq"] is None else (row["ordered_shard"], row["ordered_seq"]),
            headers=None if row["locked"] else own_headers(row["headers"], row["secret_headers"]),
            locked=row["locked"],
            tls=None if row["locked"] else _tls(row),
        )


def changed_headers(
    plain: Mapping[str, str | None], hidden: Mapping[str, str], change: HeaderChange
) -> tuple[dict[str, str | None], dict[str, str]]:
    """An endpoint's headers after a change: those of ``plain`` (null for a secret) and the values of the secrets.

    Raises Unfit when all of them together are too many."""
    if change is None:
        return {}, {}
    gone = {name for name, wanted in change.items() if wanted is None}
    values = {name: value for name, value in ({**plain, **hidden}).items() if name not in gone and value is not None}
    secret = {name for name in hidden if name not in change}
    for name, wanted in change.items():
        if wanted is not None:
            values[name] = wanted.value
            if wanted.secret:
                secret.add(name)
    try:
        check_headers(values)
    except HeaderRefused as error:
        raise Unfit("headers", str(error)) from error
    return {n: None if n in secret else value for n, value in values.items()}, {n: values[n] for n in secret}


def own_headers(plain: Mapping[str, str | None], hidden: Mapping[str, str]) -> OwnHeaders | None:
    """Checked once more, as a row may have been written by hand: a value must not end its line early."""
    values = {name: value for name, value in {**plain, **hidden}.items() if value is not None}
    if not values:
        return None
    try:
        check_headers(values)
    except HeaderRefused as error:
        return OwnHeaders(fault=str(error))
    content_type, user_agent = values.pop("content-type", None), values.pop("user-agent", None)
    return OwnHeaders(content_type, user_agent, "".join(f"{name}: {value}\r\n" for name, value in values.items()))


def _tls(row: Mapping[str, Any]) -> TlsIdentity | None:
    parts = (row["tls_ca"], row["tls_cert"], row["tls_key"])
    return TlsIdentity(*((part or "").encode() for part in parts)) if any(parts) else None


def read_health(row: Mapping[str, Any]) -> Health:
    """All that are well share one object."""
    if not row["consecutive_failures"] and not row["failing_told"]:
        return HEALTHY
    return Health(row["consecutive_failures"], row["failing_since"], row["failing_told"])


def _with_own(default: _Policy, row: Mapping[str, Any]) -> _Policy:
    """The platform's policy with what the endpoint says itself; as a rule nothing, and then all share one object."""
    own = {name: row[name] for name in default.__slots__ if row[name] is not None}
    return replace(default, **own) if own else default


def _ended(retry: RetryPolicy, deadline_s_max: float) -> RetryPolicy:
    """The bound may be younger than the endpoint."""
    return retry if retry.deadline_s <= deadline_s_max else replace(retry, deadline_s=deadline_s_max)


def _bounded(timeouts: Timeouts, longest_s: float) -> Timeouts:
    """The bound may be younger than the endpoint."""
    if timeouts.total_s <= longest_s:
        return timeouts
    return Timeouts(*(min(tier_s, longest_s) for tier_s in (timeouts.connect_s, timeouts.first_byte_s, longest_s)))
