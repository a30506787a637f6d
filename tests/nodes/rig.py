"""One run: nodes under load that join, leave, die and are cut off, shards added meanwhile, a calm end, and the judge.

Every bound here is one of those promised (docs/adr/0025); how long it really took is told at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from hookpost.storage.postgres.connection import Connections
from tests.e2e.harness import ADMIN_KEY, Receiver, command, fresh_folder, receiver
from tests.nodes import hosts
from tests.nodes.fleet import PORT, Fleet
from tests.nodes.hosts import cut
from tests.torture.books import Accepted, Books, Fault, Window
from tests.torture.judge import Timing, Verdict, judge
from tests.torture.system import OWED, written
from tests.torture.witnesses import Producers, Witness, digest

TIMING = Timing(lease_s=4.0, renew_s=1.2, first_byte_s=2.0, total_timeout_s=3.0)
SHARDS, MORE_SHARDS, SHARDS_MAX = 8, 4, 64
SETTINGS = {
    "lease_s": f"{TIMING.lease_s:g}", "renew_s": f"{TIMING.renew_s:g}", "shards": str(SHARDS), "stop_s": "5",
    "connect_timeout_s": "1", "first_byte_timeout_s": f"{TIMING.first_byte_s:g}",
    "total_timeout_s": f"{TIMING.total_timeout_s:g}", "total_timeout_max_s": f"{TIMING.total_timeout_s:g}",
    "retry_base_s": "0.5", "retry_cap_s": "4", "breaker_pause_s": "0.5", "breaker_pause_max_s": "3",
    "retry_budget_floor": "100000", "ingest_timeout_s": "0.9", "allow_networks": "10.72.0.0/16",
}  # fmt: skip
# The bounds: of a node that joins or leaves, and of one that dies.
BALANCE_S = 10.0 + TIMING.total_timeout_s
DEATH_S = TIMING.lease_s + 10.0
# Nothing is promised of one that was cut off: it has to find out by its own timeouts that its connections are dead.
HEAL_S = 60.0
# A revoked key stops working everywhere within so long.
REVOKED_S = 1.0
# Of its receivers so many were well and fail at once: more than the five that are needed to call a way out down.
RECEIVERS = "abcdef"
PATHS = {
    "plain": ("/a",), "ordered": ("/ordered",), "fan": tuple(f"/{name}" for name in RECEIVERS), "late": ("/late",),
}  # fmt: skip
PRODUCERS = ["plain.x", "plain.y", "fan.x", "ordered.x"]
# Against a hang alone, as UNTIL_S.
DRAIN_S_MAX = 300.0
# The rig's clock readings against the processes', which share two cores with it.
SLACK_S = 1.0
UNTIL_S = 300.0
HEALTH_S_MAX = 5.0
FAILING = "select count(*) from endpoints where consecutive_failures > 0"


@dataclass(slots=True)
class Report:
    """What came of it."""

    books: Books
    verdict: Verdict
    took_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By what happened: how long until the shards were balanced again."""
    drained_s: float = 0.0

    def line(self) -> str:
        """For machines."""
        verdict = self.verdict
        return json.dumps({
            "scenario": "nodes",
            "accepted": len(self.books.accepted),
            "arrivals": len(self.books.arrivals),
            "recorded": len(self.books.recorded),
            "lost": verdict.count("lost"),
            "invented": verdict.count("invented"),
            "duplicates": verdict.duplicates,
            "duplicates_by": dict(verdict.explained),
            "balanced_within_s": {what: [round(each, 1) for each in took] for what, took in self.took_s.items()},
            "drained_s": round(self.drained_s, 1),
            "violations": {kind: len(found) for kind, found in verdict.violations.items() if found},
        })  # fmt: skip


