"""Ingest: match an event with its endpoints and append it to the journal; answered only when it is durable.

Relies on the store's append being atomic, ordered and checked against the tenant's config version. Promises: nothing is
acknowledged that is not stored; a poisoned event fails alone; memory in front of the store is bounded in events and in
bytes; an answer comes within ``timeout_s``, if only that the store is too slow.

Group commit: while the store works on an append, events gather and go together in the next one. Events that may go to
any home shard of a tenant gather in one queue, and each group goes to the next free one of these shards: dealt out one
by one they would make groups of an eighth of the size on eight shards, and a call costs as much as twenty events. For
the same reason small groups of several queues share an append, each to a shard of its own: where a thousand tenants are
at home in eight shards or in eighty, each for itself would make an append of one or two events.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Protocol, cast
from uuid import UUID

from uuid_utils import uuid7

from hookpost import telemetry
from hookpost.intake import (
    Answer,
    Lot,
    Misfit,
    Pending,
    PostRoutes,
    Queue,
    Refused,
    Submission,
    Tell,
    Ticket,
    UnknownEndpoint,
    gather_s,
    next_lot,
)
from hookpost.policy.event_schema import Fault, SchemaBounds
from hookpost.policy.ingest_limit import Allowance, IngestGate, Standing
from hookpost.policy.looks import Looks
from hookpost.policy.objects import object_key
from hookpost.policy.schema_checks import WORK_A_TURN, SchemaChecks
from hookpost.storage.contract import (
    INGEST_LEASE_S,
    Appended,
    DataRejected,
    IngestStore,
    NewEvent,
    PayloadStore,
    Place,
    Recalled,
    Stale,
    StoreUnavailable,
    Verdict,
)
from hookpost.storage.routes import remember

# Appends under way at once: each shard takes part in one at a time, and more of them make smaller groups.
APPENDS_MAX = 4
# Queues kept though they are empty: one for each set of home shards, and one for each first home shard.
QUEUES_KEPT = 1_000
# Times an event is matched anew because its tenant's configuration changed under it.
STALE_MAX = 10
# Tenants whose routes are remembered; and of so many more those that are out of date.
ROUTES_MAX = 50_000
# Workers are rung at most this often; NOTIFY takes a lock that is global to the database. It is less than events gather
# for: a ring behind each append of a queue spares its events the wait for a worker's next look.
RING_EVERY_S = 0.006
# How long closing waits for a store that owes no answer any more.
CLOSE_S = 0.2
# How often the processes share out the tenants' limits: a change of one must be in force within 2 s on all of them, on
# a busy machine, too.
LOOK_EVERY_S = 0.75
LOOK_LEASE_S = INGEST_LEASE_S
# How often requests that waited too long are looked for.
SWEEP_EVERY_S = 0.05


class Relay(Protocol):
    """The Relay seam: workers at hand."""

    def tell(self, place: Place, events: Sequence[NewEvent], answers: Sequence[Appended]) -> bool:
        """Tell the shard's owner what was appended there; False: it is to be rung for, as for all others. Never
        raises."""


class Overloaded(Exception):
    """The queue in front of the store is full, or the store did not answer in time: try again later."""


class RateLimited(Exception):
    """The tenant posts more than its limit allows: nothing of the request was stored."""

    def __init__(self, standing: Standing) -> None:
        super().__init__(f"the tenant's limit is {standing.limit:g} events a second")
        self.standing = standing


class UnknownTenant(Exception):
    """The tenant does not exist any more."""


@dataclass(frozen=True, slots=True)
class IngestLimits:
    """Bounds of the queue in front of the store, and how long a request waits for its answer. ``inline_max``: payloads
    of more bytes go to the payload store. ``schemas``: what may be spent on checking a payload."""

    queue_events: int = 20_000
    queue_bytes: int = 64 * 1024 * 1024
    timeout_s: float = 0.9
    inline_max: int = 16 * 1024
    schemas: SchemaBounds = field(default_factory=SchemaBounds)


class Ingest:
    """The ingest path of one process; make it inside its event loop and close it there.

    An event counts as queued from its request's beginning until its append has ended, whether or not anybody still
    waits for the answer: what is counted is what lies in memory.

    ``processes``: how many API processes are started together, for the parts of tenants' limits until they know each
    other. Sharing the limits needs ``follow`` to run. ``relay``: None where no worker is at hand.
    """

    def __init__(
        self,
        store: IngestStore,
        payloads: PayloadStore,
        *,
        now: Callable[[], float],
        limits: IngestLimits,
        processes: int = 1,
        relay: Relay | None = None,
    ) -> None:
        self._store = store
        self._relay = relay
        self._payloads = payloads
        self._inline_max = limits.inline_max
        self._now = now
        self._limits = limits
        self._routes: dict[UUID, PostRoutes] = {}
        # Those that are out of date, for what has not changed of them.
        self._former: dict[UUID, PostRoutes] = {}
        self._loading: dict[UUID, asyncio.Task[PostRoutes | None]] = {}
        self._queues: dict[tuple[int, ...], Queue] = {}
        # Queues in line for the next append, others that join them when it is due, and shards that appends go to now.
        self._line: deque[Queue] = deque()
        self._gathering: list[Queue] = []
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._starting = False
        self._appends = 0
        self._busy: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tickets: deque[Ticket] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._all_ended: asyncio.Future[None] | None = None
        self._events = 0
        self._bytes = 0
        self._ring_due = 0.0
        self._ringing = False
        self._to_ring: set[int] = set()
        self._closed = False
        self._node_id = cast(UUID, uuid7())
        # Python 3.11 asks the system for the process's id whenever it is asked for the running loop.
        self._loop = asyncio.get_running_loop()
        self._gate = IngestGate(expected=processes, settled_at=self._loop.time() + LOOK_LEASE_S)
        self._looks = Looks(self._loop.time())
        # By their text: what else changes of a tenant's configuration leaves them as they are.
        self._schemas = SchemaChecks(limits.schemas)

    @property
    def queued(self) -> tuple[int, int]:
        """Events and payload bytes in front of the store now."""
        return self._events, self._bytes

    async def close(self) -> None:
        """Take no more, and end what is under way with an answer; a store that hangs is left alone after that."""
        self._closed = True
        if self._tickets:
            self._all_ended = self._loop.create_future()
            await self._all_ended  # the sweep ends each of them in time
        if self._tasks:
            _, hanging = await asyncio.wait(self._tasks, timeout=CLOSE_S)
            for task in hanging:
                task.cancel()
        if self._looks.at is not None:
            with suppress(StoreUnavailable, TimeoutError):
                await asyncio.wait_for(self._store.leave_ingest(self._node_id), CLOSE_S)

    # ---- one request ----------------------------------------------------------------------------------------------

    async def submit(self, tenant_id: UUID, submissions: Sequence[Submission], *, spent_s: float = 0.0) -> list[Answer]:
        """Store the events and say, for each, what became of it.

        ``spent_s``: so much of the time for an answer was spent waiting for the store before.
        Raises Overloaded or StoreUnavailable (then nothing is acknowledged; some may be stored all the same, which an
        idempotency key makes harmless), UnknownTenant, and RateLimited (then nothing is stored).
        """
        if not submissions:
            return []
        future: asyncio.Future[list[Answer]] = self._loop.create_future()
        ticket, left, size = self._admit(submissions, partial(_resolve, future), spent_s)
        charged: Allowance | None = None
        try:
            routes = self._routes.get(tenant_id) or await self._within(ticket, self._load(tenant_id))
            if routes.allowance is not None:
                charged = self._charge(routes.allowance, len(submissions))
            fit = list(enumerate(submissions))
            if routes.routes.schemas:
                fit = await self._fit(ticket, fit, routes)
            await self._put_large(ticket, [submission for _, submission in fit])
            for index, submission in fit:
                if await self._aim(ticket, index, submission, routes):
                    # It stays counted until its append has ended.
                    left -= 1
                    size -= len(submission.payload)
            return await future
        finally:
            if left:
                self._count(-left, -size)
            if charged is not None:
                charged.give_back(_not_accepted(_end_of(future), len(submissions)))
            ticket.ended = True
            if not future.cancel() and not future.cancelled():
                future.exception()  # another one is being raised, and this one need not be heard

    def post(self, tenant_id: UUID, submissions: Sequence[Submission], tell: Tell) -> bool:
        """Like ``submit``, without a task that waits: ``tell`` hears what ``submit`` would return or raise.

        False, and nothing was done, unless all of it can be decided now: the tenant's routes are known and have each
        event's targets, its payload satisfies the schema of its type, and none is too large for the database. ``tell``
        must not raise. Raises Overloaded and RateLimited.
        """
        routes = self._routes.get(tenant_id)
        if routes is None or not self._is_plain(routes, submissions):
            return False
        events, allowance = len(submissions), routes.allowance
        if allowance is not None:
            tell = partial(_told_and_paid, allowance, events, tell)
        ticket, _, size = self._admit(submissions, tell, 0.0)
        if allowance is not None:
            try:
                self._charge(allowance, events)
            except RateLimited:
                ticket.ended = True
                self._count(-events, -size)
                raise
        for index, submission in enumerate(submissions):
            self._enqueue(ticket, index, submission, routes)
        return True

    def _is_plain(self, routes: PostRoutes, submissions: Sequence[Submission]) -> bool:
        """Is nothing to be looked up for these, nor to be put elsewhere, nor to be refused one by one?"""
        inline_max = self._inline_max
        for submission in submissions:
            if len(submission.payload) > inline_max or (submission.targets and routes.unknown(submission) is not None):
                return False
        schemas = routes.routes.schemas
        if not schemas:
            return True
        checks = self._schemas
        work = sum([checks.work(schemas, each.type, each.payload) for each in submissions])
        return work <= WORK_A_TURN and not any(checks.faults(schemas, each.type, each.payload) for each in submissions)

    def _admit(self, submissions: Sequence[Submission], tell: Tell, spent_s: float) -> tuple[Ticket, int, int]:
        """A ticket for events that are counted from now on, with their number and size; raises Overloaded."""
        events = len(submissions)
        size = sum([len(submission.payload) for submission in submissions])
        limits = self._limits
        if self._closed or self._events + events > limits.queue_events or self._bytes + size > limits.queue_bytes:
            raise Overloaded("the queue in front of the store is full")
        ticket = Ticket(events, self._loop.time() + limits.timeout_s - spent_s, tell)
        self._watch(ticket)
        self._count(events, size)
        return ticket, events, size

    def _count(self, events: int, size: int) -> None:
        self._events += events
        self._bytes += size

    def _count_again(self, pending: Pending) -> None:
        """It goes back to a queue, while its group, with which it is counted, comes to its end."""
        self._count(1, len(pending.submission.payload))

    async def _within(self, ticket: Ticket, work: asyncio.Task[PostRoutes | None]) -> PostRoutes:
        """Await shared work no longer than the request may wait."""
        left_s = ticket.deadline - self._loop.time()
        await asyncio.wait((work,), timeout=max(0.0, left_s))
        if not work.done():
            raise _too_late()
        routes = work.result()
        if routes is None:
            raise UnknownTenant("the tenant does not exist")
        return routes

    async def _aim(
        self, ticket: Ticket, index: int, submission: Submission, routes: PostRoutes, stale: int = 0
    ) -> bool:
        """On its way to whom it is owed; False when the producer named a target that is none, and that was answered."""
        if submission.targets:
            routes = await self._knowing(ticket, routes, submission)
            missing = routes.unknown(submission)
            if missing is not None:
                ticket.answer(index, UnknownEndpoint(missing))
                return False
        self._enqueue(ticket, index, submission, routes, stale)
        return True

    async def _knowing(self, ticket: Ticket, routes: PostRoutes, submission: Submission) -> PostRoutes:
        """Routes that know the targets. One that is missing may have been created on another node a moment ago: look
        again before refusing, and once more if that look had begun before we asked."""
        tenant_id = routes.routes.tenant_id
        joined = True
        while joined and routes.unknown(submission) is not None:
            joined = tenant_id in self._loading
            routes = await self._within(ticket, self._load(tenant_id))
        return routes

    # ---- schemas --------------------------------------------------------------------------------------------------

    async def _fit(
        self, ticket: Ticket, submissions: Iterable[tuple[int, Submission]], routes: PostRoutes
    ) -> list[tuple[int, Submission]]:
        """Those whose payloads satisfy the schemas of their types; the others are answered."""
        fit = []
        work = 0
        for index, submission in submissions:
            if not await self._is_misfit(ticket, index, submission, routes):
                fit.append((index, submission))
            work += self._schemas.work(routes.routes.schemas, submission.type, submission.payload)
            if work > WORK_A_TURN:
                work = 0
                await asyncio.sleep(0)
                if ticket.ended and ticket.open:
                    raise _too_late()
        return fit

    async def _is_misfit(self, ticket: Ticket, index: int, submission: Submission, routes: PostRoutes) -> bool:
        """Does the payload not satisfy its type's schema? Then that is answered.

        Whoever is refused never comes to the append, which would tell of a newer configuration: so it is asked for
        here, with what was answered to the event's idempotency key before. A repeat gets that answer, whatever became
        of the schema since: nothing of it is stored anew.
        """
        tenant_id = routes.routes.tenant_id
        for _ in range(STALE_MAX):
            faults = self._schemas.faults(routes.routes.schemas, submission.type, submission.payload)
            if not faults:
                return False
            recalled = await self._recall(ticket, tenant_id, submission.key)
            same = recalled.first is not None and recalled.request_hash == request_hash(submission)
            if same and recalled.reserved:
                # It satisfied the schema when its key was reserved; whether it was stored the append finds out.
                return False
            if recalled.config_version == routes.routes.config_version:
                ticket.answer(index, _refused(recalled, faults, same=same))
                return True
            known = self._routes.get(tenant_id)
            if known is None or known.routes.config_version != recalled.config_version:
                known = await self._within(ticket, self._load(tenant_id))
            routes = known
        raise Overloaded("the tenant's configuration changes too often")

    async def _recall(self, ticket: Ticket, tenant_id: UUID, key: str | None) -> Recalled:
        try:
            async with asyncio.timeout_at(ticket.deadline):
                recalled = await self._store.recall(tenant_id, key)
        except TimeoutError:
            raise _too_late() from None
        if recalled is None:
            raise UnknownTenant("the tenant does not exist")
        return recalled

    # ---- payloads -------------------------------------------------------------------------------------------------

    async def _put_large(self, ticket: Ticket, submissions: Sequence[Submission]) -> None:
        """Put what is too large for the database into the payload store, before anything of the request is appended.
        What is put and never appended is swept away later."""
        large = [submission for submission in submissions if len(submission.payload) > self._inline_max]
        if not large:
            return
        try:
            async with asyncio.timeout_at(ticket.deadline), asyncio.TaskGroup() as puts:
                for submission in large:
                    puts.create_task(self._put(submission))
        except TimeoutError:
            raise Overloaded("the payload store did not answer in time") from None
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _put(self, submission: Submission) -> None:
        event_id = cast(UUID, uuid7(nanoseconds=int(self._now() * 1e9)))
        submission.stored = event_id, await self._payloads.put(object_key(event_id), submission.payload)

    # ---- limits ---------------------------------------------------------------------------------------------------

    def standing(self, tenant_id: UUID) -> Standing | None:
        """What to tell a producer whose events were accepted a moment ago; None when its tenant has no limit."""
        allowance = self._gate.charged(tenant_id)
        return None if allowance is None else allowance.standing(now=self._loop.time())

    def _charge(self, allowance: Allowance, events: int) -> Allowance:
        """Let all events of a request in, or raise RateLimited."""
        now = self._loop.time()
        wait_s = self._gate.take(allowance, events, now=now)
        if wait_s:
            telemetry.count("events_rejected", events)
            raise RateLimited(allowance.standing(now=now, wait_s=wait_s))
        return allowance

    async def follow(self) -> None:
        """Look, again and again, until cancelled."""
        while True:
            # Without the store nothing is accepted anyway.
            with suppress(StoreUnavailable):
                await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Share the limits with the other processes, and forget routes that are out of date: who refuses all of a
        tenant's events never appends, which is how others find out. Raises StoreUnavailable."""
        began = self._loop.time()
        demands = self._gate.demands(now=began)
        shared = await self._store.share_demand(
            self._node_id, demands, lease_s=LOOK_LEASE_S, since=self._looks.since(began)
        )
        self._looks.looked(began, shared.now)
        for tenant_id, version in shared.changed.items():
            known = self._routes.get(tenant_id)
            if known is not None and known.routes.config_version != version:
                self._outdate(tenant_id)
        self._gate.share(demands, shared.others, processes=shared.processes, now=self._loop.time())

    # ---- routes ---------------------------------------------------------------------------------------------------

    def _load(self, tenant_id: UUID) -> asyncio.Task[PostRoutes | None]:
        """Load a tenant's routes, once for all who ask at the same time."""
        task = self._loading.get(tenant_id)
        if task is None:
            task = self._loading[tenant_id] = asyncio.create_task(self._load_now(tenant_id))
            # All who asked may be gone when it fails.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _load_now(self, tenant_id: UUID) -> PostRoutes | None:
        try:
            former = self._routes.get(tenant_id) or self._former.get(tenant_id)
            known_as_of = None if former is None else former.routes.config_version
            loaded = await self._store.load_routes(tenant_id, since=known_as_of)
            if loaded is not None and former is not None and not former.fit(loaded):
                loaded = await self._store.load_routes(tenant_id)
            self._routes.pop(tenant_id, None)
            self._former.pop(tenant_id, None)
            if loaded is None:
                return None
            now = self._loop.time()
            allowance = self._gate.allowance(tenant_id, loaded.ingest_rate_limit, now=now)
            routes = PostRoutes(loaded, allowance, former)
            remember(self._routes, tenant_id, routes, most=ROUTES_MAX)
            return routes
        finally:
            del self._loading[tenant_id]

    def _outdate(self, tenant_id: UUID) -> None:
        """Nothing is matched with the tenant's routes any more."""
        routes = self._routes.pop(tenant_id, None)
        if routes is not None:
            remember(self._former, tenant_id, routes, most=ROUTES_MAX)

    # ---- group commit ---------------------------------------------------------------------------------------------

    def _enqueue(self, ticket: Ticket, index: int, submission: Submission, routes: PostRoutes, stale: int = 0) -> None:
        stored = submission.stored
        event = NewEvent(
            # Not the standard library's UUID, which takes five times as long to make; it has the parts that are used.
            cast(UUID, uuid7(nanoseconds=int(self._now() * 1e9))) if stored is None else stored[0],
            routes.routes.tenant_id,
            submission.type,
            submission.payload if stored is None else stored[1],
            routes.owed(submission),
            submission.key,
            None if submission.key is None else request_hash(submission),
            submission.trace_id,
            submission.span,
            submission.targets is not None,
            submission.without,
        )
        self._wait(Pending(ticket, index, submission, stale, routes, event))

    def _wait(self, pending: Pending) -> None:
        """Its turn comes with the next append of its queue."""
        shards = pending.routes.shards_for(pending.event.owed)
        queue = self._queues.get(shards)
        if queue is None:
            queue = self._queues[shards] = Queue(shards)
        queue.events.append(pending)
        if not queue.waiting and queue.under_way < queue.appends_max:
            self._line_up(queue)

    def _line_up(self, queue: Queue) -> None:
        """It is in line for the next append; what comes meanwhile goes along."""
        queue.waiting = True
        if self._due <= self._loop.time() or len(queue.events) >= queue.group_max:
            self._line.append(queue)
            self._start_soon()
            return
        self._gathering.append(queue)
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._start_all)

    def _start_soon(self) -> None:
        """In the next turn of the loop: other queues that line up in this one may share an append."""
        if not self._starting:
            self._starting = True
            self._loop.call_soon(self._start)

    def _start_all(self) -> None:
        self._timer = None
        self._line += self._gathering
        self._gathering.clear()
        self._start()

    def _start(self) -> None:
        """Begin appends."""
        self._starting = False
        line, now = self._line, self._loop.time()
        begun: list[Lot] = []
        while line and self._appends < APPENDS_MAX:
            lot = next_lot(
                line, self._busy, shards_max=self._store.lot_shards, now=now, timeout_s=self._limits.timeout_s
            )
            for pending in lot.late:
                pending.ticket.fail(_too_late())
                self._count(-1, -len(pending.submission.payload))
            if not lot.events:
                break  # all shards of all queues are busy
            begun.append(lot)
            self._appends += 1
            self._busy |= lot.shards
            task = asyncio.create_task(self._work(lot))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if begun:
            self._due = now + gather_s(sum([len(lot.events) for lot in begun]))
        for lot in begun:
            for queue in lot.queues:
                if queue.events and not queue.waiting and queue.under_way < queue.appends_max:
                    self._line_up(queue)

    async def _work(self, lot: Lot) -> None:
        """One append; then its queues line up again behind the others."""
        began = self._loop.time()
        try:
            await self._append(lot.events)
        except Exception as error:  # noqa: BLE001 - whatever it was, all of the group get an answer
            _fail(lot.events, StoreUnavailable("internal error while appending"))
            telemetry.log_error("ingest", error)
        finally:
            took_s = self._loop.time() - began
            self._count(-len(lot.events), -sum([len(pending.submission.payload) for pending in lot.events]))
            self._appends -= 1
            self._busy -= lot.shards
            for queue in lot.queues:
                queue.learn(took_s, timeout_s=self._limits.timeout_s)
                queue.under_way -= 1
                if queue.events and not queue.waiting:
                    self._line_up(queue)
                elif not queue.events and not queue.under_way and len(self._queues) > QUEUES_KEPT:
                    self._queues.pop(queue.shards, None)
            if self._line:
                self._start_soon()

    async def _append(self, group: list[Pending]) -> None:
        current: list[Pending] = []
        versions: dict[UUID, int] = {}
        outdated: list[Pending] = []
        fresh: PostRoutes | None = None
        for pending in group:
            if pending.ticket.ended:
                continue
            routes = pending.routes
            if routes is not fresh:
                tenant_id = pending.event.tenant_id
                version = routes.routes.config_version
                known = self._routes.get(tenant_id, routes)
                if known is not routes or versions.setdefault(tenant_id, version) != version:
                    outdated.append(pending)
                    continue
                fresh = routes
            current.append(pending)
        await self._rematch(outdated)
        if not current:
            return
        events = [pending.event for pending in current]
        shards = {pending.shard for pending in current}
        shard = current[0].shard if len(shards) == 1 else [pending.shard for pending in current]
        places: list[Place] = []
        try:
            result = await self._store.append(shard, events, versions, placed=places.append)
        except DataRejected as error:
            await self._isolate(current, error)
        except StoreUnavailable as error:
            _fail(current, error)
        else:
            if isinstance(result, Stale):
                await self._refresh(current, result)
            else:
                for each in shards.difference(self._told(places, current, result)):
                    self._ring(each)
                self._answer(current, result)

    def _told(self, places: list[Place], group: list[Pending], result: list[Appended]) -> list[int]:
        """Tell the workers at hand what was appended; the shards whose owners were told."""
        relay = self._relay
        if relay is None or not places:
            return []
        found: dict[int, tuple[list[NewEvent], list[Appended]]] = {place.shard: ([], []) for place in places}
        for pending, answer in zip(group, result, strict=True):
            if pending.shard in found:
                events, answers = found[pending.shard]
                events.append(pending.event)
                answers.append(answer)
        return [place.shard for place in places if relay.tell(place, *found[place.shard])]

    def _answer(self, group: list[Pending], result: list[Appended]) -> None:
        for pending, appended in zip(group, result, strict=True):
            pending.ticket.answer(pending.index, appended)
        duplicates = sum([appended.verdict is not Verdict.NEW for appended in result])
        telemetry.count("events_accepted", len(group) - duplicates)
        telemetry.count("events_duplicate", duplicates)

    async def _isolate(self, group: list[Pending], error: DataRejected) -> None:
        """One of them is poisoned: halve the group until it stands alone."""
        if len(group) == 1:
            group[0].ticket.answer(group[0].index, Refused(str(error)))
            return
        middle = len(group) // 2
        await self._append(group[:middle])
        await self._append(group[middle:])

    async def _refresh(self, group: list[Pending], stale: Stale) -> None:
        """Some tenants' configuration changed: nothing was written; match theirs anew and append them all again."""
        for tenant_id in stale.tenants:
            self._outdate(tenant_id)
        await self._rematch([p for p in group if p.event.tenant_id in stale.tenants])
        for pending in group:
            if pending.event.tenant_id not in stale.tenants:
                self._count_again(pending)
                self._wait(pending)

    async def _rematch(self, group: Iterable[Pending]) -> None:
        for pending in group:
            if pending.ticket.ended:
                continue
            ticket, submission, stale = pending.ticket, pending.submission, pending.stale + 1
            if stale > STALE_MAX:
                ticket.fail(Overloaded("the tenant's configuration changes too often"))
                continue
            tenant_id = pending.event.tenant_id
            try:
                routes = self._routes.get(tenant_id) or await self._within(ticket, self._load(tenant_id))
                if routes.routes.schemas and await self._is_misfit(ticket, pending.index, submission, routes):
                    continue
                if await self._aim(ticket, pending.index, submission, routes, stale):
                    self._count_again(pending)
            except (StoreUnavailable, UnknownTenant, Overloaded) as error:
                ticket.fail(error)

    # ---- time -----------------------------------------------------------------------------------------------------

    def _watch(self, ticket: Ticket) -> None:
        self._tickets.append(ticket)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_EVERY_S, self._sweep)

    def _sweep(self) -> None:
        """Requests are in the order of their deadlines: the first that may still wait ends the look."""
        now = self._loop.time()
        tickets = self._tickets
        while tickets and (tickets[0].ended or tickets[0].deadline <= now):
            ticket = tickets.popleft()
            if not ticket.ended:
                ticket.fail(_too_late())
        self._drop_ended()
        if not tickets and self._all_ended is not None and not self._all_ended.done():
            self._all_ended.set_result(None)
        self._sweeper = self._loop.call_later(SWEEP_EVERY_S, self._sweep) if tickets else None

    def _drop_ended(self) -> None:
        """While the store hangs, requests end and their events would stay in memory."""
        for queue in self._queues.values():
            for pending in queue.events.pop_ended():
                self._count(-1, -len(pending.submission.payload))

    def _ring(self, shard: int) -> None:
        self._to_ring.add(shard)
        if self._ringing:
            return
        self._ringing = True
        delay = max(0.0, self._ring_due - self._loop.time())
        if delay:
            self._loop.call_later(delay, self._ring_now)
        else:
            self._ring_now()

    def _ring_now(self) -> None:
        self._ring_due = self._loop.time() + RING_EVERY_S
        self._ringing = False
        shards, self._to_ring = self._to_ring, set()
        task = asyncio.create_task(self._ring_store(shards))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ring_store(self, shards: set[int]) -> None:
        try:
            await self._store.ring(shards)
        except StoreUnavailable:
            return  # workers look by themselves


