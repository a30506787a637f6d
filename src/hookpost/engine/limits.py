"""What bounds one worker, and the platform's policies that are not an endpoint's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hookpost.policy.breaker import BreakerPolicy
from hookpost.policy.budget import BudgetPolicy
from hookpost.policy.egress_health import OutagePolicy
from hookpost.policy.health import HealthPolicy


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one worker. ``buffer_*``: fresh deliveries waiting in memory; ``in_flight_*``: requests under way.

    ``fragments``: ranges of open entries and fan-outs done in part that the shards of a settle may have, as it writes
    them down. Where a slow endpoint leaves holes behind healthy ones, what waits longest goes to the backlog.
    ``parked``: when a gate closes, so many of the fresh deliveries behind it go to the backlog with one settle.
    ``loads``: payloads read from the payload store at once, of at most half of ``in_flight_bytes``; they count as
    requests, in bytes too.
    ``replay_s``: a replay ends so long after its event was accepted, whenever it was asked for.
    """

    in_flight: int = 1000
    in_flight_bytes: int = 128 * 1024 * 1024
    buffer: int = 100_000
    buffer_bytes: int = 128 * 1024 * 1024
    fragments: int = 512
    parked: int = 2_000
    loads: int = 64
    replay_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Policies:
    """The platform's policies that are not an endpoint's own."""

    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    budget: BudgetPolicy = field(default_factory=BudgetPolicy)
    health: HealthPolicy = field(default_factory=HealthPolicy)
    outage: OutagePolicy = field(default_factory=OutagePolicy)
