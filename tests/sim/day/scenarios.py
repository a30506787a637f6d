"""The stories: a day with a hot tenant, an outage of a third of all receivers, and two herds.

Each is lived through by ``fleet.sampled`` whole workers and raises Violation when a delivery is lost or ends twice. What
it returns are figures of the whole fleet, but for delays, which are those of the sampled workers' deliveries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from random import Random
from uuid import UUID

from hookpost.model import Endpoint, ErrorCode, Outcome
from tests.engine.driver import REFUSED, START
from tests.engine.model import check
from tests.sim.day.fleet import BESIDE, BUSY, DAY_S, HOT, SICK, WELL, Fleet, Segment, Share
from tests.sim.day.life import Life
from tests.sim.day.plots import Chart, Point, Series
from tests.sim.day.watch import Watch

MINUTE_S, HOUR_S = 60.0, 3600.0
SILENT = Outcome(ErrorCode.FIRST_BYTE_TIMEOUT, None)
# What a refusal, a 503 and silence cost (the default timeouts): an outage is a mixture of the three.
BUSY_S = 0.05
TROUBLES = ((REFUSED, 0.02), (BUSY, BUSY_S), (SILENT, 10.0))
# What is still owed when nothing is posted any more must have ended so soon: a breaker's longest pause, and the retries
# of some last hiccups.
LAST_S = 3 * HOUR_S
# Drained is who has no more waiting than what comes in so long: hiccups are tried again within five seconds.
SPARE_S = 0.5
# So much before and behind a herd is drawn.
BEFORE_S, BEHIND_S = 20.0, 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """``figures`` are told in docs/scale.md; ``drained_s`` and the like are seconds."""

    name: str
    figures: dict[str, float]
    charts: dict[str, Chart]


class Asks:
    """A receiver's trouble: from ``cut`` on it asks to be left alone until ``back``, which is the same for all."""

    def __init__(self, cut: float, back: float) -> None:
        self._cut, self._back = cut, back
        self._told_at = math.inf
        self.undercut = 0

    def __call__(self, now: float) -> tuple[Outcome, float] | None:
        if not self._cut <= now < self._back:
            return None
        self.undercut += now > self._told_at
        self._told_at = min(self._told_at, now + BUSY_S)
        asked = formatdate(self._back, usegmt=True).encode()
        return Outcome(ErrorCode.HTTP_5XX, 503, retry_after=asked), BUSY_S


