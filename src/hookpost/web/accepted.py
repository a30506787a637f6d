"""The routes of events that were accepted: lists, one, and what may be asked of it; posting is web/events.py."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from hookpost import telemetry
from hookpost.model import REMOVED, PayloadRef, show_id
from hookpost.storage.contract import ControlAction, PayloadMissing, PayloadStore, StoreUnavailable
from hookpost.web import answers, schemas, shown
from hookpost.web.api import Api, ApiOf, Asking, WindowQuery, as_json, field_id, listed, path_id, tenant_to_read
from hookpost.web.auth import Principal

# Of removed payloads' objects a request removes no more; as a rule there is but its own.
OBJECTS_REMOVED_AT_ONCE = 20

router = APIRouter()


class EventQuery(WindowQuery):
    """Of the list of events."""

    type: schemas.TypeFilter | None = None


@router.get("/v1/events", response_model=answers.EventList, tags=["events"])
async def list_events(api: ApiOf, asking: Asking, query: Annotated[EventQuery, Query()]) -> Response:
    """Events, newest first, without their payloads."""
    of = tenant_to_read(asking, query.tenant_id)
    since, until = query.bounds()
    return await listed(
        api,
        of,
        {"list": "events", "type": query.type, "since": since, "until": until},
        query,
        lambda after, n: api.store.list_events(of, type=query.type, since=since, until=until, after=after, limit=n),
        shown.event_item,
    )


@router.get("/v1/events/{event_id}", response_model=answers.EventAnswer, tags=["events"])
async def get_event(api: ApiOf, asking: Asking, event_id: str) -> Response:
    """An event, its payload as it was posted, and what became of each delivery."""
    view = await api.store.get_event(asking.reader(), path_id("evt", event_id, "event"))
    payload, state = await payload_of(api.payloads, view.event)
    return as_json(shown.event(view, payload, state))


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


@router.post("/v1/events/{event_id}/replay", status_code=202, response_model=answers.Replayed, tags=["events"])
async def replay_event(api: ApiOf, asking: Asking, event_id: str, form: schemas.ReplayForm | None = None) -> Response:
    """Deliver an event once more, to one endpoint or to all it was owed to that still exist."""
    tenant_id = asking.writer("replay")
    endpoint = field_id("ep", form.endpoint_id if form else None, "endpoint_id")
    wanted_id = path_id("evt", event_id, "event")
    count = await api.store.append_replay(tenant_id, wanted_id, endpoint)
    telemetry.log("event_replayed", event_id=show_id("evt", wanted_id), deliveries=count)
    with suppress(StoreUnavailable):  # the replay is durable; a worker that is not rung finds it a little later
        await api.store.ring()
    return as_json({"delivery_count": count}, 202)


@router.post("/v1/events/{event_id}/cancel", status_code=202, response_model=answers.Controlled, tags=["events"])
async def cancel_event(api: ApiOf, asking: Asking, event_id: str, form: schemas.ControlForm | None = None) -> Response:
    """Cancel what is not delivered yet, to one endpoint or to all. A request under way ends by its outcome."""
    return await _control(api, asking, event_id, form, ControlAction.CANCEL)


@router.post("/v1/events/{event_id}/retry_now", status_code=202, response_model=answers.Controlled, tags=["events"])
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
    return as_json({"delivery_count": count}, 202)


@router.delete("/v1/events/{event_id}/payload", response_model=answers.Controlled, tags=["events"])
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
    return as_json({"delivery_count": count})
