"""What an endpoint receives: the headers of one attempt (api.md, "What an endpoint receives"). Pure."""

from __future__ import annotations

from uuid import UUID

from hookpost.model import Endpoint, OwnHeaders, Request
from hookpost.policy.signing import expected_acks, signature_header, valid_keys
from hookpost.policy.trace import forwarded


class HeaderError(ValueError):
    """A value that would end its header line early, or that no header can carry."""


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
    trace: bytes | None = None,
) -> Request:
    """One attempt's request, signed with every secret valid at ``now`` (Unix seconds).

    The trace is rooted at us: its id is the event's, each attempt is a span of it (W3C Trace Context, `traceparent`);
    unless the endpoint is to be told the producer's own, ``trace`` (policy/trace). Headers of the endpoint's own come
    first, and none of them is one of ours (policy/headers). Raises HeaderError for a type that would end its line
    early, and for headers of the endpoint's that cannot be sent: all other values are made here.
    """
    if not (event_type.isascii() and event_type.isprintable()):
        raise HeaderError(f"bad header: the event's type {event_type!r} holds a control character or one outside ASCII")
    event_hex = event_id.hex
    message_id = "evt_" + event_hex
    if trace is None or not endpoint.forward_trace:
        traceparent = f"00-{event_hex}-{attempt_id.hex[16:]}-01"
    else:
        traceparent = forwarded(trace, attempt_id)
    timestamp = int(now)
    keys = valid_keys(endpoint.secrets, now)
    signature = signature_header(message_id, timestamp, payload, keys)
    return Request(
        url=endpoint.url,
        headers=f"{_first_lines(endpoint.headers, user_agent)}"
        f"webhook-id: {message_id}\r\nwebhook-timestamp: {timestamp}\r\nwebhook-signature: {signature}\r\n"
        f"x-webhook-event-id: {message_id}\r\nx-webhook-event-type: {event_type}\r\n"
        f"x-webhook-attempt: {retry_count + 1}\r\ntraceparent: {traceparent}",
        body=payload,
        timeouts=endpoint.timeouts,
        acks=expected_acks(message_id, timestamp, keys) if endpoint.signed_ack else None,
        tls=endpoint.tls,
    )


def _first_lines(own: OwnHeaders | None, user_agent: str) -> str:
    if own is None:
        return f"content-type: application/json\r\nuser-agent: {user_agent}\r\n"
    if own.fault:
        raise HeaderError(f"bad header of the endpoint's own: {own.fault}")
    content_type = own.content_type or "application/json"
    return f"content-type: {content_type}\r\nuser-agent: {own.user_agent or user_agent}\r\n{own.lines}"
