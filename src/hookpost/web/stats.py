"""The routes that tell figures: what became of attempts, what tenants used, what it costs.

The past comes from rollups and metering alone, however long it is; the present from the engine's tables. A request says
which time it is about, and is refused when it asks for more points, or finer ones, than there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from math import ceil
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field

from hookpost.model import show_id
from hookpost.policy.cost import Cost, Measured, Prices, monthly
from hookpost.policy.grains import grain_of
from hookpost.policy.latency import Quantile, bucket_high, quantile
from hookpost.storage.contract import Page, PointRows, Standing
from hookpost.web import answers, schemas, shown
from hookpost.web.api import ApiOf, Asking, ListQuery, UrlQuery, as_json, field_id, listed, tenant_to_read
from hookpost.web.exports import described, exported
from hookpost.web.problems import invalid

MINUTE_S, DAY_S = 60, 86_400
# A chart has no more pixels; an answer of so many points is some hundred KB.
POINTS_MAX = 1_000
STEP_S_MAX = 366 * DAY_S
# An hour of minutes.
POINTS_DEFAULT = 60
# Waiting deliveries and dead letters are counted so far: some milliseconds, whatever the state of the platform.
COUNT_MAX = 10_000
# An invoice is of a month; a year of days is what one table or chart takes.
DAYS_MAX = 366
DAYS_DEFAULT = 7
PRICE_MAX = 1e6
# Until enough was stored to measure it: what bench/runs.md has of a row with its indexes, and the one by settle.
ATTEMPT_ROW_BYTES = 450.0

router = APIRouter()

Since = Annotated[schemas.Time | None, Field(alias="from", description="the beginning")]
To = Annotated[schemas.Time | None, Field(description="the end, not included; now, when left out")]
Price = Annotated[float | None, Field(ge=0, le=PRICE_MAX, allow_inf_nan=False)]


class StatsQuery(UrlQuery):
    """Whose figures, of which time, in steps of how many seconds."""

    tenant_id: schemas.Text | None = None
    endpoint_id: schemas.Text | None = None
    since: Since = None
    to: To = None
    step: Annotated[int, Field(ge=MINUTE_S, le=STEP_S_MAX, multiple_of=MINUTE_S, description="seconds")] = MINUTE_S


class UsageQuery(ListQuery):
    """Whole days (UTC): that of ``from`` to that before or of ``to``."""

    tenant_id: schemas.Text | None = None
    since: Since = None
    to: To = None
    format: Literal["json", "csv", "ndjson"] = "json"


class CostQuery(UrlQuery):
    """Whole days, and prices; those left out are the installation's."""

    tenant_id: schemas.Text | None = None
    since: Since = None
    to: To = None
    limit: Annotated[int, Field(ge=0, le=schemas.LIST_LIMIT_MAX, description="tenants")] = schemas.LIST_LIMIT_DEFAULT
    worker_cost_per_hour: Price = None
    requests_per_worker: Annotated[float | None, Field(ge=1, le=PRICE_MAX, allow_inf_nan=False)] = None
    storage_cost_per_gb_month: Price = None
    egress_cost_per_gb: Price = None
    retention_days: Annotated[float | None, Field(ge=0, le=36_500, allow_inf_nan=False)] = None


# ---- what became of attempts ----------------------------------------------------------------------------------------


@router.get("/v1/stats", response_model=answers.StatsAnswer, tags=["figures"])
async def get_stats(api: ApiOf, asking: Asking, query: Annotated[StatsQuery, Query()]) -> Response:
    """Attempts by outcome and error, and their latencies, of an endpoint, a tenant or (admin) the platform."""
    of = tenant_to_read(asking, query.tenant_id)
    endpoint = field_id("ep", query.endpoint_id, "endpoint_id")
    start, end, points = _points(query, api.settings.now())
    series = await api.store.series(of, endpoint, start=start, end=end, step_s=query.step)
    standing = await api.store.standing(of, endpoint, count_max=COUNT_MAX, with_depth=asking.admin and endpoint is None)
    nothing = PointRows()
    return as_json(
        {
            "tenant_id": None if of is None else show_id("ten", of),
            "endpoint_id": None if endpoint is None else show_id("ep", endpoint),
            "from": shown.show_time(start),
            "to": shown.show_time(end),
            "step": query.step,
            "complete_until": shown.show_time(series.complete_until),
            "now": _standing(standing),
            "totals": _figures(series.points.values()),
            "series": [
                {"start": shown.show_time(start + point * query.step), **_figures([series.points.get(point, nothing)])}
                for point in range(points)
            ],
        }
    )


