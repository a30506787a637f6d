"""The gates at work: what waits, why, in which order it goes on, and what it costs meanwhile. All in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from msgspec import structs

from hookpost.engine.gates import BUDGET_LOOK_S, PROBE_BEGINS_S
from hookpost.engine.limits import Limits, Policies
from hookpost.engine.spill import SPILL_AT_ONCE
from hookpost.engine.work import CANCEL, RETRY_NOW, TICK_S, BacklogRow, Fetch, Kind, ShardSettle, Takeover, Wanted, Work
from hookpost.model import Endpoint, EndpointStatus, OnDead, Outcome, RetryPolicy, Tenant, WaitReason
from hookpost.policy.breaker import JITTER, RAMP_START, BreakerPolicy, BreakerRecord, BreakerState, Probe
from hookpost.policy.budget import BudgetPolicy
from tests.engine.model import NEVER
from tests.engine.test_engine_cases import (
    BROKEN,
    E1,
    E2,
    NOW,
    OK,
    OTHER_TENANT,
    REFUSED,
    TENANT,
    Bench,
    backlog,
    endpoint,
    row,
)

ORIGIN = "https://receiver.example"
ELSEWHERE = "https://elsewhere.example/"
# The first pause of a breaker at least, and when it is surely over.
PAUSE_S = BreakerPolicy().pause_s
PAUSE_OVER_S = JITTER * PAUSE_S + 1.0


class Shelf:
    """The backlog of one shard: what is settled is on it, what is fetched comes from it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rows: dict[tuple[UUID, int], BacklogRow] = {}
        self.written = 0

    def settle(self) -> ShardSettle:
        part = self.bench.settle()
        for (endpoint_id, position), change in part.upserts.items():
            self.rows[endpoint_id, position] = BacklogRow(
                position, change.day, change.event_id, "order.paid", b"{}", change.generation, change.reason,
                change.due_at, change.retry_count, change.deadline, change.created_at, change.stored_at,
            )  # fmt: skip
        for key in part.deletes:
            del self.rows[key]
        self.written += len(part.upserts)
        return part

    def fetch(self) -> list[Wanted]:
        """Answer all that is asked for now; what that was."""
        fetches = self.bench.fetches()
        for fetch in fetches:
            rows, behind = self._of(fetch)
            self.bench.answer(fetch, *rows[: fetch.limit], more=len(rows) > fetch.limit, behind=behind)
        return [fetch.wanted for fetch in fetches]

    def _of(self, fetch: Fetch) -> tuple[list[BacklogRow], float]:
        rows = [held for (endpoint_id, _), held in sorted(self.rows.items()) if endpoint_id == fetch.endpoint_id]
        by_due = sorted(rows, key=lambda held: (held.due_at, held.position))
        due = [held for held in by_due if (held.due_at, held.position) > fetch.after]
        match fetch.wanted:
            case Wanted.DUE:
                behind = min((held.due_at for held in rows if held.due_at > fetch.until), default=NEVER)
                return [held for held in due if held.due_at <= fetch.until], behind
            case Wanted.FORWARD:
                late = [held for held in due if fetch.until < held.due_at < NEVER]
                return [held for held in late if held.stored_at <= fetch.stored_by], NEVER
            case Wanted.EXPIRED:
                behind = min((held.deadline for held in rows if held.deadline > fetch.until), default=NEVER)
                return [held for held in rows if held.deadline <= fetch.until], behind
            case Wanted.BLOCKING:
                return [held for held in rows if held.due_at == NEVER], NEVER
            case Wanted.NAMED:
                return [held for held in rows if held.event_id == fetch.event_id], NEVER
            case Wanted.HEAD:
                return rows, NEVER

    def go_on(self, outcome: Outcome = OK, *, rounds: int = 100) -> list[int]:
        """Send, answer, settle and fetch until nothing more happens by now, or a moment later, as what is written is due
        a tick behind what is fetched; the positions that were sent."""
        sent = []
        for _ in range(rounds):
            works = self.bench.sends()
            for work in works:
                self.bench.end(work, outcome)
                sent.append(work.entry.seq)
            if self.bench.engine.unsettled:
                self.settle()
            self.bench.wait(TICK_S)
            if not self.fetch() and not works:
                return sent
        raise AssertionError("it goes on for ever")


def shelved(*endpoints: Endpoint, **settings: Any) -> tuple[Bench, Shelf]:
    """A bench (its endpoints, its settings) and the backlog of its shard."""
    bench = Bench(*endpoints, **settings)
    return bench, Shelf(bench)


def seqs(works: Sequence[Work]) -> list[int]:
    return [work.entry.seq for work in works]


def budget_of(floor: int) -> Policies:
    return Policies(budget=BudgetPolicy(part=0.0, floor=floor))


def break_it(bench: Bench, *owed: UUID, tenant: UUID = TENANT) -> None:
    """Five failures in a row."""
    bench.post(*owed, count=5, tenant=tenant)
    for work in bench.sends():
        bench.end(work, BROKEN)


def answer_probes(bench: Bench, *, granted: bool = True) -> int:
    """What the store says of the probes that were asked for; how many were."""
    asked = bench.engine.take_probes()
    answers = []
    for tenant_id, origin in asked:
        record = BreakerRecord(tenant_id, origin, BreakerState.HALF_OPEN, bench.now - 1, bench.now, 1, 5)
        answers.append(Probe(granted, bench.now + 40, record))
    bench.engine.on_probes(answers, asked, now=bench.now)
    return len(asked)


