"""Clients of Kafka: what writes records, what reads them on, what looks at the tail, and what looks after the topic.

Relies on confluent-kafka (librdkafka), whose calls block or call back in its own threads: each client here has one
thread, and what comes of it is handed to the event loop. Promises: ``write`` returns only when the brokers in sync have
acknowledged every record; nothing is skipped in reading, be it that it is gone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic, OffsetSpec, ResourceType

from hookpost import telemetry
from hookpost.model import minted_at
from hookpost.policy.journal import KafkaAddress
from hookpost.storage.contract import StoreUnavailable

# Records wait so long for others on their way to a broker; they come in groups anyway.
LINGER_MS = 1
# A broker that is away is tried again so often: a cluster that comes back is found within half a second.
RECONNECT_MS_MAX = 500
# How long a thread waits for librdkafka before it looks whether it is to end.
POLL_S = 0.1
# Records that one take brings: what one transaction of the database takes best.
TAKE_MAX = 500
# What lies in memory of each partition that is read, before it is taken.
PREFETCH_KIB = 8 * 1024
# An answer of a broker about offsets or topics.
ASK_S = 5.0
# A look at the tail is given up after so many records or so much time: nobody waits longer for a page.
SEARCH_RECORDS_MAX = 50_000
SEARCH_S_MAX = 2.0
# Copies of each record, and how many must have it before it is acknowledged: any one broker may die.
REPLICATION = 3
IN_SYNC_MIN = 2
# Unread records older than this would be lost, so it is long, and the lag is watched. What was taken over stays as
# long, for a database that has to be restored from yesterday.
RETENTION_MS = 7 * 86_400_000

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Taken:
    """One record of a partition."""

    partition: int
    offset: int
    value: bytes


def _config(address: KafkaAddress, **own: object) -> dict[str, object]:
    return {
        "bootstrap.servers": address.servers,
        "client.id": "hookpost",
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": RECONNECT_MS_MAX,
        "socket.keepalive.enable": True,
        # We tell what happens ourselves, once; librdkafka's lines would go to standard error.
        "log_level": 0,
        **address.options,
        **own,
    }


class _Group:
    """Records of one write: hears of each of them, in the thread that polls, and tells the event loop once."""

    __slots__ = ("error", "future", "left", "loop")

    def __init__(self, size: int, loop: asyncio.AbstractEventLoop) -> None:
        self.left = size
        self.error: KafkaError | None = None
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def __call__(self, error: KafkaError | None, _message: object) -> None:
        if error is not None:
            self.error = error
        self.left -= 1
        if self.left == 0:
            self.loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Writer:
    """Writes records, idempotently, acknowledged by all brokers in sync."""

    def __init__(self, address: KafkaAddress, *, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._producer: Any = None
        self._closed = False
        self._thread = threading.Thread(target=self._poll, name="kafka writer", daemon=True)
        self._lost = False

    def open(self) -> None:
        """Start; brokers need not be there yet."""
        self._producer = self._make()
        self._thread.start()

    def close(self) -> None:
        """Whoever waits has been answered: what is still on its way is not waited for."""
        self._closed = True
        if self._thread.is_alive():
            self._thread.join(5 * POLL_S)

    def _make(self) -> Any:
        return Producer(
            _config(
                self._address,
                **{
                    "acks": "all",
                    "enable.idempotence": True,
                    "linger.ms": LINGER_MS,
                    "message.timeout.ms": max(1, int(self._timeout_s * 1000)),
                    # Else a topic that was made a moment ago, or moves, is unknown for half a minute.
                    "topic.metadata.refresh.fast.interval.ms": 100,
                    "statistics.interval.ms": 0,
                },
            )
        )

    def _poll(self) -> None:
        while not self._closed:
            self._producer.poll(POLL_S)

    async def write(self, partition: int, records: Sequence[tuple[bytes, bytes, int]]) -> None:
        """Write (key, value, time in ms) in their order. Raises StoreUnavailable: then none, some or all of them may be
        there, now or a moment later."""
        if not records:
            return
        group = _Group(len(records), asyncio.get_running_loop())
        topic, produce = self._address.topic, self._producer.produce
        try:
            for key, value, at_ms in records:
                produce(topic, value, key, partition, group, timestamp=at_ms)
        except (KafkaException, BufferError) as error:
            raise StoreUnavailable(f"write to partition {partition}: {_text(error)}") from error
        try:
            async with asyncio.timeout(self._timeout_s):
                await group.future
        except TimeoutError:
            self._note(f"no answer within {self._timeout_s:g} s")
            raise StoreUnavailable("the brokers did not acknowledge in time") from None
        if group.error is not None:
            self._note(group.error.str())
            if group.error.fatal():
                # The session is over, by librdkafka's own judgement; a new one begins with what is written next.
                self._producer = self._make()
            raise StoreUnavailable(f"write to partition {partition}: {group.error.str()}")
        if self._lost:
            self._lost = False
            telemetry.log("kafka_back")

    def _note(self, reason: str) -> None:
        """One line when the brokers go away."""
        if not self._lost:
            self._lost = True
            telemetry.log("kafka_lost", reason=reason)


class Reader:
    """Reads partitions on from given offsets; for one task at a time."""

    def __init__(self, address: KafkaAddress) -> None:
        self._topic = address.topic
        self._consumer: Any = Consumer(
            _config(
                address,
                **{
                    # Offsets lie in the database, so the group is a name that a client must have.
                    "group.id": "hookpost",
                    "enable.auto.commit": False,
                    # Records that are gone must be noticed, not skipped.
                    "auto.offset.reset": "error",
                    "fetch.wait.max.ms": 250,
                    "fetch.error.backoff.ms": 100,
                    "queued.max.messages.kbytes": PREFETCH_KIB,
                    "queued.min.messages": 4 * TAKE_MAX,
                },
            )
        )
        self._thread = ThreadPoolExecutor(1, "kafka reader")

    async def close(self) -> None:
        """End."""
        await _in(self._thread, self._consumer.close)
        self._thread.shutdown(wait=False)

    async def assign(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions, too, from these offsets on."""
        if offsets:
            places = [TopicPartition(self._topic, partition, offset) for partition, offset in offsets.items()]
            await _in(self._thread, partial(self._consumer.incremental_assign, places))

    async def drop(self, partitions: Iterable[int]) -> None:
        """Read these no more."""
        places = [TopicPartition(self._topic, partition) for partition in partitions]
        if places:
            await _in(self._thread, partial(self._consumer.incremental_unassign, places))

    async def take(self, timeout_s: float) -> tuple[list[Taken], dict[int, str]]:
        """What is there, waiting ``timeout_s`` at most for the first record; and partitions that cannot be read, with
        the reason."""
        return await _in(self._thread, partial(self._take, timeout_s))

    def _take(self, timeout_s: float) -> tuple[list[Taken], dict[int, str]]:
        first = self._consumer.poll(timeout_s)
        if first is None:
            return [], {}
        taken: list[Taken] = []
        faults: dict[int, str] = {}
        for message in (first, *self._consumer.consume(TAKE_MAX - 1, 0)):
            error = message.error()
            if error is None:
                taken.append(Taken(message.partition(), message.offset(), message.value()))
            elif message.partition() is not None and message.partition() >= 0:
                faults[message.partition()] = error.str()
        return taken, faults


