"""Why a signature does not verify: exactly what is wrong, found by trying what usually goes wrong. Pure.

`signing.verify` says whether a message may be trusted, and no more than a stranger may know. Here the owner asks about
a message of their own, with the secret at hand: each usual mistake is made on purpose, and the one whose signature fits
is the one that was made. What we know of the event itself, if it is ours, settles what guessing cannot.
"""

from __future__ import annotations

import hmac
import json
import re
from base64 import b64decode, b64encode, urlsafe_b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from hookpost.policy.signing import TOLERANCE_S, SecretError, VerificationError, parse_secret, verify

_NAMES = ("webhook-id", "webhook-timestamp", "webhook-signature")
_FIELD = re.compile(r"[ \t>*]*([A-Za-z0-9_-]+)[ \t]*:[ \t]*(.*)")
# Bodies are parsed and written again to find out how they were altered: not those of megabytes.
REWRITTEN_BYTES_MAX = 1024 * 1024
# Of a header with more entries than that the rest is passed over, as the verifiers do.
SIGNATURES_MAX = 64


@dataclass(frozen=True, slots=True)
class Known:
    """What is on record of the event that the message names: its payload, and the secrets of those it was owed to, by
    the name of the endpoint. ``ids``: of events that were sent about the time that the message names."""

    payload: bytes | None = None
    keys: Sequence[tuple[str, bytes]] = ()
    ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``valid``, what is the case in one sentence, and what to do about it."""

    valid: bool
    finding: str
    advice: str = ""


UNTOLD = Diagnosis(
    False,
    "Wrong secret, or body altered beyond what can be told: no signature fits.",
    "Check that the secret is this endpoint's, and that the body is the one received, byte for byte.",
)
"""Nothing that usually goes wrong explains it."""


def read_headers(text: str) -> dict[str, str]:
    """Headers as they are pasted: one a line, of any case, from a log, a browser or curl; the last of a name counts."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _FIELD.fullmatch(line):
            found[match[1].lower()] = match[2].strip().strip("\"'")
    return found


def diagnose(headers: Mapping[str, str], body: bytes, secret: str, now: float, known: Known | None = None) -> Diagnosis:
    """What is the case with a message. ``now`` in Unix seconds."""
    missing = [name for name in _NAMES if not headers.get(name)]
    if missing:
        return Diagnosis(False, f"The header {missing[0]} is missing.", "Paste all three webhook-… headers.")
    try:
        key = parse_secret(secret.strip())
    except SecretError as error:
        return Diagnosis(False, f"Wrong secret format: {error}.", "Copy the secret from the endpoint's page.")
    try:
        verify(headers, body, [key], now)
    except VerificationError as error:
        return _why(headers, body, secret.strip(), key, now, known, str(error))
    return Diagnosis(True, "Valid: the signature fits the id, the timestamp and the body, and the message is fresh.")


def _why(
    headers: Mapping[str, str], body: bytes, secret: str, key: bytes, now: float, known: Known | None, verdict: str
) -> Diagnosis:
    message_id, stamp = headers["webhook-id"], headers["webhook-timestamp"]
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 15):
        return Diagnosis(
            False, "Wrong timestamp: webhook-timestamp is not Unix seconds.", "Pass it on as it came, without a date."
        )
    signatures = _signatures(headers["webhook-signature"])

    def fits(text_id: str, text: bytes, with_key: bytes) -> bool:
        digest = _digest(with_key, text_id, stamp, text)
        return any(hmac.compare_digest(digest, signature) for signature in signatures)

    if fits(message_id, body, key):
        return _timing(int(stamp), now, verdict)
    if encoding := _wrong_encoding(headers["webhook-signature"], _digest(key, message_id, stamp, body)):
        return Diagnosis(False, f"Wrong encoding: {encoding}.", "Compare with v1, and standard base64 of the 32 bytes.")
    if not signatures:
        return Diagnosis(
            False,
            "Wrong encoding: webhook-signature holds no v1 signature that is the base64 of 32 bytes.",
            "It was cut or altered: paste the header whole, v1, included.",
        )
    for raw, words in _raw_keys(secret):
        if fits(message_id, body, raw):
            return Diagnosis(False, f"Wrong secret encoding: signed with {words}.", "The key is what base64 says.")
    for other in (*_ids(headers), *(() if known is None else known.ids)):
        if fits(other, body, key):
            return Diagnosis(
                False,
                f"Wrong id: the signature is for {other!r}, not for {message_id!r}.",
                "Sign what webhook-id says.",
            )
    for altered, words in _bodies(body):
        if fits(message_id, altered, key):
            return Diagnosis(
                False, f"Body altered: {words}.", "Verify the bytes as they were received, before anything parses them."
            )
    return _by_record(message_id, body, key, known, fits) or UNTOLD


