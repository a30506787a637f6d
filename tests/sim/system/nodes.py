"""The processes of a world, composed as app/compose.py composes the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from random import Random
from typing import Any
from uuid import UUID

from hookpost import ingest as ingest_module
from hookpost import worker as worker_module
from hookpost.alerts import Alerts, alert_key
from hookpost.app.clock import DatabaseClock
from hookpost.app.compose import publish
from hookpost.ingest import Ingest, IngestLimits
from hookpost.maintenance import Maintenance, Replays, Rollups, Spreading
from hookpost.policy.spread import Bounds
from hookpost.storage.contract import Channel, DueAlert, StoreUnavailable
from hookpost.storage.memory import alerts as alerts_module
from hookpost.storage.memory import moves as moves_module
from hookpost.worker import Worker, WorkerSettings
from tests.sim.system.loop import Loop, Node
from tests.sim.system.network import Network, Wire
from tests.sim.system.relay import BadRelay
from tests.sim.system.server import Server
from tests.sim.system.trace import Posted

CLOCK_EVERY_S = 5.0
# The part of the API processes that have workers at hand.
RELAYED = 0.8


class Ids:
    """UUIDv7 whose random part comes from the seed."""

    def __init__(self, rng: Random, clock: Callable[[], float]) -> None:
        self._rng = rng
        self._clock = clock

    def uuid7(self, nanoseconds: int | None = None) -> UUID:
        """The next one."""
        ms = int(self._clock() * 1000) if nanoseconds is None else nanoseconds // 1_000_000
        return UUID(int=ms << 80 | 0x7 << 76 | self._rng.getrandbits(12) << 64 | 0b10 << 62 | self._rng.getrandbits(62))

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Let the code mint its ids here: those of the operating system differ from run to run."""
        modules = (worker_module, ingest_module, moves_module, alerts_module)
        before = [module.uuid7 for module in modules]  # type: ignore[attr-defined]
        for module in modules:
            module.uuid7 = self.uuid7  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for module, kept in zip(modules, before, strict=True):
                module.uuid7 = kept  # type: ignore[attr-defined]


class Process:
    """One process: its node, its clock and its connection to the store."""

    def __init__(self, loop: Loop, server: Server, name: str, rng: Random) -> None:
        self.loop = loop
        self.node: Node = loop.add(name)
        # Machines whose clocks are set wrong (I25).
        self.wall_offset_s = rng.choice((0.0, 0.0, -3600.0, 3600.0, 365 * 86_400.0))
        self._boot_s = rng.random() * 1e6
        self.clock = DatabaseClock(
            wall=lambda: server.epoch + loop.time() + self.wall_offset_s, monotonic=lambda: self._boot_s + loop.time()
        )
        self.store = server.client(self.node)
        self.stop = asyncio.Event()
        self.task: asyncio.Task[Any] | None = None

    def start(self, main: Coroutine[Any, Any, Any]) -> None:
        """Run."""
        self.task = self.loop.spawn(self.node, main)


class WorkerProcess(Process):
    """A worker with what is beside it in its process."""

    def __init__(
        self,
        loop: Loop,
        server: Server,
        network: Network,
        name: str,
        rng: Random,
        ids: Ids,
        settings: WorkerSettings,
        keep_days: int,
    ) -> None:
        super().__init__(loop, server, name, rng)
        self.pool = settings.pool
        store, node_id = self.store, ids.uuid7()
        self.worker = Worker(
            store=store,
            payloads=server.payloads,
            sender=Wire(network, self.node, self.clock.now),
            clock=self.clock,
            node_id=node_id,
            name=name,
            settings=settings,
            rng=Random(rng.getrandbits(64)),
        )
        self._tending = [
            Maintenance(store, server.payloads, days_ahead=3, keep_days=keep_days),
            Rollups(store, minutes_kept_s=3600.0, hours_kept_s=86_400.0, monotonic=self.clock.monotonic),
            Replays(store),
            Spreading(store, node_id=node_id, bounds=Bounds(depth=30.0, rate=20.0), monotonic=self.clock.monotonic),
        ]
        self.start(self._run())

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tending = [tasks.create_task(each.run(self.stop)) for each in self._tending]
            await self.worker.run(self.stop)
            for task in tending:
                task.cancel()


class ApiProcess(Process):
    """The ingest path of an API process, and the teller of alerts. ``workers``: those that it may tell what it appends."""

    def __init__(self, loop: Loop, server: Server, name: str, rng: Random, workers: Sequence[WorkerProcess]) -> None:
        super().__init__(loop, server, name, rng)
        self.server = server
        # Nothing is drawn for it from the world's own: what else happens in a seed is as it was without.
        own = Random(repr(rng.getstate()))
        # Where a server has workers alone, or none, whoever appends rings.
        self._relay = BadRelay(loop, own, workers) if own.random() < RELAYED else None
        self.ingest: Ingest | None = None
        self.start(self._run())

    async def _run(self) -> None:
        while True:
            with suppress(StoreUnavailable):
                await self._correct()
                break
        self.ingest = ingest = Ingest(
            self.store,
            self.server.payloads,
            now=self.clock.now,
            limits=IngestLimits(),
            processes=2,
            relay=self._relay,
        )
        async with asyncio.TaskGroup() as tasks:
            followers = [
                tasks.create_task(ingest.follow()),
                tasks.create_task(self._follow_clock()),
                tasks.create_task(Alerts(self.store, {Channel.EVENT: self._tell}).run(self.stop)),
            ]
            await self.stop.wait()
            for task in followers:
                task.cancel()
        await ingest.close()

    async def _tell(self, due: DueAlert) -> None:
        """Our own post."""
        assert self.ingest is not None
        alert, at = due.alert, self.loop.time()
        self.server.trace.add(Posted(at, 0, alert.tenant_id, alert.type, alert.payload, alert_key(due)))
        await publish(self.ingest, due)

    async def _follow_clock(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_EVERY_S)
            with suppress(StoreUnavailable):
                await self._correct()

    async def _correct(self) -> None:
        sent = self.clock.monotonic()
        self.clock.correct(await self.store.ping(), sent=sent, received=self.clock.monotonic())
