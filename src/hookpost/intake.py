"""What waits in front of the store: requests, their events in fair turns, and the queues that groups are taken from.

Nothing here knows a store or a clock: what is due, and how long appends took, is told.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from uuid import UUID

import msgspec

from hookpost.model import PayloadRef
from hookpost.policy.event_schema import Fault
from hookpost.policy.ingest_limit import Allowance
from hookpost.storage.contract import Appended, NewEvent, TenantRoutes
from hookpost.storage.routes import Routes

# Events in one append: beyond it the call's latency grows and its throughput does not.
GROUP_EVENTS_MAX = 500
# The same where a flood has company: who comes behind it waits for the append under way, and for one with it. For so
# long behind the last group that was of several tenants.
SHARED_EVENTS_MAX = 200
SHARED_S = 1.0
# Payload bytes in one append: it is one message to the database, and its memory there is a multiple of it.
GROUP_BYTES_MAX = 8 * 1024 * 1024
# What one endpoint in an owed list costs an append, in payload bytes: 500 events owed to 1,000 each take 0.6 s.
OWED_BYTES = 64
# Of a tenant so many events in a row go into a group before it is another one's turn: whoever posts one does not wait
# until a flood of others is stored.
TURN_EVENTS = 16
# Small groups of several queues share an append until it has so many: what an append costs apart from its events is
# a fifth of it then. A larger group has an append of its own, which the others need not wait for.
LOT_EVENTS = 200
# Of these for one queue: while one waits for the disk the next is on its way; a third would make the groups smaller.
QUEUE_APPENDS_MAX = 2
# Between two appends: events gather, longer where more of them come. The first one after a pause goes at once. An
# append costs as much as twenty events, and wakes the database up.
GATHER_EVENT_S = 0.001
GATHER_S_MAX = 0.008
# An append may take so much of the time for an answer; groups shrink until it does.
APPEND_PART = 0.5
# Whoever has less time left than twice what the quickest of so many last appends of the queue took (and than that
# part) is refused before the next: such an event would be stored in the place of one whose answer comes in time, and
# its producer would hear nothing of it. A process that is offered more than its store takes would acknowledge next to
# nothing of what it stores. The quickest, as a store that hangs for a moment says nothing of what comes after.
APPENDS_NOTED = 4


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


Answer = Appended | UnknownEndpoint | Refused | Misfit


Tell = Callable[[list[Answer] | Exception], None]


class Ticket:
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
        """What became of one of its events."""
        self.answers[index] = answer
        self.open -= 1
        if self.open == 0 and not self.ended:
            self.ended = True
            self.tell(self.answers)  # type: ignore[arg-type] # every place is filled now

    def fail(self, error: Exception) -> None:
        """Nothing of it is acknowledged; not heard any more once it has ended."""
        if not self.ended:
            self.ended = True
            self.tell(error)


class PostRoutes(Routes):
    """A tenant's routes and what it may post; ``allowance`` None: as much as it likes."""

    __slots__ = ("allowance",)

    def __init__(self, routes: TenantRoutes, allowance: Allowance | None, former: PostRoutes | None = None) -> None:
        super().__init__(routes, former)
        self.allowance = allowance

    def owed(self, submission: Submission) -> tuple[UUID, ...]:
        """Whom the event is owed to: its targets, or those whose filters match."""
        if submission.targets is not None:
            return tuple(dict.fromkeys(submission.targets))
        owed = self.matcher.match(submission.type)
        if submission.without is None:
            return owed
        return tuple(endpoint_id for endpoint_id in owed if endpoint_id != submission.without)

    def unknown(self, submission: Submission) -> UUID | None:
        """The first of its targets that is no endpoint of the tenant, as far as is known here."""
        return next((target for target in submission.targets or () if target not in self.pinned), None)


class Pending(msgspec.Struct, gc=False):
    """One event on its way to the store, the ``index``-th of its request; it was matched anew ``stale`` times, and is
    being appended to ``shard``."""

    ticket: Ticket
    index: int
    submission: Submission
    stale: int
    routes: PostRoutes
    event: NewEvent
    shard: int = -1


class _Waiting:
    """Events in front of the store: each tenant's in their order, the tenants in fair turns."""

    __slots__ = ("_left", "_len", "_tenants", "_turn")

    def __init__(self) -> None:
        self._tenants: OrderedDict[UUID, deque[Pending]] = OrderedDict()
        self._len = 0
        # The events of the first tenant, once its turn has begun, and how many of them are left of it.
        self._turn: deque[Pending] | None = None
        self._left = 0

    def __len__(self) -> int:
        return self._len

    @property
    def tenants(self) -> int:
        """How many have something here."""
        return len(self._tenants)

    def append(self, pending: Pending) -> None:
        """Behind what its tenant has here."""
        self._len += 1
        tenant_id = pending.event.tenant_id
        events = self._tenants.get(tenant_id)
        if events is None:
            events = self._tenants[tenant_id] = deque()
        events.append(pending)

    def popleft(self) -> Pending:
        """The next one of the tenant whose turn it is."""
        events = self._turn
        if events is None:
            events = self._turn = next(iter(self._tenants.values()))
            self._left = TURN_EVENTS
        pending = events.popleft()
        self._len -= 1
        self._left -= 1
        if not events or not self._left:
            self._turn = None
            tenant_id = pending.event.tenant_id
            if events:
                self._tenants.move_to_end(tenant_id)
            else:
                del self._tenants[tenant_id]
        return pending

    def pop_ended(self) -> Iterator[Pending]:
        """The first ones of each tenant whose requests have been answered."""
        for tenant_id, events in list(self._tenants.items()):
            while events and events[0].ticket.ended:
                self._len -= 1
                yield events.popleft()
            if not events:
                del self._tenants[tenant_id]
                if events is self._turn:
                    self._turn = None


