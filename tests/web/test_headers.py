"""Headers of endpoints' own over HTTP: refused by name with the reason, write-only where they are secret."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from hookpost.policy.headers import MASK
from hookpost.storage.postgres.store import PostgresStore
from hookpost.web import answers
from tests.web.rows import TenantClient, endpoint_uuid

ENDPOINTS = "/v1/webhook_endpoints"
URL = "https://example.com/hook"
CANARY = "canary-header-value"


async def test_secret_headers_are_write_only_and_others_are_shown(tenant: TenantClient, store: PostgresStore) -> None:
    headers = {"X-Team": "payments", "Authorization": f"Bearer {CANARY}", "x-pin": {"value": CANARY, "secret": True}}
    created = await tenant.endpoint(headers=headers)
    answers.EndpointCreated.model_validate(created)
    assert created["headers"] == {"x-team": "payments", "authorization": MASK, "x-pin": MASK}
    path = f"{ENDPOINTS}/{created['endpoint_id']}"
    changed = await tenant.patch(path, {"headers": {"x-team": "risk", "x-pin": None}})
    assert changed.json()["headers"] == {"x-team": "risk", "authorization": MASK}
    for answer in (changed, await tenant.get(path), await tenant.get(ENDPOINTS), await tenant.get("/v1/audit_log")):
        assert answer.status_code == 200 and CANARY not in answer.text
    [loaded] = await store.load_endpoints([endpoint_uuid(created)])
    assert loaded.headers is not None
    assert sorted(loaded.headers.lines.split("\r\n")) == ["", f"authorization: Bearer {CANARY}", "x-team: risk"]
    assert (await tenant.patch(path, {"headers": None})).json()["headers"] == {}
    assert (await tenant.endpoint(headers={}))["headers"] == (await tenant.endpoint())["headers"] == {}


REFUSED: list[tuple[Any, str, str]] = [
    ({"host": "internal"}, "headers.host", "how the request is framed"),
    ({"Webhook-Signature": "v1,fake"}, "headers.Webhook-Signature", "Hookpost's own"),
    ({"x-a": f"{CANARY}\r\nX-Evil: 1"}, "headers.x-a", "visible ASCII"),
    ({"x-a": "nul \0"}, "headers.x-a", "NUL"),
    ({"x-a": f"{CANARY} caf\u00e9"}, "headers.x-a", "visible ASCII"),
    ({"x a": "b"}, "headers.x a", "a name has"),
    ({"": "b"}, "headers.", "a name has"),
    ({"x-a": MASK}, "headers.x-a", "leave the header out"),
    ({"x-a": "1", "X-A": "2"}, "headers.X-A", "given twice"),
    ({"x-a": 5}, "headers.x-a", "must be a text"),
    ({"x-a": {"value": "v", "hidden": True}}, "headers.x-a", "must be a text"),
    ({"x-a": {"value": "v", "secret": "yes"}}, "headers.x-a", "must be a text"),
    ({"x-a": {"secret": True}}, "headers.x-a", "must be a text"),
    ({f"x-{n}": "v" for n in range(33)}, "headers", ""),
    ({f"x-{n}": "v" * 4000 for n in range(3)}, "headers", "8192 bytes"),
    ([], "headers", "must be an object"),
]


@pytest.mark.parametrize(("headers", "field", "said"), REFUSED, ids=range(len(REFUSED)))
async def test_a_header_is_refused_by_its_name_with_the_reason(
    tenant: TenantClient, headers: Any, field: str, said: str
) -> None:
    answer = await tenant.post(ENDPOINTS, {"url": URL, "headers": headers})
    assert answer.status_code == 422, answer.text
    errors = {error["field"]: error["message"] for error in answer.json()["errors"]}
    assert said in errors[field], errors
    assert CANARY not in answer.text


async def test_the_total_is_limited_over_several_changes(tenant: TenantClient) -> None:
    created = await tenant.endpoint(headers={f"x-{n}": "v" for n in range(30)})
    answer = await tenant.patch(f"{ENDPOINTS}/{created['endpoint_id']}", {"headers": {f"y-{n}": "v" for n in range(3)}})
    assert answer.status_code == 422
    assert "at most 32 headers" in answer.json()["detail"]


async def test_without_its_encryption_key_the_api_is_not_ready_and_says_what_to_do(
    admin: httpx.AsyncClient, tenant: TenantClient, sql: Any
) -> None:
    """F34 at the API: what is sealed with a key that this process lacks is 503, and nothing else is."""
    created = await tenant.endpoint()
    await sql.execute("insert into data_keys (tenant_id, key_id, wrapped) values (gen_random_uuid(), 'k7', 'x')")
    ready = await admin.get("/readyz")
    assert (ready.status_code, ready.json()["missing_encryption_keys"]) == (503, 1)
    await sql.execute("update endpoint_secrets set sealed = 'altered'")
    answer = await tenant.get(f"{ENDPOINTS}/{created['endpoint_id']}/secret")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "60"
    assert "encryption key" in answer.json()["detail"]
    assert (await tenant.get(f"{ENDPOINTS}/{created['endpoint_id']}")).status_code == 200
