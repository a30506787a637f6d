"""The breaker's transitions as a table, the length of its pauses, its ramp, and what it takes over from other workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.model import ErrorCode, Outcome
from hookpost.policy.breaker import (
    JITTER,
    RAMP_END,
    RAMP_START,
    Breaker,
    BreakerPolicy,
    BreakerRecord,
    BreakerState,
    Probe,
    Verdict,
    verdict,
)

NOW = 1_800_000_000.0
TENANT, ORIGIN = UUID(int=0x10), "https://receiver.example:443"
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
SICK, HEALTHY, NOTHING = Verdict.SICK, Verdict.HEALTHY, Verdict.NOTHING


class Drawn(Random):
    """Every draw is this one."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def random(self) -> float:
        return self._value


# The shortest pauses and the longest.
LEAST, MOST = Drawn(0.0), Drawn(1.0 - 2**-53)
# For how long the store grants the probe.
GRANT_S = 40.0


def closed() -> Breaker:
    return Breaker(BreakerPolicy(), now=NOW)


def opened(breaker: Breaker | None = None, *, now: float = NOW) -> Breaker:
    breaker = breaker or closed()
    while breaker.state is CLOSED:
        breaker.observe(SICK, probe=False, now=now, rng=LEAST)
    return breaker


def granted(breaker: Breaker, *, now: float) -> Breaker:
    """Half-open: the store has granted it the probe."""
    record = breaker.record(TENANT, ORIGIN)
    breaker.grant(Probe(granted=True, until=now + GRANT_S, record=record), asked=breaker.told_since, now=now)
    return breaker


def half_open() -> Breaker:
    return granted(opened(), now=NOW + 30)


def probing() -> Breaker:
    breaker = half_open()
    assert breaker.start()
    return breaker


def recovered() -> Breaker:
    breaker = probing()
    breaker.observe(HEALTHY, probe=True, now=NOW + 31, rng=LEAST)
    return breaker


def record(state: BreakerState, *, since: float, reopen_at: float | None = None, openings: int = 1) -> BreakerRecord:
    return BreakerRecord(TENANT, ORIGIN, state, since, reopen_at, openings, 5)


def shown(breaker: Breaker) -> tuple[BreakerState, float, float, int, int | None, bool]:
    """All that decides what a breaker does next, but for the count of failures."""
    return breaker.state, breaker.since, breaker.reopen_at, breaker.openings, breaker.ramp, breaker.probing


# ---- what an outcome says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        (None, 200, HEALTHY),
        (ErrorCode.HTTP_4XX, 400, HEALTHY),
        (ErrorCode.HTTP_4XX, 404, HEALTHY),
        (ErrorCode.HTTP_4XX, 408, HEALTHY),
        (ErrorCode.HTTP_410, 410, HEALTHY),
        (ErrorCode.HTTP_3XX, 302, HEALTHY),
        (ErrorCode.BAD_ACK, 200, HEALTHY),
        (ErrorCode.HTTP_429, 429, SICK),
        (ErrorCode.HTTP_5XX, 503, SICK),
        (ErrorCode.CONNECT_REFUSED, None, SICK),
        (ErrorCode.TOTAL_TIMEOUT, None, SICK),
        (ErrorCode.TLS_UNTRUSTED, None, SICK),
        (ErrorCode.DNS_FAILURE, None, SICK),
        (ErrorCode.INTERNAL_ERROR, None, NOTHING),
        (ErrorCode.INVALID_URL, None, NOTHING),
        (ErrorCode.ADDRESS_FORBIDDEN, None, NOTHING),
        (ErrorCode.EGRESS_PROXY_ERROR, None, NOTHING),
    ],
)
def test_a_receiver_that_answers_is_well_and_our_own_faults_say_nothing(
    code: ErrorCode | None, status: int | None, said: Verdict
) -> None:
    assert verdict(Outcome(code, status)) is said


