"""Does a tenant notice its neighbours? The scenario `isolation`: all of them share one shard and one worker.

One neighbour has a hundred endpoints that take every request and never answer, and a long backlog for them; the other
one floods fresh events, a hundred a request, as fast as they are accepted. Both live in a process of their own, so that
what they receive does not keep the tenant that is measured from noting its arrivals.

Cores are not parted: a flood takes what the machine has. How much of a difference is that alone is told by the same
flood against a second server, which shares nothing with the first but the cores.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from hookpost.app.bench import fill
from hookpost.app.bench.ledger import Accounts, Ledger, VoidRun, percentile
from hookpost.app.bench.load import Load
from hookpost.app.bench.run import RECORDED_POLL_S, RECORDED_S_MAX, Figures, Run
from hookpost.app.bench.server import Server
from hookpost.app.bench.waiting import QUIET_S, await_owned, refill, take_over
from hookpost.app.client import Client
from hookpost.model import WaitReason, parse_id

# What one second of `--seconds` stands for: with ten of them 200,000 wait and 100,000 flood.
WAITING_PER_S = 20_000
FLOOD_PER_S = 10_000
MUTE_ENDPOINTS = 100
FLOODED_ENDPOINTS = 10
BATCH = 100
FLOOD_CONNECTIONS = 32
# Far more than any server accepts: each request of the flood is due at once.
FLOOD_RATE = 1_000_000.0
# Events a second of the tenant that is measured: enough for a 99th percentile, too few to notice as load.
RATE = 100.0
# Alone and beside, alternating, so that a machine that gets slower does not look like a neighbour.
ROUNDS = 2
# Between the mute endpoints' beginning and the flood: by then they hold all the places they get.
MUTE_S = 3.0
# No flood takes so long.
PHASE_S_MAX = 300.0
NEVER = float("inf")

# From acceptance to the request, of one endpoint's events accepted in these windows: what is left of the latency is the
# way to acceptance and the receiver's.
_SENT = """
select coalesce(percentile_cont(array[0.5, 0.99]::float8[])
                within group (order by date_part('epoch', a.started_at - e.created_at)), '{0,0}') as after_s
from attempts a join events e using (event_id)
where a.endpoint_id = $1 and exists (
    select from unnest($2::float8[], $3::float8[]) w (began, ended)
    where e.created_at between to_timestamp(w.began) and to_timestamp(w.ended)
)
"""


@dataclass(frozen=True, slots=True)
class Phase:
    """From when to when, monotonic; ``clock`` is what the time of day is ahead of that."""

    began: float
    ended: float
    clock: float


def isolation(run: Run) -> Figures:
    """A tenant's latency alone, beside the neighbours in its only shard, and with them on another server."""
    with (
        run.server(shards=1) as server,
        run.server(shards=1) as elsewhere,
        Neighbours(run, server) as beside,
        Neighbours(run, elsewhere) as away,
        run.load() as load,
    ):
        [endpoint_id] = server.subscribe(load.listen())
        load.target(server.url, server.key)
        load.open_loop(run.warm_up_s, RATE)
        phases: dict[str, list[Phase]] = {"alone": [], "beside": [], "elsewhere": []}
        for _ in range(ROUNDS):
            phases["alone"].append(_phase(load, run.seconds, None))
            phases["beside"].append(_phase(load, PHASE_S_MAX, beside))
            phases["elsewhere"].append(_phase(load, PHASE_S_MAX, away))
        found = {name: _latencies(load.ledger, windows) for name, windows in phases.items()}
        books = _books(server, load, [load.ledger, beside.end()])
        for name, windows in phases.items():
            found[name] |= _sent(server, endpoint_id, windows)
        _books(elsewhere, load, [away.end()])
    alone, p99 = found["alone"], {name: each["p99_ms"] for name, each in found.items()}
    return {
        "per_second": RATE,
        "p50_ms": found["beside"]["p50_ms"],
        "p99_ms": p99["beside"],
        **found,
        "p99_ratio": round(p99["beside"] / alone["p99_ms"], 2),
        "p99_ratio_elsewhere": round(p99["elsewhere"] / alone["p99_ms"], 2),
        "p99_beside_to_elsewhere": round(p99["beside"] / p99["elsewhere"], 2),
        "flooded": beside.flooded,
        "waiting_before": beside.waiting,
        **books,
    }


def _phase(load: Load, seconds: float, neighbours: Neighbours | None) -> Phase:
    """The rate for so long, or while the neighbours flood. All has arrived behind it."""
    if neighbours is not None:
        neighbours.wake()
        load.open_loop(MUTE_S, RATE)
        neighbours.flood()
    began = load.now()
    load.open_loop(seconds, RATE, done=neighbours.is_over if neighbours is not None else lambda: False)
    ended = load.now()
    load.drain(quiet_s=QUIET_S)
    if neighbours is not None:
        neighbours.rest()
    return Phase(began, ended, time.time() - load.now())


def _latencies(ledger: Ledger, phases: Sequence[Phase]) -> dict[str, float]:
    found = sorted(latency for phase in phases for latency in ledger.latencies_ms(phase.began, phase.ended))
    return {
        "events": len(found),
        "seconds": round(sum(phase.ended - phase.began for phase in phases), 1),
        "p50_ms": round(percentile(found, 0.5), 2),
        "p99_ms": round(percentile(found, 0.99), 2),
        "max_ms": round(found[-1], 1) if found else 0.0,
    }