# ---- a day ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Day:
    """A whole day whose traffic rises and falls, with a tenant that has ``hot`` of it all and lives in one shard.

    Of each half hour ``lived_s`` are lived through with traffic; in between nothing is posted, and what was to be tried
    again is. ``dead`` of all receivers (by traffic) never answer, ``flaky`` fail every tenth time.
    """

    hot: float = 0.1
    dead: float = 0.01
    flaky: float = 0.03
    lived_s: float = 10.0
    slot_s: float = 1800.0
    day_s: float = DAY_S

    def live(self, fleet: Fleet, seed: int) -> Result:
        """The fleet is one worker with the hot tenant, and all others without."""
        plain = self._worker(fleet, Random(seed), hot=False)
        hot = self._worker(fleet, Random(seed + 1), hot=True)
        unlived = self.slot_s / self.lived_s

        def fleet_wide(of: Callable[[Life], float]) -> float:
            return unlived * ((fleet.workers - 1) * of(plain[0]) + of(hot[0]))

        figures = {
            "deliveries": fleet_wide(lambda life: life.posted),
            "attempts": unlived * ((fleet.workers - 1) * plain[1].attempts + hot[1].attempts),
            "lived_deliveries": plain[0].posted + hot[0].posted,
            "plain_rate": plain[0].posted / self._lived(),
            "hot_rate": hot[0].posted / self._lived(),
            "plain_core": plain[0].busy_s / self._lived(),
            "hot_core": hot[0].busy_s / self._lived(),
        }
        for name, watch, group in (
            ("plain", plain[1], WELL), ("beside_hot", hot[1], WELL), ("hot", hot[1], HOT),
        ):  # fmt: skip
            delays = watch.by_phase["day", group]
            figures |= _quantiles(name, delays.quantile, delays.most)
        figures["plain_worst_tenant_p99"] = plain[1].worst_tenant("day", _tenants(plain[0], WELL))
        figures["beside_hot_worst_tenant_p99"] = hot[1].worst_tenant("day", _tenants(hot[0], WELL))
        return Result("day", figures, self._charts(fleet, plain[1], hot[1]))

    def _lived(self) -> float:
        return self.lived_s * self.day_s / self.slot_s

    def _worker(self, fleet: Fleet, rng: Random, *, hot: bool) -> tuple[Life, Watch]:
        share = Share(fleet, rng)
        watch = Watch(bin_s=self.slot_s, phase=lambda at: "day", lived=lambda at: at % self.slot_s < self.lived_s)
        rate = fleet.rate * (1 - self.hot)
        for endpoint in share.fall_sick(self.dead):
            outcome = rng.choice(TROUBLES)
            share.receivers[endpoint.endpoint_id].trouble = lambda now, outcome=outcome: outcome
        for endpoint in rng.sample(share.endpoints, round(self.flaky * len(share.endpoints))):
            share.receivers[endpoint.endpoint_id].hiccups = 0.1
        # Whoever has one dead receiver is a tenant like the others.
        share.group.update((each, WELL) for each, group in share.group.items() if group == BESIDE)
        if hot:
            share.add_hot(self.hot * fleet.rate * fleet.workers / rate)
            rate += self.hot * fleet.rate * fleet.workers
        share.keep_up(rate)
        segments = [
            (
                slot * self.slot_s,
                slot * self.slot_s + self.lived_s,
                rate * busyness((slot + 0.5) * self.slot_s / self.day_s),
            )
            for slot in range(int(self.day_s / self.slot_s))
        ]
        life = Life(fleet, share, segments, watch, 0)
        life.run(START + self.day_s)
        kept = sum(len(rows) for (_, each), rows in life.store.backlog.items() if share.group[each] == SICK)
        check(life.owed() - kept <= 0.001 * life.posted + 10, "left of what is well:", life.owed() - kept)
        return life, watch

    def _charts(self, fleet: Fleet, plain: Watch, hot: Watch) -> dict[str, Chart]:
        part = self.lived_s / self.slot_s
        groups = (WELL, SICK, HOT)
        alone = dict(plain.requests(groups, (fleet.workers - 1) / part))
        beside = dict(hot.requests(groups, 1 / part))
        whole = [(at, alone[at] + beside.get(at, 0.0)) for at in sorted(alone)]
        hot_alone = hot.requests((HOT,), 1 / part)
        hours = "time of day, hours"
        return {
            "day-rate": Chart(
                "A billion deliveries: requests a second, the whole fleet", hours, "requests/s",
                [Series("all tenants", _in(whole, HOUR_S)), Series("the hot tenant", _in(hot_alone, HOUR_S))],
            ),
            "day-delay": Chart(
                "From acceptance to delivery, 99th percentile of each half hour", hours, "seconds",
                [
                    Series("tenants of a worker without the hot one", _in(plain.quantiles(WELL, 0.99), HOUR_S)),
                    Series("its neighbours", _in(hot.quantiles(WELL, 0.99), HOUR_S)),
                    Series("the hot tenant", _in(hot.quantiles(HOT, 0.99), HOUR_S)),
                ],
                log=True,
            ),
        }  # fmt: skip


def busyness(part: float) -> float:
    """How busy it is at this part of a day, 1 on the average: half as much again at three in the afternoon."""
    return 1.0 + 0.5 * math.cos(2 * math.pi * (part - 15 / 24))


