"""Ingest: match an event with its endpoints and append it to the journal; answered only when it is durable.

Relies on the store's append being atomic, ordered and checked against the tenant's config version. Promises: nothing is
acknowledged that is not stored; a poisoned event fails alone; memory in front of the store is bounded in events and in
bytes; an answer comes within ``timeout_s``, if only that the store is too slow.

Group commit: while the store works on an append, events gather and go together in the next one. Events that may go to
any home shard of a tenant gather in one queue, and each group goes to the next free one of these shards: dealt out one
by one they would make groups of an eighth of the size on eight shards, and a call costs as much as twenty events.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import cast
from uuid import UUID

import msgspec
from uuid_utils import uuid7

from hookpost import telemetry
from hookpost.model import PayloadRef
from hookpost.policy.event_schema import Fault, PayloadSchema, SchemaBounds, SchemaRefused
from hookpost.policy.ingest_limit import Allowance, IngestGate, Standing
from hookpost.policy.objects import object_key
from hookpost.storage.contract import (
    Appended,
    DataRejected,
    IngestStore,
    NewEvent,
    PayloadStore,
    Recalled,
    Stale,
    StoreUnavailable,
    TenantRoutes,
    Verdict,
)
from hookpost.storage.routes import Routes

# Events in one append: beyond it the call's latency grows and its throughput does not.
GROUP_EVENTS_MAX = 500
# Payload bytes in one append: it is one message to the database, and its memory there is a multiple of it.
GROUP_BYTES_MAX = 8 * 1024 * 1024
# What one endpoint in an owed list costs an append, in payload bytes: 500 events owed to 1,000 each take 0.6 s.
OWED_BYTES = 64
# Of a tenant so many events in a row go into a group before it is another one's turn: whoever posts one does not wait
# until a flood of others is stored.
TURN_EVENTS = 16
# Appends under way at once: each shard takes one at a time, and more of them make smaller groups.
APPENDS_MAX = 4
# Of these for one queue: while one waits for the disk the next is on its way; a third would make the groups smaller.
QUEUE_APPENDS_MAX = 2
# Between two appends of one queue: events gather, longer where more of them come. The first one after a pause goes at
# once. An append costs as much as twenty events, and wakes the database up.
GATHER_EVENT_S = 0.001
GATHER_S_MAX = 0.008
# Queues kept though they are empty: one for each set of home shards, and one for each first home shard.
QUEUES_KEPT = 1_000
# Times an event is matched anew because its tenant's configuration changed under it.
STALE_MAX = 10
# Tenants whose routes are remembered.
ROUTES_MAX = 50_000
# Workers are rung at most this often; NOTIFY takes a lock that is global to the database.
RING_EVERY_S = 0.02
# How long closing waits for a store that owes no answer any more.
CLOSE_S = 0.2
# How often the processes share out the tenants' limits: a change of one must be in force within 2 s on all of them, on
# a busy machine, too.
LOOK_EVERY_S = 0.75
# A process that was silent for so long has died, and its part of the limits is the others'.
LOOK_LEASE_S = 3.0
# Changes of tenants are looked for this much further back than the last look: their transactions may be slow to commit.
LOOK_OVERLAP_S = 10.0
# Compiled schemas that are kept, in bytes: thousands of usual ones, a dozen of those that are made to be large.
SCHEMAS_BYTES_MAX = 64 * 1024 * 1024
# Checked at once before others have their turn, as cost times bytes: a few hundredths of a second.
SCHEMA_WORK_A_TURN = 1024 * 1024
# How often requests that waited too long are looked for.
SWEEP_EVERY_S = 0.05


class Overloaded(Exception):
    """The queue in front of the store is full, or the store did not answer in time: try again later."""


class RateLimited(Exception):
    """The tenant posts more than its limit allows: nothing of the request was stored."""

    def __init__(self, standing: Standing) -> None:
        super().__init__(f"the tenant's limit is {standing.limit:g} events a second")
        self.standing = standing


class UnknownTenant(Exception):
    """The tenant does not exist any more."""


class UnknownEndpoint(Exception):
    """One of ``target_endpoints`` is not an endpoint of the tenant."""

    def __init__(self, endpoint_id: UUID) -> None:
        super().__init__(f"the tenant has no endpoint {endpoint_id}")
        self.endpoint_id = endpoint_id


class Refused(Exception):
    """The store refuses this event's data."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """The payload does not satisfy the schema of its type."""

    faults: tuple[Fault, ...]


