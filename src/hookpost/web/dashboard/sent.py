"""What was sent in an attempt, and how to send it again by hand. Pure.

Requests are made from the event, the endpoint's secrets and the time alone, so they can be made again: the log of
attempts does not hold them. A secret that has ended since is gone, and a signature with it; headers of the endpoint's
own are those that it has now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from hookpost.model import Endpoint, Secret
from hookpost.policy.headers import MASK
from hookpost.policy.request import build_request
from hookpost.storage.endpoints import own_headers

# A command line longer than that is refused by some shells, and read by nobody.
INLINE_BODY_BYTES_MAX = 16 * 1024


def headers_of(
    event: Mapping[str, Any],
    secrets: Sequence[Mapping[str, Any]],
    own: Mapping[str, str | None],
    *,
    url: str,
    endpoint_id: UUID,
    payload: bytes,
    attempt_id: UUID,
    retry_count: int,
    user_agent: str,
    at: float,
    forward_trace: bool,
) -> str:
    """The header lines of an attempt at that time (Unix seconds), signed with those of the secrets that there were.

    ``own``: headers that the endpoint adds, null for a value that is secret: it stays masked. ``forward_trace``: the
    attempt was told the producer's trace, where the event has one. Raises HeaderError.
    """
    endpoint = Endpoint(
        endpoint_id,
        event["tenant_id"],
        url,
        secrets=tuple(
            Secret(row["key"], row["created_at"], row["expires_at"]) for row in secrets if row["created_at"] <= at
        ),
        headers=own_headers({name: MASK if value is None else value for name, value in own.items()}, {}),
        forward_trace=forward_trace,
    )
    trace_id, span = event["trace_id"], event["trace_span"]
    return build_request(
        endpoint,
        event_id=event["event_id"],
        event_type=event["type"],
        payload=payload,
        attempt_id=attempt_id,
        retry_count=retry_count,
        user_agent=user_agent,
        now=at,
        trace=None if trace_id is None or span is None else trace_id.bytes + span,
    ).headers.replace("\r\n", "\n")


def curl(url: str, headers: str, payload: bytes) -> str:
    """A command for a shell (bash, zsh) that sends the same. A long payload comes from the file that is downloaded."""
    lines = [f"curl -i {_quoted(url)}"]
    lines += [f"  -H {_quoted(header)}" for header in headers.split("\n")]
    if len(payload) <= INLINE_BODY_BYTES_MAX:
        lines.append(f"  --data-binary {_quoted(payload.decode('utf-8', 'surrogateescape'))}")
    else:
        lines.append("  --data-binary @payload.json")
    return " \\\n".join(lines)


def _quoted(text: str) -> str:
    """One word for the shell. Whatever is not plain to see is spelled out byte by byte, so that nothing is pasted that
    was not read."""
    if text.isascii() and text.isprintable():
        return "'" + text.replace("'", "'\\''") + "'"
    return "$'" + "".join(_spelled(character) for character in text) + "'"


def _spelled(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
