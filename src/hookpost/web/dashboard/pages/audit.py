"""The audit log: who changed what, when and from where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from hookpost.web.audit import AuditQuery, list_audit
from hookpost.web.dashboard.ask import Refusal
from hookpost.web.dashboard.render import with_query
from hookpost.web.dashboard.visit import Visit, read_query

PATH = "/dashboard/audit-log"
LISTED = 50
_NOTHING: Mapping[str, Any] = {"data": [], "next_cursor": None}
_FILTERS = ("action", "since", "until")


async def show(visit: Visit) -> Response:
    """The page."""
    chosen = _chosen(visit)
    refused, answer = None, _NOTHING
    try:
        answer = await visit.ask("/v1/audit_log", **chosen, cursor=visit.query.optional("cursor"), limit=LISTED)
    except Refusal as refusal:
        if refusal.status != 422:
            raise
        refused = refusal  # the form again, as it was filled in
    cursor = answer["next_cursor"]
    return visit.page(
        "audit_log.html",
        refused=refused,
        entries=answer["data"],
        tenants=await visit.tenant_names(answer["data"]),
        chosen=chosen,
        next_url=with_query(PATH, **chosen, cursor=cursor) if cursor else None,
        file_url=with_query(PATH + "/audit_log.ndjson", **chosen),
    )


async def export(visit: Visit) -> Response:
    """All that the filter shows, as NDJSON."""
    query = read_query(AuditQuery, {**_chosen(visit), "format": "ndjson"})
    return await list_audit(visit.desk.api, visit.principal, query)


def _chosen(visit: Visit) -> dict[str, str | None]:
    return {name: visit.query.optional(name) for name in _FILTERS} | {"tenant_id": visit.tenant_filter()}