# ---- an outage --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outage:
    """``part`` of all receivers (by traffic) are away for ``away_s``: refused, 503 and silence, a third each."""

    part: float = 0.3
    before_s: float = 10 * MINUTE_S
    away_s: float = 2 * HOUR_S
    after_s: float = 40 * MINUTE_S

    def live(self, fleet: Fleet, seed: int) -> Result:
        """Traffic goes on evenly all the time."""
        cut, back = self.before_s, self.before_s + self.away_s
        watch = Watch(bin_s=10.0, phase=lambda at: "before" if at < cut else "away" if at < back else "after")
        lives, drained_s = [], 0.0
        for number in range(fleet.sampled):
            life = self._worker(fleet, Random(seed + number), watch, number)
            lives.append(life)
            drained_s = max(drained_s, _live_through(life, fleet.rate, back, back + self.after_s))
        scale, sick = fleet.scale, sum(map(_count(SICK), lives))
        in_vain, backlog = watch.failed[SICK], watch.series("backlog", scale)
        figures = {
            "deliveries": scale * sum(life.posted for life in lives),
            "attempts": scale * sum(life.books.attempts for life in lives),
            "deliveries_sick": scale * watch.delivered[SICK],
            "receivers_sick": scale * sick,
            "in_vain": scale * in_vain,
            "in_vain_a_receiver": in_vain / sick,
            "backlog_most": max(rows for _, rows in backlog),
            "growth_a_second": _slope([p for p in backlog if cut + 60 <= p[0] < back]),
            "drained_s": drained_s,
            "requests_most": max(rate for _, rate in watch.requests((WELL, BESIDE, SICK), scale, first=back)),
            "requests_before": _mean(watch.requests((WELL, BESIDE, SICK), scale, last=cut)),
            "under_way_most": max(count for _, count in watch.series("under_way", scale)),
        }
        for phase in ("before", "away", "after"):
            for group in (WELL, BESIDE):
                delays = watch.by_phase[phase, group]
                figures |= _quantiles(f"{phase}_{group}", delays.quantile, delays.most)
            well = {(n, tenant) for n, life in enumerate(lives) for _, tenant in _tenants(life, WELL)}
            figures[f"{phase}_worst_tenant_p99"] = watch.worst_tenant(phase, well)
        figures |= {f"ramp_{second}_s": watch.ramp[second] / sick for second in (0, 1, 2, 5, 10)}
        figures["receiver_rate"] = sum(_rate(life, SICK, fleet.rate) for life in lives) / sick
        return Result("outage", figures, self._charts(watch, scale, sick, figures["receiver_rate"]))

    def _worker(self, fleet: Fleet, rng: Random, watch: Watch, number: int) -> Life:
        share = Share(fleet, rng)
        cut, back = START + self.before_s, START + self.before_s + self.away_s
        for endpoint in share.fall_sick(self.part):
            share.receivers[endpoint.endpoint_id].trouble = _away(rng.choice(TROUBLES), cut, back)
        share.keep_up(fleet.rate)
        segments = [(0.0, self.before_s + self.away_s + self.after_s, fleet.rate)]
        return Life(fleet, share, segments, watch, number)

    def _charts(self, watch: Watch, scale: float, sick: int, rate: float) -> dict[str, Chart]:
        cut, back = self.before_s, self.before_s + self.away_s
        band = [(cut / MINUTE_S, back / MINUTE_S, f"{100 * self.part:.0f} % of the receivers are away")]
        minutes = "minutes"
        return {
            "outage-queue": Chart(
                "What waits, the whole fleet", minutes, "deliveries",
                [Series("in the backlog", _in(watch.series("backlog", scale), MINUTE_S))], band,
            ),
            "outage-requests": Chart(
                "Requests a second, the whole fleet", minutes, "requests/s",
                [
                    Series("to receivers that were well", _in(watch.requests((WELL, BESIDE), scale), MINUTE_S)),
                    Series("to those that were away", _in(watch.requests((SICK,), scale), MINUTE_S)),
                ],
                band,
            ),
            "outage-delay": Chart(
                "From acceptance to delivery, 99th percentile of ten seconds", minutes, "seconds",
                [
                    Series("tenants without trouble", _in(watch.quantiles(WELL, 0.99), MINUTE_S)),
                    Series("well, beside sick ones", _in(watch.quantiles(BESIDE, 0.99), MINUTE_S)),
                    Series("receivers that were away", _in(watch.quantiles(SICK, 0.99), MINUTE_S)),
                ],
                band, log=True,
            ),
            "outage-return": Chart(
                "How a receiver is met when it is back: mean of all", "seconds since its first answer", "requests/s",
                [
                    Series("requests to one receiver", [(s, watch.ramp[s] / sick) for s in range(60)]),
                    Series("what is posted to it", [(0.0, rate), (59.0, rate)]),
                ],
            ),
        }  # fmt: skip


