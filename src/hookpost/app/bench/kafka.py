"""The journal in Kafka beside the journal in a table, in alternating slices; then what one partition can take.

The brokers are the caller's: HOOKPOST_JOURNAL_URL names them (`make bench-kafka` starts three on this machine). Each
server gets a topic of its own.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from hookpost.app.bench.ledger import VoidRun
from hookpost.app.bench.load import Load
from hookpost.app.bench.machine import arguments_of, processes
from hookpost.app.bench.run import Figures, Run
from hookpost.app.bench.scenarios import BATCH, BATCH_CONNECTIONS
from hookpost.app.bench.server import Server
from hookpost.app.bench.slices import Contender, alternate
from hookpost.app.config import PREFIX

WANTED_PER_S = 50_000
# How long what was acknowledged may wait for the pump.
TAKEN_OVER_S_MAX = 60.0
# Each look is a connection of its own, which costs the database as much as two hundred records.
POLL_S = 0.25
# A worker stands still for less than its lease.
HELD_S_MAX = 10.0

_REACHED = (
    "select coalesce(sum(reached), 0)::bigint as reached"
    " from (select max(next_offset) as reached from journal_offsets group by shard) r"
)


@dataclass(frozen=True, slots=True)
class _WithBrokers:
    """A server and the brokers of this machine, which work for it alone while it is measured."""

    server: Server

    def cpu(self) -> dict[str, float]:
        """CPU seconds by role."""
        table = processes()
        brokers = [pid for pid in table if "kafka.Kafka" in arguments_of(pid)]
        return {**self.server.cpu(), "brokers": sum(table[pid].own_s for pid in brokers)}


def kafka(run: Run) -> Figures:
    """Accepted a second (owed to nobody, a hundred a request) and delivered a second (one a request), on either."""
    with (
        run.server() as table, run.server(**_journal()) as kafka_,
        run.load(connections=BATCH_CONNECTIONS) as table_in, run.load(connections=BATCH_CONNECTIONS) as kafka_in,
        run.load() as table_out, run.load() as kafka_out,
    ):  # fmt: skip
        for server, accepting, delivering in ((table, table_in, table_out), (kafka_, kafka_in, kafka_out)):
            accepting.target(server.url, _nobodys_key(server), batch=BATCH)
            server.subscribe(delivering.listen())
            delivering.target(server.url, server.key)
        taken_over = partial(_rest, kafka_, kafka_in, kafka_out)
        contenders = {
            "table_accepted": _accepting(_WithBrokers(table), table_in, table_in.answered),
            "kafka_accepted": _accepting(_WithBrokers(kafka_), kafka_in, taken_over),
            "table_delivered": _delivering(_WithBrokers(table), table_out),
            "kafka_delivered": _delivering(_WithBrokers(kafka_), kafka_out),
        }
        rounds = alternate(run, contenders)
        found: Figures = {
            **rounds.figures("kafka_delivered"),
            **rounds.latencies("kafka_delivered"),
            "accepted_of_table": rounds.ratio("kafka_accepted", "table_accepted"),
            "delivered_of_table": rounds.ratio("kafka_delivered", "table_delivered"),
            "latencies_of_table": rounds.latencies("table_delivered"),
            "beside": {name: rounds.figures(name) for name in contenders},
            **run.writes(kafka_, kafka_out, work=kafka_out.sustained),
            "writes_of_table": run.writes(table, table_out, work=table_out.sustained),
            **_delivered_all(kafka_, kafka_out),
        }
        _delivered_all(table, table_out)
    return {**found, **_one_partition(run)}


def _journal() -> dict[str, object]:
    """Settings of a server with a topic of its own."""
    url = os.environ.get(PREFIX + "JOURNAL_URL")
    if url is None:
        raise VoidRun("HOOKPOST_JOURNAL_URL must name brokers: `make bench-kafka` starts three")
    return {"journal_url": f"kafka://{urlsplit(url).netloc}/bench.{secrets.token_hex(8)}"}


def _accepting(subject: _WithBrokers, load: Load, rest: Callable[[], object]) -> Contender:
    return Contender(subject=subject, load=load, work=load.unbounded, rest=rest, per="event")


def _delivering(subject: _WithBrokers, load: Load) -> Contender:
    return Contender(subject=subject, load=load, work=load.sustained, rest=load.drain)


def _nobodys_key(server: Server) -> str:
    """Of a tenant that has no endpoints."""
    tenant = server.call("POST", "/v1/tenants", {"name": "accepted"}, admin=True)["tenant_id"]
    made = server.call("POST", f"/v1/tenants/{tenant}/api_keys", {"name": "bench"}, admin=True)
    return str(made["key"])


def _delivered_all(server: Server, load: Load) -> Figures:
    """Void unless all that was accepted has arrived. (The books of the database hold events of another load, too.)"""
    load.drain()
    missing = load.ledger.accepted - load.ledger.accepted_and_arrived()
    if missing or load.ledger.forged:
        raise VoidRun(f"{missing} deliveries are missing, {load.ledger.forged} are forged")
    waiting = server.accounts()["waiting"]
    return {"published": load.ledger.accepted, "waiting": waiting, "duplicates": load.ledger.duplicates}


def _rest(server: Server, *loads: Load) -> None:
    """All is answered, and taken over."""
    for load in loads:
        load.answered()
    _taken_over(server, sum(load.ledger.accepted for load in loads))


def _taken_over(server: Server, events: int) -> None:
    until = time.monotonic() + TAKEN_OVER_S_MAX
    while server.sql(_REACHED)[0]["reached"] < events:
        if time.monotonic() > until:
            raise VoidRun("the pump does not take over what was acknowledged")
        time.sleep(POLL_S)


def _one_partition(run: Run) -> Figures:
    """One shard: what its partition accepts while nobody reads it, and how fast the pump alone takes that over."""
    with run.server(shards=1, **_journal()) as server, run.load(connections=BATCH_CONNECTIONS) as load:
        load.target(server.url, server.key, batch=BATCH)
        load.unbounded(run.warm_up_s)
        _rest(server, load)
        server.hold("worker")
        try:
            with run.measure(_WithBrokers(server), load) as accepting:
                load.unbounded(min(run.seconds, HELD_S_MAX))
            load.answered()
        finally:
            server.go_on("worker")
        before = server.sql(_REACHED)[0]["reached"]
        with run.measure(_WithBrokers(server), load) as pumping:
            _taken_over(server, load.ledger.accepted)
        waited = load.ledger.accepted - before
        taken_over = waited / pumping.seconds
        accepted = accepting.accepted / accepting.seconds
    return {
        "partition_accepted_per_second": round(accepted),
        "partition_taken_over_per_second": round(taken_over),
        "taken_over_worker_us": round(pumping.cpu["worker"] / max(1, waited) * 1e6, 1),
        "taken_over_postgres_us": round(pumping.cpu["postgres"] / max(1, waited) * 1e6, 1),
        f"partitions_for_{WANTED_PER_S}": math.ceil(WANTED_PER_S / min(accepted, taken_over)),
    }


SCENARIOS = {"kafka": kafka}
