"""The traceparent of producers, by the letter of W3C Trace Context, and what receivers are told of it."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from hookpost.policy.request import build_request
from hookpost.policy.trace import TRACE_BYTES, Trace, forwarded, parse_traceparent
from tests.policy.test_request import ATTEMPT, ENDPOINT, EVENT, NOW

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FOUND = Trace(UUID(TRACE), bytes.fromhex(SPAN + "01"))
KEPT = bytes.fromhex(TRACE + SPAN + "01")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (f"00-{TRACE}-{SPAN}-01", FOUND),
        (f"00-{TRACE}-{SPAN}-ff", Trace(UUID(TRACE), bytes.fromhex(SPAN + "ff"))),
        (f"cc-{TRACE}-{SPAN}-01", FOUND),
        (f"cc-{TRACE}-{SPAN}-01-what-comes", FOUND),
        (f"cc-{TRACE}-{SPAN}-01.what", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"00-{TRACE}-{SPAN}-01-", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f" 00-{TRACE}-{SPAN}-01", None),
        ("", None),
        ("\xff", None),
    ],
)
def test_a_trace_is_kept_if_it_is_one(header: str, found: Trace | None) -> None:
    assert parse_traceparent(header.encode("latin-1")) == found


def test_a_forwarded_trace_has_our_span_and_the_flags_that_are_known() -> None:
    assert len(KEPT) == TRACE_BYTES
    assert forwarded(KEPT, ATTEMPT) == f"00-{TRACE}-8123456789abcdef-01"
    assert forwarded(KEPT[:-1] + b"\xfe", ATTEMPT).endswith("-02")
    assert forwarded(KEPT[:-1] + b"\x00", ATTEMPT).endswith("-00")


@pytest.mark.parametrize(
    ("opted_in", "trace", "told"),
    [(False, KEPT, EVENT.hex), (True, KEPT, TRACE), (True, None, EVENT.hex), (False, None, EVENT.hex)],
)
def test_a_receiver_is_told_the_producers_trace_only_if_its_endpoint_asks_for_it(
    opted_in: bool, trace: bytes | None, told: str
) -> None:
    request = build_request(
        replace(ENDPOINT, forward_trace=opted_in), event_id=EVENT, event_type="a", payload=b"", attempt_id=ATTEMPT,
        retry_count=0, user_agent="x", now=NOW, trace=trace,
    )  # fmt: skip
    assert f"traceparent: 00-{told}-8123456789abcdef-01" in request.headers
    assert SPAN not in request.headers