async def run(*, rate: float, seconds: float = 0.0, seed: int = 0, patience: float = 1.0) -> Report:
    """Everything once, in its order; ``seconds``: then again at random for so long. In a network namespace of its own.

    ``patience`` stretches the bounds where other work takes the cores away.
    """
    folder = fresh_folder()
    try:
        return await _Rig(folder, random.Random(seed), patience).run(rate, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def log(text: str) -> None:
    """One line with the time that the books use."""
    print(f"{time.time():.2f} {text}", flush=True)


class _Rig:
    def __init__(self, folder: Path, rng: random.Random, patience: float) -> None:
        self._rng = rng
        self._patience = patience
        self._here = hosts.here(len(RECEIVERS))
        self._fleet = Fleet(folder, SETTINGS)
        self._books = Books(PATHS, ordered=frozenset({"/ordered"}))
        self._report = Report(self._books, Verdict())
        self._broken: defaultdict[str, list[str]] = defaultdict(list)
        self._names = (f"worker-{number}" for number in range(1, 1000))
        self._endpoints: dict[str, str] = {}

    async def run(self, rate: float, seconds: float) -> Report:
        """All of it."""
        fleet, books, report = self._fleet, self._books, self._report
        try:
            key = await fleet.start(apis=2)
            # The clocks of the third one's host are ten minutes ahead.
            first, second, third = (next(self._names) for _ in range(3))
            await asyncio.gather(fleet.join(first, second), fleet.join(third, skew_s=600.0))
            await self._balanced("start", BALANCE_S)
            async with receiver("0.0.0.0") as ledger:
                self._witness = Witness(ledger, senders=fleet.living, islands=fleet.islands)
                await self._subscribe(ledger)
                async with Producers((fleet.apis[0].host.address, PORT), key, PRODUCERS, rate=rate) as producers:
                    await self._in_order()
                    await self._at_random(seconds)
                    await producers.stop()
                    report.drained_s = await self._drain()
                books.accepted += producers.accepted
                books.arrivals = self._witness.arrivals
                books.forged = len(ledger.forged)
                await self._read_books()
        finally:
            ended = await fleet.stop()
        if self._patience > 1:
            books.starved = [Window(Fault.STOP, name, at - 2 * TIMING.lease_s, at) for name, at in fleet.lost_leases()]
        report.verdict = judge(books, replace(TIMING, patience=self._patience))
        for kind, found in {**self._broken, "bad end": ended}.items():
            report.verdict.violations[kind] += found
        return report

    async def _in_order(self) -> None:
        await self._any_api_is_as_good_as_any_other()
        await self._join()
        await self._leave()
        await self._die_and_be_cut_off()
        await self._join()
        await self._cut_off_from_receivers()
        await self._add_shards()

    async def _at_random(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        deeds: list[Callable[[], Awaitable[None]]] = [
            self._join, self._leave, self._die_and_be_cut_off, self._cut_off_from_receivers, self._add_shards,
        ]  # fmt: skip
        while time.monotonic() < until:
            while len(self._fleet.living()) < 3:
                await self._join()
            await self._rng.choice(deeds)()

    # ---- what happens -----------------------------------------------------------------------------------------------

    async def _any_api_is_as_good_as_any_other(self) -> None:
        """What one has acknowledged, the other one knows: an endpoint at once, a revoked key within a second."""
        one, other = (api.process for api in self._fleet.apis)
        await self._endpoint("/late", self._here.address, events=["late.*"])
        payload = {"told": "the other one"}
        event_id = await other.post("late.x", payload)
        self._books.accepted.append(Accepted(event_id, "late-1", "late.x", digest(json.dumps(payload).encode())))
        tenants = await one.call("GET", "/v1/tenants", key=ADMIN_KEY, expect=200)
        path = f"/v1/tenants/{tenants['data'][0]['tenant_id']}/api_keys"
        made = await one.call("POST", path, {"name": "short"}, key=ADMIN_KEY, expect=201)
        await other.call("GET", "/v1/events", key=made["key"], expect=200)
        await one.call("DELETE", f"{path}/{made['api_key_id']}", key=ADMIN_KEY, expect=204)
        revoked = time.monotonic()
        while True:
            asked = time.monotonic()
            status, _, _ = await other.call("GET", "/v1/events", key=made["key"])
            if status == 401:
                break
            # One that cannot look at the database refuses with 503: that is not good any more.
            if status != 503 and asked - revoked > REVOKED_S * self._patience:
                self._broken["revoked key"].append(f"good {asked - revoked:.1f} s after it was revoked elsewhere")
                break
            await asyncio.sleep(0.02)

    async def _join(self) -> None:
        await self._fleet.join(next(self._names))
        await self._balanced("join", BALANCE_S)

    async def _leave(self) -> None:
        name = self._newest()
        began = time.monotonic()
        stopping = asyncio.create_task(self._fleet.workers[name].process.stop())
        await self._balanced("leave", BALANCE_S, began=began, without={name})
        assert await stopping == 0

    async def _die_and_be_cut_off(self) -> None:
        """One is killed and one is cut off from the database, for longer than a lease: the rest have it all. And a host
        is lost in the middle of a settle, with the lock of a shard in its hand."""
        fleet = self._fleet
        # The second one's clock is right, the third one's is not.
        killed, silenced = [*fleet.living()][-2:]
        node = fleet.workers[silenced]
        async with self._lost_in_a_settle(killed), contextlib.AsyncExitStack() as stack:
            began, at = time.monotonic(), time.time()
            pid = fleet.workers[killed].pid
            fleet.workers[killed].kill()
            self._happened(Fault.KILL, killed, at, (pid,))
            stack.enter_context(cut(node.host, fleet.database_host))
            await self._balanced("death", DEATH_S, began=began, without={silenced, killed})
            await asyncio.sleep(max(0.0, at + 2 * TIMING.lease_s - time.time()))
        healed = time.time()
        self._happened(Fault.CUT_DATABASE, silenced, at)
        # What it began to send while it had the lease arrives a little later at most.
        silent_from = at + TIMING.lease_s + SLACK_S * self._patience
        sent = [a for a in self._witness.arrivals if a.sender == silenced and silent_from < a.at < healed]
        self._broken["sent without a lease"] += map(str, sent)
        await self._balanced("heal", HEAL_S)

    @contextlib.asynccontextmanager
    async def _lost_in_a_settle(self, owner: str) -> AsyncIterator[None]:
        """A connection as workers have it, that locks a shard of ``owner`` and is in a COPY when its host is lost."""
        lost = Connections(self._fleet.dsn, application="lost", size_max=1)
        await lost.open()
        shard = await self._fleet.ask(
            "select min(shard) from shards s join nodes n on n.node_id = s.owner where n.name = $1", owner
        )
        copying = asyncio.Event()

        async def rows() -> AsyncIterator[bytes]:
            copying.set()
            await asyncio.Event().wait()
            yield b""

        async def settle() -> None:
            async with lost.use("settle") as connection, connection.transaction():
                await connection.execute("select from shards where shard = $1 for update", shard)
                await connection.copy_to_table("lost", source=rows())

        async with self._fleet.database() as connection:
            await connection.execute("create table if not exists lost (line text)")
        settling = asyncio.create_task(settle())
        await copying.wait()
        with cut(self._here, self._fleet.database_host):
            yield
        # Whatever became of it: its connection is dead, and may not know it yet.
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
        await lost.close()

    async def _cut_off_from_receivers(self) -> None:
        """It notices that it is its own way out, charges nobody, and the others go on."""
        fleet = self._fleet
        name = next(iter(fleet.living()))
        node = fleet.workers[name]
        known = sum("egress_down" in line for line in node.process.lines)
        began = time.time()
        with cut(node.host, self._here):
            await node.process.until_line("egress_down", count=known + 1, timeout_s=UNTIL_S)
            seen = len(self._witness.arrivals)
            async with asyncio.timeout(UNTIL_S):
                while len(self._witness.arrivals) < seen + 20:
                    await asyncio.sleep(0.05)
            # What was charged before it was known is taken back, and written down with the next settle.
            async with asyncio.timeout(UNTIL_S):
                while await fleet.ask("select exists (select from breakers where state <> 'closed')"):
                    await asyncio.sleep(0.05)
        self._happened(Fault.CUT_RECEIVER, name, began)
        await node.process.until_line("egress_back", count=known + 1, timeout_s=UNTIL_S)

    async def _add_shards(self) -> None:
        """While everything runs, and the tenant is spread over them: `ordered` is judged at the end."""
        fleet, api = self._fleet, self._fleet.apis[0].process
        before = await fleet.ask("select count(*) from shards")
        if before + MORE_SHARDS > SHARDS_MAX:
            return
        added = await command("shards", "add", str(MORE_SHARDS), database_url=fleet.dsn, **SETTINGS)
        assert added.code == 0, added.err
        await self._balanced("shards added", BALANCE_S)
        tenants = await api.call("GET", "/v1/tenants", key=ADMIN_KEY, expect=200)
        path = f"/v1/tenants/{tenants['data'][0]['tenant_id']}"
        await api.call("PATCH", path, {"spread": before + MORE_SHARDS}, key=ADMIN_KEY, expect=200)
        async with asyncio.timeout(UNTIL_S):
            while not await fleet.ask("select exists (select from events where shard >= $1)", before):
                await asyncio.sleep(0.05)
        await api.polled(path, lambda tenant: not tenant["moving"], key=ADMIN_KEY, timeout_s=UNTIL_S)

    def _newest(self) -> str:
        return [*self._fleet.living()][-1]

    def _happened(self, fault: Fault, target: str, began: float, pids: tuple[int, ...] = ()) -> None:
        window = Window(fault, target, began, time.time(), pids)
        self._books.faults.append(window)
        log(str(window))

    async def _balanced(
        self,
        what: str,
        within_s: float,
        *,
        began: float | None = None,
        without: frozenset[str] | set[str] = frozenset(),
    ) -> None:
        """All that live have equal parts, soon enough."""
        began = time.monotonic() if began is None else began
        within_s *= self._patience
        names = self._fleet.living().keys() - without
        try:
            async with asyncio.timeout(began + within_s - time.monotonic()):
                await self._fleet.until_balanced(set(names))
        except TimeoutError:
            self._broken["balance"].append(f"{what}: not balanced within {within_s:g} s")
            await asyncio.wait_for(self._fleet.until_balanced(set(names)), UNTIL_S)
        took_s = time.monotonic() - began
        self._report.took_s[what].append(took_s)
        log(f"{what}: {len(names)} workers have equal parts after {took_s:.1f} s")

    # ---- books ------------------------------------------------------------------------------------------------------

    async def _subscribe(self, ledger: Receiver) -> None:
        self._ledger = ledger
        for name, address in zip(RECEIVERS, self._here.addresses, strict=True):
            filters = [f"{word}.*" for word, owed in PATHS.items() if f"/{name}" in owed]
            await self._endpoint(f"/{name}", address, events=filters)
        await self._endpoint("/ordered", self._here.address, events=["ordered.*"], ordered=True)

    async def _endpoint(self, path: str, address: str, **fields: object) -> None:
        self._ledger.handlers[path] = self._witness.take
        url = f"http://{address}:{self._ledger.port}{path}"
        made = await self._fleet.apis[0].process.endpoint(url, **fields)
        self._ledger.secrets[path] = made["secret"]
        self._endpoints[made["endpoint_id"].removeprefix("ep_")] = path

    async def _drain(self) -> float:
        began = time.monotonic()
        while (owed := await self._fleet.ask(OWED)) and time.monotonic() - began < DRAIN_S_MAX:
            await asyncio.sleep(0.2)
        self._books.waiting = int(owed)
        return time.monotonic() - began

    async def _read_books(self) -> None:
        async with self._fleet.database() as connection:
            books = self._books
            books.stored, books.recorded, books.dead = await written(connection, self._endpoints)
            late = await connection.fetchval(
                "select count(*) from (select fence < lag(fence) over (partition by shard order by settle_no) as back"
                " from progress) p where back"
            )
            # A worker writes down once a second how well endpoints are, and later on a busy machine.
            until = time.monotonic() + HEALTH_S_MAX * self._patience
            while failing := await connection.fetchval(FAILING):
                if time.monotonic() > until:
                    break
                await asyncio.sleep(0.1)
        if late:
            self._broken["fence"].append(f"{late} settles were written by somebody who had lost the shard")
        if failing:
            self._broken["charged"].append(f"{failing} endpoints are said to fail, and all of them are well")
