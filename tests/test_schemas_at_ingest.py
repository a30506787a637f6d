"""Schemas are enforced where events come in, by the schema that was acknowledged last, on every process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

import pytest

from hookpost import telemetry
from hookpost.ingest import Ingest, IngestLimits
from hookpost.intake import Misfit, Submission
from hookpost.policy import schema_checks
from hookpost.policy.event_schema import PayloadSchema, SchemaBounds
from hookpost.storage.contract import Appended, NewEvent, Place, Recalled, Stale, TypeLimits, Verdict
from hookpost.storage.memory.store import MemoryStore
from hookpost.storage.memory.tables import Database
from hookpost.storage.payloads import ObjectStore
from tests.patience import PATIENCE_S
from tests.storage.driver import new_tenant

LIMITS = TypeLimits()
NUMBER, TEXT = '{"type":"number"}', '{"type":"string"}'


class World:
    """A tenant, the store, and API processes."""

    def __init__(self) -> None:
        self.database = Database(shards=4, clock=time.time)
        self.store = MemoryStore(self.database)
        self.payloads = ObjectStore("memory:///")

    def process(self) -> Ingest:
        limits = IngestLimits(timeout_s=PATIENCE_S, inline_max=50)
        return Ingest(MemoryStore(self.database), self.payloads, now=time.time, limits=limits)

    async def tenant(self, schema: str | None = None) -> UUID:
        tenant = await new_tenant(self.store)
        if schema is not None:
            await self.store.create_event_type(tenant, "a.b", {"schema": schema}, limits=LIMITS)
        return tenant

    async def set(self, tenant: UUID, schema: str | None) -> None:
        await self.store.update_event_type(tenant, "a.b", {"schema": schema}, limits=LIMITS)

    @property
    def stored(self) -> int:
        return len(self.database.by_event)


@pytest.fixture
def world() -> World:
    return World()


def posted(payload: bytes, key: str | None = None, type_: str = "a.b") -> Submission:
    return Submission(type_, payload, key)


def verdicts(answers: list[object]) -> list[object]:
    return [answer.verdict if isinstance(answer, Appended) else type(answer) for answer in answers]


async def test_only_what_satisfies_the_schema_of_its_type_is_stored(world: World) -> None:
    tenant, ingest = await world.tenant(NUMBER), world.process()
    answers = await ingest.submit(tenant, [posted(b"1"), posted(b'"x"'), posted(b'"x"', type_="a.c"), posted(b"2.5")])
    assert verdicts(answers) == [Verdict.NEW, Misfit, Verdict.NEW, Verdict.NEW]
    assert world.stored == 3
    assert ingest.queued == (0, 0)
    assert verdicts(await ingest.submit(tenant, [posted(b"null")])) == [Misfit]
    assert ingest.queued == (0, 0)
    await ingest.close()


async def test_a_large_payload_that_does_not_fit_never_reaches_the_payload_store(world: World) -> None:
    tenant, ingest = await world.tenant(NUMBER), world.process()
    assert verdicts(await ingest.submit(tenant, [posted(b'"%b"' % (b"x" * 100))])) == [Misfit]
    assert [key async for keys in world.payloads.list_hour(int(time.time() // 3600)) for key in keys] == []
    await ingest.close()


async def test_what_fits_at_little_cost_keeps_the_short_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    free, bound, ingest = await world.tenant(), await world.tenant(NUMBER), world.process()
    for tenant in (free, bound):
        await ingest.submit(tenant, [posted(b"1")])
    told: list[object] = []
    assert ingest.post(free, [posted(b'"x"')], told.append)
    assert ingest.post(bound, [posted(b"1")], told.append)
    assert not ingest.post(bound, [posted(b"1"), posted(b'"x"')], told.append)
    monkeypatch.setattr("hookpost.ingest.WORK_A_TURN", 0)
    assert not ingest.post(bound, [posted(b"1")], told.append)
    await ingest.close()
    assert len(told) == 2


async def test_a_schema_is_in_force_on_every_process_once_it_is_acknowledged(world: World) -> None:
    tenant = await world.tenant(TEXT)
    processes = [world.process() for _ in range(2)]
    for ingest in processes:
        assert verdicts(await ingest.submit(tenant, [posted(b'"x"'), posted(b"1")])) == [Verdict.NEW, Misfit]
    await world.set(tenant, NUMBER)
    for ingest in processes:
        # Each has the old one in memory: what it would let pass must not pass, and what it would refuse must.
        assert verdicts(await ingest.submit(tenant, [posted(b'"x"')])) == [Misfit]
    await world.set(tenant, TEXT)
    for ingest in processes:
        assert verdicts(await ingest.submit(tenant, [posted(b'"x"')])) == [Verdict.NEW]
    await world.set(tenant, None)
    for ingest in processes:
        assert verdicts(await ingest.submit(tenant, [posted(b"1")])) == [Verdict.NEW]
        await ingest.close()


async def test_an_event_in_the_short_cut_is_checked_when_a_schema_came_meanwhile(world: World) -> None:
    tenant, ingest = await world.tenant(), world.process()
    await ingest.submit(tenant, [posted(b"1")])
    await world.store.create_event_type(tenant, "a.b", {"schema": NUMBER}, limits=LIMITS)
    told: list[list[object]] = []
    assert ingest.post(tenant, [posted(b'"x"'), posted(b"1")], told.append)
    await ingest.close()
    assert verdicts(told[0]) == [Misfit, Verdict.NEW]
    assert ingest.queued == (0, 0)


async def test_a_repeat_of_an_accepted_key_is_answered_as_before_whatever_the_schema_says_now(world: World) -> None:
    tenant, ingest = await world.tenant(TEXT), world.process()
    [first] = await ingest.submit(tenant, [posted(b'"x"', "k")])
    await world.set(tenant, NUMBER)
    [again] = await ingest.submit(tenant, [posted(b'"x"', "k")])
    assert isinstance(first, Appended) and isinstance(again, Appended)
    assert (again.verdict, again.event_id, again.delivery_count) == (
        Verdict.DUPLICATE, first.event_id, first.delivery_count,
    )  # fmt: skip
    other, unused = await ingest.submit(tenant, [posted(b'"y"', "k"), posted(b'"y"', "k2")])
    assert verdicts([other, unused]) == [Verdict.CONFLICT, Misfit]
    assert world.stored == 1
    [fits] = await ingest.submit(tenant, [posted(b"1", "k2")])
    assert verdicts([fits]) == [Verdict.NEW], "what was refused has not used its key up"
    await ingest.close()


async def test_a_schema_is_compiled_once_whatever_else_of_the_tenant_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    class Counted(PayloadSchema):
        def __init__(self, text: str, bounds: SchemaBounds) -> None:
            compiled.append(text)
            super().__init__(text, bounds)

    monkeypatch.setattr(schema_checks, "PayloadSchema", Counted)
    tenant, ingest = await world.tenant(NUMBER), world.process()
    for n in range(3):
        await ingest.submit(tenant, [posted(b"1"), posted(b"2")])
        await world.store.update_tenant(tenant, {"name": f"n{n}"})
    assert compiled == [NUMBER]
    await ingest.close()


async def test_a_schema_that_is_not_accepted_any_more_lets_nothing_pass_and_says_so(world: World) -> None:
    tenant, ingest = await world.tenant('{"$ref":"https://example.com/"}'), world.process()
    [answer] = await ingest.submit(tenant, [posted(b"1")])
    assert isinstance(answer, Misfit) and "not accepted any more" in answer.faults[0].message
    await ingest.close()


async def test_what_is_refused_is_counted(world: World) -> None:
    tenant, ingest = await world.tenant(NUMBER), world.process()
    before = telemetry.counters["events_misfit"]
    await ingest.submit(tenant, [posted(b"1"), posted(b"null")])
    assert telemetry.counters["events_misfit"] == before + 1
    await ingest.close()


class Reserving(MemoryStore):
    """As with a journal in Kafka: keys are reserved before their events are written. Counts appends."""

    appends = 0

    async def recall(self, tenant_id: UUID, key: str | None) -> Recalled | None:
        recalled = await super().recall(tenant_id, key)
        return None if recalled is None else replace(recalled, reserved=recalled.first is not None)

    async def append(
        self,
        shard: int | Sequence[int],
        events: Sequence[NewEvent],
        versions: Mapping[UUID, int],
        placed: Callable[[Place], None] | None = None,
    ) -> list[Appended] | Stale:
        self.appends += 1
        return await super().append(shard, events, versions, placed)


async def test_a_repeat_whose_first_event_may_be_lost_is_left_to_the_append(world: World) -> None:
    """The key was reserved and the process died: to answer "duplicate" would acknowledge what nobody has."""
    tenant = await world.tenant(TEXT)
    store = Reserving(world.database)
    ingest = Ingest(store, world.payloads, now=time.time, limits=IngestLimits(timeout_s=PATIENCE_S))
    [first] = await ingest.submit(tenant, [posted(b'"x"', "k")])
    await world.set(tenant, NUMBER)
    appends = store.appends
    [again] = await ingest.submit(tenant, [posted(b'"x"', "k")])
    assert isinstance(first, Appended) and isinstance(again, Appended)
    assert (again.verdict, again.event_id) == (Verdict.DUPLICATE, first.event_id)
    assert store.appends > appends, "the append has said it"
    assert verdicts(await ingest.submit(tenant, [posted(b'"y"', "k"), posted(b'"y"', "k2")])) == [
        Verdict.CONFLICT, Misfit,
    ]  # fmt: skip
    await ingest.close()
