"""Who may do what: every way a key can be wrong, scopes, and how fast a revocation works."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from uuid_utils.compat import uuid7

from hookpost.model import show_id
from hookpost.policy.keys import hash_secret, make_key, parse_key
from hookpost.policy.looks import OVERLAP_S, Since
from hookpost.storage.contract import ApiKey, NotFound, StoreUnavailable
from hookpost.storage.postgres.store import PostgresStore
from hookpost.storage.postgres.vault import Vault
from hookpost.web import auth
from hookpost.web.auth import Authenticator, Principal
from hookpost.web.problems import Problem
from tests.conftest import KEYS
from tests.web.rows import TenantClient, make_tenant

ENDPOINTS = "/v1/webhook_endpoints"
KEY = make_key(b"k" * 8, b"s" * 32)
TENANT = uuid4()


class Keys:
    """A store of keys in memory, that counts and can be held."""

    def __init__(self, **key: Any) -> None:
        parsed = parse_key(KEY)
        assert parsed is not None
        values = {"tenant_id": TENANT, "scopes": frozenset(), "expires_at": None, "revoked": False, **key}
        self.key: ApiKey | None = ApiKey(key_id=parsed.key_id, key_hash=hash_secret(parsed.secret), **values)
        self.asked = 0
        self.looked = 0
        self.time = 1e9
        self.used: list[dict[str, float]] = []
        self.away = False
        self.revoked: dict[str, float] = {}
        self.answering = asyncio.Event()
        self.answering.set()
        self.tenants = {TENANT}
        self.free = asyncio.Event()
        self.free.set()

    async def find_key(self, key_id: str) -> ApiKey | None:
        self.asked += 1
        found = self.key
        await self.free.wait()
        return found if found is not None and found.key_id == key_id else None

    async def revoked_keys(self, since: Since) -> tuple[frozenset[str], float]:
        assert since.ago_s >= OVERLAP_S
        self.looked += 1
        if self.away:
            raise StoreUnavailable("away")
        behind = since.by(self.time)
        found = frozenset(key_id for key_id, at in self.revoked.items() if at > behind)
        await self.answering.wait()
        return found, self.time

    def revoke(self) -> None:
        assert self.key is not None
        self.revoked[self.key.key_id] = self.time
        self.key = replace(self.key, revoked=True)

    async def note_used_keys(self, used: Mapping[str, float]) -> None:
        if self.away:
            raise StoreUnavailable("away")
        self.used.append(dict(used))

    async def get_tenant(self, tenant_id: UUID) -> dict[str, Any]:
        if tenant_id not in self.tenants:
            raise NotFound("there is no such tenant")
        return {}


def made(store: Keys, clock: Any, **options: Any) -> Authenticator:
    return Authenticator(store, now=clock.now, monotonic=clock.monotonic, **options)


async def refused(authenticator: Authenticator, authorization: str | None, tenant: str | None = None) -> int:
    with pytest.raises(Problem) as caught:
        await authenticator.principal(authorization, tenant)
    return caught.value.status


BAD = [
    None,
    "",
    "Bearer",
    "Bearer ",
    "Basic " + KEY,
    KEY,
    "Bearer " + KEY[:-1],
    "Bearer " + KEY[:-1] + ("0" if KEY[-1] != "0" else "1"),
    "Bearer " + KEY.replace("hpk_", "xyz_"),
    "Bearer " + make_key(b"k" * 8, b"t" * 32),
    "Bearer " + make_key(b"q" * 8, b"s" * 32),
    "Bearer " + KEY + " x",
    "Bearer " + "x" * 5000,
    "Bearer \u00ff\u0000",
]


@pytest.mark.parametrize("authorization", BAD, ids=range(len(BAD)))
async def test_every_wrong_key_gets_the_same_answer(
    tenant: TenantClient, authorization: str | None, clock: Any
) -> None:
    assert await refused(made(Keys(), clock), authorization) == 401
    if authorization is not None and not (authorization.isascii() and authorization.isprintable()):
        return
    headers = {} if authorization is None else {"Authorization": authorization}
    answers = [
        await tenant.client.get(ENDPOINTS, headers={"Authorization": ""} | headers),
        await tenant.client.get(ENDPOINTS, headers={"Authorization": "Bearer " + make_key(b"z" * 8, b"z" * 32)}),
    ]
    assert answers[0].status_code == 401
    assert answers[0].headers["www-authenticate"].startswith("Bearer")
    assert answers[0].content == answers[1].content


async def test_the_scheme_is_not_case_sensitive(clock: Any) -> None:
    assert (await made(Keys(), clock).principal(f"bearer  {KEY}", None)).tenant_id == TENANT


async def test_a_known_key_is_not_looked_up_again_within_a_second(clock: Any) -> None:
    store = Keys()
    authenticator = made(store, clock)
    for _ in range(100):
        assert await authenticator.principal(f"Bearer {KEY}", None) == Principal(TENANT, False, auth.SCOPES)
    assert (store.asked, store.looked) == (1, 0)


async def test_keys_in_use_cost_one_question_a_second_however_many_they_are(clock: Any) -> None:
    store = Keys()
    authenticator = made(store, clock)
    for _ in range(5):
        await asyncio.gather(*(authenticator.principal(f"{'Bearer':<{n}} {KEY}", None) for n in range(6, 106)))
        clock.advance(auth.KEY_CACHE_S)
    assert (store.asked, store.looked) == (100, 4)


async def test_a_key_in_steady_use_never_has_to_wait_for_the_store(clock: Any) -> None:
    store = Keys()
    authenticator = made(store, clock)
    assert authenticator.known(f"Bearer {KEY}", None) is None
    await authenticator.principal(f"Bearer {KEY}", None)
    for _ in range(10):
        assert authenticator.known(f"Bearer {KEY}", None) == Principal(TENANT, False, auth.SCOPES)
        clock.advance(auth.LOOK_AHEAD_S)
        authenticator.known(f"Bearer {KEY}", None)
        authenticator.known(f"Bearer {KEY}", None)
        await asyncio.sleep(0)
    assert (store.asked, store.looked) == (1, 10)


async def test_a_key_that_was_revoked_or_expired_or_cannot_be_asked_about_is_not_known(clock: Any) -> None:
    store = Keys(expires_at=clock.now() + 100.0)
    authenticator = made(store, clock)
    await authenticator.principal(f"Bearer {KEY}", None)
    store.answering.clear()
    clock.advance(auth.KEY_CACHE_S)
    assert authenticator.known(f"Bearer {KEY}", None) is None, "nobody can say whether it was revoked"
    store.answering.set()
    await authenticator.principal(f"Bearer {KEY}", None)
    assert authenticator.known(f"Bearer {KEY}", None) is not None
    store.revoke()
    clock.advance(auth.LOOK_AHEAD_S)
    assert authenticator.known(f"Bearer {KEY}", None) is not None
    await asyncio.sleep(0)
    assert authenticator.known(f"Bearer {KEY}", None) is None

    store = Keys(expires_at=clock.now() + 0.1)
    authenticator = made(store, clock)
    await authenticator.principal(f"Bearer {KEY}", None)
    clock.advance(0.2)
    assert authenticator.known(f"Bearer {KEY}", None) is None


async def test_a_look_up_slower_than_a_look_for_revocations_is_not_trusted_for_long(clock: Any) -> None:
    store = Keys()
    authenticator = made(store, clock)
    await authenticator.principal(f"Bearer {KEY}", None)
    store.free.clear()
    slow = asyncio.create_task(authenticator.principal(f"bearer {KEY}", None))
    while store.asked < 2:
        await asyncio.sleep(0)
    store.revoke()
    clock.advance(auth.KEY_CACHE_S)
    assert await refused_later(store, authenticator) == 401
    await slow
    assert await refused(authenticator, f"bearer {KEY}") == 401


@pytest.mark.parametrize("set_by_s", [3600.0, -3600.0])
async def test_f29_a_key_revoked_before_the_databases_clock_was_set_is_forgotten(clock: Any, set_by_s: float) -> None:
    """As by a failover, while no look was answered. What was revoked a moment ago seems to have been long ago."""
    store = Keys()
    authenticator = made(store, clock)
    await authenticator.principal(f"Bearer {KEY}", None)
    clock.advance(auth.KEY_CACHE_S)
    store.time += auth.KEY_CACHE_S
    await authenticator.principal(f"Bearer {KEY}", None)
    assert store.looked == 1
    store.revoke()
    store.time += set_by_s
    clock.advance(auth.KEY_CACHE_S)
    assert await refused(authenticator, f"Bearer {KEY}") == 401


async def refused_later(store: Keys, authenticator: Authenticator) -> int:
    """The key is asked for again while the slow look-up is held; then both are answered."""
    asking = asyncio.create_task(refused(authenticator, f"Bearer {KEY}"))
    while store.asked < 3:
        await asyncio.sleep(0)
    store.free.set()
    return await asking


async def test_without_an_answer_about_revocations_no_key_is_trusted(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "LOOK_UP_S_MAX", 0.01)
    store = Keys()
    authenticator = made(store, clock)
    await authenticator.principal(f"Bearer {KEY}", None)
    clock.advance(auth.KEY_CACHE_S)
    store.answering.clear()
    with pytest.raises(StoreUnavailable):
        await authenticator.principal(f"Bearer {KEY}", None)
    store.answering.set()


async def test_a_tenant_that_the_admin_acts_for_is_looked_up_again_each_second(clock: Any) -> None:
    store = Keys(tenant_id=None)
    authenticator = made(store, clock)
    tenant = show_id("ten", TENANT)
    await authenticator.principal(f"Bearer {KEY}", tenant)
    store.tenants.clear()
    clock.advance(auth.KEY_CACHE_S)
    assert await refused(authenticator, f"Bearer {KEY}", tenant) == 404


async def test_a_revoked_key_stops_working_within_a_second(clock: Any) -> None:
    store = Keys()
    authenticator = made(store, clock)
    await authenticator.principal(f"Bearer {KEY}", None)
    store.revoke()
    clock.advance(auth.KEY_CACHE_S)
    assert await refused(authenticator, f"Bearer {KEY}") == 401


async def test_a_key_expires_although_it_is_remembered(clock: Any) -> None:
    authenticator = made(Keys(expires_at=clock.now() + 0.5), clock)
    await authenticator.principal(f"Bearer {KEY}", None)
    clock.advance(0.5)
    assert await refused(authenticator, f"Bearer {KEY}") == 401


async def test_many_at_once_ask_the_store_once(clock: Any) -> None:
    store = Keys()
    store.free.clear()
    authenticator = made(store, clock)
    asking = [asyncio.create_task(authenticator.principal(f"Bearer {KEY}", None)) for _ in range(50)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking[0].cancel()
    store.free.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert {answer for answer in answers[1:] if isinstance(answer, Principal)} == {
        Principal(TENANT, False, auth.SCOPES)
    }
    assert store.asked == 1


async def test_a_look_up_that_began_before_a_revocation_is_not_joined_after_it(clock: Any) -> None:
    store = Keys()
    store.free.clear()
    authenticator = made(store, clock)
    early = asyncio.create_task(authenticator.principal(f"Bearer {KEY}", None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    store.revoke()
    clock.advance(auth.KEY_CACHE_S)
    late = asyncio.create_task(authenticator.principal(f"Bearer {KEY}", None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    store.free.set()
    assert (await early).tenant_id == TENANT
    with pytest.raises(Problem):
        await late
    assert await refused(authenticator, f"Bearer {KEY}") == 401


async def test_a_store_that_hangs_is_found_out_in_time_and_does_not_pile_up_look_ups(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "LOOK_UP_S_MAX", 0.01)
    monkeypatch.setattr(auth, "LOOK_UPS_MAX", 2)
    store = Keys()
    store.free.clear()
    authenticator = made(store, clock)
    for spaces in (1, 1, 2, 3):
        with pytest.raises(StoreUnavailable):
            await authenticator.principal(f"Bearer{' ' * spaces}{KEY}", None)
    assert store.asked == 2
    store.free.set()
    assert (await authenticator.principal(f"Bearer {KEY}", None)).tenant_id == TENANT


async def test_what_is_remembered_is_bounded(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "KEYS_CACHED_MAX", 3)
    authenticator = made(Keys(), clock)
    for spaces in range(1, 10):
        await authenticator.principal(f"Bearer{' ' * spaces}{KEY}", None)
    assert len(authenticator._known) == 3
    assert authenticator._asked == {}


async def test_an_admin_key_acts_for_the_tenant_it_names(clock: Any) -> None:
    authenticator = made(Keys(), clock, admin_key_hash=hash_secret("the operator's own"))
    own = "Bearer the operator's own"
    assert await authenticator.principal(own, None) == Principal(None, True, auth.SCOPES)
    assert await authenticator.principal(own, show_id("ten", TENANT)) == Principal(TENANT, True, auth.SCOPES)
    for unknown in (show_id("ten", uuid4()), "", "ten_x", "ep_" + TENANT.hex):
        assert await refused(authenticator, own, unknown) == 404


async def test_a_stored_admin_key_works_until_the_operator_brings_one(clock: Any) -> None:
    store = Keys(tenant_id=None)
    assert (await made(store, clock).principal(f"Bearer {KEY}", None)).admin
    assert await refused(made(store, clock, admin_key_hash=hash_secret("x" * 16)), f"Bearer {KEY}") == 401


async def test_a_tenants_key_may_name_its_own_tenant_only(clock: Any) -> None:
    authenticator = made(Keys(), clock)
    assert (await authenticator.principal(f"Bearer {KEY}", show_id("ten", TENANT))).tenant_id == TENANT
    assert await refused(authenticator, f"Bearer {KEY}", show_id("ten", uuid4())) == 404
    assert await refused(authenticator, f"Bearer {KEY}", "nonsense") == 404


async def test_a_revocation_reaches_every_process_within_a_second_whatever_each_has_remembered(
    store: PostgresStore, database: str, clock: Any
) -> None:
    """Two API processes on one database, each with a cache of its own, in the tests' time."""
    other_store = PostgresStore(database, application="test", vault=Vault(KEYS))
    await other_store.open()
    tenant_id = uuid7()
    await store.create_tenant(tenant_id, {"name": "acme"})
    keys = [make_key(bytes([n]) * 8, b"s" * 32) for n in (1, 2)]
    for key in keys:
        parsed = parse_key(key)
        assert parsed is not None
        await store.create_key(
            {"key_id": parsed.key_id, "tenant_id": tenant_id, "name": "k", "key_hash": hash_secret(parsed.secret)},
            keys_max=9,
        )
    revoked, kept = (f"Bearer {key}" for key in keys)
    one, other = (Authenticator(each, now=clock.now, monotonic=clock.monotonic) for each in (store, other_store))
    for process in (one, other):
        for key in (revoked, kept):
            await process.principal(key, None)
    clock.advance(auth.KEY_CACHE_S * 0.9)
    await store.revoke_key(UUID(int=tenant_id.int), "01" * 8)
    clock.advance(auth.KEY_CACHE_S)
    for process in (one, other):
        assert process.known(revoked, None) is None
        assert await refused(process, revoked) == 401
        assert (await process.principal(kept, None)).tenant_id == UUID(int=tenant_id.int)
    await other_store.close()


