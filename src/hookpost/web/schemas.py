"""What the API takes and gives: the forms of requests with their limits, and of answers for the OpenAPI document.

Every text is free of NUL and of lone surrogates, which no store can hold; every number is finite; what is not known is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema

from hookpost.model import DeadReason
from hookpost.policy.alerts import MAIL_ADDRESS_CHARS_MAX, check_mail_address
from hookpost.policy.expiry import CertificateState
from hookpost.policy.headers import HEADERS_MAX
from hookpost.policy.routing import (
    EVENT_TYPE,
    FILTERS_MAX,
    HOMES_MAX,
    POOL_NAME,
    POOL_NAME_RULE,
    SHARDS_MAX,
    type_fault,
)
from hookpost.policy.tls import PEM_CHARS_MAX
from hookpost.storage.contract import HeaderValue
from hookpost.web.auth import SCOPES

DESCRIPTION_CHARS_MAX = 1000
NAME_CHARS_MAX = 200
UID_CHARS_MAX = 255
URL_CHARS_MAX = 4096  # as it is typed; the normal form has a limit of its own
SECRET_CHARS_MAX = 200
METADATA_KEYS_MAX = 50
METADATA_BYTES_MAX = 8 * 1024
ENDPOINT_IN_FLIGHT_MAX = 1000
TENANT_IN_FLIGHT_MAX = 100_000
# One delivery an hour; what is slower is no rate but a schedule. One worker's core sends some 10,000 a second.
RATE_LIMIT_MIN, RATE_LIMIT_MAX = 1 / 3600, 100_000.0
# One event an hour; one API process takes some 10,000 a second, and a hundred of them are a large installation.
INGEST_RATE_LIMIT_MIN, INGEST_RATE_LIMIT_MAX = 1 / 3600, 1_000_000.0
TOTAL_TIMEOUT_S_MAX = 30.0
TIMEOUT_S_MIN = 0.1
RETRY_BASE_S_MIN, RETRY_BASE_S_MAX = 0.1, 3600.0
RETRY_CAP_S_MAX = 86_400.0
ATTEMPTS_MAX = 1000
DEADLINE_S_MAX = 30 * 86_400.0
GRACE_S_MAX = 30 * 86_400.0
LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX = 50, 500

_FILTER = re.compile(r"\*|[A-Za-z0-9_.-]{1,128}|[A-Za-z0-9_.-]{1,126}\.\*", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_MICROSECOND_DIGITS = 6


# ---- values ---------------------------------------------------------------------------------------------------------


def check_text(text: str) -> str:
    """Text that can be stored."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must not contain NUL or unpaired surrogates")
    return text


def _check_printable(text: str) -> str:
    if not check_text(text).isprintable():
        raise ValueError("must consist of printable characters")
    return text


def _check_filter(text: str) -> str:
    if not _FILTER.fullmatch(text):
        raise ValueError(
            'must be "*", a type (A–Z a–z 0–9 _ . - and at most 128 of them), or a prefix such as "invoice.*"'
        )
    return text


def _check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    if len(msgspec.json.encode(metadata)) > METADATA_BYTES_MAX:
        raise ValueError(f"must not take more than {METADATA_BYTES_MAX} bytes as JSON")
    return metadata


def _header_value(given: Any) -> HeaderValue | None:
    """A header's value as a request gives it; whether it may be sent is for policy/headers to say."""
    match given:
        case None:
            return None
        case str():
            return HeaderValue(check_text(given))
        case {"value": str(value), **rest} if isinstance(rest.pop("secret", False), bool) and not rest:
            return HeaderValue(check_text(value), given.get("secret", False))
    raise ValueError('must be a text, {"value": "…", "secret": true}, or null')


def _check_exact_type(text: str) -> str:
    if not EVENT_TYPE.fullmatch(text):
        raise ValueError(f'must be one type exactly (A–Z a–z 0–9 _ . - and at most 128 of them), not "{text[:140]}"')
    return text


