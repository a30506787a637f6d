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


def application(
    store: PostgresStore, payloads: ObjectStore, clock: Clock, submitted: Submitted, **settings: Any
) -> httpx.ASGITransport:
    """One API process, as it is asked."""
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
            api_keys_max=20,
            **settings,
        ),
    )
    return httpx.ASGITransport(app=app, client=("192.0.2.7", 5000))


@pytest.fixture
async def admin(
    store: PostgresStore, payloads: ObjectStore, clock: Clock, submitted: Submitted
) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the admin key."""
    async with httpx.AsyncClient(
        transport=application(store, payloads, clock, submitted),
        base_url="http://test",
        headers={"Authorization": f"Bearer {ADMIN_KEY}"},
    ) as client:
        yield client


@pytest.fixture
def another_process(
    store: PostgresStore, payloads: ObjectStore, clock: Clock, submitted: Submitted
) -> httpx.ASGITransport:
    """A second one on the same store: what it remembers is its own."""
    return application(store, payloads, clock, submitted)


@pytest.fixture
async def tenant(admin: httpx.AsyncClient) -> TenantClient:
    """A tenant with a key of all scopes."""
    return await make_tenant(admin)
