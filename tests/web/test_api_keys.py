"""How many API keys a tenant may have."""

from __future__ import annotations

from typing import Any

import httpx

from tests.web.rows import TenantClient

# As the application under test is set.
KEYS_MAX = 20


async def test_a_tenant_has_so_many_good_keys_at_most_and_a_revoked_or_expired_one_makes_room(
    admin: httpx.AsyncClient, tenant: TenantClient, sql: Any
) -> None:
    path = f"/v1/tenants/{tenant.tenant_id}/api_keys"
    made = [await admin.post(path, json={"name": f"k{n}"}) for n in range(KEYS_MAX)]
    assert [answer.status_code for answer in made] == [201] * (KEYS_MAX - 1) + [409], "it has one to begin with"
    problem = made[-1].json()
    assert made[-1].headers["content-type"] == "application/problem+json"
    assert problem["detail"] == "the tenant has 20 API keys, which is the limit: revoke some first"
    assert (await admin.delete(f"{path}/{made[0].json()['api_key_id']}")).status_code == 204
    again = await admin.post(path, json={"name": "again"})
    assert again.status_code == 201
    await sql.execute(
        "update api_keys set expires_at = now() - interval '1 s' where key_id = $1",
        again.json()["api_key_id"].removeprefix("key_"),
    )
    assert (await admin.post(path, json={"name": "and again"})).status_code == 201
    assert (await admin.post(path, json={"name": "too many"})).status_code == 409
