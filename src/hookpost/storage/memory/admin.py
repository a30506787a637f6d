"""The API's side of the store in memory, as far as it changes what is delivered.

Every change of a tenant's configuration raises its config version; one that is refused leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import msgspec

from hookpost.engine.work import Kind
from hookpost.model import EndpointStatus
from hookpost.policy.breaker import STEP_S, BreakerState
from hookpost.policy.egress import origin_of
from hookpost.policy.routing import is_pinned, shard_for
from hookpost.storage.contract import Conflict, ControlAction, NotFound
from hookpost.storage.endpoints import changed_headers
from hookpost.storage.memory.moves import Moves
from hookpost.storage.memory.tables import Breaker, Database

_ENDPOINT: dict[str, Any] = {
    "url": "", "events": ("*",), "status": EndpointStatus.ENABLED.value, "status_reason": None, "description": None,
    "uid": None, "metadata": {}, "base_s": None, "cap_s": None, "max_attempts": None, "deadline_s": None,
    "connect_s": None, "first_byte_s": None, "total_s": None, "max_in_flight": None, "rate_limit": None,
    "ordered": False, "on_dead": None, "ack": None, "spread": None, "headers": {}, "secret_headers": {},
    "tls_ca": None, "tls_cert": None, "tls_key": None, "forward_trace": False,
}  # fmt: skip
_NEW: dict[str, Any] = {
    "hold_until": None, "consecutive_failures": 0, "failing_since": None, "health_at": 0.0, "deleted_at": None,
    "ordered_shard": None, "ordered_seq": None, "routed_in": 0,
}  # fmt: skip
# What ingest knows of an endpoint is made of these.
_ROUTING = ("events", "max_in_flight", "pinned")
# What a change of a tenant says of itself; its pool and spread are moves.
TENANT_CHANGES = frozenset({"name", "ingest_rate_limit", "max_in_flight", "alert_email"})


class AdminTables:
    """Implements what AdminStore says of tenants, endpoints and single events."""

    _db: Database
    _pause: Callable[[], Awaitable[None]]
    _moves: Moves
    _endpoint_cap: int

    async def ping(self) -> float:
        await self._pause()
        return self._db.now()

    # ---- tenants ------------------------------------------------------------------------------------------------

    async def create_tenant(self, tenant_id: UUID, values: Mapping[str, Any]) -> dict[str, Any]:
        await self._pause()
        pool, spread = values.get("pool") or "default", values.get("spread")
        homes = values.get("home_shards") or self._moves.first_homes(pool, spread)
        self._db.tenants[tenant_id] = {
            "tenant_id": tenant_id, "name": values["name"], "pool": pool, "home_shards": list(homes),
            "spread": spread, "config_version": 1, "changed_at": self._db.now(),
            "ingest_rate_limit": values.get("ingest_rate_limit"), "max_in_flight": values.get("max_in_flight") or 512,
            "alert_email": values.get("alert_email"), "deleted_at": None,
        }  # fmt: skip
        return self._shown(tenant_id)

    async def get_tenant(self, tenant_id: UUID) -> dict[str, Any]:
        await self._pause()
        self._db.tenant(tenant_id)
        return self._shown(tenant_id)

    def _shown(self, tenant_id: UUID) -> dict[str, Any]:
        barred = any(self._db.endpoints[endpoint]["tenant_id"] == tenant_id for endpoint, _ in self._db.barriers)
        moving = barred or any(tenant == tenant_id for tenant, _ in self._db.departures)
        return {**self._db.tenants[tenant_id], "moving": moving}

    async def update_tenant(self, tenant_id: UUID, changes: Mapping[str, Any]) -> dict[str, Any]:
        await self._pause()
        with self._changing(tenant_id) as tenant:
            before = dict(tenant)
            tenant.update({n: v for n, v in changes.items() if n in TENANT_CHANGES})
            self._moves.move_tenant(before, changes)
        return self._shown(tenant_id)

    async def set_spread(self, tenant_id: UUID, *, known: int, wanted: int) -> bool:
        await self._pause()
        tenant = self._db.tenant(tenant_id)
        if tenant["spread"] is not None or len(tenant["home_shards"]) != known:
            return False
        with self._changing(tenant_id):
            self._moves.spread_tenant(dict(tenant), wanted)
        return True

    async def delete_tenant(self, tenant_id: UUID) -> None:
        await self._pause()
        with self._changing(tenant_id) as tenant:
            for row in self._db.endpoints_of(tenant_id):
                self._delete(row)
            for key in [key for key in self._db.event_types if key[0] == tenant_id]:
                del self._db.event_types[key]
            tenant["deleted_at"] = self._db.now()

    async def list_pools(self) -> list[dict[str, Any]]:
        await self._pause()
        db, now = self._db, self._db.now()
        names = sorted({shard.pool for shard in db.shards.values()})
        return [
            {
                "name": name,
                "shards": sum(shard.pool == name for shard in db.shards.values()),
                "tenants": sum(row["pool"] == name and row["deleted_at"] is None for row in db.tenants.values()),
                "workers": sum(node.pool == name and node.expires_at > now for node in db.nodes.values()),
            }
            for name in names
        ]

    async def grow_pool(self, name: str, shards: int, *, shards_max: int) -> dict[str, Any]:
        await self._pause()
        self._moves.grow_pool(name, shards, shards_max)
        return next(pool for pool in await self.list_pools() if pool["name"] == name)

    @contextmanager
    def _changing(self, tenant_id: UUID) -> Iterator[dict[str, Any]]:
        """One change of the tenant's configuration, or none. Raises NotFound when there is no such tenant."""
        db, tenant = self._db, self._db.tenant(tenant_id)
        ids = db.by_tenant.get(tenant_id, ())
        kept = dict(tenant), {i: dict(db.endpoints[i]) for i in ids}, dict(db.barriers), dict(db.departures)
        tenant["config_version"] += 1
        tenant["changed_at"] = db.now()
        try:
            yield tenant
        except Exception:
            db.tenants[tenant_id], endpoints, db.barriers, db.departures = kept
            db.endpoints.update(endpoints)
            raise

    # ---- endpoints ----------------------------------------------------------------------------------------------

    async def create_endpoint(self, values: Mapping[str, Any], secret: bytes, *, endpoints_max: int) -> dict[str, Any]:
        await self._pause()
        endpoint_id, tenant_id = values["endpoint_id"], values["tenant_id"]
        if len(self._db.endpoints_of(tenant_id)) >= endpoints_max:
            raise Conflict(f"the tenant has {endpoints_max} endpoints, which is the limit: delete some first")
        with self._changing(tenant_id) as tenant:
            row = {**_ENDPOINT, **_NEW, **_with_tls(_with_headers(_ENDPOINT, values))}
            row["pinned"], row["routed_in"] = _is_pinned(row), tenant["config_version"]
            self._db.endpoints[endpoint_id] = row
            self._db.by_tenant.setdefault(tenant_id, []).append(endpoint_id)
            self._db.secrets[endpoint_id] = [(secret, self._db.now(), None)]
        return self._with_breaker(row)

    async def get_endpoint(self, tenant_id: UUID | None, endpoint_id: UUID) -> dict[str, Any]:
        await self._pause()
        return self._with_breaker(self._db.endpoint(tenant_id, endpoint_id))

    async def update_endpoint(self, tenant_id: UUID, endpoint_id: UUID, changes: Mapping[str, Any]) -> dict[str, Any]:
        await self._pause()
        with self._changing(tenant_id) as tenant:
            row = self._db.endpoint(tenant_id, endpoint_id)
            before = dict(row)
            wanted = _with_tls(_with_headers(row, changes))
            row.update({name: value for name, value in wanted.items() if name in _ENDPOINT})
            row["pinned"] = _is_pinned(row)
            if any(row[name] != before[name] for name in _ROUTING):
                row["routed_in"] = tenant["config_version"]
            opened = row["status"] == EndpointStatus.ENABLED and before["status"] != EndpointStatus.ENABLED
            if opened or row["url"] != before["url"]:
                row["consecutive_failures"], row["failing_since"] = 0, None
            self._moves.change_endpoint(before, row)
        if changes.get("status") == EndpointStatus.ENABLED:
            self._close_breaker((tenant_id, origin_of(row["url"])))
        return self._with_breaker(row)

    def _close_breaker(self, receiver: tuple[UUID, str]) -> None:
        stored = self._db.breakers.get(receiver)
        if stored is not None and stored.record.state is not BreakerState.CLOSED:
            self._db.breakers[receiver] = Breaker(
                replace(
                    stored.record,
                    state=BreakerState.CLOSED,
                    since=max(self._db.now(), stored.record.since + STEP_S),
                    reopen_at=None,
                    openings=0,
                    failures=0,
                )
            )

    def _with_breaker(self, row: Mapping[str, Any]) -> dict[str, Any]:
        stored = self._db.breakers.get((row["tenant_id"], origin_of(row["url"])))
        state = "closed" if stored is None else stored.record.state
        since, reopen_at = (None, None) if stored is None else (stored.record.since, stored.record.reopen_at)
        return {**row, "breaker_state": state, "breaker_since": since, "breaker_reopen_at": reopen_at}

    async def delete_endpoint(self, tenant_id: UUID, endpoint_id: UUID) -> None:
        await self._pause()
        with self._changing(tenant_id):
            self._delete(self._db.endpoint(tenant_id, endpoint_id))

    def _delete(self, row: dict[str, Any]) -> None:
        """What is cancelled need not be waited for."""
        row["deleted_at"] = self._db.now()
        gone = row["endpoint_id"]
        row["routed_in"] = self._db.tenants[row["tenant_id"]]["config_version"]
        self._db.barriers = {key: seq for key, seq in self._db.barriers.items() if key[0] != gone}

    # ---- single events ------------------------------------------------------------------------------------------

    async def append_replay(self, tenant_id: UUID, event_id: UUID, endpoint_id: UUID | None) -> int:
        await self._pause()
        async with self._db.leaving:
            return self._append_replay(tenant_id, event_id, endpoint_id)

    def _append_replay(self, tenant_id: UUID, event_id: UUID, endpoint_id: UUID | None) -> int:
        self._db.tenant(tenant_id)
        original = self._db.original(event_id)
        if original is None or original.tenant_id != tenant_id:
            raise NotFound("there is no such event")
        owed = [each for each in original.owed if self._db.exists(each)]
        if endpoint_id is not None:
            if endpoint_id not in owed:
                raise NotFound("the event was not owed to this endpoint, or the endpoint is gone")
            owed = [endpoint_id]
        if owed:
            self._owe_again(tenant_id, event_id, original.type, owed)
        return len(owed)

    def _owe_again(self, tenant_id: UUID, event_id: UUID, type_: str, owed: Sequence[UUID]) -> set[int]:
        """A replay, in a shard that ingest may choose for it now, or where it takes the place of what blocks there;
        returns the shards."""
        tenant = self._db.tenants[tenant_id]
        homes, rows = tenant["home_shards"], [self._db.endpoints[each] for each in owed]
        pinned = is_pinned(tenant["max_in_flight"], homes) or any(
            row["pinned"] or is_pinned(row["max_in_flight"] or self._endpoint_cap, homes) for row in rows
        )
        chosen = shard_for(event_id, homes, pinned=pinned)
        generation = 1 + self._db.newest_generation(event_id)
        aimed: dict[int, list[UUID]] = {}
        for each in owed:
            letter = self._db.dead.get((event_id, each))
            shard = letter.shard if letter is not None and self._db.blocks(letter) else chosen
            aimed.setdefault(shard, []).append(each)
        for shard, ids in aimed.items():
            self._db.append(shard, event_id, tenant_id, Kind.REPLAY, type_, owed=tuple(ids), generation=generation)
        return set(aimed)

    async def append_control(
        self, tenant_id: UUID, event_id: UUID, endpoint_id: UUID | None, action: ControlAction
    ) -> int:
        await self._pause()
        original = self._db.original(event_id)
        if original is None or original.tenant_id != tenant_id:
            raise NotFound("there is no such event")
        rows = [row for row in self._db.by_event[event_id] if row.kind != Kind.CONTROL]
        owed = {each for row in rows for each in row.owed}
        if endpoint_id is not None and endpoint_id not in owed:
            raise NotFound("the event was not owed to this endpoint")
        asked = owed if endpoint_id is None else {endpoint_id}
        wanted = {each for each in asked if any(self._is_left(row.shard, row.seq, each, action) for row in rows)}
        for shard in sorted({row.shard for row in rows if wanted & set(row.owed)}):
            named = [row for row in rows if row.shard == shard and wanted & set(row.owed)]
            self._db.append(
                shard, event_id, tenant_id, Kind.CONTROL, action.value,
                payload=msgspec.json.encode(sorted(row.seq for row in named)),
                owed=tuple(sorted(wanted & {each for row in named for each in row.owed})),
            )  # fmt: skip
        return len(wanted)

    def _is_left(self, shard: int, seq: int, endpoint_id: UUID, action: ControlAction) -> bool:
        """Is this delivery queued or waiting? A dead one that blocks its lane can be cancelled, too."""
        waiting = self._db.backlog.get((shard, endpoint_id), {}).get(seq)
        if waiting is not None:
            return waiting.due_at != float("inf") or action == ControlAction.CANCEL
        last = self._db.shards[shard].last
        if last is None or seq > last.progress.read_to:
            return True
        is_open = any(start <= seq < end for start, end in last.progress.open)
        return is_open and endpoint_id not in dict(last.progress.partial).get(seq, ())


def _with_headers(row: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes, with those of the endpoint's own headers as they are kept here: nothing is sealed, as nothing is at
    rest."""
    if "headers" not in changes:
        return dict(changes)
    plain, hidden = changed_headers(row["headers"], row["secret_headers"], changes["headers"])
    return {**changes, "headers": plain, "secret_headers": hidden}


def _with_tls(changes: dict[str, Any]) -> dict[str, Any]:
    if "tls" not in changes:
        return changes
    wanted = changes.pop("tls")
    parts = dict.fromkeys(("ca", "cert", "key")) if wanted is None else wanted
    return {**changes, **{f"tls_{part}": pem for part, pem in parts.items()}}


def _is_pinned(row: Mapping[str, Any]) -> bool:
    return bool(row["ordered"]) or row["rate_limit"] is not None or row["spread"] is False
