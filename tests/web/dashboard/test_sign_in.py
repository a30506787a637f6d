"""Who gets in, what the session is, and what keeps other sites out."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from hookpost.storage.postgres.store import PostgresStore
from hookpost.web.dashboard.entered import REFUSED_MAX, SignIns
from hookpost.web.dashboard.guard import is_own_host, is_own_origin, safe_target
from hookpost.web.dashboard.session import SESSION_S_MAX, Sessions, is_own_form
from hookpost.web.dashboard.throttle import ADDRESSES_MAX, FAILURES_MAX, WINDOW_S, Throttle, wait_after_s
from tests.web.conftest import ADMIN_KEY, Clock
from tests.web.dashboard.conftest import Browser
from tests.web.rows import TenantClient, make_tenant

SECRET = b"s" * 32
PAGES = ("/dashboard", "/dashboard/search", "/dashboard/endpoints", "/dashboard/events/evt_0")


# ---- pure -------------------------------------------------------------------------------------------------------------


def test_a_session_is_read_back_until_it_is_too_old() -> None:
    sessions = Sessions(SECRET)
    cookie = sessions.seal("key.print", now=1000.0, nonce=b"n" * 16)
    found = sessions.read(cookie, now=1000.0 + SESSION_S_MAX)
    assert found is not None
    assert found.reference == "key.print"
    assert sessions.read(cookie, now=1002.0 + SESSION_S_MAX) is None
    assert sessions.read(cookie, now=900.0) is None, "sealed in the future"


@pytest.mark.parametrize("other", ["", "x", "é", "A" * 600, "====", "AAAA" * 20])
def test_a_cookie_that_we_did_not_seal_is_none(other: str) -> None:
    assert Sessions(SECRET).read(other, now=0.0) is None


def test_no_byte_of_a_cookie_can_be_altered() -> None:
    sessions = Sessions(SECRET)
    cookie = sessions.seal("key.print", now=1000.0, nonce=b"n" * 16)
    for place in range(len(cookie) - 1):
        altered = cookie[:place] + ("A" if cookie[place] != "A" else "B") + cookie[place + 1 :]
        assert sessions.read(altered, now=1000.0) is None
    assert Sessions(b"o" * 32).read(cookie, now=1000.0) is None


def test_a_form_of_one_session_is_not_good_in_another() -> None:
    sessions = Sessions(SECRET)
    one, other = (
        sessions.read(sessions.seal("k.p", now=0.0, nonce=nonce), now=0.0) for nonce in (b"1" * 16, b"2" * 16)
    )
    assert one is not None and other is not None
    assert is_own_form(one, one.csrf)
    assert not is_own_form(one, other.csrf)
    assert not is_own_form(one, "")


def test_an_address_waits_after_so_many_failures_and_only_that_one() -> None:
    throttle = Throttle()
    for _ in range(FAILURES_MAX):
        assert throttle.wait_s("a", 0.0) == 0.0
        throttle.failed("a", 0.0)
    assert throttle.wait_s("a", 1.0) == WINDOW_S - 1.0
    assert throttle.wait_s("b", 1.0) == 0.0
    assert throttle.wait_s("a", WINDOW_S) == 0.0
    throttle.succeeded("a")
    assert throttle.wait_s("a", 1.0) == 0.0


def test_the_throttle_forgets_whoever_failed_longest_ago() -> None:
    throttle = Throttle()
    for number in range(ADDRESSES_MAX + 5):
        throttle.failed(str(number), 0.0)
    assert len(throttle._failures) == ADDRESSES_MAX
    assert "4" not in throttle._failures


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost:8080", True), ("127.0.0.1", True), ("[::1]:8080", True), ("192.0.2.1:80", True),
        ("hooks.example.com", True), ("HOOKS.example.com:443", True), ("evil.example", False), ("", False), (None, False),
        ("hooks.example.com.evil.example", False), ("a b", False), ("localhost@evil.example", False),
    ],
)  # fmt: skip
def test_only_names_that_we_are_reached_by_are_served(host: str | None, own: bool) -> None:
    assert is_own_host(host, "https://hooks.example.com") is own


@pytest.mark.parametrize(
    ("origin", "site", "own"),
    [
        (None, None, True), ("http://localhost:8080", "same-origin", True), ("https://localhost:8080", None, True),
        ("http://evil.example", None, False), ("null", None, False), (None, "cross-site", False),
        ("http://localhost:9", "same-site", False),
    ],
)  # fmt: skip
def test_forms_of_other_origins_are_refused(origin: str | None, site: str | None, own: bool) -> None:
    assert is_own_origin("localhost:8080", origin, site) is own


@pytest.mark.parametrize(
    ("wanted", "target"),
    [
        ("/dashboard/search?q=a&b=%20", "/dashboard/search?q=a&b=%20"), ("/dashboard", "/dashboard"),
        ("//evil.example", "/dashboard"), ("https://evil.example", "/dashboard"), ("/dashboardx", "/dashboard"),
        ("/dashboard/\\evil", "/dashboard"), ("/dashboard/\r\nSet-Cookie: a", "/dashboard"), (None, "/dashboard"),
    ],
)  # fmt: skip
def test_after_signing_in_one_stays_here(wanted: str | None, target: str) -> None:
    assert safe_target(wanted) == target


# ---- over HTTP --------------------------------------------------------------------------------------------------------


async def test_every_page_leads_a_stranger_to_the_sign_in_and_back(stranger: Browser) -> None:
    for page in PAGES:
        answer = await stranger.get(page)
        assert answer.status_code == 303, page
        assert answer.headers["location"].startswith("/dashboard/sign-in")
    assert "next=/dashboard/search%3Fq%3Da" in (await stranger.get("/dashboard/search?q=a")).headers["location"]


async def test_a_key_opens_a_session_that_does_not_hold_it(stranger: Browser, tenant: TenantClient) -> None:
    answer = await stranger.sign_in(tenant.key, next="/dashboard/search?q=x")
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/search?q=x")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/dashboard" in cookie
    assert tenant.key not in cookie and tenant.key[-20:] not in cookie
    assert (await stranger.get("/dashboard/search")).status_code == 200


async def test_what_is_no_key_opens_none(stranger: Browser) -> None:
    for key in ("", "nonsense", ADMIN_KEY + "x", "x" * 5000, "é\0"):
        answer = await stranger.sign_in(key)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert "not valid" in answer.text


async def test_a_revoked_key_ends_its_sessions_within_a_second(
    admin: httpx.AsyncClient, stranger: Browser, clock: Clock
) -> None:
    made = await make_tenant(admin)
    assert (await stranger.sign_in(made.key)).status_code == 303
    keys = (await admin.get(f"/v1/tenants/{made.tenant_id}/api_keys")).json()["data"]
    await admin.delete(f"/v1/tenants/{made.tenant_id}/api_keys/{keys[0]['api_key_id']}")
    clock.advance(1.1)
    assert (await stranger.get("/dashboard/search")).status_code == 303


async def test_too_many_wrong_keys_make_an_address_wait(stranger: Browser, tenant: TenantClient) -> None:
    for _ in range(FAILURES_MAX):
        assert (await stranger.sign_in("wrong")).status_code == 401
    answer = await stranger.sign_in(tenant.key)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) <= WINDOW_S


async def test_wrong_keys_at_one_process_count_at_the_others(
    stranger: Browser, elsewhere: Browser, tenant: TenantClient
) -> None:
    for number in range(FAILURES_MAX):
        assert (await (stranger if number % 2 else elsewhere).sign_in("wrong")).status_code == 401
    for browser in (stranger, elsewhere):
        answer = await browser.sign_in(tenant.key)
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= WINDOW_S


async def test_a_right_key_at_one_process_is_known_at_the_others(
    stranger: Browser, elsewhere: Browser, tenant: TenantClient
) -> None:
    for browser in (stranger, elsewhere):
        for _ in range(FAILURES_MAX - 1):
            assert (await browser.sign_in("wrong")).status_code == 401
        assert (await browser.sign_in(tenant.key)).status_code == 303


@pytest.mark.parametrize(
    ("ages_s", "wait_s"),
    [([], 0.0), ([1.0] * (FAILURES_MAX - 1), 0.0), ([1.0, *[20.0] * (FAILURES_MAX - 1)], 40.0), ([90.0] * 10, 0.0)],
)
def test_an_address_waits_until_few_enough_failures_are_a_minute_old(ages_s: list[float], wait_s: float) -> None:
    assert wait_after_s(ages_s) == wait_s


async def test_signing_out_takes_the_cookie_away(browser: Browser) -> None:
    answer = await browser.post("/dashboard/sign-out")
    assert answer.headers["location"] == "/dashboard/sign-in"
    assert (await browser.get("/dashboard/search")).status_code == 303


async def test_a_form_without_the_token_of_its_session_does_nothing(browser: Browser) -> None:
    for fields in ({}, {"csrf": "0" * 64}):
        answer = await browser.client.post("/dashboard/sign-out", data=fields)
        assert answer.status_code == 403
    answer = await browser.post("/dashboard/sign-out", headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    assert (await browser.get("/dashboard/search")).status_code == 200


async def test_a_foreign_host_is_served_nothing(stranger: Browser) -> None:
    answer = await stranger.get("/dashboard/sign-in", headers={"host": "rebound.example"})
    assert answer.status_code == 421
    assert "HOOKPOST_PUBLIC_URL" in answer.text


async def test_every_answer_carries_the_policy_and_is_not_stored(stranger: Browser, browser: Browser) -> None:
    for path in ("/dashboard/sign-in", "/dashboard/search", "/dashboard/nowhere", "/dashboard/search?http_status=9"):
        headers = (await browser.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy, path
        assert headers["cache-control"] == "no-store"
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"


async def test_static_files_are_kept_by_what_they_hold(stranger: Browser) -> None:
    page = (await stranger.get("/dashboard/sign-in")).text
    path = page.split('rel="stylesheet" href="')[1].split('"')[0]
    answer = await stranger.get(path)
    assert answer.status_code == 200
    assert "immutable" in answer.headers["cache-control"]
    again = await stranger.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    for name in ("../app.py", "%2e%2e%2fapp.py", "nothing"):
        assert (await stranger.get(f"/dashboard/static/{name}")).status_code == 404


async def test_a_form_that_is_too_large_or_of_another_type_is_refused(browser: Browser) -> None:
    answer = await browser.client.post("/dashboard/sign-out", json={})
    assert answer.status_code == 415
    answer = await browser.client.post(
        "/dashboard/sign-in",
        content=b"key=" + b"x" * (5 << 20),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 413


# ---- the audit log ----------------------------------------------------------------------------------------------------


async def entered(admin: httpx.AsyncClient, action: str = "") -> list[tuple[str, str, str]]:
    """Sign-ins in the log, the newest first: what, who, from where."""
    rows = (await admin.get("/v1/audit_log", params={"limit": 500})).json()["data"]
    return [(row["action"].removeprefix("dashboard."), row["actor"], row["address"])
            for row in rows if row["action"].startswith(f"dashboard.{action}")]  # fmt: skip


async def test_who_signs_in_and_out_stands_in_the_audit_log(
    admin: httpx.AsyncClient, tenant: TenantClient, stranger: Browser
) -> None:
    assert (await stranger.sign_in("no key")).status_code == 401
    await stranger.sign_in(tenant.key)
    await stranger.post("/dashboard/sign-out")
    key = (await admin.get(f"/v1/tenants/{tenant.tenant_id}/api_keys")).json()["data"][0]["api_key_id"]
    assert await entered(admin) == [
        ("sign_out", key, "192.0.2.7"), ("sign_in", key, "192.0.2.7"), ("sign_in_refused", "unknown", "192.0.2.7"),
    ]  # fmt: skip
    own = (await tenant.get("/v1/audit_log")).json()["data"]
    assert [row["action"] for row in own[:2]] == ["dashboard.sign_out", "dashboard.sign_in"]
    assert not any("refused" in row["action"] for row in own), "nobody knows whose key it was meant to be"


async def test_refused_sign_ins_cannot_fill_the_audit_log(store: PostgresStore) -> None:
    sign_ins = SignIns(store)
    for _ in range(REFUSED_MAX + 7):
        await sign_ins.refused("192.0.2.9", now=1000.0)
    await sign_ins.refused("192.0.2.9", now=1061.0)
    rows = (await store.list_audit(None, action=None, since=None, until=None, after=None, limit=500)).rows
    assert len(rows) == REFUSED_MAX + 1
    assert rows[0]["after"] == '{"left_out_before":7}'
    assert all(row["after"] is None for row in rows[1:])


async def test_no_key_that_was_tried_stands_in_the_audit_log(
    admin: httpx.AsyncClient, stranger: Browser, sql: Any
) -> None:
    await stranger.sign_in("canary-of-a-key")
    assert "canary" not in str(await sql.fetch("select * from audit_log"))
