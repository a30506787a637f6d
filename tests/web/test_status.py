"""The state of a delivery is derived from what workers have written down; here is a row for each state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest

from hookpost.policy.egress import origin_of
from hookpost.storage.postgres.admin import event_status
from tests.web.rows import (
    TenantClient,
    add_attempt,
    add_dead,
    add_waiting,
    append_event,
    append_replay,
    endpoint_uuid,
    event_path,
    set_progress,
)


@dataclass
class World:
    """An event owed to one endpoint, and the means to write what a worker would."""

    sql: Any
    tenant: TenantClient
    endpoint_id: UUID
    event_id: UUID
    seq: int

    async def delivery(self) -> dict[str, Any]:
        answer = await self.tenant.get(event_path(self.event_id))
        assert answer.status_code == 200, answer.text
        (delivery,) = answer.json()["deliveries"]
        return delivery

    async def event_status(self) -> str:
        return (await self.tenant.get(event_path(self.event_id))).json()["status"]

    async def pause(self) -> None:
        await self.tenant.post(f"/v1/webhook_endpoints/ep_{self.endpoint_id.hex}/pause")

    async def delete_endpoint(self) -> None:
        await self.tenant.delete(f"/v1/webhook_endpoints/ep_{self.endpoint_id.hex}")

    async def attempt(self, outcome: str, **values: Any) -> None:
        await add_attempt(self.sql, self.tenant.uuid, self.event_id, self.endpoint_id, outcome=outcome, **values)

    async def waiting(self, **values: Any) -> None:
        await add_waiting(self.sql, self.tenant.uuid, self.event_id, self.endpoint_id, self.seq, **values)

    async def dead(self, **values: Any) -> None:
        await add_dead(self.sql, self.tenant.uuid, self.event_id, self.endpoint_id, **values)

    async def replayed(self) -> int:
        return await append_replay(self.sql, self.tenant.uuid, self.event_id, [self.endpoint_id])

    async def cancel(self) -> int:
        """Ask for it; returns the number of the control row, which the worker reads later."""
        answer = await self.tenant.post(f"{event_path(self.event_id)}/cancel")
        assert answer.status_code == 202, answer.text
        return await self.sql.fetchval("select max(seq) from events where event_id = $1", self.event_id)

    async def forget_waiting(self) -> None:
        """As the owner does who cancels."""
        await self.sql.execute("delete from backlog")

    async def read(self, read_to: int | None = None, **values: Any) -> None:
        await set_progress(self.sql, read_to=self.seq if read_to is None else read_to, **values)


@pytest.fixture
async def world(sql: Any, tenant: TenantClient) -> World:
    endpoint_id = endpoint_uuid(await tenant.endpoint())
    event_id, seq = await append_event(sql, tenant.uuid, [endpoint_id])
    return World(sql, tenant, endpoint_id, event_id, seq)


async def never_settled(world: World) -> None:
    """The shard has no progress row at all."""


async def not_read_yet(world: World) -> None:
    await world.read(read_to=world.seq - 1)


async def open_entry(world: World) -> None:
    await world.read(open=f"{{[{world.seq},{world.seq + 1})}}")


async def open_for_others(world: World) -> None:
    partial = f'{{"{world.seq}": ["{uuid4()}"]}}'
    await world.read(open=f"{{[{world.seq},{world.seq + 1})}}", partial=partial)


async def done_within_open_fan_out(world: World) -> None:
    await world.attempt("delivered")
    partial = f'{{"{world.seq}": ["{world.endpoint_id}"]}}'
    await world.read(open=f"{{[{world.seq},{world.seq + 1})}}", partial=partial)


async def an_older_settle_had_it_open(world: World) -> None:
    await world.read(open=f"{{[{world.seq},{world.seq + 1})}}")
    await world.attempt("delivered")
    await world.read()


async def waits_for_a_retry(world: World) -> None:
    await world.attempt("retry", http_status=503)
    await world.waiting()
    await world.read()


async def waits_for_its_rate(world: World) -> None:
    await world.waiting(reason="rate_limited")
    await world.read()


async def waits_while_paused(world: World) -> None:
    await world.waiting()
    await world.read()
    await world.pause()


async def waits_for_a_deleted_endpoint(world: World) -> None:
    await world.waiting()
    await world.read()
    await world.delete_endpoint()


async def given_up(world: World) -> None:
    await world.attempt("dead", http_status=404)
    await world.dead()
    await world.read()


async def delivered_at_the_second_try(world: World) -> None:
    await world.attempt("retry", http_status=None)
    await world.attempt("delivered", retry_count=1)
    await world.read()


async def delivered_to_an_endpoint_since_deleted(world: World) -> None:
    await world.attempt("delivered")
    await world.read()
    await world.delete_endpoint()


async def endpoint_deleted(world: World) -> None:
    await world.read()
    await world.delete_endpoint()


async def no_trace(world: World) -> None:
    await world.read()


async def failed_attempt_and_nothing_else(world: World) -> None:
    await world.attempt("retry", http_status=500)
    await world.read()


async def replay_queued_after_delivered(world: World) -> None:
    await world.attempt("delivered")
    await world.read()
    await world.replayed()


async def replay_delivered_after_dead(world: World) -> None:
    await world.attempt("dead", http_status=404)
    seq = await world.replayed()
    await world.attempt("delivered", generation=1)
    await world.read(read_to=seq)


async def second_replay_dead(world: World) -> None:
    await world.attempt("delivered")
    await world.replayed()
    await world.attempt("delivered", generation=1)
    seq = await world.replayed()
    await world.attempt("dead", generation=2, http_status=404)
    await world.dead(generation=2)
    await world.read(read_to=seq)


async def dead_letter_of_an_older_generation(world: World) -> None:
    await world.dead()
    seq = await world.replayed()
    await world.read(read_to=seq)


async def cancel_not_acted_on_yet(world: World) -> None:
    await world.waiting()
    await world.read()
    await world.cancel()


async def cancelled_while_it_waited(world: World) -> None:
    await world.attempt("retry", http_status=503)
    await world.waiting()
    await world.read()
    seq = await world.cancel()
    await world.forget_waiting()
    await world.read(read_to=seq)


async def cancelled_before_it_was_read(world: World) -> None:
    await world.read(read_to=await world.cancel())


async def delivered_while_it_was_cancelled(world: World) -> None:
    seq = await world.cancel()
    await world.attempt("delivered")
    await world.read(read_to=seq)


async def given_up_while_it_was_cancelled(world: World) -> None:
    seq = await world.cancel()
    await world.attempt("dead", http_status=404)
    await world.dead()
    await world.read(read_to=seq)


async def no_trace_of_a_replay_behind_a_cancel(world: World) -> None:
    await world.cancel()
    await world.read(read_to=await world.replayed())


async def retry_now_cancels_nothing(world: World) -> None:
    await world.tenant.post(f"{event_path(world.event_id)}/retry_now")
    await world.read(read_to=world.seq + 1)


async def dead_and_blocks_its_lane(world: World) -> None:
    await world.attempt("dead", http_status=404)
    await world.dead()
    await world.waiting(reason="ordered", due_at="infinity")
    await world.read()


async def held_without_an_end(world: World) -> None:
    await world.waiting(reason="breaker_open", due_at="infinity")
    await world.read()


async def breaker(world: World, state: str, *, reopen_in_s: int | None = 60) -> None:
    """What is stored of its receiver's breaker."""
    url = await world.sql.fetchval("select url from endpoints where endpoint_id = $1", world.endpoint_id)
    await world.sql.execute(
        "insert into breakers (tenant_id, origin, state, since, reopen_at)"
        " values ($1, $2, $3, now(), now() + make_interval(secs => $4))",
        *(world.tenant.uuid, origin_of(url), state, reopen_in_s),
    )


