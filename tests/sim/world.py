"""One world: a few workers' engines, a store, receivers and trouble, all of it from one seed.

``simulate(seed)`` lives through rounds of chaos (crashes, lost leases, late reads and commits, changed configuration),
calm, and healing: after each round everything that is owed must end within bounded virtual time.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from unittest.mock import patch
from uuid import UUID

from hookpost.engine import backlog, roster
from hookpost.engine.engine import Engine
from hookpost.engine.limits import Limits, Policies
from hookpost.engine.progress import GapError
from hookpost.engine.turns import SCARCE_PART
from hookpost.engine.work import CANCEL, HELD, PROBE, RETRY_NOW, Fetch, JournalRow, Kind, Settle, ShardSettle, Work
from hookpost.model import (
    HEALTHY,
    Endpoint,
    EndpointStatus,
    ErrorCode,
    Health,
    OnDead,
    OperationalType,
    Outcome,
    RetryPolicy,
    Tenant,
)
from hookpost.policy.breaker import BreakerPolicy, BreakerState, Verdict, verdict
from hookpost.policy.budget import BudgetPolicy
from hookpost.policy.egress import origin_of
from hookpost.policy.health import HealthPolicy
from hookpost.policy.routing import cap_share, is_pinned
from tests.engine.model import Ledger, Owner, Store, Violation, check, column

START = 1_800_000_000.0
ROUNDS = 3
CHAOS_STEPS = 500
CALM_STEPS = 150
# Longest deadline, plus what the last attempts and commits may take.
HEAL_S = 700.0
# A world that needs more turns than this to heal is busy with nothing.
HEAL_TURNS_MAX = 60_000
OUTCOME_S_MAX = 15.0
BREAKER = BreakerPolicy(failures=5, pause_s=10.0, pause_max_s=40.0)
# Endpoints are alerted about and disabled within a world's time.
HEALTH = HealthPolicy(announce_after=3, disable_after_s=120.0)
IDLE_S, IDLE_LOOK_S, IDLE_LOOK_LANES = 3.0, 0.2, 2


@contextmanager
def small_fetches(limit: int) -> Iterator[None]:
    """Backlog reads of a few rows, so that a few rows make many reads; and lanes that are soon forgotten."""
    soon = {"IDLE_S": IDLE_S, "IDLE_LOOK_S": IDLE_LOOK_S, "IDLE_LOOK_LANES": IDLE_LOOK_LANES}
    with patch.object(backlog, "FETCH_MAX", limit), patch.multiple(roster, **soon):
        yield


@dataclass(slots=True)
class Settling:
    """A settle on its way; the worker takes no other before it is acknowledged."""

    settle: Settle
    committed: bool = False


@dataclass(slots=True)
class Worker:
    """One worker process: its engine and what it was told."""

    number: int
    engine: Engine
    limits: Limits
    owners: dict[int, Owner] = field(default_factory=dict)
    endpoints: dict[UUID, Endpoint] = field(default_factory=dict)
    tenants: dict[UUID, Tenant] = field(default_factory=dict)
    holds: dict[UUID, float] = field(default_factory=dict)
    sick: dict[tuple[UUID, str], int] = field(default_factory=dict)
    in_flight: dict[UUID, Work] = field(default_factory=dict)
    settling: Settling | None = None
    frozen_until: float = 0.0
    alive: bool = True


class World:
    """Everything around the engines. Every choice comes from one Random."""

    heal_s = HEAL_S

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = START
        self.ids = 0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.event_no = 0
        self.digest = hashlib.blake2b(digest_size=8)
        self.chaos = True
        self.changed_at = START
        self.receivers: dict[UUID, str] = {}
        self.tenants: dict[UUID, Tenant] = {}
        self.endpoints: dict[UUID, Endpoint] = {}
        self.health: dict[UUID, Health] = {}
        # Where memory is never short, lanes are never read anew from their beginning: nothing heals by chance.
        self.roomy = self.rng.random() < 0.4
        shards = self.rng.choice((1, 2, 3, 4))
        self.store = Store(shards)
        self.ledger = Ledger(self.store, self.endpoints)
        self.sends = 0
        for _ in range(self.rng.randint(1, 3)):
            self._add_tenant()
        self.workers = [self._worker(number) for number in range(self.rng.choice((1, 2, 2, 3)))]

    # ---- the cast -------------------------------------------------------------------------------------------------

    def new_id(self) -> UUID:
        self.ids += 1
        return UUID(int=(0x7000 << 64) | (0x8 << 60) | self.ids * 0x9E3779B97F4A7C15 % 2**60)

    def trace(self, *what: object) -> None:
        self.digest.update(repr((round(self.now, 6), *what)).encode())

    def _add_tenant(self) -> None:
        rng = self.rng
        home = list(self.store.shards)
        rng.shuffle(home)
        home = home[: rng.randint(1, len(home))]
        tenant = Tenant(self.new_id(), tuple(home), max_in_flight=rng.choice((2, 5, 12, 512)))
        self.tenants[tenant.tenant_id] = tenant
        for _ in range(rng.randint(1, 5)):
            policy = RetryPolicy(
                base_s=rng.choice((0.5, 1.0, 5.0)),
                cap_s=rng.choice((10.0, 40.0)),
                max_attempts=rng.choice((2, 5, 50, 50)),
                deadline_s=rng.choice((60.0, 200.0, 400.0)),
            )
            cap = rng.choice((1, 1, 2, 4, 64))
            endpoint = Endpoint(
                self.new_id(),
                tenant.tenant_id,
                rng.choice(("https://a.example/", "https://b.example/")),
                retry=policy,
                max_in_flight=cap,
                ordered=rng.random() < 0.25,
                on_dead=rng.choice(tuple(OnDead)),
                rate_limit=rng.choice((None, None, None, 0.5, 3.0, 50.0)),
            )
            self.endpoints[endpoint.endpoint_id] = endpoint
            self.receivers[endpoint.endpoint_id] = "ok"

    def _worker(self, number: int) -> Worker:
        rng = self.rng
        limits = (
            Limits()
            if self.roomy
            else Limits(
                in_flight=rng.choice((2, 8, 1000)),
                in_flight_bytes=rng.choice((60, 100_000)),
                buffer=rng.choice((3, 8, 40, 1000)),
                buffer_bytes=rng.choice((100, 1000, 100_000)),
                fragments=rng.choice((2, 8, 512)),
                parked=rng.choice((1, 3, 2000)),
            )
        )
        policies = Policies(BREAKER, BudgetPolicy(floor=rng.choice((5, 60, 600))), HEALTH)
        engine = Engine(worker=f"w{number}", limits=limits, rng=Random(rng.random()), policies=policies)
        return Worker(number, engine, limits)

    # ---- time -----------------------------------------------------------------------------------------------------

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        self.event_no += 1
        heapq.heappush(self.events, (self.now + delay_s, self.event_no, action))

    def advance(self, moment: float) -> None:
        """Let time go on to this moment, with all that happens until then."""
        while self.events and self.events[0][0] <= moment:
            when, _, action = heapq.heappop(self.events)
            self.now = max(self.now, when)
            action()
        self.now = max(self.now, moment)

    def brief(self) -> float:
        """How long something takes that is over soon: sometimes no time at all."""
        rng = self.rng
        return rng.choice((0.0, 0.001, rng.random() * 0.02, rng.random() * (3.0 if self.chaos else 0.3)))

    # ---- producers ------------------------------------------------------------------------------------------------

    def append(self) -> None:
        """Some events, or a replay of an old one."""
        rng = self.rng
        tenant = rng.choice(list(self.tenants.values()))
        for _ in range(rng.choice((1, 1, 3, 15))):
            owned = [e for e in self.endpoints.values() if e.tenant_id == tenant.tenant_id]
            owed = [e.endpoint_id for e in rng.sample(owned, rng.randint(0, len(owned)))]
            event_id = self.new_id()
            caps = [tenant.max_in_flight, *(self.endpoints[e].max_in_flight for e in owed)]
            pinned = any(is_pinned(cap, tenant.home_shards) for cap in caps)
            pinned |= any(self.endpoints[e].ordered or self.endpoints[e].rate_limit for e in owed)
            shard = tenant.home_shards[0 if pinned else rng.randrange(len(tenant.home_shards))]
            kind, generation, type_ = 0, 0, "order.paid"
            payload: bytes | None = bytes(rng.choice((0, 10, 30)))
            journal = self.store.journal[shard]
            if rng.random() < 0.1 and journal:
                old = rng.choice(journal)
                same = [
                    r.generation for rows in self.store.journal.values() for r in rows if r.event_id == old.event_id
                ]
                kind, generation, event_id, payload = 1, max(same) + 1, old.event_id, old.payload
                tenant = self.tenants[old.tenant_id]
                owed = [e for e in old.owed if rng.random() < 0.8]
            elif rng.random() < 0.03:
                kind, owed = 2, []
            elif rng.random() < 0.1 and journal:
                old = rng.choice(journal[-40:])
                kind, event_id, type_, payload = 2, old.event_id, rng.choice((CANCEL, RETRY_NOW)), None
                tenant = self.tenants[old.tenant_id]
                owed = [e for e in old.owed if rng.random() < 0.8]
            if rng.random() < 0.03:
                payload = None
            moment = round(self.now - rng.choice((0, 0, 0.001, 1.0)), 6)
            created_at = max(moment, journal[-1].created_at if journal else 0.0)
            day = int(created_at // 86400)
            seq, of = len(journal) + 1, tenant.tenant_id
            row = JournalRow(shard, seq, day, kind, event_id, of, type_, payload, owed, generation, created_at)
            journal.append(row)
            self.ledger.appended(row)
            self.trace("append", shard, row.seq, kind, len(owed))

    # ---- receivers ------------------------------------------------------------------------------------------------

    def respond(self, endpoint_id: UUID, started_at: float, delay_s: float) -> Outcome:
        rng = self.rng
        ended_at = started_at + delay_s
        mode = self.receivers[endpoint_id]
        if mode == "flaky":
            mode = rng.choice(("ok", "500", "timeout", "busy"))
        base = {"started_at": started_at, "finished_at": ended_at}
        if mode == "500":
            return Outcome(ErrorCode.HTTP_5XX, 500, **base)
        if mode == "timeout":
            return Outcome(rng.choice((ErrorCode.TOTAL_TIMEOUT, ErrorCode.CONNECT_REFUSED)), None, **base)
        if mode == "busy":
            code, status = rng.choice(((ErrorCode.HTTP_429, 429), (ErrorCode.HTTP_5XX, 503)))
            asked = rng.choice((b"0", b"1", b"5", b"12", b"30", b"90"))
            return Outcome(code, status, retry_after=asked, **base)
        if mode == "forever":
            return Outcome(ErrorCode.HTTP_5XX, 503, retry_after=b"9999999", **base)
        if mode == "400":
            return Outcome(ErrorCode.HTTP_4XX, 400, **base)
        if mode == "410":
            return Outcome(ErrorCode.HTTP_410, 410, **base)
        if mode == "bug":
            return Outcome(ErrorCode.INTERNAL_ERROR, None, **base)
        return Outcome(None, 200, **base)

    def _send(self, worker: Worker, work: Work) -> None:
        endpoint_id = work.lane.endpoint.endpoint_id
        shard = work.entry.shard
        owner = worker.owners.get(shard)
        check(owner is not None, "sent for a shard it does not own", shard)
        assert owner is not None
        self._check_gates(worker, work, endpoint_id)
        self._check_breaker(worker, work, endpoint_id)
        attempt_id = work.attempt_id = self.new_id()
        self.sends += 1
        self.trace("send", worker.number, shard, work.entry.seq, endpoint_id.int & 0xFFFF, work.retry_count)
        self.ledger.send(owner, work, attempt_id, self.now, early=bool(work.marks & (HELD | PROBE)))
        worker.in_flight[attempt_id] = work
        rng = self.rng
        delay_s = rng.choice((0.0, rng.random() * 0.05, rng.random() * (OUTCOME_S_MAX if self.chaos else 1.0)))
        started_at = self.now
        self.later(delay_s, lambda: self._outcome(worker, owner, attempt_id, work, started_at, delay_s))

    def _check_gates(self, worker: Worker, work: Work, endpoint_id: UUID) -> None:
        config = worker.endpoints.get(endpoint_id)
        check(config is not None, "sent without configuration", endpoint_id)
        assert config is not None
        check(config.status is EndpointStatus.ENABLED and not config.deleted, "sent to a closed endpoint", config)
        held = worker.holds.get(endpoint_id, 0.0) - self.now
        check(held <= 0, "sent to an endpoint that is held for", held)
        caps = self._free(worker, endpoint_id)
        check(all(place > 0 for place in caps), "over a cap:", caps)
        check(self.now >= worker.frozen_until, "sent without a lease")
        # Shares move with shards and configuration; after that the requests of the former shares must have ended.
        if self.now - self.changed_at > OUTCOME_S_MAX and all(self._knows(w, endpoint_id) for w in self.workers):
            self._check_caps_of_all(endpoint_id)

    def _check_breaker(self, worker: Worker, work: Work, endpoint_id: UUID) -> None:
        """Behind so many failures in a row only a probe goes, and the store has granted it."""
        key = self._receiver(endpoint_id)
        if worker.sick.get(key, 0) < BREAKER.failures:
            return
        check(bool(work.marks & PROBE), "sent to a receiver whose breaker is open", endpoint_id)
        probes = [w for w in worker.in_flight.values() if w.marks & PROBE and self._receiver_of(w) == key]
        check(not probes, "two probes at once", endpoint_id)

    def _receiver_of(self, work: Work) -> tuple[UUID, str]:
        return self._receiver(work.lane.endpoint.endpoint_id)

    def _receiver(self, endpoint_id: UUID) -> tuple[UUID, str]:
        endpoint = self.endpoints[endpoint_id]
        return endpoint.tenant_id, origin_of(endpoint.url)

    def _note_health(self, worker: Worker, endpoint_id: UUID, outcome: Outcome, *, probe: bool) -> None:
        """What this worker was told of the receiver. Behind an opening only a probe counts."""
        key = self._receiver(endpoint_id)
        sick = worker.sick.get(key, 0)
        match verdict(outcome):
            case Verdict.SICK if sick < BREAKER.failures:
                worker.sick[key] = sick + 1
            case Verdict.HEALTHY if probe or sick < BREAKER.failures:
                worker.sick[key] = 0
            case _:
                pass

    def _knows(self, worker: Worker, endpoint_id: UUID) -> bool:
        """Has the worker the newest caps, or nothing to do with the endpoint?"""
        config = self.endpoints[endpoint_id]
        known = worker.endpoints.get(endpoint_id, config).max_in_flight == config.max_in_flight
        tenant = self.tenants[config.tenant_id]
        return known and worker.tenants.get(tenant.tenant_id, tenant) == tenant

    def _check_caps_of_all(self, endpoint_id: UUID) -> None:
        """Over all workers no cap is exceeded, but for the one place of a worker that has none of the home shards."""
        tenant = self.tenants[self.endpoints[endpoint_id].tenant_id]
        sent_to = [work.lane.endpoint.endpoint_id for w in self.workers for work in w.in_flight.values()]
        of_tenant = sum(self.endpoints[e].tenant_id == tenant.tenant_id for e in sent_to)
        for cap, count in (
            (self.endpoints[endpoint_id].max_in_flight, sent_to.count(endpoint_id)),
            (tenant.max_in_flight, of_tenant),
        ):
            homes = set(tenant.home_shards[:1] if is_pinned(cap, tenant.home_shards) else tenant.home_shards)
            strangers = sum(1 for w in self.workers if w.owners and not homes & set(w.owners))
            check(count < cap + strangers, "over the cap of all workers:", count, cap)

    def _free(self, worker: Worker, endpoint_id: UUID) -> tuple[int, ...]:
        """Places free: of the endpoint, of its tenant, of the worker (requests and bytes)."""
        config, tenant = worker.endpoints[endpoint_id], worker.tenants[self.endpoints[endpoint_id].tenant_id]
        endpoints = [work.lane.endpoint.endpoint_id for work in worker.in_flight.values()]
        of_tenant = sum(self.endpoints[e].tenant_id == tenant.tenant_id for e in endpoints)
        size = sum(len(work.entry.payload or b"") for work in worker.in_flight.values())
        owned = set(worker.owners)
        return (
            cap_share(config.max_in_flight, tenant.home_shards, owned) - endpoints.count(endpoint_id),
            cap_share(tenant.max_in_flight, tenant.home_shards, owned) - of_tenant,
            worker.limits.in_flight - len(worker.in_flight),
            worker.limits.in_flight_bytes - size,
        )

    def _outcome(
        self, worker: Worker, owner: Owner, attempt_id: UUID, work: Work, started_at: float, delay_s: float
    ) -> None:
        self.ledger.arrived(owner.shard, work)
        if not worker.alive:
            return
        outcome = self.respond(work.lane.endpoint.endpoint_id, started_at, delay_s)
        outcome.finished_at = self.now
        del worker.in_flight[attempt_id]
        self._note_health(worker, work.lane.endpoint.endpoint_id, outcome, probe=bool(work.marks & PROBE))
        if worker.owners.get(owner.shard) is owner:
            self.ledger.ended(owner, attempt_id, outcome, self.now)
        self.trace("outcome", worker.number, owner.shard, work.entry.seq, outcome.status)
        if outcome.retry_after and outcome.status in (429, 503):
            until = self.now + float(outcome.retry_after)
            endpoint_id = work.lane.endpoint.endpoint_id
            worker.holds[endpoint_id] = max(worker.holds.get(endpoint_id, 0.0), until)
        worker.engine.on_outcome(work, outcome, now=self.now)

    # ---- what a worker does ---------------------------------------------------------------------------------------

    def dispatch(self, worker: Worker) -> bool:
        """tick, send, fetch; True when something was started."""
        engine = worker.engine
        engine.tick(now=self.now)
        if self.now < worker.frozen_until:
            return False
        limit = self.rng.choice((1, 3, 128)) if self.chaos else 128
        sends = engine.take_sends(limit, now=self.now)
        for work in sends:
            self._send(worker, work)
        fetches = engine.take_fetches(now=self.now)
        for fetch in fetches:
            self._fetch(worker, fetch)
        if probes := engine.take_probes():
            self._ask_for_probes(worker, probes)
        settled = self.take_settle(worker)
        if len(sends) < limit and not engine.unsettled:
            self._check_no_stall(worker)
        return bool(sends or fetches or settled)

    def _ask_for_probes(self, worker: Worker, asked: Mapping[tuple[UUID, str], float | None]) -> None:
        """The store answers once; the answer comes a little later, or never."""
        if self.chaos and self.rng.random() < 0.1:
            self.later(self.brief(), lambda: worker.engine.ask_again(asked))
            return
        probes = [self.store.take_probe(tenant_id, origin, self.now) for tenant_id, origin in asked]
        self.trace("probes", worker.number, [probe.granted for probe in probes])

        def tell() -> None:
            if worker.alive:
                for probe in probes:
                    if probe.record.state is BreakerState.CLOSED:
                        worker.sick.pop((probe.record.tenant_id, probe.record.origin), None)
                worker.engine.on_probes(probes, asked, now=self.now)

        self.later(self.brief(), tell)

    def _fetch(self, worker: Worker, fetch: Fetch) -> None:
        """Rows are seen at one time, what is behind at a later one, both told later still; or it fails."""
        rng = self.rng
        self.trace("fetch", worker.number, fetch.shard, round(fetch.until, 6), fetch.wanted.name)
        seen, behind, told = sorted((self.brief(), self.brief(), self.brief()))
        if self.chaos and rng.random() < 0.1:
            self.later(told, lambda: self._fetch_failed(worker, fetch))
            return
        kept = rng.choice((fetch.limit, fetch.limit, 1 + rng.randrange(fetch.limit)))
        answer: dict[str, object] = {}
        self.later(seen, lambda: answer.update(rows=self.store.fetch_rows(fetch)))
        self.later(behind, lambda: answer.update(behind=self.store.fetch_behind(fetch)))

        def tell() -> None:
            if worker.alive:
                rows = answer["rows"]
                worker.engine.on_backlog(
                    fetch, rows[:kept], more=len(rows) > kept, behind=answer["behind"], now=self.now
                )

        self.later(told, tell)

    def _fetch_failed(self, worker: Worker, fetch: Fetch) -> None:
        if worker.alive:
            worker.engine.on_fetch_failed(fetch, now=self.now, again_s=1.0)

    def read(self, worker: Worker) -> int:
        """The journal of the worker's shards, as much as there is room for; sometimes with a hole."""
        room, _ = worker.engine.room()
        count = 0
        if not room or self.now < worker.frozen_until:
            return 0
        for shard in list(worker.owners):
            seq, _ = worker.engine.read_to(shard)
            rows = self.store.read(shard, seq, max(1, room // len(worker.owners)))
            if self.chaos and len(rows) > 1 and self.rng.random() < 0.05:
                hole = self.rng.randrange(len(rows) - 1)
                try:
                    worker.engine.on_rows(shard, rows[:hole] + rows[hole + 1 :], now=self.now)
                except GapError:
                    check(worker.engine.read_to(shard)[0] == seq + hole, "read over a gap", shard)
                else:
                    raise Violation(f"a gap in shard {shard} was not noticed")
            else:
                worker.engine.on_rows(shard, rows, now=self.now)
            count += len(rows)
        return count

    def configure(self, worker: Worker, *, everything: bool = False) -> None:
        """Load what is missing; with ``everything`` all that is known, in the worker's order: tenants, endpoints."""
        engine = worker.engine
        missing = dict(engine.missing)
        if missing:
            self._tell(worker, set(missing.values()), list(missing), together=True)
        if everything:
            tenants = {tenant_id for tenant_id in self.tenants if tenant_id in engine.known_tenants}
            self._tell(worker, tenants, engine.endpoints_of(tenants), together=False)

    def _tell(self, worker: Worker, tenant_ids: set[UUID], endpoint_ids: list[UUID], *, together: bool) -> None:
        tenants = [self.tenants[tenant_id] for tenant_id in sorted(tenant_ids)]
        endpoints = [
            replace(self.endpoints[endpoint_id], health=self.health.get(endpoint_id, HEALTHY))
            for endpoint_id in sorted(endpoint_ids)
        ]
        for tenant in tenants:
            self._changed(worker.tenants.get(tenant.tenant_id) != tenant)
            worker.tenants[tenant.tenant_id] = tenant
        for endpoint in endpoints:
            plain = replace(endpoint, health=HEALTHY)
            self._changed(worker.endpoints.get(endpoint.endpoint_id) != plain)
            worker.endpoints[endpoint.endpoint_id] = plain
            hold = max(worker.holds.get(endpoint.endpoint_id, 0.0), endpoint.hold_until)
            worker.holds[endpoint.endpoint_id] = hold
        if together:
            worker.engine.configure(tenants, endpoints, now=self.now)
        else:
            worker.engine.configure(tenants, (), now=self.now)
            worker.engine.configure((), endpoints, now=self.now)
        records = [record for record in self.store.breakers.values() if record.tenant_id in tenant_ids]
        for record in records:
            # It may take this for news, or know better.
            if record.state is BreakerState.CLOSED:
                worker.sick.pop((record.tenant_id, record.origin), None)
        worker.engine.adopt_breakers(records, now=self.now)

    def _changed(self, changed: bool = True) -> None:
        if changed:
            self.changed_at = self.now

    def _check_no_stall(self, worker: Worker) -> None:
        """All is taken that may start: what is open and not under way must be kept back by something."""
        checked: set[UUID] = set()
        for owner in worker.owners.values():
            if owner.draining or owner.taken is None:
                continue
            partial = dict(owner.taken.partial)
            for seq in (seq for start, end in owner.taken.open for seq in range(start, end)):
                row = self.store.journal[owner.shard][seq - 1]
                # What is looked up in the backlog first waits for that.
                waits = () if row.kind == Kind.DELIVER else row.owed
                for endpoint_id in (each for each in row.owed if each not in waits):
                    started = endpoint_id in partial.get(seq, ()) or (seq, endpoint_id) in owner.live
                    if not started and endpoint_id not in checked:
                        checked.add(endpoint_id)
                        self._check_kept_back(worker, owner.shard, seq, endpoint_id)

    def _check_kept_back(self, worker: Worker, shard: int, seq: int, endpoint_id: UUID) -> None:
        config = worker.endpoints.get(endpoint_id)
        if config is None or endpoint_id in worker.engine.missing:
            return
        if config.status is not EndpointStatus.ENABLED or worker.holds.get(endpoint_id, 0.0) > self.now:
            return
        if self._gate_closed(worker, shard, endpoint_id):
            return
        places = (*self._free(worker, endpoint_id), self._fair_place(worker, endpoint_id))
        check(min(places) <= 0, "stalled: nothing keeps back", shard, seq, endpoint_id, "free:", places)

    def _gate_closed(self, worker: Worker, shard: int, endpoint_id: UUID) -> bool:
        """By its receiver's breaker, its rate or its order, as the engine knows them: their bounds are judged
        elsewhere, and that a world heals tells that they open again."""
        endpoint = worker.engine._roster.endpoints[endpoint_id]
        lane = worker.engine._shards[shard].lanes[endpoint_id]
        return bool(endpoint.origin in endpoint.tenant.breakers or lane.ordered or endpoint.bucket)

    def _fair_place(self, worker: Worker, endpoint_id: UUID) -> int:
        """Places left in its tenant's fair share, which counts when places are scarce."""
        tenants = [self.endpoints[work.lane.endpoint.endpoint_id].tenant_id for work in worker.in_flight.values()]
        if len(tenants) < worker.limits.in_flight * SCARCE_PART:
            return 1
        share = max(1, worker.limits.in_flight // (len(set(tenants)) + 1))
        return share - tenants.count(self.endpoints[endpoint_id].tenant_id)

    # ---- settling -------------------------------------------------------------------------------------------------

    def take_settle(self, worker: Worker) -> bool:
        """Close the books; the commit comes later, its acknowledgement later still."""
        if worker.settling is not None or self.now < worker.frozen_until:
            return False
        settle = worker.engine.take_settle(now=self.now)
        if settle is None:
            return False
        for part in settle.shards:
            worker.owners[part.shard].taken = part.progress
            if part.clean:
                check(not worker.owners[part.shard].live, "clean with requests under way", part.shard)
        settling = worker.settling = Settling(settle)
        self.later(self.brief(), lambda: self._commit(worker, settling))
        return True

    def _commit(self, worker: Worker, settling: Settling) -> None:
        if not worker.alive and self.rng.random() < 0.5:
            return
        parts = [part for part in settling.settle.shards if part.shard in worker.owners]
        parts = [part for part in parts if worker.owners[part.shard].fence == part.fence]
        lost = self.store.lost(parts)
        if lost:
            for shard in lost:
                self._lose(worker, shard)
            self.later(self.brief(), lambda: self._commit(worker, settling))
            return
        for part in parts:
            self._check_part(part)
            previous = self.store.last[part.shard]
            self.store.settle(part)
            self.store.last[part.shard] = previous
            self.ledger.committed(part, self.endpoints)
            self.store.last[part.shard] = part
            summary = [(column(a, "position"), column(a, "outcome")) for a in part.attempts]
            self.trace("commit", part.shard, part.settle_no, part.progress.cursor, part.progress.open, summary)
        settling.committed = True
        self.later(self.brief(), lambda: self._acknowledge(worker, settling))

    def _check_part(self, part: ShardSettle) -> None:
        """Tests that watch settles look here, too."""
        for notice in part.notices:
            endpoint = self.endpoints[notice.endpoint_id]
            check(notice.tenant_id == endpoint.tenant_id, "a notice of a stranger", notice)
            check(notice.failures == 0 or (notice.since or self.now) <= notice.at, "a run without a beginning", notice)
            if notice.type is OperationalType.ENDPOINT_FAILING:
                check(notice.failures % HEALTH.announce_after == 0, "announced too early", notice)

    def _acknowledge(self, worker: Worker, settling: Settling) -> None:
        if not worker.alive:
            return
        worker.settling = None
        worker.engine.on_settled(settling.settle, now=self.now)
        for hold in worker.engine.take_holds():
            endpoint = self.endpoints[hold.endpoint_id]
            self.endpoints[hold.endpoint_id] = replace(endpoint, hold_until=max(endpoint.hold_until, hold.until))
        for record in worker.engine.take_breakers():
            self.store.save_breaker(record)
        self.health.update(worker.engine.take_health())
        for gone in worker.engine.take_gone():
            endpoint = self.endpoints[gone.endpoint_id]
            self.endpoints[gone.endpoint_id] = replace(endpoint, status=EndpointStatus.DISABLED)

    # ---- leases ---------------------------------------------------------------------------------------------------

    def claim(self, worker: Worker, shard: int) -> None:
        """Take a shard over from its last committed settle."""
        self._changed()
        last = self.store.last[shard]
        if last is None or not last.clean or last.fence != self.store.fences[shard]:
            self.store.quiet_until[shard] = max(self.store.quiet_until[shard], self.now + OUTCOME_S_MAX)
        fence = self.store.claim(shard)
        worker.owners[shard] = Owner(shard, fence, claimed_at=self.now)
        self.trace("claim", worker.number, shard)
        worker.engine.open_shard(self.store.takeover(shard), now=self.now)
        worker.engine.touch(shard)

    def free_shards(self) -> list[int]:
        """Shards without an owner."""
        owned = {shard for w in self.workers for shard, o in w.owners.items() if self.store.fences[shard] == o.fence}
        return [shard for shard in self.store.shards if shard not in owned]

    def claim_free(self) -> None:
        for shard in self.free_shards():
            able = [w for w in self.workers if shard not in w.owners and self.now >= w.frozen_until]
            if able:
                self.claim(self.rng.choice(able), shard)

    def crash(self, worker: Worker) -> None:
        """kill -9: the engine is gone; a commit on its way may still happen."""
        self.trace("crash", worker.number)
        self._changed()
        worker.alive = False
        self.workers[self.workers.index(worker)] = self._worker(worker.number)

    def steal(self, worker: Worker) -> None:
        """The worker's lease runs out while it is stopped: others take some of its shards."""
        self.trace("freeze", worker.number)
        worker.frozen_until = self.now + self.rng.random() * 30.0
        thieves = [w for w in self.workers if w is not worker and self.now >= w.frozen_until]
        for shard in list(worker.owners):
            if thieves and self.rng.random() < 0.7:
                thief = self.rng.choice(thieves)
                if shard not in thief.owners:
                    self.claim(thief, shard)
        self.later(worker.frozen_until - self.now, lambda: self._wake(worker))

    def _wake(self, worker: Worker) -> None:
        """Back again: it surveys before it sends, as the worker does, and closes what it lost."""
        for shard, owner in list(worker.owners.items()):
            if self.store.fences[shard] != owner.fence:
                self._lose(worker, shard)

    def _lose(self, worker: Worker, shard: int) -> None:
        self._changed()
        del worker.owners[shard]
        worker.engine.close_shard(shard)
        known = set(worker.engine.known_tenants)
        worker.sick = {key: count for key, count in worker.sick.items() if key[0] in known}

    def give_back(self, worker: Worker, shard: int, patience: int = 20) -> None:
        """Hand a shard over in order: what is under way ends, all is settled, then it is released."""
        owner = worker.owners[shard]
        owner.draining = True
        worker.engine.drain_shard(shard)
        self.trace("drain", worker.number, shard)
        self._release(worker, owner, patience)

    def _release(self, worker: Worker, owner: Owner, patience: int) -> None:
        if not worker.alive or worker.owners.get(owner.shard) is not owner:
            return
        engine = worker.engine
        if engine.in_flight_of(owner.shard) and patience:
            self.later(1.0, lambda: self._release(worker, owner, patience - 1))
            return
        engine.drain_shard(owner.shard)
        if self.now < worker.frozen_until or worker.settling is not None or not self.take_settle(worker):
            self.later(0.5, lambda: self._release(worker, owner, patience))
            return
        self._released(worker, owner, worker.settling)

    def _released(self, worker: Worker, owner: Owner, settling: Settling | None) -> None:
        if not worker.alive or worker.owners.get(owner.shard) is not owner:
            return
        assert settling is not None
        if worker.settling is settling:
            self.later(0.1, lambda: self._released(worker, owner, settling))
            return
        self._lose(worker, owner.shard)
        self.trace("release", worker.number, owner.shard)

    # ---- trouble --------------------------------------------------------------------------------------------------

    def change_config(self) -> None:
        """An operator, a tenant, a receiver: something is different now."""
        self._changed()
        rng = self.rng
        endpoint_id = rng.choice(list(self.endpoints))
        endpoint = self.endpoints[endpoint_id]
        tenant = self.tenants[endpoint.tenant_id]
        what = rng.choice(("status", "status", "status", "cap", "tenant cap", "delete", "spread", "on_dead"))
        if what == "status":
            status = rng.choice([*EndpointStatus, EndpointStatus.ENABLED])
            self.endpoints[endpoint_id] = replace(endpoint, status=status)
        elif what == "cap":
            cap = rng.choice((1, 2, 8))
            self.endpoints[endpoint_id] = replace(endpoint, max_in_flight=cap)
        elif what == "tenant cap":
            cap = rng.choice((1, 3, 100))
            self.tenants[tenant.tenant_id] = replace(tenant, max_in_flight=cap)
        elif what == "delete" and rng.random() < 0.3:
            self.endpoints[endpoint_id] = replace(endpoint, deleted=True)
        elif what == "on_dead":
            self.endpoints[endpoint_id] = replace(endpoint, on_dead=rng.choice(tuple(OnDead)))
        elif what == "spread":
            home = list(self.store.shards)
            rng.shuffle(home)
            home = home[: rng.randint(1, len(home))]
            self.tenants[tenant.tenant_id] = replace(tenant, home_shards=tuple(home))
        self.trace("config", what)

    def change_receiver(self) -> None:
        modes = ("ok", "ok", "flaky", "flaky", "500", "timeout", "busy", "400", "410", "bug", "forever")
        self.receivers[self.rng.choice(list(self.receivers))] = self.rng.choice(modes)

    def step(self) -> None:
        """One thing happens somewhere."""
        rng = self.rng
        worker = rng.choice(self.workers)
        chance = rng.random()
        if chance < 0.12:
            self.append()
        elif chance < 0.30:
            self.read(worker)
        elif chance < 0.55:
            self.dispatch(worker)
        elif chance < 0.65:
            self.configure(worker, everything=rng.random() < 0.3)
        elif chance < 0.70:
            self.take_settle(worker)
        elif chance < 0.93:
            wakeup = worker.engine.next_wakeup()
            jumps = [self.now, self.now + rng.random() * 0.05, self.now + rng.random() * 5]
            if self.events:
                jumps.append(self.events[0][0])
            if wakeup is not None:
                jumps.append(min(wakeup, self.now + 500))
            self.advance(max(self.now, rng.choice(jumps)))
        elif not self.chaos or chance < 0.96:
            self.change_receiver()
        else:
            self.trouble(worker)
        self.check_counters()

    def trouble(self, worker: Worker) -> None:
        rng = self.rng
        chance = rng.random()
        if chance < 0.35:
            self.change_config()
        elif chance < 0.55:
            self.claim_free()
        elif chance < 0.67:
            self.crash(worker)
        elif chance < 0.77 and self.now >= worker.frozen_until:
            self.steal(worker)
        elif chance < 0.92 and worker.owners:
            shard = rng.choice(list(worker.owners))
            if not worker.owners[shard].draining:
                self.give_back(worker, shard)
        elif chance < 0.94:
            self.advance(self.now + rng.choice((30.0, 100.0, 500.0)))

    def check_counters(self) -> None:
        """What the engine counts is what we count."""
        for worker in self.workers:
            engine = worker.engine
            check(engine.in_flight == len(worker.in_flight), "in_flight", engine.in_flight, len(worker.in_flight))
            size = sum(len(work.entry.payload or b"") for work in worker.in_flight.values())
            check(engine.in_flight_bytes == size, "in_flight_bytes", engine.in_flight_bytes, size)
            check(engine.buffered >= 0 and engine.buffered_bytes >= 0, "buffered", engine.buffered)
            check(engine.pending_attempts >= 0, "pending_attempts", engine.pending_attempts)

    # ---- the end of a round ---------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Faults stop, endpoints are well and open: everything that is owed must end, in bounded time."""
        self.chaos = False
        for endpoint_id, endpoint in list(self.endpoints.items()):
            self.receivers[endpoint_id] = "ok"
            self.endpoints[endpoint_id] = self.healed(endpoint)
        until = self.now + self.heal_s
        turns = 0
        while not self._healed():
            turns += 1
            check(turns < HEAL_TURNS_MAX, "busy with nothing;", self.ledger.owed, "owed")
            self.claim_free()
            busy = False
            for worker in list(self.workers):
                if self.now >= worker.frozen_until:
                    self._wake(worker)
                if worker.engine.missing or turns == 1 or turns % 50 == 0:
                    self.configure(worker, everything=True)
                busy |= self.read(worker) > 0
                busy |= self.dispatch(worker)
            self.check_counters()
            if not busy:
                self._next_moment(until)

    def healed(self, endpoint: Endpoint) -> Endpoint:
        """With nothing left that keeps its deliveries back for longer."""
        return replace(endpoint, status=EndpointStatus.ENABLED, on_dead=OnDead.SKIP, rate_limit=None)

    def _next_moment(self, until: float) -> None:
        wakeups = [w.engine.next_wakeup() for w in self.workers if self.now >= w.frozen_until]
        moments = [moment for moment in wakeups if moment is not None]
        if self.events:
            moments.append(self.events[0][0])
        if not moments:
            raise Violation(f"stalled, nothing is planned for {self._stuck()}")
        if min(moments) > until:
            raise Violation(f"not healed in time: {self._stuck()}")
        self.advance(min(moments))

    def _stuck(self) -> str:
        stuck = [
            f"shard {shard} seq {seq} endpoint …{endpoint_id.hex[-4:]} {fate}"
            for shard, live in self.ledger.live.items()
            for (seq, endpoint_id), fate in live.items()
        ]
        return f"{len(stuck)} deliveries: " + ", ".join(stuck[:3])

    def _healed(self) -> bool:
        if self.ledger.owed or any(self.store.backlog.values()) or not all(map(self._is_done, self.store.shards)):
            return False
        return all(
            not w.in_flight and not w.engine.unsettled and w.settling is None and self.now >= w.frozen_until
            for w in self.workers
        )

    def _is_done(self, shard: int) -> bool:
        """Is the cursor at the end? What is owed to nobody is read and settled, too."""
        last = self.store.last[shard]
        return last is None or last.progress.cursor == len(self.store.journal[shard])

    def check_empty(self) -> None:
        """All is done: nothing may be left anywhere."""
        for worker in self.workers:
            engine = worker.engine
            counters = (engine.buffered, engine.buffered_bytes, engine.in_flight, engine.in_flight_bytes)
            check(counters == (0, 0, 0, 0), "counters after the end", counters)
            check(engine.pending_attempts == 0, "pending_attempts", engine.pending_attempts)
        check(not any(self.store.backlog.values()), "rows left in the backlog")
        for shard in self.store.shards:
            check(self._is_done(shard), "the cursor stands still", shard)

    def run(self) -> str:
        """All rounds; the digest of all that happened."""
        self.claim_free()
        for _ in range(ROUNDS):
            self.chaos = True
            for _ in range(CHAOS_STEPS):
                self.step()
            self.chaos = False
            for _ in range(CALM_STEPS):
                self.step()
            self.heal()
            self.check_empty()
        return self.digest.hexdigest()


def simulate(seed: int) -> str:
    """Live through one seed; the digest of its trace. Raises Violation."""
    world = World(seed)
    with small_fetches(world.rng.choice((2, 4, 8))):
        return world.run()
