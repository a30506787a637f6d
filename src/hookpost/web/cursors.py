"""Cursors of lists: where the next page begins, bound to the tenant and the filters of the list.

A cursor is the sort key of the last row shown, with an HMAC under a secret of the installation. It survives inserts
(nothing is skipped or shown twice), needs no state, and is of no use with another tenant or another filter.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import msgspec

from hookpost.web.problems import Problem, refusal

MAC_BYTES = 16
# The longest key is a time and two ids.
CURSOR_CHARS_MAX = 512


class Cursors:
    """Makes and reads the cursors of one installation."""

    def __init__(self, secret: bytes) -> None:
        assert len(secret) >= MAC_BYTES, "a cursor secret of at least 16 bytes is expected"
        self._secret = secret

    def show(self, key: tuple[Any, ...] | None, tenant_id: UUID | None, filters: Mapping[str, Any]) -> str | None:
        """The cursor of the page behind ``key``; None when there is none."""
        if key is None:
            return None
        encoded = msgspec.json.encode(key)
        return urlsafe_b64encode(self._mac(encoded, tenant_id, filters) + encoded).rstrip(b"=").decode()

    def read(self, cursor: str | None, tenant_id: UUID | None, filters: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The sort key in a cursor that this installation made for the same list; Problem 400 for any other."""
        if cursor is None:
            return None
        mac, encoded = _decoded(cursor)
        if not hmac.compare_digest(mac, self._mac(encoded, tenant_id, filters)):
            raise _unusable()
        return tuple(msgspec.json.decode(encoded, type=list[Any]))

    def _mac(self, encoded: bytes, tenant_id: UUID | None, filters: Mapping[str, Any]) -> bytes:
        bound = msgspec.json.encode([tenant_id, sorted(filters.items())])
        return hmac.digest(self._secret, b"%d:%b%b" % (len(bound), bound, encoded), "sha256")[:MAC_BYTES]


def _decoded(cursor: str) -> tuple[bytes, bytes]:
    if len(cursor) > CURSOR_CHARS_MAX or not cursor.isascii():
        raise _unusable()
    try:
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except ValueError as error:
        raise _unusable() from error
    return raw[:MAC_BYTES], raw[MAC_BYTES:]


def _unusable() -> Problem:
    return refusal(400, "this cursor belongs to another list or was altered: begin again without cursor")
