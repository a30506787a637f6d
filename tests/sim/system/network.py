"""The network between workers and receivers: it delays, loses and forgets; receivers do as their script says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from uuid import UUID

from hookpost.model import ErrorCode, Outcome, Request
from tests.sim.system.loop import Loop, Node
from tests.sim.system.trace import Answered, Arrived, Sent, Trace

MOODS = ("ok", "ok", "ok", "slow", "hang", "refuse", "500", "busy", "400", "flaky", "lost", *("half",) * 5)
EVERY_OTHER = {"half": "500", "deaf": "refuse"}
FLAKY = ("ok", "ok", "500", "hang", "busy", "lost")


@dataclass(slots=True)
class Receiver:
    """An endpoint's other end and its mood. ``half``, ``deaf``: it fails, or is not there, every other time, so that no
    breaker opens."""

    endpoint_id: UUID
    mood: str = "ok"
    fails_next: bool = False

    def next_mood(self) -> str:
        """That of the request that comes now."""
        if self.mood not in EVERY_OTHER:
            return self.mood
        self.fails_next = not self.fails_next
        return EVERY_OTHER[self.mood] if self.fails_next else "ok"


@dataclass(slots=True)
class _Answer:
    """What comes of a request, how long it takes to get there (None: it does not) and in all."""

    outcome: Outcome
    arrives_s: float | None
    total_s: float
    retry_after_s: float | None = None


class Network:
    """All receivers, by URL."""

    def __init__(self, loop: Loop, rng: Random, trace: Trace) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.receivers: dict[str, Receiver] = {}

    def answer(self, mood: str, timeout_s: float) -> _Answer:
        """To a request that starts now."""
        rng = self.rng
        there_s = rng.random() * 0.02
        soon_s = there_s + rng.random() * 0.05
        match mood:
            case "flaky":
                return self.answer(rng.choice(FLAKY), timeout_s)
            case "fickle":
                return self.answer(rng.choice(("ok", "refuse")), timeout_s)
            case "slow":
                return _Answer(Outcome(None, 200), there_s, there_s + rng.random() * (timeout_s - there_s))
            case "hang":
                return _Answer(Outcome(ErrorCode.TOTAL_TIMEOUT), there_s, timeout_s)
            case "lost":
                return _Answer(Outcome(ErrorCode.CONNECT_TIMEOUT), None, timeout_s / 3)
            case "refuse":
                return _Answer(Outcome(ErrorCode.CONNECT_REFUSED), None, there_s)
            case "500":
                return _Answer(Outcome(ErrorCode.HTTP_5XX, 500), there_s, soon_s)
            case "400":
                return _Answer(Outcome(ErrorCode.HTTP_4XX, 400), there_s, soon_s)
            case "busy":
                asked_s = rng.choice((1, 3, 10))
                code, status = rng.choice(((ErrorCode.HTTP_429, 429), (ErrorCode.HTTP_5XX, 503)))
                return _Answer(Outcome(code, status, retry_after=b"%d" % asked_s), there_s, soon_s, float(asked_s))
            case _:
                return _Answer(Outcome(None, 200), there_s, soon_s)


class Wire:
    """One worker's way to the network: the Transport seam."""

    def __init__(self, network: Network, node: Node, now: Callable[[], float]) -> None:
        self._network = network
        self._node = node
        self._now = now

    def send(self, request: Request, done: Callable[[Outcome], None]) -> None:
        """Make one request; ``done`` is called once, later."""
        network, loop = self._network, self._network.loop
        headers = dict(line.split(": ", 1) for line in request.headers.split("\r\n"))
        event_id = UUID(headers["webhook-id"].removeprefix("evt_"))
        span = headers["traceparent"].split("-")[2]
        receiver = network.receivers[request.url]
        endpoint_id, node = receiver.endpoint_id, self._node
        network.trace.add(Sent(loop.time(), node.name, span, event_id, endpoint_id, request.body))
        answer = network.answer(receiver.next_mood(), request.timeouts.total_s)
        started_at = self._now()

        def arrive() -> None:
            network.trace.add(Arrived(loop.time(), span, event_id, endpoint_id))

        def end() -> None:
            outcome = answer.outcome
            outcome.started_at, outcome.finished_at = started_at, self._now()
            network.trace.add(
                Answered(
                    loop.time(), node.name, span, event_id, endpoint_id, outcome.status, outcome.error_code,
                    answer.retry_after_s,
                )
            )  # fmt: skip
            done(outcome)

        if answer.arrives_s is not None:
            loop.after(answer.arrives_s, loop.world, arrive)
        loop.after(answer.total_s, node, end)
