"""An outage of our own way out (F18): nothing is sent but probes, nobody is charged, and all of it goes on when it is back."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from hookpost.engine.outage import SPARE_S
from hookpost.engine.work import TICK_S, Wanted, Work
from hookpost.model import HEALTHY, Endpoint, ErrorCode, Health, Outcome, RetryPolicy, Tenant, WaitReason
from hookpost.policy.breaker import BreakerState
from tests.engine.driver import OK, START, Driver
from tests.engine.model import check, column
from tests.engine.test_engine_cases import BROKEN, NOW, OTHER_TENANT, TENANT, Bench, endpoint, wakeup
from tests.engine.test_gates import Shelf, seqs

CUT_OFF = Outcome(ErrorCode.NETWORK_UNREACHABLE)
TIMED_OUT = Outcome(ErrorCode.FIRST_BYTE_TIMEOUT)
ENDPOINTS = [UUID(int=0x100 + number) for number in range(6)]


def bench_of(count: int = 6, **changes: object) -> tuple[Bench, Shelf]:
    """So many endpoints, each with a receiver of its own that has just answered; the last one of another tenant."""
    endpoints = [
        endpoint(each, url=f"https://{number}.example/", tenant=TENANT if number < 5 else OTHER_TENANT, **changes)
        for number, each in enumerate(ENDPOINTS[:count])
    ]
    bench = Bench(*endpoints)
    shelf = Shelf(bench)
    for each in endpoints:
        bench.post(each.endpoint_id, tenant=each.tenant_id)
    assert len(shelf.go_on()) == count
    bench.engine.take_health()
    return bench, shelf


def cut_off(bench: Bench, shelf: Shelf, *, each: int = 1) -> None:
    """So many deliveries to each of the first five fail at connect."""
    for endpoint_id in ENDPOINTS[:5]:
        bench.post(endpoint_id, count=each)
    works = bench.sends()
    assert len(works) == 5 * each
    for work in works:
        bench.end(work, CUT_OFF)
    shelf.settle()
    assert bench.engine.egress_down_since == bench.now


def next_probe(bench: Bench, shelf: Shelf) -> list[int]:
    """Let time go on to the next probe; what is sent then."""
    probe_at = bench.engine._gates.outage.probe_at
    assert wakeup(bench) <= probe_at
    bench.wait(probe_at - bench.now)
    sent = bench.sends()
    for _ in range(3):
        shelf.fetch()
        sent += bench.sends()
    bench.under_way = sent  # type: ignore[attr-defined]
    return seqs(sent)


def test_nothing_is_sent_while_our_way_out_is_down_and_what_comes_waits_with_that_reason() -> None:
    bench, shelf = bench_of()
    cut_off(bench, shelf)
    bench.post(ENDPOINTS[5], tenant=OTHER_TENANT)
    assert not bench.sends()
    [waiting] = shelf.settle().upserts.values()
    assert waiting.reason is WaitReason.EGRESS_DOWN
    assert waiting.retry_count == 0


def test_no_breaker_opens_and_nobodys_health_is_charged() -> None:
    bench, shelf = bench_of()
    cut_off(bench, shelf, each=30)
    assert {record.state for record in bench.engine.take_breakers()} <= {BreakerState.CLOSED}
    assert set(bench.engine.take_health().values()) == {Health()}


def test_breakers_that_the_outage_had_opened_before_it_was_seen_are_closed_again() -> None:
    bench, _shelf = bench_of()
    for endpoint_id in ENDPOINTS[:5]:
        bench.post(endpoint_id, count=10)
        for work in bench.sends():
            bench.end(work, CUT_OFF)
    opened = bench.engine.take_breakers()
    assert {record.state for record in opened} == {BreakerState.CLOSED}
    assert len(opened) == 4, "the fifth one was never opened"


def test_requests_that_were_under_way_when_it_was_cut_and_time_out_are_charged_to_nobody() -> None:
    """They are on connections that stood; those behind them fail at connect, and tell that it was us."""
    bench, _shelf = bench_of()
    for endpoint_id in ENDPOINTS[:5]:
        bench.post(endpoint_id, count=5)
        *under_way, last = bench.sends()
        for work in under_way:
            bench.end(work, TIMED_OUT)
        bench.end(last, CUT_OFF)
    assert bench.engine.egress_down_since == bench.now
    assert set(bench.engine.take_health().values()) == {Health()}
    breakers = bench.engine._roster.tenants[TENANT].breakers.values()
    assert {(breaker.state, breaker.failures) for breaker in breakers} == {(BreakerState.CLOSED, 0)}


def test_what_a_receiver_had_failed_before_the_outage_still_counts() -> None:
    bench, shelf = bench_of()
    bench.post(ENDPOINTS[0], count=4)
    for work in bench.sends():
        bench.end(work, BROKEN)
    shelf.settle()
    bench.engine.take_health()
    cut_off(bench, shelf)
    assert bench.engine.take_health()[ENDPOINTS[0]].consecutive_failures == 4
    [breaker] = bench.engine._roster.tenants[TENANT].breakers.values()
    assert (breaker.state, breaker.failures) == (BreakerState.CLOSED, 4)


def test_an_attempt_that_fails_while_it_is_down_is_recorded_and_not_counted() -> None:
    bench, shelf = bench_of()
    bench.post(ENDPOINTS[5], tenant=OTHER_TENANT)
    [under_way] = bench.sends()
    cut_off(bench, shelf)
    bench.wait(0.5)
    bench.end(under_way, TIMED_OUT)
    part = shelf.settle()
    [attempt] = part.attempts
    assert column(attempt, "outcome") == "retry"
    assert column(attempt, "error_code") is ErrorCode.FIRST_BYTE_TIMEOUT
    [waiting] = part.upserts.values()
    assert (waiting.reason, waiting.retry_count) == (WaitReason.EGRESS_DOWN, 0)


def test_one_probe_a_second_goes_to_each_receiver_in_turn() -> None:
    bench, shelf = bench_of()
    cut_off(bench, shelf)
    asked = []
    for _ in range(5):
        before = bench.now
        [seq] = next_probe(bench, shelf)
        assert bench.now - before == pytest.approx(1.0)
        asked.append(seq)
        [work] = bench.under_way  # type: ignore[attr-defined]
        bench.end(work, CUT_OFF)
        shelf.settle()
    assert sorted(asked) == [7, 8, 9, 10, 11]


def test_no_second_probe_goes_while_one_is_under_way() -> None:
    bench, shelf = bench_of()
    cut_off(bench, shelf)
    assert next_probe(bench, shelf)
    for _ in range(10):
        assert not next_probe(bench, shelf)


def test_behind_the_first_answer_all_that_waits_goes_at_once() -> None:
    bench, shelf = bench_of()
    cut_off(bench, shelf, each=3)
    bench.post(ENDPOINTS[5], tenant=OTHER_TENANT)
    shelf.settle()
    next_probe(bench, shelf)
    [probe] = bench.under_way  # type: ignore[attr-defined]
    bench.end(probe, BROKEN)
    assert bench.engine.egress_down_since is None
    shelf.settle()
    bench.wait(TICK_S)
    sent = shelf.go_on()
    assert len(set(sent)) == 15, "of 16 that wait one has just failed, by itself"


def test_the_attempt_behind_an_outage_has_the_number_of_the_one_that_did_not_count() -> None:
    bench, shelf = bench_of()
    bench.post(ENDPOINTS[5], tenant=OTHER_TENANT)
    [under_way] = bench.sends()
    cut_off(bench, shelf)
    bench.end(under_way, CUT_OFF)
    shelf.settle()
    next_probe(bench, shelf)
    [probe] = bench.under_way  # type: ignore[attr-defined]
    bench.end(probe, OK)
    shelf.settle()
    bench.wait(TICK_S)
    shelf.fetch()
    [again] = [work for work in bench.sends() if work.entry.seq == under_way.entry.seq]
    assert again.retry_count == 0


def test_no_deadline_is_missed_by_an_outage_and_each_delivery_has_its_attempt_behind_it() -> None:
    bench, shelf = bench_of(retry=RetryPolicy(deadline_s=60.0))
    cut_off(bench, shelf)
    bench.post(ENDPOINTS[5], tenant=OTHER_TENANT)
    shelf.settle()
    for _ in range(200):
        for work in bench.sends():
            bench.end(work, CUT_OFF)
        if bench.engine.unsettled:
            assert not shelf.settle().dead
        assert Wanted.EXPIRED not in shelf.fetch()
        bench.wait(1.0)
    assert bench.now > NOW + 2 * 60.0
    while bench.engine.egress_down_since is not None:
        bench.wait(1.0)
        shelf.fetch()
        for work in bench.sends():
            bench.end(work, OK)
    bench.wait(TICK_S)
    shelf.go_on()
    assert not shelf.rows


def test_what_another_gate_holds_expires_only_when_it_had_time_to_be_tried() -> None:
    bench, shelf = bench_of(retry=RetryPolicy(deadline_s=60.0))
    outage = bench.engine._gates.outage
    cut_off(bench, shelf)
    bench.wait(100.0)
    assert outage.spare_until == 0.0
    next_probe(bench, shelf)
    for work in bench.under_way:  # type: ignore[attr-defined]
        bench.end(work, OK)
    assert outage.spare_until == bench.now + SPARE_S


def test_an_ordered_endpoint_waits_and_keeps_its_order() -> None:
    bench, shelf = bench_of(ordered=True)
    for endpoint_id in ENDPOINTS[:5]:
        bench.post(endpoint_id, count=2)
    for work in bench.sends():
        bench.end(work, CUT_OFF)
    shelf.settle()
    assert bench.engine.egress_down_since is not None
    sent = []
    for _ in range(40):
        bench.wait(0.5)
        shelf.fetch()
        for work in bench.sends():
            sent.append((work.lane.endpoint.endpoint_id, work.entry.seq))
            bench.end(work, OK)
        if bench.engine.unsettled:
            shelf.settle()
    assert len(sent) == 10
    for endpoint_id in ENDPOINTS[:5]:
        of_it = [seq for each, seq in sent if each == endpoint_id]
        assert of_it == sorted(of_it)


def test_a_receiver_that_nobody_knows_yet_is_asked_before_any_is_asked_again() -> None:
    """Five receivers may have died for good, with nobody else about: whoever comes next is not to wait for them."""
    stranger = UUID(int=0x200)
    bench, shelf = bench_of()
    cut_off(bench, shelf)
    bench.configure(endpoint(stranger, url="https://stranger.example/"))
    bench.post(stranger)
    shelf.settle()
    asked = []
    for _ in range(6):
        asked += next_probe(bench, shelf)
        [probe] = bench.under_way  # type: ignore[attr-defined]
        is_stranger = probe.lane.endpoint.endpoint_id == stranger
        bench.end(probe, OK if is_stranger else CUT_OFF)
        shelf.settle()
    assert asked[-1] == 12
    assert bench.engine.egress_down_since is None


def test_with_nobody_left_to_ask_it_is_taken_for_up() -> None:
    bench, shelf = bench_of()
    cut_off(bench, shelf)
    bench.configure(*(replace(bench.endpoints[each], deleted=True) for each in ENDPOINTS))
    shelf.settle()
    for _ in range(10):
        bench.wait(1.0)
        assert not bench.sends()
    assert bench.engine.egress_down_since is None
    assert bench.engine.next_wakeup() is None or bench.engine.next_wakeup() > bench.now


RECEIVERS, RATE, CONNECT_S, BEFORE_S = 10, 2.0, 5.0, 60.0


class CutCable:
    """Ten receivers that are well, each with 2 deliveries a second, and a time without a way out."""

    def __init__(self, outage_s: float) -> None:
        tenant = Tenant(UUID(int=1 << 64), (0,))
        endpoints = [
            Endpoint(UUID(int=n << 64), tenant.tenant_id, f"https://{n}.example/") for n in range(2, 2 + RECEIVERS)
        ]
        self.outage_s = outage_s
        self.cut, self.back = START + BEFORE_S, START + BEFORE_S + outage_s
        self.in_vain = self.retry_count_max = 0
        receivers = dict.fromkeys((each.endpoint_id for each in endpoints), self.answer)
        self.driver = Driver([tenant], endpoints, receivers, sent=self.sent)
        self.driver.open_shards()
        count = int(RATE * (BEFORE_S + outage_s + 30.0))
        self.total = RECEIVERS * count
        for each in endpoints:
            self.driver.produce(each, rate=RATE, first_at=START, count=count)

    def sent(self, work: Work, _now: float) -> None:
        self.retry_count_max = max(self.retry_count_max, work.retry_count)

    def answer(self, now: float) -> tuple[Outcome, float]:
        if self.cut <= now < self.back:
            self.in_vain += 1
            return Outcome(ErrorCode.CONNECT_TIMEOUT), CONNECT_S
        return OK, 0.05

    def live_through(self) -> None:
        """It is seen with the sixth failure (of ten that were well), so right behind the connect timeout; a probe then
        takes as long, and the next one comes a second later. Each attempt that counts was made before it was seen."""
        driver = self.driver
        driver.run(self.cut + CONNECT_S + 1.0)
        check(driver.engine.egress_down_since is not None, "not seen")
        health = [each.health for each in driver.engine._roster.endpoints.values()]
        check(all(each is HEALTHY or each == HEALTHY for each in health), "charged:", health)
        driver.read_pace_s = 1.0
        driver.run(self.back)
        before_seen = RECEIVERS * RATE * (CONNECT_S + 1.0)
        check(self.in_vain <= before_seen + self.outage_s / (CONNECT_S + 1.0) + 1, "sent in vain:", self.in_vain)
        driver.run(self.back + 30.0)
        check(driver.engine.egress_down_since is None, "not back")
        driver.run_until_drained(driver.now + 60.0)
        driver.run(driver.now + 1.0)
        check(self.retry_count_max <= 1, "attempts that count:", self.retry_count_max)
        closed = all(record.state is BreakerState.CLOSED for record in driver.store.breakers.values())
        check(closed, "a breaker has opened")
        check(driver.books.ends() == {"delivered": self.total}, driver.books.ends())
        driver.check_all_over()


def test_twenty_minutes_without_a_way_out_cost_one_probe_at_a_time_and_everything_arrives_when_it_is_back() -> None:
    CutCable(1200.0).live_through()


SHUT = Outcome(ErrorCode.EGRESS_PROXY_ERROR, ours=True)


def test_f40_behind_a_proxy_that_is_down_a_single_endpoint_waits_and_pays_nothing() -> None:
    bench = Bench(endpoint(ENDPOINTS[0]))
    shelf = Shelf(bench)
    bench.post(ENDPOINTS[0])
    [work] = bench.sends()
    bench.end(work, SHUT)
    [waiting] = shelf.settle().upserts.values()
    assert (waiting.reason, waiting.retry_count) == (WaitReason.EGRESS_DOWN, 0)
    for _ in range(100):
        [_] = next_probe(bench, shelf)
        [probe] = bench.under_way  # type: ignore[attr-defined]
        assert probe.retry_count == 0
        bench.end(probe, SHUT)
        shelf.settle()
    next_probe(bench, shelf)
    [probe] = bench.under_way  # type: ignore[attr-defined]
    bench.end(probe, OK)
    shelf.settle()
    assert bench.engine.egress_down_since is None
    assert not shelf.rows
    assert set(bench.engine.take_health().values()) <= {HEALTHY}
    assert not [record for record in bench.engine.take_breakers() if record.failures]
