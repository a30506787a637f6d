"""The routes of attempts and dead letters."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from hookpost.model import DeadReason
from hookpost.web import answers, schemas, shown
from hookpost.web.api import ApiOf, Asking, WindowQuery, field_id, listed, tenant_to_read

router = APIRouter()


class AttemptQuery(WindowQuery):
    """Of the list of attempts."""

    endpoint_id: schemas.Text | None = None
    event_id: schemas.Text | None = None
    outcome: Literal["delivered", "retry", "dead"] | None = None


class DeadLetterQuery(WindowQuery):
    """Of the list of dead letters."""

    endpoint_id: schemas.Text | None = None
    reason: DeadReason | None = None


@router.get("/v1/deliveries", response_model=answers.AttemptList, tags=["deliveries"])
@router.get("/v1/attempts", response_model=answers.AttemptList, tags=["deliveries"])
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
    return await listed(
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


@router.get("/v1/dead_letters", response_model=answers.DeadLetterList, tags=["deliveries"])
async def list_dead_letters(api: ApiOf, asking: Asking, query: Annotated[DeadLetterQuery, Query()]) -> Response:
    """Deliveries that gave up, newest first; a replay puts one back."""
    of = tenant_to_read(asking, query.tenant_id)
    since, until = query.bounds()
    endpoint = field_id("ep", query.endpoint_id, "endpoint_id")
    return await listed(
        api,
        of,
        {"list": "dead", "endpoint": endpoint, "reason": query.reason, "since": since, "until": until},
        query,
        lambda after, n: api.store.list_dead_letters(
            of, endpoint_id=endpoint, reason=query.reason, since=since, until=until, after=after, limit=n
        ),
        shown.dead_letter,
    )
