"""What tenants say of the types of their events. A change of one is a change of the tenant's configuration: its version
grows, so that no event is appended that was checked against an older schema."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from uuid import UUID

from hookpost.policy.audit import changed
from hookpost.storage.contract import Conflict, Page, TypeLimits, schemas_full, types_full
from hookpost.storage.postgres.admin import AdminQueries
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.rows import after as _after
from hookpost.storage.postgres.rows import found as _found
from hookpost.storage.postgres.rows import page as _page

SQL = load("event_types")


class EventTypeQueries(AdminQueries):
    """Implements what AdminStore says of event types."""

    async def create_event_type(
        self, tenant_id: UUID, name: str, values: Mapping[str, Any], *, limits: TypeLimits
    ) -> dict[str, Any]:
        description, schema = values.get("description"), values.get("schema")
        async with self._changing(tenant_id, f"create an event type of tenant {tenant_id}") as connection:
            there = await connection.fetchrow(SQL["count_types"], tenant_id, name)
            if there["types"] >= limits.types_max:
                raise types_full(limits)
            _check_bytes(there["bytes"], schema, limits)
            row = await connection.fetchrow(SQL["create_type"], tenant_id, name, description, schema)
            if row is None:
                raise Conflict("the tenant has this event type already: change it with PATCH")
            await self._record(connection, tenant_id, "event_type.create", name, None, _audited(row))
        return dict(row)

    async def get_event_type(self, tenant_id: UUID, name: str) -> dict[str, Any]:
        async with self._connections.use(f"get an event type of tenant {tenant_id}") as connection:
            return _found(await connection.fetchrow(SQL["get_type"], tenant_id, name), "event type")

    async def list_event_types(self, tenant_id: UUID | None, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        async with self._connections.use("list event types") as connection:
            if tenant_id is None:
                rows = await connection.fetch(SQL["list_types_of_all"], *_after(after, 3), limit + 1)
                return _page(rows, limit, ("created_at", "tenant_id", "name"))
            rows = await connection.fetch(SQL["list_types"], tenant_id, *_after(after, 2), limit + 1)
        return _page(rows, limit, ("created_at", "name"))

    async def update_event_type(
        self, tenant_id: UUID, name: str, changes: Mapping[str, Any], *, limits: TypeLimits
    ) -> dict[str, Any]:
        async with self._changing(tenant_id, f"update an event type of tenant {tenant_id}") as connection:
            current = _found(await connection.fetchrow(SQL["get_type"], tenant_id, name), "event type")
            wanted = current | {key: changes[key] for key in ("description", "schema") if key in changes}
            there = await connection.fetchrow(SQL["count_types"], tenant_id, name)
            _check_bytes(there["bytes"], wanted["schema"], limits)
            row = await connection.fetchrow(
                SQL["update_type"], tenant_id, name, wanted["description"], wanted["schema"]
            )
            told = changed(_audited(current), _audited(row))
            await self._record(connection, tenant_id, "event_type.update", name, *told)
        return dict(row)

    async def delete_event_type(self, tenant_id: UUID, name: str) -> None:
        async with self._changing(tenant_id, f"delete an event type of tenant {tenant_id}") as connection:
            current = _found(await connection.fetchrow(SQL["get_type"], tenant_id, name), "event type")
            await connection.execute(SQL["delete_type"], tenant_id, name)
            await self._record(connection, tenant_id, "event_type.delete", name, _audited(current), None)


def _check_bytes(others: int, schema: str | None, limits: TypeLimits) -> None:
    if schema is not None and others + len(schema.encode()) > limits.schemas_bytes_max:
        raise schemas_full(limits)


def _audited(row: Mapping[str, Any]) -> dict[str, Any]:
    """A schema may be long, and a row of the log is read by people: its hash tells which one it was."""
    schema = row["schema"]
    digest = None if schema is None else sha256(schema.encode()).hexdigest()
    return {"description": row["description"], "schema_sha256": digest}