class Submission(msgspec.Struct, gc=False):
    """An event as the producer posted it, valid in form. ``targets`` overrides the endpoints' filters; to the endpoint
    ``without`` it is not owed, whatever its filter says. ``stored``: the event's id and where its payload lies, once it
    was put into the payload store."""

    type: str
    payload: bytes
    key: str | None = None
    targets: tuple[UUID, ...] | None = None
    trace_id: UUID | None = None
    span: bytes | None = None
    without: UUID | None = None
    stored: tuple[UUID, PayloadRef] | None = None


@dataclass(frozen=True, slots=True)
class IngestLimits:
    """Bounds of the queue in front of the store, and how long a request waits for its answer. ``inline_max``: payloads
    of more bytes go to the payload store. ``schemas``: what may be spent on checking a payload."""

    queue_events: int = 20_000
    queue_bytes: int = 64 * 1024 * 1024
    timeout_s: float = 0.9
    inline_max: int = 16 * 1024
    schemas: SchemaBounds = field(default_factory=SchemaBounds)


Answer = Appended | UnknownEndpoint | Refused | Misfit


Tell = Callable[[list[Answer] | Exception], None]


class _Ticket:
    """One request: ``tell`` hears its end, once, when the last of its events is answered or it fails.

    Once it has ended nobody waits any more: what has not been appended need not be.
    """

    __slots__ = ("answers", "deadline", "ended", "open", "tell")

    def __init__(self, size: int, deadline: float, tell: Tell) -> None:
        self.answers: list[Answer | None] = [None] * size
        self.open = size
        self.deadline = deadline
        self.ended = False
        self.tell = tell

    def answer(self, index: int, answer: Answer) -> None:
        self.answers[index] = answer
        self.open -= 1
        if self.open == 0 and not self.ended:
            self.ended = True
            self.tell(self.answers)  # type: ignore[arg-type] # every place is filled now

    def fail(self, error: Exception) -> None:
        if not self.ended:
            self.ended = True
            self.tell(error)


class _Pending(msgspec.Struct, gc=False):
    """One event on its way to the store, the ``index``-th of its request; it was matched anew ``stale`` times."""

    ticket: _Ticket
    index: int
    submission: Submission
    stale: int
    routes: _Routes
    event: NewEvent


class _Waiting:
    """Events in front of the store: each tenant's in their order, the tenants in fair turns."""

    __slots__ = ("_left", "_len", "_tenants")

    def __init__(self) -> None:
        self._tenants: OrderedDict[UUID, deque[_Pending]] = OrderedDict()
        self._len = 0
        self._left = TURN_EVENTS

    def __len__(self) -> int:
        return self._len

    def append(self, pending: _Pending) -> None:
        """Behind what its tenant has here."""
        self._len += 1
        tenant_id = pending.event.tenant_id
        events = self._tenants.get(tenant_id)
        if events is None:
            events = self._tenants[tenant_id] = deque()
        events.append(pending)

    def popleft(self) -> _Pending:
        """The next one of the tenant whose turn it is."""
        tenant_id, events = next(iter(self._tenants.items()))
        pending = events.popleft()
        self._len -= 1
        self._left -= 1
        if not events:
            del self._tenants[tenant_id]
            self._left = TURN_EVENTS
        elif not self._left:
            self._tenants.move_to_end(tenant_id)
            self._left = TURN_EVENTS
        return pending

    def pop_ended(self) -> Iterator[_Pending]:
        """The first ones of each tenant whose requests have been answered."""
        for tenant_id, events in list(self._tenants.items()):
            while events and events[0].ticket.ended:
                self._len -= 1
                yield events.popleft()
            if not events:
                del self._tenants[tenant_id]


