"""Where we may connect to: the verdict on an address, the policy on ports, the check of an endpoint's URL.

The address of every socket is judged right before it connects (``verdict``); that is the security. The check of a URL
is courtesy to whoever types it, and makes sure that what is stored, shown and sent is one and the same text.

All requests to what somebody else has chosen come by here: deliveries, tests and the operator's alert URL, with a proxy
as without (docs/adr/0020).

The lists are the IANA special-purpose registries (RFC 6890 and its updates) plus the metadata services of the large
clouds. ``ipaddress.is_global`` is no substitute: it differs between Python releases and lets NAT64, IPv4-compatible
and site-local addresses pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TypeAlias
from urllib.parse import unquote

import idna

__all__ = [
    "ANYWHERE",
    "EgressPolicy",
    "EgressProxy",
    "Network",
    "Target",
    "UrlError",
    "check_url",
    "origin_of",
    "parse_proxy",
    "reachable",
    "split_url",
    "verdict",
]

Network: TypeAlias = IPv4Network | IPv6Network
Address: TypeAlias = IPv4Address | IPv6Address

URL_CHARS_MAX = 2048
HOST_CHARS_MAX = 253  # RFC 1035 §2.3.4, written without the final dot
WELL_KNOWN_PORTS = frozenset({80, 443})
UNPRIVILEGED_PORT_MIN = 1024
_VERDICTS_KEPT = 8192
_URLS_KEPT = 131_072


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ip_network(part) for part in text.split())


_METADATA = _networks("169.254.0.0/16 168.63.129.16/32 100.100.100.200/32 fd00:ec2::254/128 fd20:ce::254/128 fe80::/10")
_DENIED_V4 = _networks(
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 "
    "192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 "
    "203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
)
_GLOBAL_V6 = IPv6Network("2000::/3")
_DENIED_V6 = _networks("2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20")
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address a gateway will connect to
_CARRIES_V4_LAST = _networks("::/64 64:ff9b::/32")  # compatible, translated, ISATAP-like and NAT64 forms
_METADATA_NAMES = frozenset({"metadata.google.internal", "metadata.goog", "instance-data"})
_LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})


ANYWHERE = _networks("0.0.0.0/0 ::/0")
"""Opens all networks to whom the operator has named himself; not the metadata services, which nothing opens."""


class UrlError(ValueError):
    """A URL that cannot be an endpoint's; the text tells what to change."""


@dataclass(frozen=True, slots=True)
class EgressProxy:
    """The operator's HTTP proxy: all requests leave through tunnels that it opens (CONNECT, RFC 9110 §9.3.6)."""

    host: str
    port: int
    user: str | None = None
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What the operator allows beyond the default: private networks; what he forbids: ports, plain http; and the proxy
    that requests leave through."""

    allow_networks: tuple[Network, ...] = ()
    deny_ports: frozenset[int] = frozenset()
    https_only: bool = False
    proxy: EgressProxy | None = None

    def port_allowed(self, port: int) -> bool:
        """80, 443 and 1024–65535 may be targets, less ``deny_ports``."""
        known = port in WELL_KNOWN_PORTS or UNPRIVILEGED_PORT_MIN <= port <= 65535
        return known and port not in self.deny_ports


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart. ``url`` is its normal form; ``literal`` says that ``host`` is an address, not a name."""

    url: str
    scheme: str
    host: str
    port: int
    literal: bool


def verdict(address: str, allow: Sequence[Network]) -> str | None:
    """Why we may not connect to ``address``; None if we may.

    ``allow`` opens private networks, never the metadata services (design.md §3.7, reference B2).
    """
    return _verdict(address, tuple(allow))


