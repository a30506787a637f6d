"""The payload store: objects in a folder, or in S3, Google Cloud Storage or Azure, by way of obstore.

Relies on the object store: what it has acknowledged is durable, and a name is never written twice with other bytes, but
for parts that are erased.
Promises: a `put` that has returned is on the disk (in a folder by fsync, of the file and of every folder above it); a
`get` returns exactly the bytes that were put, or says which it is, a store that does not answer or bytes that are gone;
the number of requests under way is bounded, and each of them ends in time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from hookpost.model import PayloadRef
from hookpost.policy.objects import hour_folder, segment_folder
from hookpost.storage.contract import PayloadMissing, PayloadStoreForeign, StoreUnavailable

# Requests under way at once, writes and reads apart: a store that hangs on the one must not hold up the other.
WRITES_MAX = 32
READS_MAX = 64
# A request that takes longer is given up. Writes of a producer's request end sooner, with the request's own time.
REQUEST_S = 5.0
# Within it a request that failed is tried once more; whoever asked tries again later.
RETRIES = 1
# Names in one answer of a listing.
LISTED_AT_ONCE = 1000
# Of a SHA-256: so many bytes of it, at least, tell an altered payload.
DIGEST_BYTES_MIN = 16
# The object that tells which installation the store belongs to.
MARKER = "hookpost-store-id"

_T = TypeVar("_T")


class ObjectStore:
    """Implements PayloadStore. ``url``: file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix;
    credentials come from the environment, as each service's own tools take them. Raises ValueError without them.
    ``before_first_put`` may refuse it with StoreUnavailable, and is asked again the next time then."""

    def __init__(self, url: str, *, before_first_put: Callable[[ObjectStore], Awaitable[None]] | None = None) -> None:
        self._root = Path(unquote(urlsplit(url).path)) if urlsplit(url).scheme == "file" else None
        self._opened: Any = None if self._root is not None else _open(url)
        self._before_first_put = before_first_put
        self._writes = asyncio.Semaphore(WRITES_MAX)
        self._reads = asyncio.Semaphore(READS_MAX)
        self._reading: dict[PayloadRef, asyncio.Task[bytes]] = {}

    @property
    def _store(self) -> Any:
        """A folder is made when it is needed first: many an installation never does."""
        if self._opened is None:
            try:
                self._opened = LocalStore(self._root, mkdir=True)
            except (OSError, BaseError) as error:
                raise StoreUnavailable(f"payload store: {self._root} cannot be made: {error}") from error
        return self._opened

    async def put(self, key: str, payload: bytes) -> PayloadRef:
        """Store an object; durable when this returns. Raises StoreUnavailable."""
        if self._before_first_put is not None:
            await self._before_first_put(self)
            self._before_first_put = None
        return await self._put(key, payload)

    async def _put(self, key: str, payload: bytes) -> PayloadRef:
        async with self._writes:
            try:
                await _in_time(f"put {key}", obstore.put_async(self._store, key, payload, use_multipart=False))
                if self._root is not None:
                    await _in_time(f"sync {key}", asyncio.to_thread(_sync, self._root, key))
            except FileNotFoundError as error:
                raise StoreUnavailable(f"put {key}: the payload store is not there at all: {error}") from error
        return PayloadRef(key, 0, len(payload), sha256(payload).digest())

    async def get(self, ref: PayloadRef) -> bytes:
        """The bytes; once for all who ask at the same time. Raises PayloadMissing and StoreUnavailable."""
        task = self._reading.get(ref)
        if task is None:
            task = self._reading[ref] = asyncio.create_task(self._get(ref))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def _get(self, ref: PayloadRef) -> bytes:
        try:
            async with self._reads:
                return await self._read(ref)
        finally:
            del self._reading[ref]

    async def _read(self, ref: PayloadRef) -> bytes:
        doing = f"get {ref.key}"
        try:
            answer = await _in_time(
                doing, obstore.get_range_async(self._store, ref.key, start=ref.offset, length=ref.length)
            )
        except FileNotFoundError as error:
            # Where the marker is missing too the whole store is: a folder that is not mounted, a bucket's wrong name.
            await self._marker(doing)
            raise PayloadMissing(f"{ref.key} is not in the payload store") from error
        except StoreUnavailable as error:
            if isinstance(error.__cause__, BaseError) and await self._is_short(doing, ref):
                raise PayloadMissing(f"{ref.key} is shorter than what was stored") from error
            raise
        payload = bytes(answer)
        if not is_intact(payload, ref):
            raise PayloadMissing(f"{ref.key} holds other bytes than were stored")
        return payload

    async def _is_short(self, doing: str, ref: PayloadRef) -> bool:
        """A range that lies outside of its object is refused like any other fault."""
        try:
            found = await _in_time(doing, obstore.head_async(self._store, ref.key))
        except FileNotFoundError:
            return False
        return bool(found["size"] < ref.offset + ref.length)

    async def erase(self, key: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Write zeros over (start, length) of an object, whose other bytes stay; one that is gone has none to be
        erased. Raises StoreUnavailable."""
        doing = f"erase {len(ranges)} parts of {key}"
        try:
            if self._root is not None:
                await _in_time(doing, asyncio.to_thread(_write_zeros, self._root / key, ranges))
            else:
                await self._rewrite(doing, key, ranges)
        except FileNotFoundError:
            await self._marker(doing)

    async def _rewrite(self, doing: str, key: str, ranges: Sequence[tuple[int, int]]) -> None:
        """The object as a whole, provided that it is the one that was read: somebody who was frozen meanwhile must not
        bring back what another one has erased."""
        found = await _in_time(doing, obstore.get_async(self._store, key))
        body = bytearray(await _in_time(doing, found.bytes_async()))
        for start, length in ranges:
            body[start : start + length] = bytes(length)
        meta: Any = found.meta
        version: Any = {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}
        async with self._writes:
            await _in_time(doing, obstore.put_async(self._store, key, bytes(body), mode=version, use_multipart=False))

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are gone already are none the worse. Raises StoreUnavailable."""
        if not keys:
            return
        try:
            await _in_time(f"delete {len(keys)} objects", obstore.delete_async(self._store, list(keys)))
        except FileNotFoundError:
            # A folder says that one was not there, but not that the others are gone.
            for key in keys:
                with suppress(FileNotFoundError):
                    await _in_time(f"delete {key}", obstore.delete_async(self._store, key))

    async def list_hour(self, hour: int) -> AsyncIterator[list[str]]:
        """The names of the objects whose event's id was minted in this hour, and of the segments put in it, many at a
        time. Raises StoreUnavailable."""
        for folder in (hour_folder(hour), segment_folder(hour)):
            doing = f"list {folder}"
            stream = aiter(obstore.list(self._store, folder, chunk_size=LISTED_AT_ONCE))
            try:
                while (found := await _in_time(doing, _next(stream))) is not None:
                    yield [each["path"] for each in found]
            except FileNotFoundError as error:
                raise StoreUnavailable(f"{doing}: the payload store is not there at all") from error

    async def claim(self, store_id: str) -> None:
        """Make the store this installation's, unless it is another one's. Raises PayloadStoreForeign and
        StoreUnavailable."""
        try:
            await self._check(store_id, "claim the payload store")
        except FileNotFoundError:
            await self._put(MARKER, store_id.encode())

    async def check(self, store_id: str) -> None:
        """Raises PayloadStoreForeign unless the store is this installation's, StoreUnavailable when nobody can tell."""
        try:
            await self._check(store_id, "check the payload store")
        except FileNotFoundError as error:
            raise PayloadStoreForeign(
                "the payload store is empty, but this installation has used one before: API processes and workers need "
                "the same HOOKPOST_PAYLOAD_STORE_URL, and a folder must be one that all of them share"
            ) from error

    async def _check(self, store_id: str, doing: str) -> None:
        found = await _in_time(doing, _whole(self._store, MARKER))
        if found != store_id.encode():
            raise PayloadStoreForeign(
                "the payload store belongs to another installation: give HOOKPOST_PAYLOAD_STORE_URL a prefix of its own"
            )

    async def _marker(self, doing: str) -> None:
        try:
            await _in_time(doing, obstore.head_async(self._store, MARKER))
        except FileNotFoundError as error:
            raise StoreUnavailable(f"{doing}: the payload store is not there at all") from error


