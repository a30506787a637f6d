"""Lanes: all deliveries of one endpoint inside one shard, and whose turn it is.

A lane keeps a short queue in memory and, of what waits in the backlog, only a count and the next due time: a million
waiting deliveries cost no memory. Turns go round tenants first, then round the lanes of a tenant.
"""

from __future__ import annotations

from collections import deque
from typing import cast
from uuid import UUID

from hookpost.engine.work import Ready, Work
from hookpost.model import HEALTHY, Endpoint, Tenant
from hookpost.policy.gate import Gate

NEVER = float("inf")
# Sorts before every backlog row: rescan the lane from its beginning.
FROM_START = (0.0, -1)
# What a lane and its endpoint hold before they need containers of their own: of a hundred thousand most have nothing to
# do now, and their empty containers took 1.5 KB each. Adding to one of these raises.
NO_QUEUE = cast("deque[Work]", ())
NO_LANES = cast("deque[Lane]", ())
NO_POSITIONS = cast("set[int]", frozenset())
NONE_RELEASED = cast("list[int]", ())


class TenantState:
    """One tenant's share of this worker."""

    __slots__ = ("cap", "config", "endpoints", "in_flight", "lanes", "tenant_id", "turning")

    def __init__(self, tenant_id: UUID) -> None:
        self.tenant_id = tenant_id
        self.config: Tenant | None = None
        self.endpoints: dict[UUID, EndpointState] = {}
        self.in_flight = 0
        self.cap = 0
        self.lanes: Ready = deque()
        self.turning = False


class EndpointState:
    """One endpoint's share of this worker; ``config`` is None until it was loaded."""

    __slots__ = (
        "cap", "config", "endpoint_id", "gates", "health", "hold_until", "in_flight", "lanes", "tenant", "waiting",
    )  # fmt: skip

    def __init__(self, endpoint_id: UUID, tenant: TenantState) -> None:
        self.endpoint_id = endpoint_id
        self.tenant = tenant
        self.config: Endpoint | None = None
        self.gates: tuple[Gate, ...] = ()
        self.health = HEALTHY
        self.in_flight = 0
        self.cap = 0
        self.hold_until = 0.0
        self.lanes: list[Lane] = []
        self.waiting = NO_LANES


class Lane:
    """The deliveries of one endpoint in one shard.

    Of the backlog: ``stored`` rows in all; of those that are committed and not in memory none is due before
    ``next_due`` or has a deadline before ``next_deadline``; ``busy`` are the positions in memory or settled but not yet
    committed, which a fetch must not bring back; every other row lies behind ``after``.
    ``due_*`` and ``deadline_*`` are the least of the rows not yet committed, in the settle that is being gathered and
    in the one under way. No fetch may reach them; when they are committed they count as next.
    ``ready`` says that the lane is in the round of turns, ``blocked`` that it waits for a place of its endpoint,
    ``alarm`` is the earliest time it will be looked at again. ``queue`` is NO_QUEUE until something is to be queued,
    and again when the lane was found idle.
    """

    __slots__ = (
        "after", "alarm", "blocked", "busy", "deadline_building", "deadline_settling", "due_building", "due_settling",
        "endpoint", "fetching", "next_deadline", "next_due", "open", "queue", "ready", "released", "rescan", "shard",
        "stored", "wanted",
    )  # fmt: skip

    def __init__(self, shard: int, endpoint: EndpointState) -> None:
        self.shard = shard
        self.endpoint = endpoint
        self.queue = NO_QUEUE
        self.open = True
        self.ready = False
        self.blocked = False
        self.wanted = False
        self.alarm = NEVER
        self.stored = 0
        self.next_due = NEVER
        self.next_deadline = NEVER
        self.after = FROM_START
        self.busy = NO_POSITIONS
        self.fetching = False
        self.rescan = False
        self.released = NONE_RELEASED
        self.due_building = NEVER
        self.due_settling = NEVER
        self.deadline_building = NEVER
        self.deadline_settling = NEVER

    def occupy(self, position: int) -> None:
        """From here on a fetch must not bring this row."""
        if self.busy:
            self.busy.add(position)
        else:
            self.busy = {position}

    def let_go(self, position: int) -> None:
        """A fetch may bring this row, if it still exists."""
        if position in self.busy:
            self.busy.remove(position)
        if not self.busy:
            self.busy = NO_POSITIONS


class Turns:
    """Round robin over tenants that have a lane ready, then over that tenant's ready lanes."""

    __slots__ = ("_tenants",)

    def __init__(self) -> None:
        self._tenants: deque[TenantState] = deque()

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def enter(self, lane: Lane) -> None:
        """The lane has something that may start."""
        if lane.ready or lane.blocked:
            return
        lane.ready = True
        tenant = lane.endpoint.tenant
        tenant.lanes.append(lane)
        self.resume(tenant)

    def resume(self, tenant: TenantState) -> None:
        """The tenant has a place free again, if it has a ready lane."""
        if not tenant.turning and tenant.lanes and tenant.in_flight < tenant.cap:
            tenant.turning = True
            self._tenants.append(tenant)

    def next(self) -> Lane | None:
        """The lane whose turn it is, taken out of the round; None when nobody may go."""
        while self._tenants:
            tenant = self._tenants.popleft()
            tenant.turning = False
            if tenant.in_flight >= tenant.cap or not tenant.lanes:
                continue
            lane = tenant.lanes.popleft()
            lane.ready = False
            if tenant.lanes:
                tenant.turning = True
                self._tenants.append(tenant)
            return lane
        return None
