"""What this worker finds out about endpoints, for the store and the other workers: health, holds, and who is gone.

Relies on: the worker to write down what is taken, or to bring it again. Promises: the newest of each endpoint.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from hookpost.engine.lanes import EndpointState
from hookpost.engine.shard import Shard
from hookpost.engine.work import Gone, Hold, Work
from hookpost.model import HEALTHY, Endpoint, EndpointStatus, Health, OperationalType, Outcome
from hookpost.policy.alerts import Notice
from hookpost.policy.health import HealthPolicy, judge, resumed
from hookpost.policy.retry import retry_after_s

# A hold is worth a write when it reaches this much further than the one already written.
HOLD_STEP_S = 1.0
# Why an endpoint is disabled, as its owner reads it.
ANSWERED_GONE = "it answered 410 Gone"
FAILED_FOR_LONG = "nothing but failures for {days:g} days"
# What is sent about endpoints says nothing of the health of those it is sent to: an alert never makes another one.
OPERATIONAL = frozenset(OperationalType)


class Findings:
    """What is not told yet. ``holds``: of Retry-After, by endpoint."""

    def __init__(self, policy: HealthPolicy) -> None:
        self._policy = policy
        self.holds: dict[UUID, Hold] = {}
        self._gone: dict[UUID, Gone] = {}
        self._health: dict[UUID, Health] = {}

    def note_hold(self, endpoint: EndpointState, outcome: Outcome, now: float) -> None:
        """Retry-After holds the endpoint, not only the delivery that was answered with it."""
        until = now + retry_after_s(outcome, now=now)
        if until > now and until > endpoint.hold_until + HOLD_STEP_S:
            self.holds[endpoint.endpoint_id] = Hold(endpoint.endpoint_id, until)
        endpoint.hold_until = max(endpoint.hold_until, until)

    def judge_health(self, shard: Shard, work: Work, outcome: Outcome, now: float) -> None:
        """Count it for the endpoint's health; announcements go out with the settle, so that a crash loses none."""
        endpoint = work.lane.endpoint
        entry = work.entry
        if (outcome.error_code is None and endpoint.health is HEALTHY) or entry.type in OPERATIONAL:
            return
        before, policy = endpoint.health, self._policy
        judged = judge(before, outcome, now=now, policy=policy)
        if judged.health is before:
            return
        endpoint.health = self._health[endpoint.endpoint_id] = judged.health
        if judged.announcement is not None:
            run = judged.health if judged.announcement is OperationalType.ENDPOINT_FAILING else before
            shard.notices.append(
                Notice(
                    type=judged.announcement,
                    tenant_id=entry.tenant_id,
                    endpoint_id=endpoint.endpoint_id,
                    at=now,
                    failures=run.consecutive_failures,
                    since=run.failing_since,
                )
            )
        if judged.disable:
            reason = FAILED_FOR_LONG.format(days=policy.disable_after_s / 86_400)
            self._gone[endpoint.endpoint_id] = Gone(entry.tenant_id, endpoint.endpoint_id, reason)

    def take_back(self, endpoint: EndpointState, health: Health) -> None:
        """It was charged with failures of ours. That they were announced stays, so that its recovery is, too."""
        endpoint.health = replace(health, announced=health.announced or endpoint.health.announced)
        self._health[endpoint.endpoint_id] = endpoint.health

    def note_gone(self, config: Endpoint) -> None:
        """The receiver says that nobody is there any more."""
        self._gone[config.endpoint_id] = Gone(config.tenant_id, config.endpoint_id, ANSWERED_GONE)

    def adopt_health(self, known: EndpointState, config: Endpoint) -> None:
        """What is stored counts when it is loaded first; later we know better, until its tenant opens or moves it."""
        before, open_now = known.config, config.status is EndpointStatus.ENABLED
        if before is None:
            known.health = self._health.get(known.endpoint_id, config.health)
        elif (open_now and before.status is not EndpointStatus.ENABLED) or config.url != before.url:
            known.health = self._health[known.endpoint_id] = resumed(known.health)

    def hear_health(self, endpoint: EndpointState, health: Health) -> None:
        """Another worker delivers to it too and has written this down: the last word stands. Only what was announced
        from here, and may not be written down yet, is kept."""
        announced = health.announced or endpoint.health.announced
        endpoint.health = health if announced is health.announced else replace(health, announced=True)

    def take_holds(self) -> list[Hold]:
        """Retry-After holds to be shared with the other workers."""
        holds, self.holds = list(self.holds.values()), {}
        return holds

    def take_gone(self) -> list[Gone]:
        """Endpoints that are to be disabled."""
        gone, self._gone = list(self._gone.values()), {}
        return gone

    def take_health(self) -> dict[UUID, Health]:
        """The health of the endpoints where it has changed, to be written down."""
        health, self._health = self._health, {}
        return health
