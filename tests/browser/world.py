"""What the browser looks at: a real server, receivers that are well, slow, down or hostile, and events for them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from playwright.async_api import Browser, Page, async_playwright, expect

from tests.e2e.harness import Arrival, Hookpost, Receiver, answer, receiver, running

# Debian's, Ubuntu's and other distributions' names of it.
BINARIES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# As root there is no sandbox to be had; a container's /dev/shm is small.
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking")
# Only against a hang: whatever is waited for comes as soon as it is there, and a crowded machine takes its time.
PATIENCE_MS = 180_000
# What a page that renders it would act upon.
HOSTILE = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">\u202egnp.exe\x1b[31m'


def chromium() -> str | None:
    """The path of a Chromium on this machine."""
    return next((path for path in map(shutil.which, BINARIES) if path), None)


@contextlib.asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """A browser without a window."""
    async with async_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        browser = await playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS), timeout=PATIENCE_MS)
        yield browser
        await browser.close()


@dataclass
class World:
    """The server with what is on it. ``mended``: the receivers that were down are well from now on."""

    server: Hookpost
    receiver: Receiver
    endpoints: dict[str, dict[str, Any]]
    events: dict[str, str]
    mended: bool = False


async def opened(browser: Browser, on: World, **options: Any) -> Page:
    """An empty page of a visitor of their own, as patient as everything here."""
    context = await browser.new_context(base_url=on.server.url, **options)
    context.set_default_timeout(PATIENCE_MS)
    return await context.new_page()


async def signed_in(page: Page, key: str) -> Page:
    """The same page, on the overview."""
    await page.goto("/dashboard/sign-in")
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url("**/dashboard")
    return page


@contextlib.asynccontextmanager
async def world(*, events: int = 12, **settings: str) -> AsyncIterator[World]:
    """Started with these settings, and at rest: what can be delivered is."""
    async with receiver() as at, running(**settings) as server:
        made = World(server, at, {}, {})

        async def down(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
            body = b'{"error": "database is locked", "request": "a1b2"}'
            writer.write(answer() if made.mended else answer(503, body, "content-type: application/json"))

        async def refuses(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
            writer.write(answer() if made.mended else answer(422, HOSTILE.encode(), f"x-note: {HOSTILE.encode()!r}"))

        async def slow(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.02 + 0.01 * (len(at.arrivals) % 7))
            writer.write(answer(200, b'{"ok": true}', "content-type: application/json", "x-request-id: 7f3a"))

        at.handlers |= {"/orders": slow, "/billing": down, "/crm": refuses}
        # The first delay is that long, so that it still waits when the browser looks.
        waits = {"base_s": 600, "cap_s": 3600}
        for name, fields in {
            "orders": {"description": "Order service"},
            "billing": {"events": ["invoice.*"], "retry": waits, "description": "Billing, being mended"},
            "crm": {"events": ["customer.*"], "description": f"CRM {HOSTILE} {'L' * 300}".replace("\x1b", "")},
        }.items():
            made.endpoints[name] = await server.endpoint(at.url(f"/{name}"), **fields)
        for number in range(events):
            made.events[f"order {number}"] = await server.post(
                "order.created", {"order": 1000 + number, "total": 19.90 + number, "currency": "EUR"}
            )
        made.events["invoice"] = await server.post(
            "invoice.paid", {"invoice": "INV-1042", "amount": 1250.0, "lines": [{"sku": "A-1", "qty": 2}]},
            idempotency_key="INV-1042-paid",
        )  # fmt: skip
        made.events["hostile"] = await server.post("customer.updated", {"name": HOSTILE, "line": "x" * 200_000})
        for event_id in [made.events[f"order {number}"] for number in range(events)]:
            await server.settled(event_id)
        await server.settled(made.events["invoice"], "waiting")
        await server.settled(made.events["hostile"], "dead", "partly_dead")
        await server.polled("/v1/stats", lambda stats: stats["totals"]["attempts"] >= events + 4)
        yield made
