"""Look-ups of many at once: few statements, each asker's own answer, nobody left waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from uuid import uuid4

import pytest

from hookpost.storage.contract import DataRejected, StoreUnavailable
from hookpost.storage.postgres.gathered import Gathered
from hookpost.storage.postgres.store import PostgresStore
from tests.patience import PATIENCE_S
from tests.storage.driver import Driver, Postgres


class Asked:
    """What a store is asked: it answers when it is let, with ten times each odd key."""

    def __init__(self) -> None:
        self.questions: list[list[int]] = []
        self.under_way = 0
        self.most_under_way = 0
        self.let = asyncio.Event()
        self.let.set()
        self.failure: Exception | None = None
        self.bad: int | None = None

    async def __call__(self, keys: Sequence[int]) -> Mapping[int, int]:
        self.questions.append(list(keys))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.let.wait()
        finally:
            self.under_way -= 1
        if self.failure is not None:
            raise self.failure
        if self.bad in keys:
            raise DataRejected(f"{len(keys)} keys")
        return {key: key * 10 for key in keys if key % 2}


async def all_of(gathered: Gathered[int, int], keys: Sequence[int]) -> list[int | BaseException | None]:
    asks = asyncio.gather(*(gathered.get(key) for key in keys), return_exceptions=True)
    return await asyncio.wait_for(asks, PATIENCE_S)


async def test_who_asks_alone_is_answered_alone() -> None:
    asked = Asked()
    gathered = Gathered(asked)
    assert await gathered.get(3) == 30
    assert await gathered.get(4) is None
    assert asked.questions == [[3], [4]]


async def test_all_that_is_asked_in_a_turn_of_the_loop_goes_in_one_statement() -> None:
    asked = Asked()
    assert await all_of(Gathered(asked), [1, 2, 3, 1]) == [10, None, 30, 10]
    assert asked.questions == [[1, 2, 3]]


async def test_what_is_asked_meanwhile_gathers_and_no_statement_has_more_than_it_may() -> None:
    asked = Asked()
    asked.let.clear()
    gathered = Gathered(asked, keys_max=3, asking_max=2)
    first = asyncio.create_task(all_of(gathered, range(10)))
    while len(asked.questions) < 2:
        await asyncio.sleep(0)
    later = asyncio.create_task(all_of(gathered, range(10, 15)))
    await asyncio.sleep(0)
    asked.let.set()
    assert await first == [None, 10, None, 30, None, 50, None, 70, None, 90]
    assert await later == [None, 110, None, 130, None]
    assert [len(keys) for keys in asked.questions] == [3] * 5
    assert asked.most_under_way == 2


async def test_an_answer_is_never_older_than_its_question() -> None:
    """A key that is asked for while a statement has it already is asked for again: it may have changed since."""
    asked = Asked()
    asked.let.clear()
    gathered = Gathered(asked, asking_max=1)
    early = asyncio.create_task(gathered.get(1))
    while not asked.questions:
        await asyncio.sleep(0)
    late = asyncio.create_task(gathered.get(1))
    asked.let.set()
    assert (await early, await late) == (10, 10)
    assert asked.questions == [[1], [1]]


async def test_a_failure_is_told_to_all_who_asked_and_to_nobody_else() -> None:
    asked = Asked()
    gathered = Gathered(asked)
    asked.failure = StoreUnavailable("away")
    ends = await all_of(gathered, [1, 2, 1])
    assert [str(end) for end in ends] == ["away"] * 3
    assert all(isinstance(end, StoreUnavailable) for end in ends)
    assert len({id(end) for end in ends}) == 3
    asked.failure = None
    assert await gathered.get(1) == 10


async def test_a_key_that_is_refused_is_refused_alone() -> None:
    asked = Asked()
    asked.bad = 3
    one, three, five = await all_of(Gathered(asked), [1, 3, 5])
    assert (one, five) == (10, 50)
    assert isinstance(three, DataRejected) and str(three) == "1 keys"


async def test_who_goes_away_takes_nobody_along() -> None:
    asked = Asked()
    asked.let.clear()
    gathered = Gathered(asked, asking_max=1)
    gone, stays = asyncio.create_task(gathered.get(1)), asyncio.create_task(gathered.get(1))
    while not asked.questions:
        await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    asked.let.set()
    assert await stays == 10
    assert await gathered.get(5) == 50


async def test_whoever_asks_when_the_last_statement_has_just_ended_is_answered() -> None:
    """In the same turn of the loop: the task that asked has returned and is not yet found to be done."""
    asked = Asked()
    gathered = Gathered(asked, asking_max=1)

    async def twice(key: int) -> int | None:
        await gathered.get(key)
        return await gathered.get(key + 2)

    ends = await asyncio.wait_for(asyncio.gather(*(twice(key) for key in (1, 3, 5))), PATIENCE_S)
    assert ends == [30, 50, 70]


@pytest.mark.postgres
async def test_routes_and_keys_of_many_tenants(driver: Driver) -> None:
    """Each of those who ask at once has its own tenant's; who does not exist has none."""
    assert isinstance(driver, Postgres)
    tenants = [uuid4() for _ in range(300)]
    await driver.run(
        "insert into tenants (tenant_id, name, home_shards) select t, 'tenant', '{0}' from unnest($1::uuid[]) t",
        tenants,
    )
    await driver.run(
        "insert into api_keys (key_id, tenant_id, name, key_hash)"
        " select left(t::text, 8), t, 'key', sha256(t::text::bytea) from unnest($1::uuid[]) t",
        tenants,
    )
    store = PostgresStore(driver.dsn)
    await store.open()
    try:
        unknown = uuid4()
        routes = await asyncio.gather(*(store.load_routes(tenant) for tenant in [*tenants, unknown]))
        assert [None if found is None else found.tenant_id for found in routes] == [*tenants, None]
        changed = await asyncio.gather(*(store.load_routes(tenant, since=1) for tenant in [*tenants, unknown]))
        assert [None if found is None else (found.tenant_id, found.since) for found in changed] == [
            *((tenant, 1) for tenant in tenants),
            None,
        ]
        keys = await asyncio.gather(*(store.find_key(str(tenant)[:8]) for tenant in [*tenants, unknown]))
        assert [None if found is None else found.tenant_id for found in keys] == [*tenants, None]
    finally:
        await store.close()
