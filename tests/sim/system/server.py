"""The database as its clients know it: calls travel, wait, fail before anything is written or after all of it is, and
are lost or carried out when their caller has died. What is committed is noted in the trace.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from hookpost.engine.work import ATTEMPT_COLUMNS, Attempt, ShardSettle
from hookpost.storage.contract import CommitUnknown, StoreUnavailable
from hookpost.storage.memory.payloads import MemoryPayloads
from hookpost.storage.memory.store import MemoryStore
from hookpost.storage.memory.tables import Database
from tests.sim.system.loop import Loop, Node
from tests.sim.system.trace import Attempted, AttemptsLeft, Claimed, Died, Left, Settled, Stored, Trace, Waits

_COLUMN = {name: index for index, name in enumerate(ATTEMPT_COLUMNS)}
# What a call takes at most on a good day, and on a bad one.
QUICK_S, SLOW_S = 0.004, 8.0
# The part of the calls that were on their way when their process died and never come here.
LOST_WITH_CALLER = 0.5


@dataclass(slots=True)
class Faults:
    """The parts of all calls that fail before or after the commit, and that are slow."""

    before: float = 0.0
    after: float = 0.0
    slow: float = 0.0


NONE = Faults()


class Server:
    """One database, its clock and its moods."""

    def __init__(
        self, loop: Loop, rng: Random, trace: Trace, *, shards: int, epoch: float, day_s: float, **options: Any
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.node = loop.add("database")
        self.epoch = epoch
        self.offset_s = 0.0
        self.away_until = 0.0
        self.faults = Faults()
        self.database = Database(shards=shards, clock=self.clock, day_s=day_s)
        self.options = options
        self.payloads = MemoryPayloads()
        # How often each process has asked.
        self.calls: Counter[str] = Counter()
        self._seen_rows: dict[int, int] = {}
        self._seen_settles: dict[int, int] = {}
        self._kept: dict[int, set[int]] = {}
        self._days: dict[int, list[Attempt]] = {}
        self._awaited: asyncio.Future[Node] | None = None
        self._with_deaths = False

    def next_settle(self, *, with_deaths: bool) -> asyncio.Future[Node]:
        """Who asks for the next settle (that buries somebody), the moment it does; of several who wait the last is told."""
        self._awaited, self._with_deaths = self.loop.create_future(), with_deaths
        return self._awaited

    def clock(self) -> float:
        """The database's time."""
        return self.epoch + self.loop.time() + self.offset_s

    def client(self, node: Node) -> Client:
        """A process's store."""
        return Client(self, node, MemoryStore(self.database, pause=self._between, **self.options))

    def operator(self, node: Node) -> MemoryStore:
        """The store of somebody who is told what became of every change: no call is lost."""
        return Client(self, node, MemoryStore(self.database, pause=self._turn, **self.options), reliable=True)  # type: ignore[return-value]

    async def _between(self) -> None:
        """Before each statement others have their turn, or the connection breaks."""
        await self._turn()
        if self.rng.random() < self.faults.before / 2:
            raise StoreUnavailable("the connection broke")

    async def _turn(self) -> None:
        await asyncio.sleep(self.rng.random() * QUICK_S / 4)

    async def call(self, client: Client, name: str, /, *args: Any, **values: Any) -> Any:
        """One call of a client, carried out in the database's own process."""
        self.calls[client.node.name] += 1
        answer: asyncio.Future[Any] = self.loop.create_future()
        carry_out = partial(getattr(client.store, name), *args, **values)
        if name == "settle":
            self._tell(client.node, args[0])
        serving = self._serve(client, name, carry_out, args, answer)
        self.loop.create_task(serving, context=self.node.context)
        return await answer

    def _tell(self, node: Node, parts: Sequence[ShardSettle]) -> None:
        waits = self._awaited is not None and not self._awaited.done()
        if waits and (not self._with_deaths or any(part.dead for part in parts)):
            assert self._awaited is not None
            self._awaited.set_result(node)

    async def _serve(
        self,
        client: Client,
        name: str,
        carry_out: Callable[[], Coroutine[Any, Any, Any]],
        args: Sequence[Any],
        answer: asyncio.Future[Any],
    ) -> None:
        faults = NONE if client.reliable else self.faults
        try:
            await self._travel(client, faults)
            if not client.node.alive and self.rng.random() < LOST_WITH_CALLER:
                return
            self._maybe_fail(faults.before, "the connection was lost", StoreUnavailable)
            result = await carry_out()
            self._note(client.node, name, args, result)
            self._maybe_fail(
                faults.after, "the answer was lost", CommitUnknown if name == "settle" else StoreUnavailable
            )
            await self._travel(client, faults)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
            self._note_left()
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(result)

    async def _travel(self, client: Client, faults: Faults) -> None:
        slow = self.rng.random() < faults.slow
        await asyncio.sleep(self.rng.random() * (SLOW_S if slow else QUICK_S))
        if self.loop.time() < self.away_until:
            await asyncio.sleep(self.away_until - self.loop.time() if client.reliable else 0.1)
            if not client.reliable:
                raise StoreUnavailable("the database is away")

    def _maybe_fail(self, part: float, text: str, error: type[Exception]) -> None:
        if self.rng.random() < part:
            raise error(text)

    # ---- what became of it ------------------------------------------------------------------------------------------

    def _note(self, node: Node, name: str, args: Sequence[Any], result: Any) -> None:
        at = self.loop.time()
        if name == "claim":
            for claimed in result:
                self.trace.add(Claimed(at, node.name, claimed.shard, claimed.fence))
        for shard in self.database.shards.values():
            known = self._seen_rows.get(shard.shard, 0)
            kept = self._kept.setdefault(shard.shard, set())
            for row in shard.journal.behind(known, shard.journal.last_seq):
                kept.add(row.seq)
                self.trace.add(
                    Stored(
                        at, row.shard, row.seq, int(row.kind), row.event_id, row.tenant_id, row.type, row.payload,
                        row.owed, row.generation, row.created_at, row.idempotency_key,
                    )
                )  # fmt: skip
            self._seen_rows[shard.shard] = shard.journal.last_seq
        self._note_left()
        if name in ("settle", "settle_by_row"):
            for part in args[0]:
                self._note_settle(at, node, part)

    def _note_left(self) -> None:
        """What was there before, and is not even on its way out."""
        db, at = self.database, self.loop.time()
        here = (
            {shard.shard: {row.seq for row in shard.journal} for shard in db.shards.values()} if self._fewer() else {}
        )
        for rows in db.detached.values() if here else ():
            for row in rows:
                here[row.shard].add(row.seq)
        for shard, seqs in here.items():
            for seq in sorted(self._kept[shard] - seqs):
                self.trace.add(Left(at, shard, seq))
            self._kept[shard] &= seqs
        for day in self._days.keys() - db.attempts.keys():
            self.trace.add(AttemptsLeft(at, tuple(map(_span, self._days.pop(day)))))
        self._days.update(db.attempts)

    def _fewer(self) -> bool:
        db = self.database
        here = sum(len(shard.journal.rows) for shard in db.shards.values()) + sum(map(len, db.detached.values()))
        return here < sum(map(len, self._kept.values()))

    def _note_settle(self, at: float, node: Node, part: ShardSettle) -> None:
        last = self.database.shards[part.shard].last
        if last is None or self._seen_settles.get(part.shard) == id(last):
            return  # it was committed before, and this is its repeat
        self._seen_settles[part.shard] = id(last)
        progress = part.progress
        self.trace.add(
            Settled(
                at, node.name, part.shard, part.fence, part.settle_no, progress.cursor, progress.read_to,
                progress.open, progress.partial, tuple(map(_attempted, part.attempts)),
                tuple(Waits(c.endpoint_id, c.position, str(c.reason), c.due_at, c.deadline) for c in part.upserts.values()),
                tuple(part.deletes), tuple(part.dropped_lanes),
                tuple(Died(d.event_id, d.endpoint_id, d.position, d.generation, str(d.reason), d.died_at) for d in part.dead),
            )
        )  # fmt: skip


def _attempted(attempt: Attempt) -> Attempted:
    def column(name: str) -> Any:
        return attempt[_COLUMN[name]]

    return Attempted(
        _span(attempt), column("event_id"), column("endpoint_id"), column("tenant_id"),
        column("position"), column("generation"), column("retry_count"), str(column("outcome")),
        None if column("error_code") is None else str(column("error_code")), column("started_at"),
        column("possible_duplicate"),
    )  # fmt: skip


def _span(attempt: Attempt) -> str:
    span: str = attempt[_COLUMN["attempt_id"]].hex[16:]
    return span


class Client:
    """The store of one process, by way of the server."""

    def __init__(self, server: Server, node: Node, store: MemoryStore, *, reliable: bool = False) -> None:
        self.node = node
        self.store = store
        self.reliable = reliable
        self._server = server
        self.wait_for_ring = store.wait_for_ring
        self.ring_here = store.ring_here

    def __getattr__(self, name: str) -> Any:
        return partial(self._server.call, self, name)

    def hang_up(self) -> None:
        """The process is gone."""
        self.store.close()
