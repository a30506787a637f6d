"""F21: a receiver that is up for twenty seconds and down for twenty, for half an hour: its breaker does not swing with it,
little is sent in vain, and most of what is posted arrives while it lasts. All in virtual time."""

from __future__ import annotations

from uuid import UUID

from hookpost.model import Endpoint, Outcome, Tenant
from hookpost.policy.breaker import BreakerPolicy
from tests.engine.driver import OK, REFUSED, START, Driver

TENANT = Tenant(UUID(int=1 << 64), (0,))
ENDPOINT = Endpoint(UUID(int=2 << 64), TENANT.tenant_id, "https://receiver.example/")
FLAP_S, FLAPPING_S, RATE = 20.0, 1800.0, 2.0
ROUND_TRIP_S = 0.05


def test_f21_a_flapping_receiver_gets_most_of_what_is_posted_and_few_requests_in_vain() -> None:
    arrived: list[float] = []
    in_vain: list[float] = []

    def answer(now: float) -> tuple[Outcome, float]:
        up = now - START >= FLAPPING_S or int((now - START) / FLAP_S) % 2 == 0
        (arrived if up else in_vain).append(now)
        return (OK if up else REFUSED), ROUND_TRIP_S

    driver = Driver([TENANT], [ENDPOINT], {ENDPOINT.endpoint_id: answer})
    driver.open_shards()
    count = int(RATE * FLAPPING_S)
    driver.produce(ENDPOINT, rate=RATE, first_at=START, count=count)
    driver.run(START + FLAPPING_S)
    policy = BreakerPolicy()
    # The breaker cannot open more often than once in its shortest pause; each time costs the failures that it needs, and
    # those of the ramp behind a probe that came at the end of an upward swing.
    openings = FLAPPING_S / policy.pause_s
    assert len(in_vain) <= openings * 2 * policy.failures
    assert len(arrived) >= 0.4 * count
    driver.run_until_drained(START + FLAPPING_S + 2 * policy.pause_max_s)
    assert driver.books.ends() == {"delivered": count}
    driver.check_all_over()