async def retry_is_due_and_its_breaker_open(world: World) -> None:
    await world.attempt("retry", http_status=503)
    await world.waiting(due_at="2020-01-01T00:00:00Z")
    await world.read()
    await breaker(world, "open")


async def retry_is_due_before_its_breaker_reopens(world: World) -> None:
    await world.waiting(due_at="2030-01-02T03:04:05Z")
    await world.read()
    await breaker(world, "open", reopen_in_s=1_000_000_000)


async def retry_is_due_and_its_receiver_probed(world: World) -> None:
    await world.waiting(due_at="2020-01-01T00:00:00Z")
    await world.read()
    await breaker(world, "half_open", reopen_in_s=-60)


async def retry_is_due_when_its_breaker_may_be_closed(world: World) -> None:
    await world.waiting()
    await world.read()
    await breaker(world, "open")


async def retry_behind_a_breaker_that_has_closed(world: World) -> None:
    await world.waiting()
    await world.read()
    await breaker(world, "closed", reopen_in_s=None)


async def paused_before_its_breaker(world: World) -> None:
    await world.waiting(due_at="2020-01-01T00:00:00Z")
    await world.read()
    await breaker(world, "open")
    await world.pause()


async def our_way_out_is_down_before_its_breaker(world: World) -> None:
    await world.waiting(reason="egress_down", due_at="2020-01-01T00:00:00Z")
    await world.read()
    await breaker(world, "open")