async def test_when_a_key_was_last_used_is_written_down_now_and_then_and_survives_a_store_that_is_away(
    clock: Any,
) -> None:
    store = Keys()
    authenticator = made(store, clock, admin_key_hash=hash_secret("the operator's own"))
    assert store.key is not None
    await authenticator.note_used()
    for _ in range(3):
        await authenticator.principal(f"Bearer {KEY}", None)
        await authenticator.principal("Bearer the operator's own", None)
        authenticator.known(f"Bearer {KEY}", None)
        clock.advance(0.1)
    last = clock.now() - 0.1
    store.away = True
    await authenticator.note_used()
    assert store.used == []
    store.away = False
    await authenticator.note_used()
    await authenticator.note_used()
    [noted] = store.used
    assert noted == {store.key.key_id: pytest.approx(last)}


# ---- while the store is away, and events need none -------------------------------------------------------------------


async def known_for_half_a_minute(clock: Any) -> tuple[Keys, Authenticator]:
    """A store, and a process that has seen the key and outlives the store for so long."""
    store = Keys()
    authenticator = made(store, clock, outage_s=30.0)
    await authenticator.principal(f"Bearer {KEY}", None)
    return store, authenticator


async def test_a_known_key_outlives_a_store_that_is_away_for_so_long_and_no_longer(clock: Any) -> None:
    store, authenticator = await known_for_half_a_minute(clock)
    store.away = True
    clock.advance(29.0)
    assert (await authenticator.principal(f"Bearer {KEY}", None)).tenant_id == TENANT
    assert authenticator.known(f"Bearer {KEY}", None) is not None
    clock.advance(1.5)
    assert authenticator.known(f"Bearer {KEY}", None) is None
    with pytest.raises(StoreUnavailable):
        await authenticator.principal(f"Bearer {KEY}", None)


