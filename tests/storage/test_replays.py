"""Bulk replays: everything that matches is owed once more, exactly once, whatever ends their runners."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.engine.work import Kind, Progress
from hookpost.model import DeadReason
from hookpost.storage.contract import (
    Conflict,
    ControlAction,
    Matched,
    NotFound,
    ReplayFilter,
    ReplayLimits,
    ReplayState,
    ReplayStep,
    Store,
    StoreUnavailable,
)
from hookpost.storage.postgres import replays
from tests.patience import PATIENCE_S
from tests.storage.driver import (
    SHARDS,
    Driver,
    Postgres,
    attempt,
    dead,
    event,
    new_tenant,
    own,
    settle,
    version,
    waiting,
)

LIMITS = ReplayLimits(step_s=1.0, deliveries_max=3, depth_max=10_000, waiting_max=10, hold_s=60.0)
UNLIMITED = 100_000.0


class World:
    """A tenant, and what its workers settle."""

    def __init__(self, store: Store, driver: Driver, tenant: UUID) -> None:
        self.store, self.driver, self.tenant = store, driver, tenant
        self.settles: Counter[int] = Counter()

    async def endpoint(self, **columns: Any) -> UUID:
        values = {"endpoint_id": uuid7(), "tenant_id": self.tenant, "url": "https://example.com/", **columns}
        await self.store.create_endpoint(values, b"k" * 24, endpoints_max=100)
        return values["endpoint_id"]

    async def post(self, count: int, *owed: UUID, shard: int = 0, type: str = "a.b") -> list[UUID]:
        events = [event(self.tenant, owed=owed, type=type) for _ in range(count)]
        await self.store.append(shard, events, await version(self.store, self.tenant))
        return [each.event_id for each in events]

    async def settle(self, shard: int = 0, **values: Any) -> None:
        """All of the shard's journal is read and done, but for what is said."""
        seq = len(await self.driver.journal(shard))
        self.settles[shard] += 1
        values.setdefault("progress", Progress(cursor=seq, read_to=seq, read_day=9000, open=(), partial=()))
        await self.store.settle([settle(shard, settle_no=self.settles[shard], **values)])

    async def dead(self, count: int, endpoint: UUID, *, type: str = "a.b") -> list[UUID]:
        """Events that died."""
        ids = await self.post(count, endpoint, type=type)
        await self.die(endpoint, *ids, type=type)
        return ids

    async def die(
        self, endpoint: UUID, *event_ids: UUID, type: str = "a.b", reason: DeadReason = DeadReason.HTTP_4XX
    ) -> None:
        now = await self.store.ping()
        letters = [
            dead(
                endpoint,
                event_id,
                tenant_id=self.tenant,
                position=n,
                type=type,
                reason=reason,
                died_at=now - (len(event_ids) - n) / 1e5,
            )
            for n, event_id in enumerate(event_ids)
        ]
        await self.settle(dead=letters)

    async def delivered(self, endpoint: UUID, *event_ids: UUID) -> None:
        now = await self.store.ping()
        await self.settle(
            attempts=[
                attempt(endpoint, settle_no=self.settles[0] + 1, event_id=event_id, finished_at=now)
                for event_id in event_ids
            ]
        )

    async def start(self, *, rate_limit: float = UNLIMITED, **wanted: Any) -> dict[str, Any]:
        return await self.store.create_replay(
            self.tenant, uuid7(), ReplayFilter(**wanted), rate_limit=rate_limit, running_max=20
        )

    async def finish(self, store: Store | None = None, limits: ReplayLimits = LIMITS) -> list[ReplayStep]:
        """Steps until one ends its job."""
        steps: list[ReplayStep] = []
        async with asyncio.timeout(PATIENCE_S):
            while not steps or steps[-1].state is ReplayState.RUNNING:
                step = await (store or self.store).replay_step(limits)
                steps += [] if step is None else [step]
        return steps

    async def replayed(self) -> Counter[tuple[UUID, UUID]]:
        """How often each (event, endpoint) is owed once more."""
        return Counter((row["event_id"], endpoint) for row in await self.replays() for endpoint in row["owed"])

    async def replays(self) -> list[dict[str, Any]]:
        """The rows of the journal that owe something once more."""
        rows = [row for shard in range(SHARDS) for row in await self.driver.journal(shard)]
        return [row for row in rows if row["kind"] == Kind.REPLAY]

    async def job(self, created: dict[str, Any]) -> dict[str, Any]:
        return await self.store.get_replay(self.tenant, created["replay_id"])