def _check_event_type(text: str) -> str:
    fault = type_fault(text)
    if fault is not None:
        raise ValueError(fault)
    return text


def _check_pool(text: str) -> str:
    if not POOL_NAME.fullmatch(text):
        raise ValueError(POOL_NAME_RULE)
    return text


def _check_scope(text: str) -> str:
    if text not in SCOPES:
        raise ValueError(f"must be one of {', '.join(sorted(SCOPES))}")
    return text


def parse_time(text: str) -> float:
    """RFC 3339 as Unix seconds; raises ValueError with what to change."""
    if not _TIME.fullmatch(text):
        raise ValueError("must be a time such as 2026-01-02T03:04:05.678Z (a + of an offset is %2B in a URL)")
    body, fraction, offset = re.fullmatch(r"(.{19})(\.\d+)?(.+)", text.upper()).groups()  # type: ignore[union-attr]
    try:
        whole = datetime.fromisoformat(body + offset.replace("Z", "+00:00"))
    except ValueError as error:
        raise ValueError("must be a time that exists") from error
    micros = int((fraction or ".0")[1:].ljust(_MICROSECOND_DIGITS, "0")[:_MICROSECOND_DIGITS])
    return (whole - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() + micros / 1e6


def _check_time(text: str) -> str:
    parse_time(text)
    return text


Text = Annotated[str, AfterValidator(check_text)]
Printable = Annotated[str, AfterValidator(_check_printable)]
Time = Annotated[str, AfterValidator(_check_time), WithJsonSchema({"type": "string", "format": "date-time"})]
Filter = Annotated[str, AfterValidator(_check_filter)]
TypeFilter = Annotated[str, AfterValidator(_check_exact_type), Field(description="event type, exactly")]
Scope = Annotated[str, AfterValidator(_check_scope), WithJsonSchema({"type": "string", "enum": sorted(SCOPES)})]
Name = Annotated[Printable, Field(min_length=1, max_length=NAME_CHARS_MAX)]
Url = Annotated[Text, Field(min_length=1, max_length=URL_CHARS_MAX, examples=["https://example.com/webhooks"])]
Metadata = Annotated[dict[Text, Text], Field(max_length=METADATA_KEYS_MAX), AfterValidator(_check_metadata)]
Filters = Annotated[list[Filter], Field(min_length=1, max_length=FILTERS_MAX)]
SecretText = Annotated[
    Text, Field(max_length=SECRET_CHARS_MAX, description="whsec_ + base64 of 24 to 64 bytes; generated when left out")
]
EndpointCap = Annotated[int, Field(ge=1, le=ENDPOINT_IN_FLIGHT_MAX)]
RateLimit = Annotated[
    float,
    Field(ge=RATE_LIMIT_MIN, le=RATE_LIMIT_MAX, description="deliveries a second; null: no limit"),
]
OnDead = Annotated[
    Literal["block", "skip"],
    Field(description="what a dead delivery means to those behind it when `ordered`: they wait for it, or go on"),
]
Ack = Annotated[
    Literal["signed", False],
    Field(description='"signed": a 2xx counts only with a valid `webhook-ack`; false or null: any 2xx counts'),
]
MailAddress = Annotated[
    Text,
    Field(max_length=MAIL_ADDRESS_CHARS_MAX, description="where alerts about the tenant's endpoints are mailed to"),
    AfterValidator(check_mail_address),
]
Pool = Annotated[str, AfterValidator(_check_pool)]
HomeCount = Annotated[
    int,
    Field(ge=1, le=HOMES_MAX, description="home shards: as many workers may share its traffic; null: as the load asks"),
]
TenantCap = Annotated[int, Field(ge=1, le=TENANT_IN_FLIGHT_MAX)]
IngestRateLimit = Annotated[
    float,
    Field(
        ge=INGEST_RATE_LIMIT_MIN,
        le=INGEST_RATE_LIMIT_MAX,
        description="events a second that the tenant may post, a batch counts its events; null: no limit",
    ),
]
TimeoutSeconds = Annotated[float, Field(ge=TIMEOUT_S_MIN, le=TOTAL_TIMEOUT_S_MAX)]
HeaderInput = Annotated[
    Any,
    AfterValidator(_header_value),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "description": "visible ASCII, spaces and tabs between"},
                {
                    "type": "object",
                    "properties": {"value": {"type": "string"}, "secret": {"type": "boolean", "default": False}},
                    "required": ["value"],
                    "additionalProperties": False,
                },
                {"type": "null"},
            ]
        }
    ),
]
Pem = Annotated[Text, Field(min_length=1, max_length=PEM_CHARS_MAX)]


