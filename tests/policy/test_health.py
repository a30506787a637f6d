"""When failures are announced, when a recovery is, and when an endpoint is disabled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.model import HEALTHY, ErrorCode, Health, Outcome
from hookpost.policy.classify import FAILURES
from hookpost.policy.health import HealthPolicy, judge, resumed

NOW = 1_800_000_000.0
POLICY = HealthPolicy(announce_after=3, disable_after_s=100.0)
OK = Outcome(None, 200)
BROKEN = Outcome(ErrorCode.HTTP_5XX, 500)
FAILING, RECOVERED = "hookpost.endpoint.failing", "hookpost.endpoint.recovered"
S = NOW - 10  # since


@pytest.mark.parametrize(
    ("before", "outcome", "after", "announcement", "disable"),
    [
        # A run of failures: counted, its beginning kept, announced at the third and, in case that got lost, the sixth.
        (Health(0, None, False), BROKEN, Health(1, NOW, False), None, False),
        (Health(1, S, False), BROKEN, Health(2, S, False), None, False),
        (Health(2, S, False), BROKEN, Health(3, S, True), FAILING, False),
        (Health(3, S, True), BROKEN, Health(4, S, True), None, False),
        (Health(5, S, True), BROKEN, Health(6, S, True), FAILING, False),
        # A success ends it. Only what was announced has to be taken back.
        (Health(0, None, False), OK, HEALTHY, None, False),
        (Health(2, S, False), OK, HEALTHY, None, False),
        (Health(3, S, True), OK, HEALTHY, RECOVERED, False),
        (Health(0, None, True), OK, HEALTHY, RECOVERED, False),
        # Nothing but failures for 100 s, to the moment; a success on the last day would have ended the run.
        (Health(7, NOW - 99.9, True), BROKEN, Health(8, NOW - 99.9, True), None, False),
        (Health(7, NOW - 100, True), BROKEN, Health(8, NOW - 100, True), None, True),
        (Health(1, NOW - 500, False), BROKEN, Health(2, NOW - 500, False), None, True),
        (Health(7, NOW - 500, True), OK, HEALTHY, RECOVERED, False),
    ],
)
def test_what_an_outcome_means(
    before: Health, outcome: Outcome, after: Health, announcement: str | None, disable: bool
) -> None:
    judged = judge(before, outcome, now=NOW, policy=POLICY)
    assert (judged.health, judged.announcement, judged.disable) == (after, announcement, disable)


@pytest.mark.parametrize("code", [code for code, failure in FAILURES.items() if not failure.charged])
def test_what_is_not_charged_changes_nothing(code: ErrorCode) -> None:
    for before in (HEALTHY, Health(2, S), Health(9, NOW - 500, True)):
        judged = judge(before, Outcome(code, 400), now=NOW, policy=POLICY)
        assert judged.health is before
        assert (judged.announcement, judged.disable) == (None, False)


def test_who_is_well_stays_the_same_object() -> None:
    assert judge(HEALTHY, OK, now=NOW, policy=POLICY).health is HEALTHY
    assert judge(Health(5, S, True), OK, now=NOW, policy=POLICY).health is HEALTHY


def test_an_endpoint_that_is_opened_again_begins_anew_and_its_recovery_is_still_told() -> None:
    opened = resumed(Health(60, NOW - 500, True))
    assert not judge(opened, BROKEN, now=NOW, policy=POLICY).disable
    assert judge(opened, OK, now=NOW, policy=POLICY).announcement == RECOVERED
    assert judge(resumed(Health(2, S)), OK, now=NOW, policy=POLICY).announcement is None


@given(st.lists(st.sampled_from([OK, BROKEN, Outcome(ErrorCode.HTTP_4XX, 404)])), st.integers(1, 5))
def test_a_recovery_is_announced_once_and_only_after_a_failing(outcomes: list[Outcome], announce_after: int) -> None:
    policy = HealthPolicy(announce_after, disable_after_s=1e9)
    health, failing = HEALTHY, False
    for step, outcome in enumerate(outcomes):
        judged = judge(health, outcome, now=NOW + step, policy=policy)
        health = judged.health
        if judged.announcement == RECOVERED:
            assert failing
            failing = False
        failing |= judged.announcement == FAILING
    assert failing == health.announced