@pytest.fixture
async def world(driver: Driver) -> World:
    store = await driver.open()
    await own(store)
    return World(store, driver, await new_tenant(store, range(4)))


def once(endpoint: UUID, event_ids: list[UUID]) -> Counter[tuple[UUID, UUID]]:
    return Counter((event_id, endpoint) for event_id in event_ids)


# ---- exactly once ----------------------------------------------------------------------------------------------------


async def test_every_dead_letter_is_owed_once_more_in_chunks(world: World) -> None:
    endpoint = await world.endpoint()
    died = await world.dead(8, endpoint)
    job = await world.start()
    assert (job["matched"], job["matched_exact"], job["replayed"], job["state"]) == (8, True, 0, "running")
    steps = await world.finish()
    assert [step.appended for step in steps] == [3, 3, 2]
    assert await world.replayed() == once(endpoint, died)
    job = await world.job(job)
    assert (job["replayed"], job["state"]) == (8, "done")
    assert job["finished_at"] >= job["created_at"]
    assert await world.store.replay_step(LIMITS) is None
    assert await world.store.next_replay_in() is None


@pytest.mark.postgres
async def test_a_runner_killed_within_a_chunk_leaves_the_job_where_it_was(world: World) -> None:
    endpoint = await world.endpoint(ordered=True)  # all of it goes to shard 0
    died = await world.dead(8, endpoint)
    job = await world.start()
    first = await world.store.replay_step(LIMITS)
    assert first is not None and first.appended == 3
    let_go = await world.driver.hold_shard(0)
    doomed = asyncio.create_task(world.store.replay_step(LIMITS))
    await world.driver.waiting()  # for the shard: the job is taken, its place not moved yet
    [blocked] = await world.driver.blocked()
    await world.driver.run("select pg_terminate_backend($1)", blocked["pid"])
    with pytest.raises(StoreUnavailable):
        await doomed
    await let_go()
    assert (await world.job(job))["replayed"] == 3
    await world.finish(await world.driver.open())
    assert await world.replayed() == once(endpoint, died)


@pytest.mark.postgres
async def test_a_runner_that_stops_within_a_chunk_leaves_the_job_where_it_was(world: World) -> None:
    endpoint = await world.endpoint(ordered=True)
    died = await world.dead(5, endpoint)
    await world.start()
    let_go = await world.driver.hold_shard(0)
    stopped = asyncio.create_task(world.store.replay_step(LIMITS))
    await world.driver.waiting()
    stopped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopped
    await let_go()
    assert await world.replayed() == Counter()
    await world.finish()
    assert await world.replayed() == once(endpoint, died)


@pytest.mark.postgres
async def test_a_job_that_one_runner_has_is_passed_over_by_the_others(world: World) -> None:
    await world.dead(2, await world.endpoint(ordered=True))
    await world.start()
    let_go = await world.driver.hold_shard(0)
    first = asyncio.create_task(world.store.replay_step(LIMITS))
    await world.driver.waiting()
    assert await (await world.driver.open()).replay_step(LIMITS) is None
    await let_go()
    step = await first
    assert step is not None and step.appended == 2


async def test_many_runners_at_once_repeat_and_skip_nothing(world: World) -> None:
    endpoint = await world.endpoint()
    died = await world.dead(60, endpoint)
    job = await world.start()

    async def run(store: Store) -> None:
        while (await world.job(job))["state"] == "running":
            await store.replay_step(LIMITS)

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(run(store) for store in [await world.driver.open() for _ in range(4)]))
    assert await world.replayed() == once(endpoint, died)
    assert (await world.job(job))["replayed"] == 60


