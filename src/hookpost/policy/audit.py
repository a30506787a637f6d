"""The audit log's chain: each row's hash covers the row and the hash before it, so that whoever changes one must change
all behind it, and cannot, as the hashes are keyed (HMAC-SHA256).

Pure. The key is derived from the tenant's data key, which the database holds wrapped only: who can write to the
database, and no more, cannot make a hash that fits. Found are rows that were altered, deleted, inserted or moved, and a
tail that was cut off, as the chain's *head* says where it ends. One fault no chain can tell from inside: an older state
of chain and head together. For that keep heads elsewhere (`hookpost audit verify` prints them), and compare.

Retention takes the oldest rows of a chain away. It says so first, in a row of the chain itself (``audit.retention``),
so that a beginning that is gone for another reason is missed, too.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

__all__ = [
    "BEGINNING",
    "BROKEN",
    "RETENTION",
    "Anchor",
    "Entry",
    "Head",
    "Verifier",
    "changed",
    "derive_key",
    "entry_hash",
    "head_seal",
]

# The hash before a chain's first row.
BEGINNING = bytes(32)
# The action of a row that was written behind a head that somebody had altered.
BROKEN = "audit.broken"
# The action of a row that says up to where retention takes rows away.
RETENTION = "audit.retention"
_PURPOSE = b"hookpost audit log"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row. ``at``: Unix seconds; ``before`` and ``after``: JSON as it is stored, or None; ``previous``: the hash of
    the row before it; ``hash``: its own."""

    chain: UUID
    seq: int
    at: float
    actor: str
    address: str
    action: str
    target: str
    before: str | None
    after: str | None
    previous: bytes
    hash: bytes = b""


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends: its last number and hash, and the seal over both."""

    chain: UUID
    seq: int
    hash: bytes
    sealed: bytes


def derive_key(data_key: bytes) -> bytes:
    """The key of a chain's hashes, of its tenant's data key."""
    return hmac.digest(data_key, _PURPOSE, "sha256")


def entry_hash(key: bytes, entry: Entry) -> bytes:
    """The hash of a row, over all of it and the hash before it. JSON keeps the fields apart."""
    fields = [
        entry.previous.hex(), entry.chain.hex, entry.seq, round(entry.at * 1e6), entry.actor, entry.address,
        entry.action, entry.target, entry.before, entry.after,
    ]  # fmt: skip
    return hmac.digest(key, msgspec.json.encode(fields), "sha256")


def head_seal(key: bytes, chain: UUID, seq: int, last: bytes) -> bytes:
    """What only the holder of the key can say: the chain ends here."""
    return hmac.digest(key, msgspec.json.encode(["head", chain.hex, seq, last.hex()]), "sha256")


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What differs: the old values and the new ones, by name."""
    names = [name for name in after if before.get(name) != after[name]]
    return {name: before.get(name) for name in names}, {name: after[name] for name in names}


@dataclass(frozen=True, slots=True)
class Anchor:
    """A chain's last number and hash, as somebody noted them."""

    seq: int
    hash: bytes


class Verifier:
    """Reads one chain in order and says what is wrong with it; every fault is a sentence."""

    def __init__(self, key: bytes, chain: UUID, head: Head | None, anchor: Anchor | None = None) -> None:
        """``anchor``: a row that stood in the chain when its heads were written down elsewhere."""
        self._anchor = anchor
        self._key = key
        self._chain = chain
        self._head = head
        self._seq = 0
        self._last = BEGINNING
        self._retained_from: int | None = None
        self._first: int | None = None
        self._faults: list[str] = []

    @property
    def rows(self) -> int:
        """Rows read."""
        return 0 if self._first is None else self._seq - self._first + 1

    def read(self, entry: Entry) -> None:
        """The next row. Of the first one, retention may have taken the predecessor away."""
        if self._first is None:
            self._first = entry.seq
            self._seq, self._last = entry.seq - 1, BEGINNING if entry.seq == 1 else entry.previous
        if not hmac.compare_digest(entry_hash(self._key, entry), entry.hash):
            self._faults.append(f"row {entry.seq} was altered, moved or put in")
        if entry.seq != self._seq + 1:
            self._faults.append(_missing(self._seq + 1, entry.seq - 1))
        elif entry.previous != self._last:
            self._faults.append(f"row {entry.seq} does not follow the row that stands before it")
        if self._anchor is not None and entry.seq == self._anchor.seq and entry.hash != self._anchor.hash:
            self._faults.append(f"row {entry.seq} is not the one that was noted before")
        if entry.action == BROKEN:
            self._faults.append(f"when row {entry.seq} was written, the chain's head had been altered")
        if entry.action == RETENTION and entry.after is not None:
            self._retained_from = msgspec.json.decode(entry.after, type=dict[str, int])["kept_from"]
        # Go on from what it says, so that one fault is one line and not one a row.
        self._seq, self._last = entry.seq, entry.hash

    def faults(self) -> list[str]:
        """All that was found, when the last row is read."""
        return [*self._faults, *self._of_the_beginning(), *self._of_the_end()]

    def _of_the_beginning(self) -> list[str]:
        first = 1 if self._first is None else self._first
        if first == 1 or first == self._retained_from:
            return []
        return [f"the rows before {first} are gone, and retention did not take them"]

    def _of_the_end(self) -> list[str]:
        head, anchor = self._head, self._anchor
        if anchor is not None and anchor.seq > self._seq:
            return [f"the chain ends at row {self._seq}, and went to row {anchor.seq} when it was noted before"]
        if head is None:
            return ["the chain has no head, so nothing says where it ends"] if self._first is not None else []
        if not hmac.compare_digest(head_seal(self._key, self._chain, head.seq, head.hash), head.sealed):
            return ["the head was altered"]
        if head.seq > self._seq:
            return [_missing(self._seq + 1, head.seq)]
        if head.seq < self._seq or head.hash != self._last:
            return [f"the chain does not end where its head says, at row {head.seq}"]
        return []


def _missing(first: int, last: int) -> str:
    if first > last:
        return f"row {last + 1} stands twice, or out of its order"
    return f"row {first} is missing" if first == last else f"rows {first} to {last} are missing"
