"""The API's side of the PostgreSQL store: configuration, history, and the state of deliveries.

Every change of a tenant's configuration is one transaction that first raises the tenant's config version: that row
lock puts changes of one tenant in order, and an append checks the version after its own lock, so an event posted after
a change was acknowledged is matched with it. Rows come out as dicts of plain values; times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from hookpost.model import EndpointStatus, WaitReason, show_id
from hookpost.model import minted_at as _minted_at
from hookpost.policy.audit import changed
from hookpost.policy.breaker import STEP_S
from hookpost.policy.egress import origin_of
from hookpost.storage.contract import Conflict, ControlAction, EventView, NotFound, Page
from hookpost.storage.endpoints import changed_headers
from hookpost.storage.postgres import moves, vault
from hookpost.storage.postgres.audit import AuditQueries
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.rows import after as _after
from hookpost.storage.postgres.rows import found as _found
from hookpost.storage.postgres.rows import page as _page

SQL = load("admin")
# A rotation needs two; more make every request's signature header longer.
SECRETS_VALID_MAX = 4
# What update_endpoint writes, in the order of its parameters.
ENDPOINT_COLUMNS = (
    "url", "events", "status", "status_reason", "description", "uid", "metadata", "base_s", "cap_s", "max_attempts",
    "deadline_s", "connect_s", "first_byte_s", "total_s", "max_in_flight", "rate_limit", "ordered", "on_dead", "ack",
    "spread", "forward_trace",
)  # fmt: skip
TENANT_COLUMNS = ("name", "max_in_flight", "ingest_rate_limit", "alert_email")
# What the audit log tells of a tenant and of an endpoint. Nothing of it is secret: headers that are have no value here.
_AUDITED_TENANT = (*TENANT_COLUMNS, "pool", "spread", "home_shards")
_AUDITED_ENDPOINT = (*ENDPOINT_COLUMNS, "headers", "tls_ca", "tls_cert")
_UID_INDEX = "endpoints_uid"
_HELD = (EndpointStatus.PAUSED, EndpointStatus.DISABLED)
# What holds a delivery before anybody asks its receiver's breaker.
_BEFORE_BREAKERS = (WaitReason.EGRESS_DOWN, WaitReason.ORDERED)
# Times a replay is aimed anew because its tenant's configuration changed under it.
_STALE_MAX = 10


class AdminQueries(AuditQueries):
    """Implements AdminStore."""

    _connections: Connections
    _endpoint_cap: int

    async def ping(self) -> float:
        async with self._connections.use("ping") as connection:
            now: float = await connection.fetchval(SQL["now"])
            return now

    async def unowned_shards(self) -> int:
        async with self._connections.use("count unowned shards") as connection:
            count: int = await connection.fetchval(SQL["unowned_shards"])
            return count

    async def journal_fault(self, timeout_s: float) -> str | None:  # noqa: ARG002 - the contract's
        """None: the journal is a table."""
        return None

    # ---- tenants ------------------------------------------------------------------------------------------------

    async def create_tenant(self, tenant_id: UUID, values: Mapping[str, Any]) -> dict[str, Any]:
        pool = values.get("pool") or "default"
        home_shards, spread = values.get("home_shards"), values.get("spread")
        async with self._connections.use(f"create tenant {tenant_id}") as connection, connection.transaction():
            if home_shards is None:
                home_shards = await moves.first_homes(connection, pool, spread)
            row = await connection.fetchrow(
                SQL["create_tenant"],
                tenant_id,
                values["name"],
                pool,
                list(home_shards),
                values.get("max_in_flight"),
                values.get("ingest_rate_limit"),
                values.get("alert_email"),
                spread,
            )
            made = _audited(row, _AUDITED_TENANT)
            await self._record(connection, None, "tenant.create", show_id("ten", tenant_id), None, made)
        return dict(row)

    async def get_tenant(self, tenant_id: UUID) -> dict[str, Any]:
        async with self._connections.use(f"get tenant {tenant_id}") as connection:
            return _found(await connection.fetchrow(SQL["get_tenant"], tenant_id), "tenant")

    async def list_tenants(self, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        async with self._connections.use("list tenants") as connection:
            rows = await connection.fetch(SQL["list_tenants"], *_after(after, 2), limit + 1)
        return _page(rows, limit, ("created_at", "tenant_id"))

    async def update_tenant(self, tenant_id: UUID, changes: Mapping[str, Any]) -> dict[str, Any]:
        async with self._changing(tenant_id, f"update tenant {tenant_id}") as connection:
            current = dict(await connection.fetchrow(SQL["get_tenant"], tenant_id))
            values = _merged(current, changes, TENANT_COLUMNS)
            await connection.execute(SQL["update_tenant"], tenant_id, *values)
            await moves.move_tenant(connection, current, changes, self._endpoint_cap)
            row = dict(await connection.fetchrow(SQL["get_tenant"], tenant_id))
            before, after = changed(_audited(current, _AUDITED_TENANT), _audited(row, _AUDITED_TENANT))
            await self._record(connection, tenant_id, "tenant.update", show_id("ten", tenant_id), before, after)
            return row

    async def set_spread(self, tenant_id: UUID, *, known: int, wanted: int) -> bool:
        async with self._changing(tenant_id, f"spread tenant {tenant_id}") as connection:
            current = dict(await connection.fetchrow(SQL["get_tenant"], tenant_id))
            if current["spread"] is not None or len(current["home_shards"]) != known:
                return False
            await moves.spread_tenant(connection, current, wanted, self._endpoint_cap)
            row = dict(await connection.fetchrow(SQL["get_tenant"], tenant_id))
            before, after = changed(_audited(current, _AUDITED_TENANT), _audited(row, _AUDITED_TENANT))
            await self._record(connection, tenant_id, "tenant.spread", show_id("ten", tenant_id), before, after)
            return True

    async def list_pools(self) -> list[dict[str, Any]]:
        async with self._connections.use("list pools") as connection:
            return [dict(row) for row in await connection.fetch(SQL["list_pools"])]

    async def grow_pool(self, name: str, shards: int, *, shards_max: int) -> dict[str, Any]:
        async with self._connections.use(f"grow pool {name}") as connection, connection.transaction():
            await moves.grow_pool(connection, name, shards, shards_max)
            pools = await connection.fetch(SQL["list_pools"])
            await self._record(connection, None, "pool.grow", name, None, {"shards": shards})
        return next(dict(row) for row in pools if row["name"] == name)

    async def delete_tenant(self, tenant_id: UUID) -> None:
        async with self._changing(tenant_id, f"delete tenant {tenant_id}") as connection:
            await connection.execute(SQL["forget_barriers_of"], tenant_id)
            await connection.execute(SQL["revoke_keys_of"], tenant_id)
            await connection.execute(SQL["delete_endpoints_of"], tenant_id)
            await connection.execute(SQL["delete_types_of"], tenant_id)
            await vault.forget(connection, tenant_id, None)
            await connection.execute(SQL["delete_tenant"], tenant_id)
            await self._record(connection, None, "tenant.delete", show_id("ten", tenant_id))

    @asynccontextmanager
    async def _changing(self, tenant_id: UUID, doing: str) -> AsyncIterator[Any]:
        """One change of the tenant's configuration. Raises NotFound when there is no such tenant."""
        async with self._connections.use(doing) as connection, connection.transaction():
            if await connection.fetchval(SQL["bump_tenant"], tenant_id) is None:
                raise NotFound("there is no such tenant")
            yield connection

    # ---- API keys -----------------------------------------------------------------------------------------------

    async def create_key(self, values: Mapping[str, Any], *, keys_max: int) -> dict[str, Any]:
        tenant_id = values["tenant_id"]
        async with self._connections.use("create an API key") as connection, connection.transaction():
            if tenant_id is not None:
                _found(await connection.fetchrow(SQL["get_tenant"], tenant_id), "tenant")
                await connection.execute(SQL["hold_tenant"], tenant_id)
                if await connection.fetchval(SQL["count_keys"], tenant_id) >= keys_max:
                    raise Conflict(f"the tenant has {keys_max} API keys, which is the limit: revoke some first")
            row = await connection.fetchrow(
                SQL["create_key"],
                values["key_id"],
                tenant_id,
                values["name"],
                values["key_hash"],
                sorted(values.get("scopes") or ()),
                values.get("expires_at"),
            )
            made = {name: row[name] for name in ("name", "scopes", "expires_at")}
            await self._record(connection, tenant_id, "api_key.create", f"key_{values['key_id']}", None, made)
        return dict(row)

    async def list_keys(self, tenant_id: UUID, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        async with self._connections.use(f"list API keys of tenant {tenant_id}") as connection:
            _found(await connection.fetchrow(SQL["get_tenant"], tenant_id), "tenant")
            rows = await connection.fetch(SQL["list_keys"], tenant_id, *_after(after, 2), limit + 1)
        return _page(rows, limit, ("created_at", "key_id"))

    async def revoke_key(self, tenant_id: UUID, key_id: str) -> None:
        async with self._connections.use(f"revoke API key {key_id}") as connection, connection.transaction():
            _found(await connection.fetchrow(SQL["revoke_key"], tenant_id, key_id), "API key")
            await self._record(connection, tenant_id, "api_key.revoke", f"key_{key_id}")

    async def note_used_keys(self, used: Mapping[str, float]) -> None:
        async with self._connections.use("note which API keys were used") as connection:
            await connection.execute(SQL["note_used_keys"], list(used), list(used.values()))

    # ---- endpoints ----------------------------------------------------------------------------------------------

    async def create_endpoint(self, values: Mapping[str, Any], secret: bytes, *, endpoints_max: int) -> dict[str, Any]:
        endpoint_id, tenant_id = values["endpoint_id"], values["tenant_id"]
        blank = {
            "events": ["*"],
            "status": EndpointStatus.ENABLED,
            "metadata": {},
            "ordered": False,
            "forward_trace": False,
        }
        columns = _merged(blank, values, ENDPOINT_COLUMNS)
        async with self._changing(tenant_id, f"create endpoint {endpoint_id}") as connection:
            if await connection.fetchval(SQL["count_endpoints"], tenant_id) >= endpoints_max:
                raise Conflict(f"the tenant has {endpoints_max} endpoints, which is the limit: delete some first")
            row = await _unless_uid_taken(connection, SQL["create_endpoint"], endpoint_id, tenant_id, *columns)
            await vault.add_secret(connection, self._sealing, tenant_id, endpoint_id, secret)
            row = await self._with_headers(connection, row, values)
            row = await self._with_tls(connection, row, values)
            made = _audited(_endpoint(row), _AUDITED_ENDPOINT)
            await self._record(connection, tenant_id, "endpoint.create", show_id("ep", endpoint_id), None, made)
            return (await _with_breakers(connection, [_endpoint(row)]))[0]

    async def get_endpoint(self, tenant_id: UUID | None, endpoint_id: UUID) -> dict[str, Any]:
        async with self._connections.use(f"get endpoint {endpoint_id}") as connection:
            row = await connection.fetchrow(SQL["get_endpoint"], endpoint_id, tenant_id)
            return (await _with_breakers(connection, [_endpoint(_found(row, "endpoint"))]))[0]

    async def list_endpoints(self, tenant_id: UUID | None, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        async with self._connections.use("list endpoints") as connection:
            if tenant_id is None:
                rows = await connection.fetch(SQL["list_endpoints_of_all"], *_after(after, 2), limit + 1)
            else:
                rows = await connection.fetch(SQL["list_endpoints_of_tenant"], tenant_id, *_after(after, 2), limit + 1)
            endpoints = await _with_breakers(connection, [_endpoint(row) for row in rows])
        return _page(endpoints, limit, ("created_at", "endpoint_id"))

    async def update_endpoint(self, tenant_id: UUID, endpoint_id: UUID, changes: Mapping[str, Any]) -> dict[str, Any]:
        async with self._changing(tenant_id, f"update endpoint {endpoint_id}") as connection:
            row = await connection.fetchrow(SQL["get_endpoint"], endpoint_id, tenant_id)
            current = _endpoint(_found(row, "endpoint"))
            wanted = _with_status_reason(current, changes)
            columns = _merged(current, wanted, ENDPOINT_COLUMNS)
            row = await _unless_uid_taken(connection, SQL["update_endpoint"], endpoint_id, tenant_id, *columns)
            row = await self._with_headers(connection, row, changes)
            row = await self._with_tls(connection, row, changes)
            await moves.change_endpoint(connection, current, row, self._endpoint_cap)
            if changes.get("status") == EndpointStatus.ENABLED:
                # Workers find it with the tenant's change.
                await connection.execute(SQL["close_breaker"], tenant_id, origin_of(row["url"]), STEP_S)
            told = _told(current, _endpoint(row), changes)
            await self._record(connection, tenant_id, "endpoint.update", show_id("ep", endpoint_id), *told)
            return (await _with_breakers(connection, [_endpoint(row)]))[0]

    async def _with_headers(self, connection: Any, row: Any, changes: Mapping[str, Any]) -> Any:
        """The endpoint's row with the change of its own headers, if there is one among the changes."""
        if "headers" not in changes:
            return row
        hidden = await vault.secret_headers(connection, self._sealing, row) if changes["headers"] is not None else {}
        plain = msgspec.json.decode(row["headers"])
        return await vault.set_headers(
            connection, self._sealing, row, *changed_headers(plain, hidden, changes["headers"])
        )

    async def _with_tls(self, connection: Any, row: Any, changes: Mapping[str, Any]) -> Any:
        """The endpoint's row with the change of its TLS, if there is one among the changes."""
        return await vault.set_tls(connection, self._sealing, row, changes["tls"]) if "tls" in changes else row

    async def delete_endpoint(self, tenant_id: UUID, endpoint_id: UUID) -> None:
        async with self._changing(tenant_id, f"delete endpoint {endpoint_id}") as connection:
            _found(await connection.fetchrow(SQL["delete_endpoint"], endpoint_id, tenant_id), "endpoint")
            await vault.forget(connection, tenant_id, endpoint_id)
            await self._record(connection, tenant_id, "endpoint.delete", show_id("ep", endpoint_id))
            await connection.execute(SQL["forget_barriers"], endpoint_id)

    async def get_secrets(self, tenant_id: UUID, endpoint_id: UUID) -> list[dict[str, Any]]:
        doing = f"get secrets of endpoint {endpoint_id}"
        async with self._connections.use(doing) as connection, connection.transaction():
            _found(await connection.fetchrow(SQL["get_endpoint"], endpoint_id, tenant_id), "endpoint")
            valid = await vault.valid_secrets(connection, self._sealing, tenant_id, endpoint_id)
            await self._record(connection, tenant_id, "secret.reveal", show_id("ep", endpoint_id))
            return valid

    async def use_secrets(self, tenant_id: UUID, endpoint_id: UUID) -> list[dict[str, Any]]:
        async with self._connections.use(f"use secrets of endpoint {endpoint_id}") as connection:
            _found(await connection.fetchrow(SQL["get_endpoint"], endpoint_id, tenant_id), "endpoint")
            return await vault.valid_secrets(connection, self._sealing, tenant_id, endpoint_id)

    async def rotate_secret(self, tenant_id: UUID, endpoint_id: UUID, key: bytes, *, grace_s: float) -> float:
        async with self._changing(tenant_id, f"rotate the secret of endpoint {endpoint_id}") as connection:
            _found(await connection.fetchrow(SQL["get_endpoint"], endpoint_id, tenant_id), "endpoint")
            grace_end: float = await connection.fetchval(SQL["grace_end"], grace_s)
            await connection.execute(SQL["limit_secrets"], tenant_id, endpoint_id, grace_end)
            await connection.execute(SQL["forget_secrets"], tenant_id, endpoint_id)
            valid = await vault.valid_secrets(connection, self._sealing, tenant_id, endpoint_id)
            if len(valid) >= SECRETS_VALID_MAX:
                raise Conflict(
                    f"{SECRETS_VALID_MAX} secrets of this endpoint are still valid: wait until the oldest has expired, "
                    "or rotate with grace_period_s 0 to end them all"
                )
            if any(row["key"] == key for row in valid):
                raise Conflict("this secret is already one of the endpoint's: give another one, or none")
            await vault.add_secret(connection, self._sealing, tenant_id, endpoint_id, key)
            ends = {"old_secrets_expire_at": grace_end}
            await self._record(connection, tenant_id, "secret.rotate", show_id("ep", endpoint_id), None, ends)
            return grace_end

    # ---- events and deliveries ----------------------------------------------------------------------------------

    async def get_event(self, tenant_id: UUID | None, event_id: UUID) -> EventView:
        async with self._connections.use(f"get event {event_id}") as connection:
            row = await connection.fetchrow(SQL["get_event"], event_id, tenant_id, _minted_at(event_id))
            return await view_of(connection, _found(row, "event"))

    async def list_events(
        self,
        tenant_id: UUID | None,
        *,
        type: str | None,
        since: float | None,
        until: float | None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> Page:
        window = (type, since, until)
        async with self._connections.use("list events") as connection:
            if tenant_id is None:
                rows = await connection.fetch(SQL["list_events_of_all"], *window, *_after(after, 1), limit + 1)
                return _page(rows, limit, ("event_id",))
            rows = await connection.fetch(
                SQL["list_events_of_tenant"], tenant_id, *window, *_after(after, 2), limit + 1
            )
        return _page(rows, limit, ("created_at", "event_id"))

    async def list_attempts(
        self,
        tenant_id: UUID | None,
        *,
        endpoint_id: UUID | None,
        event_id: UUID | None,
        outcome: str | None,
        since: float | None,
        until: float | None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> Page:
        rest = (outcome, since, until, *_after(after, 2), limit + 1)
        async with self._connections.use("list attempts") as connection:
            if event_id is not None:
                rows = await connection.fetch(SQL["list_attempts_of_event"], tenant_id, event_id, endpoint_id, *rest)
            elif endpoint_id is not None:
                rows = await connection.fetch(SQL["list_attempts_of_endpoint"], tenant_id, endpoint_id, *rest)
            elif tenant_id is not None:
                rows = await connection.fetch(SQL["list_attempts_of_tenant"], tenant_id, *rest)
            else:
                rows = await connection.fetch(SQL["list_attempts_of_all"], *rest)
        return _page(rows, limit, ("scheduled_at", "attempt_id"))

    async def list_waiting(
        self, tenant_id: UUID | None, endpoint_id: UUID, *, after: tuple[Any, ...] | None, limit: int
    ) -> Page:
        async with self._connections.use(f"list what waits for endpoint {endpoint_id}") as connection:
            row = await connection.fetchrow(SQL["get_endpoint"], endpoint_id, tenant_id)
            endpoint = _found(row, "endpoint")
            of = endpoint["tenant_id"], origin_of(endpoint["url"])
            breaker = (await _breakers(connection, {of})).get(of)
            rows = await connection.fetch(SQL["list_waiting"], tenant_id, endpoint_id, *_after(after, 2), limit + 1)
        page = _page(rows, limit, ("shard", "position"))
        for waiting in page.rows:
            held_until = None if breaker is None else breaker["held_until"]
            waiting["reason"] = _shown_reason(waiting["reason"], waiting["due_at"], endpoint["status"], held_until)
        return page

    async def list_dead_letters(
        self,
        tenant_id: UUID | None,
        *,
        endpoint_id: UUID | None,
        reason: str | None,
        since: float | None,
        until: float | None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> Page:
        window = (reason, since, until)
        async with self._connections.use("list dead letters") as connection:
            if endpoint_id is not None:
                rows = await connection.fetch(
                    SQL["list_dead_of_endpoint"], tenant_id, endpoint_id, *window, *_after(after, 2), limit + 1
                )
                return _page(rows, limit, ("died_at", "event_id"))
            if tenant_id is not None:
                rows = await connection.fetch(
                    SQL["list_dead_of_tenant"], tenant_id, *window, *_after(after, 3), limit + 1
                )
            else:
                rows = await connection.fetch(SQL["list_dead_of_all"], *window, *_after(after, 3), limit + 1)
        return _page(rows, limit, ("died_at", "event_id", "endpoint_id"))

    async def append_control(
        self, tenant_id: UUID, event_id: UUID, endpoint_id: UUID | None, action: ControlAction
    ) -> int:
        doing = f"{action} of event {event_id}"
        async with self._connections.use(doing) as connection, connection.transaction():
            # Behind the tenant's lock, as shards are locked before the audit log by changes of the configuration; and
            # not behind the shard's, which appends wait for.
            await connection.execute(SQL["hold_tenant"], tenant_id)
            to = None if endpoint_id is None else {"endpoint_id": show_id("ep", endpoint_id)}
            name = action.removeprefix("hookpost.")
            await self._record(connection, tenant_id, f"event.{name}", show_id("evt", event_id), None, to)
            return await _append_control(connection, tenant_id, event_id, endpoint_id, action)

    async def remove_payload(self, tenant_id: UUID, event_id: UUID) -> int:
        async with (
            self._connections.use(f"remove the payload of event {event_id}") as connection,
            connection.transaction(),
        ):
            await connection.execute(SQL["hold_tenant"], tenant_id)
            await self._record(connection, tenant_id, "event.remove_payload", show_id("evt", event_id))
            cancelled = await _append_control(connection, tenant_id, event_id, None, ControlAction.CANCEL)
            await connection.execute(SQL["remove_payload"], event_id, tenant_id, _minted_at(event_id))
            return cancelled


async def _append_control(
    connection: Any, tenant_id: UUID, event_id: UUID, endpoint_id: UUID | None, action: ControlAction
) -> int:
    row = await connection.fetchrow(SQL["get_event"], event_id, tenant_id, _minted_at(event_id))
    _found(row, "event")
    states = await connection.fetch(SQL["delivery_states"], event_id, tenant_id, endpoint_id)
    if endpoint_id is not None and not states:
        raise NotFound("the event was not owed to this endpoint")
    wanted = [state["endpoint_id"] for state in states if is_controllable(state, action)]
    if wanted:
        await connection.execute(SQL["append_control"], event_id, tenant_id, action, wanted)
    return len(wanted)


# ---- what the rows mean ----------------------------------------------------------------------------------------------


async def view_of(connection: Any, event: dict[str, Any]) -> EventView:
    """A row of an event with the states of its deliveries and its own."""
    states = await connection.fetch(SQL["delivery_states"], event["event_id"], event["tenant_id"], None)
    held = await held_until(connection, event["tenant_id"], states)
    deliveries = [delivery_state(state, held.get(state["endpoint_id"])) for state in states]
    event["status"] = event_status([delivery["status"] for delivery in deliveries])
    return EventView(event, deliveries)


def delivery_state(row: Mapping[str, Any], held_until: float | None = None) -> dict[str, Any]:
    """The state of one delivery, derived from what its shard's owner has written down (design.md §5). ``held_until``:
    by its receiver's breaker, at least; None: it is closed."""
    status, reason, next_attempt_at = _derived(row, held_until)
    return {
        "endpoint_id": row["endpoint_id"],
        "generation": row["generation"],
        "status": status,
        "reason": reason,
        "attempt_count": row["attempt_count"],
        "next_attempt_at": next_attempt_at,
        "last_http_status": row["last_http_status"],
    }


def _derived(row: Mapping[str, Any], held_until: float | None = None) -> tuple[str, str | None, float | None]:
    """Status, reason and time of the next attempt; the order of the questions is the rule."""
    if row["queued"]:
        return "queued", None, None
    if row["waiting_reason"] is not None and not _blocks_its_lane(row):
        reason = _shown_reason(row["waiting_reason"], row["due_at"], row["endpoint_status"], held_until)
        return "waiting", reason, row["due_at"] if reason == WaitReason.RETRY else None
    if row["dead_reason"] is not None:
        return "dead", row["dead_reason"], None
    if row["last_outcome"] == "delivered":
        return "delivered", None, None
    if row["cancelled"] or row["endpoint_deleted"]:
        return "cancelled", None, None
    # An owed delivery without a trace is a fault of ours, and must be seen.
    return "unknown", None, None


def _blocks_its_lane(row: Mapping[str, Any]) -> bool:
    """A dead letter of an ordered endpoint that holds up those behind it: its row of the backlog is never due."""
    return row["dead_reason"] is not None and row["due_at"] == float("inf")


def is_controllable(row: Mapping[str, Any], action: ControlAction) -> bool:
    """Is there something to cancel, or to hurry? What is not over, of an older generation too; and a dead letter that
    blocks its lane can be cancelled, which lets the lane go on."""
    status, _, _ = _derived(row)
    blocks = action == ControlAction.CANCEL and _blocks_its_lane(row)
    return status in ("queued", "waiting") or row["older_waits"] or blocks


def _shown_reason(stored: str, due_at: float, endpoint_status: str | None, held_until: float | None) -> str:
    """What holds it now, whatever it was written down for: its endpoint that is paused; then the breaker of its
    receiver, if it is due before that lets anything through."""
    if endpoint_status in _HELD:
        return endpoint_status
    by_breaker = held_until is not None and due_at <= held_until and stored not in _BEFORE_BREAKERS
    return WaitReason.BREAKER_OPEN if by_breaker else stored


def event_status(deliveries: Sequence[str]) -> str:
    """An event's status summarises its deliveries."""
    found = set(deliveries)
    if not found:
        return "no_endpoints"
    if found & {"queued", "waiting", "unknown"}:
        return "pending"
    if "delivered" not in found:
        return "dead"
    return "partly_dead" if "dead" in found else "delivered"


def _with_status_reason(current: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A change of the status names its reason: the user's request, unless the change tells another."""
    wanted = dict(changes)
    if "status" in wanted and wanted["status"] != current["status"]:
        requested = None if wanted["status"] == EndpointStatus.ENABLED else "requested"
        wanted.setdefault("status_reason", requested)
    return wanted


# ---- rows ------------------------------------------------------------------------------------------------------------


def _endpoint(row: Any) -> dict[str, Any]:
    endpoint = dict(row)
    endpoint["metadata"] = msgspec.json.decode(endpoint["metadata"])
    endpoint["headers"] = msgspec.json.decode(endpoint["headers"])
    return endpoint


def _audited(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    return {column: row[column] for column in columns}


def _told(
    before: Mapping[str, Any], after: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an endpoint's change tells the audit log: old and new values; of a secret header, that it was set."""
    old, new = changed(_audited(before, _AUDITED_ENDPOINT), _audited(after, _AUDITED_ENDPOINT))
    hidden = sorted(name for name in changes.get("headers") or () if after["headers"].get(name, "") is None)
    if hidden:
        new = {**new, "secret_headers_set": hidden}
    return old, {**new, "tls_key_set": True} if (changes.get("tls") or {}).get("key") else new


async def _with_breakers(connection: Any, endpoints: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The endpoints with the state of the breaker of each one's origin; a breaker without a row never opened."""
    known = await _breakers(connection, {(e["tenant_id"], origin_of(e["url"])) for e in endpoints})
    for endpoint in endpoints:
        row = known.get((endpoint["tenant_id"], origin_of(endpoint["url"])))
        endpoint["breaker_state"] = "closed" if row is None else row["state"]
        endpoint["breaker_since"] = None if row is None else row["since"]
        endpoint["breaker_reopen_at"] = None if row is None else row["reopen_at"]
    return endpoints


async def _breakers(connection: Any, keys: Collection[tuple[UUID, str]]) -> dict[tuple[UUID, str], Any]:
    """What is stored of the breakers of these (tenant, origin)."""
    if not keys:
        return {}
    rows = await connection.fetch(SQL["breakers"], [of for of, _ in keys], [origin for _, origin in keys])
    return {(row["tenant_id"], row["origin"]): row for row in rows}


async def held_until(connection: Any, tenant_id: UUID, states: Sequence[Mapping[str, Any]]) -> dict[UUID, float | None]:
    """Until when at least the breakers of their receivers hold the deliveries that wait, by endpoint."""
    urls = {
        state["endpoint_id"]: state["endpoint_url"]
        for state in states
        if state["waiting_reason"] is not None and state["endpoint_url"] is not None
    }
    breakers = await breakers_of(connection, tenant_id, urls)
    return {endpoint_id: breaker["held_until"] for endpoint_id, breaker in breakers.items()}


async def breakers_of(connection: Any, tenant_id: UUID, urls: Mapping[UUID, str]) -> dict[UUID, Any]:
    """What is stored of the breakers of endpoints' receivers, given by the endpoints' URLs."""
    of = {endpoint_id: (tenant_id, origin_of(url)) for endpoint_id, url in urls.items()}
    breakers = await _breakers(connection, set(of.values()))
    return {endpoint_id: breakers[key] for endpoint_id, key in of.items() if key in breakers}


def _merged(current: Mapping[str, Any], changes: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    """The values of ``columns`` after the changes, as parameters."""
    merged = {column: changes.get(column, current.get(column)) for column in columns}
    if "metadata" in merged:
        merged["metadata"] = msgspec.json.encode(merged["metadata"]).decode()
    return list(merged.values())


async def _unless_uid_taken(connection: Any, statement: str, *parameters: Any) -> Any:
    try:
        return await connection.fetchrow(statement, *parameters)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != _UID_INDEX:
            raise
        raise Conflict("another endpoint of this tenant has this uid: choose another one") from error
