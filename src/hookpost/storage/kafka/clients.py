"""Clients of Kafka: what writes records, what reads them on, what looks at the tail, and what looks after the topic.

Relies on confluent-kafka (librdkafka), whose calls block or call back in its own threads: each client here has one
thread, and what comes of it is handed to the event loop. Promises: ``write`` returns only when the brokers in sync have
acknowledged every record; nothing is skipped in reading, be it that it is gone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic, OffsetSpec, ResourceType

from hookpost import telemetry
from hookpost.model import minted_at
from hookpost.policy.journal import IN_SYNC_MIN, REPLICATION, KafkaAddress, copies
from hookpost.storage.contract import StoreUnavailable
from hookpost.storage.kafka.record import BATCH_BYTES_MAX

# Records wait so long for others on their way to a broker; they come in groups anyway.
LINGER_MS = 1
# A broker that is away is tried again so often: a cluster that comes back is found within half a second.
RECONNECT_MS_MAX = 500
# How often a client looks whether the topic has got partitions for new shards; librdkafka's own is five minutes.
GROWN_LOOK_MS = 5_000
# Whoever needs a partition now that has just been made, or changes its leader, looks again so often.
AGAIN_S = 0.05
# How long a thread waits for librdkafka before it looks whether it is to end.
POLL_S = 0.1
# Records that one take brings: what one transaction of the database takes best.
TAKE_MAX = 500
# What lies in memory of all partitions that are read, before it is taken: no batch is much larger.
PREFETCH_KIB = 8 * 1024
# With so much in memory nothing is fetched for so long. librdkafka's own, a second, holds a partition to the few
# thousand records that it takes at a time.
FULL_WAIT_MS = 10
# A look at the tail is given up after so many records (and some time, see Patience): nobody waits longer for a page.
SEARCH_RECORDS_MAX = 50_000
# Unread records older than this would be lost, so it is long, and the lag is watched. What was taken over stays as
# long, for a database that has to be restored from yesterday.
RETENTION_MS = 7 * 86_400_000

# A broker that has not heard for so long of a partition is taken at its word: that others have made one it hears within
# milliseconds as a rule, and on a crowded machine within some hundred.
HEARD_S = 1.0
# Of a partition that is not there; by the client's own (with an underscore) it may have been made since it last asked.
ABSENT = (KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a store waits for what may be slow, in seconds."""

    answer_s: float = 5.0
    """Of a broker, about offsets or topics."""
    heard_s: float = HEARD_S
    """Until a broker that does not know of a partition is believed that there is none."""
    search_s: float = 2.0
    """A look at the tail for one event."""
    taken_over_s: float = 2.0
    """A request about an event that waits in Kafka waits with it: a living owner takes it over in milliseconds."""
    figures_s: float = 0.5
    """Of a broker, for a page of figures, twice: the page has two seconds, and must tell brokers that are away from a
    database that is."""
    outdated_s: float = 0.1
    """The database's answer about versions, which takes a millisecond: a request does not wait longer for it than for
    brokers."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One record of a partition."""

    partition: int
    offset: int
    value: bytes


class _Refusals:
    """Hears why a client is not let in: to whoever asks, it says no more than that time is up. Holds no secret."""

    __slots__ = ("_user", "reason")

    def __init__(self, address: KafkaAddress) -> None:
        self._user = address.options.get("sasl.username")
        self.reason: str | None = None

    def __call__(self, error: KafkaError) -> None:
        match error.code():
            case KafkaError._AUTHENTICATION:
                self.reason = f"the brokers refuse the user {self._user}: check user, password and mechanism"
            case KafkaError._SSL:
                self.reason = f"TLS with the brokers fails: check ca_file and that this port speaks it ({error.str()})"


