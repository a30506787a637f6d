"""Figures over HTTP: stats, usage and cost, of one's own and for the admin of all."""

from __future__ import annotations

import csv
import io
import json
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from hookpost.storage.postgres.store import PostgresStore
from hookpost.web import answers, exports, stats
from tests.web.rows import TenantClient, add_dead, add_waiting, append_event, endpoint_uuid, make_tenant

STATS, USAGE, COST = "/v1/stats", "/v1/usage", "/v1/cost"
# The clock of the application is the machine's here; attempts ended long ago, at the beginning of an hour.
MINUTE = "2026-01-02T03:00:00.000Z"
WINDOW = {"from": "2026-01-02T03:00:00Z", "to": "2026-01-02T04:00:00Z"}
DAYS = {"from": "2026-01-02T00:00:00Z", "to": "2026-01-04T00:00:00Z"}
TRIES = [
    # seconds behind MINUTE, outcome, error code, retries before it, milliseconds
    (1, "delivered", None, 0, 9),
    (2, "retry", "http_429", 0, 100),
    (61, "delivered", None, 1, 200),
    (62, "dead", "http_4xx", 0, 50),
]


async def attempted(sql: Any, tenant: UUID, endpoint: UUID, *, settle_no: int = 1, tries: Any = tuple(TRIES)) -> None:
    """A settle of the first shard with these attempts, of events accepted a second before; each sent 100 and got 50
    bytes."""
    await sql.execute(
        "insert into progress (day, shard, settle_no, fence, cursor, read_to, read_day)"
        " values (hookpost_today(), 0, $1, 1, 0, 0, hookpost_today())",
        settle_no,
    )
    for after_s, outcome, code, retries, latency_ms in tries:
        await sql.execute(
            "insert into attempts (day, attempt_id, shard, settle_no, position, event_id, endpoint_id, tenant_id,"
            " generation, scheduled_at, started_at, finished_at, retry_count, latency_ms, dns_ms, connect_ms, tls_ms,"
            " first_byte_ms, request_bytes, response_bytes, possible_duplicate, outcome, error_code, worker, address,"
            " protocol, response_head) select hookpost_today(), gen_random_uuid(), 0, $1, 1,"
            " (lpad(to_hex((extract(epoch from t) * 1000)::bigint - 1000), 12, '0') || '7abc8' || left(md5($8::text), 15))::uuid,"
            " $2, $3, 0,"
            " t, t, t, $4, $5, 0, 0, 0, 0, 100, 50, false, $6, $7, 'w', '', '', ''"
            " from (select timestamptz '2026-01-02 03:00:00Z' + make_interval(secs => $8)) m (t)",
            settle_no, endpoint, tenant, retries, latency_ms, outcome, code, after_s,
        )  # fmt: skip


async def roll_up(store: PostgresStore) -> None:
    step = await store.roll_up(settles_max=1000, events_max=1000)
    assert step is not None
    assert step.left is None


async def ask(client: Any, path: str, **query: Any) -> dict[str, Any]:
    answer = await client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


@pytest.fixture
async def endpoint(sql: Any, tenant: TenantClient, store: PostgresStore) -> dict[str, Any]:
    """An endpoint with four attempts that are rolled up."""
    made = await tenant.endpoint()
    await attempted(sql, tenant.uuid, endpoint_uuid(made))
    await roll_up(store)
    return made


# ---- stats -----------------------------------------------------------------------------------------------------------


