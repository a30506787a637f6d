"""The verifier's page: valid, or which of the usual mistakes it is, with what is on record to tell."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from hookpost.model import show_id
from hookpost.policy.signing import parse_secret, signature_header
from tests.web.dashboard.conftest import Browser, text_of
from tests.web.rows import TenantClient, add_attempt, append_event, endpoint_uuid

BODY = b'{"amount": 1.50}'


async def test_each_mistake_is_told_by_its_name(sql: Any, tenant: TenantClient, browser: Browser) -> None:
    endpoint, other = await tenant.endpoint(), await tenant.endpoint()
    owed = [endpoint_uuid(endpoint), endpoint_uuid(other)]
    event_id, _ = await append_event(sql, tenant.uuid, owed, payload=BODY)
    another, _ = await append_event(sql, tenant.uuid, owed, payload=b"{}")
    attempt_id = await add_attempt(sql, tenant.uuid, event_id, owed[0], outcome="delivered")
    at = int(
        await sql.fetchval(
            "update attempts set scheduled_at = now() where attempt_id = $1 returning extract(epoch from now())",
            attempt_id,
        )
    )

    async def verdict(id_: str, body: str, *, signature: str, stamp: int = at, **changes: str) -> str:
        headers = f"Webhook-Id: {id_}\r\nWebhook-Timestamp: {stamp}\r\nWebhook-Signature: {signature}"
        fields = {"headers": headers, "body": body, "secret": endpoint["secret"], **changes}
        answer = await browser.post("/dashboard/verifier", fields)
        assert answer.status_code == 200, answer.text
        return text_of(answer.text)

    this, that, body = show_id("evt", event_id), show_id("evt", another), BODY.decode()
    key, others = parse_secret(endpoint["secret"]), parse_secret(other["secret"])
    good, old = signature_header(this, at, BODY, [key]), signature_header(this, at - 600, BODY, [key])
    hexadecimal = "v1," + b64decode(good.removeprefix("v1,")).hex()
    theirs = signature_header(this, at, BODY, [others])
    assert "Valid: the signature fits" in await verdict(this, body, signature=good)
    assert "Timestamp too old" in await verdict(this, body, signature=old, stamp=at - 600)
    assert "Body altered: it differs" in await verdict(this, '{"amount": 2.50}', signature=good)
    assert f"signed with that of {other['endpoint_id']}" in await verdict(this, body, signature=theirs)
    assert "Wrong encoding: the signature is hexadecimal" in await verdict(this, body, signature=hexadecimal)
    assert f"Wrong id: the signature is for ' {this} ', not for ' {that} '" in await verdict(that, body, signature=good)
    nobodys = signature_header(this, at, BODY, [bytes(24)])
    assert "Wrong secret, or body altered beyond" in await verdict(this, body, signature=nobodys)
    for stamp in (0, at + 10**6, 10**14):
        told = await verdict(this, body, signature=good, stamp=stamp)
        assert "no signature fits" in told, "no time is out of range"