class _Queue:
    """Events that may go to any of these shards, and how many appends of them are under way.

    ``waiting`` says that its next append is on its way and has not taken its events yet; none begins before ``due``.
    """

    __slots__ = ("appends_max", "due", "events", "shards", "turn", "under_way", "waiting")

    def __init__(self, shards: tuple[int, ...]) -> None:
        self.shards = shards
        self.events = _Waiting()
        self.appends_max = min(len(shards), QUEUE_APPENDS_MAX)
        self.under_way = 0
        self.waiting = False
        self.turn = 0
        self.due = 0.0

    def next_shard(self, busy: Collection[int]) -> int | None:
        """The next one that no append is under way to."""
        count = len(self.shards)
        for step in range(count):
            shard = self.shards[(self.turn + step) % count]
            if shard not in busy:
                self.turn = (self.turn + step + 1) % count
                return shard
        return None


class _Routes(Routes):
    """A tenant's routes and what it may post; ``allowance`` None: as much as it likes."""

    __slots__ = ("allowance",)

    def __init__(self, routes: TenantRoutes, allowance: Allowance | None) -> None:
        super().__init__(routes)
        self.allowance = allowance

    def match(self, submission: Submission) -> tuple[UUID, ...]:
        """Whom an event without targets of its own is owed to."""
        owed = self.matcher.match(submission.type)
        if submission.without is None:
            return owed
        return tuple(endpoint_id for endpoint_id in owed if endpoint_id != submission.without)


class _Compiled:
    """Schemas ready to check with, those that were used last."""

    def __init__(self, bounds: SchemaBounds) -> None:
        self._bounds = bounds
        self._schemas: OrderedDict[str, PayloadSchema] = OrderedDict()
        self._bytes = 0

    def get(self, text: str) -> PayloadSchema:
        """Raises SchemaRefused."""
        schema = self._schemas.get(text)
        if schema is None:
            schema = self._schemas[text] = PayloadSchema(text, self._bounds)
            self._bytes += schema.bytes
            while self._bytes > SCHEMAS_BYTES_MAX and len(self._schemas) > 1:
                self._bytes -= self._schemas.popitem(last=False)[1].bytes
        self._schemas.move_to_end(text)
        return schema