def ask(bench: Bench, type_: str, seq: int, *owed: UUID) -> None:
    """A control row for what was posted as ``seq``."""
    bench.seqs[0] += 1
    control = structs.replace(
        row(bench.seqs[0], owed or (E1,), kind=Kind.CONTROL, payload=None, at=bench.now), type=type_
    )
    control.event_id = UUID(int=0x1000 + seq)
    bench.engine.on_rows(0, [control], now=bench.now)


def replay(bench: Bench, seq: int, *, generation: int = 1) -> int:
    """The event posted as ``seq`` is owed once more; the seq of that."""
    bench.seqs[0] += 1
    again = row(bench.seqs[0], kind=Kind.REPLAY, at=bench.now)
    again.event_id, again.generation = UUID(int=0x1000 + seq), generation
    bench.engine.on_rows(0, [again], now=bench.now)
    bench.configure()
    return bench.seqs[0]


# ---- rate limit -----------------------------------------------------------------------------------------------------


def run_for(bench: Bench, shelf: Shelf, seconds: float, *, step_s: float = 0.01) -> list[tuple[float, int]]:
    """Let time go on in small steps; when what was sent."""
    sent, start = [], bench.now
    while bench.now < start + seconds - step_s / 2:
        bench.wait(step_s)
        sent += [(bench.now - start, seq) for seq in shelf.go_on()]
    return sent


def test_what_is_over_the_rate_waits_without_an_attempt_and_goes_out_smoothly_in_order() -> None:
    bench, shelf = shelved(endpoint(rate_limit=10.0))
    bench.post(count=30)
    assert bench.sends() == []
    sent = run_for(bench, shelf, 3.0)
    assert [seq for _, seq in sent] == list(range(1, len(sent) + 1))
    assert 29 <= len(sent) <= 30
    assert all(0.08 <= later[0] - earlier[0] <= 0.12 for earlier, later in pairwise(sent))
    assert shelf.written == 0, "it waited in memory"


def test_what_is_over_the_rate_keeps_its_order_through_the_backlog_and_back() -> None:
    bench, shelf = shelved(endpoint(rate_limit=10.0), limits=Limits(buffer=20))
    for _ in range(6):
        bench.post(count=10)
        bench.sends()
        shelf.settle()
    assert shelf.written > 20
    assert {held.retry_count for held in shelf.rows.values()} == {0}
    sent = [seq for _, seq in run_for(bench, shelf, 7.0)]
    assert sent == list(range(1, 61))


def test_what_spills_for_its_rate_says_so() -> None:
    bench, shelf = shelved(endpoint(rate_limit=0.01), limits=Limits(buffer=5))
    bench.post(count=5)
    bench.sends()
    shelf.settle()
    assert {held.reason for held in shelf.rows.values()} == {WaitReason.RATE_LIMITED}


def test_another_rate_holds_from_the_moment_it_is_known() -> None:
    bench, shelf = shelved(endpoint(rate_limit=0.01))
    bench.post(count=100)
    bench.sends()
    bench.wait(1)
    assert shelf.go_on() == []
    bench.configure(endpoint(rate_limit=20.0))
    sent = run_for(bench, shelf, 2.0)
    assert 39 <= len(sent) <= 41
    bench.configure(endpoint())
    assert len(shelf.go_on()) == 100 - len(sent)


def test_a_new_owner_starts_with_an_empty_bucket() -> None:
    bench = Bench(endpoint(rate_limit=10.0))
    bench.post(count=20)
    bench.wait(100)
    assert len(bench.sends()) == 10
    bench.engine.close_shard(0)
    bench.engine.open_shard(Takeover(0, 2, read_to=20, read_day=9000), now=bench.now)
    bench.post(count=20)
    assert bench.sends() == []
    bench.wait(0.11)
    assert len(bench.sends()) == 1


def test_an_endpoint_that_has_moved_starts_with_an_empty_bucket_where_it_lives_now() -> None:
    """While it was barred there, the owner of the shard that it came from sent at its rate."""
    bench, shelf = shelved(endpoint(rate_limit=10.0, barred=True))
    bench.post(count=20)
    bench.sends()
    shelf.settle()
    bench.wait(100)
    bench.configure(endpoint(rate_limit=10.0))
    assert shelf.go_on() == []
    bench.wait(0.11)
    assert len(shelf.go_on()) == 1


def test_an_endpoint_that_moves_has_a_part_of_its_rate_in_each_shard_that_it_comes_from() -> None:
    """None of them knows of the others, nor whether the shard where it is to live is owned by the same worker."""
    bench = Bench(endpoint(rate_limit=10.0, barred=True), shards=(0, 1))
    bench.tenants = [Tenant(TENANT, (0, 1, 2))]
    bench.configure()
    for shard in (0, 1):
        bench.post(shard=shard, count=50)
    sent = 0
    for _ in range(40):
        bench.wait(0.1)
        sent += len(bench.sends())
    assert 19 <= sent <= 21


def test_without_a_rate_there_is_no_bucket() -> None:
    bench = Bench()
    bench.post(count=50)
    assert len(bench.sends()) == 50
    [state] = bench.engine._roster.endpoints.values()
    assert state.bucket is None


# ---- breaker --------------------------------------------------------------------------------------------------------


