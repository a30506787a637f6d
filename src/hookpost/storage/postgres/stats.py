"""What the API tells of the past, from rollups and metering, and of the present, from the engine's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from hookpost.policy.grains import Grain, Reach, grain_of, needed, pieces
from hookpost.storage.contract import Counted, Metered, NotFound, Page, PointRows, Series, Standing, Unfit
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.grains import ALL, reaches
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.rows import after as _after
from hookpost.storage.postgres.rows import page as _page

SQL = load("stats")
DAY_S = 86_400.0
# Days are counted from 2000-01-01 by the driver.
EPOCH_DAY = 10_957
# With fewer attempts the empty pages of the partitions would be a part of the figure.
ATTEMPTS_TO_MEASURE = 10_000


class StatsQueries:
    """Implements the figures of AdminStore."""

    _connections: Connections

    async def series(
        self, tenant_id: UUID | None, endpoint_id: UUID | None, *, start: float, end: float, step_s: int
    ) -> Series:
        grain = grain_of(step_s)
        # One snapshot: how far the grains reach, and the rows that they have then.
        async with (
            self._connections.use("read rollups") as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            complete_until = await connection.fetchval(SQL["complete_until"])
            key = (await _owner(connection, tenant_id, endpoint_id) or ALL, endpoint_id or ALL)
            reach = await reaches(connection, *key)
            _check_grain(reach, start, grain)
            spans = pieces(start, end, grain, reach)
            rows = await connection.fetch(
                SQL["series"], *key, *([span[n] for span in spans] for n in range(3)), start, step_s
            )
        points: dict[int, PointRows] = {}
        for row in rows:
            point = points.setdefault(row["point"], PointRows())
            if row["latency_ms"] is None:
                point.counts[row["outcome"], row["error_code"], row["retry"]] = row["attempts"]
            elif row["arrived"]:
                point.arrivals[row["latency_ms"]] = row["attempts"]
            else:
                point.latencies[row["latency_ms"]] = row["attempts"]
        return Series(points, _moment(complete_until))

    async def standing(
        self, tenant_id: UUID | None, endpoint_id: UUID | None, *, count_max: int, with_depth: bool
    ) -> Standing:
        of, key = _scope(tenant_id, endpoint_id)
        async with self._connections.use("look how things stand") as connection:
            await _owner(connection, tenant_id, endpoint_id)
            waiting = await connection.fetchval(SQL[f"waiting_of_{of}"], *key, count_max + 1)
            dead = await connection.fetchval(SQL[f"dead_of_{of}"], *key, count_max + 1)
            depth = await connection.fetchval(SQL["depth"], tenant_id) if with_depth else None
        return Standing(_counted(waiting, count_max), _counted(dead, count_max), depth)

    async def list_usage(
        self, tenant_id: UUID | None, *, first_day: float, end_day: float, after: tuple[Any, ...] | None, limit: int
    ) -> Page:
        days = (_day(first_day), _day(end_day))
        async with self._connections.use("list the usage") as connection:
            if tenant_id is None:
                rows = await connection.fetch(SQL["usage_of_all"], *days, *_after(after, 2), limit + 1)
            else:
                behind = _after(after, 2)[0]
                rows = await connection.fetch(SQL["usage_of_tenant"], tenant_id, *days, behind, limit + 1)
        return _page(rows, limit, ("day", "tenant_id"))

    async def metered(self, tenant_id: UUID | None, *, first_day: float, end_day: float, tenants_max: int) -> Metered:
        async with self._connections.use("add up the metering") as connection:
            complete_until = await connection.fetchval(SQL["complete_until"])
            stored = await connection.fetchrow(SQL["stored_attempts"])
            rows = await connection.fetch(
                SQL["metered"], tenant_id, _day(first_day), _day(end_day), tenants_max + (tenant_id is None)
            )
        found = [dict(row) for row in rows]
        platform = found.pop(0) if tenant_id is None else None
        enough = stored["attempts"] >= ATTEMPTS_TO_MEASURE
        return Metered(
            None if platform is None or platform["attempts"] is None else platform,
            found,
            stored["bytes"] / stored["attempts"] if enough else None,
            _moment(complete_until),
        )


async def _owner(connection: Any, tenant_id: UUID | None, endpoint_id: UUID | None) -> UUID | None:
    """The tenant to look at: that of the endpoint, if one is asked for."""
    if endpoint_id is None:
        return tenant_id
    owner: UUID | None = await connection.fetchval(SQL["endpoint_owner"], endpoint_id, tenant_id)
    if owner is None:
        raise NotFound("there is no such endpoint")
    return owner


def _check_grain(reach: Mapping[Grain, Reach], start: float, grain: Grain) -> None:
    """Minutes and hours are kept for a time, then only what they were added up to."""
    kept = needed(start, reach)
    if grain < kept:
        raise Unfit("step", f"must be a multiple of {kept:d} for a time so long ago: it is kept by the {kept.words}")


def _scope(tenant_id: UUID | None, endpoint_id: UUID | None) -> tuple[str, tuple[UUID, ...]]:
    if endpoint_id is not None:
        return "endpoint", (endpoint_id,)
    if tenant_id is not None:
        return "tenant", (tenant_id,)
    return "all", ()


def _counted(found: int, count_max: int) -> Counted:
    return Counted(min(found, count_max), exact=found <= count_max)


def _moment(seconds: float) -> float | None:
    """Nothing was counted before the builder's first turn."""
    return seconds if seconds > 0 else None


def _day(seconds: float) -> int:
    return int(seconds // DAY_S) - EPOCH_DAY
