"""Our own way out, told from what becomes of requests."""

from __future__ import annotations

import pytest

from hookpost.model import ErrorCode, Outcome
from hookpost.policy import egress_health
from hookpost.policy.egress_health import AT_CONNECT, EgressHealth, OutagePolicy, unanswered

NOW = 1_800_000_000.0
OK = Outcome(None, 200)
SICK = Outcome(ErrorCode.HTTP_5XX, 500)
REFUSED = Outcome(ErrorCode.CONNECT_REFUSED, None)


def health(*well: str, receivers: int = 5) -> EgressHealth:
    """Of a worker to which these have just answered."""
    seen = EgressHealth(OutagePolicy(receivers=receivers, well_s=60.0))
    for receiver in well:
        assert not seen.observe(receiver, OK, now=NOW)
    return seen


def down_after(seen: EgressHealth, *failing: str, outcome: Outcome = REFUSED, now: float = NOW + 1) -> list[bool]:
    return [seen.observe(receiver, outcome, now=now) for receiver in failing]


def test_it_is_down_with_the_fifth_receiver_that_was_well_and_cannot_be_reached() -> None:
    seen = health(*"abcde")
    assert down_after(seen, *"abcde") == [False, False, False, False, True]
    assert seen.down_since == NOW + 1


def test_one_receiver_that_fails_five_times_is_one() -> None:
    assert not any(down_after(health(*"abcde"), *"aaaaaaaa"))


@pytest.mark.parametrize("outcome", [Outcome(code) for code in AT_CONNECT], ids=str)
def test_every_failure_at_connect_counts(outcome: Outcome) -> None:
    assert any(down_after(health(*"abcde"), *"abcde", outcome=outcome))


@pytest.mark.parametrize(
    "code",
    [
        ErrorCode.FIRST_BYTE_TIMEOUT,
        ErrorCode.TOTAL_TIMEOUT,
        ErrorCode.CONNECTION_RESET,
        ErrorCode.TLS_FAILURE,
        ErrorCode.INTERNAL_ERROR,
        ErrorCode.ADDRESS_FORBIDDEN,
    ],
)
def test_a_failure_behind_the_connect_says_nothing(code: ErrorCode) -> None:
    assert not any(down_after(health(*"abcde"), *"abcde", outcome=Outcome(code)))


def test_receivers_that_were_not_well_say_nothing() -> None:
    assert not any(down_after(health(*"abcd"), *"abcdefghi"))


def test_an_answer_counts_for_a_minute() -> None:
    assert any(down_after(health(*"abcde"), *"abcde", now=NOW + 60.0))
    assert not any(down_after(health(*"abcde"), *"abcde", now=NOW + 60.1))


def test_half_of_those_that_were_well_are_not_most_of_them() -> None:
    seen = health(*"abcdefghijkl")
    assert not any(down_after(seen, *"abcdef"))
    assert down_after(seen, "g") == [True]


@pytest.mark.parametrize("answer", [OK, SICK], ids=["200", "500"])
def test_whoever_answers_proves_that_it_is_not_us(answer: Outcome) -> None:
    seen = health(*"abcde")
    down_after(seen, *"abcd")
    assert not seen.observe("stranger", answer, now=NOW + 2)
    assert not any(down_after(seen, *"abcd", now=NOW + 3))


@pytest.mark.parametrize("answer", [OK, SICK], ids=["200", "500"])
def test_it_is_back_with_the_first_answer(answer: Outcome) -> None:
    seen = health(*"abcde")
    down_after(seen, *"abcde")
    assert down_after(seen, *"abcde", now=NOW + 9) == [False] * 5
    assert seen.observe("c", answer, now=NOW + 10)
    assert seen.down_since is None
    assert not seen.observe("d", OK, now=NOW + 10)


def test_however_long_it_is_down_who_was_well_before_is_still_known() -> None:
    seen = health(*"abcde")
    down_after(seen, *"abcde")
    assert seen.was_well("a", now=NOW + 86_400)
    assert not seen.was_well("stranger", now=NOW + 86_400)


def test_with_nobody_left_to_ask_it_is_taken_for_up() -> None:
    seen = health(*"abcde")
    down_after(seen, *"abcde")
    seen.give_up()
    assert seen.down_since is None
    assert down_after(seen, *"abcde", now=NOW + 2)[-1]


def test_it_is_not_looked_for_when_it_is_switched_off() -> None:
    assert not any(down_after(health(*"abcde", receivers=0), *"abcde"))


def test_memory_is_bounded_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_health, "WELL_MAX", 3)
    seen = health(*"abcd")
    assert [seen.was_well(each, now=NOW) for each in "abcd"] == [True, True, True, False]
    for each in "abcd":
        seen.observe(each, OK, now=NOW + 200)
    assert len(seen._well) + len(seen._well_before) <= 6
    seen.observe("d", OK, now=NOW + 300)
    assert [seen.was_well(each, now=NOW + 300) for each in "abcd"] == [False, False, False, True]


def test_what_never_left_is_not_unanswered() -> None:
    assert unanswered(REFUSED)
    assert unanswered(Outcome(ErrorCode.TOTAL_TIMEOUT))
    assert not unanswered(Outcome(ErrorCode.INTERNAL_ERROR))
    assert not unanswered(OK)
    assert not unanswered(SICK)


def test_f40_a_proxy_that_does_not_let_us_out_is_known_by_one_failure() -> None:
    shut = Outcome(ErrorCode.EGRESS_PROXY_ERROR, ours=True)
    seen = health("a")
    assert down_after(seen, "z", outcome=shut) == [True]
    assert down_after(seen, "a", "z", outcome=shut) == [False, False]
    assert unanswered(shut)
    assert seen.observe("a", OK, now=NOW + 2)
    assert seen.down_since is None
    assert down_after(health("a", receivers=0), "z", outcome=shut) == [False]


def test_f40_a_proxy_that_fails_for_one_receiver_proves_nothing() -> None:
    failed = Outcome(ErrorCode.EGRESS_PROXY_ERROR)
    assert not any(down_after(health(*"abcde"), *"azzzz", outcome=failed))
