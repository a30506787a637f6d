"""Overview: how the tenant, or the platform, does; over an hour to a month, from the rollups."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any
from uuid import UUID

from starlette.responses import Response

from hookpost.model import show_id
from hookpost.web import shown
from hookpost.web.dashboard.ask import Refusal
from hookpost.web.dashboard.charts import lines, stacked
from hookpost.web.dashboard.figures import arrival_points, outcome_points
from hookpost.web.dashboard.visit import Visit

# Span and step: thirty to sixty points each, made of whole rollups of a coarse grain (policy/grains): little to read.
SPANS = {"1h": (3_600, 60), "24h": (86_400, 1_800), "7d": (7 * 86_400, 21_600), "30d": (30 * 86_400, 86_400)}
HOUR_S, DAY_S = 3_600, 86_400.0
# Enough to see what is wrong first; the search and the list of endpoints have the rest.
LISTED = 8
# For whoever looks before there is anything to see.
_FIRST_EVENT = """\
curl {url}/v1/events -H 'Authorization: Bearer YOUR_API_KEY' -H 'Content-Type: application/json' \\
  -d '{{"type": "order.created", "payload": {{"order": 1}}}}'"""


async def show(visit: Visit) -> Response:
    """The page."""
    of = visit.tenant()
    chosen = visit.query.text("span") if visit.query.text("span") in SPANS else "24h"
    span_s, step_s = SPANS[chosen]
    # The admin is told more than the tenant is, so their figures are kept apart.
    stats, accepted, failing, breakers = await visit.desk.recent.get(
        ("overview", visit.principal.admin, of, chosen), partial(_figures, visit, of, span_s, step_s)
    )
    return visit.page(
        "overview.html",
        chosen=chosen,
        spans=SPANS,
        stats=stats,
        events=accepted,
        outcomes=stacked(
            outcome_points(stats["series"], step_s=stats["step"]), ("good", "warn", "bad"), name="Attempts by outcome"
        ),
        arrivals=lines(
            arrival_points(stats["series"], step_s=stats["step"]), ("p99", "p95", "p50"), name="Acceptance to 2xx"
        ),
        failing=failing,
        breakers=[
            {**row, "since": shown.show_time(row["since"]), "reopen_at": shown.show_time(row["reopen_at"])}
            for row in breakers
        ],
        counted_until=stats["complete_until"],
        first_event=_FIRST_EVENT.format(url=visit.base_url()),
        may_write=visit.may("endpoints:write"),
    )


async def _figures(visit: Visit, of: UUID | None, span_s: int, step_s: int) -> tuple[Any, ...]:
    """Each is a question of its own to the database, and most of the page's time: they are asked side by side."""
    store, now = visit.desk.api.store, visit.desk.now()
    figures: tuple[Any, ...] = await asyncio.gather(
        _stats(visit, now - span_s, step_s),
        _accepted(visit, now - span_s, now),
        _failing(visit, now - span_s),
        store.open_breakers(of, limit=LISTED),
    )
    return figures


async def _stats(visit: Visit, start: float, step_s: int) -> dict[str, Any]:
    """An installation may keep minutes for less than a day: then by the hour."""
    try:
        return await _stats_by(visit, start, step_s)
    except Refusal as refused:
        if refused.status != 422 or step_s % HOUR_S == 0:
            raise
        return await _stats_by(visit, start, HOUR_S)


async def _stats_by(visit: Visit, start: float, step_s: int) -> dict[str, Any]:
    return await visit.ask("/v1/stats", tenant_id=visit.tenant_filter(), from_=shown.show_time(start), step=step_s)


async def _accepted(visit: Visit, start: float, now: float) -> int:
    """Events accepted on the days (UTC) from that of ``start`` to today, by the metering."""
    first, end = start // DAY_S * DAY_S, (now // DAY_S + 1) * DAY_S
    metered = await visit.desk.api.store.metered(visit.tenant(), first_day=first, end_day=end, tenants_max=1)
    rows = [metered.platform] if visit.tenant() is None else metered.tenants
    return sum(row["accepted"] or 0 for row in rows if row)


async def _failing(visit: Visit, since: float) -> list[dict[str, Any]]:
    rows = await visit.desk.api.store.failing_endpoints(visit.tenant(), since=since, limit=LISTED)
    return [{**row, "endpoint_id": show_id("ep", row["endpoint_id"])} for row in rows]
