"""The nouns of Hookpost: what an endpoint is, what is sent, what came back and what was decided.

Nothing here reads a clock, opens a socket or knows a database. Times are Unix seconds (float, microsecond exact),
durations are seconds (``_s``) or milliseconds (``_ms``), days are days since 2000-01-01 as the database counts them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias
from uuid import UUID

import msgspec

__all__ = [
    "HEALTHY",
    "REMOVED",
    "Dead",
    "DeadReason",
    "Decision",
    "Delivered",
    "Endpoint",
    "EndpointStatus",
    "ErrorCode",
    "Health",
    "IdError",
    "OnDead",
    "OperationalType",
    "Outcome",
    "OwnHeaders",
    "Payload",
    "PayloadRef",
    "Request",
    "Retry",
    "RetryPolicy",
    "Secret",
    "Tenant",
    "Timeouts",
    "TlsIdentity",
    "WaitReason",
    "minted_at",
    "parse_id",
    "show_id",
]


class IdError(ValueError):
    """An id that is not of the form ``prefix_`` + UUID."""


def show_id(prefix: str, value: UUID) -> str:
    """An id as the public API shows it: ``evt_`` + 32 hex digits of the UUIDv7."""
    return f"{prefix}_{value.hex}"


def parse_id(prefix: str, text: str) -> UUID:
    """Read an id that carries ``prefix``; raises IdError for anything else."""
    if not text.startswith(prefix + "_"):
        raise IdError(f"an id that starts with {prefix}_ is expected")
    try:
        return UUID(text[len(prefix) + 1 :])
    except ValueError as error:
        raise IdError(f"an id is {prefix}_ followed by a UUID") from error


def minted_at(value: UUID) -> float:
    """The time in a UUIDv7, in Unix seconds."""
    return (value.int >> 80) / 1000


class EndpointStatus(StrEnum):
    """May deliveries to this endpoint start?"""

    ENABLED = "enabled"
    PAUSED = "paused"
    DISABLED = "disabled"


class OnDead(StrEnum):
    """What a dead delivery means for those behind it on an ordered endpoint."""

    BLOCK = "block"
    SKIP = "skip"


class WaitReason(StrEnum):
    """Why a delivery waits (api.md, `reason` of a waiting delivery)."""

    RETRY = "retry"
    RATE_LIMITED = "rate_limited"
    IN_FLIGHT_CAP = "in_flight_cap"
    BREAKER_OPEN = "breaker_open"
    RETRY_BUDGET = "retry_budget"
    ORDERED = "ordered"
    PAUSED = "paused"
    DISABLED = "disabled"
    EGRESS_DOWN = "egress_down"
    PAYLOAD_STORE = "payload_store"
    SECRET_LOCKED = "secret_locked"  # noqa: S105 - a reason, not a secret


class DeadReason(StrEnum):
    """Why a delivery gave up (api.md, `reason` of a dead one)."""

    HTTP_4XX = "http_4xx"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    DEADLINE = "deadline"
    RETRY_AFTER_BEYOND_DEADLINE = "retry_after_beyond_deadline"
    PAYLOAD_MISSING = "payload_missing"
    INTERNAL_ERROR = "internal_error"


class ErrorCode(StrEnum):
    """What went wrong in one attempt (api.md, error codes of an attempt)."""

    DNS_FAILURE = "dns_failure"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    NETWORK_UNREACHABLE = "network_unreachable"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    TLS_FAILURE = "tls_failure"
    TLS_UNTRUSTED = "tls_untrusted"
    CONNECTION_RESET = "connection_reset"
    ADDRESS_FORBIDDEN = "address_forbidden"
    INVALID_URL = "invalid_url"
    PROTOCOL_ERROR = "protocol_error"
    EGRESS_PROXY_ERROR = "egress_proxy_error"
    HTTP_3XX = "http_3xx"
    HTTP_4XX = "http_4xx"
    HTTP_410 = "http_410"
    HTTP_429 = "http_429"
    HTTP_5XX = "http_5xx"
    BAD_ACK = "bad_ack"
    INTERNAL_ERROR = "internal_error"


class OperationalType(StrEnum):
    """The types of the events that the platform itself publishes to a tenant."""

    ENDPOINT_FAILING = "hookpost.endpoint.failing"
    ENDPOINT_RECOVERED = "hookpost.endpoint.recovered"
    ENDPOINT_DISABLED = "hookpost.endpoint.disabled"
    DELIVERY_DEAD = "hookpost.delivery.dead"
    CERTIFICATE_ENDING = "hookpost.endpoint.certificate_ending"


@dataclass(frozen=True, slots=True)
class PayloadRef:
    """Where a payload lies in the payload store: ``length`` bytes of the object ``key`` from ``offset`` on, whose
    SHA-256 is ``digest``. Its length is the payload's, so what counts bytes need not care where they are."""

    key: str
    offset: int
    length: int
    digest: bytes

    def __len__(self) -> int:
        return self.length

    def __str__(self) -> str:
        return f"{self.key} {self.offset} {self.length} {self.digest.hex()}"

    @classmethod
    def parse(cls, text: str) -> PayloadRef:
        """The reverse of ``str``; a removed payload is REMOVED itself."""
        key, offset, length, digest = text.split(" ")
        ref = cls(key, int(offset), int(length), bytes.fromhex(digest))
        return REMOVED if ref == REMOVED else ref