Arrange = Callable[[World], Awaitable[None]]
DUE = "2030-01-02T03:04:05.678Z"
CASES: list[tuple[Arrange, tuple[str, str | None, int, int, int | None, str | None], str]] = [
    # status, reason, generation, attempts, last HTTP status, next attempt · event status
    (never_settled, ("queued", None, 0, 0, None, None), "pending"),
    (not_read_yet, ("queued", None, 0, 0, None, None), "pending"),
    (open_entry, ("queued", None, 0, 0, None, None), "pending"),
    (open_for_others, ("queued", None, 0, 0, None, None), "pending"),
    (done_within_open_fan_out, ("delivered", None, 0, 1, 200, None), "delivered"),
    (an_older_settle_had_it_open, ("delivered", None, 0, 1, 200, None), "delivered"),
    (waits_for_a_retry, ("waiting", "retry", 0, 1, 503, DUE), "pending"),
    (waits_for_its_rate, ("waiting", "rate_limited", 0, 0, None, None), "pending"),
    (waits_while_paused, ("waiting", "paused", 0, 0, None, None), "pending"),
    (waits_for_a_deleted_endpoint, ("waiting", "retry", 0, 0, None, DUE), "pending"),
    (given_up, ("dead", "http_4xx", 0, 1, 404, None), "dead"),
    (delivered_at_the_second_try, ("delivered", None, 0, 2, 200, None), "delivered"),
    (delivered_to_an_endpoint_since_deleted, ("delivered", None, 0, 1, 200, None), "delivered"),
    (endpoint_deleted, ("cancelled", None, 0, 0, None, None), "dead"),
    (no_trace, ("unknown", None, 0, 0, None, None), "pending"),
    (failed_attempt_and_nothing_else, ("unknown", None, 0, 1, 500, None), "pending"),
    (replay_queued_after_delivered, ("queued", None, 1, 0, None, None), "pending"),
    (replay_delivered_after_dead, ("delivered", None, 1, 1, 200, None), "delivered"),
    (second_replay_dead, ("dead", "http_4xx", 2, 1, 404, None), "dead"),
    (cancel_not_acted_on_yet, ("waiting", "retry", 0, 0, None, DUE), "pending"),
    (cancelled_while_it_waited, ("cancelled", None, 0, 1, 503, None), "dead"),
    (cancelled_before_it_was_read, ("cancelled", None, 0, 0, None, None), "dead"),
    (delivered_while_it_was_cancelled, ("delivered", None, 0, 1, 200, None), "delivered"),
    (given_up_while_it_was_cancelled, ("dead", "http_4xx", 0, 1, 404, None), "dead"),
    (no_trace_of_a_replay_behind_a_cancel, ("unknown", None, 1, 0, None, None), "pending"),
    (retry_now_cancels_nothing, ("unknown", None, 0, 0, None, None), "pending"),
    (dead_and_blocks_its_lane, ("dead", "http_4xx", 0, 1, 404, None), "dead"),
    (held_without_an_end, ("waiting", "breaker_open", 0, 0, None, None), "pending"),
    (retry_is_due_and_its_breaker_open, ("waiting", "breaker_open", 0, 1, 503, None), "pending"),
    (retry_is_due_before_its_breaker_reopens, ("waiting", "breaker_open", 0, 0, None, None), "pending"),
    (retry_is_due_and_its_receiver_probed, ("waiting", "breaker_open", 0, 0, None, None), "pending"),
    (retry_is_due_when_its_breaker_may_be_closed, ("waiting", "retry", 0, 0, None, DUE), "pending"),
    (retry_behind_a_breaker_that_has_closed, ("waiting", "retry", 0, 0, None, DUE), "pending"),
    (paused_before_its_breaker, ("waiting", "paused", 0, 0, None, None), "pending"),
    (our_way_out_is_down_before_its_breaker, ("waiting", "egress_down", 0, 0, None, None), "pending"),
    (dead_letter_of_an_older_generation, ("unknown", None, 1, 0, None, None), "pending"),
]


@pytest.mark.parametrize(("arrange", "expected", "event"), CASES, ids=[case[0].__name__ for case in CASES])
async def test_the_state_follows_from_what_is_written(
    world: World, arrange: Arrange, expected: tuple[Any, ...], event: str
) -> None:
    await arrange(world)
    delivery = await world.delivery()
    names = ("status", "reason", "generation", "attempt_count", "last_http_status", "next_attempt_at")
    assert tuple(delivery[name] for name in names) == expected
    assert await world.event_status() == event


