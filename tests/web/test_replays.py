"""Bulk replays over HTTP: forms, what is shown, and what is refused."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest

from hookpost.maintenance import REPLAY_LIMITS, Replays
from hookpost.storage.postgres.store import PostgresStore
from hookpost.web import answers, replays
from tests.web.rows import TenantClient, add_dead, append_event, endpoint_uuid, make_tenant, set_progress

REPLAYS = "/v1/replays"


async def dead(sql: Any, tenant: TenantClient, endpoint: dict[str, Any], count: int = 1) -> None:
    for _ in range(count):
        event_id, seq = await append_event(sql, tenant.uuid, [endpoint_uuid(endpoint)])
        await add_dead(sql, tenant.uuid, event_id, endpoint_uuid(endpoint))
        await set_progress(sql, read_to=seq)


async def test_a_replay_is_created_runs_and_is_shown(
    sql: Any, tenant: TenantClient, store: PostgresStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hookpost")
    endpoint = await tenant.endpoint()
    await dead(sql, tenant, endpoint, 3)
    body = {"endpoint_id": endpoint["endpoint_id"], "since": "2020-01-01T00:00:00Z", "rate_limit": 20.5}
    answer = await tenant.post(REPLAYS, body)
    assert answer.status_code == 202, answer.text
    started = answer.json()
    answers.ReplayStarted.model_validate(started)
    assert (started["matched"], started["matched_exact"]) == (3, True)
    shown = (await tenant.get(f"{REPLAYS}/{started['replay_id']}")).json()
    answers.ReplayAnswer.model_validate(shown)
    assert shown | {"created_at": None} == {
        "replay_id": started["replay_id"], "tenant_id": tenant.tenant_id, "endpoint_id": endpoint["endpoint_id"],
        "type": None, "status": "dead", "reason": None, "since": "2020-01-01T00:00:00.000Z", "until": None, "rate_limit": 20.5,
        "matched": 3, "matched_exact": True, "replayed": 0, "state": "running", "failure": None, "created_at": None,
        "finished_at": None,
    }  # fmt: skip
    runner = Replays(store, limits=REPLAY_LIMITS)
    assert await runner.once() == 0.0
    shown = (await tenant.get(f"{REPLAYS}/{started['replay_id']}")).json()
    assert (shown["state"], shown["replayed"], shown["finished_at"] is None) == ("done", 3, False)
    assert await runner.once() == 1.0
    assert [record.hookpost_event for record in caplog.records] == ["replay_created", "replay_ended"]


async def test_without_a_body_it_is_all_that_is_dead_at_the_default_rate(sql: Any, tenant: TenantClient) -> None:
    await dead(sql, tenant, await tenant.endpoint())
    started = (await tenant.post(REPLAYS)).json()
    shown = (await tenant.get(f"{REPLAYS}/{started['replay_id']}")).json()
    assert (shown["status"], shown["rate_limit"], shown["matched"]) == ("dead", 500.0, 1)


async def test_only_what_died_of_a_reason_is_replayed(sql: Any, tenant: TenantClient) -> None:
    await dead(sql, tenant, await tenant.endpoint(), 2)
    for reason, matched in (("http_4xx", 0), ("deadline", 2)):
        await sql.execute("update dead_letters set reason = 'deadline'")
        started = (await tenant.post(REPLAYS, {"reason": reason})).json()
        shown = (await tenant.get(f"{REPLAYS}/{started['replay_id']}")).json()
        assert (shown["reason"], shown["status"], shown["matched"]) == (reason, "dead", matched)


async def test_a_dry_run_counts_and_creates_nothing(sql: Any, tenant: TenantClient) -> None:
    await dead(sql, tenant, await tenant.endpoint(), 2)
    answer = await tenant.post(REPLAYS, {"dry_run": True})
    assert (answer.status_code, answer.json()) == (202, {"replay_id": None, "matched": 2, "matched_exact": True})
    assert (await tenant.get(REPLAYS)).json() == {"data": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"endpoint_id": f"ep_{uuid4().hex}"}, "endpoint_id"),
        ({"endpoint_id": "evt_1"}, "endpoint_id"),
        ({"endpoint_id": 5}, "endpoint_id"),
        ({"status": "waiting"}, "status"),
        ({"reason": "boredom"}, "reason"),
        ({"reason": "deadline", "status": "delivered"}, "reason"),
        ({"type": ""}, "type"),
        ({"type": "a\0"}, "type"),
        ({"since": "yesterday"}, "since"),
        ({"until": 5}, "until"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "since"),
        ({"rate_limit": 0}, "rate_limit"),
        ({"rate_limit": -1.0}, "rate_limit"),
        ({"rate_limit": 1e9}, "rate_limit"),
        ({"rate_limit": "fast"}, "rate_limit"),
        ({"dry_run": None}, "dry_run"),
        ({"dry_run": 1}, "dry_run"),
        ({"endpoints": []}, "endpoints"),
    ],
)
@pytest.mark.parametrize("dry_run", [{}, {"dry_run": True}])
async def test_a_bad_filter_is_refused_by_field(
    tenant: TenantClient, body: dict[str, Any], field: str, dry_run: dict[str, bool]
) -> None:
    answer = await tenant.post(REPLAYS, dry_run | body)
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]


@pytest.mark.parametrize("whose", ["deleted", "another tenant's"])
async def test_an_endpoint_that_is_not_there_is_refused_by_field(
    admin: httpx.AsyncClient, tenant: TenantClient, whose: str
) -> None:
    owner = tenant if whose == "deleted" else await make_tenant(admin, "other")
    endpoint = await owner.endpoint()
    if whose == "deleted":
        await owner.delete(f"/v1/webhook_endpoints/{endpoint['endpoint_id']}")
    answer = await tenant.post(REPLAYS, {"endpoint_id": endpoint["endpoint_id"]})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "endpoint_id")


async def test_cancelling_ends_it_once_and_again_changes_nothing(sql: Any, tenant: TenantClient) -> None:
    await dead(sql, tenant, await tenant.endpoint())
    path = f"{REPLAYS}/{(await tenant.post(REPLAYS)).json()['replay_id']}"
    assert (await tenant.delete(path)).status_code == 204
    cancelled = (await tenant.get(path)).json()
    assert (cancelled["state"], cancelled["replayed"]) == ("cancelled", 0)
    assert (await tenant.delete(path)).status_code == 204
    assert (await tenant.get(path)).json() == cancelled


async def test_replays_are_listed_newest_first_in_pages(admin: httpx.AsyncClient, tenant: TenantClient) -> None:
    created = [(await tenant.post(REPLAYS)).json()["replay_id"] for _ in range(5)]
    for client in (tenant, admin):
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 2}
        while query is not None:
            page = (await client.get(REPLAYS, params=query)).json()
            seen += [row["replay_id"] for row in page["data"]]
            query = {"limit": 2, "cursor": page["next_cursor"]} if page["next_cursor"] else None
        assert seen == created[::-1]
    assert (await admin.get(REPLAYS, params={"tenant_id": tenant.tenant_id})).json()["data"] != []
    assert (await admin.get(REPLAYS, params={"tenant_id": f"ten_{uuid4().hex}"})).json()["data"] == []


async def test_the_admin_replays_for_the_tenant_it_names(admin: httpx.AsyncClient, tenant: TenantClient) -> None:
    assert (await admin.post(REPLAYS)).status_code == 400
    started = (await admin.post(REPLAYS, headers={"X-Tenant-Id": tenant.tenant_id})).json()
    assert (await tenant.get(f"{REPLAYS}/{started['replay_id']}")).json()["tenant_id"] == tenant.tenant_id
    assert (await admin.get(f"{REPLAYS}/{started['replay_id']}")).status_code == 200
    assert (await admin.delete(f"{REPLAYS}/{started['replay_id']}")).status_code == 400


async def test_too_many_running_replays_are_a_conflict(tenant: TenantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "REPLAYS_RUNNING_MAX", 1)
    assert (await tenant.post(REPLAYS)).status_code == 202
    assert (await tenant.post(REPLAYS)).status_code == 409
    assert (await tenant.post(REPLAYS, {"dry_run": True})).status_code == 202
