"""What a worker tells of its attempts: figures of all of them, a wide line for each that failed, a sum of the rest.

Told by settle, when it is on record. A line an attempt at ten thousand a second is a line that nobody reads, so a
success has one only where the log is at debug, failures have so many a second, and a sum every ten seconds says what
was left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hookpost import telemetry
from hookpost.engine.tally import tally
from hookpost.engine.work import ATTEMPT_COLUMNS, Attempt, ShardSettle
from hookpost.model import show_id

# Lines of failures a second in one process: enough to see what fails, and no more than an operator can pay for.
FAILURE_LINES_PER_S = 20
# How often the sum of attempts is told, if there were any.
SUM_EVERY_S = 10.0
_DELIVERED = "delivered"
_OUTCOME = ATTEMPT_COLUMNS.index("outcome")


class Reports:
    """The reports of one worker. Times are monotonic seconds."""

    def __init__(self, *, now: float) -> None:
        self._lines_left = float(FAILURE_LINES_PER_S)
        self._lines_at = now
        self._sum_at = now
        self._outcomes: Counter[str] = Counter()
        self._left_out = 0

    def settled(self, parts: Iterable[ShardSettle], *, seconds: float, now: float) -> None:
        """These parts of a settle are committed, after so many seconds."""
        parts = list(parts)
        found = tally(parts)
        telemetry.count("settles")
        telemetry.observe("settle_seconds", (seconds,))
        telemetry.observe("delivery_seconds", found.delivered_after_s)
        telemetry.count_by("attempts", found.attempts)
        telemetry.count_by("dead_letters", found.dead)
        failures = 0
        for (outcome, _), number in found.attempts.items():
            self._outcomes[outcome] += number
            failures += number if outcome != _DELIVERED else 0
        if failures:
            self._tell_failures(parts, now)
        if telemetry.is_told("attempt_delivered"):
            for attempt in _attempts(parts):
                if attempt[_OUTCOME] == _DELIVERED:
                    telemetry.log("attempt_delivered", **wide(attempt))
        if now - self._sum_at >= SUM_EVERY_S:
            self._tell_sum(now)

    def _tell_failures(self, parts: Iterable[ShardSettle], now: float) -> None:
        earned = (now - self._lines_at) * FAILURE_LINES_PER_S
        self._lines_left = min(float(FAILURE_LINES_PER_S), self._lines_left + earned)
        self._lines_at = now
        for attempt in _attempts(parts):
            if attempt[_OUTCOME] == _DELIVERED:
                continue
            if self._lines_left >= 1:
                self._lines_left -= 1
                telemetry.log("attempt_failed", **wide(attempt))
            else:
                self._left_out += 1

    def _tell_sum(self, now: float) -> None:
        outcomes, self._outcomes = self._outcomes, Counter()
        left_out, self._left_out = self._left_out, 0
        seconds, self._sum_at = now - self._sum_at, now
        telemetry.log(
            "attempts",
            delivered=outcomes[_DELIVERED],
            retry=outcomes["retry"],
            dead=outcomes["dead"],
            seconds=round(seconds, 1),
            failures_not_shown=left_out,
        )


def wide(attempt: Attempt) -> dict[str, object]:
    """An attempt as the fields of its line: ids, times and codes; nothing that a receiver or a producer wrote."""
    row = dict(zip(ATTEMPT_COLUMNS, attempt, strict=True))
    trace_id = row["trace_id"]
    return {
        "attempt_id": show_id("att", row["attempt_id"]),
        "event_id": show_id("evt", row["event_id"]),
        "endpoint_id": show_id("ep", row["endpoint_id"]),
        "tenant_id": show_id("ten", row["tenant_id"]),
        "trace_id": row["event_id"].hex if trace_id is None else trace_id.hex(),
        "outcome": row["outcome"],
        "http_status": row["http_status"],
        "error_code": row["error_code"],
        "retry_count": row["retry_count"],
        "generation": row["generation"],
        "late_ms": round((row["started_at"] - row["scheduled_at"]) * 1000),
        **{name: row[name] for name in ("latency_ms", "dns_ms", "connect_ms", "tls_ms", "first_byte_ms")},
        "request_bytes": row["request_bytes"],
        "response_bytes": row["response_bytes"],
        "address": row["address"],
        "protocol": row["protocol"],
        "possible_duplicate": row["possible_duplicate"],
        "shard": row["shard"],
    }


def _attempts(parts: Iterable[ShardSettle]) -> Iterable[Attempt]:
    for part in parts:
        yield from part.attempts
