"""What is measured, on fresh servers with healthy receivers unless it says otherwise."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from random import Random

from hookpost.app.bench.ledger import VoidRun, percentile
from hookpost.app.bench.load import Load
from hookpost.app.bench.pipe import limit
from hookpost.app.bench.run import Figures, Run
from hookpost.app.bench.server import Server

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
# Less than this part of a fixed rate is not a fixed rate.
KEPT_UP = 0.95
# Below the time to the first byte that endpoints have by default (10 s): slow, and a success.
SLOW_S = 8.0


# The bare pipe is at its best only if it costs little more than its parts.
BARE_COST_MAX = 2.0
# Numbers that the ledger of `curl` has ready for a sender that nobody paces.
AHEAD = 100_000


def curl(run: Run) -> Figures:
    """libcurl's loop alone, sending as fast as it can to one receiver: no server, no signature."""
    with run.load() as load:
        listener = load.listen()[0]
        with limit(receiver=listener.url, server=False) as sender:
            _receive_for(load, run.warm_up_s)
            with run.measure(sender, load) as window:
                _receive_for(load, run.seconds)
            sender.release()
            load.receive(sender.ended)
            answers = sender.stop()
        if answers != {"200": load.ledger.delivered} or load.ledger.duplicates:
            raise VoidRun(f"{load.ledger.delivered} arrived, the sender counts {answers}")
        return {**window.figures(), "published": answers["200"], "delivered": load.ledger.delivered}


def _receive_for(load: Load, seconds: float) -> None:
    until = load.now() + seconds

    def done() -> bool:
        if load.ledger.delivered + AHEAD > load.ledger.posted:
            load.ledger.open(AHEAD, load.now())
        return load.now() >= until

    load.receive(done)


def server(run: Run) -> Figures:
    """The bare HTTP server alone: it decodes, answers 202, and forgets."""
    with run.load() as load, limit() as bare:
        load.target(bare.url, "none")
        load.unbounded(run.warm_up_s)
        with run.measure(bare, load) as window:
            load.unbounded(run.seconds)
        load.answered()
        return {**window.figures(per="event"), "published": load.ledger.accepted, "refused": load.ledger.refused}


def bare(run: Run) -> Figures:
    """The limit: the bare server and libcurl's loop with a pipe between them. Signed, delivered, nothing stored."""
    for part in (curl, server):
        if part.__name__ not in run.results:
            run.results[part.__name__] = part(run)
    key = secrets.token_bytes(24)
    with run.load() as load:
        listener = load.listen()[0]
        listener.key = key
        with limit(receiver=listener.url, key=key) as pipe:
            load.target(pipe.url, "none")
            window = run.in_balance(pipe, load)
        figures = {**window.figures(), **window.latencies()}
        ledger = load.ledger
        figures |= {"published": ledger.accepted, "delivered": ledger.delivered, "duplicates": ledger.duplicates,
                    "refused": ledger.refused, "signatures_checked": ledger.verified}  # fmt: skip
    parts_us = _number(run.results["curl"], "curl_us") + _number(run.results["server"], "server_us")
    spent_us = _number(figures, "server_us") + _number(figures, "sender_us")
    figures |= {"bare_us": round(spent_us, 1), "of_its_parts": round(spent_us / parts_us, 2)}
    if ledger.accepted != ledger.delivered or ledger.forged:
        raise VoidRun(f"{ledger.accepted} published, {ledger.delivered} delivered, {ledger.forged} forged", figures)
    if spent_us > BARE_COST_MAX * parts_us:
        raise VoidRun(f"it costs {spent_us:.0f} µs, its parts {parts_us:.0f} µs", figures)
    return figures


def _number(figures: Figures, name: str) -> float:
    found = figures[name]
    assert isinstance(found, int | float)
    return float(found)


def ingest(run: Run) -> Figures:
    """One event a request, owed to nobody: the cost of accepting alone."""
    return _ingest(run, batch=1)


def ingest_batch(run: Run) -> Figures:
    """The same, a hundred events a request."""
    return _ingest(run, batch=BATCH)


def _ingest(run: Run, *, batch: int) -> Figures:
    with run.server() as server, run.load(connections=None if batch == 1 else BATCH_CONNECTIONS) as load:
        load.target(server.url, server.key, batch=batch)
        load.unbounded(run.warm_up_s)
        with run.measure(server, load) as window:
            load.unbounded(run.seconds)
        load.answered()
        stored = server.accounts()["events"]
        if stored < load.ledger.accepted:
            raise VoidRun(f"{load.ledger.accepted} events were acknowledged, {stored} are stored")
        figures = window.figures(per="event")
        return {**figures, "batch": batch, "published": load.ledger.accepted, "stored": stored, "owed_to": "nobody",
                "refused": load.ledger.refused, **run.writes(server, load, per="event")}  # fmt: skip


def e2e(run: Run) -> Figures:
    """Posted one by one, delivered to one endpoint, signed and settled, in balance."""
    return _e2e(run, fan_out=1)


def e2e_fanout(run: Run) -> Figures:
    """Every event owed to ten endpoints; the rate counts deliveries."""
    return _e2e(run, fan_out=FAN_OUT)


