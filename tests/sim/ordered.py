"""Worlds of ordered endpoints where workers die and lose their leases all the time.

Order is promised to what was accepted while its endpoint was ordered, switched on and off as it may be: `OrderLedger`
knows these stretches of the journal, and what its receivers saw.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from uuid import UUID

from msgspec import structs

from hookpost.engine.work import CANCEL, BacklogChange, JournalRow, Kind, Work
from hookpost.model import Endpoint, EndpointStatus, Outcome, Tenant
from hookpost.storage.contract import RECONFIGURED
from tests.engine.model import NEVER, Key, Ledger, Owner, Store, check
from tests.sim.world import START, Worker, World

# How often a step is a crash or a lost lease, how often one lets time go on: what an owner left is fenced off for
# OUTCOME_S_MAX, and without time nothing ordered would ever be sent.
KILL_PART, WAIT_PART = 0.035, 0.08
# With how many kills somebody has just given up on a request that is under way: the next owner passes it over, so what
# comes behind must not overtake it on its way.
GIVE_UP_PART = 0.5
ORDERED_PART = 0.8


class OrderLedger(Ledger):
    """``kept``: by endpoint, in which stretches (shard, first, last) of the journal it was ordered."""

    def __init__(self, store: Store, endpoints: dict[UUID, Endpoint]) -> None:
        super().__init__(store, endpoints)
        self.kept: dict[UUID, list[tuple[int, int, float]]] = defaultdict(list)
        self.in_order = 0

    def stretch(self, shard: int, endpoint_id: UUID, seq: int) -> tuple[int, float] | None:
        """Where the order holds that this delivery was accepted in."""
        stretches = ((first, last) for home, first, last in self.kept[endpoint_id] if home == shard)
        return next(((first, last) for first, last in stretches if first <= seq <= last), None)

    def switch(self, endpoint_id: UUID, shard: int, *, ordered: bool) -> None:
        """From the next row of the shard on."""
        end = len(self.store.journal[shard])
        if ordered:
            self.kept[endpoint_id].append((shard, end + 1, NEVER))
        else:
            _, first, _ = self.kept[endpoint_id].pop()
            self.kept[endpoint_id].append((shard, first, end))

    def arrived(self, shard: int, work: Work) -> None:
        endpoint_id, seq = work.lane.endpoint.endpoint_id, work.entry.seq
        arrived = self.arrivals.setdefault((shard, endpoint_id), set())
        kept = self.stretch(shard, endpoint_id, seq)
        if kept is not None and seq not in arrived:
            self.in_order += 1
            last = max((each for each in arrived if kept[0] <= each <= kept[1]), default=0)
            check(seq > last, "arrived behind a later one:", shard, seq, "behind", last)
        arrived.add(seq)

    def _check_order(self, owner: Owner, key: Key, now: float) -> None:
        kept = self.stretch(owner.shard, key[1], key[0])
        if kept is None:
            return
        first = kept[0]
        two = any(e == key[1] and first <= seq <= kept[1] for seq, e in owner.live)
        check(not two, "two at once in an ordered lane", owner.shard, key)
        earlier = [k for k in self.live[owner.shard] if k[1] == key[1] and first <= k[0] < key[0]]
        before = [seq for seq, _ in earlier if not self._may_be_over(owner, (seq, key[1]), now)]
        check(not before, "sent before", before, owner.shard, key)


class OrderedWorld(World):
    """``kills``: shards that lost their owner by a crash or a lease that ran out."""

    ledger: OrderLedger
    # Dead deliveries that block are replayed one behind the other, each when the one before has been delivered.
    heal_s = 6_000.0

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.kills = 0
        self.asked: set[tuple[int, UUID, int, int]] = set()
        self.ledger = OrderLedger(self.store, self.endpoints)
        for endpoint in list(self.endpoints.values()):
            # What moves between shards goes by barriers, which are judged with the store; here every tenant stays.
            tenant = self.tenants[endpoint.tenant_id]
            self.tenants[tenant.tenant_id] = Tenant(tenant.tenant_id, tenant.home_shards[:1], tenant.max_in_flight)
            self._set(replace(endpoint, ordered=False), ordered=self.rng.random() < ORDERED_PART)

    def _set(self, endpoint: Endpoint, *, ordered: bool) -> None:
        """As storage/postgres/moves.py has it: a notice for what comes next, a seal for what was."""
        tenant = self.tenants[endpoint.tenant_id]
        shard, journal = tenant.home_shards[0], self.store.journal[tenant.home_shards[0]]
        to = endpoint.ordered_to
        if ordered:
            self._announce(tenant, shard)
        elif endpoint.ordered:
            to = (shard, len(journal))
        if ordered != endpoint.ordered:
            self.ledger.switch(endpoint.endpoint_id, shard, ordered=ordered)
        self.endpoints[endpoint.endpoint_id] = replace(endpoint, ordered=ordered, ordered_to=to)

    def _announce(self, tenant: Tenant, shard: int) -> None:
        journal = self.store.journal[shard]
        at = max(round(self.now, 6), journal[-1].created_at if journal else START)
        seq, day = len(journal) + 1, int(at // 86400)
        of = tenant.tenant_id
        row = JournalRow(shard, seq, day, Kind.CONTROL, self.new_id(), of, RECONFIGURED, None, [], 0, at)
        journal.append(row)

    def read(self, worker: Worker) -> int:
        """Rows behind a notice are not handled by a configuration from before it."""
        for shard in worker.owners:
            behind = self.store.journal[shard][worker.engine.read_to(shard)[0] :]
            told = {row.tenant_id for row in behind if row.type == RECONFIGURED} & set(worker.engine.known_tenants)
            if told and self.now >= worker.frozen_until:
                self._tell(worker, told, worker.engine.endpoints_of(told), together=False)
        return super().read(worker)

    # ---- trouble --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        chance = self.rng.random()
        if self.chaos and chance < KILL_PART:
            self._kill()
        elif self.chaos and chance < KILL_PART + WAIT_PART:
            self.advance(self.now + self.rng.random() * 8.0)
            for worker in self.workers:
                self.dispatch(worker)
        else:
            super().step()

    def _kill(self) -> None:
        """Somebody who owns something dies, or sleeps beyond its lease; others, or its next life, take over."""
        owners = [worker for worker in self.workers if worker.owners and self.now >= worker.frozen_until]
        if owners:
            worker = self.rng.choice(owners)
            if self.rng.random() < GIVE_UP_PART:
                self._give_up(worker)
            if self.rng.random() < 0.5:
                self.crash(worker)
            else:
                self.steal(worker)
        self.claim_free()

    def _give_up(self, worker: Worker) -> None:
        """Cancel what is under way in order; the worker will not hear of it any more."""
        hanging = [work for work in worker.in_flight.values() if work.lane.ordered]
        if not hanging:
            return
        work = self.rng.choice(hanging)
        entry, journal = work.entry, self.store.journal[work.entry.shard]
        at = max(round(self.now, 6), journal[-1].created_at)
        seq, day, owed = len(journal) + 1, int(at // 86400), [work.lane.endpoint.endpoint_id]
        of = entry.tenant_id
        row = JournalRow(entry.shard, seq, day, Kind.CONTROL, entry.event_id, of, CANCEL, None, owed, 0, at)
        journal.append(row)
        self.ledger.appended(row)
        self.trace("give up", entry.shard, entry.seq)

    def claim(self, worker: Worker, shard: int) -> None:
        last = self.store.last[shard]
        clean = last is not None and last.clean and last.fence == self.store.fences[shard]
        self.kills += self.store.fences[shard] > 0 and not clean
        super().claim(worker, shard)

    def change_config(self) -> None:
        if self.rng.random() < 0.4:
            endpoint = self.endpoints[self.rng.choice(list(self.endpoints))]
            self._changed()
            self._set(endpoint, ordered=not endpoint.ordered)
            self.trace("ordered", not endpoint.ordered)
            return
        homes = {tenant_id: tenant.home_shards for tenant_id, tenant in self.tenants.items()}
        super().change_config()
        for tenant_id, tenant in self.tenants.items():
            self.tenants[tenant_id] = replace(tenant, home_shards=homes[tenant_id])

    def respond(self, endpoint_id: UUID, started_at: float, delay_s: float) -> Outcome:
        """As in any world, but none asks to be left alone for years: what blocks could never be healed by replays."""
        if self.receivers[endpoint_id] == "forever":
            self.receivers[endpoint_id] = "busy"
        return super().respond(endpoint_id, started_at, delay_s)

    # ---- the end of a round ---------------------------------------------------------------------------------------

    def healed(self, endpoint: Endpoint) -> Endpoint:
        """What blocks goes on to block, until somebody replays it."""
        return replace(super().healed(endpoint), on_dead=endpoint.on_dead)

    def _next_moment(self, until: float) -> None:
        if not self._replay_blocking():
            super()._next_moment(until)

    def _replay_blocking(self) -> bool:
        """A replay of each dead delivery that blocks its lane, or its end, if nobody has asked for that yet. Who asks
        opens the endpoint as well: one that was disabled at the last moment would let its replays die again, for ever."""
        asked = False
        for (shard, endpoint_id), rows in list(self.store.backlog.items()):
            for blocking in [row for row in rows.values() if row.due_at == NEVER]:
                key = (shard, endpoint_id, blocking.position, blocking.generation)
                if key not in self.asked:
                    self.asked.add(key)
                    endpoint = self.endpoints[endpoint_id]
                    self.endpoints[endpoint_id] = replace(endpoint, status=EndpointStatus.ENABLED)
                    self._replay(shard, endpoint_id, blocking)
                    asked = True
        return asked

    def _replay(self, shard: int, endpoint_id: UUID, blocking: BacklogChange) -> None:
        journal = self.store.journal[shard]
        old, at = journal[blocking.position - 1], max(round(self.now, 6), journal[-1].created_at)
        same = (row.generation for row in journal[blocking.position - 1 :] if row.event_id == blocking.event_id)
        generation = 1 + max(blocking.generation, *same)
        seq, day, owed = len(journal) + 1, int(at // 86400), [endpoint_id]
        row = structs.replace(old, seq=seq, day=day, kind=Kind.REPLAY, owed=owed, generation=generation, created_at=at)
        if old.payload is None:
            # What it would send is gone: it would die again.
            row = structs.replace(row, kind=Kind.CONTROL, type=CANCEL, generation=0)
        journal.append(row)
        self.ledger.appended(row)
        self.trace("replay", shard, row.seq, blocking.position)
