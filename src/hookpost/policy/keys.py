"""API keys: ``hpk_<key id>_<secret><checksum>``, all in lower-case hex.

Pure: random bytes are arguments. The key id finds the stored row, the secret proves the key, and the checksum lets a
key that was cut or mistyped be refused without asking the store, and leaked keys be found without false alarms. Only
the SHA-256 of the secret is stored: 256 random bits need no slow hash.
"""

from __future__ import annotations

import hmac
import re
from binascii import crc32
from dataclasses import dataclass, field
from hashlib import sha256

__all__ = [
    "ADMIN_KEY_CHARS_MIN",
    "KEY_ID_BYTES",
    "SECRET_BYTES",
    "ParsedKey",
    "hash_secret",
    "make_key",
    "parse_key",
    "same_hash",
]

KEY_ID_BYTES = 8
SECRET_BYTES = 32
# An admin key that the operator brings may have any form, but must not be guessable.
ADMIN_KEY_CHARS_MIN = 16

_KEY = re.compile(
    r"(?P<checked>hpk_(?P<key_id>[0-9a-f]{16})_(?P<secret>[0-9a-f]{64}))(?P<checksum>[0-9a-f]{8})", re.ASCII
)


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """The parts of a key whose checksum is right."""

    key_id: str
    secret: str = field(repr=False)


def make_key(key_id_bytes: bytes, secret_bytes: bytes) -> str:
    """A key as it is shown, once, to whoever asked for it."""
    assert len(key_id_bytes) == KEY_ID_BYTES and len(secret_bytes) == SECRET_BYTES
    checked = f"hpk_{key_id_bytes.hex()}_{secret_bytes.hex()}"
    return checked + _checksum(checked)


def parse_key(text: str) -> ParsedKey | None:
    """The parts of a key; None for whatever ``make_key`` cannot have made."""
    match = _KEY.fullmatch(text)
    if match is None or match["checksum"] != _checksum(match["checked"]):
        return None
    return ParsedKey(match["key_id"], match["secret"])


def hash_secret(secret: str) -> bytes:
    """What is stored of a key's secret part, or of a whole admin key that the operator brought."""
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()


def same_hash(one: bytes, other: bytes) -> bool:
    """Compare without telling by the time taken how much is equal."""
    return hmac.compare_digest(one, other)


def _checksum(checked: str) -> str:
    return f"{crc32(checked.encode()):08x}"
