"""Headers that an endpoint adds of its own: which names and values are let through, and which values are secrets.

Pure. A header of the tenant's must not end its line early (RFC 9110 §5.5), change how the request is framed or routed
(§7.6.1), pass for one of ours (signatures above all), or open a cloud's metadata service. What is refused is refused
with its reason; what is let through is sent as it is. Names are compared in lower case, as HTTP does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

__all__ = [
    "HEADERS_MAX",
    "MASK",
    "HeaderRefused",
    "check_header",
    "check_headers",
    "holds_a_secret",
    "parse_patterns",
]

HEADERS_MAX = 32
NAME_CHARS_MAX = 64
VALUE_CHARS_MAX = 4096  # receivers stop at 8 KiB a line (Apache, nginx), names and our own lines included
TOTAL_BYTES_MAX = 8192
MASK = "********"
"""Stands for a secret value wherever headers are shown."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?", re.ASCII)

_FRAMING = "it says how the request is framed or who it is for, which the request itself decides"
_OURS = "it is one of Hookpost's own headers"
_PROXIES = "it speaks to or for proxies, and receivers believe it"
_TRACING = "the trace of a delivery is rooted at Hookpost"
_METADATA = "it opens the metadata service of a cloud"
_SEMANTICS = "it changes what a POST of an event means"

_NAMES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade",
            "expect", "http2-settings", "content-encoding", "accept-encoding", "content-range", "date",
        ),
        _FRAMING,
    ),
    **dict.fromkeys(("signature", "signature-input", "content-digest", "digest", "repr-digest"), _OURS),
    **dict.fromkeys(("forwarded", "via", "x-real-ip", "true-client-ip", "cf-connecting-ip"), _PROXIES),
    **dict.fromkeys(("traceparent", "tracestate", "baggage"), _TRACING),
    **dict.fromkeys(("metadata", "metadata-flavor", "x-google-metadata-request"), _METADATA),
    **dict.fromkeys(
        (
            "range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since",
            "max-forwards", "origin", "early-data", "x-http-method-override", "x-http-method", "x-method-override",
        ),
        _SEMANTICS,
    ),
}  # fmt: skip
_FAMILIES: Sequence[tuple[str, str]] = (
    ("webhook-", _OURS),
    ("x-webhook-", _OURS),
    ("svix-", _OURS),
    ("ce-", _OURS),
    ("proxy-", _PROXIES),
    ("sec-", _PROXIES),
    ("x-forwarded-", _PROXIES),
    ("access-control-", _PROXIES),
    ("x-aws-ec2-metadata-token", _METADATA),
)
# Parts of names, between dashes and underscores, that tell of a secret: better one value too many that is write-only.
_TELLING = frozenset({
    "apikey", "auth", "authorization", "cookie", "credential", "credentials", "hmac", "jwt", "key", "passphrase",
    "passwd", "password", "pat", "secret", "session", "signature", "token",
})  # fmt: skip


class HeaderRefused(ValueError):
    """A header that is not let through; the text says why and what to do."""


def check_header(name: str, value: str, allowed: Sequence[str] = ("*",)) -> None:
    """Raise HeaderRefused unless this header may be sent. ``allowed``: the installation's patterns of names."""
    lower = name.lower()
    if len(name) > NAME_CHARS_MAX or not _TOKEN.fullmatch(name):
        raise HeaderRefused(
            f"a name has 1 to {NAME_CHARS_MAX} of the characters A–Z a–z 0–9 ! # $ % & ' * + . ^ _ ` | ~ -"
        )
    reason = _NAMES.get(lower) or next((why for family, why in _FAMILIES if lower.startswith(family)), None)
    if reason is not None:
        raise HeaderRefused(f"cannot be set: {reason}")
    if not any(fnmatchcase(lower, pattern) for pattern in allowed):
        raise HeaderRefused(f"is not among the headers that this installation lets through: {', '.join(allowed)}")
    if len(value) > VALUE_CHARS_MAX or not _VALUE.fullmatch(value):
        raise HeaderRefused(
            f"a value has 1 to {VALUE_CHARS_MAX} visible ASCII characters, with spaces and tabs between them only"
        )


def check_headers(headers: Mapping[str, str], allowed: Sequence[str] = ("*",)) -> None:
    """The same for all headers of an endpoint together, their number and size included."""
    for name, value in headers.items():
        check_header(name, value, allowed)
    if len(headers) > HEADERS_MAX:
        raise HeaderRefused(f"an endpoint has at most {HEADERS_MAX} headers, these are {len(headers)}")
    size = sum(len(name) + len(value) + len(": \r\n") for name, value in headers.items())
    if size > TOTAL_BYTES_MAX:
        raise HeaderRefused(f"the headers of an endpoint take at most {TOTAL_BYTES_MAX} bytes, these are {size}")


def holds_a_secret(name: str) -> bool:
    """Is the value of a header of this name a secret, whatever the tenant says?"""
    return not _TELLING.isdisjoint(re.split(r"[-_.]", name.lower()))


def parse_patterns(parts: Sequence[str]) -> tuple[str, ...]:
    """Patterns of names (``*`` stands for any characters) in lower case; raises ValueError for what no name matches."""
    patterns = tuple(part.lower() for part in parts)
    for pattern in patterns:
        if len(pattern) > NAME_CHARS_MAX or not _TOKEN.fullmatch(pattern):
            raise ValueError(
                f"{pattern} is no name of a header; write names separated by commas, such as x-*,authorization"
            )
    return patterns
