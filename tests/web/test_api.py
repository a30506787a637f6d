"""The routes: what is refused and how, what PATCH means, how lists page, whom they belong to."""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from pydantic import BaseModel

from hookpost.storage.contract import StoreUnavailable
from hookpost.storage.postgres.store import PostgresStore
from hookpost.web import answers, schemas
from tests.web.rows import (
    Submitted,
    TenantClient,
    add_attempt,
    add_dead,
    add_waiting,
    append_event,
    endpoint_uuid,
    event_path,
    make_tenant,
)

ENDPOINTS = "/v1/webhook_endpoints"
URL = "https://example.com/hook"
SECRET = "whsec_" + b64encode(b"k" * 24).decode()

BAD_ENDPOINTS: list[tuple[dict[str, Any], str]] = [
    ({}, "url"),
    ({"url": None}, "url"),
    ({"url": 5}, "url"),
    ({"url": "ftp://example.com"}, "url"),
    ({"url": "http://10.0.0.1/"}, "url"),
    ({"url": "http://169.254.169.254/"}, "url"),
    ({"url": "https://example.com/\0"}, "url"),
    ({"url": URL, "unknown": 1}, "unknown"),
    ({"url": URL, "events": []}, "events"),
    ({"url": URL, "events": ["a*"]}, "events.0"),
    ({"url": URL, "events": ["ok", "no spaces"]}, "events.1"),
    ({"url": URL, "events": ["x" * 129]}, "events.0"),
    ({"url": URL, "events": ["*.a"]}, "events.0"),
    ({"url": URL, "events": "*"}, "events"),
    ({"url": URL, "events": [f"t{n}" for n in range(101)]}, "events"),
    ({"url": URL, "enabled": "yes"}, "enabled"),
    ({"url": URL, "enabled": 1}, "enabled"),
    ({"url": URL, "description": "x" * 1001}, "description"),
    ({"url": URL, "description": "nul \0"}, "description"),
    ({"url": URL, "description": "\ud800"}, "description"),
    ({"url": URL, "uid": ""}, "uid"),
    ({"url": URL, "uid": "x" * 256}, "uid"),
    ({"url": URL, "uid": "a\nb"}, "uid"),
    ({"url": URL, "metadata": {"a": 1}}, "metadata.a"),
    ({"url": URL, "metadata": {"a": "\0"}}, "metadata.a"),
    ({"url": URL, "metadata": {"\ud800": "a"}}, "metadata.\ufffd\ufffd\ufffd"),
    ({"url": URL, "metadata": {str(n): "x" for n in range(51)}}, "metadata"),
    ({"url": URL, "metadata": {"a": "x" * 8200}}, "metadata"),
    ({"url": URL, "metadata": []}, "metadata"),
    ({"url": URL, "secret": "whsec_short"}, "secret"),
    ({"url": URL, "secret": b64encode(b"k" * 24).decode()}, "secret"),
    ({"url": URL, "retry": {"base_s": 0}}, "retry.base_s"),
    ({"url": URL, "retry": {"base_s": 3601}}, "retry.base_s"),
    ({"url": URL, "retry": {"base_s": True}}, "retry.base_s"),
    ({"url": URL, "retry": {"base_s": "5"}}, "retry.base_s"),
    ({"url": URL, "retry": {"base_s": float("nan")}}, "retry.base_s"),
    ({"url": URL, "retry": {"base_s": float("inf")}}, "retry.base_s"),
    ({"url": URL, "retry": {"base_s": 100, "cap_s": 50}}, "retry.cap_s"),
    ({"url": URL, "retry": {"cap_s": 86401}}, "retry.cap_s"),
    ({"url": URL, "retry": {"max_attempts": 0}}, "retry.max_attempts"),
    ({"url": URL, "retry": {"max_attempts": 1.5}}, "retry.max_attempts"),
    ({"url": URL, "retry": {"max_attempts": 10**30}}, "retry.max_attempts"),
    ({"url": URL, "retry": {"deadline_s": 14}}, "retry.deadline_s"),
    ({"url": URL, "retry": {"deadline_s": 31 * 86400}}, "retry.deadline_s"),
    ({"url": URL, "retry": {"nope": 1}}, "retry.nope"),
    ({"url": URL, "timeouts": {"connect_s": 12}}, "timeouts.connect_s"),
    ({"url": URL, "timeouts": {"connect_s": 0.01}}, "timeouts.connect_s"),
    ({"url": URL, "timeouts": {"first_byte_s": 20}}, "timeouts.first_byte_s"),
    ({"url": URL, "timeouts": {"total_s": 31}}, "timeouts.total_s"),
    ({"url": URL, "max_in_flight": 0}, "max_in_flight"),
    ({"url": URL, "max_in_flight": 1001}, "max_in_flight"),
    ({"url": URL, "rate_limit": 0}, "rate_limit"),
    ({"url": URL, "rate_limit": -1}, "rate_limit"),
    ({"url": URL, "rate_limit": 1e9}, "rate_limit"),
    ({"url": URL, "rate_limit": float("nan")}, "rate_limit"),
    ({"url": URL, "rate_limit": float("inf")}, "rate_limit"),
    ({"url": URL, "rate_limit": "5"}, "rate_limit"),
    ({"url": URL, "ordered": "yes"}, "ordered"),
    ({"url": URL, "on_dead": "drop"}, "on_dead"),
    ({"url": URL, "spread": 2}, "spread"),
    ({"url": URL, "spread": True, "ordered": True}, "ordered"),
    ({"url": URL, "spread": True, "rate_limit": 5}, "rate_limit"),
    ({"url": URL, "ack": True}, "ack"),
    ({"url": URL, "ack": "unsigned"}, "ack"),
]


def _dumps(value: Any) -> bytes:
    import json  # the one encoder that writes NaN and lone surrogates

    return json.dumps(value).encode()


def _fields(answer: httpx.Response) -> list[str]:
    return [error["field"] for error in answer.json()["errors"]]


def assert_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body["status"] == status
    assert body["type"].startswith("/problems/")
    assert body["title"] and body["detail"]
    answers.ProblemAnswer.model_validate(body)


@pytest.mark.parametrize(("body", "field"), BAD_ENDPOINTS, ids=lambda value: str(value)[:60])
async def test_a_bad_endpoint_is_refused_by_field(tenant: TenantClient, body: dict[str, Any], field: str) -> None:
    answer = await tenant.request("POST", ENDPOINTS, content=_dumps(body))
    assert_problem(answer, 422)
    assert field in _fields(answer)
    assert (await tenant.get(ENDPOINTS)).json()["data"] == []


