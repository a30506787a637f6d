"""The audit log: who changed what, when and from where; a page as JSON, or the whole as NDJSON for a log store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from hookpost.storage.contract import Page
from hookpost.web import schemas, shown
from hookpost.web.api import ApiOf, Asking, TenantListQuery, tenant_to_read
from hookpost.web.problems import invalid

# Rows of an export between two questions to the store.
EXPORT_ROWS = 1_000
ACTION_CHARS_MAX = 64
MEDIA_TYPE = "application/x-ndjson"

router = APIRouter()


class AuditQuery(TenantListQuery):
    """Of the audit log."""

    since: Annotated[schemas.Time | None, Field(description="at or after this time")] = None
    until: Annotated[schemas.Time | None, Field(description="before this time")] = None
    action: Annotated[schemas.Text, Field(max_length=ACTION_CHARS_MAX, examples=["endpoint.update"])] | None = None
    format: Literal["json", "ndjson"] = "json"


@router.get(
    "/v1/audit_log",
    response_model=schemas.AuditList,
    responses={200: {"content": {MEDIA_TYPE: {}}}},
    tags=["audit log"],
)
async def list_audit(api: ApiOf, asking: Asking, query: Annotated[AuditQuery, Query()]) -> Response:
    """Who changed what, newest first; for the admin without a tenant, of all tenants and the platform."""
    of = tenant_to_read(asking, query.tenant_id)
    since = None if query.since is None else schemas.parse_time(query.since)
    until = None if query.until is None else schemas.parse_time(query.until)

    async def fetch(after: tuple[Any, ...] | None, limit: int) -> Page:
        return await api.store.list_audit(of, action=query.action, since=since, until=until, after=after, limit=limit)

    if query.format == "json":
        filters = {"list": "audit", "action": query.action, "since": since, "until": until}
        page = await fetch(api.cursors.read(query.cursor, of, filters), query.limit)
        cursor = api.cursors.show(page.next_key, of, filters)
        body = msgspec.json.encode({"data": [shown.audit_entry(row) for row in page.rows], "next_cursor": cursor})
        return Response(body, media_type="application/json")
    for name in ("limit", "cursor"):
        if name in query.model_fields_set:
            raise invalid(name, "is for format=json: ndjson has no pages")
    # Before the answer begins, so that what goes wrong can be told.
    page = await fetch(None, EXPORT_ROWS)
    return StreamingResponse(
        _export(page, fetch),
        media_type=MEDIA_TYPE,
        headers={"Content-Disposition": 'attachment; filename="audit_log.ndjson"'},
    )


async def _export(page: Page, fetch: Callable[..., Any]) -> AsyncIterator[bytes]:
    while True:
        yield b"".join(msgspec.json.encode(shown.audit_entry(row)) + b"\n" for row in page.rows)
        if page.next_key is None:
            return
        page = await fetch(page.next_key, EXPORT_ROWS)
