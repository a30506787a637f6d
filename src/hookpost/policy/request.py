"""What an endpoint receives: the headers of one attempt (api.md, "What an endpoint receives"). Pure."""

from __future__ import annotations

from uuid import UUID

from hookpost.model import Endpoint, Request
from hookpost.policy.signing import expected_acks, signature_header, valid_keys

_LOW_64_BITS = 0xFFFF_FFFF_FFFF_FFFF


def build_request(
    endpoint: Endpoint,
    *,
    event_id: UUID,
    event_type: str,
    payload: bytes,
    attempt_id: UUID,
    retry_count: int,
    user_agent: str,
    now: float,
) -> Request:
    """One attempt's request, signed with every secret valid at ``now`` (Unix seconds).

    The trace is rooted at us: its id is the event's, each attempt is a span of it (W3C Trace Context, `traceparent`).
    """
    trace = event_id.hex
    message_id = "evt_" + trace
    timestamp = int(now)
    keys = valid_keys(endpoint.secrets, now)
    signature = signature_header(message_id, timestamp, payload, keys)
    return Request(
        url=endpoint.url,
        headers=[
            "content-type: application/json",
            user_agent,
            f"webhook-id: {message_id}",
            f"webhook-timestamp: {timestamp}",
            f"webhook-signature: {signature}",
            f"x-webhook-event-id: {message_id}",
            f"x-webhook-event-type: {event_type}",
            f"x-webhook-attempt: {retry_count + 1}",
            f"traceparent: 00-{trace}-{attempt_id.int & _LOW_64_BITS:016x}-01",
        ],
        body=payload,
        timeouts=endpoint.timeouts,
        acks=expected_acks(message_id, timestamp, keys) if endpoint.signed_ack else None,
    )
