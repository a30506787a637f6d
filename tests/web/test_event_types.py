"""Event types by the API, and what their schemas do to posted events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from hookpost.ingest import Ingest, IngestLimits
from hookpost.policy.event_schema import SchemaBounds
from hookpost.policy.keys import hash_secret
from hookpost.storage.contract import TypeLimits
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres.store import PostgresStore
from hookpost.web.app import WebSettings, make_app
from hookpost.web.auth import Authenticator
from hookpost.web.events import EventLimits, EventRoutes
from tests.patience import PATIENCE_S
from tests.web.conftest import ADMIN_KEY
from tests.web.rows import Submitted, TenantClient, make_tenant

TYPES = "/v1/event_types"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["amount"],
    "properties": {"amount": {"type": "integer", "minimum": 1}},
}


@pytest.fixture
async def admin(store: PostgresStore) -> AsyncIterator[httpx.AsyncClient]:
    """The application with its real ingest; small limits."""
    payloads = ObjectStore("memory:///")
    ingest = Ingest(store, payloads, now=time.time, limits=IngestLimits(timeout_s=PATIENCE_S))
    authenticator = Authenticator(store, admin_key_hash=hash_secret(ADMIN_KEY))
    application = make_app(
        store=store,
        payloads=payloads,
        authenticator=authenticator,
        submit=Submitted(),
        raw_events=EventRoutes(ingest, authenticator, limits=EventLimits()),
        settings=WebSettings(
            cursor_secret=b"c" * 32,
            schemas=SchemaBounds(bytes_max=400, depth_max=6),
            types=TypeLimits(types_max=3, schemas_bytes_max=500),
        ),
    )
    transport = httpx.ASGITransport(app=application, client=("192.0.2.7", 5000))
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield client
    await ingest.close()


@pytest.fixture
async def tenant(admin: httpx.AsyncClient) -> TenantClient:
    return await make_tenant(admin)


async def described(tenant: TenantClient, name: str = "a.b", **fields: Any) -> dict[str, Any]:
    answer = await tenant.post(TYPES, {"name": name, **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def fields(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return [error["field"] for error in answer.json()["errors"]]


async def test_a_type_is_described_shown_changed_and_forgotten(tenant: TenantClient) -> None:
    made = await described(tenant, description="paid", schema=SCHEMA)
    assert made["schema"] == SCHEMA and made["tenant_id"] == tenant.tenant_id
    assert (await tenant.get(f"{TYPES}/a.b")).json() == made
    changed = (await tenant.patch(f"{TYPES}/a.b", {"description": None})).json()
    assert changed == {**made, "description": None, "updated_at": changed["updated_at"]}
    assert (await tenant.patch(f"{TYPES}/a.b", {})).json() == changed
    assert (await tenant.patch(f"{TYPES}/a.b", {"schema": None})).json()["schema"] is None
    assert (await tenant.delete(f"{TYPES}/a.b")).status_code == 204
    for gone in (
        await tenant.get(f"{TYPES}/a.b"),
        await tenant.patch(f"{TYPES}/a.b", {}),
        await tenant.delete(f"{TYPES}/a.b"),
        await tenant.get(f"{TYPES}/a b"),
    ):
        assert gone.status_code == 404


async def test_a_list_has_pages(tenant: TenantClient, admin: httpx.AsyncClient) -> None:
    for name in ("a", "b", "c"):
        await described(tenant, name)
    first = (await tenant.get(TYPES, params={"limit": 2})).json()
    rest = (await tenant.get(TYPES, params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [each["name"] for each in first["data"] + rest["data"]] == ["c", "b", "a"]
    assert rest["next_cursor"] is None
    everywhere = (await admin.get(TYPES)).json()
    assert [each["tenant_id"] for each in everywhere["data"]] == [tenant.tenant_id] * 3


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"name": "hookpost.mine"}, "name"),
        ({"name": "a", "schema": []}, "schema"),
        ({"name": "a", "schema": True}, "schema"),
        ({"name": "a", "json_schema": {}}, "json_schema"),
        ({"name": "a", "schema": {"type": "x"}}, "schema/type"),
        ({"name": "a", "schema": {"$ref": "https://example.com/"}}, "schema"),
        ({"name": "a", "schema": {"properties": {"a": {"pattern": "(?=a)"}}}}, "schema/properties/a/pattern"),
        ({"name": "a", "schema": {"title": "x" * 400}}, "schema"),
        ({"name": "a", "schema": {"not": {"not": {"not": {"not": {"not": {"not": {}}}}}}}}, "schema"),
        ({"name": "a", "description": "x" * 1001}, "description"),
        ({"name": "a", "tenant_id": "ten_0"}, "tenant_id"),
    ],
)
async def test_what_is_refused_is_named_with_its_place(tenant: TenantClient, body: dict[str, Any], named: str) -> None:
    assert fields(await tenant.post(TYPES, body)) == [named]
    assert (await tenant.get(TYPES)).json()["data"] == []


async def test_limits_are_answered_by_409(tenant: TenantClient) -> None:
    wide = {"title": "x" * 300}
    await described(tenant, "a", schema=wide)
    second = await tenant.post(TYPES, {"name": "b", "schema": wide})
    assert second.status_code == 409 and "500 bytes" in second.json()["detail"]
    await described(tenant, "b")
    await described(tenant, "c")
    for name, told in (("d", "3 event types"), ("a", "event types")):
        answer = await tenant.post(TYPES, {"name": name})
        assert answer.status_code == 409 and told in answer.json()["detail"]
    await tenant.delete(f"{TYPES}/c")
    assert "already" in (await tenant.post(TYPES, {"name": "a"})).json()["detail"]


async def test_scopes_are_those_of_endpoints(admin: httpx.AsyncClient, tenant: TenantClient) -> None:
    await described(tenant)
    keys = f"/v1/tenants/{tenant.tenant_id}/api_keys"
    for scope, reads, writes in (("read", 200, 403), ("endpoints:write", 403, 200), ("events:write", 403, 403)):
        key = (await admin.post(keys, json={"name": scope, "scopes": [scope]})).json()["key"]
        client = TenantClient(admin, tenant.tenant_id, key)
        assert (await client.get(TYPES)).status_code == reads
        assert (await client.get(f"{TYPES}/a.b")).status_code == reads
        assert (await client.patch(f"{TYPES}/a.b", {})).status_code == writes
        if writes == 403:
            assert (await client.post(TYPES, {"name": "x"})).status_code == 403
            assert (await client.delete(f"{TYPES}/a.b")).status_code == 403
    assert (await admin.get(f"{TYPES}/a.b")).status_code == 400, "names are each tenant's own"
    assert (await admin.post(TYPES, json={"name": "x"})).status_code == 400
    acting = {"X-Tenant-Id": tenant.tenant_id}
    assert (await admin.get(f"{TYPES}/a.b", headers=acting)).status_code == 200


async def test_each_change_is_in_the_audit_log(tenant: TenantClient) -> None:
    await described(tenant, schema=SCHEMA)
    await tenant.patch(f"{TYPES}/a.b", {"description": "d"})
    await tenant.delete(f"{TYPES}/a.b")
    rows = (await tenant.get("/v1/audit_log", params={"limit": 3})).json()["data"]
    assert [(row["action"], row["target"]) for row in rows] == [
        ("event_type.delete", "a.b"), ("event_type.update", "a.b"), ("event_type.create", "a.b"),
    ]  # fmt: skip
    assert rows[1]["before"] == {"description": None} and rows[1]["after"] == {"description": "d"}
    assert len(rows[2]["after"]["schema_sha256"]) == 64
    assert all(row["address"] == "192.0.2.7" for row in rows)


async def test_an_event_that_does_not_satisfy_its_schema_is_422_with_pointers(tenant: TenantClient, sql: Any) -> None:
    await described(tenant, schema=SCHEMA)
    refused = await tenant.post("/v1/events", {"type": "a.b", "payload": {"amount": 0}})
    assert fields(refused) == ["/payload/amount"]
    assert fields(await tenant.post("/v1/events", {"type": "a.b", "payload": {}})) == ["/payload"]
    mixed = [{"amount": 1}, {"amount": "1"}, {"amount": 2}]
    answer = await tenant.post("/v1/events/batch", {"events": [{"type": "a.b", "payload": each} for each in mixed]})
    assert answer.status_code == 202
    results = answer.json()["results"]
    assert ["event_id" in result for result in results] == [True, False, True]
    error = results[1]["error"]
    assert error["status"] == 422 and error["errors"][0]["field"] == "/payload/amount"
    assert await sql.fetchval("select count(*) from events") == 2


async def test_a_schema_counts_from_its_acknowledgement_on(tenant: TenantClient) -> None:
    post = {"type": "a.b", "payload": {}}
    assert (await tenant.post("/v1/events", post)).status_code == 202
    await described(tenant, schema=SCHEMA)
    assert (await tenant.post("/v1/events", post)).status_code == 422
    assert (await tenant.patch(f"{TYPES}/a.b", {"schema": None})).status_code == 200
    assert (await tenant.post("/v1/events", post)).status_code == 202
    await tenant.patch(f"{TYPES}/a.b", {"schema": SCHEMA})
    assert (await tenant.post("/v1/events", post)).status_code == 422
    await tenant.delete(f"{TYPES}/a.b")
    assert (await tenant.post("/v1/events", post)).status_code == 202


async def test_a_repeat_is_answered_as_before_though_the_schema_forbids_it_now(tenant: TenantClient) -> None:
    post = {"type": "a.b", "payload": {}, "idempotency_key": "k"}
    first = (await tenant.post("/v1/events", post)).json()
    await described(tenant, schema=SCHEMA)
    assert (await tenant.post("/v1/events", post)).json() == {**first, "duplicate": True}
    assert fields(await tenant.post("/v1/events", {**post, "payload": {"n": 1}})) == ["idempotency_key"]
    assert fields(await tenant.post("/v1/events", {**post, "idempotency_key": "k2"})) == ["/payload"]


async def test_nobody_sees_or_feels_another_tenants_types(admin: httpx.AsyncClient, tenant: TenantClient) -> None:
    await described(tenant, schema=SCHEMA)
    other = await make_tenant(admin, "other")
    assert (await other.get(f"{TYPES}/a.b")).status_code == 404
    assert (await other.patch(f"{TYPES}/a.b", {"schema": None})).status_code == 404
    assert (await other.delete(f"{TYPES}/a.b")).status_code == 404
    assert (await other.get(TYPES)).json()["data"] == []
    assert (await other.post("/v1/events", {"type": "a.b", "payload": {}})).status_code == 202
    await described(other, description="theirs")
    assert (await tenant.get(f"{TYPES}/a.b")).json()["description"] is None


async def test_a_number_that_no_float_holds_is_kept_out_of_schemas(tenant: TenantClient) -> None:
    body = json.dumps({"name": "a", "schema": {"const": 0}}).replace("0}", "1e999}")
    answer = await tenant.request("POST", TYPES, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
