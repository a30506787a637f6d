"""The PostgreSQL store behind a journal in Kafka: an append goes to Kafka, everything else is as it was.

Relies on the pump (`hookpost.pump`) of each shard's owner, which takes the records over. Promises: an event is answered
when the brokers in sync have it; of an idempotency key one event comes into the journal, whoever dies in between; an
event that was accepted is found at once, taken over or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from hookpost.model import PayloadRef, minted_at
from hookpost.policy.explain import EventWhy
from hookpost.policy.journal import KafkaAddress
from hookpost.policy.objects import HOUR_S, object_key
from hookpost.storage.contract import (
    Appended,
    ControlAction,
    EventView,
    NewEvent,
    NotFound,
    Place,
    PlatformFigures,
    Stale,
    StoreUnavailable,
    TopicReplaced,
    Verdict,
)
from hookpost.storage.kafka.clients import Patience, Reader, Tail, Writer, untaken
from hookpost.storage.kafka.record import decode, encode
from hookpost.storage.postgres.store import PostgresStore
from hookpost.storage.routes import Routes

# How often a request about an event that waits in Kafka looks whether it was taken over.
TAKEN_OVER_LOOK_S = 0.05
# An API process forgets a configuration that has changed within a second, and looks at most of them again before that.
# The rest is for transactions that were slow to commit.
FORGOTTEN_S = 3.0

__all__ = ["KafkaStore", "Reader", "decode"]

_T = TypeVar("_T")


class KafkaStore(PostgresStore):
    """Implements the whole contract; ``append_timeout_s`` is for the brokers' acknowledgement, too. ``outage_s``: how
    long an API process accepts events by what it remembers while it cannot ask the database."""

    # What is produced to several partitions is not produced to all or none of them.
    lot_shards = 1

    def __init__(
        self,
        dsn: str,
        *,
        address: KafkaAddress,
        append_timeout_s: float = 0.9,
        outage_s: float = 1.0,
        patience: Patience | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dsn, append_timeout_s=append_timeout_s, **options)
        self._writer = Writer(address, timeout_s=append_timeout_s)
        # So long after a process has looked nothing is acknowledged any more that it accepted by what it knew before.
        self._settled_s = FORGOTTEN_S + append_timeout_s
        self._outage_s = outage_s
        self._patience = patience or Patience()
        self.tail = Tail(address, self._patience)
        # A client of its own: looks at the tail may take seconds, and whoever asks for the readiness has none.
        self._doctor = Tail(address, self._patience)
        # Looks for changed configurations that were not answered in time: until they are, there are no others.
        self._hanging: set[asyncio.Task[frozenset[UUID]]] = set()

    async def open(self) -> None:
        await super().open()
        self._writer.open()

    async def close(self) -> None:
        self._writer.close()
        await self.tail.close()
        await self._doctor.close()
        await super().close()

    # ---- ingest ---------------------------------------------------------------------------------------------------

    async def append(
        self,
        shard: int | Sequence[int],
        events: Sequence[NewEvent],
        versions: Mapping[UUID, int],
        placed: Callable[[Place], None] | None = None,  # noqa: ARG002 - its number is given when it is taken over
    ) -> list[Appended] | Stale:
        """Write one record for each event to the shard's partition.

        Stale only where the database says so in time: the pump asks once more, and matches anew what comes to that.
        """
        assert isinstance(shard, int), "one shard an append"
        # All of it, before anything is reserved or sent: one that cannot be written fails the call alone.
        outdated = await self._outdated(versions)
        if outdated:
            return Stale(outdated)
        values = [encode(event, version=versions[event.tenant_id], accepted_at=_accepted_at(event)) for event in events]
        answers = [Appended(Verdict.NEW, event.event_id, len(event.owed)) for event in events]
        ids = [event.event_id for event in events]
        send = [True] * len(events)
        keyed = [place for place, event in enumerate(events) if event.key is not None]
        if keyed:
            sent: set[UUID] = set()
            for place, reserved in zip(keyed, await self.reserve([events[place] for place in keyed]), strict=True):
                answers[place] = Appended(reserved.verdict, reserved.event_id, reserved.delivery_count)
                send[place] = reserved.send and reserved.event_id not in sent
                sent.add(reserved.event_id)
                if send[place] and reserved.event_id != ids[place]:
                    again = _under(events[place], reserved.event_id)
                    version, accepted_at = versions[again.tenant_id], _accepted_at(events[place])
                    values[place] = encode(again, version=version, accepted_at=accepted_at)
                    ids[place] = reserved.event_id
        await self._writer.write(
            shard,
            [
                (event_id.bytes, value, round(minted_at(event_id) * 1000))
                for event_id, value, wanted in zip(ids, values, send, strict=True)
                if wanted
            ],
        )
        return answers

    async def _outdated(self, versions: Mapping[UUID, int]) -> frozenset[UUID]:
        """Whose events were matched with an old configuration; nobody's, as far as is known, while the database is away
        or slow: then events are accepted by what is remembered."""
        if self._hanging:
            return frozenset()
        looking = asyncio.create_task(self.outdated(versions))
        done, hanging = await asyncio.wait({looking}, timeout=self._patience.outdated_s)
        for task in hanging:
            # It is not cancelled: a database that stands still would not answer that either.
            self._hanging.add(task)
            task.add_done_callback(self._answered)
        return looking.result() if done and looking.exception() is None else frozenset()

    def _answered(self, looking: asyncio.Task[frozenset[UUID]]) -> None:
        self._hanging.discard(looking)
        if not looking.cancelled():
            looking.exception()  # that the database is away is told by who needs it

    async def prepare_topic(self) -> None:
        """Make the topic, or give it a partition for each shard. Raises StoreUnavailable."""
        await self.tail.ensure_topic(await self.shard_count())

    async def recognise_topic(self) -> None:
        topic_id = await self.tail.topic_id()
        if await self.remember_topic(topic_id) != topic_id:
            raise TopicReplaced(
                "the topic is another one than records were taken over from: it was deleted and made anew, "
                "and offsets of the old one mean nothing in it; docs/kafka.md says how to go on"
            )

    async def journal_fault(self, timeout_s: float) -> str | None:
        try:
            await self._doctor.check(timeout_s)
        except StoreUnavailable as error:
            return str(error)
        return None

    async def journal_state(self) -> tuple[dict[int, int], str | None]:
        """The lag, and why the topic may lose what was acknowledged, if it may. Raises StoreUnavailable, also when the
        topic is another one than before."""
        await self.recognise_topic()
        return await self.lag(), await self.tail.weakness()

    async def lag(self) -> dict[int, int]:
        """Records of each shard's partition that were not taken over yet; of partitions that the brokers know of.
        Raises StoreUnavailable."""
        shards = range(await self.shard_count())
        # Before the ends: what is taken over while these are asked for is not to be taken for a topic made anew.
        reached = await self.pumped_to(shards)
        ends = await self.tail.ends(shards)
        return {shard: untaken(reached.get(shard, (0, 0.0))[0], end)[1] for shard, end in ends.items()}

    async def platform_figures(self, *, backlog_max: int, tenants_max: int) -> PlatformFigures:
        found = await super().platform_figures(backlog_max=backlog_max, tenants_max=tenants_max)
        up = await self.journal_fault(self._patience.figures_s) is None
        lag: dict[int, int] = {}
        if up:
            with suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(self._patience.figures_s):
                    lag = await self.lag()
        shards = tuple(replace(shard, lag=lag.get(shard.shard)) for shard in found.shards)
        return replace(found, shards=shards, journal_up=up)

    async def lift_barriers(self) -> int:
        """Before what waits for a shard may go on, all that its partition held before the change is taken over."""
        waited_for = await self.unsealed(self._settled_s, self._outage_s)
        if waited_for is not None:
            covers, shards = waited_for
            # While brokers are away, it waits.
            with suppress(StoreUnavailable):
                await self.note_ends(await self.tail.ends(shards), covers)
        return await super().lift_barriers()

    # ---- what may still lie in Kafka --------------------------------------------------------------------------------

    async def get_event(self, tenant_id: UUID | None, event_id: UUID) -> EventView:
        with suppress(NotFound):
            return await super().get_event(tenant_id, event_id)
        waiting = await self._waiting(tenant_id, event_id)
        # It may have been taken over between the two looks; or it waited for over a day, and lies in another one's.
        return waiting or await self.event_of_any_day(tenant_id, event_id)

    async def _waiting(self, tenant_id: UUID | None, event_id: UUID) -> EventView | None:
        """The event, if its record was not taken over yet, owed to whom it will be when it is."""
        shards = range(await self.shard_count())
        reached = await self.pumped_to(shards)
        found = await self.tail.find(event_id, {shard: reached.get(shard, (0, 0.0))[0] for shard in shards})
        if found is None:
            return None
        event, version, accepted_at = decode(found)
        if tenant_id not in (None, event.tenant_id):
            return None
        if await self.outdated({event.tenant_id: version}):
            routes = await self.load_routes(event.tenant_id)
            if routes is None:
                return None
            event.owed = Routes(routes).owed_now(event, accepted_at=accepted_at)
        return _view(event, accepted_at)

    async def _taken_over(self, tenant_id: UUID | None, event_id: UUID, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask about an event; if it still lies in Kafka, once it was taken over."""
        with suppress(NotFound):
            return await ask()
        if await self._waiting(tenant_id, event_id) is None:
            return await ask()
        until = asyncio.get_running_loop().time() + self._patience.taken_over_s
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(TAKEN_OVER_LOOK_S)
            with suppress(NotFound):
                return await ask()
        raise StoreUnavailable("the event was accepted a moment ago and waits for a worker: try again later")

    async def why(
        self, tenant_id: UUID | None, event_id: UUID, endpoint_id: UUID | None, *, owed_max: int, others_max: int
    ) -> EventWhy:
        ask = super().why
        return await self._taken_over(
            tenant_id, event_id, lambda: ask(tenant_id, event_id, endpoint_id, owed_max=owed_max, others_max=others_max)
        )

    async def append_replay(self, tenant_id: UUID, event_id: UUID, endpoint_id: UUID | None) -> int:
        ask = super().append_replay
        return await self._taken_over(tenant_id, event_id, lambda: ask(tenant_id, event_id, endpoint_id))

    async def append_control(
        self, tenant_id: UUID, event_id: UUID, endpoint_id: UUID | None, action: ControlAction
    ) -> int:
        ask = super().append_control
        return await self._taken_over(tenant_id, event_id, lambda: ask(tenant_id, event_id, endpoint_id, action))

    async def remove_payload(self, tenant_id: UUID, event_id: UUID) -> int:
        ask = super().remove_payload
        return await self._taken_over(tenant_id, event_id, lambda: ask(tenant_id, event_id))

    async def sweepable_hours(self, *, age_s: float) -> int:
        """An object of an event that waits in Kafka has no row yet, and is no orphan."""
        hours = await super().sweepable_hours(age_s=age_s)
        lag = await self.lag()
        # Of a partition that the brokers do not know of it is not known either.
        behind = {shard for shard in range(await self.shard_count()) if lag.get(shard) != 0}
        reached = await self.pumped_to(behind)
        return min([hours, *(int(reached.get(shard, (0, 0.0))[1]) // HOUR_S - 1 for shard in behind)])


def _accepted_at(event: NewEvent) -> float:
    """Its id was minted for this request."""
    return minted_at(event.event_id)


def _under(event: NewEvent, event_id: UUID) -> NewEvent:
    """The same event under the id that its key was reserved with. The first request had put a large payload, the same
    bytes, into the payload store under that id before it reserved the key."""
    payload = event.payload
    if isinstance(payload, PayloadRef):
        payload = replace(payload, key=object_key(event_id))
    return msgspec.structs.replace(event, event_id=event_id, payload=payload)


def _view(event: NewEvent, accepted_at: float) -> EventView:
    """As an event looks that nobody has begun to deliver."""
    stored = isinstance(event.payload, PayloadRef)
    return EventView(
        {
            "event_id": event.event_id,
            "tenant_id": event.tenant_id,
            "type": event.type,
            "payload": None if stored else event.payload,
            "payload_ref": str(event.payload) if stored else None,
            "owed": list(event.owed),
            "idempotency_key": event.key,
            "trace_id": event.trace_id,
            "trace_span": event.span,
            "created_at": accepted_at,
            "status": "pending" if event.owed else "no_endpoints",
        },
        [
            {
                "endpoint_id": endpoint_id,
                "generation": 0,
                "status": "queued",
                "reason": None,
                "attempt_count": 0,
                "next_attempt_at": None,
                "last_http_status": None,
            }
            for endpoint_id in event.owed
        ],
    )
