"""GET /v1/audit_log: whose it is, who acted, pages and the export."""

from __future__ import annotations

import json

import httpx

from hookpost.web import answers
from tests.web.rows import TenantClient, make_tenant

LOG = "/v1/audit_log"


async def test_a_tenant_reads_its_own_log_and_the_admin_all(admin: httpx.AsyncClient, tenant: TenantClient) -> None:
    endpoint = await tenant.endpoint()
    path = f"/v1/webhook_endpoints/{endpoint['endpoint_id']}"
    await tenant.patch(path, {"description": "new"})
    await tenant.get(f"{path}/secret")
    await tenant.patch(path, {"nothing": "known"})
    other = await make_tenant(admin, "other")
    rows = (await tenant.get(LOG)).json()["data"]
    for row in rows:
        answers.AuditEntry.model_validate(row)
    assert [row["action"] for row in rows] == ["secret.reveal", "endpoint.update", "endpoint.create", "api_key.create"]
    assert {row["tenant_id"] for row in rows} == {tenant.tenant_id}
    assert rows[0]["actor"] == f"key_{tenant.key.split('_')[1]}" and rows[0]["address"] == "192.0.2.7"
    assert rows[3]["actor"] == "admin" and rows[1]["target"] == endpoint["endpoint_id"]
    assert (rows[1]["before"], rows[1]["after"]) == ({"description": None}, {"description": "new"})
    assert rows[0]["previous"] == rows[1]["hash"]
    assert endpoint["secret"] not in str(rows) and tenant.key not in str(rows)
    assert [row["action"] for row in (await other.get(LOG)).json()["data"]] == ["api_key.create"]
    everything = (await admin.get(LOG)).json()["data"]
    assert [row["action"] for row in everything if row["tenant_id"] is None] == ["tenant.create", "tenant.create"]
    assert len(everything) == 7
    named = (await admin.get(LOG, params={"tenant_id": tenant.tenant_id})).json()["data"]
    assert named == rows
    assert (await tenant.get(LOG, params={"tenant_id": other.tenant_id})).status_code == 404


async def test_the_log_needs_the_scope_read(admin: httpx.AsyncClient) -> None:
    writer = await make_tenant(admin, scopes=["events:write"])
    assert (await writer.get(LOG)).status_code == 403


async def test_pages_and_filters_and_the_export(tenant: TenantClient) -> None:
    for _ in range(5):
        await tenant.endpoint()
    seen, cursor = [], None
    while True:
        page = (await tenant.get(LOG, params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
        seen += [row["seq"] for row in page["data"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == [6, 5, 4, 3, 2, 1]
    created = (await tenant.get(LOG, params={"action": "endpoint.create"})).json()["data"]
    assert len(created) == 5
    since = (await tenant.get(LOG, params={"since": created[0]["at"]})).json()["data"]
    assert created[0] in since and created[-1] not in since
    export = await tenant.get(LOG, params={"format": "ndjson"})
    assert export.headers["content-type"] == "application/x-ndjson"
    assert export.headers["cache-control"] == "no-store"
    assert [json.loads(line)["seq"] for line in export.text.splitlines()] == seen
    assert (await tenant.get(LOG, params={"format": "ndjson", "limit": 2})).status_code == 422
    first = (await tenant.get(LOG, params={"limit": 1})).json()["next_cursor"]
    assert (await tenant.get(LOG, params={"cursor": first, "action": "endpoint.create"})).status_code == 400


async def test_ids_are_shown_as_everywhere(tenant: TenantClient) -> None:
    endpoint = await tenant.endpoint()
    asked = {"endpoint_id": endpoint["endpoint_id"], "status": "any"}
    assert (await tenant.post("/v1/replays", asked)).status_code == 202
    [row] = (await tenant.get("/v1/audit_log?action=replay.create")).json()["data"]
    assert row["after"]["endpoint_id"] == endpoint["endpoint_id"]
