"""The dashboard in a real browser: what a person does in it, and what a page must never do.

One server and one browser for all; every page is watched: no error on its console, no request to another host.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from hookpost.policy.signing import parse_secret, signature_header
from tests.browser.world import World, browsing, chromium, opened, signed_in, world
from tests.conftest import require
from tests.e2e.harness import ADMIN_KEY

pytestmark = [pytest.mark.chromium, pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on() -> AsyncIterator[World]:
    require(chromium() is not None, "Chromium is not installed (Debian: apt-get install chromium)")
    async with world() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(on: World) -> AsyncIterator[Browser]:
    async with browsing() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def stranger(browser: Browser, on: World) -> AsyncIterator[Page]:
    """A page that is watched, of somebody who has not signed in."""
    page = await opened(browser, on)
    faults: list[str] = []
    page.on("console", lambda said: said.type == "error" and faults.append(f"console: {said.text}"))
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on(
        "request",
        lambda asked: urlsplit(asked.url).netloc != urlsplit(on.server.url).netloc and faults.append(asked.url),
    )
    yield page
    await page.context.close()
    assert faults == []


@pytest_asyncio.fixture(loop_scope="module")
async def page(stranger: Page, on: World) -> Page:
    """Signed in with the tenant's key."""
    return await signed_in(stranger, on.server.key)


async def test_a_key_signs_in_and_the_overview_has_figures(page: Page) -> None:
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await expect(page.locator("svg.chart")).to_have_count(2)
    await expect(page.get_by_role("heading", name="Acceptance to 2xx")).to_be_visible()
    assert await page.evaluate("document.cookie") == "", "no script can read the session"


async def test_a_search_leads_to_the_event_and_its_timeline(page: Page, on: World) -> None:
    await page.keyboard.press("/")
    await page.keyboard.type("INV-1042-paid")
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name=on.events["invoice"]).first.click()
    await expect(page.get_by_text("attempts at most").first).to_be_visible()
    await expect(page.get_by_text("Not owed to 1 other endpoint")).to_be_visible()
    await page.get_by_role("link", name="Attempt 1").nth(1).click()
    await expect(page.locator("#answer")).to_contain_text("database is locked")
    await expect(page.locator("#sent")).to_contain_text("webhook-signature: v1,")
    await expect(page.locator("#curl")).to_contain_text("--data-binary")


async def test_a_replay_is_seen_delivered_without_a_reload(page: Page, on: World) -> None:
    await page.goto(f"/dashboard/events/{on.events['order 0']}")
    await page.evaluate("window.stayed = true")
    before = await page.locator(".timeline > li").count()
    await page.get_by_role("button", name="Replay").click()
    await expect(page.get_by_text("Replay accepted")).to_be_visible()
    await page.evaluate("window.stayed = true")
    await expect(page.get_by_role("link", name="Replay 1, attempt 1")).to_be_visible()
    assert await page.locator(".timeline > li").count() > before
    assert await page.evaluate("window.stayed"), "the page has renewed itself"


async def test_the_verifier_says_valid_or_exactly_what_is_wrong(page: Page, on: World) -> None:
    arrival = next(a for a in on.receiver.arrivals if a.path == "/orders" and a.event_id == on.events["order 1"])
    key = parse_secret(on.endpoints["orders"]["secret"])
    for body, secret, words in (
        (arrival.body.decode(), on.endpoints["orders"]["secret"], "Valid"),
        (arrival.body.decode() + "\n", on.endpoints["orders"]["secret"], "Body altered: a line end was added"),
        (arrival.body.decode(), on.endpoints["crm"]["secret"], "Wrong secret: it was signed with that of ep_"),
    ):
        await page.goto("/dashboard/verifier")
        stamp = int(await page.evaluate("Math.floor(Date.now() / 1000)"))
        signature = signature_header(arrival.event_id, stamp, arrival.body, [key])
        headers = f"webhook-id: {arrival.event_id}\nwebhook-timestamp: {stamp}\nwebhook-signature: {signature}"
        await page.get_by_label("Headers").fill(headers)
        await page.get_by_label("Body", exact=True).fill(body)
        await page.get_by_label("Secret").fill(secret)
        await page.get_by_role("button", name="Verify").click()
        await expect(page.locator("#verdict")).to_contain_text(words)


async def test_hostile_content_is_only_ever_text(page: Page, on: World) -> None:
    crm = on.endpoints["crm"]["endpoint_id"]
    for path in (
        f"/dashboard/events/{on.events['hostile']}", f"/dashboard/endpoints/{crm}", f"/dashboard/endpoints/{crm}/edit",
        "/dashboard/endpoints",
    ):  # fmt: skip
        await page.goto(path)
        assert "owned" not in await page.title(), path
        assert await page.locator("img:not([alt=''])").count() == 0, path
        assert "\u202e" not in await page.content()
    await page.goto(f"/dashboard/events/{on.events['hostile']}")
    await expect(page.get_by_label("Payload, indented")).to_contain_text("<script>")
    # Its first attempt, whether or not another test has replayed it by now.
    path = f"/v1/deliveries?event_id={on.events['hostile']}&outcome=dead"
    [first] = (await on.server.call("GET", path, expect=200))["data"]
    await page.locator(f'a[href$="/attempts/{first["attempt_id"]}"]').first.click()
    await expect(page.locator("#answer")).to_contain_text("onerror")
    assert "owned" not in await page.title()


