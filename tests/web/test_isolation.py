"""I19: whatever names another tenant's thing is answered as if there were none, on every route that there is.

The routes, their parameters and the fields of their bodies are those of the OpenAPI document, so that a new one is tried
by itself. What cannot be built from the document is an error here, not a gap.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import pytest
from uuid_utils.compat import uuid7

from hookpost.ingest import Ingest, IngestLimits
from hookpost.policy.keys import hash_secret
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres.queries import load
from hookpost.storage.postgres.store import PostgresStore
from hookpost.web.app import WebSettings, make_app
from hookpost.web.auth import Authenticator
from hookpost.web.events import EventLimits, EventRoutes
from tests.patience import PATIENCE_S
from tests.web.conftest import ADMIN_KEY
from tests.web.rows import Submitted, TenantClient, add_attempt, add_dead, add_waiting, append_event, make_tenant

ENDPOINTS = "/v1/webhook_endpoints"
# The prefix of what each id names, wherever it stands.
PREFIXES = {
    "tenant_id": "ten", "endpoint_id": "ep", "event_id": "evt", "replay_id": "rpl", "api_key_id": "key",
    "target_endpoints": "ep", "attempt_id": "att", "x-tenant-id": "ten",
}  # fmt: skip
# What tenants call things: a place in a path that is not an id, and names one of these things all the same.
NAMES = {"/v1/event_types/{name}": "name"}
# Ids in requests that name nothing of a tenant's.
NOT_OF_A_TENANT: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Case:
    """One id in one place of one operation."""

    method: str
    path: str
    place: str  # path, query, header or body
    name: str
    body: dict[str, Any] | None
    query: dict[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.place}:{self.name}"


@pytest.fixture
async def app(store: PostgresStore) -> AsyncIterator[httpx.AsyncClient]:
    """The whole application, the real handler of events included; with the admin key."""
    payloads = ObjectStore("memory:///")
    ingest = Ingest(store, payloads, now=time.time, limits=IngestLimits(timeout_s=PATIENCE_S, inline_max=2**24))
    authenticator = Authenticator(store, admin_key_hash=hash_secret(ADMIN_KEY))
    application = make_app(
        store=store,
        payloads=payloads,
        authenticator=authenticator,
        submit=Submitted(),
        raw_events=EventRoutes(ingest, authenticator, limits=EventLimits(200_000, 1000, 1_000_000)),
        settings=WebSettings(cursor_secret=b"c" * 32),
    )
    transport = httpx.ASGITransport(app=application)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield client
    await ingest.close()


def cases(document: dict[str, Any]) -> Iterator[Case]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield from _of_operation(document, method.upper(), path, operation)


def _of_operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> Iterator[Case]:
    parameters = operation.get("parameters", ())
    query = {p["name"]: _example(document, p["schema"]) for p in parameters if p["in"] == "query" and p.get("required")}
    schema = _body_schema(document, operation)
    body = None if schema is None else _example(document, schema)
    for parameter in parameters:
        if _is_id(parameter["name"]) or NAMES.get(path) == parameter["name"]:
            yield Case(method, path, parameter["in"], parameter["name"], body, query)
    for name in _fields(document, schema):
        if _is_id(name):
            yield Case(method, path, "body", name, body, query)


def _is_id(name: str) -> bool:
    looks_like_one = name.lower().endswith("_id") or name.lower() in PREFIXES
    return looks_like_one and name not in NOT_OF_A_TENANT


def _body_schema(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any] | None:
    content = operation.get("requestBody", {}).get("content", {})
    return _resolved(document, content["application/json"]["schema"]) if content else None


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    if options:
        return _resolved(document, options[0])
    if "$ref" in schema:
        return _resolved(document, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    return schema


def _fields(document: dict[str, Any], schema: dict[str, Any] | None) -> Iterator[str]:
    """The fields of a body, those of lists of things included."""
    for name, field in (schema or {}).get("properties", {}).items():
        yield name
        inner = _resolved(document, field)
        if inner.get("type") == "array":
            yield from _fields(document, _resolved(document, inner["items"]))


def _example(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """The least that a schema lets pass."""
    schema = _resolved(document, schema)
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    if "examples" in schema:
        return schema["examples"][0]
    match schema.get("type"):
        case "object":
            return {name: _example(document, schema["properties"][name]) for name in schema.get("required", ())}
        case "array":
            return [_example(document, schema["items"])] if schema.get("minItems") else []
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return False
        case None:
            return {}
        case _:
            return "xxx"


async def _try(client: TenantClient, case: Case, ids: dict[str, str], named: str) -> httpx.Response:
    """Name ``named`` in the case's place; ids of the path that are not its place are the client's own."""
    path = case.path.format_map({**ids, case.name: named})
    query, headers, body = dict(case.query), {}, json.loads(json.dumps(case.body))
    if case.place == "query":
        query[case.name] = named
    elif case.place == "header":
        headers[case.name] = named
    elif case.place == "body":
        value = [named] if case.name == "target_endpoints" else named
        if case.name in body or "events" not in body:
            body[case.name] = value
        else:
            body["events"][0][case.name] = value
    options = {} if body is None else {"json": body}
    return await client.request(case.method, path, params=query, headers=headers, **options)


@dataclass
class World:
    """Two tenants that have one of everything each."""

    victim: TenantClient
    other: TenantClient
    ids: dict[str, dict[str, str]]


async def _one_of_everything(admin: httpx.AsyncClient, sql: Any, tenant: TenantClient) -> dict[str, str]:
    endpoint = await tenant.endpoint(uid="same", metadata={"note": f"of {tenant.tenant_id}"})
    endpoint_id = UUID(endpoint["endpoint_id"].removeprefix("ep_"))
    event_id, seq = await append_event(sql, tenant.uuid, [endpoint_id])
    await add_attempt(sql, tenant.uuid, event_id, endpoint_id, outcome="retry")
    await add_waiting(sql, tenant.uuid, event_id, endpoint_id, seq)
    await add_dead(sql, tenant.uuid, uuid7(), endpoint_id)
    keys = (await admin.get(f"/v1/tenants/{tenant.tenant_id}/api_keys")).json()["data"]
    replay = await tenant.post("/v1/replays", {"status": "any"})
    await tenant.post("/v1/event_types", {"name": f"type.of.{tenant.tenant_id}", "schema": {"type": "null"}})
    return {
        "tenant_id": tenant.tenant_id,
        "X-Tenant-Id": tenant.tenant_id,
        "endpoint_id": endpoint["endpoint_id"],
        "target_endpoints": endpoint["endpoint_id"],
        "event_id": f"evt_{event_id.hex}",
        "api_key_id": keys[0]["api_key_id"],
        "replay_id": replay.json()["replay_id"],
        "name": f"type.of.{tenant.tenant_id}",
    }


@pytest.fixture
async def world(app: httpx.AsyncClient, sql: Any) -> World:
    victim, other = await make_tenant(app, "victim"), await make_tenant(app, "other")
    ids = {tenant.tenant_id: await _one_of_everything(app, sql, tenant) for tenant in (victim, other)}
    return World(victim, other, ids)


def _unknown(name: str) -> str:
    if name in NAMES.values():
        return f"type.of.{uuid7().hex}"
    prefix = PREFIXES[name.lower()]
    return f"{prefix}_{uuid7().hex[-16:]}" if prefix == "key" else f"{prefix}_{uuid7().hex}"


def _normal(answer: httpx.Response, named: str) -> tuple[int, str]:
    """Status and body, without the id that was asked for and what differs from one answer to the next."""
    text = answer.text.replace(named, "ID")
    return answer.status_code, re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z|[0-9a-f]{32}|\"next_cursor\":\"[^\"]+\"", "", text)


async def test_another_tenants_id_is_answered_like_one_that_never_was(
    app: httpx.AsyncClient, world: World, sql: Any
) -> None:
    document = (await app.get("/openapi.json")).json()
    own, foreign = world.ids[world.other.tenant_id], world.ids[world.victim.tenant_id]
    before = await _state(sql, world.victim.uuid)
    tried: dict[str, int] = {}
    for case in cases(document):
        assert case.name.lower() in {*PREFIXES, *NAMES.values()}, (
            f"{case}: say what this id names, here and in one_of_everything"
        )
        there = await _try(world.other, case, own, foreign[case.name])
        unknown = _unknown(case.name)
        nowhere = await _try(world.other, case, own, unknown)
        assert _normal(there, foreign[case.name]) == _normal(nowhere, unknown), f"{case}: {there.text} {nowhere.text}"
        if case.place in ("path", "header"):
            admins_own = there.status_code == 403 and case.path.startswith("/v1/tenants/{tenant_id}/")
            assert there.status_code == 404 or admins_own, f"{case}: {there.text}"
        shown = there.text.replace(foreign[case.name], "")
        assert not any(each in shown for each in (world.victim.tenant_id, foreign["event_id"])), f"{case}: {there.text}"
        tried[case.place] = tried.get(case.place, 0) + 1
    assert tried["path"] >= 20 and tried["query"] >= 15 and tried["body"] >= 5 and tried["header"] >= 35, tried
    assert await _state(sql, world.victim.uuid) == before


async def test_the_admin_that_acts_for_a_tenant_finds_nothing_of_another(
    app: httpx.AsyncClient, world: World, sql: Any
) -> None:
    document = (await app.get("/openapi.json")).json()
    own, foreign = world.ids[world.other.tenant_id], world.ids[world.victim.tenant_id]
    before = await _state(sql, world.victim.uuid)
    app.headers["X-Tenant-Id"] = world.other.tenant_id
    acting = TenantClient(app, world.other.tenant_id, ADMIN_KEY)
    for case in cases(document):
        if PREFIXES.get(case.name.lower()) == "ten":
            continue
        there = await _try(acting, case, own, foreign[case.name])
        unknown = _unknown(case.name)
        nowhere = await _try(acting, case, own, unknown)
        assert _normal(there, foreign[case.name]) == _normal(nowhere, unknown), f"{case}: {there.text} {nowhere.text}"
        assert case.place != "path" or there.status_code == 404, f"{case}: {there.text}"
    assert await _state(sql, world.victim.uuid) == before


async def _state(sql: Any, tenant: UUID) -> list[Any]:
    """All that is stored of a tenant."""
    tables = ("tenants", "api_keys", "endpoints", "events", "attempts", "backlog", "dead_letters", "replays",
              "event_types")  # fmt: skip
    return [
        sorted(map(str, await sql.fetch(f"select * from {table} where tenant_id = $1", tenant))) for table in tables
    ]


async def test_no_list_shows_anything_of_another_tenant(app: httpx.AsyncClient, world: World) -> None:
    document = (await app.get("/openapi.json")).json()
    mine, foreign = set(world.ids[world.other.tenant_id].values()), set(world.ids[world.victim.tenant_id].values())
    listed = 0
    for path, operations in document["paths"].items():
        if "get" not in operations or "{" in path or not path.startswith("/v1/"):
            continue
        for form in ("", "?format=ndjson", "?format=csv"):
            answer = await world.other.get(path + form)
            assert not any(each in answer.text for each in foreign - mine), path
            listed += answer.status_code == 200
    assert listed >= 9


async def test_no_cursor_is_good_for_another_tenant_or_list_or_filter(app: httpx.AsyncClient, world: World) -> None:
    for _ in range(2):
        await world.victim.endpoint()
        await world.other.endpoint()
    for client in (world.victim, world.other):
        await client.post("/v1/replays", {"status": "any"})
        await client.post("/v1/event_types", {"name": "another"})
    lists = [ENDPOINTS, "/v1/replays", "/v1/audit_log", "/v1/event_types"]
    cursors = {}
    for path in lists:
        cursors[path] = (await world.victim.get(path, params={"limit": 1})).json()["next_cursor"]
        assert cursors[path] is not None, path
    for path in lists:
        for made_for, cursor in cursors.items():
            expected = 200 if made_for == path else 400
            assert (await world.victim.get(path, params={"cursor": cursor})).status_code == expected
            assert (await world.other.get(path, params={"cursor": cursor})).status_code == 400
            assert (await app.get(path, params={"cursor": cursor})).status_code == 400
            for altered in (cursor[:-4] + "AAAA", "AAAA" + cursor[4:], cursor + "AAAA", cursor[:-4]):
                assert (await world.victim.get(path, params={"cursor": altered})).status_code == 400


async def test_s2_what_a_tenant_chooses_collides_with_nobody_elses(world: World) -> None:
    """Unique constraints are the tenant's own: uid of endpoints, idempotency keys."""
    assert (await world.victim.post(ENDPOINTS, {"url": "https://example.com", "uid": "same"})).status_code == 409
    assert (await world.other.post(ENDPOINTS, {"url": "https://example.com", "uid": "only-here"})).status_code == 201
    assert (await world.victim.post(ENDPOINTS, {"url": "https://example.com", "uid": "only-here"})).status_code == 201
    posted = {"type": "a.b", "payload": {"n": 1}, "idempotency_key": "same"}
    first = (await world.victim.post("/v1/events", posted)).json()
    theirs = await world.other.post("/v1/events", {**posted, "payload": {"n": 2}})
    assert theirs.status_code == 202, "neither a duplicate of it nor a conflict with it"
    assert theirs.json()["duplicate"] is False and theirs.json()["event_id"] != first["event_id"]
    assert (await world.victim.post("/v1/events", posted)).json()["duplicate"] is True


