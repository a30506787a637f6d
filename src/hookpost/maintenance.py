"""Maintenance: partitions ahead of time, expired idempotency keys, old progress, what is older than it is kept,
payloads that no event refers to, certificates that end, tenants spread as their load asks, plans of tables that have
grown; bulk replays and rollups, step by step.

Every task is harmless when it runs twice or on several nodes at once; one that fails is tried again at the next turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from uuid import UUID

from hookpost import telemetry
from hookpost.model import show_id
from hookpost.policy.grains import Grain
from hookpost.policy.routing import HOMES_MAX
from hookpost.policy.spread import Bounds, Load, Watch, judge, loads
from hookpost.steps import note_failure, repeat
from hookpost.storage.contract import (
    DataRejected,
    MaintenanceStore,
    NotFound,
    PayloadStore,
    ReplayLimits,
    ReplayState,
    ReplayStep,
    Retired,
    RolledUp,
    RollupStore,
    SecretLocked,
    ShardLoad,
    Spread,
    StoreUnavailable,
    ToCount,
    Unfit,
)

# Partitions are made days ahead; an hour between looks leaves many tries before they are needed.
EVERY_S = 600.0
# After a failure the next look comes sooner.
AGAIN_S = 30.0
# Keys deleted in one statement: short transactions, and the rest right after.
KEYS_AT_ONCE = 5_000
# Endpoints whose certificates are read in one transaction: some 0.1 ms each.
CERTIFICATES_AT_ONCE = 100
# A new bulk replay starts within so long; an idle look is one small statement.
REPLAYS_EVERY_S = 1.0
REPLAYS_AGAIN_S = 5.0
# A job that is due and cannot be had is being worked on by another runner.
REPLAYS_TAKEN_S = 0.1
# Steps are short transactions, as they hold shards that ingest appends to. In front of the workers a replay keeps no
# more than they do in some seconds: what it has not appended yet costs nothing and can be cancelled.
REPLAY_LIMITS = ReplayLimits(step_s=0.5, deliveries_max=1_000, depth_max=10_000, waiting_max=10_000, hold_s=1.0)
# How old a dashboard's figures may be. An endpoint's minute is written once a turn: half as long, twice the writes.
ROLLUPS_EVERY_S = 10.0
ROLLUPS_AGAIN_S = 30.0
# What one step counts at most: of a busy shard a settle holds some ten attempts, of one of a thousand shards one, and
# each of them is looked at in each step. A step that takes longer than STEP_S is followed by a smaller one, unless it
# was the looking that took so long: deliveries wait for a core meanwhile, and for the disk behind what it wrote.
SETTLES_AT_ONCE = 400
EVENTS_AT_ONCE = 4_000
EVENTS_AT_LEAST = 2_000
STEP_PARTS_MAX = 32
STEP_PARTS_START = 8
STEP_ATTEMPTS_MIN = 400
STEP_S = 0.02
# Where there is a row for so many attempts or fewer, the rows are most of what it costs, and a tenant's is written once
# a step: by steps of 200 attempts each costs 50 us, by 4,000 it is 23. So whatever such a step takes, it has a quarter
# of these, if there are so many; on busy cores that is some tenths of a second.
SPREAD_ATTEMPTS_A_ROW = 4
SPREAD_ATTEMPTS = 4_000
# Rows that one step adds up to a coarser grain, or removes: as long.
ROLLUPS_AT_ONCE = 8_000
# Between two steps it rests so many times as long as the first of them took: deliveries need the same cores. Only when
# it has not come to the end for so long it goes on without.
ROLLUPS_REST = 4.0
ROLLUPS_BEHIND_S = 30.0
# Between two looks for rollups that are old enough to be removed.
PRUNE_EVERY_S = 300.0
# A statement planned while its table was empty may read all of it each time, and the server itself looks once a minute:
# by then an outage has stored a million retries. A look takes 0.4 ms.
PLANS_EVERY_S = 1.0
PLANS_AGAIN_S = 30.0
# Between two looks at how much shards hold. A look takes some 0.1 ms of the database for each shard.
SPREAD_EVERY_S = 10.0
# Objects of removed payloads that are removed before they are noted as gone.
OBJECTS_AT_ONCE = 500
# Segments written anew for payloads removed on request, before it is looked again: each is some MiB.
SEGMENTS_AT_ONCE = 20
# What was put into the payload store and is not referred to by then never will be: an append refuses what was put more
# than 10 minutes ago (hookpost_append).
ORPHAN_AGE_S = 3600.0
# The newest rows of a busy shard that tell whose it is busy with: 3 % off at worst for a tenant with half of them.
SAMPLE_ROWS = 1_000


class Maintenance:
    """The maintenance loop of one server: ``await run(stop)``."""

    def __init__(
        self,
        store: MaintenanceStore,
        payloads: PayloadStore,
        *,
        days_ahead: int,
        keep_days: int,
        audit_days: int | None = None,
    ) -> None:
        """``audit_days``: how long the audit log is kept; None: for ever."""
        self._audit_days = audit_days
        self._store = store
        self._payloads = payloads
        self._keep_days = keep_days
        self._days_ahead = days_ahead

    async def run(self, stop: asyncio.Event) -> None:
        """Look after the store until ``stop`` is set."""

        async def step() -> float:
            return EVERY_S if await self.once() else AGAIN_S

        await repeat(step, stop)

    async def once(self) -> bool:
        """Every task once; False when one failed. While sending is paused nothing of value is removed: a restored
        backup must not clean up behind an installation that it is a copy of."""
        results = [
            await self._attempt("make partitions", self._make_partitions),
            await self._attempt("expire idempotency keys", self._expire_keys),
            await self._attempt("prune progress", self._prune_progress),
            await self._attempt("seal plain secrets", self._seal_secrets),
            await self._attempt("look at certificates", self._look_at_certificates),
        ]
        if not await self._is_paused():
            results += [
                await self._attempt("retire events", self._retire_events),
                await self._attempt("retire attempts", self._retire_attempts),
                await self._attempt("remove payloads", self._remove_payloads),
                await self._attempt("sweep the payload store", self._sweep_payloads),
                await self._attempt("retire the audit log", self._retire_audit),
            ]
        return all(results)

    async def _attempt(self, name: str, task: Callable[[], Awaitable[None]]) -> bool:
        try:
            await task()
        except (StoreUnavailable, DataRejected, SecretLocked) as error:
            note_failure(name, error)
            return False
        return True

    async def _is_paused(self) -> bool:
        """Or cannot it be told?"""
        try:
            return await self._store.is_paused()
        except StoreUnavailable:
            return True

    async def _make_partitions(self) -> None:
        made = await self._store.make_partitions(days_ahead=self._days_ahead)
        if made:
            telemetry.log("partition_created", partition=f"{made} partitions up to {self._days_ahead} days ahead")

    async def _expire_keys(self) -> None:
        while await self._store.expire_idempotency_keys(limit=KEYS_AT_ONCE) == KEYS_AT_ONCE:
            pass

    async def _prune_progress(self) -> None:
        await self._store.prune_progress()

    async def _look_at_certificates(self) -> None:
        while await self._store.look_at_certificates(limit=CERTIFICATES_AT_ONCE) == CERTIFICATES_AT_ONCE:
            pass

    async def _retire_audit(self) -> None:
        if self._audit_days is None:
            return
        retired = 0
        while some := await self._store.retire_audit(keep_days=self._audit_days):
            retired += some
        if retired:
            telemetry.log("audit_retired", rows=retired)

    async def _seal_secrets(self) -> None:
        sealed = 0
        while some := await self._store.seal_plain_secrets():
            sealed += some
        if sealed:
            telemetry.log("secrets_sealed", secrets=sealed)

    async def _retire_events(self) -> None:
        """Attempts are later than their events, so events leave first."""
        self._tell(await self._store.retire_events(keep_days=self._keep_days, forget=self._payloads.delete))
        await self._store.forget_replays(keep_days=self._keep_days)

    async def _retire_attempts(self) -> None:
        self._tell(await self._store.retire_attempts(keep_days=self._keep_days))

    async def _remove_payloads(self) -> None:
        """Those of deleted tenants, then all objects, and bytes of segments, that were noted."""
        while (tenant_id := await self._store.empty_tenant()) is not None:
            telemetry.log("tenant_emptied", tenant_id=show_id("ten", tenant_id))
        while await self._store.remove_objects(self._payloads.delete, limit=OBJECTS_AT_ONCE) == OBJECTS_AT_ONCE:
            pass
        while await self._store.erase_payloads(self._payloads.erase, limit=SEGMENTS_AT_ONCE) == SEGMENTS_AT_ONCE:
            pass

    def _tell(self, retired: Retired) -> None:
        for partition in retired.dropped:
            telemetry.log("partition_dropped", partition=partition)
        for partition in retired.held:
            telemetry.log("partition_held", partition=partition)

    async def _sweep_payloads(self) -> None:
        """Remove what was put into the payload store for events that were never appended, hour by hour, each once."""
        hour, end = await self._store.swept_to(), await self._store.sweepable_hours(age_s=ORPHAN_AGE_S)
        while hour < end:
            swept = 0
            async for keys in self._payloads.list_hour(hour):
                orphans = await self._store.orphans(keys)
                await self._payloads.delete(orphans)
                swept += len(orphans)
            if swept:
                telemetry.count("payloads_swept", swept)
                telemetry.log("payloads_swept", objects=swept)
            hour += 1
            await self._store.note_swept(hour)


class Replays:
    """The loop that takes bulk replays further: ``await run(stop)``. Any number of them share the jobs."""

    def __init__(self, store: MaintenanceStore, *, limits: ReplayLimits = REPLAY_LIMITS) -> None:
        self._store = store
        self._limits = limits

    async def run(self, stop: asyncio.Event) -> None:
        """Go on with whatever is due until ``stop`` is set."""
        await repeat(self.once, stop)

    async def once(self) -> float:
        """One step of the job whose turn it is; returns the seconds until the next."""
        try:
            step = await self._store.replay_step(self._limits)
            if step is not None:
                await self._tell(step)
                return 0.0
            due_in_s = await self._store.next_replay_in()
        except (StoreUnavailable, DataRejected) as error:
            note_failure("go on with replays", error)
            return REPLAYS_AGAIN_S
        return REPLAYS_EVERY_S if due_in_s is None else min(max(due_in_s, REPLAYS_TAKEN_S), REPLAYS_EVERY_S)

    async def _tell(self, step: ReplayStep) -> None:
        telemetry.count("deliveries_replayed", step.appended)
        if step.state is ReplayState.FAILED:
            telemetry.log("replay_failed", replay_id=show_id("rpl", step.replay_id), reason=step.failure)
        elif step.state is not ReplayState.RUNNING:
            telemetry.log("replay_ended", replay_id=show_id("rpl", step.replay_id), state=step.state)
        if step.shards:
            with suppress(StoreUnavailable):  # workers look by themselves
                await self._store.ring(step.shards)


class Rollups:
    """The loop that counts attempts and events, adds up what is over and removes what is old: ``await run(stop)``. One
    at a time does it."""

    def __init__(
        self, store: RollupStore, *, minutes_kept_s: float, hours_kept_s: float, monotonic: Callable[[], float]
    ) -> None:
        self._store = store
        self._kept_s = {
            Grain.MINUTE: minutes_kept_s, Grain.HALF_HOUR: minutes_kept_s,
            Grain.HOUR: hours_kept_s, Grain.QUARTER_DAY: hours_kept_s,
        }  # fmt: skip
        self._monotonic = monotonic
        # A step counts one of so many parts of the most, of what the last one has left.
        self._parts = STEP_PARTS_START
        self._left: ToCount | None = None
        self._prune_at = self._done_at = monotonic()

    async def run(self, stop: asyncio.Event) -> None:
        """Go on with what there is to count until ``stop`` is set."""
        await repeat(self.once, stop)

    async def once(self) -> float:
        """One step; returns the seconds until the next."""
        began = self._monotonic()
        try:
            more = await self._step()
        except (StoreUnavailable, DataRejected) as error:
            note_failure("roll up", error)
            return ROLLUPS_AGAIN_S
        now = self._monotonic()
        if more:
            return ROLLUPS_REST * (now - began) if now - self._done_at < ROLLUPS_BEHIND_S else 0.0
        self._done_at = now
        return ROLLUPS_EVERY_S

    async def _step(self) -> bool:
        """Count, add up or remove some; may there be more to do?"""
        began = self._monotonic()
        step = await self._store.roll_up(
            settles_max=SETTLES_AT_ONCE // self._parts,
            events_max=max(EVENTS_AT_LEAST, EVENTS_AT_ONCE // self._parts),
            left=self._left,
        )
        self._learn(self._monotonic() - began, step)
        self._left = None if step is None else step.left
        if step is not None:
            telemetry.count("attempts_rolled_up", step.attempts)
            if step.left is not None:
                return True
        if await self._store.build_rollups(rows_max=ROLLUPS_AT_ONCE):
            return True
        if self._monotonic() < self._prune_at:
            return False
        for grain, age_s in self._kept_s.items():
            if await self._store.prune_rollups(grain, age_s=age_s, rows_max=ROLLUPS_AT_ONCE):
                return True
        self._prune_at = self._monotonic() + PRUNE_EVERY_S
        return False

    def _learn(self, took_s: float, step: RolledUp | None) -> None:
        attempts, rows = (step.attempts, step.rows) if step is not None else (0, 0)
        if rows * SPREAD_ATTEMPTS_A_ROW > attempts:
            much, little = took_s > STEP_S and attempts >= SPREAD_ATTEMPTS, attempts < SPREAD_ATTEMPTS // 4
        else:
            much = took_s > STEP_S and (self._parts == 1 or attempts >= STEP_ATTEMPTS_MIN)
            little = took_s < STEP_S / 4
        if much:
            self._parts = min(STEP_PARTS_MAX, self._parts * 2)
        elif little:
            self._parts = max(1, self._parts // 2)


class Plans:
    """The loop that has the plans of grown tables made anew: ``await run(stop)``. The eldest worker alone does it."""

    def __init__(self, store: MaintenanceStore, *, node_id: UUID) -> None:
        self._store = store
        self._node_id = node_id

    async def run(self, stop: asyncio.Event) -> None:
        """Look until ``stop`` is set."""
        await repeat(self.once, stop)

    async def once(self) -> float:
        """One look; returns the seconds until the next."""
        try:
            if await self._store.is_eldest(self._node_id):
                for table in await self._store.analyse_grown():
                    telemetry.log("table_grown", table=table)
        except (StoreUnavailable, DataRejected) as error:
            note_failure("analyse tables that have grown", error)
            return PLANS_AGAIN_S
        return PLANS_EVERY_S


class Spreading:
    """The loop that gives tenants more or fewer home shards: ``await run(stop)``. The eldest worker alone does it, and
    what it remembers of the last looks may be lost: its successor looks anew."""

    def __init__(
        self, store: MaintenanceStore, *, node_id: UUID, bounds: Bounds, monotonic: Callable[[], float]
    ) -> None:
        self._store = store
        self._node_id = node_id
        self._bounds = bounds
        self._monotonic = monotonic
        self._last: dict[int, int] = {}
        self._last_at = 0.0
        self._watches: dict[UUID, Watch] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Look until ``stop`` is set."""

        async def step() -> float:
            try:
                await self.look()
            except (StoreUnavailable, DataRejected, SecretLocked) as error:
                note_failure("spread tenants", error)
            return SPREAD_EVERY_S

        await repeat(step, stop)

    async def look(self) -> None:
        """One look, and what follows from it."""
        if not await self._store.is_eldest(self._node_id):
            self._last, self._watches = {}, {}
            return
        now = self._monotonic()
        shards = await self._store.shard_loads()
        depths, rates = {each.shard: float(each.depth) for each in shards}, self._rates(shards, now)
        busy = {s for s in depths if depths[s] > self._bounds.depth or rates.get(s, 0.0) > self._bounds.rate}
        spread = {tenant.tenant_id: tenant for tenant in await self._store.spread_tenants(())}
        asked = busy.union(*(tenant.home_shards for tenant in spread.values()))
        shares = await self._store.tenant_shares(asked, rows_max=SAMPLE_ROWS) if asked else {}
        found = loads(depths, rates, shares)
        if found.keys() - spread.keys():
            spread = {tenant.tenant_id: tenant for tenant in await self._store.spread_tenants(found.keys())}
        await self._decide(spread, found, now)

    def _rates(self, shards: list[ShardLoad], now: float) -> Mapping[int, float]:
        """Events a second since the last look; none at the first."""
        last, spent_s = self._last, now - self._last_at
        self._last, self._last_at = {each.shard: each.last_seq for each in shards}, now
        return {each.shard: (each.last_seq - last[each.shard]) / spent_s for each in shards if each.shard in last}

    async def _decide(self, spread: Mapping[UUID, Spread], found: Mapping[UUID, Load], now: float) -> None:
        watches: dict[UUID, Watch] = {}
        for tenant_id, tenant in spread.items():
            homes = len(tenant.home_shards)
            watches[tenant_id], wanted = judge(
                self._watches.get(tenant_id, Watch()),
                found.get(tenant_id, Load(0.0, 0.0)),
                homes=homes,
                homes_max=min(tenant.pool_shards, HOMES_MAX),
                bounds=self._bounds,
                now=now,
            )
            if wanted != homes:
                await self._spread(tenant, wanted)
        self._watches = watches

    async def _spread(self, tenant: Spread, wanted: int) -> None:
        try:
            changed = await self._store.set_spread(tenant.tenant_id, known=len(tenant.home_shards), wanted=wanted)
        except (NotFound, Unfit):
            return  # deleted or moved to another pool a moment ago
        if changed:
            was = len(tenant.home_shards)
            telemetry.log("tenant_spread", tenant_id=f"ten_{tenant.tenant_id.hex}", was=was, count=wanted)
