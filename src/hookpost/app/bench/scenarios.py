"""What is measured, on fresh servers with healthy receivers unless it says otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from random import Random

from hookpost.app.bench.ledger import VoidRun, percentile
from hookpost.app.bench.limits import BARE_COST_MAX, at_rest, bare_at_rest, curl_at_rest, of_its_parts
from hookpost.app.bench.load import Load
from hookpost.app.bench.machine import CORES, off_the_first_core
from hookpost.app.bench.run import Figures, Run, Window
from hookpost.app.bench.server import Server
from hookpost.app.bench.slices import Contender, Rounds, alternate, costs, measured_slice, slices

FAN_OUT = 10
BATCH = 100
# Connections for batches: with all 256 of them 25,600 events would be on their way, more than the queue in front of the
# store takes, and refusals would be measured.
BATCH_CONNECTIONS = 32
# More receivers than libcurl keeps idle connections by default; each needs two sockets here and one in the worker.
DOMAINS = 2_500
# Length of the random sequence in which they are posted to.
PICKS = 100_000
# Events a second at which a server has next to nothing to do, and how long that is looked at.
IDLE_RATE = 20
IDLE_S_MAX = 10.0
# How long to look when a rate is needed that no scenario of this run has measured.
SHORT_S = 5.0
OUTAGE_LOAD = 0.6
# Those of the ten that are healthy on both servers.
_HEALTHY = range(2, FAN_OUT)
# Less than this part of a fixed rate is not a fixed rate.
KEPT_UP = 0.95
# Below the time to the first byte that endpoints have by default (10 s): slow, and a success.
SLOW_S = 8.0


def ingest(run: Run) -> Figures:
    """One event a request, owed to nobody: the cost of accepting alone."""
    return _ingest(run, batch=1)


def ingest_batch(run: Run) -> Figures:
    """The same, a hundred events a request."""
    return _ingest(run, batch=BATCH)


def _ingest(run: Run, *, batch: int) -> Figures:
    connections = None if batch == 1 else BATCH_CONNECTIONS
    with curl_at_rest(run) as unit, run.server() as server, run.load(connections=connections) as load:
        load.target(server.url, server.key, batch=batch)
        contender = Contender(subject=server, load=load, work=load.unbounded, rest=load.answered, per="event")
        rounds = alternate(run, {"curl": unit, "ingest": contender})
        stored = server.accounts()["events"]
        if stored < load.ledger.accepted:
            raise VoidRun(f"{load.ledger.accepted} events were acknowledged, {stored} are stored")
        return {**rounds.figures("ingest"), **costs(rounds, "ingest", ("api", "postgres")), "batch": batch,
                "published": load.ledger.accepted, "stored": stored, "owed_to": "nobody",
                "refused": load.ledger.refused,
                **run.writes(server, load, per="event", work=load.unbounded)}  # fmt: skip


def e2e(run: Run) -> Figures:
    """Posted one by one, delivered to one endpoint, signed and settled, in balance."""
    return _e2e(run, fan_out=1)


def e2e_fanout(run: Run) -> Figures:
    """Every event owed to ten endpoints; the rate counts deliveries."""
    return _e2e(run, fan_out=FAN_OUT)


def e2e_keyed(run: Run) -> Figures:
    """The same as ``e2e``, alone, each event with an idempotency key: a row more."""
    with run.server() as server, run.load() as load:
        server.subscribe(load.listen())
        load.target(server.url, server.key, keyed=True)
        window = run.in_balance(server, load)
        return {
            **window.figures(),
            **window.latencies(),
            **run.writes(server, load, work=load.sustained),
            **run.accounts(server, load),
        }


def _e2e(run: Run, *, fan_out: int) -> Figures:
    with at_rest(run) as yardsticks, ExitStack() as stack, run.server() as server, run.load(slots=fan_out) as load:
        if fan_out == 1:
            yardsticks |= {
                "plain_curl": stack.enter_context(curl_at_rest(run, plain=True)),
                "plain": stack.enter_context(bare_at_rest(run, plain=True)),
            }
        server.subscribe(load.listen(fan_out, own_slots=True))
        load.target(server.url, server.key)
        rounds = alternate(run, {**yardsticks, "e2e": _balanced(server, load)})
        return {
            **rounds.figures("e2e"),
            **rounds.latencies("e2e"),
            **_beside(rounds, list(yardsticks)),
            "fan_out": fan_out,
            **run.writes(server, load, work=load.sustained),
            **run.accounts(server, load),
            **server.attempt_sizes(),
            "settings": server.important_settings(),
        }


def _balanced(server: Server, load: Load, ready: Callable[[], object] = lambda: None) -> Contender:
    return Contender(subject=server, load=load, ready=ready, work=load.sustained, rest=load.drain)


def _beside(rounds: Rounds, yardsticks: Sequence[str]) -> Figures:
    """The ratios to the yardsticks, and their own figures; none to a pipe that was not at its best."""
    of_parts = of_its_parts(rounds)
    found: Figures = {"bare_of_its_parts": of_parts}
    if of_parts <= BARE_COST_MAX:
        found |= {"of_bare": rounds.ratio("e2e", "bare"), "of_bare_by_cpu": rounds.ratio("bare", "e2e", "all_us")}
    if "plain" in yardsticks:
        found |= {"of_plain": rounds.ratio("e2e", "plain"), "of_plain_by_cpu": rounds.ratio("plain", "e2e", "all_us")}
    return {
        **found,
        **costs(rounds, "e2e", ("api", "worker", "postgres")),
        "beside": {name: rounds.figures(name) for name in yardsticks},
    }


def own_core(run: Run) -> Figures:
    """`e2e` with the worker, then the API, on a core of its own: what each costs when nobody shares its caches.

    So has libcurl's loop, in whose requests the costs are told. The load is with all others on the other cores.
    """
    if len(CORES) < 2:
        raise VoidRun("one core only: nobody can have one of its own")
    with curl_at_rest(run, pinned=True) as unit, run.server() as server, run.load() as load, off_the_first_core():
        server.subscribe(load.listen())
        roles = {"worker": ("worker", 1), "api": ("api", 1), "api_batch": ("api", BATCH)}
        pinned = {name: _balanced(server, load, partial(_pin, server, load, *role)) for name, role in roles.items()}
        rounds = alternate(run, {"curl": unit, **pinned})
        figures: Figures = {"curl_us": rounds.figures("curl")["curl_us"]}
        for name, (role, _) in roles.items():
            figures |= {f"{name}_us": rounds.figures(name)[f"{role}_us"]}
            figures |= {f"{name}_in_curls": rounds.ratio(name, "curl", f"{role}_us", "curl_us")}
        return {"per_second": rounds.figures("worker")["per_second"], **figures, **run.accounts(server, load)}


def _pin(server: Server, load: Load, role: str, batch: int) -> None:
    server.pin(role)
    load.target(server.url, server.key, batch=batch)


def domains(run: Run) -> Figures:
    """In balance with thousands of receivers, each on an address and a port of its own; each event goes to any one."""
    with run.server() as server, run.load() as load:
        endpoints = server.subscribe(load.listen(DOMAINS))
        # At random: in turn, a cache of connections smaller than the round would never hit.
        load.target(server.url, server.key, endpoints=Random(1).choices(endpoints, k=PICKS))  # noqa: S311
        window = run.in_balance(server, load)
        return {
            **window.figures(),
            **window.latencies(),
            "domains": DOMAINS,
            "connections_opened": sum(listener.connections for listener in load.listeners),
            **run.accounts(server, load),
        }


def latency(run: Run) -> Figures:
    """A fixed rate, half of what was sustained a moment before, again and again; then next to nothing.

    Counted from when each event was due. The percentiles are medians over the slices: what is half of its capacity on a
    machine whose speed changes is known for a moment only.
    """
    with run.server() as server, run.load() as load:
        server.subscribe(load.listen())
        load.target(server.url, server.key)
        contenders = {"full": _balanced(server, load), "half": _balanced(server, load)}
        rates: list[float] = []

        def half(seconds: float) -> None:
            load.open_loop(seconds, rates[-1])

        load.sustained(run.warm_up_s)
        load.drain()
        rounds = Rounds(contenders)
        for _ in range(slices(run)):
            full = measured_slice(run, contenders["full"])
            rates.append(full.delivered / full.seconds / 2)
            rounds.add("full", full)
            rounds.add("half", measured_slice(run, replace(contenders["half"], work=half)))
        with run.measure(server, load) as quiet:
            load.open_loop(min(run.seconds, IDLE_S_MAX), IDLE_RATE)
        load.drain()
        idle = quiet.latencies()
        return {
            **rounds.figures("half"),
            "full_per_second": rounds.figures("full")["per_second"],
            "full_all_us": rounds.figures("full")["all_us"],
            **rounds.latencies("half"),
            "idle_p50_ms": idle["p50_ms"],
            "idle_p99_ms": idle["p99_ms"],
            **run.accounts(server, load),
        }


def _sustained_rate(run: Run, server: Server, load: Load) -> float:
    """A short look at what `e2e` measures at length."""
    window = run.in_balance(server, load, seconds=min(run.seconds, SHORT_S))
    return window.delivered / window.seconds


def outage(run: Run) -> Figures:
    """Every event is owed to ten endpoints: of one server all are healthy, of another one is dead and one answers after
    8 s. Compared are the eight that are always healthy, in turns, as the machine's speed changes.

    The rate is fixed, at six tenths of what ten healthy ones sustain.
    """
    with (
        run.server() as sound, run.load(slots=FAN_OUT) as easy, run.server() as ill, run.load(slots=FAN_OUT) as hard
    ):  # fmt: skip
        easy.beside, hard.beside = hard, easy
        dead, slow = hard.listen(own_slots=True, dead=True), hard.listen(own_slots=True, delay_s=SLOW_S)
        ill.subscribe([*dead, *slow, *hard.listen(FAN_OUT - 2, own_slots=True)])
        sound.subscribe(easy.listen(FAN_OUT, own_slots=True))
        easy.target(sound.url, sound.key)
        hard.target(ill.url, ill.key)
        rate = OUTAGE_LOAD * (run.per_second("e2e_fanout") or _sustained_rate(run, sound, easy)) / FAN_OUT
        rounds = alternate(run, {"sound": _fixed(sound, easy, rate), "ill": _fixed(ill, hard, rate)})
        well, found = (_of_the_healthy(rounds.windows(n), load) for n, load in (("sound", easy), ("ill", hard)))
        run.accounts(sound, easy)
        # What the dead and the slow one are owed goes on waiting.
        books = run.accounts(ill, hard, all_delivered=False)
    figures: Figures = {
        "per_second": found["per_second"],
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "scheduled_per_second": round(rate * (FAN_OUT - 2)),
        "all_healthy": well,
        "healthy_throughput_ratio": round(found["per_second"] / max(1.0, well["per_second"]), 3),
        "healthy_p99_ratio": round(found["p99_ms"] / max(0.01, well["p99_ms"]), 2),
        **books,
    }
    if well["per_second"] < KEPT_UP * rate * (FAN_OUT - 2):
        raise VoidRun("with all healthy it did not keep up, so there is nothing to compare with", figures)
    return figures


def _fixed(server: Server, load: Load, rate: float) -> Contender:
    """A server under a fixed rate of events, that rests when the healthy have what they are owed."""
    ledger = load.ledger

    def rest() -> None:
        load.answered()
        load.receive(lambda: all(ledger.delivered_to[slot] >= ledger.accepted for slot in _HEALTHY))

    return Contender(subject=server, load=load, work=lambda seconds: load.open_loop(seconds, rate), rest=rest)


def _of_the_healthy(windows: Sequence[Window], load: Load) -> dict[str, float]:
    """Throughput, latency and cost of the slots that are always healthy, over all slices."""
    ledger = load.ledger
    found = sorted(ms for w in windows for ms in ledger.latencies_ms(w.began, w.ended, _HEALTHY))
    arrived = sum(ledger.arrivals(w.began, w.ended, _HEALTHY) for w in windows)
    delivered = max(1, sum(w.delivered for w in windows))
    return {
        "per_second": round(arrived / sum(w.seconds for w in windows)),
        "p50_ms": round(percentile(found, 0.5), 2),
        "p99_ms": round(percentile(found, 0.99), 2),
        "missing": len(_HEALTHY) * sum(w.posted for w in windows) - len(found),
        **{f"{role}_us": round(sum(w.cpu[role] for w in windows) / delivered * 1e6, 1) for role in windows[0].cpu},
    }


def idle(run: Run) -> Figures:
    """A server that has delivered something and has nothing to do: CPU and memory by role."""
    with run.server() as server, run.load() as load:
        server.subscribe(load.listen())
        load.target(server.url, server.key)
        load.open_loop(1.0, IDLE_RATE)
        load.drain()
        load.idle(run.warm_up_s)
        before = server.cpu()
        time.sleep(run.seconds)
        used = {role: (after - before[role]) / run.seconds for role, after in server.cpu().items()}
        return {
            "cpu_percent": {role: round(part * 100, 2) for role, part in used.items()},
            "cpu_percent_in_all": round(sum(used.values()) * 100, 2),
            "rss_mb": server.rss_mb(),
            "started_in_s": round(server.started_in_s, 2),
            **run.accounts(server, load),
        }


SCENARIOS: dict[str, Callable[[Run], Figures]] = {
    scenario.__name__: scenario
    for scenario in (
        ingest,
        ingest_batch,
        e2e,
        e2e_fanout,
        e2e_keyed,
        own_core,
        latency,
        domains,
        outage,
        idle,
    )
}
