"""I8: no attempt is recorded twice, and none that was not made: each has its request, with the same event and receiver,
carries the body that was accepted (I12), and is recorded as delivered only if its receiver said so (I5).
"""

from __future__ import annotations

from uuid import UUID

from tests.sim.system.trace import Answered, Sent, Settled, Stored, Trace, check


def judge(trace: Trace) -> None:
    sent: dict[str, Sent] = {}
    payloads: dict[UUID, bytes | None] = {}
    answered: dict[str, Answered] = {}
    recorded: set[str] = set()
    for entry in trace.of(Stored, Sent, Answered, Settled):
        match entry:
            case Stored() if entry.kind == 0:
                payloads[entry.event_id] = entry.payload
            case Sent():
                check(entry.span not in sent, "two requests with one name:", entry)
                check(entry.body == payloads[entry.event_id], "another body was sent:", entry)
                sent[entry.span] = entry
            case Answered():
                check(entry.span not in answered, "one request ended twice:", entry)
                answered[entry.span] = entry
            case Settled():
                for attempt in entry.attempts:
                    check(attempt.span not in recorded, "recorded twice:", attempt)
                    check(attempt.span in answered, "recorded without an answer:", attempt)
                    recorded.add(attempt.span)
                    delivered = answered[attempt.span].error is None
                    check((attempt.outcome == "delivered") == delivered, "recorded otherwise than answered:", attempt)
                    request = sent[attempt.span]
                    same = (request.event_id, request.endpoint_id) == (attempt.event_id, attempt.endpoint_id)
                    check(same, "recorded for another delivery:", attempt)
                    check(request.node == entry.node, "recorded by another worker:", attempt)
            case _:
                pass
