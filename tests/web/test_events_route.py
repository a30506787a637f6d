"""POST /v1/events and /v1/events/batch on the real ingest and store: limits, faults, and bytes kept as posted."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uuid_utils.compat import uuid7

from hookpost.ingest import Ingest, IngestLimits, Overloaded
from hookpost.intake import Submission
from hookpost.policy.keys import hash_secret, make_key, parse_key
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres.store import PostgresStore
from hookpost.web import events
from hookpost.web.auth import Authenticator
from hookpost.web.events import LARGE_BATCH_BYTES, EventLimits, EventRoutes
from tests.patience import PATIENCE_S

LIMITS = EventLimits(body_max_bytes=200_000, batch_max_events=1000, receiving_max_bytes=1_000_000)
JSON = (b"content-type", b"application/json")
Header = tuple[bytes, bytes]


@dataclass
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def fields(self) -> list[str]:
        return [error["field"] for error in self.json["errors"]]


@dataclass
class Posting:
    """The route, a tenant's key and what stands behind."""

    routes: EventRoutes
    ingest: Ingest
    store: PostgresStore
    tenant: UUID
    key: str
    db: Any
    # Requests in one piece try the short cut first, as the server does, and count here when they took it.
    in_place: bool = False
    taken: int = 0

    async def post(
        self,
        body: bytes | Iterable[bytes],
        *headers: Header,
        path: str = "/v1/events",
        method: str = "POST",
        key: str | None = "",
        disconnect: bool = False,
    ) -> Answer:
        """One request; several chunks have no content-length."""
        chunks = [body] if isinstance(body, bytes) else list(body)
        sent = [JSON] if not any(name == b"content-type" for name, _ in headers) else []
        if isinstance(body, bytes) and not any(name == b"content-length" for name, _ in headers):
            sent.append((b"content-length", str(len(body)).encode()))
        if key is not None:
            sent.append((b"authorization", f"Bearer {key or self.key}".encode()))
        if self.in_place and method == "POST" and isinstance(body, bytes) and not disconnect:
            replied: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            if self.routes.in_place[path.encode()](
                dict([*sent, *headers]),
                body,
                lambda *parts: replied.set_result(Answer(parts[0], dict(parts[1]), parts[2])),
            ):
                self.taken += 1
                return await replied
        messages: list[Any] = [
            {"type": "http.request", "body": chunk, "more_body": disconnect or n + 1 < len(chunks)}
            for n, chunk in enumerate(chunks)
        ]
        if disconnect:
            messages.append({"type": "http.disconnect"})
        answered: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            answered.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": [*sent, *headers]}
        await self.routes(scope, receive, send)
        start, *parts = answered
        answer = Answer(start["status"], dict(start["headers"]), b"".join(part["body"] for part in parts))
        assert answer.headers[b"content-length"] == str(len(answer.body)).encode()
        return answer

    async def batch(self, body: bytes, *headers: Header) -> Answer:
        return await self.post(body, *headers, path="/v1/events/batch")

    async def stored(self, event_id: str) -> dict[str, Any]:
        row = await self.db.fetchrow("select * from events where event_id = $1", UUID(event_id.removeprefix("evt_")))
        return dict(row)

    async def count(self) -> int:
        return int(await self.db.fetchval("select count(*) from events"))


@pytest.fixture(params=["asgi", "in place"])
async def posting(store: PostgresStore, database: str, request: pytest.FixtureRequest) -> AsyncIterator[Posting]:
    tenant = uuid7()
    await store.create_tenant(tenant, {"name": "acme"})
    ingest = Ingest(
        store, ObjectStore("memory:///"), now=time.time, limits=IngestLimits(timeout_s=PATIENCE_S, inline_max=2**24)
    )
    routes = EventRoutes(ingest, Authenticator(store), limits=LIMITS)
    db = await asyncpg.connect(database)
    posting = Posting(routes, ingest, store, tenant, await new_key(store, tenant), db)
    # A refused event: the key and the tenant's routes are known after it.
    assert (await posting.post(body_of(target_endpoints=[f"ep_{uuid7().hex}"]))).status == 422
    posting.in_place = request.param == "in place"
    yield posting
    await db.close()
    await ingest.close()


