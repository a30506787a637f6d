"""Who is known to one worker: tenants, endpoints and their lanes, each with its share of the caps.

Relies on: configuration is loaded for what stands in `missing`. Promises: memory follows what is active: an endpoint
lives as long as it has a lane or a request under way, and a lane without work is forgotten after IDLE_S.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from uuid import UUID

from hookpost.engine.findings import Findings
from hookpost.engine.gates import Gates
from hookpost.engine.lanes import NO_QUEUE, EndpointState, Lane, TenantState
from hookpost.engine.shard import Shard
from hookpost.engine.turns import Turns
from hookpost.model import Endpoint, Tenant
from hookpost.policy.routing import cap_share

# A lane without work for so long is forgotten, with its endpoint's configuration: memory follows what is active.
IDLE_S = 600.0
# Idle lanes are looked for this often, in so many lanes at a time: it must not hold up what is sent.
IDLE_LOOK_S = 1.0
IDLE_LOOK_LANES = 1000


class Roster:
    """``missing``: endpoints (and their tenants) that deliveries wait for and that were not configured yet."""

    def __init__(self, shards: dict[int, Shard], gates: Gates, turns: Turns, findings: Findings) -> None:
        self._shards = shards
        self._gates = gates
        self._turns = turns
        self._findings = findings
        self.tenants: dict[UUID, TenantState] = {}
        self.endpoints: dict[UUID, EndpointState] = {}
        self.missing: dict[UUID, UUID] = {}
        self._at_home: dict[int, dict[TenantState, None]] = {}
        self._to_look_at: list[Lane] = []
        self.look_at = 0.0

    def endpoints_of(self, tenants: Collection[UUID]) -> list[UUID]:
        """The endpoints of these tenants whose configuration this engine holds."""
        known = (self.tenants[tenant_id] for tenant_id in tenants if tenant_id in self.tenants)
        return [e.endpoint_id for tenant in known for e in tenant.endpoints.values() if e.config is not None]

    def known_among(self, endpoint_ids: Iterable[UUID]) -> list[UUID]:
        """Of these endpoints those whose configuration this engine holds."""
        known = self.endpoints
        return [each for each in endpoint_ids if (state := known.get(each)) is not None and state.config is not None]

    def lane(self, shard: Shard, endpoint_id: UUID, tenant_id: UUID, now: float) -> Lane:
        """The lane for a delivery that comes in."""
        lane = shard.lanes.get(endpoint_id)
        if lane is None:
            lane = self.new_lane(shard, endpoint_id, tenant_id, now)
        if lane.queue is NO_QUEUE:
            lane.queue = deque()
            self.ask_for(lane.endpoint)
        return lane

    def new_lane(self, shard: Shard, endpoint_id: UUID, tenant_id: UUID, now: float) -> Lane:
        """A lane of a shard, and its endpoint if that was not known."""
        endpoint = self.endpoints.get(endpoint_id)
        if endpoint is None:
            tenant = self.tenant(tenant_id)
            endpoint = self.endpoints[endpoint_id] = EndpointState(endpoint_id, tenant)
            tenant.endpoints[endpoint_id] = endpoint
            if endpoint_id in self._findings.holds:
                # Noted for a shard that was closed since, and not yet part of any configuration.
                endpoint.hold_until = self._findings.holds[endpoint_id].until
        lane = shard.lanes[endpoint_id] = Lane(shard.number, endpoint)
        lane.quiet_until = shard.quiet_until
        endpoint.lanes.append(lane)
        endpoint.tenant.origins = None
        if endpoint.config is not None:
            lane.keep_order(endpoint.config)
            # The shard's last owner may have emptied its bucket a moment ago.
            endpoint.bucket = None
            self.limit(endpoint, endpoint.config, now)
        return lane

    def tenant(self, tenant_id: UUID) -> TenantState:
        """Known from now on."""
        state = self.tenants.get(tenant_id)
        if state is None:
            state = self.tenants[tenant_id] = TenantState(tenant_id)
        return state

    def ask_for(self, endpoint: EndpointState) -> None:
        """Its configuration is needed now."""
        if endpoint.config is None:
            self.missing[endpoint.endpoint_id] = endpoint.tenant.tenant_id

    def forget_idle(self, endpoint: EndpointState) -> None:
        """The endpoint and its tenant, unless something of them is left."""
        if endpoint.lanes or endpoint.in_flight:
            return
        tenant = endpoint.tenant
        self.endpoints.pop(endpoint.endpoint_id, None)
        self.missing.pop(endpoint.endpoint_id, None)
        tenant.endpoints.pop(endpoint.endpoint_id, None)
        tenant.origins = None
        if not tenant.endpoints and not tenant.ready:
            self.tenants.pop(tenant.tenant_id, None)
            self.leave_home(tenant)

    def settle_in(self, state: TenantState, config: Tenant) -> None:
        """The tenant's configuration, with its home shards."""
        self.leave_home(state)
        for shard in config.home_shards:
            self._at_home.setdefault(shard, {})[state] = None
        state.config = config

    def leave_home(self, tenant: TenantState) -> None:
        """It has no home any more."""
        for shard in () if tenant.config is None else tenant.config.home_shards:
            self._at_home[shard].pop(tenant, None)

    def share_caps(self, number: int) -> None:
        """The shard came or went: with it a part of the caps of the tenants at home there."""
        for tenant in self._at_home.get(number, ()):
            self.share_tenant(tenant)

    def share_tenant(self, tenant: TenantState) -> None:
        """Its caps and those of its endpoints, as its home shards are shared out."""
        if tenant.config is not None:
            tenant.cap = cap_share(tenant.config.max_in_flight, tenant.config.home_shards, self._shards)
            self._turns.resume(tenant)
            for endpoint in tenant.endpoints.values():
                self.share_endpoint(endpoint)

    def share_endpoint(self, endpoint: EndpointState) -> None:
        """Its cap, as its tenant's home shards are shared out."""
        tenant = endpoint.tenant.config
        if endpoint.config is not None and tenant is not None:
            config = endpoint.config
            endpoint.cap = cap_share(config.max_in_flight, tenant.home_shards, self._shards, pinned=config.pinned)
            self._turns.wake_waiting(endpoint, everyone=True)

    def limit(self, endpoint: EndpointState, config: Endpoint, now: float) -> None:
        """Its rate limit. It lives in the first home shard; where it has lanes in others, of a time before it was
        pinned there, none of these knows of the rest, and each has a part of the rate: all together keep to it. While
        it is barred, only those send."""
        tenant = endpoint.tenant
        homes = () if tenant.config is None else tenant.config.home_shards
        away = homes and (config.barred or not any(tenant.lives_in(lane.shard) for lane in endpoint.lanes))
        opened_at = max((self._shards[lane.shard].opened_at for lane in endpoint.lanes), default=now)
        # A limit that is new is not filled up by the time before it was one.
        since = opened_at if endpoint.config is None else now
        part = 1 / max(1, len(homes) - 1) if away else 1.0
        self._gates.configure(endpoint, config, since=since, part=part, now=now)

    def forget_lanes(self, now: float) -> None:
        """Look through some lanes. One that is found idle twice in a row, with all of IDLE_S between, is forgotten."""
        lanes = self._to_look_at
        if not lanes:
            lanes.extend(lane for shard in self._shards.values() for lane in shard.lanes.values())
        some = lanes[-IDLE_LOOK_LANES:]
        del lanes[-IDLE_LOOK_LANES:]
        for lane in some:
            if not lane.open or not _is_idle(lane, now):
                continue
            if lane.queue is NO_QUEUE:
                self._forget_lane(lane)
            else:
                lane.queue = lane.later = NO_QUEUE
        self.look_at = now + (IDLE_LOOK_S if lanes else IDLE_S)

    def _forget_lane(self, lane: Lane) -> None:
        endpoint = lane.endpoint
        lane.open = False
        del self._shards[lane.shard].lanes[endpoint.endpoint_id]
        endpoint.lanes.remove(lane)
        self.forget_idle(endpoint)


def _is_idle(lane: Lane, now: float) -> bool:
    """Has it nothing to do and nothing to remember? What a gate has learnt would be lost with its endpoint."""
    endpoint = lane.endpoint
    return not (
        lane.has_work()
        or lane.named
        or lane.stored > 0
        or lane.busy
        or lane.ready
        or lane.blocked
        or lane.wanted
        or lane.fetching
        or endpoint.in_flight
        or endpoint.hold_until > now
        or not (endpoint.bucket is None or endpoint.bucket.is_full(now=now))
        or endpoint.origin in endpoint.tenant.breakers
    )
