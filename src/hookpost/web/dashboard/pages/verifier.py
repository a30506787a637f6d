"""The signature verifier: paste a request, and read whether it is valid or exactly what is wrong with it."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from hookpost.model import IdError, parse_id
from hookpost.policy.diagnosis import Known, diagnose, read_headers
from hookpost.policy.signing import parse_secret
from hookpost.storage.contract import NotFound
from hookpost.web.api import payload_of
from hookpost.web.dashboard.ask import Refusal
from hookpost.web.dashboard.visit import Visit

# An event may be owed to thousands; the secret is looked for among the first ones.
ENDPOINTS_TRIED_MAX = 20


async def show(visit: Visit) -> Response:
    """The form."""
    return visit.page("verifier.html", given=_NOTHING, found=None)


async def check(visit: Visit) -> Response:
    """The form with what was found. Nothing of it is kept."""
    given = {name: visit.form.raw(name) for name in _NOTHING}
    headers = read_headers(given["headers"])
    # Browsers send line ends as CR LF, whatever was pasted; a body with those is a box away.
    body = given["body"] if visit.form.is_set("crlf") else given["body"].replace("\r\n", "\n")
    known = await _known(visit, headers.get("webhook-id", ""))
    found = await asyncio.to_thread(
        diagnose, headers, body.encode("utf-8", "surrogatepass"), given["secret"], visit.desk.now(), known
    )
    return visit.page("verifier.html", given=given, found=found, crlf=visit.form.is_set("crlf"))


_NOTHING: dict[str, str] = {"headers": "", "body": "", "secret": ""}


async def _known(visit: Visit, message_id: str) -> Known | None:
    """What is on record of an event that this person may see, with the secrets if they may see those."""
    try:
        event_id = parse_id("evt", message_id)
        view = await visit.desk.api.store.get_event(visit.principal.reader(), event_id)
    except (IdError, NotFound):
        return None
    payload, _ = await payload_of(visit.desk.api.payloads, view.event)
    keys: list[tuple[str, bytes]] = []
    if visit.may("endpoints:write"):
        for delivery in view.deliveries[:ENDPOINTS_TRIED_MAX]:
            keys += await _keys(visit, f"ep_{delivery['endpoint_id'].hex}")
    return Known(payload, keys)


async def _keys(visit: Visit, endpoint_id: str) -> list[tuple[str, bytes]]:
    try:
        answer: dict[str, Any] = await visit.ask(f"/v1/webhook_endpoints/{endpoint_id}/secret")
    except Refusal:  # the endpoint is deleted, or has no secret
        return []
    return [(endpoint_id, parse_secret(secret["secret"])) for secret in answer["secrets"]]