async def new_key(
    store: PostgresStore, tenant: UUID, *, scopes: Iterable[str] = (), expires_at: float | None = None
) -> str:
    text = make_key(uuid7().bytes[-8:], uuid7().bytes * 2)
    parsed = parse_key(text)
    assert parsed is not None
    await store.create_key({
        "key_id": parsed.key_id, "tenant_id": tenant, "name": "k", "key_hash": hash_secret(parsed.secret),
        "scopes": list(scopes), "expires_at": expires_at,
    }, keys_max=99)  # fmt: skip
    return text


def body_of(payload: str = "{}", **fields: Any) -> bytes:
    """A body with the payload's text as it stands."""
    rest = json.dumps({"type": "a.b", **fields})[1:-1]
    return f'{{"payload":{payload},{rest}}}'.encode()


# ---- in place -------------------------------------------------------------------------------------------------------


async def test_what_must_be_looked_up_first_is_not_answered_in_place(posting: Posting) -> None:
    posting.in_place = True
    # The key is looked up anew each second; in this test the second does not pass.
    posting.routes = EventRoutes(posting.ingest, Authenticator(posting.store, monotonic=lambda: 0.0), limits=LIMITS)
    assert (await posting.post(body_of())).status == 202
    stranger = await new_key(posting.store, posting.tenant)
    assert (await posting.post(body_of(), key=stranger)).status == 202
    assert (await posting.post(body_of(target_endpoints=[f"ep_{uuid7().hex}"]))).status == 422
    assert (await posting.post(b"x" * (LIMITS.body_max_bytes + 1))).status == 413
    assert (await posting.batch(b'{"events":[1]}')).json["results"][0]["error"]["status"] == 422
    assert posting.taken == 0
    assert (await posting.post(body_of())).status == 202
    assert (await posting.post(b"no JSON")).status == 400
    assert (await posting.batch(b'{"events":[{"type":"a.b","payload":1},2]}')).status == 202
    assert (await posting.post(body_of(target_endpoints=[]))).status == 202
    assert posting.taken == 4


