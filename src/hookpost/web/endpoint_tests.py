"""Test events: sent to one endpoint alone, whatever its filter says, to try the receiver.

Without more it is a ``hookpost.test``. With a type it is an event of that type as any other, so what the tenant has
said of the type holds: its schema is checked, and the first of the schema's ``examples`` (JSON Schema 2020-12,
validation, 9.5) is the payload unless another one is given.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Response

from hookpost.model import show_id
from hookpost.storage.contract import NotFound
from hookpost.web import answers, schemas, shown
from hookpost.web.api import Api, ApiOf, Asking, as_json, path_id
from hookpost.web.problems import invalid

TEST_EVENT_TYPE = "hookpost.test"

router = APIRouter(tags=["webhook endpoints"])


@router.post("/v1/webhook_endpoints/{endpoint_id}/test", status_code=202, response_model=answers.TestSent)
async def test_endpoint(
    api: ApiOf, asking: Asking, endpoint_id: str, form: schemas.EndpointTest | None = None
) -> Response:
    """Send an event to this endpoint alone: of the type hookpost.test, or of a type and with a payload of your own."""
    tenant_id = asking.writer("endpoints:write")
    wanted_id = path_id("ep", endpoint_id, "endpoint")
    await api.store.get_endpoint(tenant_id, wanted_id)
    given = schemas.EndpointTest() if form is None else form
    type_ = given.type or TEST_EVENT_TYPE
    if "payload" in given.model_fields_set:
        payload = _encoded(given.payload)
    elif type_ == TEST_EVENT_TYPE:
        payload = _own(wanted_id, api.settings.now())
    else:
        payload = await _example(api, tenant_id, type_)
    event_id = await api.submit(tenant_id, type_, payload, [wanted_id])
    return as_json({"event_id": show_id("evt", event_id)}, 202)


def examples(schema: Any) -> list[Any]:
    """What a type's schema gives as examples of a payload."""
    found = schema.get("examples") if isinstance(schema, dict) else None
    return found if isinstance(found, list) else []


def _own(endpoint_id: UUID, now: float) -> bytes:
    return msgspec.json.encode(
        {
            "type": TEST_EVENT_TYPE,
            "timestamp": shown.show_time(now),
            "data": {
                "endpoint_id": show_id("ep", endpoint_id),
                "message": "If you can verify my signature, all is well.",
            },
        }
    )


async def _example(api: Api, tenant_id: UUID, type_: str) -> bytes:
    try:
        row = await api.store.get_event_type(tenant_id, type_)
    except NotFound:
        row = {"schema": None}
    found = examples(None if row["schema"] is None else msgspec.json.decode(row["schema"]))
    if not found:
        raise invalid("payload", f"is required: the schema of {type_} has no examples to take one from")
    return msgspec.json.encode(found[0])


def _encoded(payload: Any) -> bytes:
    try:
        return msgspec.json.encode(payload)
    except (ValueError, RecursionError):
        raise invalid("payload", "holds an unpaired surrogate, or nests far too deep") from None
