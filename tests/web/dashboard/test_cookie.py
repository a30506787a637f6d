"""The cookie of a dashboard that people reach by https belongs to its host alone."""

from __future__ import annotations

import httpx

from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres.store import PostgresStore
from tests.web.conftest import Clock, Submitted, application
from tests.web.dashboard.conftest import Browser
from tests.web.rows import TenantClient

PUBLIC = "https://hooks.example.com"


async def test_over_https_no_neighbouring_host_and_nobody_on_the_line_can_plant_a_session(
    store: PostgresStore, payloads: ObjectStore, clock: Clock, submitted: Submitted, tenant: TenantClient
) -> None:
    reached = application(store, payloads, clock, submitted, public_url=PUBLIC)
    async with httpx.AsyncClient(transport=reached, base_url=PUBLIC) as client:
        browser = Browser(client)
        cookie = (await browser.sign_in(tenant.key)).headers["set-cookie"]
        name, _, value = cookie.partition(";")[0].partition("=")
        assert name == "__Host-hookpost_session"
        assert "; Secure" in cookie and "; Path=/;" in f"{cookie};" and "Domain" not in cookie
        assert (await browser.get("/dashboard/search")).status_code == 200
        client.cookies.clear()
        planted = {"cookie": f"hookpost_session={value}"}
        assert (await browser.get("/dashboard/search", headers=planted)).status_code == 303
        assert (await browser.sign_in(tenant.key)).status_code == 303
        gone = (await browser.post("/dashboard/sign-out")).headers["set-cookie"]
        assert gone.startswith(name) and "Max-Age=0" in gone and "; Secure" in gone and "; Path=/;" in f"{gone};"
