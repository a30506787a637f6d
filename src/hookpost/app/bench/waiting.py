"""Scenarios about what waits: a full journal, a long backlog, many tenants; and what further workers cost.

Each fills the store while the server is stopped and starts it again: workers begin when all is there. Sizes grow with
``run.seconds``: ten seconds are the sizes that the targets speak of, one second is a quick look.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import asyncpg

from hookpost.app.bench import fill
from hookpost.app.bench.ledger import Ledger
from hookpost.app.bench.limits import curl_at_rest
from hookpost.app.bench.load import EVENT_TYPE, WINDOW, Listener, Load
from hookpost.app.bench.machine import off_the_first_core
from hookpost.app.bench.run import Figures, Run
from hookpost.app.bench.server import Server
from hookpost.app.bench.slices import Contender, alternate, costs
from hookpost.model import WaitReason, show_id
from hookpost.policy.signing import show_secret
from hookpost.storage.postgres.embedded import EmbeddedPostgres

# Healthy receivers that a store is drained to: more than the tenant's cap of 512 needs at 64 each.
ENDPOINTS = 10
# What one second of `--seconds` stands for.
DELIVER_EVENTS_PER_S = 10_000
RECOVER_EVENTS_PER_S = 50_000
MEMORY_EVENTS_PER_S = 100_000
WORKERS_EVENTS_PER_S = 10_000
TENANTS_PER_S, TENANTS_MAX = 1_000, 10_000
CHANGES_ENDPOINTS_PER_S, CHANGES = 1_000, 20
# Long enough for the worker to hear of it.
CHANGE_EVERY_S = 0.7
ENDPOINTS_A_TENANT = 10
# One receiver stands for the hosts of so many endpoints.
ENDPOINTS_A_LISTENER = 100
# The drain is measured up to this part of it: the last lanes end one by one.
DRAIN_TO = 0.95
# A drain that brings nothing for so long is stuck.
QUIET_S = 20.0
# How long to wait for shards to be taken, or for the last results to be written.
WAIT_S_MAX = 60.0
LOOK_S = 0.02
# How long the worker is watched while all is paused.
PAUSED_S = 5.0
WORKERS = (1, 2, 4, 8)
HOUR_S = 3600.0
FILLED_KEY = b"bench" * 6

T = TypeVar("T")


def deliver(run: Run) -> Figures:
    """A full journal is drained to healthy endpoints; the workers start when it is full."""
    count = round(run.seconds * DELIVER_EVENTS_PER_S)
    with (
        curl_at_rest(run) as unit,
        curl_at_rest(run, plain=True) as plain,
        run.server() as server,
        run.load() as load,
    ):
        owed = receivers(server, load)
        refill(server, lambda connection: fill.journal(connection, owed, count))
        take_over(load.ledger, count)
        server.start()
        figures = drain_beside(run, unit, server, load, count, plain=plain)
        return {**figures, "events": count, **run.accounts(server, load), **run.writes(server, load)}


def recover(run: Run) -> Figures:
    """Endpoints were down: all that waits for its retry is due, and drained."""
    count = round(run.seconds * RECOVER_EVENTS_PER_S)
    with curl_at_rest(run) as unit, run.server() as server, run.load() as load:
        owed = receivers(server, load)
        before_mb = worker_mb(server)
        refill(server, lambda c: fill.backlog(c, owed, count, reason=WaitReason.RETRY, due_in_s=-1.0))
        take_over(load.ledger, count)
        server.start()
        figures = drain_beside(run, unit, server, load, count)
        memory = {"worker_mb_before": before_mb, "worker_mb_peak": worker_mb(server, peak=True)}
        return {**figures, "waiting_before": count, **memory, **run.accounts(server, load)}


def memory(run: Run) -> Figures:
    """A million deliveries wait for paused endpoints: the worker's memory; then they are resumed by the API."""
    count = round(run.seconds * MEMORY_EVENTS_PER_S)
    with run.server() as server, run.load() as load:
        owed = receivers(server, load)
        before_mb = worker_mb(server)
        for listener in load.listeners:
            server.call("POST", f"/v1/webhook_endpoints/{listener.endpoint_id}/pause")
        refill(server, lambda c: fill.backlog(c, owed, count, reason=WaitReason.PAUSED, due_in_s=0.0))
        take_over(load.ledger, count)
        server.start()
        owned_s = await_owned(server)
        load.idle(PAUSED_S)
        paused_mb, delivered_paused = worker_mb(server, peak=True), load.ledger.delivered
        for listener in load.listeners:
            server.call("POST", f"/v1/webhook_endpoints/{listener.endpoint_id}/resume")
        load.receive(lambda: load.ledger.delivered > 0, quiet_s=QUIET_S)
        with run.measure(server, load) as window:
            _receive_for(load, run.seconds, count)
        peak_mb = worker_mb(server, peak=True)
        accounts = stopped_accounts(run, server, load)
        return {
            "per_second": window.figures()["per_second"], "waiting_before": count, "owned_s": owned_s,
            "delivered_while_paused": delivered_paused, "worker_mb_before": before_mb, "worker_mb_paused": paused_mb,
            "worker_mb_peak": peak_mb, **accounts,
        }  # fmt: skip


