"""F2: a request is repeated only if it was under way when its worker died or lost its shard, and then the repeat says so.

However the database's clock goes. Of each generation of a delivery one success is recorded. An answered request that is
not recorded belonged to a worker that was killed or whose shard was claimed by another one: behind the request, or before
it as the clock was set forward, which ends a lease for the others by so much sooner (ADR 32).
"""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from tests.sim.system.trace import (
    Answered,
    Arrived,
    Claimed,
    Ended,
    Killed,
    Sent,
    Settled,
    Stored,
    Trace,
    check,
)

_Pair = tuple[UUID, UUID]
LEASE_S = 6.0  # of the world's workers


def judge(trace: Trace) -> None:
    shards: dict[UUID, set[int]] = defaultdict(set)
    replayed: set[UUID] = set()
    claims: dict[int, list[Claimed]] = defaultdict(list)
    killed = {entry.node for entry in trace.of(Killed)}
    answers: dict[str, Answered] = {}
    sent: dict[str, Sent] = {}
    recorded: set[str] = set()
    delivered: set[tuple[UUID, UUID, int]] = set()
    arrived: dict[_Pair, list[str]] = defaultdict(list)
    for entry in trace.of(Stored, Claimed, Sent, Arrived, Answered, Settled):
        match entry:
            case Stored():
                shards[entry.event_id].add(entry.shard)
                if entry.kind == 1:
                    replayed.add(entry.event_id)
            case Claimed():
                claims[entry.shard].append(entry)
            case Sent():
                sent[entry.span] = entry
            case Arrived():
                arrived[entry.event_id, entry.endpoint_id].append(entry.span)
            case Answered():
                answers[entry.span] = entry
            case Settled():
                for attempt in entry.attempts:
                    recorded.add(attempt.span)
                    key = (attempt.event_id, attempt.endpoint_id, attempt.generation)
                    if attempt.outcome == "delivered":
                        check(key not in delivered, "delivered twice, by the record:", attempt)
                        delivered.add(key)
                    others, began = arrived[key[:2]], sent[attempt.span].at
                    earlier = [span for span in others if span not in recorded and sent[span].at < began]
                    says_so = attempt.possible_duplicate or attempt.event_id in replayed
                    check(says_so or not earlier, "a duplicate that does not say so:", attempt, "behind", earlier)
                    # What comes behind the one that said it is a retry as any other.
                    arrived[key[:2]] = [span for span in others if span not in earlier]
    if not any(trace.of(Ended)):
        return
    jumps = list(trace.set_forward())

    def ahead_s(at: float) -> float:
        """How much sooner than its owner knew a lease may have ended then."""
        return sum(by_s for jump, by_s in jumps if at - LEASE_S < jump <= at)

    for span, answer in answers.items():
        if span in recorded or answer.node in killed:
            continue
        request = sent[span]
        claimed = [c for shard in shards[request.event_id] for c in claims[shard]]
        lost = any(
            request.at < claim.at or (claim.node != answer.node and request.at < claim.at + ahead_s(claim.at))
            for claim in claimed
        )
        check(lost, "an answered request was not recorded:", answer)
