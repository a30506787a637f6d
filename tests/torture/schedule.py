"""What happens when: a list of faults drawn from a seed. Pure, so the same seed is the same list."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from tests.torture.books import ALL, Fault


class Flap(StrEnum):
    """What the flapping receiver does in its bad times."""

    REFUSE = "refuse"
    """503 at once."""
    RESET = "reset"
    """It takes the request, then closes the connection without a word."""
    SILENT = "silent"
    """It takes the request and never answers."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault to come, in seconds from the start."""

    at: float
    fault: Fault
    target: str
    seconds: float = 0.0


# How often each fault that takes its time comes, in seconds, and how long it takes: shortest, longest. A stop and a cut of
# the database are longer than the lease of the rig; a cut of the receiver is longer than its longest request. A broker
# takes some seconds more to start.
EVERY: dict[Fault, tuple[float, float, float]] = {
    Fault.STOP: (20.0, 5.0, 9.0),
    Fault.POSTGRES: (45.0, 0.0, 0.0),
    Fault.HANG: (75.0, 2.0, 8.0),
    Fault.CUT_DATABASE: (30.0, 5.0, 10.0),
    Fault.CUT_RECEIVER: (30.0, 4.0, 10.0),
    Fault.DISK_FULL: (100.0, 3.0, 8.0),
    Fault.BROKER: (30.0, 2.0, 6.0),
    Fault.LEADER: (45.0, 2.0, 6.0),
    Fault.BROKERS: (75.0, 1.0, 4.0),
}
# Nothing is begun in the first seconds, when the processes start, nor so late that it would not be over.
CALM_S = 3.0
# Of a hundred kills so many hit the supervisor with all its processes.
SUPERVISOR_KILLS = 0.05
FLAP_GOOD_S, FLAP_BAD_S = (4.0, 12.0), (2.0, 8.0)
SUPERVISOR = "server"
KAFKA = "kafka"
"""The target of a fault of several brokers, or of one that is chosen when it comes."""


def plan(
    seed: int,
    *,
    seconds: float,
    kills: int,
    supervised: Collection[str],
    apart: Collection[str],
    able: Collection[Fault],
    brokers: Collection[str] = (),
) -> list[Planned]:
    """The faults of one run in their order.

    ``supervised`` processes are replaced by their supervisor, workers ``apart`` have none and networks of their own;
    ``able``: what this machine lets us do; ``brokers``: of Kafka, if the journal is there.
    """
    rng = Random(seed)
    everyone = [*supervised, *apart]
    workers = [name for name in everyone if not name.startswith("api")]
    targets = {
        Fault.STOP: workers, Fault.POSTGRES: [ALL], Fault.HANG: [ALL], Fault.CUT_DATABASE: [*apart],
        Fault.CUT_RECEIVER: [*apart], Fault.DISK_FULL: [ALL],
        Fault.BROKER: [*brokers], Fault.LEADER: [KAFKA], Fault.BROKERS: [KAFKA],
    }  # fmt: skip
    planned = [Planned(at, Fault.KILL, _victim(rng, everyone)) for at in _moments(rng, kills, seconds)]
    for fault, (every_s, shortest, longest) in EVERY.items():
        # Drawn whether we are able or not: the rest of the list is the same on every machine.
        count = max(1, round(seconds / every_s))
        drawn = [(at, rng.random(), rng.uniform(shortest, longest)) for at in _moments(rng, count, seconds - longest)]
        if fault in able and (among := targets[fault]):
            planned += [Planned(at, fault, among[int(which * len(among))], lasts) for at, which, lasts in drawn]
    return sorted(planned, key=lambda each: each.at)


def flapping(seed: int) -> Iterator[tuple[float, Flap, float]]:
    """For ever: good for so many seconds, then bad in this way for so many."""
    rng = Random(seed + 1)
    while True:
        yield rng.uniform(*FLAP_GOOD_S), rng.choice(list(Flap)), rng.uniform(*FLAP_BAD_S)


def _moments(rng: Random, count: int, seconds: float) -> list[float]:
    return sorted(rng.uniform(CALM_S, max(CALM_S, seconds - CALM_S)) for _ in range(count))


def _victim(rng: Random, everyone: list[str]) -> str:
    return SUPERVISOR if rng.random() < SUPERVISOR_KILLS else rng.choice(everyone)
