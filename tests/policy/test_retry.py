"""What follows from an attempt (I10): one table for every outcome, the schedule, Retry-After, the deadline."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.model import Dead, DeadReason, Delivered, ErrorCode, Outcome, Retry, RetryPolicy
from hookpost.policy.classify import classify, http_error_code
from hookpost.policy.retry import RETRY_AFTER_MAX_S, backoff_s, decide, parse_retry_after, retry_after_s

NOW = 1_800_000_000.0
POLICY = RetryPolicy()
DEADLINE = NOW + POLICY.deadline_s


class Dice(Random):
    """Chance that always falls the same."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


@dataclass(frozen=True)
class Expected:
    """One row of the table: the error code, and what is done."""

    code: str | None
    retried: bool = False
    charged: bool = False
    verdict: str = "retry"


OK = Expected(None, verdict="delivered")
REFUSED = Expected("http_4xx", verdict="http_4xx")


def sick(code: str) -> Expected:
    return Expected(code, retried=True, charged=True)


def well(code: str) -> Expected:
    return Expected(code, retried=True, charged=False)


# What came back (a status, or the transport's error) → its code, retried?, charged to the endpoint?, the verdict.
TABLE: dict[int | ErrorCode, Expected] = {
    200: OK,
    201: OK,
    204: OK,
    299: OK,
    301: well("http_3xx"),
    304: well("http_3xx"),
    400: REFUSED,
    401: REFUSED,
    403: REFUSED,
    404: REFUSED,
    408: well("http_4xx"),
    410: Expected("http_410", verdict="http_4xx"),
    413: REFUSED,
    422: REFUSED,
    425: well("http_4xx"),
    429: sick("http_429"),
    500: sick("http_5xx"),
    502: sick("http_5xx"),
    503: sick("http_5xx"),
    504: sick("http_5xx"),
    599: sick("http_5xx"),
    999: sick("http_5xx"),
    ErrorCode.DNS_FAILURE: sick("dns_failure"),
    ErrorCode.CONNECT_REFUSED: sick("connect_refused"),
    ErrorCode.CONNECT_TIMEOUT: sick("connect_timeout"),
    ErrorCode.NETWORK_UNREACHABLE: sick("network_unreachable"),
    ErrorCode.FIRST_BYTE_TIMEOUT: sick("first_byte_timeout"),
    ErrorCode.TOTAL_TIMEOUT: sick("total_timeout"),
    ErrorCode.TLS_FAILURE: sick("tls_failure"),
    ErrorCode.TLS_UNTRUSTED: sick("tls_untrusted"),
    ErrorCode.CONNECTION_RESET: sick("connection_reset"),
    ErrorCode.PROTOCOL_ERROR: sick("protocol_error"),
    ErrorCode.ADDRESS_FORBIDDEN: well("address_forbidden"),
    ErrorCode.INVALID_URL: well("invalid_url"),
    ErrorCode.EGRESS_PROXY_ERROR: well("egress_proxy_error"),
    ErrorCode.BAD_ACK: well("bad_ack"),
    ErrorCode.INTERNAL_ERROR: well("internal_error"),
}


def came_back(key: int | ErrorCode) -> Outcome:
    if isinstance(key, ErrorCode):
        return Outcome(key)
    return Outcome(http_error_code(key), key)


def verdict_on(outcome: Outcome, **changes: object) -> str:
    arguments = {"retry_count": 0, "deadline": DEADLINE, "policy": POLICY, "now": NOW, "rng": Random(1)} | changes
    decision = decide(outcome, **arguments)  # type: ignore[arg-type]
    match decision:
        case Delivered():
            return "delivered"
        case Retry():
            return "retry"
        case Dead(reason=reason):
            return reason.value


@pytest.mark.parametrize("key", TABLE, ids=str)
def test_every_outcome_has_one_code_and_one_verdict(key: int | ErrorCode) -> None:
    outcome, expected = came_back(key), TABLE[key]
    assert outcome.error_code == expected.code
    if outcome.error_code is not None:
        failure = classify(outcome.error_code, outcome.status)
        assert (failure.retried, failure.charged) == (expected.retried, expected.charged)
    assert verdict_on(outcome) == expected.verdict


def test_the_table_names_every_error_code() -> None:
    assert {expected.code for expected in TABLE.values()} == {None, *map(str, ErrorCode)}


@given(st.integers(200, 999))
def test_every_status_is_judged(status: int) -> None:
    assert verdict_on(came_back(status)) in {"delivered", "retry", "http_4xx"}


# ---- the schedule -------------------------------------------------------------------------------------------------

