"""What a scenario is given: servers, load, the seconds to measure, and what scenarios before it have found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from hookpost.app.bench.ledger import Accounts, VoidRun, percentile
from hookpost.app.bench.load import Load
from hookpost.app.bench.machine import busy_s
from hookpost.app.bench.server import Server

# Load before the clock runs: connections open, caches fill, the database's plans are made.
WARM_UP_S = 2.0
# PostgreSQL's backends report what they wrote ten seconds late when they are idle (PGSTAT_IDLE_INTERVAL).
COUNTERS_LATE_S = 10.5

# How long the last settles may take, and how often to look.
RECORDED_S_MAX = 30.0
RECORDED_POLL_S = 0.2

Figures = dict[str, object]


def number(figures: Figures, name: str) -> float:
    """A figure that is a number; KeyError when it was not measured."""
    found = figures[name]
    if not isinstance(found, int | float):
        raise KeyError(name)
    return float(found)


class Subject(Protocol):
    """What is measured: a Server, or the processes of the limit."""

    def cpu(self) -> dict[str, float]:
        """CPU seconds used so far, by role."""


@dataclass(slots=True)
class Run:
    """One call of `hookpost bench`."""

    seconds: float
    results: dict[str, Figures] = field(default_factory=dict)

    @property
    def warm_up_s(self) -> float:
        """How long to load before measuring."""
        return min(WARM_UP_S, self.seconds)

    def server(self, **settings: object) -> Server:
        """A fresh server; ``with run.server() as server``. Settings as in `hookpost config`, in lower case."""
        return Server(**settings)

    def load(self, *, slots: int = 1, connections: int | None = None) -> Load:
        """A fresh load; ``with run.load() as load``."""
        return Load(slots=slots) if connections is None else Load(slots=slots, connections=connections)

    @contextmanager
    def measure(self, subject: Subject, load: Load) -> Iterator[Window]:
        """What is done inside is measured: time, deliveries, CPU by role."""
        window = Window(load)
        before = subject.cpu()
        window.begin()
        yield window
        window.end()
        window.cpu = {role: used - before[role] for role, used in subject.cpu().items()}

    def in_balance(self, subject: Subject, load: Load, *, seconds: float | None = None) -> Window:
        """Post as fast as it is delivered, after a warm-up; measured, and waited for until all of it has arrived."""
        load.sustained(self.warm_up_s)
        with self.measure(subject, load) as window:
            load.sustained(self.seconds if seconds is None else seconds)
        load.drain()
        return window

    def writes(
        self, server: Server, load: Load, *, per: str = "delivery", work: Callable[[float], None] | None = None
    ) -> Figures:
        """Rows, transactions and WAL, per delivery or event: of ``work``, which loads the server without a pause, or of
        all it has done since it started. Slow."""

        def count() -> int:
            return load.ledger.delivered if per == "delivery" else load.ledger.accepted

        before, counted = 0, server.counted_at_start
        if work is not None:
            load.idle(COUNTERS_LATE_S)
            before, counted = count(), server.counters()
            work(self.seconds)
            load.answered()
            if per == "delivery":
                load.drain()
        load.idle(COUNTERS_LATE_S)
        done = max(1, count() - before)
        counted = {name: value - counted[name] for name, value in server.counters().items()}
        return {
            f"row_writes_per_{per}": round((counted["inserts"] + counted["updates"] + counted["deletes"]) / done, 3),
            f"transactions_per_{per}": round(counted["transactions"] / done, 4),
            f"wal_bytes_per_{per}": round(counted["wal_bytes"] / done),
        }

    def per_second(self, scenario: str) -> float:
        """The rate a scenario before this one has found in this run; 0 when it did not run."""
        found = self.results.get(scenario, {}).get("per_second", 0.0)
        assert isinstance(found, int | float)
        return float(found)

    def accounts(self, server: Server, load: Load, *, all_delivered: bool = True) -> Figures:
        """The books of a run, once all has settled. Raises VoidRun unless they balance.

        ``all_delivered``: nothing may wait or be dead at the end.
        """
        load.answered()
        stored = self._recorded(server, load)
        ledger = load.ledger
        accounts = Accounts(
            owed=ledger.accepted * ledger.slots, delivered=ledger.delivered, stored_owed=stored["owed"],
            stored_delivered=stored["delivered"], waiting=stored["waiting"], dead=stored["dead"],
            forged=ledger.forged, unknown=ledger.unknown,
        )  # fmt: skip
        figures: Figures = {
            "published": accounts.owed,
            "delivered": ledger.accepted_and_arrived(),
            "waiting": accounts.waiting,
            "dead": accounts.dead,
            "recorded_as_delivered": accounts.stored_delivered,
            "duplicates": ledger.duplicates,
            "refused": ledger.refused,
            "signatures_checked": ledger.verified,
        }
        if load.answers:
            figures["refused_with"] = dict(load.answers)
        faults = accounts.faults()
        if all_delivered and accounts.waiting + accounts.dead:
            faults.append(f"{accounts.waiting} wait and {accounts.dead} are dead, though all receivers are healthy")
        if faults:
            raise VoidRun("; ".join(faults), figures)
        return figures

    def _recorded(self, server: Server, load: Load) -> dict[str, int]:
        """The database's accounts once it has recorded what had arrived before; as they are after a while."""
        until = load.now() + RECORDED_S_MAX
        while True:
            arrived = load.ledger.delivered
            load.idle(RECORDED_POLL_S)
            stored = server.accounts()
            settled = stored["delivered"] >= arrived and (stored["open"] == 0 or not load.all_arrived())
            if settled or load.now() > until:
                return stored


class Window:
    """One measurement."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.cpu: dict[str, float] = {}

    def begin(self) -> None:
        """The clock runs."""
        ledger = self._load.ledger
        self.posted_before, self.accepted_before = ledger.posted, ledger.accepted
        self.delivered_before = ledger.delivered
        self._load_cpu_ns = time.process_time_ns()
        self._busy_s = busy_s()
        self.began = self._load.now()

    def end(self) -> None:
        """The clock stops."""
        ledger = self._load.ledger
        self.ended = self._load.now()
        self.busy_s = busy_s() - self._busy_s
        self.load_cpu_s = (time.process_time_ns() - self._load_cpu_ns) / 1e9
        self.delivered = ledger.delivered - self.delivered_before
        self.accepted = ledger.accepted - self.accepted_before
        self.posted = ledger.posted - self.posted_before

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.began

    def latencies(self) -> Figures:
        """Scheduled post to arrival, of the events that were due inside. Call it when all have arrived."""
        found = self._load.ledger.latencies_ms(self.began, self.ended)
        return {
            "p50_ms": round(percentile(found, 0.5), 2),
            "p99_ms": round(percentile(found, 0.99), 2),
            "max_ms": round(found[-1], 1) if found else 0.0,
        }

    def figures(self, *, per: str = "delivery") -> Figures:
        """Rates and costs, ``per`` delivery or event."""
        count = self.delivered if per == "delivery" else self.accepted
        used = {**self.cpu, "load": self.load_cpu_s}
        return {
            "per_second": round(count / self.seconds),
            **{f"{role}_us": round(spent / max(1, count) * 1e6, 1) for role, spent in used.items()},
            "all_us": round(sum(used.values()) / max(1, count) * 1e6, 1),
            "cores_used": round(sum(used.values()) / self.seconds, 2),
            # What disturbed the measurement: other programs of this machine, and of its host.
            "cores_used_by_others": max(0.0, round((self.busy_s - sum(used.values())) / self.seconds, 2)),
        }
