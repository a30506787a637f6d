"""A browser without JavaScript: it keeps cookies, follows redirects and sends forms."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html import unescape
from typing import Any

import httpx
import pytest

from tests.web.conftest import ADMIN_KEY
from tests.web.rows import TenantClient

HOST = "http://localhost"


class Browser:
    """One person at the dashboard."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path, **options)

    async def shown(self, path: str, status: int = 200) -> str:
        """The page, which must come with this status, and whose buttons must have what they copy."""
        answer = await self.get(path)
        assert answer.status_code == status, answer.text
        for copied in re.findall(r'data-copy="#([^"]+)"', answer.text):
            assert f'id="{copied}"' in answer.text, copied
        return answer.text

    async def post(self, path: str, fields: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
        """Send a form with the token of the page it is on."""
        page = await self.get("/dashboard/search")
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
        assert token, "not signed in"
        return await self.client.post(path, data={"csrf": token[1], **(fields or {})}, **options)

    async def sign_in(self, key: str, **fields: str) -> httpx.Response:
        return await self.client.post("/dashboard/sign-in", data={"key": key, **fields})


def text_of(page: str) -> str:
    """What a reader sees, but for the layout."""
    body = re.sub(r"<(script|style|title)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


@pytest.fixture
async def stranger(admin: httpx.AsyncClient) -> AsyncIterator[Browser]:
    """Nobody has signed in."""
    async with httpx.AsyncClient(transport=admin._transport, base_url=HOST) as client:
        yield Browser(client)


@pytest.fixture
async def elsewhere(admin: httpx.AsyncClient, another_process: httpx.ASGITransport) -> AsyncIterator[Browser]:
    """The same nobody, whose connections another API process on the same database accepts."""
    async with httpx.AsyncClient(transport=another_process, base_url=HOST) as client:
        yield Browser(client)


@pytest.fixture
async def browser(stranger: Browser, tenant: TenantClient) -> Browser:
    """Signed in with the tenant's key."""
    answer = await stranger.sign_in(tenant.key)
    assert answer.status_code == 303, answer.text
    return stranger


@pytest.fixture
async def operator(admin: httpx.AsyncClient) -> AsyncIterator[Browser]:
    """Signed in with the admin key."""
    async with httpx.AsyncClient(transport=admin._transport, base_url=HOST) as client:
        answer = await Browser(client).sign_in(ADMIN_KEY)
        assert answer.status_code == 303, answer.text
        yield Browser(client)
