"""The routes of webhook endpoints: their settings, secrets, and what is owed to each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field

from hookpost.policy.signing import show_secret
from hookpost.storage.contract import AdminStore, Page
from hookpost.web import answers, schemas, shown
from hookpost.web.api import Api, ApiOf, Asking, ListQuery, TenantListQuery, as_json, listed, path_id, tenant_to_read
from hookpost.web.auth import Principal
from hookpost.web.endpoint_changes import endpoint_changes, secret_key
from hookpost.web.problems import not_found

router = APIRouter()


class EndpointDeliveryQuery(ListQuery):
    """Of the list of an endpoint's deliveries."""

    status: Annotated[
        Literal["queued", "waiting", "delivered", "dead", "cancelled"] | None,
        Field(description="all, if it is left out"),
    ] = None


@router.post(
    "/v1/webhook_endpoints", status_code=201, response_model=answers.EndpointCreated, tags=["webhook endpoints"]
)
async def create_endpoint(api: ApiOf, asking: Asking, form: schemas.EndpointCreate) -> Response:
    """Create an endpoint. Every event posted after the answer is matched with it."""
    tenant_id = asking.writer("endpoints:write")
    columns = endpoint_changes(api.settings, form, {})
    key = secret_key(api.settings, form.secret)
    values = {**columns, "endpoint_id": api.new_id(), "tenant_id": tenant_id}
    row = await api.store.create_endpoint(values, key, endpoints_max=api.settings.endpoints_max)
    return as_json({**api.show_endpoint(row), "secret": show_secret(key)}, 201)


@router.get("/v1/webhook_endpoints", response_model=answers.EndpointList, tags=["webhook endpoints"])
async def list_endpoints(api: ApiOf, asking: Asking, query: Annotated[TenantListQuery, Query()]) -> Response:
    """The endpoints, newest first."""
    of = tenant_to_read(asking, query.tenant_id)
    return await listed(
        api,
        of,
        {"list": "endpoints"},
        query,
        lambda after, n: api.store.list_endpoints(of, after=after, limit=n),
        api.show_endpoint,
    )


@router.get("/v1/webhook_endpoints/{endpoint_id}", response_model=answers.EndpointAnswer, tags=["webhook endpoints"])
async def get_endpoint(api: ApiOf, asking: Asking, endpoint_id: str) -> Response:
    """One endpoint."""
    row = await api.store.get_endpoint(asking.reader(), path_id("ep", endpoint_id, "endpoint"))
    return as_json(api.show_endpoint(row))


@router.patch("/v1/webhook_endpoints/{endpoint_id}", response_model=answers.EndpointAnswer, tags=["webhook endpoints"])
async def update_endpoint(api: ApiOf, asking: Asking, endpoint_id: str, form: schemas.EndpointPatch) -> Response:
    """Change an endpoint: absent leaves, null resets to the default."""
    tenant_id = asking.writer("endpoints:write")
    wanted_id = path_id("ep", endpoint_id, "endpoint")
    row = await api.store.get_endpoint(tenant_id, wanted_id)
    changes = endpoint_changes(api.settings, form, row)
    if changes:
        row = await api.store.update_endpoint(tenant_id, wanted_id, changes)
    return as_json(api.show_endpoint(row))


@router.delete("/v1/webhook_endpoints/{endpoint_id}", status_code=204, tags=["webhook endpoints"])
async def delete_endpoint(api: ApiOf, asking: Asking, endpoint_id: str) -> Response:
    """Delete an endpoint; what is still owed to it is cancelled."""
    await api.store.delete_endpoint(asking.writer("endpoints:write"), path_id("ep", endpoint_id, "endpoint"))
    return Response(status_code=204)


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/pause", response_model=answers.EndpointAnswer, tags=["webhook endpoints"]
)
async def pause_endpoint(api: ApiOf, asking: Asking, endpoint_id: str) -> Response:
    """Pause an endpoint: what is owed to it waits."""
    return await _set_status(api, asking, endpoint_id, "paused")


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/resume", response_model=answers.EndpointAnswer, tags=["webhook endpoints"]
)
async def resume_endpoint(api: ApiOf, asking: Asking, endpoint_id: str) -> Response:
    """Deliver again to a paused or disabled endpoint, or to one whose breaker is open: it closes at once."""
    return await _set_status(api, asking, endpoint_id, "enabled")


