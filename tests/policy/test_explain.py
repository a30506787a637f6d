"""Facts in, words out: each state that an event can be in at an endpoint has a status, a reason and a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from hookpost.model import DeadReason, EndpointStatus, ErrorCode, WaitReason
from hookpost.policy.explain import (
    FAILURE_WORDS,
    Arrived,
    Cancelled,
    Delivery,
    Died,
    EndpointFacts,
    EventFacts,
    Explanation,
    Facts,
    Failure,
    Queued,
    State,
    Untraced,
    Waiting,
    explain,
    failure_words,
    show_span,
)

NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
EVENT = EventFacts(UUID(int=1), UUID(int=9), "invoice.paid", accepted_at=NOW - 60)
ENDPOINT = EndpointFacts(UUID(int=2), created_at=NOW - 9_000, updated_at=NOW - 9_000)
REFUSED = Failure(None, "connect_refused")
OTHER = UUID(int=0xABC)


def why(
    state: State | None, *, event: EventFacts = EVENT, endpoint: EndpointFacts = ENDPOINT, **delivery: Any
) -> Explanation:
    return explain(Facts(event, endpoint, None if state is None else Delivery(state, **delivery)), now=NOW)


def waiting(reason: WaitReason, **values: Any) -> Waiting:
    return Waiting(reason, **{"due_at": NOW - 1, "retry_count": 0, "deadline": NOW + 7_200, **values})


NOT_OWED: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    # what is different of the endpoint · and of the event · reason · words
    ({"created_at": NOW - 5}, {}, "created_later", "created at 2027-01-15 07:59:55 UTC, after the event was accepted"),
    ({"deleted_at": NOW - 61}, {}, "deleted_earlier", "it was deleted at 2027-01-15 07:58:59 UTC"),
    ({"events": ("a", "b.*")}, {}, "filter", "its filter (a, b.*) does not name invoice.paid."),
    ({"events": tuple("abcdefg")}, {}, "filter", "(a, b, c, d, e and 2 more)"),
    ({"events": ("a",), "updated_at": NOW - 5}, {}, "filter", "may have been another one then"),
    ({"updated_at": NOW - 5}, {}, "filter_changed", "names invoice.paid now, but the endpoint was changed at"),
    ({}, {}, "other_targets", "posted for other endpoints only (target_endpoints)"),
    ({}, {"type": "hookpost.endpoint.failing"}, "filter", "The filter * leaves out operational events"),
    ({"events": ("hookpost.*",)}, {"type": "hookpost.test"}, "other_targets", "does not go to the endpoint that it is about"),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "event", "reason", "words"), NOT_OWED)
def test_an_endpoint_that_it_was_not_owed_to_is_told_why(
    endpoint: dict[str, Any], event: dict[str, Any], reason: str, words: str
) -> None:
    told = why(None, endpoint=replace(ENDPOINT, **endpoint), event=replace(EVENT, **event))
    assert (told.status, told.reason) == ("not_matched", reason)
    assert words in told.summary


QUEUED: list[tuple[Queued, dict[str, Any], str, str]] = [
    (
        Queued(3, False, "w1", NOW - 30),
        {},
        "behind_others",
        "3 entries of its shard come before it, the oldest for 30 s",
    ),
    (Queued(1, True, "w1"), {}, "in_hand", "Its worker (w1) has it in hand"),
    (Queued(0, False, None), {}, "no_worker", "No living worker owns its shard"),
    (Queued(0, True, "w1"), {"paused": True}, "sending_paused", "the operator has paused it"),
]


@pytest.mark.parametrize(("state", "event", "reason", "words"), QUEUED)
def test_what_is_queued_is_told_where(state: Queued, event: dict[str, Any], reason: str, words: str) -> None:
    told = why(state, event=replace(EVENT, **event))
    assert (told.status, told.reason) == ("queued", reason)
    assert words in told.summary


def test_what_is_queued_for_a_paused_endpoint_is_told_that_it_will_wait() -> None:
    told = why(Queued(0, False, "w1"), endpoint=replace(ENDPOINT, status=EndpointStatus.PAUSED))
    assert "The endpoint is paused: it will wait." in told.summary


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize(
    ("endpoint", "words", "until"),
    [
        ({"rate_limit": 0.5}, "What may hold it: its rate_limit lets 0.5 a second through.", None),
        ({"ordered": True, "moving": True}, "moved to another shard is delivered first; the endpoint is ordered", None),
        ({"hold_until": NOW + 240}, "left alone (Retry-After) until 2027-01-15 08:04:00 UTC.", NOW + 240),
        (
            {"breaker": "open", "reopen_at": NOW + 30},
            "is open: the next probe goes at 2027-01-15 08:00:30 UTC",
            NOW + 30,
        ),
        ({"breaker": "half_open", "reopen_at": NOW - 1}, "is half open: a probe is due", None),
    ],
)
def test_what_is_queued_is_told_which_gates_may_hold_it(
    read: bool, endpoint: dict[str, Any], words: str, until: float | None
) -> None:
    """It waits in its worker's memory, and no row says what for."""
    told = why(Queued(1, read, "w1"), endpoint=replace(ENDPOINT, **endpoint))
    assert words in told.summary
    assert told.until == until


