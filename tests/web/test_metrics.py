"""`GET /metrics` on a real database: what the store knows, for the admin key alone, and how it is read."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.patience import PATIENCE_S
from tests.web.rows import TenantClient, add_waiting, append_event, endpoint_uuid, set_progress


def value(page: str, sample: str) -> float:
    [line] = [line for line in page.splitlines() if line.startswith(sample + " ")]
    return float(line.rpartition(" ")[2])


async def test_the_page_says_how_the_platform_stands(admin: httpx.AsyncClient, sql: Any, tenant: TenantClient) -> None:
    endpoint = endpoint_uuid(await tenant.endpoint())
    for _ in range(3):
        event_id, seq = await append_event(sql, tenant.uuid, [endpoint])
    await sql.execute("update events set created_at = now() - interval '90 s' where seq = 2")
    await sql.execute("update events set created_at = now() - interval '7 s' where seq = 3")
    await set_progress(sql, read_to=2, open="{[2,3)}")
    for number in range(4):
        await add_waiting(sql, tenant.uuid, event_id, endpoint, seq + number, reason="retry" if number else "ordered")
    await sql.execute(
        "insert into metering (day, tenant_id, accepted, attempts, delivered, dead) values (hookpost_today(), $1, 3, 9, 5, 1)",
        tenant.uuid,
    )
    answer = await admin.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    page = answer.text
    assert value(page, 'hookpost_journal_depth{pool="default",shard="0"}') == 2
    assert 90 <= value(page, 'hookpost_journal_age_seconds{pool="default",shard="0"}') < 90 + PATIENCE_S
    unread_s = value(page, 'hookpost_journal_unread_seconds{pool="default",shard="0"}')
    assert 7 <= unread_s < 7 + PATIENCE_S, "the one before it was read, and waits for its turn"
    assert value(page, 'hookpost_journal_unread_seconds{pool="default",shard="1"}') == 0
    assert value(page, 'hookpost_journal_depth{pool="default",shard="1"}') == 0
    assert value(page, 'hookpost_journal_age_seconds{pool="default",shard="1"}') == 0
    assert value(page, "hookpost_shards_unowned") == 4
    assert value(page, 'hookpost_backlog_deliveries{reason="retry"}') == 3
    assert value(page, 'hookpost_backlog_deliveries{reason="ordered"}') == 1
    assert value(page, "hookpost_backlog_exact") == 1
    assert value(page, f'hookpost_tenant_attempts_total{{outcome="retry",tenant="{tenant.tenant_id}"}}') == 3
    assert value(page, "hookpost_store_up") == 1


async def test_the_backlog_is_counted_to_a_limit_and_the_busiest_tenants_alone_are_told_of(
    store: Any, sql: Any
) -> None:
    await sql.execute(
        "insert into backlog (shard, endpoint_id, position, day, tenant_id, event_id, generation, reason, due_at,"
        " retry_count, deadline, created_at) select 0, gen_random_uuid(), g, hookpost_today(), gen_random_uuid(),"
        " gen_random_uuid(), 0, 'retry', now(), 1, now(), now() from generate_series(1, 50) g"
    )
    await sql.execute(
        "insert into metering (day, tenant_id, attempts) select hookpost_today() - d, gen_random_uuid(), g"
        " from generate_series(1, 30) g, generate_series(0, 1) d"
    )
    found = await store.platform_figures(backlog_max=20, tenants_max=3)
    assert (found.backlog, found.backlog_exact) == ({"retry": 21}, False)
    assert [tenant.attempts for tenant in found.tenants] == [30, 29, 28]
    assert found.rollups_behind_s is None


@pytest.mark.parametrize(("key", "status"), [("", 401), ("Bearer nonsense", 401), (None, 403)])
async def test_the_page_is_for_the_admin_alone(
    admin: httpx.AsyncClient, tenant: TenantClient, key: str | None, status: int
) -> None:
    header = f"Bearer {tenant.key}" if key is None else key
    answer = await admin.get("/metrics", headers={"Authorization": header})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
