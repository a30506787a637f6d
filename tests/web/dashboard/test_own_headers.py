"""Headers of an endpoint's own in the dashboard: set, kept, taken away, and never shown when they are secret."""

from __future__ import annotations

from uuid import UUID

import pytest

from hookpost.policy.headers import MASK
from hookpost.web.dashboard.own_headers import LineError, again, change, lines, parse
from hookpost.web.dashboard.sent import headers_of
from tests.web.dashboard.conftest import Browser
from tests.web.rows import TenantClient

THERE = {"x-team": "payments", "x-pin": MASK}
EVENT = UUID("0196a5d8-8f3e-7c1a-9a60-5a5d1f4e7b21")
ATTEMPT = UUID("0196a5d8-8f40-7000-8000-00000000abcd")
TRACE = UUID("4bf92f3577b34da6a3ce929d0e0e4736")


def test_a_form_that_was_not_touched_changes_nothing() -> None:
    assert change(lines(THERE), "", THERE) == {}
    assert change(None, "", THERE) == {}


def test_lines_are_set_and_those_that_are_gone_are_taken_away() -> None:
    assert change("X-Team: billing\nX-New: a:b\n", "", THERE) == {
        "x-pin": None,
        "x-team": {"value": "billing", "secret": False},
        "x-new": {"value": "a:b", "secret": False},
    }


def test_a_secret_stays_a_secret_whichever_field_its_value_comes_from() -> None:
    secret = {"x-pin": {"value": "99", "secret": True}}
    assert change("x-team: payments\nx-pin: 99", "", THERE) == secret
    assert change(lines(THERE), "X-Pin: 99", THERE) == secret


@pytest.mark.parametrize("text", ["no colon", ": nameless", "a: 1\nA: 2"])
def test_a_line_that_is_no_header_is_refused_by_its_number(text: str) -> None:
    with pytest.raises(LineError, match=r"line \d"):
        parse(text)


def test_a_refused_form_does_not_show_secrets_again() -> None:
    assert again("x-team: b\nAuthorization: Bearer s\nx-pin: 99", THERE) == "x-team: b\nAuthorization: \nx-pin: "


@pytest.mark.parametrize(("told", "trace"), [(False, EVENT), (True, TRACE)])
def test_what_was_sent_has_the_endpoints_headers_masked_and_the_trace_that_it_was_told(told: bool, trace: UUID) -> None:
    event = {"event_id": EVENT, "tenant_id": EVENT, "type": "a.b", "trace_id": TRACE, "trace_span": bytes(8) + b"\1"}
    sent = headers_of(
        event, [], {"x-team": "payments", "authorization": None}, url="https://example.com/", endpoint_id=EVENT,
        payload=b"{}", attempt_id=ATTEMPT, retry_count=0, user_agent="Hookpost/1", at=1.8e9, forward_trace=told,
    ).split("\n")  # fmt: skip
    assert {"x-team: payments", f"authorization: {MASK}"} <= set(sent)
    assert f"traceparent: 00-{trace.hex}-{ATTEMPT.hex[16:]}-01" in sent


async def test_the_settings_form_sets_headers_and_trace_and_shows_no_secret(
    browser: Browser, tenant: TenantClient
) -> None:
    endpoint = await tenant.endpoint()
    path = f"/dashboard/endpoints/{endpoint['endpoint_id']}/edit"
    fields = {"url": "https://example.com/b", "forward_trace": "1"}
    answer = await browser.post(path, {**fields, "headers": "X-Team: payments", "secret_headers": "X-Pin: s3cret"})
    assert answer.status_code == 303, answer.text
    page = await browser.shown(path)
    assert "x-team: payments" in page
    assert f"x-pin: {MASK}" in page
    assert "s3cret" not in page
    assert 'name="forward_trace" value="1" checked' in page
    answer = await browser.post(path, {"url": "https://example.com/b", "headers": f"x-pin: {MASK}"})
    assert answer.status_code == 303, answer.text
    stored = (await tenant.get(f"/v1/webhook_endpoints/{endpoint['endpoint_id']}")).json()
    assert (stored["headers"], stored["forward_trace"]) == ({"x-pin": MASK}, False)
    refused = await browser.post(path, {"url": "https://example.com/b", "headers": "Host: elsewhere"})
    assert refused.status_code == 422
    assert "how the request is framed" in refused.text


@pytest.mark.parametrize("where", ["new", "edit"])
async def test_a_line_that_is_no_header_comes_back_with_the_form_as_it_was_filled_in(
    browser: Browser, tenant: TenantClient, where: str
) -> None:
    path = "/dashboard/endpoints/new"
    if where == "edit":
        path = f"/dashboard/endpoints/{(await tenant.endpoint())['endpoint_id']}/edit"
    fields = {"url": "https://example.com/as-entered", "headers": "X-Team: payments\nno colon"}
    refused = await browser.post(path, fields)
    assert refused.status_code == 422
    assert "Headers, line 2: write the name, a colon and the value" in refused.text
    assert 'value="https://example.com/as-entered"' in refused.text
    assert "X-Team: payments\nno colon" in refused.text