@lru_cache(maxsize=_VERDICTS_KEPT)
def _verdict(text: str, allow: tuple[Network, ...]) -> str | None:
    try:
        address: Address = ip_address(text.partition("%")[0])
    except ValueError:
        return "not an IP address"
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if any(_within(form, _METADATA) for form in (address, *_carried_v4(address))):
        return "link-local or metadata service address"
    if _within(address, allow):
        return _verdict(str(_last_v4(address)), allow) if address in _NAT64 else None
    return None if _public(address) else "not a public address"


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not _within(address, _DENIED_V4)
    return address in _GLOBAL_V6 and not _within(address, _DENIED_V6)


def _carried_v4(address: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that a transition form of IPv6 may lead to."""
    if isinstance(address, IPv4Address):
        return ()
    if address.teredo:
        return address.teredo
    if address.sixtofour:
        return (address.sixtofour,)
    return (_last_v4(address),) if _within(address, _CARRIES_V4_LAST) else ()


def _last_v4(address: Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFFFFFF)


def reachable(addresses: Sequence[str], allow: Sequence[Network]) -> tuple[tuple[str, ...], str]:
    """Those of a name's addresses that may be connected to, and why the first of the others may not.

    For a proxy, which opens the sockets: it is told one of these, never the name. They are of one family, that of the
    first: whether the proxy has the other is not known here.
    """
    refusals = {address: verdict(address, allow) for address in addresses}
    allowed = [address for address, reason in refusals.items() if reason is None]
    reason = next((f"{address}: {reason}" for address, reason in refusals.items() if reason is not None), "")
    return tuple(address for address in allowed if (":" in address) is (":" in allowed[0])), reason


_PROXY = re.compile(
    r"http://(?:(?P<user>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?(?P<authority>[^@/?#]+)/?", re.IGNORECASE
)


def parse_proxy(text: str) -> EgressProxy:
    """``http://[user:password@]host:port``, user and password percent-encoded; raises UrlError."""
    parts = _PROXY.fullmatch(text)
    if parts is None or _FORBIDDEN.search(text):
        raise UrlError("a proxy is written http://host:port or http://user:password@host:port")
    host, port, _ = _host_and_port(parts["authority"], 0)
    if not port:
        raise UrlError("the proxy needs its port: http://host:port")
    user = parts["user"]
    return EgressProxy(host, port, None if user is None else unquote(user), unquote(parts["password"] or ""))


def check_url(text: str, policy: EgressPolicy) -> str:
    """The normal form of an endpoint's URL, or UrlError.

    Scheme and host become lower case, the host ASCII, a default port and a final dot go, an empty path becomes ``/``;
    path and query stay as given, percent-encoding included. Names are judged when they are resolved, not here.
    """
    target = split_url(text)
    if policy.https_only and target.scheme != "https":
        raise UrlError("the URL must start with https://: this installation sends to https only")
    if not policy.port_allowed(target.port):
        raise UrlError(
            f"port {target.port} is not allowed: use 80, 443 or a port from 1024 up that the operator does not deny"
        )
    if target.host in _METADATA_NAMES:
        raise UrlError("the host is a cloud's metadata service, which is never a target")
    reason = verdict(_judged_as(target), policy.allow_networks) if _judged_as(target) else None
    if reason is not None:
        raise UrlError(
            f"the host {target.host} is not allowed ({reason}): "
            "use a public host, or ask the operator to allow its network"
        )
    return target.url


def _judged_as(target: Target) -> str:
    """The address a host stands for without asking DNS; empty if only DNS knows."""
    if target.literal:
        return target.host
    if target.host.startswith("ip6-") and target.host in _LOOPBACK_NAMES:
        return "::1"
    return "127.0.0.1" if target.host in _LOOPBACK_NAMES or target.host.endswith(".localhost") else ""


_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
_PARTS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<rest>.*)", re.DOTALL)
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?P<port>:.*)?", re.DOTALL)
_PORT = re.compile(r":[1-9][0-9]{0,4}", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}


