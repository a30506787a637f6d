"""The engine by hand: its main behaviours as examples, and each bug that was found in it, as small as it can be."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any
from uuid import UUID

import pytest
from msgspec import structs

from hookpost.engine import roster, timers
from hookpost.engine.backlog import FETCH_GRID_S, FETCH_MAX
from hookpost.engine.engine import Engine
from hookpost.engine.limits import Limits, Policies
from hookpost.engine.progress import GapError
from hookpost.engine.roster import IDLE_LOOK_S, IDLE_S
from hookpost.engine.spill import STUCK_S
from hookpost.engine.work import (
    BacklogRow,
    Fetch,
    JournalRow,
    Kind,
    LaneSummary,
    Settle,
    ShardSettle,
    Takeover,
    Wanted,
    Work,
)
from hookpost.model import Endpoint, EndpointStatus, ErrorCode, OnDead, Outcome, RetryPolicy, Tenant
from tests.engine.model import NEVER, column

NOW = 1_800_000_000.0
TENANT, OTHER_TENANT = UUID(int=0x10), UUID(int=0x20)
E1, E2, E3 = UUID(int=0x11), UUID(int=0x12), UUID(int=0x13)
OK = Outcome(None, 200)
BROKEN = Outcome(ErrorCode.HTTP_5XX, 500)
GONE = Outcome(ErrorCode.HTTP_410, 410)
REFUSED = Outcome(ErrorCode.HTTP_4XX, 400)


def busy(retry_after: bytes) -> Outcome:
    return Outcome(ErrorCode.HTTP_5XX, 503, retry_after=retry_after)


class Bench:
    """One engine on a bench: shards open, endpoints configured, each step a call."""

    def __init__(
        self,
        *endpoints: Endpoint,
        shards: tuple[int, ...] = (0,),
        limits: Limits | None = None,
        takeovers: tuple[Takeover, ...] = (),
        tenant_cap: int = 512,
        policies: Policies | None = None,
    ) -> None:
        self.now = NOW
        self.engine = Engine(worker="w", limits=limits or Limits(), rng=Random(1), policies=policies)
        self.seqs = dict.fromkeys(shards, 0)
        self.endpoints = {endpoint.endpoint_id: endpoint for endpoint in endpoints or (endpoint(),)}
        self.tenants = [Tenant(tenant_id, (0,), tenant_cap) for tenant_id in (TENANT, OTHER_TENANT)]
        self.attempts = 0
        for shard in shards:
            self.engine.open_shard(next((t for t in takeovers if t.shard == shard), Takeover(shard, 1)), now=self.now)
        self.configure()

    def configure(self, *endpoints: Endpoint) -> None:
        self.endpoints.update({endpoint.endpoint_id: endpoint for endpoint in endpoints})
        self.engine.configure(self.tenants, self.endpoints.values(), now=self.now)

    def post(
        self, *owed: UUID, shard: int = 0, count: int = 1, payload: bytes | None = b"{}", tenant: UUID = TENANT
    ) -> None:
        rows = []
        for _ in range(count):
            self.seqs[shard] += 1
            rows.append(row(self.seqs[shard], owed or (E1,), shard=shard, payload=payload, tenant=tenant, at=self.now))
        self.engine.on_rows(shard, rows, now=self.now)
        if self.engine.missing:
            self.configure()

    def sends(self, limit: int = 1000) -> list[Work]:
        works = self.engine.take_sends(limit, now=self.now)
        for work in works:
            self.attempts += 1
            work.attempt_id = UUID(int=self.attempts)
        return works

    def end(self, work: Work, outcome: Outcome) -> None:
        moment = structs.replace(outcome, started_at=self.now, finished_at=self.now)
        self.engine.on_outcome(work, moment, now=self.now)

    def take(self) -> Settle:
        settle = self.engine.take_settle(now=self.now)
        assert settle is not None
        return settle

    def settle(self, shard: int = 0) -> ShardSettle:
        settle = self.take()
        self.engine.on_settled(settle, now=self.now)
        return next(part for part in settle.shards if part.shard == shard)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.engine.tick(now=self.now)

    def fetches(self) -> list[Fetch]:
        return self.engine.take_fetches(now=self.now)

    def answer(self, fetch: Fetch, *rows: BacklogRow, more: bool = False, behind: float = NEVER) -> None:
        self.engine.on_backlog(fetch, rows, more=more, behind=behind, now=self.now)


def wakeup(bench: Bench) -> float:
    """When the engine wants to be called again."""
    moment = bench.engine.next_wakeup()
    assert moment is not None
    return moment


def endpoint(endpoint_id: UUID = E1, *, cap: int = 64, tenant: UUID = TENANT, **changes: object) -> Endpoint:
    made = Endpoint(endpoint_id, tenant, "https://receiver.example/", max_in_flight=cap)
    return replace(made, **changes)  # type: ignore[arg-type]


def row(
    seq: int,
    owed: tuple[UUID, ...] = (E1,),
    *,
    shard: int = 0,
    kind: int = Kind.DELIVER,
    payload: bytes | None = b"{}",
    tenant: UUID = TENANT,
    at: float = NOW,
) -> JournalRow:
    event_id = UUID(int=0x1000 * (shard + 1) + seq)
    return JournalRow(shard, seq, 9000, kind, event_id, tenant, "order.paid", payload, list(owed), 0, at)


def stored(
    position: int,
    *,
    due_at: float = NOW,
    retry_count: int = 0,
    deadline: float = NOW + 1000,
    created_at: float = NOW,
    payload: bytes | None = b"{}",
    stored_at: float = NOW,
    event_id: UUID | None = None,
) -> BacklogRow:
    event_id = event_id or UUID(int=0x1000 + position)
    return BacklogRow(
        position,
        9000,
        event_id,
        "order.paid",
        payload,
        0,
        "retry",
        due_at,
        retry_count,
        deadline,
        created_at,
        stored_at,
    )


def backlog(count: int, *, next_due: float = NOW, next_deadline: float = NOW + 1000, clean: bool = True) -> Takeover:
    """A shard whose last owner left ``count`` deliveries to E1 in the backlog and nothing open."""
    lane = LaneSummary(E1, TENANT, count, next_due, next_deadline)
    return Takeover(0, 2, settle_no=7, read_to=100, read_day=9000, lanes=(lane,), clean=clean)


# ---- examples -----------------------------------------------------------------------------------------------------


def test_a_first_time_delivery_costs_one_attempt_row_and_no_backlog_row() -> None:
    bench = Bench()
    bench.post()
    [work] = bench.sends()
    bench.end(work, OK)
    part = bench.settle()
    [attempt] = part.attempts
    assert column(attempt, "outcome") == "delivered"
    assert (part.upserts, part.deletes, part.dead) == ({}, [], [])
    assert (part.progress.cursor, part.progress.read_to, part.progress.open) == (1, 1, ())


def test_the_cursor_stays_before_an_open_entry_and_names_the_endpoints_that_are_done() -> None:
    bench = Bench(endpoint(E1), endpoint(E2))
    bench.post(E1, E2)
    bench.post(E1)
    first, second, third = sorted(bench.sends(), key=lambda work: (work.entry.seq, work.lane.endpoint.endpoint_id))
    bench.end(first, OK)
    bench.end(third, OK)
    progress = bench.settle().progress
    assert (progress.cursor, progress.read_to, progress.open, progress.partial) == (0, 2, ((1, 2),), ((1, (E1,)),))
    bench.end(second, OK)
    assert bench.settle().progress.cursor == 2


def test_a_failed_delivery_waits_in_the_backlog_and_is_sent_again_when_due() -> None:
    bench = Bench()
    bench.post()
    [work] = bench.sends()
    bench.end(work, BROKEN)
    part = bench.settle()
    [change] = part.upserts.values()
    assert (change.reason, change.retry_count) == ("retry", 1)
    assert NOW + 2.5 <= change.due_at <= NOW + 5
    assert part.progress.cursor == 1
    assert change.due_at <= wakeup(bench) <= change.due_at + FETCH_GRID_S
    bench.wait(5)
    [fetch] = bench.fetches()
    bench.answer(fetch, stored(1, due_at=change.due_at, retry_count=1))
    [again] = bench.sends()
    bench.end(again, OK)
    assert bench.settle().deletes == [(E1, 1)]


def test_a_refused_delivery_is_dead_after_one_attempt() -> None:
    bench = Bench()
    bench.post()
    [work] = bench.sends()
    bench.end(work, REFUSED)
    [letter] = bench.settle().dead
    assert (letter.reason, letter.attempt_count, letter.last_http_status) == ("http_4xx", 1, 400)


def test_a_410_asks_to_disable_the_endpoint() -> None:
    bench = Bench()
    bench.post()
    [work] = bench.sends()
    bench.end(work, GONE)
    assert [(gone.tenant_id, gone.endpoint_id) for gone in bench.engine.take_gone()] == [(TENANT, E1)]
    assert bench.engine.take_gone() == []


@pytest.mark.parametrize(
    ("shut", "reason"),
    [
        ({"status": EndpointStatus.PAUSED}, "paused"),
        ({"status": EndpointStatus.DISABLED}, "disabled"),
        ({"locked": True}, "secret_locked"),
    ],
)
def test_events_for_a_closed_endpoint_are_parked_and_go_out_when_it_opens(shut: dict[str, Any], reason: str) -> None:
    bench = Bench(endpoint(**shut))
    bench.post()
    bench.post()
    assert bench.sends() == []
    part = bench.settle()
    assert {change.reason for change in part.upserts.values()} == {reason}
    assert part.progress.cursor == 2
    bench.wait(60)
    assert bench.fetches() == []
    bench.configure(endpoint())
    [fetch] = bench.fetches()
    bench.answer(fetch, stored(1), stored(2))
    assert len(bench.sends()) == 2


def test_when_a_gate_closes_each_settle_takes_a_part_to_the_backlog_the_oldest_first() -> None:
    """A hundred thousand may wait behind it: in one settle they would hold up everybody's."""
    bench = Bench(endpoint(cap=1), limits=Limits(parked=3))
    bench.post(count=9)
    [first] = bench.sends()
    bench.end(first, busy(b"60"))
    assert bench.sends() == []
    parked = [{seq for _, seq in bench.settle().upserts} for _ in range(3) if bench.sends() == []]
    assert parked == [{1, 2, 3, 4}, {5, 6, 7}, {8, 9}], "with the one that failed"
    assert bench.engine.buffered == 0
    assert not bench.engine.unsettled