class Lot:
    """What goes to the store in one append: groups of some queues, ``size`` in bytes; and what comes too ``late``."""

    __slots__ = ("events", "late", "queues", "shards", "size")

    def __init__(self) -> None:
        self.events: list[Pending] = []
        self.late: list[Pending] = []
        self.queues: list[Queue] = []
        self.shards: set[int] = set()
        self.size = 0


class Queue:
    """Events that may go to any of these shards, and how many appends of them are under way.

    ``waiting``: it is in line for its next append. The last ones took ``took_s``; at most ``group_max`` events go in
    the next, and fewer until ``shared_until``.
    """

    __slots__ = (
        "appends_max", "events", "group_max", "shards", "shared_until", "took_s", "turn", "under_way", "waiting",
    )  # fmt: skip

    def __init__(self, shards: tuple[int, ...]) -> None:
        self.shards = shards
        self.events = _Waiting()
        self.appends_max = min(len(shards), QUEUE_APPENDS_MAX)
        self.under_way = 0
        self.waiting = False
        self.turn = 0
        self.took_s = deque([0.0], maxlen=APPENDS_NOTED)
        self.group_max = GROUP_EVENTS_MAX
        self.shared_until = 0.0

    def take(self, lot: Lot, shard: int, *, now: float, timeout_s: float) -> None:
        """The next group, to this shard, and what need not be stored: nobody waits for it any more, or its answer would
        come too late. ``timeout_s``: how long a request waits for its answer."""
        group: list[Pending] = []
        size = lot.size
        events = self.events
        stored_at = now + min(2 * min(self.took_s), APPEND_PART * timeout_s)
        if events.tenants > 1:
            self.shared_until = now + SHARED_S
        most = self.group_max if now >= self.shared_until else min(self.group_max, SHARED_EVENTS_MAX)
        while events and len(group) < most and size < GROUP_BYTES_MAX:
            pending = events.popleft()
            if pending.ticket.ended or pending.ticket.deadline < stored_at:
                lot.late.append(pending)
            else:
                pending.shard = shard
                group.append(pending)
                size += len(pending.event.payload) + OWED_BYTES * len(pending.event.owed)
        self.waiting = False
        if group:
            self.under_way += 1
            lot.queues.append(self)
            lot.shards.add(shard)
            lot.events += group
            lot.size = size

    def learn(self, took_s: float, *, timeout_s: float) -> None:
        """An append took so long: the next group is to take a part of the time for an answer at most."""
        most_s = APPEND_PART * timeout_s
        self.took_s.append(took_s)
        if took_s > most_s:
            self.group_max = max(1, self.group_max // 2)
        elif took_s < most_s / 2:
            self.group_max = min(GROUP_EVENTS_MAX, 2 * self.group_max)

    def next_shard(self, busy: Collection[int], lot: Lot, *, shards_max: int) -> int | None:
        """One that the lot goes to anyway, or the next one that no append is under way to; None: it has to wait."""
        if lot.shards and not lot.shards.isdisjoint(self.shards):
            return next(shard for shard in self.shards if shard in lot.shards)
        if len(lot.shards) == shards_max:
            return None
        count = len(self.shards)
        for step in range(count):
            shard = self.shards[(self.turn + step) % count]
            if shard not in busy:
                self.turn = (self.turn + step + 1) % count
                return shard
        return None


def next_lot(line: deque[Queue], busy: Collection[int], *, shards_max: int, now: float, timeout_s: float) -> Lot:
    """Take the events of the next append out of the queues that stand in line, first come first served.

    A queue whose shards are all ``busy`` keeps its place, and so does one that has too many events to share an append.
    ``shards_max``: to how many one may go.
    """
    lot, left = Lot(), []
    room = LOT_EVENTS
    while line and len(lot.events) < room and lot.size < GROUP_BYTES_MAX:
        queue = line.popleft()
        most = min(room, queue.group_max)
        fits = not lot.events or len(lot.events) + len(queue.events) <= most
        shard = queue.next_shard(busy, lot, shards_max=shards_max) if fits else None
        if shard is None:
            left.append(queue)
        else:
            room = most
            queue.take(lot, shard, now=now, timeout_s=timeout_s)
    line.extendleft(reversed(left))
    return lot


def gather_s(events: int) -> float:
    """How long events gather for the next append when the last ones took so many."""
    return min(GATHER_EVENT_S * events, GATHER_S_MAX)