@lru_cache(maxsize=_URLS_KEPT)
def split_url(text: str) -> Target:
    """Take a URL apart and normalise it; raises UrlError for whatever is not a plain http(s) URL of a host."""
    if len(text) > URL_CHARS_MAX:
        raise UrlError(f"the URL is longer than {URL_CHARS_MAX} characters: shorten it")
    if _FORBIDDEN.search(text):
        raise UrlError("the URL holds a space, a control character or a backslash: percent-encode or remove it")
    if "#" in text:
        raise UrlError("the URL holds a fragment (#…), which is never sent: remove it")
    parts = _PARTS.fullmatch(text)
    scheme = parts["scheme"].lower() if parts else ""
    if parts is None or scheme not in _DEFAULT_PORTS:
        raise UrlError("the URL must start with https:// or http://")
    if "@" in parts["authority"]:
        raise UrlError("the URL holds a user name or password: remove it and set an authorization header instead")
    host, port, literal = _host_and_port(parts["authority"], _DEFAULT_PORTS[scheme])
    rest = parts["rest"] if parts["rest"].startswith("/") else "/" + parts["rest"]
    if not rest.isascii():
        raise UrlError("path and query must be ASCII: percent-encode other characters")
    shown = f"[{host}]" if ":" in host else host
    suffix = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    url = f"{scheme}://{shown}{suffix}{rest}"
    if len(url) > URL_CHARS_MAX:
        raise UrlError(f"the URL is longer than {URL_CHARS_MAX} characters once normalised: shorten it")
    return Target(url=url, scheme=scheme, host=host, port=port, literal=literal)


def origin_of(url: str) -> str:
    """Scheme, host and port of a stored (normalised) URL, as text: what a circuit breaker is kept for."""
    path = url.find("/", len("https://"))
    return url if path < 0 else url[:path]


def _host_and_port(authority: str, default_port: int) -> tuple[str, int, bool]:
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise UrlError("the host is malformed: write a name, an IPv4 address, or an IPv6 address in brackets")
    port = _port(parts["port"], default_port)
    if parts["v6"] is not None:
        return _ipv6_host(parts["v6"]), port, True
    host = _name_host(parts["name"])
    return host, port, bool(_NUMERIC.fullmatch(host.rpartition(".")[2]))


def _port(text: str | None, default_port: int) -> int:
    if text is None:
        return default_port
    if not _PORT.fullmatch(text) or int(text[1:]) > 65535:
        raise UrlError("the port must be a number from 1 to 65535 without leading zeros")
    return int(text[1:])


def _ipv6_host(text: str) -> str:
    if "%" in text:
        raise UrlError("the host is an IPv6 address with a zone, which means something on one machine only")
    try:
        return IPv6Address(text).compressed
    except AddressValueError as error:
        raise UrlError("the host in brackets is not an IPv6 address") from error


def _name_host(text: str) -> str:
    """A name in lower-case ASCII, or a canonical IPv4 address."""
    host = _ascii_host(text).removesuffix(".")
    if not host:
        raise UrlError("the URL has no host: write https://host/path")
    if len(host) > HOST_CHARS_MAX or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise UrlError("the host is not a valid name: labels of 1 to 63 letters, digits and hyphens, joined by dots")
    if _NUMERIC.fullmatch(host.rpartition(".")[2]) and not _canonical_ipv4(host):
        raise UrlError("the host is a number, not a name: write an IPv4 address as four decimal numbers (192.0.2.1)")
    return host


def _ascii_host(text: str) -> str:
    """Unicode to punycode (IDNA 2008 with UTS 46 mapping); punycode given as such must decode."""
    lowered = text.lower()
    if lowered.isascii() and "xn--" not in lowered:
        return lowered
    try:
        return idna.encode(text, uts46=True).decode("ascii").lower()
    except UnicodeError as error:
        raise UrlError("the host is not a valid international name (IDNA 2008)") from error


def _canonical_ipv4(host: str) -> bool:
    try:
        return str(IPv4Address(host)) == host
    except AddressValueError:
        return False