def test_what_was_not_parked_yet_when_the_gate_opens_is_sent_from_memory() -> None:
    bench = Bench(endpoint(cap=2), limits=Limits(parked=3))
    bench.post(count=9)
    bench.configure(endpoint(cap=2, status=EndpointStatus.PAUSED))
    assert bench.sends() == []
    assert {seq for _, seq in bench.settle().upserts} == {1, 2, 3}
    bench.configure(endpoint(cap=2))
    assert [work.entry.seq for work in bench.sends()] == [4, 5]
    assert not bench.engine.unsettled


def test_an_ordered_lane_keeps_its_order_while_it_is_parked_in_parts() -> None:
    bench = Bench(endpoint(ordered=True), limits=Limits(parked=2))
    bench.post(count=5)
    bench.configure(endpoint(ordered=True, status=EndpointStatus.PAUSED))
    assert bench.sends() == []
    assert {seq for _, seq in bench.settle().upserts} == {1, 2}
    bench.configure(endpoint(ordered=True))
    assert bench.sends() == [], "the first is in the backlog"
    [fetch] = bench.fetches()
    bench.answer(fetch, stored(1), stored(2))
    sent = []
    while works := bench.sends():
        [work] = works
        sent.append(work.entry.seq)
        bench.end(work, OK)
        bench.settle()
    assert sent == [1, 2, 3, 4, 5]


def test_a_delivery_that_waits_for_a_paused_endpoint_dies_at_its_deadline() -> None:
    bench = Bench(endpoint(status=EndpointStatus.PAUSED, retry=RetryPolicy(deadline_s=100)))
    bench.post()
    assert bench.sends() == []
    bench.settle()
    assert bench.engine.next_wakeup() == NOW + 100
    bench.wait(100)
    [fetch] = bench.fetches()
    assert fetch.wanted is Wanted.EXPIRED
    bench.answer(fetch, stored(1, deadline=NOW + 100))
    [letter] = bench.settle().dead
    assert (letter.reason, letter.attempt_count) == ("deadline", 0)


