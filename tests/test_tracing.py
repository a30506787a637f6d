"""Spans of attempts: whose trace they are in, what they say, and what they never say."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest
from msgspec import structs
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import StatusCode
from uuid_utils.compat import uuid7

from hookpost.engine.lanes import EndpointState, Lane, TenantState
from hookpost.engine.work import Entry, Work
from hookpost.model import Endpoint, ErrorCode, Outcome
from hookpost.tracing import TracingUnavailable, require, tracer

TENANT, ENDPOINT = UUID(int=3), UUID(int=2)
TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
PRODUCERS = TRACE.to_bytes(16, "big") + SPAN.to_bytes(8, "big") + b"\x01"
CANARY = "canary-1b2c"


class Spans(list[ReadableSpan]):
    """Keeps what it is given."""

    def on_end(self, span: ReadableSpan) -> None:
        self.append(span)

    def shutdown(self) -> None:
        raise AssertionError("nobody stops")


def work(trace: bytes | None = None, *, forwarded: bool = False) -> Work:
    endpoint = EndpointState(ENDPOINT, TenantState(TENANT))
    endpoint.config = Endpoint(ENDPOINT, TENANT, f"https://hooks.example.com:8443/{CANARY}?token={CANARY}")
    entry = Entry(0, 1, 0, uuid7(), TENANT, "a.b", CANARY.encode(), 0, 0.0, 1, trace)
    made = Work(entry, Lane(0, endpoint), 0.0, retry_count=2)
    made.attempt_id = uuid7()
    made.trace_id = trace[:16] if trace is not None and forwarded else None
    return made


OUTCOME = Outcome(
    ErrorCode.HTTP_5XX, 503, 100.0, 100.25, response_head=CANARY.encode(), detail=CANARY, address="192.0.2.1"
)


def span(made: Work, outcome: Outcome = OUTCOME) -> ReadableSpan:
    spans = Spans()
    tracer(spans, ratio=1.0, service_version="1", worker="w1")(made, outcome)
    [found] = spans
    return found


def test_an_attempt_is_a_span_of_its_events_trace_with_its_own_id() -> None:
    made = work()
    found = span(made)
    assert found.context is not None and made.attempt_id is not None
    assert found.context.trace_id == made.entry.event_id.int
    assert f"{found.context.span_id:016x}" == made.attempt_id.hex[16:]
    assert (found.parent, list(found.links), found.kind) == (None, [], SpanKind.CLIENT)
    assert (found.start_time, found.end_time) == (100 * 10**9, 100_250_000_000)
    assert found.status.status_code is StatusCode.ERROR
    assert found.resource.attributes["service.name"] == "hookpost"


def test_a_trace_of_ours_links_to_the_producers() -> None:
    made = work(PRODUCERS)
    found = span(made)
    assert found.context is not None and found.context.trace_id == made.entry.event_id.int
    [link] = found.links
    assert (link.context.trace_id, link.context.span_id, link.context.is_remote) == (TRACE, SPAN, True)


def test_where_the_endpoint_is_told_the_producers_trace_the_span_is_in_it_below_the_producers() -> None:
    found = span(work(PRODUCERS, forwarded=True))
    assert found.context is not None and found.parent is not None
    assert (found.context.trace_id, found.parent.trace_id, found.parent.span_id) == (TRACE, TRACE, SPAN)
    assert list(found.links) == []


def test_a_span_says_what_came_of_the_attempt_and_nothing_that_others_wrote() -> None:
    found = span(work(PRODUCERS))
    attributes: dict[str, Any] = dict(found.attributes or {})
    assert attributes["http.response.status_code"] == 503
    assert (attributes["error.type"], attributes["http.request.resend_count"]) == ("http_5xx", 2)
    assert (attributes["server.address"], attributes["server.port"]) == ("hooks.example.com", 8443)
    assert CANARY not in found.to_json()
    delivered = span(work(), structs.replace(OUTCOME, error_code=None, status=200))
    assert delivered.status.status_code is StatusCode.UNSET
    assert "error.type" not in (delivered.attributes or {})


@pytest.mark.parametrize(("ratio", "least", "most"), [(0.0, 0, 0), (1.0, 1000, 1000), (0.25, 150, 350)])
def test_a_part_of_the_events_is_traced(ratio: float, least: int, most: int) -> None:
    spans = Spans()
    trace = tracer(spans, ratio=ratio, service_version="1", worker="w1")
    for _ in range(1000):
        trace(work(), OUTCOME)
    assert least <= len(spans) <= most


def test_a_server_that_lacks_the_packages_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    monkeypatch.delitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", raising=False)
    with pytest.raises(TracingUnavailable, match=r"pip install 'hookpost\[otel\]'"):
        require()


def test_without_an_endpoint_for_spans_nothing_of_opentelemetrys_is_imported() -> None:
    """Not by a worker, that is; FastAPI looks for its own."""
    look = "import sys, hookpost.app.compose; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
