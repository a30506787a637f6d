"""Event types and an endpoint's own TLS in the dashboard: entered, shown, taken away; a key is never shown."""

from __future__ import annotations

import json
import re
from html import unescape

from tests.web.dashboard.conftest import Browser, text_of
from tests.web.rows import TenantClient
from tests.web.test_tls import CA_PEM, LEAF, pair

PAGE = "/dashboard/event-types"
HOSTILE = "<img src=x onerror=alert(1)>\u202e"


async def test_a_type_is_described_found_by_its_events_and_forgotten(browser: Browser, tenant: TenantClient) -> None:
    assert "None is described yet." in await browser.shown(PAGE)
    schema = {"type": "object", "required": ["amount"], "description": HOSTILE}
    fields = {"name": "invoice.paid", "description": f"Paid {HOSTILE}", "schema": json.dumps(schema)}
    assert (await browser.post(PAGE, fields)).headers["location"] == f"{PAGE}?did=created"
    page = await browser.shown(PAGE)
    assert 'href="/dashboard/search?q=invoice.paid"' in page
    assert "<img src=x" not in page and "\u202e" not in page and "&lt;img" in page
    assert '"required": [' in text_of(page)
    answer = await tenant.get("/v1/event_types/invoice.paid")
    assert answer.json()["schema"] == schema
    deleted = await browser.post(f"{PAGE}/delete", {"name": "invoice.paid"})
    assert deleted.headers["location"] == f"{PAGE}?did=deleted"
    assert (await tenant.get("/v1/event_types/invoice.paid")).status_code == 404


async def test_a_schema_that_is_refused_is_told_and_what_was_entered_is_kept(browser: Browser) -> None:
    for schema, words in (("{", "Schema: is not JSON"), ('{"type": "nonsense"}', "Schema"), ("[]", "schema")):
        answer = await browser.post(PAGE, {"name": "a.b", "description": "kept", "schema": schema})
        assert answer.status_code == 422, schema
        assert words in text_of(answer.text) and 'value="kept"' in answer.text


async def test_the_admin_describes_a_type_for_a_tenant(operator: Browser, tenant: TenantClient) -> None:
    answer = await operator.post(PAGE, {"name": "a.b", "tenant_id": tenant.tenant_id})
    assert answer.status_code == 303, answer.text
    assert tenant.tenant_id in await operator.shown(PAGE)
    assert (await tenant.get("/v1/event_types/a.b")).status_code == 200
    await operator.post(f"{PAGE}/delete", {"name": "a.b", "tenant_id": tenant.tenant_id})
    assert (await tenant.get("/v1/event_types/a.b")).status_code == 404


async def test_a_type_is_edited_from_what_it_is_and_an_empty_field_takes_away(
    browser: Browser, operator: Browser, tenant: TenantClient
) -> None:
    schema = {"type": "object", "required": ["amount"], "description": HOSTILE}
    await tenant.post("/v1/event_types", {"name": "invoice.paid", "description": "Paid", "schema": schema})
    link = re.search(rf'href="({PAGE}/edit\?[^"]+)"', await operator.shown(PAGE))
    assert link
    for visitor in (browser, operator):
        page = await visitor.shown(unescape(link[1]))
        assert 'value="Paid"' in page and "<img src=x" not in page and "\u202e" not in page
        entered = re.search(r"<textarea[^>]*>(.*?)</textarea>", page, re.DOTALL)
        assert entered and json.loads(unescape(entered[1])) == schema, "what is saved untouched is what there was"
    fields = {"name": "invoice.paid", "tenant_id": tenant.tenant_id, "description": "Paid in full", "schema": "{"}
    refused = await operator.post(f"{PAGE}/edit", fields)
    assert refused.status_code == 422
    assert "Schema: is not JSON" in text_of(refused.text) and 'value="Paid in full"' in refused.text
    for visitor, entered_schema, kept in ((operator, '{"type": "object"}', {"type": "object"}), (browser, "", None)):
        answer = await visitor.post(f"{PAGE}/edit", {**fields, "schema": entered_schema})
        assert answer.headers["location"] == f"{PAGE}?did=saved", answer.text
        saved = (await tenant.get("/v1/event_types/invoice.paid")).json()
        assert (saved["description"], saved["schema"]) == ("Paid in full", kept)
    await browser.shown(f"{PAGE}/edit?name=a.b", 404)
    assert (await browser.post(f"{PAGE}/edit", {"name": "a.b"})).status_code == 404
    assert (await browser.get(f"{PAGE}/edit")).headers["location"] == PAGE


async def test_who_may_only_read_sees_types_and_no_form(tenant: TenantClient, stranger: Browser) -> None:
    await tenant.post("/v1/event_types", {"name": "a.b"})
    keys = f"/v1/tenants/{tenant.tenant_id}/api_keys"
    made = await tenant.client.post(keys, json={"name": "r", "scopes": ["read"]})
    await stranger.sign_in(made.json()["key"])
    page = await stranger.shown(PAGE)
    assert "a.b" in page and "Describe" not in page and "event-types/" not in page
    for path in (PAGE, f"{PAGE}/edit", f"{PAGE}/delete"):
        assert (await stranger.post(path, {"name": "a.b"})).status_code == 403, path


async def test_tls_is_entered_kept_and_taken_away_and_the_key_never_shown(
    browser: Browser, tenant: TenantClient
) -> None:
    made = await tenant.endpoint()
    path = f"/dashboard/endpoints/{made['endpoint_id']}/edit"
    own = pair(LEAF)
    url = {"url": made["url"]}
    entered = {**url, "tls_ca": CA_PEM, "tls_cert": own["client_cert_pem"], "tls_key": own["client_key_pem"]}
    answer = await browser.post(path, {name: value.replace("\n", "\r\n") for name, value in entered.items()})
    assert answer.status_code == 303, answer.text

    async def tls() -> dict[str, list[object]] | None:
        return (await tenant.get(f"/v1/webhook_endpoints/{made['endpoint_id']}")).json()["tls"]  # type: ignore[no-any-return]

    there = await tls()
    assert there is not None and there["ca"] and there["client_cert"]
    page = await browser.shown(path)
    assert "PRIVATE KEY-----\n" not in page and "BEGIN CERTIFICATE-----\n" not in page
    assert "Shown to it:" in page and "Trusted:" in page
    assert (await browser.post(path, url)).status_code == 303
    assert await tls() == there, "empty fields leave what there is"
    refused = await browser.post(path, {**url, "tls_key": own["client_key_pem"]})
    assert refused.status_code == 422
    assert own["client_key_pem"].splitlines()[1] not in refused.text
    assert (await browser.post(path, {**url, "tls_cert_remove": "1"})).status_code == 303
    left = await tls()
    assert left is not None and left["ca"] and not left["client_cert"]
    assert (await browser.post(path, {**url, "tls_ca_remove": "1"})).status_code == 303
    assert await tls() is None
