"""Whose turn it is: tenants first, then the lanes of a tenant.

Relies on: `enter` whenever a lane has something that may start, `resume` and `wake_waiting` whenever a place is free.
Promises: fair turns; a tenant never has more under way than its cap, and no more than its share while places are
scarce.
"""

from __future__ import annotations

from collections import deque

from hookpost.engine.lanes import EndpointState, Lane, TenantState

# When more than this part of a worker's requests are under way, a tenant may not have more of them than its fair share.
SCARCE_PART = 0.5


class Turns:
    """Round robin over tenants that have a lane ready, then over that tenant's ready lanes.

    A lane's turn goes to the one of its endpoint that is furthest behind, as far as a look at a neighbour tells: shards
    fill unevenly, and with equal turns one that has fallen behind would stay behind as long as more comes than can be
    sent.

    ``places`` are shared by all tenants. While more than SCARCE_PART of them are taken, a tenant that holds its
    fair share gets no more: another one that comes finds some left, however slow the receivers of the first are.
    ``started``: requests since the beginning.
    """

    __slots__ = ("_active", "_in_flight", "_kept_out", "_places", "_scarce_at", "_tenants", "started")

    def __init__(self, places: int) -> None:
        self._tenants: deque[TenantState] = deque()
        # Those that others' requests alone keep out, in the order in which they were: keys of a dict.
        self._kept_out: dict[TenantState, None] = {}
        self._places = places
        self._scarce_at = places * SCARCE_PART
        self._in_flight = 0
        self._active = 0
        self.started = 0

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def start(self, tenant: TenantState) -> None:
        """One more of its requests is under way."""
        self.started += 1
        self._in_flight += 1
        self._active += tenant.in_flight == 0
        tenant.in_flight += 1
        tenant.started += 1

    def end(self, tenant: TenantState) -> None:
        """One of its requests has ended."""
        self._in_flight -= 1
        tenant.in_flight -= 1
        last = tenant.in_flight == 0
        self._active -= last
        if self._kept_out and (last or self._in_flight < self._scarce_at):
            # Places are no longer scarce, or the shares are larger.
            kept_out, self._kept_out = self._kept_out, {}
            for each in kept_out:
                self.resume(each)

    def enter(self, lane: Lane) -> None:
        """The lane has something that may start."""
        if lane.ready or lane.blocked:
            return
        lane.ready = True
        endpoint = lane.endpoint
        endpoint.ready = _lined_up(lane, endpoint.ready)
        tenant = endpoint.tenant
        tenant.ready.append(endpoint)
        self.resume(tenant)

    def resume(self, tenant: TenantState) -> None:
        """The tenant has a place free again, if it has a ready lane."""
        if not tenant.turning and tenant.ready and self._has_place(tenant):
            tenant.turning = True
            self._tenants.append(tenant)

    def _has_place(self, tenant: TenantState) -> bool:
        """Has it one? If only others keep it out, it is called when they leave."""
        in_flight = tenant.in_flight
        if in_flight >= tenant.cap:
            return False
        # One share more than there are tenants: that of the next one to come.
        if self._in_flight < self._scarce_at or in_flight < max(1, self._places // (self._active + 1)):
            return True
        self._kept_out[tenant] = None
        return False

    def next(self) -> Lane | None:
        """The lane whose turn it is, taken out of the round; None when nobody may go."""
        while self._tenants:
            tenant = self._tenants.popleft()
            tenant.turning = False
            if not tenant.ready or not self._has_place(tenant):
                continue
            lane = tenant.ready.popleft().ready.pop(0)
            lane.ready = False
            if tenant.ready:
                tenant.turning = True
                self._tenants.append(tenant)
            return lane
        return None

    def block(self, lane: Lane) -> None:
        """The lane waits for a place of its endpoint."""
        lane.blocked = True
        lane.endpoint.waiting = _lined_up(lane, lane.endpoint.waiting)

    def wake_waiting(self, endpoint: EndpointState, *, everyone: bool = False) -> None:
        """A place of the endpoint is free: the lane that waited longest gets its turn, or one that is behind it."""
        while endpoint.waiting:
            lane = endpoint.waiting.pop(0)
            lane.blocked = False
            if lane.has_work():
                self.enter(lane)
                if not everyone:
                    return


def _lined_up(lane: Lane, lanes: list[Lane]) -> list[Lane]:
    """With the lane behind the others, or before them if it is behind the first one."""
    if not lanes:
        return [lane]
    if lane.is_behind(lanes[0]):
        lanes.insert(0, lane)
    else:
        lanes.append(lane)
    return lanes