# ---- transitions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "said", "probe", "after"),
    [
        (closed, SICK, False, CLOSED),
        (closed, HEALTHY, False, CLOSED),
        (closed, NOTHING, False, CLOSED),
        (opened, SICK, False, OPEN),
        (opened, HEALTHY, False, OPEN),
        (opened, NOTHING, False, OPEN),
        (half_open, SICK, False, HALF_OPEN),
        (half_open, HEALTHY, False, HALF_OPEN),
        (half_open, NOTHING, False, HALF_OPEN),
        (probing, SICK, False, HALF_OPEN),
        (probing, HEALTHY, False, HALF_OPEN),
        (probing, SICK, True, OPEN),
        (probing, HEALTHY, True, CLOSED),
        (probing, NOTHING, True, OPEN),
        # A probe that ends when it is none any more: nothing moves.
        (closed, HEALTHY, True, CLOSED),
        (closed, NOTHING, True, CLOSED),
        (opened, SICK, True, OPEN),
        (opened, NOTHING, True, OPEN),
        (recovered, NOTHING, True, CLOSED),
    ],
)
def test_an_outcome_moves_the_breaker_as_the_table_says(
    before: object, said: Verdict, probe: bool, after: BreakerState
) -> None:
    breaker = before()  # type: ignore[operator]
    was = breaker.state
    changed = breaker.observe(said, probe=probe, now=NOW + 32, rng=LEAST)
    assert breaker.state is after
    assert changed is (after is not was)


def test_the_fifth_failure_in_a_row_opens_it() -> None:
    breaker = closed()
    assert [breaker.observe(SICK, probe=False, now=NOW, rng=LEAST) for _ in range(5)] == [False] * 4 + [True]
    assert (breaker.state, breaker.reopen_at) == (OPEN, NOW + 30)


@pytest.mark.parametrize("answer", [HEALTHY])
def test_an_answer_between_begins_the_row_anew(answer: Verdict) -> None:
    breaker = closed()
    for said in [SICK] * 4 + [answer] + [SICK] * 4:
        assert not breaker.observe(said, probe=False, now=NOW, rng=LEAST)
    assert breaker.observe(SICK, probe=False, now=NOW, rng=LEAST)


def test_a_fault_of_ours_neither_counts_nor_ends_a_row() -> None:
    breaker = closed()
    for said in [SICK, NOTHING] * 4:
        assert not breaker.observe(said, probe=False, now=NOW, rng=LEAST)
    assert breaker.observe(SICK, probe=False, now=NOW, rng=LEAST)


@pytest.mark.parametrize("late", [SICK, HEALTHY, NOTHING])
@pytest.mark.parametrize("before", [opened, half_open, probing])
def test_what_was_under_way_before_it_opened_changes_nothing(before: object, late: Verdict) -> None:
    breaker = before()  # type: ignore[operator]
    was = shown(breaker)
    for _ in range(64):
        assert not breaker.observe(late, probe=False, now=NOW + 31, rng=LEAST)
    assert shown(breaker) == was


@pytest.mark.parametrize(
    ("rng", "expected"),
    [(LEAST, [30, 60, 120, 240, 400, 400, 400, 400]), (MOST, [45, 90, 180, 360, 600, 600, 600, 600])],
)
def test_each_failed_probe_doubles_the_pause_up_to_ten_minutes(rng: Random, expected: list[float]) -> None:
    breaker, pauses = closed(), []
    for _ in range(BreakerPolicy().failures):
        breaker.observe(SICK, probe=False, now=NOW, rng=rng)
    for _ in range(8):
        pauses.append(breaker.reopen_at - breaker.since)
        granted(breaker, now=breaker.reopen_at).start()
        breaker.observe(SICK, probe=True, now=breaker.since + 1, rng=rng)
    assert pauses == pytest.approx(expected)


def test_a_breaker_that_stays_open_for_years_keeps_its_longest_pause() -> None:
    breaker = opened()
    for _ in range(100_000):
        granted(breaker, now=breaker.reopen_at).start()
        breaker.observe(SICK, probe=True, now=breaker.since, rng=MOST)
    assert breaker.reopen_at - breaker.since == pytest.approx(600)


