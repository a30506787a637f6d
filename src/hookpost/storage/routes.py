"""A tenant's routes, ready to match: what ingest asks for every event, and the pump when the routes have changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar
from uuid import UUID

from hookpost.policy.journal import owed_now
from hookpost.policy.routing import Matcher, is_pinned
from hookpost.storage.contract import NewEvent, TenantRoutes


class Routes:
    """Whom a tenant's events are owed to, and to which shards they may go, at one version of its configuration.

    ``former`` is what they are made of where ``routes`` tell only what changed since (see ``fit``). Its endpoints are
    changed in place, as there may be very many: it answers like the newer one from then on, and still says that it is
    of the older version, so that no event that was matched with it is taken for one of the newer.
    """

    __slots__ = ("home", "matcher", "pinned", "routes")

    def __init__(self, routes: TenantRoutes, former: Routes | None = None) -> None:
        # Without the endpoints: what is asked of them is below.
        self.routes = replace(routes, endpoints=(), gone=frozenset())
        if former is None or routes.since is None:
            self.matcher, self.pinned = Matcher(), dict[UUID, bool]()
        else:
            self.matcher, self.pinned = former.matcher, former.pinned
        matcher, pinned, homes = self.matcher, self.pinned, routes.home_shards
        for endpoint_id in routes.gone:
            matcher.remove(endpoint_id)
            pinned.pop(endpoint_id, None)
        tenant_pinned = is_pinned(routes.max_in_flight, homes)
        for each in routes.endpoints:
            matcher.put(each.endpoint_id, each.events)
            pinned[each.endpoint_id] = tenant_pinned or each.pinned or is_pinned(each.max_in_flight, homes)
        # Where every event goes, if that does not depend on whom it is owed to.
        some, all_of_them = any(pinned.values()), tenant_pinned or all(pinned.values() or (False,))
        self.home = homes[:1] if all_of_them else None if some else homes

    def fit(self, routes: TenantRoutes) -> bool:
        """Can newer ones be made of these, and of what ``routes`` tell of the endpoints that changed since? Not where
        what they do not tell of would change, too; nor where the version went back, as behind a failover to a database
        that does not have the last changes."""
        known = self.routes
        if routes.config_version < known.config_version:
            return False
        return (known.home_shards, known.max_in_flight) == (routes.home_shards, routes.max_in_flight)

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


_R = TypeVar("_R", bound=Routes)


def remember(known: dict[UUID, _R], tenant_id: UUID, routes: _R, *, most: int) -> None:
    """Remember a tenant's routes, instead of those that were remembered first where they are too many."""
    while len(known) >= most:
        del known[next(iter(known))]
    known[tenant_id] = routes
