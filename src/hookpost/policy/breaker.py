"""The circuit breaker of one receiver: (tenant, scheme, host, port), so that no tenant can open it for another.

| state     | what it lets through                 | what ends it                                                      |
|-----------|--------------------------------------|-------------------------------------------------------------------|
| closed    | everything; after a recovery, a ramp | `failures` health failures in a row → open                        |
| open      | nothing                              | `reopen_at` has come and this worker took the probe → half-open   |
| half-open | one probe for the whole fleet        | a healthy answer → closed; a failure → open, for twice as long    |

Pauses are drawn, each up to half as long again as it must be, so that receivers that fell together are not probed
together for as long as they are away.

Pure: `now` and `rng` are arguments. Which worker may send the probe is for the store to say, as only it sees the whole
fleet.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from random import Random
from uuid import UUID

from hookpost.model import ErrorCode, Outcome
from hookpost.policy.classify import classify

# Requests that may be under way right behind a recovery; each healthy answer adds one, so they double every round trip.
RAMP_START = 2
# With so many under way the ramp is over: it is the default cap of an endpoint.
RAMP_END = 64
# 2**16 openings are beyond every longest pause; the bound keeps the power finite.
_DOUBLINGS_MAX = 16
# A pause is up to so many times its least length. The draws add up: receivers that fell at one moment are probed
# throughout the length of a pause after some hours.
JITTER = 1.5
# The store keeps microseconds: what we have stored ourselves comes back as the same moment.
_SAME_S = 1e-5
# A state is later than the one it follows by so much at least. On a clock behind that of whoever told of that one it
# would be earlier, and hearing of that one again would undo it.
STEP_S = 2 * _SAME_S
# What went wrong on our side says nothing of the receiver.
_OURS = frozenset(
    {
        ErrorCode.INTERNAL_ERROR,
        ErrorCode.INVALID_URL,
        ErrorCode.ADDRESS_FORBIDDEN,
        ErrorCode.EGRESS_PROXY_ERROR,
    }
)


class BreakerState(StrEnum):
    """May deliveries go to this receiver?"""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Verdict(Enum):
    """What an outcome says of the receiver's health."""

    HEALTHY = auto()
    SICK = auto()
    NOTHING = auto()


def verdict(outcome: Outcome) -> Verdict:
    """A receiver that answers is well, were it with 404: only what `classify` charges says that it is sick."""
    code = outcome.error_code
    if code is None:
        return Verdict.HEALTHY
    if classify(code, outcome.status).charged:
        return Verdict.SICK
    return Verdict.NOTHING if code in _OURS else Verdict.HEALTHY


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """``failures`` in a row open it, for ``pause_s`` at least and twice as long each time after; no pause is longer
    than ``pause_max_s``."""

    failures: int = 5
    pause_s: float = 30.0
    pause_max_s: float = 600.0

    def pause(self, openings: int, *, rng: Random) -> float:
        """How long it stays open, in seconds, when it opens so often without a recovery between.

        At least ``pause_s`` (or ``pause_max_s``, should that be shorter), at most ``pause_max_s``. The longest pauses
        differ as the others do: they begin at what `JITTER` leaves of ``pause_max_s``.
        """
        doubled_s = self.pause_s * 2.0 ** min(openings - 1, _DOUBLINGS_MAX)
        least_s = min(max(min(doubled_s, self.pause_max_s / JITTER), self.pause_s), self.pause_max_s)
        return least_s + rng.random() * (min(least_s * JITTER, self.pause_max_s) - least_s)


@dataclass(frozen=True, slots=True)
class BreakerRecord:
    """A breaker as it is stored and shared between workers. Times are Unix seconds."""

    tenant_id: UUID
    origin: str
    state: BreakerState
    since: float
    reopen_at: float | None
    openings: int
    failures: int


@dataclass(frozen=True, slots=True)
class Probe:
    """What the store said when a worker asked for the probe of a breaker.

    Granted until ``until``; or another worker has it so long. ``record`` is what is stored.
    """

    granted: bool
    until: float
    record: BreakerRecord


