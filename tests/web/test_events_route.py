"""`POST /v1/events` on bare ASGI: limits and forms, the bytes of the payload, idempotency keys, batches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hookpost.ingest import Ingest, IngestLimits
from hookpost.storage.contract import StoreUnavailable
from hookpost.storage.postgres.store import PostgresStore
from hookpost.web.auth import SCOPES, Principal
from hookpost.web.events import EventLimits, EventRoutes
from hookpost.web.problems import refusal

LIMITS = EventLimits(body_max_bytes=20_000, batch_max_events=10, receiving_max_bytes=100_000)


class Known:
    """Authentication that the test decides on."""

    def __init__(self, tenant_id: UUID) -> None:
        self.principal_ = Principal(tenant_id, False, SCOPES)

    async def principal(self, authorization: str | None, tenant_header: str | None) -> Principal:
        if authorization is None:
            raise refusal(401, "a valid API key is required")
        return self.principal_


@dataclass
class Api:
    routes: EventRoutes
    known: Known
    store: PostgresStore
    sql: Any

    async def post(
        self, body: bytes | list[bytes], path: str = "/v1/events", *, method: str = "POST", **headers: str | None
    ) -> tuple[int, dict[str, str], Any]:
        chunks = [body] if isinstance(body, bytes) else body
        sent: dict[str, str | None] = {"authorization": "Bearer k", "content-type": "application/json"}
        if isinstance(body, bytes):
            sent["content-length"] = str(len(body))
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(n.encode(), v.encode("latin-1")) for n, v in sent.items() if v is not None],
        }
        messages = [{"type": "http.request", "body": c, "more_body": i < len(chunks)} for i, c in enumerate(chunks, 1)]
        answer: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            answer.append(message)

        await self.routes(scope, receive, send)
        start, end = answer
        head = {name.decode(): value.decode() for name, value in start["headers"]}
        assert int(head["content-length"]) == len(end["body"])
        return start["status"], head, json.loads(end["body"])

    async def stored(self, event_id: str) -> Any:
        return await self.sql.fetchrow("select * from events where event_id = $1", UUID(event_id.removeprefix("evt_")))


@pytest.fixture
async def api(store: PostgresStore, sql: Any) -> Any:
    tenant_id = UUID(await sql.fetchval("select value from platform where name = 'default_tenant'"))
    ingest = Ingest(store, now=lambda: 1_800_000_000.0, limits=IngestLimits(timeout_s=30))
    known = Known(tenant_id)
    yield Api(EventRoutes(ingest, known, limits=LIMITS), known, store, sql)  # type: ignore[arg-type] # stands in
    await ingest.close()


def body(**fields: Any) -> bytes:
    return json.dumps({"type": "invoice.paid", "payload": {"a": 1}, **fields}).encode()


async def test_an_event_is_accepted_and_stored(api: Api) -> None:
    status, head, answer = await api.post(body())
    assert status == 202
    assert head["content-type"] == "application/json"
    assert (answer["delivery_count"], answer["duplicate"]) == (0, False)
    row = await api.stored(answer["event_id"])
    assert (row["type"], row["payload"]) == ("invoice.paid", b'{"a": 1}')


@pytest.mark.parametrize(
    ("posted", "field"),
    [
        (body(type=""), "type"),
        (body(type="a b"), "type"),
        (body(type="x" * 129), "type"),
        (body(type="a\nb"), "type"),
        (body(type="ä"), "type"),
        (body(type=7), "type"),
        (body(type="hookpost.test"), "type"),
        (body(idempotency_key=""), "idempotency_key"),
        (body(idempotency_key="k" * 256), "idempotency_key"),
        (body(idempotency_key="a\0b"), "idempotency_key"),
        (body(target_endpoints="ep_1"), "target_endpoints"),
        (body(target_endpoints=["nonsense"]), "target_endpoints"),
        (body(target_endpoints=["ep_" + "0" * 32]), "target_endpoints"),
        (body(surprise=1), "surprise"),
        (b'{"type": "a"}', "payload"),
        (b'{"payload": 1}', "type"),
    ],
)
async def test_a_wrong_field_is_named(api: Api, posted: bytes, field: str) -> None:
    status, head, answer = await api.post(posted)
    assert status == 422, answer
    assert head["content-type"] == "application/problem+json"
    assert answer["errors"][0]["field"].startswith(field), answer
    assert await api.sql.fetchval("select count(*) from events") == 0


@pytest.mark.parametrize(
    ("status", "posted", "headers"),
    [
        (400, b"", {}),
        (400, b"{", {}),
        (400, b'{"type": "a", "payload": NaN}', {}),
        (400, b'{"type": "a", "payload": "\xff"}', {}),
        (400, b'{"type": "a", "payload": "\\ud800"}', {}),
        (400, b'{"type": "a", "payload": ' + b"[" * 9000 + b"]" * 9000 + b"}", {}),
        (401, body(), {"authorization": None}),
        (413, body(payload="x" * 20_000), {}),
        (413, body(), {"content_length": "999999999999"}),
        (413, body(), {"content_length": "abc"}),
        (415, body(), {"content_type": "text/plain"}),
        (415, body(), {"content_type": "application/json; charset=utf-16"}),
        (415, body(), {"content_encoding": "gzip"}),
        (422, body(idempotency_key="a"), {"idempotency_key": "b"}),
        (422, body(), {"idempotency_key": "ä"}),
    ],
)
async def test_what_is_not_an_event_is_refused(
    api: Api, status: int, posted: bytes, headers: dict[str, str | None]
) -> None:
    answered, head, answer = await api.post(posted, **headers)
    assert answered == status, answer
    assert head["content-type"] == "application/problem+json"
    assert answer["status"] == status
    assert await api.sql.fetchval("select count(*) from events") == 0


async def test_deep_nesting_is_no_reason_to_fall_over(api: Api) -> None:
    status, _, _ = await api.post(b'{"type": "a", "payload": ' + b"[" * 500 + b"]" * 500 + b"}")
    assert status == 202


async def test_a_body_in_chunks_is_counted(api: Api) -> None:
    posted = body(payload="x" * 15_000)
    assert (await api.post([posted[:100], posted[100:]]))[0] == 202
    assert (await api.post([posted, posted]))[0] == 413


async def test_a_body_that_is_cut_off_is_refused(api: Api) -> None:
    scope_body = body()
    status, _, answer = await api.post([])
    assert status == 400
    assert scope_body
    assert "cut off" in answer["detail"]


async def test_only_post_is_answered(api: Api) -> None:
    status, head, _ = await api.post(b"", "/v1/events/batch", method="PUT")
    assert (status, head["allow"]) == (405, "POST")


async def test_a_key_without_the_scope_is_told_so(api: Api) -> None:
    api.known.principal_ = Principal(api.known.principal_.tenant_id, False, frozenset({"read"}))
    status, _, answer = await api.post(body())
    assert status == 403
    assert "events:write" in answer["detail"]


async def test_too_many_bodies_at_once_are_refused(api: Api) -> None:
    api.routes._receiving = LIMITS.receiving_max_bytes
    status, head, _ = await api.post(body())
    assert (status, head["retry-after"]) == (503, "1")


async def test_a_store_that_is_gone_is_a_503_with_retry_after(api: Api) -> None:
    await api.store.close()
    status, head, answer = await api.post(body())
    assert (status, head["retry-after"]) == (503, "1")
    assert "nothing was acknowledged" in answer["detail"]
    with pytest.raises(StoreUnavailable):
        await api.store.ping()


async def test_an_idempotency_key_comes_in_the_field_or_in_the_header_quoted_or_bare(api: Api) -> None:
    first = (await api.post(body(idempotency_key="k-1")))[2]
    for header in ("k-1", '"k-1"'):
        again = (await api.post(body(), idempotency_key=header))[2]
        assert again == {**first, "duplicate": True}
    status, _, answer = await api.post(body(payload={"a": 2}), idempotency_key="k-1")
    assert status == 422
    assert answer["errors"][0]["field"] == "idempotency_key"


async def test_each_event_of_a_batch_stands_on_its_own(api: Api) -> None:
    events = [
        {"type": "a", "payload": 1},
        {"type": "a b", "payload": 1},
        {"type": "a", "payload": 1, "idempotency_key": "k"},
        {"type": "a", "payload": 1, "idempotency_key": "k"},
        {"type": "a", "payload": 2, "idempotency_key": "k"},
        7,
    ]
    status, _, answer = await api.post(json.dumps({"events": events}).encode(), "/v1/events/batch")
    assert status == 202
    results = answer["results"]
    assert [("event_id" in result) for result in results] == [True, False, True, True, False, False]
    assert sorted(result["duplicate"] for result in results if "event_id" in result) == [False, False, True]
    assert results[1]["error"]["errors"][0]["field"] == "type"
    assert results[4]["error"]["errors"][0]["field"] == "idempotency_key"
    assert await api.sql.fetchval("select count(*) from events") == 2


@pytest.mark.parametrize("count", [0, 11])
async def test_a_batch_has_a_size(api: Api, count: int) -> None:
    events = [{"type": "a", "payload": 1}] * count
    status, _, answer = await api.post(json.dumps({"events": events}).encode(), "/v1/events/batch")
    assert status == 422
    assert answer["errors"][0]["field"] == "events"


async def test_the_trace_of_the_producer_is_kept_and_nonsense_is_not(api: Api) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    kept = (await api.post(body(), traceparent=f"00-{trace}-b7ad6b7169203331-01"))[2]
    assert (await api.stored(kept["event_id"]))["trace_id"] == UUID(trace)
    for nonsense in ("00-zz-1-01", f"00-{'0' * 32}-b7ad6b7169203331-01"):
        dropped = (await api.post(body(), traceparent=nonsense))[2]
        assert (await api.stored(dropped["event_id"]))["trace_id"] is None


ODD = st.sampled_from(
    [
        '{"b":1,"a":2}',
        '{ "a" :\t1.0E+5 ,\n "a": 1e-7 }',
        '"\\u0000 \\u00e9 \\ud83d\\ude00 é 😀"',
        "-0.0",
        "123456789012345678901234567890",
        "[ ]",
        " null ",
        "true",
        '{"z": {"y": [1,2 , 3]}}',
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=ODD | JSON.map(lambda value: json.dumps(value, ensure_ascii=False, indent=1)))
async def test_the_payload_is_stored_byte_for_byte(api: Api, payload: str) -> None:
    raw = payload.encode("utf-8", "surrogatepass")
    try:
        raw.decode()
    except UnicodeDecodeError:
        return
    status, _, answer = await api.post(b'{"type":"a","payload":' + raw + b"}")
    assert status == 202, answer
    assert (await api.stored(answer["event_id"]))["payload"] == raw.strip(b" ")
