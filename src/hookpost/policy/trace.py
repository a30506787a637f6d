"""The trace that an event was posted in (W3C Trace Context), and what of it is passed on. Pure.

A trace is kept as 25 bytes: its id (16), the producer's span (8) and the flags (1). In a request to a receiver the span
is our attempt, whosever the trace is: a producer's span is never shown to a receiver, nor its tracestate or baggage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

# Version, trace, span and flags, and whatever a later version has behind them; ids of zeros are invalid (3.2.2).
_TRACEPARENT = re.compile(
    rb"([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)
# Flags that are known: sampled (level 1), random (level 2). Others must not be passed on (3.2.2.5).
_KNOWN_FLAGS = 0x03
ID_BYTES, SPAN_BYTES = 16, 8
TRACE_BYTES = ID_BYTES + SPAN_BYTES + 1


@dataclass(frozen=True, slots=True)
class Trace:
    """Of a producer. ``span``: its span and the flags, 9 bytes."""

    trace_id: UUID
    span: bytes


def parse_traceparent(header: bytes) -> Trace | None:
    """The trace that a header names; None for one that is not valid, which is as good as absent."""
    match = _TRACEPARENT.fullmatch(header)
    if match is None:
        return None
    version, trace_id, span, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more):
        return None
    return Trace(UUID(trace_id.decode()), bytes.fromhex((span + flags).decode()))


def forwarded(trace: bytes, attempt_id: UUID) -> str:
    """The `traceparent` of an attempt in the producer's own trace."""
    flags = trace[-1] & _KNOWN_FLAGS
    return f"00-{trace[:ID_BYTES].hex()}-{attempt_id.hex[16:]}-{flags:02x}"