async def test_nobody_waits_for_a_look_that_is_late(clock: Any) -> None:
    store, authenticator = await known_for_half_a_minute(clock)
    store.answering.clear()
    clock.advance(0.6)
    assert authenticator.known(f"Bearer {KEY}", None) is not None, "the look began ahead of its time"
    for _ in range(20):
        clock.advance(0.5)
        assert authenticator.known(f"Bearer {KEY}", None) is not None
        assert (await authenticator.principal(f"Bearer {KEY}", None)).tenant_id == TENANT
    store.answering.set()


async def test_nobody_waits_for_the_looks_that_come_after_one_that_failed(clock: Any) -> None:
    store, authenticator = await known_for_half_a_minute(clock)
    store.away = True
    clock.advance(1.5)
    await authenticator.principal(f"Bearer {KEY}", None)
    store.away = False
    store.answering.clear()
    for _ in range(4):
        clock.advance(0.2)
        assert authenticator.known(f"Bearer {KEY}", None) is not None
        await asyncio.sleep(0)
    assert store.looked == 2
    store.answering.set()


@pytest.mark.parametrize("fast", [True, False])
async def test_a_key_that_was_revoked_meanwhile_ends_with_the_first_look_that_is_answered(
    clock: Any, *, fast: bool
) -> None:
    store, authenticator = await known_for_half_a_minute(clock)
    store.away = True
    clock.advance(2.0)
    await authenticator.principal(f"Bearer {KEY}", None)
    store.revoke()
    store.away = False
    # It is looked for again and again, whoever asks in whatever way.
    clock.advance(auth.LOOK_AHEAD_S)
    if fast:
        assert authenticator.known(f"Bearer {KEY}", None) is not None
    else:
        await authenticator.principal(f"Bearer {KEY}", None)
    await asyncio.sleep(0)
    assert authenticator.known(f"Bearer {KEY}", None) is None
    assert await refused(authenticator, f"Bearer {KEY}") == 401