def test_the_fifth_failure_holds_everything_behind_it() -> None:
    bench = Bench()
    bench.post(count=4)
    for work in bench.sends():
        bench.end(work, BROKEN)
    bench.post()
    [work] = bench.sends()
    assert bench.engine.take_breakers() == []
    bench.end(work, BROKEN)
    [record] = bench.engine.take_breakers()
    assert (record.tenant_id, record.origin, record.state) == (TENANT, ORIGIN, BreakerState.OPEN)
    assert NOW + PAUSE_S <= record.reopen_at <= NOW + JITTER * PAUSE_S
    bench.post(count=3)
    assert bench.sends() == []


def test_what_an_open_breaker_holds_is_written_once_and_not_again_however_long_it_waits() -> None:
    bench, shelf = shelved()
    break_it(bench)
    bench.post(count=20)
    shelf.go_on()
    assert shelf.written == 25
    assert {held.reason for held in shelf.rows.values() if held.retry_count == 0} == {WaitReason.BREAKER_OPEN}
    for _ in range(100):
        bench.wait(6)
        assert shelf.go_on() == []
        answer_probes(bench, granted=False)
    assert shelf.written == 25


def test_one_probe_is_asked_for_when_the_pause_is_over() -> None:
    bench = Bench(endpoint(E1), endpoint(E2))
    break_it(bench)
    bench.post(E1, E2, count=5)
    bench.sends()
    bench.settle()
    bench.wait(PAUSE_S - 0.1)
    assert not bench.engine.take_probes()
    bench.wait(PAUSE_OVER_S)
    asked = bench.engine.take_probes()
    assert list(asked) == [(TENANT, ORIGIN)]
    bench.post(E1, E2, count=5)
    bench.sends()
    assert not bench.engine.take_probes(), "while the answer has not come"
    bench.engine.ask_again(asked)
    asked = bench.engine.take_probes()
    assert list(asked) == [(TENANT, ORIGIN)], "there will be no answer"
    bench.engine.on_probes([], asked, now=bench.now)
    bench.post(E1, count=1)
    bench.sends()
    assert list(bench.engine.take_probes()) == [(TENANT, ORIGIN)], "the answer said nothing of it"


def test_a_granted_probe_is_one_delivery_and_its_answer_brings_everything_forward_on_a_ramp() -> None:
    bench, shelf = shelved(endpoint(retry=RetryPolicy(base_s=10_000)))
    break_it(bench)
    bench.post(count=40)
    shelf.go_on()
    bench.wait(PAUSE_OVER_S)
    assert answer_probes(bench) == 1
    shelf.fetch()
    [probe] = bench.sends()
    assert bench.sends() == []
    bench.end(probe, OK)
    shelf.settle()
    rounds, asked = [], []
    for _ in range(12):
        asked += shelf.fetch()
        works = bench.sends()
        rounds.append(len(works))
        for work in works:
            bench.end(work, OK)
        if bench.engine.unsettled:
            shelf.settle()
    assert rounds[:4] == [RAMP_START, 4, 8, 16]
    assert sum(rounds) == 44
    assert Wanted.FORWARD in asked
    assert shelf.rows == {}, "those that had failed do not sit out their hours"


def test_a_refused_probe_is_asked_for_again_when_the_other_workers_right_ends() -> None:
    bench, shelf = shelved()
    break_it(bench)
    shelf.go_on()
    bench.wait(PAUSE_OVER_S)
    answer_probes(bench, granted=False)
    bench.wait(39)
    shelf.go_on()
    assert not bench.engine.take_probes()
    bench.wait(1.1)
    assert list(bench.engine.take_probes()) == [(TENANT, ORIGIN)]


def test_a_breaker_that_was_closed_elsewhere_by_a_clock_set_back_does_not_hold_its_deliveries_for_ever() -> None:
    bench, shelf = shelved()
    break_it(bench)
    bench.engine.on_told(bench.engine.take_breakers())
    shelf.go_on()
    bench.wait(PAUSE_OVER_S)
    asked = bench.engine.take_probes()
    assert list(asked) == [(TENANT, ORIGIN)]
    stored = BreakerRecord(TENANT, ORIGIN, BreakerState.CLOSED, NOW - 3600, None, 0, 0)
    bench.engine.on_probes([Probe(False, bench.now, stored)], asked, now=bench.now)
    assert sorted(shelf.go_on()) == [1, 2, 3, 4, 5]


def test_a_failed_probe_doubles_the_pause_and_lets_nothing_else_out() -> None:
    bench, shelf = shelved()
    break_it(bench)
    bench.post(count=3)
    shelf.go_on()
    bench.wait(PAUSE_OVER_S)
    answer_probes(bench)
    shelf.fetch()
    bench.engine.take_breakers()
    assert len(shelf.go_on(BROKEN)) == 1
    [record] = bench.engine.take_breakers()
    assert 2 * PAUSE_S - 0.1 < record.reopen_at - bench.now <= 2 * JITTER * PAUSE_S


def test_endpoints_with_one_origin_share_its_breaker_and_another_tenant_does_not() -> None:
    other = UUID(int=0x21)
    bench = Bench(
        endpoint(E1), replace(endpoint(E2), url="https://receiver.example/else"), endpoint(other, tenant=OTHER_TENANT)
    )
    break_it(bench, E1)
    bench.post(E2)
    bench.post(other, tenant=OTHER_TENANT)
    assert [work.lane.endpoint.endpoint_id for work in bench.sends()] == [other]


def test_an_endpoint_elsewhere_is_not_held() -> None:
    bench = Bench(endpoint(E1), replace(endpoint(E2), url=ELSEWHERE))
    break_it(bench, E1)
    bench.post(E2)
    assert len(bench.sends()) == 1


