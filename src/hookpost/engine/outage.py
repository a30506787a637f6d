"""Our own way out is down: what is held, who is asked whether it is back, and what is taken back.

Relies on `policy/egress_health` to tell that it is down, and on `Gates` to hold everything but the probe. Promises:
while it is down at most one probe is under way, and all that have something to send are asked in turn, those that were
well first; what was charged to endpoints from the last answer of anybody to the moment it was seen can be taken back;
nothing expires while it is down, nor before there was time to try again.
"""

from __future__ import annotations

from dataclasses import dataclass

from hookpost.engine.lanes import NEVER, EndpointState
from hookpost.engine.work import Work
from hookpost.model import Health, Outcome
from hookpost.policy.breaker import BreakerState
from hookpost.policy.egress_health import EgressHealth, OutagePolicy, unanswered

# Endpoints whose charges can be taken back, and endpoints that wait to be asked: five are enough to see it.
KEPT_MAX = 10_000
# Behind an outage nothing expires for so long: what breakers and order hold back has its turn before.
SPARE_S = 60.0


@dataclass(frozen=True, slots=True)
class Before:
    """How an endpoint stood before a failure that may be ours. ``failures``, ``openings``: of its receiver's breaker;
    ``closed``: so it was."""

    health: Health
    failures: int = 0
    openings: int = 0
    closed: bool = True


class Outage:
    """One worker's own outage, if there is one. ``probe_at``: when somebody is asked next; ``chosen``: who may be."""

    def __init__(self, policy: OutagePolicy) -> None:
        self._policy = policy
        self._egress = EgressHealth(policy)
        # Charged at connect since anybody has answered.
        self._charged: dict[EndpointState, Before] = {}
        # They have something to send: those that were well and have not been asked yet, then all others in turn.
        self._first: dict[EndpointState, None] = {}
        self._others: dict[EndpointState, None] = {}
        self._asked: set[EndpointState] = set()
        self._probe: Work | None = None
        # Whom it was seen by: what waits for them comes forward when it is over.
        self.seen_by: tuple[EndpointState, ...] = ()
        self.chosen: EndpointState | None = None
        self.probe_at = NEVER
        self.spare_until = 0.0

    @property
    def down_since(self) -> float | None:
        """A Unix time; None while it is up."""
        return self._egress.down_since

    def observe(self, work: Work, outcome: Outcome, *, now: float) -> bool:
        """Learn from an attempt; True when it is down or back from here on."""
        if work is self._probe:
            self._probe = None
            self.probe_at = now + self._policy.probe_s
        if self._egress.observe(work.origin, outcome, now=now):
            if self.down_since is None:
                self._end(now)
            else:
                self.probe_at = now + self._policy.probe_s
                for endpoint in self._charged:
                    self._offer(endpoint, now)
            return True
        if outcome.status is not None and self._charged:
            self._charged.clear()
        return False

    def is_ours(self, outcome: Outcome) -> bool:
        """Is this failure not the receiver's? While it is down none is that ended without an answer."""
        return self._egress.down_since is not None and unanswered(outcome)

    def charge(self, endpoint: EndpointState, origin: str, outcome: Outcome) -> None:
        """The endpoint is about to be charged with a failure, which may turn out to be ours: the first of them are the
        timeouts of requests on connections that stood when our way out was cut."""
        if not unanswered(outcome) or endpoint in self._charged or len(self._charged) >= KEPT_MAX:
            return
        breaker = endpoint.tenant.breakers.get(origin)
        self._charged[endpoint] = (
            Before(endpoint.health)
            if breaker is None
            else Before(endpoint.health, breaker.failures, breaker.openings, breaker.state is BreakerState.CLOSED)
        )

    def take_charged(self) -> dict[EndpointState, Before]:
        """Endpoints that were charged though it was us, and how they stood before."""
        charged, self._charged = self._charged, {}
        self.seen_by = tuple(charged)
        return charged

    # ---- probing --------------------------------------------------------------------------------------------------

    def holds(self, endpoint: EndpointState, *, now: float) -> bool:
        """Must what it has to send wait? It does, while it is down, unless it is chosen to be asked."""
        if self._egress.down_since is None or endpoint is self.chosen:
            return False
        self._offer(endpoint, now)
        return True

    def _offer(self, endpoint: EndpointState, now: float) -> None:
        if len(self._first) + len(self._others) >= KEPT_MAX:
            return
        well = endpoint not in self._asked and self._egress.was_well(endpoint.origin, now=now)
        (self._first if well else self._others)[endpoint] = None

    def start(self, work: Work) -> None:
        """This delivery goes, as the probe."""
        self._probe, self.chosen = work, None

    def withdraw(self, work: Work) -> None:
        """The probe does not start after all."""
        if work is self._probe:
            self._probe = None

    def choose(self, *, now: float) -> EndpointState | None:
        """Whom to ask now, if it is time; each in turn. When nobody is left to ask it is taken for up."""
        self.chosen = None
        self.probe_at = now + self._policy.probe_s
        if self._probe is not None:
            return None
        while offered := self._first or self._others:
            endpoint = next(iter(offered))
            del offered[endpoint]
            if endpoint.lanes:
                self.chosen = endpoint
                self._asked.add(endpoint)
                return endpoint
        self._egress.give_up()
        self._end(now)
        return None

    def _end(self, now: float) -> None:
        self._first, self._others = {}, {}
        self._asked.clear()
        self._probe = self.chosen = None
        self.probe_at = NEVER
        self.spare_until = now + SPARE_S
