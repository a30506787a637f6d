"""What the API gives: the forms of answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from hookpost.policy.expiry import CertificateState


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
