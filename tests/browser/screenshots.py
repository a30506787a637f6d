"""Make the screenshots of docs/screenshots: `make screenshots`. They are checked by eye, not by a test."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from playwright.async_api import Browser, Page

from hookpost.app.config import Settings
from tests.browser.palette import in_few_colours
from tests.browser.world import World, browsing, opened, signed_in, world
from tests.e2e.harness import ADMIN_KEY

FOLDER = Path(__file__).parent.parent.parent / "docs" / "screenshots"
WIDE = {"width": 1280, "height": 860}
# What a reader of the docs looks at; the rest is more of the same, and bytes.
HEIGHT_MAX = 1300
INVOICE_PAID = {
    "name": "invoice.paid", "description": "An invoice was paid in full",
    "schema": {"type": "object", "required": ["invoice", "amount"]},
}  # fmt: skip
PHONE = {"width": 390, "height": 844}
# Servers of tests are more patient than any user's.
SHOWN = ("connect_timeout_s", "first_byte_timeout_s", "total_timeout_s")


async def main() -> None:
    """All of them."""
    FOLDER.mkdir(exist_ok=True)
    usual = {name: str(Settings.model_fields[name].default) for name in SHOWN}
    async with world(events=60, **usual) as on, browsing() as browser:
        await on.server.call("POST", "/v1/event_types", INVOICE_PAID, expect=201)
        pages = await _pages(on)
        for scheme in ("light", "dark"):
            page = await _signed_in(browser, on, scheme, WIDE)
            for name, path in pages.items():
                if scheme == "light" or name in ("overview", "event"):
                    await _shoot(page, path, f"{name}{'' if scheme == 'light' else '-dark'}")
            await page.context.close()
        page = await _signed_in(browser, on, "light", PHONE)
        await _shoot(page, pages["event"], "event-phone")
        await page.context.close()
        page = await _signed_in(browser, on, "light", WIDE, key=ADMIN_KEY)
        await _shoot(page, "/tenants", "tenants")


async def _pages(on: World) -> dict[str, str]:
    billing, invoice = on.endpoints["billing"]["endpoint_id"], on.events["invoice"]
    attempts = await on.server.attempts(invoice, 2)
    failed = next(attempt for attempt in attempts if attempt["outcome"] == "retry")
    return {
        "sign-in": "/sign-in",
        "overview": "?span=1h",
        "search": "/search?outcome=retry",
        "event": f"/events/{invoice}",
        "attempt": f"/events/{invoice}/attempts/{failed['attempt_id']}",
        "endpoint": f"/endpoints/{on.endpoints['orders']['endpoint_id']}",
        "endpoint-failing": f"/endpoints/{billing}",
        "endpoint-settings": f"/endpoints/{billing}/edit",
        "event-types": "/event-types",
        "dead-letters": "/dead-letters",
        "verifier": "/verifier",
    }


async def _signed_in(browser: Browser, on: World, scheme: str, size: dict[str, int], key: str = "") -> Page:
    page = await opened(browser, on, color_scheme=scheme, viewport=size, reduced_motion="reduce")
    return await signed_in(page, key or on.server.key)


async def _shoot(page: Page, path: str, name: str) -> None:
    await page.goto(f"/dashboard{path}")
    size = page.viewport_size or WIDE
    tall = await page.evaluate("document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": size["width"], "height": min(tall, HEIGHT_MAX)}
    picture = await page.screenshot(full_page=True, clip=clip, animations="disabled")
    await page.goto("about:blank")
    size_bytes = (FOLDER / f"{name}.png").write_bytes(await in_few_colours(page, picture))
    print(name, size_bytes, file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main())
