"""What all routes of the API share: what they work with, who asks, the parameters of lists, ids, and how they answer.

Each route reads as: who is asking, is the request sound, what does the store say, how is it shown. The principal was
established before the request's body was read (web/app.py). What the store raises becomes a problem in one place
(web/problems.py).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol
from uuid import UUID

import msgspec
from fastapi import Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from uuid_utils.compat import uuid7

from hookpost.exposition import Metrics
from hookpost.model import IdError, RetryPolicy, Timeouts, parse_id
from hookpost.policy.cost import Prices
from hookpost.policy.egress import EgressPolicy
from hookpost.policy.event_schema import SchemaBounds
from hookpost.storage.contract import AdminStore, Page, PayloadStore, TypeLimits
from hookpost.web import schemas, shown
from hookpost.web.auth import Principal
from hookpost.web.cursors import Cursors
from hookpost.web.problems import invalid, not_found, refusal


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


# ---- queries --------------------------------------------------------------------------------------------------------


class UrlQuery(BaseModel):
    """Parameters of a URL: what is not known is refused, as a filter that has no effect misleads."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ListQuery(UrlQuery):
    """Of every list."""

    limit: Annotated[int, Field(ge=1, le=schemas.LIST_LIMIT_MAX)] = schemas.LIST_LIMIT_DEFAULT
    cursor: schemas.Text | None = None


class TenantListQuery(ListQuery):
    """Of lists that the admin may narrow down to one tenant."""

    tenant_id: schemas.Text | None = None


class WindowQuery(TenantListQuery):
    """Of lists of what happened at a time."""

    since: Annotated[schemas.Time | None, Field(description="at or after this time")] = None
    until: Annotated[schemas.Time | None, Field(description="before this time")] = None

    def bounds(self) -> tuple[float | None, float | None]:
        """since and until as Unix seconds."""
        return (
            None if self.since is None else schemas.parse_time(self.since),
            None if self.until is None else schemas.parse_time(self.until),
        )


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


# ---- answers --------------------------------------------------------------------------------------------------------


async def listed(
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
    return as_json({"data": [show(row) for row in page.rows], "next_cursor": cursor})


def as_json(value: Any, status: int = 200) -> Response:
    """An answer with this value."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")