def test_full_memory_spills_the_newest_and_no_more_than_it_must() -> None:
    bench = Bench(endpoint(E1, cap=1), endpoint(E2, cap=1), limits=Limits(buffer=13))
    bench.post(E1, count=9)
    bench.post(E2, count=2)
    assert len(bench.sends()) == 2
    assert bench.engine.buffered == 9
    bench.post(E1, count=4)
    assert bench.engine.room() == (0, 0)
    assert bench.sends() == []
    upserts = bench.settle().upserts
    assert {endpoint_id for endpoint_id, _ in upserts} == {E1}
    assert {seq for _, seq in upserts} == {12, 13, 14, 15}
    assert {change.reason for change in upserts.values()} == {"in_flight_cap"}
    assert bench.engine.room()[0] == 4


def test_a_tenant_that_fills_the_memory_gives_way_though_its_deliveries_could_start() -> None:
    """Whose rows come next in the journal is not known: reading must go on."""
    e3 = UUID(int=0x21)
    bench = Bench(endpoint(E1), endpoint(E2), endpoint(e3, tenant=OTHER_TENANT), limits=Limits(buffer=20))
    bench.post(e3, count=8, tenant=OTHER_TENANT)
    for each in (E1, E2):
        bench.post(each, count=7)
    assert bench.engine.room() == (0, 0)
    upserts = bench.settle().upserts
    assert {endpoint_id for endpoint_id, _ in upserts} == {E1, E2}, "not of the longest lane, but of who holds most"
    assert bench.engine.room()[0] >= 5


def test_a_tenant_kept_out_while_places_were_scarce_gets_those_that_others_leave() -> None:
    """Found by a world of the simulator: it waited until a request of its own ended, with places free."""
    e3 = UUID(int=0x21)
    bench = Bench(endpoint(E1), endpoint(e3, tenant=OTHER_TENANT), limits=Limits(in_flight=8))
    bench.post(e3, count=4, tenant=OTHER_TENANT)
    others = bench.sends()
    bench.post(E1, count=10)
    assert (len(others), len(bench.sends())) == (4, 2)
    bench.end(others[0], OK)
    assert bench.sends() == [], "still scarce, and it has its share"
    for work in others[1:3]:
        bench.end(work, OK)
    assert len(bench.sends()) == 1, "no longer scarce"
    bench.end(others[3], OK)
    assert len(bench.sends()) == 1, "nobody to share with but who comes next"


def test_nobody_gives_way_while_nobody_else_waits() -> None:
    """To the backlog and back is two writes for each delivery, and a single tenant's burst would pay them for nothing."""
    bench = Bench(endpoint(E1), endpoint(E2), limits=Limits(buffer=20))
    assert bench.engine.holders(now=bench.now) is None, "there is room"
    bench.post(E1, count=11)
    bench.post(E2, count=9)
    assert set(bench.engine.holders(now=bench.now) or ()) == {E1, E2}
    bench.engine.nobody_else(until=bench.now + 1)
    assert bench.settle().upserts == {}
    bench.wait(1)
    bench.engine.touch(0)
    assert bench.settle().upserts, "it was true for a second"


def test_who_has_little_in_memory_does_not_hold_it() -> None:
    bench = Bench(endpoint(E1), endpoint(E2), limits=Limits(buffer=20))
    bench.post(E1, count=18)
    bench.post(E2, count=2)
    assert bench.engine.holders(now=bench.now) == [E1]


def test_of_a_tenant_whose_receivers_are_slow_some_stay_in_memory_however_much_room_there_is() -> None:
    """In the backlog what waits for them is seen to expire, and a burst of somebody else's finds room."""
    e3 = UUID(int=0x21)
    bench = Bench(endpoint(E1, cap=1), endpoint(e3, tenant=OTHER_TENANT), limits=Limits(buffer=200))
    bench.post(E1, count=60)
    bench.post(e3, count=50, tenant=OTHER_TENANT)
    slow, *quick = bench.sends()
    assert slow.entry.tenant_id == TENANT
    put_away: set[int] = set()
    for _ in range(10):
        bench.wait(STUCK_S / 4)
        for work in quick[:4]:
            bench.end(work, OK)
        del quick[:4]
        bench.engine.touch(0)
        put_away |= {seq for _, seq in bench.settle().upserts}
    assert put_away == set(range(32, 61)), "the newest, down to 0.15 of what there is room for"
    assert bench.engine.buffered == 30


def test_a_tenant_whose_burst_is_turned_over_keeps_it_in_memory() -> None:
    bench = Bench(endpoint(E1, cap=2), limits=Limits(buffer=200))
    bench.post(E1, count=60)
    for _ in range(20):
        for work in bench.sends():
            bench.end(work, OK)
        bench.wait(STUCK_S / 4)
        assert not bench.settle().upserts


def test_memory_that_is_not_turned_over_is_emptied_whoever_waits() -> None:
    """Its receivers are slow: in the backlog what waits for them is seen to expire."""
    bench = Bench(endpoint(E1, cap=1), limits=Limits(buffer=20))
    bench.post(E1, count=20)
    assert bench.engine.holders(now=bench.now) == [E1], "not known yet"
    bench.engine.nobody_else(until=bench.now + 1.5)
    bench.sends()
    bench.wait(1)
    assert bench.engine.holders(now=bench.now) == [E1]
    for _ in range(3):
        bench.wait(STUCK_S / 2)
        bench.engine.holders(now=bench.now)
    assert bench.engine.holders(now=bench.now) is None


def test_a_new_owner_takes_exactly_what_is_open() -> None:
    rows = (row(3, (E1, E2)), row(5))
    takeover = Takeover(0, 9, settle_no=4, read_to=6, read_day=9000, rows=rows, done={3: (E1,)}, clean=True)
    bench = Bench(endpoint(E1), endpoint(E2), takeovers=(takeover,))
    works = bench.sends()
    assert {(work.entry.seq, work.lane.endpoint.endpoint_id) for work in works} == {(3, E2), (5, E1)}
    assert not any(work.possible_duplicate for work in works)
    bench.seqs[0] = 6
    bench.post()
    assert [work.entry.seq for work in bench.sends()] == [7]
    part = bench.settle()
    assert (part.settle_no, part.fence, part.progress.cursor) == (5, 9, 2)
    assert part.progress.open == ((3, 4), (5, 6), (7, 8))