def test_a_refusal_is_an_answer_and_opens_nothing() -> None:
    bench = Bench()
    bench.post(count=50)
    for work in bench.sends():
        bench.end(work, REFUSED)
    assert bench.engine.take_breakers() == []


def test_what_another_worker_has_learnt_holds_here_and_lets_go_here() -> None:
    bench = Bench()
    bench.post()
    record = BreakerRecord(TENANT, ORIGIN, BreakerState.OPEN, NOW + 1, NOW + 31, 1, 5)
    bench.engine.adopt_breakers([record], now=NOW + 1)
    assert bench.sends() == []
    bench.wait(5)
    closed = replace(record, state=BreakerState.CLOSED, since=NOW + 5, reopen_at=None)
    bench.engine.adopt_breakers([closed], now=bench.now)
    assert Shelf(bench).written == 0
    bench.settle()
    assert [fetch.wanted for fetch in bench.fetches()] == [Wanted.DUE]


def test_f29_what_was_known_before_a_breaker_opened_does_not_close_it_though_it_bears_a_later_time() -> None:
    """The database's clock was set back behind the tenant's word that the receiver is well. That word comes again with
    every look of that time."""
    bench = Bench()
    bench.post()
    bench.end(bench.sends()[0], OK)
    said = BreakerRecord(TENANT, ORIGIN, BreakerState.CLOSED, NOW + 20, None, 0, 0)
    bench.engine.adopt_breakers([said], now=bench.now)
    break_it(bench)
    [opened] = bench.engine.take_breakers()
    assert opened.state is BreakerState.OPEN
    assert opened.since > said.since, "or nobody else would hear of it"
    bench.engine.adopt_breakers([said], now=bench.now)
    bench.post()
    assert bench.sends() == []
    again = replace(said, since=opened.since + 1)
    bench.engine.adopt_breakers([again], now=bench.now)
    bench.post()
    assert bench.sends() != []


def test_f29_its_own_word_of_a_recovery_that_comes_back_brings_nothing_forward_that_failed_behind_it() -> None:
    """While the clock stands, each state of a breaker is said to be later than the one before by a little: the word of
    the recovery bore a later time than what failed right behind it."""
    bench, shelf = shelved()
    break_it(bench)
    shelf.go_on()
    bench.wait(PAUSE_OVER_S)
    answer_probes(bench)
    shelf.fetch()
    [probe] = bench.sends()
    bench.end(probe, OK)
    shelf.go_on()
    recovered = [each for each in bench.engine.take_breakers() if each.state is BreakerState.CLOSED]
    assert [each.since > bench.now for each in recovered] == [True]
    bench.post()
    for work in bench.sends():
        bench.end(work, FAILED)
    shelf.go_on()
    bench.engine.adopt_breakers(recovered, now=bench.now)
    assert shelf.go_on() == []
    bench.wait(1000.0)
    assert shelf.go_on() != []


@pytest.mark.parametrize("waits", [False, True])
def test_f29_a_recovery_in_the_time_to_come_brings_nothing_forward_that_fails_behind_the_word_of_it(
    waits: bool,
) -> None:
    """The last owner said so by the clock as it was before it was set back. What has waited goes out at once; what fails
    from then on is not tried again and again, past the budget, until the clock shows that time."""
    bench, shelf = shelved()
    said = BreakerRecord(TENANT, ORIGIN, BreakerState.CLOSED, NOW + 20, None, 0, 0)
    bench.post()
    bench.end(bench.sends()[0], FAILED if waits else OK)
    shelf.settle()
    bench.engine.adopt_breakers([said], now=bench.now)
    if not waits:
        bench.post()
        bench.end(bench.sends()[0], FAILED)
    assert shelf.go_on(FAILED) == ([1] if waits else [])
    assert shelf.go_on(FAILED) == []
    bench.wait(1000.0)
    assert shelf.go_on() == [1 if waits else 2]


def test_the_right_to_a_probe_is_given_back_when_nothing_is_left_to_send() -> None:
    """What was to be the probe had reached its deadline, and nobody else might send another one for 40 s."""
    bench, shelf = shelved()
    break_it(bench)
    shelf.go_on()
    bench.wait(PAUSE_OVER_S)
    bench.engine.take_breakers()
    bench.configure(replace(endpoint(), status=EndpointStatus.PAUSED))
    assert answer_probes(bench) == 1
    assert bench.sends() == []
    bench.wait(PROBE_BEGINS_S - 0.1)
    assert bench.engine.take_breakers() == []
    assert bench.engine.next_wakeup() <= bench.now + 0.1
    bench.wait(0.1)
    [given_back] = bench.engine.take_breakers()
    assert (given_back.state, given_back.reopen_at) == (BreakerState.OPEN, bench.now)
    bench.configure(endpoint())
    shelf.go_on()
    assert answer_probes(bench) == 1
    shelf.fetch()
    assert len(bench.sends()) == 1


def test_the_right_to_a_probe_that_has_begun_is_kept() -> None:
    bench, shelf = shelved()
    break_it(bench)
    shelf.go_on()
    bench.wait(PAUSE_OVER_S)
    bench.engine.take_breakers()
    answer_probes(bench)
    shelf.fetch()
    [probe] = bench.sends()
    bench.wait(PROBE_BEGINS_S + 5.0)
    assert bench.engine.take_breakers() == []
    bench.end(probe, OK)
    [recovered] = bench.engine.take_breakers()
    assert recovered.state is BreakerState.CLOSED