async def test_harmless_values_of_features_to_come_are_accepted(tenant: TenantClient) -> None:
    await tenant.endpoint(rate_limit=None, ordered=False, on_dead=None, ack=None, headers={})


async def test_a_signed_ack_is_asked_for_shown_and_reset(tenant: TenantClient, store: PostgresStore) -> None:
    created = await tenant.endpoint(ack="signed")
    path = f"{ENDPOINTS}/{created['endpoint_id']}"
    assert created["ack"] == "signed"
    [loaded] = await store.load_endpoints([endpoint_uuid(created)])
    assert loaded.signed_ack
    assert (await tenant.patch(path, {"description": "x"})).json()["ack"] == "signed"
    for off in (None, False):
        assert (await tenant.patch(path, {"ack": "signed"})).json()["ack"] == "signed"
        assert (await tenant.patch(path, {"ack": off})).json()["ack"] is None
    [loaded] = await store.load_endpoints([endpoint_uuid(created)])
    assert not loaded.signed_ack
    assert (await tenant.endpoint(ack=False))["ack"] is None


async def test_an_endpoint_is_shown_with_all_its_fields(tenant: TenantClient) -> None:
    created = await tenant.endpoint(
        url="HTTPS://Example.com:443", events=["b", "a.*", "b"], uid="u", metadata={"k": "v"}, retry={"base_s": 1},
        timeouts={"connect_s": 1.5}, max_in_flight=7, secret=SECRET, description="d\n",
    )  # fmt: skip
    answers.EndpointCreated.model_validate(created)
    assert created.pop("secret") == SECRET
    assert (await tenant.get(f"{ENDPOINTS}/{created['endpoint_id']}")).json() == created
    assert (created["url"], created["events"]) == ("https://example.com/", ["b", "a.*"])
    assert created["retry"] == {"base_s": 1.0, "cap_s": 10800.0, "max_attempts": 50, "deadline_s": 259200.0}
    assert created["timeouts"] == {"connect_s": 1.5, "first_byte_s": 10.0, "total_s": 15.0}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", created["created_at"])
    assert (created["status"], created["enabled"], created["tenant_id"]) == ("enabled", True, tenant.tenant_id)


async def test_patch_leaves_what_is_absent_and_resets_what_is_null(tenant: TenantClient) -> None:
    created = await tenant.endpoint(
        uid="u", description="d", events=["a"], metadata={"k": "v"}, max_in_flight=3,
        retry={"base_s": 1, "max_attempts": 4}, timeouts={"total_s": 20},
    )  # fmt: skip
    path = f"{ENDPOINTS}/{created['endpoint_id']}"
    del created["secret"]

    assert (await tenant.patch(path, {})).json() == created
    changed = (await tenant.patch(path, {"retry": {"max_attempts": 9}})).json()
    assert changed["retry"] == {**created["retry"], "max_attempts": 9}
    kept = {name for name in created if name not in ("retry", "updated_at")}
    assert {name: changed[name] for name in kept} == {name: created[name] for name in kept}

    changed = (await tenant.patch(path, {"retry": {"base_s": None}, "timeouts": None, "max_in_flight": None})).json()
    assert (changed["retry"]["base_s"], changed["retry"]["max_attempts"]) == (5.0, 9)
    assert (changed["timeouts"]["total_s"], changed["max_in_flight"]) == (15.0, 64)
    wiped = {"events": None, "uid": None, "description": None, "metadata": None, "retry": None, "enabled": None}
    changed = (await tenant.patch(path, wiped)).json()
    assert (changed["events"], changed["uid"], changed["description"]) == (["*"], None, None)
    assert (changed["metadata"], changed["retry"]["max_attempts"], changed["status"]) == ({}, 50, "enabled")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": None}, "url"),
        ({"url": "nope"}, "url"),
        ({"events": []}, "events"),
        ({"secret": SECRET}, "secret"),
        ({"timeouts": {"connect_s": 16}}, "timeouts.connect_s"),
        ({"retry": {"deadline_s": 19}}, "retry.deadline_s"),
        ({"rate_limit": 0}, "rate_limit"),
    ],
)
async def test_a_bad_patch_changes_nothing(tenant: TenantClient, body: dict[str, Any], field: str) -> None:
    created = await tenant.endpoint(timeouts={"total_s": 20})
    path = f"{ENDPOINTS}/{created['endpoint_id']}"
    before = (await tenant.get(path)).json()
    answer = await tenant.patch(path, body)
    assert_problem(answer, 422)
    assert _fields(answer) == [field]
    assert (await tenant.get(path)).json() == before


async def test_status_goes_by_enabled_pause_and_resume(tenant: TenantClient) -> None:
    path = f"{ENDPOINTS}/{(await tenant.endpoint(enabled=False))['endpoint_id']}"

    async def state() -> tuple[str, str | None, bool]:
        shown = (await tenant.get(path)).json()
        return shown["status"], shown["status_reason"], shown["enabled"]

    assert await state() == ("disabled", "requested", False)
    await tenant.patch(path, {"enabled": True})
    assert await state() == ("enabled", None, True)
    assert (await tenant.post(f"{path}/pause")).json()["status"] == "paused"
    await tenant.patch(path, {"enabled": True})
    assert await state() == ("paused", "requested", True)
    await tenant.post(f"{path}/resume")
    assert await state() == ("enabled", None, True)
    await tenant.patch(path, {"enabled": False})
    assert await state() == ("disabled", "requested", False)


async def test_every_change_raises_the_config_version(sql: Any, tenant: TenantClient) -> None:
    path = f"{ENDPOINTS}/{(await tenant.endpoint())['endpoint_id']}"

    async def version() -> int:
        return await sql.fetchval("select config_version from tenants where tenant_id = $1", tenant.uuid)

    last = await version()
    for method, route, body in [
        ("PATCH", path, {"uid": "x"}),
        ("POST", f"{path}/pause", None),
        ("POST", f"{path}/resume", None),
        ("POST", f"{path}/secret/rotate", {}),
        ("POST", ENDPOINTS, {"url": URL}),
        ("DELETE", path, None),
    ]:
        answer = await tenant.request(method, route, json=body)
        assert answer.is_success, answer.text
        assert await version() == last + 1, route
        last += 1
    assert_problem(await tenant.delete(path), 404)
    assert await version() == last


