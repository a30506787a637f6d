"""The settings of Hookpost: environment variables with the prefix ``HOOKPOST_``, checked once, then frozen.

Relies on pydantic-settings for reading. Promises: a setting out of its range stops the start with a message that names
the variable and what it may be; nothing is read from files; secrets never appear in ``describe`` or in an error.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeAlias, get_args, get_origin
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from hookpost.app import cores
from hookpost.policy.alerts import check_mail_address
from hookpost.policy.egress import parse_proxy, split_url
from hookpost.policy.headers import parse_patterns
from hookpost.policy.journal import parse_address
from hookpost.policy.routing import FILTERS_MAX, POOL_NAME, POOL_NAME_RULE, SHARDS_MAX
from hookpost.policy.sealing import parse_keyring
from hookpost.policy.signing import parse_secret

__all__ = [
    "PREFIX",
    "ConfigError",
    "Described",
    "Network",
    "Settings",
    "UnknownVariable",
    "describe",
    "load",
    "unknown_variables",
]

PREFIX: Final = "HOOKPOST_"
MASK: Final = "********"

NONE: Final = "none"
"""Empties a list that has a default, because an empty variable counts as not set (so compose files may pass it on)."""

CLIENT_VARIABLES: Final = frozenset({"HOOKPOST_URL", "HOOKPOST_API_KEY", "HOOKPOST_SECRET"})
"""Variables of the client commands (`hookpost send`, `verify` and others): known, but no settings of a server."""

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
HOUR_S: Final = 3600.0
DAY_S: Final = 24 * HOUR_S

PORT_MAX: Final = 65_535
PROCESSES_MAX: Final = 64
"""More than one machine's cores make sense of; a mistyped number must not fork the machine to death."""
SHARDS: Final = 8

_NOT_WORKED_OUT: Final = "default_factory_not_called"
"""What pydantic says of a default that hangs on other settings when one of those is wrong: no fault of its own."""

BODY_BYTES_MAX: Final = 16 * MIB
"""A webhook is a notification. Producers with more send a link; memory per queued event stays predictable."""

COLD_AFTER_HOURS: Final = 96.0
"""A delivery with the default deadline has ended a day before: what moves is read again by replays and people alone."""

LEAVING_DAYS: Final = 2
"""Whatever is owed ends so many days before its event leaves."""

PAYLOAD_STORE_SCHEMES: Final = ("file", "s3", "gs", "az")
"""What HOOKPOST_PAYLOAD_STORE_URL may be."""

KAFKA_INLINE_BYTES_MAX: Final = MIB
"""The topic takes records of two megabytes, and an event's owed list needs room beside its payload."""

JOURNAL_OUTAGE_S_MAX: Final = 50.0
"""A move waits for what processes that were cut off still accept, and the database forgets them after a minute."""

TOTAL_TIMEOUT_S_MAX: Final = 30.0
"""A slow receiver holds a slot that long, and an ordered lane waits that long after a change of owner (quiet_until)."""

PRICE_MAX: Final = 1e6
"""In any currency; more is a typing mistake."""

LEASE_S_MAX: Final = 300.0
"""How long the shards of a dead worker stand still at most."""

ADMIN_KEY_CHARS_MIN: Final = 24
"""144 bits in base64: guessing over the network is hopeless."""

NON_HTTP_PORTS: Final = (
    *(1433, 1521, 3306, 5432, 6379, 9042, 9200, 9300, 11211, 27017),  # databases, caches, search
    *(2181, 4369, 5672, 9092),  # brokers
    *(2375, 2376, 2379, 2380, 6443, 10250),  # container and cluster control
    *(2049, 3389, 5900),  # files, desktops
)
"""Well-known services at 1024 and above that no webhook goes to, and that do harm when they get one."""

SECRET_FIELDS: Final = frozenset(
    {
        "admin_key",
        "alert_secret",
        "alert_url",
        "database_url",
        "journal_url",
        "egress_proxy",
        "encryption_keys",
        "payload_store_url",
        "smtp_password",
    }
)
"""Never shown in an error, not even when they are wrong."""

Network: TypeAlias = IPv4Network | IPv6Network


class ConfigError(Exception):
    """Settings that cannot be used. The text is for the operator: variables, what is wrong, what is allowed."""


def _split(value: object) -> object:
    """``a, b`` as a tuple, ``none`` as the empty one; anything that is not text is left to the type."""
    if value == NONE:
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _networks(value: object) -> object:
    parts = _split(value)
    if not isinstance(parts, tuple | list):
        raise ValueError("networks as CIDRs separated by commas are expected, for example 10.0.0.0/8,fd00::/8")
    return tuple(_network(part) for part in parts)