def test_who_was_refused_the_probe_asks_again_as_soon_as_it_is_given_back() -> None:
    bench, shelf = shelved()
    break_it(bench)
    shelf.go_on()
    bench.wait(PAUSE_OVER_S)
    [opened] = bench.engine.take_breakers()
    answer_probes(bench, granted=False)
    bench.wait(5.0)
    shelf.go_on()
    assert answer_probes(bench) == 0
    bench.engine.adopt_breakers([replace(opened, since=bench.now, reopen_at=bench.now)], now=bench.now)
    bench.wait(0.1)
    assert answer_probes(bench) == 1


def test_a_probe_whose_endpoint_moves_to_another_url_leaves_no_breaker_waiting_for_it() -> None:
    """Its outcome was taken for one of the new receiver; the old one's breaker waited for its probe for ever."""
    bench, shelf = shelved(endpoint(E1), endpoint(E2))
    break_it(bench, E1)
    bench.post(E2, count=3)
    shelf.go_on()
    bench.wait(PAUSE_OVER_S)
    answer_probes(bench)
    shelf.fetch()
    [probe] = bench.sends()
    mover, stays = (E1, E2) if probe.lane.endpoint.endpoint_id == E1 else (E2, E1)
    bench.configure(replace(endpoint(mover), url=ELSEWHERE))
    bench.end(probe, OK)
    shelf.settle()
    shelf.fetch()
    assert stays in {work.lane.endpoint.endpoint_id for work in bench.sends()}


def test_what_was_under_way_to_an_old_url_says_nothing_of_the_new_one() -> None:
    bench = Bench()
    bench.post(count=6)
    works = bench.sends()
    bench.configure(replace(endpoint(), url=ELSEWHERE))
    for work in works:
        bench.end(work, BROKEN)
    bench.post()
    assert len(bench.sends()) == 1


# ---- retry budget ---------------------------------------------------------------------------------------------------


def retrying(bench: Bench, count: int) -> Shelf:
    """So many deliveries that have failed once, settled, and due for a retry by now."""
    shelf = Shelf(bench)
    for _ in range(count):
        bench.post()
        [work] = bench.sends()
        bench.end(work, structs.replace(REFUSED, status=408))
    shelf.settle()
    bench.wait(10)
    return shelf


FAILED = structs.replace(REFUSED, status=408)


def test_retries_over_the_budget_wait_and_go_on_when_the_window_has_moved_on() -> None:
    bench = Bench(policies=budget_of(4))
    shelf = retrying(bench, 10)
    first = shelf.go_on(FAILED)
    assert len(first) == 2, "one share is left for another tenant"
    written = shelf.written
    for _ in range(55):
        bench.wait(1)
        assert shelf.go_on(FAILED) == []
    assert shelf.written == written, "what waits for the budget is not rewritten"
    bench.wait(6 + BUDGET_LOOK_S)
    assert len(shelf.go_on(FAILED)) == 2


def test_what_waits_for_the_budget_says_so() -> None:
    bench = Bench(policies=budget_of(2))
    shelf = retrying(bench, 3)
    shelf.fetch()
    [admitted] = bench.sends()
    lane = admitted.lane
    assert lane.over_budget
    config = lane.endpoint.config
    assert config is not None
    wait = bench.engine._gates.admit(lane, lane.later[0], config, now=bench.now)
    assert wait is not None and wait.reason is WaitReason.RETRY_BUDGET


def test_first_attempts_go_before_retries_that_are_over_the_budget() -> None:
    bench = Bench(policies=budget_of(2))
    shelf = retrying(bench, 10)
    shelf.fetch()
    bench.post(count=20)
    sent = bench.sends()
    assert sorted(seqs(sent))[-20:] == list(range(11, 31))
    assert len([work for work in sent if work.retry_count]) == 1


def test_retries_that_succeed_take_nothing_from_the_budget() -> None:
    bench = Bench(policies=budget_of(2))
    shelf = retrying(bench, 30)
    sent = []
    for _ in range(40):
        sent += shelf.go_on()
        bench.wait(BUDGET_LOOK_S)
    assert sorted(sent) == list(range(1, 31))


def test_what_a_breaker_held_is_not_limited_by_the_budget_when_it_comes_forward() -> None:
    """Those whose retry fell due behind the open breaker came back as ordinary retries."""
    bench, shelf = shelved(policies=budget_of(2))
    break_it(bench)
    shelf.go_on()
    bench.wait(PAUSE_OVER_S)
    answer_probes(bench)
    sent = shelf.go_on()
    assert sorted(sent) == [1, 2, 3, 4, 5]


def test_a_lane_over_the_budget_comes_forward_with_its_receiver() -> None:
    """It went on waiting for the budget though the breaker had held what it had."""
    bench = Bench(policies=budget_of(2))
    shelf = retrying(bench, 3)
    assert len(shelf.go_on(FAILED)) == 1
    opened = BreakerRecord(TENANT, ORIGIN, BreakerState.OPEN, bench.now, bench.now + 30, 1, 5)
    bench.engine.adopt_breakers([opened], now=bench.now)
    shelf.go_on()
    bench.wait(5)
    closed = replace(opened, state=BreakerState.CLOSED, since=bench.now, reopen_at=None)
    bench.engine.adopt_breakers([closed], now=bench.now)
    assert sorted(shelf.go_on()) == [1, 2, 3]


