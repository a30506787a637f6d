"""Is the process alive, and is it ready?"""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Response

from hookpost.storage.contract import StoreUnavailable
from hookpost.web import answers
from hookpost.web.api import ApiOf, UrlQuery, as_json

# A load balancer asks every second or so; a store that takes longer is not ready.
READY_S = 2.0

router = APIRouter()


class ReadyQuery(UrlQuery):
    """``shards`` false: is this process ready to accept events? They wait while no worker runs."""

    shards: bool = True


@router.get("/healthz", response_model=answers.Health, tags=["health"])
async def healthz() -> Response:
    """The process is alive."""
    return as_json({"status": "ok"})


@router.get(
    "/readyz",
    response_model=answers.Readiness,
    responses={503: {"model": answers.Readiness, "description": "Not ready; the fields say which part"}},
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
        return as_json(away, 503)
    ready = not missing and fault is None and (unowned == 0 or not query.shards)
    answer = {
        "status": "ready" if ready else "not_ready",
        "store": "reachable",
        "unowned_shards": unowned,
        "missing_encryption_keys": len(missing),
        "journal": "reachable" if fault is None else "unreachable",
    }
    return as_json(answer, 200 if ready else 503)