# ---- herds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FullHour:
    """All producers post ``burst_s`` seconds' worth of events within ``within_s``, on top of what they always do."""

    before_s: float = 2 * MINUTE_S
    burst_s: float = 5 * MINUTE_S
    within_s: float = 5.0
    after_s: float = 5 * MINUTE_S

    def live(self, fleet: Fleet, seed: int) -> Result:
        """Everybody is well."""
        at, end = self.before_s, self.before_s + self.within_s + self.after_s
        rate, burst = fleet.rate, fleet.rate * (1 + self.burst_s / self.within_s)
        segments = [(0.0, at, rate), (at, at + self.within_s, burst), (at + self.within_s, end, rate)]
        watch = Watch(bin_s=1.0, phase=lambda t: "before" if t < at else "herd" if t < at + self.within_s else "after")
        lives, drained_s = _herd(fleet, seed, segments, watch, lambda: None, at + self.within_s, end)
        return Result("full-hour", _herd_figures(fleet, lives, watch, drained_s, at, at), self._charts(fleet, watch))

    def _charts(self, fleet: Fleet, watch: Watch) -> dict[str, Chart]:
        band = [(self.before_s, self.before_s + self.within_s, "the full hour")]
        return _herd_charts("full-hour", "All producers post at the full hour", fleet, watch, band, self.before_s - 20)


@dataclass(frozen=True, slots=True)
class SameMoment:
    """All receivers answer 503 and ask to be left alone until one and the same moment."""

    before_s: float = 2 * MINUTE_S
    held_s: float = 10 * MINUTE_S
    after_s: float = 10 * MINUTE_S

    def live(self, fleet: Fleet, seed: int) -> Result:
        """Nothing may be sent to a receiver between its word and that moment."""
        cut, back = self.before_s, self.before_s + self.held_s
        asking: list[Asks] = []

        def ask() -> Asks:
            asking.append(Asks(START + cut, START + back))
            return asking[-1]

        watch = Watch(bin_s=1.0, phase=lambda t: "before" if t < cut else "herd" if t < back else "after")
        segments = [(0.0, back + self.after_s, fleet.rate)]
        lives, drained_s = _herd(fleet, seed, segments, watch, ask, back, back + self.after_s)
        figures = _herd_figures(fleet, lives, watch, drained_s, cut, back)
        figures["undercut"] = fleet.scale * sum(each.undercut for each in asking)
        figures["in_vain_a_receiver"] = watch.failed[WELL] / sum(len(life.share.endpoints) for life in lives)
        band = [(cut, back, "Retry-After of everybody")]
        charts = _herd_charts("same-moment", "All Retry-After end at one moment", fleet, watch, band, back - 30)
        return Result("same-moment", figures, charts)


def _herd(
    fleet: Fleet,
    seed: int,
    segments: list[Segment],
    watch: Watch,
    trouble: Callable[[], Asks | None],
    since: float,
    end: float,
) -> tuple[list[Life], float]:
    lives, drained_s = [], 0.0
    for number in range(fleet.sampled):
        share = Share(fleet, Random(seed + number))
        share.keep_up(fleet.rate)
        for receiver in share.receivers.values():
            receiver.trouble = trouble()
        life = Life(fleet, share, segments, watch, number)
        lives.append(life)
        drained_s = max(drained_s, _live_through(life, fleet.rate, since, end))
    return lives, drained_s


def _herd_figures(
    fleet: Fleet, lives: list[Life], watch: Watch, drained_s: float, before: float, at: float
) -> dict[str, float]:
    scale, herd, after = fleet.scale, watch.by_phase["herd", WELL], watch.by_phase["after", WELL]
    rates = {
        phase: watch.requests((WELL,), scale, first=first, last=last)
        for phase, first, last in (("before", 0.0, before), ("after", at, math.inf))
    }
    queue = [
        sum(part) for part in zip(*([n for _, n in watch.series(g, scale)] for g in ("backlog", "memory", "unread")), strict=True)
    ]  # fmt: skip
    small, large = _by_size(lives)
    return {
        "deliveries": scale * sum(life.posted for life in lives),
        "attempts": scale * sum(life.books.attempts for life in lives),
        "herd": scale * herd.count,
        "drained_s": drained_s,
        "queue_most": max(queue),
        "requests_most": max(rate for _, rate in rates["after"]),
        "requests_before": _mean(rates["before"]),
        **_quantiles("before", watch.by_phase["before", WELL].quantile, watch.by_phase["before", WELL].most),
        **_quantiles("herd", herd.quantile, herd.most),
        **_quantiles("after", after.quantile, after.most),
        "herd_small_tenants_worst_p99": watch.worst_tenant("herd", small),
        "herd_large_tenants_worst_p99": watch.worst_tenant("herd", large),
    }


