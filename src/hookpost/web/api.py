"""The routes of the API, but for the two that take events in (web/events.py).

Each route reads as: who is asking, is the request sound, what does the store say, how is it shown. The principal was
established before the request's body was read (web/app.py). What the store raises becomes a problem in one place
(web/problems.py).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from uuid_utils.compat import uuid7

from hookpost import telemetry
from hookpost.exposition import Metrics
from hookpost.model import REMOVED, DeadReason, IdError, PayloadRef, RetryPolicy, Timeouts, parse_id, show_id
from hookpost.policy.cost import Prices
from hookpost.policy.egress import EgressPolicy, UrlError, check_url, origin_of, split_url
from hookpost.policy.event_schema import SchemaBounds
from hookpost.policy.headers import MASK, HeaderRefused, check_header, holds_a_secret
from hookpost.policy.keys import KEY_ID_BYTES, SECRET_BYTES, hash_secret, make_key, parse_key
from hookpost.policy.routing import SHARDS_MAX
from hookpost.policy.signing import GENERATED_BYTES, SecretError, parse_secret, show_secret
from hookpost.policy.tls import TlsError, check_authorities, check_identity
from hookpost.storage.contract import (
    AdminStore,
    ControlAction,
    HeaderChange,
    HeaderValue,
    NotFound,
    Page,
    PayloadMissing,
    PayloadStore,
    ReplayFilter,
    ReplayState,
    StoreUnavailable,
    TlsChange,
    TypeLimits,
)
from hookpost.web import schemas, shown
from hookpost.web.auth import Principal
from hookpost.web.cursors import Cursors
from hookpost.web.problems import invalid, invalid_fields, not_found, refusal

# A load balancer asks every second or so; a store that takes longer is not ready.
READY_S = 2.0
DEFAULT_POOL = "default"
# Running bulk replays of one tenant: each is paced by itself, and their rates add up.
REPLAYS_RUNNING_MAX = 20
# Of removed payloads' objects a request removes no more; as a rule there is but its own.
OBJECTS_REMOVED_AT_ONCE = 20
# Written as they are given, null for the default.
_PLAIN_COLUMNS = ("description", "uid", "max_in_flight", "rate_limit", "on_dead", "spread")
_RETRY_COLUMNS = ("base_s", "cap_s", "max_attempts", "deadline_s")
_TIMEOUT_COLUMNS = ("connect_s", "first_byte_s", "total_s")
_KEY_ID_CHARS = 2 * KEY_ID_BYTES


class Submit(Protocol):
    """Accept an event of our own: type, payload and whom it goes to; returns its id when it is durable."""

    async def __call__(self, tenant_id: UUID, type: str, payload: bytes, target_endpoints: list[UUID]) -> UUID:
        """Raises StoreUnavailable, what ingest raises, or Problem 422 for a payload that is not taken."""


@dataclass(frozen=True, slots=True)
class WebSettings:
    """What the API must know of the installation. ``cursor_secret`` is the same in all processes."""

    cursor_secret: bytes = field(repr=False)
    version: str = "0"
    public_url: str | None = None
    egress: EgressPolicy = field(default_factory=EgressPolicy)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeouts: Timeouts = field(default_factory=Timeouts)
    total_timeout_max_s: float = 30.0
    deadline_s_max: float = 28 * 86_400.0
    endpoint_max_in_flight: int = 64
    tenant_max_in_flight: int = 512
    endpoints_max: int = 10_000
    api_keys_max: int = 1_000
    filters_max: int = 100
    schemas: SchemaBounds = field(default_factory=SchemaBounds)
    types: TypeLimits = field(default_factory=TypeLimits)
    replay_rate_limit: float = 500.0
    secret_grace_s: float = 86_400.0
    prices: Prices = field(default_factory=Prices)
    now: Callable[[], float] = time.time
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    headers_allow: tuple[str, ...] = ("*",)


@dataclass(frozen=True, slots=True)
class Api:
    """What the routes work with, one for each application."""

    store: AdminStore
    payloads: PayloadStore
    submit: Submit
    settings: WebSettings
    cursors: Cursors
    metrics: Metrics

    def new_id(self) -> UUID:
        """A fresh UUIDv7."""
        return uuid7(nanoseconds=int(self.settings.now() * 1e9))

    def show_endpoint(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """An endpoint with the values in force."""
        s = self.settings
        return shown.endpoint(
            row, retry=s.retry, timeouts=s.timeouts, max_in_flight=s.endpoint_max_in_flight, now=s.now()
        )


async def _api(request: Request) -> Api:
    api: Api = request.app.state.api
    return api


async def _principal(request: Request) -> Principal:
    principal: Principal = request.scope["hookpost.principal"]
    return principal


async def _admin(request: Request) -> Principal:
    """The operator. To a tenant's key another tenant does not exist; its own it cannot administer."""
    principal = await _principal(request)
    if principal.admin:
        return principal
    named = request.path_params.get("tenant_id")
    if named is not None and path_id("ten", named, "tenant") != principal.tenant_id:
        raise not_found("tenant")
    raise refusal(403, "this route needs the admin key")


