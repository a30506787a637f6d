"""Which endpoints an event is owed to, which shard takes it, and what part of a cap a shard holds.

Pure. The tenant's home shards are stored on the tenant, not computed, so that adding shards moves nobody.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from uuid import UUID

# Operational events of the platform itself; a filter must name them, `*` leaves them out.
RESERVED_PREFIX = "hookpost."
EVENT_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,128}")
POOL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
POOL_NAME_RULE = "a name of at most 63 letters a-z, digits, - and _ is expected, beginning with a letter or digit"
# Each shard costs a fence row checked in every settle and a progress row written in it.
SHARDS_MAX = 1024
# Home shards of one tenant. An endpoint's cap of requests in flight (64 by default) is shared out among them; one that
# is smaller than their number cannot be, and all of its events go through a single shard.
HOMES_MAX = 64
# Requests in flight to an endpoint that says nothing of its own.
ENDPOINT_CAP = 64
# Filters of one endpoint, whatever an installation allows: more do not fit into a request.
FILTERS_MAX = 500
# Distinct event types whose answer one matcher remembers; beyond it the memory starts anew.
MATCHES_REMEMBERED = 10_000


def type_fault(event_type: str) -> str | None:
    """Why a tenant cannot post an event of this type, or None."""
    if EVENT_TYPE.fullmatch(event_type) is None:
        return "1 to 128 characters out of A-Z a-z 0-9 _ . -"
    if event_type.startswith(RESERVED_PREFIX):
        return f"types that begin with {RESERVED_PREFIX} are reserved for the platform"
    return None


class Matcher:
    """Answers for one tenant's endpoints: to whom is an event of this type owed?

    A filter is an exact name, ``prefix.*`` (any depth below the prefix) or ``*`` (everything but ``hookpost.*``).
    """

    __slots__ = ("_everything", "_exact", "_known", "_next", "_prefix", "_remembered")

    def __init__(self, filters: Iterable[tuple[UUID, Sequence[str]]] = ()) -> None:
        # Of each endpoint its place in their order, and its patterns.
        self._known: dict[UUID, tuple[int, Sequence[str]]] = {}
        self._next = 0
        self._exact: dict[str, set[UUID]] = {}
        self._prefix: dict[str, set[UUID]] = {}
        self._everything: set[UUID] = set()
        self._remembered: dict[str, tuple[UUID, ...]] = {}
        for endpoint_id, patterns in filters:
            self.put(endpoint_id, patterns)

    def put(self, endpoint_id: UUID, patterns: Sequence[str]) -> None:
        """An endpoint has this filter from now on: a new one, behind all others, or one that is known, in its place."""
        known = self._known.get(endpoint_id)
        if known is None:
            place, self._next = self._next, self._next + 1
        else:
            place = known[0]
            if known[1] == patterns:
                return
            self.remove(endpoint_id)
        self._known[endpoint_id] = place, patterns
        for pattern in patterns:
            if pattern == "*":
                self._everything.add(endpoint_id)
            else:
                index, name = self._index_of(pattern)
                index.setdefault(name, set()).add(endpoint_id)
        self._remembered.clear()

    def remove(self, endpoint_id: UUID) -> None:
        """An endpoint is gone; nothing happens if it is not known."""
        _, patterns = self._known.pop(endpoint_id, (0, ()))
        for pattern in dict.fromkeys(patterns):
            if pattern == "*":
                self._everything.remove(endpoint_id)
            else:
                index, name = self._index_of(pattern)
                index[name].remove(endpoint_id)
                if not index[name]:
                    del index[name]
        if patterns:
            self._remembered.clear()

    def _index_of(self, pattern: str) -> tuple[dict[str, set[UUID]], str]:
        return (self._prefix, pattern[:-1]) if pattern.endswith(".*") else (self._exact, pattern)

    def match(self, event_type: str) -> tuple[UUID, ...]:
        """The endpoints an event of this type is owed to, in the order they were created."""
        found = self._remembered.get(event_type)
        if found is None:
            if len(self._remembered) >= MATCHES_REMEMBERED:
                self._remembered.clear()
            found = self._remembered[event_type] = self._search(event_type)
        return found

    def _search(self, event_type: str) -> tuple[UUID, ...]:
        found = set(self._exact.get(event_type, ()))
        if not event_type.startswith(RESERVED_PREFIX):
            found |= self._everything
        dot = event_type.find(".")
        while dot != -1:
            found |= self._prefix.get(event_type[: dot + 1], set())
            dot = event_type.find(".", dot + 1)
        # No two have the same place.
        return tuple(sorted(found, key=self._known.__getitem__))


def shard_for(event_id: UUID, home_shards: Sequence[int], *, pinned: bool) -> int:
    """The shard an event is appended to: the first home shard if any endpoint it is owed to is pinned, else spread."""
    if pinned or len(home_shards) == 1:
        return home_shards[0]
    # The low 64 bits of a UUIDv7 are random.
    return home_shards[(event_id.int & 0xFFFFFFFFFFFFFFFF) % len(home_shards)]


def is_pinned(cap: int, home_shards: Sequence[int]) -> bool:
    """A cap smaller than the spread cannot be divided among its shards: the whole of it lives in the first."""
    return cap < len(home_shards)


def homes_after(home_shards: Sequence[int], pool: Sequence[int], spread: int) -> tuple[int, ...]:
    """The home shards of a tenant that is to have ``spread`` of them in a pool, whose shards come least used first.

    Those it has there stay, the first one above all, for what is pinned to it; it grows by the least used ones and
    shrinks from its end. Fewer than asked for where the pool has no more.
    """
    kept = [shard for shard in home_shards if shard in pool]
    return tuple([*kept, *(shard for shard in pool if shard not in kept)][:spread])


def shards_to_wait_for(
    *,
    pinned_before: bool,
    pinned_after: bool,
    homes_before: Sequence[int],
    homes_after: Sequence[int],
    departed: Collection[int],
) -> frozenset[int]:
    """Where something of an endpoint may be left that must be done before its new first home shard may go on.

    What was pinned lies in the former first home shard; what was not, in any of them and in those that the tenant
    ``departed`` from before.
    """
    if not pinned_after:
        return frozenset()
    left = homes_before[:1] if pinned_before else (*homes_before, *departed)
    return frozenset(left) - {homes_after[0]}


def cap_share(cap: int, home_shards: Sequence[int], owned: Collection[int], *, pinned: bool = False) -> int:
    """The part of an in-flight cap that belongs to a worker which owns the given shards.

    The parts of all owners add up to the cap exactly. A worker that still holds work in a shard which is no longer
    a home of the tenant gets one place for it, so that it can drain. ``pinned`` says that the endpoint lives in the
    first home shard whatever its cap.
    """
    spread = len(home_shards)
    if pinned or is_pinned(cap, home_shards):
        return cap if home_shards[0] in owned else 1
    share = sum(
        cap * (index + 1) // spread - cap * index // spread for index, shard in enumerate(home_shards) if shard in owned
    )
    return max(1, share)