# The published schedule with the defaults (base 5 s, factor 2, cap 3 h): failure number → the wait in seconds lies
# between half of this and this.
SCHEDULE = {
    1: 5, 2: 10, 3: 20, 4: 40, 5: 80, 6: 160, 7: 320, 8: 640, 9: 1280, 10: 2560, 11: 5120, 12: 10_240, 13: 10_800,
    14: 10_800, 20: 10_800, 49: 10_800,
}  # fmt: skip


@pytest.mark.parametrize(("failures", "step_s"), SCHEDULE.items())
def test_the_published_schedule(failures: int, step_s: float) -> None:
    assert backoff_s(failures, policy=POLICY, rng=Dice(0.0)) == step_s / 2
    assert backoff_s(failures, policy=POLICY, rng=Dice(1.0)) == step_s


def total_s(chance: float) -> float:
    return sum(backoff_s(failures, policy=POLICY, rng=Dice(chance)) for failures in range(1, POLICY.max_attempts))


def test_with_the_defaults_the_deadline_governs_and_an_outage_of_two_days_is_always_survived() -> None:
    assert total_s(0.0) > 48 * 3600
    assert total_s(0.5) > POLICY.deadline_s


policies = st.builds(
    RetryPolicy,
    base_s=st.floats(0.001, 86_400),
    cap_s=st.floats(0.001, 604_800),
    max_attempts=st.integers(1, 1000),
    deadline_s=st.floats(0, 30 * 86_400),
)


@given(failures=st.integers(1, 10**18), policy=policies, chance=st.floats(0, 1, exclude_max=True))
def test_a_wait_lies_between_half_of_its_step_and_all_of_it(failures: int, policy: RetryPolicy, chance: float) -> None:
    step_s = min(policy.cap_s, policy.base_s * 2.0 ** min(failures - 1, 200))
    wait_s = backoff_s(failures, policy=policy, rng=Dice(chance))
    assert step_s / 2 <= wait_s <= step_s


@given(failures=st.integers(1, 200), policy=policies)
def test_steps_never_shrink(failures: int, policy: RetryPolicy) -> None:
    now, then = (backoff_s(n, policy=policy, rng=Dice(0.5)) for n in (failures, failures + 1))
    assert now <= then


def test_jitter_spreads_a_crowd_over_the_whole_half_of_a_step() -> None:
    rng = Random(7)
    waits = sorted(backoff_s(4, policy=POLICY, rng=rng) for _ in range(10_000))
    assert waits[0] < 20.1 and waits[-1] > 39.9
    assert 29.5 < sum(waits) / len(waits) < 30.5


# ---- Retry-After --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (b"0", 0),
        (b"1", 1),
        (b" 120 ", 120),
        (b"007", 7),
        (b"0" * 40 + b"60", 60),
        (b"9" * 30, RETRY_AFTER_MAX_S),
        (b"9" * 5000, RETRY_AFTER_MAX_S),
        (b"-5", 0),
        (b"+5", 0),
        (b"1.5", 0),
        (b"1e309", 0),
        (b"1e3", 0),
        (b"inf", 0),
        (b"nan", 0),
        (b"", 0),
        (b"soon", 0),
        (b"5 minutes", 0),
        (b"120, 60", 0),
        ("٣".encode(), 0),
        (b"\xb2", 0),
        (b"\xff\x00", 0),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_MAX_S),
        (b"Fri, 31 Dec 99999 23:59:59 GMT", 0),
        (b"Mon, 99 Jan 2027 25:61:61 GMT", 0),
        (b"Fri, 15 Jan 2027 08:01:40 GMT", 100),
        (b"Friday, 15-Jan-27 08:01:40 GMT", 100),
        (b"Fri Jan 15 08:01:40 2027", 100),
        (b"Fri, 15 Jan 2027 10:01:40 +0200", 100),
        (b"Fri, 15 Jan 2027 08:01:40 -0000", 100),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_anything_else_is_nothing(raw: bytes, seconds: float) -> None:
    assert parse_retry_after(raw, now=NOW) == seconds


def test_a_date_without_a_zone_is_utc_wherever_the_worker_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert parse_retry_after(b"Fri Jan 15 08:01:40 2027", now=NOW) == 100
        assert parse_retry_after(b"Fri, 15 Jan 2027 08:01:40 -0000", now=NOW) == 100
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.binary(max_size=80))
def test_no_bytes_break_the_reading_of_retry_after(raw: bytes) -> None:
    assert 0 <= parse_retry_after(raw, now=NOW) <= RETRY_AFTER_MAX_S