OPEN = {"breaker": "open", "reopen_at": NOW + 30}
GATES: list[tuple[Waiting, dict[str, Any], str, float | None]] = [
    # state · what is different of the endpoint · words · until
    (waiting(WaitReason.RETRY, retry_count=2, due_at=NOW + 90, failure=REFUSED), {},
     "2 attempts failed, the last one because the connection was refused: nothing listens there. "
     "Tried again at 2027-01-15 08:01:30 UTC, in 90 s; 48 more attempts at most.", NOW + 90),
    (waiting(WaitReason.RETRY, retry_count=1, failure=Failure(503, "http_5xx")), {"max_attempts": 2},
     "1 attempt failed, because the receiver had an error (HTTP 503). The next one is due since "
     "2027-01-15 07:59:59 UTC and goes when its turn comes; 1 more attempt at most.", None),
    (waiting(WaitReason.RETRY, retry_count=1, due_at=NOW + 90, failure=Failure(429, "http_429")), {"hold_until": NOW + 240},
     "due at 2027-01-15 08:01:30 UTC; 49 more attempts at most. The receiver asked to be left alone (Retry-After) until "
     "2027-01-15 08:04:00 UTC.", NOW + 240),
    (waiting(WaitReason.RETRY, retry_count=1, due_at=NOW + 90, failure=REFUSED), OPEN,
     "due at 2027-01-15 08:01:30 UTC; 49 more attempts at most. Its receiver failed several times in a row", NOW + 90),
    (waiting(WaitReason.RETRY, retry_count=1, due_at=NOW + 90, failure=REFUSED), {"status": EndpointStatus.PAUSED},
     "The endpoint is paused: it will wait.", None),
    (waiting(WaitReason.BREAKER_OPEN), OPEN, "nothing is sent to it until 2027-01-15 08:00:30 UTC, in 30 s", NOW + 30),
    (waiting(WaitReason.BREAKER_OPEN), {"breaker": "half_open"}, "one probe is under way", None),
    (waiting(WaitReason.BREAKER_OPEN), {"breaker": "open", "reopen_at": NOW - 1}, "a probe is due", None),
    (waiting(WaitReason.BREAKER_OPEN), {}, "was failing and is back", None),
    (waiting(WaitReason.RATE_LIMITED), {"hold_until": NOW + 240}, "(Retry-After) until 2027-01-15 08:04:00 UTC, in 4 minutes",
     NOW + 240),
    (waiting(WaitReason.RATE_LIMITED), {"rate_limit": 2.5}, "(2.5 a second)", None),
    (waiting(WaitReason.RATE_LIMITED), {}, "that is over", None),
    (waiting(WaitReason.ORDERED, behind=OTHER), {"ordered": True}, f"event evt_{OTHER.hex} goes first", None),
    (waiting(WaitReason.ORDERED, behind=OTHER, behind_dead=True), {"ordered": True}, "was given up: it blocks", None),
    (waiting(WaitReason.ORDERED), {"ordered": True}, "Its turn comes next", None),
    (waiting(WaitReason.ORDERED), {"moving": True}, "has moved to another shard", None),
    (waiting(WaitReason.PAUSED), {"status": EndpointStatus.PAUSED}, "The endpoint is paused", None),
    (waiting(WaitReason.DISABLED), {"status_reason": "http_410"}, "The endpoint is disabled (http_410)", None),
    (waiting(WaitReason.IN_FLIGHT_CAP), {"max_in_flight": 7}, "(max_in_flight of the endpoint: 7)", None),
    (waiting(WaitReason.RETRY_BUDGET), {}, "to leave room for first attempts", None),
    (waiting(WaitReason.PAYLOAD_STORE, due_at=NOW + 10), {}, "cannot be read from the payload store", NOW + 10),
    (waiting(WaitReason.EGRESS_DOWN), {}, "own way out is down", None),
    (waiting(WaitReason.SECRET_LOCKED), {}, "lacks the encryption key", None),
]  # fmt: skip


@pytest.mark.parametrize(("state", "endpoint", "words", "until"), GATES)
def test_what_waits_is_told_which_gate_holds_it_and_until_when(
    state: Waiting, endpoint: dict[str, Any], words: str, until: float | None
) -> None:
    told = why(state, endpoint=replace(ENDPOINT, **endpoint))
    assert (told.status, told.reason, told.until) == ("waiting", state.reason, until)
    assert words in told.summary
    assert told.summary.endswith("It is given up at 2027-01-15 10:00:00 UTC.")
    assert "_ID" not in (told.next_step or ""), "what is to be done can be pasted"


@pytest.mark.parametrize("held", [{"hold_until": NOW + 240}, OPEN, {"status": EndpointStatus.PAUSED}])
def test_nobody_is_told_to_retry_now_what_would_be_held_all_the_same(held: dict[str, Any]) -> None:
    state = waiting(WaitReason.RETRY, retry_count=1, due_at=NOW + 90, failure=REFUSED)
    assert "retry-now" in (why(state).next_step or "")
    assert "retry-now" not in (why(state, endpoint=replace(ENDPOINT, **held)).next_step or "")


