"""Event types: what a tenant has said of them, with their schemas; described, edited and forgotten here, too."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from hookpost.web.dashboard.ask import Refusal
from hookpost.web.dashboard.forms import Form, not_json
from hookpost.web.dashboard.render import indented, with_query
from hookpost.web.dashboard.visit import Visit, see

PATH = "/dashboard/event-types"
LISTED = 50


async def listed(visit: Visit) -> Response:
    """All of them, newest first."""
    return await _page(visit, {}, None)


async def create(visit: Visit) -> Response:
    """Describe one, or show what is wrong with the form."""
    form = visit.form
    entered = {name: form.raw(name) for name in ("name", "description", "schema", "tenant_id")}
    given: dict[str, Any] = {"name": form.text("name"), "description": form.optional("description")}
    try:
        given["schema"] = _schema(form.text("schema"))
        await visit.act("POST", "/v1/event_types", tenant_id=form.optional("tenant_id"), form=given)
    except Refusal as refused:
        return await _page(visit, entered, refused)
    return see(PATH, did="created")


async def edit(visit: Visit) -> Response:
    """The form of one that is described, filled in."""
    visit.principal.require("endpoints:write")
    if not visit.query.text("name"):
        return see(PATH)
    named = await visit.act("GET", _path(visit.query), tenant_id=visit.query.optional("of"))
    schema = "" if named["schema"] is None else indented(named["schema"])
    return _form(visit, {**named, "description": named["description"] or "", "schema": schema}, None)


async def save(visit: Visit) -> Response:
    """Describe it anew, or show what is wrong with the form. An empty field takes away what was said."""
    form = visit.form
    entered = {name: form.raw(name) for name in ("name", "description", "schema", "tenant_id")}
    try:
        given = {"description": form.optional("description"), "schema": _schema(form.text("schema"))}
        await visit.act("PATCH", _path(form), tenant_id=form.optional("tenant_id"), form=given)
    except Refusal as refused:
        if refused.status == 404:
            raise
        return _form(visit, entered, refused)
    return see(PATH, did="saved")


async def delete(visit: Visit) -> Response:
    """Forget what was said of one: its events are taken as they come again."""
    await visit.act("DELETE", _path(visit.form), tenant_id=visit.form.optional("tenant_id"))
    return see(PATH, did="deleted")


def _path(form: Form) -> str:
    """The route of the type that a form, or a URL, names."""
    return f"/v1/event_types/{quote(form.text('name'), safe='')}"


def _form(visit: Visit, entered: dict[str, Any], refused: Refusal | None) -> Response:
    return visit.page(
        "event_type.html",
        refused=refused,
        entered=entered,
    )


async def _page(visit: Visit, entered: dict[str, str], refused: Refusal | None) -> Response:
    answer = await visit.ask(
        "/v1/event_types", tenant_id=visit.tenant_filter(), cursor=visit.query.optional("cursor"), limit=LISTED
    )
    cursor = answer["next_cursor"]
    return visit.page(
        "event_types.html",
        refused=refused,
        types=answer["data"],
        tenants=await visit.tenant_names(answer["data"]),
        entered=entered,
        next_url=with_query(PATH, tenant_id=visit.tenant_filter(), cursor=cursor) if cursor else None,
        may_write=visit.may("endpoints:write"),
    )


def _schema(text: str) -> Any:
    if not text:
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Refusal(422, {"detail": f"schema: is not JSON: {not_json(error)}"}) from error