async def test_dead_letters_of_one_event_share_a_row_and_a_generation_counts_rows(world: World) -> None:
    one, two = await world.endpoint(ordered=True), await world.endpoint(ordered=True)
    [event_id] = await world.post(1, one, two)
    await world.die(one, event_id)
    await world.die(two, event_id)
    await world.start()
    await world.finish()
    await world.start()
    await world.finish(limits=ReplayLimits(1.0, 1, 10_000, 10, 1.0))
    rows = [row for row in await world.driver.journal(0) if row["kind"] == Kind.REPLAY]
    assert [(row["generation"], row["owed"]) for row in rows] == [(1, [one, two]), (2, [one]), (3, [two])]


async def test_an_event_owed_to_more_than_a_chunk_goes_whole(world: World) -> None:
    owed = [await world.endpoint() for _ in range(5)]
    ids = await world.post(2, *owed)
    await world.settle()
    await world.start(status="any")
    assert [step.appended for step in await world.finish()] == [5, 5]
    assert await world.replayed() == Counter((event_id, endpoint) for event_id in ids for endpoint in owed)


async def test_replays_of_one_event_in_different_shards_never_share_a_generation(world: World) -> None:
    """One that an ordered endpoint pins to the first home shard, and one to another endpoint alone."""
    ordered, free = await world.endpoint(ordered=True), await world.endpoint()
    [event_id] = await world.post(1, ordered, free)
    while event_id.int % 4 == 0:
        [event_id] = await world.post(1, ordered, free)
    await asyncio.gather(
        *(world.store.append_replay(world.tenant, event_id, endpoint) for endpoint in (None, free) * 3)
    )
    rows = await world.replays()
    assert {row["shard"] == 0 for row in rows} == {True, False}
    assert sorted(row["generation"] for row in rows) == [1, 2, 3, 4, 5, 6]


# ---- where to ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [{"ordered": True}, {"rate_limit": 5.0}, {"max_in_flight": 2}, {}])
async def test_what_pins_an_endpoint_pins_its_replays(world: World, policy: dict[str, Any]) -> None:
    endpoint = await world.endpoint(**policy)
    died = await world.dead(12, endpoint)
    assert await world.store.append_replay(world.tenant, died[0], endpoint) == 1
    assert await world.store.append_replay(world.tenant, died[1], None) == 1
    await world.start()
    steps = await world.finish()
    rows = await world.replays()
    assert len(rows) == 14
    for row in rows:
        assert row["shard"] == (0 if policy else row["event_id"].int % 2**64 % 4)
    assert {shard for step in steps for shard in step.shards} <= {row["shard"] for row in rows}


# ---- what matches ------------------------------------------------------------------------------------------------------


async def test_the_filter_is_frozen_at_creation(world: World) -> None:
    endpoint = await world.endpoint()
    died = await world.dead(2, endpoint)
    waiting_still = await world.post(1, endpoint)
    only_dead, everything = await world.start(), await world.start(status="any")
    assert (only_dead["matched"], everything["matched"]) == (2, 3)
    now = await world.store.ping()
    await world.settle(dead=[dead(endpoint, waiting_still[0], tenant_id=world.tenant, position=3, died_at=now)])
    await world.dead(1, endpoint)
    for _ in range(2):
        await world.finish()
    assert await world.replayed() == once(endpoint, died + died + waiting_still)


