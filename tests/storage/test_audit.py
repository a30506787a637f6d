"""The audit log in PostgreSQL: a row with each change or neither, append-only, and what is done behind its back is found."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from uuid_utils.compat import uuid7

from hookpost.policy.audit import Anchor
from hookpost.policy.sealing import Keyring
from hookpost.storage.acting import Actor, act_as
from hookpost.storage.contract import Conflict, HeaderValue, NotFound, SecretLocked
from hookpost.storage.postgres import sending
from hookpost.storage.postgres.audit import record, verify
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.store import PostgresStore
from hookpost.storage.postgres.vault import PLATFORM, Vault
from tests.conftest import KEYS

pytestmark = pytest.mark.postgres


async def found(database: str, anchors: dict[UUID, Anchor] | None = None) -> dict[UUID, list[str]]:
    return (await verify(database, Vault(KEYS), anchors or {})).faults


async def a_tenant(store: PostgresStore, changes: int = 4) -> UUID:
    tenant_id = UUID(int=uuid7().int)
    await store.create_tenant(tenant_id, {"name": "acme"})
    for number in range(changes):
        await store.update_tenant(tenant_id, {"name": f"acme {number}"})
    return tenant_id


async def behind_its_back(sql: Any, statement: str, *parameters: Any) -> None:
    """As somebody does who owns the tables."""
    await sql.execute("alter table audit_log disable trigger all")
    await sql.execute(statement, *parameters)
    await sql.execute("alter table audit_log enable trigger all")


async def test_each_change_says_who_what_and_from_where(store: PostgresStore) -> None:
    tenant_id, endpoint_id = UUID(int=uuid7().int), UUID(int=uuid7().int)
    act_as(Actor("admin", "192.0.2.1"))
    await store.create_tenant(tenant_id, {"name": "acme"})
    await store.create_key({"key_id": "a" * 16, "tenant_id": tenant_id, "name": "k", "key_hash": b"h"}, keys_max=9)
    act_as(Actor("key_" + "a" * 16, "2001:db8::1"))
    headers = {"authorization": HeaderValue("canary-value", secret=True), "x-team": HeaderValue("a")}
    made = {"endpoint_id": endpoint_id, "tenant_id": tenant_id, "url": "https://example.com/", "headers": headers}
    await store.create_endpoint(made, b"canary-key" * 3, endpoints_max=10)
    await store.update_endpoint(tenant_id, endpoint_id, {"url": "https://example.org/"})
    await store.update_endpoint(tenant_id, endpoint_id, {"headers": {"authorization": HeaderValue("canary-2", True)}})
    await store.update_endpoint(tenant_id, endpoint_id, {"status": "paused"})
    await store.get_secrets(tenant_id, endpoint_id)
    await store.rotate_secret(tenant_id, endpoint_id, b"canary-new" * 3, grace_s=60)
    await store.disable_endpoint(tenant_id, endpoint_id, "gone")
    await store.delete_endpoint(tenant_id, endpoint_id)
    await store.revoke_key(tenant_id, "a" * 16)
    await store.delete_tenant(tenant_id)
    rows = (await store.list_audit(None, action=None, since=None, until=None, after=None, limit=50)).rows[::-1]
    assert [(row["chain"], row["action"]) for row in rows] == [
        (PLATFORM, "tenant.create"), (tenant_id, "api_key.create"), (tenant_id, "endpoint.create"),
        (tenant_id, "endpoint.update"), (tenant_id, "endpoint.update"), (tenant_id, "endpoint.update"),
        (tenant_id, "secret.reveal"), (tenant_id, "secret.rotate"), (tenant_id, "endpoint.disable"),
        (tenant_id, "endpoint.delete"), (tenant_id, "api_key.revoke"), (PLATFORM, "tenant.delete"),
    ]  # fmt: skip
    assert {row["actor"] for row in rows[:2]} == {"admin"} and rows[0]["address"] == "192.0.2.1"
    assert (rows[3]["actor"], rows[3]["address"]) == ("key_" + "a" * 16, "2001:db8::1")
    assert rows[3]["target"] == f"ep_{endpoint_id.hex}"
    assert (rows[3]["before"], rows[3]["after"]) == ('{"url":"https://example.com/"}', '{"url":"https://example.org/"}')
    assert msgspec.json.decode(rows[2]["after"])["headers"] == {"authorization": None, "x-team": "a"}
    assert msgspec.json.decode(rows[4]["after"]) == {"secret_headers_set": ["authorization"]}
    assert msgspec.json.decode(rows[5]["after"]) == {"status": "paused", "status_reason": "requested"}
    assert not any("canary" in f"{row['before']}{row['after']}" for row in rows)


async def test_a_change_that_fails_leaves_no_row(store: PostgresStore, sql: Any) -> None:
    tenant_id = await a_tenant(store, changes=0)
    endpoint = {"tenant_id": tenant_id, "url": "https://example.com/", "uid": "u"}
    await store.create_endpoint({**endpoint, "endpoint_id": uuid7()}, b"k" * 24, endpoints_max=10)
    count = await sql.fetchval("select count(*) from audit_log")
    with pytest.raises(Conflict):
        await store.create_endpoint({**endpoint, "endpoint_id": uuid7()}, b"k" * 24, endpoints_max=10)
    with pytest.raises(NotFound):
        await store.append_replay(tenant_id, UUID(int=uuid7().int), None)
    with pytest.raises(NotFound):
        await store.revoke_key(tenant_id, "0" * 16)
    assert await sql.fetchval("select count(*) from audit_log") == count


@pytest.mark.parametrize(
    "statement", ["update audit_log set actor = 'x'", "delete from audit_log", "truncate audit_log"]
)
async def test_rows_are_neither_changed_nor_taken_away(store: PostgresStore, sql: Any, statement: str) -> None:
    await a_tenant(store, changes=1)
    with pytest.raises(asyncpg.PostgresError, match="append-only"):
        await sql.execute(statement)


async def test_changes_at_once_make_one_chain_without_gaps(store: PostgresStore, database: str, sql: Any) -> None:
    tenant_id = await a_tenant(store, changes=0)
    other = PostgresStore(database, application="test", vault=Vault(KEYS))
    await other.open()
    keys = [{"key_id": f"{n:016x}", "tenant_id": tenant_id, "name": "k", "key_hash": b"h"} for n in range(20)]
    await asyncio.gather(*((store, other)[n % 2].create_key(key, keys_max=99) for n, key in enumerate(keys)))
    rows = await sql.fetch("select seq from audit_log where chain = $1 order by seq", tenant_id)
    assert [row["seq"] for row in rows] == list(range(1, 21))
    assert await found(database) == {}
    await other.close()


TAMPERED = [
    ("update audit_log set actor = 'somebody else' where chain = $1 and seq = 2", "row 2 was altered"),
    ("update audit_log set after = null where chain = $1 and seq = 2", "row 2 was altered"),
    ("update audit_log set at = at + interval '1 s' where chain = $1 and seq = 2", "row 2 was altered"),
    ("delete from audit_log where chain = $1 and seq = 2", "row 2 is missing"),
    ("delete from audit_log where chain = $1 and seq = 1", "the rows before 2 are gone"),
    ("delete from audit_log where chain = $1 and seq > 2", "rows 3 to 4 are missing"),
    ("delete from audit_log where chain = $1", "rows 1 to 4 are missing"),
    ("insert into audit_log select chain, 5, at, actor, address, action, target, before, after, previous, hash"
     " from audit_log where chain = $1 and seq = 4", "row 5 was altered, moved or put in"),
    ("update audit_log set seq = case seq when 2 then 30 else 20 end where chain = $1 and seq in (2, 3)", "rows 2 to 3"),
    ("delete from audit_heads where chain = $1", "no head"),
    ("update audit_heads set seq = 3 where chain = $1", "the head was altered"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "said"), TAMPERED, ids=range(len(TAMPERED)))
async def test_what_is_done_behind_its_back_is_found(
    store: PostgresStore, database: str, sql: Any, statement: str, said: str
) -> None:
    tenant_id = await a_tenant(store)
    assert await found(database) == {}
    await behind_its_back(sql, statement, tenant_id)
    faults = await found(database)
    assert list(faults) == [tenant_id]
    assert any(said in fault for fault in faults[tenant_id]), faults


async def test_a_tail_cut_off_with_its_head_set_back_is_found_even_when_the_chain_goes_on(
    store: PostgresStore, database: str, sql: Any
) -> None:
    tenant_id = await a_tenant(store)
    await behind_its_back(sql, "delete from audit_log where chain = $1 and seq > 2", tenant_id)
    await sql.execute(
        "update audit_heads h set seq = 2, hash = a.hash from audit_log a where h.chain = $1 and a.chain = $1 and a.seq = 2",
        tenant_id,
    )
    assert (await found(database))[tenant_id] == ["the head was altered"]
    await store.update_tenant(tenant_id, {"name": "on"})
    assert (await found(database))[tenant_id] == ["when row 3 was written, the chain's head had been altered"]


async def test_an_older_state_of_a_whole_chain_is_found_by_what_was_noted_elsewhere(
    store: PostgresStore, database: str, sql: Any
) -> None:
    tenant_id = await a_tenant(store, changes=2)
    kept = await sql.fetchrow("select seq, hash, sealed from audit_heads where chain = $1", tenant_id)
    await store.update_tenant(tenant_id, {"name": "hidden"})
    noted = (await verify(database, Vault(KEYS), {})).heads
    await behind_its_back(sql, "delete from audit_log where chain = $1 and seq > 2", tenant_id)
    await sql.execute("update audit_heads set seq = $2, hash = $3, sealed = $4 where chain = $1", tenant_id, *kept)
    assert await found(database) == {}
    assert (await found(database, noted))[tenant_id] == [
        "the chain ends at row 2, and went to row 3 when it was noted before"
    ]
    await behind_its_back(sql, "delete from audit_log where chain = $1", tenant_id)
    await sql.execute("delete from audit_heads where chain = $1", tenant_id)
    assert list(await found(database, noted)) == [tenant_id]


async def test_retention_takes_old_rows_and_the_chain_stays_verifiable(
    store: PostgresStore, database: str, sql: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_id = UUID(int=uuid7().int)
    for age_days in (40, 39, 35, 31, 29, 0):
        await aged(database, tenant_id, age_days)
    young = await a_tenant(store)
    monkeypatch.setattr("hookpost.storage.postgres.audit.ROWS_RETIRED_AT_ONCE", 3)
    assert await store.retire_audit(keep_days=30) == 3
    assert await found(database) == {}
    assert await store.retire_audit(keep_days=30) == 1
    assert await store.retire_audit(keep_days=30) == 0
    rows = await sql.fetch("select seq, action from audit_log where chain = $1 order by seq", tenant_id)
    assert [tuple(row) for row in rows] == [(5, "a"), (6, "a"), (7, "audit.retention"), (8, "audit.retention")]
    assert await sql.fetchval("select count(*) from audit_log where chain = $1", young) == 4
    assert await found(database) == {}
    await behind_its_back(sql, "delete from audit_log where chain = $1 and seq = 5", tenant_id)
    assert (await found(database))[tenant_id] == ["the rows before 6 are gone, and retention did not take them"]


async def aged(database: str, chain: UUID, days: int) -> None:
    """A row written so many days ago."""
    connection = await asyncpg.connect(database)
    await _decoded(connection)

    class Earlier:
        """A connection whose clock is late."""

        def __getattr__(self, name: str) -> Any:
            return getattr(connection, name)

        async def fetchval(self, query: str, *parameters: Any) -> Any:
            value = await connection.fetchval(query, *parameters)
            return value - days * 86_400 if query == "select clock_timestamp()" else value

    async with connection.transaction():
        await record(Earlier(), Vault(KEYS), chain, "a", "t")
    await connection.close()


async def _decoded(connection: Any) -> None:
    from hookpost.storage.postgres.connection import prepare

    await prepare(connection)


async def test_the_log_is_read_by_chain_newest_first_and_page_by_page(store: PostgresStore) -> None:
    tenant_id, other = await a_tenant(store), await a_tenant(store)
    window: dict[str, Any] = {"action": None, "since": None, "until": None}
    first = await store.list_audit(tenant_id, **window, after=None, limit=3)
    rest = await store.list_audit(tenant_id, **window, after=first.next_key, limit=3)
    assert [row["seq"] for row in (*first.rows, *rest.rows)] == [4, 3, 2, 1] and rest.next_key is None
    seen, after = [], None
    while True:
        page = await store.list_audit(None, **window, after=after, limit=3)
        seen += [(row["chain"], row["seq"]) for row in page.rows]
        if (after := page.next_key) is None:
            break
    assert len(seen) == len(set(seen)) == 10
    assert {chain for chain, _ in seen} == {tenant_id, other, PLATFORM}
    only = await store.list_audit(None, **{**window, "action": "tenant.create"}, after=None, limit=50)
    assert {row["chain"] for row in only.rows} == {PLATFORM}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("list_of_chain", "'{tenant}', 5, null, null, null, 51"),
        ("list_of_all", "now(), '{tenant}', 5, null, null, null, 51"),
        ("rows", "'{tenant}', 5, 1000"),
        ("kept_from", "'{tenant}', 5, 30, 5000"),
    ],
)
async def test_a_page_is_read_by_the_index_in_its_order(
    store: PostgresStore, sql: Any, name: str, arguments: str
) -> None:
    tenant_id = await a_tenant(store)
    await sql.execute("set enable_seqscan = off")
    await sql.execute(f"prepare page as {load('audit')[name]}")
    await sql.execute("set plan_cache_mode = force_generic_plan")
    plan = "\n".join(row[0] for row in await sql.fetch(f"explain execute page ({arguments.format(tenant=tenant_id)})"))
    assert "Index" in plan and "Sort" not in plan and "Seq Scan on audit_log" not in plan, plan


async def test_what_hookpost_spreads_by_itself_stands_in_the_log(store: PostgresStore, database: str) -> None:
    tenant_id = UUID(int=uuid7().int)
    await store.create_tenant(tenant_id, {"name": "acme", "home_shards": [0]})
    assert await store.set_spread(tenant_id, known=1, wanted=2)
    [row] = (await store.list_audit(tenant_id, action=None, since=None, until=None, after=None, limit=9)).rows
    assert (row["actor"], row["action"]) == ("hookpost", "tenant.spread")
    before, after = (msgspec.json.decode(row[name])["home_shards"] for name in ("before", "after"))
    assert (before, len(after)) == ([0], 2)
    assert await found(database) == {}


async def test_sending_paused_and_resumed_stands_in_the_log(store: PostgresStore, database: str) -> None:
    act_as(Actor("cli"))
    await sending.pause(database, Vault(KEYS))
    assert await store.is_paused()
    await sending.go_on(database, Vault(KEYS))
    assert not await store.is_paused()
    rows = (await store.list_audit(None, action=None, since=None, until=None, after=None, limit=9)).rows
    assert [(row["chain"], row["actor"], row["action"]) for row in rows] == [
        (PLATFORM, "cli", "sending.go_on"), (PLATFORM, "cli", "sending.pause"),
    ]  # fmt: skip
    assert await found(database) == {}


async def test_sending_is_paused_even_where_the_log_cannot_be_written(store: PostgresStore, database: str) -> None:
    await store.note(None, "x", "y", None)
    others = Vault(Keyring({"other": b"o" * 32}))
    await sending.pause(database, others)
    assert await store.is_paused()
    with pytest.raises(SecretLocked):
        await sending.go_on(database, others)
    assert await store.is_paused()
    assert await found(database) == {}