def _points(query: StatsQuery, now: float) -> tuple[float, float, int]:
    """From the beginning of a bucket of the coarsest grain that divides the step to when; how many steps that is."""
    grain = grain_of(query.step)
    end = now if query.to is None else schemas.parse_time(query.to)
    start = end - POINTS_DEFAULT * query.step if query.since is None else schemas.parse_time(query.since)
    start = start // grain * grain
    if start >= end:
        raise invalid("from", "must be before to")
    points = ceil((end - start) / query.step)
    if points > POINTS_MAX:
        least = ceil((end - start) / POINTS_MAX / grain) * grain
        raise invalid(
            "step", f"{points} points are too many: {POINTS_MAX} at most, a step of {least} from there to there"
        )
    return start, ceil(end / MINUTE_S) * MINUTE_S, points


def _standing(standing: Standing) -> dict[str, Any]:
    return {
        "waiting": standing.waiting.count,
        "waiting_exact": standing.waiting.exact,
        "dead": standing.dead.count,
        "dead_exact": standing.dead.exact,
        "depth": standing.depth,
    }


def _figures(points: Iterable[PointRows]) -> dict[str, Any]:
    """Points added up; latency buckets have the same bounds everywhere."""
    outcomes = {"delivered": 0, "retry": 0, "dead": 0}
    errors: dict[str, int] = {}
    latencies, arrivals = Counter[int](), Counter[int]()
    retries = 0
    for point in points:
        for (outcome, code, retry), attempts in point.counts.items():
            outcomes[outcome] += attempts
            retries += attempts if retry else 0
            if code:
                errors[code] = errors.get(code, 0) + attempts
        latencies.update(point.latencies)
        arrivals.update(point.arrivals)
    ordered, arrived = sorted(latencies.items()), sorted(arrivals.items())
    return {
        "attempts": sum(outcomes.values()),
        "retries": retries,
        "outcomes": outcomes,
        "errors": dict(sorted(errors.items())),
        "latency": _latency(ordered),
        "latency_buckets": [
            {"low_ms": low_ms, "high_ms": bucket_high(low_ms), "attempts": attempts} for low_ms, attempts in ordered
        ],
        "acceptance_to_2xx": _latency(arrived),
        "acceptance_to_2xx_buckets": [
            {"low_ms": low_ms, "high_ms": bucket_high(low_ms), "deliveries": deliveries}
            for low_ms, deliveries in arrived
        ],
    }


def _latency(ordered: Sequence[tuple[int, int]]) -> dict[str, Any] | None:
    if not ordered:
        return None
    return {f"p{percent}": _quantile(quantile(ordered, percent / 100)) for percent in (50, 95, 99)}


def _quantile(found: Quantile | None) -> dict[str, Any]:
    assert found is not None, "there are attempts"
    return {
        "estimate_ms": round(found.estimate_ms, 1),
        "low_ms": found.low_ms,
        "high_ms": found.high_ms,
        "relative_error": round(found.relative_error, 3),
    }


# ---- usage ----------------------------------------------------------------------------------------------------------


@router.get(
    "/v1/usage",
    response_model=answers.UsageList,
    responses=described("csv", "ndjson"),
    tags=["figures"],
)
async def get_usage(api: ApiOf, asking: Asking, query: Annotated[UsageQuery, Query()]) -> Response:
    """What tenants used, by day and tenant, newest first: a page as JSON, or the whole as CSV or NDJSON."""
    of = tenant_to_read(asking, query.tenant_id)
    first, end = _days(query.since, query.to, api.settings.now())

    async def fetch(after: tuple[Any, ...] | None, limit: int) -> Page:
        return await api.store.list_usage(of, first_day=first, end_day=end, after=after, limit=limit)

    if query.format == "json":
        filters = {"list": "usage", "from": first, "to": end}
        return await listed(api, of, filters, query, fetch, shown.usage)
    columns = list(answers.UsageItem.model_fields)
    return await exported(query, fetch, shown.usage, name="usage", format=query.format, columns=columns)