def test_every_gate_is_in_the_table() -> None:
    assert {state.reason for state, *_ in GATES} == set(WaitReason)


def test_what_waits_on_a_paused_platform_is_told_of_that_alone() -> None:
    told = why(waiting(WaitReason.RETRY), event=replace(EVENT, paused=True))
    assert (told.status, told.reason) == ("waiting", "sending_paused")


DEATHS = [
    (
        DeadReason.HTTP_4XX,
        Failure(404, "http_4xx"),
        "the receiver refused it (HTTP 404), which another try would not change",
    ),
    (DeadReason.ATTEMPTS_EXHAUSTED, REFUSED, "all 3 attempts that the endpoint allows failed, the last one because"),
    (DeadReason.DEADLINE, REFUSED, "its deadline passed after 3 attempts"),
    (DeadReason.RETRY_AFTER_BEYOND_DEADLINE, Failure(429, "http_429"), "until after its deadline"),
    (DeadReason.PAYLOAD_MISSING, Failure(), "its payload is gone"),
    (DeadReason.INTERNAL_ERROR, Failure(None, "internal_error"), "a fault in Hookpost"),
]


@pytest.mark.parametrize(("reason", "failure", "words"), DEATHS)
def test_what_is_dead_is_told_what_of_and_how_to_replay_it(reason: DeadReason, failure: Failure, words: str) -> None:
    told = why(Died(reason, NOW - 5, 3, failure))
    assert (told.status, told.reason) == ("dead", reason)
    assert told.summary.startswith("Given up at 2027-01-15 07:59:55 UTC: ")
    assert words in told.summary
    assert told.next_step is not None and f"`hookpost replay evt_{EVENT.event_id.hex}`" in told.next_step


def test_every_death_is_in_the_table() -> None:
    assert {reason for reason, *_ in DEATHS} == set(DeadReason)


def test_what_died_before_it_was_tried_says_so() -> None:
    assert "before it was tried" in why(Died(DeadReason.DEADLINE, NOW, 0, Failure())).summary


def test_nobody_is_told_to_replay_what_cannot_be_replayed() -> None:
    died = Died(DeadReason.DEADLINE, NOW, 1, REFUSED)
    for told in (
        why(died, event=replace(EVENT, payload_removed=True)),
        why(died, endpoint=replace(ENDPOINT, deleted_at=NOW)),
    ):
        assert told.next_step is not None and "cannot be replayed" in told.next_step


def test_what_was_delivered_is_told_when_and_by_which_attempt() -> None:
    told = why(Arrived(NOW - 58.75, 200, 1))
    assert (told.status, told.reason, told.next_step) == ("delivered", None, None)
    assert told.summary == (
        "Delivered at 2027-01-15 07:59:01 UTC by the first attempt, answered with 200, 1 s after it was accepted."
    )
    assert "by attempt 3" in why(Arrived(NOW, 204, 3)).summary


@pytest.mark.parametrize("state", [Arrived(NOW, 200, 2, arrivals=2), Arrived(NOW, 200, 2, doubtful=True)])
def test_a_possible_duplicate_is_told(state: Arrived) -> None:
    assert "more than once" in why(state).summary


CANCELS: list[tuple[Cancelled, dict[str, Any], dict[str, Any], str]] = [
    (Cancelled(NOW - 5), {}, {}, "requested"),
    (Cancelled(), {"deleted_at": NOW - 5}, {}, "endpoint_deleted"),
    (Cancelled(NOW - 5), {}, {"payload_removed": True}, "payload_removed"),
]


@pytest.mark.parametrize(("state", "endpoint", "event", "reason"), CANCELS)
def test_what_was_cancelled_is_told_by_what(
    state: Cancelled, endpoint: dict[str, Any], event: dict[str, Any], reason: str
) -> None:
    told = why(state, endpoint=replace(ENDPOINT, **endpoint), event=replace(EVENT, **event))
    assert (told.status, told.reason) == ("cancelled", reason)


def test_what_left_no_trace_is_told_to_be_our_fault() -> None:
    assert why(Untraced()).status == "unknown"


def test_a_replay_is_told_to_be_one_and_counts_from_when_it_was_asked_for() -> None:
    told = why(Arrived(NOW, 200, 1), generation=2, asked_at=NOW - 3)
    assert told.summary.startswith("This is about replay no. 2. Delivered at")
    assert "3 s after it was asked for" in told.summary


def test_every_error_code_has_words() -> None:
    assert set(FAILURE_WORDS) == set(ErrorCode)
    assert failure_words(None) == failure_words(Failure()) == "of a reason that is not on record"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0 ms"), (0.0123, "12 ms"), (1.4, "1 s"), (119, "119 s"), (120, "2 minutes"), (7_200, "2 hours"), (172_800, "2 days")],
)  # fmt: skip
def test_a_span_is_told_roughly(seconds: float, shown: str) -> None:
    assert show_span(seconds) == shown
