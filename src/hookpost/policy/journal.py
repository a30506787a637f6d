"""The rules of a journal in Kafka: its address, and to whom an event is owed that was matched a moment too early."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import UUID

from hookpost.model import minted_at

SCHEME = "kafka"
TOPIC = "hookpost.journal"
"""The topic of an address that names none."""
# Kafka's own rule for the names of topics.
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SERVER = re.compile(r"(?P<host>[^\s:\[\]]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?")
PORT = 9092
# An id carries the time of the API process that minted it, corrected by the database's to some milliseconds: an
# endpoint that is older than the event, or hardly younger, is asked whether it wants it. One event too many at a new
# endpoint harms nobody; one too few would be lost.
CLOCK_MARGIN_S = 2.0

# Copies of each record, and how many must have it before it is acknowledged: any one broker may die.
REPLICATION = 3
IN_SYNC_MIN = 2

Security: TypeAlias = Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]
# What may stand in the query of an address, and what librdkafka calls it.
_OPTIONS: Mapping[str, str] = {
    "security": "security.protocol",
    "mechanism": "sasl.mechanism",
    "ca_file": "ssl.ca.location",
    "cert_file": "ssl.certificate.location",
    "key_file": "ssl.key.location",
}
_SECURITY = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """Where the journal is. ``options``: what a client of librdkafka needs to get in; holds secrets."""

    servers: str
    topic: str
    options: Mapping[str, str]


def parse_address(url: str) -> KafkaAddress:
    """``kafka://[user:password@]host[:port][,host…][/topic][?security=…]``. Raises ValueError, in words for people."""
    # urlsplit would refuse several hosts with ports, so it is asked for the rest alone.
    scheme, _, behind = url.partition("://")
    if scheme != SCHEME or not behind:
        raise ValueError("an address such as kafka://host1:9092,host2:9092/hookpost.journal is expected")
    parts = urlsplit(f"//{behind}")
    login, _, hosts = parts.netloc.rpartition("@")
    topic = parts.path.strip("/") or TOPIC
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ValueError(f"the topic {topic} is none: letters, digits, dot, dash and underscore, at most 249")
    return KafkaAddress(_servers(hosts), topic, _options(login, parts.query))


def _servers(hosts: str) -> str:
    found = []
    for each in hosts.split(","):
        named = _SERVER.fullmatch(each)
        if named is None or not 0 < int(named["port"] or PORT) < 65_536:
            raise ValueError(f"{each or 'an empty name'} is no broker: host:port, several of them with commas between")
        found.append(f"{named['host']}:{named['port'] or PORT}")
    return ",".join(found)


def _options(login: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise ValueError(f"{name} is no option of a kafka:// address: {', '.join(_OPTIONS)} are")
        options[_OPTIONS[name]] = value
    security = options.setdefault("security.protocol", "sasl_ssl" if login else "plaintext").lower()
    if security not in _SECURITY:
        raise ValueError(f"security must be one of {', '.join(_SECURITY)}")
    options["security.protocol"] = security
    if security.startswith("sasl") != bool(login):
        raise ValueError("security=sasl_ssl or sasl_plaintext goes with user:password@, and neither without the other")
    if login:
        user, _, password = login.partition(":")
        options["sasl.username"], options["sasl.password"] = unquote(user), unquote(password)
        mechanism = options.setdefault("sasl.mechanism", "SCRAM-SHA-512")
        if mechanism not in _MECHANISMS:
            raise ValueError(f"mechanism must be one of {', '.join(_MECHANISMS)}")
    elif "sasl.mechanism" in options:
        raise ValueError("mechanism goes with user:password@")
    return options


def copies(servers: str, *, alive: int) -> int | None:
    """How many copies of each record a topic gets that is made while so many brokers are there; None: it is not to be
    made now, as some that the address names are away. A topic keeps the copies that it was made with."""
    if alive < min(REPLICATION, servers.count(",") + 1):
        return None
    return min(REPLICATION, alive)


def owed_now(
    owed: tuple[UUID, ...], matching: Iterable[UUID], *, without: UUID | None, accepted_at: float
) -> tuple[UUID, ...]:
    """To whom an event is owed whose tenant's configuration changed since it was matched: to all it was accepted for,
    and to those that match now and were there when it was accepted. An endpoint whose creation or change was
    acknowledged before the event was posted is among them."""
    known = {*owed, without}
    latest = accepted_at + CLOCK_MARGIN_S
    return (*owed, *(each for each in matching if each not in known and minted_at(each) <= latest))