def scale(run: Run) -> Figures:
    """100,000 endpoints of 10,000 tenants: start-up, throughput over all of them against one tenant's, memory.

    The one tenant is measured with one endpoint, and with one at each of the receivers that the others have: beside the
    latter, what is left is the number of endpoints and tenants, not that of connections.
    At the end an event waits for each endpoint: a lane each for the worker that takes the shards over.
    """
    tenants = min(TENANTS_MAX, max(10, round(run.seconds * TENANTS_PER_S)))
    endpoints = tenants * ENDPOINTS_A_TENANT
    with run.server() as server, run.load() as load:
        empty_s = server.started_in_s
        server.subscribe(load.listen(), events=[EVENT_TYPE])
        made = add_tenants(server, load, tenants, endpoints)
        hosts = load.listeners[1:]
        server.start()
        start = {"started_in_s": round(server.started_in_s, 2), "owned_s": await_owned(server)}
        every = _in_turns(run, server, load, made, hosts)
        memory = server.rss_mb()
        run.accounts(server, load)
        waiting = _start_with_waiting(server, load, endpoints)
        return {
            **every, "tenants": tenants, "endpoints": endpoints, "receivers": len(hosts), **start,
            "started_empty_in_s": round(empty_s, 2), "api_mb": memory["api"], "worker_mb": memory["worker"], **waiting,
            **run.accounts(server, load, all_delivered=False),
        }  # fmt: skip


def changes(run: Run) -> Figures:
    """A tenant with 10,000 endpoints, all of them known to worker and API: what it costs to change one by the API, to
    change one's filter and post an event behind that, for which the API has to know it, and what a breaker costs that
    opens or closes (which counts as a change of its tenant), in milliseconds of CPU."""
    endpoints = round(run.seconds * CHANGES_ENDPOINTS_PER_S)
    with run.server() as server, run.load() as load:
        [tenant] = add_tenants(server, load, 1, endpoints)
        refill(server, lambda connection: fill.backlog_of_all(connection, reason=WaitReason.RETRY, due_in_s=-1.0))
        take_over(load.ledger, endpoints)
        server.start()
        load.drain(quiet_s=QUIET_S)
        until_none(server, _PLAIN_SECRETS)
        numbers = itertools.count()
        path = f"/v1/webhook_endpoints/{show_id('ep', tenant.endpoints[0])}"

        def edit() -> None:
            server.call("PATCH", path, {"max_in_flight": 10 + next(numbers)}, key=tenant.key)

        def edit_and_post() -> None:
            server.call("PATCH", path, {"events": ["*", f"changed.{next(numbers)}"]}, key=tenant.key)
            server.call("POST", "/v1/events", {"type": "a", "payload": {}, "target_endpoints": []}, key=tenant.key)

        def touch() -> None:
            server.sql("update tenants set changed_at = clock_timestamp() where tenant_id = $1", tenant.tenant_id)

        rest = _per_change(server, load, lambda: None)
        figures = {
            f"{role}_ms_of_{name}": round(max(0.0, used - rest[role]), 2)
            for name, change in (("an_edit", edit), ("a_filter_and_an_event", edit_and_post), ("a_breaker", touch))
            for role, used in _per_change(server, load, change).items()
            if role in {"api", "worker", "postgres"}
        }
        return {"endpoints": endpoints, "changes": CHANGES, **figures, **run.accounts(server, load)}