async def test_with_a_journal_that_needs_the_store_a_key_is_as_old_as_ever(clock: Any) -> None:
    store = Keys()
    authenticator = made(store, clock)
    await authenticator.principal(f"Bearer {KEY}", None)
    store.away = True
    clock.advance(auth.KEY_CACHE_S + 0.1)
    assert authenticator.known(f"Bearer {KEY}", None) is None
    with pytest.raises(StoreUnavailable):
        await authenticator.principal(f"Bearer {KEY}", None)


# ---- over HTTP -----------------------------------------------------------------------------------------------------

ROUTES = [
    ("GET", ENDPOINTS, "read"),
    ("GET", "/v1/events", "read"),
    ("GET", f"/v1/events/evt_{uuid4().hex}", "read"),
    ("GET", "/v1/attempts", "read"),
    ("GET", "/v1/deliveries", "read"),
    ("GET", "/v1/dead_letters", "read"),
    ("GET", ENDPOINTS + "/{id}", "read"),
    ("GET", ENDPOINTS + "/{id}/deliveries?status=dead", "read"),
    ("GET", ENDPOINTS + "/{id}/secret", "endpoints:write"),
    ("POST", ENDPOINTS, "endpoints:write"),
    ("PATCH", ENDPOINTS + "/{id}", "endpoints:write"),
    ("DELETE", ENDPOINTS + "/{id}", "endpoints:write"),
    ("POST", ENDPOINTS + "/{id}/pause", "endpoints:write"),
    ("POST", ENDPOINTS + "/{id}/resume", "endpoints:write"),
    ("POST", ENDPOINTS + "/{id}/test", "endpoints:write"),
    ("POST", ENDPOINTS + "/{id}/secret/rotate", "endpoints:write"),
    ("POST", "/v1/events/evt_" + "0" * 32 + "/replay", "replay"),
    ("POST", "/v1/events/evt_" + "0" * 32 + "/cancel", "replay"),
    ("POST", "/v1/events/evt_" + "0" * 32 + "/retry_now", "replay"),
    ("GET", "/v1/replays", "replay"),
    ("GET", "/v1/replays/rpl_" + "0" * 32, "replay"),
    ("GET", "/v1/stats", "read"),
    ("GET", "/v1/usage", "read"),
    ("GET", "/v1/cost", "read"),
    ("DELETE", "/v1/replays/rpl_" + "0" * 32, "replay"),
]


