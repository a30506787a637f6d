"""Secrets at rest: AES-256-GCM in an envelope of two layers, each bound to the row it lies in.

A tenant's *data key* seals what is secret of its rows; a key of the installation's *keyring* wraps the data key. So a
rotation wraps one small row a tenant again, and nothing that a data key sealed has to be touched. What is sealed is
bound to its row by GCM's associated data: bytes copied to another row, endpoint or tenant do not open.

Pure: nonces and fresh keys are arguments. A sealed value is one byte of form, a nonce of 96 bits and the ciphertext
with its tag (random nonces are good for 2³² values of one key, NIST SP 800-38D §8.3; a tenant has some thousands).
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = [
    "KEY_BYTES",
    "NONCE_BYTES",
    "Keyring",
    "KeyringError",
    "Locked",
    "bound_to",
    "choose_key",
    "open_sealed",
    "parse_keyring",
    "seal",
    "show_key",
    "unwrap",
    "wrap",
]

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
# One that seals, one that is on its way out, and some that backups of long ago need.
KEYS_MAX = 16
_FORM = b"\x01"
_KEY = re.compile(r"([A-Za-z0-9_.-]{1,32}):([A-Za-z0-9+/]{43}=)", re.ASCII)


class KeyringError(ValueError):
    """A text that is no keyring; it says what is expected and shows nothing of the keys."""


class Locked(Exception):
    """What is sealed does not open. The text names key ids and rows, never material."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """The installation's keys by their ids. The first one wraps what is new, all of them open."""

    keys: Mapping[str, bytes] = field(repr=False)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, the one that wraps first."""
        return tuple(self.keys)


def parse_keyring(text: str) -> Keyring:
    """Keys as ``id:base64``, separated by commas or lines. Raises KeyringError."""
    parts = [part.strip() for part in re.split(r"[,\n]", text) if part.strip()]
    keys: dict[str, bytes] = {}
    for number, part in enumerate(parts, 1):
        match = _KEY.fullmatch(part)
        if match is None:
            raise KeyringError(
                f"encryption key {number} is not of the form id:BASE64 with the base64 of {KEY_BYTES} bytes: "
                "`hookpost keys new-encryption-key` makes one"
            )
        key_id, key = match[1], b64decode(match[2])
        if key_id in keys:
            raise KeyringError(f"there are two encryption keys with the id {key_id}")
        if key in keys.values():
            raise KeyringError(f"the encryption key {key_id} is the same as another one")
        keys[key_id] = key
    if not 1 <= len(keys) <= KEYS_MAX:
        raise KeyringError(f"1 to {KEYS_MAX} encryption keys are expected, there are {len(keys)}")
    return Keyring(keys)


def show_key(key_id: str, key: bytes) -> str:
    """A key as ``parse_keyring`` reads it; for the operator's own file alone."""
    assert len(key) == KEY_BYTES
    return f"{key_id}:{b64encode(key).decode()}"


def bound_to(table: str, column: str, *ids: UUID | int) -> bytes:
    """The associated data of one column of one row: whose it is, and where it lies."""
    return "|".join([table, column, *(each.hex if isinstance(each, UUID) else str(each) for each in ids)]).encode()


def seal(key: bytes, plain: bytes, *, bound: bytes, nonce: bytes) -> bytes:
    """The sealed value. A nonce is used once with a key."""
    assert len(key) == KEY_BYTES and len(nonce) == NONCE_BYTES
    return _FORM + nonce + AESGCM(key).encrypt(nonce, plain, bound)


def open_sealed(key: bytes, sealed: bytes, *, bound: bytes) -> bytes:
    """What was sealed; raises Locked for another key, another row, or altered bytes."""
    nonce = sealed[1 : 1 + NONCE_BYTES]
    if sealed[:1] != _FORM or len(sealed) < 1 + NONCE_BYTES + TAG_BYTES:
        raise Locked(f"{bound.decode()}: not of a form that is known")
    try:
        return AESGCM(key).decrypt(nonce, sealed[1 + NONCE_BYTES :], bound)
    except InvalidTag:
        raise Locked(f"{bound.decode()}: sealed with another key or for another row, or altered") from None


def wrap(ring: Keyring, key_id: str, data_key: bytes, *, tenant_id: UUID, nonce: bytes) -> bytes:
    """A tenant's data key, sealed with a key of the ring."""
    return seal(ring.keys[key_id], data_key, bound=_of_data_key(tenant_id, key_id), nonce=nonce)


def unwrap(ring: Keyring, key_id: str, wrapped: bytes, *, tenant_id: UUID) -> bytes:
    """The reverse; raises Locked, also for a key that the ring does not hold."""
    key = ring.keys.get(key_id)
    if key is None:
        raise Locked(f"the encryption key {key_id} is not configured here")
    try:
        return open_sealed(key, wrapped, bound=_of_data_key(tenant_id, key_id))
    except Locked:
        raise Locked(f"the encryption key {key_id} is not the one that sealed the data key of {tenant_id}") from None


def choose_key(ring: Keyring, held: Iterable[Sequence[str]]) -> str:
    """The first key of the ring that every living process holds, so that none meets a row that it cannot open while
    keys are being changed; the first one if there is none."""
    others = [set(ids) for ids in held]
    return next((key_id for key_id in ring.ids if all(key_id in ids for ids in others)), ring.ids[0])


def _of_data_key(tenant_id: UUID, key_id: str) -> bytes:
    return f"data_keys|wrapped|{tenant_id.hex}|{key_id}".encode()