def _network(part: object) -> Network:
    if isinstance(part, IPv4Network | IPv6Network):
        return part
    try:
        return ip_network(str(part), strict=True)
    except ValueError as error:
        raise ValueError(f"{part} is not a network ({error}); write CIDRs such as 10.0.0.0/8,fd00::/8") from error


def _ports(value: object) -> object:
    parts = _split(value)
    if not isinstance(parts, tuple | list):
        raise ValueError("ports separated by commas are expected, for example 3306,5432")
    return tuple(sorted({_port(part) for part in parts}))


def _port(part: object) -> int:
    text = str(part)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= PORT_MAX):
        raise ValueError(f"{text} is not a port; write numbers from 1 to {PORT_MAX} separated by commas, or {NONE}")
    return int(text)


def _pool(value: str) -> str:
    if POOL_NAME.fullmatch(value):
        return value
    raise ValueError(POOL_NAME_RULE)


def _absolute(value: Path) -> Path:
    return Path(os.path.abspath(value.expanduser()))  # noqa: PTH100 - resolve() would follow links, which may change later


def _absolute_or_none(value: Path | None) -> Path | None:
    return None if value is None else _absolute(value)


def _encryption_keys(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        parse_keyring(value.get_secret_value())
    return value


def _header_patterns(value: object) -> object:
    parts = _split(value)
    if not isinstance(parts, tuple | list):
        raise ValueError("names of headers separated by commas are expected, for example x-*,authorization")
    return parse_patterns([str(part) for part in parts])


def _file(value: Path | None) -> Path | None:
    if value is None or value.is_file():
        return value
    raise ValueError("this file does not exist; give a PEM file of certificate authorities")


def _database_url(value: str | None) -> str | None:
    if value is None or urlsplit(value).scheme in ("postgresql", "postgres"):
        return value
    raise ValueError("an address such as postgresql://user:password@host:5432/hookpost is expected")


def _payload_store_url(value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    folder = parts.scheme == "file" and not parts.netloc and parts.path.strip("/")
    bucket = parts.scheme in PAYLOAD_STORE_SCHEMES and parts.scheme != "file" and parts.netloc
    if not (folder or bucket):
        raise ValueError(
            "an address is expected such as s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or "
            "file:///folder"
        )
    if parts.username is not None or parts.query:
        raise ValueError("credentials come from the environment (AWS_..., GOOGLE_..., AZURE_...), not from the address")
    return value


def _admin_key(value: SecretStr | None) -> SecretStr | None:
    if value is None:
        return None
    key = value.get_secret_value()
    if len(key) < ADMIN_KEY_CHARS_MIN or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"at least {ADMIN_KEY_CHARS_MIN} visible ASCII characters are expected; "
            "`openssl rand -base64 32` makes a good one"
        )
    return value


def _alert_url(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        split_url(value.get_secret_value())
    return value


def _egress_proxy(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        parse_proxy(value.get_secret_value())
    return value


def _public_url(value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError("scheme and host are expected, for example https://hooks.example.com")
    return value.rstrip("/")


def _alert_secret(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        parse_secret(value.get_secret_value())
    return value


def _mail_address(value: str | None) -> str | None:
    return None if value is None else check_mail_address(value)


def _listen(value: str | None) -> str | None:
    if value is None:
        return None
    host, colon, port = value.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 1 <= int(port) <= PORT_MAX):
        raise ValueError("host:port is expected, for example 127.0.0.1:9464 or [::1]:9464")
    return value


def _otel_endpoint(value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an address such as http://127.0.0.1:4318 is expected")
    if parts.username is not None or parts.query:
        raise ValueError("credentials go into OTEL_EXPORTER_OTLP_HEADERS, not into the address")
    return value


def _journal_url(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        parse_address(value.get_secret_value())
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


NetworkList = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)]
MailAddress = Annotated[str, AfterValidator(_mail_address)]
SmtpTls = Annotated[Literal["starttls", "tls", "none"], BeforeValidator(_lower)]
HeaderPatterns = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_header_patterns)]
PortList = Annotated[tuple[int, ...], NoDecode, BeforeValidator(_ports)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]
LogFormat = Annotated[Literal["auto", "text", "json"], BeforeValidator(_lower)]


class Settings(BaseSettings):
    """Everything an operator can decide. Defaults suit one machine with two cores; every limit can be changed."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        env_file=None,
        validate_default=True,
        allow_inf_nan=False,
        env_ignore_empty=True,
    )

    database_url: Annotated[str | None, AfterValidator(_database_url)] = Field(
        None,
        repr=False,
        description="PostgreSQL 15 or newer to work on; without it Hookpost brings its own in DATA_DIR",
    )
    journal_url: Annotated[SecretStr | None, AfterValidator(_journal_url)] = Field(
        None,
        description="Kafka as the journal in front of the database: kafka://[user:password@]host:9092,host:9092/topic"
        "[?security=ssl|sasl_ssl|sasl_plaintext&mechanism=...&ca_file=...]; needs hookpost[kafka] (docs/kafka.md)",
    )
    journal_outage_s: float = Field(
        30.0,
        ge=1.0,  # as long as revocations are remembered anyway
        le=JOURNAL_OUTAGE_S_MAX,
        description="with Kafka: how long events without an idempotency key are accepted by what a process remembers "
        "while the database does not answer it; for so long a key works there that was revoked elsewhere",
    )
    data_dir: Annotated[Path, AfterValidator(_absolute)] = Field(
        Path("hookpost-data"), description="folder of the embedded PostgreSQL and of generated keys; made when missing"
    )
    admin_key: Annotated[SecretStr | None, AfterValidator(_admin_key)] = Field(
        None, description="key of the platform's operator; without it one is generated at first start and printed once"
    )
    encryption_keys: Annotated[SecretStr | None, AfterValidator(_encryption_keys)] = Field(
        None,
        description="keys that secrets in the database are sealed with, as id:BASE64, separated by commas: the first "
        "seals, all open; without it they come from a file",
    )
    encryption_key_file: Annotated[Path | None, AfterValidator(_absolute_or_none)] = Field(
        None,
        description="file with these keys, one a line; without it encryption.keys in DATA_DIR, which is made with the "
        "embedded PostgreSQL",
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for all of IPv4, :: for all"
    )
    port: int = Field(8080, ge=0, le=PORT_MAX, description="port to listen on; 0 takes a free one")
    public_url: Annotated[str | None, AfterValidator(_public_url)] = Field(
        None,
        description="address that people open the dashboard at; without it only localhost and IP addresses are served, "
        "and with https its cookie is Secure",
    )
    shards: int = Field(
        SHARDS,
        ge=1,
        le=SHARDS_MAX,
        description="shards of the journal made at first start; the most workers that can share it. The tenant default "
        "is at home in at most 64 of them, further ones serve other tenants",
    )
    api_processes: int = Field(
        default_factory=lambda: cores.api_processes(cores.usable()),
        ge=1,
        le=PROCESSES_MAX,
        description="processes of `hookpost serve` that accept events and serve the API; one for each four cores that "
        "it may use, two at most, unless set",
    )
    workers: int = Field(
        default_factory=lambda known: cores.workers(cores.usable(), known.get("shards", SHARDS)),
        ge=1,
        le=PROCESSES_MAX,
        description="processes of `hookpost serve` that deliver; one for each two cores that it may use, four at most, "
        "unless set. More than cores do not help",
    )
    pool: Annotated[str, AfterValidator(_pool)] = Field(
        "default",
        description="pool of shards that the workers started here serve",
    )
    database_unsafe_ok: bool = Field(
        False,
        description="start although PostgreSQL runs with fsync or synchronous_commit off: accepted events may be lost",
    )
    database_pool_min: int = Field(1, ge=0, le=100, description="database connections each process keeps open")
    database_pool_max: int = Field(8, ge=2, le=100, description="database connections each process opens at most")
    partition_days_ahead: int = Field(3, ge=1, le=60, description="days for which partitions are made ahead")

    body_max_bytes: int = Field(
        MIB, ge=1024, le=BODY_BYTES_MAX, description="largest body of POST /v1/events, in bytes"
    )
    request_target_max: int = Field(
        8 * 1024,
        ge=256,
        le=64 * 1024,
        description="longest path with query of a request, in bytes (414), as with nginx",
    )
    request_headers_max: int = Field(
        100, ge=20, le=1000, description="most header fields of a request (431), as with Apache"
    )
    request_header_bytes_max: int = Field(
        32 * 1024, ge=2048, le=MIB, description="the same in bytes, all together; a key and its company take some 500"
    )
    request_head_s: float = Field(
        10,
        ge=1,
        le=300,
        description="time for a request's header fields to arrive (408): they fit in one packet or two",
    )
    request_body_s: float = Field(
        15, ge=1, le=300, description="time for its body, beyond what REQUEST_BODY_RATE_MIN gives for its size (408)"
    )
    request_body_rate_min: int = Field(
        16 * 1024, ge=1, le=GIB, description="slowest arrival of a body, in bytes a second: a bad mobile line's"
    )
    answer_s: float = Field(
        30, ge=1, le=600, description="a client that does not read its answer for so long is cut off"
    )
    keep_alive_s: float = Field(
        75,
        ge=1,
        le=3600,
        description="idle connections of clients are kept so long; above the 60 s of common load balancers, which must"
        " close first",
    )
    connections_max: int = Field(
        8_000,
        ge=10,
        le=60_000,
        description="clients connected to one API process at once (503); each takes some 20 KiB and one open file",
    )
    connections_per_address_max: int = Field(
        2_000,
        ge=1,
        le=60_000,
        description="the same from one address (429): a load balancer or a producer with a pool, not a flood",
    )
    json_depth_max: int = Field(
        256,
        ge=16,
        le=900,
        description="arrays and objects inside one another in a payload (422): receivers' parsers stop",
    )
    json_number_chars_max: int = Field(
        1024,
        ge=32,
        le=MIB,
        description="longest number in a payload, in characters (422): more are an attack on parsers",
    )
    batch_max_events: int = Field(1000, ge=1, le=10_000, description="most events in one POST /v1/events/batch")
    ingest_queue_events: int = Field(
        20_000, ge=1, le=1_000_000, description="events that may wait for the database, per API process; beyond it 503"
    )
    ingest_queue_bytes: int = Field(64 * MIB, ge=MIB, le=4096 * MIB, description="the same, in bytes of payload")
    ingest_timeout_s: float = Field(
        0.9, ge=0.05, le=60, description="an event not durable by then is answered with 503, to be posted again"
    )
    idempotency_hours: float = Field(24, gt=0, le=24 * 30, description="how long an idempotency key is remembered")

    retention_days: int = Field(
        30, ge=3, le=3650, description="days that events, attempts and dead letters are kept; no deadline is later"
    )
    audit_days: int = Field(
        0, ge=0, le=36_600, description="days that the audit log is kept; 0: for ever. Its chains stay verifiable"
    )
    payload_store_url: Annotated[str | None, AfterValidator(_payload_store_url)] = Field(
        None,
        description="where large payloads go: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or "
        "file:///folder; without it the folder payloads in DATA_DIR",
    )
    payload_inline_max: int = Field(
        16 * 1024, ge=0, le=BODY_BYTES_MAX, description="larger payloads, in bytes, go to the payload store; 0: all do"
    )

    cold_after_hours: float | None = Field(
        None,
        ge=0,
        le=24 * 3650,
        description="payloads in the database move to the payload store so many hours after their day (UTC) has ended; "
        "0: never. Unless set 96, longer than deliveries wait by default, with PAYLOAD_STORE_URL, and never without",
    )

    lease_s: float = Field(15, ge=3, le=LEASE_S_MAX, description="a worker not heard of for that long loses its shards")
    renew_s: float = Field(
        4, ge=0.5, le=100, description="how often a worker renews its lease; below a third of LEASE_S"
    )
    stop_s: float = Field(20, ge=0, le=600, description="how long a stop waits for requests in flight")
    worker_in_flight: int = Field(1000, ge=1, le=100_000, description="requests in flight at once, per worker")
    worker_in_flight_bytes: int = Field(128 * MIB, ge=MIB, le=16_384 * MIB, description="the same, in bytes of payload")
    buffer_events: int = Field(
        100_000,
        ge=100,
        le=1_000_000,
        description="deliveries that wait in a worker's memory before they go to the backlog",
    )
    buffer_bytes: int = Field(128 * MIB, ge=MIB, le=16_384 * MIB, description="the same, in bytes of payload")

    spread_depth: int = Field(
        20_000,
        ge=1,
        le=1_000_000_000,
        description="a tenant with more events than that in hand for each home shard, at two looks in a row, gets twice"
        " as many home shards, unless its spread is set",
    )
    spread_rate: float = Field(
        2_000,
        gt=0,
        le=1_000_000,
        description="the same for one with more events a second than that for each home shard",
    )

    retry_base_s: float = Field(
        5, ge=0.1, le=HOUR_S, description="wait before the first retry; doubled for every further"
    )
    retry_cap_s: float = Field(3 * HOUR_S, ge=1, le=7 * DAY_S, description="longest wait between two attempts")
    retry_max_attempts: int = Field(50, ge=1, le=1000, description="a delivery is dead after so many attempts")
    retry_deadline_s: float = Field(3 * DAY_S, ge=60, le=30 * DAY_S, description="a delivery is dead after so long")
    connect_timeout_s: float = Field(5, ge=0.1, le=TOTAL_TIMEOUT_S_MAX, description="time to connect, TLS included")
    first_byte_timeout_s: float = Field(10, ge=0.1, le=TOTAL_TIMEOUT_S_MAX, description="time until the answer begins")
    total_timeout_s: float = Field(15, ge=0.1, le=TOTAL_TIMEOUT_S_MAX, description="time for the whole attempt")
    total_timeout_max_s: float = Field(
        TOTAL_TIMEOUT_S_MAX,
        ge=0.1,
        le=TOTAL_TIMEOUT_S_MAX,
        description="longest total_s of an endpoint; an ordered one rests so long after an unclean change of worker",
    )
    breaker_failures: int = Field(5, ge=1, le=1000, description="failures in a row that open a receiver's breaker")
    breaker_pause_s: float = Field(
        30,
        ge=0.1,
        le=DAY_S,
        description="pause of an open breaker at least, and up to half as long again, so that receivers that fell"
        " together are not probed together; twice as long each time it opens again",
    )
    breaker_pause_max_s: float = Field(600, ge=0.1, le=DAY_S, description="longest pause of an open breaker")
    egress_outage_receivers: int = Field(
        5,
        ge=0,
        le=10_000,
        description="when so many receivers that were well, and most of them, cannot be reached and nobody answers, it"
        " is our own network: deliveries wait and nobody is charged; 0: never",
    )
    retry_budget_part: float = Field(
        0.2, ge=0, le=1, description="failed retries may be this part of a minute's attempts, over all workers"
    )
    retry_budget_floor: int = Field(
        600,
        ge=1,
        le=10_000_000,
        description="failed retries a minute that are let through however few attempts there are",
    )
    endpoints_max: int = Field(
        10_000, ge=1, le=1_000_000, description="endpoints of one tenant at most (409): one event may go to all of them"
    )
    api_keys_max: int = Field(
        1_000, ge=1, le=100_000, description="good API keys of one tenant at most (409): each is a door to be watched"
    )
    filters_max: int = Field(
        100,
        ge=1,
        le=FILTERS_MAX,
        description="filters of one endpoint at most (422): each is looked at for each new type",
    )
    event_types_max: int = Field(
        1_000,
        ge=1,
        le=100_000,
        description="event types that one tenant may describe (409): processes keep their schemas in memory",
    )
    schema_max_bytes: int = Field(
        32 * KIB,
        ge=256,
        le=MIB,
        description="largest JSON Schema of an event type (422): it is compiled in each process",
    )
    schemas_max_bytes: int = Field(
        MIB,
        ge=256,
        le=64 * MIB,
        description="schemas of one tenant's event types together (409): they are kept in memory",
    )
    schema_depth_max: int = Field(
        32,
        ge=4,
        le=128,
        description="objects and arrays inside one another in a schema (422): nobody reads what is deeper",
    )
    schema_cost_max: int = Field(
        2048,
        ge=16,
        le=16_384,
        description="parts of a schema that may look at one and the same value, patterns counted for their size (422):"
        " references can multiply them without end",
    )
    schema_work_max: int = Field(
        16 * MIB,
        ge=64 * KIB,
        le=1024 * MIB,
        description="a payload's bytes times the cost of its type's schema (422): others wait so long, some 0.3 s",
    )
    replay_rate_limit: float = Field(
        500, ge=1, le=100_000, description="deliveries a second of a bulk replay that names no limit of its own"
    )
    secret_grace_s: float = Field(
        DAY_S, ge=0, le=30 * DAY_S, description="how long a rotated secret still signs, beside the new one"
    )

    rollup_minutes_days: float = Field(
        2, ge=0.05, le=60, description="for so many days stats are kept by the minute, then by the hour"
    )
    rollup_hours_days: float = Field(
        90, ge=1, le=3660, description="for so many days stats are kept by the hour, then by the day, for ever"
    )
    cost_worker_hour: float = Field(
        0.045, ge=0, le=PRICE_MAX, description="what a worker process costs in an hour, as `hookpost cost` takes it"
    )
    cost_requests_per_worker: float = Field(
        1, ge=1, le=PRICE_MAX, description="requests that a worker has under way at a time; 1 counts a worker for each"
    )
    cost_storage_gb_month: float = Field(0.10, ge=0, le=PRICE_MAX, description="what a GB of disk costs in a month")
    cost_egress_gb: float = Field(0.09, ge=0, le=PRICE_MAX, description="what a GB of traffic costs")

    allow_networks: NetworkList = Field(
        (), description="CIDRs that endpoints may reach although private, separated by commas, e.g. 127.0.0.0/8"
    )
    deny_ports: PortList = Field(
        NON_HTTP_PORTS,
        description="ports that endpoints may not reach although 80, 443 or 1024-65535, separated by commas",
    )
    headers_allow: HeaderPatterns = Field(
        ("*",),
        description="headers that endpoints may add, separated by commas, * stands for any characters; those that "
        "frame, route or sign a request never are among them",
    )
    https_only: bool = Field(
        False, description="refuse http:// URLs of endpoints; deliveries to such that there are already fail and wait"
    )
    egress_proxy: Annotated[SecretStr | None, AfterValidator(_egress_proxy)] = Field(
        None,
        description="HTTP proxy that all requests to endpoints and to ALERT_URL leave through, by CONNECT, as"
        " http://user:password@host:port; names are looked up here, and it is told addresses that were checked",
    )
    ca_file: Annotated[Path | None, AfterValidator(_file)] = Field(
        None, description="PEM file of the authorities to trust for endpoints, instead of the built-in list"
    )

    alert_after_failures: int = Field(
        50, ge=1, le=1_000_000, description="failures in a row after which an endpoint's tenant is alerted"
    )
    disable_after_days: float = Field(
        5, gt=0, le=365, description="days of nothing but failures after which an endpoint is disabled"
    )
    alert_url: Annotated[SecretStr | None, AfterValidator(_alert_url)] = Field(
        None, description="URL of the operator's that all alerts are posted to, too"
    )
    alert_secret: Annotated[SecretStr | None, AfterValidator(_alert_secret)] = Field(
        None, description="secret (whsec_...) that posts to ALERT_URL are signed with; without it they are not signed"
    )
    alert_allow_networks: NetworkList = Field(
        (), description="CIDRs that ALERT_URL may reach although private, besides ALLOW_NETWORKS"
    )
    smtp_host: str | None = Field(
        None, description="server that takes alerts for tenants with an alert_email; without it no mail is sent"
    )
    smtp_port: int = Field(587, ge=1, le=PORT_MAX, description="its port")
    smtp_tls: SmtpTls = Field("starttls", description="how the connection to it is encrypted: starttls, tls or none")
    smtp_user: str | None = Field(None, description="user to log in as; without it there is no login")
    smtp_password: SecretStr | None = Field(None, description="the user's password")
    smtp_from: MailAddress | None = Field(None, description="address that mails come from; needed with SMTP_HOST")

    metrics_listen: Annotated[str | None, AfterValidator(_listen)] = Field(
        None,
        description="host:port where /metrics is served without a key, e.g. 127.0.0.1:9464; it is at PORT with the"
        " admin key anyway",
    )
    metrics_tenants: int = Field(
        20, ge=0, le=1000, description="tenants with figures of their own in /metrics, those with the most attempts"
    )
    otel_endpoint: Annotated[str | None, AfterValidator(_otel_endpoint)] = Field(
        None,
        description="OTLP collector (HTTP) that takes a span for each attempt, e.g. http://127.0.0.1:4318; needs"
        " hookpost[otel], everything else is set by OTEL_... variables",
    )
    otel_ratio: float = Field(1, ge=0, le=1, description="part of the events whose attempts make spans")
    log_format: LogFormat = Field("auto", description="text for people, json for machines, auto: text on a terminal")
    log_level: LogLevel = Field("info", description="debug, info, warning or error")

    @property
    def cold_after_s(self) -> float:
        """How long after their day's end payloads leave the database; 0: never. In a folder on the same disk they cost
        what they did, and on several machines without a common store they would be out of reach."""
        if self.cold_after_hours is None:
            return COLD_AFTER_HOURS * HOUR_S if self.payload_store_url is not None else 0.0
        return self.cold_after_hours * HOUR_S

    @property
    def deadline_s_max(self) -> float:
        """No delivery, replays included, is owed for longer after its event was accepted. An event's partition may be
        of the day after, and what expires must have been written down before it leaves."""
        return (self.retention_days - LEAVING_DAYS) * DAY_S

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = list(_contradictions(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - no files are read: one place to look
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line options first, then the environment; nothing else."""
        return (init_settings, env_settings)


class UnknownVariable(NamedTuple):
    """A variable that looks like a setting and is none; ``suggestion`` is the nearest real one, or None."""

    variable: str
    suggestion: str | None


class Described(NamedTuple):
    """One setting for people: secrets are masked in ``shown``."""

    variable: str
    shown: str
    default: str
    meaning: str


def load(**overrides: object) -> Settings:
    """The settings of the environment, with ``overrides`` (command line options; None means "not given") on top."""
    given: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    except SettingsError as error:
        raise ConfigError(f"the settings cannot be read: {error}") from None


def describe(settings: Settings) -> list[Described]:
    """Every setting with its value, default and meaning, in the order of the class."""
    known = {"shards": settings.shards}  # what a default may hang on
    return [
        Described(
            variable=_variable(name),
            shown=_shown(name, getattr(settings, name)),
            default=_shown(name, field.get_default(call_default_factory=True, validated_data=known)),
            meaning=field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def as_environment(settings: Settings) -> dict[str, str]:
    """The variables that make another process load the same settings; holds secrets, so it is for that alone."""
    variables: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if value is None or value == field.default:
            continue
        match value:
            case SecretStr():
                variables[_variable(name)] = value.get_secret_value()
            case str():
                variables[_variable(name)] = value
            case float():
                variables[_variable(name)] = repr(value)
            case _:
                variables[_variable(name)] = _shown(name, value)
    return variables


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[UnknownVariable]:
    """Variables with our prefix that no setting reads: usually typing mistakes, worth a warning at start."""
    known = {_variable(name) for name in Settings.model_fields} | CLIENT_VARIABLES
    source = os.environ if environ is None else environ
    unknown = sorted(name for name in source if name.upper().startswith(PREFIX) and name.upper() not in known)
    return [UnknownVariable(name, _nearest(name.upper(), known)) for name in unknown]


def _nearest(name: str, known: Iterable[str]) -> str | None:
    by_rest = {variable.removeprefix(PREFIX): variable for variable in known}
    matches = difflib.get_close_matches(name.removeprefix(PREFIX), by_rest, n=1, cutoff=0.6)
    return by_rest[matches[0]] if matches else None


def _contradictions(settings: Settings) -> Iterator[str]:
    """What single ranges cannot say: settings that exclude each other, each with the rule it breaks."""
    s = settings
    if not s.connect_timeout_s < s.first_byte_timeout_s <= s.total_timeout_s:
        yield (
            f"HOOKPOST_CONNECT_TIMEOUT_S ({s.connect_timeout_s:g}) < HOOKPOST_FIRST_BYTE_TIMEOUT_S "
            f"({s.first_byte_timeout_s:g}) <= HOOKPOST_TOTAL_TIMEOUT_S ({s.total_timeout_s:g}) must hold: "
            "each counts from the start of the attempt"
        )
    if not s.renew_s < s.lease_s / 3:
        yield (
            f"HOOKPOST_RENEW_S ({s.renew_s:g}) must be below a third of HOOKPOST_LEASE_S ({s.lease_s:g}): "
            "two renewals may fail before the lease is lost"
        )
    if not s.retry_base_s <= s.retry_cap_s <= s.retry_deadline_s:
        yield (
            f"HOOKPOST_RETRY_BASE_S ({s.retry_base_s:g}) <= HOOKPOST_RETRY_CAP_S ({s.retry_cap_s:g}) <= "
            f"HOOKPOST_RETRY_DEADLINE_S ({s.retry_deadline_s:g}) must hold"
        )
    if s.retry_deadline_s > s.deadline_s_max:
        yield (
            f"HOOKPOST_RETRY_DEADLINE_S ({s.retry_deadline_s:g}) must end two days before the events leave: "
            f"HOOKPOST_RETENTION_DAYS ({s.retention_days}) allows {s.deadline_s_max:g}"
        )
    if s.database_pool_min > s.database_pool_max:
        yield (
            f"HOOKPOST_DATABASE_POOL_MIN ({s.database_pool_min}) must not exceed "
            f"HOOKPOST_DATABASE_POOL_MAX ({s.database_pool_max})"
        )
    if s.batch_max_events > s.ingest_queue_events:
        yield (
            f"HOOKPOST_INGEST_QUEUE_EVENTS ({s.ingest_queue_events}) must hold at least one batch: "
            f"HOOKPOST_BATCH_MAX_EVENTS is {s.batch_max_events}"
        )
    if s.smtp_host is not None and s.smtp_from is None:
        yield "HOOKPOST_SMTP_FROM must be set with HOOKPOST_SMTP_HOST: the address that mails come from"
    if s.smtp_user is not None and s.smtp_tls == "none":
        yield "HOOKPOST_SMTP_USER needs HOOKPOST_SMTP_TLS=starttls or tls: a password is not sent in the clear"
    if (s.smtp_user is None) != (s.smtp_password is None):
        yield "HOOKPOST_SMTP_USER and HOOKPOST_SMTP_PASSWORD must be set together"
    if s.alert_secret is not None and s.alert_url is None:
        yield "HOOKPOST_ALERT_SECRET signs posts to HOOKPOST_ALERT_URL, which is not set"
    for name in ("ingest_queue_bytes", "worker_in_flight_bytes", "buffer_bytes"):
        if getattr(s, name) < s.body_max_bytes:
            yield (
                f"{_variable(name)} ({getattr(s, name)}) must hold at least one event: "
                f"HOOKPOST_BODY_MAX_BYTES is {s.body_max_bytes}"
            )
    if s.rollup_minutes_days > s.rollup_hours_days:
        yield (
            f"HOOKPOST_ROLLUP_MINUTES_DAYS ({s.rollup_minutes_days:g}) must not exceed "
            f"HOOKPOST_ROLLUP_HOURS_DAYS ({s.rollup_hours_days:g})"
        )
    if s.journal_url is not None and s.payload_inline_max > KAFKA_INLINE_BYTES_MAX:
        yield (
            f"HOOKPOST_PAYLOAD_INLINE_MAX ({s.payload_inline_max}) must not exceed {KAFKA_INLINE_BYTES_MAX} with "
            "HOOKPOST_JOURNAL_URL: a record of Kafka holds the payload, and larger ones go to the payload store"
        )
    if s.workers > s.shards:
        yield (
            f"HOOKPOST_WORKERS ({s.workers}) must not exceed HOOKPOST_SHARDS ({s.shards}): "
            "a shard has one owner, so further workers would have nothing to do"
        )


# How settings and their faults are shown. ----------------------------------------------------------------------------


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _shown(name: str, value: object) -> str:
    match value:
        case None:
            return ""
        case SecretStr():
            return MASK
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}" if value < 1e6 else str(value)
        case tuple():
            return ",".join(str(part) for part in value) or NONE
        case str() if name == "database_url":
            return _masked_url(value)
        case _:
            return str(value)


def _masked_url(url: str) -> str:
    """A database address without its password, wherever it stands."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    netloc = f"{name}{colon}{MASK if colon else ''}@{host}" if user else host
    query = [(key, MASK if "password" in key.lower() else value) for key, value in parse_qsl(parts.query)]
    return urlunsplit((parts.scheme, netloc, parts.path, urlencode(query, safe="/*:,"), ""))


def _explain(error: ValidationError) -> str:
    """One line per fault, each with the variable, what it was and what it may be."""
    faults = [fault for fault in error.errors(include_url=False) if fault["type"] != _NOT_WORKED_OUT]
    lines = [line for fault in faults for line in _fault_lines(fault)]
    heading = "a setting cannot be used:" if len(lines) == 1 else f"{len(lines)} settings cannot be used:"
    return "\n".join(
        [heading, *(f"  {line}" for line in lines), "`hookpost config` shows all settings and their meaning."]
    )


def _fault_lines(fault: ErrorDetails) -> list[str]:
    reason = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not fault["loc"]:
        return reason.split("\n")
    name = str(fault["loc"][0])
    field = Settings.model_fields.get(name)
    if field is None:
        return [f"{name} is not a setting"]
    given = "" if name in SECRET_FIELDS else f"={fault['input']}"
    allowed = _allowed(field)
    return [f"{_variable(name)}{given}: " + (f"{allowed} ({field.description})" if allowed else reason)]


def _allowed(field: FieldInfo) -> str:
    """What a field may be, in words; empty where only the fault itself can tell."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if choices:
        return "must be one of " + ", ".join(choices)
    if field.annotation is bool:
        return "must be true or false"
    if field.annotation not in (int, float):
        return ""
    kind = "a whole number" if field.annotation is int else "a number"
    low = next((f"{m.ge:g}" for m in field.metadata if isinstance(m, Ge)), None)
    above = next((f"above {m.gt:g}" for m in field.metadata if isinstance(m, Gt)), None)
    high = next((f"{m.le}" for m in field.metadata if isinstance(m, Le)), None)
    return f"must be {kind}, {low or above} to {high}"