@given(
    st.floats(0.1, 86_400), st.floats(0.1, 86_400), st.integers(1, 100_000), st.floats(0, 1, exclude_max=True)
)  # fmt: skip
def test_a_pause_is_never_shorter_than_is_promised_nor_longer_than_the_longest(
    pause_s: float, pause_max_s: float, openings: int, draw: float
) -> None:
    policy = BreakerPolicy(pause_s=pause_s, pause_max_s=pause_max_s)
    pause = policy.pause(openings, rng=Drawn(draw))
    shortest, longest = policy.pause(openings, rng=LEAST), policy.pause(openings, rng=MOST)
    assert min(pause_s, pause_max_s) <= shortest <= pause <= longest <= pause_max_s
    assert longest <= shortest * JITTER * (1 + 1e-9)
    assert shortest <= policy.pause(openings + 1, rng=LEAST)


def test_receivers_that_fell_together_come_back_apart() -> None:
    """Two hours away: of each thousand no tenth of the longest pause sees more than a fifth."""
    rng, policy, back_s = Random(7), BreakerPolicy(), 7200.0
    returns = []
    for _ in range(1000):
        at, openings = 0.0, 0
        while at < back_s:
            openings += 1
            at += policy.pause(openings, rng=rng)
        returns.append(int((at - back_s) / (policy.pause_max_s / 10)))
    assert max(map(returns.count, range(10))) < 200


def test_a_fault_of_ours_gives_the_probe_back_without_doubling() -> None:
    breaker = probing()
    assert breaker.observe(NOTHING, probe=True, now=NOW + 31, rng=LEAST)
    assert (breaker.state, breaker.openings, breaker.reopen_at) == (OPEN, 1, NOW + 61)
    granted(breaker, now=NOW + 61).start()
    breaker.observe(SICK, probe=True, now=NOW + 62, rng=LEAST)
    assert breaker.reopen_at == NOW + 62 + 60


# ---- what it lets through -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [0, 1, 63, 10_000])
def test_closed_it_lets_everything_through_and_open_nothing(in_flight: int) -> None:
    assert not closed().closed_to(in_flight)
    assert opened().closed_to(in_flight)


def test_half_open_it_lets_one_probe_through() -> None:
    breaker = half_open()
    assert not breaker.closed_to(0)
    assert breaker.start()
    assert breaker.closed_to(0)


def test_it_wants_a_probe_when_the_pause_is_over_and_not_before() -> None:
    breaker = opened()
    assert not breaker.wants_probe(now=NOW + 29.999)
    assert breaker.wants_probe(now=NOW + 30)


def test_who_has_the_right_to_the_probe_does_not_ask_again_until_it_lapses_unused() -> None:
    breaker = half_open()
    assert not breaker.wants_probe(now=NOW + 30 + GRANT_S - 0.001)
    assert breaker.state is HALF_OPEN
    assert breaker.wants_probe(now=NOW + 30 + GRANT_S)
    assert breaker.state is OPEN


def test_a_probe_that_is_under_way_does_not_lapse() -> None:
    breaker = probing()
    assert not breaker.wants_probe(now=NOW + 1000)
    assert breaker.state is HALF_OPEN


def test_the_right_to_a_probe_that_is_not_used_is_given_back_and_the_next_one_may_send_it_at_once() -> None:
    mine, others = half_open(), opened()
    now = NOW + 33
    refusal = Probe(granted=False, until=NOW + 30 + GRANT_S, record=mine.record(TENANT, ORIGIN))
    others.grant(refusal, asked=others.told_since, now=NOW + 31)
    assert others.closed_until == NOW + 30 + GRANT_S
    assert mine.give_back(now=now)
    assert (mine.state, mine.openings, mine.told) == (OPEN, 1, False)
    assert others.adopt(mine.record(TENANT, ORIGIN)), "it is closed to it for less long"
    assert others.wants_probe(now=now)
    assert not others.adopt(mine.record(TENANT, ORIGIN))


@pytest.mark.parametrize("before", [closed, opened, probing, recovered])
def test_only_a_right_that_is_not_used_is_given_back(before: Callable[[], Breaker]) -> None:
    breaker = before()
    was = shown(breaker)
    assert not breaker.give_back(now=NOW + 33)
    assert shown(breaker) == was