def test_after_a_gap_nothing_is_read_and_nothing_skipped() -> None:
    bench = Bench()
    with pytest.raises(GapError):
        bench.engine.on_rows(0, [row(1), row(3)], now=NOW)
    assert bench.engine.read_to(0) == (1, 9000)
    bench.engine.on_rows(0, [row(2), row(3)], now=NOW)
    bench.configure()
    assert [work.entry.seq for work in bench.sends()] == [1, 2, 3]


def test_one_tenants_flood_and_anothers_few_take_turns() -> None:
    other = endpoint(E2, tenant=OTHER_TENANT)
    bench = Bench(endpoint(E1), other)
    bench.post(E1, count=20)
    bench.post(E2, count=3, tenant=OTHER_TENANT)
    order = [work.entry.tenant_id for work in bench.sends(8)]
    assert order == [TENANT, OTHER_TENANT] * 3 + [TENANT] * 2


def test_endpoints_of_a_tenant_take_turns() -> None:
    bench = Bench(endpoint(E1), endpoint(E2))
    bench.post(E1, count=5)
    bench.post(E2, count=5)
    order = [work.lane.endpoint.endpoint_id for work in bench.sends(6)]
    assert order == [E1, E2] * 3


@pytest.mark.parametrize("cap", [1, 64])
def test_the_shard_that_has_fallen_behind_goes_first(cap: int) -> None:
    """With equal turns what was accepted seconds ago waits beside what was accepted just now."""
    bench = Bench(endpoint(cap=cap), endpoint(E2), shards=(0, 1))
    bench.tenants = [Tenant(TENANT, (0, 1))]
    bench.configure()
    bench.post(shard=0, count=1)
    bench.wait(1.0)
    bench.post(shard=1, count=1)
    bench.wait(1.0)
    bench.post(shard=1, count=2)
    bench.wait(1.0)
    bench.post(shard=0, count=3)
    bench.post(shard=1, count=1)
    order = []
    for _ in range(8):
        [work] = bench.sends(1)
        order.append(work.entry.shard)
        bench.end(work, OK)
    assert order == [0, 1, 1, 1, 0, 1, 0, 0]


def test_one_that_is_behind_leaves_other_endpoints_their_turns() -> None:
    bench = Bench(endpoint(E1), endpoint(E2), shards=(0, 1))
    bench.tenants = [Tenant(TENANT, (0, 1))]
    bench.configure()
    bench.post(E1, shard=0, count=5)
    bench.wait(1.0)
    bench.post(E1, shard=1, count=1)
    bench.post(E2, count=2)
    order = [(work.entry.shard, work.lane.endpoint.endpoint_id) for work in bench.sends(6)]
    assert order == [(0, E1), (0, E1), (0, E2), (0, E1), (0, E1), (0, E2)]


def test_endpoints_with_deliveries_in_many_shards_are_served_as_they_came() -> None:
    """Each of them has as many turns as it has shards with something to do: with one turn for all of it, what it was
    owed in the meantime would wait for a round over all endpoints each."""
    bench = Bench(endpoint(E1), endpoint(E2), shards=(0, 1, 2))
    bench.tenants = [Tenant(TENANT, (0, 1, 2))]
    bench.configure()
    for shard in (0, 1, 2):
        bench.post(E1, shard=shard)
    bench.post(E2)
    assert [work.lane.endpoint.endpoint_id for work in bench.sends(4)] == [E1, E1, E1, E2]


def test_a_place_of_the_endpoint_goes_to_the_lane_that_waited() -> None:
    bench = Bench(endpoint(cap=1), shards=(0, 1))
    bench.tenants = [Tenant(TENANT, (0, 1))]
    bench.configure()
    bench.post(shard=0, count=2)
    bench.post(shard=1, count=2)
    order = []
    for _ in range(4):
        [work] = bench.sends()
        assert bench.sends() == []
        order.append(work.entry.shard)
        bench.end(work, OK)
    assert order == [0, 1, 0, 1]


def test_retry_after_holds_the_whole_endpoint() -> None:
    bench = Bench()
    bench.post(count=2)
    [first, second] = bench.sends()
    bench.end(first, busy(b"7"))
    bench.end(second, OK)
    bench.post()
    assert bench.sends() == []
    bench.wait(6.9)
    assert bench.sends() == []
    bench.wait(0.1)
    assert [work.entry.seq for work in bench.sends()] == [3]


def test_an_outcome_of_a_lost_shard_is_dropped() -> None:
    bench = Bench()
    bench.post()
    [work] = bench.sends()
    bench.engine.close_shard(0)
    bench.end(work, OK)
    assert bench.engine.take_settle(now=bench.now) is None
    assert (bench.engine.in_flight, bench.engine.in_flight_bytes, bench.engine.buffered) == (0, 0, 0)


def test_a_drained_shard_sends_nothing_and_is_clean_when_the_last_request_ended() -> None:
    bench = Bench()
    bench.post(count=2)
    [work] = bench.sends(1)
    bench.engine.drain_shard(0)
    assert not bench.settle().clean
    assert bench.sends() == []
    bench.end(work, OK)
    part = bench.settle()
    assert part.clean
    assert part.progress.open == ((2, 3),)


def test_a_deleted_endpoint_cancels_what_is_owed_to_it() -> None:
    bench = Bench(endpoint(E1, cap=1), endpoint(E2))
    bench.post(E1, E2, count=2)
    bench.sends()
    bench.configure(endpoint(E1, deleted=True))
    part = bench.settle()
    assert part.dropped_lanes == [E1]
    assert part.progress.partial == ((2, (E1,)),)


def test_a_replay_takes_the_dead_letter_away() -> None:
    bench = Bench()
    bench.engine.on_rows(0, [row(1, kind=Kind.REPLAY)], now=NOW)
    bench.configure()
    assert bench.settle().revived == [(UUID(int=0x1001), E1)]
    assert len(bench.sends()) == 1


