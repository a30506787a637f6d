"""The signature verifier: paste a request, and read whether it is valid or exactly what is wrong with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from uuid import UUID

from starlette.responses import Response

from hookpost.model import IdError, parse_id, show_id
from hookpost.policy.diagnosis import UNTOLD, Known, diagnose, read_headers
from hookpost.storage.contract import NotFound, SecretLocked
from hookpost.web.accepted import payload_of
from hookpost.web.dashboard.forms import FORM_BYTES_MAX
from hookpost.web.dashboard.visit import Visit

# An event may be owed to thousands; the secret is looked for among the first ones.
ENDPOINTS_TRIED_MAX = 20
# An attempt is signed so long after its time has come, at most; of one that waited longer the id is not found.
WAITED_S_MAX = 10
# Attempts in that time; a busy tenant has more, and each costs a page of rows and a digest.
IDS_TRIED_MAX = 500


async def show(visit: Visit) -> Response:
    """The form."""
    return visit.page("verifier.html", given=_NOTHING, found=None, bytes_max=FORM_BYTES_MAX)


async def check(visit: Visit) -> Response:
    """The form with what was found. Nothing of it is kept."""
    given = {name: visit.form.raw(name) for name in _NOTHING}
    headers = read_headers(given["headers"])
    # Browsers send line ends as CR LF, whatever was pasted; a body with those is a box away.
    body = given["body"] if visit.form.is_set("crlf") else given["body"].replace("\r\n", "\n")
    known = await _known(visit, headers.get("webhook-id", ""))
    ask = partial(diagnose, headers, body.encode("utf-8", "surrogatepass"), given["secret"], visit.desk.now())
    found = await asyncio.to_thread(ask, known)
    if found == UNTOLD:
        ids = await _sent_about(visit, int(headers["webhook-timestamp"]))
        found = await asyncio.to_thread(ask, replace(known or Known(), ids=ids))
    crlf = visit.form.is_set("crlf")
    return visit.page("verifier.html", given=given, found=found, crlf=crlf, bytes_max=FORM_BYTES_MAX)


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
            keys += await _keys(visit, view.event["tenant_id"], delivery["endpoint_id"])
    return Known(payload, keys)


async def _sent_about(visit: Visit, stamp: int) -> list[str]:
    """The ids of events that were sent at a time, when the message may be one of them under another's id."""
    if stamp > visit.desk.now():
        return []
    page = await visit.desk.api.store.list_attempts(
        visit.principal.reader(), endpoint_id=None, event_id=None, outcome=None, since=stamp - WAITED_S_MAX,
        until=stamp + 1, after=None, limit=IDS_TRIED_MAX,
    )  # fmt: skip
    return list(dict.fromkeys(show_id("evt", row["event_id"]) for row in page.rows))


async def _keys(visit: Visit, tenant_id: UUID, endpoint_id: UUID) -> list[tuple[str, bytes]]:
    try:
        secrets = await visit.desk.api.store.use_secrets(tenant_id, endpoint_id)
    except (NotFound, SecretLocked):  # deleted, or sealed with a key that is not there
        return []
    return [(show_id("ep", endpoint_id), secret["key"]) for secret in secrets]
