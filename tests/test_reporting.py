"""What a worker logs of its attempts: bounded, complete in sum, and nothing that others wrote."""

from __future__ import annotations

import io
import json
from typing import Any
from uuid import UUID

import pytest

from hookpost import telemetry
from hookpost.engine.work import ATTEMPT_COLUMNS, Progress, ShardSettle
from hookpost.reporting import FAILURE_LINES_PER_S, SUM_EVERY_S, Reports, wide
from tests.test_telemetry import _logging_as_before  # noqa: F401 - logging as before, for every test here

EVENT, PRODUCERS = UUID(int=0xE), bytes(range(16))


def attempt(outcome: str, **values: Any) -> tuple[Any, ...]:
    row: dict[str, Any] = {
        "attempt_id": UUID(int=1), "shard": 3, "settle_no": 1, "position": 1, "event_id": EVENT,
        "endpoint_id": UUID(int=2), "tenant_id": UUID(int=3), "generation": 0, "scheduled_at": 100.0,
        "started_at": 100.5, "finished_at": 101.0, "http_status": 503, "error_code": "http_5xx", "retry_count": 2,
        "latency_ms": 500, "dns_ms": 1, "connect_ms": 2, "tls_ms": 3, "first_byte_ms": 4, "response_hash": None,
        "response_head": b"canary", "request_bytes": 10, "response_bytes": 20, "worker": "w", "outcome": outcome,
        "possible_duplicate": False, "address": "192.0.2.1", "protocol": "HTTP/1.1", "trace_id": None, **values,
    }  # fmt: skip
    return tuple(row[column] for column in ATTEMPT_COLUMNS)


def settle(*attempts: tuple[Any, ...]) -> list[ShardSettle]:
    return [ShardSettle(0, 1, 1, Progress(0, 0, 0, (), ()), list(attempts), {}, [], [], [], [])]


@pytest.fixture
def log() -> io.StringIO:
    stream = io.StringIO()
    telemetry.configure("test", "json", "info", stream)
    return stream


def lines(log: io.StringIO, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == event]


def test_a_failure_is_a_wide_line_with_its_trace_and_nothing_that_others_wrote(log: io.StringIO) -> None:
    Reports(now=0.0).settled(settle(attempt("retry"), attempt("dead", trace_id=PRODUCERS)), seconds=0.1, now=0.0)
    ours, theirs = lines(log, "attempt_failed")
    assert (ours["trace_id"], theirs["trace_id"]) == (EVENT.hex, PRODUCERS.hex())
    assert (ours["outcome"], ours["http_status"], ours["retry_count"], ours["late_ms"]) == ("retry", 503, 2, 500)
    assert "canary" not in log.getvalue()


def test_failures_are_bounded_by_the_second_and_the_sum_says_what_was_left_out(log: io.StringIO) -> None:
    reports = Reports(now=0.0)
    reports.settled(settle(*[attempt("retry")] * 100), seconds=0.1, now=0.0)
    assert len(lines(log, "attempt_failed")) == FAILURE_LINES_PER_S
    reports.settled(settle(*[attempt("dead")] * 100), seconds=0.1, now=0.5)
    assert len(lines(log, "attempt_failed")) == 1.5 * FAILURE_LINES_PER_S
    reports.settled(settle(attempt("delivered")), seconds=0.1, now=SUM_EVERY_S)
    [told] = lines(log, "attempts")
    assert (told["delivered"], told["retry"], told["dead"], told["failures_not_shown"]) == (1, 100, 100, 170)
    reports.settled(settle(attempt("delivered")), seconds=0.1, now=SUM_EVERY_S + 1)
    assert len(lines(log, "attempts")) == 1


def test_a_success_has_a_line_at_debug_alone(log: io.StringIO) -> None:
    reports = Reports(now=0.0)
    reports.settled(settle(attempt("delivered")), seconds=0.1, now=0.0)
    assert lines(log, "attempt_delivered") == []
    telemetry.configure("test", "json", "debug", log)
    reports.settled(settle(attempt("delivered")), seconds=0.1, now=0.0)
    assert len(lines(log, "attempt_delivered")) == 1


def test_a_wide_line_has_the_ids_as_the_api_shows_them() -> None:
    shown = wide(attempt("retry"))
    assert shown["attempt_id"] == f"att_{UUID(int=1).hex}"
    assert shown["endpoint_id"] == f"ep_{UUID(int=2).hex}"