def is_intact(payload: bytes, ref: PayloadRef) -> bool:
    """Are these the bytes that were put? A place in a segment holds the first half of the hash."""
    return len(ref.digest) >= DIGEST_BYTES_MIN and sha256(payload).digest().startswith(ref.digest)


def _open(url: str) -> Any:
    try:
        # Options for the client given here would replace those of the environment (AWS_ALLOW_HTTP and others).
        return from_url(url, retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=REQUEST_S)})
    except BaseError as error:
        raise ValueError(str(error).partition("\n")[0]) from error


async def _whole(store: Any, key: str) -> bytes:
    return bytes(await (await obstore.get_async(store, key)).bytes_async())


async def _next(stream: Any) -> Collection[Any] | None:
    return await anext(stream, None)


async def _in_time(doing: str, request: Awaitable[_T]) -> _T:
    """The answer; every failure but "there is no such object" (FileNotFoundError) means that the store cannot be used
    now."""
    try:
        async with asyncio.timeout(REQUEST_S):
            return await request
    except FileNotFoundError:
        raise
    except (TimeoutError, OSError, ValueError, BaseError) as error:
        reason = str(error).partition("\n")[0]
        raise StoreUnavailable(f"payload store: {doing}: {type(error).__name__} {reason}") from error


def _sync(root: Path, key: str) -> None:
    """The object store renames a finished file into place and leaves the rest to the system: a crash could forget it.
    The file first, then every folder above it: each of them may be new."""
    path = root / key
    _fsync(path)
    for folder in path.parents:
        _fsync(folder)
        if folder == root:
            return


def _write_zeros(path: Path, ranges: Sequence[tuple[int, int]]) -> None:
    """In its place: nothing else is written, so nobody's change can be lost."""
    fd = os.open(path, os.O_WRONLY)
    try:
        for start, length in ranges:
            os.pwrite(fd, bytes(length), start)
        os.fsync(fd)
    finally:
        os.close(fd)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