def test_that_another_worker_has_the_probe_is_no_reason_to_ask_sooner() -> None:
    mine, others = half_open(), opened()
    refusal = Probe(granted=False, until=NOW + 30 + GRANT_S, record=mine.record(TENANT, ORIGIN))
    others.grant(refusal, asked=others.told_since, now=NOW + 31)
    assert not others.adopt(mine.record(TENANT, ORIGIN))
    assert not others.wants_probe(now=NOW + 30 + GRANT_S - 0.001)


# ---- the ramp -------------------------------------------------------------------------------------------------------


def test_behind_a_recovery_two_may_be_under_way_and_twice_as_many_each_round_trip() -> None:
    breaker, rounds = recovered(), []
    while breaker.ramp is not None:
        places = breaker.ramp
        assert not breaker.closed_to(places - 1)
        assert breaker.closed_to(places)
        rounds.append(places)
        for _ in range(places):
            breaker.observe(HEALTHY, probe=False, now=NOW + 32, rng=LEAST)
    assert rounds == [2, 4, 8, 16, 32, 64]
    assert not breaker.closed_to(10_000)
    assert rounds[0] == RAMP_START and rounds[-1] == RAMP_END


def test_failures_halve_the_ramp_and_never_below_its_start() -> None:
    breaker = recovered()
    for _ in range(30):
        breaker.observe(HEALTHY, probe=False, now=NOW + 32, rng=LEAST)
    ramps = []
    for _ in range(4):
        breaker.observe(SICK, probe=False, now=NOW + 32, rng=LEAST)
        ramps.append(breaker.ramp)
    assert ramps == [16, 8, 4, 2]
    breaker.observe(HEALTHY, probe=False, now=NOW + 33, rng=LEAST)
    breaker.observe(SICK, probe=False, now=NOW + 33, rng=LEAST)
    assert breaker.ramp == RAMP_START


def test_a_relapse_on_the_ramp_pauses_twice_as_long_and_one_after_it_begins_anew() -> None:
    breaker = opened(recovered(), now=NOW + 40)
    assert breaker.reopen_at == NOW + 40 + 60
    well = recovered()
    for _ in range(RAMP_END):
        well.observe(HEALTHY, probe=False, now=NOW + 40, rng=LEAST)
    assert well.at_rest
    assert opened(well, now=NOW + 50).reopen_at == NOW + 50 + 30


def test_only_a_closed_one_without_failures_or_ramp_is_at_rest() -> None:
    assert closed().at_rest
    failing = closed()
    failing.observe(SICK, probe=False, now=NOW, rng=LEAST)
    assert not any(breaker.at_rest for breaker in (failing, opened(), half_open(), probing(), recovered()))


# ---- the fleet ------------------------------------------------------------------------------------------------------


def test_an_older_record_teaches_nothing() -> None:
    for breaker in (closed(), opened(), half_open(), recovered()):
        was = shown(breaker)
        for state in BreakerState:
            assert not breaker.adopt(record(state, since=breaker.since, reopen_at=NOW + 999))
            assert not breaker.adopt(record(state, since=breaker.since - 1, reopen_at=NOW + 999))
        assert shown(breaker) == was


def test_an_opening_elsewhere_opens_it_here_with_the_same_pause() -> None:
    breaker = closed()
    assert breaker.adopt(record(OPEN, since=NOW + 1, reopen_at=NOW + 121, openings=3))
    assert (breaker.state, breaker.reopen_at, breaker.openings) == (OPEN, NOW + 121, 3)
    granted(breaker, now=NOW + 121).start()
    breaker.observe(SICK, probe=True, now=NOW + 122, rng=LEAST)
    assert breaker.reopen_at == NOW + 122 + 240


def test_a_probe_of_another_worker_keeps_it_open_here() -> None:
    breaker = opened()
    assert not breaker.adopt(record(HALF_OPEN, since=NOW + 30, reopen_at=NOW + 70))
    assert breaker.closed_to(0)
    assert not breaker.wants_probe(now=NOW + 69)
    assert breaker.wants_probe(now=NOW + 70)