async def test_a_uid_is_unique_within_its_tenant_until_its_endpoint_is_deleted(
    admin: httpx.AsyncClient, tenant: TenantClient
) -> None:
    first = await tenant.endpoint(uid="u")
    assert_problem(await tenant.post(ENDPOINTS, {"url": URL, "uid": "u"}), 409)
    second = await tenant.endpoint()
    assert_problem(await tenant.patch(f"{ENDPOINTS}/{second['endpoint_id']}", {"uid": "u"}), 409)
    other = await make_tenant(admin, "other")
    await other.endpoint(uid="u")
    await tenant.delete(f"{ENDPOINTS}/{first['endpoint_id']}")
    await tenant.endpoint(uid="u")


async def test_a_tenant_has_no_more_endpoints_than_the_limit(tenant: TenantClient) -> None:
    for _ in range(20):
        await tenant.endpoint()
    assert_problem(await tenant.post(ENDPOINTS, {"url": URL}), 409)


async def test_a_rotated_secret_signs_on_for_the_grace_period(tenant: TenantClient) -> None:
    created = await tenant.endpoint()
    path = f"{ENDPOINTS}/{created['endpoint_id']}/secret"
    rotated = (await tenant.post(f"{path}/rotate", {"grace_period_s": 3600})).json()
    answers.SecretRotated.model_validate(rotated)
    shown = (await tenant.get(path)).json()
    answers.SecretsAnswer.model_validate(shown)
    assert shown["secret"] == rotated["secret"] != created["secret"]
    assert [item["secret"] for item in shown["secrets"]] == [rotated["secret"], created["secret"]]
    assert [item["expires_at"] for item in shown["secrets"]] == [None, rotated["old_secrets_expire_at"]]
    own = (await tenant.post(f"{path}/rotate", {"secret": SECRET, "grace_period_s": 0})).json()
    assert own["secret"] == SECRET
    assert [item["secret"] for item in (await tenant.get(path)).json()["secrets"]] == [SECRET]


async def test_an_endpoint_has_at_most_four_valid_secrets(tenant: TenantClient) -> None:
    path = f"{ENDPOINTS}/{(await tenant.endpoint())['endpoint_id']}/secret"
    for _ in range(3):
        assert (await tenant.post(f"{path}/rotate")).status_code == 200
    assert_problem(await tenant.post(f"{path}/rotate"), 409)
    assert len((await tenant.get(path)).json()["secrets"]) == 4
    assert (await tenant.post(f"{path}/rotate", {"grace_period_s": 0})).status_code == 200
    assert len((await tenant.get(path)).json()["secrets"]) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"grace_period_s": -1}, "grace_period_s"),
        ({"grace_period_s": 1e9}, "grace_period_s"),
        ({"secret": "x"}, "secret"),
    ],
)
async def test_a_bad_rotation_is_refused(tenant: TenantClient, body: dict[str, Any], field: str) -> None:
    path = f"{ENDPOINTS}/{(await tenant.endpoint())['endpoint_id']}/secret"
    answer = await tenant.post(f"{path}/rotate", body)
    assert_problem(answer, 422)
    assert _fields(answer) == [field]
    assert len((await tenant.get(path)).json()["secrets"]) == 1


async def test_a_test_event_goes_to_its_endpoint_alone(tenant: TenantClient, submitted: Submitted) -> None:
    created = await tenant.endpoint()
    answer = await tenant.post(f"{ENDPOINTS}/{created['endpoint_id']}/test")
    assert answer.status_code == 202
    assert answer.json()["event_id"].startswith("evt_")
    ((of, type_, payload, targets),) = submitted.calls
    assert (of, type_, targets) == (tenant.uuid, "hookpost.test", [endpoint_uuid(created)])
    assert b'"type":"hookpost.test"' in payload


async def test_a_test_event_of_a_type_carries_its_schemas_example_or_what_is_given(
    tenant: TenantClient, submitted: Submitted
) -> None:
    path = f"{ENDPOINTS}/{(await tenant.endpoint())['endpoint_id']}/test"
    await tenant.post("/v1/event_types", {"name": "invoice.paid", "schema": {"examples": [{"amount": 1.5}, {}]}})
    await tenant.post("/v1/event_types", {"name": "bare", "schema": {"type": "object"}})
    for body, type_, payload in (
        ({"type": "invoice.paid"}, "invoice.paid", b'{"amount":1.5}'),
        ({"type": "invoice.paid", "payload": None}, "invoice.paid", b"null"),
        ({"type": "unheard.of", "payload": {"b": 1, "a": 2}}, "unheard.of", b'{"b":1,"a":2}'),
        ({"payload": []}, "hookpost.test", b"[]"),
    ):
        assert (await tenant.post(path, body)).status_code == 202, body
        assert submitted.calls[-1][1:3] == (type_, payload)
    for body, field in (
        ({"type": "bare"}, "payload"), ({"type": "unheard.of"}, "payload"), ({"type": "hookpost.x"}, "type"),
        ({"type": "a b"}, "type"), ({"kind": "a"}, "kind"),
    ):  # fmt: skip
        answer = await tenant.post(path, body)
        assert_problem(answer, 422)
        assert _fields(answer) == [field], body
    unpaired = await tenant.request("POST", path, content=b'{"payload": "\\ud800"}')
    assert_problem(unpaired, 422)
    assert _fields(unpaired) == ["payload"]