ApiOf = Annotated[Api, Depends(_api)]
Asking = Annotated[Principal, Depends(_principal)]
Admin = Annotated[Principal, Depends(_admin)]

router = APIRouter()


# ---- queries --------------------------------------------------------------------------------------------------------


class UrlQuery(BaseModel):
    """Parameters of a URL: what is not known is refused, as a filter that has no effect misleads."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ReadyQuery(UrlQuery):
    """``shards`` false: is this process ready to accept events? They wait while no worker runs."""

    shards: bool = True


class ListQuery(UrlQuery):
    """Of every list."""

    limit: Annotated[int, Field(ge=1, le=schemas.LIST_LIMIT_MAX)] = schemas.LIST_LIMIT_DEFAULT
    cursor: schemas.Text | None = None


class TenantListQuery(ListQuery):
    """Of lists that the admin may narrow down to one tenant."""

    tenant_id: schemas.Text | None = None


class _Window(TenantListQuery):
    since: Annotated[schemas.Time | None, Field(description="at or after this time")] = None
    until: Annotated[schemas.Time | None, Field(description="before this time")] = None

    def bounds(self) -> tuple[float | None, float | None]:
        """since and until as Unix seconds."""
        return (
            None if self.since is None else schemas.parse_time(self.since),
            None if self.until is None else schemas.parse_time(self.until),
        )


class EventQuery(_Window):
    """Of the list of events."""

    type: schemas.TypeFilter | None = None


class AttemptQuery(_Window):
    """Of the list of attempts."""

    endpoint_id: schemas.Text | None = None
    event_id: schemas.Text | None = None
    outcome: Literal["delivered", "retry", "dead"] | None = None


class DeadLetterQuery(_Window):
    """Of the list of dead letters."""

    endpoint_id: schemas.Text | None = None
    reason: DeadReason | None = None


class EndpointDeliveryQuery(ListQuery):
    """Of the list of an endpoint's deliveries."""

    status: Annotated[
        Literal["queued", "waiting", "delivered", "dead", "cancelled"] | None,
        Field(description="all, if it is left out"),
    ] = None


# ---- tenants --------------------------------------------------------------------------------------------------------


@router.post("/v1/tenants", status_code=201, response_model=schemas.TenantAnswer, tags=["tenants"])
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
    return _json(shown.tenant(await api.store.create_tenant(api.new_id(), values)), 201)


@router.get("/v1/tenants", response_model=schemas.TenantList, tags=["tenants"])
async def list_tenants(api: ApiOf, _: Admin, query: Annotated[ListQuery, Query()]) -> Response:
    """All tenants, newest first (admin)."""
    return await _list(
        api,
        None,
        {"list": "tenants"},
        query,
        lambda after, n: api.store.list_tenants(after=after, limit=n),
        shown.tenant,
    )


@router.get("/v1/tenants/{tenant_id}", response_model=schemas.TenantAnswer, tags=["tenants"])
async def get_tenant(api: ApiOf, _: Admin, tenant_id: str) -> Response:
    """One tenant (admin)."""
    return _json(shown.tenant(await api.store.get_tenant(path_id("ten", tenant_id, "tenant"))))


@router.patch("/v1/tenants/{tenant_id}", response_model=schemas.TenantAnswer, tags=["tenants"])
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
    return _json(shown.tenant(row))


@router.delete("/v1/tenants/{tenant_id}", status_code=204, tags=["tenants"])
async def delete_tenant(api: ApiOf, _: Admin, tenant_id: str) -> Response:
    """Delete a tenant, its keys and endpoints (admin); its history stays until it expires."""
    await api.store.delete_tenant(path_id("ten", tenant_id, "tenant"))
    return Response(status_code=204)


@router.post("/v1/pools", response_model=schemas.PoolAnswer, tags=["pools"])
async def grow_pool(api: ApiOf, _: Admin, form: schemas.PoolForm) -> Response:
    """Have so many shards in a pool, new or old (admin). Nobody moves by it; a pool needs workers of its own."""
    return _json(shown.pool(await api.store.grow_pool(form.name, form.shards, shards_max=SHARDS_MAX)))


