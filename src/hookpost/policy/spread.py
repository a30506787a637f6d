"""How many home shards a tenant's load asks for.

Pure. A tenant grows by doubling when its home shards carry more than the bounds, and shrinks by halving when half of
them would be far below the bounds for long: growing is cheap, and moving to and fro helps nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

# Looks in a row that must find a shard too deep: a burst that its owner is about to work off is no reason.
DEEP_LOOKS = 2
# After halving, rate and depth must lie below this part of their bounds.
FAR_BELOW = 0.25
# For so long, in seconds.
CALM_S = 3600.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one home shard is to carry of one tenant: entries not done, and events a second."""

    depth: float = 20_000.0
    rate: float = 2_000.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a tenant has in all of its home shards: entries not done, and events a second."""

    depth: float
    rate: float


@dataclass(frozen=True, slots=True)
class Watch:
    """What the last looks at a tenant found."""

    deep_looks: int = 0
    calm_since: float | None = None


def judge(watch: Watch, load: Load, *, homes: int, homes_max: int, bounds: Bounds, now: float) -> tuple[Watch, int]:
    """After one more look: what to remember, and how many home shards the tenant should have."""
    deep = load.depth > bounds.depth * homes
    looks = watch.deep_looks + 1 if deep else 0
    if (looks >= DEEP_LOOKS or load.rate > bounds.rate * homes) and homes < homes_max:
        return Watch(), min(homes * 2, homes_max)
    after = homes // 2
    calm = (
        after >= 1
        and load.depth < FAR_BELOW * bounds.depth * after
        and load.rate < FAR_BELOW * bounds.rate * after
    )  # fmt: skip
    if not calm:
        return Watch(deep_looks=looks), homes
    since = now if watch.calm_since is None else watch.calm_since
    if now - since < CALM_S:
        return Watch(looks, since), homes
    return Watch(), after


def loads(
    depths: Mapping[int, float], rates: Mapping[int, float], shares: Mapping[int, Mapping[UUID, float]]
) -> dict[UUID, Load]:
    """The load of each tenant: its part of what its shards hold and take in. Shards without a rate count as idle."""
    found: dict[UUID, Load] = {}
    for shard, parts in shares.items():
        for tenant_id, part in parts.items():
            load = found.get(tenant_id, Load(0.0, 0.0))
            depth, rate = depths.get(shard, 0.0), rates.get(shard, 0.0)
            found[tenant_id] = Load(load.depth + part * depth, load.rate + part * rate)
    return found
