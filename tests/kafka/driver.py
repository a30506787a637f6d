"""The journal in Kafka as a driver of the storage suite: PostgreSQL, with every append by way of Kafka and the pump."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost.policy.journal import KafkaAddress
from hookpost.pump import Pump
from hookpost.storage.contract import Appended, NewEvent, Place, Stale
from hookpost.storage.kafka.clients import Patience, Reader
from hookpost.storage.kafka.record import decode
from hookpost.storage.kafka.store import KafkaStore
from hookpost.storage.postgres.vault import Vault
from tests.conftest import KEYS
from tests.storage.driver import PATIENCE_S, SHARDS, Postgres, persist

LEASE_S = 600.0
# A slow machine fails no test: what a store gives up after seconds in production, it waits for here.
PATIENT = Patience(
    answer_s=PATIENCE_S,
    heard_s=PATIENCE_S,
    search_s=PATIENCE_S,
    taken_over_s=PATIENCE_S,
    figures_s=PATIENCE_S,
    outdated_s=PATIENCE_S,
)
# How long one take waits for a record; what is waited for comes in one of many.
TAKE_S = 0.2


class PumpedStore(KafkaStore):
    """A store whose append returns once its events were taken over: what the suite appends it looks for at once."""

    def __init__(self, driver: Kafka, **options: Any) -> None:
        options = {"vault": Vault(KEYS), "application": "test", "patience": PATIENT, **options}
        super().__init__(driver.dsn, address=driver.address, **options)
        self._driver = driver

    async def append(
        self,
        shard: int | Sequence[int],
        events: Sequence[NewEvent],
        versions: Mapping[UUID, int],
        placed: Callable[[Place], None] | None = None,
    ) -> list[Appended] | Stale:
        answers = await super().append(shard, events, versions, placed)
        await self._driver.pump_dry()
        return answers


class Kafka(Postgres):
    """PostgreSQL behind Kafka, and one worker's pump, which runs only when it is asked to."""

    def __init__(self, dsn: str, address: KafkaAddress) -> None:
        super().__init__(dsn)
        self.address = address
        self.owned: dict[int, int] = {}
        self.node_id = uuid7()
        self._pumping = asyncio.Lock()
        self._readers: list[Reader] = []
        self._kafka_stores: list[KafkaStore] = []

    async def prepare(self) -> None:
        """Make the topic, own all shards, and have a pump."""
        self.store = await self.open_kafka()
        await persist(self.store.prepare_topic)
        await self.own()
        self.pump, self.reader = self.new_pump()

    async def own(self) -> None:
        """Take all shards for a new owner."""
        await self.store.leave(self.node_id)
        self.node_id = uuid7()
        await self.store.register(self.node_id, pool="default", name="test", lease_s=LEASE_S)
        claimed = await self.store.claim(self.node_id, pool="default", limit=SHARDS, lease_s=LEASE_S)
        self.owned = {each.shard: each.fence for each in claimed}

    def new_pump(
        self,
        owned: dict[int, int] | None = None,
        *,
        ensure: Callable[[int], Awaitable[None]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> tuple[Pump, Reader]:
        """A pump of the present owner, of what it owns now if that is not to change."""
        reader = Reader(self.address, heard_s=PATIENCE_S)
        self._readers.append(reader)
        owned = dict(self.owned) if owned is None else owned
        pump = Pump(
            self.store,
            reader,
            owned=lambda: owned,
            decode=decode,
            ensure=ensure or self.store.tail.ensure_topic,
            ends=self.store.tail.ends_now,
            monotonic=monotonic,
        )
        return pump, reader

    async def open(self, **options: Any) -> PumpedStore:
        store = PumpedStore(self, **{"append_timeout_s": PATIENCE_S, **options})
        await store.open()
        self._kafka_stores.append(store)
        return store

    async def open_kafka(self, **options: Any) -> KafkaStore:
        """A store as an API process has it: an append is answered when the brokers have it."""
        store = KafkaStore(
            self.dsn,
            address=self.address,
            **{
                "append_timeout_s": PATIENCE_S,
                "vault": Vault(KEYS),
                "application": "test",
                "patience": PATIENT,
                **options,
            },
        )
        await store.open()
        self._kafka_stores.append(store)
        return store

    async def pump_dry(self, pump: Pump | None = None) -> None:
        """Take over until nothing waits in Kafka."""
        pump = pump or self.pump
        async with self._pumping, asyncio.timeout(2 * PATIENCE_S):
            await persist(pump.follow)
            while await self._waits():
                await pump.once(TAKE_S)
                await persist(pump.follow)

    async def _waits(self) -> bool:
        """Also while a broker has not heard yet of a partition that was made a moment ago."""
        lag = await persist(self.store.lag)
        return any(lag.values()) or len(lag) < await self.store.shard_count()

    async def take_over(self, pump: Pump) -> None:
        """Let this pump take what comes next, however long that takes to come."""
        async with self._pumping, asyncio.timeout(PATIENCE_S):
            while not await pump.once(TAKE_S):
                pass

    async def close(self) -> None:
        for reader in self._readers:
            await reader.close()
        for store in self._kafka_stores:
            await store.close()
        await super().close()
