"""Where an append stands, and that what is told of it is what a worker would read."""

from __future__ import annotations

from datetime import date, timedelta
from random import Random
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.engine.work import JournalRow
from hookpost.model import PayloadRef
from hookpost.relay import decode_told, encode, rows, told
from hookpost.storage.contract import Appended, NewEvent, Place, Stale, Store, Verdict
from tests.storage.driver import Driver, Postgres, event, new_endpoint, new_tenant, version

ALL = {"rows_max": 1000, "bytes_max": 100_000_000}


async def append(store: Store, shard: int, events: list[NewEvent], versions: dict[UUID, int]) -> list[JournalRow]:
    """What is told of it."""
    places: list[Place] = []
    answers = await store.append(shard, events, versions, places.append)
    assert isinstance(answers, list)
    new = [each for each, answer in zip(events, answers, strict=True) if answer.verdict is Verdict.NEW]
    assert len(places) == bool(new)
    return rows(decode_told(encode(told(places[0], new)))) if new else []


def drawn(rng: Random, tenants: list[UUID], endpoints: list[UUID], keys: list[str]) -> NewEvent:
    values: dict[str, Any] = {
        "payload": rng.choice((b"", b"{}", b'{"a":"\xc3\xa9"}', rng.randbytes(rng.randrange(3000)))),
        "owed": tuple(rng.sample(endpoints, rng.choice((0, 1, 1, 2, len(endpoints))))),
        "type": rng.choice(("a.b", "invoice.paid", "ä.é")),
    }
    if rng.random() < 0.3:
        values |= {"trace_id": uuid7(), "span": rng.choice((None, rng.randbytes(8)))}
    if rng.random() < 0.4:
        values |= {"key": rng.choice(keys), "request_hash": rng.choice((b"h" * 32, b"i" * 32))}
    return event(rng.choice(tenants), **values)


async def furnished(store: Store) -> tuple[list[UUID], list[UUID], dict[UUID, int]]:
    """Two tenants, their endpoints and their versions."""
    tenants = [await new_tenant(store) for _ in range(2)]
    endpoints = [await new_endpoint(store, tenant) for tenant in tenants for _ in range(3)]
    return tenants, endpoints, await version(store, tenants[0]) | await version(store, tenants[1])


@pytest.mark.parametrize("seed", range(3))
async def test_what_is_told_of_an_append_is_what_a_worker_would_read(driver: Driver, seed: int) -> None:
    store, rng = await driver.open(), Random(seed)
    tenants, endpoints, versions = await furnished(store)
    keys = [str(n) for n in range(12)]
    at = (0, 0)
    for size in (1, 2, 5, 20, 60, 1, 30):
        found = await append(store, 1, [drawn(rng, tenants, endpoints, keys) for _ in range(size)], versions)
        assert (await store.read({1: at}, **ALL)).get(1, []) == found
        if found:
            at = (found[-1].seq, found[-1].day)
    assert at[0] < 119, "there were duplicates"


@pytest.mark.postgres
async def test_what_is_told_of_payloads_that_lie_elsewhere_is_what_a_worker_would_read(driver: Driver) -> None:
    store = await driver.open()
    tenants, endpoints, versions = await furnished(store)
    ref = PayloadRef("events/1/02/abc", 7, 50_000, bytes(range(32)))
    owed = (endpoints[0],)
    events = [event(tenants[0], payload=payload, owed=to) for payload in (ref, b"{}") for to in (owed, ())]
    found = await append(store, 0, events, versions)
    assert await store.read({0: (0, 0)}, **ALL) == {0: found}
    assert [row.payload for row in found] == [ref, ref, b"{}", None]


async def test_several_who_append_are_told_places_that_do_not_overlap(driver: Driver) -> None:
    one, other = await driver.open(), await driver.open()
    tenant = await new_tenant(one)
    versions = await version(one, tenant)
    found: list[JournalRow] = []
    for n in range(6):
        found += await append((one, other)[n % 2], 0, [event(tenant) for _ in range(1 + n % 3)], versions)
    assert [row.seq for row in found] == list(range(1, 13))
    assert (await one.read({0: (0, 0)}, **ALL))[0] == found


async def test_where_nothing_is_new_there_is_no_place(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    first = event(tenant, key="k")
    assert len(await append(store, 0, [first], versions)) == 1
    assert await append(store, 0, [event(tenant, key="k"), first], versions) == []
    places: list[Place] = []
    assert isinstance(await store.append(0, [event(tenant)], {tenant: 77}, places.append), Stale)
    assert places == []


@pytest.mark.postgres
async def test_the_day_and_the_moment_of_a_place_are_those_of_its_rows(driver: Driver) -> None:
    """The day never goes back, though the clock does."""
    store = await driver.open()
    tenant = await new_tenant(store)
    versions = await version(store, tenant)
    await store.make_partitions(days_ahead=3)
    assert isinstance(driver, Postgres)
    [row] = await driver.run("select hookpost_today() as day")
    days, at = [], 0
    for offset, clock in ((0, "23:59:59.999999"), (1, "00:00:00.000001"), (0, "12:00")):
        await driver.set_clock(f"{row['day'] + timedelta(offset)} {clock}+00")
        found = await append(store, 0, [event(tenant), event(tenant)], versions)
        assert (await store.read({0: (at, 0)}, **ALL))[0] == found
        at = found[-1].seq
        days.append((date(2000, 1, 1) + timedelta(found[0].day) - row["day"]).days)
    assert days == [0, 1, 1]


async def test_who_does_not_ask_for_a_place_is_answered_the_same(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    one = event(tenant)
    assert await store.append(0, [one], await version(store, tenant)) == [Appended(Verdict.NEW, one.event_id, 1)]