def test_a_control_entry_only_moves_the_reader() -> None:
    bench = Bench()
    bench.engine.on_rows(0, [row(1, (), kind=Kind.CONTROL)], now=NOW)
    assert bench.settle().progress.cursor == 1
    assert bench.sends() == []


# ---- bugs that were found -----------------------------------------------------------------------------------------


def test_a_row_stored_while_an_earlier_one_is_fetched_is_not_forgotten() -> None:
    """Its due time was dropped with the fetch, and the fetch could not see it, as it was not committed."""
    bench = Bench(takeovers=(backlog(1, next_due=NOW + 10),))
    bench.seqs[0] = 100
    bench.post()
    [work] = bench.sends()
    bench.wait(9.999)
    bench.end(work, BROKEN)
    settle = bench.take()
    bench.wait(0.001)
    [fetch] = bench.fetches()
    bench.answer(fetch, stored(1, due_at=NOW + 10))
    bench.engine.on_settled(settle, now=bench.now)
    [due_at] = [change.due_at for part in settle.shards for change in part.upserts.values()]
    assert due_at <= wakeup(bench) <= due_at + FETCH_GRID_S
    bench.wait(5)
    assert len(bench.fetches()) == 1


def test_the_last_rows_are_fetched_though_others_are_delivered_and_not_committed_yet() -> None:
    """What was finished and not committed was taken for rows in memory, so the rest was not seen to be outside."""
    bench = Bench(endpoint(cap=1), takeovers=(backlog(FETCH_MAX + 1),))
    [fetch] = bench.fetches()
    bench.answer(fetch, *(stored(position) for position in range(1, FETCH_MAX + 1)), more=True)
    asked = []
    for _ in range(FETCH_MAX):
        [work] = bench.sends()
        bench.end(work, OK)
        asked += bench.fetches()
    assert len(asked) == 1


def test_a_lane_waits_no_longer_when_the_place_it_waits_for_was_not_used() -> None:
    """The lane that was woken had nothing but an event without payload: nobody woke the next."""
    bench = Bench(endpoint(cap=1), shards=(0, 1, 2))
    bench.post(shard=0)
    [work] = bench.sends()
    bench.post(shard=1, payload=None)
    bench.post(shard=2)
    assert bench.sends() == []
    bench.end(work, OK)
    assert [work.entry.shard for work in bench.sends()] == [2]
    assert [letter.reason for letter in bench.settle(1).dead] == ["payload_missing"]


def test_all_lanes_that_wait_for_a_place_hear_that_their_endpoint_is_held() -> None:
    """Only the first was woken and parked; the others waited for a place that nobody was going to give back."""
    bench = Bench(endpoint(cap=1), shards=(0, 1, 2))
    bench.post(shard=0)
    [work] = bench.sends()
    bench.post(shard=1)
    bench.post(shard=2)
    assert bench.sends() == []
    bench.end(work, busy(b"60"))
    assert bench.sends() == []
    parked = {part.shard for part in bench.take().shards if part.upserts}
    assert parked == {0, 1, 2}


def test_a_row_stored_at_the_very_instant_of_a_fetch_lies_behind_it() -> None:
    """Both at one microsecond, the row's position before the last one fetched: the keyset would pass it by."""
    bench = Bench(takeovers=(backlog(1, next_due=NOW),))
    [fetch] = bench.fetches()
    bench.configure(endpoint(status=EndpointStatus.PAUSED))
    bench.seqs[0] = 100
    bench.post()
    [change] = bench.settle().upserts.values()
    assert round(change.due_at * 1e6) > round(fetch.until * 1e6)


@pytest.mark.parametrize("fraction", [0.0, 0.3e-6, 0.49e-6, 0.51e-6, 0.7e-6])
def test_no_fetch_reaches_a_row_that_is_not_committed_whatever_the_rounding(fraction: float) -> None:
    for offset in range(200):
        bench = Bench(takeovers=(backlog(2, next_due=NOW),))
        bench.now = NOW + 1 + offset * 1.37e-5 + fraction
        bench.configure(endpoint(status=EndpointStatus.PAUSED))
        bench.seqs[0] = 100
        bench.post()
        [change] = bench.take().shards[0].upserts.values()
        bench.configure(endpoint())
        bench.now += 1
        [fetch] = bench.fetches()
        assert round(fetch.until * 1e6) < round(change.due_at * 1e6)


def test_timers_that_were_overtaken_do_not_pile_up() -> None:
    """A lane that waits for a far moment left a timer there each time that something nearer came between."""
    bench = Bench(endpoint(retry=RetryPolicy(base_s=5, cap_s=5)), takeovers=(backlog(1, next_due=NOW + 10_000),))
    bench.seqs[0] = 100
    for _ in range(1500):
        bench.post()
        [work] = bench.sends()
        bench.end(work, BROKEN)
        bench.settle()
        bench.wait(5)
        [fetch] = bench.fetches()
        bench.answer(fetch, stored(bench.seqs[0], due_at=bench.now, retry_count=1), behind=NOW + 10_000)
        [work] = bench.sends()
        bench.end(work, OK)
        bench.settle()
    assert len(bench.engine._timers._timers) <= timers.TIMERS_SWEPT_AT
    assert bench.engine.next_wakeup() == NOW + 10_000


def test_an_endpoint_configured_before_its_tenant_gets_its_share_when_the_tenant_comes() -> None:
    """The worker's refresh brings endpoints first; their share stayed 0 and nothing was ever sent."""
    bench = Bench()
    bench.engine.configure((), [endpoint(E2)], now=NOW)
    engine = Engine(worker="w", limits=Limits(), rng=Random(1))
    engine.open_shard(Takeover(0, 1), now=NOW)
    engine.on_rows(0, [row(1)], now=NOW)
    engine.configure((), [endpoint()], now=NOW)
    engine.configure([Tenant(TENANT, (0,))], (), now=NOW)
    assert len(engine.take_sends(10, now=NOW)) == 1


def test_a_tenants_new_spread_changes_the_shares_of_its_endpoints() -> None:
    bench = Bench(endpoint(cap=8))
    bench.post(count=9)
    bench.tenants = [Tenant(TENANT, (0, 1))]
    bench.engine.configure(bench.tenants, (), now=NOW)
    assert len(bench.sends()) == 4


