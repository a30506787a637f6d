"""What a worker loads of tenants and endpoints, and how it hears of changes."""

from __future__ import annotations

from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost.model import Endpoint, RetryPolicy, Timeouts
from hookpost.storage.contract import Store
from tests.storage.driver import Driver, new_endpoint, new_tenant


async def load(store: Store, endpoint_id: UUID) -> Endpoint:
    [endpoint] = await store.load_endpoints([endpoint_id])
    return endpoint


async def test_endpoints_without_a_policy_of_their_own_share_the_platforms(driver: Driver) -> None:
    """A worker holds a hundred thousand of them."""
    retry, timeouts = RetryPolicy(base_s=7.0), Timeouts(total_s=17.0)
    store = await driver.open(retry=retry, timeouts=timeouts)
    tenant = await new_tenant(store)
    plain, own = await new_endpoint(store, tenant), uuid7()
    values = {
        "endpoint_id": own,
        "tenant_id": tenant,
        "url": "https://example.com/",
        "max_attempts": 3,
        "connect_s": 1.5,
    }
    await store.create_endpoint(values, b"k" * 24, endpoints_max=9)
    loaded = await load(store, plain)
    assert loaded.retry is retry
    assert loaded.timeouts is timeouts
    loaded = await load(store, own)
    assert loaded.retry == RetryPolicy(base_s=7.0, max_attempts=3)
    assert loaded.timeouts == Timeouts(connect_s=1.5, total_s=17.0)
