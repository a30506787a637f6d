"""The worker: owns shards, feeds the engine and does what it says.

Relies on the fence: a settle of a shard that has another owner writes nothing. Promises: nothing is sent for a shard
without a lease that is valid by the monotonic clock, counted from when its renewal was *sent*; the results of all that
was sent are recorded or, when the shard is lost, dropped; a stop takes no more, finishes or hands back.

One loop each for the lease, the journal, the configuration and the settles; sending is a callback without a task.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from random import Random
from typing import Protocol, TypeVar, cast
from uuid import UUID

from uuid_utils import uuid7

from hookpost import __version__, telemetry
from hookpost.engine.engine import Engine
from hookpost.engine.gates import Receiver
from hookpost.engine.limits import Limits, Policies
from hookpost.engine.progress import GapError
from hookpost.engine.work import Fetch, JournalRow, Kind, Settle, ShardSettle, Work
from hookpost.model import Endpoint, EndpointStatus, ErrorCode, Health, Outcome, PayloadRef, Request, show_id
from hookpost.policy.balance import fair_part
from hookpost.policy.looks import Looks
from hookpost.policy.request import build_request
from hookpost.policy.trace import ID_BYTES
from hookpost.reporting import Reports
from hookpost.storage.contract import (
    RECONFIGURED,
    DataRejected,
    FenceLost,
    PayloadMissing,
    PayloadStore,
    StoreUnavailable,
    Survey,
    WorkerStore,
)

# Deliveries started in one go before the loop turns to sockets again. A read of the journal takes a few such turns, and
# what a tenant has just posted waits for it, however many deliveries of others are ready.
SENDS_AT_ONCE = 16
# Rows of one shard in one read, and their bytes: a read must not hold the loop or the memory for long.
READ_ROWS_MAX = 500
READ_BYTES_MAX = 8 * 1024 * 1024
FETCH_BYTES_MAX = 4 * 1024 * 1024
# Between two reads while there is work: rows gather, and a read of many costs little more than a read of one.
READ_PACE_S = 0.003
# Behind that the next read waits for a ring, which comes with the next append, but no longer than this: one may get
# lost, and where nobody can ring all depends on it.
READ_WAIT_S = 0.007
# When rows of a shard were told within this time, others are: nothing of it is read but what was rung for.
TOLD_S = 0.1
# How long an idle worker sleeps when nobody rings (a ring may get lost); doubled from the pace up to here.
IDLE_S_MAX = 0.5
# When memory is full: how often to look whether anybody else waits behind those who hold it, how many rows ahead, and
# how long the answer holds. Longer than a reader sleeps that has no room.
OTHERS_EVERY_S = 0.25
OTHERS_ROWS_MAX = 20_000
OTHERS_HOLD_S = IDLE_S_MAX + OTHERS_EVERY_S
# So many shards are read every time, whoever rang. Of a thousand it would be 11 ms of the database's time per read.
READ_ALL_MAX = 64
# Between two settles: outcomes gather. Beyond this many there is no waiting.
SETTLE_PACE_S = 0.02
SETTLE_ROWS = 400
# Each shard that something happened in costs a settle a row of progress, so of many shards more outcomes are gathered.
SETTLE_PACE_SHARD_S = 0.00005
SETTLE_PACE_S_MAX = 0.05
# When so many results cannot be written down, nothing more is sent: it bounds memory, and what a crash repeats.
UNSETTLED_MAX = 10_000
# How often shards are balanced; and until a fresh worker has its part.
SURVEY_S = 1.0
SURVEY_EAGER_S = 0.25
# Shards taken over in one go: few round trips for many of them, and the first ones need not wait for all.
TAKEOVERS_AT_ONCE = 100
# How often to look whether the last requests of shards that are handed over have ended.
HAND_OVER_S = 0.05
# How often configuration changes are looked for.
CONFIG_S = 0.5
CONFIG_BATCH = 1_000
# Endpoints' health is written down at most so often, so many of them at a time: one that fails changes it with every
# attempt, and only people and a later owner read it.
HEALTH_S = 1.0
HEALTH_BATCH = 500
# What others wrote is heard of as often. Behind an outage of very many it takes a while, and costs each a few ms.
HEALTH_HEARD = 2_000
# While the clock stands it is looked so often whether it goes on.
STANDING_S = 0.001
# Waits between tries while the store is away.
STORE_RETRY_S = 0.1
STORE_RETRY_S_MAX = 1.0
# An idle shard's last progress row is written anew several times a day, so that partitions of old ones can be dropped.
PROGRESS_AGAIN_S = 6 * 3600.0
# The right to send a breaker's probe: the longest request, and what it may wait for its turn.
PROBE_S = 40.0
# A difference to the database's clock beyond this makes receivers refuse our timestamps one day: tell the operator.
SKEW_WARNING_S = 5.0


_T = TypeVar("_T")


class Clock(Protocol):
    """The Clock seam."""

    def now(self) -> float:
        """Unix seconds in the database's time; never goes back."""

    def monotonic(self) -> float:
        """Seconds for local deadlines."""

    def correct(self, database_now: float, *, sent: float, received: float) -> float:
        """Take over the database's time, asked for between two monotonic times; returns the difference found."""


