"""Who has signed in: a cookie that says which key it was, sealed with the installation's secret.

The cookie holds a reference to the key, never the key, and when it was sealed. It is read by nobody but us and trusted
only with its HMAC; whether the key is still good is asked anew with every request. A form carries a token made from the
cookie, so that another site cannot send one in a visitor's name (CSRF). Pure: `now` and random bytes are arguments.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass

import msgspec

_COOKIE = "hookpost_session"
# Browsers take a name that begins so from https alone, for this host alone and with the path / (RFC 6265bis, 4.1.3.2):
# neither a page of a neighbouring host nor whoever sits on the line can plant a session.
_HOST_ONLY = "__Host-"
# A working day: whoever comes back tomorrow signs in again.
SESSION_S_MAX = 12 * 3600.0
NONCE_BYTES = 16
_MAC_BYTES = 32
_COOKIE_CHARS_MAX = 512


def cookie_of(*, secure: bool) -> str:
    """The name of the cookie; ``secure``: the dashboard is reached by https."""
    return _HOST_ONLY + _COOKIE if secure else _COOKIE


@dataclass(frozen=True, slots=True)
class Session:
    """One sign-in. ``csrf`` is what its forms carry."""

    reference: str
    csrf: str


class Sessions:
    """Seals and reads the sessions of one installation; ``secret`` is the same in all processes."""

    def __init__(self, secret: bytes) -> None:
        # The secret of the cursors serves other purposes, too: each has a key of its own.
        self._seal_key = hmac.digest(secret, b"dashboard session", "sha256")
        self._form_key = hmac.digest(secret, b"dashboard form", "sha256")

    def seal(self, reference: str, *, now: float, nonce: bytes) -> str:
        """The value of the cookie of a new session."""
        content = msgspec.json.encode([reference, int(now), nonce.hex()])
        return urlsafe_b64encode(self._mac(content) + content).decode().rstrip("=")

    def read(self, cookie: str | None, *, now: float) -> Session | None:
        """The session in a cookie; None for what is missing, altered, foreign or too old."""
        if cookie is None or not cookie.isascii() or len(cookie) > _COOKIE_CHARS_MAX:
            return None
        try:
            raw = urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
        except ValueError:
            return None
        mac, content = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(content)):
            return None
        reference, sealed_at, _nonce = msgspec.json.decode(content, type=tuple[str, int, str])
        if not -1 <= now - sealed_at <= SESSION_S_MAX:
            return None
        return Session(reference, hmac.digest(self._form_key, content, "sha256").hex())

    def _mac(self, content: bytes) -> bytes:
        return hmac.digest(self._seal_key, content, "sha256")


def is_own_form(session: Session, token: str) -> bool:
    """Was the form made for this session?"""
    return hmac.compare_digest(session.csrf.encode(), token.encode("utf-8", "replace"))
