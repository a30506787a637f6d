"""A tenant's routes, ready to match: what ingest asks for every event, and the pump when the routes have changed."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from hookpost.policy.journal import owed_now
from hookpost.policy.routing import Matcher, is_pinned
from hookpost.storage.contract import NewEvent, TenantRoutes


class Routes:
    """Whom a tenant's events are owed to, and to which shards they may go, at one version of its configuration."""

    __slots__ = ("home", "matcher", "pinned", "routes")

    def __init__(self, routes: TenantRoutes) -> None:
        self.routes = routes
        self.matcher = Matcher((endpoint.endpoint_id, endpoint.events) for endpoint in routes.endpoints)
        tenant_pinned = is_pinned(routes.max_in_flight, routes.home_shards)
        self.pinned = {
            e.endpoint_id: tenant_pinned or e.pinned or is_pinned(e.max_in_flight, routes.home_shards)
            for e in routes.endpoints
        }
        # Where every event goes, if that does not depend on whom it is owed to.
        some, all_of_them = any(self.pinned.values()), tenant_pinned or all(self.pinned.values() or (False,))
        self.home = routes.home_shards[:1] if all_of_them else None if some else routes.home_shards

    def owed_now(self, event: NewEvent, *, accepted_at: float) -> tuple[UUID, ...]:
        """To whom an event is owed that was matched at another version than this one, and was accepted at that time."""
        if event.targeted:
            return event.owed
        return owed_now(event.owed, self.matcher.match(event.type), without=event.without, accepted_at=accepted_at)

    def shards_for(self, owed: Sequence[UUID]) -> tuple[int, ...]:
        """Where the event may go: to the first home shard if any endpoint that it is owed to is pinned, else to any.
        An endpoint that was deleted since it was matched pins nothing."""
        if self.home is not None:
            return self.home
        home_shards, pinned = self.routes.home_shards, self.pinned
        return home_shards[:1] if any(pinned.get(endpoint_id, False) for endpoint_id in owed) else home_shards