# ---- tenants and keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\0"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a", "pool": "none such"}, "pool"),
        ({"name": "a", "pool": "nowhere"}, "pool"),
        ({"name": "a", "spread": 0}, "spread"),
        ({"name": "a", "spread": 5}, "spread"),
        ({"name": "a", "spread": 65}, "spread"),
        ({"name": "a", "spread": 1.5}, "spread"),
        ({"name": "a", "spread": True}, "spread"),
        ({"name": "a", "max_in_flight": 0}, "max_in_flight"),
        ({"name": "a", "ingest_rate_limit": 0}, "ingest_rate_limit"),
        ({"name": "a", "ingest_rate_limit": -1}, "ingest_rate_limit"),
        ({"name": "a", "ingest_rate_limit": 1e-9}, "ingest_rate_limit"),
        ({"name": "a", "ingest_rate_limit": 1e9}, "ingest_rate_limit"),
        ({"name": "a", "ingest_rate_limit": float("nan")}, "ingest_rate_limit"),
        ({"name": "a", "ingest_rate_limit": float("inf")}, "ingest_rate_limit"),
        ({"name": "a", "ingest_rate_limit": "5"}, "ingest_rate_limit"),
        ({"name": "a", "ingest_rate_limit": True}, "ingest_rate_limit"),
        ({"name": "a", "alert_email": "not an address"}, "alert_email"),
        ({"name": "a", "alert_email": "a@example.com\nBcc: b@example.com"}, "alert_email"),
        ({"name": "a", "alert_email": ["a@example.com"]}, "alert_email"),
        ({"name": "a", "home_shards": [1]}, "home_shards"),
    ],
)
async def test_a_bad_tenant_is_refused_by_field(admin: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    answer = await admin.post("/v1/tenants", content=_dumps(body))
    assert_problem(answer, 422)
    assert _fields(answer) == [field]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("tenants", {"name": ""}, "name: must have at least 1 character"),
        ("tenants", {"name": "n" * 1000}, "name: must have at most 200 characters"),
        ("webhook_endpoints", {"url": "https://example.com", "events": []}, "events: must have at least 1 entry"),
    ],
)
async def test_what_is_too_short_or_too_long_is_told_with_the_bound(
    admin: httpx.AsyncClient, tenant: TenantClient, path: str, body: dict[str, Any], message: str
) -> None:
    answer = await admin.post(f"/v1/{path}", json=body, headers={"X-Tenant-Id": tenant.tenant_id})
    assert answer.json()["detail"] == message


async def test_a_type_that_no_event_can_have_is_refused_as_a_filter(tenant: TenantClient) -> None:
    """A list or a replay of nothing would look as if there were no such events."""
    for answer in (
        await tenant.get("/v1/events", params={"type": "invoice.*"}),
        await tenant.post("/v1/replays", json={"type": "invoice.*"}),
    ):
        assert_problem(answer, 422)
        assert _fields(answer) == ["type"]


async def test_a_tenants_ingest_limit_is_set_shown_and_reset(admin: httpx.AsyncClient) -> None:
    created = (await admin.post("/v1/tenants", json={"name": "a", "ingest_rate_limit": 2.5})).json()
    assert created["ingest_rate_limit"] == 2.5
    path = f"/v1/tenants/{created['tenant_id']}"
    assert (await admin.get(path)).json()["ingest_rate_limit"] == 2.5
    assert (await admin.patch(path, json={"name": "b"})).json()["ingest_rate_limit"] == 2.5
    assert (await admin.patch(path, json={"ingest_rate_limit": 7})).json()["ingest_rate_limit"] == 7.0
    for bad in (0, -1, 1e9, float("nan"), "5"):
        answer = await admin.patch(path, content=_dumps({"ingest_rate_limit": bad}))
        assert_problem(answer, 422)
        assert _fields(answer) == ["ingest_rate_limit"]
    assert (await admin.get(path)).json()["ingest_rate_limit"] == 7.0
    assert (await admin.patch(path, json={"ingest_rate_limit": None})).json()["ingest_rate_limit"] is None


async def test_a_tenants_alert_email_is_set_changed_kept_and_removed(admin: httpx.AsyncClient) -> None:
    created = (await admin.post("/v1/tenants", json={"name": "a", "alert_email": "a@example.com"})).json()
    assert created["alert_email"] == "a@example.com"
    path = f"/v1/tenants/{created['tenant_id']}"
    for change, expected in (
        ({"name": "b"}, "a@example.com"),
        ({"alert_email": "b@example.com"}, "b@example.com"),
        ({"alert_email": None}, None),
    ):
        assert (await admin.patch(path, json=change)).json()["alert_email"] == expected
        assert (await admin.get(path)).json()["alert_email"] == expected
    assert_problem(await admin.patch(path, json={"alert_email": "b@"}), 422)


async def test_an_endpoint_shows_its_health_and_the_breaker_of_its_origin(tenant: TenantClient, sql: Any) -> None:
    created = await tenant.endpoint(url="https://example.com/a?b")
    well = {"state": "closed", "since": None, "reopen_at": None, "consecutive_failures": 0, "failing_since": None}
    well |= {"certificates": None, "certificates_end_at": None}
    assert created["health"] == well
    await sql.execute(
        "update endpoints set consecutive_failures = 7, failing_since = '2030-01-02T03:04:05.678Z' where endpoint_id = $1",
        endpoint_uuid(created),
    )
    await sql.execute(
        "insert into breakers (tenant_id, origin, state, since, reopen_at) values"
        " ($1, 'https://example.com', 'open', '2030-01-02T03:05:00Z', '2030-01-02T03:05:30Z'),"
        " ($1, 'http://example.com', 'half_open', now(), now()), ($2, 'https://example.com', 'closed', now(), null)",
        tenant.uuid, UUID(int=1),
    )  # fmt: skip
    sick = {
        "state": "open",
        "since": "2030-01-02T03:05:00.000Z",
        "reopen_at": "2030-01-02T03:05:30.000Z",
        "consecutive_failures": 7,
        "failing_since": "2030-01-02T03:04:05.678Z",
        "certificates": None,
        "certificates_end_at": None,
    }
    path = f"{ENDPOINTS}/{created['endpoint_id']}"
    assert (await tenant.get(path)).json()["health"] == sick
    assert (await tenant.get(ENDPOINTS)).json()["data"][0]["health"] == sick
    assert (await tenant.patch(path, {"description": "x"})).json()["health"] == sick
    assert (await tenant.endpoint(url="https://other.example/"))["health"] == well


async def test_new_tenants_spread_over_the_shards(admin: httpx.AsyncClient, sql: Any) -> None:
    for number in range(8):
        await make_tenant(admin, f"t{number}")
    homes = await sql.fetch("select home_shards from tenants where name <> 'default'")
    assert sorted(row["home_shards"][0] for row in homes) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_a_tenant_lives_and_is_deleted(admin: httpx.AsyncClient, tenant: TenantClient, clock: Any) -> None:
    await tenant.endpoint()
    path = f"/v1/tenants/{tenant.tenant_id}"
    changed = await admin.patch(path, json={"name": "new", "max_in_flight": 9})
    answers.TenantAnswer.model_validate(changed.json())
    assert (changed.json()["name"], changed.json()["max_in_flight"]) == ("new", 9)
    assert (await admin.patch(path, json={"max_in_flight": None})).json()["max_in_flight"] == 512
    assert_problem(await admin.patch(path, json={"name": None}), 422)
    assert (await admin.delete(path)).status_code == 204
    assert_problem(await admin.get(path), 404)
    assert_problem(await admin.delete(path), 404)
    clock.advance(1.0)
    assert_problem(await tenant.get(ENDPOINTS), 401)
    assert tenant.tenant_id not in {row["tenant_id"] for row in (await admin.get("/v1/tenants")).json()["data"]}


