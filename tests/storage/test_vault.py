"""Secrets at rest in PostgreSQL: nothing in the clear, nothing that opens elsewhere, keys changed while all runs."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hookpost.maintenance import Maintenance
from hookpost.model import OwnHeaders
from hookpost.policy.looks import Since
from hookpost.policy.sealing import Keyring
from hookpost.storage.contract import HeaderValue, KeysMissing, SecretLocked, Unfit
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres.sending import pause
from hookpost.storage.postgres.store import PostgresStore
from hookpost.storage.postgres.vault import PLATFORM, Vault, check_keys, make_platform_key, needed_keys
from tests.conftest import KEYS

pytestmark = pytest.mark.postgres

SECRET = b"canary-of-the-signing-key-24b"
HIDDEN = "canary-of-a-secret-header"
OLD_AND_NEW = Keyring({"k2": b"2" * 32, "k1": b"1" * 32})


async def tenant_of(store: PostgresStore) -> UUID:
    tenant_id = uuid7()
    await store.create_tenant(tenant_id, {"name": "acme"})
    return UUID(int=tenant_id.int)


async def endpoint_of(store: PostgresStore, tenant_id: UUID, **values: Any) -> UUID:
    endpoint_id = UUID(int=uuid7().int)
    made = {"endpoint_id": endpoint_id, "tenant_id": tenant_id, "url": "https://example.com/", **values}
    await store.create_endpoint(made, SECRET, endpoints_max=100)
    return endpoint_id


async def with_headers(store: PostgresStore) -> tuple[UUID, UUID]:
    tenant_id = await tenant_of(store)
    headers = {"x-team": HeaderValue("payments"), "authorization": HeaderValue(HIDDEN, secret=True)}
    return tenant_id, await endpoint_of(store, tenant_id, headers=headers)


async def stores(dsn: str, *rings: Keyring) -> list[PostgresStore]:
    opened = [PostgresStore(dsn, application="test", vault=Vault(ring)) for ring in rings]
    for each in opened:
        await each.open()
    return opened


async def test_secrets_lie_sealed_and_are_opened_when_the_endpoint_is_loaded(store: PostgresStore, sql: Any) -> None:
    tenant_id, endpoint_id = await with_headers(store)
    row = await sql.fetchrow("select * from endpoint_secrets where endpoint_id = $1", endpoint_id)
    assert row["key"] is None and SECRET not in row["sealed"]
    row = await sql.fetchrow("select headers, sealed_headers from endpoints where endpoint_id = $1", endpoint_id)
    assert HIDDEN not in row["headers"] and HIDDEN.encode() not in row["sealed_headers"]
    [loaded] = await store.load_endpoints([endpoint_id])
    assert [secret.key for secret in loaded.secrets] == [SECRET]
    assert loaded.headers == OwnHeaders(lines=f"x-team: payments\r\nauthorization: {HIDDEN}\r\n")
    assert not loaded.locked
    assert HIDDEN not in repr(loaded) and "canary" not in repr(loaded)
    assert [row["key"] for row in await store.get_secrets(tenant_id, endpoint_id)] == [SECRET]


async def test_headers_change_one_by_one_and_secret_ones_stay_without_being_seen(store: PostgresStore) -> None:
    tenant_id, endpoint_id = await with_headers(store)

    async def change(headers: Any) -> Any:
        row = await store.update_endpoint(tenant_id, endpoint_id, {"headers": headers})
        return row["headers"], (await store.load_endpoints([endpoint_id]))[0].headers

    shown, sent = await change({"x-team": HeaderValue("risk"), "user-agent": HeaderValue("acme/1")})
    assert shown == {"authorization": None, "x-team": "risk", "user-agent": "acme/1"}
    assert sent == OwnHeaders(None, "acme/1", f"x-team: risk\r\nauthorization: {HIDDEN}\r\n")
    shown, sent = await change({"x-team": HeaderValue("hush", secret=True), "user-agent": None})
    assert shown == {"authorization": None, "x-team": None}
    assert sorted(sent.lines.split("\r\n")) == ["", f"authorization: {HIDDEN}", "x-team: hush"]
    shown, sent = await change({"x-team": HeaderValue("open"), "authorization": None})
    assert (shown, sent) == ({"x-team": "open"}, OwnHeaders(lines="x-team: open\r\n"))
    with pytest.raises(Unfit, match="at most 32 headers"):
        await change({f"x-{n}": HeaderValue("v") for n in range(32)})
    assert await change(None) == ({}, None)


async def test_s6_a_sealed_secret_moved_to_another_row_locks_that_endpoint_alone(
    store: PostgresStore, sql: Any
) -> None:
    tenant_id, other_tenant = await tenant_of(store), await tenant_of(store)
    one, two, third = [await endpoint_of(store, of) for of in (tenant_id, tenant_id, other_tenant)]
    await sql.execute(
        "update endpoint_secrets set sealed = (select sealed from endpoint_secrets where endpoint_id = $1)"
        " where endpoint_id = any ($2)",
        one, [two, third],
    )  # fmt: skip
    loaded = {each.endpoint_id: each for each in await store.load_endpoints([one, two, third])}
    assert {each: loaded[each].locked for each in loaded} == {one: False, two: True, third: True}
    assert loaded[two].secrets == ()
    with pytest.raises(SecretLocked, match="rotation with grace_period_s 0"):
        await store.get_secrets(tenant_id, two)
    await store.rotate_secret(tenant_id, two, b"n" * 24, grace_s=0)
    [mended] = await store.load_endpoints([two])
    assert not mended.locked and [secret.key for secret in mended.secrets] == [b"n" * 24]


async def test_h1_a_header_forced_into_the_database_cannot_end_its_line(store: PostgresStore, sql: Any) -> None:
    _, endpoint_id = await with_headers(store)
    await sql.execute("""update endpoints set headers = '{"x-a": "b\\r\\nx-evil: 1"}', sealed_headers = null""")
    [loaded] = await store.load_endpoints([endpoint_id])
    assert loaded.headers is not None and "visible ASCII" in loaded.headers.fault and not loaded.headers.lines


async def test_nothing_secret_of_a_deleted_endpoint_or_tenant_is_kept(store: PostgresStore, sql: Any) -> None:
    tenant_id, endpoint_id = await with_headers(store)
    await endpoint_of(store, tenant_id)
    left = "select (select count(*) from endpoint_secrets), (select count(*) from endpoints where sealed_headers is not null)"
    assert tuple(await sql.fetchrow(left)) == (2, 1)
    await store.delete_endpoint(tenant_id, endpoint_id)
    assert tuple(await sql.fetchrow(left)) == (1, 0)
    await store.delete_tenant(tenant_id)
    assert tuple(await sql.fetchrow(left)) == (0, 0)


async def test_a_data_key_whose_transaction_was_rolled_back_seals_nothing(store: PostgresStore, database: str) -> None:
    tenant_id = await tenant_of(store)
    with pytest.raises(Unfit):
        await endpoint_of(store, tenant_id, headers={f"x-{n}": HeaderValue("v") for n in range(33)})
    endpoint_id = await endpoint_of(store, tenant_id)
    [restarted] = await stores(database, KEYS)
    [loaded] = await restarted.load_endpoints([endpoint_id])
    assert not loaded.locked and loaded.secrets[0].key == SECRET
    await restarted.close()


async def test_many_that_make_the_first_secrets_of_a_tenant_at_once_agree_on_one_data_key(
    store: PostgresStore, database: str
) -> None:
    tenant_id = await tenant_of(store)
    other, restarted = await stores(database, KEYS, KEYS)
    endpoint_ids = await asyncio.gather(*(endpoint_of((store, other)[n % 2], tenant_id) for n in range(10)))
    assert not any(each.locked for each in await restarted.load_endpoints(endpoint_ids))
    for each in (other, restarted):
        await each.close()


# ---- upgrades -------------------------------------------------------------------------------------------------------

OLDER = (
    "insert into nodes (node_id, pool, name, expires_at) values (gen_random_uuid(), 'default', 'old', now() + '1 min')"
)


async def test_while_a_process_of_the_release_before_lives_it_can_read_what_is_written(
    store: PostgresStore, sql: Any
) -> None:
    await sql.execute(OLDER)
    tenant_id = await tenant_of(store)
    endpoint_id = await endpoint_of(store, tenant_id)
    row = await sql.fetchrow("select key, sealed from endpoint_secrets")
    assert row["key"] == SECRET and row["sealed"] is not None
    await sql.execute("insert into endpoint_secrets (endpoint_id, key) values ($1, $2)", endpoint_id, b"o" * 24)
    assert await store.seal_plain_secrets() == 0
    [loaded] = await store.load_endpoints([endpoint_id])
    assert [secret.key for secret in loaded.secrets] == [b"o" * 24, SECRET]
    await sql.execute("update nodes set expires_at = now() - interval '1 s'")
    assert await store.seal_plain_secrets() == 2
    assert await store.seal_plain_secrets() == 0
    assert await sql.fetchval("select count(*) from endpoint_secrets where key is not null or sealed is null") == 0
    assert await store.load_endpoints([endpoint_id]) == [loaded]


async def test_an_api_process_of_the_release_before_counts_as_well_and_ours_do_not(
    store: PostgresStore, sql: Any
) -> None:
    tenant_id = await tenant_of(store)
    await store.register(uuid7(), pool="default", name="new", lease_s=60)
    await store.share_demand(uuid7(), {}, lease_s=60, since=Since(None, 1.0))
    await endpoint_of(store, tenant_id)
    assert await sql.fetchval("select count(*) from endpoint_secrets where key is not null") == 0
    await sql.execute("insert into ingest_nodes values (gen_random_uuid(), '{}', '{}', now() + interval '1 min')")
    await endpoint_of(store, tenant_id)
    assert await sql.fetchval("select count(*) from endpoint_secrets where key is not null") == 1


# ---- encryption keys ------------------------------------------------------------------------------------------------


async def test_a_rotation_goes_on_where_it_was_interrupted_and_opens_with_either_key_meanwhile(
    store: PostgresStore, database: str, sql: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [await with_headers(store) for _ in range(3)]
    rotating, fresh = await stores(database, OLD_AND_NEW, OLD_AND_NEW)
    monkeypatch.setattr("hookpost.storage.postgres.vault.ROWS_AT_ONCE", 2)
    step = await rotating.rewrap()
    assert (step.count, step.left) == (2, 2), "the platform's own data key is one, too"
    assert sorted(await needed_keys(database)) == ["k1", "k2"]
    loaded = await fresh.load_endpoints([endpoint_id for _, endpoint_id in made])
    assert all(not each.locked and each.secrets[0].key == SECRET for each in loaded)
    await rotating.close()
    [again] = await stores(database, OLD_AND_NEW)
    assert (await again.rewrap()).left == 0
    assert await needed_keys(database) == ["k2"]
    [new_alone] = await stores(database, Keyring({"k2": b"2" * 32}))
    assert [each.locked for each in await new_alone.load_endpoints([made[0][1]])] == [False]
    assert [each.locked for each in await store.load_endpoints([made[0][1]])] == [True], "it lacks the new key"
    for each in (fresh, again, new_alone):
        await each.close()


async def test_a_rotation_waits_for_processes_that_do_not_hold_the_new_key(store: PostgresStore, database: str) -> None:
    await tenant_of(store)
    await store.register(uuid7(), pool="default", name="worker-7", lease_s=60)
    [rotating] = await stores(database, OLD_AND_NEW)
    with pytest.raises(KeysMissing, match="worker-7 does not hold the encryption key k2"):
        await rotating.rewrap()
    tenant_id = await tenant_of(rotating)
    await endpoint_of(rotating, tenant_id)
    assert await needed_keys(database) == ["k1"], "nor is anything new wrapped with it"
    await rotating.close()


async def test_f34_without_its_key_what_is_sealed_locks_and_the_store_says_which_one_is_missing(
    store: PostgresStore, database: str
) -> None:
    tenant_id, endpoint_id = await with_headers(store)
    [stranger] = await stores(database, Keyring({"k9": b"9" * 32}))
    assert await stranger.missing_keys() == ["k1"]
    assert await store.missing_keys() == []
    [loaded] = await stranger.load_endpoints([endpoint_id])
    assert loaded.locked and loaded.secrets == () and loaded.headers is None
    for change in (
        stranger.get_secrets(tenant_id, endpoint_id),
        stranger.rotate_secret(tenant_id, endpoint_id, b"n" * 24, grace_s=0),
        stranger.update_endpoint(tenant_id, endpoint_id, {"description": "unaudited"}),
    ):
        with pytest.raises(SecretLocked):
            await change
    assert (await stranger.get_endpoint(tenant_id, endpoint_id))["description"] is None
    await stranger.close()


async def test_f34_maintenance_that_cannot_seal_says_so_and_goes_on(
    store: PostgresStore, database: str, sql: Any
) -> None:
    _, endpoint_id = await with_headers(store)
    await sql.execute("insert into endpoint_secrets (endpoint_id, key) values ($1, $2)", endpoint_id, b"o" * 24)
    await pause(database, Vault(KEYS))
    [stranger] = await stores(database, Keyring({"k9": b"9" * 32}))
    payloads = ObjectStore("memory:///")
    assert not await Maintenance(stranger, payloads, days_ahead=1, keep_days=30).once()
    assert await Maintenance(store, payloads, days_ahead=1, keep_days=30).once()
    assert await sql.fetchval("select count(*) from endpoint_secrets where key is not null") == 0
    await stranger.close()


async def test_f34_a_start_is_refused_by_the_id_of_the_key_that_is_missing_or_another_one(
    store: PostgresStore, database: str
) -> None:
    await check_keys(database, KEYS)
    await make_platform_key(database, Vault(KEYS))
    await make_platform_key(database, Vault(KEYS))
    await check_keys(database, KEYS)
    with pytest.raises(KeysMissing, match="the encryption key k1, which is not configured here"):
        await check_keys(database, Keyring({"k9": b"1" * 32}))
    with pytest.raises(KeysMissing, match="k1 is not the one that sealed") as wrong:
        await check_keys(database, Keyring({"k1": b"9" * 32}))
    assert "9999" not in str(wrong.value) and PLATFORM.hex not in str(wrong.value)