def _sent(server: Server, endpoint_id: str, phases: Sequence[Phase]) -> dict[str, float]:
    began, ended = zip(*((p.began + p.clock, p.ended + p.clock) for p in phases), strict=True)
    [row] = server.sql(_SENT, parse_id("ep", endpoint_id), list(began), list(ended))
    p50_s, p99_s = row["after_s"]
    return {"accepted_to_sent_p50_ms": round(p50_s * 1000, 2), "accepted_to_sent_p99_ms": round(p99_s * 1000, 2)}


def _books(server: Server, load: Load, ledgers: Sequence[Ledger]) -> Figures:
    """All tenants' books, once all has settled. Raises VoidRun unless they balance."""
    delivered = sum(ledger.delivered for ledger in ledgers)
    until = load.now() + RECORDED_S_MAX
    while True:
        load.idle(RECORDED_POLL_S)
        stored = server.accounts()
        if (stored["delivered"] >= delivered and stored["open"] == 0) or load.now() > until:
            break
    accounts = Accounts(
        owed=sum(ledger.accepted for ledger in ledgers), delivered=delivered, stored_owed=stored["owed"],
        stored_delivered=stored["delivered"], waiting=stored["waiting"], dead=stored["dead"],
        forged=sum(ledger.forged for ledger in ledgers), unknown=sum(ledger.unknown for ledger in ledgers),
    )  # fmt: skip
    figures: Figures = {
        "published": accounts.owed, "delivered": delivered, "waiting": accounts.waiting, "dead": accounts.dead,
        "recorded_as_delivered": accounts.stored_delivered,
        "duplicates": sum(ledger.duplicates for ledger in ledgers),
        "refused": sum(ledger.refused for ledger in ledgers),
    }  # fmt: skip
    if faults := accounts.faults():
        raise VoidRun("; ".join(faults), figures)
    return figures


# ---- the neighbours -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flood:
    """Whom to flood, with whose key."""

    url: str
    key: str
    endpoints: tuple[str, ...]
    events: int


class Neighbours(AbstractContextManager["Neighbours"]):
    """The mute and the flooding tenant of one server: set up here, received and posted for in a process of their own.

    Between floods the mute endpoints are paused, and what they are owed waits.
    """

    def __init__(self, run: Run, server: Server) -> None:
        self.waiting = round(run.seconds * WAITING_PER_S)
        self.flooded = round(run.seconds * FLOOD_PER_S)
        self._server = server
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(
            target=_live, args=(theirs, self.waiting), daemon=True
        )

    def __enter__(self) -> Self:
        self._process.start()
        urls: list[str] = self._pipe.recv()
        mute, self._mute_key = self._tenant("mute")
        _, self._flood_key = self._tenant("flood")
        self._mute = [self._endpoint(self._mute_key, url) for url in urls[:MUTE_ENDPOINTS]]
        self._flooded = tuple(self._endpoint(self._flood_key, url) for url in urls[MUTE_ENDPOINTS:])
        self._every_mute("pause")
        tenant_id, endpoints = parse_id("ten", mute), [parse_id("ep", each) for each in self._mute]

        async def fill_backlog(connection: object) -> None:
            owed = await fill.owed_to(connection, tenant_id, endpoints)
            await fill.backlog(connection, owed, self.waiting, reason=WaitReason.RETRY, due_in_s=-1.0)

        refill(self._server, fill_backlog)
        self._server.start()
        await_owned(self._server)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()

    def _tenant(self, name: str) -> tuple[str, str]:
        tenant_id = self._server.call("POST", "/v1/tenants", {"name": name}, admin=True)["tenant_id"]
        made = self._server.call("POST", f"/v1/tenants/{tenant_id}/api_keys", {"name": name}, admin=True)
        return tenant_id, made["key"]

    def _endpoint(self, key: str, url: str) -> str:
        made = Client(self._server.url, key).call("POST", "/v1/webhook_endpoints", {"url": url})
        endpoint_id: str = made["endpoint_id"]
        return endpoint_id

    def _every_mute(self, action: str) -> None:
        client = Client(self._server.url, self._mute_key)
        for endpoint_id in self._mute:
            client.call("POST", f"/v1/webhook_endpoints/{endpoint_id}/{action}")

    def wake(self) -> None:
        """The mute endpoints get what they are owed."""
        self._every_mute("resume")

    def flood(self) -> None:
        """The other tenant floods."""
        self._pipe.send(Flood(self._server.url, self._flood_key, self._flooded, self.flooded))

    def is_over(self) -> bool:
        """Has all of the flood arrived?"""
        return self._pipe.poll()

    def rest(self) -> None:
        """Nothing of the neighbours moves any more."""
        if not self._pipe.recv():
            raise VoidRun("the flood was accepted and did not arrive")
        self._every_mute("pause")

    def end(self) -> Ledger:
        """Their books."""
        self._pipe.send(None)
        ledger: Ledger = self._pipe.recv()
        return ledger


def _live(pipe: Connection, waiting: int) -> None:
    """In the process of the neighbours: receive, and flood when told to."""
    with Load(connections=FLOOD_CONNECTIONS) as load:
        load.listen(MUTE_ENDPOINTS, delay_s=NEVER)
        load.listen(FLOODED_ENDPOINTS)
        pipe.send([listener.url for listener in load.listeners])
        ledger = load.ledger
        take_over(ledger, waiting)
        while True:
            load.receive(pipe.poll, quiet_s=NEVER)
            flood: Flood | None = pipe.recv()
            if flood is None:
                pipe.send(ledger)
                continue
            load.target(flood.url, flood.key, batch=BATCH, endpoints=flood.endpoints)
            load.open_loop(flood.events / FLOOD_RATE, FLOOD_RATE)
            load.answered()
            pipe.send(load.receive(lambda: ledger.delivered >= ledger.accepted - waiting, quiet_s=QUIET_S))


SCENARIOS = {"isolation": isolation}
