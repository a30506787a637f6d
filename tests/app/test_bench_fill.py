"""A filled store is one that Hookpost could have left behind; and what the benchmark of growth computes from figures."""

from __future__ import annotations

import random
from typing import Any

import asyncpg
import pytest

from hookpost.app.bench import fill
from hookpost.app.bench.growth import Assumptions, Cost, project
from hookpost.app.bench.load import PAYLOAD, number_of
from hookpost.app.bench.waiting import EVENT_TYPES, TenantsForms
from hookpost.engine.lanes import FROM_START, Lane
from hookpost.engine.work import Fetch, JournalRow
from hookpost.model import WaitReason
from hookpost.policy.keys import hash_secret, parse_key
from hookpost.policy.routing import Matcher, shard_for
from hookpost.storage.contract import Appended
from hookpost.storage.postgres.store import PostgresStore
from tests.storage.driver import SHARDS, event, new_endpoint, new_tenant, own, version

COUNT = 101
FAR = 2e9


@pytest.fixture
async def filling(database: str) -> Any:
    """A session that fills."""
    connection = await asyncpg.connect(database)
    await fill.begin(connection)
    yield connection
    await connection.close()


async def make_owed(
    store: PostgresStore, filling: Any, homes: tuple[int, ...] = (0, 1, 2), endpoints: int = 2
) -> fill.Owed:
    tenant_id = await new_tenant(store, homes)
    return await fill.owed_to(filling, tenant_id, [await new_endpoint(store, tenant_id) for _ in range(endpoints)])


async def read_all(store: PostgresStore, owned: int = SHARDS) -> dict[int, list[JournalRow]]:
    """What a new owner of all shards reads, from where the last one left them."""
    await own(store)
    takeovers = await store.takeovers(dict.fromkeys(range(owned), 1))
    positions = {t.shard: (t.read_to, t.read_day) for t in takeovers}
    return await store.read(positions, rows_max=1000, bytes_max=10_000_000)


# ---- the journal ----------------------------------------------------------------------------------------------------


async def test_a_filled_journal_is_gapless_and_each_event_lies_where_its_id_leads(
    store: PostgresStore, filling: Any
) -> None:
    owed = await make_owed(store, filling)
    await fill.journal(filling, owed, COUNT, first=7)
    rows = await read_all(store)
    assert {shard: [row.seq for row in found] for shard, found in rows.items()} == {
        0: list(range(1, 35)), 1: list(range(1, 35)), 2: list(range(1, 34)),
    }  # fmt: skip
    for shard, found in rows.items():
        assert all(shard_for(row.event_id, owed.shards, pinned=False) == shard for row in found)


async def test_payloads_carry_the_running_number_of_the_load(store: PostgresStore, filling: Any) -> None:
    await fill.journal(filling, await make_owed(store, filling), COUNT, first=7)
    payloads = [row.payload for found in (await read_all(store)).values() for row in found]
    assert sorted(payloads) == [PAYLOAD % number for number in range(7, 7 + COUNT)]
    assert number_of(b"\r\n\r\n" + payloads[0]) in range(7, 7 + COUNT)


async def test_every_event_has_an_id_of_its_own_and_the_endpoints_take_turns(
    store: PostgresStore, filling: Any
) -> None:
    owed = await make_owed(store, filling)
    await fill.journal(filling, owed, COUNT)
    rows = [row for found in (await read_all(store)).values() for row in found]
    assert len({row.event_id for row in rows}) == COUNT
    assert {row.event_id.version for row in rows} == {7}
    shares = [sum(row.owed == [endpoint] for row in rows) for endpoint in owed.endpoints]
    assert sum(shares) == COUNT and max(shares) - min(shares) <= len(owed.shards)


async def test_fills_and_appends_follow_each_other_without_a_gap(store: PostgresStore, filling: Any) -> None:
    owed = await make_owed(store, filling, homes=(2,))
    versions = await version(store, owed.tenant_id)
    for _ in range(2):
        assert isinstance(await store.append(2, [event(owed.tenant_id)], versions), list)
        await fill.journal(filling, owed, COUNT)
    assert [row.seq for row in (await read_all(store))[2]] == list(range(1, 2 * COUNT + 3))


async def test_an_event_that_is_appended_after_a_fill_is_new(store: PostgresStore, filling: Any) -> None:
    owed = await make_owed(store, filling, homes=(1,))
    await fill.finished(filling, owed, COUNT, days=3)
    answer = await store.append(1, [event(owed.tenant_id)], await version(store, owed.tenant_id))
    assert isinstance(answer, list) and isinstance(answer[0], Appended)
    assert [row.seq for row in (await read_all(store))[1]] == [COUNT + 1]


