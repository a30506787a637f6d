"""An endpoint as the engine needs it, made of its stored row and the platform's defaults. The same for every driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hookpost.model import HEALTHY, Endpoint, EndpointStatus, Health, OnDead, RetryPolicy, Secret, Timeouts

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
        """Of a row with the columns of `load_endpoints`."""
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
            health=_health(row),
            pinned=row["pinned"],
            barred=row["barred"],
            ordered_to=None if row["ordered_seq"] is None else (row["ordered_shard"], row["ordered_seq"]),
        )


def _health(row: Mapping[str, Any]) -> Health:
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
