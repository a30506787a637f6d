"""Reading the backlog of a lane: by keyset, bounded, with the truth about what lies behind."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.engine.lanes import FROM_START
from hookpost.engine.work import BacklogRow, Fetch, Wanted
from hookpost.model import WaitReason
from hookpost.storage.contract import Store
from tests.storage.driver import Driver, event, new_endpoint, new_tenant, own, settle, version, waiting

NEVER = float("inf")
T = 1_800_000_000.0
PLENTY = 1_000_000


def fetch(endpoint: UUID, **values: Any) -> Fetch:
    row = {"after": FROM_START, "until": T + 1000, "limit": 100, **values}
    return Fetch(None, 0, endpoint, **row)  # type: ignore[arg-type] # the lane is the engine's affair


async def store_rows(store: Store, endpoint: UUID, dues: dict[int, float], **values: Any) -> None:
    """Backlog rows (position → due time) of a lane in shard 0."""
    await own(store)
    rows = [waiting(endpoint, position, due_at=due, **values) for position, due in dues.items()]
    others = [waiting(uuid7(), 1, due_at=T - 1), waiting(uuid7(), 2, due_at=T + 1)]
    await store.settle([settle(0, upserts=[*rows, *others]), settle(1, upserts=rows[:1])])


def positions(rows: list[BacklogRow]) -> list[int]:
    return [row.position for row in rows]


async def test_due_rows_come_in_the_order_of_time_then_position(driver: Driver) -> None:
    store = await driver.open()
    endpoint = uuid7()
    await store_rows(store, endpoint, {9: T, 3: T + 2, 5: T, 4: T + 2, 1: T + 7, 8: T})
    assert await _found(store, fetch(endpoint, until=T + 2)) == ([5, 8, 9, 3, 4], False, T + 7)
    assert await _found(store, fetch(endpoint, until=T + 1.999999)) == ([5, 8, 9], False, T + 2)
    assert await _found(store, fetch(endpoint, until=T - 1)) == ([], False, T)
    assert await _found(store, fetch(endpoint)) == ([5, 8, 9, 3, 4, 1], False, NEVER)
    assert await _found(store, fetch(uuid7())) == ([], False, NEVER)


async def test_the_keyset_goes_on_behind_ties_without_a_gap_or_a_repeat(driver: Driver) -> None:
    store = await driver.open()
    endpoint, rng = uuid7(), random.Random(7)
    dues = {position: T + rng.randrange(4) for position in rng.sample(range(1000), 60)}
    await store_rows(store, endpoint, dues)
    for limit in (1, 7, 59, 60, 61):
        found: list[int] = []
        after, more = FROM_START, True
        while more:
            rows, more, _ = await store.fetch(fetch(endpoint, after=after, limit=limit), bytes_max=PLENTY)
            assert len(rows) <= limit
            assert more == (len(found) + len(rows) < 60)
            found += positions(rows)
            after = (rows[-1].due_at, rows[-1].position)
        assert found == sorted(dues, key=lambda position: (dues[position], position))


async def test_a_row_comes_with_its_event(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    stored = event(tenant, payload=b'{"n": 1.50}', type="x.y", owed=(endpoint,))
    await store.append(0, [stored], await version(store, tenant))
    await store.append_replay(tenant, stored.event_id, None)
    [first, replay] = (await store.read({0: (0, 0)}, rows_max=9, bytes_max=999))[0]
    await own(store)
    shared = {"event_id": stored.event_id, "day": first.day, "reason": WaitReason.PAUSED, "retry_count": 3}
    upserts = [
        waiting(endpoint, first.seq, due_at=T, deadline=T + 9.5, created_at=T - 1.25, **shared),
        waiting(endpoint, replay.seq, due_at=T, generation=1, **shared),
        waiting(endpoint, 3, due_at=T),
    ]
    await store.settle([settle(0, upserts=upserts)])
    one, two, lost = (await store.fetch(fetch(endpoint), bytes_max=PLENTY))[0]
    assert one == BacklogRow(
        1, first.day, stored.event_id, "x.y", b'{"n": 1.50}', 0, "paused", T, 3, T + 9.5, T - 1.25, 1.75e9,
    )  # fmt: skip
    assert (two.position, two.generation, two.payload, two.type) == (2, 1, b'{"n": 1.50}', "x.y")
    assert (lost.position, lost.payload, lost.type) == (3, None, "")  # its event is gone


@pytest.mark.parametrize(
    ("bytes_max", "batches"),
    [
        (1, [[1], [2], [3, 4], [5], [6]]),
        (10, [[1], [2, 3, 4, 5], [6]]),
        (45, [[1, 2], [3, 4, 5, 6]]),
        (999, [[1, 2, 3, 4, 5, 6]]),
    ],
)
async def test_bytes_are_bounded_but_one_row_always_fits(
    driver: Driver, bytes_max: int, batches: list[list[int]]
) -> None:
    """The row that reaches the bound still comes; rows without a payload weigh nothing and keep their place."""
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = uuid7()
    payloads = [b"x" * size for size in (40, 5, 0, 4, 1, 100)]
    await store.append(0, [event(tenant, payload=payload) for payload in payloads], await version(store, tenant))
    day = (await store.read({0: (0, 0)}, rows_max=1, bytes_max=1))[0][0].day
    await own(store)
    await store.settle([settle(0, upserts=[waiting(endpoint, n, day=day, due_at=T) for n in range(1, 7)])])
    got, after, more = [], FROM_START, True
    while more:
        rows, more, behind = await store.fetch(fetch(endpoint, after=after), bytes_max=bytes_max)
        assert behind == NEVER
        got.append(positions(rows))
        after = (rows[-1].due_at, rows[-1].position)
    assert got == batches


async def test_replays_in_a_backlog_are_bounded_in_bytes_too(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    stored = event(tenant, payload=b"x" * 100, owed=(endpoint,))
    await store.append(0, [stored], await version(store, tenant))
    for _ in range(3):
        await store.append_replay(tenant, stored.event_id, endpoint)
    day = (await store.read({0: (0, 0)}, rows_max=1, bytes_max=1))[0][0].day
    await own(store)
    upserts = [waiting(endpoint, n, day=day, event_id=stored.event_id, due_at=T) for n in range(1, 5)]
    await store.settle([settle(0, upserts=upserts)])
    for bytes_max, found in ((100, [1]), (101, [1, 2, 3]), (201, [1, 2, 3, 4])):
        rows, more, _ = await store.fetch(fetch(endpoint), bytes_max=bytes_max)
        assert (positions(rows), more) == (found, len(found) < 4)
        assert {row.payload for row in rows} == {stored.payload}


async def test_expired_rows_come_in_the_order_of_position_without_payload(driver: Driver) -> None:
    store = await driver.open()
    endpoint = uuid7()
    await own(store)
    deadlines = {1: T + 5, 2: T, 3: T + 1, 4: T + 9, 5: T - 1, 6: T + 1}
    rows = [waiting(endpoint, position, deadline=deadline) for position, deadline in deadlines.items()]
    await store.settle([settle(0, upserts=[*rows, waiting(uuid7(), 7, deadline=T)])])

    async def expired(until: float, limit: int = 100) -> tuple[list[int], bool, float]:
        return await _found(store, fetch(endpoint, until=until, limit=limit, wanted=Wanted.EXPIRED))

    assert await expired(T - 2) == ([], False, T - 1)
    assert await expired(T + 1) == ([2, 3, 5, 6], False, T + 5)
    assert await expired(T + 9, limit=6) == ([1, 2, 3, 4, 5, 6], False, NEVER)
    found, more, _ = await expired(T + 1, limit=3)
    assert (found, more) == ([2, 3, 5], True)
    [row] = (await store.fetch(fetch(endpoint, until=T - 1, wanted=Wanted.EXPIRED), bytes_max=1))[0]
    assert (row.payload, row.deadline) == (None, T - 1)


async def test_what_recovery_brings_forward_was_stored_before_it_and_is_not_due(driver: Driver) -> None:
    store = await driver.open()
    endpoint = uuid7()
    await own(store)
    rows = [
        waiting(endpoint, 1, due_at=T - 1, stored_at=T - 9),
        waiting(endpoint, 2, due_at=T + 50, stored_at=T - 9),
        waiting(endpoint, 3, due_at=T + 20, stored_at=T - 9),
        waiting(endpoint, 4, due_at=T + 30, stored_at=T + 1),
        waiting(endpoint, 5, due_at=NEVER, deadline=NEVER, stored_at=T - 9),
    ]
    await store.settle([settle(0, upserts=rows)])
    forward = {"wanted": Wanted.FORWARD, "until": T, "stored_by": T}
    assert (await _found(store, fetch(endpoint, **forward)))[:2] == ([3, 2], False)
    assert (await _found(store, fetch(endpoint, after=(T + 20, 3), **forward)))[:2] == ([2], False)
    assert (await _found(store, fetch(endpoint, limit=1, **forward)))[:2] == ([3], True)


async def test_the_first_rows_of_a_lane_and_those_that_block_it_come_by_position(driver: Driver) -> None:
    store = await driver.open()
    endpoint = uuid7()
    await own(store)
    dues, tenant = {4: T - 5, 2: NEVER, 3: T + 99, 9: NEVER}, uuid7()
    rows = [waiting(endpoint, at, tenant_id=tenant, due_at=due) for at, due in dues.items()]
    await store.settle([settle(0, upserts=rows)])
    assert (await _found(store, fetch(endpoint, wanted=Wanted.HEAD, limit=3)))[:2] == ([2, 3, 4], True)
    assert (await _found(store, fetch(endpoint, wanted=Wanted.BLOCKING)))[:2] == ([2, 9], False)
    [lane] = (await store.takeovers({0: 1}))[0].lanes
    assert (lane.count, lane.blocking, lane.first) == (4, 2, 2)


async def test_the_rows_of_one_event_are_found_by_it(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    events = [event(tenant, owed=(endpoint,)) for _ in range(3)]
    await store.append(0, events, await version(store, tenant))
    await own(store)
    upserts = [waiting(endpoint, at + 1, event_id=each.event_id) for at, each in enumerate(events)]
    await store.settle([settle(0, upserts=upserts)])
    named = fetch(endpoint, wanted=Wanted.NAMED, event_id=events[1].event_id)
    assert (await _found(store, named))[:2] == ([2], False)


async def _found(store: Store, wanted: Fetch) -> tuple[list[int], bool, float]:
    rows, more, behind = await store.fetch(wanted, bytes_max=PLENTY)
    return positions(rows), more, behind
