"""TLS of an endpoint's own through the API: written, shown without the key, sealed, loaded for the worker, removed."""

from __future__ import annotations

from typing import Any

import pytest
import trustme

from hookpost.storage.postgres.store import PostgresStore
from tests.web.rows import TenantClient, endpoint_uuid

ENDPOINTS = "/v1/webhook_endpoints"
URL = "https://example.com/hook"
CA = trustme.CA()
LEAF, OTHER = CA.issue_cert("client.example"), CA.issue_cert("other.example")
CA_PEM = CA.cert_pem.bytes().decode()


def pair(leaf: trustme.LeafCert) -> dict[str, str]:
    chain = "".join(blob.bytes().decode() for blob in leaf.cert_chain_pems)
    return {"client_cert_pem": chain, "client_key_pem": leaf.private_key_pem.bytes().decode()}


async def test_a_key_is_stored_sealed_loaded_open_and_never_shown(
    tenant: TenantClient, store: PostgresStore, sql: Any
) -> None:
    answer = await tenant.post(ENDPOINTS, json={"url": URL, "tls": {"ca_pem": CA_PEM, **pair(LEAF)}})
    made = answer.json()
    assert answer.status_code == 201, made
    [ca], [cert] = made["tls"]["ca"], made["tls"]["client_cert"]
    assert ca["subject"] == cert["issuer"]
    assert cert["expires_at"].endswith("Z") and len(cert["sha256"]) == 64
    path = f"{ENDPOINTS}/{made['endpoint_id']}"
    shown = await tenant.get(path)
    assert shown.json()["tls"] == made["tls"]
    assert "PRIVATE" not in answer.text + shown.text
    endpoint_id = endpoint_uuid(made)
    row = await sql.fetchrow("select * from endpoints where endpoint_id = $1", endpoint_id)
    assert b"PRIVATE" not in row["sealed_tls_key"]
    [loaded] = await store.load_endpoints([endpoint_id])
    assert loaded.tls is not None
    assert loaded.tls.key.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert loaded.tls.ca.decode().strip() == CA_PEM.strip()
    log = await tenant.get("/v1/audit_log")
    assert "tls_key_set" in log.text or "tls_cert" in log.text
    assert "PRIVATE" not in log.text

    # Absent leaves, null removes, a pair replaces.
    await tenant.patch(path, json={"tls": {"ca_pem": None}})
    [loaded] = await store.load_endpoints([endpoint_id])
    assert loaded.tls is not None and loaded.tls.ca == b"" and loaded.tls.key
    before = loaded.tls
    changed = (await tenant.patch(path, json={"tls": pair(OTHER)})).json()
    assert changed["tls"]["client_cert"][0]["sha256"] != cert["sha256"]
    [loaded] = await store.load_endpoints([endpoint_id])
    assert loaded.tls is not None and loaded.tls.key != before.key
    assert (await tenant.patch(path, json={"tls": None})).json()["tls"] is None
    [loaded] = await store.load_endpoints([endpoint_id])
    assert loaded.tls is None

    # A deleted endpoint's key is gone.
    await tenant.patch(path, json={"tls": pair(LEAF)})
    assert (await tenant.delete(path)).status_code == 204
    assert await sql.fetchval("select sealed_tls_key from endpoints where endpoint_id = $1", endpoint_id) is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tls": {"ca_pem": "nonsense"}}, "tls.ca_pem"),
        ({"tls": {"ca_pem": ""}}, "tls.ca_pem"),
        ({"tls": {"client_cert_pem": pair(LEAF)["client_cert_pem"]}}, "tls"),
        ({"tls": {"client_key_pem": None}}, "tls"),
        ({"tls": {**pair(LEAF), "client_key_pem": None}}, "tls"),
        ({"tls": {**pair(LEAF), "client_key_pem": pair(OTHER)["client_key_pem"]}}, "tls.client_cert_pem"),
        ({"tls": {"insecure": True}}, "tls.insecure"),
        ({"tls": {"ca_pem": "x" * 50_000}}, "tls.ca_pem"),
        ({"url": "http://example.com/", "tls": {"ca_pem": CA_PEM}}, "tls"),
    ],
)
async def test_what_cannot_work_is_refused_and_named(tenant: TenantClient, fields: dict[str, Any], field: str) -> None:
    answer = await tenant.post(ENDPOINTS, json={"url": URL, **fields})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert "PRIVATE" not in answer.text


async def test_an_endpoint_with_tls_of_its_own_stays_on_https(tenant: TenantClient) -> None:
    made = (await tenant.post(ENDPOINTS, json={"url": URL, "tls": {"ca_pem": CA_PEM}})).json()
    path = f"{ENDPOINTS}/{made['endpoint_id']}"
    answer = await tenant.patch(path, json={"url": "http://example.com/"})
    assert [error["field"] for error in answer.json()["errors"]] == ["tls"]
    assert (await tenant.patch(path, json={"url": "http://example.com/", "tls": None})).status_code == 200
