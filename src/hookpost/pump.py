"""The pump: takes what the brokers have acknowledged over into the journal, partition by partition.

Relies on the store: rows and offset are one transaction behind the shard's fence, so what is done twice is done once,
and a deposed owner writes nothing. Promises: records of a partition are taken over in their order, each once; none is
skipped, but those that can never be stored, which are told and stay in Kafka; whoever was acknowledged as an endpoint
before an event was posted is owed it (the version of the configuration is checked once more, in that transaction). A
client that brings nothing of a partition, though there are records, is not believed: it is read anew.

One loop: what the worker owns is read; what was read is stored; then the worker of this process is woken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol
from uuid import UUID

from hookpost import telemetry
from hookpost.model import show_id
from hookpost.storage.contract import (
    DataRejected,
    FenceLost,
    NewEvent,
    OffsetMoved,
    PumpBatch,
    PumpStore,
    Stale,
    StoreUnavailable,
    TopicReplaced,
)
from hookpost.storage.routes import Routes, remember

# How long a take waits for a first record; what the worker owns is looked at that often.
TAKE_S = 0.1
# Partitions that are stored at the same time: each needs a connection, and the database has two more for the worker.
AT_ONCE = 4
# Waits between tries while the store is away.
RETRY_S = 0.1
RETRY_S_MAX = 1.0
# Times that records are matched anew because a configuration changed under them; then it is their turn again.
STALE_MAX = 10
# Tenants whose routes are remembered.
ROUTES_MAX = 10_000
# How often offsets that were overtaken are removed, the topic gets partitions for new shards and is recognised.
TEND_S = 10.0
# Between two lines about a partition that cannot be read.
TOLD_S = 60.0
# A partition that could not be read is read anew after so long: the client gives up for good what may be there later.
READ_AGAIN_S = 1.0


class TakenRecord(Protocol):
    """A record as the reader brings it."""

    @property
    def partition(self) -> int:
        """Number of its shard."""

    @property
    def offset(self) -> int:
        """Its place there."""

    @property
    def value(self) -> bytes:
        """What was written."""


class JournalReader(Protocol):
    """Reads partitions of the journal."""

    async def assign(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions, too, from these offsets on."""

    async def drop(self, partitions: Iterable[int]) -> None:
        """Read these no more."""

    async def close(self) -> None:
        """End."""

    async def take(self, timeout_s: float) -> tuple[Sequence[TakenRecord], Mapping[int, str]]:
        """What is there, and which partitions cannot be read."""


class _Event(NamedTuple):
    """A record, readable: ``version`` of the configuration that it was matched with."""

    offset: int
    event: NewEvent
    version: int
    accepted_at: float


