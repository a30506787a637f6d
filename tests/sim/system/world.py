"""One world: processes, a database, receivers, producers, an operator and trouble, all of it from one seed.

``live(seed)`` goes through chaos and then heals: all that is owed must come to its end within bounded virtual time.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any
from unittest.mock import patch
from uuid import UUID

from hookpost import alerts, maintenance, telemetry
from hookpost.engine import backlog
from hookpost.engine.limits import Limits, Policies
from hookpost.ingest import Ingest, Overloaded, RateLimited, UnknownTenant
from hookpost.intake import Answer, Submission
from hookpost.model import RetryPolicy, Timeouts
from hookpost.policy import alerts as alerts_policy
from hookpost.policy.breaker import BreakerPolicy
from hookpost.policy.budget import BudgetPolicy
from hookpost.policy.health import HealthPolicy
from hookpost.storage.contract import Appended, Conflict, ControlAction, NotFound, ReplayFilter, StoreUnavailable, Unfit
from hookpost.worker import WorkerSettings
from tests.sim.system.loop import Loop
from tests.sim.system.network import MOODS, Network, Receiver
from tests.sim.system.nodes import ApiProcess, Ids, Process, WorkerProcess
from tests.sim.system.server import Faults, Server
from tests.sim.system.trace import (
    Accepted,
    Away,
    Began,
    Configured,
    Ended,
    Healed,
    Jumped,
    Killed,
    Moved,
    Paused,
    Posted,
    Refused,
    Started,
    Stopping,
    Trace,
    Violation,
)

EPOCH = 1_800_000_000.0
CHAOS_S = 45.0
# The longest deadline, and what the last ones take.
HEAL_S = 240.0
# Behind that, until the last attempts have been counted.
COUNTED_S = 30.0
LEASE_S, RENEW_S = 6.0, 1.5
# No request takes longer.
LONGEST_S = 3.0
TIMEOUTS = Timeouts(1.0, 2.0, LONGEST_S)
BREAKER = BreakerPolicy(failures=4, pause_s=3.0, pause_max_s=12.0)
HEALTH = HealthPolicy(announce_after=6)
# An alert whose teller died is told again soon, so that the world's end need not be waited for.
DEATHS_TOLD_EVERY_S, ALERT_LEASE_S = 5.0, 10.0
BUDGET, BUDGET_SMALL = BudgetPolicy(floor=120), BudgetPolicy(part=0.05, floor=4)
DEADLINES_S = (20.0, 60.0, 120.0)
# Where days are brief, events and attempts leave while others are still posted. As in app/config, whatever is owed ends
# two days before its event leaves.
DAY_S, BRIEF_DAY_S = 86_400.0, 4.0
KEEP_DAYS, BRIEF_KEEP_DAYS = 30, 7
BRIEF_DEADLINES_S = (8.0, 20.0)
# How often maintenance looks, there, and how long it may take for what is over to have left: a look, one that failed and
# is repeated, and what the clock went back meanwhile.
RETIRE_EVERY_S, RETIRE_S = 3.0, 40.0
# Who is to die in a settle is waited for so long.
SETTLES_WITHIN_S = 4.0
# A producer that has no answer by then goes on.
PATIENCE_S = 2.0
# Shards of all pools, the added ones too.
SHARDS_MAX = 10
TYPES = ("order.paid", "order.sent", "user.new")
FILTERS = (("*",), ("*",), ("order.*",), ("order.paid",))


TROUBLES = ("kill", "kill", "kill settling", "kill api", "pause", "pause", "stop", "away", "jump", "jump wall", "storm")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a world has more of than others. ``ordered``: the part of its endpoints that are; ``slow``: of its calls;
    ``attempts``: how many an endpoint's deliveries have at most; ``back_s``: so far the database's clock is set back when the
    trouble ends; ``brief``: the part of the worlds whose days are."""

    troubles: tuple[str, ...] = TROUBLES
    moods: tuple[str, ...] = MOODS
    ordered: float = 0.35
    on_dead: tuple[str, ...] = ("block", "skip")
    slow: float = 0.004
    attempts: tuple[int | None, ...] = (None,)
    back_s: float = 0.0
    brief: float = 0.4


