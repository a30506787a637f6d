"""The audit log: who changed what, when and from where; a page as JSON, or the whole as NDJSON for a log store."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field

from hookpost.storage.contract import Page
from hookpost.web import answers, schemas, shown
from hookpost.web.api import ApiOf, Asking, WindowQuery, listed, tenant_to_read
from hookpost.web.exports import described, exported

ACTION_CHARS_MAX = 64

router = APIRouter()


class AuditQuery(WindowQuery):
    """Of the audit log."""

    action: Annotated[schemas.Text, Field(max_length=ACTION_CHARS_MAX, examples=["endpoint.update"])] | None = None
    format: Literal["json", "ndjson"] = "json"


@router.get(
    "/v1/audit_log",
    response_model=answers.AuditList,
    responses=described("ndjson"),
    tags=["audit log"],
)
async def list_audit(api: ApiOf, asking: Asking, query: Annotated[AuditQuery, Query()]) -> Response:
    """Who changed what, newest first; for the admin without a tenant, of all tenants and the platform."""
    of = tenant_to_read(asking, query.tenant_id)
    since, until = query.bounds()

    async def fetch(after: tuple[Any, ...] | None, limit: int) -> Page:
        return await api.store.list_audit(of, action=query.action, since=since, until=until, after=after, limit=limit)

    if query.format == "json":
        filters = {"list": "audit", "action": query.action, "since": since, "until": until}
        return await listed(api, of, filters, query, fetch, shown.audit_entry)
    return await exported(query, fetch, shown.audit_entry, name="audit_log", format="ndjson")
