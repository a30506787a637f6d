"""Cancel and retry-now: what they count, what they append to the journal, and whom they refuse."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from hookpost.engine.work import CANCEL, RETRY_NOW
from tests.web.rows import (
    TenantClient,
    add_attempt,
    add_dead,
    add_waiting,
    append_event,
    append_replay,
    endpoint_uuid,
    event_path,
    make_tenant,
    set_progress,
)

ACTIONS = {"cancel": CANCEL, "retry_now": RETRY_NOW}
both = pytest.mark.parametrize("action", ACTIONS)


async def ask(tenant: TenantClient, event_id: UUID, action: str, endpoint_id: UUID | None = None) -> int:
    body = None if endpoint_id is None else {"endpoint_id": f"ep_{endpoint_id.hex}"}
    answer = await tenant.post(f"{event_path(event_id)}/{action}", body)
    assert answer.status_code == 202, answer.text
    return answer.json()["delivery_count"]


async def controls(sql: Any) -> list[tuple[Any, ...]]:
    """Shard, number, type, whom it concerns and which numbers it names, of each control row."""
    rows = await sql.fetch("select * from events where kind = 2 order by shard, seq")
    return [(row["shard"], row["seq"], row["type"], set(row["owed"]), json.loads(row["payload"])) for row in rows]


async def endpoints(tenant: TenantClient, count: int) -> list[UUID]:
    return [endpoint_uuid(await tenant.endpoint()) for _ in range(count)]


@both
async def test_what_is_queued_or_waits_is_asked_for_and_what_is_over_is_not(
    sql: Any, tenant: TenantClient, action: str
) -> None:
    waiting, delivered, dead, queued = ids = await endpoints(tenant, 4)
    event_id, seq = await append_event(sql, tenant.uuid, ids)
    await add_waiting(sql, tenant.uuid, event_id, waiting, seq)
    await add_attempt(sql, tenant.uuid, event_id, delivered, outcome="delivered")
    await add_dead(sql, tenant.uuid, event_id, dead)
    partial = json.dumps({str(seq): [str(waiting), str(delivered), str(dead)]})
    await set_progress(sql, read_to=seq, open=f"{{[{seq},{seq + 1})}}", partial=partial)
    assert await ask(tenant, event_id, action) == 2
    assert await controls(sql) == [(0, seq + 1, ACTIONS[action], {waiting, queued}, [seq])]


@both
async def test_one_endpoint_can_be_named(sql: Any, tenant: TenantClient, action: str) -> None:
    one, other = await endpoints(tenant, 2)
    event_id, seq = await append_event(sql, tenant.uuid, [one, other])
    assert await ask(tenant, event_id, action, other) == 1
    assert await controls(sql) == [(0, seq + 1, ACTIONS[action], {other}, [seq])]


@both
async def test_nothing_to_do_appends_nothing(sql: Any, tenant: TenantClient, action: str) -> None:
    (endpoint,) = await endpoints(tenant, 1)
    event_id, seq = await append_event(sql, tenant.uuid, [endpoint])
    await add_attempt(sql, tenant.uuid, event_id, endpoint, outcome="delivered")
    await set_progress(sql, read_to=seq)
    assert await ask(tenant, event_id, action) == 0
    empty, _ = await append_event(sql, tenant.uuid, [])
    assert await ask(tenant, empty, action) == 0
    assert await controls(sql) == []


@both
async def test_every_shard_that_holds_a_delivery_of_the_event_gets_one_row(
    sql: Any, tenant: TenantClient, action: str
) -> None:
    one, other = await endpoints(tenant, 2)
    event_id, seq = await append_event(sql, tenant.uuid, [one, other], shard=2)
    replays = [
        await append_replay(sql, tenant.uuid, event_id, owed, shard=shard)
        for shard, owed in ((2, [one]), (1, [one, other]), (3, [other]))
    ]
    assert await ask(tenant, event_id, action, one) == 1
    assert await controls(sql) == [
        (1, replays[1] + 1, ACTIONS[action], {one}, [replays[1]]),
        (2, replays[0] + 1, ACTIONS[action], {one}, [seq, replays[0]]),
    ]


@both
async def test_an_older_generation_that_still_waits_is_asked_for(sql: Any, tenant: TenantClient, action: str) -> None:
    """A replay that was delivered does not end the retries of the delivery before it; a cancel does."""
    (endpoint,) = await endpoints(tenant, 1)
    event_id, seq = await append_event(sql, tenant.uuid, [endpoint])
    await add_waiting(sql, tenant.uuid, event_id, endpoint, seq)
    replay = await append_replay(sql, tenant.uuid, event_id, [endpoint])
    await add_attempt(sql, tenant.uuid, event_id, endpoint, outcome="delivered", generation=1)
    await set_progress(sql, read_to=replay)
    assert await ask(tenant, event_id, action) == 1
    assert await controls(sql) == [(0, replay + 1, ACTIONS[action], {endpoint}, [seq, replay])]


async def test_a_dead_letter_that_blocks_its_lane_can_be_cancelled_but_not_hurried(
    sql: Any, tenant: TenantClient
) -> None:
    endpoint = endpoint_uuid(await tenant.endpoint(ordered=True))
    event_id, seq = await append_event(sql, tenant.uuid, [endpoint])
    await add_dead(sql, tenant.uuid, event_id, endpoint)
    await add_waiting(sql, tenant.uuid, event_id, endpoint, seq, reason="ordered", due_at="infinity")
    await set_progress(sql, read_to=seq)
    listed = await tenant.get(f"/v1/webhook_endpoints/ep_{endpoint.hex}/deliveries?status=waiting")
    assert listed.json()["data"] == []
    assert await ask(tenant, event_id, "retry_now") == 0
    assert await ask(tenant, event_id, "cancel") == 1
    assert await controls(sql) == [(0, seq + 1, CANCEL, {endpoint}, [seq])]


@both
@pytest.mark.parametrize("which", ["unknown", "not owed", "another tenant's event"])
async def test_what_it_was_not_owed_to_is_404(
    admin: Any, sql: Any, tenant: TenantClient, action: str, which: str
) -> None:
    one, other = await endpoints(tenant, 2)
    event_id, _ = await append_event(sql, tenant.uuid, [one])
    asking, endpoint = tenant, other
    if which == "unknown":
        endpoint = uuid4()
    elif which == "another tenant's event":
        asking, endpoint = await make_tenant(admin, "other"), one
    answer = await asking.post(f"{event_path(event_id)}/{action}", {"endpoint_id": f"ep_{endpoint.hex}"})
    assert answer.status_code == 404
    assert (await asking.post(f"{event_path(uuid4())}/{action}")).status_code == 404
    assert await controls(sql) == []


@both
@pytest.mark.parametrize("body", [{"endpoint_id": "evt_1"}, {"endpoint_id": 5}, {"endpoints": []}])
async def test_a_bad_request_names_its_field(sql: Any, tenant: TenantClient, action: str, body: dict[str, Any]) -> None:
    event_id, _ = await append_event(sql, tenant.uuid, await endpoints(tenant, 1))
    answer = await tenant.post(f"{event_path(event_id)}/{action}", body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, next(iter(body)))


async def test_control_rows_are_no_events(admin: Any, sql: Any, tenant: TenantClient) -> None:
    (endpoint,) = await endpoints(tenant, 1)
    event_id, _ = await append_event(sql, tenant.uuid, [endpoint], type="invoice.paid")
    before = (await tenant.get(event_path(event_id))).json()
    for action in ACTIONS:
        assert await ask(tenant, event_id, action) == 1
    assert (await tenant.get(event_path(event_id))).json() == before
    for client in (tenant, admin):
        assert [row["type"] for row in (await client.get("/v1/events")).json()["data"]] == ["invoice.paid"]
        assert (await client.get("/v1/events?type=hookpost.cancel")).json()["data"] == []
    assert (await tenant.post(f"{event_path(event_id)}/replay")).json() == {"delivery_count": 1}
    generation = await sql.fetchval("select generation from events where event_id = $1 and kind = 1", event_id)
    assert generation == 1


async def test_every_action_is_in_the_log(sql: Any, tenant: TenantClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="hookpost")
    event_id, _ = await append_event(sql, tenant.uuid, await endpoints(tenant, 1))
    for action in (*ACTIONS, "replay"):
        await tenant.post(f"{event_path(event_id)}/{action}")
    assert [record.hookpost_event for record in caplog.records] == [
        "control_appended", "control_appended", "event_replayed",
    ]  # fmt: skip


async def test_a_payload_is_removed_for_good_and_its_event_tells(sql: Any, tenant: TenantClient) -> None:
    [endpoint_id] = await endpoints(tenant, 1)
    event_id, seq = await append_event(sql, tenant.uuid, [endpoint_id])
    answer = await tenant.delete(f"{event_path(event_id)}/payload")
    assert (answer.status_code, answer.json()) == (200, {"delivery_count": 1})
    assert await controls(sql) == [(0, seq + 1, CANCEL, {endpoint_id}, [seq])]
    shown = (await tenant.get(event_path(event_id))).json()
    assert (shown["payload"], shown["payload_state"]) == (None, "removed")
    assert (await tenant.post(f"{event_path(event_id)}/replay")).status_code == 409
    assert (await tenant.delete(f"{event_path(event_id)}/payload")).status_code == 200


async def test_a_payload_of_nobodys_or_another_tenants_event_is_not_removed(
    sql: Any, tenant: TenantClient, admin: Any
) -> None:
    other = await make_tenant(admin, "other")
    event_id, _ = await append_event(sql, tenant.uuid, [])
    for path in (event_path(event_id), event_path(uuid4())):
        assert (await other.delete(f"{path}/payload")).status_code == 404
    assert await sql.fetchval("select payload is not null from events where event_id = $1", event_id)