def _per_change(server: Server, load: Load, change: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of CPU by role for each of several changes, with what the server does meanwhile."""
    load.idle(CHANGE_EVERY_S)
    before = server.cpu()
    for _ in range(CHANGES):
        change()
        load.idle(CHANGE_EVERY_S)
    return {role: (used - before[role]) / CHANGES * 1e3 for role, used in server.cpu().items()}


def workers(run: Run) -> Figures:
    """A full journal drained by one to eight workers, all on one core: what a delivery costs each time."""
    count = round(run.seconds * WORKERS_EVENTS_PER_S)
    points = {number: _workers(run, number, count) for number in WORKERS}
    costs = {number: float(str(point["worker_in_curls"])) for number, point in points.items()}
    return {
        "per_second": points[1]["per_second"],
        "events": count,
        # With a core for each they would be this many times as fast as one.
        **{f"speedup_{number}": round(number * costs[1] / cost, 2) for number, cost in costs.items() if cost},
        "points": [{"workers": number, **point} for number, point in points.items()],
    }


def _workers(run: Run, number: int, count: int) -> Figures:
    with curl_at_rest(run, pinned=True) as unit, run.server(workers=number) as server, run.load() as load:
        owed = receivers(server, load)
        refill(server, lambda connection: fill.journal(connection, owed, count))
        take_over(load.ledger, count)
        server.start()
        pinned = server.pin("worker")
        with off_the_first_core():
            figures = drain_beside(run, unit, server, load, count)
        run.accounts(server, load)
        shown = ("per_second", "worker_us", "worker_in_curls", "postgres_us")
        return {**{name: figures[name] for name in shown}, "pinned": pinned}


# ---- filling --------------------------------------------------------------------------------------------------------


def receivers(server: Server, load: Load, *, count: int = ENDPOINTS, **fields: object) -> fill.Owed:
    """Healthy endpoints of the default tenant, and what fill must know of them."""
    ids = server.subscribe(load.listen(count), **fields)
    rows = server.sql("select tenant_id, endpoint_id from endpoints order by created_at desc limit $1", len(ids))
    return _await(server.dsn, lambda c: fill.owed_to(c, rows[0]["tenant_id"], [row["endpoint_id"] for row in rows]))


def refill(server: Server, work: Callable[[Any], Awaitable[T]]) -> T:
    """Stop the server, let ``work`` fill its database, and leave it stopped."""

    async def filling(connection: Any) -> T:
        await fill.begin(connection)
        answer = await work(connection)
        await fill.finish(connection)
        return answer

    server.stop()
    return on_database(server, filling)


def on_database(server: Server, work: Callable[[Any], Awaitable[T]]) -> T:
    """Use the database of a server that is stopped."""
    embedded = EmbeddedPostgres(server.folder / "data")
    server.dsn = embedded.start()
    try:
        return _await(server.dsn, work)
    finally:
        embedded.stop()


def _await(dsn: str, work: Callable[[Any], Awaitable[T]]) -> T:
    async def working() -> T:
        connection = await asyncpg.connect(dsn)
        try:
            return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(working())


def take_over(ledger: Ledger, count: int) -> None:
    """Enter filled events as posted and accepted."""
    first = ledger.open(count, time.monotonic())
    ledger.accept(first, count)


# ---- draining -------------------------------------------------------------------------------------------------------


def drain_beside(
    run: Run, unit: Contender, server: Server, load: Load, count: int, *, plain: Contender | None = None
) -> Figures:
    """Receive all; slices of it are measured, and libcurl's loop (or two) while the workers stand still."""
    ledger = load.ledger
    drained = Contender(
        subject=server, load=load, work=partial(_receive_for, load, count=count),
        ready=partial(server.go_on, "worker"), rest=partial(server.hold, "worker"),
    )  # fmt: skip
    try:
        yardsticks = {"curl": unit} if plain is None else {"curl": unit, "plain_curl": plain}
        rounds = alternate(run, {"drain": drained, **yardsticks}, more=lambda: ledger.delivered < count * DRAIN_TO)
    finally:
        server.go_on("worker")
    load.drain(quiet_s=QUIET_S)
    until_none(server, "select 1 from backlog limit 1")
    return {
        **rounds.figures("drain"),
        **{f"of_{name}": rounds.ratio("drain", name) for name in yardsticks},
        **costs(rounds, "drain", ("worker", "postgres")),
        "curl_us": rounds.figures("curl")["curl_us"],
        "curl_per_second": rounds.figures("curl")["per_second"],
    }


def until_none(server: Server, sql: str) -> float:
    """Wait until the statement finds nothing any more, or too long; returns the seconds it took."""
    started = time.monotonic()
    while server.sql(sql) and time.monotonic() - started < WAIT_S_MAX:
        time.sleep(LOOK_S)
    return round(time.monotonic() - started, 2)


def _receive_for(load: Load, seconds: float, count: int) -> None:
    until = load.now() + seconds
    load.receive(lambda: load.now() >= until or load.ledger.delivered >= count, quiet_s=QUIET_S)


def stopped_accounts(run: Run, server: Server, load: Load) -> Figures:
    """The books of a server that is stopped with deliveries left to do: what is under way arrives meanwhile."""
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    load.receive(lambda: not stopping.is_alive(), quiet_s=WAIT_S_MAX)
    stopping.join()
    embedded = EmbeddedPostgres(server.folder / "data")
    server.dsn = embedded.start()
    try:
        return run.accounts(server, load, all_delivered=False)
    finally:
        embedded.stop()


# An owner writes the progress of a shard under its own fence as soon as it has taken it over.
_NOT_TAKEN_OVER = """
select 1 from shards s
where s.owner is null or not exists (select from progress p where p.shard = s.shard and p.fence = s.fence) limit 1
"""


def await_owned(server: Server) -> float:
    """Seconds from the server's start until every shard has an owner that knows what waits in it."""
    return round(server.started_in_s + until_none(server, _NOT_TAKEN_OVER), 2)


# ---- many tenants ---------------------------------------------------------------------------------------------------

# One for each endpoint of a tenant; as long as EVENT_TYPE, so that requests keep their length.
EVENT_TYPES = [f"{EVENT_TYPE[:-1]}{number}" for number in range(ENDPOINTS_A_TENANT)]
RECEIVER_TYPE = EVENT_TYPE[:-3]


# What was filled in lies as releases before sealed secrets left it. The server seals it once, outside of the figures.
_PLAIN_SECRETS = "select 1 from endpoint_secrets where key is not null limit 1"


class TenantsForms(Sequence[bytes]):
    """The requests of all tenants' endpoints as formats, made when they are wanted: a hundred thousand take memory."""

    def __init__(self, form: bytes, key: str, tenants: Sequence[fill.FilledTenant], *, order: random.Random) -> None:
        self._form = form
        self._key = key.encode()
        self._keys = [tenant.key.encode() for tenant in tenants]
        self._types = [type_.encode() for type_ in EVENT_TYPES]
        self._order = list(range(len(self._keys) * len(self._types)))
        order.shuffle(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: Any) -> Any:
        place = self._order[index]
        kind, tenant = divmod(place, len(self._keys))
        head, _, body = self._form.partition(b"\r\n\r\n")
        return (
            head.replace(self._key, self._keys[tenant], 1)
            + b"\r\n\r\n"
            + body.replace(EVENT_TYPE.encode(), self._types[kind], 1)
        )


def add_tenants(server: Server, load: Load, tenants: int, endpoints: int) -> list[fill.FilledTenant]:
    """Fill in tenants, each at home in one shard, with endpoints of the load; the server is stopped then."""
    hosts = load.listen(max(1, endpoints // ENDPOINTS_A_LISTENER))
    for host in hosts:
        host.key = FILLED_KEY
    urls = [host.url for host in hosts]
    return refill(
        server,
        lambda connection: fill.tenants(
            connection, tenants=tenants, endpoints=endpoints, urls=urls, secret=FILLED_KEY, types=EVENT_TYPES
        ),
    )


def _start_with_waiting(server: Server, load: Load, endpoints: int) -> Figures:
    refill(server, lambda connection: fill.backlog_of_all(connection, reason=WaitReason.RETRY, due_in_s=HOUR_S))
    take_over(load.ledger, endpoints)
    server.start()
    return {"owned_with_waiting_s": await_owned(server), "worker_with_waiting_mb": worker_mb(server, peak=True)}


def of_all_tenants(server: Server, load: Load, made: Sequence[fill.FilledTenant]) -> tuple[TenantsForms, int]:
    """Requests of all endpoints, of which each has got one: all of its configuration had to be loaded. And how many
    a second that were."""
    load.target(server.url, made[0].key)
    every = TenantsForms(load.forms[0], made[0].key, made, order=random.Random(1))  # noqa: S311 - an order, no secret
    load.forms = every
    started, before = load.now(), load.ledger.accepted
    while load.ledger.accepted - before < len(every):
        load.sustained(0.5, window=WINDOW)
    load.drain(quiet_s=QUIET_S)
    first = round((load.ledger.accepted - before) / (load.now() - started))
    until_none(server, _PLAIN_SECRETS)
    return every, first


def _one_of_each(server: Server, form: bytes, hosts: Sequence[Listener]) -> list[bytes]:
    """Give the tenant of the form an endpoint at each of these receivers, of a type of its own; the requests for them,
    in no order: in turn, a cache smaller than the round would never hit."""
    types = [f"{RECEIVER_TYPE}{number:03}" for number in range(len(hosts))]
    for host, type_ in zip(hosts, types, strict=True):
        server.subscribe([host], events=[type_], secret=show_secret(FILLED_KEY))
    random.Random(1).shuffle(types)  # noqa: S311 - an order, no secret
    return [form.replace(EVENT_TYPE.encode(), type_.encode(), 1) for type_ in types]


def _in_turns(
    run: Run, server: Server, load: Load, made: Sequence[fill.FilledTenant], hosts: Sequence[Listener]
) -> Figures:
    """One tenant's events, then those of all, again and again; then those of all at half the rate."""
    load.target(server.url, server.key)
    one = load.forms
    spread = _one_of_each(server, one[0], hosts)
    every, first = of_all_tenants(server, load, made)
    rounds = alternate(run, {
        name: Contender(
            subject=server, load=load, ready=partial(setattr, load, "forms", forms), work=load.sustained,
            rest=partial(load.drain, quiet_s=QUIET_S),
        )
        for name, forms in (("one", one), ("spread", spread), ("every", every))
    })  # fmt: skip
    figures = rounds.figures("every")
    load.forms = every
    with run.measure(server, load) as half:
        load.open_loop(run.seconds, float(str(figures["per_second"])) / 2)
    load.drain(quiet_s=QUIET_S)
    return {
        **figures, **rounds.latencies("every"), "first_events_per_second": first,
        **{f"half_{name}": half.figures()[name] for name in ("per_second", "all_us")},
        **{f"half_{name}": value for name, value in half.latencies().items()},
        "one_tenant_per_second": rounds.figures("one")["per_second"],
        "of_one_tenant": rounds.ratio("every", "one"),
        # The same by CPU, which other programs on the machine disturb less.
        "of_one_tenant_by_cpu": rounds.ratio("one", "every", "all_us"),
        "of_one_tenant_with_as_many_receivers": rounds.ratio("every", "spread"),
        "of_one_tenant_with_as_many_receivers_by_cpu": rounds.ratio("spread", "every", "all_us"),
        "beside": {name: rounds.figures(name) for name in ("one", "spread")},
    }  # fmt: skip


# ---- processes ------------------------------------------------------------------------------------------------------


def worker_mb(server: Server, *, peak: bool = False) -> float:
    """Resident memory of the biggest worker now, or the most it ever was."""
    field = "VmHWM:" if peak else "VmRSS:"
    return round(max(_status_kib(pid, field) for pid in server.pids()["worker"]) / 1024, 1)


def _status_kib(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


SCENARIOS = {each.__name__: each for each in (deliver, recover, memory, scale, changes, workers)}
