"""Standard Webhooks 1.0.0, symmetric (``v1``): signing a message and checking a signature.

Signed is ``id.timestamp.body`` as bytes, never a decoded or re-encoded body, with HMAC-SHA256; the header lists one
``v1,BASE64`` per valid key, newest first, so that a rotation never leaves a receiver without a signature it knows
(specification: https://github.com/standard-webhooks/standard-webhooks). Keys, time and random bytes are arguments.

A receiver that acknowledges with its signature signs ``id.timestamp.ack``, the same with the text ``ack`` as body, and
answers with it in ``webhook-ack``: nothing between us and it can then say 2xx in its place.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from hashlib import sha256

from hookpost.model import Secret

__all__ = [
    "GENERATED_BYTES",
    "SecretError",
    "VerificationError",
    "acknowledged",
    "expected_acks",
    "parse_secret",
    "show_secret",
    "signature_header",
    "valid_keys",
    "verify",
]

SECRET_PREFIX = "whsec_"  # noqa: S105 - the public prefix of every secret, not a secret
KEY_BYTES_MIN, KEY_BYTES_MAX = 24, 64  # the specification's bounds of a symmetric key
GENERATED_BYTES = 24  # a multiple of three: its base64 has no padding to lose when copied
PREPARED_MAX = 10_000  # keys whose HMAC is kept ready, about 1 KiB each
TOLERANCE_S = 300  # what all reference libraries allow, in both directions
SIGNATURES_MAX = 64  # looked at in one header; a sender in a rotation needs two
DIGEST_BYTES = 32  # HMAC-SHA256
_BLOCK_BYTES = 64  # SHA-256 works on blocks of so many; HMAC brings every key to this length
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))  # RFC 2104 §2, as byte tables
_TIMESTAMP_DIGITS_MAX = 15  # far beyond any date, far below a costly int()
# The lines of a head that are `webhook-ack` fields; a value may go on behind a folded line end (RFC 9112 §5.2).
_ACK_FIELD = re.compile(rb"^webhook-ack[ \t]*:(.*(?:\n[ \t].*)*)", re.IGNORECASE | re.MULTILINE)
# Entries are separated by spaces; by commas where someone on the way joined two fields into one (RFC 9110 §5.3).
_ACK_ENTRY = re.compile(rb"(?:^|[\s,])v1,([A-Za-z0-9+/]{43}=)(?=[\s,]|$)")


class SecretError(ValueError):
    """A text that is not a signing secret."""


class VerificationError(Exception):
    """A message that must not be trusted; the text says exactly why."""


def parse_secret(text: str) -> bytes:
    """The key in a ``whsec_`` secret; padding may be missing, everything else of base64 is strict."""
    if not text.startswith(SECRET_PREFIX):
        raise SecretError(f"a secret starts with {SECRET_PREFIX}, followed by the base64 of the key")
    encoded = text[len(SECRET_PREFIX) :]
    try:
        key = b64decode(_padded(encoded), validate=True)
    except ValueError as error:
        raise SecretError(f"what follows {SECRET_PREFIX} must be base64 (A–Z a–z 0–9 + / and = at the end)") from error
    if b64encode(key).rstrip(b"=").decode() != encoded.rstrip("="):
        raise SecretError("the secret is cut or altered: the last base64 character carries bits beyond the key")
    if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise SecretError(f"the key must have {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes; this one has {len(key)}")
    return key


def show_secret(key: bytes) -> str:
    """A key as it is shown and imported: ``whsec_`` + standard base64 (of ``GENERATED_BYTES`` random bytes if ours)."""
    return SECRET_PREFIX + b64encode(key).decode()


def valid_keys(secrets: Sequence[Secret], now: float) -> list[bytes]:
    """The keys that sign at ``now`` (Unix seconds), newest first."""
    if len(secrets) == 1 and secrets[0].expires_at is None:
        return [secrets[0].key]
    valid = [secret for secret in secrets if secret.expires_at is None or secret.expires_at > now]
    if len(valid) > 1:
        valid.sort(key=lambda secret: secret.created_at, reverse=True)
    return [secret.key for secret in valid]


def signature_header(message_id: str, timestamp: int, body: bytes, keys: Sequence[bytes]) -> str:
    """The value of ``webhook-signature``: ``v1,BASE64`` for each key, in the given order, separated by spaces."""
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    if len(keys) == 1:
        return "v1," + _signature(keys[0], signed)
    return " ".join(["v1," + _signature(key, signed) for key in keys])


def _signature(key: bytes, signed: bytes) -> str:
    inner, outer = _ready.get(key) or _prepare(key)
    inner, outer = inner.copy(), outer.copy()
    inner.update(signed)
    outer.update(inner.digest())
    return b2a_base64(outer.digest(), newline=False).decode()


_ready: dict[bytes, tuple[hashlib._Hash, hashlib._Hash]] = {}


def _prepare(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """The two hashes of an HMAC-SHA256 (RFC 2104) that have taken in the key: to look the algorithm up and take the key
    in anew costs as much as to sign, and hmac's own copies pass through Python.

    When there are more keys than are kept, one in ten is let in for another, chosen by chance of the key: a cache that
    throws out the oldest never answers when the keys come in turns.
    """
    block = (key if len(key) <= _BLOCK_BYTES else sha256(key).digest()).ljust(_BLOCK_BYTES, b"\0")
    mac = sha256(block.translate(_INNER)), sha256(block.translate(_OUTER))
    if len(_ready) < PREPARED_MAX:
        _ready[key] = mac
    elif key[0] % 10 == 0:
        del _ready[next(iter(_ready))]
        _ready[key] = mac
    return mac


def expected_acks(message_id: str, timestamp: int, keys: Sequence[bytes]) -> tuple[bytes, ...]:
    """The digests of which ``webhook-ack`` must hold one, in answer to the attempt of this id and timestamp."""
    signed = b"%b.%d.ack" % (message_id.encode(), timestamp)
    return tuple(hmac.digest(key, signed, "sha256") for key in keys)


def acknowledged(head: bytes, expected: Sequence[bytes]) -> bool:
    """Does a response's head (status line and fields as received) hold one of the expected acks?

    ``webhook-ack`` lists ``v1,BASE64`` as ``webhook-signature`` does, and may stand in several fields. What is not of
    that form is passed over. All are compared, each in constant time.
    """
    entries = [entry for field in _ACK_FIELD.findall(head) for entry in _ACK_ENTRY.findall(field)]
    given = [b64decode(entry) for entry in entries[:SIGNATURES_MAX]]
    matches = [hmac.compare_digest(ack, digest) for ack in given for digest in expected]
    return any(matches)


def verify(
    headers: Mapping[str, str], body: bytes, keys: Sequence[bytes], now: float, tolerance_s: float = TOLERANCE_S
) -> None:
    """Raise VerificationError unless ``headers`` carry a signature of ``body`` by one of ``keys`` of about ``now``."""
    found = {name.lower(): value for name, value in headers.items()}
    message_id = _message_id(_header(found, "webhook-id"))
    timestamp = _timestamp(_header(found, "webhook-timestamp"), now, tolerance_s)
    signatures = _v1_signatures(_header(found, "webhook-signature"))
    expected = [hmac.digest(key, b"%b.%d.%b" % (message_id, timestamp, body), "sha256") for key in keys]
    matches = [hmac.compare_digest(signature, digest) for signature in signatures for digest in expected]
    if not any(matches):
        raise VerificationError(
            f"none of the {len(signatures)} v1 signatures matches: check that the secret is this endpoint's, "
            "and that the body is verified as received, byte for byte"
        )


def _padded(encoded: str) -> str:
    return encoded if "=" in encoded else encoded + "=" * (-len(encoded) % 4)


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise VerificationError(f"the header {name} is missing or empty")
    return value


def _message_id(text: str) -> bytes:
    """An id with a dot could shift what is signed: ``a.1`` + ``2`` reads like ``a`` + ``1.2``."""
    if "." in text:
        raise VerificationError("the header webhook-id holds a dot, which no id may")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise VerificationError("the header webhook-id is not text") from error


def _timestamp(text: str, now: float, tolerance_s: float) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _TIMESTAMP_DIGITS_MAX):
        raise VerificationError("the header webhook-timestamp is not an integer of Unix seconds")
    if text != str(int(text)):
        raise VerificationError("the header webhook-timestamp has leading zeros: it must be a plain integer")
    age_s = now - int(text)
    if age_s > tolerance_s:
        raise VerificationError(f"the message is too old: {age_s:.0f} s, allowed are {tolerance_s:.0f} s")
    if age_s < -tolerance_s:
        raise VerificationError(f"the message is too new: {-age_s:.0f} s ahead, allowed are {tolerance_s:.0f} s")
    return int(text)


def _v1_signatures(text: str) -> list[bytes]:
    entries = [entry for entry in text.split(" ") if entry]
    if len(entries) > SIGNATURES_MAX:
        raise VerificationError(f"the header webhook-signature lists more than {SIGNATURES_MAX} signatures")
    encoded = [entry[3:] for entry in entries if entry.startswith("v1,")]
    if not encoded:
        raise VerificationError("the header webhook-signature holds no v1 signature (v1,BASE64)")
    signatures = [signature for entry in encoded if (signature := _decoded(entry)) is not None]
    if not signatures:
        raise VerificationError("no v1 signature is the base64 of 32 bytes: the header was cut or altered")
    return signatures


def _decoded(encoded: str) -> bytes | None:
    try:
        signature = b64decode(encoded, validate=True)
    except ValueError:
        return None
    return signature if len(signature) == DIGEST_BYTES else None