async def test_a_tenant_with_a_cap_below_its_spread_is_filled_into_its_first_shard(
    store: PostgresStore, filling: Any
) -> None:
    owed = await make_owed(store, filling, homes=(3, 0, 1))
    assert owed.shards == (3, 0, 1)
    assert (await fill.owed_to(filling, owed.tenant_id, owed.endpoints, endpoint_cap=2)).shards == (3,)


# ---- what was done and what waits -----------------------------------------------------------------------------------


async def test_a_new_owner_finds_filled_backlog_in_its_lanes_and_nothing_to_read(
    store: PostgresStore, filling: Any
) -> None:
    owed = await make_owed(store, filling)
    await fill.backlog(filling, owed, COUNT, reason=WaitReason.RETRY, due_in_s=-5.0)
    assert await read_all(store) == {}
    takeovers = await store.takeovers(dict.fromkeys(range(SHARDS), 1))
    assert sum(lane.count for takeover in takeovers for lane in takeover.lanes) == COUNT
    assert all(takeover.clean and not takeover.rows for takeover in takeovers)
    lane = takeovers[0].lanes[0]
    fetch = Fetch(Lane(0, None), 0, lane.endpoint_id, FROM_START, FAR, 64)  # type: ignore[arg-type]
    rows, more, _ = await store.fetch(fetch, bytes_max=1_000_000)
    assert len(rows) == lane.count and not more
    assert {(row.reason, row.retry_count, row.type) for row in rows} == {("retry", 1, "invoice.paid")}
    assert all(row.due_at == pytest.approx(row.created_at - 5.0) and len(row.payload or b"") == 500 for row in rows)


async def test_what_waits_for_a_paused_endpoint_was_not_tried(store: PostgresStore, filling: Any) -> None:
    owed = await make_owed(store, filling)
    await fill.backlog(filling, owed, COUNT, reason=WaitReason.PAUSED, due_in_s=0.0)
    found = await filling.fetch(
        "select distinct reason, retry_count, last_http_status, due_at = created_at from backlog"
    )
    assert [tuple(row) for row in found] == [("paused", 0, None, True)]


async def test_finished_events_lie_in_their_days_oldest_first_each_with_its_attempt(
    store: PostgresStore, filling: Any
) -> None:
    owed = await make_owed(store, filling)
    await fill.finished(filling, owed, COUNT, days=4)
    days = await filling.fetch(
        "select day, count(*) as events, bool_and((created_at at time zone 'utc')::date = day) as right from events"
        " group by day order by day"
    )
    assert [row["events"] for row in days] == [25, 25, 25, 26] and all(row["right"] for row in days)
    assert (days[-1]["day"] - days[0]["day"]).days == 3
    assert await filling.fetchval(
        "select count(*) from events e join attempts a using (day, shard, event_id, tenant_id)"
        " where a.position = e.seq and array[a.endpoint_id] = e.owed and a.outcome = 'delivered'"
    ) == COUNT  # fmt: skip
    assert not await filling.fetch(
        "select 1 from (select day, lag(day) over (partition by shard order by seq) as before from events) d where day < before"
    )
    assert await read_all(store) == {}


async def test_a_fill_ends_with_statistics_of_the_partitions_that_hold_rows(store: PostgresStore, filling: Any) -> None:
    owed = await make_owed(store, filling)
    await fill.finished(filling, owed, COUNT, days=2)
    await fill.finish(filling)
    estimates = await filling.fetch("select relname, reltuples from pg_class where relname ~ '^attempts_\\d+$'")
    assert sorted(row["reltuples"] for row in estimates if row["reltuples"] > 0) == [50, 51]
    assert await filling.fetchval("show synchronous_commit") == "on"


async def test_events_that_nobody_has_read_are_not_passed_over(store: PostgresStore, filling: Any) -> None:
    owed = await make_owed(store, filling)
    await fill.journal(filling, owed, COUNT)
    for refused in (
        fill.finished(filling, owed, COUNT, days=1),
        fill.backlog(filling, owed, COUNT, reason=WaitReason.RETRY, due_in_s=0.0),
        fill.backlog_of_all(filling, reason=WaitReason.RETRY, due_in_s=0.0),
    ):
        with pytest.raises(fill.EventsLeft, match="fill the journal last"):
            await refused
    assert sum(map(len, (await read_all(store)).values())) == COUNT


