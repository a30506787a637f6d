"""`POST /v1/events` and `/v1/events/batch`, straight on ASGI: the route that carries the load.

Validates the form (limits of api.md), hands the events to ingest and writes the answer. The payload is cut out of the
body as the bytes it was posted as; it is checked to be JSON and never decoded.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from time import monotonic
from typing import Any
from uuid import UUID

import msgspec

from hookpost import telemetry
from hookpost.ingest import Ingest, Overloaded, RateLimited, UnknownTenant
from hookpost.intake import Answer, Misfit, Refused, Submission, UnknownEndpoint
from hookpost.model import IdError, parse_id
from hookpost.policy.json_bounds import JsonBounds
from hookpost.policy.routing import type_fault
from hookpost.policy.trace import Trace, parse_traceparent
from hookpost.storage.contract import Appended, StoreUnavailable, Verdict
from hookpost.web.auth import Authenticator
from hookpost.web.limits import limit_headers
from hookpost.web.problems import Problem, rate_limited
from hookpost.web.turnstile import Turnstile
from hookpost.web.wire import Fields, Headers, InPlace, Reply

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Render = Callable[[list[Answer]], bytes]
Read = Callable[[Fields, bytes], tuple[list[Submission], Render]]

KEY_CHARS_MAX = 255
# Types that are known to be valid; a tenant has dozens, and an event's is looked at before anything is known of it.
TYPES_REMEMBERED = 1024
# Of a content-length; Python refuses to read thousands of them.
DIGITS_MAX = 18
# More targets than a tenant may have endpoints are a mistake.
TARGETS_MAX = 10_000
# Escapes of the upper half of each block of 4096 characters; the surrogates are that of the block d.
_ESCAPE = re.compile(rb"\\u([0-9a-fA-F])[89a-fA-F]")
_SURROGATE = re.compile(rb"(\\u)([dD])(?=[89a-fA-F])")
_NOT_IN_KEYS = re.compile("[\0\ud800-\udfff]")
_JSON = b"application/json"
_KINDS = {"str": "a string", "array": "a list", "object": "an object"}
# What takes half a millisecond to take apart takes turns: batches from this size on, and single events.
LARGE_BATCH_BYTES = 16 * 1024
LARGE_EVENT_BYTES = 128 * 1024
_ANSWER_HEADERS: Headers = [
    (b"content-type", _JSON),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]


class _Event(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    payload: msgspec.Raw
    idempotency_key: str | None = None
    target_endpoints: list[str] | None = None


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    events: list[msgspec.Raw]


class _Events(msgspec.Struct, forbid_unknown_fields=True):
    events: list[_Event]


_decode_events = msgspec.json.Decoder(_Events).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_batch = msgspec.json.Decoder(_Batch).decode


@dataclass(frozen=True, slots=True)
class EventLimits:
    """Bounds of one request, and of all bodies that are being received at once."""

    body_max_bytes: int = 1024 * 1024
    batch_max_events: int = 1000
    receiving_max_bytes: int = 64 * 1024 * 1024
    json: JsonBounds = field(default_factory=JsonBounds)


class EventRoutes:
    """The ASGI application of the two routes."""

    def __init__(self, ingest: Ingest, authenticator: Authenticator, *, limits: EventLimits) -> None:
        self._ingest = ingest
        self._authenticator = authenticator
        self._limits = limits
        self._receiving = 0
        self._large = Turnstile()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            status, headers, body = await self._serve(scope, receive)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the producer gets a problem
            status, headers, body = _refusal(error, scope["path"])
        await send({
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", b"%d" % len(body))],
        })  # fmt: skip
        await send({"type": "http.response.body", "body": body})

    async def _serve(self, scope: Scope, receive: Receive) -> tuple[int, Headers, bytes]:
        if scope["method"] != "POST":
            raise Problem(405, "Method not allowed", "Post events here.", headers={"Allow": "POST"})
        fields: Fields = dict(scope["headers"])
        began = monotonic()
        principal = await self._authenticator.principal(*_credentials(fields))
        tenant_id = principal.writer("events:write")
        # Looking a key up and appending share the time that a producer waits for a store that is slow.
        spent_s = monotonic() - began
        _check_content(fields)
        body = await self._body(scope["path"], fields, receive)
        read = self._read_batch if scope["path"].endswith("/batch") else self._read_single
        submissions, render = read(fields, body)
        answer = render(await self._ingest.submit(tenant_id, submissions, spent_s=spent_s))
        return 202, self._headers(tenant_id), answer

    def _headers(self, tenant_id: UUID) -> Headers:
        standing = self._ingest.standing(tenant_id)
        if standing is None:
            return _ANSWER_HEADERS
        told = [(name.lower().encode(), value.encode()) for name, value in limit_headers(standing).items()]
        return [*_ANSWER_HEADERS, *told]

    @property
    def in_place(self) -> dict[bytes, InPlace]:
        """How to answer requests for these targets without a task, see `wire.Protocol`."""
        return {
            b"/v1/events": partial(self._post, "/v1/events", self._read_single),
            b"/v1/events/batch": partial(self._post, "/v1/events/batch", self._read_batch),
        }

    def _post(self, path: str, read: Read, fields: Fields, body: bytes, reply: Reply) -> bool:
        """Answer a request that is here as a whole, now or when it is stored.

        False, and nothing was done, when something has to be looked up first: `__call__` can.
        """
        try:
            principal = self._authenticator.known(*_credentials(fields))
            if principal is None or len(body) > self._limits.body_max_bytes:
                return False
            tenant_id = principal.writer("events:write")
            _check_content(fields)
            if _is_large(path, body) and not self._large.enter():
                return False
            submissions, render = read(fields, body)
            tell = partial(self._told, path, tenant_id, render, reply)
            return bool(submissions) and self._ingest.post(tenant_id, submissions, tell)
        except Exception as error:  # noqa: BLE001 - see __call__
            reply(*_refusal(error, path))
            return True

    def _told(self, path: str, tenant_id: UUID, render: Render, reply: Reply, end: list[Answer] | Exception) -> None:
        """Ingest's last word on a request that was answered in place."""
        try:
            if isinstance(end, Exception):
                raise end
            status, headers, body = 202, self._headers(tenant_id), render(end)
        except Exception as error:  # noqa: BLE001 - see __call__
            status, headers, body = _refusal(error, path)
        reply(status, headers, body)

    async def _body(self, path: str, fields: Fields, receive: Receive) -> bytes:
        """All of it, when it may be taken apart."""
        limit = self._limits.body_max_bytes
        declared = fields.get(b"content-length")
        if declared is not None and (not declared.isdigit() or len(declared) > DIGITS_MAX or int(declared) > limit):
            raise _too_large(limit)
        reserved = limit if declared is None else int(declared)
        if self._receiving + reserved > self._limits.receiving_max_bytes:
            raise Overloaded("too many bodies are being received at once")
        self._receiving += reserved
        try:
            message = await receive()
            if not message.get("more_body") and message["type"] == "http.request":
                body: bytes = message.get("body", b"")
                if len(body) > limit:
                    raise _too_large(limit)
            else:
                body = await _chunks(message, receive, limit)
            if _is_large(path, body):
                await self._large.wait()
            return body
        finally:
            self._receiving -= reserved

    def _read_batch(self, fields: Fields, body: bytes) -> tuple[list[Submission], Render]:
        trace = _trace(fields)
        items: Sequence[bytes | _Event] = _all_at_once(body) or _one_by_one(body)
        limit = self._limits.batch_max_events
        if not 1 <= len(items) <= limit:
            raise _bad("events", f"a batch holds 1 to {limit} events, this one {len(items)}")
        submissions: list[Submission] = []
        results: list[bytes | None] = []
        for item in items:
            try:
                if isinstance(item, _Event):
                    submission = self._checked(item, None, trace)
                else:
                    submission = self._submission(item, trace)
                submissions.append(submission)
                results.append(None)
            except Problem as problem:
                results.append(_error(problem))
        return submissions, partial(_batch_answer, results)

    def _read_single(self, fields: Fields, body: bytes) -> tuple[list[Submission], Render]:
        submission = self._submission(body, _trace(fields))
        key = fields.get(b"idempotency-key")
        if key is not None:
            submission.key = _header_key(key, submission.key)
        return [submission], _single_answer

    def _submission(self, body: bytes, trace: Trace | None) -> Submission:
        event, disguise = _decode(_decode_event, body)
        return self._checked(event, disguise, trace)

    def _checked(self, event: _Event, disguise: _Disguise | None, trace: Trace | None) -> Submission:
        payload, key = bytes(event.payload), event.idempotency_key
        if disguise is not None:
            payload, key = disguise.show(payload), None if key is None else disguise.show_text(key)
        _check_type(event.type)
        if key is not None:
            _check_key(key)
        beyond = self._limits.json.fault(payload)
        if beyond is not None:
            raise _bad("payload", beyond)
        return Submission(
            type=event.type,
            payload=payload,
            key=key,
            targets=None if event.target_endpoints is None else _targets(event.target_endpoints),
            trace_id=None if trace is None else trace.trace_id,
            span=None if trace is None else trace.span,
        )


