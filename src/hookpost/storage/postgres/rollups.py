"""The builder's side of the PostgreSQL store: attempts and events are counted once, in the order of their shards, and
minutes added up to half hours, hours and days when they are over.

Relies on two orders that the schema keeps: settles of a shard commit one after the other behind its fence, appends to
it behind its lock. So whatever is visible of a shard, all before it is, too, and a mark that moves in the transaction
that counts is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import UUID

from hookpost.policy.grains import FINER, Grain
from hookpost.policy.latency import LOWS
from hookpost.storage.contract import RolledUp, ToCount
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.grains import ALL, GrainState, grains
from hookpost.storage.postgres.queries import load

SQL = load("rollups")
# Shards that one step counts of, at most: their marks are looked up in each.
SHARDS_AT_ONCE = 100
# How long after its end a bucket is built into a coarser one: by then nearly all of it is settled and counted. What
# comes later is added to both, so this is about work alone.
SETTLED_S = 60.0


class RollupQueries:
    """Implements RollupStore."""

    _connections: Connections

    async def roll_up(self, *, settles_max: int, events_max: int, left: ToCount | None = None) -> RolledUp | None:
        async with self._connections.use("roll up") as connection, connection.transaction():
            mine, moment = await connection.fetchrow(SQL["turn"])
            if not mine:
                return None
            if left is None:
                left = await _to_count(connection, moment)
            # Not where the step before has come to: another node may have counted meanwhile.
            marks = await _marks(connection, (*left.settles[:SHARDS_AT_ONCE], *left.events[:SHARDS_AT_ONCE]))
            settles, settles_left = _split(left.settles, {s: mark.settle_no for s, mark in marks.items()}, settles_max)
            events, events_left = _split(left.events, {s: mark.seq for s, mark in marks.items()}, events_max)
            attempts, rows = await _roll_up(connection, settles, marks)
            accepted = await _count_accepted(connection, events, marks)
            if settles_left or events_left:
                left = replace(left, settles=settles_left, events=events_left)
                return RolledUp(attempts, accepted, rows, left)
            await connection.execute(SQL["complete"], left.moment)
            return RolledUp(attempts, accepted, rows, None)

    async def build_rollups(self, *, rows_max: int) -> bool:
        async with self._connections.use("build rollups") as connection, connection.transaction():
            mine, moment = await connection.fetchrow(SQL["turn"])
            if not mine:
                return False
            built = {grain.grain: grain for grain in await grains(connection)}
            until: float = moment - SETTLED_S
            for coarse, fine in sorted(FINER.items()):
                until = until // coarse * coarse
                place = await _next_place(connection, built[coarse], fine, until)
                if place is not None:
                    await connection.execute(SQL["build"], fine, coarse, *place, rows_max * fine // coarse)
                    return True
        return False

    async def prune_rollups(self, grain: Grain, *, age_s: float, rows_max: int) -> int:
        coarser = next(coarse for coarse, fine in FINER.items() if fine == grain)
        async with self._connections.use("prune rollups") as connection, connection.transaction():
            mine, moment = await connection.fetchrow(SQL["turn"])
            if not mine:
                return 0
            built = next(each for each in await grains(connection) if each.grain == coarser)
            # To whole coarser buckets, so that what is told of the time before needs no parts of them.
            kept_from = min(moment - age_s, built.built_until) // coarser * coarser
            if kept_from <= 0:
                return 0
            await connection.execute(SQL["keep_from"], grain, kept_from)
            removed: int = await connection.fetchval(SQL["prune"], grain, kept_from, rows_max)
            return removed


async def _next_place(connection: Any, built: GrainState, fine: Grain, until: float) -> tuple[float, UUID, UUID] | None:
    """The bucket before ``until``, and the key in it, to build from; None: there is nothing to build."""
    coarse = built.grain
    if not built.whole:
        return built.bucket, built.tenant_id, UUID(int=built.endpoint_id.int + 1)
    oldest = await connection.fetchval(SQL["oldest_unbuilt"], fine, coarse)
    if oldest is not None and oldest < until:
        return oldest // coarse * coarse, ALL, ALL
    await connection.execute(SQL["nothing_to_build"], coarse, until - coarse)
    return None


class _Mark(NamedTuple):
    """Up to which settle and event a shard is counted, and a day of the next event or before it."""

    settle_no: int
    seq: int
    day: Any


_Spans = tuple[tuple[int, int], ...]
"""Shards, and up to which of their settles or events."""


async def _to_count(connection: Any, moment: float) -> ToCount:
    rows = await connection.fetch(SQL["to_count"])
    settles, events = (tuple((row["shard"], row[of]) for row in rows if row[of]) for of in ("settle_no", "seq"))
    return ToCount(moment, settles, events)


async def _marks(connection: Any, spans: _Spans) -> dict[int, _Mark]:
    rows = await connection.fetch(SQL["marks"], list({shard for shard, _ in spans}))
    return {row["shard"]: _Mark(row["settle_no"], row["seq"], row["day"]) for row in rows}


def _split(spans: _Spans, marks: Mapping[int, int], most: int) -> tuple[_Spans, _Spans]:
    """As many of them as hold so much behind the marks, the last one in part; and what is left.

    Shards one after the other and not all alike: a tenant is at home in one or some of them, so what is counted
    together is of fewer tenants and endpoints, whose rows are written once for more of it.
    """
    found: list[tuple[int, int]] = []
    for place, (shard, up_to) in enumerate(spans):
        if not most or place == SHARDS_AT_ONCE:
            return tuple(found), spans[place:]
        part = min(up_to - marks[shard], most)
        if part > 0:
            found.append((shard, marks[shard] + part))
            most -= part
        if marks[shard] + part < up_to:
            return tuple(found), spans[place:]
    return tuple(found), ()


async def _roll_up(connection: Any, spans: _Spans, marks: Mapping[int, _Mark]) -> tuple[int, int]:
    """How many attempts were counted, and how many rows they are added to."""
    if not spans:
        return 0, 0
    shards, up_to = [shard for shard, _ in spans], [number for _, number in spans]
    settles = await connection.fetch(SQL["settles"], shards, [marks[shard].settle_no for shard in shards], up_to)
    of, numbers, days = ([row[column] for row in settles] for column in ("shard", "settle_no", "day"))
    between = (min(days, default=None), max(days, default=None))
    counted = await connection.fetchrow(SQL["roll_up"], of, numbers, days, *between, LOWS, shards, up_to)
    return counted["attempts"], counted["rows"]


async def _count_accepted(connection: Any, spans: _Spans, marks: Mapping[int, _Mark]) -> int:
    if not spans:
        return 0
    shards, up_to = [shard for shard, _ in spans], [number for _, number in spans]
    behind, days = [marks[shard].seq for shard in shards], [marks[shard].day for shard in shards]
    counted: int = await connection.fetchval(SQL["count_accepted"], shards, behind, up_to, days)
    return counted