@router.get("/v1/pools", response_model=schemas.PoolList, tags=["pools"])
async def list_pools(api: ApiOf, _: Admin) -> Response:
    """All pools with their shards, tenants and living workers (admin)."""
    return _json({"data": [shown.pool(row) for row in await api.store.list_pools()]})


@router.post("/v1/tenants/{tenant_id}/api_keys", status_code=201, response_model=schemas.KeyCreated, tags=["API keys"])
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
    return _json({**shown.api_key(row), "key": key}, 201)


@router.get("/v1/tenants/{tenant_id}/api_keys", response_model=schemas.KeyList, tags=["API keys"])
async def list_keys(api: ApiOf, _: Admin, tenant_id: str, query: Annotated[ListQuery, Query()]) -> Response:
    """The API keys of a tenant, newest first, revoked ones too (admin)."""
    of = path_id("ten", tenant_id, "tenant")
    return await _list(
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


# ---- endpoints ------------------------------------------------------------------------------------------------------


@router.post(
    "/v1/webhook_endpoints", status_code=201, response_model=schemas.EndpointCreated, tags=["webhook endpoints"]
)
async def create_endpoint(api: ApiOf, asking: Asking, form: schemas.EndpointCreate) -> Response:
    """Create an endpoint. Every event posted after the answer is matched with it."""
    tenant_id = asking.writer("endpoints:write")
    columns = _endpoint_changes(api.settings, form, {})
    key = _secret_key(api.settings, form.secret)
    values = {**columns, "endpoint_id": api.new_id(), "tenant_id": tenant_id}
    row = await api.store.create_endpoint(values, key, endpoints_max=api.settings.endpoints_max)
    return _json({**api.show_endpoint(row), "secret": show_secret(key)}, 201)


@router.get("/v1/webhook_endpoints", response_model=schemas.EndpointList, tags=["webhook endpoints"])
async def list_endpoints(api: ApiOf, asking: Asking, query: Annotated[TenantListQuery, Query()]) -> Response:
    """The endpoints, newest first."""
    of = tenant_to_read(asking, query.tenant_id)
    return await _list(
        api,
        of,
        {"list": "endpoints"},
        query,
        lambda after, n: api.store.list_endpoints(of, after=after, limit=n),
        api.show_endpoint,
    )


@router.get("/v1/webhook_endpoints/{endpoint_id}", response_model=schemas.EndpointAnswer, tags=["webhook endpoints"])
async def get_endpoint(api: ApiOf, asking: Asking, endpoint_id: str) -> Response:
    """One endpoint."""
    row = await api.store.get_endpoint(asking.reader(), path_id("ep", endpoint_id, "endpoint"))
    return _json(api.show_endpoint(row))


@router.patch("/v1/webhook_endpoints/{endpoint_id}", response_model=schemas.EndpointAnswer, tags=["webhook endpoints"])
async def update_endpoint(api: ApiOf, asking: Asking, endpoint_id: str, form: schemas.EndpointPatch) -> Response:
    """Change an endpoint: absent leaves, null resets to the default."""
    tenant_id = asking.writer("endpoints:write")
    wanted_id = path_id("ep", endpoint_id, "endpoint")
    row = await api.store.get_endpoint(tenant_id, wanted_id)
    changes = _endpoint_changes(api.settings, form, row)
    if changes:
        row = await api.store.update_endpoint(tenant_id, wanted_id, changes)
    return _json(api.show_endpoint(row))


@router.delete("/v1/webhook_endpoints/{endpoint_id}", status_code=204, tags=["webhook endpoints"])
async def delete_endpoint(api: ApiOf, asking: Asking, endpoint_id: str) -> Response:
    """Delete an endpoint; what is still owed to it is cancelled."""
    await api.store.delete_endpoint(asking.writer("endpoints:write"), path_id("ep", endpoint_id, "endpoint"))
    return Response(status_code=204)


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/pause", response_model=schemas.EndpointAnswer, tags=["webhook endpoints"]
)
async def pause_endpoint(api: ApiOf, asking: Asking, endpoint_id: str) -> Response:
    """Pause an endpoint: what is owed to it waits."""
    return await _set_status(api, asking, endpoint_id, "paused")


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/resume", response_model=schemas.EndpointAnswer, tags=["webhook endpoints"]
)
async def resume_endpoint(api: ApiOf, asking: Asking, endpoint_id: str) -> Response:
    """Deliver again to a paused or disabled endpoint, or to one whose breaker is open: it closes at once."""
    return await _set_status(api, asking, endpoint_id, "enabled")


