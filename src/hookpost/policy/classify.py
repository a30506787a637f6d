"""What a failed attempt means: is it tried again, and does it count against the endpoint's health?

One table says it for every error code (design.md §6), so that the transport, the retry rule and the breaker cannot
disagree. A failure is *charged* when it tells that the receiver, or the way to it, is sick; a failure that a healthy
receiver may well answer (4xx, 3xx) or that is ours (policy, egress proxy, bug) is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hookpost.model import ErrorCode

__all__ = ["FAILURES", "FailureClass", "classify", "http_error_code"]


@dataclass(frozen=True, slots=True)
class FailureClass:
    """``retried``: the delivery is tried again. ``charged``: counts as a health failure of the endpoint."""

    retried: bool
    charged: bool


_SICK = FailureClass(retried=True, charged=True)
_NOT_ITS_HEALTH = FailureClass(retried=True, charged=False)
_FINAL = FailureClass(retried=False, charged=False)

FAILURES: Mapping[ErrorCode, FailureClass] = MappingProxyType(
    {
        ErrorCode.DNS_FAILURE: _SICK,
        ErrorCode.CONNECT_REFUSED: _SICK,
        ErrorCode.CONNECT_TIMEOUT: _SICK,
        ErrorCode.NETWORK_UNREACHABLE: _SICK,
        ErrorCode.FIRST_BYTE_TIMEOUT: _SICK,
        ErrorCode.TOTAL_TIMEOUT: _SICK,
        ErrorCode.TLS_FAILURE: _SICK,
        ErrorCode.TLS_UNTRUSTED: _SICK,
        ErrorCode.CONNECTION_RESET: _SICK,
        ErrorCode.PROTOCOL_ERROR: _SICK,
        ErrorCode.HTTP_5XX: _SICK,
        ErrorCode.HTTP_429: _SICK,
        ErrorCode.ADDRESS_FORBIDDEN: _NOT_ITS_HEALTH,
        ErrorCode.INVALID_URL: _NOT_ITS_HEALTH,
        ErrorCode.EGRESS_PROXY_ERROR: _NOT_ITS_HEALTH,
        ErrorCode.INTERNAL_ERROR: _NOT_ITS_HEALTH,
        ErrorCode.BAD_ACK: _NOT_ITS_HEALTH,
        ErrorCode.HTTP_3XX: _NOT_ITS_HEALTH,
        ErrorCode.HTTP_4XX: _FINAL,
        ErrorCode.HTTP_410: _FINAL,
    }
)

RETRIED_4XX = frozenset({408, 425})
"""Request Timeout (RFC 9110 §15.5.9) and Too Early (RFC 8470 §5.2) ask for the same request again, unlike other 4xx."""


def classify(error_code: ErrorCode, status: int | None) -> FailureClass:
    """The class of a failure; ``status`` is the HTTP status, None when no complete head came."""
    if error_code is ErrorCode.HTTP_4XX and status in RETRIED_4XX:
        return _NOT_ITS_HEALTH
    return FAILURES[error_code]


def http_error_code(status: int) -> ErrorCode | None:
    """The error code of a final HTTP status (200–999); None for a 2xx. Statuses above 599 count as 5xx."""
    if 200 <= status < 300:
        return None
    if status < 200:
        return ErrorCode.PROTOCOL_ERROR
    if status < 400:
        return ErrorCode.HTTP_3XX
    if status >= 500:
        return ErrorCode.HTTP_5XX
    return _NAMED_4XX.get(status, ErrorCode.HTTP_4XX)


_NAMED_4XX = {410: ErrorCode.HTTP_410, 429: ErrorCode.HTTP_429}