def _herd_charts(
    name: str, title: str, fleet: Fleet, watch: Watch, band: Sequence[tuple[float, float, str]], first: float
) -> dict[str, Chart]:
    start, end = band[0][0] - BEFORE_S, band[0][1] + BEHIND_S

    def seen(points: Sequence[Point]) -> list[Point]:
        return [point for point in points if start <= point[0] <= end]

    queue = [Series(what, seen(watch.series(of, fleet.scale))) for what, of in (
        ("in the backlog", "backlog"), ("in workers' memory", "memory"), ("not read yet", "unread"),
    )]  # fmt: skip
    requests = watch.requests((WELL,), fleet.scale, first=first, last=end)
    return {
        f"{name}-requests": Chart(
            f"{title}: requests a second, the whole fleet", "seconds", "requests/s",
            [Series("requests", requests)], [each for each in band if each[1] > first],
        ),
        f"{name}-queue": Chart(f"{title}: what waits, the whole fleet", "seconds", "deliveries", queue, band),
        f"{name}-delay": Chart(
            f"{title}: from acceptance to delivery", "seconds (of the delivery)", "seconds",
            [
                Series("99th percentile of a second", seen(watch.quantiles(WELL, 0.99))),
                Series("median", seen(watch.quantiles(WELL, 0.5))),
            ],
            band, log=True,
        ),
    }  # fmt: skip


# ---- all of them ------------------------------------------------------------------------------------------------------


def _live_through(life: Life, rate: float, since: float, end: float) -> float:
    """To the very end; how long after ``since`` no more waited than what is always under way."""
    spare = round(SPARE_S * rate) + 10
    life.run(START + since)
    while not life.drained(spare):
        check(life.now < START + end, "not drained in time:", life.waiting())
        life.run(life.now + 1.0)
    drained_s = life.now - START - since
    life.run(START + end)
    until = START + end + LAST_S
    while life.owed():
        check(life.now < until, "never over:", life.owed())
        life.run(life.now + 10.0)
    check(life.books.ends()["dead"] == 0, "died:", life.books.reasons)
    life.check_all_over()
    return drained_s


def _away(answer: tuple[Outcome, float], cut: float, back: float) -> Callable[[float], tuple[Outcome, float] | None]:
    return lambda now: answer if cut <= now < back else None


def _tenants(life: Life, group: str) -> set[tuple[int, UUID]]:
    """Those all of whose endpoints are of this group."""
    groups: dict[UUID, set[str]] = {}
    for endpoint in life.share.endpoints:
        groups.setdefault(endpoint.tenant_id, set()).add(life.share.group[endpoint.endpoint_id])
    return {(life.number, tenant_id) for tenant_id, found in groups.items() if found == {group}}


def _by_size(lives: Sequence[Life]) -> tuple[set[tuple[int, UUID]], set[tuple[int, UUID]]]:
    """The smaller and the larger half of the tenants."""
    small, large = set(), set()
    for life in lives:
        sizes: dict[UUID, float] = {}
        for endpoint, weight in zip(life.share.endpoints, life.share.weights, strict=True):
            sizes[endpoint.tenant_id] = sizes.get(endpoint.tenant_id, 0.0) + weight
        ordered = sorted(sizes, key=sizes.__getitem__)
        small |= {(life.number, each) for each in ordered[: len(ordered) // 2]}
        large |= {(life.number, each) for each in ordered[len(ordered) // 2 :]}
    return small, large


def _count(group: str) -> Callable[[Life], int]:
    return lambda life: sum(each == group for each in life.share.group.values())


def _rate(life: Life, group: str, rate: float) -> float:
    def fits(endpoint: Endpoint) -> bool:
        return life.share.group[endpoint.endpoint_id] == group

    return rate * sum(w for e, w in zip(life.share.endpoints, life.share.weights, strict=True) if fits(e))


def _quantiles(name: str, quantile: Callable[[float], float], most: float) -> dict[str, float]:
    return {f"{name}_p50": quantile(0.5), f"{name}_p99": quantile(0.99), f"{name}_most": most}


def _in(points: Sequence[Point], unit_s: float) -> list[Point]:
    return [(at / unit_s, value) for at, value in points]


def _mean(points: Sequence[Point]) -> float:
    # The last bin is not full.
    return sum(value for _, value in points[:-1]) / max(1, len(points) - 1)


def _slope(points: Sequence[Point]) -> float:
    (first, low), (last, high) = points[0], points[-1]
    return (high - low) / (last - first)


Story = Day | Outage | FullHour | SameMoment
SCENARIOS: dict[str, Story] = {"day": Day(), "outage": Outage(), "full-hour": FullHour(), "same-moment": SameMoment()}