# ---- cost -----------------------------------------------------------------------------------------------------------


@router.get("/v1/cost", response_model=answers.CostAnswer, tags=["figures"])
async def get_cost(api: ApiOf, asking: Asking, query: Annotated[CostQuery, Query()]) -> Response:
    """What a month costs at the pace of some days, of a tenant, or (admin) of the platform and its busiest tenants."""
    of = tenant_to_read(asking, query.tenant_id)
    now = api.settings.now()
    first, end = _days(query.since, query.to, now)
    seconds = min(end, now) - first
    if seconds <= 0:
        raise invalid("from", "must lie in the past")
    given = query.model_dump(include=set(answers.PricesAnswer.model_fields), exclude_none=True)
    prices = replace(api.settings.prices, **given)
    metered = await api.store.metered(of, first_day=first, end_day=end, tenants_max=query.limit)
    row_bytes = metered.attempt_row_bytes
    price = _Pricing(prices, seconds, ATTEMPT_ROW_BYTES if row_bytes is None else row_bytes)
    platform = metered.platform
    return as_json(
        {
            "from": shown.show_time(first),
            "to": shown.show_time(first + seconds),
            "seconds": seconds,
            "complete_until": shown.show_time(metered.complete_until),
            "prices": asdict(prices),
            "attempt_row_bytes": round(price.row_bytes, 1),
            "attempt_row_bytes_measured": row_bytes is not None,
            "platform": None if platform is None else price.item(None, platform),
            "tenants": [price.item(row["tenant_id"], row) for row in metered.tenants],
        }
    )


class _Pricing:
    """Prices and a time to put measured figures into."""

    def __init__(self, prices: Prices, seconds: float, row_bytes: float) -> None:
        self._prices = prices
        self._seconds = seconds
        self.row_bytes = row_bytes

    def item(self, tenant_id: UUID | None, row: Mapping[str, Any]) -> dict[str, Any]:
        """A tenant's row of the metering, or the platform's."""
        return {
            "tenant_id": None if tenant_id is None else show_id("ten", tenant_id),
            "accepted": row["accepted"],
            **self._of(Measured(row["attempts"], row["total_ms"], row["request_bytes"], row["response_bytes"])),
            **{kind: self._of(_part(row, kind)) for kind in ("retries", "rate_limited")},
        }

    def _of(self, measured: Measured) -> dict[str, Any]:
        cost = monthly(measured, self._prices, seconds=self._seconds, attempt_row_bytes=self.row_bytes)
        return {
            "measured": {
                "attempts": measured.attempts,
                "attempts_per_sec": measured.attempts / self._seconds,
                "avg_request_ms": measured.total_ms / measured.attempts if measured.attempts else 0.0,
                "request_bytes": measured.request_bytes,
                "response_bytes": measured.response_bytes,
            },
            "cost_per_month": _parts(cost),
        }


def _part(row: Mapping[str, Any], kind: str) -> Measured:
    return Measured(row[kind], row[f"{kind}_ms"], row[f"{kind}_request_bytes"], row[f"{kind}_response_bytes"])


def _parts(cost: Cost) -> dict[str, float]:
    return {"compute": cost.compute, "storage": cost.storage, "egress": cost.egress, "total": cost.total}


# ---- from requests to values ----------------------------------------------------------------------------------------


def _days(since: str | None, to: str | None, now: float) -> tuple[float, float]:
    """From the beginning of a day (UTC) to the end of a day."""
    end = ceil((now if to is None else schemas.parse_time(to)) / DAY_S) * DAY_S
    first = end - DAYS_DEFAULT * DAY_S if since is None else schemas.parse_time(since) // DAY_S * DAY_S
    if first >= end:
        raise invalid("from", "must be before to")
    if end - first > DAYS_MAX * DAY_S:
        raise invalid("from", f"must not be more than {DAYS_MAX} days before to")
    return float(first), float(end)