def _by_record(message_id: str, body: bytes, key: bytes, known: Known | None, fits: object) -> Diagnosis | None:
    """What the event itself says, if it is on record here."""
    assert callable(fits)
    if known is None:
        return None
    for name, other in known.keys:
        if fits(message_id, body, other):
            return Diagnosis(False, f"Wrong secret: it was signed with that of {name}.", "Use that endpoint's secret.")
    if known.payload is None:
        return None
    for name, other in [("", key), *known.keys]:
        if fits(message_id, known.payload, other):
            also = f" The secret is that of {name}, too." if name and other != key else ""
            return Diagnosis(
                False, f"Body altered: {_difference(known.payload, body)}.{also}", "Verify the bytes as received."
            )
    return None


def _timing(stamp: int, now: float, verdict: str) -> Diagnosis:
    age_s = now - stamp
    if abs(age_s) > TOLERANCE_S:
        when = f"{age_s:.0f} s old" if age_s > 0 else f"{-age_s:.0f} s in the future"
        which = "too old" if age_s > 0 else "too new"
        return Diagnosis(
            False,
            f"Timestamp {which}: the signature fits, but the message is {when}; {TOLERANCE_S} s are allowed.",
            "If this is a message from a log, it was good when it came. Otherwise check the receiver's clock."
            if age_s > 0
            else "Check the clock of whoever signed it, and the receiver's.",
        )
    return Diagnosis(False, f"The signature fits, but {verdict}.", "")


def _signatures(header: str) -> list[bytes]:
    found = []
    for entry in re.split(r"[\s]+", header)[:SIGNATURES_MAX]:
        if entry.startswith("v1,"):
            try:
                found.append(b64decode(entry[3:], validate=True))
            except ValueError:
                continue
    return [signature for signature in found if len(signature) == 32]


def _wrong_encoding(header: str, digest: bytes) -> str | None:
    """Is the right digest there, in another spelling?"""
    for entry in re.split(r"[\s]+", header)[:SIGNATURES_MAX]:
        bare = entry.removeprefix("v1,").removeprefix("v1=").removeprefix("sha256=")
        if bare.lower() == digest.hex():
            return "the signature is hexadecimal"
        if bare.rstrip("=") == b64encode(digest).decode().rstrip("="):
            return (
                "v1, is missing before the signature" if not entry.startswith("v1,") else "its padding (=) was cut off"
            )
        try:
            if ("-" in bare or "_" in bare) and urlsafe_b64decode(bare + "=" * (-len(bare) % 4)) == digest:
                return "the signature is base64url (- and _ for + and /)"
        except ValueError:
            continue
    return None


def _raw_keys(secret: str) -> Iterator[tuple[bytes, str]]:
    yield secret.encode(), "the secret's text, whsec_ included, instead of the key that it encodes"
    yield secret.removeprefix("whsec_").encode(), "the text behind whsec_, instead of the key that it encodes"


def _ids(headers: Mapping[str, str]) -> Iterator[str]:
    """Other ids that a receiver might have taken."""
    own = headers["webhook-id"]
    for name in ("x-webhook-event-id", "svix-id", "x-request-id"):
        if headers.get(name):
            yield headers[name]
    yield own.removeprefix("evt_")
    yield "evt_" + own
    yield own.lower()


def _bodies(body: bytes) -> Iterator[tuple[bytes, str]]:
    """The body before what usually happens to it, and what happened then."""
    yield body.rstrip(b"\r\n"), "a line end was added at its end"
    yield body + b"\n", "the line end at its end was cut off"
    yield body.strip(), "white space was added around it"
    yield body.replace(b"\r\n", b"\n"), "its line ends became CR LF"
    yield body.replace(b"\n", b"\r\n"), "its line ends became LF"
    yield body.removeprefix(b"\xef\xbb\xbf"), "a byte order mark was put before it"
    if len(body) > REWRITTEN_BYTES_MAX:
        return
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return
    words = "it was parsed and written again as JSON (spaces, order of keys or escapes differ)"
    for options in (
        {"separators": (",", ":")},
        {},
        {"indent": 2},
        {"separators": (",", ":"), "sort_keys": True},
        {"sort_keys": True},
    ):
        for ascii_only in (False, True):
            try:
                yield json.dumps(value, ensure_ascii=ascii_only, **options).encode(), words
            except (ValueError, RecursionError):  # lone surrogates, or a nest too deep
                continue


def _difference(sent: bytes, received: bytes) -> str:
    place = next((index for index, (one, other) in enumerate(zip_longest(sent, received)) if one != other), len(sent))
    lengths = "" if len(sent) == len(received) else f"; {len(sent)} bytes were sent, {len(received)} are here"
    return f"it differs from what was sent from byte {place} on{lengths}"


def _digest(key: bytes, message_id: str, stamp: str, body: bytes) -> bytes:
    return hmac.digest(key, f"{message_id}.{stamp}.".encode("utf-8", "replace") + body, "sha256")