def test_a_shard_taken_over_with_rows_of_an_endpoint_known_to_be_deleted_drops_them() -> None:
    """Nobody told the new lane, as the configuration had been loaded for another shard's lane long ago."""
    bench = Bench(shards=(1,))
    bench.seqs[1] = 0
    bench.post(shard=1)
    bench.configure(endpoint(deleted=True))
    bench.engine.open_shard(backlog(3), now=NOW)
    assert bench.settle(0).dropped_lanes == [E1]


def test_a_short_hold_lets_nothing_expire() -> None:
    """Wanted while open, asked for when held: the fetch turned into one for expired rows and buried them."""
    bench = Bench(takeovers=(backlog(1, next_due=NOW, next_deadline=NOW - 1),))
    bench.seqs[0] = 100
    bench.post()
    [work] = bench.sends()
    bench.end(work, busy(b"3"))
    assert bench.fetches() == []
    bench.wait(3)
    [fetch] = bench.fetches()
    assert fetch.wanted is not Wanted.EXPIRED


def test_a_hold_of_years_does_not_keep_deliveries_beyond_their_deadline() -> None:
    bench = Bench(endpoint(retry=RetryPolicy(deadline_s=100)))
    bench.post(count=2)
    [first, second] = bench.sends()
    bench.end(first, busy(b"999999999"))
    bench.end(second, BROKEN)
    part = bench.settle()
    assert [letter.reason for letter in part.dead] == ["retry_after_beyond_deadline"]
    bench.wait(100)
    [fetch] = bench.fetches()
    assert fetch.wanted is Wanted.EXPIRED
    bench.answer(fetch, stored(2, deadline=NOW + 100, retry_count=1))
    assert [letter.reason for letter in bench.settle().dead] == ["deadline"]


def test_a_paused_endpoint_under_steady_traffic_still_lets_go_of_what_expired() -> None:
    """There was always some row not yet committed, and until none was nothing was looked for."""
    bench = Bench(endpoint(status=EndpointStatus.PAUSED, retry=RetryPolicy(deadline_s=10)))
    asked = []
    for _ in range(15):
        bench.post()
        settle = bench.take()
        bench.post()
        bench.engine.on_settled(settle, now=bench.now)
        bench.wait(1)
        fetches = bench.fetches()
        asked += fetches
        for fetch in fetches:
            bench.answer(fetch, behind=bench.now + 1)
    assert asked
    assert all(fetch.wanted is Wanted.EXPIRED for fetch in asked)


def test_expired_rows_are_asked_for_again_only_when_the_last_ones_are_gone() -> None:
    """Until the settle is committed the store would answer with the same rows, over and over."""
    bench = Bench(endpoint(status=EndpointStatus.PAUSED), takeovers=(backlog(100, next_deadline=NOW - 1),))
    [fetch] = bench.fetches()
    bench.answer(fetch, *(stored(n, deadline=NOW - 1) for n in range(1, FETCH_MAX + 1)), more=True)
    assert bench.fetches() == []
    bench.settle()
    [fetch] = bench.fetches()
    assert fetch.wanted is Wanted.EXPIRED


def test_the_hold_of_a_request_whose_shard_was_lost_counts_all_the_same() -> None:
    bench = Bench(shards=(0, 1))
    bench.post(shard=0)
    [work] = bench.sends()
    bench.engine.close_shard(0)
    bench.post(shard=1)
    bench.end(work, busy(b"5"))
    assert bench.sends() == []
    assert [hold.endpoint_id for hold in bench.engine.take_holds()] == [E1]


def test_a_hold_outlives_the_shard_it_came_with() -> None:
    """With its last lane the endpoint was forgotten, and its hold with it, before anyone else had been told."""
    bench = Bench()
    bench.post()
    [work] = bench.sends()
    bench.end(work, busy(b"5"))
    bench.engine.close_shard(0)
    bench.engine.open_shard(Takeover(0, 2, read_to=1, read_day=9000), now=bench.now)
    bench.post()
    assert bench.sends() == []
    bench.wait(5)
    assert len(bench.sends()) == 1


def test_after_a_crash_whatever_the_last_owner_may_have_sent_says_so() -> None:
    """It may have read, and sent, further than it had written down."""
    takeover = Takeover(0, 2, settle_no=1, read_to=1, read_day=9000, rows=(row(1),), clean=False)
    bench = Bench(takeovers=(takeover,))
    bench.seqs[0] = 1
    bench.post()
    bench.now += 1
    bench.post()
    assert [work.possible_duplicate for work in bench.sends()] == [True, True, False]


def test_what_the_last_owner_may_have_sent_says_so_though_the_clock_was_set_back() -> None:
    """Its clock may have shown `doubtful_to`: what was appended, stored or due by then it may have sent."""
    waiting = LaneSummary(E1, TENANT, 1, NOW + 9, NEVER, 0, 1)
    takeover = Takeover(
        0, 2, settle_no=1, read_to=1, read_day=9000, lanes=(waiting,), clean=False, doubtful_to=NOW + 10
    )
    bench = Bench(takeovers=(takeover,))
    bench.seqs[0] = 1
    bench.wait(9.5)
    bench.post()
    [fetch] = bench.fetches()
    bench.answer(fetch, stored(1, due_at=NOW + 9, stored_at=NOW + 8, retry_count=1))
    bench.now += 1
    bench.post()
    assert {work.entry.seq: work.possible_duplicate for work in bench.sends()} == {1: True, 2: True, 3: False}


def test_a_doubtful_delivery_that_was_parked_is_still_doubtful() -> None:
    takeover = Takeover(0, 2, settle_no=1, read_to=1, read_day=9000, rows=(row(1),), clean=False)
    bench = Bench(endpoint(status=EndpointStatus.PAUSED), takeovers=(takeover,))
    bench.now += 5
    bench.sends()
    [change] = bench.settle().upserts.values()
    bench.configure(endpoint())
    bench.wait(1)
    [fetch] = bench.fetches()
    bench.answer(fetch, stored(1, due_at=change.due_at))
    assert [work.possible_duplicate for work in bench.sends()] == [True]