@router.get(
    "/v1/webhook_endpoints/{endpoint_id}/secret", response_model=schemas.SecretsAnswer, tags=["webhook endpoints"]
)
async def get_secret(api: ApiOf, asking: Asking, endpoint_id: str) -> Response:
    """The signing secrets that are valid now, newest first."""
    asking.require("endpoints:write")
    wanted_id = path_id("ep", endpoint_id, "endpoint")
    row = await api.store.get_endpoint(asking.tenant_id, wanted_id)
    valid = [shown.secret(secret) for secret in await api.store.get_secrets(row["tenant_id"], wanted_id)]
    if not valid:
        raise not_found("secret of this endpoint: rotate to get one")
    return _json({"secret": valid[0]["secret"], "secrets": valid})


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/secret/rotate",
    response_model=schemas.SecretRotated,
    tags=["webhook endpoints"],
)
async def rotate_secret(
    api: ApiOf, asking: Asking, endpoint_id: str, form: schemas.SecretRotate | None = None
) -> Response:
    """Add a new secret; the old ones go on signing beside it for the grace period."""
    tenant_id = asking.writer("endpoints:write")
    wanted = form or schemas.SecretRotate()
    grace_s = api.settings.secret_grace_s if wanted.grace_period_s is None else wanted.grace_period_s
    key = _secret_key(api.settings, wanted.secret)
    until = await api.store.rotate_secret(tenant_id, path_id("ep", endpoint_id, "endpoint"), key, grace_s=grace_s)
    return _json({"secret": show_secret(key), "old_secrets_expire_at": shown.show_time(until)})