async def test_a_tenant_is_spread_and_moved_between_pools(admin: httpx.AsyncClient, tenant: TenantClient) -> None:
    path = f"/v1/tenants/{tenant.tenant_id}"

    async def place(**changes: Any) -> tuple[str, int, bool, bool]:
        answer = await admin.patch(path, json=changes)
        assert answer.status_code == 200, answer.text
        row = answer.json()
        assert (await admin.get(path)).json() == row
        return row["pool"], row["spread"], row["spread_automatic"], row["moving"]

    assert await place() == ("default", 1, True, False)
    assert await place(spread=4) == ("default", 4, False, False)
    assert await place(spread=2) == ("default", 2, False, True)
    assert await place(spread=None) == ("default", 2, True, True)
    assert (await admin.post("/v1/pools", json={"name": "acme", "shards": 2})).json() == {
        "name": "acme", "shards": 2, "tenants": 0, "workers": 0,
    }  # fmt: skip
    for changes, field in [
        ({"pool": "nowhere"}, "pool"),
        ({"spread": 5}, "spread"),
        ({"pool": "acme", "spread": 3}, "spread"),
    ]:
        answer = await admin.patch(path, json=changes)
        assert_problem(answer, 422)
        assert _fields(answer) == [field]
    assert await place(pool="acme", spread=1) == ("acme", 1, False, True)
    assert await place(pool=None, spread=3) == ("default", 3, False, True)


async def test_a_new_tenant_takes_its_place(admin: httpx.AsyncClient) -> None:
    await admin.post("/v1/pools", json={"name": "acme", "shards": 3})
    row = (await admin.post("/v1/tenants", json={"name": "t", "pool": "acme", "spread": 2})).json()
    answers.TenantAnswer.model_validate(row)
    assert (row["pool"], row["spread"], row["spread_automatic"], row["moving"]) == ("acme", 2, False, False)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "acme"}, "shards"),
        ({"shards": 1}, "name"),
        ({"name": "Acme", "shards": 1}, "name"),
        ({"name": "-a", "shards": 1}, "name"),
        ({"name": "acme", "shards": 0}, "shards"),
        ({"name": "acme", "shards": 1025}, "shards"),
        ({"name": "acme", "shards": 1021}, "shards"),
        ({"name": "default", "shards": 3}, "shards"),
    ],
)
async def test_a_bad_pool_is_refused_by_field(admin: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    answer = await admin.post("/v1/pools", json=body)
    assert_problem(answer, 422)
    assert _fields(answer) == [field]
    assert [row["name"] for row in (await admin.get("/v1/pools")).json()["data"]] == ["default"]


async def test_pools_are_the_operators(admin: httpx.AsyncClient, tenant: TenantClient) -> None:
    assert_problem(await tenant.get("/v1/pools"), 403)
    assert_problem(await tenant.post("/v1/pools", {"name": "mine", "shards": 1}), 403)
    await admin.post("/v1/pools", json={"name": "acme", "shards": 1})
    await admin.post("/v1/pools", json={"name": "acme", "shards": 3})
    pools = (await admin.get("/v1/pools")).json()
    answers.PoolList.model_validate(pools)
    assert [(row["name"], row["shards"], row["tenants"]) for row in pools["data"]] == [
        ("acme", 3, 0),
        ("default", 4, 2),
    ]


async def test_an_endpoint_that_is_spread_cannot_be_ordered_or_limited(tenant: TenantClient) -> None:
    path = f"{ENDPOINTS}/{(await tenant.endpoint(spread=True))['endpoint_id']}"
    for change, field in [({"ordered": True}, "ordered"), ({"rate_limit": 5}, "rate_limit")]:
        answer = await tenant.patch(path, change)
        assert_problem(answer, 422)
        assert _fields(answer) == [field]
    assert (await tenant.patch(path, {"ordered": True, "spread": None})).json()["ordered"] is True
    answer = await tenant.patch(path, {"spread": True})
    assert _fields(answer) == ["ordered"]
    assert (await tenant.patch(path, {"spread": False})).json()["spread"] is False


async def test_keys_are_listed_without_the_key(admin: httpx.AsyncClient, tenant: TenantClient) -> None:
    path = f"/v1/tenants/{tenant.tenant_id}/api_keys"
    created = (await admin.post(path, json={"name": "k2", "scopes": ["read", "read"]})).json()
    answers.KeyCreated.model_validate(created)
    listed = (await admin.get(path)).json()["data"]
    assert listed[0] == {name: value for name, value in created.items() if name != "key"}
    assert (listed[0]["scopes"], len(listed)) == (["read"], 2)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": "k", "scopes": ["admin"]}, "scopes.0"),
        ({"name": "k", "expires_at": "tomorrow"}, "expires_at"),
        ({"name": "k", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "k", "expires_at": "2030-02-30T00:00:00Z"}, "expires_at"),
    ],
)
async def test_a_bad_key_is_refused_by_field(
    admin: httpx.AsyncClient, tenant: TenantClient, body: dict[str, Any], field: str
) -> None:
    answer = await admin.post(f"/v1/tenants/{tenant.tenant_id}/api_keys", json=body)
    assert_problem(answer, 422)
    assert _fields(answer) == [field]


# ---- lists ---------------------------------------------------------------------------------------------------------