OF_A_TENANT = [
    "api_keys",
    "endpoints",
    "endpoint_secrets",
    "events",
    "attempts",
    "backlog",
    "dead_letters",
    "idempotency_keys",
    "rollup_tallies",
    "replays",
    "breakers",
    "audit_log",
    "event_types",
]
# Statements of the API that touch a tenant's rows and name no tenant, and why that is right.
WITHOUT_A_TENANT = {
    "the admin reads across tenants": {
        "list_endpoints_of_all", "list_dead_of_all", "list_replays_of_all", "list_types_of_all", "waiting_of_all", "dead_of_all", "list_of_all",
    },
    "the endpoint was asked for with its tenant before": {"waiting_of_endpoint", "dead_of_endpoint", "add_secret"},
    "the events and endpoints are those of one tenant, asked for with it before": {"pins", "blocking", "removed"},
    "the event was asked for with its tenant before": {"queued", "waiting", "dead", "tries"},
    "the page of metrics is the admin's": {"shards", "backlog"},
    "a job by its own id, whoever runs it": {
        "take_replay", "next_replay_in", "move_replay", "hold_replay", "finish_replay",
    },
    "key ids are ours, and nobody names them": {"note_used_keys", "revoked_keys", "find_key"},
    "an address is throttled before it is known whose it is, and sees none of it": {"refused_sign_ins"},
    "maintenance, whoever's they are": {"seal_secrets", "plain_secrets", "chains"},
}  # fmt: skip


def test_every_statement_of_the_api_names_the_tenant_or_has_a_reason() -> None:
    excused = {name for names in WITHOUT_A_TENANT.values() for name in names}
    without = set()
    for file in ("admin", "replays", "stats", "ingest", "sealing", "audit", "explain", "figures", "event_types"):
        for name, text in load(file).items():
            body = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
            touches = re.search(rf"\b(?:from|join|update|into)\s+(?:{'|'.join(OF_A_TENANT)})\b", body)
            names_one = re.search(r"tenant_id\s*(?:=|is\b|,)|\.tenant_id,|\bchain = |\(chain,", body)
            if touches and not names_one:
                without.add(name)
    assert without <= excused, f"these touch a tenant's rows without naming it: {sorted(without - excused)}"