# The place of a payload whose bytes were removed on request: its deliveries end, and are no dead letters.
REMOVED = PayloadRef("removed", 0, 0, b"\0")
# The bytes, or where they lie; None where nothing is left of them.
Payload: TypeAlias = bytes | PayloadRef | None


@dataclass(frozen=True, slots=True)
class Health:
    """How an endpoint has done lately: failures in a row, since when (None: the last attempt was not one of them), and
    whether that it fails was announced, so that its recovery has to be."""

    consecutive_failures: int = 0
    failing_since: float | None = None
    announced: bool = False


HEALTHY = Health()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed delivery is tried again, and when it is given up."""

    base_s: float = 5.0
    cap_s: float = 3 * 3600.0
    max_attempts: int = 50
    deadline_s: float = 72 * 3600.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Tiers, each counted from the start of the attempt: connect < first byte < total <= 30 s."""

    connect_s: float = 5.0
    first_byte_s: float = 10.0
    total_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Secret:
    """A signing key and until when it signs (None: for ever)."""

    key: bytes = field(repr=False)
    created_at: float
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class OwnHeaders:
    """Headers that an endpoint adds (policy/headers): its own type and agent, or None for ours, and all others as
    complete lines, each ended by CR LF. ``fault``: why none can be sent; empty as a rule."""

    content_type: str | None = None
    user_agent: str | None = field(default=None, repr=False)
    lines: str = field(default="", repr=False)
    fault: str = ""


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """TLS of an endpoint's own (policy/tls), in PEM: whom to trust instead of the installation's authorities, and who
    we are to it; empty where it has nothing of its own."""

    ca: bytes = b""
    cert: bytes = b""
    key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A receiver as the engine and the transport need it. ``rate_limit``: deliveries a second. ``signed_ack``: a 2xx
    counts only with a valid ``webhook-ack``. ``forward_trace``: it is told the trace of the producer instead of ours.
    ``locked``: its secrets do not open here, so nothing can be sent to it.

    ``pinned``: whatever its cap, it lives in the first home shard of its tenant. ``barred``: it came to live there, and
    there it waits until what is owed to it in other shards is done. ``ordered_to``: (shard, seq), up to which all that
    it is owed in that shard was accepted while it was ordered.
    """

    endpoint_id: UUID
    tenant_id: UUID
    url: str
    status: EndpointStatus = EndpointStatus.ENABLED
    deleted: bool = False
    secrets: tuple[Secret, ...] = ()
    headers: OwnHeaders | None = None
    retry: RetryPolicy = RetryPolicy()
    timeouts: Timeouts = Timeouts()
    max_in_flight: int = 64
    hold_until: float = 0.0
    rate_limit: float | None = None
    ordered: bool = False
    on_dead: OnDead = OnDead.BLOCK
    pinned: bool = False
    barred: bool = False
    signed_ack: bool = False
    forward_trace: bool = False
    health: Health = HEALTHY
    ordered_to: tuple[int, int] | None = None
    tls: TlsIdentity | None = None
    locked: bool = False


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as the engine needs it: its cap and over which shards its traffic is spread.

    Behind the home shards stand those that still hold something of it: until they are drained they keep their part of
    the caps.
    """

    tenant_id: UUID
    home_shards: tuple[int, ...]
    max_in_flight: int = 512


class Request(msgspec.Struct, gc=False):
    """One HTTP request to make. A struct, as there is one for each attempt: it costs a seventh of a dataclass.

    ``headers`` are complete lines, ``Name: value``, joined by CR LF, in the order they are sent. Whoever makes it
    vouches that no line ends early.
    ``acks``: a 2xx counts only if its ``webhook-ack`` holds one of these (policy/signing); None: any 2xx counts.
    """

    url: str
    headers: str
    body: bytes
    timeouts: Timeouts
    acks: tuple[bytes, ...] | None = None
    tls: TlsIdentity | None = None


class Outcome(msgspec.Struct, gc=False):
    """What one request came to. ``error_code`` is None for a 2xx only; ``status`` is None until headers are complete.

    ``total_ms`` counts from ``started_at`` to ``finished_at``. ``ours``: it failed at our own egress proxy, before
    anything could leave; no receiver has a part in it.
    ``response_head`` holds the status line, the headers and the beginning of the body as received: bytes, never text.
    """

    error_code: ErrorCode | None
    status: int | None = None
    started_at: float = 0.0
    finished_at: float = 0.0
    retry_after: bytes | None = None
    response_head: bytes = b""
    response_hash: bytes | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    body_cut: bool = False
    dns_ms: int = 0
    connect_ms: int = 0
    tls_ms: int = 0
    first_byte_ms: int = 0
    total_ms: int = 0
    address: str = ""
    protocol: str = ""
    detail: str = ""
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver has it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again, not before ``due_at``."""

    due_at: float


@dataclass(frozen=True, slots=True)
class Held:
    """The failure was ours: the delivery waits until our way out is back, and the attempt is not counted."""


@dataclass(frozen=True, slots=True)
class Dead:
    """Given up."""

    reason: DeadReason


Decision: TypeAlias = Delivered | Retry | Dead
