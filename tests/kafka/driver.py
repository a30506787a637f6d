"""The journal in Kafka as a driver of the storage suite: PostgreSQL, with every append by way of Kafka and the pump."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost.policy.journal import KafkaAddress
from hookpost.pump import Pump
from hookpost.storage.contract import Appended, NewEvent, Stale
from hookpost.storage.kafka.clients import Reader
from hookpost.storage.kafka.record import decode
from hookpost.storage.kafka.store import KafkaStore
from hookpost.storage.postgres.vault import Vault
from tests.conftest import KEYS
from tests.storage.driver import PATIENCE_S, SHARDS, Postgres

LEASE_S = 600.0


class PumpedStore(KafkaStore):
    """A store whose append returns once its events were taken over: what the suite appends it looks for at once."""

    def __init__(self, driver: Kafka, **options: Any) -> None:
        super().__init__(driver.dsn, address=driver.address, vault=Vault(KEYS), application="test", **options)
        self._driver = driver

    async def append(
        self, shard: int, events: Sequence[NewEvent], versions: Mapping[UUID, int]
    ) -> list[Appended] | Stale:
        answers = await super().append(shard, events, versions)
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
        await self.store.prepare_topic()
        await self.own()
        self.pump, self.reader = self.new_pump()

    async def own(self) -> None:
        """Take all shards for a new owner."""
        await self.store.leave(self.node_id)
        self.node_id = uuid7()
        await self.store.register(self.node_id, pool="default", name="test", lease_s=LEASE_S)
        claimed = await self.store.claim(self.node_id, pool="default", limit=SHARDS, lease_s=LEASE_S)
        self.owned = {each.shard: each.fence for each in claimed}

    def new_pump(self) -> tuple[Pump, Reader]:
        """A pump of the present owner."""
        reader = Reader(self.address)
        self._readers.append(reader)
        owned = dict(self.owned)
        pump = Pump(
            self.store,
            reader,
            owned=lambda: owned,
            decode=decode,
            ensure=self.store.tail.ensure_topic,
            monotonic=time.monotonic,
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
            **{"append_timeout_s": PATIENCE_S, "vault": Vault(KEYS), "application": "test", **options},
        )
        await store.open()
        self._kafka_stores.append(store)
        return store

    async def pump_dry(self, pump: Pump | None = None) -> None:
        """Take over until nothing waits in Kafka."""
        pump = pump or self.pump
        async with self._pumping, asyncio.timeout(PATIENCE_S):
            await pump.follow()
            while any((await self.store.lag()).values()):
                await pump.once(0.2)
                await pump.follow()

    async def close(self) -> None:
        for reader in self._readers:
            await reader.close()
        for store in self._kafka_stores:
            await store.close()
        await super().close()
