"""What is not refused and should be known."""

from __future__ import annotations

from tests.web.rows import TenantClient


async def test_b13_an_endpoint_at_a_public_request_bin_carries_a_warning_and_others_none(tenant: TenantClient) -> None:
    made = await tenant.endpoint(url="https://webhook.site/0197f")
    [warning] = made["warnings"]
    assert "webhook.site shows what it receives" in warning
    path = f"/v1/webhook_endpoints/{made['endpoint_id']}"
    assert (await tenant.get(path)).json()["warnings"] == [warning]
    assert (await tenant.patch(path, {"url": "https://example.com/"})).json()["warnings"] == []
