"""A span for each attempt, handed to OpenTelemetry's SDK: an optional extra, imported when it is asked for.

The ids are ours: the trace is that of the event (its id), or the producer's where the endpoint is told of that one; the
span is the attempt. So what a receiver sees as its parent is this span. A trace of ours links to the producer's.
Sending spans on is the SDK's affair, in a thread of its own, behind a queue that drops what is too much.

Relies on settings of OpenTelemetry's own (OTEL_…) for everything but where to and how many.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from hookpost.engine.work import Work
from hookpost.model import Outcome, show_id
from hookpost.policy.trace import ID_BYTES, SPAN_BYTES

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

Trace = Callable[[Work, Outcome], None]
# Spans are worth no more of a stop.
CLOSE_S_MAX = 2.0
_RATIO_STEPS = 2**32
_NS = 1_000_000_000
_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
# What the SDK calls a service that nobody has named.
_UNNAMED = "unknown_service"


class TracingUnavailable(Exception):
    """The optional packages are missing; the text says how to get them."""


class Sink(Protocol):
    """What takes spans: a span processor of the SDK."""

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span; never waits."""

    def shutdown(self) -> None:
        """Hand on what is left."""


def require() -> None:
    """Are the optional packages here? Raises TracingUnavailable; imports none of them whole."""
    try:
        missing = find_spec(_EXPORTER) is None
    except ImportError:
        missing = True
    if missing:
        raise TracingUnavailable("HOOKPOST_OTEL_ENDPOINT needs OpenTelemetry's packages: pip install 'hookpost[otel]'")


def open_sink(endpoint: str) -> Sink:
    """Send spans to an OTLP collector over HTTP, e.g. http://127.0.0.1:4318. Raises TracingUnavailable."""
    require()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    path = urlsplit(endpoint).path.rstrip("/")
    url = endpoint if path.endswith("/v1/traces") else f"{endpoint.rstrip('/')}/v1/traces"
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=url))


def close_sink(sink: Sink) -> None:
    """Hand on what is left, for a moment: a collector that hangs does not hold up a stop."""
    closing = Thread(target=sink.shutdown, daemon=True)
    closing.start()
    closing.join(CLOSE_S_MAX)


def tracer(sink: Sink, *, ratio: float, service_version: str, worker: str) -> Trace:
    """What a worker calls at the end of each attempt. ``ratio``: the part of events whose attempts are told, all of an
    event's or none."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    # What the operator says in OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES comes first.
    resource = Resource.create().merge(Resource({"service.version": service_version, "service.instance.id": worker}))
    if str(resource.attributes.get("service.name", _UNNAMED)).startswith(_UNNAMED):
        resource = resource.merge(Resource({"service.name": "hookpost"}))
    scope = InstrumentationScope("hookpost", service_version)
    threshold = round(ratio * _RATIO_STEPS)

    def trace(work: Work, outcome: Outcome) -> None:
        # The last bits of an id are random, and the same for all attempts of an event.
        if int.from_bytes(work.entry.event_id.bytes[-4:], "big") < threshold:
            sink.on_end(span_of(work, outcome, resource, scope))

    return trace


def span_of(work: Work, outcome: Outcome, resource: Any, scope: Any) -> ReadableSpan:
    """An attempt as a span. No header, payload, path, query or text of a receiver is in it."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
    from opentelemetry.trace.status import Status, StatusCode

    entry, endpoint = work.entry, work.lane.endpoint
    assert work.attempt_id is not None
    producer = None
    if entry.trace is not None:
        producer = SpanContext(
            trace_id=int.from_bytes(entry.trace[:ID_BYTES], "big"),
            span_id=int.from_bytes(entry.trace[ID_BYTES : ID_BYTES + SPAN_BYTES], "big"),
            is_remote=True,
            trace_flags=TraceFlags(entry.trace[-1]),
        )
    inside = producer is not None and work.trace_id is not None
    own = SpanContext(
        trace_id=producer.trace_id if inside and producer is not None else entry.event_id.int,
        span_id=int.from_bytes(work.attempt_id.bytes[ID_BYTES - SPAN_BYTES :], "big"),
        is_remote=False,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    failed = outcome.error_code is not None
    return ReadableSpan(
        name="POST",
        context=own,
        parent=producer if inside else None,
        resource=resource,
        attributes=_attributes(work, outcome, endpoint.config.url if endpoint.config is not None else ""),
        links=() if inside or producer is None else (Link(producer),),
        kind=SpanKind.CLIENT,
        status=Status(StatusCode.ERROR, outcome.error_code) if failed else Status(StatusCode.UNSET),
        start_time=int(outcome.started_at * _NS),
        end_time=int(outcome.finished_at * _NS),
        instrumentation_scope=scope,
    )


def _attributes(work: Work, outcome: Outcome, url: str) -> dict[str, str | int | bool]:
    """By OpenTelemetry's names for HTTP clients where there are any."""
    entry, endpoint, parts = work.entry, work.lane.endpoint, urlsplit(url)
    found: dict[str, str | int | bool | None] = {
        "http.request.method": "POST",
        "http.request.resend_count": work.retry_count,
        "http.response.status_code": outcome.status,
        "http.request.body.size": outcome.request_bytes,
        "http.response.body.size": outcome.response_bytes,
        "server.address": parts.hostname,
        "server.port": parts.port or {"http": 80, "https": 443}.get(parts.scheme),
        "network.peer.address": outcome.address or None,
        "error.type": outcome.error_code,
        "hookpost.event_id": show_id("evt", entry.event_id),
        "hookpost.endpoint_id": show_id("ep", endpoint.endpoint_id),
        "hookpost.tenant_id": show_id("ten", entry.tenant_id),
        "hookpost.generation": entry.generation,
        "hookpost.possible_duplicate": work.possible_duplicate,
        "hookpost.dns_ms": outcome.dns_ms,
        "hookpost.connect_ms": outcome.connect_ms,
        "hookpost.tls_ms": outcome.tls_ms,
        "hookpost.first_byte_ms": outcome.first_byte_ms,
    }
    return {name: value for name, value in found.items() if value is not None}