async def test_dead_letters_are_chosen_and_put_back(page: Page, on: World) -> None:
    await page.goto("/dashboard/dead-letters")
    await expect(page.get_by_role("link", name="http_4xx").first).to_be_visible()
    on.mended = True
    await page.get_by_label(f"Choose {on.events['hostile']}").check()
    await page.get_by_role("button", name="Replay the chosen ones").click()
    await expect(page.get_by_text("Replay accepted")).to_be_visible()
    path = f"/v1/events/{on.events['hostile']}"
    await on.server.polled(path, lambda event: event["status"] == "delivered")


async def test_an_endpoint_is_paused_and_resumed(page: Page, on: World) -> None:
    await page.goto(f"/dashboard/endpoints/{on.endpoints['orders']['endpoint_id']}")
    assert await page.locator("svg.strip rect").count() in (48, 49), "a day in half hours, the one under way too"
    await page.get_by_role("button", name="Pause").click()
    await expect(page.get_by_text("This endpoint is paused")).to_be_visible()
    await page.get_by_role("button", name="Resume").click()
    await expect(page.get_by_role("button", name="Pause")).to_be_visible()


async def tab_to(page: Page, wanted: Locator) -> None:
    """The tabulator until the focus is there, which must be seen wherever it is on the way."""
    for _ in range(80):
        await page.keyboard.press("Tab")
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", "where the focus is can be seen"
        if await wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"the keyboard does not lead to {wanted}")


async def test_the_keyboard_alone_signs_in_searches_opens_an_event_and_replays_it(stranger: Page, on: World) -> None:
    page, event_id = stranger, on.events["order 3"]
    await page.goto("/dashboard")
    await expect(page.get_by_label("API key")).to_be_focused()
    await page.keyboard.type(on.server.key)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("/")
    await page.keyboard.type(event_id)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Search")).to_be_visible()
    await tab_to(page, page.get_by_role("link", name=event_id).first)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="order.created")).to_be_visible()
    await tab_to(page, page.get_by_role("button", name="Replay"))
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("Replay accepted")).to_be_visible()


async def test_an_event_type_is_described_and_edited(page: Page) -> None:
    await page.goto("/dashboard/event-types")
    await page.get_by_label("Type", exact=True).fill("invoice.paid")
    await page.get_by_label("Description").fill("Paid")
    await page.get_by_role("button", name="Describe").click()
    await expect(page.get_by_text("Created.")).to_be_visible()
    await page.get_by_role("link", name="Edit invoice.paid").click()
    await expect(page.get_by_label("Description")).to_have_value("Paid")
    await page.get_by_label("Description").fill("Paid in full")
    await page.get_by_label("JSON Schema").fill('{"type": "object"}')
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("cell", name="Paid in full")).to_be_visible()
    await expect(page.get_by_text("JSON Schema").first).to_be_visible()


async def test_a_page_that_cannot_be_renewed_says_so_until_it_can(browser: Browser, on: World) -> None:
    page = await signed_in(await opened(browser, on), on.server.key)
    await page.clock.install()
    await page.goto("/dashboard")
    for offline in (True, False):
        await page.context.set_offline(offline)
        await page.clock.fast_forward("01:00")
        await expect(page.get_by_text("This page is not up to date")).to_be_visible(visible=offline)
    await page.context.close()


async def test_no_page_is_wider_than_a_phone(page: Page, on: World) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    longest = {"name": f"{'a' * 64}.{'b' * 63}", "description": "c" * 1000}
    await on.server.call("POST", "/v1/event_types", longest, expect=201)
    for path in (
        "", "/search", f"/events/{on.events['order 0']}", f"/events/{on.events['hostile']}", f"/events/{on.events['invoice']}",
        "/endpoints", f"/endpoints/{on.endpoints['billing']['endpoint_id']}", f"/endpoints/{on.endpoints['crm']['endpoint_id']}", "/dead-letters", "/replays", "/verifier", "/endpoints/new", "/event-types",
        f"/endpoints/{on.endpoints['crm']['endpoint_id']}/test", "/audit-log", "/usage",
    ):  # fmt: skip
        await page.goto(f"/dashboard{path}")
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, (path, width)


async def test_a_long_type_leaves_what_can_be_done_with_it_in_sight(page: Page, on: World) -> None:
    name = f"{'d' * 64}.{'e' * 63}"
    await on.server.call("POST", "/v1/event_types", {"name": name, "description": "f" * 1000}, expect=201)
    await page.set_viewport_size({"width": 1280, "height": 860})
    await page.goto("/dashboard/event-types")
    button = await page.get_by_role("button", name=f"Delete {name}").bounding_box()
    assert button and button["x"] + button["width"] < 1280


async def test_the_admin_sees_all_tenants_and_makes_a_key(stranger: Page) -> None:
    page = await signed_in(stranger, ADMIN_KEY)
    await page.get_by_role("link", name="Tenants").click()
    await page.get_by_label("New tenant").fill("Initech")
    await page.get_by_role("button", name="Create").click()
    await page.get_by_label("Name").first.fill("production")
    await page.get_by_role("button", name="Create").click()
    await expect(page.locator("#new-key")).to_contain_text("_")


async def test_pages_work_without_scripts(browser: Browser, on: World) -> None:
    page = await signed_in(await opened(browser, on, java_script_enabled=False), on.server.key)
    await page.goto(f"/dashboard/events/{on.events['order 2']}")
    await page.get_by_role("button", name="Replay").click()
    await expect(page.get_by_text("Replay accepted")).to_be_visible()
    await expect(page.get_by_role("button", name="Copy", exact=True)).to_have_count(0)
    await page.context.close()