async def test_each_part_of_the_filter_narrows_it(world: World) -> None:
    one, two = await world.endpoint(), await world.endpoint()
    early = await world.dead(2, one)
    between = await world.store.ping()
    late, typed = await world.dead(2, one, type="x.y"), await world.dead(1, two, type="x.y")
    wanted = {
        "one": ({"endpoint_id": one}, once(one, early + late)),
        "type": ({"type": "x.y"}, once(one, late) + once(two, typed)),
        "both": ({"type": "x.y", "endpoint_id": two}, once(two, typed)),
        "since": ({"since": between}, once(one, late) + once(two, typed)),
        "until": ({"until": between}, once(one, early)),
        "one since": ({"since": between, "endpoint_id": one}, once(one, late)),
        "nothing": ({"type": "x.*"}, Counter()),
    }
    for status in ("dead", "any"):
        for name, (values, expected) in wanted.items():
            before = await world.replayed()
            counted = await world.store.count_replay(world.tenant, ReplayFilter(status=status, **values))
            assert counted == Matched(expected.total(), True), (status, name)
            await world.start(status=status, **values)
            await world.finish()
            assert await world.replayed() - before == expected, (status, name)


async def test_what_died_of_one_reason_is_replayed_and_the_rest_stays_dead(world: World) -> None:
    one, two = await world.endpoint(), await world.endpoint()
    ids = await world.post(3, one, two)
    await world.die(one, ids[0], ids[1], reason=DeadReason.DEADLINE)
    await world.die(two, ids[0], reason=DeadReason.DEADLINE)
    await world.die(one, ids[2])
    wanted: dict[str, Any] = {"endpoint_id": one, "reason": DeadReason.DEADLINE}
    assert await world.store.count_replay(world.tenant, ReplayFilter(**wanted)) == Matched(2, True)
    assert await world.store.count_replay(world.tenant, ReplayFilter(reason=DeadReason.DEADLINE)) == Matched(3, True)
    await world.start(**wanted)
    await world.finish()
    assert await world.replayed() == once(one, ids[:2])


@pytest.mark.postgres
@pytest.mark.parametrize("reason_in_its_column_alone", [False, True])
async def test_a_reason_is_heeded_whatever_release_a_process_is_of(
    world: World, reason_in_its_column_alone: bool
) -> None:
    """Those before 0017 give the database a job's status and know no reason; that of 0017 wrote it beside the status."""
    assert isinstance(world.driver, Postgres)
    one = await world.endpoint()
    ids = await world.post(2, one)
    await world.die(one, ids[0], reason=DeadReason.DEADLINE)
    await world.die(one, ids[1])
    job = await world.start(reason=DeadReason.DEADLINE)
    assert (job["status"], job["matched"]) == ("dead", 1)
    if reason_in_its_column_alone:
        await world.driver.run("update replays set status = 'dead'")
    else:
        found = await world.driver.run(
            "select c.event_id, c.owed from replays r cross join lateral hookpost_replayable(r.tenant_id, r.endpoint_id, "
            "r.type, r.status, r.since, r.until, r.created_at, r.after_at, r.after_event, r.after_endpoint, 10) c"
        )
        assert {row["event_id"]: row["owed"] for row in found} == {ids[0]: [one], ids[1]: []}
    await world.finish()
    assert await world.replayed() == once(one, ids[:1])
    assert (await world.job(job))["status"] == "dead"


async def test_delivered_means_that_a_request_was_answered(world: World) -> None:
    one, two = await world.endpoint(), await world.endpoint()
    ids = await world.post(3, one, two)
    await world.delivered(one, ids[0], ids[1])
    await world.delivered(two, ids[2])
    await world.die(two, ids[0])
    await world.settle(attempts=[attempt(one, event_id=ids[2], settle_no=9, outcome="retry", finished_at=1.7e9)])
    job = await world.start(status="delivered")
    await world.delivered(two, ids[1])  # a moment too late
    assert job["matched"] == 3
    await world.finish()
    assert await world.replayed() == once(one, ids[:2]) + once(two, ids[2:])


async def test_deleted_endpoints_and_other_tenants_are_left_out(world: World) -> None:
    kept, gone = await world.endpoint(), await world.endpoint()
    died = await world.dead(1, kept)
    await world.dead(2, gone)
    stranger = World(world.store, world.driver, await new_tenant(world.store))
    stranger.settles = world.settles
    await stranger.dead(2, await stranger.endpoint())
    await world.store.delete_endpoint(world.tenant, gone)
    for status in ("dead", "any"):
        assert (await world.start(status=status))["matched"] == 1
        await world.finish()
    assert await world.replayed() == once(kept, died + died)


