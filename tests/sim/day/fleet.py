"""Who is there: the tenants, endpoints and receivers of one worker of the fleet, and when events are posted to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from uuid import UUID

from hookpost.model import Endpoint, ErrorCode, Outcome, Tenant
from tests.engine.driver import START

DAY_S = 86_400.0
DELIVERIES_A_DAY = 1_000_000_000
# Of all answers of a receiver that is well: so many are a 503.
HICCUPS = 0.002
# On the average a receiver has no more than this part of an endpoint's places taken: one that never keeps up with what it
# is sent has a queue without an end, whoever delivers.
FILLED_MAX = 0.35
OK = Outcome(None, 200)
BUSY = Outcome(ErrorCode.HTTP_5XX, 503)

# The groups that are told apart. BESIDE: a receiver that is well, of a tenant with others that are not.
WELL, BESIDE, SICK, HOT = "well", "beside", "sick", "hot"

# From when to when (seconds from the start) so many events a second are posted.
Segment = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Fleet:
    """How a billion deliveries a day are shared out. ``sampled``: so many of the workers are lived through."""

    workers: int = 64
    sampled: int = 1
    shards_each: int = 2
    tenants_each: int = 40

    @property
    def rate(self) -> float:
        """Deliveries a second of one worker, on the day's average."""
        return DELIVERIES_A_DAY / DAY_S / self.workers

    @property
    def scale(self) -> float:
        """What stands for one sampled worker."""
        return self.workers / self.sampled


class Receiver:
    """One endpoint's receiver: answers after about ``median_s``, unless ``trouble`` has something else to say."""

    __slots__ = ("_away", "_rng", "back_at", "hiccups", "median_s", "trouble")

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.median_s = min(2.0, max(0.01, rng.lognormvariate(-2.5, 0.7)))  # median 82 ms
        self.hiccups = HICCUPS
        self.trouble: Callable[[float], tuple[Outcome, float] | None] | None = None
        # When the first request came that it answered behind its trouble.
        self.back_at = 0.0
        self._away = False

    def __call__(self, now: float) -> tuple[Outcome, float]:
        delay_s = self.median_s * (0.7 + 0.6 * self._rng.random())
        if self.trouble is not None:
            if (answer := self.trouble(now)) is not None:
                self._away = True
                return answer
            if self._away:
                self.back_at = self.back_at or now
        return (BUSY if self._rng.random() < self.hiccups else OK), delay_s


class Share:
    """One worker's tenants with their endpoints, each with its part of the worker's traffic: few are large, most small."""

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        self.rng = rng
        self.tenants: list[Tenant] = []
        self.endpoints: list[Endpoint] = []
        self.weights: list[float] = []
        self.receivers: dict[UUID, Receiver] = {}
        self.group: dict[UUID, str] = {}
        for number in range(fleet.tenants_each):
            self._tenant(number, number % fleet.shards_each, rng.lognormvariate(0.0, 1.2), rng.randint(1, 10))
        self._weigh()

    def _weigh(self) -> None:
        whole = sum(self.weights)
        self.weights = [weight / whole for weight in self.weights]

    def _tenant(self, number: int, shard: int, weight: float, endpoints: int) -> Tenant:
        rng = self.rng
        tenant = Tenant(UUID(int=1 + number << 64), (shard,))
        self.tenants.append(tenant)
        parts = [rng.lognormvariate(0.0, 1.0) for _ in range(endpoints)]
        for index, part in enumerate(parts):
            endpoint_id = UUID(int=tenant.tenant_id.int + 1 + index)
            url = f"https://h{index}.t{number}.example/"
            self.endpoints.append(Endpoint(endpoint_id, tenant.tenant_id, url))
            self.weights.append(weight * part / sum(parts))
            self.receivers[endpoint_id] = Receiver(rng)
            self.group[endpoint_id] = WELL
        return tenant

    def add_hot(self, part: float) -> None:
        """And a tenant with this much traffic, the others' together being 1."""
        hot = self._tenant(len(self.tenants), 0, part, 20)
        self._weigh()
        self.group.update((e.endpoint_id, HOT) for e in self.endpoints if e.tenant_id == hot.tenant_id)

    def fall_sick(self, part: float) -> list[Endpoint]:
        """Endpoints drawn by lot, until so much of all traffic is theirs; their group is SICK, of the others of their
        tenants BESIDE."""
        lots = list(zip(self.endpoints, self.weights, strict=True))
        self.rng.shuffle(lots)
        wanted, sick = part * sum(self.weights), []
        for endpoint, weight in lots:
            if weight <= wanted:
                wanted -= weight
                sick.append(endpoint)
        troubled = {endpoint.tenant_id for endpoint in sick}
        self.group.update((e.endpoint_id, BESIDE) for e in self.endpoints if e.tenant_id in troubled)
        self.group.update((e.endpoint_id, SICK) for e in sick)
        return sick

    def keep_up(self, rate: float) -> None:
        """Let all receivers be fast enough for their part of this rate."""
        for endpoint, weight in zip(self.endpoints, self.weights, strict=True):
            receiver = self.receivers[endpoint.endpoint_id]
            receiver.median_s = min(receiver.median_s, FILLED_MAX * endpoint.max_in_flight / (weight * rate))

    def posts(self, segments: Iterable[Segment]) -> Iterator[tuple[float, Endpoint]]:
        """When an event is posted, and whom it is owed to: at random, as independent producers do."""
        rng, endpoints, up_to = self.rng, self.endpoints, list(accumulate(self.weights))
        for start, end, rate in segments:
            at = START + start
            while (at := at + rng.expovariate(rate)) < START + end:
                yield at, rng.choices(endpoints, cum_weights=up_to)[0]