KINDS = {
    "plain": Kind(),
    # Who dies at the first failure has not arrived: what follows it must not be overtaken by a second try.
    "deaths in order": Kind(
        ("kill settling", "kill settling", "kill", "pause", "stop"),
        ("ok", "deaf", "fickle", "slow"),
        ordered=1.0,
        on_dead=("block", "skip", "skip"),
        slow=0.06,
        attempts=(1, 1, None),
    ),
    # Breakers that are open then are closed by the operator, before the time at which they opened.
    "sick receivers and clocks": Kind(
        ("jump", "jump", "kill", "pause"), ("ok", "500", "refuse", "busy", "lost"), back_s=20.0
    ),
    # Workers that know little of receivers that are down, and hear of what was said by a clock that has been set back.
    "deaths and clocks": Kind(("jump", "kill"), ("ok", "500", "refuse", "lost"), back_s=20.0, brief=0.0),
    "deployments": Kind(("stop", "stop", "stop", "kill api", "jump wall")),
    # Workers that live for long, and receivers that fail too seldom for a breaker: what holds these is the retry budget.
    "half of it fails": Kind(("kill api", "jump wall"), ("ok", "flaky", *("half",) * 6)),
    "a database in trouble": Kind(("away", "away", "storm", "storm", "jump", "pause"), slow=0.02),
}
# Every other world is of the first kind.
KINDS_DRAWN = (*KINDS, *["plain"] * 5)