async def _walk(tenant: TenantClient, path: str, id_name: str, *, limit: int, between: Any = None) -> list[str]:
    """All ids of a list, page by page."""
    found: list[str] = []
    cursor = None
    for _ in range(100):
        query = {"limit": limit} | ({"cursor": cursor} if cursor else {})
        answer = await tenant.get(str(httpx.URL(path).copy_merge_params(query)))
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["data"]) <= limit
        found += [row[id_name] for row in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found
        if between:
            await between()
    raise AssertionError("the list does not end")


async def test_paging_skips_nothing_while_events_arrive(sql: Any, tenant: TenantClient) -> None:
    wanted = [(await append_event(sql, tenant.uuid, []))[0] for _ in range(7)]
    found = await _walk(tenant, "/v1/events", "event_id", limit=2, between=lambda: append_event(sql, tenant.uuid, []))
    assert found == [f"evt_{event_id.hex}" for event_id in reversed(wanted)]


async def test_paging_is_exact_over_equal_times(admin: Any, sql: Any, tenant: TenantClient) -> None:
    wanted = {f"evt_{(await append_event(sql, tenant.uuid, []))[0].hex}" for _ in range(9)}
    await sql.execute("update events set created_at = date_trunc('second', now())")
    endpoint_id, event_id = uuid4(), uuid4()
    attempts = {
        f"att_{(await add_attempt(sql, tenant.uuid, event_id, endpoint_id, outcome='delivered')).hex}" for _ in range(9)
    }
    for _ in range(9):
        await add_dead(sql, tenant.uuid, uuid4(), endpoint_id)
    await sql.execute("update dead_letters set died_at = date_trunc('second', now())")
    for limit in (1, 2, 4, 9, 500):
        assert sorted(await _walk(tenant, "/v1/events", "event_id", limit=limit)) == sorted(wanted)
        for of in ("", f"?event_id=evt_{event_id.hex}", f"?endpoint_id=ep_{endpoint_id.hex}"):
            found = await _walk(tenant, f"/v1/attempts{of}", "attempt_id", limit=limit)
            assert sorted(found) == sorted(attempts), of
        for of in ("", f"?endpoint_id=ep_{endpoint_id.hex}"):
            assert len(set(await _walk(tenant, f"/v1/dead_letters{of}", "event_id", limit=limit))) == 9


async def test_endpoints_page_too(tenant: TenantClient) -> None:
    created = [(await tenant.endpoint())["endpoint_id"] for _ in range(5)]
    assert await _walk(tenant, ENDPOINTS, "endpoint_id", limit=2) == created[::-1]


async def test_what_waits_is_listed_over_all_shards(sql: Any, tenant: TenantClient) -> None:
    endpoint = await tenant.endpoint()
    wanted = []
    for shard in (0, 2):
        for position in (1, 2, 3):
            event_id = uuid4()
            await add_waiting(sql, tenant.uuid, event_id, endpoint_uuid(endpoint), position, shard=shard)
            wanted.append(f"evt_{event_id.hex}")
    path = f"{ENDPOINTS}/{endpoint['endpoint_id']}/deliveries?status=waiting"
    for limit in (1, 2, 3, 4, 50):
        assert await _walk(tenant, path, "event_id", limit=limit) == wanted
    row = (await tenant.get(path)).json()["data"][0]
    answers.EndpointDelivery.model_validate(row)
    assert (row["status"], row["reason"], row["attempt_count"]) == ("waiting", "retry", 2)
    await tenant.post(f"{ENDPOINTS}/{endpoint['endpoint_id']}/pause")
    row = (await tenant.get(path)).json()["data"][0]
    assert (row["reason"], row["next_attempt_at"]) == ("paused", None)


async def test_an_endpoints_deliveries_by_state(sql: Any, tenant: TenantClient) -> None:
    endpoint = await tenant.endpoint()
    path = f"{ENDPOINTS}/{endpoint['endpoint_id']}/deliveries"
    dead, delivered = uuid4(), uuid4()
    await add_dead(sql, tenant.uuid, dead, endpoint_uuid(endpoint))
    await add_attempt(sql, tenant.uuid, delivered, endpoint_uuid(endpoint), outcome="delivered", retry_count=1)
    await add_attempt(sql, tenant.uuid, uuid4(), endpoint_uuid(endpoint), outcome="retry")
    for status, event_id, count in (("dead", dead, 1), ("delivered", delivered, 2)):
        (row,) = (await tenant.get(f"{path}?status={status}")).json()["data"]
        answers.EndpointDelivery.model_validate(row)
        assert (row["event_id"], row["attempt_count"]) == (f"evt_{event_id.hex}", count)
    assert_problem(await tenant.get(path + "?status=nope"), 422)


async def test_a_cursor_is_bound_to_tenant_and_filters(
    admin: httpx.AsyncClient, sql: Any, tenant: TenantClient
) -> None:
    for _ in range(3):
        await append_event(sql, tenant.uuid, [], type="a.b")
    cursor = (await tenant.get("/v1/events?limit=1&type=a.b")).json()["next_cursor"]
    good = {"limit": 1, "type": "a.b", "cursor": cursor}
    assert (await tenant.get("/v1/events", params=good)).status_code == 200
    other = await make_tenant(admin, "other")
    altered = [
        cursor[:-2] + ("AA" if not cursor.endswith("AA") else "BB"),
        ("A" if cursor[0] != "A" else "B") + cursor[1:],
        cursor[:10],
        "",
        "%%%",
        "\u00e4",
        "x" * 5000,
    ]
    for bad in altered:
        assert_problem(await tenant.get("/v1/events", params=good | {"cursor": bad}), 400)
    assert_problem(await tenant.get("/v1/events", params=good | {"type": "a.c"}), 400)
    assert_problem(await tenant.get("/v1/events", params={"cursor": cursor}), 400)
    assert_problem(await tenant.get("/v1/attempts", params={"cursor": cursor}), 400)
    assert_problem(await other.get("/v1/events", params=good), 400)
    assert_problem(await admin.get("/v1/events", params=good), 400)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/events?limit=0", "limit"),
        ("/v1/events?limit=501", "limit"),
        ("/v1/events?limit=x", "limit"),
        ("/v1/events?typ=a", "typ"),
        ("/v1/events?since=yesterday", "since"),
        ("/v1/events?until=2026-13-01T00:00:00Z", "until"),
        ("/v1/events?type=%00", "type"),
        ("/v1/attempts?outcome=lost", "outcome"),
        ("/v1/attempts?endpoint_id=evt_1", "endpoint_id"),
        ("/v1/deliveries?event_id=nope", "event_id"),
        ("/v1/dead_letters?reason=tired", "reason"),
    ],
)
async def test_a_bad_query_is_refused_by_field(tenant: TenantClient, path: str, field: str) -> None:
    answer = await tenant.get(path)
    assert_problem(answer, 422)
    assert _fields(answer) == [field]