def test_a_recovery_seen_elsewhere_closes_it_here_with_a_ramp() -> None:
    breaker = opened()
    assert breaker.adopt(record(CLOSED, since=NOW + 31))
    assert (breaker.state, breaker.ramp) == (CLOSED, RAMP_START)


def test_a_recovery_told_to_one_that_never_opened_slows_nothing() -> None:
    breaker = closed()
    assert not breaker.adopt(replace(record(CLOSED, since=NOW + 31), failures=0))
    assert breaker.at_rest


@pytest.mark.parametrize("state", list(BreakerState))
def test_while_its_own_probe_is_under_way_it_takes_over_nothing(state: BreakerState) -> None:
    breaker = probing()
    was = shown(breaker)
    assert not breaker.adopt(record(state, since=NOW + 1000, reopen_at=NOW + 2000))
    assert shown(breaker) == was


def test_what_the_store_holds_as_closed_closes_it_here_though_a_clock_set_back_made_that_look_older() -> None:
    breaker = opened()
    breaker.told = True
    answer = Probe(granted=False, until=NOW + 30, record=record(CLOSED, since=NOW - 20))
    assert breaker.grant(answer, asked=breaker.told_since, now=NOW + 30)
    assert breaker.state is CLOSED
    assert breaker.ramp == RAMP_START


def test_a_probe_that_another_worker_holds_is_asked_for_again_when_its_right_ends() -> None:
    breaker = opened()
    answer = Probe(granted=False, until=NOW + 65, record=record(HALF_OPEN, since=NOW + 25, reopen_at=NOW + 30))
    assert not breaker.grant(answer, asked=breaker.told_since, now=NOW + 30)
    assert not breaker.wants_probe(now=NOW + 64)
    assert breaker.wants_probe(now=NOW + 65)


def test_what_the_store_holds_as_closed_does_not_close_it_here_before_the_store_has_heard_of_the_opening() -> None:
    breaker = opened()
    answer = Probe(granted=False, until=NOW + 30, record=record(CLOSED, since=NOW - 20))
    assert not breaker.grant(answer, asked=breaker.told_since, now=NOW + 30)
    assert breaker.state is OPEN


@pytest.mark.parametrize("asked", [None, NOW - 60])
def test_an_answer_of_a_time_before_the_store_heard_of_the_opening_does_not_close_it(asked: float | None) -> None:
    """It took long: the store was asked before it was told, or at an opening before this one."""
    breaker = opened()
    breaker.told = True
    answer = Probe(granted=False, until=NOW + 30, record=record(CLOSED, since=NOW - 20))
    assert not breaker.grant(answer, asked=asked, now=NOW + 30)
    assert breaker.state is OPEN


def test_a_refusal_that_tells_of_a_recovery_closes_it() -> None:
    breaker = opened()
    answer = Probe(granted=False, until=NOW + 30, record=record(CLOSED, since=NOW + 29))
    assert breaker.grant(answer, asked=breaker.told_since, now=NOW + 30)
    assert (breaker.state, breaker.ramp) == (CLOSED, RAMP_START)


def test_a_grant_that_comes_behind_the_failure_of_its_own_probe_does_not_cut_the_pause_short() -> None:
    """Asked twice for one pause, the store grants it twice: it does not know yet that the probe has failed."""
    breaker = probing()
    assert breaker.observe(SICK, probe=True, now=NOW + 31, rng=LEAST)
    was = shown(breaker)
    granted(breaker, now=NOW + 31.01)
    assert shown(breaker) == was
    assert breaker.wants_probe(now=breaker.reopen_at)
    assert granted(breaker, now=breaker.reopen_at).state is HALF_OPEN


@pytest.mark.parametrize("before", [closed, half_open, probing, recovered])
def test_a_grant_to_one_that_is_not_open_changes_nothing(before: object) -> None:
    breaker = before()  # type: ignore[operator]
    was = shown(breaker)
    granted(breaker, now=NOW + 40)
    assert shown(breaker) == was