class Ingest:
    """The ingest path of one process; make it inside its event loop and close it there.

    An event counts as queued from its request's beginning until its append has ended, whether or not anybody still
    waits for the answer: what is counted is what lies in memory.

    ``processes``: how many API processes are started together, for the parts of tenants' limits until they know each
    other. Sharing the limits needs ``follow`` to run.
    """

    def __init__(
        self,
        store: IngestStore,
        payloads: PayloadStore,
        *,
        now: Callable[[], float],
        limits: IngestLimits,
        processes: int = 1,
    ) -> None:
        self._store = store
        self._payloads = payloads
        self._inline_max = limits.inline_max
        self._now = now
        self._limits = limits
        self._routes: dict[UUID, _Routes] = {}
        self._loading: dict[UUID, asyncio.Task[_Routes | None]] = {}
        self._queues: dict[tuple[int, ...], _Queue] = {}
        self._waiting: deque[_Queue] = deque()
        self._busy: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tickets: deque[_Ticket] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._all_ended: asyncio.Future[None] | None = None
        self._events = 0
        self._bytes = 0
        self._ring_due = 0.0
        self._ringing = False
        self._to_ring: set[int] = set()
        self._closed = False
        self._node_id = cast(UUID, uuid7())
        self._gate = IngestGate(expected=processes, settled_at=asyncio.get_running_loop().time() + LOOK_LEASE_S)
        self._looked_at: float | None = None
        # By their text: what else changes of a tenant's configuration leaves them as they are.
        self._compiled = _Compiled(limits.schemas)

    @property
    def queued(self) -> tuple[int, int]:
        """Events and payload bytes in front of the store now."""
        return self._events, self._bytes

    async def close(self) -> None:
        """Take no more, and end what is under way with an answer; a store that hangs is left alone after that."""
        self._closed = True
        if self._tickets:
            self._all_ended = asyncio.get_running_loop().create_future()
            await self._all_ended  # the sweep ends each of them in time
        if self._tasks:
            _, hanging = await asyncio.wait(self._tasks, timeout=CLOSE_S)
            for task in hanging:
                task.cancel()
        if self._looked_at is not None:
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
        future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
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
                if submission.targets is None:
                    self._enqueue(ticket, index, submission, routes, routes.match(submission))
                elif not await self._aim(ticket, index, submission, routes, submission.targets):
                    continue
                # It stays counted until its append has ended.
                left -= 1
                size -= len(submission.payload)
            return await future
        finally:
            if left:
                self._count(-left, -size)
            if charged is not None:
                charged.give_back(_not_accepted(future, len(submissions)))
            ticket.ended = True
            if not future.cancel() and not future.cancelled():
                future.exception()  # another one is being raised, and this one need not be heard

    def post(self, tenant_id: UUID, submissions: Sequence[Submission], tell: Tell) -> bool:
        """Like ``submit``, without a task that waits: ``tell`` hears what ``submit`` would return or raise.

        False, and nothing was done, unless the tenant's routes are known, it has no limit and no schemas, and no event
        names its targets or is too large for the database. ``tell`` must not raise. Raises Overloaded.
        """
        routes = self._routes.get(tenant_id)
        inline_max = self._inline_max
        if (
            routes is None
            or routes.allowance is not None
            or routes.routes.schemas
            or not all(each.targets is None and len(each.payload) <= inline_max for each in submissions)
        ):
            return False
        ticket, _, _ = self._admit(submissions, tell, 0.0)
        match = routes.matcher.match
        for index, submission in enumerate(submissions):
            self._enqueue(ticket, index, submission, routes, match(submission.type))
        return True

    def _admit(self, submissions: Sequence[Submission], tell: Tell, spent_s: float) -> tuple[_Ticket, int, int]:
        """A ticket for events that are counted from now on, with their number and size; raises Overloaded."""
        events = len(submissions)
        size = sum([len(submission.payload) for submission in submissions])
        limits = self._limits
        if self._closed or self._events + events > limits.queue_events or self._bytes + size > limits.queue_bytes:
            raise Overloaded("the queue in front of the store is full")
        loop = asyncio.get_running_loop()
        ticket = _Ticket(events, loop.time() + limits.timeout_s - spent_s, tell)
        self._watch(ticket, loop)
        self._count(events, size)
        return ticket, events, size

    def _count(self, events: int, size: int) -> None:
        self._events += events
        self._bytes += size

    def _count_again(self, pending: _Pending) -> None:
        """It goes back to a queue, while its group, with which it is counted, comes to its end."""
        self._count(1, len(pending.submission.payload))

    async def _within(self, ticket: _Ticket, work: asyncio.Task[_Routes | None]) -> _Routes:
        """Await shared work no longer than the request may wait."""
        left_s = ticket.deadline - asyncio.get_running_loop().time()
        await asyncio.wait((work,), timeout=max(0.0, left_s))
        if not work.done():
            raise _too_late()
        routes = work.result()
        if routes is None:
            raise UnknownTenant("the tenant does not exist")
        return routes

    async def _aim(
        self,
        ticket: _Ticket,
        index: int,
        submission: Submission,
        routes: _Routes,
        targets: tuple[UUID, ...],
        stale: int = 0,
    ) -> bool:
        """The producer says whom the event is owed to; False when that was refused, and answered."""
        routes = await self._knowing(ticket, routes, targets)
        missing = _unknown(routes, targets)
        if missing is not None:
            ticket.answer(index, UnknownEndpoint(missing))
            return False
        self._enqueue(ticket, index, submission, routes, tuple(dict.fromkeys(targets)), stale)
        return True

    async def _knowing(self, ticket: _Ticket, routes: _Routes, targets: tuple[UUID, ...]) -> _Routes:
        """Routes that know the targets. One that is missing may have been created on another node a moment ago: look
        again before refusing, and once more if that look had begun before we asked."""
        tenant_id = routes.routes.tenant_id
        joined = True
        while joined and _unknown(routes, targets) is not None:
            joined = tenant_id in self._loading
            routes = await self._within(ticket, self._load(tenant_id))
        return routes

    # ---- schemas --------------------------------------------------------------------------------------------------

    async def _fit(
        self, ticket: _Ticket, submissions: Iterable[tuple[int, Submission]], routes: _Routes
    ) -> list[tuple[int, Submission]]:
        """Those whose payloads satisfy the schemas of their types; the others are answered."""
        fit = []
        work = 0
        for index, submission in submissions:
            if not await self._is_misfit(ticket, index, submission, routes):
                fit.append((index, submission))
            work += self._schema_work(submission, routes)
            if work > SCHEMA_WORK_A_TURN:
                work = 0
                await asyncio.sleep(0)
                if ticket.ended and ticket.open:
                    raise _too_late()
        return fit

    async def _is_misfit(self, ticket: _Ticket, index: int, submission: Submission, routes: _Routes) -> bool:
        """Does the payload not satisfy its type's schema? Then that is answered.

        Whoever is refused never comes to the append, which would tell of a newer configuration: so it is asked for
        here, with what was answered to the event's idempotency key before. A repeat gets that answer, whatever became
        of the schema since: nothing of it is stored anew.
        """
        tenant_id = routes.routes.tenant_id
        for _ in range(STALE_MAX):
            faults = self._faults(submission, routes)
            if not faults:
                return False
            recalled = await self._recall(ticket, tenant_id, submission.key)
            if recalled.config_version == routes.routes.config_version:
                ticket.answer(index, _refused(submission, recalled, faults))
                return True
            known = self._routes.get(tenant_id)
            if known is None or known.routes.config_version != recalled.config_version:
                known = await self._within(ticket, self._load(tenant_id))
            routes = known
        raise Overloaded("the tenant's configuration changes too often")

    def _faults(self, submission: Submission, routes: _Routes) -> list[Fault]:
        schema = routes.routes.schemas.get(submission.type)
        if schema is None:
            return []
        try:
            return self._compiled.get(schema).faults(submission.payload)
        except SchemaRefused as error:  # of another release, or the bounds are narrower since
            return [Fault("", f"the schema of this type is not accepted any more, so nothing satisfies it: {error}")]

    def _schema_work(self, submission: Submission, routes: _Routes) -> int:
        schema = routes.routes.schemas.get(submission.type)
        try:
            return 0 if schema is None else self._compiled.get(schema).cost * len(submission.payload)
        except SchemaRefused:
            return SCHEMA_WORK_A_TURN

    async def _recall(self, ticket: _Ticket, tenant_id: UUID, key: str | None) -> Recalled:
        try:
            async with asyncio.timeout_at(ticket.deadline):
                recalled = await self._store.recall(tenant_id, key)
        except TimeoutError:
            raise _too_late() from None
        if recalled is None:
            raise UnknownTenant("the tenant does not exist")
        return recalled

    # ---- payloads -------------------------------------------------------------------------------------------------

    async def _put_large(self, ticket: _Ticket, submissions: Sequence[Submission]) -> None:
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
        return None if allowance is None else allowance.standing(now=asyncio.get_running_loop().time())

    def _charge(self, allowance: Allowance, events: int) -> Allowance:
        """Let all events of a request in, or raise RateLimited."""
        now = asyncio.get_running_loop().time()
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
        loop = asyncio.get_running_loop()
        began = loop.time()
        demands = self._gate.demands(now=began)
        since_s = 0.0 if self._looked_at is None else began - self._looked_at
        shared = await self._store.share_demand(
            self._node_id, demands, lease_s=LOOK_LEASE_S, seconds_back=since_s + LOOK_OVERLAP_S
        )
        self._looked_at = began
        for tenant_id, version in shared.changed.items():
            known = self._routes.get(tenant_id)
            if known is not None and known.routes.config_version != version:
                del self._routes[tenant_id]
        self._gate.share(demands, shared.others, processes=shared.processes, now=loop.time())

    # ---- routes ---------------------------------------------------------------------------------------------------

    def _load(self, tenant_id: UUID) -> asyncio.Task[_Routes | None]:
        """Load a tenant's routes, once for all who ask at the same time."""
        task = self._loading.get(tenant_id)
        if task is None:
            task = self._loading[tenant_id] = asyncio.create_task(self._load_now(tenant_id))
            # All who asked may be gone when it fails.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _load_now(self, tenant_id: UUID) -> _Routes | None:
        try:
            loaded = await self._store.load_routes(tenant_id)
            if loaded is None:
                self._routes.pop(tenant_id, None)
                return None
            self._routes.pop(tenant_id, None)
            while len(self._routes) >= ROUTES_MAX:
                del self._routes[next(iter(self._routes))]
            now = asyncio.get_running_loop().time()
            allowance = self._gate.allowance(tenant_id, loaded.ingest_rate_limit, now=now)
            routes = self._routes[tenant_id] = _Routes(loaded, allowance)
            return routes
        finally:
            del self._loading[tenant_id]

    # ---- group commit ---------------------------------------------------------------------------------------------

    def _enqueue(
        self,
        ticket: _Ticket,
        index: int,
        submission: Submission,
        routes: _Routes,
        owed: tuple[UUID, ...],
        stale: int = 0,
    ) -> None:
        stored = submission.stored
        event = NewEvent(
            # Not the standard library's UUID, which takes five times as long to make; it has the parts that are used.
            cast(UUID, uuid7(nanoseconds=int(self._now() * 1e9))) if stored is None else stored[0],
            routes.routes.tenant_id,
            submission.type,
            submission.payload if stored is None else stored[1],
            owed,
            submission.key,
            None if submission.key is None else request_hash(submission),
            submission.trace_id,
            submission.span,
            submission.targets is not None,
            submission.without,
        )
        self._wait(_Pending(ticket, index, submission, stale, routes, event))

    def _wait(self, pending: _Pending) -> None:
        """Its turn comes with the next append of its queue."""
        shards = pending.routes.shards_for(pending.event.owed)
        queue = self._queues.get(shards)
        if queue is None:
            queue = self._queues[shards] = _Queue(shards)
        queue.events.append(pending)
        if not queue.waiting and queue.under_way < queue.appends_max:
            self._line_up(queue)

    def _line_up(self, queue: _Queue) -> None:
        """Its next append comes when its time and its turn have come."""
        queue.waiting = True
        loop = asyncio.get_running_loop()
        delay = queue.due - loop.time()
        if delay > 0 and len(queue.events) < GROUP_EVENTS_MAX:
            loop.call_later(delay, self._ready, queue)
        else:
            self._ready(queue)

    def _ready(self, queue: _Queue) -> None:
        self._waiting.append(queue)
        self._start()

    def _start(self) -> None:
        """Begin appends, first come first served; a queue whose shards are all taken keeps its place."""
        taken: list[_Queue] = []
        while self._waiting and len(self._busy) < APPENDS_MAX:
            queue = self._waiting.popleft()
            shard = queue.next_shard(self._busy)
            if shard is None:
                taken.append(queue)
                continue
            queue.under_way += 1
            self._busy.add(shard)
            task = asyncio.create_task(self._work(queue, shard))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._waiting.extendleft(reversed(taken))

    async def _work(self, queue: _Queue, shard: int) -> None:
        """One append; then the queue lines up again behind the others."""
        group = self._take(queue)
        queue.waiting = False
        queue.due = asyncio.get_running_loop().time() + gather_s(len(group))
        if queue.events and queue.under_way < queue.appends_max:
            self._line_up(queue)
        try:
            if group:
                await self._append(shard, group)
        except Exception as error:  # noqa: BLE001 - whatever it was, all of the group get an answer
            _fail(group, StoreUnavailable("internal error while appending"))
            telemetry.log_error("ingest", error)
        finally:
            self._count(-len(group), -sum([len(pending.submission.payload) for pending in group]))
            queue.under_way -= 1
            self._busy.discard(shard)
            if queue.events and not queue.waiting:
                self._line_up(queue)
            elif not queue.events and not queue.under_way and len(self._queues) > QUEUES_KEPT:
                self._queues.pop(queue.shards, None)
            self._start()

    def _take(self, queue: _Queue) -> list[_Pending]:
        group: list[_Pending] = []
        size = 0
        events = queue.events
        while events and len(group) < GROUP_EVENTS_MAX and size < GROUP_BYTES_MAX:
            pending = events.popleft()
            if pending.ticket.ended:
                self._count(-1, -len(pending.submission.payload))
            else:
                group.append(pending)
                size += len(pending.event.payload) + OWED_BYTES * len(pending.event.owed)
        return group

    async def _append(self, shard: int, group: list[_Pending]) -> None:
        current: list[_Pending] = []
        versions: dict[UUID, int] = {}
        outdated: list[_Pending] = []
        fresh: _Routes | None = None
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
        try:
            result = await self._store.append(shard, [pending.event for pending in current], versions)
        except DataRejected as error:
            await self._isolate(shard, current, error)
        except StoreUnavailable as error:
            _fail(current, error)
        else:
            if isinstance(result, Stale):
                await self._refresh(current, result)
            else:
                self._ring(shard)
                self._answer(current, result)

    def _answer(self, group: list[_Pending], result: list[Appended]) -> None:
        for pending, appended in zip(group, result, strict=True):
            pending.ticket.answer(pending.index, appended)
        duplicates = sum(appended.verdict is not Verdict.NEW for appended in result)
        telemetry.count("events_accepted", len(group) - duplicates)
        telemetry.count("events_duplicate", duplicates)

    async def _isolate(self, shard: int, group: list[_Pending], error: DataRejected) -> None:
        """One of them is poisoned: halve the group until it stands alone."""
        if len(group) == 1:
            group[0].ticket.answer(group[0].index, Refused(str(error)))
            return
        middle = len(group) // 2
        await self._append(shard, group[:middle])
        await self._append(shard, group[middle:])

    async def _refresh(self, group: list[_Pending], stale: Stale) -> None:
        """Some tenants' configuration changed: nothing was written; match theirs anew and append them all again."""
        for tenant_id in stale.tenants:
            self._routes.pop(tenant_id, None)
        await self._rematch([p for p in group if p.event.tenant_id in stale.tenants])
        for pending in group:
            if pending.event.tenant_id not in stale.tenants:
                self._count_again(pending)
                self._wait(pending)

    async def _rematch(self, group: Iterable[_Pending]) -> None:
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
                if submission.targets is None:
                    self._enqueue(ticket, pending.index, submission, routes, routes.match(submission), stale)
                elif not await self._aim(ticket, pending.index, submission, routes, submission.targets, stale):
                    continue
                self._count_again(pending)
            except (StoreUnavailable, UnknownTenant, Overloaded) as error:
                ticket.fail(error)

    # ---- time -----------------------------------------------------------------------------------------------------

    def _watch(self, ticket: _Ticket, loop: asyncio.AbstractEventLoop) -> None:
        self._tickets.append(ticket)
        if self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP_EVERY_S, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Requests are in the order of their deadlines: the first that may still wait ends the look."""
        now = loop.time()
        tickets = self._tickets
        while tickets and (tickets[0].ended or tickets[0].deadline <= now):
            tickets.popleft().fail(_too_late())
        self._drop_ended()
        if not tickets and self._all_ended is not None and not self._all_ended.done():
            self._all_ended.set_result(None)
        self._sweeper = loop.call_later(SWEEP_EVERY_S, self._sweep, loop) if tickets else None

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
        loop = asyncio.get_running_loop()
        delay = max(0.0, self._ring_due - loop.time())
        if delay:
            loop.call_later(delay, self._ring_now)
        else:
            self._ring_now()

    def _ring_now(self) -> None:
        self._ring_due = asyncio.get_running_loop().time() + RING_EVERY_S
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


def gather_s(group: int) -> float:
    """How long events gather for the next append of a queue when the last one took so many."""
    return min(GATHER_EVENT_S * group, GATHER_S_MAX)


def _not_accepted(future: asyncio.Future[list[Answer]], events: int) -> int:
    """Of a request's events those that cost nothing of a limit: all, unless it has its answers."""
    if not future.done() or future.cancelled() or future.exception() is not None:
        return events
    return sum(not isinstance(a, Appended) or a.verdict is Verdict.CONFLICT for a in future.result())


def _refused(submission: Submission, recalled: Recalled, faults: list[Fault]) -> Answer:
    """What an event is answered whose payload does not satisfy its schema: its key may have been answered before."""
    first = recalled.first
    if first is None:
        telemetry.count("events_misfit")
        return Misfit(tuple(faults))
    if recalled.request_hash == request_hash(submission):
        telemetry.count("events_duplicate")
        return first
    return Appended(Verdict.CONFLICT, first.event_id, first.delivery_count)


def _unknown(routes: _Routes, targets: tuple[UUID, ...]) -> UUID | None:
    return next((target for target in targets if target not in routes.pinned), None)


def _too_late() -> Overloaded:
    return Overloaded("the store did not answer in time")


def _resolve(future: asyncio.Future[list[Answer]], end: list[Answer] | Exception) -> None:
    if future.done():
        return  # the caller was cancelled
    if isinstance(end, Exception):
        future.set_exception(end)
    else:
        future.set_result(end)


def _fail(group: Iterable[_Pending], error: Exception) -> None:
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