# ---- form ---------------------------------------------------------------------------------------------------------


def _credentials(fields: Fields) -> tuple[str | None, str | None]:
    authorization, acting_for = fields.get(b"authorization"), fields.get(b"x-tenant-id")
    return (
        None if authorization is None else authorization.decode("latin-1"),
        None if acting_for is None else acting_for.decode("latin-1"),
    )


def _is_large(path: str, body: bytes) -> bool:
    size = len(body)
    return size >= LARGE_BATCH_BYTES and (size >= LARGE_EVENT_BYTES or path.endswith("/batch"))


def _check_content(fields: Fields) -> None:
    content_type = fields.get(b"content-type", _JSON)
    if content_type != _JSON:
        media, _, parameters = content_type.lower().partition(b";")
        if media.strip() != _JSON or (b"charset" in parameters and b"utf-8" not in parameters):
            raise Problem(415, "Unsupported media type", "Send the event as application/json in UTF-8.")
    if fields.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Problem(415, "Unsupported media type", "Send the body without a content encoding.")


async def _chunks(message: MutableMapping[str, Any], receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise Problem(400, "Bad request", "The body was cut off.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()


def _decode(decoder: Callable[[bytes], Any], body: bytes) -> tuple[Any, _Disguise | None]:
    """The decoded body, and the disguise that its parts wear if it could not be decoded without."""
    try:
        body.decode()
        try:
            return decoder(body), None
        except msgspec.DecodeError:
            disguise = _Disguise.of(body)
            if disguise is None:
                raise
            return decoder(disguise.hide(body)), disguise
    except UnicodeDecodeError:
        raise Problem(400, "Bad request", "The body is not UTF-8.") from None
    except msgspec.ValidationError as error:
        field, message = _where(str(error))
        raise _bad(field, message) from None
    except RecursionError:
        raise Problem(422, "Invalid event", "The body nests far deeper than a payload may.") from None
    except msgspec.DecodeError as error:
        raise Problem(400, "Bad request", f"The body is not JSON: {error}.") from None


def _all_at_once(body: bytes) -> Sequence[_Event]:
    """The events of a batch, if each of them has the right form."""
    try:
        body.decode()
        events: list[_Event] = _decode_events(body).events
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return ()
    return events


def _one_by_one(body: bytes) -> Sequence[bytes]:
    """The events of a batch, to be decoded each on its own."""
    batch, disguise = _decode(_decode_batch, body)
    return [bytes(item) if disguise is None else disguise.show(bytes(item)) for item in batch.events]


class _Disguise:
    """Hides the escapes of surrogates from a decoder that refuses unpaired ones, and shows them again.

    The grammar of JSON allows them (RFC 8259 §8.2), and JavaScript writes one where a string was cut inside an emoji.
    The first digit of each, ``d``, is replaced by one with which no escape of the body begins: same length, and it can
    be undone in every part of the body.
    """

    def __init__(self, digit: bytes) -> None:
        self._hidden = re.compile(rb"(\\u)([%b%b])(?=[89a-fA-F])" % (digit, digit.upper()))
        self._digit = digit

    @classmethod
    def of(cls, body: bytes) -> _Disguise | None:
        """None when the body has no such escape, or uses all digits."""
        used = {digit.lower() for digit in _ESCAPE.findall(body)}
        free = [digit for digit in (b"e", b"f", b"a", b"b", b"c") if digit not in used]
        return cls(free[0]) if b"d" in used and free else None

    def hide(self, body: bytes) -> bytes:
        """The body with other characters in place of surrogates."""
        return _SURROGATE.sub(lambda match: match[1] + (self._digit if match[2] == b"d" else self._digit.upper()), body)

    def show(self, raw: bytes) -> bytes:
        """A part of the hidden body as it was posted."""
        return self._hidden.sub(lambda match: match[1] + (b"d" if match[2] == self._digit else b"D"), raw)

    def show_text(self, text: str) -> str:
        """A decoded string of the hidden body as it would have been decoded; pairs of surrogates are one character."""
        block = int(self._digit, 16) << 12
        shown = text.translate({block + offset: 0xD000 + offset for offset in range(0x800, 0x1000)})
        return shown.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _where(text: str) -> tuple[str, str]:
    """Which field, and what is wrong with it in the words of the other routes; msgspec says
    ``Expected `str`, got `int` - at `$.field` ``, or names the field in the message."""
    message, _, path = text.partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    if named := re.fullmatch(r"Object (missing required|contains unknown) field `(.+)`", message):
        inner = f"{field}.{named[2]}".lstrip(".")
        return inner, "is required" if named[1] == "missing required" else "is not a known field"
    if expected := re.match(r"Expected `([^`]+)`", message):
        return field, "must be " + " or ".join(_KINDS.get(kind, kind) for kind in expected[1].split(" | "))
    return field, message


@lru_cache(maxsize=TYPES_REMEMBERED)
def _check_type(event_type: str) -> None:
    fault = type_fault(event_type)
    if fault is not None:
        raise _bad("type", fault)


def _targets(texts: list[str]) -> tuple[UUID, ...]:
    if len(texts) > TARGETS_MAX:
        raise _bad("target_endpoints", f"at most {TARGETS_MAX}")
    try:
        return tuple(parse_id("ep", text) for text in texts)
    except IdError as error:
        raise _bad("target_endpoints", str(error)) from None


def _header_key(raw: bytes, field: str | None) -> str:
    """The header's value: a structured string (RFC 9651 §3.3.3) or, as most clients send it, bare."""
    try:
        key = raw.decode("ascii")
    except UnicodeDecodeError:
        raise _bad("Idempotency-Key", "visible ASCII characters only") from None
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = re.sub(r'\\(["\\])', r"\1", key[1:-1])
    _check_key(key)
    if field is not None and field != key:
        raise _bad("idempotency_key", "the header Idempotency-Key says something else")
    return key


def _check_key(key: str) -> None:
    if not 1 <= len(key) <= KEY_CHARS_MAX:
        raise _bad("idempotency_key", f"1 to {KEY_CHARS_MAX} characters")
    if _NOT_IN_KEYS.search(key):
        raise _bad("idempotency_key", "no NUL and no unpaired surrogates")


def _trace(fields: Fields) -> Trace | None:
    """The trace of the producer; what is not valid is as good as absent."""
    traceparent = fields.get(b"traceparent")
    return None if traceparent is None else parse_traceparent(traceparent)


# ---- answers ------------------------------------------------------------------------------------------------------


def _single_answer(answers: list[Answer]) -> bytes:
    answer = answers[0]
    if isinstance(answer, Appended) and answer.verdict is not Verdict.CONFLICT:
        return _accepted(answer)
    raise problem_of_event(answer)


def _batch_answer(results: list[bytes | None], answers: list[Answer]) -> bytes:
    """``results`` has None where ingest's answer belongs."""
    left = iter(answers)
    done = [_result(next(left)) if result is None else result for result in results]
    return b'{"results":[' + b",".join(done) + b"]}"


def _accepted(answer: Appended) -> bytes:
    return b'{"event_id":"evt_%b","delivery_count":%d,"duplicate":%b}' % (
        answer.event_id.hex.encode(),
        answer.delivery_count,
        b"true" if answer.verdict is Verdict.DUPLICATE else b"false",
    )


def _result(answer: Answer) -> bytes:
    if isinstance(answer, Appended) and answer.verdict is not Verdict.CONFLICT:
        return _accepted(answer)
    return _error(problem_of_event(answer))


def _error(problem: Problem) -> bytes:
    return b'{"error":' + problem.body() + b"}"


def problem_of_event(answer: Answer) -> Problem:
    """What is told of an event that was not taken."""
    if isinstance(answer, UnknownEndpoint):
        return _bad("target_endpoints", f"ep_{answer.endpoint_id.hex} is not an endpoint of this tenant")
    if isinstance(answer, Misfit):
        return _misfit(answer)
    if isinstance(answer, Refused):
        return Problem(422, "Unprocessable event", "The event holds a value that cannot be stored.")
    return _bad("idempotency_key", "this key was used for a different event: use a new key, or send the same event")


def _misfit(answer: Misfit) -> Problem:
    """Each fault with its place in the event as it was posted (RFC 6901)."""
    errors = [{"field": "/payload" + fault.pointer, "message": fault.message} for fault in answer.faults]
    detail = f"the payload does not satisfy the schema of its type: {errors[0]['field']}: {errors[0]['message']}"
    return Problem(422, "Invalid event", detail, errors=errors)


def _bad(field: str, message: str) -> Problem:
    detail = f"{field or 'the body'}: {message}"
    return Problem(422, "Invalid event", detail, errors=[{"field": field, "message": message}])


def _too_large(limit: int) -> Problem:
    return Problem(413, "Body too large", f"A request body may have {limit} bytes.", headers={"Connection": "close"})


def _refusal(error: Exception, path: str) -> tuple[int, Headers, bytes]:
    problem = _problem_of(error, path)
    return problem.status, problem.raw_headers(), problem.body()


def _problem_of(error: Exception, path: str) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, RateLimited):
        return rate_limited(error)
    if isinstance(error, Overloaded | StoreUnavailable):
        telemetry.log("request_unavailable", where="POST " + path, reason=error)
        return _unavailable(error)
    if isinstance(error, UnknownTenant):
        return Problem(404, "Not found", "The tenant does not exist.")
    telemetry.log_error("POST " + path, error)
    return Problem(500, "Internal error", "The event was not acknowledged; post it again.")


def _unavailable(error: Exception) -> Problem:
    telemetry.count("events_rejected")
    detail = str(error) if isinstance(error, Overloaded) else "the store is not available"
    return Problem(
        503, "Unavailable", f"{detail}; nothing was acknowledged, post it again later", headers={"Retry-After": "1"}
    )