def test_what_it_stores_it_does_not_learn_from() -> None:
    for breaker in (opened(), half_open(), recovered()):
        was = shown(breaker)
        assert not breaker.adopt(breaker.record(TENANT, ORIGIN))
        assert shown(breaker) == was


@pytest.mark.parametrize("behind_s", [0.0, 1e-6, 0.5, 90.0])
def test_what_it_learns_on_a_clock_behind_the_others_is_later_than_what_it_knew(behind_s: float) -> None:
    told = record(CLOSED, since=NOW)
    breaker = opened(Breaker(BreakerPolicy(), now=NOW - 100), now=NOW - 100)
    assert breaker.adopt(told)
    opened(breaker, now=NOW - behind_s)
    opening = breaker.record(TENANT, ORIGIN)
    assert opening.since > told.since
    assert not breaker.adopt(told)
    granted(breaker, now=breaker.reopen_at).start()
    assert breaker.observe(HEALTHY, probe=True, now=NOW - behind_s, rng=LEAST)
    assert breaker.record(TENANT, ORIGIN).since > opening.since
    assert not breaker.adopt(opening)
    assert breaker.state is CLOSED


def test_a_right_to_the_probe_is_not_lost_when_the_store_tells_of_it_once_more() -> None:
    behind = NOW - 90
    breaker = opened(Breaker(BreakerPolicy(), now=behind - 30), now=behind - 30)
    breaker.told = True
    answer = Probe(granted=True, until=NOW + 40, record=record(HALF_OPEN, since=NOW, reopen_at=NOW - 1))
    assert breaker.grant(answer, asked=breaker.told_since, now=behind)
    assert not breaker.adopt(answer.record)
    assert breaker.state is HALF_OPEN
    breaker.start()
    breaker.observe(SICK, probe=True, now=behind + 1, rng=LEAST)
    assert breaker.record(TENANT, ORIGIN).since > answer.record.since


def test_what_is_forgiven_is_later_than_what_it_was_charged_with() -> None:
    breaker = closed()
    assert breaker.adopt(record(OPEN, since=NOW + 5, reopen_at=NOW + 35))
    opening = breaker.record(TENANT, ORIGIN)
    assert breaker.forgive(0, 0, now=NOW)
    assert not breaker.adopt(opening)
    assert breaker.state is CLOSED


def test_only_a_breaker_that_is_not_closed_says_when_it_reopens() -> None:
    assert opened().record(TENANT, ORIGIN).reopen_at == NOW + 30
    assert half_open().record(TENANT, ORIGIN).reopen_at == NOW + 30
    assert recovered().record(TENANT, ORIGIN).reopen_at is None


# ---- always ---------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "end", "late", "grant", "refuse", "adopt", "look"]),
        st.sampled_from(list(Verdict)),
        st.sampled_from(list(BreakerState)),
        st.floats(0, 700),
    ),
    max_size=80,
)


@given(STEPS)
def test_whatever_happens_no_second_probe_starts_while_one_is_under_way(
    steps: list[tuple[str, Verdict, BreakerState, float]],
) -> None:
    breaker, now = opened(), NOW
    under_way: list[bool] = []
    for step, said, state, wait_s in steps:
        now += wait_s
        match step:
            case "start":
                if not breaker.closed_to(len(under_way)):
                    under_way.append(breaker.start())
            case "end" if under_way:
                breaker.observe(said, probe=under_way.pop(0), now=now, rng=LEAST)
            case "late":
                breaker.observe(said, probe=False, now=now, rng=LEAST)
            case "grant":
                granted(breaker, now=now)
            case "refuse":
                answer = Probe(False, now + 5, record(state, since=now - 1, reopen_at=now))
                breaker.grant(answer, asked=breaker.told_since, now=now)
            case "adopt":
                breaker.adopt(record(state, since=now - 1, reopen_at=now + 10))
            case _:
                breaker.wants_probe(now=now)
        assert sum(under_way) <= 1
        assert breaker.probing == (sum(under_way) == 1)
        assert not breaker.probing or breaker.state is HALF_OPEN
