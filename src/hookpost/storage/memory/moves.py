"""Where a tenant's events go, in memory, and what must be waited for when that changes (docs/adr/0010).

The same steps as in the PostgreSQL store; a change is one step here, so a seal is the last number of the moment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost.engine.work import Kind
from hookpost.policy.routing import homes_after, is_pinned, shards_to_wait_for
from hookpost.storage.contract import RECONFIGURED, Conflict, Unfit
from hookpost.storage.memory.tables import Database

_PLACE = frozenset({"pool", "spread", "max_in_flight"})


class Moves:
    """The steps of a configuration change, behind the tenant's raised version."""

    def __init__(self, database: Database, endpoint_cap: int) -> None:
        self._db = database
        self._endpoint_cap = endpoint_cap

    def first_homes(self, pool: str, spread: int | None) -> tuple[int, ...]:
        """The home shards of a new tenant. Raises Unfit."""
        shards = self._pool_shards(pool)
        _check_spread(spread, pool, shards, "spread")
        return homes_after((), shards, spread or 1)

    def grow_pool(self, name: str, shards: int, shards_max: int) -> None:
        """Have so many shards in the pool. Raises Unfit."""
        own = sum(shard.pool == name for shard in self._db.shards.values())
        more = shards - own
        if more < 0:
            raise Unfit("shards", f"the pool has {own} shards, and shards are never taken away")
        if len(self._db.shards) + more > shards_max:
            raise Unfit("shards", f"there would be more than {shards_max} shards in all pools, which is the limit")
        self._db.add_shards(name, more)

    def move_tenant(self, before: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
        """A tenant's pool, spread or cap was changed as ``changes`` say. Raises Unfit, Conflict."""
        if not changes.keys() & _PLACE:
            return
        pool, spread = changes.get("pool", before["pool"]), changes.get("spread", before["spread"])
        shards = self._pool_shards(pool, at_home=before["home_shards"])
        _check_spread(spread, pool, shards, "spread" if "spread" in changes else "pool")
        if pool != before["pool"]:
            self._refuse_barred(before["tenant_id"])
        homes = homes_after(before["home_shards"], shards, spread or len(before["home_shards"]))
        self._place(before, pool, spread, homes)

    def spread_tenant(self, before: Mapping[str, Any], count: int) -> None:
        """The tenant's load asks for so many home shards."""
        shards = self._pool_shards(before["pool"], at_home=before["home_shards"])
        self._place(before, before["pool"], None, homes_after(before["home_shards"], shards, count))

    def use(self, number: int, *, draining: bool) -> None:
        """Take a shard out of use, or into use again. Raises Unfit, Conflict."""
        shard, db = self._db.shard(number), self._db
        if shard.draining == draining:
            return
        if draining and not any(s.pool == shard.pool and not s.draining for s in db.shards.values() if s is not shard):
            raise Unfit("shard", f"it is the last one in use of the pool {shard.pool}")
        if not draining and any(barred == number for _, barred in db.barriers):
            raise Conflict(f"endpoints still wait, in order, for what shard {number} holds")
        shard.draining = draining

    def leave_drained(self, before: Mapping[str, Any]) -> None:
        """The tenant leaves the drained shards of its pool, for others if there are as many. Raises Conflict."""
        shards, spread = self._pool_shards(before["pool"]), before["spread"]
        homes = homes_after(before["home_shards"], shards, spread or len(before["home_shards"]))
        if homes[0] != before["home_shards"][0]:
            # What waits in this first home for the one before would be overtaken in the next.
            self._refuse_barred(before["tenant_id"])
        self._place(before, before["pool"], spread and min(spread, len(shards)), homes)

    def change_endpoint(self, before: Mapping[str, Any], after: dict[str, Any]) -> None:
        """An endpoint was changed: it may be pinned now and was not, or no longer ordered. Raises Conflict."""
        tenant = self._db.tenants[after["tenant_id"]]
        homes, cap = tenant["home_shards"], tenant["max_in_flight"]
        shards = shards_to_wait_for(
            pinned_before=self._lives_in_first(before, homes, cap),
            pinned_after=self._lives_in_first(after, homes, cap),
            homes_before=homes,
            homes_after=homes,
            departed=self._departed(after["tenant_id"]),
        )
        barred = self._bar({after["endpoint_id"]: shards})
        if barred or (after["ordered"] and not before["ordered"]):
            self._announce(after["tenant_id"], homes[0])
        if before["ordered"] and not after["ordered"]:
            left = (self._db.shards[shard] for e, shard in self._db.barriers if e == after["endpoint_id"])
            if any(shard.draining or shard.pool != tenant["pool"] for shard in left):
                raise Conflict("the endpoint still waits, in order, for what its former pool holds: try again later")
            after["ordered_shard"], after["ordered_seq"] = homes[0], self._seal(homes[0])

    def _place(self, before: Mapping[str, Any], pool: str, spread: int | None, homes: Sequence[int]) -> None:
        """Give the tenant its pool, spread and home shards; depart from the others, bar what moved with the first."""
        tenant_id, homes_before = before["tenant_id"], before["home_shards"]
        tenant = self._db.tenants[tenant_id]
        tenant.update(pool=pool, home_shards=list(homes), spread=spread)
        if tuple(homes) == tuple(homes_before) and tenant["max_in_flight"] == before["max_in_flight"]:
            return
        departed = self._departed(tenant_id)
        waits = {
            row["endpoint_id"]: shards_to_wait_for(
                pinned_before=self._lives_in_first(row, homes_before, before["max_in_flight"]),
                pinned_after=self._lives_in_first(row, homes, tenant["max_in_flight"]),
                homes_before=homes_before,
                homes_after=homes,
                departed=departed,
            )
            for row in self._db.endpoints_of(tenant_id)
        }
        for shard in set(homes_before) - set(homes):
            self._db.departures[tenant_id, shard] = self._seal(shard)
        if self._bar(waits):
            self._announce(tenant_id, homes[0])
        for shard in homes:
            self._db.departures.pop((tenant_id, shard), None)

    def _bar(self, waits: Mapping[UUID, Collection[int]]) -> bool:
        """Note which endpoints wait for which shards, up to their last numbers; is there anybody who waits?"""
        seals = {(endpoint_id, shard): self._seal(shard) for endpoint_id, shards in waits.items() for shard in shards}
        self._db.barriers.update(seals)
        return bool(seals)

    def _announce(self, tenant_id: UUID, first_home: int) -> None:
        """Whoever owns this shard is to know of the change before it sees what comes behind it."""
        self._db.append(first_home, uuid7(), tenant_id, Kind.CONTROL, RECONFIGURED)

    def _seal(self, shard: int) -> int:
        return self._db.shards[shard].journal.last_seq

    def _departed(self, tenant_id: UUID) -> list[int]:
        return [shard for tenant, shard in self._db.departures if tenant == tenant_id]

    def _refuse_barred(self, tenant_id: UUID) -> None:
        if any(self._tenant_of(endpoint) == tenant_id for endpoint, _ in self._db.barriers):
            raise Conflict("endpoints of the tenant still wait for what was queued before the last change")

    def _tenant_of(self, endpoint_id: UUID) -> Any:
        return self._db.endpoints[endpoint_id]["tenant_id"]

    def _pool_shards(self, pool: str, *, at_home: Collection[int] = ()) -> list[int]:
        """Where a tenant may live that is ``at_home`` in these; the one that is home to the fewest tenants first."""
        usable = (s for s in self._db.shards.values() if not s.draining or s.shard in at_home)
        shards = [shard.shard for shard in usable if shard.pool == pool]
        if not shards:
            raise Unfit("pool", f"there is no pool {pool}")
        living = [row for row in self._db.tenants.values() if row["deleted_at"] is None]
        return sorted(shards, key=lambda shard: (sum(shard in row["home_shards"] for row in living), shard))

    def _lives_in_first(self, row: Mapping[str, Any], homes: Sequence[int], tenant_cap: int) -> bool:
        """Does all that an endpoint is owed go to the first home shard? As ingest decides it."""
        cap = row["max_in_flight"] or self._endpoint_cap
        return bool(row["pinned"]) or is_pinned(tenant_cap, homes) or is_pinned(cap, homes)

    # ---- when they are over -------------------------------------------------------------------------------------

    def lift(self) -> int:
        """Lift what has been waited for; returns how many barriers and departures."""
        db = self._db
        barriers = [
            (endpoint_id, shard)
            for (endpoint_id, shard), seq in db.barriers.items()
            if db.shards[shard].cursor >= seq and not db.waits(shard, endpoint_id, up_to=seq)
        ]
        for endpoint_id, shard in barriers:
            del db.barriers[endpoint_id, shard]
            db.tenants[self._tenant_of(endpoint_id)]["changed_at"] = db.now()
        departures = [
            (tenant_id, shard)
            for (tenant_id, shard), seq in db.departures.items()
            if db.shards[shard].cursor >= seq
            and not any(db.waits(shard, endpoint_id, up_to=seq) for endpoint_id in db.by_tenant.get(tenant_id, ()))
        ]
        for tenant_id, shard in departures:
            del db.departures[tenant_id, shard]
            db.tenants[tenant_id]["changed_at"] = db.now()
        return len(barriers) + len(departures)


def _check_spread(spread: int | None, pool: str, shards: Sequence[int], field: str) -> None:
    if spread is not None and spread > len(shards):
        raise Unfit(field, f"the pool {pool} has {len(shards)} shards and the spread is {spread}")
