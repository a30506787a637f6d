"""The pump alone: what it takes over is matched at the version of the configuration that the store checks (I2)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost.pump import Pump
from hookpost.storage.contract import EndpointFilter, NewEvent, PumpBatch, Stale, TenantRoutes
from tests.patience import PATIENCE_S


@dataclass(frozen=True)
class Record:
    partition: int
    offset: int
    value: bytes


class ScriptedReader:
    """Brings records, all at once, and nothing else."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    async def assign(self, offsets: Mapping[int, int]) -> None:
        pass

    async def drop(self, partitions: Iterable[int]) -> None:
        pass

    async def close(self) -> None:
        pass

    async def take(self, timeout_s: float) -> tuple[Sequence[Record], Mapping[int, str]]:
        taken, self.records = self.records, ()
        return taken, {}


class ScriptedStore:
    """Each tenant has one endpoint, another one with each version; loads of a tenant's routes wait for its gate."""

    def __init__(self, tenants: Collection[UUID]) -> None:
        self.versions = dict.fromkeys(tenants, 1)
        self.endpoints = {(tenant, 1): uuid7() for tenant in tenants}
        self.gates = {tenant: asyncio.Event() for tenant in tenants}
        for gate in self.gates.values():
            gate.set()
        self.asked = {tenant: asyncio.Event() for tenant in tenants}
        self.stored: list[PumpBatch] = []
        self.storing = asyncio.Event()

    def change(self, tenant: UUID) -> None:
        self.versions[tenant] += 1
        self.endpoints[tenant, self.versions[tenant]] = uuid7()

    async def load_routes(self, tenant_id: UUID) -> TenantRoutes:
        version = self.versions[tenant_id]
        self.asked[tenant_id].set()
        await self.gates[tenant_id].wait()
        endpoint = EndpointFilter(self.endpoints[tenant_id, version], ("*",), 64)
        return TenantRoutes(tenant_id, version, (0, 1), 512, (endpoint,))

    async def pump(self, batch: PumpBatch) -> Stale | int:
        if stale := frozenset(t for t, version in batch.versions.items() if version != self.versions[t]):
            return Stale(stale)
        self.stored.append(batch)
        self.storing.set()
        return len(batch.events)

    async def pumped_to(self, shards: Collection[int]) -> dict[int, tuple[int, float]]:
        return {}

    async def trim_offsets(self, shard: int) -> None:
        pass

    async def shard_count(self) -> int:
        return 2

    async def recognise_topic(self) -> None:
        pass

    def ring_here(self, shards: Collection[int]) -> None:
        pass

    async def ring(self, shards: Collection[int] = ()) -> None:
        pass


async def test_all_events_of_a_batch_are_matched_at_the_version_that_is_checked() -> None:
    """While a batch waits for another tenant's routes, those that it has begun with grow old; the pump of another
    partition finds out, and loads newer ones."""
    changing, other = uuid7(), uuid7()
    store = ScriptedStore([changing, other])
    events: dict[bytes, tuple[NewEvent, int, float]] = {}

    def posted(tenant: UUID, name: bytes) -> bytes:
        owed = (store.endpoints[tenant, 1],)
        events[name] = NewEvent(uuid7(), tenant, "a", b"{}", owed), 1, time.time() + 3600.0
        return name

    reader = ScriptedReader([Record(0, 0, posted(changing, b"known"))])
    pump = Pump(
        store,
        reader,
        owned=lambda: {0: 1, 1: 1},
        decode=events.__getitem__,
        ensure=lambda partitions: asyncio.sleep(0),
        ends=no_ends,
        monotonic=time.monotonic,
    )
    await pump.follow()
    await pump.once(0.0)
    store.stored.clear()
    store.storing.clear()

    store.change(changing)
    store.gates[other].clear()
    first = [posted(changing, b"before"), posted(other, b"between"), posted(changing, b"behind")]
    reader.records = [
        *(Record(0, 1 + place, name) for place, name in enumerate(first)),
        Record(1, 0, posted(changing, b"elsewhere")),
    ]
    taking = asyncio.create_task(pump.once(0.0))
    async with asyncio.timeout(PATIENCE_S):
        await store.asked[other].wait()
        await store.storing.wait()  # the other partition, at the newer version
        store.gates[other].set()
        await taking

    owed = {event.event_id: event.owed for batch in store.stored for event in batch.events}
    newest = store.endpoints[changing, 2]
    assert len(owed) == 4
    for name in (b"before", b"behind", b"elsewhere"):
        event, _, _ = events[name]
        assert newest in owed[event.event_id], name


async def no_ends(partitions: Iterable[int]) -> Mapping[int, int]:
    return {}