def _end_of(future: asyncio.Future[list[Answer]]) -> list[Answer] | None:
    """The answers of a request, if it came to them."""
    if not future.done() or future.cancelled() or future.exception() is not None:
        return None
    return future.result()


def _not_accepted(end: list[Answer] | Exception | None, events: int) -> int:
    """Of a request's events those that cost nothing of a limit: all, unless it has its answers."""
    if not isinstance(end, list):
        return events
    return sum(not isinstance(a, Appended) or a.verdict is Verdict.CONFLICT for a in end)


def _told_and_paid(allowance: Allowance, events: int, tell: Tell, end: list[Answer] | Exception) -> None:
    allowance.give_back(_not_accepted(end, events))
    tell(end)


def _refused(recalled: Recalled, faults: list[Fault], *, same: bool) -> Answer:
    """What an event is answered whose payload does not satisfy its schema: its key may have been answered before, for
    the ``same`` event or another one."""
    first = recalled.first
    if first is None:
        telemetry.count("events_misfit")
        return Misfit(tuple(faults))
    if same:
        telemetry.count("events_duplicate")
        return first
    return Appended(Verdict.CONFLICT, first.event_id, first.delivery_count)


def _too_late() -> Overloaded:
    return Overloaded("the store did not answer in time")


def _resolve(future: asyncio.Future[list[Answer]], end: list[Answer] | Exception) -> None:
    if future.done():
        return  # the caller was cancelled
    if isinstance(end, Exception):
        future.set_exception(end)
    else:
        future.set_result(end)


def _fail(group: Iterable[Pending], error: Exception) -> None:
    for pending in group:
        pending.ticket.fail(error)


def request_hash(submission: Submission) -> bytes:
    """What two requests with one idempotency key must agree in: type, payload bytes and targets."""
    digest = sha256(submission.type.encode())
    digest.update(b"\0")
    digest.update(sha256(submission.payload).digest())
    if submission.targets is not None:
        digest.update(b"targets")  # an empty list is not the same as none: it owes the event to nobody
        for target in sorted(set(submission.targets)):
            digest.update(target.bytes)
    return digest.digest()