async def test_a_series_has_a_point_for_each_step_and_adds_up(tenant: TenantClient, endpoint: dict[str, Any]) -> None:
    shown = await ask(tenant, STATS, endpoint_id=endpoint["endpoint_id"], step=60, **WINDOW)
    answers.StatsAnswer.model_validate(shown)
    assert [shown[name] for name in ("tenant_id", "endpoint_id", "from", "to", "step")] == [
        tenant.tenant_id, endpoint["endpoint_id"], MINUTE, "2026-01-02T04:00:00.000Z", 60,
    ]  # fmt: skip
    assert len(shown["series"]) == 60
    first, second, *rest = shown["series"]
    arrived = {"estimate_ms": 935.0, "low_ms": 861, "high_ms": 1023, "relative_error": 0.086}
    assert first == {
        "start": MINUTE, "attempts": 2, "retries": 0, "outcomes": {"delivered": 1, "retry": 1, "dead": 0},
        "errors": {"http_429": 1}, "latency": first["latency"],
        "latency_buckets": [
            {"low_ms": 8, "high_ms": 9, "attempts": 1}, {"low_ms": 91, "high_ms": 107, "attempts": 1},
        ],
        "acceptance_to_2xx": dict.fromkeys(("p50", "p95", "p99"), arrived),
        "acceptance_to_2xx_buckets": [{"low_ms": 861, "high_ms": 1023, "deliveries": 1}],
    }  # fmt: skip
    assert first["latency"]["p50"] == {"estimate_ms": 8.5, "low_ms": 8, "high_ms": 9, "relative_error": 0.059}
    assert (second["attempts"], second["retries"], second["errors"]) == (2, 1, {"http_4xx": 1})
    assert all(point["attempts"] == 0 and point["latency"] is None for point in rest)
    assert shown["totals"]["outcomes"] == {"delivered": 2, "retry": 1, "dead": 1}
    assert shown["totals"]["errors"] == {"http_429": 1, "http_4xx": 1}
    assert shown["totals"]["latency"]["p99"]["low_ms"] <= 200 <= shown["totals"]["latency"]["p99"]["high_ms"]
    assert shown["complete_until"] is not None


async def test_one_step_over_all_says_the_same(tenant: TenantClient, endpoint: dict[str, Any]) -> None:
    fine = await ask(tenant, STATS, step=60, **WINDOW)
    coarse = await ask(tenant, STATS, step=86_400, **DAYS)
    assert coarse["totals"] == fine["totals"]
    assert [point["attempts"] for point in coarse["series"]] == [4, 0]


async def test_the_present_comes_from_the_tables_of_the_engine(
    admin: httpx.AsyncClient, sql: Any, tenant: TenantClient, endpoint: dict[str, Any]
) -> None:
    mine = endpoint_uuid(endpoint)
    event_id, seq = await append_event(sql, tenant.uuid, [mine])
    await sql.execute("update tenants set home_shards = '{0}' where tenant_id = $1", tenant.uuid)
    await add_waiting(sql, tenant.uuid, event_id, mine, seq)
    await add_dead(sql, tenant.uuid, uuid4(), mine)
    now = {"waiting": 1, "waiting_exact": True, "dead": 1, "dead_exact": True}
    assert (await ask(tenant, STATS, **WINDOW))["now"] == now | {"depth": None}
    assert (await ask(admin, STATS, **WINDOW))["now"] == now | {"depth": 1}
    assert (await ask(admin, STATS, tenant_id=tenant.tenant_id, **WINDOW))["now"] == now | {"depth": 1}
    assert (await ask(tenant, STATS, endpoint_id=endpoint["endpoint_id"], **WINDOW))["now"] == now | {"depth": None}


async def test_a_tenant_sees_its_own_figures_and_the_admin_all(
    admin: httpx.AsyncClient, sql: Any, tenant: TenantClient, store: PostgresStore, endpoint: dict[str, Any]
) -> None:
    other = await make_tenant(admin, "other")
    theirs = await other.endpoint()
    await attempted(sql, other.uuid, endpoint_uuid(theirs), settle_no=2, tries=TRIES[:1])
    await roll_up(store)

    async def attempts(client: Any, **query: Any) -> int:
        count: int = (await ask(client, STATS, **WINDOW, **query))["totals"]["attempts"]
        return count

    assert (await attempts(tenant), await attempts(other), await attempts(admin)) == (4, 1, 5)
    assert await attempts(admin, tenant_id=other.tenant_id) == 1
    assert await attempts(admin, endpoint_id=theirs["endpoint_id"]) == 1
    acting = await admin.get(STATS, params=WINDOW, headers={"X-Tenant-Id": tenant.tenant_id})
    assert acting.json()["totals"]["attempts"] == 4
    for path in (STATS, USAGE, COST):
        assert (await tenant.get(path, params={"tenant_id": other.tenant_id})).status_code == 404
    assert (await tenant.get(STATS, params={"endpoint_id": theirs["endpoint_id"]})).status_code == 404
    assert {row["tenant_id"] for row in (await ask(other, USAGE, **DAYS))["data"]} == {other.tenant_id}
    assert [row["tenant_id"] for row in (await ask(other, COST, **DAYS))["tenants"]] == [other.tenant_id]
    assert (await ask(other, COST, **DAYS))["platform"] is None