class World:
    """Everything around the processes. Every choice comes from one Random; ``kind``: or a key of KINDS, drawn if None."""

    def __init__(self, seed: int, kind: Kind | str | None = None) -> None:
        self.rng = rng = Random(seed)
        drawn = rng.choice(KINDS_DRAWN)
        self.kind = kind if isinstance(kind, Kind) else KINDS[kind or drawn]
        self.trace = Trace()
        self.brief = rng.random() < self.kind.brief
        self.day_s, self.keep_days = (BRIEF_DAY_S, BRIEF_KEEP_DAYS) if self.brief else (DAY_S, KEEP_DAYS)
        self.deadlines_s = BRIEF_DEADLINES_S if self.brief else DEADLINES_S
        self.loop = Loop(Random(rng.getrandbits(64)))
        self.server = Server(
            self.loop,
            Random(rng.getrandbits(64)),
            self.trace,
            shards=rng.choice((2, 3, 5)),
            epoch=EPOCH,
            day_s=self.day_s,
            retry=RetryPolicy(base_s=0.5, cap_s=8.0),
            timeouts=TIMEOUTS,
            longest_s=LONGEST_S,
        )
        self.ids = Ids(Random(rng.getrandbits(64)), self.server.clock)
        self.network = Network(self.loop, Random(rng.getrandbits(64)), self.trace)
        self.operator = self.server.operator(self.loop.add("operator"))
        self.roomy = rng.random() < 0.5
        # Where memory is short there is enough to be looked at without a budget that is short, too.
        self.budget = BUDGET_SMALL if self.roomy else BUDGET
        self.trace.add(
            Began(
                0.0, self.budget.part, self.budget.floor, HEALTH.announce_after, DEATHS_TOLD_EVERY_S,
                self.keep_days * self.day_s, self.day_s, RETIRE_S,
            )
        )  # fmt: skip
        self.chaos = True
        self.tenants: list[UUID] = []
        self.endpoints: dict[UUID, dict[str, Any]] = {}
        self.events: list[tuple[UUID, UUID]] = []
        self.names = 0
        self.posts = 0
        self.workers: list[WorkerProcess] = []
        self.apis: list[ApiProcess] = []

    # ---- life -------------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """All of it."""
        await self._furnish()
        rng = self.rng
        for pool in rng.choice((("default", "default", "other"), ("default", "default", "default", "other"))):
            self._start_worker(pool)
        for _ in range(2):
            self._start_api()
        self.server.faults = Faults(before=0.01, after=0.01, slow=self.kind.slow)
        actors = [
            *(self.loop.spawn(self.loop.world, self._produce()) for _ in range(2)),
            self.loop.spawn(self.loop.world, self._again(self._trouble, 0.5, 4.0)),
            self.loop.spawn(self.loop.world, self._again(self._mood, 0.3, 4.0)),
            self.loop.spawn(self.loop.world, self._again(self._operate, 0.3, 4.0)),
        ]
        await asyncio.sleep(CHAOS_S)
        self.chaos = False
        await asyncio.wait(actors)
        for actor in actors:
            actor.result()
        await self._heal()

    def _start_worker(self, pool: str) -> None:
        rng = self.rng
        limits = (
            Limits()
            if self.roomy
            else Limits(
                in_flight=rng.choice((4, 50)),
                buffer=rng.choice((8, 60)),
                fragments=rng.choice((4, 512)),
                parked=rng.choice((2, 2000)),
            )
        )
        settings = WorkerSettings(
            pool=pool,
            lease_s=LEASE_S,
            renew_s=RENEW_S,
            stop_s=8.0,
            longest_s=LONGEST_S,
            limits=limits,
            policies=Policies(breaker=BREAKER, budget=self.budget, health=HEALTH),
        )
        self.names += 1
        name = f"worker-{self.names}"
        worker = WorkerProcess(self.loop, self.server, self.network, name, rng, self.ids, settings, self.keep_days)
        self._started(worker, self.workers)

    def _start_api(self) -> None:
        self.names += 1
        self._started(ApiProcess(self.loop, self.server, f"api-{self.names}", self.rng, self.workers), self.apis)

    def _started(self, process: Any, among: list[Any]) -> None:
        among.append(process)
        self.trace.add(Started(self.loop.time(), process.node.name))

    async def _again(self, act: Callable[[], Any], least_s: float, most_s: float) -> None:
        while self.chaos:
            await asyncio.sleep(self.rng.uniform(least_s, most_s))
            if self.chaos:
                await act()

    # ---- the cast ---------------------------------------------------------------------------------------------------

    async def _furnish(self) -> None:
        for _ in range(self.rng.choice((1, 2, 3, 4))):
            tenant_id = self.ids.uuid7()
            spread = self.rng.choice((None, 1, 2))
            values = {"name": "t", "spread": spread, "max_in_flight": self.rng.choice((4, 512, 512))}
            await self.operator.create_tenant(tenant_id, values)
            self.tenants.append(tenant_id)
            for _ in range(self.rng.choice((1, 2, 3))):
                await self._create(tenant_id)

    async def _create(self, tenant_id: UUID, **fixed: Any) -> None:
        rng, endpoint_id = self.rng, self.ids.uuid7()
        host = rng.choice(("a", "b"))
        ordered = rng.random() < self.kind.ordered
        values: dict[str, Any] = {
            "endpoint_id": endpoint_id,
            "tenant_id": tenant_id,
            "url": f"https://{host}.example/{endpoint_id.hex}",
            "events": rng.choice(FILTERS),
            "ordered": ordered,
            "on_dead": rng.choice(self.kind.on_dead) if ordered else None,
            "rate_limit": rng.choice((None, None, 2.0, 10.0)),
            "max_in_flight": rng.choice((1, 3, 64, 64)),
            "deadline_s": rng.choice(self.deadlines_s),
            "max_attempts": rng.choice(self.kind.attempts),
            **fixed,
        }
        self.network.receivers[values["url"]] = Receiver(endpoint_id)
        await self._configure(lambda: self.operator.create_endpoint(values, b"k" * 24, endpoints_max=99))

    async def _configure(
        self, change: Callable[[], Any], *, deleted: bool = False, endpoint_id: UUID | None = None
    ) -> None:
        """A change of an endpoint, with what is true when it is acknowledged."""
        asked_at = self.loop.time()
        try:
            row = await change()
        except (Conflict, NotFound):
            return
        if deleted:
            assert endpoint_id is not None
            row = {**self.endpoints.pop(endpoint_id)}
        else:
            self.endpoints[row["endpoint_id"]] = row
        self.trace.add(
            Configured(
                self.loop.time(), asked_at, row["tenant_id"], row["endpoint_id"], row["url"], tuple(row["events"]),
                row["status"], row["ordered"], row["on_dead"] or "block", row["rate_limit"], row["max_in_flight"],
                row["deadline_s"], deleted,
            )
        )  # fmt: skip

    # ---- producers --------------------------------------------------------------------------------------------------

    async def _produce(self) -> None:
        rng = self.rng
        again: list[tuple[UUID, Submission]] = []
        while self.chaos:
            await asyncio.sleep(rng.expovariate(3.5))
            if again and rng.random() < 0.15:
                tenant_id, submission = rng.choice(again)
                if rng.random() < 0.2:
                    submission = Submission(submission.type, b'{"other":1}', key=submission.key)
                await self._post(tenant_id, submission)
                continue
            if rng.random() < 0.1:
                # All at once, so that appends have events for several shards.
                burst = [
                    (tenant_id, self._submission()) for tenant_id in rng.choices(self.tenants, k=rng.randrange(4, 13))
                ]
                await asyncio.gather(*(self._post(*each) for each in burst))
                again += [each for each in burst if each[1].key is not None]
                continue
            tenant_id = rng.choice(self.tenants)
            for _ in range(rng.choice((1, 1, 2, 6))):
                submission = self._submission()
                if submission.key is not None:
                    again.append((tenant_id, submission))
                await self._post(tenant_id, submission)

    def _submission(self) -> Submission:
        """One that nobody has posted before."""
        self.posts += 1
        key = f"k{self.posts}" if self.rng.random() < 0.5 else None
        return Submission(self.rng.choice(TYPES), b'{"n":%d}' % self.posts, key=key)

    async def _post(self, tenant_id: UUID, submission: Submission) -> None:
        """Post it, to whichever process; a producer with a key tries again until it has an answer."""
        for _ in range(4 if submission.key is not None else 1):
            api = self.rng.choice(self.apis)
            if api.ingest is None:
                await asyncio.sleep(0.1)
                continue
            if await self._post_once(api, tenant_id, submission):
                return
            await asyncio.sleep(self.rng.random() * 0.5)

    async def _post_once(self, api: ApiProcess, tenant_id: UUID, submission: Submission) -> bool:
        assert api.ingest is not None
        self.posts += 1
        post = self.posts
        self.trace.add(Posted(self.loop.time(), post, tenant_id, submission.type, submission.payload, submission.key))
        task = self.loop.spawn(api.node, _answer(api.ingest, tenant_id, submission))
        await asyncio.wait([task], timeout=PATIENCE_S)
        if not task.done():
            return False
        answer = task.result()
        if not isinstance(answer, Appended):
            self.trace.add(Refused(self.loop.time(), post, type(answer).__name__))
            return False
        self.events.append((tenant_id, answer.event_id))
        self.trace.add(
            Accepted(self.loop.time(), post, answer.event_id, answer.verdict.name.lower(), answer.delivery_count)
        )
        return True

    # ---- the operator -----------------------------------------------------------------------------------------------

    async def _operate(self) -> None:
        rng, tenant_id = self.rng, self.rng.choice(self.tenants)
        owned = [e for e, row in self.endpoints.items() if row["tenant_id"] == tenant_id]
        match rng.choice(
            (
                "create",
                "filter",
                "filter",
                "status",
                "status",
                "cap",
                "delete",
                "move",
                "spread",
                "grow",
                "grow",
                "drain",
                "drain",
                "undrain",
                "replay",
                "bulk",
                "control",
                "control",
            )
        ):
            case "create" if len(owned) < 5:
                await self._create(tenant_id)
            case "filter" if owned:
                await self._update(rng.choice(owned), events=rng.choice(FILTERS))
            case "status" if owned:
                await self._update(rng.choice(owned), status=rng.choice(("enabled", "enabled", "paused")))
            case "cap" if owned:
                await self._update(rng.choice(owned), max_in_flight=rng.choice((1, 3, 64)))
            case "delete" if len(owned) > 1 and rng.random() < 0.5:
                gone = rng.choice(owned)
                await self._configure(
                    lambda: self.operator.delete_endpoint(tenant_id, gone), deleted=True, endpoint_id=gone
                )
            case "move":
                await self._move(tenant_id, pool=rng.choice(("default", "other")), spread=1)
            case "spread":
                await self._move(tenant_id, spread=rng.choice((None, 1, 2)))
            case "grow" if len(self.server.database.shards) < SHARDS_MAX:
                await self._grow(tenant_id)
            case "drain":
                await self._drain(rng.choice(list(self.server.database.shards)))
            case "undrain" if drained := [s.shard for s in self.server.database.shards.values() if s.draining]:
                with suppress(Conflict):
                    await self.operator.undrain(rng.choice(drained))
            case "replay" | "control" as what if self.events:
                # Where days are brief, also of what is about to leave, or has left.
                await self._single(what, *rng.choice(self.events if self.brief else self.events[-60:]))
            case "bulk":
                wanted = ReplayFilter(status=rng.choice(("dead", "delivered", "any")))
                if wanted.status == "dead" or rng.random() < 0.3:
                    await self.operator.create_replay(
                        tenant_id, self.ids.uuid7(), wanted, rate_limit=rng.choice((5.0, 50.0)), running_max=99
                    )
            case _:
                pass

    async def _update(self, endpoint_id: UUID, **changes: Any) -> None:
        tenant_id = self.endpoints[endpoint_id]["tenant_id"]
        await self._configure(lambda: self.operator.update_endpoint(tenant_id, endpoint_id, changes))

    async def _move(self, tenant_id: UUID, **changes: Any) -> None:
        try:
            row = await self.operator.update_tenant(tenant_id, changes)
        except (Unfit, Conflict):
            return
        self.trace.add(Moved(self.loop.time(), tenant_id, tuple(row["home_shards"])))

    async def _grow(self, tenant_id: UUID) -> None:
        """One shard more, and a tenant that spreads over all of its pool, or moves there from another one. The first
        shard of the other pool is one of these: everything there lies in shards that were added."""
        row = await self.operator.get_tenant(tenant_id)
        shards = {each["name"]: each["shards"] for each in await self.operator.list_pools()}
        pool = self.rng.choice(("default", "other")) if "other" in shards else "other"
        more = shards.get(pool, 0) + 1
        await self.operator.grow_pool(pool, more, shards_max=99)
        await self._move(tenant_id, pool=pool, spread=more if pool == row["pool"] else 1)

    async def _drain(self, shard: int) -> None:
        """Its tenants leave it, as far as they can."""
        before = {tenant_id: (await self.operator.get_tenant(tenant_id))["home_shards"] for tenant_id in self.tenants}
        try:
            await self.operator.drain(shard)
        except Unfit:
            return
        for tenant_id in self.tenants:
            homes = (await self.operator.get_tenant(tenant_id))["home_shards"]
            if homes != before[tenant_id]:
                self.trace.add(Moved(self.loop.time(), tenant_id, tuple(homes)))

    async def _single(self, what: str, tenant_id: UUID, event_id: UUID) -> None:
        try:
            if what == "replay":
                await self.operator.append_replay(tenant_id, event_id, None)
                if self.rng.random() < 0.3:
                    await self.operator.append_replay(tenant_id, event_id, None)
            else:
                action = self.rng.choice(tuple(ControlAction))
                await self.operator.append_control(tenant_id, event_id, None, action)
        except NotFound:
            return

    # ---- trouble ----------------------------------------------------------------------------------------------------

    async def _mood(self) -> None:
        self.rng.choice(list(self.network.receivers.values())).mood = self.rng.choice(self.kind.moods)

    async def _trouble(self) -> None:
        rng, now = self.rng, self.loop.time()
        if not self.workers:
            return
        match rng.choice(self.kind.troubles):
            case "kill":
                self._kill_worker(rng.choice(self.workers))
            case "kill settling":
                await self._kill_settling()
            case "kill api" if len(self.apis) > 1:
                self._kill(rng.choice(self.apis), self.apis)
                self._start_api()
            case "pause":  # Stopped, suspended, or its loop stands still (F3, F30, F37).
                process: Process = rng.choice([*self.workers, *self.workers, *self.apis])
                seconds = rng.choice((0.3, 2.0, LEASE_S + 1, 3 * LEASE_S))
                self.loop.pause(process.node, seconds)
                self.trace.add(Paused(now, process.node.name, seconds))
            case "stop":
                worker = rng.choice(self.workers)
                await self._stop(worker)
                self._start_worker(worker.pool)
            case "away":
                seconds = rng.choice((0.5, 3.0, LEASE_S + 2))
                self.server.away_until = now + seconds
                self.server.database.started_at = self.server.clock() + seconds
                self.trace.add(Away(now, seconds))
            case "jump":
                self._set_clock(rng.choice((-20.0, -2.0, 1.0, 2.0)))
            case "jump wall":
                process = rng.choice([*self.workers, *self.apis])
                by_s = rng.choice((-3600.0, 3600.0, -365 * 86_400.0))
                process.wall_offset_s += by_s
                self.trace.add(Jumped(now, process.node.name, by_s))
            case "storm":  # Deadlocks, lock timeouts, lost answers (F9).
                kept, self.server.faults = self.server.faults, Faults(before=0.1, after=0.1, slow=0.05)
                await asyncio.sleep(rng.uniform(0.5, 4.0))
                self.server.faults = kept
            case _:
                pass

    def _kill_worker(self, worker: WorkerProcess) -> None:
        self._kill(worker, self.workers)
        # Never all of a pool for long: what waits for its owner is not what is looked at here.
        self.loop.after(self.rng.uniform(0.0, 8.0), self.loop.world, self._start_worker, worker.pool)

    async def _kill_settling(self) -> None:
        """A worker dies as it writes down what it alone knows."""
        asked = self.server.next_settle(with_deaths=self.rng.random() < 0.7)
        await asyncio.wait([asked], timeout=SETTLES_WITHIN_S)
        for worker in [worker for worker in self.workers if asked.done() and worker.node is asked.result()]:
            self._kill_worker(worker)

    def _set_clock(self, by_s: float) -> None:
        self.server.offset_s += by_s
        self.trace.add(Jumped(self.loop.time(), "database", by_s))

    def _kill(self, process: Any, among: list[Any]) -> None:
        if process.task.done():
            process.task.result()  # it had ended: in order, or of a fault of its own
        else:
            self.trace.add(Killed(self.loop.time(), process.node.name))
        among.remove(process)
        self.loop.kill(process.node)
        process.store.hang_up()

    async def _stop(self, worker: WorkerProcess) -> None:
        """In order; whoever does not end in time is killed, as by a supervisor."""
        self.trace.add(Stopping(self.loop.time(), worker.node.name))
        worker.stop.set()
        assert worker.task is not None
        await asyncio.wait([worker.task], timeout=15.0)
        self._kill(worker, self.workers)

    # ---- the end ----------------------------------------------------------------------------------------------------

    async def _heal(self) -> None:
        """Trouble stops, receivers are well, nothing is paused: everything is to come to its end, in bounded time."""
        self.server.faults = Faults()
        await asyncio.sleep(max(0.0, self.server.away_until - self.loop.time()))
        for receiver in self.network.receivers.values():
            receiver.mood = "ok"
        if self.kind.back_s:
            self._set_clock(-self.kind.back_s)
        for endpoint_id in list(self.endpoints):
            await self._update(endpoint_id, status="enabled", on_dead="skip", rate_limit=None)
        for pool in ("default", "other"):
            if not any(worker.pool == pool for worker in self.workers):
                self._start_worker(pool)
        self.trace.add(Healed(self.loop.time()))
        until = self.loop.time() + HEAL_S
        while not self._drained() and self.loop.time() < until:
            await asyncio.sleep(1.0)
        await asyncio.sleep(LONGEST_S + 1.0)
        # Replays at a low rate may have gone on until now.
        while not self._all_counted() and self.loop.time() < until + COUNTED_S:
            await asyncio.sleep(1.0)
        if self.brief:
            await asyncio.sleep((self.keep_days + 1) * self.day_s + RETIRE_S)
        for worker in list(self.workers):
            await self._stop(worker)
        backlog, depth = self._left()
        stored = sum(map(len, self.server.database.attempts.values()))
        self.trace.add(Ended(self.loop.time(), backlog, depth, stored, self._metered()))

    def _metered(self) -> tuple[tuple[UUID, int, int], ...]:
        """Events and attempts of each tenant, of all days."""
        events: Counter[UUID] = Counter()
        attempts: Counter[UUID] = Counter()
        for (_, tenant_id), metered in self.server.database.metering.items():
            events[tenant_id] += metered.accepted
            attempts[tenant_id] += metered.attempts
        return tuple((tenant_id, events[tenant_id], attempts[tenant_id]) for tenant_id in events)

    def _left(self) -> tuple[int, int]:
        db = self.server.database
        return sum(map(len, db.backlog.values())), sum(shard.depth for shard in db.shards.values())

    def _drained(self) -> bool:
        jobs = self.server.database.replays.values()
        ended = self._left() == (0, 0) and all(job["state"] != "running" for job in jobs)
        return ended and self._all_told() and self._all_counted()

    def _all_counted(self) -> bool:
        db = self.server.database
        return all(
            shard.last is None
            or (
                (marks := db.marks.get(shard.shard)) is not None
                and (marks.settle_no, marks.seq) == (shard.last.settle_no, shard.journal.last_seq)
            )
            for shard in db.shards.values()
        )

    def _all_told(self) -> bool:
        db = self.server.database
        return not db.outbox and not db.alerts and not any(s.deaths for e, s in db.standings.items() if db.exists(e))


