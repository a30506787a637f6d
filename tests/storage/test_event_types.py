"""What tenants say of their event types, and what ingest hears of it."""

from __future__ import annotations

from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.storage.contract import Conflict, NotFound, Stale, Store, TypeLimits, Verdict
from tests.storage.driver import Driver, event, new_tenant, version

LIMITS = TypeLimits(types_max=3, schemas_bytes_max=60)
SCHEMA = '{"type":"object"}'


async def names(store: Store, tenant_id: UUID | None, limit: int = 50) -> list[str]:
    found, after = [], None
    while True:
        page = await store.list_event_types(tenant_id, after=after, limit=limit)
        found += [row["name"] for row in page.rows]
        after = page.next_key
        if after is None:
            return found


async def test_a_type_is_described_changed_and_forgotten(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    made = await store.create_event_type(tenant, "a.b", {"description": "d", "schema": SCHEMA}, limits=LIMITS)
    assert (made["name"], made["description"], made["schema"]) == ("a.b", "d", SCHEMA)
    assert made["created_at"] == made["updated_at"]
    assert await store.get_event_type(tenant, "a.b") == made
    changed = await store.update_event_type(tenant, "a.b", {"schema": None}, limits=LIMITS)
    assert (changed["description"], changed["schema"], changed["created_at"]) == ("d", None, made["created_at"])
    await store.delete_event_type(tenant, "a.b")
    for gone in (
        store.get_event_type(tenant, "a.b"),
        store.update_event_type(tenant, "a.b", {}, limits=LIMITS),
        store.delete_event_type(tenant, "a.b"),
    ):
        with pytest.raises(NotFound):
            await gone


async def test_lists_are_newest_first_and_go_on_where_they_ended(driver: Driver) -> None:
    store = await driver.open()
    tenant, other = await new_tenant(store), await new_tenant(store)
    for name in ("a", "c", "b"):
        await store.create_event_type(tenant, name, {}, limits=LIMITS)
    await store.create_event_type(other, "a", {}, limits=LIMITS)
    for limit in (1, 2, 3, 4):
        assert await names(store, tenant, limit) == ["b", "c", "a"]
        assert await names(store, None, limit) == ["a", "b", "c", "a"]


async def test_names_are_each_tenants_own_and_so_are_limits(driver: Driver) -> None:
    store = await driver.open()
    tenant, other = await new_tenant(store), await new_tenant(store)
    for name in ("a", "b", "c"):
        await store.create_event_type(tenant, name, {"schema": SCHEMA}, limits=LIMITS)
    before = await version(store, tenant)
    with pytest.raises(Conflict, match="3 event types"):
        await store.create_event_type(tenant, "d", {}, limits=LIMITS)
    with pytest.raises(Conflict, match="60 bytes"):
        await store.update_event_type(tenant, "a", {"schema": SCHEMA + " " * 10}, limits=LIMITS)
    await store.delete_event_type(tenant, "c")
    with pytest.raises(Conflict, match="already"):
        await store.create_event_type(tenant, "a", {}, limits=LIMITS)
    with pytest.raises(Conflict, match="60 bytes"):
        await store.create_event_type(tenant, "d", {"schema": SCHEMA + " " * 10}, limits=LIMITS)
    await store.update_event_type(tenant, "a", {"schema": SCHEMA + " " * 9}, limits=LIMITS)
    await store.create_event_type(other, "a", {}, limits=LIMITS)
    with pytest.raises(NotFound):
        await store.get_event_type(other, "b")
    with pytest.raises(NotFound):
        await store.create_event_type(uuid7(), "a", {}, limits=LIMITS)
    assert (await version(store, tenant))[tenant] == before[tenant] + 2, "what is refused changes nothing"


async def test_an_append_that_knows_an_older_schema_is_refused(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    for change in (
        lambda: store.create_event_type(tenant, "a.b", {"schema": SCHEMA}, limits=LIMITS),
        lambda: store.update_event_type(tenant, "a.b", {"schema": None}, limits=LIMITS),
        lambda: store.delete_event_type(tenant, "a.b"),
    ):
        known = await version(store, tenant)
        await change()
        assert await store.append(0, [event(tenant)], known) == Stale(frozenset({tenant}))
    assert not isinstance(await store.append(0, [event(tenant)], await version(store, tenant)), Stale)


async def test_routes_bring_the_schemas_that_there_are(driver: Driver) -> None:
    store = await driver.open()
    tenant, other = await new_tenant(store), await new_tenant(store)
    await store.create_event_type(tenant, "a.b", {"schema": SCHEMA}, limits=LIMITS)
    await store.create_event_type(tenant, "a.c", {}, limits=LIMITS)
    routes, others = await store.load_routes(tenant), await store.load_routes(other)
    assert routes is not None and routes.schemas == {"a.b": SCHEMA}
    assert others is not None and not others.schemas


async def test_what_was_answered_to_a_key_is_recalled_with_the_version_in_force(driver: Driver) -> None:
    store = await driver.open()
    tenant, other = await new_tenant(store), await new_tenant(store)
    first = event(tenant, key="k", request_hash=b"1" * 32)
    await store.append(0, [first], await version(store, tenant))
    recalled = await store.recall(tenant, "k")
    assert recalled is not None and recalled.first is not None
    assert recalled.config_version == (await version(store, tenant))[tenant]
    assert (recalled.first.verdict, recalled.first.event_id) == (Verdict.DUPLICATE, first.event_id)
    assert (recalled.first.delivery_count, recalled.request_hash) == (1, b"1" * 32)
    for of, key in ((tenant, "other"), (tenant, None), (other, "k")):
        nothing = await store.recall(of, key)
        assert nothing is not None and nothing.first is None
    assert await store.recall(uuid7(), "k") is None


async def test_a_key_that_has_expired_is_not_recalled(driver: Driver) -> None:
    store = await driver.open(idempotency_s=0.0)
    tenant = await new_tenant(store)
    await store.append(0, [event(tenant, key="k")], await version(store, tenant))
    recalled = await store.recall(tenant, "k")
    assert recalled is not None and recalled.first is None


async def test_the_types_of_a_deleted_tenant_are_gone(driver: Driver) -> None:
    store = await driver.open()
    tenant = await new_tenant(store)
    await store.create_event_type(tenant, "a.b", {"schema": SCHEMA}, limits=LIMITS)
    await store.delete_tenant(tenant)
    assert await names(store, None) == []