async def test_an_endpoint_deleted_meanwhile_is_left_out_too(world: World) -> None:
    kept, gone = await world.endpoint(), await world.endpoint()
    await world.dead(1, gone)
    died = await world.dead(1, kept)
    job = await world.start()
    await world.store.delete_endpoint(world.tenant, gone)
    await world.finish()
    assert await world.replayed() == once(kept, died)
    assert ((await world.job(job))["matched"], (await world.job(job))["replayed"]) == (2, 1)


async def test_control_rows_are_not_replayed(world: World) -> None:
    endpoint = await world.endpoint()
    ids = await world.post(1, endpoint)
    assert await world.store.append_control(world.tenant, ids[0], endpoint, ControlAction.CANCEL) == 1
    assert (await world.start(status="any"))["matched"] == 1
    await world.finish()
    assert await world.replayed() == once(endpoint, ids)


@pytest.mark.postgres
async def test_what_is_too_much_to_count_is_said_to_be_at_least(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = await world.endpoint()
    await world.dead(5, endpoint)
    monkeypatch.setattr(replays, "COUNTED_MAX", 2)
    job = await world.start()
    assert (job["matched"], job["matched_exact"]) == (2, False)
    await world.store.replay_step(LIMITS)
    assert ((await world.job(job))["matched"], (await world.job(job))["matched_exact"]) == (3, False)
    await world.finish()
    assert ((await world.job(job))["matched"], (await world.job(job))["matched_exact"]) == (5, True)


# ---- pace ------------------------------------------------------------------------------------------------------------


async def test_a_step_is_followed_by_a_rest_of_what_it_took(world: World) -> None:
    """The rest is in the job's row: it holds for every runner and over restarts."""
    await world.dead(6, await world.endpoint())
    await world.start(rate_limit=0.01)
    step = await world.store.replay_step(LIMITS)
    assert step is not None and step.appended == 1
    other = await world.driver.open()
    assert await other.replay_step(LIMITS) is None
    rest_s = await other.next_replay_in()
    assert rest_s is not None and 30.0 < rest_s <= 100.0


async def test_a_job_that_was_idle_catches_up_a_second_at_most(world: World) -> None:
    await world.dead(6, await world.endpoint())
    await world.start(rate_limit=0.01)
    await world.driver.turn_replays(ago_s=86_400.0)
    await world.store.replay_step(LIMITS)
    rest_s = await world.store.next_replay_in()
    assert rest_s is not None and 30.0 < rest_s <= 100.0


async def test_a_job_rests_while_the_journal_is_deep(world: World) -> None:
    endpoint = await world.endpoint()
    await world.dead(2, endpoint)
    await world.start()
    await world.post(3, endpoint, shard=1)
    limits = ReplayLimits(1.0, 3, 2, 10, 60.0)
    step = await world.store.replay_step(limits)
    assert step is not None and (step.held, step.appended) == (True, 0)
    assert await world.store.replay_step(limits) is None
    await world.driver.turn_replays(ago_s=0.0)
    read = Progress(cursor=0, read_to=3, read_day=9000, open=((1, 2), (3, 4)), partial=())
    await world.settle(1, progress=read)  # two entries are open still
    assert [step.appended for step in await world.finish(limits=limits)] == [2]


async def test_a_job_rests_while_many_replays_wait(world: World) -> None:
    endpoint = await world.endpoint()
    await world.dead(2, endpoint)
    await world.start()
    rows = [waiting(endpoint, 100 + n, tenant_id=world.tenant, generation=n % 2) for n in range(22)]
    await world.settle(upserts=rows)
    step = await world.store.replay_step(LIMITS)
    assert step is not None and step.held
    await world.settle(deletes=[(endpoint, 101)])
    await world.driver.turn_replays(ago_s=0.0)
    await world.finish()


# ---- the end -----------------------------------------------------------------------------------------------------------


async def test_a_cancelled_job_appends_nothing_more_and_keeps_what_it_has(world: World) -> None:
    await world.dead(8, await world.endpoint())
    job = await world.start()
    await world.store.replay_step(LIMITS)
    assert await world.store.cancel_replay(world.tenant, job["replay_id"])
    assert await world.store.replay_step(LIMITS) is None
    assert (await world.replayed()).total() == 3
    ended = await world.job(job)
    assert (ended["state"], ended["replayed"], ended["matched"]) == ("cancelled", 3, 8)
    assert not await world.store.cancel_replay(world.tenant, job["replay_id"])


@pytest.mark.postgres
async def test_a_cancel_waits_for_the_chunk_under_way(world: World) -> None:
    await world.dead(8, await world.endpoint(ordered=True))
    job = await world.start()
    let_go = await world.driver.hold_shard(0)
    step = asyncio.create_task(world.store.replay_step(LIMITS))
    await world.driver.waiting()
    cancel = asyncio.create_task(world.store.cancel_replay(world.tenant, job["replay_id"]))
    await world.driver.waiting(2)
    await let_go()
    assert await cancel
    assert await step is not None
    ended = await world.job(job)
    assert (ended["state"], ended["replayed"]) == ("cancelled", 3)


async def test_the_job_of_a_deleted_tenant_is_cancelled(world: World) -> None:
    await world.dead(1, await world.endpoint())
    await world.start()
    await world.store.delete_tenant(world.tenant)
    assert [step.state for step in await world.finish()] == [ReplayState.CANCELLED]
    assert await world.replayed() == Counter()


@pytest.mark.postgres
async def test_a_job_whose_chunk_is_refused_fails_and_says_why(world: World) -> None:
    """Here the shard's numbers are used up."""
    endpoint = await world.endpoint(ordered=True)
    await world.dead(1, endpoint)
    job = await world.start()
    await world.driver.run("update events set seq = $1", 2**63 - 1)
    await world.settle(progress=Progress(cursor=2**63 - 1, read_to=2**63 - 1, read_day=9000, open=(), partial=()))
    [step] = await world.finish()
    assert step.state is ReplayState.FAILED and "out of range" in (step.failure or "")
    assert (await world.job(job))["failure"] == step.failure
    assert await world.store.next_replay_in() is None


async def test_a_tenant_has_no_more_running_jobs_than_the_limit(world: World) -> None:
    wanted = ReplayFilter()
    for _ in range(2):
        await world.store.create_replay(world.tenant, uuid7(), wanted, rate_limit=1.0, running_max=2)
    with pytest.raises(Conflict, match="2 replays"):
        await world.store.create_replay(world.tenant, uuid7(), wanted, rate_limit=1.0, running_max=2)
    await world.finish()
    await world.store.create_replay(world.tenant, uuid7(), wanted, rate_limit=1.0, running_max=2)


async def test_jobs_take_turns(world: World) -> None:
    await world.dead(8, await world.endpoint())
    jobs = [await world.start(rate_limit=10.0) for _ in range(2)]
    await world.driver.turn_replays(ago_s=0.5)  # each step takes 0.3 s of it
    first = await world.store.replay_step(LIMITS)
    assert first is not None
    other = next(job["replay_id"] for job in jobs if job["replay_id"] != first.replay_id)
    seen: list[UUID] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(seen) < 3:
            step = await world.store.replay_step(LIMITS)
            seen += [] if step is None else [step.replay_id]
    assert seen[0] == other
    assert set(seen[1:]) == {first.replay_id, other}


@pytest.mark.postgres
async def test_another_tenants_jobs_do_not_exist(world: World) -> None:
    job = await world.start()
    stranger = await new_tenant(world.store)
    for call in (world.store.get_replay, world.store.cancel_replay):
        with pytest.raises(NotFound):
            await call(stranger, job["replay_id"])
    assert (await world.store.list_replays(stranger, after=None, limit=5)).rows == []
    for reader in (world.tenant, None):
        [row] = (await world.store.list_replays(reader, after=None, limit=5)).rows
        assert row["replay_id"] == job["replay_id"]