async def test_a_deleted_endpoint_keeps_its_history(tenant: TenantClient, endpoint: dict[str, Any]) -> None:
    await tenant.delete(f"/v1/webhook_endpoints/{endpoint['endpoint_id']}")
    shown = await ask(tenant, STATS, endpoint_id=endpoint["endpoint_id"], **WINDOW)
    assert shown["totals"]["attempts"] == 4


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"step": 59}, "step"),
        ({"step": 90}, "step"),
        ({"step": 0}, "step"),
        ({"step": "hour"}, "step"),
        ({"step": 60, "from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}, "step"),
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-01-02T03:04:05"}, "to"),
        ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "from"),
        ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-02T00:00:00Z"}, "from"),
        ({"since": "2026-01-02T00:00:00Z"}, "since"),
        ({"endpoint_id": "evt_1"}, "endpoint_id"),
    ],
)
async def test_a_bad_question_is_refused_by_field(tenant: TenantClient, query: dict[str, Any], field: str) -> None:
    answer = await tenant.get(STATS, params=query)
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_a_step_finer_than_what_is_kept_is_refused_with_one_that_is_not(
    tenant: TenantClient, sql: Any, endpoint: dict[str, Any]
) -> None:
    await sql.execute("update rollup_reach set kept_from = '2026-01-03' where grain = 60")
    answer = await tenant.get(STATS, params={**WINDOW, "step": 60})
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert (error["field"], "multiple of 1800" in error["message"]) == ("step", True)
    assert (await ask(tenant, STATS, step=1800, **WINDOW))["totals"]["attempts"] == 4


async def test_too_many_points_are_refused_with_a_step_that_fits(tenant: TenantClient) -> None:
    answer = await tenant.get(STATS, params={**DAYS, "step": 60})
    [error] = answer.json()["errors"]
    assert "2880 points are too many" in error["message"]
    assert "a step of 180 " in error["message"]
    assert len((await ask(tenant, STATS, step=180, **DAYS))["series"]) == 960 <= stats.POINTS_MAX


# ---- usage -----------------------------------------------------------------------------------------------------------


async def test_usage_is_listed_by_day_and_tenant_in_pages(
    admin: httpx.AsyncClient, sql: Any, tenant: TenantClient, endpoint: dict[str, Any]
) -> None:
    await sql.execute("insert into metering (day, tenant_id, accepted) values ('2026-01-03', $1, 7)", tenant.uuid)
    for client in (tenant, admin):
        first = await ask(client, USAGE, limit=1, **DAYS)
        answers.UsageList.model_validate(first)
        assert [(row["day"], row["accepted"]) for row in first["data"]] == [("2026-01-03", 7)]
        second = await ask(client, USAGE, limit=1, cursor=first["next_cursor"], **DAYS)
        assert second["next_cursor"] is None
        assert second["data"] == [{
            "day": "2026-01-02", "tenant_id": tenant.tenant_id, "complete": True, "accepted": 0, "attempts": 4,
            "delivered": 2, "dead": 1, "retries": 1, "rate_limited": 1, "request_bytes": 400, "response_bytes": 200,
            "request_ms": 359,
        }]  # fmt: skip


@pytest.mark.parametrize("who", ["tenant", "admin"])
async def test_an_export_has_every_row_whatever_the_page(
    admin: httpx.AsyncClient, tenant: TenantClient, sql: Any, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "EXPORT_ROWS", 3)
    await sql.execute(
        "insert into metering (day, tenant_id, attempts) select date '2026-01-01' + n, $1, n from generate_series(0, 9) n",
        tenant.uuid,
    )
    client: Any = tenant if who == "tenant" else admin
    days = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-11T00:00:00Z"}
    answer = await client.get(USAGE, params={**days, "format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [int(row["attempts"]) for row in rows] == list(range(9, -1, -1))
    assert list(rows[0]) == list(answers.UsageItem.model_fields)
    answer = await client.get(USAGE, params={**days, "format": "ndjson"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["day"] for line in lines] == [row["day"] for row in rows]
    assert lines == (await ask(client, USAGE, limit=500, **days))["data"]


async def test_an_export_of_nothing_is_a_heading(tenant: TenantClient) -> None:
    answer = await tenant.get(USAGE, params={"format": "csv", **DAYS})
    assert answer.text == ",".join(answers.UsageItem.model_fields) + "\r\n"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"format": "xml"}, "format"),
        ({"format": "csv", "limit": 5}, "limit"),
        ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "from"),
        ({"from": "2020-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "from"),
    ],
)
async def test_a_bad_question_about_usage_is_refused_by_field(
    tenant: TenantClient, query: dict[str, Any], field: str
) -> None:
    answer = await tenant.get(USAGE, params=query)
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]