async def test_events_are_listed_by_type_and_time(admin: httpx.AsyncClient, sql: Any, tenant: TenantClient) -> None:
    ids = [(await append_event(sql, tenant.uuid, [], type=f"t.{n}"))[0] for n in range(3)]
    shown = (await tenant.get("/v1/events")).json()["data"]
    for row in shown:
        answers.EventItem.model_validate(row)
    middle = shown[1]["created_at"]
    since = (await tenant.get("/v1/events", params={"since": middle})).json()["data"]
    assert {row["event_id"] for row in since} >= {f"evt_{i.hex}" for i in ids[1:]}
    far = (await tenant.get("/v1/events", params={"until": "2020-01-01T01:00:00+01:00"})).json()["data"]
    assert far == []
    typed = (await tenant.get("/v1/events", params={"type": "t.2"})).json()["data"]
    assert [row["type"] for row in typed] == ["t.2"]
    across = (await admin.get("/v1/events")).json()["data"]
    assert [row["event_id"] for row in across] == [f"evt_{i.hex}" for i in reversed(ids)]
    named = (await admin.get("/v1/events", params={"tenant_id": tenant.tenant_id, "limit": 1})).json()
    assert len(named["data"]) == 1
    assert_problem(await tenant.get("/v1/events", params={"tenant_id": f"ten_{uuid4().hex}"}), 404)


# ---- what is shown -------------------------------------------------------------------------------------------------


async def test_a_payload_is_shown_as_it_was_posted(sql: Any, tenant: TenantClient) -> None:
    payload = b'{"z": 1.50, "a": 1e400, "\\ud800": [ 12345678901234567890123 ]}'
    event_id, _ = await append_event(sql, tenant.uuid, [], payload=payload)
    answer = await tenant.get(event_path(event_id))
    assert b'"payload":' + payload in answer.content
    assert answer.headers["content-type"] == "application/json"


async def test_an_attempt_is_shown_without_loss(admin: httpx.AsyncClient, sql: Any, tenant: TenantClient) -> None:
    event_id, endpoint_id = uuid4(), uuid4()
    attempt_id = await add_attempt(sql, tenant.uuid, event_id, endpoint_id, outcome="delivered")
    for client in (tenant, admin):
        (row,) = (await client.get("/v1/deliveries")).json()["data"]
        answers.AttemptAnswer.model_validate(row)
        assert row["attempt_id"] == f"att_{attempt_id.hex}"
        assert row["response_head"].endswith("\ufffd\0<b>")
        assert row["response_head_base64"] == b64encode(b"HTTP/1.1 200 OK\r\n\r\n\xff\x00<b>").decode()
        assert row["response_hash"] == "sha256:" + "00" * 32
        assert row["timings_ms"] == {"dns": 1, "connect": 2, "tls": 3, "first_byte": 4, "total": 12}
        assert row["trace_id"] == event_id.hex
    assert (await tenant.get("/v1/attempts?outcome=dead")).json()["data"] == []


async def test_dead_letters_are_shown(admin: httpx.AsyncClient, sql: Any, tenant: TenantClient) -> None:
    await add_dead(sql, tenant.uuid, uuid4(), uuid4())
    for client in (tenant, admin):
        (row,) = (await client.get("/v1/dead_letters?reason=http_4xx")).json()["data"]
        answers.DeadLetterAnswer.model_validate(row)
    assert (await tenant.get("/v1/dead_letters?reason=deadline")).json()["data"] == []


# ---- whom it belongs to --------------------------------------------------------------------------------------------

BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/tenants/{tenant_id}/api_keys"): {"name": "k"},
    ("patch", "/v1/tenants/{tenant_id}"): {"name": "n"},
    ("patch", "/v1/webhook_endpoints/{endpoint_id}"): {"uid": "x"},
    ("patch", "/v1/event_types/{name}"): {"description": "x"},
}


async def test_another_tenants_ids_do_not_exist_on_any_route(
    admin: httpx.AsyncClient, sql: Any, tenant: TenantClient
) -> None:
    endpoint = await tenant.endpoint()
    event_id, _ = await append_event(sql, tenant.uuid, [endpoint_uuid(endpoint)])
    key_id = (await admin.get(f"/v1/tenants/{tenant.tenant_id}/api_keys")).json()["data"][0]["api_key_id"]
    ids = {
        "tenant_id": tenant.tenant_id,
        "endpoint_id": endpoint["endpoint_id"],
        "event_id": f"evt_{event_id.hex}",
        "api_key_id": key_id,
        "replay_id": (await tenant.post("/v1/replays")).json()["replay_id"],
        "name": "order.paid",
    }
    await tenant.post("/v1/event_types", {"name": ids["name"]})
    other = await make_tenant(admin, "other")
    document = (await admin.get("/openapi.json")).json()
    tried = 0
    for path, operations in document["paths"].items():
        if "{" not in path:
            continue
        for method in operations.keys() & {"get", "post", "patch", "delete"}:
            query = "?status=dead" if path.endswith("/deliveries") else ""
            answer = await other.request(method.upper(), path.format(**ids) + query, json=BODIES.get((method, path)))
            assert_problem(answer, 404)
            tried += 1
    assert tried >= 21
    named = 0
    for path, operations in document["paths"].items():
        for parameter in operations.get("get", {}).get("parameters", ()):
            if (parameter["name"], parameter["in"]) == ("tenant_id", "query"):
                assert_problem(await other.get(path, params={"tenant_id": tenant.tenant_id}), 404)
                named += 1
    assert named >= 9
    unchanged = (await tenant.get(f"{ENDPOINTS}/{endpoint['endpoint_id']}")).json()
    assert unchanged == {name: value for name, value in endpoint.items() if name != "secret"}
    assert (await tenant.get(f"/v1/replays/{ids['replay_id']}")).json()["state"] == "running"
    for listing in ("/v1/events", ENDPOINTS, "/v1/attempts", "/v1/dead_letters", "/v1/replays"):
        assert (await other.get(listing)).json()["data"] == []


@pytest.mark.parametrize("text", ["ep_", "nope", "evt_" + "0" * 32, "ep_zz", "ep_" + "0" * 33, "%00", "ep_%ED%A0%80"])
async def test_what_is_no_id_is_not_found(tenant: TenantClient, text: str) -> None:
    assert_problem(await tenant.get(f"{ENDPOINTS}/{text}"), 404)


# ---- the application -----------------------------------------------------------------------------------------------


