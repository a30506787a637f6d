"""What `hookpost endpoints headers` and `hookpost endpoints tls` ask of the API: options to the body of a PATCH.

A secret comes from a file or from standard input: arguments of a process are shown to everybody on the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hookpost.app.client import ClientError


def headers(given: Sequence[str], secrets: Sequence[str], removed: Sequence[str], *, clear: bool) -> dict[str, Any]:
    """The change of an endpoint's own headers; empty when there is none. Raises ClientError and OSError."""
    if clear and (given or secrets or removed):
        raise ClientError("--clear takes all headers away: give it alone")
    if clear:
        return {"headers": None}
    change: dict[str, Any] = dict.fromkeys(removed)
    for line in given:
        name, value = _parts(line, "'name: value'")
        change[name] = value
    for line in secrets:
        name, source = _parts(line, "'name: @FILE' or 'name: -'")
        if source != "-" and not source.startswith("@"):
            raise ClientError(f"--secret {name}: give '@FILE', or '-' for standard input: others can see arguments")
        value = sys.stdin.read() if source == "-" else Path(source[1:]).read_text(encoding="utf-8")
        change[name] = {"value": value.strip(), "secret": True}
    if len(change) < len(given) + len(secrets) + len(removed):
        raise ClientError("a header is named twice")
    return {"headers": change} if change else {}


def tls(
    ca: Path | None, cert: Path | None, key: Path | None, *, remove_ca: bool, remove_cert: bool, clear: bool
) -> dict[str, Any]:
    """The change of an endpoint's TLS; empty when there is none. Raises ClientError and OSError."""
    if (cert is None) is not (key is None):
        raise ClientError("--cert and --key come together")
    if (ca and remove_ca) or (cert and remove_cert) or (clear and (ca or cert or remove_ca or remove_cert)):
        raise ClientError("either give something new, or take it away")
    if clear:
        return {"tls": None}
    change: dict[str, str | None] = {}
    for field, file in (("ca_pem", ca), ("client_cert_pem", cert), ("client_key_pem", key)):
        if file is not None:
            change[field] = file.read_text(encoding="utf-8")
    if remove_ca:
        change["ca_pem"] = None
    if remove_cert:
        change |= {"client_cert_pem": None, "client_key_pem": None}
    return {"tls": change} if change else {}


def _parts(line: str, expected: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise ClientError(f"{expected} is expected, with a colon")
    return name.strip(), value.strip()