def test_a_drain_is_not_clean_while_the_doubt_of_a_crash_is_not_settled() -> None:
    takeover = Takeover(0, 2, settle_no=1, read_to=1, read_day=9000, rows=(row(1),), clean=False)
    bench = Bench(takeovers=(takeover,))
    bench.engine.drain_shard(0)
    assert not bench.settle().clean
    settled = Bench(takeovers=(takeover,))
    settled.seqs[0] = 1
    [work] = settled.sends()
    settled.end(work, OK)
    assert settled.engine.in_flight_of(0) == 0
    settled.now += 1
    settled.post()
    settled.engine.drain_shard(0)
    assert settled.settle().clean


def test_a_drain_is_not_clean_before_all_was_read_that_the_crashed_owner_may_have_read() -> None:
    takeover = Takeover(0, 2, settle_no=1, read_to=1, read_day=9000, clean=False)
    bench = Bench(takeovers=(takeover,))
    bench.engine.drain_shard(0)
    assert not bench.settle().clean


def test_a_slow_endpoint_behind_a_healthy_one_does_not_make_settles_ever_longer() -> None:
    bench = Bench(endpoint(E1, cap=10_000), endpoint(E2, cap=1), limits=Limits(fragments=20), tenant_cap=10_000)
    for _ in range(50):
        bench.post(E1)
        bench.post(E2)
    for work in bench.sends():
        if work.lane.endpoint.endpoint_id == E1:
            bench.end(work, OK)
    part = bench.settle()
    assert len(part.progress.open) <= 10
    assert set(part.upserts) <= {(E2, seq) for seq in range(4, 101, 2)}
    assert len(part.upserts) + sum(end - start for start, end in part.progress.open) == 50


def test_fan_outs_done_in_part_are_written_down_up_to_a_bound() -> None:
    bench = Bench(endpoint(E1, cap=10_000), endpoint(E2, cap=1), limits=Limits(fragments=20), tenant_cap=10_000)
    bench.post(E1, E2, count=50)
    for work in bench.sends():
        if work.lane.endpoint.endpoint_id == E1:
            bench.end(work, OK)
    part = bench.settle()
    assert len(part.progress.partial) <= 10
    assert len(part.upserts) + len(part.progress.partial) == 50


def test_the_bound_is_one_for_all_shards_of_a_settle() -> None:
    """A tenant at home in ten shards has its slow endpoint's holes in each of them, and each settle writes them all."""
    shards = (0, 1, 2, 3)
    bench = Bench(
        endpoint(E1, cap=10_000), endpoint(E2, cap=1), shards=shards, limits=Limits(fragments=400), tenant_cap=10_000
    )
    for shard in shards:
        bench.post(E1, E2, shard=shard, count=150)
    for work in bench.sends():
        if work.lane.endpoint.endpoint_id == E1:
            bench.end(work, OK)
    parts = bench.take().shards
    assert sum(len(part.progress.open) + len(part.progress.partial) for part in parts) <= 200 + len(shards)
    assert {endpoint_id for part in parts for endpoint_id, _ in part.upserts} == {E2}


def test_few_fragments_are_no_trouble_however_many_shards_there_are() -> None:
    shards = tuple(range(100))
    bench = Bench(endpoint(E1, cap=10_000), endpoint(E2, cap=0), shards=shards, tenant_cap=10_000)
    for shard in shards:
        bench.post(E1, E2, shard=shard, count=10)
    for work in bench.sends(2000):
        if work.lane.endpoint.endpoint_id == E1:
            bench.end(work, OK)
    assert not any(part.upserts for part in bench.take().shards)


def test_holes_of_requests_under_way_send_nobody_else_to_the_backlog_each_time() -> None:
    """They cannot be mended: the next time is when there are twice as many."""
    bench = Bench(
        endpoint(E1, cap=1),
        endpoint(E2, cap=1000),
        endpoint(E3, cap=1000),
        limits=Limits(fragments=20),
        tenant_cap=1000,
    )

    def hang(count: int) -> None:
        for _ in range(count):
            bench.post(E2)
            bench.post(E3)
        for work in bench.sends():
            if work.lane.endpoint.endpoint_id == E3:
                bench.end(work, OK)

    hang(30)
    bench.post(E1, count=3)
    bench.sends()
    assert len(bench.settle().upserts) == 2
    for _ in range(3):
        bench.post(E1, count=2)
        assert bench.settle().upserts == {}
    hang(40)
    assert len(bench.settle().upserts) == 6


def test_what_was_fetched_from_the_backlog_is_not_put_back_to_mend_a_settle() -> None:
    """It leaves nothing open in the journal, and would be fetched again: with every settle, of every such lane."""
    bench = Bench(
        endpoint(E1, cap=10_000), endpoint(E2, cap=1), limits=Limits(fragments=20), tenant_cap=10_000,
        takeovers=(Takeover(0, 1, read_to=5, lanes=(LaneSummary(E2, TENANT, 3, NOW, NOW + 1000, first=1),)),),
    )  # fmt: skip
    bench.seqs[0] = 5
    bench.wait(1)
    [fetch] = bench.fetches()
    bench.answer(fetch, *(stored(position) for position in (1, 2, 3)))
    for _ in range(50):
        bench.post(E1)
        bench.post(E2)
    for work in bench.sends():
        if work.lane.endpoint.endpoint_id == E1:
            bench.end(work, OK)
    before = bench.engine.buffered
    part = bench.settle()
    assert len(part.progress.open) <= 10
    assert bench.engine.buffered == before - len(part.upserts), "only open ones went"


def test_a_lane_that_holds_enough_looks_at_its_next_row_all_the_same_when_that_is_due() -> None:
    """Nothing else happens in it when the last of what it holds has been delivered."""
    held = FETCH_MAX // 2
    bench = Bench(takeovers=(backlog(held + 1),))
    [fetch] = bench.fetches()
    bench.answer(fetch, *(stored(position) for position in range(1, held + 1)), behind=NOW + 60)
    for work in bench.sends():
        bench.end(work, OK)
    bench.settle()
    assert bench.engine.next_wakeup() == NOW + 60
    bench.wait(61)
    assert [fetch.wanted for fetch in bench.fetches()] == [Wanted.DUE]


# ---- what is not needed now is not in memory ------------------------------------------------------------------------


def unknown(**values: float) -> Engine:
    """An engine that took over a lane with one row in its backlog and knows nothing of the endpoint."""
    engine = Engine(worker="w", limits=Limits(), rng=Random(1))
    engine.open_shard(backlog(1, **values), now=NOW)
    return engine