def test_a_probe_needs_no_part_of_the_budget() -> None:
    bench = Bench(policies=budget_of(2))
    shelf = retrying(bench, 3)
    assert len(shelf.go_on(FAILED)) == 1
    opened = BreakerRecord(TENANT, ORIGIN, BreakerState.OPEN, bench.now, bench.now + 1, 1, 5)
    bench.engine.adopt_breakers([opened], now=bench.now)
    shelf.go_on()
    bench.wait(1.1)
    shelf.go_on()
    assert answer_probes(bench) == 1
    shelf.fetch()
    assert len(bench.sends()) == 1


# ---- scarce places --------------------------------------------------------------------------------------------------


def test_a_tenant_whose_endpoints_never_answer_leaves_places_for_another() -> None:
    silent = [UUID(int=0x1000 + number) for number in range(20)]
    other = UUID(int=0x21)
    bench = Bench(
        *(endpoint(each) for each in silent),
        endpoint(other, tenant=OTHER_TENANT),
        limits=Limits(in_flight=100),
        tenant_cap=10_000,
    )
    for each in silent:
        bench.post(each, count=50)
    assert len(bench.sends()) == 50
    bench.post(other, count=30, tenant=OTHER_TENANT)
    assert {work.entry.tenant_id for work in bench.sends()} == {OTHER_TENANT}
    bench.wait(60)
    assert bench.sends() == []


def test_a_tenant_alone_that_answers_uses_what_is_not_scarce() -> None:
    bench = Bench(endpoint(cap=1000), limits=Limits(in_flight=100), tenant_cap=1000)
    bench.post(count=300)
    done = 0
    while works := bench.sends():
        assert len(works) == 50 or done + len(works) == 300
        for work in works:
            bench.end(work, OK)
        done += len(works)
    assert done == 300


# ---- ordered --------------------------------------------------------------------------------------------------------


def ordered(**changes: Any) -> Endpoint:
    return endpoint(ordered=True, pinned=True, **changes)


def test_an_ordered_endpoint_has_one_under_way_whatever_its_cap() -> None:
    bench = Bench(ordered())
    bench.post(count=4)
    sent = []
    for _ in range(4):
        [work] = bench.sends()
        assert bench.sends() == []
        bench.end(work, OK)
        sent.append(work.entry.seq)
    assert sent == [1, 2, 3, 4]


def test_a_retried_head_blocks_its_lane_until_it_is_delivered() -> None:
    bench, shelf = shelved(ordered())
    bench.post(count=5)
    [head] = bench.sends()
    bench.end(head, BROKEN)
    assert shelf.go_on() == []
    bench.wait(1)
    assert shelf.go_on() == []
    bench.wait(5)
    assert shelf.go_on() == [1, 2, 3, 4, 5]


def test_an_ordered_backlog_is_read_from_its_head_and_what_is_fresh_waits_behind_it() -> None:
    bench, shelf = shelved(ordered(status=EndpointStatus.PAUSED))
    bench.post(count=5)
    shelf.go_on()
    bench.configure(ordered())
    bench.post(count=3)
    assert bench.sends() == []
    assert [fetch.wanted for fetch in bench.fetches()] == [Wanted.HEAD]


def test_an_ordered_lane_drains_in_order_through_pauses() -> None:
    bench, shelf = shelved(ordered())
    sent = []
    for pause in range(4):
        bench.configure(ordered(status=EndpointStatus.PAUSED))
        bench.post(count=20)
        shelf.go_on()
        bench.configure(ordered())
        bench.post(count=3)
        sent += shelf.go_on(rounds=500)
        assert len(sent) == 23 * (pause + 1)
    assert sent == sorted(sent)


def blocked() -> tuple[Bench, Shelf]:
    """The first of three is dead and blocks the others."""
    bench, shelf = shelved(ordered())
    bench.post(count=3)
    [head] = bench.sends()
    bench.end(head, REFUSED)
    shelf.go_on()
    return bench, shelf


def test_a_dead_head_that_blocks_leaves_a_row_that_is_never_due_and_nothing_follows() -> None:
    bench, shelf = blocked()
    assert (shelf.rows[E1, 1].due_at, shelf.rows[E1, 1].deadline) == (NEVER, NEVER)
    bench.wait(1000)
    assert shelf.go_on() == []


def test_a_dead_head_says_so_with_a_dead_letter_at_once() -> None:
    bench = Bench(ordered())
    bench.post()
    [head] = bench.sends()
    bench.end(head, REFUSED)
    assert [letter.position for letter in bench.settle().dead] == [1]


def test_with_skip_a_dead_head_lets_the_next_go_once_its_death_is_committed() -> None:
    bench = Bench(ordered(on_dead=OnDead.SKIP))
    bench.post(count=3)
    [head] = bench.sends()
    bench.end(head, REFUSED)
    assert bench.sends() == []  # An owner that takes over now knows nothing of the death, and tries the first again.
    bench.settle()
    [second] = bench.sends()
    bench.end(second, OK)
    assert [second.entry.seq, *seqs(bench.sends())] == [2, 3]


def test_a_replay_of_what_blocks_takes_its_place_before_those_behind_it() -> None:
    bench, shelf = blocked()
    replay(bench, 1)
    assert shelf.go_on() == [1, 2, 3]
    assert shelf.rows == {}


def test_a_replay_of_something_else_waits_its_turn_in_the_order() -> None:
    bench, shelf = shelved(ordered())
    bench.post(count=2)
    assert shelf.go_on() == [1, 2]
    bench.post(count=2)
    again = replay(bench, 1)
    assert shelf.go_on() == [3, 4, again]


