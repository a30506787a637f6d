"""The list of an endpoint's deliveries: of one state, or of any."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from hookpost.model import show_id
from hookpost.storage.postgres import search
from tests.web.rows import (
    TenantClient,
    add_attempt,
    add_dead,
    add_waiting,
    append_event,
    endpoint_uuid,
    event_path,
    make_tenant,
    set_progress,
)

STATES = ("delivered", "dead", "waiting", "cancelled", "queued")


async def one_of_each(sql: Any, tenant: TenantClient) -> tuple[str, dict[str, str]]:
    """An endpoint, and the event of which its delivery is in each state; between them events that others are owed."""
    endpoint_id = (await tenant.endpoint())["endpoint_id"]
    uuid, other = endpoint_uuid({"endpoint_id": endpoint_id}), endpoint_uuid(await tenant.endpoint())
    events: dict[str, str] = {}
    for state in STATES:
        await append_event(sql, tenant.uuid, [other])
        event, seq = await append_event(sql, tenant.uuid, [other, uuid])
        events[state] = show_id("evt", event)
        if state == "delivered":
            await add_attempt(sql, tenant.uuid, event, uuid, outcome="delivered", position=seq)
        elif state == "dead":
            await add_dead(sql, tenant.uuid, event, uuid)
        elif state in ("waiting", "cancelled"):
            await add_waiting(sql, tenant.uuid, event, uuid, seq)
        if state == "cancelled":
            assert (await tenant.post(f"{event_path(event)}/cancel")).status_code == 202
            await sql.execute("delete from backlog where event_id = $1", event)
        if state != "queued":
            await set_progress(sql, read_to=await sql.fetchval("select max(seq) from events where shard = 0"))
    return endpoint_id, events


async def listed(tenant: TenantClient, endpoint_id: str, **query: Any) -> list[dict[str, Any]]:
    """All pages together; each holds ``limit`` at most."""
    found, cursor = [], ""
    while cursor is not None:
        path = f"/v1/webhook_endpoints/{endpoint_id}/deliveries"
        answer = await tenant.get(path, params={**query, **({"cursor": cursor} if cursor else {})})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"]) <= query.get("limit", 50)
        found += answer.json()["data"]
        cursor = answer.json()["next_cursor"]
    return found


@pytest.mark.parametrize("limit", [50, 2, 1])
async def test_without_a_status_all_deliveries_are_listed_newest_first_as_they_are_now(
    sql: Any, tenant: TenantClient, limit: int
) -> None:
    endpoint_id, events = await one_of_each(sql, tenant)
    found = await listed(tenant, endpoint_id, limit=limit)
    assert [(each["event_id"], each["status"]) for each in found] == [
        (events[state], state) for state in reversed(STATES)
    ]
    assert {each["endpoint_id"] for each in found} == {endpoint_id}
    assert [each["reason"] for each in found] == [None, None, "retry", "http_4xx", None]
    one = (await tenant.get(f"/v1/webhook_endpoints/{endpoint_id}/deliveries?status=waiting")).json()["data"][0]
    assert set(one) == set(found[0])


@pytest.mark.parametrize("state", STATES)
async def test_each_state_may_be_asked_for(sql: Any, tenant: TenantClient, state: str) -> None:
    endpoint_id, events = await one_of_each(sql, tenant)
    for limit in (50, 1):
        found = await listed(tenant, endpoint_id, status=state, limit=limit)
        assert [(each["event_id"], each["status"]) for each in found] == [(events[state], state)]


async def test_a_look_goes_on_behind_so_many_events_of_others(
    sql: Any, tenant: TenantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SCANNED_MAX", 3)
    endpoint_id, events = await one_of_each(sql, tenant)
    assert [each["event_id"] for each in await listed(tenant, endpoint_id)] == [*reversed(events.values())]


async def test_the_operator_sees_it_and_another_tenant_does_not(
    sql: Any, admin: httpx.AsyncClient, tenant: TenantClient
) -> None:
    endpoint_id, events = await one_of_each(sql, tenant)
    path = f"/v1/webhook_endpoints/{endpoint_id}/deliveries"
    assert len((await admin.get(path)).json()["data"]) == len(events)
    assert (await (await make_tenant(admin, "other")).get(path)).status_code == 404
