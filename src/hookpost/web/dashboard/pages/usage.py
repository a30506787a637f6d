"""Usage: what tenants had, day by day, as it is billed; here as a table, or whole as a file."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from hookpost.web import shown
from hookpost.web.dashboard.render import with_query
from hookpost.web.dashboard.visit import Visit, read_query
from hookpost.web.stats import UsageQuery, get_usage

PATH = "/dashboard/usage"
LISTED = 50
DAY_S = 86_400
SPANS = {"7d": 7, "30d": 30, "90d": 90}
DEFAULT = "30d"


async def show(visit: Visit) -> Response:
    """The page."""
    span = _span(visit)
    answer = await visit.ask("/v1/usage", **_asked(visit), cursor=visit.query.optional("cursor"), limit=LISTED)
    cursor = answer["next_cursor"]
    onwards = {"span": span, "tenant_id": visit.tenant_filter()}
    return visit.page(
        "usage.html",
        days=answer["data"],
        tenants=await visit.tenant_names(answer["data"]),
        spans=SPANS,
        chosen=span,
        next_url=with_query(PATH, **onwards, cursor=cursor) if cursor else None,
        file_url=with_query(PATH + "/usage.csv", **onwards),
    )


async def export(visit: Visit) -> Response:
    """All of it as CSV."""
    query = read_query(UsageQuery, {**_asked(visit), "format": "csv"})
    return await get_usage(visit.desk.api, visit.principal, query)


def _span(visit: Visit) -> str:
    wanted = visit.query.text("span")
    return wanted if wanted in SPANS else DEFAULT


def _asked(visit: Visit) -> dict[str, Any]:
    """The last so many days, today among them."""
    now = visit.desk.now()
    first = now - now % DAY_S - (SPANS[_span(visit)] - 1) * DAY_S
    return {"from": shown.show_time(first), "tenant_id": visit.tenant_filter()}
