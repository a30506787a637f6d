"""The audit log: who changed what, when and from where."""

from __future__ import annotations

from starlette.responses import Response

from hookpost.web.dashboard.render import with_query
from hookpost.web.dashboard.visit import Visit

PATH = "/dashboard/audit-log"
LISTED = 50
_FILTERS = ("action", "since", "until")


async def show(visit: Visit) -> Response:
    """The page."""
    chosen = {name: visit.query.optional(name) for name in _FILTERS} | {"tenant_id": visit.tenant_filter()}
    answer = await visit.ask("/v1/audit_log", **chosen, cursor=visit.query.optional("cursor"), limit=LISTED)
    cursor = answer["next_cursor"]
    return visit.page(
        "audit_log.html",
        entries=answer["data"],
        chosen=chosen,
        next_url=with_query(PATH, **chosen, cursor=cursor) if cursor else None,
    )
