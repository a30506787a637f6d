"""The retry budget: of one worker's attempts of a minute at most a part are retries that fail, or the platform's floor; and
no tenant takes what is left for the others.

Counted are plain retries alone: written down as a retry, sent when they were due. What a breaker, a pause or an operator
held back is none, so one whose receiver was sick, or whose endpoint was changed, between the failure and the retry is left
out. A worker that knows of no other one has the whole floor. That a success gives its part back is `rests`: what waits
goes on although it was tried again often.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from tests.sim.system.trace import Answered, Began, Configured, Sent, Settled, Stored, Trace, Waits, check

WINDOW_S = 60.0
# Books are kept by the second, at both ends of the window; clocks are corrected by fractions of one.
BLUR_S = 2.0
# So many failures in a row, and a breaker is open, for so long at most.
FAILURES, PAUSE_S = 4, 12.0
_Receiver = tuple[UUID, str]


@dataclass(frozen=True, slots=True)
class _Retry:
    """One that counts, and failed. ``number``: its place among all requests."""

    number: int
    node: str
    tenant_id: UUID
    sent_at: float
    ended_at: float


def judge(trace: Trace) -> None:
    began = next(trace.of(Began))
    jumps = list(trace.set_forward())
    answers: dict[str, list[float]] = defaultdict(list)
    for entry in trace.of(Answered):
        answers[entry.node].append(entry.at)
    retries: dict[str, list[_Retry]] = defaultdict(list)
    for retry in sorted(_plain(trace), key=lambda each: each.number):
        retries[retry.node].append(retry)
    for node, found in retries.items():
        for index, retry in enumerate(found):
            now = retry.sent_at
            attempts = sum(now - WINDOW_S - BLUR_S < at <= now for at in answers[node])
            size = max(began.retry_floor, began.retry_part * attempts)
            since = now - WINDOW_S + BLUR_S + sum(by for at, by in jumps if now - WINDOW_S < at < now)
            _judge(retry, [each for each in found[:index] if each.ended_at > since], size)


def _judge(retry: _Retry, before: Sequence[_Retry], size: float) -> None:
    """``before``: those that had taken of the budget when this one was sent, or more."""
    check(len(before) < size, "over the retry budget:", len(before) + 1, "of", size, retry)
    own = sum(each.tenant_id == retry.tenant_id for each in before)
    share = size // (len({each.tenant_id for each in before}) + 1)
    check(own == 0 or own < share, "over its tenant's share:", own + 1, "of", share, retry)


def _plain(trace: Trace) -> list[_Retry]:
    """All plain retries that failed."""
    rows: dict[tuple[int, UUID, int], Waits] = {}
    # Each request with its number, the row that it was sent for, and when the last one of its delivery ended.
    sent: dict[str, tuple[int, Sent, Waits | None, float]] = {}
    last_end: dict[tuple[UUID, UUID], float] = {}
    ended: dict[str, Answered] = {}
    places: dict[UUID, list[tuple[int, int]]] = defaultdict(list)
    upset: dict[_Receiver, float] = defaultdict(lambda: float("-inf"))
    changed: dict[UUID, float] = defaultdict(lambda: float("-inf"))
    hurried: set[UUID] = set()
    receiver: dict[UUID, _Receiver] = {}
    in_a_row: dict[tuple[str, _Receiver], int] = defaultdict(int)
    found: list[_Retry] = []
    for entry in trace.of(Configured, Stored, Sent, Answered, Settled):
        match entry:
            case Configured():
                receiver[entry.endpoint_id] = (entry.tenant_id, entry.url.split("/")[2])
                changed[entry.endpoint_id] = entry.at
            case Stored():
                places[entry.event_id].append((entry.shard, entry.seq))
                if entry.kind:
                    hurried.add(entry.event_id)
            case Sent():
                here = (rows.get((shard, entry.endpoint_id, seq)) for shard, seq in places[entry.event_id])
                row = next((row for row in here if row is not None), None)
                before = last_end.get((entry.event_id, entry.endpoint_id), 0.0)
                sent[entry.span] = len(sent), entry, row, before
            case Answered():
                ended[entry.span] = entry
                last_end[entry.event_id, entry.endpoint_id] = entry.at
                key = entry.node, receiver[entry.endpoint_id]
                in_a_row[key] = 0 if entry.error is None or entry.status == 400 else in_a_row[key] + 1
                if in_a_row[key] >= FAILURES:
                    upset[key[1]] = entry.at
            case Settled():
                for wait in entry.waits:
                    rows[entry.shard, wait.endpoint_id, wait.position] = wait
                for attempt in entry.attempts:
                    number, request, row, since = sent[attempt.span]
                    answer = ended.get(attempt.span)
                    if not attempt.retry_count or attempt.error is None or row is None or answer is None:
                        continue
                    held = max(upset[receiver[attempt.endpoint_id]], changed[attempt.endpoint_id]) > since - PAUSE_S
                    early = row.reason != "retry" or attempt.event_id in hurried
                    if not held and not early:
                        found.append(_Retry(number, request.node, attempt.tenant_id, request.at, answer.at))
    return found
