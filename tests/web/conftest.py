"""The application on a real, fresh database, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import httpx
import pytest

from hookpost.policy.egress import EgressPolicy
from hookpost.policy.keys import hash_secret
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres.store import PostgresStore
from hookpost.web.app import WebSettings, make_app
from hookpost.web.auth import Authenticator
from tests.web.rows import Submitted, TenantClient, make_tenant

ADMIN_KEY = "an-admin-key-of-the-tests"


async def raw_events(scope: Any, receive: Any, send: Any) -> None:
    """Stands where the handler of POST /v1/events is."""
    await send({"type": "http.response.start", "status": 202, "headers": []})
    await send({"type": "http.response.body", "body": b"raw"})


class Clock:
    """Moves when a test says so."""

    def __init__(self) -> None:
        self.unix = 1_800_000_000.0
        self.mono = 1000.0

    def now(self) -> float:
        return self.unix

    def monotonic(self) -> float:
        return self.mono

    def advance(self, seconds: float) -> None:
        self.unix += seconds
        self.mono += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def submitted() -> Submitted:
    return Submitted()


@pytest.fixture
def payloads() -> ObjectStore:
    return ObjectStore("memory:///")


@pytest.fixture
async def admin(
    store: PostgresStore, payloads: ObjectStore, clock: Clock, submitted: Submitted
) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the admin key."""
    authenticator = Authenticator(
        store, admin_key_hash=hash_secret(ADMIN_KEY), now=clock.now, monotonic=clock.monotonic
    )
    app = make_app(
        store=store,
        payloads=payloads,
        authenticator=authenticator,
        submit=submitted,
        raw_events=raw_events,
        settings=WebSettings(
            cursor_secret=b"c" * 32,
            egress=EgressPolicy(allow_networks=(ip_network("127.0.0.0/8"),)),
            endpoints_max=20,
        ),
    )
    transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 5000))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"Authorization": f"Bearer {ADMIN_KEY}"}
    ) as client:
        yield client


@pytest.fixture
async def tenant(admin: httpx.AsyncClient) -> TenantClient:
    """A tenant with a key of all scopes."""
    return await make_tenant(admin)
