"""The routes of bulk replays."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from hookpost import telemetry
from hookpost.model import show_id
from hookpost.storage.contract import NotFound, ReplayFilter, ReplayState
from hookpost.web import answers, schemas, shown
from hookpost.web.api import Api, ApiOf, Asking, TenantListQuery, as_json, field_id, listed, path_id, tenant_to_read
from hookpost.web.problems import invalid

# Running bulk replays of one tenant: each is paced by itself, and their rates add up.
REPLAYS_RUNNING_MAX = 20

router = APIRouter()


@router.post("/v1/replays", status_code=202, response_model=answers.ReplayStarted, tags=["replays"])
async def create_replay(api: ApiOf, asking: Asking, form: schemas.ReplayCreate | None = None) -> Response:
    """Deliver once more whatever the filter matches now, bit by bit and behind fresh events."""
    tenant_id = asking.writer("replay")
    wanted_form = form or schemas.ReplayCreate()
    wanted = await _replay_filter(api, tenant_id, wanted_form)
    if wanted_form.dry_run:
        matched = await api.store.count_replay(tenant_id, wanted)
        return as_json({"replay_id": None, "matched": matched.deliveries, "matched_exact": matched.exact}, 202)
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
    return as_json({name: answer[name] for name in ("replay_id", "matched", "matched_exact")}, 202)


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


@router.get("/v1/replays", response_model=answers.ReplayList, tags=["replays"])
async def list_replays(api: ApiOf, asking: Asking, query: Annotated[TenantListQuery, Query()]) -> Response:
    """Bulk replays, newest first."""
    of = tenant_to_read(asking, query.tenant_id, "replay")
    return await listed(
        api,
        of,
        {"list": "replays"},
        query,
        lambda after, n: api.store.list_replays(of, after=after, limit=n),
        shown.replay,
    )


@router.get("/v1/replays/{replay_id}", response_model=answers.ReplayAnswer, tags=["replays"])
async def get_replay(api: ApiOf, asking: Asking, replay_id: str) -> Response:
    """A bulk replay and how far it is."""
    return as_json(
        shown.replay(await api.store.get_replay(asking.reader("replay"), path_id("rpl", replay_id, "replay")))
    )


@router.delete("/v1/replays/{replay_id}", status_code=204, tags=["replays"])
async def cancel_replay(api: ApiOf, asking: Asking, replay_id: str) -> Response:
    """End a bulk replay. What it has put into the journal is delivered; one that has ended stays as it is."""
    wanted_id = path_id("rpl", replay_id, "replay")
    if await api.store.cancel_replay(asking.writer("replay"), wanted_id):
        telemetry.log("replay_ended", replay_id=show_id("rpl", wanted_id), state=ReplayState.CANCELLED)
    return Response(status_code=204)
