"""`hookpost bench overload --seconds 60`: three times what it can carry is offered, and then it is left in peace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from hookpost.app.bench.ledger import VoidRun, percentile
from hookpost.app.bench.load import Load
from hookpost.app.bench.run import Figures, Run
from hookpost.app.bench.server import Server

TIMES = 3.0
# Posted in batches, so that the producers are not what is overloaded.
BATCH = 50
# A producer does not queue without end either: what found no free connection for so long is not posted.
PATIENCE_S = 1.0
# Before and after, at this part of capacity, for so long.
CALM_LOAD, CALM_S = 0.3, 5.0
SHORT_S = 5.0
SAMPLE_S = 1.0
# What makes the run void: an answer later than this (`ingest_timeout_s` promises 0.9 s, and all cores are taken), any
# other than 202 and 503, a process with more memory, and a calm that is not calm again, by its median. (The 99th
# percentile may be that of a vacuum: the database looks through what has just been written.)
ANSWER_S_MAX = 3.0
MEMORY_MB_MAX = 500.0
CALM_P50_TIMES, CALM_P50_MS, CALM_P99_MS_MAX = 2.0, 20.0, 1000.0


def overload(run: Run) -> Figures:
    """Offered three times its capacity; what was accepted arrives, and all is as before when it has."""
    with run.server() as server, run.load() as load:
        server.subscribe(load.listen())
        load.target(server.url, server.key)
        capacity = run.per_second("e2e") or _sustained(run, server, load)
        before = _calm(run, server, load, capacity)
        load.target(server.url, server.key, batch=BATCH)
        load.answer_s = []
        accepted, peak_mb = load.ledger.accepted, server.rss_mb()
        with run.measure(server, load) as window:
            for _ in range(max(1, round(run.seconds / SAMPLE_S))):
                load.open_loop(SAMPLE_S, TIMES * capacity, patience_s=PATIENCE_S)
                peak_mb = {role: max(mb, peak_mb[role]) for role, mb in server.rss_mb().items()}
        load.answered()
        answers, load.answer_s = load.answer_s, None
        accepted = load.ledger.accepted - accepted
        began = load.now()
        load.drain()
        drained_s = load.now() - began
        load.target(server.url, server.key)
        after = _calm(run, server, load, capacity)
        figures: Figures = {
            **window.figures(),
            "capacity_per_second": round(capacity),
            "offered_per_second": round(TIMES * capacity),
            "posted_per_second": round(window.posted / window.seconds),
            "accepted_per_second": round(accepted / window.seconds),
            "answers": dict(Counter(status for status, _ in answers)),
            "answer_ms": {status: _times(answers, status) for status in sorted({status for status, _ in answers})},
            "rss_peak_mb": peak_mb,
            "drained_s": round(drained_s, 1),
            "calm_before": before,
            "calm_after": after,
            **run.accounts(server, load),
        }
    if faults := _faults(answers, peak_mb, before, after):
        raise VoidRun("; ".join(faults), figures)
    return figures


def _sustained(run: Run, server: Server, load: Load) -> float:
    window = run.in_balance(server, load, seconds=min(run.seconds, SHORT_S))
    return window.delivered / window.seconds


def _calm(run: Run, server: Server, load: Load, capacity: float) -> dict[str, float]:
    """Latency from a post to its arrival, at a rate that is no trouble."""
    with run.measure(server, load) as window:
        load.open_loop(min(CALM_S, run.seconds), CALM_LOAD * capacity)
    load.drain()
    found = window.latencies()
    return {name: float(str(found[name])) for name in ("p50_ms", "p99_ms")}


def _times(answers: list[tuple[str, float]], status: str) -> dict[str, float]:
    took = sorted(seconds * 1000 for said, seconds in answers if said == status)
    return {"p50": round(percentile(took, 0.5), 1), "p99": round(percentile(took, 0.99), 1), "max": round(took[-1], 1)}


def _faults(
    answers: list[tuple[str, float]],
    peak_mb: dict[str, float],
    before: dict[str, float],
    after: dict[str, float],
) -> list[str]:
    others = {status for status, _ in answers} - {"202", "503"}
    slowest_s = max((seconds for _, seconds in answers), default=0.0)
    fattest = {role: mb for role, mb in peak_mb.items() if role in ("api", "worker") and mb > MEMORY_MB_MAX}
    calm_ms = CALM_P50_TIMES * before["p50_ms"] + CALM_P50_MS
    calm = after["p50_ms"] <= calm_ms and after["p99_ms"] <= CALM_P99_MS_MAX
    checks = [
        (not others, f"answers other than 202 and 503: {', '.join(sorted(others))}"),
        (slowest_s <= ANSWER_S_MAX, f"an answer took {slowest_s:.1f} s"),
        (not fattest, f"memory in MB: {fattest}"),
        (calm, f"latencies are {after} afterwards, {before} before"),
    ]
    return [fault for good, fault in checks if not good]


SCENARIOS: dict[str, Callable[[Run], Figures]] = {"overload": overload}