class Tail:
    """Looks for single records in what nobody has taken over yet, and how much that is."""

    def __init__(self, address: KafkaAddress) -> None:
        self._address = address
        self._consumer: Any = None
        self._admin: Any = None
        self._thread = ThreadPoolExecutor(1, "kafka tail")

    async def close(self) -> None:
        """End."""
        if self._consumer is not None:
            await _in(self._thread, self._consumer.close)
        self._thread.shutdown(wait=False)

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Behind the last record of each of these partitions; of those that there are. Raises StoreUnavailable."""
        return await self._ask("ask for the ends", partial(self._ends, list(partitions)))

    def _ends(self, partitions: list[int]) -> dict[int, int]:
        places = {TopicPartition(self._address.topic, each): OffsetSpec.latest() for each in partitions}
        if not places:
            return {}
        found = {}
        for place, answer in self._made_admin().list_offsets(places, request_timeout=ASK_S).items():
            try:
                found[place.partition] = answer.result(ASK_S).offset
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
        return found

    async def find(self, event_id: UUID, starts: Mapping[int, int]) -> bytes | None:
        """The record of this event in these partitions, each from an offset on. Raises StoreUnavailable, also when the
        tail is too long to be looked through."""
        return await self._ask("look for an event", partial(self._find, event_id, dict(starts)))

    def _find(self, event_id: UUID, starts: dict[int, int]) -> bytes | None:
        ends = self._ends(list(starts))
        behind = {p: start for p, start in starts.items() if ends.get(p, 0) > start}
        if not behind:
            return None
        topic, consumer, key = self._address.topic, self._made_consumer(), event_id.bytes
        at_ms = int(minted_at(event_id) * 1000)
        places = consumer.offsets_for_times([TopicPartition(topic, p, at_ms) for p in behind], timeout=ASK_S)
        # Where all is older than the event it is not; its record carries its id's time.
        first = {place.partition: max(place.offset, behind[place.partition]) for place in places if place.offset >= 0}
        until = {p: ends[p] for p, start in first.items() if start < ends[p]}
        if not until:
            return None
        consumer.assign([TopicPartition(topic, p, first[p]) for p in until])
        deadline, looked = time.monotonic() + SEARCH_S_MAX, 0
        try:
            while until:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or looked > SEARCH_RECORDS_MAX:
                    raise StoreUnavailable("too much waits in Kafka to look an event up in it: try again later")
                message = consumer.poll(left_s)
                if message is None or message.error() is not None:
                    continue
                looked += 1
                if message.key() == key:
                    value: bytes = message.value()
                    return value
                if message.offset() + 1 >= until.get(message.partition(), 0):
                    until.pop(message.partition(), None)
        finally:
            consumer.unassign()
        return None

    async def check(self, timeout_s: float) -> None:
        """Raises StoreUnavailable when no broker answers, or the topic cannot be used."""
        await self._ask("reach the brokers", partial(self._check, timeout_s))

    def _check(self, timeout_s: float) -> None:
        found = self._made_admin().list_topics(self._address.topic, timeout=timeout_s)
        if not _partitions(found, self._address.topic):
            raise StoreUnavailable(f"Kafka has no topic {self._address.topic}: `hookpost migrate` makes it")

    async def ensure_topic(self, partitions: int) -> None:
        """Make the topic if there is none, or give it so many partitions. Raises StoreUnavailable."""
        await self._ask("prepare the topic", partial(self._ensure, partitions))

    def _ensure(self, partitions: int) -> None:
        admin, topic = self._made_admin(), self._address.topic
        found = admin.list_topics(timeout=ASK_S)
        there = _partitions(found, topic)
        if there == 0:
            copies = min(REPLICATION, len(found.brokers))
            in_sync = IN_SYNC_MIN if copies >= REPLICATION else 1
            config = {
                "min.insync.replicas": str(in_sync),
                "retention.ms": str(RETENTION_MS),
                "cleanup.policy": "delete",
            }
            fresh = NewTopic(topic, partitions, copies, config=config)
            if _settled(admin.create_topics([fresh], request_timeout=ASK_S), KafkaError.TOPIC_ALREADY_EXISTS):
                telemetry.log(
                    "kafka_topic_created", topic=topic, partitions=partitions, replication=copies, in_sync=in_sync
                )
        elif there < partitions:
            more = NewPartitions(topic, partitions)
            if _settled(admin.create_partitions([more], request_timeout=ASK_S), KafkaError.INVALID_PARTITIONS):
                telemetry.log("kafka_topic_grown", topic=topic, partitions=partitions)

    async def weakness(self) -> str | None:
        """Why the topic may lose what was acknowledged when one broker is lost for good, or None."""
        return await self._ask("look at the topic", self._weakness)

    def _weakness(self) -> str | None:
        admin, topic = self._made_admin(), self._address.topic
        found = admin.list_topics(topic, timeout=ASK_S).topics[topic]
        copies = min((len(each.replicas) for each in found.partitions.values()), default=0)
        asked = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)], request_timeout=ASK_S)
        [config] = [answer.result(ASK_S) for answer in asked.values()]
        in_sync = int(config["min.insync.replicas"].value)
        if copies >= REPLICATION and in_sync >= IN_SYNC_MIN and in_sync < copies:
            return None
        return (
            f"replication {copies}, min.insync.replicas {in_sync}; {REPLICATION} and {IN_SYNC_MIN} outlive any broker"
        )

    async def _ask(self, doing: str, ask: Callable[[], _T]) -> _T:
        try:
            return await _in(self._thread, ask)
        except KafkaException as error:
            raise StoreUnavailable(f"{doing}: {_text(error)}") from error
        except TimeoutError as error:
            raise StoreUnavailable(f"{doing}: no answer") from error

    def _made_admin(self) -> Any:
        if self._admin is None:
            self._admin = AdminClient(_config(self._address))
        return self._admin

    def _made_consumer(self) -> Any:
        if self._consumer is None:
            own = {"group.id": "hookpost-tail", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
            self._consumer = Consumer(_config(self._address, **own, **{"fetch.wait.max.ms": 50}))
        return self._consumer


def _partitions(found: Any, topic: str) -> int:
    known = found.topics.get(topic)
    return 0 if known is None or known.error is not None else len(known.partitions)


def _settled(answers: Mapping[str, Any], done_before: int) -> bool:
    """Was it this call that did it? Another process may have been faster."""
    for answer in answers.values():
        try:
            answer.result(ASK_S)
        except KafkaException as error:
            if error.args[0].code() != done_before:
                raise
            return False
    return True


def _text(error: BaseException) -> str:
    cause = error.args[0] if error.args else error
    return cause.str() if isinstance(cause, KafkaError) else str(error)


async def _in(thread: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(thread, work)
