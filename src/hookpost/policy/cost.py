"""What deliveries cost: measured figures put into a formula, with prices as inputs.

    compute = attempts a second x average request in s x cost of a worker-hour / requests that a worker has in flight
    storage = bytes of an attempt's row x attempts a day x days kept x cost of a GB-month
    egress  = (request bytes + response bytes) x attempts x cost of a GB

The product of the first two is how many requests are under way at a time (Little's law). All is stated for a month of
730 hours at the measured pace. What retries and 429 cost is part of the whole, and shown apart.
"""

from __future__ import annotations

from dataclasses import dataclass

HOURS_A_MONTH = 730.0
SECONDS_A_MONTH = HOURS_A_MONTH * 3600
SECONDS_A_DAY = 86_400.0
GB = 1e9


@dataclass(frozen=True, slots=True)
class Prices:
    """What the operator pays, in any one currency."""

    worker_cost_per_hour: float = 0.045
    """Of one worker process: the CPU it takes and the memory beside it."""
    requests_per_worker: float = 1.0
    """Requests that one worker has under way at a time; with 1 a worker waits for each answer."""
    storage_cost_per_gb_month: float = 0.10
    egress_cost_per_gb: float = 0.09
    retention_days: float = 30.0
    """For how many days attempts are kept."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Attempts, and what they took together."""

    attempts: int
    total_ms: int
    request_bytes: int
    response_bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """A month's cost by part."""

    compute: float
    storage: float
    egress: float

    @property
    def total(self) -> float:
        """All parts."""
        return self.compute + self.storage + self.egress


def monthly(measured: Measured, prices: Prices, *, seconds: float, attempt_row_bytes: float) -> Cost:
    """What a month costs at the pace of these attempts, which were made within ``seconds`` (above 0)."""
    assert seconds > 0, "a pace needs a time"
    # Attempts a second x average request: the number of attempts cancels out.
    under_way = measured.total_ms / 1000 / seconds
    per_day = measured.attempts / seconds * SECONDS_A_DAY
    moved = (measured.request_bytes + measured.response_bytes) / seconds * SECONDS_A_MONTH
    return Cost(
        compute=under_way * prices.worker_cost_per_hour / prices.requests_per_worker * HOURS_A_MONTH,
        storage=attempt_row_bytes * per_day * prices.retention_days / GB * prices.storage_cost_per_gb_month,
        egress=moved / GB * prices.egress_cost_per_gb,
    )