async def test_a_database_whose_shards_are_owned_is_not_filled(store: PostgresStore, database: str) -> None:
    await own(store)
    connection = await asyncpg.connect(database)
    with pytest.raises(fill.ShardsOwned, match="stop them"):
        await fill.begin(connection)
    await connection.close()


# ---- tenants --------------------------------------------------------------------------------------------------------


async def make_tenants(filling: Any) -> list[fill.FilledTenant]:
    return await fill.tenants(
        filling, tenants=6, endpoints=20, urls=["http://127.1.0.1:1", "http://127.1.0.2:2"], secret=b"k" * 30,
        types=EVENT_TYPES,
    )  # fmt: skip


async def test_filled_tenants_have_homes_routes_keys_and_secrets(store: PostgresStore, filling: Any) -> None:
    made = await make_tenants(filling)
    assert sum(len(tenant.endpoints) for tenant in made) == 20
    assert [tenant.shard for tenant in made] == [0, 1, 2, 3, 0, 1]
    for tenant in made:
        routes = await store.load_routes(tenant.tenant_id)
        assert routes is not None and routes.home_shards == (tenant.shard,)
        matcher = Matcher((endpoint.endpoint_id, endpoint.events) for endpoint in routes.endpoints)
        assert [matcher.match(type_) for type_ in EVENT_TYPES[:3]] == [(e,) for e in tenant.endpoints[:3]]
        parsed = parse_key(tenant.key)
        assert parsed is not None
        stored = await store.find_key(parsed.key_id)
        assert stored is not None and stored.key_hash == hash_secret(parsed.secret)
    loaded = await store.load_endpoints([e for tenant in made for e in tenant.endpoints])
    assert {endpoint.secrets[0].key for endpoint in loaded} == {b"k" * 30}
    assert {endpoint.url.rpartition("/")[0] for endpoint in loaded} == {"http://127.1.0.1:1", "http://127.1.0.2:2"}


async def test_every_filled_endpoint_can_have_an_event_that_waits(store: PostgresStore, filling: Any) -> None:
    made = await make_tenants(filling)
    owed = await make_owed(store, filling)
    await fill.finished(filling, owed, COUNT, days=1)
    await fill.backlog_of_all(filling, reason=WaitReason.RETRY, due_in_s=60.0, first=5)
    assert await read_all(store) == {}
    takeovers = await store.takeovers(dict.fromkeys(range(SHARDS), 1))
    lanes = {lane.endpoint_id: takeover.shard for takeover in takeovers for lane in takeover.lanes}
    assert lanes == {endpoint: tenant.shard for tenant in made for endpoint in tenant.endpoints}
    payloads = await filling.fetch(
        "select payload from events e join backlog b on (e.shard, e.seq) = (b.shard, b.position)"
    )
    assert sorted(row["payload"] for row in payloads) == [PAYLOAD % number for number in range(5, 25)]
    gaps = "select 1 from events group by shard having max(seq) <> count(*)"
    assert not await filling.fetch(gaps)


async def test_requests_go_to_every_endpoint_of_every_tenant_once_and_keep_their_length(filling: Any) -> None:
    made = await make_tenants(filling)
    form = b"POST / HTTP/1.1\r\nauthorization: Bearer " + made[0].key.encode() + b'\r\n\r\n{"type":"invoice.paid"}'
    forms = TenantsForms(form, made[0].key, made, order=random.Random(1))
    found = [forms[index] for index in range(len(forms))]
    assert len(set(found)) == len(found) == len(made) * len(EVENT_TYPES)
    assert {len(request) for request in found} == {len(form)}


# ---- what it means --------------------------------------------------------------------------------------------------


def test_a_projection_scales_the_cost_of_one_delivery() -> None:
    cost = Cost(api_us=30, worker_us=50, postgres_us=20, wal_bytes=1500, kept_bytes=1000)
    assumed = Assumptions(core_used_max=0.5, days_kept=30, core_hour_usd=0.05, gb_month_usd=0.1)
    projected = project(cost, average_per_s=10_000, peak_per_s=50_000, assumptions=assumed)
    assert projected.cores_average == pytest.approx(2.0)
    assert projected.cores_peak == pytest.approx(10.0)
    assert projected.gb_per_day == pytest.approx(864.0)
    assert projected.gb_kept == pytest.approx(25_920.0)
    assert projected.wal_mb_per_s_average == pytest.approx(15.0)
    assert projected.wal_mb_per_s_peak == pytest.approx(75.0)
    assert projected.usd_per_month == pytest.approx(10 * 730 * 0.05 + 25_920 * 0.1)
