"""What was used, day by day, and the files that the dashboard hands out."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.web.dashboard.conftest import Browser, text_of
from tests.web.rows import TenantClient, make_tenant


async def test_usage_is_a_table_and_a_file_of_ones_own_days(
    sql: Any, admin: httpx.AsyncClient, tenant: TenantClient, browser: Browser, operator: Browser
) -> None:
    assert "Nothing was used" in await browser.shown("/dashboard/usage")
    for of, attempts in ((tenant, 1500), (await make_tenant(admin), 7)):
        await sql.execute(
            "insert into metering (day, tenant_id, accepted, attempts, delivered, request_bytes)"
            " values (hookpost_today() - 1, $1, 9, $2, 8, 4096)", of.uuid, attempts,
        )  # fmt: skip
    told = text_of(await browser.shown("/dashboard/usage?span=7d"))
    assert "1 500" in told and "4.0 KiB" in told
    for visitor, rows in ((browser, 1), (operator, 2)):
        answer = await visitor.get("/dashboard/usage/usage.csv?span=nonsense")
        assert answer.headers["content-type"].startswith("text/csv")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert len(answer.text.split("\r\n")) == rows + 2, answer.text
    only = await operator.get(f"/dashboard/usage/usage.csv?tenant_id={tenant.tenant_id}")
    assert "1500" in only.text and len(only.text.split("\r\n")) == 3
    assert (await operator.get("/dashboard/usage/usage.csv?tenant_id=x")).status_code == 404


async def test_the_audit_log_is_a_file_of_what_the_filter_shows(tenant: TenantClient, browser: Browser) -> None:
    await tenant.endpoint()
    page = await browser.shown("/dashboard/audit-log?action=endpoint.create")
    assert 'href="/dashboard/audit-log/audit_log.ndjson?action=endpoint.create"' in page
    answer = await browser.get("/dashboard/audit-log/audit_log.ndjson?action=endpoint.create")
    assert [json.loads(line)["action"] for line in answer.text.splitlines()] == ["endpoint.create"]
    assert (await browser.get("/dashboard/audit-log/audit_log.ndjson?since=yesterday")).status_code == 422
