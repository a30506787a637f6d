"""Is our own way out down? Told from what becomes of requests to receivers that were well a moment ago.

When our network, our resolver or our egress proxy fails, all receivers seem to be sick at once. A receiver counts as
well for `well_s` behind an answer of it. Our way out is down when, since anybody has answered at all, so many of the
receivers that were well, and most of them, failed at connect. It is back with the first answer, whoever gives it.

An egress proxy that cannot be reached, or that does not let us in, needs no such proof: nobody can be reached without
it, so the first request that it fails says that we are down (``Outcome.ours``).

So one receiver that still answers says that it is not us: a way out that is half broken is not called down, and a
provider that takes many receivers down with it is called down only until somebody else is asked. Pure: `now` is an
argument.
"""

from __future__ import annotations

from dataclasses import dataclass

from hookpost.model import ErrorCode, Outcome

# Receivers of a minute whose answers are remembered; of more than these some are not known to be well, and their
# failures say nothing. 20,000 take some 4 MB.
WELL_MAX = 20_000
# No packet of the receiver has come back.
AT_CONNECT = frozenset(
    {
        ErrorCode.DNS_FAILURE,
        ErrorCode.CONNECT_REFUSED,
        ErrorCode.CONNECT_TIMEOUT,
        ErrorCode.NETWORK_UNREACHABLE,
        ErrorCode.EGRESS_PROXY_ERROR,
    }
)
# Broken before anything was sent, whatever the network is like.
_NEVER_SENT = frozenset({ErrorCode.INTERNAL_ERROR, ErrorCode.INVALID_URL, ErrorCode.ADDRESS_FORBIDDEN})


@dataclass(frozen=True, slots=True)
class OutagePolicy:
    """``receivers``: so many fail at once when it is us, 0 for never; ``well_s``: how long an answer counts;
    ``probe_s``: between two probes while it is down."""

    receivers: int = 5
    well_s: float = 60.0
    probe_s: float = 1.0


def unanswered(outcome: Outcome) -> bool:
    """Did a request that was sent, or tried to be, end without an answer?"""
    return outcome.status is None and outcome.error_code is not None and outcome.error_code not in _NEVER_SENT


class EgressHealth:
    """What one worker sees of its way out. ``down_since``: a Unix time, None while it is up."""

    __slots__ = ("_failing", "_policy", "_turn_at", "_well", "_well_before", "down_since")

    def __init__(self, policy: OutagePolicy) -> None:
        self._policy = policy
        # Receivers (scheme, host, port; whosever they are) and when they answered last: since the page was turned, and
        # on the page before. So the old ones go without being looked for.
        self._well: dict[str, float] = {}
        self._well_before: dict[str, float] = {}
        self._turn_at = 0.0
        # Of those that were well: which failed at connect since anybody has answered.
        self._failing: set[str] = set()
        self.down_since: float | None = None

    def was_well(self, receiver: str, *, now: float) -> bool:
        """Has it answered lately? While our way out is down: before it was."""
        answered_at = self._well.get(receiver) or self._well_before.get(receiver, 0.0)
        return answered_at >= (self.down_since or now) - self._policy.well_s

    def observe(self, receiver: str, outcome: Outcome, *, now: float) -> bool:
        """Learn from an outcome; True when it is down or back from here on."""
        if outcome.status is not None:
            return self._answered(receiver, now)
        if outcome.ours and self._policy.receivers:
            return self._down(now)
        if outcome.error_code in AT_CONNECT and self._policy.receivers and self.was_well(receiver, now=now):
            return self._failed(receiver, now)
        return False

    def give_up(self) -> None:
        """Nobody is left whom to ask: it is taken for up, until that is refuted."""
        self.down_since = None
        self._failing.clear()

    def _answered(self, receiver: str, now: float) -> bool:
        if now >= self._turn_at:
            self._well, self._well_before = {}, self._well
            self._turn_at = now + self._policy.well_s
        if len(self._well) < WELL_MAX or receiver in self._well:
            self._well[receiver] = now
        if self._failing:
            self._failing.clear()
        was_down, self.down_since = self.down_since is not None, None
        return was_down

    def _failed(self, receiver: str, now: float) -> bool:
        self._failing.add(receiver)
        if len(self._failing) < self._policy.receivers:
            return False
        since = now - self._policy.well_s
        well = sum(at >= since for at in {**self._well_before, **self._well}.values())
        return 2 * len(self._failing) > well and self._down(now)

    def _down(self, now: float) -> bool:
        if self.down_since is not None:
            return False
        self.down_since = now
        return True
