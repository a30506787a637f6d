"""Traces of a real server: what receivers are told, what the API shows, what a collector gets, what stands in the log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.harness import WAIT_S, Arrival, answer, receiver, running

pytestmark = pytest.mark.process

THEIRS, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY = "canary-77aa"


@dataclass
class Collector:
    """Takes spans by OTLP over HTTP, as a collector does."""

    port: int = 0
    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers["content-length"]))
                assert head[0].startswith("POST /v1/traces ")
                self.bodies.append(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        self.spans.extend(scope.spans)
                self.changed.set()
                writer.write(answer(200, b"", "content-type: application/x-protobuf"))
        writer.close()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.spans) < count:
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()


async def refuse(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(404, CANARY.encode()))


async def test_every_attempt_is_a_span_in_the_trace_that_its_receiver_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    # A collector that is late is not given up: what was sent to it would be missed.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(WAIT_S))
    async with collector() as spans, receiver() as ledger, running(
        otel_endpoint=f"http://127.0.0.1:{spans.port}"
    ) as server:  # fmt: skip
        ledger.handlers["/no"] = refuse
        ours = await server.endpoint(ledger.url(f"/hook?token={CANARY}"))
        theirs = await server.endpoint(ledger.url("/theirs"), forward_trace=True)
        refusing = await server.endpoint(ledger.url("/no"))
        assert (ours["forward_trace"], theirs["forward_trace"]) == (False, True)
        answered = await server.call(
            "POST", "/v1/events", {"type": "a", "payload": CANARY}, expect=202,
            traceparent=f"00-{THEIRS}-{SPAN}-01", tracestate=f"vendor={CANARY}", baggage=f"user={CANARY}",
        )  # fmt: skip
        event_id = str(answered["event_id"])
        own = event_id.removeprefix("evt_")
        attempts = {attempt["endpoint_id"]: attempt for attempt in await server.attempts(event_id, 3)}
        told = {arrival.path.partition("?")[0]: arrival.headers["traceparent"] for arrival in ledger.arrivals}
        traces = {ours["endpoint_id"]: own, theirs["endpoint_id"]: THEIRS, refusing["endpoint_id"]: own}
        assert {endpoint: attempt["trace_id"] for endpoint, attempt in attempts.items()} == traces
        assert {path: header[3:35] for path, header in told.items()} == {"/hook": own, "/theirs": THEIRS, "/no": own}
        assert SPAN not in str(told) and CANARY not in str([arrival.headers for arrival in ledger.arrivals])

        await spans.until(3)
        by_span = {span.span_id.hex(): span for span in spans.spans}
        assert {header[36:52] for header in told.values()} == set(by_span)
        forwarded, linked = by_span[told["/theirs"][36:52]], by_span[told["/no"][36:52]]
        assert (forwarded.trace_id.hex(), forwarded.parent_span_id.hex()) == (THEIRS, SPAN)
        assert (linked.trace_id.hex(), linked.parent_span_id.hex()) == (own, "")
        assert [(link.trace_id.hex(), link.span_id.hex()) for link in linked.links] == [(THEIRS, SPAN)]
        assert CANARY.encode() not in b"".join(spans.bodies)

        line = await server.until_line("attempt_failed")
        assert event_id in line and line.count("http_4xx") == 1 and f" trace_id={own} " in line
        assert CANARY not in "\n".join(server.lines)

        # Who may say so, and how it is taken back.
        path = f"/v1/webhook_endpoints/{theirs['endpoint_id']}"
        assert (await server.call("PATCH", path, {"forward_trace": None}, expect=200))["forward_trace"] is False
        assert (await server.call("PATCH", path, {"forward_trace": "yes"}))[0] == 422