@pytest.mark.parametrize("given", sorted(auth.SCOPES))
async def test_a_key_does_what_its_scopes_say(admin: httpx.AsyncClient, given: str) -> None:
    tenant = await make_tenant(admin, scopes=[given])
    for method, path, needed in ROUTES:
        body = {"url": "https://example.com"} if method in ("POST", "PATCH") and path.count("/") <= 3 else None
        answer = await tenant.request(method, path.format(id=f"ep_{uuid4().hex}"), json=body)
        if given == needed:
            assert answer.status_code in (200, 201, 404), (method, path, answer.text)
        else:
            assert answer.status_code == 403, (method, path, answer.text)
            assert needed in answer.json()["detail"]


async def test_tenants_and_keys_need_the_admin_key(tenant: TenantClient) -> None:
    own = f"/v1/tenants/{tenant.tenant_id}"
    for method, path in [
        ("GET", "/v1/tenants"), ("POST", "/v1/tenants"), ("GET", own), ("DELETE", own), ("GET", f"{own}/api_keys"),
    ]:  # fmt: skip
        assert (await tenant.request(method, path, json={"name": "x"})).status_code == 403
    assert (await tenant.get(f"/v1/tenants/ten_{uuid4().hex}")).status_code == 404


async def test_a_revoked_key_is_refused_over_http(admin: httpx.AsyncClient, tenant: TenantClient, clock: Any) -> None:
    assert (await tenant.get(ENDPOINTS)).status_code == 200
    path = f"/v1/tenants/{tenant.tenant_id}/api_keys"
    key_id = (await admin.get(path)).json()["data"][0]["api_key_id"]
    assert (await admin.delete(f"{path}/{key_id}")).status_code == 204
    assert (await admin.delete(f"{path}/key_{'0' * 16}")).status_code == 404
    clock.advance(auth.KEY_CACHE_S)
    assert (await tenant.get(ENDPOINTS)).status_code == 401
    assert (await admin.get(path)).json()["data"][0]["revoked_at"] is not None


