"""Types of events: what a tenant says of them, and the schema that their payloads must satisfy.

A type need not be described to be posted. What is described with a schema is checked in `ingest` from the moment that
the change is acknowledged, on every process.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from hookpost.policy.event_schema import SchemaRefused, check_schema
from hookpost.policy.routing import EVENT_TYPE
from hookpost.web import answers, schemas, shown
from hookpost.web.api import Api, ApiOf, Asking, TenantListQuery, as_json, listed, tenant_to_read
from hookpost.web.problems import invalid, not_found, refusal

router = APIRouter(tags=["event types"])


@router.post("/v1/event_types", status_code=201, response_model=answers.EventTypeAnswer)
async def create_event_type(api: ApiOf, asking: Asking, form: schemas.EventTypeCreate) -> Response:
    """Describe a type of events. With a schema, every event of it posted after the answer is checked against it."""
    tenant_id = asking.writer("endpoints:write")
    values = {"description": form.description, "schema": _schema(api, form.json_schema)}
    row = await api.store.create_event_type(tenant_id, form.name, values, limits=api.settings.types)
    return as_json(shown.event_type(row), 201)


@router.get("/v1/event_types", response_model=answers.EventTypeList)
async def list_event_types(api: ApiOf, asking: Asking, query: Annotated[TenantListQuery, Query()]) -> Response:
    """The types that were described, newest first."""
    of = tenant_to_read(asking, query.tenant_id)
    return await listed(
        api,
        of,
        {"list": "event_types"},
        query,
        lambda after, n: api.store.list_event_types(of, after=after, limit=n),
        shown.event_type,
    )


@router.get("/v1/event_types/{name}", response_model=answers.EventTypeAnswer)
async def get_event_type(api: ApiOf, asking: Asking, name: str) -> Response:
    """One type. Names are each tenant's own, so that the admin has to say whose it is."""
    tenant_id = asking.reader()
    if tenant_id is None:
        raise refusal(400, "event types are each tenant's own: name the tenant in the header X-Tenant-Id")
    return as_json(shown.event_type(await api.store.get_event_type(tenant_id, _name(name))))


@router.patch("/v1/event_types/{name}", response_model=answers.EventTypeAnswer)
async def update_event_type(api: ApiOf, asking: Asking, name: str, form: schemas.EventTypePatch) -> Response:
    """Change a type: absent leaves, null takes away. A new schema is about events posted after the answer."""
    tenant_id = asking.writer("endpoints:write")
    wanted = _name(name)
    row = await api.store.get_event_type(tenant_id, wanted)
    given = form.given()
    changes: dict[str, Any] = {key: given[key] for key in ("description",) if key in given}
    if "json_schema" in given:
        changes["schema"] = _schema(api, form.json_schema)
    if changes:
        row = await api.store.update_event_type(tenant_id, wanted, changes, limits=api.settings.types)
    return as_json(shown.event_type(row))


@router.delete("/v1/event_types/{name}", status_code=204)
async def delete_event_type(api: ApiOf, asking: Asking, name: str) -> Response:
    """Forget what was said of a type: its events are taken as they come again."""
    await api.store.delete_event_type(asking.writer("endpoints:write"), _name(name))
    return Response(status_code=204)


def _name(text: str) -> str:
    """A name of a path. What can be no type names nothing."""
    if EVENT_TYPE.fullmatch(text) is None:
        raise not_found("event type")
    return text


def _schema(api: Api, given: dict[str, Any] | None) -> str | None:
    """The schema as it is stored; each that is refused is told where and why."""
    try:
        return None if given is None else check_schema(given, api.settings.schemas)
    except SchemaRefused as error:
        raise invalid("schema" + error.pointer, str(error)) from error
