"""Deliveries whose payloads lie in the payload store: read before they are sent, and a store that is slow or away holds
up nobody else."""

from __future__ import annotations

from uuid import UUID

import pytest

from hookpost.engine.limits import Limits
from hookpost.engine.loads import AGAIN_S, LOOK_S, PAUSE_S
from hookpost.engine.work import CANCEL, Kind, Work
from hookpost.model import REMOVED, DeadReason, PayloadRef, RetryPolicy, WaitReason
from tests.engine.test_engine_cases import E1, E2, OK, Bench, endpoint, row

REF = PayloadRef("events/1/02/abc", 0, 1000, bytes(32))


def away(bench: Bench, *owed: UUID, count: int = 1, payload: PayloadRef = REF) -> None:
    bench.post(*owed, count=count, payload=payload)  # type: ignore[arg-type] # a place instead of bytes


def fail(bench: Bench, work: Work, *, missing: bool = False) -> None:
    bench.engine.on_no_payload(work, missing=missing, now=bench.now)


def load(bench: Bench, work: Work) -> bool:
    return bench.engine.on_payload(work, now=bench.now)


def test_a_delivery_is_started_with_its_place_and_counts_with_its_size() -> None:
    bench = Bench()
    away(bench)
    assert bench.engine.buffered_bytes == 1000
    [work] = bench.sends()
    assert work.entry.payload == REF
    assert bench.engine.in_flight_bytes == 1000
    assert load(bench, work)
    bench.end(work, OK)
    assert bench.engine.in_flight_bytes == 0
    assert bench.settle().attempts[0][24] == "delivered"


def test_a_payload_that_cannot_be_read_now_is_tried_again_and_nobody_is_charged() -> None:
    bench = Bench()
    away(bench)
    [work] = bench.sends()
    fail(bench, work)
    part = bench.settle()
    [change] = part.upserts.values()
    assert (change.reason, change.due_at, change.retry_count) == (WaitReason.PAYLOAD_STORE, bench.now + AGAIN_S, 0)
    assert (part.attempts, part.dead) == ([], [])
    assert bench.engine.take_health() == {}
    assert bench.engine.in_flight == 0


def test_a_payload_that_is_gone_is_a_dead_letter() -> None:
    bench = Bench()
    away(bench)
    [work] = bench.sends()
    fail(bench, work, missing=True)
    part = bench.settle()
    [letter] = part.dead
    assert (letter.reason, letter.attempt_count) == (DeadReason.PAYLOAD_MISSING, 0)
    assert part.progress.open == ()


def test_a_delivery_whose_time_is_over_when_the_store_fails_is_dead() -> None:
    bench = Bench(endpoint(retry=RetryPolicy(deadline_s=60)))
    away(bench)
    [work] = bench.sends()
    bench.wait(60)
    fail(bench, work)
    assert [letter.reason for letter in bench.settle().dead] == [DeadReason.DEADLINE]


def test_only_so_many_are_read_at_once_and_lanes_that_need_none_go_on() -> None:
    bench = Bench(endpoint(E1), endpoint(E2), limits=Limits(loads=2))
    away(bench, E1, count=5)
    bench.post(E2, count=5)
    works = bench.sends()
    assert [work.entry.payload for work in works].count(REF) == 2
    assert len(works) == 7
    read = next(work for work in works if work.entry.payload == REF)
    assert load(bench, read)
    assert len(bench.sends()) == 1, "a read that has ended makes room for one"
    assert bench.sends() == []


def test_reads_of_a_slow_store_leave_half_of_the_bytes_to_those_who_need_none() -> None:
    bench = Bench(endpoint(E1), endpoint(E2), limits=Limits(in_flight_bytes=5000))
    away(bench, E1, count=5)
    bench.post(E2, count=5)
    assert [work.entry.payload for work in bench.sends()].count(REF) == 2
    assert bench.engine.in_flight == 7


def test_a_payload_larger_than_the_bound_is_read_alone() -> None:
    bench = Bench(limits=Limits(in_flight_bytes=1500))
    away(bench, count=2)
    [work] = bench.sends()
    assert load(bench, work)
    assert len(bench.sends()) == 1


def test_a_store_that_failed_is_left_alone_for_a_while() -> None:
    bench = Bench(limits=Limits(loads=2))
    away(bench, count=5)
    for work in bench.sends():
        fail(bench, work)
    assert bench.sends() == []
    wakeup = bench.engine.next_wakeup()
    assert wakeup is not None and wakeup <= bench.now + PAUSE_S
    bench.wait(PAUSE_S)
    assert len(bench.sends()) == 2


def test_a_lane_that_waits_for_a_read_is_looked_at_though_none_ends() -> None:
    bench = Bench(endpoint(E1), endpoint(E2), limits=Limits(loads=1))
    away(bench, E1)
    [work] = bench.sends()
    away(bench, E2)
    assert bench.sends() == []
    # Its read ends; the lane that is woken for it has been emptied meanwhile.
    bench.configure(endpoint(E2, deleted=True))
    away(bench, E1)
    assert bench.sends() == []
    assert load(bench, work)
    bench.wait(LOOK_S)
    bench.wait(LOOK_S)
    assert len(bench.sends()) == 1


def test_an_ordered_lane_waits_for_its_first_one() -> None:
    bench = Bench(endpoint(ordered=True))
    away(bench)
    bench.post(E1)
    [work] = bench.sends()
    fail(bench, work)
    bench.settle()
    assert bench.sends() == []


def test_a_rate_limit_is_not_charged_for_what_was_not_sent() -> None:
    bench = Bench(endpoint(rate_limit=1.0))
    away(bench)
    bench.wait(10)
    [work] = bench.sends()
    fail(bench, work)
    bench.post(E1)
    assert len(bench.sends()) == 1


@pytest.mark.parametrize("loaded", [True, False])
def test_what_is_cancelled_while_its_payload_is_read_is_not_sent(loaded: bool) -> None:
    bench = Bench()
    away(bench)
    [work] = bench.sends()
    cancel = row(2, (E1,), kind=Kind.CONTROL)
    cancel.type, cancel.event_id = CANCEL, work.entry.event_id
    bench.engine.on_rows(0, [cancel], now=bench.now)
    if loaded:
        assert not load(bench, work)
    else:
        fail(bench, work)
    part = bench.settle()
    assert (part.progress.open, part.dead, part.upserts) == ((), [], {})
    assert bench.engine.in_flight == 0


def test_a_deleted_endpoint_gets_nothing_that_was_still_read() -> None:
    bench = Bench()
    away(bench)
    [work] = bench.sends()
    bench.configure(endpoint(deleted=True))
    assert not load(bench, work)
    assert bench.settle().progress.open == ()


@pytest.mark.parametrize("loaded", [True, False])
def test_a_shard_lost_while_a_payload_is_read_leaves_nothing_behind(loaded: bool) -> None:
    bench = Bench()
    away(bench)
    [work] = bench.sends()
    bench.engine.close_shard(0)
    if loaded:
        assert not load(bench, work)
    else:
        fail(bench, work)
    assert bench.engine.in_flight == bench.engine.in_flight_bytes == 0
    assert bench.engine.take_settle(now=bench.now) is None


def test_a_payload_removed_on_request_ends_the_delivery_without_a_dead_letter() -> None:
    bench = Bench()
    away(bench, payload=REMOVED)
    assert bench.sends() == []
    part = bench.settle()
    assert (part.dead, part.attempts, part.progress.open) == ([], [], ())