# ---- cost ------------------------------------------------------------------------------------------------------------


async def test_the_cost_is_the_formula_with_what_was_measured(
    admin: httpx.AsyncClient, tenant: TenantClient, endpoint: dict[str, Any]
) -> None:
    given = {
        "worker_cost_per_hour": 0.5, "requests_per_worker": 2, "storage_cost_per_gb_month": 0.2,
        "egress_cost_per_gb": 0.3, "retention_days": 10,
    }  # fmt: skip
    shown = await ask(admin, COST, **DAYS, **given)
    answers.CostAnswer.model_validate(shown)
    assert shown["prices"] == given
    assert shown["seconds"] == 2 * 86_400
    assert (shown["attempt_row_bytes"], shown["attempt_row_bytes_measured"]) == (stats.ATTEMPT_ROW_BYTES, False)
    [item] = shown["tenants"]
    assert item["tenant_id"] == tenant.tenant_id
    assert {**item, "tenant_id": None} == shown["platform"]
    measured, cost = item["measured"], item["cost_per_month"]
    assert measured == {
        "attempts": 4, "attempts_per_sec": pytest.approx(4 / 172_800), "avg_request_ms": pytest.approx(359 / 4),
        "request_bytes": 400, "response_bytes": 200,
    }  # fmt: skip
    per_hour = measured["attempts_per_sec"] * measured["avg_request_ms"] / 1000 * 0.5 / 2
    assert cost["compute"] == pytest.approx(per_hour * 730)
    assert cost["storage"] == pytest.approx(shown["attempt_row_bytes"] * 2 * 10 / 1e9 * 0.2)
    assert cost["egress"] == pytest.approx(600 / 172_800 * 730 * 3600 / 1e9 * 0.3)
    assert cost["total"] == pytest.approx(cost["compute"] + cost["storage"] + cost["egress"])
    assert item["retries"]["measured"]["attempts"] == item["rate_limited"]["measured"]["attempts"] == 1
    assert item["rate_limited"]["cost_per_month"]["compute"] == pytest.approx(cost["compute"] * 100 / 359)
    assert item["retries"]["cost_per_month"]["egress"] == pytest.approx(cost["egress"] / 4)


async def test_the_platform_is_all_tenants_though_not_all_are_listed(
    admin: httpx.AsyncClient, tenant: TenantClient, sql: Any, endpoint: dict[str, Any]
) -> None:
    other = await make_tenant(admin, "other")
    await sql.execute("insert into metering (day, tenant_id, attempts) values ('2026-01-02', $1, 6)", other.uuid)
    shown = await ask(admin, COST, limit=1, **DAYS)
    assert shown["platform"]["measured"]["attempts"] == 10
    assert [item["tenant_id"] for item in shown["tenants"]] == [other.tenant_id]
    mine = await ask(tenant, COST, **DAYS)
    assert (mine["platform"], [item["measured"]["attempts"] for item in mine["tenants"]]) == (None, [4])


async def test_of_a_time_without_attempts_there_is_no_cost(admin: httpx.AsyncClient, tenant: TenantClient) -> None:
    assert await ask(admin, COST, **DAYS) | {"prices": None} == {
        "from": "2026-01-02T00:00:00.000Z", "to": "2026-01-04T00:00:00.000Z", "seconds": 172_800.0,
        "complete_until": None, "prices": None, "attempt_row_bytes": stats.ATTEMPT_ROW_BYTES,
        "attempt_row_bytes_measured": False, "platform": None, "tenants": [],
    }  # fmt: skip
    assert (await ask(tenant, COST))["tenants"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"worker_cost_per_hour": -1}, "worker_cost_per_hour"),
        ({"requests_per_worker": 0}, "requests_per_worker"),
        ({"egress_cost_per_gb": "nan"}, "egress_cost_per_gb"),
        ({"storage_cost_per_gb_month": "cheap"}, "storage_cost_per_gb_month"),
        ({"retention_days": -1}, "retention_days"),
        ({"from": "2999-01-01T00:00:00Z", "to": "2999-01-02T00:00:00Z"}, "from"),
        ({"currency": "EUR"}, "currency"),
    ],
)
async def test_a_bad_question_about_cost_is_refused_by_field(
    tenant: TenantClient, query: dict[str, Any], field: str
) -> None:
    answer = await tenant.get(COST, params=query)
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]
