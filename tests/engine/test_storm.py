"""R16, I16: all receivers of one tenant answer 429; a tenant in the same shard does not notice. In virtual time."""

from __future__ import annotations

from random import Random
from uuid import UUID

import pytest

from hookpost.engine.work import Work
from hookpost.model import Endpoint, ErrorCode, Outcome, Tenant
from tests.engine.driver import OK, START, Driver

STORMY, CALM = Tenant(UUID(int=1 << 64), (0,)), Tenant(UUID(int=2 << 64), (0,))
ENDPOINTS, STORM_RATE, RATE = 50, 40.0, 100.0
UNTIL = START + 2.5


def endpoints(tenant: Tenant, count: int) -> list[Endpoint]:
    first = tenant.tenant_id.int + 1
    return [Endpoint(UUID(int=first + n), tenant.tenant_id, f"https://h{n}.t{first >> 64}.test/") for n in range(count)]


def percentile_99(retry_after: bytes | None, *, storm: bool) -> float:
    """Of the calm tenant's seconds from acceptance to the request."""
    stormy, calm, latencies = endpoints(STORMY, ENDPOINTS), endpoints(CALM, 4), list[float]()
    busy = Outcome(ErrorCode.HTTP_429, 429, retry_after=retry_after)
    answers = {each.endpoint_id: (OK if each.tenant_id == CALM.tenant_id else busy) for each in (*stormy, *calm)}

    def sent(work: Work, now: float) -> None:
        if work.entry.tenant_id == CALM.tenant_id:
            latencies.append(now - work.entry.created_at)

    receivers = {each: lambda _, answer=answer: (answer, 0.05) for each, answer in answers.items()}
    driver = Driver([STORMY, CALM], [*stormy, *calm], receivers, sent=sent)  # type: ignore[arg-type] # lambdas
    if storm:
        for endpoint in stormy:
            driver.produce(endpoint, rate=STORM_RATE, first_at=START, count=int(STORM_RATE * (UNTIL - START)))
    driver.open_shards()
    at, rng = START, Random(1)
    while (at := at + rng.expovariate(RATE)) < UNTIL:
        driver.produce(rng.choice(calm), rate=1.0, first_at=at, count=1)
    driver.run(UNTIL)
    assert len(latencies) > 0.9 * RATE * (UNTIL - START)
    return sorted(latencies)[int(len(latencies) * 0.99)]


@pytest.fixture(scope="module")
def alone() -> float:
    return percentile_99(None, storm=False)


@pytest.mark.parametrize("retry_after", [b"1", None], ids=["retry-after", "bare"])
def test_r16_a_storm_of_429_at_one_tenant_leaves_the_99th_percentile_of_another(
    retry_after: bytes | None, alone: float
) -> None:
    assert percentile_99(retry_after, storm=True) <= 1.5 * alone
