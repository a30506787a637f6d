"""The audit log: who changed what, when and from where."""

from __future__ import annotations

from starlette.responses import Response

from hookpost.web.audit import AuditQuery, list_audit
from hookpost.web.dashboard.render import with_query
from hookpost.web.dashboard.visit import Visit, read_query

PATH = "/dashboard/audit-log"
LISTED = 50
_FILTERS = ("action", "since", "until")


async def show(visit: Visit) -> Response:
    """The page."""
    chosen = _chosen(visit)
    answer = await visit.ask("/v1/audit_log", **chosen, cursor=visit.query.optional("cursor"), limit=LISTED)
    cursor = answer["next_cursor"]
    return visit.page(
        "audit_log.html",
        entries=answer["data"],
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