def test_a_lane_whose_rows_are_due_later_asks_for_its_configuration_when_they_are() -> None:
    engine = unknown(next_due=NOW + 60, next_deadline=NOW + 600)
    assert (engine.missing, engine.next_wakeup()) == ({}, NOW + 60)
    engine.tick(now=NOW + 59)
    assert engine.missing == {}
    engine.tick(now=NOW + 60)
    assert engine.missing == {E1: TENANT}
    engine.configure([Tenant(TENANT, (0,))], [endpoint()], now=NOW + 61)
    assert engine.missing == {}
    [fetch] = engine.take_fetches(now=NOW + 61)
    assert fetch.wanted is not Wanted.EXPIRED


def test_a_lane_that_is_due_asks_at_once() -> None:
    assert unknown(next_due=NOW, next_deadline=NOW + 600).missing == {E1: TENANT}


def test_a_deadline_before_the_next_row_is_due_is_looked_at_in_time() -> None:
    """Without its configuration nobody knows whether the endpoint is paused."""
    engine = unknown(next_due=NOW + 600, next_deadline=NOW + 60)
    engine.tick(now=NOW + 60)
    assert engine.missing == {E1: TENANT}
    engine.configure([Tenant(TENANT, (0,))], [endpoint(status=EndpointStatus.PAUSED)], now=NOW + 61)
    [fetch] = engine.take_fetches(now=NOW + 61)
    assert fetch.wanted is Wanted.EXPIRED


def test_a_lane_that_rows_block_asks_at_once_whether_they_still_may() -> None:
    """They are never due: after a change to `on_dead: skip` nobody would ever look at them again."""
    engine = Engine(worker="w", limits=Limits(), rng=Random(1))
    lane = LaneSummary(E1, TENANT, 3, NEVER, NEVER, blocking=3, first=1)
    engine.open_shard(Takeover(0, 2, settle_no=7, read_to=100, read_day=9000, lanes=(lane,)), now=NOW)
    assert engine.missing == {E1: TENANT}
    engine.configure([Tenant(TENANT, (0,))], [endpoint(ordered=True, on_dead=OnDead.SKIP)], now=NOW)
    [fetch] = engine.take_fetches(now=NOW)
    assert fetch.wanted is Wanted.BLOCKING


def test_a_fresh_row_for_a_lane_that_waits_asks_for_its_configuration() -> None:
    engine = unknown(next_due=NOW + 60, next_deadline=NOW + 600)
    engine.on_rows(0, [row(101)], now=NOW)
    assert engine.missing == {E1: TENANT}
    engine.configure([Tenant(TENANT, (0,))], [endpoint()], now=NOW)
    assert len(engine.take_sends(9, now=NOW)) == 1


def test_a_refresh_leaves_out_what_was_never_asked_for() -> None:
    engine = unknown(next_due=NOW + 60, next_deadline=NOW + 600)
    assert engine.endpoints_of([TENANT]) == []
    engine.tick(now=NOW + 60)
    engine.configure([Tenant(TENANT, (0,))], [endpoint()], now=NOW + 60)
    assert engine.endpoints_of([TENANT]) == [E1]


def look_twice(bench: Bench, each_s: float) -> None:
    """Two looks through all lanes, and a bit."""
    for _ in range(2):
        bench.wait(each_s)
        bench.wait(1)


def test_an_idle_lane_is_forgotten_with_its_endpoint_and_its_tenant() -> None:
    bench = Bench()
    bench.post()
    [work] = bench.sends()
    bench.end(work, OK)
    bench.settle()
    bench.wait(IDLE_S - 1)
    assert list(bench.engine.known_tenants) == [TENANT]
    look_twice(bench, IDLE_S)
    assert list(bench.engine.known_tenants) == []
    assert bench.engine.endpoints_of([TENANT]) == []
    bench.post(count=2)
    assert [work.entry.seq for work in bench.sends()] == [2, 3]


def test_a_lane_that_is_used_now_and_then_stays() -> None:
    bench = Bench()
    for _ in range(20):
        bench.post()
        [work] = bench.sends()
        bench.end(work, OK)
        bench.settle()
        bench.wait(IDLE_S / 2)
        assert bench.engine.endpoints_of([TENANT]) == [E1]


@pytest.mark.parametrize("kept", ["in flight", "queued", "stored", "held", "unsettled"])
def test_a_lane_with_something_to_remember_stays(kept: str) -> None:
    bench = Bench(endpoint(cap=1))
    bench.post(count=2 if kept == "queued" else 1)
    [work] = bench.sends()
    if kept in ("stored", "unsettled"):
        bench.end(work, BROKEN)
    elif kept == "held":
        bench.end(work, structs.replace(busy(b"99999"), error_code=ErrorCode.HTTP_429, status=429))
        bench.settle()
    if kept == "stored":
        bench.settle()
    look_twice(bench, IDLE_S)
    look_twice(bench, IDLE_S)
    assert bench.engine.endpoints_of([TENANT]) == [E1]


def test_lanes_are_looked_through_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "IDLE_LOOK_LANES", 1)
    bench = Bench(endpoint(E1), endpoint(E2))
    bench.post(E1, E2)
    for work in bench.sends():
        bench.end(work, OK)
    bench.settle()
    known = []
    for seconds in (IDLE_S, IDLE_LOOK_S, IDLE_S, IDLE_LOOK_S):
        bench.wait(seconds)
        known.append(len(bench.engine.endpoints_of([TENANT])))
    assert known == [2, 2, 1, 0]


def test_retries_that_become_due_one_by_one_are_fetched_together() -> None:
    bench = Bench(takeovers=(backlog(50, next_due=NOW + 5),))
    bench.wait(6)
    [fetch] = bench.fetches()
    bench.answer(fetch, stored(1, due_at=NOW + 5), behind=NOW + 10.01)
    fetches = 0
    bench.wait(4)
    for step in range(1, 100):
        bench.now = NOW + 10 + step / 1000
        bench.engine.tick(now=bench.now)
        fetches += len(bench.fetches())
    assert fetches == 0
    bench.wait(0.002)
    [fetch] = bench.fetches()
    assert fetch.until >= NOW + 10.1