class Pump:
    """The pump of one worker process: ``await run(stop)``.

    ``owned``: shards and fences as the worker has them now. ``decode`` reads a record: event, version of its tenant's
    configuration, time it was accepted; it raises ValueError for what is none. ``ensure``: let there be so many
    partitions. ``ends``: behind the last record of each of these partitions, as far as it is known.
    """

    def __init__(
        self,
        store: PumpStore,
        reader: JournalReader,
        *,
        owned: Callable[[], Mapping[int, int]],
        decode: Callable[[bytes], tuple[NewEvent, int, float]],
        ensure: Callable[[int], Awaitable[None]],
        ends: Callable[[Iterable[int]], Awaitable[Mapping[int, int]]],
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._reader = reader
        self._owned = owned
        self._decode = decode
        self._ensure = ensure
        self._ends = ends
        self._monotonic = monotonic
        # Of the partitions that are read: the fence they were taken up with, and up to where they are stored.
        self._fences: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self._routes: dict[UUID, Routes] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tend_at = 0.0
        self._told: dict[int, float] = {}
        # When partitions that could not be read are read anew.
        self._again_at: dict[int, float] = {}
        # Where partitions stood of which records waited when that was looked at, and how often it was in vain since.
        self._waited: dict[int, tuple[int, int]] = {}
        self._halted = False
        self._unprepared = False

    async def run(self, stop: asyncio.Event) -> None:
        """Take over until ``stop`` is set."""
        try:
            while not stop.is_set():
                try:
                    await self.follow()
                    await self.once(TAKE_S)
                except StoreUnavailable as error:
                    self._note(error)
                    await asyncio.sleep(RETRY_S_MAX)
        finally:
            await self._reader.close()

    async def once(self, timeout_s: float) -> int:
        """Store what has come, waiting so long for it; returns how many records."""
        records, faults = await self._reader.take(timeout_s)
        if faults:
            self._tell(faults)
            again_at = self._monotonic() + READ_AGAIN_S
            self._again_at.update((p, again_at) for p in faults if p not in self._again_at)
        partitions: dict[int, list[TakenRecord]] = {}
        for record in records:
            partitions.setdefault(record.partition, []).append(record)
        await asyncio.gather(*(self._store_all(p, some) for p, some in partitions.items()))
        return len(records)

    # ---- which partitions -------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Read exactly the partitions of the shards that are owned now. Raises StoreUnavailable."""
        owned = dict(self._owned())
        now = self._monotonic()
        again = [p for p, at in self._again_at.items() if now >= at]
        for partition in again:
            del self._again_at[partition]
        gone = [p for p, fence in self._fences.items() if owned.get(p) != fence or p in again]
        if gone:
            await self._let_go(gone)
        if owned.keys() - self._fences.keys() or now >= self._tend_at:
            await self._tend()
        fresh = owned.keys() - self._fences.keys()
        if not fresh:
            return
        reached = await self._store.pumped_to(fresh)
        starts = {p: reached.get(p, (0, 0.0))[0] for p in fresh}
        await self._reader.assign(starts)
        self._reached.update(starts)
        self._fences.update((p, owned[p]) for p in fresh)

    async def _let_go(self, partitions: Collection[int]) -> None:
        """What was read of them and not stored is the next owner's, or is read again."""
        known = [p for p in partitions if self._fences.pop(p, None) is not None]
        for partition in known:
            del self._reached[partition]
        await self._reader.drop(known)

    async def _tend(self) -> None:
        self._tend_at = self._monotonic() + TEND_S
        for partition in self._fences:
            await self._store.trim_offsets(partition)
        partitions = await self._store.shard_count()
        try:
            await self._ensure(partitions)
        except StoreUnavailable as error:
            # What is there can be read all the same.
            if not self._unprepared:
                telemetry.log("kafka_unprepared", reason=error)
            self._unprepared = True
        else:
            self._unprepared = False
        try:
            await self._store.recognise_topic()
        except TopicReplaced:
            await self._let_go([*self._fences])
            raise
        await self._distrust()

    async def _distrust(self) -> None:
        """Let go of partitions whose records did not come since the last look: whoever brings them has stopped to,
        without a word. Each look in vain doubles the time to the next, as records may be slow to come."""
        ends: Mapping[int, int] = {}
        with suppress(StoreUnavailable):  # brokers that are away are told by whoever reads
            ends = await self._ends([*self._fences])
        waited, self._waited = self._waited, {}
        for partition, reached in self._reached.items():
            if ends.get(partition, 0) > reached:
                before, looks = waited.get(partition, (reached, -1))
                looks = looks + 1 if before == reached else 0
                self._waited[partition] = reached, looks
                if looks and looks & (looks - 1) == 0:
                    telemetry.log("partition_read_anew", shard=partition, records=ends[partition] - reached)
                    self._again_at[partition] = self._monotonic()

    def _tell(self, faults: Mapping[int, str]) -> None:
        for partition, reason in faults.items():
            now = self._monotonic()
            if now >= self._told.get(partition, 0.0):
                self._told[partition] = now + TOLD_S
                telemetry.log("partition_unreadable", shard=partition, reason=reason)
                self._tend_at = 0.0  # perhaps it is another topic

    # ---- storing ----------------------------------------------------------------------------------------------------

    async def _store_all(self, partition: int, records: Sequence[TakenRecord]) -> None:
        """Store records of one partition, however long the store is away, unless the shard is lost meanwhile."""
        end, wait_s = records[-1].offset + 1, RETRY_S
        async with self._slots:
            while (fence := self._fences.get(partition)) is not None and self._owned().get(partition) == fence:
                start = self._reached[partition]
                if start >= end:
                    return
                if records[0].offset > start:
                    break  # of an assignment before this one
                try:
                    events = self._read([record for record in records if record.offset >= start])
                    await self._append(partition, fence, events, end)
                    self._note(None)
                    return
                except FenceLost:
                    break
                except OffsetMoved:
                    # The end of an earlier try was unknown, and it was done.
                    found = await self._store.pumped_to([partition])
                    self._reached[partition] = found.get(partition, (0, 0.0))[0]
                except StoreUnavailable as error:
                    self._note(error)
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, RETRY_S_MAX)
        await self._let_go([partition])

    def _note(self, error: StoreUnavailable | None) -> None:
        """One line when it comes to a halt, one when it goes on."""
        if error is not None and not self._halted:
            telemetry.log("pump_waits", reason=error)
        elif error is None and self._halted:
            telemetry.log("pump_goes_on")
        self._halted = error is not None

    def _read(self, records: Sequence[TakenRecord]) -> list[_Event]:
        events = []
        for record in records:
            try:
                event, version, accepted_at = self._decode(record.value)
            except ValueError as error:
                self._refuse(record.partition, record.offset, error)
            else:
                events.append(_Event(record.offset, event, version, accepted_at))
        return events

    async def _append(self, partition: int, fence: int, events: Sequence[_Event], end: int) -> None:
        """Store these and move the offset to ``end``; what can never be stored is left out, once it stands alone."""
        if not events:
            await self._append_matched(partition, fence, (), end, 0.0)
            return
        try:
            await self._append_matched(partition, fence, events, end, events[-1].accepted_at)
        except DataRejected as error:
            if len(events) == 1:
                self._refuse(partition, events[0].offset, error, events[0].event.event_id)
                await self._append_matched(partition, fence, (), end, events[0].accepted_at)
                return
            middle = len(events) // 2
            await self._append(partition, fence, events[:middle], events[middle].offset)
            await self._append(partition, fence, events[middle:], end)

    async def _append_matched(
        self, partition: int, fence: int, events: Sequence[_Event], end: int, reached_at: float
    ) -> None:
        for _ in range(STALE_MAX):
            batch = await self._matched(partition, fence, events, end, reached_at)
            result = await self._store.pump(batch)
            if isinstance(result, Stale):
                for tenant_id in result.tenants:
                    self._routes.pop(tenant_id, None)
                continue
            self._reached[partition] = end
            telemetry.count("events_taken_over", result)
            await self._wake({*batch.homes})
            return
        raise StoreUnavailable("a tenant's configuration changes too often")

    async def _wake(self, homes: set[int]) -> None:
        ours = homes & self._fences.keys()
        if ours:
            self._store.ring_here(ours)
        if others := homes - ours:
            await self._store.ring(others)

    def _refuse(self, partition: int, offset: int, error: Exception, event_id: UUID | None = None) -> None:
        telemetry.count("records_refused")
        shown = None if event_id is None else show_id("evt", event_id)
        telemetry.log("record_refused", shard=partition, offset=offset, event_id=shown, reason=error)

    # ---- matching anew ----------------------------------------------------------------------------------------------

    async def _matched(
        self, partition: int, fence: int, events: Sequence[_Event], end: int, reached_at: float
    ) -> PumpBatch:
        """A batch of these events as they are owed by the configuration of now. Events of a deleted tenant are gone."""
        known = await self._routes_of(events)
        kept: list[NewEvent] = []
        homes: list[int] = []
        accepted: list[float] = []
        left: set[UUID] = set()
        for each in events:
            tenant_id = each.event.tenant_id
            routes = known.get(tenant_id)
            if routes is None:
                continue
            event, home = each.event, partition
            if each.version != routes.routes.config_version:
                event, home = _matched_anew(each, routes, partition)
                if home == partition and partition in routes.routes.left_behind:
                    left.add(tenant_id)
            kept.append(event)
            homes.append(home)
            accepted.append(each.accepted_at)
        return PumpBatch(
            partition,
            fence,
            self._reached[partition],
            end,
            reached_at,
            kept,
            homes,
            accepted,
            {tenant_id: routes.routes.config_version for tenant_id, routes in known.items()},
            frozenset(left),
        )

    async def _routes_of(self, events: Sequence[_Event]) -> dict[UUID, Routes]:
        """The routes of the events' tenants, each tenant's at one version for all of its events: what other partitions
        load meanwhile is not mixed in, as the store checks one version for all."""
        newest: dict[UUID, int] = {}
        for each in events:
            tenant_id = each.event.tenant_id
            newest[tenant_id] = max(newest.get(tenant_id, 0), each.version)
        found: dict[UUID, Routes] = {}
        for tenant_id, version in newest.items():
            routes = self._routes.get(tenant_id)
            if routes is None or routes.routes.config_version < version:
                routes = await self._load(tenant_id)
            if routes is not None:
                found[tenant_id] = routes
        return found

    async def _load(self, tenant_id: UUID) -> Routes | None:
        self._routes.pop(tenant_id, None)
        loaded = await self._store.load_routes(tenant_id)
        if loaded is None:
            return None
        routes = Routes(loaded)
        remember(self._routes, tenant_id, routes, most=ROUTES_MAX)
        return routes


def _matched_anew(each: _Event, routes: Routes, partition: int) -> tuple[NewEvent, int]:
    """The event as it is owed now, and where it goes: to its own shard if that is still a home for it, or one that new
    events wait for, lest they overtake it."""
    event = each.event
    event.owed = routes.owed_now(event, accepted_at=each.accepted_at)
    shards = routes.shards_for(event.owed)
    if partition in shards or partition in routes.routes.left_behind:
        return event, partition
    return event, shards[event.event_id.int % len(shards)]