class Breaker:
    """One receiver's breaker in one worker.

    ``openings`` counts those in a row without a recovery between; ``told`` says that the last of them is stored.
    """

    __slots__ = (
        "_policy", "failures", "held_until", "openings", "probe_until", "probing", "ramp", "reopen_at", "since",
        "state", "told",
    )  # fmt: skip

    def __init__(self, policy: BreakerPolicy, *, now: float) -> None:
        self._policy = policy
        self.state = BreakerState.CLOSED
        self.since = now
        self.reopen_at = 0.0
        # Another worker has the right to the probe.
        self.held_until = 0.0
        self.openings = 0
        self.failures = 0
        self.ramp: int | None = None
        self.probing = False
        self.probe_until = 0.0
        self.told = False

    @property
    def at_rest(self) -> bool:
        """Closed, and nothing to remember: as good as no breaker."""
        return self.state is BreakerState.CLOSED and self.failures == 0 and self.ramp is None

    @property
    def told_since(self) -> float | None:
        """Since when it is open, once the store has heard of that."""
        return self.since if self.told and self.state is BreakerState.OPEN else None

    def wants_probe(self, *, now: float) -> bool:
        """Has its pause ended, and has nobody here the right to send the probe?"""
        if self.state is BreakerState.HALF_OPEN and not self.probing and self.probe_until <= now:
            self.state = BreakerState.OPEN  # the right to the probe has lapsed unused
        return self.state is BreakerState.OPEN and self.closed_until <= now

    @property
    def closed_until(self) -> float:
        """Until when it lets nothing through, while it is open."""
        return max(self.reopen_at, self.held_until)

    def closed_to(self, in_flight: int) -> bool:
        """Must a delivery wait while so many are under way to this receiver?"""
        if self.state is BreakerState.CLOSED:
            return self.ramp is not None and in_flight >= self.ramp
        return self.state is BreakerState.OPEN or self.probing

    def start(self) -> bool:
        """A delivery goes; is it the probe?"""
        self.probing = self.state is BreakerState.HALF_OPEN
        return self.probing

    def observe(self, verdict: Verdict, *, probe: bool, now: float, rng: Random) -> bool:
        """Learn from an outcome; True when the state changed. Behind an opening only the probe's outcome counts: what
        was under way before says nothing new. ``rng`` draws the length of a pause."""
        if probe:
            self.probing = False
        match verdict:
            case Verdict.SICK:
                return self._sick(probe=probe, now=now, rng=rng)
            case Verdict.HEALTHY:
                return self._healthy(probe=probe, now=now)
            case Verdict.NOTHING:
                return probe and self.state is BreakerState.HALF_OPEN and self._open(now, self.openings, rng)

    def _sick(self, *, probe: bool, now: float, rng: Random) -> bool:
        self.failures += 1
        if self.state is BreakerState.CLOSED:
            if self.ramp is not None:
                self.ramp = max(RAMP_START, self.ramp // 2)
            return self.failures >= self._policy.failures and self._open(now, self.openings + 1, rng)
        return probe and self.state is BreakerState.HALF_OPEN and self._open(now, self.openings + 1, rng)

    def _healthy(self, *, probe: bool, now: float) -> bool:
        if self.state is BreakerState.CLOSED:
            self.failures = 0
            if self.ramp is not None:
                self.ramp += 1
                if self.ramp > RAMP_END:
                    self.ramp = None
                    self.openings = 0
            return False
        return probe and self._close(now)

    def _open(self, now: float, openings: int, rng: Random) -> bool:
        self._enter(BreakerState.OPEN, now)
        self.told = False
        self.openings = max(1, openings)
        self.reopen_at = now + self._policy.pause(self.openings, rng=rng)
        self.ramp = None
        return True

    def _close(self, now: float) -> bool:
        self._enter(BreakerState.CLOSED, now)
        self.failures = 0
        self.ramp = RAMP_START
        return True

    def forgive(self, failures: int, openings: int, *, now: float) -> bool:
        """It was closed, with so many failures behind it, and what was counted since was not the receiver's; True when
        the state changed."""
        self.failures, self.openings = failures, openings
        if self.state is BreakerState.CLOSED:
            return False
        self._enter(BreakerState.CLOSED, now)
        self.ramp = RAMP_START
        return True

    def _enter(self, state: BreakerState, now: float) -> None:
        self.state = state
        self.since = max(now, self.since + STEP_S)

    def grant(self, probe: Probe, *, asked: float | None, now: float) -> bool:
        """Take over what the store said of the probe; True when the state changed. ``asked``: the opening that the
        store had heard of when it was asked, if it had (see ``told_since``)."""
        if probe.granted and self.state is BreakerState.OPEN:
            if self.reopen_at > now:
                # Asked for a second time before our own probe failed, which the store does not know yet.
                return False
            self._enter(BreakerState.HALF_OPEN, max(now, probe.record.since))
            self.probe_until = probe.until
            return True
        if self.state is BreakerState.OPEN:
            self.held_until = probe.until
            if probe.record.state is BreakerState.CLOSED and asked is not None and asked == self.told_since:
                # Somebody has closed it behind our opening, whatever the times say: clocks may have been set back in
                # between. Nobody would ever grant us the probe. An answer that took long is of a time before it.
                return self._take_over(probe.record)
        return self.adopt(probe.record)

    def give_back(self, *, now: float) -> bool:
        """Nothing was sent as the probe that this worker has the right to: let another one send it; False when there is
        nothing to give back."""
        if self.state is not BreakerState.HALF_OPEN or self.probing:
            return False
        self._enter(BreakerState.OPEN, now)
        self.told = False
        self.reopen_at = now
        return True

    def adopt(self, record: BreakerRecord) -> bool:
        """Take over what another worker has learnt later than we did; True when the state changed, or it lets nothing
        through for less long."""
        if record.since <= self.since + _SAME_S or self.probing:
            return False
        return self._take_over(record)

    def _take_over(self, record: BreakerRecord) -> bool:
        before, closed_until = self.state, self.closed_until
        self.told = True
        self.since = record.since
        self.openings = record.openings
        self.failures = record.failures
        if record.state is BreakerState.CLOSED:
            self.state = BreakerState.CLOSED
            self.ramp = RAMP_START if before is not BreakerState.CLOSED else self.ramp
        else:
            # To us a probe of another worker is a breaker that stays open.
            self.state = BreakerState.OPEN
            self.reopen_at = max(record.reopen_at or 0.0, self.reopen_at)
            if record.state is BreakerState.OPEN:
                self.held_until = 0.0
            self.ramp = None
        return self.state is not before or (self.state is BreakerState.OPEN and self.closed_until < closed_until)

    def record(self, tenant_id: UUID, origin: str) -> BreakerRecord:
        """What is to be stored."""
        reopen_at = None if self.state is BreakerState.CLOSED else self.reopen_at
        return BreakerRecord(tenant_id, origin, self.state, self.since, reopen_at, self.openings, self.failures)
