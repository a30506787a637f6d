"""Trying an endpoint: a test event, or one of a type and with a payload that are chosen here."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from hookpost.model import show_id
from hookpost.web.dashboard.ask import Refusal
from hookpost.web.dashboard.forms import not_json
from hookpost.web.dashboard.render import indented
from hookpost.web.dashboard.visit import Visit, see
from hookpost.web.endpoint_tests import examples

# Described types that are offered; any other can be entered.
TYPES_OFFERED = 50


async def show(visit: Visit) -> Response:
    """The form, with the example of the type that the URL names."""
    visit.principal.require("endpoints:write")
    endpoint = await _endpoint(visit)
    types = await _types(visit, endpoint)
    chosen = visit.query.text("type")
    example = next((found[0] for name, found in types.items() if name == chosen and found), None)
    return _page(visit, endpoint, types, {"type": chosen, "payload": "" if example is None else indented(example)})


async def send(visit: Visit) -> Response:
    """Send it to this endpoint alone, and go to the event."""
    endpoint = await _endpoint(visit)
    entered = {name: visit.form.raw(name) for name in ("type", "payload")}
    path = f"/v1/webhook_endpoints/{endpoint['endpoint_id']}/test"
    try:
        sent = await visit.act("POST", path, tenant_id=endpoint["tenant_id"], form=_given(visit))
    except Refusal as refused:
        if refused.status != 422:
            raise
        return _page(visit, endpoint, await _types(visit, endpoint), entered, refused)
    return see(f"/dashboard/events/{sent['event_id']}")


def _given(visit: Visit) -> dict[str, Any]:
    """What is entered, as the API takes it: the payload with its own order of keys and spelling of numbers."""
    given: dict[str, Any] = {"type": visit.form.optional("type")}
    text = visit.form.text("payload")
    if text:
        try:
            msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise Refusal(422, {"detail": f"payload: is not JSON: {not_json(error)}"}) from error
        given["payload"] = msgspec.Raw(text.encode("utf-8", "surrogatepass"))
    return given


async def _endpoint(visit: Visit) -> dict[str, Any]:
    endpoint_id = show_id("ep", visit.path_id("ep", "endpoint_id", "endpoint"))
    return await visit.ask(f"/v1/webhook_endpoints/{endpoint_id}")


async def _types(visit: Visit, endpoint: dict[str, Any]) -> dict[str, list[Any]]:
    """The types that the tenant has described, with their examples."""
    tenant_id = endpoint["tenant_id"] if visit.principal.admin else None
    listed = await visit.ask("/v1/event_types", tenant_id=tenant_id, limit=TYPES_OFFERED)
    return {described["name"]: examples(described["schema"]) for described in listed["data"]}


def _page(
    visit: Visit,
    endpoint: dict[str, Any],
    types: dict[str, list[Any]],
    entered: dict[str, str],
    refused: Refusal | None = None,
) -> Response:
    return visit.page(
        "endpoint_test.html",
        refused=refused,
        endpoint=endpoint,
        types=types,
        entered=entered,
    )