# `schema` is a method of pydantic's models.
SCHEMA_FIELD = Field(
    alias="schema",
    description="JSON Schema (2020-12 unless `$schema` says otherwise) that the payloads of its events must satisfy;"
    " null: any will do. References go to # and #/… only",
    examples=[{"type": "object", "required": ["amount"], "properties": {"amount": {"type": "integer"}}}],
)


class _Form(BaseModel):
    """A request's body: nothing is converted, nothing unknown is let pass."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)

    def given(self) -> Mapping[str, Any]:
        """The fields that the request names, null among them: a PATCH leaves the others alone."""
        return {name: getattr(self, name) for name in self.model_fields_set}


# ---- requests -------------------------------------------------------------------------------------------------------


class RetryForm(_Form):
    """When a failed delivery is tried again. Null or absent: the installation's default."""

    base_s: Annotated[float, Field(ge=RETRY_BASE_S_MIN, le=RETRY_BASE_S_MAX)] | None = None
    cap_s: Annotated[float, Field(ge=RETRY_BASE_S_MIN, le=RETRY_CAP_S_MAX)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=ATTEMPTS_MAX)] | None = None
    deadline_s: Annotated[float, Field(ge=TIMEOUT_S_MIN, le=DEADLINE_S_MAX)] | None = None


class TimeoutsForm(_Form):
    """Tiers, each counted from the start of the attempt: connect < first byte <= total <= 30 s."""

    connect_s: TimeoutSeconds | None = None
    first_byte_s: TimeoutSeconds | None = None
    total_s: TimeoutSeconds | None = None


class TlsForm(_Form):
    """TLS of an endpoint's own, in PEM: absent leaves, null removes. Certificate and key come together."""

    ca_pem: Annotated[Pem | None, Field(description="certificates to trust for it, instead of the public ones")] = None
    client_cert_pem: Annotated[
        Pem | None, Field(description="certificate that we show to it (mTLS), its chain behind it")
    ] = None
    client_key_pem: Annotated[Pem | None, Field(description="its private key; sealed, and never shown again")] = None


class _EndpointForm(_Form):
    events: Filters | None = None
    enabled: bool | None = None
    description: Annotated[Text, Field(max_length=DESCRIPTION_CHARS_MAX)] | None = None
    uid: Annotated[Printable, Field(min_length=1, max_length=UID_CHARS_MAX)] | None = None
    metadata: Metadata | None = None
    retry: RetryForm | None = None
    timeouts: TimeoutsForm | None = None
    max_in_flight: EndpointCap | None = None
    rate_limit: RateLimit | None = None
    ordered: bool | None = None
    on_dead: OnDead | None = None
    spread: Annotated[bool | None, Field(description="false: all of it goes through the first home shard")] = None
    ack: Ack | None = None
    headers: Annotated[
        dict[str, HeaderInput] | None,
        Field(
            max_length=HEADERS_MAX,
            description="headers that every delivery carries, by name; null takes one away, what is not named stays. "
            "Those whose name tells of a secret, and those with `secret: true`, are write-only",
            examples=[{"x-team": "payments", "authorization": "Bearer …", "x-pin": {"value": "…", "secret": True}}],
        ),
    ] = None
    tls: TlsForm | None = None
    forward_trace: Annotated[
        bool | None, Field(description="true: it is told the producer's own trace (traceparent) instead of one of ours")
    ] = None


