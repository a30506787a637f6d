"""Payloads in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from hashlib import sha256

from hookpost.model import PayloadRef
from hookpost.policy.objects import hour_folder
from hookpost.storage.contract import PayloadMissing


class MemoryPayloads:
    """Implements PayloadStore."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}

    async def put(self, key: str, payload: bytes) -> PayloadRef:
        self._objects[key] = payload
        return PayloadRef(key, 0, len(payload), sha256(payload).digest())

    async def get(self, ref: PayloadRef) -> bytes:
        payload = self._objects.get(ref.key)
        if payload is None:
            raise PayloadMissing(f"there is no object {ref.key}")
        return payload[ref.offset : ref.offset + ref.length]

    async def erase(self, key: str, ranges: Sequence[tuple[int, int]]) -> None:
        body = bytearray(self._objects.get(key, b""))
        for start, length in ranges:
            body[start : start + length] = bytes(length)
        if body:
            self._objects[key] = bytes(body)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._objects.pop(key, None)

    async def list_hour(self, hour: int) -> AsyncIterator[list[str]]:
        yield [key for key in self._objects if key.startswith(f"{hour_folder(hour)}/")]
