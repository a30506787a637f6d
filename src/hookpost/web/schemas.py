"""What the API takes: the forms of requests, with their limits.

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
