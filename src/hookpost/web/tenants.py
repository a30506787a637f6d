"""The operator's routes: tenants, pools of shards, API keys."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from hookpost.policy.keys import KEY_ID_BYTES, SECRET_BYTES, hash_secret, make_key, parse_key
from hookpost.policy.routing import SHARDS_MAX
from hookpost.web import answers, schemas, shown
from hookpost.web.api import Admin, ApiOf, ListQuery, as_json, listed, path_id
from hookpost.web.problems import invalid, not_found

DEFAULT_POOL = "default"
_KEY_ID_CHARS = 2 * KEY_ID_BYTES

router = APIRouter()


@router.post("/v1/tenants", status_code=201, response_model=answers.TenantAnswer, tags=["tenants"])
async def create_tenant(api: ApiOf, _: Admin, form: schemas.TenantCreate) -> Response:
    """Create a tenant (admin)."""
    pool = form.pool or DEFAULT_POOL
    values = {
        "name": form.name,
        "pool": pool,
        "spread": form.spread,
        "max_in_flight": form.max_in_flight,
        "ingest_rate_limit": form.ingest_rate_limit,
        "alert_email": form.alert_email,
    }
    return as_json(shown.tenant(await api.store.create_tenant(api.new_id(), values)), 201)


@router.get("/v1/tenants", response_model=answers.TenantList, tags=["tenants"])
async def list_tenants(api: ApiOf, _: Admin, query: Annotated[ListQuery, Query()]) -> Response:
    """All tenants, newest first (admin)."""
    return await listed(
        api,
        None,
        {"list": "tenants"},
        query,
        lambda after, n: api.store.list_tenants(after=after, limit=n),
        shown.tenant,
    )


@router.get("/v1/tenants/{tenant_id}", response_model=answers.TenantAnswer, tags=["tenants"])
async def get_tenant(api: ApiOf, _: Admin, tenant_id: str) -> Response:
    """One tenant (admin)."""
    return as_json(shown.tenant(await api.store.get_tenant(path_id("ten", tenant_id, "tenant"))))


@router.patch("/v1/tenants/{tenant_id}", response_model=answers.TenantAnswer, tags=["tenants"])
async def update_tenant(api: ApiOf, _: Admin, tenant_id: str, form: schemas.TenantPatch) -> Response:
    """Change a tenant (admin): absent leaves, null resets."""
    wanted_id = path_id("ten", tenant_id, "tenant")
    row = await api.store.get_tenant(wanted_id)
    given = form.given()
    changes: dict[str, Any] = {name: given[name] for name in ("name", "spread") if name in given}
    if "pool" in given:
        changes["pool"] = form.pool or DEFAULT_POOL
    if "max_in_flight" in given:
        changes["max_in_flight"] = form.max_in_flight or api.settings.tenant_max_in_flight
    if "ingest_rate_limit" in given:
        changes["ingest_rate_limit"] = form.ingest_rate_limit
    if "alert_email" in given:
        changes["alert_email"] = form.alert_email
    if changes:
        row = await api.store.update_tenant(wanted_id, changes)
    return as_json(shown.tenant(row))


@router.delete("/v1/tenants/{tenant_id}", status_code=204, tags=["tenants"])
async def delete_tenant(api: ApiOf, _: Admin, tenant_id: str) -> Response:
    """Delete a tenant, its keys and endpoints (admin); its history stays until it expires."""
    await api.store.delete_tenant(path_id("ten", tenant_id, "tenant"))
    return Response(status_code=204)


@router.post("/v1/pools", response_model=answers.PoolAnswer, tags=["pools"])
async def grow_pool(api: ApiOf, _: Admin, form: schemas.PoolForm) -> Response:
    """Have so many shards in a pool, new or old (admin). Nobody moves by it; a pool needs workers of its own."""
    return as_json(shown.pool(await api.store.grow_pool(form.name, form.shards, shards_max=SHARDS_MAX)))


@router.get("/v1/pools", response_model=answers.PoolList, tags=["pools"])
async def list_pools(api: ApiOf, _: Admin) -> Response:
    """All pools with their shards, tenants and living workers (admin)."""
    return as_json({"data": [shown.pool(row) for row in await api.store.list_pools()]})


@router.post("/v1/tenants/{tenant_id}/api_keys", status_code=201, response_model=answers.KeyCreated, tags=["API keys"])
async def create_key(api: ApiOf, _: Admin, tenant_id: str, form: schemas.KeyCreate) -> Response:
    """Create an API key of a tenant (admin). The key is shown this once."""
    expires_at = None if form.expires_at is None else schemas.parse_time(form.expires_at)
    if expires_at is not None and expires_at <= api.settings.now():
        raise invalid("expires_at", "must lie in the future")
    key = make_key(api.settings.random_bytes(KEY_ID_BYTES), api.settings.random_bytes(SECRET_BYTES))
    parsed = parse_key(key)
    assert parsed is not None
    row = await api.store.create_key(
        {
            "key_id": parsed.key_id,
            "tenant_id": path_id("ten", tenant_id, "tenant"),
            "name": form.name,
            "key_hash": hash_secret(parsed.secret),
            "scopes": sorted(set(form.scopes or ())),
            "expires_at": expires_at,
        },
        keys_max=api.settings.api_keys_max,
    )
    return as_json({**shown.api_key(row), "key": key}, 201)


@router.get("/v1/tenants/{tenant_id}/api_keys", response_model=answers.KeyList, tags=["API keys"])
async def list_keys(api: ApiOf, _: Admin, tenant_id: str, query: Annotated[ListQuery, Query()]) -> Response:
    """The API keys of a tenant, newest first, revoked ones too (admin)."""
    of = path_id("ten", tenant_id, "tenant")
    return await listed(
        api, of, {"list": "keys"}, query, lambda after, n: api.store.list_keys(of, after=after, limit=n), shown.api_key
    )


@router.delete("/v1/tenants/{tenant_id}/api_keys/{api_key_id}", status_code=204, tags=["API keys"])
async def revoke_key(api: ApiOf, _: Admin, tenant_id: str, api_key_id: str) -> Response:
    """Revoke an API key (admin); it stops working within a second."""
    prefix, _separator, key_id = api_key_id.partition("_")
    if prefix != "key" or len(key_id) != _KEY_ID_CHARS or "\0" in key_id:
        raise not_found("API key")
    await api.store.revoke_key(path_id("ten", tenant_id, "tenant"), key_id)
    return Response(status_code=204)