@router.get(
    "/v1/webhook_endpoints/{endpoint_id}/secret", response_model=answers.SecretsAnswer, tags=["webhook endpoints"]
)
async def get_secret(api: ApiOf, asking: Asking, endpoint_id: str) -> Response:
    """The signing secrets that are valid now, newest first."""
    asking.require("endpoints:write")
    wanted_id = path_id("ep", endpoint_id, "endpoint")
    row = await api.store.get_endpoint(asking.tenant_id, wanted_id)
    valid = [shown.secret(secret) for secret in await api.store.get_secrets(row["tenant_id"], wanted_id)]
    if not valid:
        raise not_found("secret of this endpoint: rotate to get one")
    return as_json({"secret": valid[0]["secret"], "secrets": valid})


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/secret/rotate",
    response_model=answers.SecretRotated,
    tags=["webhook endpoints"],
)
async def rotate_secret(
    api: ApiOf, asking: Asking, endpoint_id: str, form: schemas.SecretRotate | None = None
) -> Response:
    """Add a new secret; the old ones go on signing beside it for the grace period."""
    tenant_id = asking.writer("endpoints:write")
    wanted = form or schemas.SecretRotate()
    grace_s = api.settings.secret_grace_s if wanted.grace_period_s is None else wanted.grace_period_s
    key = secret_key(api.settings, wanted.secret)
    until = await api.store.rotate_secret(tenant_id, path_id("ep", endpoint_id, "endpoint"), key, grace_s=grace_s)
    return as_json({"secret": show_secret(key), "old_secrets_expire_at": shown.show_time(until)})


@router.get(
    "/v1/webhook_endpoints/{endpoint_id}/deliveries",
    response_model=answers.EndpointDeliveryList,
    tags=["webhook endpoints"],
)
async def list_endpoint_deliveries(
    api: ApiOf, asking: Asking, endpoint_id: str, query: Annotated[EndpointDeliveryQuery, Query()]
) -> Response:
    """An endpoint's deliveries and their state, newest first; what waits alone in the order of the journal. A page of
    queued or cancelled ones may hold fewer than ``limit`` though there are more: go on with its cursor."""
    of = asking.reader()
    endpoint = path_id("ep", endpoint_id, "endpoint")
    owner: UUID = (await api.store.get_endpoint(of, endpoint))["tenant_id"]
    store = api.store
    window: dict[str, None] = {"since": None, "until": None}
    fetch: Callable[[tuple[Any, ...] | None, int], Awaitable[Page]]
    match query.status:
        case "waiting":
            show = shown.waiting_delivery
            fetch = lambda after, n: store.list_waiting(of, endpoint, after=after, limit=n)  # noqa: E731
        case "dead":
            show = shown.dead_delivery
            fetch = lambda after, n: store.list_dead_letters(  # noqa: E731
                of, endpoint_id=endpoint, reason=None, after=after, limit=n, **window
            )
        case "delivered":
            show = shown.delivered_delivery
            fetch = lambda after, n: store.list_attempts(  # noqa: E731
                of, endpoint_id=endpoint, event_id=None, outcome="delivered", after=after, limit=n, **window
            )
        case status:
            show = shown.delivery_of_endpoint
            fetch = lambda after, n: _owed(store, owner, endpoint, status, after, n)  # noqa: E731
    filters = {"list": "endpoint_deliveries", "endpoint": endpoint.hex, "status": query.status}
    return await listed(api, of, filters, query, fetch, show)


async def _owed(
    store: AdminStore, owner: UUID, endpoint: UUID, status: str | None, after: tuple[Any, ...] | None, limit: int
) -> Page:
    found = await store.scan_owed(owner, endpoint, after=after, limit=limit)
    return Page([row for row in found.rows if status in (None, row["status"])], found.next_key)


async def _set_status(api: Api, asking: Principal, endpoint_id: str, status: str) -> Response:
    tenant_id = asking.writer("endpoints:write")
    wanted_id = path_id("ep", endpoint_id, "endpoint")
    return as_json(api.show_endpoint(await api.store.update_endpoint(tenant_id, wanted_id, {"status": status})))
