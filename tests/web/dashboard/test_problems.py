"""What goes wrong is a page that says what it is about and what to do next."""

from __future__ import annotations

import httpx

from hookpost.storage.postgres.store import PostgresStore
from hookpost.web.dashboard.forms import FORM_BYTES_MAX
from tests.web.dashboard.conftest import Browser, text_of
from tests.web.rows import TenantClient

EVENT = "evt_" + "0" * 32


async def test_a_session_that_has_ended_says_so_and_leads_back(browser: Browser, tenant: TenantClient) -> None:
    browser.client.cookies.clear()
    first = await browser.get("/dashboard/search?q=a")
    assert "why" not in first.headers["location"], "nobody's session has ended who never had one"
    browser.client.cookies.set("hookpost_session", "over", domain="localhost.local", path="/dashboard")
    looked = await browser.get("/dashboard/search?q=a")
    assert looked.headers["location"] == "/dashboard/sign-in?why=ended&next=/dashboard/search%3Fq%3Da"
    assert "Your session has ended." in await browser.shown(looked.headers["location"])
    at = f"http://localhost/dashboard/events/{EVENT}?endpoint_id=x"
    sent = await browser.client.post(f"/dashboard/events/{EVENT}/replay", headers={"referer": at})
    assert sent.headers["location"] == (
        f"/dashboard/sign-in?why=unsent&next=/dashboard/events/{EVENT}%3Fendpoint_id%3Dx"
    )
    assert "nothing of what you sent was done" in await browser.shown(sent.headers["location"])
    left = await browser.client.post("/dashboard/sign-out")
    assert left.headers["location"] == "/dashboard/sign-in", "who wanted to leave has left"


async def test_a_store_that_is_away_is_told_to_whoever_looks_and_can_be_asked_again(
    browser: Browser, store: PostgresStore
) -> None:
    await browser.shown("/dashboard/endpoints")
    await store.close()
    told = await browser.shown("/dashboard/endpoints", 503)
    assert "The store does not answer at the moment." in told and ">Try again<" in told
    assert "stored" not in text_of(told), "they have sent nothing"


async def test_every_problem_is_a_page_with_a_way_on(browser: Browser, stranger: Browser, tenant: TenantClient) -> None:
    async def told(answer: httpx.Response, status: int, *words: str) -> None:
        assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), words
        said = text_of(answer.text)
        assert all(word in said for word in words), said
        assert 'href="/dashboard"' in answer.text

    await told(await browser.get(f"/dashboard/events/{EVENT}"), 404, "Not found", "There is no such event.", "search")
    await told(await browser.get("/dashboard/nowhere"), 404, "Not found", "There is no such page.")
    await told(await browser.get("/dashboard/sign-out"), 405, "Not a page", "use its button")
    await told(await browser.get("/dashboard/replays/new?since=yesterday"), 422, "mend what is named here", "From: ")
    await told(await browser.get("/dashboard/tenants"), 403, "Not allowed", "admin key")
    large = await browser.post("/dashboard/verifier", {"body": "x" * (FORM_BYTES_MAX + 1)})
    await told(large, 413, "Too large", "4.0 MiB", "hookpost verify")
    forged = await browser.client.post("/dashboard/sign-out", data={"csrf": "0"})
    await told(forged, 403, "Not sent from here", "made for another session", "reload the page")
    strange = await browser.get("/dashboard/search", headers={"host": "rebound.example"})
    await told(strange, 421, "HOOKPOST_PUBLIC_URL")