def test_cancelling_what_blocks_lets_the_next_go() -> None:
    bench, shelf = blocked()
    ask(bench, CANCEL, 1)
    assert shelf.go_on() == [2, 3]


def test_switching_to_skip_drops_what_blocks() -> None:
    bench, shelf = blocked()
    bench.configure(ordered(on_dead=OnDead.SKIP))
    assert shelf.go_on() == [2, 3]
    assert shelf.rows == {}


def test_retry_now_of_an_ordered_head_does_not_wait_for_its_schedule() -> None:
    bench, shelf = shelved(ordered(retry=RetryPolicy(base_s=1000)))
    bench.post(count=3)
    [head] = bench.sends()
    bench.end(head, BROKEN)
    assert shelf.go_on() == []
    ask(bench, RETRY_NOW, 1)
    assert shelf.go_on() == [1, 2, 3]


def test_retry_now_of_one_behind_the_head_overtakes_nothing() -> None:
    bench, shelf = shelved(ordered(retry=RetryPolicy(base_s=1000)))
    bench.post(count=3)
    [head] = bench.sends()
    bench.end(head, BROKEN)
    shelf.go_on()
    ask(bench, RETRY_NOW, 2)
    assert shelf.go_on() == []


def test_a_receivers_recovery_brings_an_ordered_head_forward() -> None:
    """It sat out its schedule, though another endpoint's probe had shown that the receiver is back."""
    bench, shelf = shelved(ordered(retry=RetryPolicy(base_s=10_000)))
    bench.post(count=3)
    [head] = bench.sends()
    bench.end(head, BROKEN)
    shelf.go_on()
    opened = BreakerRecord(TENANT, ORIGIN, BreakerState.OPEN, bench.now + 1, bench.now + 31, 1, 5)
    bench.wait(1)
    bench.engine.adopt_breakers([opened], now=bench.now)
    bench.wait(PAUSE_OVER_S)
    closed = replace(opened, state=BreakerState.CLOSED, since=bench.now, reopen_at=None)
    bench.engine.adopt_breakers([closed], now=bench.now)
    assert shelf.go_on() == [1, 2, 3]


def test_what_was_queued_in_order_goes_out_in_order_when_order_has_ended() -> None:
    bench, shelf = shelved(ordered(status=EndpointStatus.PAUSED))
    bench.post(count=3)
    shelf.go_on()
    bench.configure(endpoint(ordered_to=(0, 3)))
    bench.post(count=2)
    sent = []
    for _ in range(3):
        shelf.fetch()
        [work] = bench.sends()
        sent.append(work.entry.seq)
        bench.end(work, OK)
        shelf.settle()
    assert sent == [1, 2, 3]
    shelf.fetch()
    assert sorted(seqs(bench.sends())) == [4, 5]


def test_an_ordered_lane_is_quiet_while_the_last_owners_request_may_be_on_its_way() -> None:
    takeover = Takeover(0, 2, read_to=2, read_day=9000, rows=(row(1), row(2)), quiet_until=NOW + 5)
    bench = Bench(ordered(), takeovers=(takeover,))
    assert bench.sends() == []
    bench.wait(4.9)
    assert bench.sends() == []
    bench.wait(0.11)
    assert seqs(bench.sends()) == [1]


def test_an_unordered_lane_need_not_be_quiet() -> None:
    takeover = Takeover(0, 2, read_to=2, read_day=9000, rows=(row(1), row(2)), quiet_until=NOW + 5)
    assert seqs(Bench(takeovers=(takeover,)).sends()) == [1, 2]


def test_a_barred_endpoint_sends_nothing_at_home_until_the_bar_is_lifted() -> None:
    bench, shelf = shelved(ordered(barred=True))
    bench.post(count=2)
    assert shelf.go_on() == []
    assert {held.reason for held in shelf.rows.values()} == {WaitReason.ORDERED}
    bench.configure(ordered())
    assert shelf.go_on() == [1, 2]


def test_a_barred_endpoint_drains_in_the_shards_it_comes_from() -> None:
    bench = Bench(ordered(barred=True), shards=(0, 1))
    bench.tenants = [Tenant(TENANT, (0, 1))]
    bench.configure()
    bench.post(shard=0)
    bench.post(shard=1)
    assert [work.entry.shard for work in bench.sends()] == [1]


def test_a_lane_in_order_goes_on_when_the_last_request_of_its_endpoint_ends_in_a_lane_without_order() -> None:
    """An endpoint that is ordered no more drains in order in one shard, while others carry what is fresh."""
    bench = Bench(endpoint(ordered_to=(0, 5)), shards=(1,))
    bench.tenants = [Tenant(TENANT, (0, 1))]
    bench.configure()
    bench.post(shard=1, count=2)
    works = bench.sends()
    bench.engine.open_shard(backlog(2), now=bench.now)
    assert not bench.fetches()
    bench.end(works[0], OK)
    assert not bench.fetches()
    bench.end(works[1], OK)
    assert [(fetch.shard, fetch.wanted) for fetch in bench.fetches()] == [(0, Wanted.HEAD)]


def test_a_lane_in_order_goes_on_when_a_request_ends_that_began_before_its_shard_was_lost_and_found_again() -> None:
    bench = Bench()
    bench.post()
    [work] = bench.sends()
    bench.engine.close_shard(0)
    bench.configure(ordered())
    bench.engine.open_shard(backlog(2), now=bench.now)
    bench.configure()
    assert not bench.fetches()
    bench.end(work, OK)
    assert [fetch.wanted for fetch in bench.fetches()] == [Wanted.HEAD]


