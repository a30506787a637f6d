"""Rollups and metering: every attempt and event once, whoever is late, killed or at work at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.model import DeadReason
from hookpost.policy.grains import FINER, Grain
from hookpost.policy.latency import LOWS, bucket_low
from hookpost.storage.contract import NotFound, PointRows, Series, Store, StoreUnavailable, Unfit
from tests.storage.driver import (
    SHARDS,
    Driver,
    Postgres,
    attempt,
    dead,
    event,
    new_endpoint,
    new_tenant,
    own,
    persist,
    settle,
    version,
    waiting,
)  # fmt: skip

# Figures are SQL over what PostgreSQL keeps; the simulator's store has none.
pytestmark = pytest.mark.postgres

# The minute that attempts of these tests end in, as a rule; it begins an hour.

MINUTE = 1_800_000_000.0
HOUR_S, DAY_S = 3600.0, 86_400.0
TENANT = UUID(int=7)


@pytest.fixture
async def database_driver(driver: Driver) -> Postgres:
    """What happens behind the back of these tests is PostgreSQL's."""
    assert isinstance(driver, Postgres)
    await driver.run("select 1")  # the connection to look with, before those that hold something up
    return driver


async def roll_up(store: Store, **limits: int) -> tuple[int, int]:
    """Step by step until there is nothing left; attempts and events that were counted."""
    attempts, events, left = 0, 0, None
    while True:
        step = await store.roll_up(**{"settles_max": 100, "events_max": 100, **limits}, left=left)
        assert step is not None
        attempts, events, left = attempts + step.attempts, events + step.events, step.left
        if left is None:
            return attempts, events


async def of_platform(
    store: Store, *, start: float = MINUTE, end: float = MINUTE + HOUR_S, step_s: int = 3600
) -> Series:
    return await store.series(None, None, start=start, end=end, step_s=step_s)


async def counted(store: Store, **when: Any) -> int:
    series = await of_platform(store, **when)
    return sum(sum(point.counts.values()) for point in series.points.values())


async def metered(driver: Postgres) -> dict[str, int]:
    [row] = await driver.run(
        "select coalesce(sum(attempts), 0)::int as attempts, coalesce(sum(accepted), 0)::int as accepted,"
        " coalesce(sum(retries), 0)::int as retries, coalesce(sum(rate_limited), 0)::int as rate_limited,"
        " coalesce(sum(request_bytes), 0)::int as bytes from metering"
    )
    return row


def ended(endpoint_id: UUID, at: float = MINUTE, **values: Any) -> Any:
    return attempt(endpoint_id, **{"finished_at": at, "started_at": at, "tenant_id": TENANT, **values})


# ---- what is counted -------------------------------------------------------------------------------------------------


