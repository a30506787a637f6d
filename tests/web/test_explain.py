"""`GET /v1/events/{id}/explain` on rows as a worker writes them: what is read, for whom, and how much of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from hookpost.model import show_id
from hookpost.web import explain as route
from tests.web.rows import (
    TenantClient,
    add_attempt,
    add_dead,
    add_waiting,
    append_event,
    endpoint_uuid,
    event_path,
    make_tenant,
)
from tests.web.test_status import World, breaker

Arrange = Callable[[World], Awaitable[None]]


@pytest.fixture
async def world(sql: Any, tenant: TenantClient) -> World:
    endpoint_id = endpoint_uuid(await tenant.endpoint())
    event_id, seq = await append_event(sql, tenant.uuid, [endpoint_id])
    return World(sql, tenant, endpoint_id, event_id, seq)


async def ask(world: World, **query: str) -> dict[str, Any]:
    answer = await world.tenant.get(f"{event_path(world.event_id)}/explain", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def own(sql: Any, world: World) -> None:
    """A living worker owns the shard."""
    node = uuid4()
    await sql.execute("insert into nodes values ($1, 'default', 'w1', now(), now() + interval '1 h')", node)
    await sql.execute("update shards set owner = $1", node)


async def stored(world: World) -> None:
    await own(world.sql, world)


async def in_hand(world: World) -> None:
    await own(world.sql, world)
    await world.read(open=f"{{[{world.seq},{world.seq + 1})}}")


async def without_worker(world: World) -> None:
    await world.read(read_to=0)


async def retrying(world: World) -> None:
    await world.attempt("retry", http_status=503)
    await world.waiting()
    await world.read()


async def behind_a_breaker(world: World) -> None:
    await world.waiting(due_at="2020-01-01T00:00:00Z")
    await world.read()
    await breaker(world, "open", reopen_in_s=1_000_000_000)


async def behind_a_dead_one(world: World) -> None:
    before, _ = await append_event(world.sql, world.tenant.uuid, [world.endpoint_id])
    await add_waiting(world.sql, world.tenant.uuid, before, world.endpoint_id, 0, reason="ordered", due_at="infinity")
    await world.waiting(reason="ordered")
    await world.read()


async def paused(world: World) -> None:
    await world.waiting()
    await world.read()
    await world.pause()


async def platform_paused(world: World) -> None:
    await world.sql.execute("insert into platform values ('sending', 'paused')")


async def given_up(world: World) -> None:
    await world.attempt("dead", http_status=404)
    await world.dead()
    await world.read()


async def delivered_twice(world: World) -> None:
    await world.attempt("delivered")
    await world.attempt("delivered", retry_count=1)
    await world.read()


async def cancelled(world: World) -> None:
    await world.read(read_to=await world.cancel())


async def endpoint_deleted(world: World) -> None:
    await world.delete_endpoint()
    await world.read()


async def payload_removed(world: World) -> None:
    await world.tenant.delete(f"{event_path(world.event_id)}/payload")
    await world.read(read_to=world.seq + 1)


async def replayed(world: World) -> None:
    await own(world.sql, world)
    await world.attempt("delivered")
    await world.read()
    await world.replayed()


CASES: list[tuple[Arrange, str, str | None, str]] = [
    (stored, "queued", "behind_others", "0 entries of its shard come before it"),
    (in_hand, "queued", "in_hand", "Its worker (w1)"),
    (without_worker, "queued", "no_worker", "No living worker"),
    (retrying, "waiting", "retry", "2 attempts failed"),
    (behind_a_breaker, "waiting", "breaker_open", "nothing is sent to it until"),
    (behind_a_dead_one, "waiting", "ordered", "it blocks those behind it"),
    (paused, "waiting", "paused", "The endpoint is paused"),
    (platform_paused, "queued", "sending_paused", "whole platform"),
    (given_up, "dead", "http_4xx", "(HTTP 404)"),
    (delivered_twice, "delivered", None, "more than once"),
    (cancelled, "cancelled", "requested", "Cancelled on request"),
    (endpoint_deleted, "cancelled", "endpoint_deleted", "The endpoint was deleted at"),
    (payload_removed, "cancelled", "payload_removed", "removed on request"),
    (replayed, "queued", "behind_others", "This is about replay no. 1."),
]


@pytest.mark.parametrize(("arrange", "status", "reason", "words"), CASES, ids=[case[0].__name__ for case in CASES])
async def test_what_is_written_is_told(
    world: World, arrange: Arrange, status: str, reason: str | None, words: str
) -> None:
    await arrange(world)
    [told] = (await ask(world))["endpoints"]
    assert (told["status"], told["reason"]) == (status, reason)
    assert words in told["summary"]
    if status != "queued" or reason != "sending_paused":
        assert told["status"] == (await world.delivery())["status"]


async def test_endpoints_that_it_was_not_owed_to_are_told_of_behind_those_it_was(world: World) -> None:
    later = await world.tenant.endpoint(events=["a.b"])
    told = await ask(world)
    assert [(e["endpoint_id"], e["status"]) for e in told["endpoints"]] == [
        (show_id("ep", world.endpoint_id), "queued"),
        (later["endpoint_id"], "not_matched"),
    ]
    assert (told["endpoints"][1]["reason"], told["endpoints"][1]["generation"]) == ("created_later", None)
    assert told["more"] is False


async def test_a_fan_out_is_told_in_few_statements_and_bounded(
    sql: Any, tenant: TenantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "OWED_MAX", 3)
    monkeypatch.setattr(route, "OTHERS_MAX", 2)
    ids = [endpoint_uuid(await tenant.endpoint()) for _ in range(4)]
    others = [await tenant.endpoint() for _ in range(3)]
    event_id, seq = await append_event(sql, tenant.uuid, ids)
    await add_attempt(sql, tenant.uuid, event_id, ids[0], outcome="delivered")
    await add_dead(sql, tenant.uuid, event_id, ids[1])
    await add_waiting(sql, tenant.uuid, event_id, ids[2], seq)
    partial = f'{{"{seq}": ["{ids[0]}", "{ids[1]}", "{ids[2]}"]}}'
    await sql.execute(
        "insert into progress (day, shard, settle_no, fence, cursor, read_to, read_day, open, partial)"
        " values (hookpost_today(), 0, 1, 1, 0, $1, hookpost_today(), $2::text::int8multirange, $3::text::jsonb)",
        seq, f"{{[{seq},{seq + 1})}}", partial,
    )  # fmt: skip
    told = (await tenant.get(f"{event_path(event_id)}/explain")).json()
    assert [e["status"] for e in told["endpoints"]] == ["delivered", "dead", "waiting", "not_matched", "not_matched"]
    assert [e["endpoint_id"] for e in told["endpoints"][3:]] == [others[2]["endpoint_id"], others[1]["endpoint_id"]]
    assert told["more"] is True
    one = (await tenant.get(f"{event_path(event_id)}/explain", params={"endpoint_id": show_id("ep", ids[3])})).json()
    assert [e["status"] for e in one["endpoints"]] == ["queued"]


async def test_what_another_tenant_has_does_not_exist(world: World, admin: httpx.AsyncClient) -> None:
    stranger = await make_tenant(admin, "stranger")
    theirs = await stranger.endpoint()
    assert (await stranger.get(f"{event_path(world.event_id)}/explain")).status_code == 404
    for endpoint_id in (theirs["endpoint_id"], f"ep_{uuid4().hex}"):
        answer = await world.tenant.get(f"{event_path(world.event_id)}/explain", params={"endpoint_id": endpoint_id})
        assert answer.status_code == 404
    bad = await world.tenant.get(f"{event_path(world.event_id)}/explain", params={"endpoint_id": "nonsense"})
    assert bad.status_code == 422