class EndpointCreate(_EndpointForm):
    """A new endpoint."""

    url: Url
    secret: SecretText | None = None


class EndpointPatch(_EndpointForm):
    """Changes of an endpoint: absent leaves, null resets to the default."""

    url: Url = ""


class SecretRotate(_Form):
    """A new secret; the old ones go on signing for the grace period."""

    secret: SecretText | None = None
    grace_period_s: Annotated[float, Field(ge=0, le=GRACE_S_MAX)] | None = None


class TenantCreate(_Form):
    """A new tenant."""

    name: Name
    pool: Pool | None = None
    spread: HomeCount | None = None
    max_in_flight: TenantCap | None = None
    ingest_rate_limit: IngestRateLimit | None = None
    alert_email: MailAddress | None = None


class TenantPatch(_Form):
    """Changes of a tenant: absent leaves, null resets to the default."""

    name: Name = ""
    pool: Pool | None = None
    spread: HomeCount | None = None
    max_in_flight: TenantCap | None = None
    ingest_rate_limit: IngestRateLimit | None = None
    alert_email: MailAddress | None = None


class PoolForm(_Form):
    """How many shards a pool is to have; it is made if there is none."""

    name: Pool
    shards: Annotated[int, Field(ge=1, le=SHARDS_MAX)]


class KeyCreate(_Form):
    """A new API key; no scopes means all."""

    name: Name
    scopes: Annotated[list[Scope], Field(max_length=len(SCOPES))] | None = None
    expires_at: Time | None = None


class ReplayForm(_Form):
    """Which endpoint to deliver to once more; all that the event was owed to when left out."""

    endpoint_id: Text | None = None


class ControlForm(_Form):
    """Which endpoint's delivery it is about; all that the event was owed to when left out."""

    endpoint_id: Text | None = None


class ReplayCreate(_Form):
    """Which deliveries to make once more. It is about what exists when the replay is created."""

    endpoint_id: Text | None = None
    type: TypeFilter | None = None
    status: (
        Annotated[
            Literal["dead", "delivered", "any"],
            Field(description="dead (the default), delivered, or any: whatever became of it"),
        ]
        | None
    ) = None
    reason: Annotated[DeadReason, Field(strict=False, description="of the dead ones only what died of this")] | None = (
        None
    )
    since: Annotated[Time | None, Field(description="events accepted at or after this time")] = None
    until: Annotated[Time | None, Field(description="events accepted before this time")] = None
    rate_limit: (
        Annotated[
            float, Field(ge=RATE_LIMIT_MIN, le=RATE_LIMIT_MAX, description="deliveries a second; null: the default")
        ]
        | None
    ) = None
    dry_run: Annotated[bool, Field(description="only count what matches")] = False


class EndpointTest(_Form):
    """What to try an endpoint with. Nothing: an event of the type hookpost.test."""

    type: Annotated[str, AfterValidator(_check_event_type), Field(examples=["invoice.paid"])] | None = None
    payload: Annotated[
        JsonValue, Field(description="left out: the first of the examples in the schema of the type")
    ] = None


class EventTypeCreate(_Form):
    """A type of events, described."""

    name: Annotated[str, AfterValidator(_check_event_type), Field(examples=["invoice.paid"])]
    description: Annotated[Text, Field(max_length=DESCRIPTION_CHARS_MAX)] | None = None
    json_schema: Annotated[dict[str, JsonValue] | None, SCHEMA_FIELD] = None


class EventTypePatch(_Form):
    """Changes of an event type: absent leaves, null takes away."""

    description: Annotated[Text, Field(max_length=DESCRIPTION_CHARS_MAX)] | None = None
    json_schema: Annotated[dict[str, JsonValue] | None, SCHEMA_FIELD] = None