async def test_unknown_revoked_expired_and_altered_keys_look_alike(
    admin: httpx.AsyncClient, clock: Any, sql: Any
) -> None:
    """S3: the same status, headers and body, byte for byte."""
    revoked, expired = await make_tenant(admin), await make_tenant(admin)
    assert (await revoked.get(ENDPOINTS)).status_code == 200
    await sql.execute("update api_keys set revoked_at = now() where tenant_id = $1", revoked.uuid)
    await sql.execute("update api_keys set expires_at = '2020-01-01' where tenant_id = $1", expired.uuid)
    clock.advance(2 * auth.KEY_CACHE_S)
    wrong = make_key(bytes.fromhex(revoked.key.split("_")[1]), b"w" * 32)
    tried = {"revoked": revoked.key, "expired": expired.key, "unknown": make_key(b"u" * 8, b"u" * 32), "wrong": wrong,
             "checksum": revoked.key[:-1] + ("0" if revoked.key[-1] != "0" else "1"), "cut": revoked.key[:-9]}  # fmt: skip
    answers = {
        what: await admin.get(ENDPOINTS, headers={"Authorization": f"Bearer {key}"}) for what, key in tried.items()
    }
    assert {answer.status_code for answer in answers.values()} == {401}
    assert len({answer.content for answer in answers.values()}) == 1
    assert len({tuple(sorted(answer.headers.items())) for answer in answers.values()}) == 1
    assert answers["revoked"].headers["content-type"] == "application/problem+json"
    in_query = await admin.get(ENDPOINTS, params={"api_key": revoked.key}, headers={"Authorization": ""})
    assert in_query.status_code == 401, "a key in a URL ends up in logs: it counts for nothing"


