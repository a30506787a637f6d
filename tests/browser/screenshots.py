"""Make the screenshots of docs/screenshots: `make screenshots`. They are checked by eye, not by a test."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from playwright.async_api import Browser, Page

from tests.browser.world import World, browsing, world
from tests.e2e.harness import ADMIN_KEY

FOLDER = Path(__file__).parent.parent.parent / "docs" / "screenshots"
WIDE = {"width": 1280, "height": 860}
# What a reader of the docs looks at; the rest is more of the same, and bytes.
HEIGHT_MAX = 1300
PHONE = {"width": 390, "height": 844}


async def main() -> None:
    """All of them."""
    FOLDER.mkdir(exist_ok=True)
    async with world(events=60) as on, browsing() as browser:
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
        "dead-letters": "/dead-letters",
        "verifier": "/verifier",
    }


async def _signed_in(browser: Browser, on: World, scheme: str, size: dict[str, int], key: str = "") -> Page:
    context = await browser.new_context(
        base_url=on.server.url,
        color_scheme=scheme,
        viewport=size,
        reduced_motion="reduce",  # type: ignore[arg-type]
    )
    page = await context.new_page()
    await page.goto("/dashboard/sign-in")
    await page.get_by_label("API key").fill(key or on.server.key)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url("**/dashboard")
    return page


async def _shoot(page: Page, path: str, name: str) -> None:
    await page.goto(f"/dashboard{path}")
    size = page.viewport_size or WIDE
    tall = await page.evaluate("document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": size["width"], "height": min(tall, HEIGHT_MAX)}
    await page.screenshot(path=FOLDER / f"{name}.png", full_page=True, clip=clip, animations="disabled")
    print(name, (FOLDER / f"{name}.png").stat().st_size, file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main())