class EventForm(BaseModel):
    """An event. The payload is delivered byte for byte as it was posted."""

    model_config = ConfigDict(extra="forbid")

    type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$", examples=["invoice.paid"])]
    payload: JsonValue
    idempotency_key: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    target_endpoints: list[str] | None = None


class EventBatchForm(BaseModel):
    """Up to 1000 events, each on its own."""

    model_config = ConfigDict(extra="forbid")

    events: Annotated[list[EventForm], Field(min_length=1, max_length=1000)]


# ---- answers --------------------------------------------------------------------------------------------------------


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProblemAnswer(_Answer):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None


class PoolAnswer(_Answer):
    """A pool: its shards, the tenants at home in them and the workers that serve them now."""

    name: str
    shards: int
    tenants: int
    workers: int


class PoolList(_Answer):
    """All pools."""

    data: list[PoolAnswer]


class EventTypeAnswer(_Answer):
    """A type of events; `schema`: what its payloads must satisfy, null: any will do."""

    name: str
    tenant_id: str
    description: str | None
    json_schema: Annotated[dict[str, JsonValue] | None, Field(alias="schema")]
    created_at: str
    updated_at: str


class EventTypeList(_Answer):
    """One page."""

    data: list[EventTypeAnswer]
    next_cursor: str | None


class TenantAnswer(_Answer):
    """A tenant. ``spread``: its home shards; ``moving``: shards that it has left hold something of it still."""

    tenant_id: str
    name: str
    pool: str
    spread: int
    spread_automatic: bool
    moving: bool
    ingest_rate_limit: float | None
    max_in_flight: int
    alert_email: str | None
    created_at: str
    updated_at: str


class KeyAnswer(_Answer):
    """An API key, without the key."""

    api_key_id: str
    tenant_id: str
    name: str
    scopes: list[str]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: Annotated[str | None, Field(description="to the minute")]


class KeyCreated(KeyAnswer):
    """An API key with the key, which is shown this once."""

    key: str


class RetryAnswer(_Answer):
    """The retry policy in force."""

    base_s: float
    cap_s: float
    max_attempts: int
    deadline_s: float


class TimeoutsAnswer(_Answer):
    """The timeouts in force."""

    connect_s: float
    first_byte_s: float
    total_s: float


class EndpointHealth(_Answer):
    """How an endpoint does. ``state``: of the breaker of its scheme, host and port; closed lets deliveries through."""

    state: Literal["closed", "open", "half_open"]
    since: str | None
    reopen_at: str | None
    consecutive_failures: int
    failing_since: str | None
    certificates: Annotated[
        CertificateState | None, Field(description="of the one of its `tls` that ends first; null: it has none")
    ]
    certificates_end_at: str | None


class CertificateAnswer(_Answer):
    """A certificate; ``sha256`` is the fingerprint of its DER form."""

    subject: str
    issuer: str
    not_before: str
    expires_at: str
    sha256: str


class TlsAnswer(_Answer):
    """TLS of an endpoint's own: whom it trusts, and the certificate that we show with its chain."""

    ca: list[CertificateAnswer]
    client_cert: list[CertificateAnswer]


class EndpointAnswer(_Answer):
    """An endpoint, without its secret."""

    endpoint_id: str
    tenant_id: str
    url: str
    warnings: Annotated[list[str], Field(description="what its owner should know: its host is a public request bin")]
    events: list[str]
    status: Literal["enabled", "paused", "disabled"]
    status_reason: str | None
    enabled: bool
    health: EndpointHealth
    rate_limit: float | None
    ordered: bool
    on_dead: Literal["block", "skip"]
    ack: Literal["signed"] | None
    forward_trace: bool
    spread: bool | None
    description: str | None
    uid: str | None
    metadata: dict[str, str]
    headers: Annotated[dict[str, str], Field(description="of its own; the value of a secret is shown as ********")]
    tls: TlsAnswer | None
    retry: RetryAnswer
    timeouts: TimeoutsAnswer
    max_in_flight: int
    created_at: str
    updated_at: str