async def test_posts_of_events_go_to_their_own_handler(tenant: TenantClient) -> None:
    for path in ("/v1/events", "/v1/events/batch"):
        assert (await tenant.post(path, {})).content == b"raw"
    assert (await tenant.get("/v1/events")).status_code == 200


async def test_requests_that_cannot_be_read_are_problems(tenant: TenantClient) -> None:
    async def post(**options: Any) -> httpx.Response:
        return await tenant.request("POST", ENDPOINTS, **options)

    json_type = {"Content-Type": "application/json"}
    assert_problem(await post(content=b"{", headers=json_type), 400)
    assert_problem(await post(content=b'"\xff"', headers=json_type), 400)
    assert_problem(await post(content=b"[" * 50_000, headers=json_type), 400)
    assert_problem(await post(content=b'{"url": ' + b"9" * 5000 + b"}", headers=json_type), 400)
    assert_problem(await post(content=b"[]", headers=json_type), 422)
    assert_problem(await post(), 422)
    assert_problem(await post(content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    assert_problem(await post(content=b"x" * 200_000), 413)

    async def chunks() -> Any:
        for _ in range(3):
            yield b" " * 60_000

    assert_problem(await post(content=chunks()), 413)
    assert_problem(await tenant.get("/v1/nothing"), 404)
    assert_problem(await tenant.get("/nothing"), 404)
    answer = await tenant.request("PUT", ENDPOINTS, json={})
    assert_problem(answer, 405)
    assert "allow" in answer.headers
    assert_problem(await tenant.get(f"{ENDPOINTS}/"), 404)


async def test_health_needs_no_key(admin: httpx.AsyncClient, sql: Any, store: PostgresStore) -> None:
    client_headers = {"Authorization": ""}
    assert (await admin.get("/healthz", headers=client_headers)).json() == {"status": "ok"}
    answer = await admin.get("/readyz", headers=client_headers)
    assert (answer.status_code, answer.json()["unowned_shards"]) == (503, 4)
    accepting = await admin.get("/readyz", params={"shards": "false"}, headers=client_headers)
    assert (accepting.status_code, accepting.json()["unowned_shards"]) == (200, 4)
    assert_problem(await admin.get("/readyz", params={"shard": "0"}, headers=client_headers), 422)
    node = uuid4()
    await sql.execute("insert into nodes values ($1, 'default', 'n', now(), now() + interval '1 min')", node)
    await sql.execute("update shards set owner = $1", node)
    answer = await admin.get("/readyz", headers=client_headers)
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    await store.close()
    for params in ({}, {"shards": "false"}):
        answer = await admin.get("/readyz", params=params, headers=client_headers)
        assert (answer.status_code, answer.json()["store"]) == (503, "unreachable")


async def test_a_store_that_is_away_is_503_with_retry_after(
    admin: httpx.AsyncClient, tenant: TenantClient, store: PostgresStore, clock: Any
) -> None:
    assert (await tenant.get(ENDPOINTS)).status_code == 200
    await store.close()
    for _ in ("with the key remembered", "with the key forgotten"):
        answer = await tenant.get(ENDPOINTS)
        assert_problem(answer, 503)
        assert answer.headers["retry-after"] == "1"
        clock.advance(2.0)
    with pytest.raises(StoreUnavailable):
        await store.ping()


async def test_an_unexpected_fault_tells_nothing(
    admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, store: PostgresStore
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(store, "list_tenants", broken)
    answer = await admin.get("/v1/tenants")
    assert_problem(answer, 500)
    assert "inside" not in answer.text


async def test_the_openapi_document_is_complete(admin: httpx.AsyncClient) -> None:
    document = (await admin.get("/openapi.json")).json()
    for path in ("/v1/events", "/v1/events/batch"):
        assert {"202", "400", "401", "403", "413", "415", "422", "503"} <= document["paths"][path]["post"][
            "responses"
        ].keys()
    operations = [op for path in document["paths"].values() for op in path.values()]
    ids = [op["operationId"] for op in operations]
    assert len(ids) == len(set(ids))
    refs = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert refs <= document["components"]["schemas"].keys()
    known = {**vars(schemas), **vars(answers)}
    models = {name for name, value in known.items() if isinstance(value, type) and issubclass(value, BaseModel)}
    assert {"EndpointAnswer", "ProblemAnswer", "AcceptedBatch"} <= refs & models
    assert (await admin.get("/docs")).status_code == 200


async def test_the_admin_reads_across_tenants_and_writes_for_one(
    admin: httpx.AsyncClient, tenant: TenantClient
) -> None:
    created = await tenant.endpoint()
    path = f"{ENDPOINTS}/{created['endpoint_id']}"
    assert (await admin.get(path)).status_code == 200
    assert (await admin.get(f"{path}/secret")).json()["secret"] == created["secret"]
    assert created["endpoint_id"] in {row["endpoint_id"] for row in (await admin.get(ENDPOINTS)).json()["data"]}
    form = {"url": URL}
    for method, route, body in (
        ("POST", ENDPOINTS, form), ("PATCH", path, form), ("POST", f"{path}/test", {}), ("DELETE", path, None),
    ):  # fmt: skip
        assert_problem(await admin.request(method, route, json=body), 400)
    acting = {"X-Tenant-Id": tenant.tenant_id}
    assert (await admin.post(ENDPOINTS, json={"url": URL}, headers=acting)).json()["tenant_id"] == tenant.tenant_id
    for unknown in (f"ten_{uuid4().hex}", "nonsense", ""):
        assert_problem(await admin.get(ENDPOINTS, headers={"X-Tenant-Id": unknown}), 404)
    assert UUID(tenant.tenant_id.removeprefix("ten_")) == tenant.uuid


@pytest.mark.parametrize(
    "body",
    [
        b'{"url": ' + b"[" * 60_000,
        b'{"url": ' + b"[" * 60_000 + b"]" * 60_000 + b"}",
        b'{"metadata": ' + b'{"a":' * 20_000,
        b'{"rate_limit": ' + b"9" * 100_000 + b"}",
        b'{"rate_limit": 1e999999999}',
        b'{"url": "\\ud800"}',
        b"\xff\xfe{}",
        b"null",
    ],
    ids=["open", "deep", "deep-objects", "long-number", "huge-number", "surrogate", "not-utf8", "null"],
)
async def test_p2_a_hostile_body_of_a_form_is_a_4xx(tenant: TenantClient, body: bytes) -> None:
    answer = await tenant.request("POST", ENDPOINTS, content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
