"""How far each grain of the rollups reaches, as the builder notes it and those who read take it into account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from hookpost.policy.grains import Grain, Reach
from hookpost.storage.postgres.queries import load

SQL = load("rollups")
# "All" in the key of a rollup, and what is behind every key.
ALL, LAST = UUID(int=0), UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class GrainState:
    """Built up to and with the bucket and key; seconds."""

    grain: Grain
    bucket: float
    tenant_id: UUID
    endpoint_id: UUID
    kept_from: float

    @property
    def whole(self) -> bool:
        """Is all of the bucket built?"""
        return self.tenant_id == LAST

    @property
    def built_until(self) -> float:
        """Of every key."""
        return self.bucket + self.grain if self.whole else self.bucket

    def reach(self, tenant_id: UUID, endpoint_id: UUID) -> Reach:
        """Of the rollups of one key."""
        done = (tenant_id, endpoint_id) <= (self.tenant_id, self.endpoint_id)
        return Reach(self.kept_from, self.bucket + self.grain if done else self.bucket)


async def grains(connection: Any) -> list[GrainState]:
    """All of them."""
    rows = await connection.fetch(SQL["grains"])
    return [GrainState(Grain(row["grain"]), *tuple(row)[1:]) for row in rows]


async def reaches(connection: Any, tenant_id: UUID, endpoint_id: UUID) -> dict[Grain, Reach]:
    """By grain, of the rollups of one key."""
    return {state.grain: state.reach(tenant_id, endpoint_id) for state in await grains(connection)}