class EndpointCreated(EndpointAnswer):
    """An endpoint with its signing secret."""

    secret: str


class SecretItem(_Answer):
    """A secret that signs now."""

    secret: str
    created_at: str
    expires_at: str | None


class SecretsAnswer(_Answer):
    """The newest secret, and all that sign now, newest first."""

    secret: str
    secrets: list[SecretItem]


class SecretRotated(_Answer):
    """The new secret and until when the old ones sign."""

    secret: str
    old_secrets_expire_at: str


class DeliveryAnswer(_Answer):
    """The state of one delivery. ``unknown`` is an alarm: please report it."""

    endpoint_id: str
    status: Literal["queued", "waiting", "delivered", "dead", "cancelled", "unknown"]
    reason: str | None
    generation: int
    attempt_count: int
    next_attempt_at: str | None
    last_http_status: int | None


class EventItem(_Answer):
    """An event without its payload."""

    event_id: str
    tenant_id: str
    type: str
    created_at: str
    idempotency_key: str | None
    trace_id: str | None
    delivery_count: int


class EventAnswer(EventItem):
    """An event, its payload as it was posted, and the state of its deliveries. ``payload`` is null, too, when it was
    removed on request, or is missing from the payload store."""

    status: Literal["pending", "delivered", "dead", "partly_dead", "no_endpoints"]
    payload: JsonValue
    payload_state: Literal["stored", "removed", "missing"]
    deliveries: list[DeliveryAnswer]


class TimingsAnswer(_Answer):
    """Milliseconds of the phases, each from the start of the attempt on as libcurl counts them."""

    dns: int
    connect: int
    tls: int
    first_byte: int
    total: int


class AttemptAnswer(_Answer):
    """One HTTP try."""

    attempt_id: str
    event_id: str
    endpoint_id: str
    tenant_id: str
    generation: int
    trace_id: str
    scheduled_at: str
    started_at: str
    finished_at: str
    http_status: int | None
    error_code: str | None
    retry_count: int
    latency_ms: int
    response_hash: str | None
    response_head: str
    response_head_base64: str
    request_bytes: int
    response_bytes: int
    possible_duplicate: bool
    outcome: Literal["delivered", "retry", "dead"]
    timings_ms: TimingsAnswer
    address: str
    protocol: str
    worker: str


class EndpointDelivery(_Answer):
    """A delivery of one endpoint and its state. Of one that is listed whatever its state, or as queued or cancelled,
    ``last_error_code`` is not told."""

    event_id: str
    endpoint_id: str
    tenant_id: str
    status: Literal["queued", "waiting", "delivered", "dead", "cancelled"]
    reason: str | None
    generation: int
    attempt_count: int
    next_attempt_at: str | None
    last_http_status: int | None
    last_error_code: str | None


class DeadLetterAnswer(_Answer):
    """A delivery that gave up."""

    event_id: str
    endpoint_id: str
    tenant_id: str
    type: str
    reason: str
    died_at: str
    attempt_count: int
    last_http_status: int | None
    last_error_code: str | None


class AcceptedEvent(_Answer):
    """The event is durable."""

    event_id: str
    delivery_count: int
    duplicate: bool


class BatchError(_Answer):
    """One event of a batch that was refused."""

    error: ProblemAnswer


class AcceptedBatch(_Answer):
    """One result for each event, in the order of the request."""

    results: list[AcceptedEvent | BatchError]


class TestSent(_Answer):
    """The event that tests the endpoint."""

    event_id: str


class Replayed(_Answer):
    """To how many endpoints the event is owed once more."""

    delivery_count: int


class Controlled(_Answer):
    """Of how many deliveries it was asked: those that are not over."""

    delivery_count: int