async def test_a_key_is_stored_as_a_hash_and_shows_when_it_was_used(
    admin: httpx.AsyncClient, store: PostgresStore, sql: Any
) -> None:
    tenant = await make_tenant(admin)
    path = f"/v1/tenants/{tenant.tenant_id}/api_keys"
    row = await sql.fetchrow("select * from api_keys where tenant_id = $1", tenant.uuid)
    secret = tenant.key.rpartition("_")[2][:64]
    assert len(bytes.fromhex(secret)) == 32
    assert not any(secret in str(value) for value in row.values()) and len(row["key_hash"]) == 32
    [shown] = (await admin.get(path)).json()["data"]
    assert shown["last_used_at"] is None and "key" not in shown
    await store.note_used_keys({row["key_id"]: 1_800_000_000.0, "0" * 16: 1.0})
    await store.note_used_keys({row["key_id"]: 1_800_000_030.0})
    assert (await admin.get(path)).json()["data"][0]["last_used_at"] == "2027-01-15T08:00:00.000Z"
    await store.note_used_keys({row["key_id"]: 1_800_000_061.0})
    assert (await admin.get(path)).json()["data"][0]["last_used_at"] == "2027-01-15T08:01:01.000Z"


async def test_no_route_but_health_and_documents_is_open(admin: httpx.AsyncClient) -> None:
    paths = (await admin.get("/openapi.json")).json()["paths"]
    for path, operations in paths.items():
        for method in operations:
            if (method, path) in {("post", "/v1/events"), ("post", "/v1/events/batch")}:
                continue
            answer = await admin.request(method, path, headers={"Authorization": "Bearer wrong"})
            assert (answer.status_code == 401) == path.startswith(("/v1/", "/metrics")), path
