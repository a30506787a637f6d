"""Tenants and their API keys: for the admin."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from hookpost.model import show_id
from hookpost.web.auth import SCOPES
from hookpost.web.dashboard.ask import Refusal
from hookpost.web.dashboard.render import with_query
from hookpost.web.dashboard.visit import Visit, see

PATH = "/dashboard/tenants"
LISTED = 50


async def listed(visit: Visit) -> Response:
    """All tenants, newest first."""
    return await _listed(visit)


async def create(visit: Visit) -> Response:
    """A new tenant."""
    try:
        made = await visit.act("POST", "/v1/tenants", tenant_id=None, form={"name": visit.form.text("name")})
    except Refusal as refused:
        return await _listed(visit, refused)
    return see(f"{PATH}/{made['tenant_id']}", did="created")


async def _listed(visit: Visit, refused: Refusal | None = None) -> Response:
    answer = await visit.ask("/v1/tenants", cursor=visit.query.optional("cursor"), limit=LISTED)
    cursor = answer["next_cursor"]
    return visit.page(
        "tenants.html",
        refused=refused,
        tenants=answer["data"],
        next_url=with_query(PATH, cursor=cursor) if cursor else None,
    )


async def show(visit: Visit) -> Response:
    """One tenant and its keys."""
    return await _one(visit)


async def save(visit: Visit) -> Response:
    """Change its limits and name."""
    tenant_id = _tenant_id(visit)
    form = {
        "name": visit.form.text("name"),
        "ingest_rate_limit": visit.form.number("ingest_rate_limit"),
        "max_in_flight": visit.form.whole("max_in_flight"),
        "alert_email": visit.form.optional("alert_email"),
    }
    try:
        await visit.act("PATCH", f"/v1/tenants/{tenant_id}", tenant_id=None, form=form)
    except Refusal as refused:
        return await _one(visit, refused=refused)
    return see(f"{PATH}/{tenant_id}", did="saved")


async def create_key(visit: Visit) -> Response:
    """A new API key, shown on this page and never again."""
    form = {
        "name": visit.form.text("name"),
        "scopes": visit.form.all("scopes"),
        "expires_at": visit.form.optional("expires_at"),
    }
    path = f"/v1/tenants/{_tenant_id(visit)}/api_keys"
    try:
        made = await visit.act("POST", path, tenant_id=None, form=form)
    except Refusal as refused:
        return await _one(visit, refused=refused)
    return await _one(visit, made=made)


async def revoke_key(visit: Visit) -> Response:
    """It stops working within a second."""
    tenant_id, key_id = _tenant_id(visit), visit.request.path_params["key_id"]
    await visit.act("DELETE", f"/v1/tenants/{tenant_id}/api_keys/{key_id}", tenant_id=None)
    return see(f"{PATH}/{tenant_id}", did="revoked")


async def _one(visit: Visit, *, made: dict[str, Any] | None = None, refused: Refusal | None = None) -> Response:
    tenant_id = _tenant_id(visit)
    tenant = await visit.ask(f"/v1/tenants/{tenant_id}")
    keys = await visit.ask(f"/v1/tenants/{tenant_id}/api_keys", cursor=visit.query.optional("cursor"), limit=LISTED)
    cursor = keys["next_cursor"]
    return visit.page(
        "tenant.html",
        refused=refused,
        tenant=tenant,
        keys=keys["data"],
        made=made,
        scopes=sorted(SCOPES),
        next_url=with_query(f"{PATH}/{tenant_id}", cursor=cursor) if cursor else None,
    )


def _tenant_id(visit: Visit) -> str:
    return show_id("ten", visit.path_id("ten", "tenant_id", "tenant"))