class ReplayStarted(_Answer):
    """``replay_id`` is null for a dry run. ``matched`` is a lower bound unless ``matched_exact``."""

    replay_id: str | None
    matched: int
    matched_exact: bool


class ReplayAnswer(_Answer):
    """A bulk replay: its filter, and how far it is. ``replayed`` deliveries went into the journal once more."""

    replay_id: str
    tenant_id: str
    endpoint_id: str | None
    type: str | None
    status: Literal["dead", "delivered", "any"]
    reason: str | None
    since: str | None
    until: str | None
    rate_limit: float
    matched: int
    matched_exact: bool
    replayed: int
    state: Literal["running", "done", "cancelled", "failed"]
    failure: str | None
    created_at: str
    finished_at: str | None


class ReplayList(_Answer):
    """One page."""

    data: list[ReplayAnswer]
    next_cursor: str | None


class Health(_Answer):
    """The process is alive."""

    status: Literal["ok"]


class Readiness(_Answer):
    """Is the platform at work?"""

    status: Literal["ready", "not_ready"]
    store: Literal["reachable", "unreachable"]
    unowned_shards: int | None
    missing_encryption_keys: int | None
    journal: Literal["reachable", "unreachable"] | None


class AuditEntry(_Answer):
    """A row of the audit log; without a tenant it is about the platform. ``hash`` covers the row and ``previous``."""

    tenant_id: str | None
    seq: int
    at: str
    actor: Annotated[str, Field(description="key_…, admin (the operator's own key), cli, or hookpost itself")]
    address: str
    action: str
    target: str
    before: dict[str, JsonValue] | None
    after: dict[str, JsonValue] | None
    previous: str
    hash: str


class AuditList(_Answer):
    """Rows of the audit log, newest first."""

    data: list[AuditEntry]
    next_cursor: str | None


class TenantList(_Answer):
    """One page."""

    data: list[TenantAnswer]
    next_cursor: str | None


class KeyList(_Answer):
    """One page."""

    data: list[KeyAnswer]
    next_cursor: str | None


class EndpointList(_Answer):
    """One page."""

    data: list[EndpointAnswer]
    next_cursor: str | None


class Explained(_Answer):
    """What happened to an event at an endpoint. ``status`` and ``reason``: see docs/explain.md; ``until``: when the
    next thing happens by itself, if that is known; ``generation`` null: the event was never owed to it."""

    endpoint_id: str
    status: Literal["not_matched", "queued", "waiting", "delivered", "dead", "cancelled", "unknown"]
    reason: str | None
    summary: str
    next_step: str | None
    until: str | None
    generation: int | None


class ExplainAnswer(_Answer):
    """Why an event is where it is. ``more``: there are endpoints that are not among these; ask for them by id."""

    event_id: str
    tenant_id: str
    type: str
    created_at: str
    endpoints: list[Explained]
    more: bool


class EventList(_Answer):
    """One page."""

    data: list[EventItem]
    next_cursor: str | None


class AttemptList(_Answer):
    """One page."""

    data: list[AttemptAnswer]
    next_cursor: str | None


class EndpointDeliveryList(_Answer):
    """One page."""

    data: list[EndpointDelivery]
    next_cursor: str | None


class DeadLetterList(_Answer):
    """One page."""

    data: list[DeadLetterAnswer]
    next_cursor: str | None


class SearchAnswer(_Answer):
    """What a text names, and one list of the ``kind`` that the filters are about. ``looked_at``: so many of the newest
    events or attempts were looked through; with a cursor there are older ones."""

    events: list[EventItem]
    endpoints: list[EndpointAnswer]
    kind: Literal["events", "attempts", "dead_letters", "waiting"]
    data: list[EventItem | AttemptAnswer | DeadLetterAnswer | EndpointDelivery]
    next_cursor: str | None
    looked_at: int | None


# ---- figures --------------------------------------------------------------------------------------------------------


class QuantileAnswer(_Answer):
    """An estimate, the bounds of the bucket that the true value lies in, and by which part of it it may be off."""

    estimate_ms: float
    low_ms: int
    high_ms: int
    relative_error: float


