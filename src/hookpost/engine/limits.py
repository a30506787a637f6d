"""What bounds one worker, and the platform's policies that are not an endpoint's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from hookpost.policy.breaker import BreakerPolicy
from hookpost.policy.budget import BudgetPolicy
from hookpost.policy.egress_health import OutagePolicy
from hookpost.policy.health import HealthPolicy


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one worker. ``buffer_*``: fresh deliveries waiting in memory; ``in_flight_*``: requests under way.

    ``fragments``: ranges of open entries and fan-outs done in part that a shard may have, as every settle writes them
    down. Where a slow endpoint leaves holes behind healthy ones, what waits longest goes to the backlog.
    """

    in_flight: int = 1000
    in_flight_bytes: int = 128 * 1024 * 1024
    buffer: int = 20_000
    buffer_bytes: int = 64 * 1024 * 1024
    fragments: int = 512


@dataclass(frozen=True, slots=True)
class Policies:
    """The platform's policies that are not an endpoint's own."""

    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    budget: BudgetPolicy = field(default_factory=BudgetPolicy)
    health: HealthPolicy = field(default_factory=HealthPolicy)
    outage: OutagePolicy = field(default_factory=OutagePolicy)
