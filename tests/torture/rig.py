"""One run: the system under load, faults by the plan, a calm end, and the judge."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.e2e.harness import Receiver, fresh_folder, receiver
from tests.e2e.ports import free_port
from tests.e2e.processes import memory_mb, stopped
from tests.kafka.cluster import Cluster
from tests.torture import network
from tests.torture.books import ALL, OF_KAFKA, Books, Fault, Window
from tests.torture.judge import Timing, Verdict, judge
from tests.torture.network import Way, Wire
from tests.torture.schedule import SUPERVISOR, Planned, flapping, plan
from tests.torture.system import POLL_S, System
from tests.torture.witnesses import Producers, Witness

API_PROCESSES, WORKERS = 2, 2
# Workers apart, and by how many seconds their wall clocks are wrong: more than the five minutes that receivers allow.
SKEWS_S = {"apart-1": 600.0, "apart-2": -600.0}
TIMING = Timing(lease_s=4.0, renew_s=1.2, first_byte_s=2.0, total_timeout_s=3.0)
SETTINGS = {
    "lease_s": f"{TIMING.lease_s:g}", "renew_s": f"{TIMING.renew_s:g}",
    "connect_timeout_s": "1", "first_byte_timeout_s": f"{TIMING.first_byte_s:g}", "total_timeout_s": f"{TIMING.total_timeout_s:g}",
    "total_timeout_max_s": f"{TIMING.total_timeout_s:g}",
    "retry_base_s": "0.5", "retry_cap_s": "4", "retry_max_attempts": "1000", "retry_budget_floor": "100000",
    "breaker_pause_s": "0.5", "breaker_pause_max_s": "3", "shards": "8", "ingest_timeout_s": "0.9",
    "allow_networks": "127.0.0.0/8,10.70.0.0/16",
}  # fmt: skip
TOPIC = "torture"
# What is posted, by the first word of its type, and where it is owed to. One producer each.
PATHS = {"plain": ("/hook",), "flap": ("/flap",), "fan": ("/hook", "/flap"), "ordered": ("/ordered",)}
PRODUCERS = ["plain.a"] * 6 + ["flap.a"] * 2 + ["fan.a"] * 2 + ["ordered.a"]
# The disk of the data: what a run of an hour writes, and small enough for memory.
DISK_MB = 3072
# After the last fault everything must have drained by then. This, and what else is waited for, grows with the patience.
DRAIN_S_MAX = 180.0
# A process that was to be killed and is just being started is waited for so long.
VICTIM_S_MAX = 15.0
STOP_S = 5.0
WATCH_S = 1.0
# No process may ever need more. The most seen is about half of it.
MEMORY_MB_MAX = 400.0


@dataclass(frozen=True, slots=True)
class Options:
    """What to do."""

    seed: int
    seconds: float
    kills: int
    rate: float
    kafka: bool = False
    patience: float = 1.0
    """How often slower than usual the machine may be, as it has other things to do."""


@dataclass(slots=True)
class Report:
    """What came of it."""

    options: Options
    able: frozenset[Fault]
    unable: dict[str, str]
    books: Books
    verdict: Verdict
    answers: Counter[str]
    slowest_s: dict[str, float]
    memory_mb: dict[str, float]
    drained_s: float
    faults: Counter[str] = field(default_factory=Counter)


def abilities(*, isolated: bool, kafka: bool) -> tuple[frozenset[Fault], dict[str, str]]:
    """The faults that this machine lets us make, and why not the others; without Kafka there are none of its own."""
    unable: dict[str, str] = {}
    if not isolated:
        reason = network.why_not() or "not in a namespace of its own: start it by `python -m tests.torture`"
        unable = {str(fault): reason for fault in (Fault.CUT_DATABASE, Fault.CUT_RECEIVER, Fault.DISK_FULL)}
    return frozenset(Fault) - {Fault(name) for name in unable} - (frozenset() if kafka else OF_KAFKA), unable


async def run(options: Options, *, isolated: bool) -> Report:
    """Torture; ``isolated``: this process is in network and mount namespaces of its own."""
    able, unable = abilities(isolated=isolated, kafka=options.kafka)
    async with _place(isolated) as folder:
        with _brokers(folder) if options.kafka else contextlib.nullcontext() as cluster:
            return await _Rig(options, folder, able, unable, isolated, cluster).run()


@contextlib.contextmanager
def _brokers(folder: Path) -> Iterator[Cluster]:
    """Three brokers of Kafka."""
    (folder / "kafka").mkdir()
    cluster = Cluster(folder / "kafka")
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.kill()


@contextlib.asynccontextmanager
async def _place(isolated: bool) -> AsyncIterator[Path]:
    """A folder with a small disk of its own for the data, where we may mount one."""
    folder = fresh_folder()
    disk = folder / "disk"
    disk.mkdir(mode=0o755)
    if isolated:
        network.prepare_machine()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=755", "tmpfs", disk], check=True)
    try:
        yield folder
    finally:
        if isolated:
            subprocess.run(["umount", "--lazy", disk], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def log(text: str) -> None:
    """One line with the time that the books use."""
    print(f"{time.time():.2f} {text}", flush=True)


class _Rig:
    def __init__(
        self,
        options: Options,
        folder: Path,
        able: Collection[Fault],
        unable: dict[str, str],
        isolated: bool,
        cluster: Cluster | None,
    ) -> None:
        self._options, self._folder, self._isolated = options, folder, isolated
        self._cluster = cluster
        journal = {} if cluster is None else {"journal_url": f"kafka://{cluster.servers}/{TOPIC}"}
        self._settings = {**SETTINGS, "stop_s": f"{STOP_S * options.patience:g}", **journal}
        self._able, self._unable = frozenset(able), unable
        self._books = Books(PATHS, ordered=frozenset({"/ordered"}))
        self._memory: dict[str, float] = {}
        # One at a time of the same on the same: the end of one must not end the other.
        self._busy: defaultdict[tuple[Fault, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._brokers = asyncio.Lock()
        self._begun: set[Fault] = set()
        (folder / "logs").mkdir()

    async def run(self) -> Report:
        """Everything, in order."""
        options = self._options
        port = free_port()
        self._system = system = System(
            self._folder / "disk",
            self._folder / "logs",
            api=API_PROCESSES,
            workers=WORKERS,
            port=port,
            settings=self._settings,
            patience=options.patience,
        )
        host = network.RECEIVER_HOST if self._isolated else "127.0.0.1"
        await system.start()
        try:
            if self._isolated:
                await system.listen_on_network()
            system.add_apart(SKEWS_S, islands=self._isolated)
            islands = {a: name for name, island in zip(SKEWS_S, system.islands, strict=False) for a in island.addresses}
            async with receiver(host) as ledger:
                self._witness = Witness(ledger, senders=system.workers, islands=islands)
                self._witness.flapping = {"/flap"}
                paths = await self._subscribe(ledger)
                async with (
                    Producers(("127.0.0.1", port), system.server.key, PRODUCERS, rate=options.rate) as producers,
                    asyncio.TaskGroup() as tasks,
                ):
                    watching = [tasks.create_task(self._flap()), tasks.create_task(self._watch())]
                    await self._torture()
                    self._witness.mood = None
                    watching[0].cancel()
                    log("calm: every fault is over")
                    await producers.stop()
                    drained_s = await self._drain(len(producers.accepted))
                    watching[1].cancel()
                books = self._books
                books.accepted, books.arrivals = producers.accepted, self._witness.arrivals
                books.stored, books.recorded, books.dead = await system.books(paths)
                books.forged = len(ledger.forged)
        finally:
            code = await system.stop()
        return self._report(producers, drained_s, code)

    def _report(self, producers: Producers, drained_s: float, code: int) -> Report:
        books = self._books
        patience = self._options.patience
        if patience > 1:
            books.starved = [
                Window(Fault.STOP, name, at - 2 * TIMING.lease_s, at) for name, at in self._system.lost_leases(SKEWS_S)
            ]
        verdict = judge(books, replace(TIMING, patience=patience))
        if code != 0:
            verdict.violations["bad end"].append(f"the server ended with {code}")
        verdict.violations["gave up"] += self._system.given_up
        for name, peak_mb in self._memory.items():
            if peak_mb > MEMORY_MB_MAX:
                verdict.violations["memory"].append(f"{name} took {peak_mb:.0f} MB")
        if verdict.guilty:
            kept = Path("torture-logs")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(self._folder / "logs", kept)
            shutil.copytree(self._system.server.folder / "postgres" / "log", kept / "postgres")
        return Report(
            self._options, self._able, self._unable, books, verdict, producers.answers, producers.slowest_s,
            self._memory, drained_s, Counter(str(window.fault) for window in books.faults),
        )  # fmt: skip

    async def _subscribe(self, ledger: Receiver) -> dict[str, str]:
        """An endpoint for each path; returns the paths by endpoint id."""
        server, paths = self._system.server, {}
        for path in sorted({path for owed in PATHS.values() for path in owed}):
            events = [f"{word}.*" for word, owed in PATHS.items() if path in owed]
            made = await server.endpoint(ledger.url(path), events=events, ordered=path in self._books.ordered)
            ledger.secrets[path], ledger.handlers[path] = made["secret"], self._witness.take
            paths[made["endpoint_id"].removeprefix("ep_")] = path
        return paths

    async def _drain(self, accepted: int) -> float:
        """Until all that was accepted is stored, and nothing is owed any more; how long it took."""
        began = time.monotonic()
        await self._system.until_answers()
        drain_s_max = DRAIN_S_MAX * self._options.patience
        while (owed := await self._system.owed(accepted)) and time.monotonic() - began < drain_s_max:
            await asyncio.sleep(0.5)
        self._books.waiting = owed
        return time.monotonic() - began

    async def _flap(self) -> None:
        for good_s, mood, bad_s in flapping(self._options.seed):
            await asyncio.sleep(good_s)
            self._witness.mood = mood
            await asyncio.sleep(bad_s)
            self._witness.mood = None

    async def _watch(self) -> None:
        """The most memory that any process of a kind took."""
        system = self._system
        while True:
            for name in (*system.supervised, *system.apart):
                kind = name.partition("-")[0]
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, AssertionError):
                    if (pid := system.pid(name)) is not None:
                        self._memory[kind] = max(self._memory.get(kind, 0.0), memory_mb(pid, peak=False))
            await asyncio.sleep(WATCH_S)

    # ---- faults -----------------------------------------------------------------------------------------------------

    async def _torture(self) -> None:
        options, system = self._options, self._system
        planned = plan(
            options.seed, seconds=options.seconds, kills=options.kills, supervised=system.supervised,
            apart=list(system.apart), able=self._able,
            brokers=[] if self._cluster is None else [f"broker-{broker}" for broker in self._cluster.ports],
        )  # fmt: skip
        began = time.monotonic()
        async with asyncio.TaskGroup() as strikes:
            for each in planned:
                await asyncio.sleep(max(0.0, began + each.at - time.monotonic()))
                if not self._left_out(each):
                    strikes.create_task(self._strike(each))
            await asyncio.sleep(max(0.0, began + options.seconds - time.monotonic()))

    def _left_out(self, planned: Planned) -> bool:
        """Is this one of a kind that there was, while brokers are still starting after another? They take longer for it
        than it is to the next one, and the run would never end."""
        if planned.fault not in OF_KAFKA:
            return False
        known = planned.fault in self._begun
        self._begun.add(planned.fault)
        return known and self._brokers.locked()

    async def _strike(self, planned: Planned) -> None:
        async with self._busy[planned.fault, planned.target]:
            match planned.fault:
                case Fault.KILL:
                    await self._kill(planned.target)
                case Fault.STOP:
                    await self._stop(planned)
                case Fault.POSTGRES:
                    await self._end_postgres(planned)
                case Fault.HANG:
                    await self._hang(planned)
                case Fault.CUT_DATABASE:
                    await self._cut(planned, Wire.DATABASE)
                case Fault.CUT_RECEIVER:
                    await self._cut(planned, Wire.RECEIVER)
                case Fault.DISK_FULL:
                    await self._fill_disk(planned)
                case Fault.BROKER | Fault.LEADER | Fault.BROKERS:
                    await self._kill_brokers(planned)

    def _happened(self, fault: Fault, target: str, began: float, pids: tuple[int, ...] = ()) -> None:
        window = Window(fault, target, began, time.time(), pids)
        self._books.faults.append(window)
        log(str(window))

    async def _kill(self, target: str) -> None:
        if target == SUPERVISOR:
            await self._living(self._system.supervised[0])
            began = time.time()
            for name, killed in self._system.kill_server().items():
                self._happened(Fault.KILL, name, began, (killed,))
        # One that ended at this very moment is not killed: the next one of its name is.
        while target != SUPERVISOR and (pid := await self._living(target)) is not None:
            began = time.time()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self._happened(Fault.KILL, target, began, (pid,))
                return

    async def _living(self, name: str) -> int | None:
        """The process of this name, once there is one; None if there is none for long."""
        deadline = time.monotonic() + VICTIM_S_MAX * self._options.patience
        while (pid := self._system.pid(name)) is None and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        return pid

    async def _stop(self, planned: Planned) -> None:
        pid = await self._living(planned.target)
        if pid is None:
            return
        began = time.time()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(planned.seconds)
            os.kill(pid, signal.SIGCONT)
        self._happened(Fault.STOP, planned.target, began, (pid,))

    async def _end_postgres(self, planned: Planned) -> None:
        """An immediate stop, or kill -9 of the postmaster."""
        began = time.time()
        if (pid := self._system.postmaster()) is not None:
            os.kill(pid, signal.SIGQUIT if int(planned.at) % 2 else signal.SIGKILL)
        await asyncio.sleep(POLL_S)
        await self._system.until_answers()
        self._happened(Fault.POSTGRES, ALL, began)

    async def _hang(self, planned: Planned) -> None:
        began = time.time()
        with contextlib.ExitStack() as frozen:
            if (pid := self._system.postmaster()) is not None:
                frozen.enter_context(stopped(pid))
            await asyncio.sleep(planned.seconds)
        await self._system.until_answers()
        self._happened(Fault.HANG, ALL, began)

    async def _cut(self, planned: Planned, wire: Wire) -> None:
        island = self._system.islands[list(self._system.apart).index(planned.target)]
        fault = Fault.CUT_DATABASE if wire is Wire.DATABASE else Fault.CUT_RECEIVER
        began = time.time()
        island.cut(wire, Way.BOTH if int(planned.at) % 2 else Way.ANSWERS)
        await asyncio.sleep(planned.seconds)
        island.mend(wire)
        self._happened(fault, planned.target, began)

    async def _fill_disk(self, planned: Planned) -> None:
        """Take the last byte of the data's disk, and give all back."""
        began, balloon = time.time(), self._folder / "disk" / "balloon"
        with balloon.open("wb") as file:
            await asyncio.to_thread(_fill, file.fileno())
        await asyncio.sleep(planned.seconds)
        balloon.unlink()
        await self._system.until_answers()
        self._happened(Fault.DISK_FULL, ALL, began)

    async def _kill_brokers(self, planned: Planned) -> None:
        """kill -9 of one broker, of the leader or of all, and after a while start them again."""
        cluster = self._cluster
        assert cluster is not None
        # One fault of brokers at a time: two of three that are down by chance are another one's.
        async with self._brokers:
            match planned.fault:
                case Fault.LEADER:
                    victims = [await asyncio.to_thread(cluster.leader, TOPIC)]
                case Fault.BROKERS:
                    victims = list(cluster.ports)
                case _:
                    victims = [int(planned.target.removeprefix("broker-"))]
            began, pids = time.time(), tuple(cluster.pids[broker] for broker in victims)
            await asyncio.to_thread(cluster.kill, *victims)
            await asyncio.sleep(planned.seconds)
            await asyncio.to_thread(cluster.start, *victims)
            self._happened(planned.fault, "+".join(f"broker-{broker}" for broker in victims), began, pids)


def _fill(fd: int) -> None:
    """Until no byte is left."""
    for size in (2**26, 2**20, 2**12):
        with contextlib.suppress(OSError):
            while True:
                at = os.fstat(fd).st_size
                os.posix_fallocate(fd, at, size)
