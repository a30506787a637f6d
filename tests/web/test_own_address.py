"""U10: an endpoint at Hookpost's own address would be delivered to, and accept, for ever."""

from __future__ import annotations

import httpx
import pytest

from hookpost.policy.keys import hash_secret
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres.store import PostgresStore
from hookpost.web.app import WebSettings, make_app
from hookpost.web.auth import Authenticator
from tests.web.conftest import ADMIN_KEY, raw_events
from tests.web.rows import Submitted, make_tenant


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("https://Hooks.Example.com:443/v1/events", True),
        ("https://hooks.example.com./", True),
        ("https://hooks.example.com:8443/", False),
        ("https://example.com/", False),
    ],
)
async def test_u10_our_own_public_address_is_no_receiver(store: PostgresStore, url: str, refused: bool) -> None:
    application = make_app(
        store=store,
        payloads=ObjectStore("memory:///"),
        authenticator=Authenticator(store, admin_key_hash=hash_secret(ADMIN_KEY)),
        submit=Submitted(),
        raw_events=raw_events,
        settings=WebSettings(cursor_secret=b"c" * 32, public_url="https://hooks.example.com"),
    )
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    transport = httpx.ASGITransport(app=application)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        tenant = await make_tenant(client)
        answer = await tenant.post("/v1/webhook_endpoints", {"url": url})
        assert answer.status_code == (422 if refused else 201), answer.text
        if refused:
            assert [error["field"] for error in answer.json()["errors"]] == ["url"]
            return
        path = f"/v1/webhook_endpoints/{answer.json()['endpoint_id']}"
        assert (await tenant.patch(path, {"url": "https://hooks.example.com/"})).status_code == 422
