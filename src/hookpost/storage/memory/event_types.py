"""Event types in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from hookpost.storage.contract import Conflict, NotFound, Page, TypeLimits, schemas_full, types_full
from hookpost.storage.memory.admin import AdminTables
from hookpost.storage.memory.ingest import refuse_text


class EventTypeTables(AdminTables):
    """Implements what AdminStore says of event types."""

    async def create_event_type(
        self, tenant_id: UUID, name: str, values: Mapping[str, Any], *, limits: TypeLimits
    ) -> dict[str, Any]:
        await self._pause()
        refuse_text(name)
        with self._changing(tenant_id):
            if len(self._types_of(tenant_id)) >= limits.types_max:
                raise types_full(limits)
            if (tenant_id, name) in self._db.event_types:
                raise Conflict("the tenant has this event type already: change it with PATCH")
            self._check_bytes(tenant_id, name, values.get("schema"), limits)
            now = self._db.now()
            row = {
                "tenant_id": tenant_id, "name": name, "description": values.get("description"),
                "schema": values.get("schema"), "created_at": now, "updated_at": now,
            }  # fmt: skip
            self._db.event_types[tenant_id, name] = row
        return dict(row)

    async def get_event_type(self, tenant_id: UUID, name: str) -> dict[str, Any]:
        await self._pause()
        return dict(self._described(tenant_id, name))

    async def list_event_types(self, tenant_id: UUID | None, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        await self._pause()
        key = ("created_at", "tenant_id", "name") if tenant_id is None else ("created_at", "name")
        rows = [row for row in self._db.event_types.values() if tenant_id in (None, row["tenant_id"])]
        rows.sort(key=lambda row: tuple(row[column] for column in key), reverse=True)
        left = [dict(row) for row in rows if after is None or tuple(row[column] for column in key) < after]
        more = len(left) > limit
        return Page(left[:limit], tuple(left[limit - 1][column] for column in key) if more else None)

    async def update_event_type(
        self, tenant_id: UUID, name: str, changes: Mapping[str, Any], *, limits: TypeLimits
    ) -> dict[str, Any]:
        await self._pause()
        with self._changing(tenant_id):
            row = self._described(tenant_id, name)
            wanted = row | {column: changes[column] for column in ("description", "schema") if column in changes}
            self._check_bytes(tenant_id, name, wanted["schema"], limits)
            self._db.event_types[tenant_id, name] = wanted | {"updated_at": self._db.now()}
        return dict(self._db.event_types[tenant_id, name])

    async def delete_event_type(self, tenant_id: UUID, name: str) -> None:
        await self._pause()
        with self._changing(tenant_id):
            self._described(tenant_id, name)
            del self._db.event_types[tenant_id, name]

    def _described(self, tenant_id: UUID, name: str) -> dict[str, Any]:
        row = self._db.event_types.get((tenant_id, name))
        if row is None:
            raise NotFound("there is no such event type")
        return row

    def _types_of(self, tenant_id: UUID) -> list[dict[str, Any]]:
        return [row for (of, _), row in self._db.event_types.items() if of == tenant_id]

    def _check_bytes(self, tenant_id: UUID, name: str, schema: str | None, limits: TypeLimits) -> None:
        others = sum(len((row["schema"] or "").encode()) for row in self._types_of(tenant_id) if row["name"] != name)
        if schema is not None and others + len(schema.encode()) > limits.schemas_bytes_max:
            raise schemas_full(limits)