async def test_a_small_request_waits_for_one_large_one_and_not_for_all(
    posting: Posting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each keeps the loop while it is taken apart."""
    large = b'{"events":[%b]}' % b",".join([body_of(json.dumps("x" * 200))] * (LARGE_BATCH_BYTES // 200))
    assert (await posting.batch(b'{"events":[%b]}' % body_of())).status == 202, "key and routes are known"
    taken_apart: list[int] = []
    read = EventRoutes._checked

    def checked(routes: EventRoutes, event: Any, *rest: Any) -> Submission:
        taken_apart.append(len(event.payload))
        return read(routes, event, *rest)

    monkeypatch.setattr(EventRoutes, "_checked", checked)
    answers = await asyncio.gather(*(posting.batch(large) for _ in range(4)), posting.post(body_of()))
    assert {answer.status for answer in answers} == {202}
    sizes = [size for size, _ in itertools.groupby(taken_apart)]
    assert sizes == [202, 2, 202], "behind the first"
    assert taken_apart.count(202) == 4 * (LARGE_BATCH_BYTES // 200)


async def test_known_targets_and_a_limit_keep_the_short_cut(posting: Posting) -> None:
    values = {"tenant_id": posting.tenant, "url": "https://example.com/", "events": ["other"], "endpoint_id": uuid7()}
    await posting.store.create_endpoint(values, b"k" * 24, endpoints_max=9)
    aimed = body_of(target_endpoints=[f"ep_{values['endpoint_id'].hex}"])
    await limited(posting, 1000.0)
    assert (await posting.post(aimed)).json["delivery_count"] == 1, "the tenant's routes are known after it"
    posting.in_place, posting.taken = True, 0
    answer = await posting.post(aimed)
    assert (answer.json["delivery_count"], posting.taken) == (1, 1)
    assert LIMIT.fullmatch(answer.headers[b"ratelimit"]) is not None


# ---- accepted -------------------------------------------------------------------------------------------------------


async def test_an_event_is_accepted_and_stored(posting: Posting) -> None:
    answer = await posting.post(body_of('{"n":1}'))
    assert answer.status == 202
    assert answer.headers[b"content-type"] == b"application/json"
    assert answer.json == {"event_id": answer.json["event_id"], "delivery_count": 0, "duplicate": False}
    assert re.fullmatch("evt_[0-9a-f]{32}", answer.json["event_id"])
    row = await posting.stored(answer.json["event_id"])
    assert (row["payload"], row["type"], row["tenant_id"], row["trace_id"]) == (b'{"n":1}', "a.b", posting.tenant, None)


async def test_a_body_in_chunks_is_put_together(posting: Posting) -> None:
    body = body_of('"' + "ü" * 1000 + '"')
    answer = await posting.post([body[n : n + 7] for n in range(0, len(body), 7)])
    assert answer.status == 202
    assert (await posting.stored(answer.json["event_id"]))["payload"] == ('"' + "ü" * 1000 + '"').encode()


async def test_targets_override_the_filters(posting: Posting) -> None:
    values = {"tenant_id": posting.tenant, "url": "https://example.com/", "events": ["other"]}
    ids = [uuid7() for _ in range(3)]
    for endpoint_id in ids:
        await posting.store.create_endpoint({"endpoint_id": endpoint_id, **values}, b"k" * 24, endpoints_max=9)
    shown = [f"ep_{endpoint_id.hex}" for endpoint_id in ids]
    answer = await posting.post(body_of(target_endpoints=[shown[2], shown[0], shown[2]]))
    assert answer.json["delivery_count"] == 2
    assert set((await posting.stored(answer.json["event_id"]))["owed"]) == {ids[0], ids[2]}
    assert (await posting.post(body_of(target_endpoints=[]))).json["delivery_count"] == 0
    unknown = f"ep_{uuid7().hex}"
    answer = await posting.post(body_of(target_endpoints=[shown[1], unknown]))
    assert (answer.status, answer.fields) == (422, ["target_endpoints"])
    assert unknown in answer.json["detail"]


TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (b"00-" + TRACE + b"-00f067aa0ba902b7-01", True),
        (b"cc-" + TRACE + b"-00f067aa0ba902b7-01-what-comes", True),
        (b"ff-" + TRACE + b"-00f067aa0ba902b7-01", False),
        (b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", False),
        (b"00-" + TRACE + b"-" + b"0" * 16 + b"-01", False),
        (b"00-" + TRACE.upper() + b"-00f067aa0ba902b7-01", False),
        (b"nonsense \xff", False),
    ],
)
async def test_the_trace_of_the_producer_is_kept_if_it_is_one(posting: Posting, header: bytes, kept: bool) -> None:
    answer = await posting.post(body_of(), (b"traceparent", header))
    row = await posting.stored(answer.json["event_id"])
    assert row["trace_id"] == (UUID(TRACE.decode()) if kept else None)


# ---- the payload's bytes --------------------------------------------------------------------------------------------

SPACES = st.text(" \t\n\r", max_size=3)
CHARACTERS = st.characters(min_codepoint=0x20, exclude_characters='"\\', exclude_categories=["Cs"])
ESCAPES = st.one_of(
    st.sampled_from(
        ['\\"', "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t", "\\u0000", "\\u00E9", "\\uFFFF", "\\\\ud800"]
    ),
    st.integers(0xD800, 0xDFFF).map("\\u{:04x}".format),  # unpaired surrogates, as JavaScript writes a cut emoji
    st.integers(0, 0xFFFF).map("\\u{:04X}".format),
    st.just("\\ud83d\\uDE00"),
)
STRINGS = st.lists(st.one_of(CHARACTERS, ESCAPES), max_size=8).map(lambda parts: f'"{"".join(parts)}"')
NUMBERS = st.one_of(
    st.sampled_from(["1.0e+5", "-0", "-0.0", "1E400", "0e-0", "1e999999", "123456789012345678901234567890.10"]),
    st.from_regex(r"\A-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?\Z"),
)
SCALARS = st.one_of(NUMBERS, STRINGS, st.sampled_from(["true", "false", "null"]))


@st.composite
def spaced(draw: Any, inner: Any, ends: str) -> str:
    parts = draw(st.lists(inner, max_size=4))
    return (
        ends[0] + ",".join(draw(SPACES) + part + draw(SPACES) for part in parts) + draw(SPACES) * (not parts) + ends[1]
    )


@st.composite
def members(draw: Any, inner: Any) -> str:
    keys = st.one_of(STRINGS, st.sampled_from(['"a"', '"a"', '"payload"', '"type"']))  # equal ones too
    return draw(spaced(st.builds("{}{}:{}{}".format, keys, SPACES, SPACES, inner), "{}"))


PAYLOADS = st.recursive(SCALARS, lambda inner: st.one_of(spaced(inner, "[]"), members(inner)), max_leaves=12)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.tuples(PAYLOADS, SPACES, SPACES), min_size=1, max_size=4))
def test_a_payload_is_cut_out_byte_for_byte(payloads: list[tuple[str, str, str]]) -> None:
    """The form alone, thousands of times: what goes into the submission is what stood in the body."""
    routes = EventRoutes(cast("Ingest", None), cast("Authenticator", None), limits=LIMITS)
    for payload, before, after in payloads:
        body = f'{before}{{{after}"type":"a",{before}"payload"{after}:{before}{payload}{after}}}{before}'.encode()
        assert routes._submission(body, None).payload == payload.encode()
    items = [f'{{"payload":{before}{payload}{after},"type":"a"}}' for payload, before, after in payloads]
    batch, disguise = events._decode(events._decode_batch, f'{{"events":[{",".join(items)}]}}'.encode())
    shown = [bytes(item) if disguise is None else disguise.show(bytes(item)) for item in batch.events]
    assert [routes._submission(item, None).payload for item in shown] == [
        payload.encode() for payload, _, _ in payloads
    ]


PRECIOUS = [
    '{"b":1,"a":2,"b":3}',
    '{ "n" : 1.0e+5 , "z":[ 1 ,2 ]\t}',
    '"\\ud83d"',
    '{"\\uDC00":"\\ud800\\ud800","\\u0000":"\\/"}',
    '"\\ud83d\\ude00\\uD83D"',
    '"\\ue000\\uf800\\uA800\\uD800"',
    "123456789012345678901234567890.000",
    '"\u2028é\U0001f600"',
    "[" * 250 + "]" * 250,
    '"' + "x" * 150_000 + '"',
]


async def test_payloads_are_stored_byte_for_byte(posting: Posting) -> None:
    answers = [await posting.post(body_of(payload)) for payload in PRECIOUS]
    assert [answer.status for answer in answers] == [202] * len(PRECIOUS)
    stored = [(await posting.stored(answer.json["event_id"]))["payload"].decode() for answer in answers]
    assert stored == PRECIOUS
    many = ",".join(body_of(payload).decode() for payload in PRECIOUS[:9])
    results = (await posting.batch(f'{{"events": [ {many} ]}}'.encode())).json["results"]
    stored = [(await posting.stored(result["event_id"]))["payload"].decode() for result in results]
    assert stored == PRECIOUS[:9]


async def test_a_key_keeps_its_meaning_beside_an_unpaired_surrogate(posting: Posting) -> None:
    plain = await posting.post(body_of('"\\ud83d"', idempotency_key="😀"))  # written as a pair of escapes
    again = await posting.post('{"type":"a.b","payload":"\\ud83d","idempotency_key":"😀"}'.encode())
    assert (plain.status, again.status, again.json["duplicate"]) == (202, 202, True)
    assert await posting.db.fetchval("select key from idempotency_keys") == "😀"


# ---- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nul", body_of() + b" {}",
        body_of("01"), body_of("1."), body_of("NaN"), body_of("[1,]"), body_of('"\\x"'),
        body_of('"\n"'), body_of("'a'"), body_of('"\\ud8"'), body_of('"\\ud83d'), b"\xef\xbb\xbf" + body_of(),
        body_of('"').replace(b'"', b'"\xff'), body_of().replace(b"a.b", b"a\xed\xa0\x80b"),
    ],
)  # fmt: skip
async def test_what_is_not_json_in_utf8_is_400(posting: Posting, body: bytes) -> None:
    answer = await posting.post(body)
    assert (answer.status, answer.json["status"]) == (400, 400)
    assert answer.headers[b"content-type"] == b"application/problem+json"
    assert "not JSON" in answer.json["detail"] or "not UTF-8" in answer.json["detail"]
    assert (await posting.batch(b'{"events":[' + body + b"]}")).status == (422 if body == b"" else 400)
    assert await posting.count() == 0


INVALID = [
    (b"[]", ""),
    (b"1", ""),
    (b"{}", "type"),
    (b'{"type":"a"}', "payload"),
    (b'{"payload":1}', "type"),
    (body_of(type=1), "type"),
    (body_of(type=None), "type"),
    (body_of(type=""), "type"),
    (body_of(type="a b"), "type"),
    (body_of(type="ä"), "type"),
    (body_of(type="a\n"), "type"),
    (body_of(type="a" * 129), "type"),
    (body_of(type="hookpost.test"), "type"),
    (body_of(idempotency_key=""), "idempotency_key"),
    (body_of(idempotency_key=5), "idempotency_key"),
    (body_of(idempotency_key="k" * 256), "idempotency_key"),
    (body_of(idempotency_key="a\0"), "idempotency_key"),
    (body_of(idempotency_key="\ud800"), "idempotency_key"),
    (body_of(target_endpoints="ep_1"), "target_endpoints"),
    (body_of(target_endpoints=["ep_1"]), "target_endpoints"),
    (body_of(target_endpoints=[f"evt_{'0' * 32}"]), "target_endpoints"),
    (body_of(target_endpoints=[1]), "target_endpoints[0]"),
    (body_of(target_endpoints={}), "target_endpoints"),
    (body_of(tpye="a"), "tpye"),
    (body_of(event_id="evt_1"), "event_id"),
]


@pytest.mark.parametrize(("body", "field"), INVALID)
async def test_a_bad_field_is_422_and_named(posting: Posting, body: bytes, field: str) -> None:
    answer = await posting.post(body)
    assert (answer.status, answer.fields) == (422, [field]), answer.body
    assert answer.json["errors"][0]["message"]
    [result] = (await posting.batch(b'{"events":[' + body + b"]}")).json["results"]
    assert [error["field"] for error in result["error"]["errors"]] == [field]
    assert await posting.count() == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (body_of(type=1), "type: must be a string"),
        (body_of(target_endpoints="ep_1"), "target_endpoints: must be a list or null"),
        (body_of(tpye="a"), "tpye: is not a known field"),
        (b'{"type": "a"}', "payload: is required"),
        (b"[]", "the body: must be an object"),
    ],
)
async def test_a_bad_field_is_told_in_the_words_of_the_other_routes(
    posting: Posting, body: bytes, message: str
) -> None:
    assert (await posting.post(body)).json["detail"] == message


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ("[" * 257 + "]" * 257, "256 deep"),
        ('{"a":' * 300 + "1" + "}" * 300, "256 deep"),
        ("1" * 1025, "1024 characters"),
        ('{"a":[-1.' + "0" * 3000 + "]}", "1024 characters"),
    ],
    ids=["arrays", "objects", "long-number", "long-fraction"],
)
async def test_p2_json_that_no_receiver_could_read_is_422_and_fails_alone(
    posting: Posting, payload: str, said: str
) -> None:
    answer = await posting.post(body_of(payload))
    assert answer.status == 422
    assert said.encode() in answer.body
    batch = b'{"events":[' + body_of(payload) + b"," + body_of() + b"]}"
    results = (await posting.batch(batch)).json["results"]
    assert ["error" in result for result in results] == [True, False]


async def test_p2_what_nests_beyond_all_measure_is_422_too(posting: Posting) -> None:
    for body in (body_of("[" * 100_000), body_of("[" * 90_000 + "]" * 90_000)):
        assert (await posting.post(body)).status == 422
        assert (await posting.batch(b'{"events":[' + body + b"]}")).status == 422
    assert (await posting.post(body_of("[" * 256 + "]" * 256))).status == 202


async def test_the_longest_of_everything_is_accepted(posting: Posting) -> None:
    answer = await posting.post(body_of(type="a" * 128, idempotency_key="ü" * 255))
    assert answer.status == 202, answer.body


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"events":[]}', "events"),
        (b'{"events":1}', "events"),
        (b"{}", "events"),
        (b'{"events":[],"x":1}', "x"),
        (b'{"events":[' + b",".join([b"1"] * 1001) + b"]}", "events"),
        (b"[]", ""),
    ],
)
async def test_a_bad_batch_is_422(posting: Posting, body: bytes, field: str) -> None:
    answer = await posting.batch(body)
    assert (answer.status, answer.fields) == (422, [field]), answer.body


async def test_each_of_a_batch_stands_for_itself(posting: Posting) -> None:
    items = [
        body_of("1", idempotency_key="k"), body_of(type="b c"), body_of("1", idempotency_key="k"), b"7",
        body_of("2", idempotency_key="k"), body_of(target_endpoints=[f"ep_{uuid7().hex}"]), body_of("3"),
    ]  # fmt: skip
    answer = await posting.batch(b'{"events":[' + b",".join(items) + b"]}")
    assert answer.status == 202
    results = answer.json["results"]
    assert [result.get("error", {}).get("status") for result in results] == [None, 422, None, 422, 422, 422, None]
    assert [result.get("duplicate") for result in results] == [False, None, True, None, None, None, False]
    assert results[2]["event_id"] == results[0]["event_id"]
    assert results[4]["error"]["errors"][0]["field"] == "idempotency_key"
    assert await posting.count() == 2


async def test_a_batch_of_a_thousand_is_accepted(posting: Posting) -> None:
    answer = await posting.batch(b'{"events":[' + b",".join([body_of()] * 1000) + b"]}")
    assert answer.status == 202
    assert len({result["event_id"] for result in answer.json["results"]}) == 1000
    assert await posting.count() == 1000


async def test_a_batch_of_refused_ones_alone_is_an_answer_too(posting: Posting) -> None:
    answer = await posting.batch(b'{"events":[1,2]}')
    assert answer.status == 202
    assert [result["error"]["status"] for result in answer.json["results"]] == [422, 422]


@pytest.mark.parametrize("length", [b"200001", b"9" * 18, b"9" * 5000, b"-1", b"1e3", "²".encode()])
async def test_a_declared_body_over_the_limit_is_413_before_it_is_read(posting: Posting, length: bytes) -> None:
    answer = await posting.post([], (b"content-length", length))
    assert answer.status == 413
    assert answer.headers[b"connection"] == b"close"
    assert "200000 bytes" in answer.json["detail"]


async def test_a_body_that_grows_over_the_limit_is_413(posting: Posting) -> None:
    assert (await posting.post([b"x" * 100_000, b"x" * 100_000, b"x", b"never read"])).status == 413
    assert (await posting.post([b"x" * 200_001])).status == 413
    exact = body_of('"' + "x" * (200_000 - len(body_of('""'))) + '"')
    assert len(exact) == 200_000
    assert (await posting.post(exact)).status == 202
    assert (await posting.post([exact[:5], exact[5:]])).status == 202


async def test_a_body_that_is_cut_off_is_not_taken_for_a_whole_one(posting: Posting) -> None:
    assert (await posting.post([body_of()], disconnect=True)).status == 400
    assert await posting.count() == 0


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ((b"content-type", b"text/plain"), 415),
        ((b"content-type", b"application/x-www-form-urlencoded"), 415),
        ((b"content-type", b"application/json; charset=latin-1"), 415),
        ((b"content-type", b"application/json;charset=UTF-8"), 202),
        ((b"content-type", b'Application/JSON ; charset="utf-8"'), 202),
        ((b"content-encoding", b"gzip"), 415),
        ((b"content-encoding", b"identity"), 202),
    ],
)
async def test_only_plain_json_is_supported(posting: Posting, header: Header, status: int) -> None:
    assert (await posting.post(body_of(), header)).status == status


async def test_other_methods_are_405_and_told_what_is_allowed(posting: Posting) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD"):
        answer = await posting.post(b"", method=method)
        assert (answer.status, answer.headers[b"allow"]) == (405, b"POST")


async def test_who_may_post(posting: Posting) -> None:
    reader = await new_key(posting.store, posting.tenant, scopes=["read"])
    writer = await new_key(posting.store, posting.tenant, scopes=["events:write"])
    expired = await new_key(posting.store, posting.tenant, expires_at=1.0)
    admin = await new_key(posting.store, None)  # type: ignore[arg-type] # an admin key belongs to no tenant
    for key in (None, "nonsense", expired, writer[:-1] + ("0" if writer[-1] != "0" else "1")):
        assert (await posting.post(body_of(), key=key)).status == 401
    assert (await posting.post(body_of(), key=reader)).status == 403
    assert (await posting.post(body_of(), key=writer)).status == 202
    assert (await posting.post(body_of(), key=admin)).status == 400
    acting = (b"x-tenant-id", f"ten_{posting.tenant.hex}".encode())
    assert (await posting.post(body_of(), acting, key=admin)).status == 202
    assert (await posting.post(body_of(), (b"x-tenant-id", f"ten_{uuid7().hex}".encode()), key=admin)).status == 404
    assert await posting.count() == 2


# ---- idempotency ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "key"),
    [(b"abc", "abc"), (b'"abc"', "abc"), (b'"a\\"b\\\\c"', 'a"b\\c'), (b'a"b', 'a"b'), (b"k" * 255, "k" * 255)],
)
async def test_the_header_does_the_same_as_the_field(posting: Posting, header: bytes, key: str) -> None:
    by_header = await posting.post(body_of(), (b"idempotency-key", header))
    by_field = await posting.post(body_of(idempotency_key=key))
    by_both = await posting.post(body_of(idempotency_key=key), (b"idempotency-key", header))
    assert [answer.json["duplicate"] for answer in (by_header, by_field, by_both)] == [False, True, True]
    assert len({answer.json["event_id"] for answer in (by_header, by_field, by_both)}) == 1


@pytest.mark.parametrize("header", [b"", b'""', b"k" * 256, b"\xff", b"a\0b"])
async def test_a_header_that_is_no_key_is_422(posting: Posting, header: bytes) -> None:
    answer = await posting.post(body_of(), (b"idempotency-key", header))
    assert answer.status == 422
    assert answer.fields[0] in ("Idempotency-Key", "idempotency_key")


async def test_a_header_that_contradicts_the_field_is_422(posting: Posting) -> None:
    answer = await posting.post(body_of(idempotency_key="a"), (b"idempotency-key", b"b"))
    assert (answer.status, answer.fields) == (422, ["idempotency_key"])
    assert await posting.count() == 0


async def test_a_key_used_for_something_else_is_422(posting: Posting) -> None:
    first = await posting.post(body_of("1.0", idempotency_key="k"))
    for body in (body_of("1.00", idempotency_key="k"), body_of("1.0", type="c", idempotency_key="k"),
                 body_of("1.0", target_endpoints=[], idempotency_key="k")):  # fmt: skip
        answer = await posting.post(body)
        assert (answer.status, answer.fields) == (422, ["idempotency_key"])
    assert (await posting.post(body_of("1.0", idempotency_key="k"))).json == {**first.json, "duplicate": True}


# ---- overload -------------------------------------------------------------------------------------------------------


async def test_a_store_that_is_away_is_503_and_says_when_to_come_back(
    posting: Posting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events.telemetry, "_seldom", {})
    await posting.post(body_of())
    await posting.store.close()
    answer = await posting.post(body_of())
    assert (answer.status, answer.headers[b"retry-after"]) == (503, b"1")
    assert "nothing was acknowledged" in answer.json["detail"]
    (told,) = [record for record in caplog.records if record.hookpost_event == "request_unavailable"]
    assert "POST /v1/events answered with 503: " in told.message
    assert "the store is closed" in told.message


async def test_a_slow_look_up_of_the_key_leaves_less_time_for_the_append(
    posting: Posting, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([100.0, 100.75])
    monkeypatch.setattr(events, "monotonic", lambda: next(times))
    spent: list[float] = []

    class Noting(Ingest):
        async def submit(self, *args: Any, spent_s: float = 0.0) -> Any:
            spent.append(spent_s)
            raise Overloaded("enough")

    ingest = Noting(posting.store, ObjectStore("memory:///"), now=time.time, limits=IngestLimits())
    authenticator = Authenticator(posting.store, monotonic=lambda: 0.0)
    posting.routes = EventRoutes(ingest, authenticator, limits=LIMITS)
    assert (await posting.post(body_of())).status == 503
    assert spent == [0.75]


async def test_a_full_queue_is_503(posting: Posting) -> None:
    full = Ingest(posting.store, ObjectStore("memory:///"), now=time.time, limits=IngestLimits(queue_bytes=1))
    posting.routes = EventRoutes(full, Authenticator(posting.store), limits=LIMITS)
    answer = await posting.post(body_of())
    assert (answer.status, answer.headers[b"retry-after"]) == (503, b"1")
    await full.close()


async def test_bodies_being_received_are_bounded_together(posting: Posting) -> None:
    limits = EventLimits(body_max_bytes=1000, receiving_max_bytes=1500)
    routes = posting.routes = EventRoutes(posting.ingest, Authenticator(posting.store), limits=limits)
    rest: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asked = asyncio.Event()

    async def receive() -> Any:
        asked.set()
        return await rest

    answers: list[Any] = []

    async def send(message: Any) -> None:
        answers.append(message)

    headers = [JSON, (b"authorization", f"Bearer {posting.key}".encode())]
    slow = asyncio.create_task(
        routes({"type": "http", "method": "POST", "path": "/v1/events", "headers": headers}, receive, send)
    )
    await asked.wait()
    assert routes._receiving == 1000
    answer = await posting.post([body_of()])
    assert (answer.status, answer.headers[b"retry-after"]) == (503, b"1")
    rest.set_result({"type": "http.request", "body": body_of(), "more_body": False})
    await slow
    assert answers[0]["status"] == 202
    assert (await posting.post([body_of()])).status == 202
    assert routes._receiving == 0


# ---- the tenant's limit ---------------------------------------------------------------------------------------------

LIMIT = re.compile(rb'"ingest";r=(\d+);t=(\d+)')


async def limited(posting: Posting, limit: float | None) -> None:
    await posting.store.update_tenant(posting.tenant, {"ingest_rate_limit": limit})
    await posting.ingest.look()


async def test_beyond_the_limit_it_is_429_and_the_headers_say_when_to_come_again(posting: Posting) -> None:
    await limited(posting, 0.01)
    answer = await posting.post(body_of())
    assert answer.status == 202
    assert answer.headers[b"ratelimit-policy"] == b'"ingest";q=1;w=100'
    match = LIMIT.fullmatch(answer.headers[b"ratelimit"])
    assert match is not None
    assert match[1] == b"0"
    assert 99 <= int(match[2]) <= 100
    for path, body in [("/v1/events", body_of()), ("/v1/events/batch", b'{"events":[' + body_of() + b"]}")]:
        answer = await posting.post(body, path=path)
        assert answer.status == 429
        assert answer.headers[b"content-type"] == b"application/problem+json"
        assert (answer.json["type"], answer.json["status"]) == ("/problems/rate-limited", 429)
        assert answer.headers[b"ratelimit-policy"] == b'"ingest";q=1;w=100'
        match = LIMIT.fullmatch(answer.headers[b"ratelimit"])
        assert match is not None
        assert match[1] == b"0"
        assert match[2] == answer.headers[b"retry-after"]
        assert 90 <= int(match[2]) <= 100
    assert await posting.count() == 1


@pytest.mark.parametrize(("limit", "policy"), [(100.0, b"q=100;w=1"), (2.5, b"q=2;w=1"), (0.3, b"q=1;w=4")])
async def test_the_policy_is_told_in_whole_numbers(posting: Posting, limit: float, policy: bytes) -> None:
    await limited(posting, limit)
    answer = await posting.post(body_of())
    assert answer.headers[b"ratelimit-policy"] == b'"ingest";' + policy


async def test_a_tenant_without_a_limit_is_told_of_none(posting: Posting) -> None:
    answer = await posting.post(body_of())
    assert not {name for name in answer.headers if name.startswith(b"ratelimit")}


async def test_a_batch_counts_its_events_and_is_stored_whole_or_not_at_all(posting: Posting) -> None:
    await limited(posting, 20.0)
    batch = b'{"events":[' + b",".join([body_of()] * 19 + [b"7"]) + b"]}"
    answer = await posting.batch(batch)
    assert answer.status == 202
    match = LIMIT.fullmatch(answer.headers[b"ratelimit"])
    assert match is not None
    assert int(match[1]) >= 1, "the one that is no event costs nothing"
    await limited(posting, 0.001)
    assert (await posting.batch(batch)).status == 202, "the bucket holds one, the rest is paid for"
    assert (await posting.post(body_of())).status == 429
    assert await posting.count() == 38


async def test_bad_requests_use_up_nothing(posting: Posting) -> None:
    await limited(posting, 0.001)
    unknown = body_of(target_endpoints=[f"ep_{uuid7().hex}"])
    for body in (b"{", body_of(type="a b"), unknown):
        assert (await posting.post(body)).status in (400, 422)
    assert (await posting.post(body_of(), key="nonsense")).status == 401
    assert (await posting.post(body_of())).status == 202
    assert (await posting.post(body_of())).status == 429