class LatencyAnswer(_Answer):
    """Of all attempts, whatever their outcome."""

    p50: QuantileAnswer
    p95: QuantileAnswer
    p99: QuantileAnswer


class LatencyBucket(_Answer):
    """Attempts that took from the one to the other, both included. The bounds are the same for ever: buckets add up."""

    low_ms: int
    high_ms: int
    attempts: int


class ArrivalBucket(_Answer):
    """Deliveries that took from the one to the other between acceptance and the 2xx, with the bounds of attempts."""

    low_ms: int
    high_ms: int
    deliveries: int


class OutcomesAnswer(_Answer):
    """Attempts by outcome."""

    delivered: int
    retry: int
    dead: int


class FiguresAnswer(_Answer):
    """What became of some attempts. ``retries`` are those that were not the first of their delivery.
    ``acceptance_to_2xx``: of the deliveries among them that succeeded, since their event was accepted, with all that
    they waited and were tried before; replays are not in it."""

    attempts: int
    retries: int
    outcomes: OutcomesAnswer
    errors: dict[str, int]
    latency: LatencyAnswer | None
    latency_buckets: list[LatencyBucket]
    acceptance_to_2xx: LatencyAnswer | None
    acceptance_to_2xx_buckets: list[ArrivalBucket]


class PointAnswer(FiguresAnswer):
    """Attempts that ended within ``step`` seconds from ``start``."""

    start: str


class StandingAnswer(_Answer):
    """How things stand now. Not exact: at least so many. ``depth``: entries of the journal that are not done, for the
    admin, of the tenant's home shards (other tenants' too) or of all."""

    waiting: int
    waiting_exact: bool
    dead: int
    dead_exact: bool
    depth: int | None


class StatsAnswer(_Answer):
    """Figures of an endpoint, a tenant or (both null) the platform."""

    tenant_id: str | None
    endpoint_id: str | None
    since: str = Field(alias="from")
    to: str
    step: int
    complete_until: str | None
    now: StandingAnswer
    totals: FiguresAnswer
    series: list[PointAnswer]


class UsageItem(_Answer):
    """What a tenant had on a day (UTC). ``complete``: the day is over and counted."""

    day: str
    tenant_id: str
    complete: bool
    accepted: int
    attempts: int
    delivered: int
    dead: int
    retries: int
    rate_limited: int
    request_bytes: int
    response_bytes: int
    request_ms: int


class UsageList(_Answer):
    """One page."""

    data: list[UsageItem]
    next_cursor: str | None


class PricesAnswer(_Answer):
    """The prices that were put in."""

    worker_cost_per_hour: float
    requests_per_worker: float
    storage_cost_per_gb_month: float
    egress_cost_per_gb: float
    retention_days: float


class CostParts(_Answer):
    """In the currency of the prices."""

    compute: float
    storage: float
    egress: float
    total: float


class MeasuredAnswer(_Answer):
    """What was measured; averages are 0 where there was no attempt."""

    attempts: int
    attempts_per_sec: float
    avg_request_ms: float
    request_bytes: int
    response_bytes: int


class CostOf(_Answer):
    """Attempts of one kind and what a month of them costs."""

    measured: MeasuredAnswer
    cost_per_month: CostParts


class CostItem(CostOf):
    """Of a tenant or (null) the platform; retries and attempts answered with 429 are part of it."""

    tenant_id: str | None
    accepted: int
    retries: CostOf
    rate_limited: CostOf


class CostAnswer(_Answer):
    """Whole days (UTC), the last one as far as it has come. Tenants: those with the most attempts."""

    since: str = Field(alias="from")
    to: str
    seconds: float
    complete_until: str | None
    prices: PricesAnswer
    attempt_row_bytes: float
    attempt_row_bytes_measured: bool
    platform: CostItem | None
    tenants: list[CostItem]