@given(st.text("0123456789 ,:+-GMTJanMonFri.eE/", max_size=40))
def test_nothing_that_looks_like_a_date_breaks_it_either(text: str) -> None:
    assert 0 <= parse_retry_after(text.encode(), now=NOW) <= RETRY_AFTER_MAX_S


@given(st.integers(0, 10 * 365 * 86_400 - 1))
def test_both_forms_of_one_moment_mean_the_same(seconds: int) -> None:
    date = format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True).encode()
    assert parse_retry_after(date, now=NOW) == parse_retry_after(str(seconds).encode(), now=NOW) == seconds


@pytest.mark.parametrize("status", [200, 301, 400, 404, 408, 425, 500, 502, 504, None])
def test_retry_after_counts_on_429_and_503_only(status: int | None) -> None:
    outcome = Outcome(ErrorCode.HTTP_5XX, status, retry_after=b"60")
    assert retry_after_s(outcome, now=NOW) == 0
    for heeded in (429, 503):
        assert retry_after_s(Outcome(ErrorCode.HTTP_5XX, heeded, retry_after=b"60"), now=NOW) == 60


@given(
    asked_s=st.integers(0, 400_000),
    retry_count=st.integers(0, 48),
    left_s=st.floats(0.001, 300_000),
    as_date=st.booleans(),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_retry_after_is_never_undercut_and_beyond_the_deadline_it_ends_the_delivery(
    asked_s: int, retry_count: int, left_s: float, as_date: bool, chance: float
) -> None:
    date = format_datetime(datetime.fromtimestamp(NOW + asked_s, UTC), usegmt=True)
    outcome = Outcome(ErrorCode.HTTP_429, 429, retry_after=(date if as_date else str(asked_s)).encode())
    deadline = NOW + left_s
    decision = decide(outcome, retry_count=retry_count, deadline=deadline, policy=POLICY, now=NOW, rng=Dice(chance))
    if NOW + asked_s > deadline:
        assert decision == Dead(DeadReason.RETRY_AFTER_BEYOND_DEADLINE)
    else:
        assert isinstance(decision, Retry)
        assert NOW + asked_s <= decision.due_at <= deadline


# ---- giving up ----------------------------------------------------------------------------------------------------

FAILED = Outcome(ErrorCode.HTTP_5XX, 500)


@pytest.mark.parametrize(("retry_count", "verdict"), [(0, "retry"), (48, "retry"), (49, "attempts_exhausted")])
def test_the_last_attempt_is_the_last(retry_count: int, verdict: str) -> None:
    assert verdict_on(FAILED, retry_count=retry_count) == verdict


@pytest.mark.parametrize(("left_s", "verdict"), [(1e-3, "retry"), (0.0, "deadline"), (-1.0, "deadline")])
def test_at_its_deadline_a_delivery_is_dead(left_s: float, verdict: str) -> None:
    assert verdict_on(FAILED, deadline=NOW + left_s) == verdict


def test_a_retry_behind_the_deadline_is_brought_forward_to_it() -> None:
    decision = decide(FAILED, retry_count=11, deadline=NOW + 60, policy=POLICY, now=NOW, rng=Random(1))
    assert decision == Retry(due_at=NOW + 60)


@pytest.mark.parametrize(("retry_count", "verdict"), [(0, "retry"), (1, "retry"), (2, "internal_error")])
def test_our_own_bug_is_tried_three_times(retry_count: int, verdict: str) -> None:
    """F44."""
    assert verdict_on(Outcome(ErrorCode.INTERNAL_ERROR), retry_count=retry_count) == verdict


def test_a_2xx_is_delivered_however_late() -> None:
    assert verdict_on(Outcome(None, 200), deadline=NOW - 1e6, retry_count=10**6) == "delivered"


@given(
    outcome=st.builds(
        Outcome,
        error_code=st.sampled_from(list(ErrorCode)),
        status=st.one_of(st.none(), st.integers(200, 999)),
        retry_after=st.one_of(st.none(), st.binary(max_size=20), st.integers(0, 10**12).map(lambda n: str(n).encode())),
    ),
    retry_count=st.integers(0, 2000),
    left_s=st.floats(-1e6, 1e6),
    policy=policies,
    chance=st.floats(0, 1, exclude_max=True),
)
def test_a_retry_is_never_in_the_past_nor_behind_the_deadline(
    outcome: Outcome, retry_count: int, left_s: float, policy: RetryPolicy, chance: float
) -> None:
    deadline = NOW + left_s
    decision = decide(outcome, retry_count=retry_count, deadline=deadline, policy=policy, now=NOW, rng=Dice(chance))
    if isinstance(decision, Retry):
        assert NOW <= decision.due_at <= deadline
        assert retry_count + 1 < policy.max_attempts