async def test_each_endpoint_of_a_fan_out_has_its_own_state(sql: Any, tenant: TenantClient) -> None:
    """The second is done within an open entry, the third waits, the first is still to be sent."""
    ids = [endpoint_uuid(await tenant.endpoint()) for _ in range(3)]
    event_id, seq = await append_event(sql, tenant.uuid, ids)
    await add_attempt(sql, tenant.uuid, event_id, ids[1], outcome="delivered")
    await add_waiting(sql, tenant.uuid, event_id, ids[2], seq)
    partial = f'{{"{seq}": ["{ids[1]}", "{ids[2]}"]}}'
    await set_progress(sql, read_to=seq, open=f"{{[{seq},{seq + 1})}}", partial=partial)
    shown = (await tenant.get(event_path(event_id))).json()["deliveries"]
    assert [(endpoint_uuid(d), d["status"]) for d in shown] == list(
        zip(ids, ["queued", "delivered", "waiting"], strict=True)
    )


async def test_a_replay_to_one_endpoint_leaves_the_state_of_the_others(sql: Any, tenant: TenantClient) -> None:
    ids = [endpoint_uuid(await tenant.endpoint()) for _ in range(2)]
    event_id, seq = await append_event(sql, tenant.uuid, ids)
    for endpoint_id in ids:
        await add_attempt(sql, tenant.uuid, event_id, endpoint_id, outcome="delivered")
    await set_progress(sql, read_to=seq)
    answer = await tenant.post(f"{event_path(event_id)}/replay", {"endpoint_id": f"ep_{ids[0].hex}"})
    assert (answer.status_code, answer.json()) == (202, {"delivery_count": 1})
    shown = (await tenant.get(event_path(event_id))).json()["deliveries"]
    assert [(d["status"], d["generation"]) for d in shown] == [("queued", 1), ("delivered", 0)]


async def test_a_replay_goes_to_all_that_still_exist(sql: Any, tenant: TenantClient) -> None:
    endpoints = [await tenant.endpoint() for _ in range(3)]
    ids = [endpoint_uuid(endpoint) for endpoint in endpoints]
    event_id, _ = await append_event(sql, tenant.uuid, ids)
    await tenant.delete(f"/v1/webhook_endpoints/{endpoints[1]['endpoint_id']}")
    answer = await tenant.post(f"{event_path(event_id)}/replay")
    assert (answer.status_code, answer.json()) == (202, {"delivery_count": 2})
    row = await sql.fetchrow("select * from events where event_id = $1 and kind = 1", event_id)
    home = await sql.fetchval("select home_shards[1] from tenants where tenant_id = $1", tenant.uuid)
    assert (row["owed"], row["generation"], row["shard"]) == ([ids[0], ids[2]], 1, home)


@pytest.mark.parametrize("which", ["unknown", "deleted", "not owed", "another tenant's"])
async def test_a_replay_to_an_endpoint_that_is_not_owed_is_404(
    admin: Any, sql: Any, tenant: TenantClient, which: str
) -> None:
    owed = await tenant.endpoint()
    target = f"ep_{uuid4().hex}"
    event_id, _ = await append_event(sql, tenant.uuid, [endpoint_uuid(owed)])
    if which == "deleted":
        target = owed["endpoint_id"]
        await tenant.delete(f"/v1/webhook_endpoints/{target}")
    elif which == "not owed":
        target = (await tenant.endpoint())["endpoint_id"]
    answer = await tenant.post(f"{event_path(event_id)}/replay", {"endpoint_id": target})
    assert answer.status_code == 404
    assert await sql.fetchval("select count(*) from events where kind = 1") == 0


async def test_an_event_owed_to_nobody_has_no_endpoints(sql: Any, tenant: TenantClient) -> None:
    event_id, _ = await append_event(sql, tenant.uuid, [])
    answer = (await tenant.get(event_path(event_id))).json()
    assert (answer["status"], answer["deliveries"], answer["delivery_count"]) == ("no_endpoints", [], 0)


@pytest.mark.parametrize(
    ("deliveries", "status"),
    [
        ([], "no_endpoints"),
        (["queued", "delivered"], "pending"),
        (["waiting", "dead"], "pending"),
        (["unknown", "delivered"], "pending"),
        (["delivered", "delivered"], "delivered"),
        (["delivered", "cancelled"], "delivered"),
        (["dead", "delivered"], "partly_dead"),
        (["dead", "cancelled", "delivered"], "partly_dead"),
        (["dead", "cancelled"], "dead"),
        (["cancelled"], "dead"),
    ],
)
def test_an_events_status_sums_up_its_deliveries(deliveries: list[str], status: str) -> None:
    assert event_status(deliveries) == status