def _e2e(run: Run, *, fan_out: int) -> Figures:
    with run.server() as server, run.load(slots=fan_out) as load:
        server.subscribe(load.listen(fan_out, own_slots=True))
        load.target(server.url, server.key)
        window = run.in_balance(server, load)
        return {
            **window.figures(),
            **window.latencies(),
            "fan_out": fan_out,
            **run.accounts(server, load),
            **run.writes(server, load),
            **server.attempt_sizes(),
            "settings": server.important_settings(),
        }


def own_core(run: Run) -> Figures:
    """`e2e` with the worker, then the API, on a core of its own: what each costs when nobody shares its caches."""
    with run.server() as server, run.load() as load:
        server.subscribe(load.listen())
        figures: Figures = {}
        for role, name, batch in (("worker", "worker", 1), ("api", "api", 1), ("api", "api_batch", BATCH)):
            if not server.pin(role):
                raise VoidRun("one core only: nobody can have one of its own", figures)
            load.target(server.url, server.key, batch=batch)
            found = run.in_balance(server, load).figures()
            figures |= {f"{name}_us": found[f"{role}_us"], f"{name}_pinned_per_second": found["per_second"]}
            figures |= {"cores_used_by_others": found["cores_used_by_others"]}
        return {"per_second": figures["worker_pinned_per_second"], **figures, **run.accounts(server, load)}


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
    """A fixed rate, half of what `e2e` sustains, then next to nothing; counted from when each event was due."""
    with run.server() as server, run.load() as load:
        server.subscribe(load.listen())
        load.target(server.url, server.key)
        rate = (run.per_second("e2e") or _sustained_rate(run, server, load)) / 2
        load.open_loop(run.warm_up_s, rate)
        with run.measure(server, load) as window:
            load.open_loop(run.seconds, rate)
        load.drain()
        with run.measure(server, load) as quiet:
            load.open_loop(min(run.seconds, IDLE_S_MAX), IDLE_RATE)
        load.drain()
        idle = quiet.latencies()
        return {
            **window.figures(),
            "scheduled_per_second": round(rate),
            **window.latencies(),
            "idle_p50_ms": idle["p50_ms"],
            "idle_p99_ms": idle["p99_ms"],
            **run.accounts(server, load),
        }


def _sustained_rate(run: Run, server: Server, load: Load) -> float:
    """A short look at what `e2e` measures at length."""
    window = run.in_balance(server, load, seconds=min(run.seconds, SHORT_S))
    return window.delivered / window.seconds


def outage(run: Run) -> Figures:
    """Every event is owed to ten endpoints. Once all are healthy; once one is dead and one answers after 8 s.

    The rate is fixed, at six tenths of what ten healthy ones sustain. Compared are the eight that are always healthy.
    """
    with run.server() as server, run.load(slots=FAN_OUT) as load:
        server.subscribe(load.listen(FAN_OUT, own_slots=True))
        load.target(server.url, server.key)
        capacity = run.per_second("e2e_fanout") or _sustained_rate(run, server, load)
        rate = OUTAGE_LOAD * capacity / FAN_OUT
        well = _at_rate(run, server, load, rate)
        run.accounts(server, load)
    with run.server() as server, run.load(slots=FAN_OUT) as load:
        dead, slow = load.listen(own_slots=True, dead=True), load.listen(own_slots=True, delay_s=SLOW_S)
        server.subscribe([*dead, *slow, *load.listen(FAN_OUT - 2, own_slots=True)])
        load.target(server.url, server.key)
        ill = _at_rate(run, server, load, rate)
        # What the dead and the slow one are owed goes on waiting.
        books = run.accounts(server, load, all_delivered=False)
    figures: Figures = {
        "per_second": ill["per_second"],
        "p50_ms": ill["p50_ms"],
        "p99_ms": ill["p99_ms"],
        "scheduled_per_second": round(rate * (FAN_OUT - 2)),
        "all_healthy": well,
        "healthy_throughput_ratio": round(ill["per_second"] / max(1.0, well["per_second"]), 3),
        "healthy_p99_ratio": round(ill["p99_ms"] / max(0.01, well["p99_ms"]), 2),
        **books,
    }
    if well["per_second"] < KEPT_UP * rate * (FAN_OUT - 2):
        raise VoidRun("with all healthy it did not keep up, so there is nothing to compare with", figures)
    return figures


def _at_rate(run: Run, server: Server, load: Load, rate: float) -> dict[str, float]:
    """Throughput, latency and cost of the slots that are always healthy, at a fixed rate of events."""
    slots = range(2, FAN_OUT)
    load.open_loop(run.warm_up_s, rate)
    with run.measure(server, load) as window:
        load.open_loop(run.seconds, rate)
    arrived = load.ledger.arrivals(window.began, window.ended, slots)
    load.answered()
    ledger = load.ledger
    load.receive(lambda: all(ledger.delivered_to[slot] >= ledger.accepted for slot in slots))
    found = ledger.latencies_ms(window.began, window.ended, slots)
    costs = {name: used for name, used in window.figures().items() if isinstance(used, float)}
    return {
        "per_second": round(arrived / window.seconds),
        "p50_ms": round(percentile(found, 0.5), 2),
        "p99_ms": round(percentile(found, 0.99), 2),
        "missing": len(slots) * (window.posted) - len(found),
        **costs,
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
        curl,
        server,
        bare,
        ingest,
        ingest_batch,
        e2e,
        e2e_fanout,
        own_core,
        latency,
        domains,
        outage,
        idle,
    )
}
