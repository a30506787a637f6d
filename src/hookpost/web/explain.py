"""The route that says why: what happened to an event at each endpoint, and what happens next, in plain words."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field

from hookpost.model import show_id
from hookpost.policy.explain import EventWhy, Facts, explain
from hookpost.web import answers, schemas, shown
from hookpost.web.api import ApiOf, Asking, UrlQuery, as_json, field_id, path_id

# Endpoints of one answer that the event was owed to, and of those it was not: more than anybody reads at once. About a
# further one it is asked by its id.
OWED_MAX = 200
OTHERS_MAX = 50

router = APIRouter()


class ExplainQuery(UrlQuery):
    """Which endpoint it is about; without one, all that the event was owed to and the newest of the others."""

    endpoint_id: Annotated[schemas.Text | None, Field(description="only this endpoint, also a deleted one")] = None


@router.get("/v1/events/{event_id}/explain", response_model=answers.ExplainAnswer, tags=["events"])
async def explain_event(api: ApiOf, asking: Asking, event_id: str, query: Annotated[ExplainQuery, Query()]) -> Response:
    """What happened to an event, endpoint by endpoint, and what happens next. For endpoints that it was not owed to:
    why not."""
    of = asking.reader()
    event = path_id("evt", event_id, "event")
    endpoint = field_id("ep", query.endpoint_id, "endpoint_id")
    why = await api.store.why(of, event, endpoint, owed_max=OWED_MAX, others_max=OTHERS_MAX)
    return as_json(_shown(why, api.settings.now()))


def _shown(why: EventWhy, now: float) -> dict[str, Any]:
    event = why.event
    return {
        "event_id": show_id("evt", event.event_id),
        "tenant_id": show_id("ten", event.tenant_id),
        "type": event.type,
        "created_at": shown.show_time(event.accepted_at),
        "endpoints": [_endpoint(facts, now) for facts in why.pairs],
        "more": why.more,
    }


def _endpoint(facts: Facts, now: float) -> dict[str, Any]:
    told, delivery = explain(facts, now=now), facts.delivery
    return {
        "endpoint_id": show_id("ep", facts.endpoint.endpoint_id),
        "status": told.status,
        "reason": told.reason,
        "summary": told.summary,
        "next_step": told.next_step,
        "until": shown.show_time(told.until),
        "generation": None if delivery is None else delivery.generation,
    }
