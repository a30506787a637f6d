"""Trying an endpoint from the dashboard: an event of a chosen type with an example, or with what is entered."""

from __future__ import annotations

import re
from html import unescape

from tests.web.conftest import Submitted
from tests.web.dashboard.conftest import Browser, text_of
from tests.web.rows import TenantClient


async def test_an_example_is_offered_changed_and_sent(
    browser: Browser, tenant: TenantClient, submitted: Submitted
) -> None:
    made = await tenant.endpoint()
    path = f"/dashboard/endpoints/{made['endpoint_id']}/test"
    await tenant.post("/v1/event_types", {"name": "invoice.paid", "schema": {"examples": [{"amount": "<b>1"}]}})
    await tenant.post("/v1/event_types", {"name": "bare"})
    assert f'href="{path}"' in await browser.shown(f"/dashboard/endpoints/{made['endpoint_id']}")
    page = await browser.shown(path)
    assert f'href="{path}?type=invoice.paid"' in page and "bare (no example)" in text_of(page)
    entered = re.search(r"<textarea[^>]*>(.*?)</textarea>", await browser.shown(f"{path}?type=invoice.paid"), re.DOTALL)
    assert entered and unescape(entered[1]) == '{\n  "amount": "<b>1"\n}'
    answer = await browser.post(path, {"type": "invoice.paid", "payload": '{"b": 1.50,\r\n"a": 2}'})
    assert answer.headers["location"].startswith("/dashboard/events/evt_")
    assert submitted.calls[-1][1:3] == ("invoice.paid", b'{"b":1.5,"a":2}')
    assert (await browser.post(path)).status_code == 303, "the button of the endpoint's page"
    assert submitted.calls[-1][1] == "hookpost.test"


async def test_what_is_refused_is_told_and_kept(browser: Browser, operator: Browser, tenant: TenantClient) -> None:
    made = await tenant.endpoint()
    path = f"/dashboard/endpoints/{made['endpoint_id']}/test"
    for visitor, fields, words in (
        (browser, {"type": "a.b", "payload": '{"n": 01}'}, "Payload: is not JSON"),
        (operator, {"type": "a b", "payload": '{"n": 1}'}, "Type: "),
        (operator, {"type": "a.b", "payload": ""}, "has no examples to take one from"),
    ):
        answer = await visitor.post(path, fields)
        assert answer.status_code == 422, fields
        assert words in text_of(answer.text) and f">{fields['payload']}</textarea>" in unescape(answer.text)