def _config(address: KafkaAddress, refusals: _Refusals, **own: object) -> dict[str, object]:
    return {
        "error_cb": refusals,
        "bootstrap.servers": address.servers,
        "client.id": "hookpost",
        # Else brokers make a topic for whoever asks for it, by rules of their own: with one copy, as a rule.
        "allow.auto.create.topics": False,
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
        self._refusals = _Refusals(address)
        # Partitions that the producer knows of.
        self._partitions = 0

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
                self._refusals,
                **{
                    "acks": "all",
                    "enable.idempotence": True,
                    "linger.ms": LINGER_MS,
                    "message.max.bytes": BATCH_BYTES_MAX,
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
        topic = self._address.topic
        try:
            async with asyncio.timeout(self._timeout_s):
                if partition >= self._partitions:
                    await self._look(partition)
                produce = self._producer.produce
                for key, value, at_ms in records:
                    produce(topic, value, key, partition, group, timestamp=at_ms)
                await group.future
        except (KafkaException, BufferError) as error:
            self._forget(error.args[0] if isinstance(error, KafkaException) else None)
            raise self._lose(_text(error), f"write to partition {partition}: {_text(error)}") from error
        except TimeoutError:
            reason = f"no answer within {self._timeout_s:g} s"
            raise self._lose(reason, "the brokers did not acknowledge in time") from None
        if group.error is not None:
            if group.error.fatal():
                # The session is over, by librdkafka's own judgement; a new one begins with what is written next.
                self._producer, self._partitions = self._make(), 0
            self._forget(group.error)
            raise self._lose(group.error.str(), f"write to partition {partition}: {group.error.str()}")
        self._refusals.reason = None
        if self._lost:
            self._lost = False
            telemetry.log("kafka_back")

    async def _look(self, partition: int) -> None:
        """Let the producer look at the topic: it has been made or given partitions for new shards since the last time.
        A broker hears of them a moment after they were made, so it is asked again for half of an append's time.
        Raises StoreUnavailable, KafkaException."""
        loop = asyncio.get_running_loop()
        look = partial(self._producer.list_topics, self._address.topic, timeout=self._timeout_s)
        until = loop.time() + self._timeout_s / 2
        while True:
            found = await loop.run_in_executor(None, look)
            self._partitions = _partitions(found, self._address.topic)
            if partition < self._partitions:
                return
            if loop.time() >= until:
                raise StoreUnavailable(
                    f"topic {self._address.topic} has no partition {partition} yet: a worker makes it"
                )
            await asyncio.sleep(AGAIN_S)

    def _forget(self, error: KafkaError | None) -> None:
        """A topic that was made anew may have fewer partitions: what is written next looks first."""
        if error is not None and error.code() in ABSENT:
            self._partitions = 0

    def _lose(self, reason: str, text: str) -> StoreUnavailable:
        """What to raise; one line when the brokers go away."""
        refused = self._refusals.reason
        if not self._lost:
            self._lost = True
            telemetry.log("kafka_lost", reason=refused or reason)
        return StoreUnavailable(refused or text)


class Reader:
    """Reads partitions on from given offsets; for one task at a time. ``heard_s``: as in Patience."""

    def __init__(self, address: KafkaAddress, *, heard_s: float = HEARD_S) -> None:
        self._topic = address.topic
        self._heard_s = heard_s
        self._refusals = _Refusals(address)
        self._consumer: Any = Consumer(
            _config(
                address,
                self._refusals,
                **{
                    # Offsets lie in the database, so the group is a name that a client must have.
                    "group.id": "hookpost",
                    "enable.auto.commit": False,
                    # Records that are gone must be noticed, not skipped.
                    "auto.offset.reset": "error",
                    "fetch.wait.max.ms": 250,
                    "fetch.error.backoff.ms": 100,
                    "fetch.queue.backoff.ms": FULL_WAIT_MS,
                    "topic.metadata.refresh.interval.ms": GROWN_LOOK_MS,
                    "queued.max.messages.kbytes": PREFETCH_KIB,
                    "queued.min.messages": 4 * TAKE_MAX,
                },
            )
        )
        self._thread = ThreadPoolExecutor(1, "kafka reader")
        # Partitions that the consumer knows of.
        self._partitions = 0

    async def close(self) -> None:
        """End."""
        await _in(self._thread, self._consumer.close)
        self._thread.shutdown(wait=False)

    async def assign(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions, too, from these offsets on."""
        if offsets:
            await _asked("read partitions", self._thread, partial(self._assign, offsets))

    def _assign(self, offsets: Mapping[int, int]) -> None:
        """A consumer calls a partition unreadable that it has not heard of, and looks for it GROWN_LOOK_MS later; so it
        is let look before. One that is not there is assigned all the same: it may be made yet."""
        until, last = time.monotonic() + self._heard_s, max(offsets)
        while last >= self._partitions and (left_s := until - time.monotonic()) > 0:
            try:
                self._partitions = _partitions(self._consumer.list_topics(self._topic, timeout=left_s), self._topic)
            except KafkaException:
                break  # brokers that are away are waited for by whoever takes
            if last >= self._partitions:
                time.sleep(AGAIN_S)
        # A drop before this may have failed, and one that is read already is refused.
        self._drop(offsets)
        places = [TopicPartition(self._topic, partition, offset) for partition, offset in offsets.items()]
        self._consumer.incremental_assign(places)

    async def drop(self, partitions: Iterable[int]) -> None:
        """Read these no more, as far as they are read."""
        known = list(partitions)
        if known:
            await _asked("leave partitions", self._thread, partial(self._drop, known))

    def _drop(self, partitions: Collection[int]) -> None:
        places = [place for place in self._consumer.assignment() if place.partition in partitions]
        if places:
            self._consumer.incremental_unassign(places)

    async def take(self, timeout_s: float) -> tuple[list[Taken], dict[int, str]]:
        """What is there, waiting ``timeout_s`` at most for the first record; and partitions that cannot be read, with
        the reason. Raises StoreUnavailable when the brokers do not let us in."""
        return await _asked("read", self._thread, partial(self._take, timeout_s))

    def _take(self, timeout_s: float) -> tuple[list[Taken], dict[int, str]]:
        first = self._consumer.poll(timeout_s)
        if first is None:
            refused, self._refusals.reason = self._refusals.reason, None
            if refused is not None:
                raise StoreUnavailable(refused)
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

    def __init__(self, address: KafkaAddress, patience: Patience) -> None:
        self._address = address
        self._patience = patience
        self._refusals = _Refusals(address)
        self._consumer: Any = None
        self._admin: Any = None
        self._thread = ThreadPoolExecutor(1, "kafka tail")

    async def close(self) -> None:
        """End."""
        if self._consumer is not None:
            await _in(self._thread, self._consumer.close)
        self._thread.shutdown(wait=False)

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Behind the last record of each of these partitions that brokers know of. Raises StoreUnavailable."""
        return await self._ask("ask for the ends", partial(self._ends, list(partitions), heard_s=0.0))

    async def ends_now(self, partitions: Iterable[int]) -> dict[int, int]:
        """The same, of those that have a leader who says so when asked once. Raises StoreUnavailable."""
        known = list(partitions)
        return await self._ask("ask for the ends", lambda: self._ends_once(known)[0])

    def _ends(self, partitions: list[int], *, heard_s: float) -> dict[int, int]:
        """Partitions that the brokers do not know of are looked for anew for ``heard_s``, and left out then."""
        start = time.monotonic()
        while True:
            found, failed = self._ends_once(partitions)
            if not failed and (len(found) == len(partitions) or time.monotonic() >= start + heard_s):
                return found
            _again(start + self._patience.answer_s, failed)

    def _ends_once(self, partitions: list[int]) -> tuple[dict[int, int], list[KafkaError]]:
        """The ends of those partitions that there are, and why some of these have none.

        Asked for one that is not there, or has no leader, the client finds no leader for any of them, when time is up.
        """
        there = self._look_anew(self._made_admin())
        known = [each for each in partitions if each in there]
        led = [each for each in known if there[each].leader >= 0]
        found: dict[int, int] = {}
        failed = [KafkaError(KafkaError.LEADER_NOT_AVAILABLE)] if len(led) < len(known) else []
        if not led:
            return found, failed
        places = {TopicPartition(self._address.topic, each): OffsetSpec.latest() for each in led}
        for place, answer in self._made_admin().list_offsets(places, request_timeout=self._patience.answer_s).items():
            try:
                found[place.partition] = answer.result(self._patience.answer_s).offset
            except KafkaException as error:
                failed.append(error.args[0])
        return found, failed

    def _firsts(self, partitions: Iterable[int], at_ms: int) -> dict[int, int]:
        """The first record of each of these that is not older than this; none of those that hold none."""
        consumer, until = self._made_consumer(), time.monotonic() + self._patience.answer_s
        wanted = [TopicPartition(self._address.topic, each, at_ms) for each in partitions]
        while True:
            self._look_anew(consumer)
            try:
                places = consumer.offsets_for_times(wanted, timeout=self._patience.answer_s)
                failed = [place.error for place in places if place.error is not None]
            except KafkaException as error:
                failed = [error.args[0]]
            if not failed:
                return {place.partition: place.offset for place in places if place.offset >= 0}
            _again(until, failed)

    def _look_anew(self, client: Any) -> Mapping[int, Any]:
        """The topic's partitions. A client takes what it remembers for an answer: how many there were up to a quarter
        of an hour ago, and who led them."""
        return _described(client.list_topics(self._address.topic, timeout=self._patience.answer_s), self._address.topic)

    async def find(self, event_id: UUID, starts: Mapping[int, int]) -> bytes | None:
        """The record of this event in these partitions, each from an offset on. Raises StoreUnavailable, also when the
        tail is too long to be looked through, or a partition cannot be looked at."""
        return await self._ask("look for an event", partial(self._find, event_id, dict(starts)))

    def _find(self, event_id: UUID, starts: dict[int, int]) -> bytes | None:
        ends = self._ends(list(starts), heard_s=self._patience.heard_s)
        found = self._search(event_id, {p: untaken(starts[p], end)[0] for p, end in ends.items()}, ends)
        absent = starts.keys() - ends.keys()
        if found is None and absent:
            # Others may have written to it: that a broker has not heard of it does not say that the event is not there.
            raise StoreUnavailable(f"topic {self._address.topic} has no partition {min(absent)} yet: a worker makes it")
        return found

    def _search(self, event_id: UUID, starts: dict[int, int], ends: dict[int, int]) -> bytes | None:
        behind = [p for p, start in starts.items() if start < ends[p]]
        if not behind:
            return None
        topic, consumer, key = self._address.topic, self._made_consumer(), event_id.bytes
        at_ms = int(minted_at(event_id) * 1000)
        # Where all is older than the event it is not; its record carries its id's time.
        first = {p: max(offset, starts[p]) for p, offset in self._firsts(behind, at_ms).items()}
        until = {p: ends[p] for p, start in first.items() if start < ends[p]}
        if not until:
            return None
        consumer.assign([TopicPartition(topic, p, first[p]) for p in until])
        deadline, looked = time.monotonic() + self._patience.search_s, 0
        trouble: KafkaError | None = None
        try:
            while until:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or looked > SEARCH_RECORDS_MAX:
                    why = "" if trouble is None else f" ({trouble.str()})"
                    raise StoreUnavailable(
                        f"the event was looked for in {looked} records that wait in Kafka, and there are more{why}: "
                        "try again later"
                    )
                message = consumer.poll(left_s)
                if message is None:
                    continue
                if message.error() is not None:
                    # The client tries again by itself; only if it gets nowhere is it told.
                    trouble = message.error()
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
        if not _described(found, self._address.topic):
            raise StoreUnavailable(f"Kafka has no topic {self._address.topic}: `hookpost migrate` makes it")

    async def ensure_topic(self, partitions: int) -> None:
        """Make the topic if there is none, or give it so many partitions. Raises StoreUnavailable."""
        await self._ask("prepare the topic", partial(self._ensure, partitions))

    def _ensure(self, partitions: int) -> None:
        admin, topic, answer_s = self._made_admin(), self._address.topic, self._patience.answer_s
        found = admin.list_topics(timeout=answer_s)
        there = _partitions(found, topic)
        if there == 0:
            count = copies(self._address.servers, alive=len(found.brokers))
            if count is None:
                raise StoreUnavailable(
                    f"only {len(found.brokers)} of the brokers that HOOKPOST_JOURNAL_URL names are there, too few for "
                    f"topic {topic}, which keeps the copies that it is made with: it is made when they are"
                )
            in_sync = IN_SYNC_MIN if count >= REPLICATION else 1
            config = {
                "min.insync.replicas": str(in_sync),
                "retention.ms": str(RETENTION_MS),
                "cleanup.policy": "delete",
                "max.message.bytes": str(BATCH_BYTES_MAX),
            }
            fresh = NewTopic(topic, partitions, count, config=config)
            made = admin.create_topics([fresh], request_timeout=answer_s)
            if _settled(made, KafkaError.TOPIC_ALREADY_EXISTS, answer_s):
                telemetry.log(
                    "kafka_topic_created", topic=topic, partitions=partitions, replication=count, in_sync=in_sync
                )
        elif there < partitions:
            more = NewPartitions(topic, partitions)
            grown = admin.create_partitions([more], request_timeout=answer_s)
            if _settled(grown, KafkaError.INVALID_PARTITIONS, answer_s):
                telemetry.log("kafka_topic_grown", topic=topic, partitions=partitions)

    async def topic_id(self) -> str:
        """What tells the topic from another one of its name that was made later. Raises StoreUnavailable."""
        return await self._ask("look at the topic", self._topic_id)

    def _topic_id(self) -> str:
        answer_s = self._patience.answer_s
        asked = self._made_admin().describe_topics(TopicCollection([self._address.topic]), request_timeout=answer_s)
        [topic] = [answer.result(answer_s) for answer in asked.values()]
        return str(topic.topic_id)

    async def weakness(self) -> str | None:
        """Why the topic may lose what was acknowledged when one broker is lost for good, or None."""
        return await self._ask("look at the topic", self._weakness)

    def _weakness(self) -> str | None:
        admin, topic = self._made_admin(), self._address.topic
        answer_s = self._patience.answer_s
        least = min((len(each.replicas) for each in self._look_anew(admin).values()), default=0)
        asked = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)], request_timeout=answer_s)
        [config] = [answer.result(answer_s) for answer in asked.values()]
        in_sync = int(config["min.insync.replicas"].value)
        if least >= REPLICATION and in_sync >= IN_SYNC_MIN and in_sync < least:
            return None
        return f"replication {least}, min.insync.replicas {in_sync}; {REPLICATION} and {IN_SYNC_MIN} outlive any broker"

    async def _ask(self, doing: str, ask: Callable[[], _T]) -> _T:
        self._refusals.reason = None
        return await _asked(doing, self._thread, partial(self._heard, ask))

    def _heard(self, ask: Callable[[], _T]) -> _T:
        """Ask; why nobody was let in is heard afterwards, from the client."""
        try:
            return ask()
        except (KafkaException, TimeoutError):
            if self._admin is not None:
                self._admin.poll(0)
            if self._refusals.reason is not None:
                raise StoreUnavailable(self._refusals.reason) from None
            raise

    def _made_admin(self) -> Any:
        if self._admin is None:
            self._admin = AdminClient(_config(self._address, self._refusals))
        return self._admin

    def _made_consumer(self) -> Any:
        if self._consumer is None:
            own = {"group.id": "hookpost-tail", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
            self._consumer = Consumer(_config(self._address, self._refusals, **own, **{"fetch.wait.max.ms": 50}))
        return self._consumer


def _again(until: float, failed: Sequence[KafkaError]) -> None:
    """Wait a moment before the next try, as brokers hear of each other a moment later; raise the first of these when
    time is up."""
    if failed and time.monotonic() >= until:
        raise KafkaException(failed[0])
    time.sleep(AGAIN_S)


def untaken(reached: int, end: int) -> tuple[int, int]:
    """Where what was not taken over of a partition begins that was taken over up to before ``reached``, and how many
    records that are. One that ends before that was made anew: nothing of it was."""
    start = reached if reached <= end else 0
    return start, end - start


def _partitions(found: Any, topic: str) -> int:
    """How many there are, as far as a broker says."""
    known = found.topics.get(topic)
    return 0 if known is None or known.error is not None else len(known.partitions)


def _described(found: Any, topic: str) -> Mapping[int, Any]:
    """The topic's partitions, none if there is no such topic. Raises KafkaException when a broker cannot say that,
    or may not tell this user."""
    known = found.topics.get(topic)
    if known is None or (known.error is not None and known.error.code() in ABSENT):
        return {}
    if known.error is not None:
        raise KafkaException(known.error)
    partitions: Mapping[int, Any] = known.partitions
    return partitions


def _settled(answers: Mapping[str, Any], done_before: int, answer_s: float) -> bool:
    """Was it this call that did it? Another process may have been faster."""
    for answer in answers.values():
        try:
            answer.result(answer_s)
        except KafkaException as error:
            if error.args[0].code() != done_before:
                raise
            return False
    return True


def _text(error: BaseException) -> str:
    cause = error.args[0] if error.args else error
    return cause.str() if isinstance(cause, KafkaError) else str(error)


async def _asked(doing: str, thread: ThreadPoolExecutor, ask: Callable[[], _T]) -> _T:
    try:
        return await _in(thread, ask)
    except KafkaException as error:
        raise StoreUnavailable(f"{doing}: {_text(error)}") from error
    except TimeoutError as error:
        raise StoreUnavailable(f"{doing}: no answer") from error


async def _in(thread: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(thread, work)