class Sender(Protocol):
    """The Transport seam."""

    def send(self, request: Request, done: Callable[[Outcome], None]) -> None:
        """Make one request; ``done`` is called once, later, with whatever came of it. Never raises."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How one worker leases and stops. ``longest_s``: no request takes longer."""

    pool: str = "default"
    lease_s: float = 15.0
    renew_s: float = 4.0
    stop_s: float = 20.0
    longest_s: float = 30.0
    limits: Limits = field(default_factory=Limits)
    policies: Policies = field(default_factory=Policies)


def settle_pace_s(shards: int) -> float:
    """From the beginning of a settle to that of the next, when the last one touched so many shards."""
    return min(max(SETTLE_PACE_S, SETTLE_PACE_SHARD_S * shards), SETTLE_PACE_S_MAX)


class Worker:
    """One worker process's life: ``await run(stop)``."""

    _loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        *,
        store: WorkerStore,
        payloads: PayloadStore,
        sender: Sender,
        clock: Clock,
        node_id: UUID,
        name: str,
        settings: WorkerSettings,
        rng: Random,
        trace: Callable[[Work, Outcome], None] | None = None,
    ) -> None:
        """``trace`` is called at the end of every attempt; None: nobody wants spans."""
        self._store = store
        self._payloads = payloads
        self._paused = False
        self._sender = sender
        self._clock = clock
        self._node_id = node_id
        self._name = name
        self._settings = settings
        self._engine = Engine(worker=name, limits=settings.limits, rng=rng, policies=settings.policies)
        self._user_agent = f"Hookpost/{__version__}"
        self._trace = trace
        self._reports = Reports(now=clock.monotonic())
        self._fences: dict[int, int] = {}
        # Of these, the ones that are being handed over; and who sees to it.
        self._leaving: set[int] = set()
        self._handing_over: set[asyncio.Task[None]] = set()
        # Until when we have it, by our own clock; when it ends by the database's, and how far what is appended is
        # ahead of that, as it was set back since.
        self._lease_until = self._lease_ends = self._rows_ahead_s = 0.0
        self._lease_doubted = asyncio.Event()
        # How often it had expired, or was removed, when it was renewed.
        self._lapses = 0
        # The latest time at which anything that was read was appended.
        self._newest = 0.0
        self._skewed = False
        self._store_failing = False
        self._stopping = False
        self._kicked = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._looked_at_now = 0.0
        self._unsettled = asyncio.Event()
        self._config_wanted = asyncio.Event()
        # What was told of our own way out.
        self._egress_down_since: float | None = None
        # Held from loading configuration to handing it over: what was loaded later is not overwritten by older.
        self._configuring = asyncio.Lock()
        self._looks = Looks(0.0)
        self._idle = asyncio.Event()
        self._gaps: set[int] = set()
        # Shards of others that this worker was told of, and that are to be rung for.
        self._misled: set[int] = set()
        # Shards that were rung for or brought rows with the last read, and when to look at all of them again.
        self._behind: set[int] = set()
        self._look_at = 0.0
        self._others_at = 0.0
        # When rows of a shard were told last.
        self._told_at: dict[int, float] = {}
        # Changed and not written down yet, and when to write again.
        self._health: dict[UUID, Health] = {}
        self._health_due = 0.0
        self._health_looks = Looks(0.0)
        # After when there was more to hear than could be heard at once.
        self._unheard_after: float | None = None
        # Changes of tenants and endpoints that were taken over, as the store tells of each again for a while; when to
        # look for more, by the clock of the loop.
        self._refreshed: dict[UUID, float] = {}
        self._refresh_due = 0.0
        self._settle_waiters: list[asyncio.Future[None]] = []
        # Taken from the engine and not known to be committed: until it is, no later one may be written.
        self._settling: Settle | None = None
        self._failing_since = 0.0
        self._tasks: asyncio.TaskGroup | None = None

    def figures(self) -> dict[str, float]:
        """How it stands now (telemetry.GAUGES)."""
        engine = self._engine
        return {
            "in_flight_requests": engine.in_flight,
            "buffered_deliveries": engine.buffered,
            "unsettled_attempts": engine.pending_attempts,
        }

    @property
    def fences(self) -> Mapping[int, int]:
        """The shards that it owns now, each with its fence."""
        return self._fences

    # ---- life -----------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then finish or hand back what is held, within the stop time."""
        # Asking for it costs a system call, and is done in every turn of the loop.
        self._loop = asyncio.get_running_loop()
        await self._persist(self._register)
        began, now = self._clock.monotonic(), self._clock.now()
        self._looks, self._health_looks = Looks(began, now), Looks(began, now)
        await self._persist(self._heed_pause)
        telemetry.log("worker_ready", worker=self._name, pool=self._settings.pool)
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            loops = [
                tasks.create_task(self._lease_loop(), name="lease"),
                tasks.create_task(self._survey_loop(), name="survey"),
                tasks.create_task(self._journal_loop(), name="journal"),
                tasks.create_task(self._config_loop(), name="config"),
            ]
            settles = tasks.create_task(self._settle_loop(), name="settle")
            await stop.wait()
            self._stopping = True
            for task in (loops[1], loops[2], *self._handing_over):
                task.cancel()
            for shard in self._engine.shards:
                self._engine.drain_shard(shard)
            await self._drain(self._settings.stop_s * 0.75)
            for task in (*loops, settles):
                task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        await self._hand_back(self._settings.stop_s * 0.2)

    async def _drain(self, timeout_s: float) -> None:
        """Wait until nothing is in flight and all of it is settled."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._engine.in_flight or self._engine.unsettled or self._settling is not None:
                    self._idle.clear()
                    if self._engine.unsettled:
                        self._unsettled.set()
                    await self._idle.wait()
        except TimeoutError:
            return

    async def _hand_back(self, timeout_s: float) -> None:
        """A last settle per shard tells the successor whether anything may have been sent and not recorded.

        It says that what the one before recorded is done, so that one comes first, or neither is written.
        """
        try:
            async with asyncio.timeout(timeout_s):
                if self._settling is not None:
                    await self._commit(self._settling, tried=1)
                for shard in self._fences:
                    self._engine.drain_shard(shard)
                settle = self._engine.take_settle(now=self._clock.now())
                if settle is not None:
                    await self._commit(settle)
                await self._write_health()
                await self._store.leave(self._node_id)
            telemetry.count_by("lease_changes", {("released",): len(self._fences)})
            telemetry.log("shards_released", shards=sorted(self._fences))
        except (TimeoutError, StoreUnavailable) as error:
            telemetry.log("lease_lost", reason=f"could not hand back: {error}", shards=sorted(self._fences))

    async def _persist(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask until the store answers."""
        wait_s = STORE_RETRY_S
        while True:
            try:
                return await ask()
            except StoreUnavailable as error:
                self._note_store(error)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, STORE_RETRY_S_MAX)

    def _note_store(self, error: StoreUnavailable | None) -> None:
        """One line when the store goes away, one when it is back."""
        if error is not None and not self._store_failing:
            self._store_failing = True
            self._failing_since = self._clock.monotonic()
            telemetry.log("postgres_lost", reason=error)
        elif error is None and self._store_failing:
            self._store_failing = False
            telemetry.log("postgres_back", seconds=round(self._clock.monotonic() - self._failing_since, 1))

    # ---- the lease ------------------------------------------------------------------------------------------------

    async def _register(self) -> None:
        settings = self._settings
        sent, newest = self._clock.monotonic(), self._newest
        now = await self._store.register(self._node_id, pool=settings.pool, name=self._name, lease_s=settings.lease_s)
        self._renewed(now, sent, self._clock.monotonic(), newest)

    def _renewed(self, database_now: float, sent: float, received: float, newest: float) -> None:
        """``newest``: the latest time at which anything was appended that had been read before it was asked."""
        skew_s = self._clock.correct(database_now, sent=sent, received=received)
        skewed = abs(skew_s) > SKEW_WARNING_S
        if skewed and not self._skewed:
            telemetry.log("clock_skew", skew_ms=round(skew_s * 1000))
        self._skewed = skewed
        self._lease_until = sent + self._settings.lease_s
        self._lease_ends = database_now + self._settings.lease_s
        self._rows_ahead_s = max(0.0, newest - database_now)

    def _look_at_clock(self, row: JournalRow) -> None:
        """What was appended behind the end of our lease says that the database's clock was set forward: somebody else
        may have taken our shards, and would not mark as possibly sent what it has seen appended. So nothing is sent
        before that is known. Where it was set back, what was appended before says nothing."""
        self._newest = max(self._newest, row.created_at)
        if row.created_at > self._lease_ends + self._rows_ahead_s and self._has_lease():
            self._lease_until = self._clock.monotonic()
            self._lease_doubted.set()

    async def _lease_loop(self) -> None:
        progress_due = self._clock.monotonic() + PROGRESS_AGAIN_S
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lease_doubted.wait(), self._settings.renew_s)
            self._lease_doubted.clear()
            if self._clock.monotonic() >= progress_due:
                progress_due += PROGRESS_AGAIN_S
                for shard in self._engine.shards:
                    self._engine.touch(shard)
            await self._persist(self._renew)
            self._kick()

    async def _renew(self) -> None:
        sent, newest = self._clock.monotonic(), self._newest
        now = await self._store.renew(self._node_id, lease_s=self._settings.lease_s)
        received = self._clock.monotonic()
        if now is None:
            self._lapses += 1
            self._lose(list(self._fences), "it was removed")
            await self._register()
        else:
            if not self._has_lease():
                self._lapses += 1
                # Others may have taken shards meanwhile. Nothing is sent before that is known; from the renewal on
                # nobody takes another one, and those that are still ours go on where they stopped.
                held = dict(self._fences)
                self._keep(held, await self._survey())
            self._renewed(now, sent, received, newest)
        self._note_store(None)

    async def _survey(self) -> Survey:
        return await self._store.survey(self._settings.pool)

    def _keep(self, held: Mapping[int, int], survey: Survey) -> None:
        """Let go of what others took of the shards ``held`` when the survey was asked for; it knows no later ones."""
        lost = [s for s in held if self._fences.get(s) == held[s] and survey.owners.get(s) != self._node_id]
        if lost:
            self._lose(lost, "it expired and others took over")

    def _has_lease(self) -> bool:
        return self._clock.monotonic() < self._lease_until

    def _may_send(self) -> bool:
        return (
            self._has_lease()
            and not self._stopping
            and not self._paused
            and self._engine.pending_attempts < UNSETTLED_MAX
        )

    def _lose(self, shards: Collection[int], reason: str) -> None:
        """Stop for these shards at once and write nothing more."""
        for shard in shards:
            self._forget(shard)
        telemetry.count("leases_lost")
        telemetry.count_by("lease_changes", {("lost",): len(shards)})
        telemetry.log("lease_lost", reason=reason, shards=sorted(shards))

    def _forget(self, shard: int) -> None:
        self._fences.pop(shard, None)
        self._leaving.discard(shard)
        self._gaps.discard(shard)
        self._told_at.pop(shard, None)
        self._engine.close_shard(shard)

    # ---- balance --------------------------------------------------------------------------------------------------

    async def _survey_loop(self) -> None:
        while True:
            try:
                settled_in = True
                # Without a lease our own shards look free; the next renewal tells whether others took them.
                if self._has_lease():
                    held = dict(self._fences)
                    settled_in = await self._balance(held, await self._survey())
            except StoreUnavailable as error:
                self._note_store(error)
                settled_in = True
            await asyncio.sleep(SURVEY_S if settled_in else SURVEY_EAGER_S)

    async def _balance(self, held: Mapping[int, int], survey: Survey) -> bool:
        """Take free shards up to a fair part, give back what exceeds it; True when the part is held."""
        if not self._has_lease():
            return True
        self._keep(held, survey)
        self._engine.share_budget(max(1, len(survey.nodes)))
        # A claim whose answer got lost, a lease that was removed and entered anew: set free, they are claimed again.
        orphans = [s for s, owner in survey.owners.items() if owner == self._node_id and s not in self._fences]
        if orphans:
            await self._store.disown(self._node_id, orphans)
            telemetry.log("shards_disowned", shards=orphans)
            return False
        if self._node_id not in survey.nodes:
            return True  # the next renewal enters it anew
        part = fair_part(len(survey.owners), survey.nodes, self._node_id)
        staying = sorted(self._fences.keys() - self._leaving)
        if staying[part:]:
            self._give_back(staying[part:])
        free = sum(owner is None for owner in survey.owners.values())
        if free and len(staying) < part and not self._stopping:
            await self._take(min(free, part - len(staying)))
        return len(self._fences.keys() - self._leaving) >= part

    async def _take(self, count: int) -> None:
        settings, lapses, taken = self._settings, self._lapses, list[int]()
        claimed = await self._store.claim(self._node_id, pool=settings.pool, limit=count, lease_s=settings.lease_s)
        for start in range(0, len(claimed), TAKEOVERS_AT_ONCE):
            fences = {c.shard: c.fence for c in claimed[start : start + TAKEOVERS_AT_ONCE]}
            takeovers = await self._persist(partial(self._store.takeovers, fences))
            # The last owner may have heeded changes in these shards that we have not heard of.
            await self._persist(self._refresh)
            for takeover in takeovers:
                if self._lapses != lapses:
                    # The lease expired behind the claim, others may have these by now, and the renewal has asked about
                    # those alone that we worked for. What is ours still is set free and claimed anew.
                    break
                taken.append(takeover.shard)
                self._fences[takeover.shard] = takeover.fence
                self._behind.add(takeover.shard)
                self._engine.open_shard(takeover, now=self._clock.now())
                self._engine.touch(takeover.shard)
                # A shard may bring thousands of lanes; what is delivered already must not wait for all of them.
                await asyncio.sleep(0)
            self._kick()
        if taken:
            telemetry.count_by("lease_changes", {("acquired",): len(taken)})
            telemetry.log("shards_acquired", shards=taken)

    def _give_back(self, shards: Iterable[int]) -> None:
        """Begin to hand shards over. The looks at who owns what go on: somebody may die meanwhile."""
        assert self._tasks is not None
        handed = {shard: self._fences[shard] for shard in shards}
        self._leaving |= handed.keys()
        task = self._tasks.create_task(self._hand_over(handed))
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)

    async def _hand_over(self, handed: Mapping[int, int]) -> None:
        """Each shard in order, and as soon as what is in flight in it has ended: not one after the other, for then the
        last one would wait for the longest request of each."""
        for shard in handed:
            self._engine.drain_shard(shard)
        until = self._clock.monotonic() + self._settings.longest_s
        left = dict(handed)
        while left := {shard: fence for shard, fence in left.items() if self._fences.get(shard) == fence}:
            late = self._clock.monotonic() >= until
            quiet = [shard for shard in left if late or not self._engine.in_flight_of(shard)]
            if quiet:
                await self._release({shard: left[shard] for shard in quiet})
            else:
                # The engine has no event for it, and handing over is rare: looking now and then is simplest.
                await asyncio.sleep(HAND_OVER_S)

    async def _release(self, shards: Mapping[int, int]) -> None:
        """Their successors take them as the last settle left them."""
        for shard in shards:
            self._engine.drain_shard(shard)
        await self._settled()
        ours = {shard: fence for shard, fence in shards.items() if self._fences.get(shard) == fence}
        for shard in ours:
            self._forget(shard)
        if ours:
            await self._persist(partial(self._store.release, self._node_id, ours))
            telemetry.count_by("lease_changes", {("released",): len(ours)})
            telemetry.log("shards_released", shards=sorted(ours))

    async def _settled(self) -> None:
        """Wait until all that happened so far is committed."""
        waiter = asyncio.get_running_loop().create_future()
        self._settle_waiters.append(waiter)
        self._unsettled.set()
        await waiter

    # ---- the journal ----------------------------------------------------------------------------------------------

    async def _journal_loop(self) -> None:
        idle_s = READ_PACE_S
        while True:
            try:
                count, full = await self._read()
            except StoreUnavailable as error:
                self._note_store(error)
                count, full, idle_s = 0, False, STORE_RETRY_S_MAX
            if count:
                idle_s = READ_PACE_S
                if full:
                    await asyncio.sleep(0)
                    await self._hear(0.0)
                else:
                    await asyncio.sleep(READ_PACE_S)
                    await self._await_ring(READ_WAIT_S)
            else:
                idle_s = min(idle_s * 2, IDLE_S_MAX)
                if await self._hear(idle_s):
                    idle_s = READ_PACE_S

    def _is_told(self, shard: int) -> bool:
        """Do its rows come without being read? Then a gap between them is noticed, and rung for."""
        told_at = self._told_at.get(shard)
        return told_at is not None and self._clock.monotonic() - told_at < TOLD_S

    async def _await_ring(self, timeout_s: float) -> None:
        """Wait for a ring for one of our shards."""
        until = self._clock.monotonic() + timeout_s
        while timeout_s > 0 and await self._hear(timeout_s) is False:
            timeout_s = until - self._clock.monotonic()

    async def _hear(self, timeout_s: float) -> bool | None:
        """Wait for a ring; True when it may be for one of our shards, None when there was none."""
        rung = await self._store.wait_for_ring(timeout_s)
        if rung is None:
            return None
        if not rung:
            self._look_at = 0.0
            return True
        ours = self._fences.keys() & rung
        self._behind |= ours
        return bool(ours)

    def _shards_to_read(self) -> list[int]:
        """All of them if they are few, for a ring comes late. Of many those that were rung for or brought rows the last
        time; and now and then all, for a ring may get lost."""
        owned = self._fences.keys() - self._gaps
        if len(owned) > READ_ALL_MAX and self._clock.monotonic() < self._look_at:
            owned &= self._behind
        return sorted(owned)

    async def _read(self) -> tuple[int, bool]:
        """Read the journal further; how many rows came of shards whose rows are not told, and whether one of those may
        have more."""
        rows, size = self._engine.room()
        shards = self._shards_to_read()
        everything = len(shards) == len(self._fences.keys() - self._gaps)
        began = self._clock.monotonic()
        if not shards or not self._may_send():
            return 0, False
        await self._look_for_others(shards)
        # Some may have been handed over meanwhile, or lost.
        shards = [shard for shard in shards if shard in self._fences]
        if not rows or not shards:
            return 0, False
        # Shared by those that are likely to bring some: a flood in one of many would be read in crumbs.
        rows_max = max(1, min(READ_ROWS_MAX, rows // max(1, len(self._behind.intersection(shards)))))
        fences = dict(self._fences)
        positions = {shard: self._engine.read_to(shard) for shard in shards}
        found = await self._store.read(
            positions, rows_max=rows_max, bytes_max=max(1, min(READ_BYTES_MAX, size) // len(shards))
        )
        if everything:
            self._look_at = began + IDLE_S_MAX
        await self._heed(found)
        self._behind.difference_update(shards)
        self._behind.update(found)
        now = self._clock.now()
        for shard, batch in found.items():
            self._look_at_clock(batch[-1])
            if self._fences.get(shard) != fences[shard]:
                continue
            try:
                # Some may have been told meanwhile.
                self._engine.on_rows(shard, self._unread(shard, batch), now=now)
            except GapError as error:
                self._gaps.add(shard)
                telemetry.log("journal_gap", shard=shard, expected=self._engine.read_to(shard)[0] + 1, found=str(error))
        if self._engine.missing:
            self._config_wanted.set()
        if found:
            self._kick()
        counts = [len(batch) for shard, batch in found.items() if not self._is_told(shard)]
        return sum(counts), rows_max in counts

    def _unread(self, shard: int, rows: list[JournalRow]) -> list[JournalRow]:
        """Of rows of its journal, in their order, those behind what was read."""
        read_to = self._engine.read_to(shard)[0]
        return rows if rows[0].seq > read_to else [row for row in rows if row.seq > read_to]

    def take_told(self, rows: list[JournalRow]) -> None:
        """An API process of this server tells what it has just appended to a shard, in the order of its journal.

        Taken is what follows what was read, just as if it had been read, as long as there is room. What is not taken
        stands in the journal, which is looked at as if it had rung; and so it is now and then while memory fills, for
        a read looks whether others wait behind those who hold it.
        """
        shard = rows[0].shard
        if shard not in self._fences:
            self._ring_for_other(shard)
            return
        self._look_at_clock(rows[-1])
        if shard not in self._gaps and self._may_send():
            fresh = self._unread(shard, rows)
            if not fresh:
                return
            if fresh[0].seq == self._engine.read_to(shard)[0] + 1 and self._engine.has_room_for(fresh):
                self._engine.on_rows(shard, fresh, now=self._clock.now())
                telemetry.count("rows_told", len(fresh))
                self._told_at[shard] = told_at = self._clock.monotonic()
                if self._engine.missing:
                    self._config_wanted.set()
                if self._engine.is_filling and told_at >= self._others_at:
                    self._store.ring_here((shard,))
                self._kick()
                return
        self._store.ring_here((shard,))

    def _ring_for_other(self, shard: int) -> None:
        """Whoever told it has not heard yet that the shard is another's, and has not rung for that one."""
        if self._stopping or self._tasks is None:
            return
        if not self._misled:
            self._tasks.create_task(self._ring_for_others())
        self._misled.add(shard)

    async def _ring_for_others(self) -> None:
        shards, self._misled = self._misled, set()
        with contextlib.suppress(StoreUnavailable):
            await self._store.ring(shards)

    async def _look_for_others(self, shards: Collection[int]) -> None:
        """Memory fills: unless somebody else waits behind those who hold it, they need not make room."""
        began = self._clock.monotonic()
        if began < self._others_at:
            return
        self._others_at = began + OTHERS_EVERY_S
        holders = self._engine.holders(now=self._clock.now())
        if holders is None:
            return
        positions = {shard: self._engine.read_to(shard) for shard in shards}
        if not await self._store.others_wait(positions, holders, rows_max=OTHERS_ROWS_MAX):
            self._engine.nobody_else(until=self._clock.now() + OTHERS_HOLD_S)

    async def _heed(self, found: Mapping[int, Iterable[JournalRow]]) -> None:
        """Rows behind the notice of a change are not handled by a configuration from before it."""
        rows = (row for batch in found.values() for row in batch)
        tenants = {row.tenant_id for row in rows if row.kind == Kind.CONTROL and row.type == RECONFIGURED}
        if tenants:
            async with self._configuring:
                if known := tenants & set(self._engine.known_tenants):
                    since = self._looks.since(self._clock.monotonic()).by(self._clock.now())
                    await self._reload(known, self._engine.endpoints_of(known), since)

    # ---- sending --------------------------------------------------------------------------------------------------

    def _kick(self) -> None:
        """Something changed: look what can start, once, when the loop comes round."""
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._kicked = False
        engine = self._engine
        now = self._clock.now()
        engine.tick(now=now)
        if self._may_send():
            sends = engine.take_sends(SENDS_AT_ONCE, now=now)
            for work in sends:
                self._send(work, now)
            if len(sends) == SENDS_AT_ONCE:
                self._kick()
            for fetch in engine.take_fetches(now=now):
                assert self._tasks is not None
                self._tasks.create_task(self._fetch(fetch))
            if probes := engine.take_probes():
                self._probe(probes)
        if engine.egress_down_since != self._egress_down_since:
            self._tell_egress(engine.egress_down_since, now)
        if engine.missing:
            self._config_wanted.set()
        if engine.unsettled:
            self._unsettled.set()
        elif self._stopping and not engine.in_flight:
            self._idle.set()
        self._set_timer(engine.next_wakeup(), now)

    def _tell_egress(self, down_since: float | None, now: float) -> None:
        """The operator hears of it from the log and the counter alone: an alert would have to take the same way out."""
        if self._egress_down_since is not None:
            telemetry.log("egress_back", seconds=round(now - self._egress_down_since, 1))
        if down_since is not None:
            telemetry.count("egress_outages")
            telemetry.log("egress_down")
        self._egress_down_since = down_since

    def _set_timer(self, moment: float | None, now: float) -> None:
        if moment is None or (self._timer is not None and self._timer_at == moment):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = moment
        # The clock may stand, when the database's has gone back: looking at once, again and again, would bring nothing.
        least_s = STANDING_S if now == self._looked_at_now else 0.0
        self._looked_at_now = now
        self._timer = self._loop.call_later(max(least_s, moment - now), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._kick()

    def _send(self, work: Work, now: float) -> None:
        payload = work.entry.payload
        if isinstance(payload, bytes):
            self._send_payload(work, payload, now)
        else:
            assert self._tasks is not None and payload is not None
            self._tasks.create_task(self._load(work, payload))

    async def _load(self, work: Work, ref: PayloadRef) -> None:
        """Read the payload from the payload store, then send it, if that is still to be done."""
        engine, now = self._engine, self._clock.now
        try:
            payload = await self._payloads.get(ref)
        except PayloadMissing as error:
            telemetry.log("payload_missing", event_id=show_id("evt", work.entry.event_id), reason=error)
            engine.on_no_payload(work, missing=True, now=now())
        except StoreUnavailable as error:
            telemetry.count("payload_reads_failed")
            telemetry.log("payload_store_failed", reason=error)
            engine.on_no_payload(work, missing=False, now=now())
        else:
            if not self._has_lease():
                engine.on_no_payload(work, missing=False, now=now())
            elif engine.on_payload(work, now=now()):
                self._send_payload(work, payload, now())
        self._kick()

    def _send_payload(self, work: Work, payload: bytes, now: float) -> None:
        entry = work.entry
        endpoint = work.lane.endpoint.config
        assert endpoint is not None
        # Not the standard library's UUID, which takes five times as long to make; it has the parts that are used.
        work.attempt_id = cast(UUID, uuid7(nanoseconds=int(now * 1e9)))
        trace = entry.trace
        work.trace_id = trace[:ID_BYTES] if trace is not None and endpoint.forward_trace else None
        try:
            request = build_request(
                endpoint,
                event_id=entry.event_id,
                event_type=entry.type,
                payload=payload,
                attempt_id=work.attempt_id,
                retry_count=work.retry_count,
                user_agent=self._user_agent,
                now=now,
                trace=trace,
            )
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one delivery must end as its outcome
            telemetry.log_error("build a request", error, event_id=entry.event_id)
            outcome = Outcome(ErrorCode.INTERNAL_ERROR, started_at=now, finished_at=now, detail=str(error))
            self._loop.call_soon(self._done, work, outcome)
            return
        self._sender.send(request, partial(self._done, work))

    def _done(self, work: Work, outcome: Outcome) -> None:
        self._engine.on_outcome(work, outcome, now=self._clock.now())
        if self._trace is not None:
            self._trace(work, outcome)
        if not self._kicked:
            self._kick()

    async def _fetch(self, fetch: Fetch) -> None:
        try:
            rows, more, behind = await self._store.fetch(fetch, bytes_max=FETCH_BYTES_MAX)
        except (StoreUnavailable, DataRejected) as error:
            if isinstance(error, StoreUnavailable):
                self._note_store(error)
            self._engine.on_fetch_failed(fetch, now=self._clock.now(), again_s=STORE_RETRY_S_MAX)
        else:
            self._engine.on_backlog(fetch, rows, more=more, behind=behind, now=self._clock.now())
        self._kick()

    # ---- settling -------------------------------------------------------------------------------------------------

    async def _settle_loop(self) -> None:
        while True:
            await self._unsettled.wait()
            self._unsettled.clear()
            waiters, self._settle_waiters = self._settle_waiters, []
            started = self._clock.monotonic()
            settle = self._engine.take_settle(now=self._clock.now())
            if settle is not None:
                self._settling = settle
                await self._commit(settle)
                self._settling = None
                self._engine.on_settled(settle, now=self._clock.now())
                await self._tell()
                self._kick()
            for waiter in waiters:
                # A stop ends whoever hands over, and the waiter with it.
                if not waiter.done():
                    waiter.set_result(None)
            spent = self._clock.monotonic() - started
            pace_s = settle_pace_s(0 if settle is None else len(settle.shards))
            if spent < pace_s and self._engine.pending_attempts < SETTLE_ROWS:
                await asyncio.sleep(pace_s - spent)

    async def _commit(self, settle: Settle, *, tried: int = 0) -> None:
        """Write the settle, however long the store is away; parts of lost shards are dropped.

        ``tried`` is how often it was begun before, with an unknown end.
        """
        wait_s = STORE_RETRY_S
        began = self._clock.monotonic()
        while parts := self._ours(settle.shards):
            tried += 1
            try:
                if tried > 1 and await self._store.settled(parts[0]):
                    break
                await self._store.settle(parts)
                break
            except FenceLost as lost:
                self._lose(lost.shards, "another worker owns them")
            except DataRejected as error:
                telemetry.log("settle_failed", reason=error)
                await self._commit_by_row(parts)
                break
            except StoreUnavailable as error:
                telemetry.count("settle_failures")
                if tried == 1:
                    telemetry.log("settle_failed", reason=error)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, STORE_RETRY_S_MAX)
        now = self._clock.monotonic()
        self._reports.settled(parts, seconds=now - began, now=now)
        if tried > 1:
            telemetry.log("settle_retried", attempt=tried)

    async def _commit_by_row(self, parts: list[ShardSettle]) -> None:
        cut = await self._persist(partial(self._store.settle_by_row, parts))
        telemetry.count("settle_rows_isolated", cut)

    def _ours(self, parts: Iterable[ShardSettle]) -> list[ShardSettle]:
        return [part for part in parts if self._fences.get(part.shard) == part.fence]

    async def _tell(self) -> None:
        """Share what receivers asked for, and how they are; the next outcome says it again if this is lost."""
        holds, gone = self._engine.take_holds(), self._engine.take_gone()
        await self._tell_breakers()
        try:
            for hold in holds:
                await self._store.hold_endpoint(hold.endpoint_id, hold.until)
            for endpoint in gone:
                if await self._store.disable_endpoint(endpoint.tenant_id, endpoint.endpoint_id, endpoint.reason):
                    endpoint_id = show_id("ep", endpoint.endpoint_id)
                    telemetry.log("endpoint_disabled", endpoint_id=endpoint_id, reason=endpoint.reason)
        except StoreUnavailable as error:
            self._note_store(error)
        if gone:
            self._refresh_due = 0.0
            self._config_wanted.set()

    async def _tell_breakers(self) -> None:
        records = self._engine.take_breakers()
        if not records:
            return
        try:
            await self._store.save_breakers(records)
        except StoreUnavailable as error:
            self._note_store(error)
            self._engine.tell_again(records)
            return
        self._engine.on_told(records)
        for record in records:
            telemetry.log("breaker_changed", origin=record.origin, state=record.state, failures=record.failures)

    def _probe(self, asked: Mapping[Receiver, float | None]) -> None:
        """Ask for the right to probe these receivers."""
        assert self._tasks is not None
        self._tasks.create_task(self._ask_for_probes(asked))

    async def _ask_for_probes(self, asked: Mapping[Receiver, float | None]) -> None:
        try:
            probes = await self._store.take_probes(self._node_id, list(asked), probe_s=PROBE_S)
        except StoreUnavailable as error:
            self._note_store(error)
            await asyncio.sleep(STORE_RETRY_S_MAX)
            self._engine.ask_again(asked)
        else:
            self._engine.on_probes(probes, asked, now=self._clock.now())
        self._kick()

    async def _hear_health(self) -> None:
        """Endpoints of a spread tenant are delivered to by several workers: a run of failures is ended by the success
        of any of them, and goes on with the failure of any. What is not written down yet is later than what is."""
        began, now, since = await self._look(self._health_looks)
        if self._unheard_after is not None:
            since = min(since, self._unheard_after)
        changed, self._unheard_after = await self._store.health_changes(since, limit=HEALTH_HEARD)
        self._health_looks.looked(began, now)
        self._health.update(self._engine.take_health())
        self._engine.hear_health({e: health for e, health in changed.items() if e not in self._health})

    async def _write_health(self) -> None:
        """Write down how endpoints do, the longest unwritten first; what is not written now is the next time."""
        self._health.update(self._engine.take_health())
        if some := dict(islice(self._health.items(), HEALTH_BATCH)):
            await self._store.write_health(some)
            self._health = {e: health for e, health in self._health.items() if some.get(e) is not health}

    # ---- configuration --------------------------------------------------------------------------------------------

    async def _config_loop(self) -> None:
        """What is missing is loaded at once; what has changed is looked for now and then, however much is missing."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._config_wanted.wait(), max(0.0, self._refresh_due - self._loop.time()))
            self._config_wanted.clear()
            # Also where no settle tells of it: nothing may be left to settle, or the store not take it. And what was
            # found out before shards were lost and came back is among what is loaded.
            await self._tell_breakers()
            try:
                async with self._configuring:
                    await self._load_missing()
                if self._loop.time() < self._refresh_due:
                    continue
                self._refresh_due = self._loop.time() + CONFIG_S
                await self._store.lift_barriers()
                await self._refresh()
                await self._heed_pause()
                if self._clock.monotonic() >= self._health_due:
                    self._health_due = self._clock.monotonic() + HEALTH_S
                    await self._hear_health()
                    await self._write_health()
            except StoreUnavailable as error:
                self._note_store(error)
                await asyncio.sleep(STORE_RETRY_S_MAX)

    async def _heed_pause(self) -> None:
        """Stop or go on, as the operator says for the whole platform."""
        paused = await self._store.is_paused()
        if paused is not self._paused:
            self._paused = paused
            telemetry.log("sending_paused" if paused else "sending_resumed")
            self._kick()

    async def _load_missing(self) -> None:
        while missing := dict(islice(self._engine.missing.items(), CONFIG_BATCH)):
            tenants = await self._store.load_tenants(set(missing.values()))
            endpoints = await self._store.load_endpoints(missing.keys())
            found = {endpoint.endpoint_id for endpoint in endpoints}
            # Endpoints are never removed, only buried: one that cannot be found was removed by hand.
            endpoints += [
                Endpoint(endpoint_id, tenant_id, "", EndpointStatus.DISABLED, deleted=True)
                for endpoint_id, tenant_id in missing.items()
                if endpoint_id not in found
            ]
            breakers = await self._store.load_breakers(set(missing.values()), since=None)
            now = self._clock.now()
            self._engine.configure(tenants, endpoints, now=now)
            self._engine.adopt_breakers(breakers, now=now)
            self._kick()

    async def _look(self, last: Looks) -> tuple[float, float, float]:
        """When a look begins, by our own clock and the database's, and from when on it is to look, by the latter."""
        began, now = self._clock.monotonic(), await self._store.ping()
        return began, now, last.since(self._clock.monotonic()).by(now)

    async def _refresh(self) -> None:
        """Take over what was changed since the last look."""
        async with self._configuring:
            began, now, since = await self._look(self._looks)
            changed = await self._store.changed_tenants(since)
            known = self._engine.known_tenants
            if tenants := {t for t, at in changed.items() if t in known and self._refreshed.get(t) != at}:
                endpoints = await self._store.changed_endpoints(tenants, since)
                fresh = [e for e, at in endpoints.items() if self._refreshed.get(e) != at]
                await self._reload(tenants, self._engine.known_among(fresh), since)
                changed.update(endpoints)
            self._refreshed = changed
            self._looks.looked(began, now)

    async def _reload(self, tenant_ids: Collection[UUID], endpoint_ids: Sequence[UUID], since: float) -> None:
        self._engine.configure(await self._store.load_tenants(tenant_ids), (), now=self._clock.now())
        for start in range(0, len(endpoint_ids), CONFIG_BATCH):
            endpoints = await self._store.load_endpoints(endpoint_ids[start : start + CONFIG_BATCH])
            self._engine.configure((), endpoints, now=self._clock.now())
        breakers = await self._store.load_breakers(tenant_ids, since=since)
        self._engine.adopt_breakers(breakers, now=self._clock.now())
        telemetry.log("config_refreshed", tenants=len(tenant_ids))
        self._kick()
