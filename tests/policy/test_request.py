"""What an endpoint receives: the header lines of one attempt."""

from __future__ import annotations

from uuid import UUID

import pytest

from hookpost.model import Endpoint, Request, Secret
from hookpost.policy.request import HeaderError, build_request
from hookpost.policy.signing import verify

KEY = b"k" * 24
NOW = 1_700_000_000.75
EVENT = UUID("0190163d-8694-739b-aea5-966c26f8ad91")
ATTEMPT = UUID("0190163d-8694-7000-8123-456789abcdef")
ENDPOINT = Endpoint(UUID(int=1), UUID(int=2), "https://example.com/hook", secrets=(Secret(KEY, 0.0),))


def built(event_type: str = "invoice.paid", *, payload: bytes = b"{}", retry_count: int = 0) -> Request:
    return build_request(
        ENDPOINT, event_id=EVENT, event_type=event_type, payload=payload, attempt_id=ATTEMPT, retry_count=retry_count,
        user_agent="Hookpost/1", now=NOW,
    )  # fmt: skip


def test_the_headers_are_those_of_the_api_description_in_order() -> None:
    lines = built(retry_count=2).headers.split("\r\n")
    message_id = "evt_" + EVENT.hex
    assert [line for line in lines if not line.startswith("webhook-signature: v1,")] == [
        "content-type: application/json",
        "user-agent: Hookpost/1",
        f"webhook-id: {message_id}",
        "webhook-timestamp: 1700000000",
        f"x-webhook-event-id: {message_id}",
        "x-webhook-event-type: invoice.paid",
        "x-webhook-attempt: 3",
        f"traceparent: 00-{EVENT.hex}-8123456789abcdef-01",
    ]
    assert len(lines) == 9


def test_the_signature_is_that_of_the_payload_as_it_was_posted() -> None:
    payload = b'{"n": 1.0,\r\n "\xc3\xa9": null}'
    request = built(payload=payload)
    assert request.body == payload
    verify(dict(line.split(": ", 1) for line in request.headers.split("\r\n")), payload, [KEY], NOW)


@pytest.mark.parametrize(
    "bad", ["a\r\nx-evil: 1", "a\nx", "a\rx", "a\0", "a\x7f", "a\tb", "café", "😀", "\ud800", "\x85"]
)
def test_h1_h9_a_type_that_would_split_the_header_makes_no_request(bad: str) -> None:
    with pytest.raises(HeaderError, match="bad header"):
        built(bad)