def test_a_replay_written_down_while_the_endpoint_kept_no_order_takes_the_place_of_what_blocks() -> None:
    bench, shelf = shelved(ordered())
    bench.post(count=2)
    [first] = bench.sends()
    bench.end(first, REFUSED)
    assert shelf.go_on() == []
    bench.configure(endpoint(status=EndpointStatus.PAUSED))
    replay(bench, 1)
    bench.configure(ordered())
    assert shelf.go_on() == [1, 2]
    assert not shelf.rows


def test_a_replay_asked_for_before_the_delivery_died_takes_its_place_when_somebody_looks() -> None:
    bench, shelf = shelved(ordered(retry=RetryPolicy(max_attempts=2)))
    bench.post()
    [work] = bench.sends()
    replay(bench, 1)
    bench.end(work, REFUSED)
    shelf.go_on()
    bench.configure()
    parts = []
    for _ in range(6):
        bench.wait(TICK_S)
        shelf.fetch()
        for each in bench.sends():
            bench.end(each, OK)
        if bench.engine.unsettled:
            parts.append(shelf.settle())
    assert not shelf.rows
    assert [len(part.revived) for part in parts if part.revived] == [1]


# ---- cancel, retry now, replays -------------------------------------------------------------------------------------


def test_cancel_drops_what_is_queued_and_finishes_it() -> None:
    bench, shelf = shelved(endpoint(cap=1))
    bench.post(count=3)
    [first] = bench.sends()
    ask(bench, CANCEL, 2)
    bench.end(first, OK)
    assert shelf.go_on() == [3]
    assert bench.engine.read_to(0)[0] == 4
    assert bench.engine.buffered == 0


def test_cancel_of_what_is_under_way_lets_it_end_and_never_tries_again() -> None:
    bench, shelf = shelved()
    bench.post()
    [work] = bench.sends()
    ask(bench, CANCEL, 1)
    bench.end(work, BROKEN)
    part = shelf.settle()
    assert (part.upserts, part.progress.cursor) == ({}, 2)


def test_cancel_takes_what_waits_out_of_the_backlog_even_behind_a_closed_gate() -> None:
    bench, shelf = shelved(endpoint(status=EndpointStatus.PAUSED))
    bench.post(count=2)
    shelf.go_on()
    ask(bench, CANCEL, 1)
    shelf.go_on()
    assert set(shelf.rows) == {(E1, 2)}


def test_a_replay_asked_for_after_a_cancel_is_not_cancelled() -> None:
    bench, shelf = shelved(endpoint(status=EndpointStatus.PAUSED))
    bench.post()
    shelf.go_on()
    ask(bench, CANCEL, 1)
    again = replay(bench, 1)
    shelf.go_on()
    bench.configure(endpoint())
    assert shelf.go_on() == [again]


def test_retry_now_sends_what_waits_for_its_schedule() -> None:
    bench, shelf = shelved(endpoint(retry=RetryPolicy(base_s=10_000)))
    bench.post(count=2)
    for work in bench.sends():
        bench.end(work, BROKEN)
    assert shelf.go_on() == []
    ask(bench, RETRY_NOW, 2)
    assert shelf.go_on() == [2]


@pytest.mark.parametrize("where", ["queued", "under way"])
def test_retry_now_of_what_does_not_wait_changes_nothing(where: str) -> None:
    bench, shelf = shelved(endpoint(cap=1))
    bench.post(count=2)
    [first] = bench.sends()
    ask(bench, RETRY_NOW, 2 if where == "queued" else 1)
    assert bench.sends() == []
    bench.end(first, OK)
    assert shelf.go_on() == [2]
    assert shelf.rows == {}


@pytest.mark.parametrize("where", ["fetched", "stored"])
def test_retry_now_does_not_wait_for_the_budget(where: str) -> None:
    """What was fetched already was overlooked; what was not lined up behind others that the budget held."""
    bench = Bench(policies=budget_of(2))
    shelf = retrying(bench, 3)
    [sent] = shelf.go_on(FAILED)
    asked = max({1, 2, 3} - {sent}) if where == "fetched" else sent
    ask(bench, RETRY_NOW, asked)
    assert shelf.go_on() == [asked]


def test_replays_are_second_to_fresh_ones() -> None:
    bench = Bench(endpoint(cap=1))
    bench.post()
    [work] = bench.sends()
    bench.end(work, OK)
    replays = [replay(bench, 1, generation=number) for number in range(1, 5)]
    bench.post(count=9)
    order = []
    while works := bench.sends():
        order += seqs(works)
        bench.end(works[0], OK)
    places = [order.index(seq) for seq in replays]
    assert places == sorted(places)
    assert all(seq not in replays for seq in order[:2])
    assert [place for place in places if place < 12] == places[:3], "one turn of four"


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_what_fills_the_memory_goes_to_the_backlog_in_slices() -> None:
    bench = Bench(endpoint(cap=1), limits=Limits(buffer=10_000))
    bench.post(count=10_001)
    bench.sends()
    assert len(bench.settle().upserts) <= SPILL_AT_ONCE
    assert bench.engine.room()[0] > 0


def test_the_oldest_of_a_lane_stay_in_memory_when_it_spills() -> None:
    bench = Bench(endpoint(cap=1), limits=Limits(buffer=10_000))
    bench.post(count=10_001)
    bench.sends()
    assert min(position for _, position in bench.settle().upserts) > 8_000
