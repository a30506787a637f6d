"""How an endpoint does: when its failures are announced, when its recovery, and when it is disabled.

A failure is what `classify` charges; a success ends the run; what is not charged (a 4xx, a fault of ours) tells nothing
either way and changes nothing. Pure: `now` is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hookpost.model import HEALTHY, Health, OperationalType, Outcome
from hookpost.policy.classify import classify

__all__ = ["HealthPolicy", "Judgement", "judge", "resumed"]


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """``announce_after``: failures in a row; ``disable_after_s``: seconds of nothing but failures."""

    announce_after: int = 50
    disable_after_s: float = 5 * 86_400.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """The health after an outcome, what is to be announced of it, and whether the endpoint is to be disabled."""

    health: Health
    announcement: OperationalType | None = None
    disable: bool = False


def judge(health: Health, outcome: Outcome, *, now: float, policy: HealthPolicy) -> Judgement:
    """What one outcome means for the endpoint's health.

    Every `announce_after`-th failure announces it again. Who publishes knows what was told already and drops that; but
    what got lost, or was ended by another worker's success, is told after all.
    """
    if outcome.error_code is None:
        return Judgement(HEALTHY, OperationalType.ENDPOINT_RECOVERED if health.announced else None)
    if not classify(outcome.error_code, outcome.status).charged:
        return Judgement(health)
    failures = health.consecutive_failures + 1
    since = now if health.failing_since is None else health.failing_since
    due = failures % policy.announce_after == 0
    return Judgement(
        Health(failures, since, health.announced or due),
        OperationalType.ENDPOINT_FAILING if due else None,
        disable=now - since >= policy.disable_after_s,
    )


def resumed(health: Health) -> Health:
    """Its tenant has opened it again or moved it: a new run, as what was before says nothing of what it is like now. If
    that it fails was announced, its recovery still has to be."""
    return replace(health, consecutive_failures=0, failing_since=None)