async def _answer(ingest: Ingest, tenant_id: UUID, submission: Submission) -> Answer | Exception:
    """What a producer hears of one event."""
    try:
        return (await ingest.submit(tenant_id, [submission]))[0]
    except (StoreUnavailable, Overloaded, RateLimited, UnknownTenant) as error:
        return error


def live(seed: int, kind: str | None = None) -> Trace:
    """Live through one seed, in a world of this kind or of the one that is drawn; what happened. Raises whatever a process
    dies of."""
    errors = telemetry.counters["internal_errors"]
    trace = live_in(World(seed, kind))
    if telemetry.counters["internal_errors"] != errors:
        raise Violation("a process met an error that it did not expect, and went on")
    return trace


def live_in(world: World) -> Trace:
    """Live through this world, once."""
    loop = world.loop
    logging.disable(logging.CRITICAL)
    gc.disable()
    fetch_max = world.rng.choice((2, 8, 64))
    try:
        with (
            world.ids.everywhere(),
            patch.object(backlog, "FETCH_MAX", fetch_max),
            patch.object(alerts, "LEASE_S", ALERT_LEASE_S),
            patch.object(alerts_policy, "EVERY_S", DEATHS_TOLD_EVERY_S),
            patch.object(maintenance, "EVERY_S", RETIRE_EVERY_S if world.brief else maintenance.EVERY_S),
            patch.object(maintenance, "AGAIN_S", RETIRE_EVERY_S if world.brief else maintenance.AGAIN_S),
        ):
            loop.run_until_complete(loop.spawn(loop.world, world.live()))
        if loop.failures:
            raise loop.failures[0]
    finally:
        loop.discard()
        gc.enable()
        logging.disable(logging.NOTSET)
    return world.trace