async def test_attempts_are_counted_by_outcome_error_retry_and_latency(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    tenant = await new_tenant(store)
    first, second = [await new_endpoint(store, tenant) for _ in range(2)]
    mine: dict[str, Any] = {"tenant_id": tenant}
    await store.settle([
        settle(attempts=[
            ended(first, latency_ms=9, **mine),
            ended(first, latency_ms=8, **mine),
            ended(first, latency_ms=300, outcome="retry", error_code="http_429", http_status=429, **mine),
            ended(first, MINUTE + 60, latency_ms=0, retry_count=3, **mine),
            ended(second, latency_ms=15_000, outcome="dead", error_code="total_timeout", http_status=None, **mine),
        ])
    ])  # fmt: skip
    assert await roll_up(store) == (5, 0)
    series = await store.series(tenant, first, start=MINUTE, end=MINUTE + 180, step_s=60)
    assert series.points[0].counts == {("delivered", "", False): 2, ("retry", "http_429", False): 1}
    assert series.points[0].latencies == {8: 2, bucket_low(300): 1}
    assert series.points[1].counts == {("delivered", "", True): 1}
    assert series.points[1].latencies == {0: 1}
    assert series.points.keys() == {0, 1}
    for tenant_id in (tenant, None):
        whole = await store.series(tenant_id, None, start=MINUTE, end=MINUTE + HOUR_S, step_s=3600)
        assert sum(whole.points[0].counts.values()) == sum(whole.points[0].latencies.values()) == 5
        assert whole.points[0].counts["dead", "total_timeout", False] == 1
    assert await store.series(None, second, start=MINUTE, end=MINUTE + 60, step_s=60) == await store.series(
        tenant, second, start=MINUTE, end=MINUTE + 60, step_s=60
    )
    with pytest.raises(NotFound):
        await store.series(await new_tenant(store), first, start=MINUTE, end=MINUTE + 60, step_s=60)


async def test_what_was_counted_is_not_counted_again(database_driver: Postgres) -> None:
    store = await database_driver.open()
    await own(store)
    await store.settle([settle(attempts=[ended(uuid7(), request_bytes=10) for _ in range(3)])])
    assert await roll_up(store) == (3, 0)
    assert await roll_up(store) == (0, 0)
    await store.settle([settle(settle_no=2, attempts=[ended(uuid7(), settle_no=2, retry_count=1)])])
    assert await roll_up(store) == (1, 0)
    assert await counted(store) == 4
    assert await metered(database_driver) == {
        "attempts": 4, "accepted": 0, "retries": 1, "rate_limited": 0, "bytes": 40
    }  # fmt: skip


async def test_a_late_settle_counts_in_the_minute_of_its_attempts(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    await store.settle([settle(attempts=[ended(uuid7(), MINUTE + 600)])])
    assert await roll_up(store) == (1, 0)
    await store.settle([settle(settle_no=2, attempts=[ended(uuid7(), MINUTE, settle_no=2)])])
    assert await roll_up(store) == (1, 0)
    series = await of_platform(store, step_s=60)
    assert {point: sum(rows.counts.values()) for point, rows in series.points.items()} == {0: 1, 10: 1}


async def test_a_settle_under_way_is_neither_missed_nor_waited_for(database_driver: Postgres) -> None:
    """Other shards are counted past it; it commits later and is counted then, as its shard's mark has not moved."""
    store, other = await database_driver.open(), await database_driver.open()
    await own(store)
    gate = await database_driver.connect()
    await gate.execute("begin; lock table dead_letters in exclusive mode")
    letter = dead(uuid7(), uuid7())
    late = asyncio.create_task(store.settle([settle(0, attempts=[ended(uuid7())], dead=[letter])]))
    await database_driver.waiting()
    await other.settle([settle(1, attempts=[ended(uuid7(), shard=1)])])
    assert await roll_up(other) == (1, 0)
    await gate.execute("commit")
    await late
    assert await roll_up(other) == (1, 0)
    assert await counted(other) == 2


async def test_a_settle_that_was_rolled_back_and_repeated_counts_once(database_driver: Postgres) -> None:
    store = await database_driver.open()
    await own(store)
    gate = await database_driver.connect()
    await gate.execute("begin; lock table dead_letters in exclusive mode")
    part = settle(attempts=[ended(uuid7())], dead=[dead(uuid7(), uuid7())])
    dying = asyncio.create_task(store.settle([part]))
    await database_driver.waiting()
    [blocked] = await database_driver.blocked()
    await database_driver.run("select pg_terminate_backend($1, 5000)", blocked["pid"])
    with pytest.raises(StoreUnavailable):
        await dying
    assert await roll_up(store) == (0, 0)
    await gate.execute("commit")
    await persist(lambda: store.settle([part]))
    await store.settle([part])  # its end was unknown: repeated, it is known to be there
    assert await roll_up(store) == (1, 0)


async def test_a_clock_that_goes_back_over_midnight_loses_nothing(database_driver: Postgres) -> None:
    store = await database_driver.open()
    await own(store)
    [row] = await database_driver.run("select hookpost_today()::text as today, (hookpost_today() - 1)::text as before")
    for number, day in enumerate((row["today"], row["before"], row["today"]), start=1):
        await database_driver.set_clock(f"{day} 00:00:10Z")
        await store.settle([settle(settle_no=number, attempts=[ended(uuid7(), settle_no=number)])])
    assert await roll_up(store) == (3, 0)
    await database_driver.set_clock(None)


async def test_latencies_that_are_no_latencies_do_not_stop_the_builder(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    await store.settle([settle(attempts=[ended(uuid7(), latency_ms=-40), ended(uuid7(), latency_ms=2**31 - 1)])])
    assert await roll_up(store) == (2, 0)
    assert (await of_platform(store)).points[0].latencies == {0: 1, LOWS[-1]: 1}


# ---- accepted events -------------------------------------------------------------------------------------------------


async def test_accepted_events_are_counted_once_and_only_those_of_producers(database_driver: Postgres) -> None:
    store = await database_driver.open()
    tenant = await new_tenant(store, (0, 1))
    known = await version(store, tenant)
    posted = event(tenant, key="k")
    await store.append(0, [posted, event(tenant), event(tenant, type="hookpost.endpoint.failing")], known)
    await store.append(1, [event(tenant, key="k")], known)  # a duplicate
    await database_driver.run(
        "select hookpost_append_replay(0, $1, $2, 'a.b', '{}'::uuid[])", posted.event_id, tenant
    )  # a replay
    assert await roll_up(store) == (0, 4)
    assert (await metered(database_driver))["accepted"] == 2
    await store.append(1, [event(tenant)], known)
    assert await roll_up(store) == (0, 1)
    assert (await metered(database_driver))["accepted"] == 3


# ---- one step --------------------------------------------------------------------------------------------------------


async def test_steps_are_bounded_go_from_shard_to_shard_and_end_complete(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    for number in range(1, 8):
        await store.settle([settle(0, settle_no=number, attempts=[ended(uuid7(), settle_no=number)])])
    await store.settle([settle(1, attempts=[ended(uuid7(), shard=1)])])
    steps, left, before = [], None, await store.ping()
    for number in (8, 9, 10):
        assert (await of_platform(store)).complete_until is None
        step = await store.roll_up(settles_max=3, events_max=100, left=left)
        assert step is not None
        steps.append(step.attempts)
        left = step.left
        # What comes meanwhile is of the next turn.
        await store.settle([settle(0, settle_no=number, attempts=[ended(uuid7(), settle_no=number)])])
    # Some of the busy shard; more of it; the rest of it, and the other one's.
    assert (steps, left) == ([3, 3, 2], None)
    complete_until = (await of_platform(store)).complete_until
    assert complete_until is not None
    assert before <= complete_until <= await store.ping()
    assert await roll_up(store) == (3, 0)


async def test_what_another_builder_has_counted_meanwhile_is_not_counted_again(driver: Driver) -> None:
    store, other = await driver.open(), await driver.open()
    await own(store)
    tenant = await new_tenant(store, (0, 1))
    for number in range(1, 6):
        await store.settle([settle(0, settle_no=number, attempts=[ended(uuid7(), settle_no=number)])])
        await store.append(0, [event(tenant)], await version(store, tenant))
    await store.settle([settle(1, attempts=[ended(uuid7(), shard=1)])])
    step = await store.roll_up(settles_max=2, events_max=2)
    assert step is not None
    assert (step.attempts, step.events) == (2, 2)
    assert await roll_up(other) == (4, 3)
    assert step.left is not None
    late = await store.roll_up(settles_max=100, events_max=100, left=step.left)
    assert late is not None
    assert (late.attempts, late.events, late.left) == (0, 0, None)
    assert await counted(store) == 6
    assert await roll_up(store) == (0, 0)


async def blocked_at(driver: Postgres, table: str, work: Callable[[], Awaitable[Any]]) -> tuple[Any, Any, int]:
    """Work that stands still when it comes to write to a table: the task, what holds it up, its connection."""
    gate = await driver.connect()
    await gate.execute(f"begin; lock table {table} in share mode")
    task = asyncio.create_task(work())  # type: ignore[arg-type]
    await driver.waiting()
    [blocked] = await driver.blocked()
    return task, gate, blocked["pid"]


@pytest.mark.parametrize("table", ["rollup_tallies", "metering", "rollup_progress", "rollup_state"])
async def test_a_builder_killed_within_a_step_has_counted_nothing(database_driver: Postgres, table: str) -> None:
    store, other = await database_driver.open(), await database_driver.open()
    await own(store)
    tenant = await new_tenant(store)
    await store.append(0, [event(tenant), event(tenant)], await version(store, tenant))
    await store.settle([settle(attempts=[ended(uuid7()) for _ in range(3)])])
    task, gate, pid = await blocked_at(database_driver, table, lambda: store.roll_up(settles_max=100, events_max=100))
    assert await other.roll_up(settles_max=100, events_max=100) is None  # the turn is the first one's
    await database_driver.run("select pg_terminate_backend($1, 5000)", pid)
    with pytest.raises(StoreUnavailable):
        await task
    await gate.execute("commit")
    assert await counted(other) == 0
    assert await roll_up(other) == (3, 2)
    assert await counted(other) == 3
    assert (await metered(database_driver)) | {"bytes": 0} == {
        "attempts": 3, "accepted": 2, "retries": 0, "rate_limited": 0, "bytes": 0
    }  # fmt: skip


async def test_builders_at_once_killed_again_and_again_count_each_attempt_once(database_driver: Postgres) -> None:
    """Settles of all shards go on while three builders work and lose their connections at random."""
    rng = Random(11)
    writer = await database_driver.open()
    await own(writer)
    builders = [await database_driver.open(size_max=1, application=f"builder {n}") for n in range(3)]
    done = asyncio.Event()
    written = 0

    async def build(store: Store) -> None:
        left = None
        while not done.is_set():
            try:
                step = await store.roll_up(settles_max=8, events_max=100, left=left)
            except StoreUnavailable:
                continue
            left = None if step is None else step.left
            if step is None:
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(build(store)) for store in builders]
    for number in range(1, 41):
        parts = []
        for shard in range(SHARDS):
            attempts = [
                ended(uuid7(), MINUTE + rng.randrange(3600), shard=shard, settle_no=number)
                for _ in range(rng.randrange(4))
            ]
            written += len(attempts)
            parts.append(settle(shard, settle_no=number, attempts=attempts))
        await writer.settle(parts)
        if number % 4 == 0:
            await database_driver.run(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and application_name like 'builder%' order by random() limit 1"
            )
    done.set()
    await asyncio.gather(*tasks)
    await roll_up(writer)
    assert await counted(writer) == written
    assert (await metered(database_driver))["attempts"] == written
    [row] = await database_driver.run("select count(*)::int as kept from attempts")
    assert row["kept"] == written


# ---- what must not be dropped ----------------------------------------------------------------------------------------


async def test_what_is_not_counted_is_kept(database_driver: Postgres) -> None:
    """Attempts are found by the progress of their settle; neither that nor their partition may go before."""
    store = await database_driver.open()
    await own(store)
    [row] = await database_driver.run(
        "select (hookpost_today() - 1)::text as first, (hookpost_today() + 2)::text as later"
    )
    await database_driver.set_clock(f"{row['first']} 12:00:00Z")
    await store.settle([settle(attempts=[ended(uuid7())])])
    await database_driver.set_clock(f"{row['later']} 12:00:00Z")
    await store.settle([settle(settle_no=2)])

    async def rolled_up() -> bool:
        [answer] = await database_driver.run("select hookpost_rolled_up($1::text::date) as done", row["first"])
        done: bool = answer["done"]
        return done

    assert await rolled_up() is False
    assert await store.prune_progress() == 1  # the day after, which is empty
    assert await roll_up(store) == (1, 0)
    assert await rolled_up() is True
    assert await store.prune_progress() == 1


# ---- from acceptance to 2xx ------------------------------------------------------------------------------------------


def accepted_at(unix_s: float) -> UUID:
    """The id of an event that was accepted then (RFC 9562, UUIDv7)."""
    return UUID(int=int(unix_s * 1000) << 80 | 0x7 << 76 | 0x8 << 60 | uuid7().int & 2**60 - 1)


async def test_the_time_since_acceptance_is_counted_of_first_deliveries_alone(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    mine: dict[str, Any] = {"tenant_id": tenant, "event_id": accepted_at(MINUTE)}
    late: dict[str, Any] = {"tenant_id": tenant, "event_id": accepted_at(MINUTE - 2 * DAY_S)}
    await store.settle([
        settle(attempts=[
            ended(endpoint, MINUTE + 0.3, latency_ms=5, outcome="retry", error_code="http_5xx", **mine),
            ended(endpoint, MINUTE + 7, latency_ms=5, retry_count=1, **mine),
            ended(endpoint, MINUTE + 8, latency_ms=5, generation=1, **mine),
            ended(endpoint, MINUTE + 1, latency_ms=5, retry_count=9, **late),
            ended(endpoint, MINUTE - 0.05, latency_ms=5, **mine),  # by a clock that is behind
        ])
    ])  # fmt: skip
    assert await roll_up(store) == (5, 0)
    for of in ((tenant, endpoint), (tenant, None), (None, None)):
        series = await store.series(*of, start=MINUTE - 60, end=MINUTE + 60, step_s=60)
        assert series.points[1].arrivals == {bucket_low(7_000): 1, bucket_low(round(2 * DAY_S * 1000)): 1}
        assert series.points[0].arrivals == {0: 1}
        assert sum(sum(point.counts.values()) for point in series.points.values()) == 5


async def test_however_many_kinds_of_attempts_and_steps_each_is_counted(database_driver: Postgres) -> None:
    """A row keeps what it is given one by one, and adds it up when it is much: then nothing may be lost or doubled."""
    rng = Random(5)
    store = await database_driver.open()
    await own(store)
    tenant = await new_tenant(store)
    endpoint = await new_endpoint(store, tenant)
    expected, failed, kinds = PointRows(), 0, set()
    for number in range(1, 41):
        attempts = []
        for _ in range(rng.choice((1, 2, 3, 60))):
            code, retries = rng.choice(("http_5xx", "http_429", "total_timeout")), rng.randrange(2)
            outcome = rng.choice(("delivered", "delivered", "delivered", "retry", "dead"))
            generation, latency_ms, since_ms = rng.randrange(2), 2 ** rng.randrange(10), 2 ** rng.randrange(9, 16) + 20
            error = None if outcome == "delivered" else code
            finished_at = MINUTE + 0.001 * rng.randrange(59_000)
            kinds |= {(outcome, error, retries, latency_ms), (outcome == "delivered" and not generation, since_ms)}
            attempts.append(
                ended(
                    endpoint, finished_at, tenant_id=tenant, event_id=accepted_at(finished_at - since_ms / 1000),
                    settle_no=number, outcome=outcome, error_code=error, retry_count=retries, latency_ms=latency_ms,
                    generation=generation,
                )
            )  # fmt: skip
            kind = (outcome, error or "", retries > 0)
            expected.counts[kind] = expected.counts.get(kind, 0) + 1
            low = bucket_low(latency_ms)
            expected.latencies[low] = expected.latencies.get(low, 0) + 1
            failed += outcome != "delivered"
            if outcome == "delivered" and not generation:
                low = bucket_low(since_ms)
                expected.arrivals[low] = expected.arrivals.get(low, 0) + 1
        await store.settle([settle(settle_no=number, attempts=attempts)])
        await roll_up(store)
    for of in ((tenant, endpoint), (tenant, None), (None, None)):
        series = await store.series(*of, start=MINUTE, end=MINUTE + 60, step_s=60)
        assert series.points == {0: expected}
    rows = await database_driver.run("select failed::int, cardinality(tallies) as tallies from rollup_tallies")
    assert [row["failed"] for row in rows] == [failed] * 3
    assert max(row["tallies"] for row in rows) <= 32 + len(kinds)
    await database_driver.set_clock("2027-01-15 08:31:00Z")
    await build(store)
    for step_s in (60, 1800):
        series = await store.series(tenant, endpoint, start=MINUTE, end=MINUTE + 1800, step_s=step_s)
        assert series.points == {0: expected}
    assert {row["failed"] for row in await database_driver.run("select failed::int from rollup_tallies")} == {failed}


# ---- coarser grains --------------------------------------------------------------------------------------------------


async def build(store: Store, *, rows_max: int = 360) -> int:
    """All that is over into coarser grains; the steps that it took."""
    steps = 0
    while await store.build_rollups(rows_max=rows_max):
        steps += 1
    return steps


async def prune(store: Store, grain: Grain, *, age_s: float = 0.0, rows_max: int = 50) -> int:
    removed = 0
    while step := await store.prune_rollups(grain, age_s=age_s, rows_max=rows_max):
        removed += step
    return removed


async def grains(driver: Postgres) -> dict[int, int]:
    """Attempts by grain."""
    rows = await driver.run(
        "select grain, sum(t.attempts)::int as attempts from rollup_tallies r, unnest(r.tallies) t"
        " where t.outcome is not null group by grain"
    )
    return {row["grain"]: row["attempts"] // 3 for row in rows}  # endpoint, tenant, platform


async def arrived(store: Store, **when: Any) -> int:
    series = await of_platform(store, **when)
    return sum(sum(point.arrivals.values()) for point in series.points.values())


async def filled(driver: Postgres) -> Store:
    """90 attempts: one each minute for an hour and a half, of two endpoints."""
    store = await driver.open()
    await own(store)
    endpoints = [uuid7(), uuid7()]
    attempts = [ended(endpoints[n % 2], MINUTE + 60 * n, latency_ms=n) for n in range(90)]
    await store.settle([settle(attempts=attempts)])
    assert await roll_up(store) == (90, 0)
    return store


TWO_HOURS: dict[str, Any] = {"start": MINUTE, "end": MINUTE + 2 * HOUR_S}
TIMES = ("2027-01-15 09:29:59Z", "2027-01-15 09:31:00Z", "2027-01-15 10:01:00Z", "2027-01-16 00:01:00Z")


async def test_no_step_of_building_changes_what_is_told_at_any_step_width(database_driver: Postgres) -> None:
    store = await filled(database_driver)
    widths = (60, 1800, 3600)
    before = {width: await of_platform(store, step_s=width, **TWO_HOURS) for width in widths}
    for moment in TIMES:  # MINUTE is 08:00
        await database_driver.set_clock(moment)
        more = True
        while more:
            more = await store.build_rollups(rows_max=120)
            for width in widths:
                assert await of_platform(store, step_s=width, **TWO_HOURS) == before[width]
    assert await grains(database_driver) == dict.fromkeys(Grain, 90)
    day = MINUTE // DAY_S * DAY_S
    assert await counted(store, start=day, end=day + DAY_S, step_s=86_400) == 90
    assert await arrived(store, start=day, end=day + DAY_S, step_s=86_400) == 90
    assert await build(store) == 0


async def test_a_bucket_with_many_keys_is_built_in_bounded_steps_and_each_key_is_told_in_full(
    database_driver: Postgres,
) -> None:
    store = await database_driver.open()
    await own(store)
    endpoints = [uuid7() for _ in range(20)]
    await store.settle([settle(attempts=[ended(e, MINUTE + 60 * n) for e in endpoints for n in range(3)])])
    assert await roll_up(store) == (60, 0)
    await database_driver.set_clock("2027-01-15 08:31:00Z")
    steps = 0
    while await store.build_rollups(rows_max=30 * 4):
        steps += 1
        assert sum(sum(p.counts.values()) for p in (await of_platform(store, step_s=1800)).points.values()) == 60
    assert steps > 4
    assert (await grains(database_driver))[Grain.HALF_HOUR] == 60


async def test_an_attempt_settled_after_its_time_was_built_counts_in_every_grain_once(
    database_driver: Postgres,
) -> None:
    store = await filled(database_driver)
    await database_driver.set_clock("2027-01-15 10:01:00Z")
    assert await build(store) > 0
    await database_driver.set_clock(None)
    await store.settle([settle(settle_no=2, attempts=[ended(uuid7(), MINUTE + 1, settle_no=2)])])
    assert await roll_up(store) == (1, 0)
    assert await grains(database_driver) == {Grain.MINUTE: 91, Grain.HALF_HOUR: 91, Grain.HOUR: 91}
    await database_driver.set_clock("2027-01-16 00:01:00Z")
    await build(store)
    assert await grains(database_driver) == dict.fromkeys(Grain, 91)
    await database_driver.set_clock(None)
    await store.settle([settle(settle_no=3, attempts=[ended(uuid7(), MINUTE + 7000, settle_no=3)])])
    assert await roll_up(store) == (1, 0)
    assert await grains(database_driver) == dict.fromkeys(Grain, 92)
    for width in (60, 1800, 3600):
        assert await counted(store, step_s=width, **TWO_HOURS) == 92
    assert (await metered(database_driver))["attempts"] == 92


async def test_an_attempt_settled_while_its_time_is_being_built_counts_once(database_driver: Postgres) -> None:
    """Some keys are built already and others are not; it counts for all three: the endpoint, the tenant, the platform."""
    store = await filled(database_driver)
    await database_driver.set_clock("2027-01-15 08:31:00Z")
    assert await store.build_rollups(rows_max=30)  # the platform's rows
    await database_driver.set_clock(None)
    await store.settle([settle(settle_no=2, attempts=[ended(uuid7(), MINUTE + 1, settle_no=2)])])
    assert await roll_up(store) == (1, 0)
    await database_driver.set_clock("2027-01-15 08:31:00Z")
    await build(store)
    assert (await grains(database_driver))[Grain.HALF_HOUR] == 31


async def test_what_is_old_is_removed_where_a_coarser_grain_has_all_of_it(database_driver: Postgres) -> None:
    store = await filled(database_driver)
    assert await prune(store, Grain.MINUTE) == 0, "nothing is built"
    await database_driver.set_clock("2027-01-15 10:01:00Z")
    await build(store)
    assert await prune(store, Grain.MINUTE, age_s=2 * HOUR_S) == 0, "08:01 is in a half hour that is not old enough"
    assert await prune(store, Grain.MINUTE, age_s=HOUR_S) > 0
    assert await grains(database_driver) == {Grain.MINUTE: 30, Grain.HALF_HOUR: 90, Grain.HOUR: 90}
    for width in (1800, 3600):
        assert await counted(store, step_s=width, **TWO_HOURS) == 90
    assert await counted(store, start=MINUTE + HOUR_S, end=MINUTE + 2 * HOUR_S, step_s=60) == 30
    with pytest.raises(Unfit, match=r"multiple of 1800 .*by the half hour") as refused:
        await of_platform(store, start=MINUTE + HOUR_S - 60, end=MINUTE + 2 * HOUR_S, step_s=60)
    assert refused.value.field == "step"
    # An end within what is gone is that of the bucket that has it.
    assert await counted(store, start=MINUTE, end=MINUTE + 600, step_s=1800) == 30
    assert await prune(store, Grain.HALF_HOUR) > 0
    with pytest.raises(Unfit, match="multiple of 3600"):
        await of_platform(store, start=MINUTE, end=MINUTE + 2 * HOUR_S, step_s=1800)
    assert await counted(store, step_s=3600, **TWO_HOURS) == 90
    # What comes after its minute has gone counts in what is left.
    await database_driver.set_clock(None)
    await store.settle([settle(settle_no=2, attempts=[ended(uuid7(), MINUTE + 1, settle_no=2)])])
    assert await roll_up(store) == (1, 0)
    assert await counted(store, step_s=3600, **TWO_HOURS) == 91


async def test_a_builder_killed_while_it_builds_or_removes_has_done_nothing(database_driver: Postgres) -> None:
    store = await filled(database_driver)
    other = await database_driver.open()
    await database_driver.set_clock("2027-01-15 10:01:00Z")

    async def killed(work: Callable[[], Awaitable[Any]]) -> None:
        task, gate, pid = await blocked_at(database_driver, "rollup_reach", work)
        await database_driver.run("select pg_terminate_backend($1, 5000)", pid)
        with pytest.raises(StoreUnavailable):
            await task
        await gate.execute("commit")

    await killed(lambda: store.build_rollups(rows_max=100_000))
    assert await grains(database_driver) == {Grain.MINUTE: 90}
    await build(other)
    built = {Grain.MINUTE: 90, Grain.HALF_HOUR: 90, Grain.HOUR: 90}
    await killed(lambda: store.prune_rollups(Grain.MINUTE, age_s=0.0, rows_max=100_000))
    assert await grains(database_driver) == built
    assert await prune(other, Grain.MINUTE) > 0
    assert await grains(database_driver) == {Grain.HALF_HOUR: 90, Grain.HOUR: 90}


async def test_a_day_without_attempts_is_not_in_the_way_of_the_next(database_driver: Postgres) -> None:
    store = await filled(database_driver)
    await database_driver.set_clock("2027-01-19 00:02:00Z")
    await build(store)
    rows = await database_driver.run("select grain, extract(epoch from bucket)::float8 as bucket from rollup_reach")
    ends = {row["grain"]: row["bucket"] + row["grain"] for row in rows if row["grain"] != Grain.MINUTE}
    assert ends == dict.fromkeys(FINER, (MINUTE // DAY_S + 4) * DAY_S)


# ---- the present -----------------------------------------------------------------------------------------------------


async def test_how_things_stand_is_counted_up_to_a_limit(driver: Driver) -> None:
    store = await driver.open()
    await own(store)
    tenant, other = await new_tenant(store, (0, 1)), await new_tenant(store, (0,))
    mine, theirs = await new_endpoint(store, tenant), await new_endpoint(store, other)
    await store.append(
        0, [event(tenant), event(other)], {**await version(store, tenant), **await version(store, other)}
    )
    await store.settle([
        settle(0, upserts=[waiting(mine, 1), waiting(theirs, 2), waiting(theirs, 3)]),
        settle(1, upserts=[waiting(mine, 1)], dead=[dead(mine, uuid7(), tenant_id=tenant, reason=DeadReason.DEADLINE)]),
    ])  # fmt: skip

    async def standing(*whose: UUID | None, count_max: int = 100) -> tuple[int, bool, int, int | None]:
        now = await store.standing(*whose, count_max=count_max, with_depth=whose[1] is None)
        return now.waiting.count, now.waiting.exact, now.dead.count, now.depth

    assert await standing(None, None) == (4, True, 1, 2)
    assert await standing(tenant, None) == (2, True, 1, 2)
    assert await standing(other, None) == (2, True, 0, 2)
    assert await standing(tenant, mine) == (2, True, 1, None)
    assert await standing(None, theirs) == (2, True, 0, None)
    assert await standing(None, None, count_max=3) == (3, False, 1, 2)
    with pytest.raises(NotFound):
        await standing(tenant, theirs)