@router.get(
    "/v1/webhook_endpoints/{endpoint_id}/deliveries",
    response_model=schemas.EndpointDeliveryList,
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
    return await _list(api, of, filters, query, fetch, show)


async def _owed(
    store: AdminStore, owner: UUID, endpoint: UUID, status: str | None, after: tuple[Any, ...] | None, limit: int
) -> Page:
    found = await store.scan_owed(owner, endpoint, after=after, limit=limit)
    return Page([row for row in found.rows if status in (None, row["status"])], found.next_key)


# ---- events ---------------------------------------------------------------------------------------------------------


@router.get("/v1/events", response_model=schemas.EventList, tags=["events"])
async def list_events(api: ApiOf, asking: Asking, query: Annotated[EventQuery, Query()]) -> Response:
    """Events, newest first, without their payloads."""
    of = tenant_to_read(asking, query.tenant_id)
    since, until = query.bounds()
    return await _list(
        api,
        of,
        {"list": "events", "type": query.type, "since": since, "until": until},
        query,
        lambda after, n: api.store.list_events(of, type=query.type, since=since, until=until, after=after, limit=n),
        shown.event_item,
    )


@router.get("/v1/events/{event_id}", response_model=schemas.EventAnswer, tags=["events"])
async def get_event(api: ApiOf, asking: Asking, event_id: str) -> Response:
    """An event, its payload as it was posted, and what became of each delivery."""
    view = await api.store.get_event(asking.reader(), path_id("evt", event_id, "event"))
    payload, state = await payload_of(api.payloads, view.event)
    return _json(shown.event(view, payload, state))


async def payload_of(payloads: PayloadStore, event: Mapping[str, Any]) -> tuple[bytes | None, str]:
    """An event's payload and what became of it: stored, removed (on request) or missing."""
    if event["payload_ref"] is None:
        return event["payload"], "stored"
    ref = PayloadRef.parse(event["payload_ref"])
    if ref is REMOVED:
        return None, "removed"
    try:
        return await payloads.get(ref), "stored"
    except PayloadMissing as error:
        telemetry.log("payload_missing", event_id=show_id("evt", event["event_id"]), reason=error)
        return None, "missing"


@router.post("/v1/events/{event_id}/replay", status_code=202, response_model=schemas.Replayed, tags=["events"])
async def replay_event(api: ApiOf, asking: Asking, event_id: str, form: schemas.ReplayForm | None = None) -> Response:
    """Deliver an event once more, to one endpoint or to all it was owed to that still exist."""
    tenant_id = asking.writer("replay")
    endpoint = field_id("ep", form.endpoint_id if form else None, "endpoint_id")
    wanted_id = path_id("evt", event_id, "event")
    count = await api.store.append_replay(tenant_id, wanted_id, endpoint)
    telemetry.log("event_replayed", event_id=show_id("evt", wanted_id), deliveries=count)
    with suppress(StoreUnavailable):  # the replay is durable; a worker that is not rung finds it a little later
        await api.store.ring()
    return _json({"delivery_count": count}, 202)


@router.post("/v1/events/{event_id}/cancel", status_code=202, response_model=schemas.Controlled, tags=["events"])
async def cancel_event(api: ApiOf, asking: Asking, event_id: str, form: schemas.ControlForm | None = None) -> Response:
    """Cancel what is not delivered yet, to one endpoint or to all. A request under way ends by its outcome."""
    return await _control(api, asking, event_id, form, ControlAction.CANCEL)


@router.post("/v1/events/{event_id}/retry_now", status_code=202, response_model=schemas.Controlled, tags=["events"])
async def retry_event(api: ApiOf, asking: Asking, event_id: str, form: schemas.ControlForm | None = None) -> Response:
    """Try what waits now, whenever it was due."""
    return await _control(api, asking, event_id, form, ControlAction.RETRY_NOW)


async def _control(
    api: Api, asking: Principal, event_id: str, form: schemas.ControlForm | None, action: ControlAction
) -> Response:
    tenant_id = asking.writer("replay")
    endpoint = field_id("ep", form.endpoint_id if form else None, "endpoint_id")
    wanted_id = path_id("evt", event_id, "event")
    count = await api.store.append_control(tenant_id, wanted_id, endpoint, action)
    if count:
        telemetry.log("control_appended", action=action, event_id=show_id("evt", wanted_id), deliveries=count)
        with suppress(StoreUnavailable):
            await api.store.ring()
    return _json({"delivery_count": count}, 202)


@router.delete("/v1/events/{event_id}/payload", response_model=schemas.Controlled, tags=["events"])
async def remove_payload(api: ApiOf, asking: Asking, event_id: str) -> Response:
    """Take an event's payload away for good, wherever it lies; what is not delivered yet is cancelled. That there was
    such an event, and what became of it, stays on record."""
    tenant_id = asking.writer("events:write")
    wanted_id = path_id("evt", event_id, "event")
    count = await api.store.remove_payload(tenant_id, wanted_id)
    telemetry.log("payload_removed", event_id=show_id("evt", wanted_id), deliveries=count, admin=asking.admin)
    with suppress(StoreUnavailable):  # it is noted, and maintenance comes for it
        await api.store.remove_objects(api.payloads.delete, limit=OBJECTS_REMOVED_AT_ONCE)
    with suppress(StoreUnavailable):
        await api.store.ring()
    return _json({"delivery_count": count})


# ---- bulk replays ---------------------------------------------------------------------------------------------------


@router.post("/v1/replays", status_code=202, response_model=schemas.ReplayStarted, tags=["replays"])
async def create_replay(api: ApiOf, asking: Asking, form: schemas.ReplayCreate | None = None) -> Response:
    """Deliver once more whatever the filter matches now, bit by bit and behind fresh events."""
    tenant_id = asking.writer("replay")
    wanted_form = form or schemas.ReplayCreate()
    wanted = await _replay_filter(api, tenant_id, wanted_form)
    if wanted_form.dry_run:
        matched = await api.store.count_replay(tenant_id, wanted)
        return _json({"replay_id": None, "matched": matched.deliveries, "matched_exact": matched.exact}, 202)
    row = await api.store.create_replay(
        tenant_id,
        api.new_id(),
        wanted,
        rate_limit=wanted_form.rate_limit or api.settings.replay_rate_limit,
        running_max=REPLAYS_RUNNING_MAX,
    )
    answer = shown.replay(row)
    telemetry.log(
        "replay_created",
        replay_id=answer["replay_id"],
        tenant_id=answer["tenant_id"],
        matched=answer["matched"],
        admin=asking.admin,
        **{name: answer[name] for name in ("endpoint_id", "type", "status", "reason", "since", "until", "rate_limit")},
    )
    return _json({name: answer[name] for name in ("replay_id", "matched", "matched_exact")}, 202)


async def _replay_filter(api: Api, tenant_id: UUID, form: schemas.ReplayCreate) -> ReplayFilter:
    endpoint = field_id("ep", form.endpoint_id, "endpoint_id")
    since = None if form.since is None else schemas.parse_time(form.since)
    until = None if form.until is None else schemas.parse_time(form.until)
    if since is not None and until is not None and since > until:
        raise invalid("since", "must not be after until")
    if endpoint is not None:
        try:
            await api.store.get_endpoint(tenant_id, endpoint)
        except NotFound as error:
            raise invalid("endpoint_id", "there is no such endpoint") from error
    status = form.status or "dead"
    if form.reason is not None and status != "dead":
        raise invalid("reason", "is what deliveries died of: leave status out, or say dead")
    return ReplayFilter(status, endpoint, form.type, since, until, form.reason)


@router.get("/v1/replays", response_model=schemas.ReplayList, tags=["replays"])
async def list_replays(api: ApiOf, asking: Asking, query: Annotated[TenantListQuery, Query()]) -> Response:
    """Bulk replays, newest first."""
    of = tenant_to_read(asking, query.tenant_id, "replay")
    return await _list(
        api,
        of,
        {"list": "replays"},
        query,
        lambda after, n: api.store.list_replays(of, after=after, limit=n),
        shown.replay,
    )


@router.get("/v1/replays/{replay_id}", response_model=schemas.ReplayAnswer, tags=["replays"])
async def get_replay(api: ApiOf, asking: Asking, replay_id: str) -> Response:
    """A bulk replay and how far it is."""
    return _json(shown.replay(await api.store.get_replay(asking.reader("replay"), path_id("rpl", replay_id, "replay"))))


@router.delete("/v1/replays/{replay_id}", status_code=204, tags=["replays"])
async def cancel_replay(api: ApiOf, asking: Asking, replay_id: str) -> Response:
    """End a bulk replay. What it has put into the journal is delivered; one that has ended stays as it is."""
    wanted_id = path_id("rpl", replay_id, "replay")
    if await api.store.cancel_replay(asking.writer("replay"), wanted_id):
        telemetry.log("replay_ended", replay_id=show_id("rpl", wanted_id), state=ReplayState.CANCELLED)
    return Response(status_code=204)


# ---- attempts, dead letters -----------------------------------------------------------------------------------------


@router.get("/v1/deliveries", response_model=schemas.AttemptList, tags=["deliveries"])
@router.get("/v1/attempts", response_model=schemas.AttemptList, tags=["deliveries"])
async def list_attempts(api: ApiOf, asking: Asking, query: Annotated[AttemptQuery, Query()]) -> Response:
    """The history of attempts, newest first by the time they were scheduled for."""
    of = tenant_to_read(asking, query.tenant_id)
    since, until = query.bounds()
    endpoint = field_id("ep", query.endpoint_id, "endpoint_id")
    event = field_id("evt", query.event_id, "event_id")
    filters = {
        "list": "attempts",
        "endpoint": endpoint,
        "event": event,
        "outcome": query.outcome,
        "since": since,
        "until": until,
    }
    return await _list(
        api,
        of,
        filters,
        query,
        lambda after, n: api.store.list_attempts(
            of,
            endpoint_id=endpoint,
            event_id=event,
            outcome=query.outcome,
            since=since,
            until=until,
            after=after,
            limit=n,
        ),
        shown.attempt,
    )


@router.get("/v1/dead_letters", response_model=schemas.DeadLetterList, tags=["deliveries"])
async def list_dead_letters(api: ApiOf, asking: Asking, query: Annotated[DeadLetterQuery, Query()]) -> Response:
    """Deliveries that gave up, newest first; a replay puts one back."""
    of = tenant_to_read(asking, query.tenant_id)
    since, until = query.bounds()
    endpoint = field_id("ep", query.endpoint_id, "endpoint_id")
    return await _list(
        api,
        of,
        {"list": "dead", "endpoint": endpoint, "reason": query.reason, "since": since, "until": until},
        query,
        lambda after, n: api.store.list_dead_letters(
            of, endpoint_id=endpoint, reason=query.reason, since=since, until=until, after=after, limit=n
        ),
        shown.dead_letter,
    )


# ---- health ---------------------------------------------------------------------------------------------------------


@router.get("/healthz", response_model=schemas.Health, tags=["health"])
async def healthz() -> Response:
    """The process is alive."""
    return _json({"status": "ok"})


@router.get(
    "/readyz",
    response_model=schemas.Readiness,
    responses={503: {"model": schemas.Readiness, "description": "Not ready; the fields say which part"}},
    tags=["health"],
)
async def readyz(api: ApiOf, query: Annotated[ReadyQuery, Query()]) -> Response:
    """The store is reachable, events can be appended, every shard has a living owner, and what is sealed opens here."""
    try:
        async with asyncio.timeout(READY_S):
            await api.store.ping()
            unowned = await api.store.unowned_shards()
            missing = await api.store.missing_keys()
            fault = await api.store.journal_fault(READY_S / 2)
    except (StoreUnavailable, TimeoutError):
        away = {
            "status": "not_ready",
            "store": "unreachable",
            "unowned_shards": None,
            "missing_encryption_keys": None,
            "journal": None,
        }
        return _json(away, 503)
    ready = not missing and fault is None and (unowned == 0 or not query.shards)
    answer = {
        "status": "ready" if ready else "not_ready",
        "store": "reachable",
        "unowned_shards": unowned,
        "missing_encryption_keys": len(missing),
        "journal": "reachable" if fault is None else "unreachable",
    }
    return _json(answer, 200 if ready else 503)


# ---- from requests to values ----------------------------------------------------------------------------------------


def path_id(prefix: str, text: str, what: str) -> UUID:
    """An id of a path. What is no id names nothing."""
    try:
        return parse_id(prefix, text)
    except IdError as error:
        raise not_found(what) from error


def field_id(prefix: str, text: str | None, name: str) -> UUID | None:
    """An id in a field."""
    try:
        return None if text is None else parse_id(prefix, text)
    except IdError as error:
        raise invalid(name, str(error)) from error


def tenant_to_read(asking: Principal, named: str | None, scope: str = "read") -> UUID | None:
    """The tenant of a list; the admin may name one."""
    own = asking.reader(scope)
    if named is None:
        return own
    wanted = path_id("ten", named, "tenant")
    if own is not None and wanted != own:
        raise not_found("tenant")
    return wanted


def _secret_key(settings: WebSettings, text: str | None) -> bytes:
    """The key of a secret that the tenant brought, or a generated one."""
    if text is None:
        return settings.random_bytes(GENERATED_BYTES)
    try:
        return parse_secret(text)
    except SecretError as error:
        raise invalid("secret", str(error)) from error


def _endpoint_changes(
    settings: WebSettings, form: schemas.EndpointCreate | schemas.EndpointPatch, current: Mapping[str, Any]
) -> dict[str, Any]:
    """The columns that a request writes; ``current`` is the stored endpoint, empty for a new one.

    The columns of ``retry`` and of ``timeouts`` are written together, so that two requests at the same moment cannot
    leave a combination that neither has asked for.
    """
    given = form.given()
    changes: dict[str, Any] = {name: given[name] for name in _PLAIN_COLUMNS if name in given}
    if "url" in given:
        changes["url"] = _checked_url(settings, form.url)
    if "events" in given:
        changes["events"] = list(dict.fromkeys(form.events or ["*"]))
        if len(changes["events"]) > settings.filters_max:
            raise invalid(
                "events", f"an endpoint may have {settings.filters_max} filters: use prefixes such as invoice.*"
            )
    if "ordered" in given:
        changes["ordered"] = bool(form.ordered)
    if "forward_trace" in given:
        changes["forward_trace"] = bool(form.forward_trace)
    if "ack" in given:
        changes["ack"] = form.ack or None
    if "metadata" in given:
        changes["metadata"] = form.metadata or {}
    if "headers" in given:
        changes["headers"] = _header_change(settings, form.headers)
    if "tls" in given:
        changes["tls"] = _tls_change(settings, form.tls)
    if "tls" in given or "url" in given:
        _check_tls_url(dict(current) | changes)
    if "enabled" in given:
        changes |= _status_change(form.enabled is not False, current)
    if "retry" in given:
        changes |= _group(_RETRY_COLUMNS, form.retry, current)
    if "timeouts" in given:
        changes |= _group(_TIMEOUT_COLUMNS, form.timeouts, current)
    _check_policy(settings, dict.fromkeys((*_RETRY_COLUMNS, *_TIMEOUT_COLUMNS)) | dict(current) | changes)
    return changes


def _header_change(settings: WebSettings, given: HeaderChange) -> HeaderChange:
    """What a request changes of the endpoint's own headers; each that is refused is named with the reason."""
    if given is None:
        return None
    change: dict[str, HeaderValue | None] = {}
    errors = []
    for name, wanted in given.items():
        try:
            if name.lower() in change:
                raise HeaderRefused("is given twice: names are the same in upper and lower case")
            change[name.lower()] = None
            if wanted is None:
                continue
            if wanted.value == MASK:
                raise HeaderRefused("is the mask of a secret: leave the header out to keep it as it is")
            check_header(name, wanted.value, settings.headers_allow)
        except HeaderRefused as error:
            errors.append({"field": f"headers.{name}", "message": str(error)})
            continue
        change[name.lower()] = HeaderValue(wanted.value, wanted.secret or holds_a_secret(name))
    if errors:
        raise invalid_fields(errors)
    return change


def _tls_change(settings: WebSettings, form: schemas.TlsForm | None) -> TlsChange:
    """What a request changes of the endpoint's TLS."""
    if form is None:
        return None
    given = form.given()
    pair = [name for name in ("client_cert_pem", "client_key_pem") if name in given]
    if len(pair) == 1 or (form.client_cert_pem is None) is not (form.client_key_pem is None):
        raise invalid("tls", "client_cert_pem and client_key_pem come together, or both are null")
    change: dict[str, str | None] = {}
    field = "tls.ca_pem"
    try:
        if "ca_pem" in given:
            change["ca"] = None if form.ca_pem is None else check_authorities(form.ca_pem, now=settings.now())
        field = "tls.client_cert_pem"
        if pair and form.client_cert_pem is not None and form.client_key_pem is not None:
            change["cert"], change["key"] = check_identity(
                form.client_cert_pem, form.client_key_pem, now=settings.now()
            )
        elif pair:
            change["cert"] = change["key"] = None
    except TlsError as error:
        raise invalid(field, str(error)) from error
    return change


def _check_tls_url(row: Mapping[str, Any]) -> None:
    """TLS of its own is of use to https:// alone; ``row``: the endpoint as it will be."""
    wanted = row.get("tls", {})
    stored = {} if wanted is None else {"ca": row.get("tls_ca"), "cert": row.get("tls_cert")} | dict(wanted)
    if row["url"].startswith("http://") and any(stored.values()):
        raise invalid("tls", "it needs a URL that begins with https://: change the URL, or set tls to null")


def _checked_url(settings: WebSettings, url: str) -> str:
    try:
        checked = check_url(url, settings.egress)
    except UrlError as error:
        raise invalid("url", str(error)) from error
    if settings.public_url is not None and origin_of(checked) == origin_of(split_url(settings.public_url).url):
        raise invalid("url", "this is Hookpost's own address: what it delivers would come back to it")
    return checked


def _status_change(enabled: bool, current: Mapping[str, Any]) -> dict[str, Any]:
    """``enabled`` switches between enabled and disabled; a paused endpoint that is not to be disabled stays paused."""
    if not enabled:
        return {"status": "disabled", "status_reason": "requested"} if not current else {"status": "disabled"}
    return {"status": "enabled"} if current.get("status") == "disabled" else {}


def _group(
    columns: tuple[str, ...], form: schemas.RetryForm | schemas.TimeoutsForm | None, current: Mapping[str, Any]
) -> dict[str, Any]:
    """All columns of a group after the request; null resets the whole group."""
    if form is None:
        return dict.fromkeys(columns)
    given = form.given()
    return {name: given[name] if name in given else current.get(name) for name in columns}


def _check_policy(settings: WebSettings, row: Mapping[str, Any]) -> None:
    """What single ranges cannot say, judged on the values in force."""
    retry = shown.effective_retry(row, settings.retry)
    timeouts = shown.effective_timeouts(row, settings.timeouts)
    if row.get("spread"):
        for name in ("ordered", "rate_limit"):
            if row.get(name):
                raise invalid(name, "needs one shard for the whole endpoint: set spread to null or false with it")
    if retry.cap_s < retry.base_s:
        raise invalid("retry.cap_s", f"must not be less than base_s ({retry.base_s:g})")
    if timeouts.connect_s >= timeouts.first_byte_s:
        raise invalid("timeouts.connect_s", f"must be less than first_byte_s ({timeouts.first_byte_s:g})")
    if timeouts.total_s > settings.total_timeout_max_s:
        raise invalid("timeouts.total_s", f"must not be more than {settings.total_timeout_max_s:g} here")
    if timeouts.first_byte_s > timeouts.total_s:
        raise invalid("timeouts.first_byte_s", f"must not be more than total_s ({timeouts.total_s:g})")
    if retry.deadline_s > settings.deadline_s_max:
        raise invalid("retry.deadline_s", f"must not be more than {settings.deadline_s_max:g} here")
    if retry.deadline_s < timeouts.total_s:
        raise invalid("retry.deadline_s", f"must not be less than total_s ({timeouts.total_s:g})")


async def _set_status(api: Api, asking: Principal, endpoint_id: str, status: str) -> Response:
    tenant_id = asking.writer("endpoints:write")
    wanted_id = path_id("ep", endpoint_id, "endpoint")
    return _json(api.show_endpoint(await api.store.update_endpoint(tenant_id, wanted_id, {"status": status})))


# ---- answers --------------------------------------------------------------------------------------------------------


async def _list(
    api: Api,
    tenant_id: UUID | None,
    filters: Mapping[str, Any],
    query: ListQuery,
    fetch: Callable[[tuple[Any, ...] | None, int], Awaitable[Page]],
    show: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> Response:
    """One page; the cursor is bound to the tenant and to ``filters``."""
    page = await fetch(api.cursors.read(query.cursor, tenant_id, filters), query.limit)
    cursor = api.cursors.show(page.next_key, tenant_id, filters)
    return _json({"data": [show(row) for row in page.rows], "next_cursor": cursor})


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
