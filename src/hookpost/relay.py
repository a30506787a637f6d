"""The relay: an API process tells the workers of its server what it has appended, so that they need not read it.

Between the processes of one server, by a Unix socket of each worker in the folder that its supervisor made; whoever
can open it is that server's user. Workers tell which shards they own. The journal is the truth: what is told has been
committed, a worker takes it only where it follows what it has read, and what is not told, or not heard, or comes twice
or in another order, is read or left, as ever. So nothing depends on it but how soon an event goes out, and what that
costs.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import cast
from uuid import UUID

import msgspec
from asyncpg.pgproto.pgproto import UUID as DriverUUID

from hookpost import telemetry
from hookpost.engine.work import JournalRow, Kind
from hookpost.intake import OWED_BYTES
from hookpost.model import PayloadRef
from hookpost.storage.contract import Appended, NewEvent, Place, Verdict

# Of a worker's socket, behind its name. The number changes with the messages: where one release replaces another,
# processes that would not understand each other do not meet.
SUFFIX = ".rows-1"
# Of a long name the end is taken, where a server's processes differ: a socket's path has 107 bytes at most, and a host
# may have a name of 64.
_NAME_CHARS = 24
# How often an API process looks for workers, and a worker says which shards it owns.
LOOK_EVERY_S = 0.5
# A worker that has said nothing for so long may have lost its shards: they are rung for, too.
SILENT_S = 4 * LOOK_EVERY_S
# A worker that is so far behind with listening is rung for: it will read.
UNHEARD_BYTES_MAX = 1024 * 1024
# What is larger is rung for: to tell it would hold up both loops, and what is unheard lies in memory.
TOLD_BYTES_MAX = 2 * 1024 * 1024
# No message is longer; one that says it is comes from nobody we know.
MESSAGE_BYTES_MAX = 2 * TOLD_BYTES_MAX
_LENGTH = struct.Struct(">I")
_ID_BYTES = 16


def socket_path(folder: Path, worker: str) -> Path:
    """Where the worker of this name listens."""
    return folder / f"{worker[-_NAME_CHARS:]}{SUFFIX}"


class Told(msgspec.Struct, array_like=True, gc=False):
    """Rows of one shard, each column in one piece. ``refs``: where payloads lie that are not here; ``traces`` and
    ``refs`` are None where no row has one."""

    shard: int
    after: int
    day: int
    created_at: float
    ids: bytes
    tenants: bytes
    types: list[str]
    payloads: list[bytes | None]
    owed: bytes
    counts: list[int]
    traces: list[bytes | None] | None
    refs: list[str | None] | None


encode = msgspec.msgpack.Encoder().encode
decode_told = msgspec.msgpack.Decoder(Told).decode
_decode_shards = msgspec.msgpack.Decoder(frozenset[int]).decode


def new_of(events: Sequence[NewEvent], answers: Sequence[Appended]) -> list[NewEvent]:
    """Those that stand in the journal behind the place of their append."""
    return [event for event, answer in zip(events, answers, strict=True) if answer.verdict is Verdict.NEW]


def told(place: Place, events: Sequence[NewEvent]) -> Told:
    """These events, all of them new there, as an owner of the shard would read them."""
    stored = any(type(event.payload) is PayloadRef for event in events)
    traced = any(event.trace_id is not None for event in events)
    return Told(
        place.shard,
        place.after,
        place.day,
        place.created_at,
        b"".join([event.event_id.bytes for event in events]),
        b"".join([event.tenant_id.bytes for event in events]),
        [event.type for event in events],
        # What is owed to nobody is not sent.
        [event.payload if event.owed and type(event.payload) is bytes else None for event in events],
        b"".join([endpoint_id.bytes for event in events for endpoint_id in event.owed]),
        [len(event.owed) for event in events],
        [_trace(event) for event in events] if traced else None,
        [str(event.payload) if type(event.payload) is PayloadRef else None for event in events] if stored else None,
    )


def _trace(event: NewEvent) -> bytes | None:
    return None if event.trace_id is None or event.span is None else event.trace_id.bytes + event.span


def rows(of: Told) -> list[JournalRow]:
    """The rows of the journal that were told; ValueError unless they are whole."""
    none = [None] * len(of.types)
    endpoints = _ids(of.owed)
    if not of.types or len(endpoints) != sum(of.counts):
        raise ValueError(f"{len(of.types)} rows are owed to {sum(of.counts)} endpoints, and {len(endpoints)} are named")
    return [
        JournalRow(
            of.shard, seq, of.day, Kind.DELIVER, event_id, tenant_id, type_,
            payload if ref is None else PayloadRef.parse(ref), endpoints[end - count : end], 0, of.created_at,
            ref, trace,
        )
        for seq, event_id, tenant_id, type_, payload, count, end, trace, ref in zip(
            range(of.after + 1, of.after + 1 + len(of.types)), _ids(of.ids), _ids(of.tenants), of.types, of.payloads,
            of.counts, accumulate(of.counts), of.traces or none, of.refs or none, strict=True,
        )
    ]  # fmt: skip


def _ids(joined: bytes) -> list[UUID]:
    """As the driver would bring them: quicker to make than the standard library's, and equal to them."""
    return [DriverUUID(joined[at : at + _ID_BYTES]) for at in range(0, len(joined), _ID_BYTES)]


def _size(event: NewEvent) -> int:
    """What it costs to tell it, in bytes of its payload."""
    return (len(event.payload) if type(event.payload) is bytes else 0) + OWED_BYTES * len(event.owed)


class _Messages(asyncio.Protocol):
    """Messages on a stream, each behind its length. One that is not understood ends the connection."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            for message in self._messages():
                self.heard(message)
        except (msgspec.MsgspecError, ValueError) as error:
            telemetry.log_error("hear what was appended", error)
            self.transport.abort()

    def _messages(self) -> Iterator[bytearray]:
        buffer, at = self._buffer, 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > MESSAGE_BYTES_MAX:
                raise ValueError(f"a message of {length} bytes")
            end = at + _LENGTH.size + length
            if len(buffer) < end:
                break
            yield buffer[at + _LENGTH.size : end]
            at = end
        del buffer[:at]

    def send(self, message: bytes) -> None:
        """Send it, now or as soon as it is listened to."""
        self.transport.write(_LENGTH.pack(len(message)) + message)

    def heard(self, message: bytearray) -> None:
        """A message came. Raises ValueError, MsgspecError."""
        raise NotImplementedError


# ---- at an API process -----------------------------------------------------------------------------------------------


class _Worker(_Messages):
    """A worker that is told of the shards that it owns."""

    def __init__(self, relay: Relay, name: str) -> None:
        super().__init__()
        self.shards: frozenset[int] = frozenset()
        self.lost = False
        self.heard_at = 0.0
        self._said = bytearray()
        self._relay = relay
        self._name = name

    def heard(self, message: bytearray) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        if message != self._said:
            self.shards, self._said = _decode_shards(message), message
            self._relay.owners_changed()

    def connection_lost(self, exc: Exception | None) -> None:
        """The worker is gone, or somebody did not understand the other."""
        super().connection_lost(exc)
        self.lost = True
        self._relay.workers.pop(self._name, None)
        self._relay.owners_changed()

    def listens(self) -> bool:
        """Is it there, and up to date?"""
        transport = self.transport
        return (
            not transport.is_closing()
            and transport.get_write_buffer_size() <= UNHEARD_BYTES_MAX
            and asyncio.get_running_loop().time() - self.heard_at < SILENT_S
        )


class Relay:
    """An API process's end: ``await run()`` until cancelled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.workers: dict[str, _Worker] = {}
        self._owners: dict[int, _Worker] = {}

    async def run(self) -> None:
        """Keep a connection to each worker of the server."""
        try:
            while True:
                # The folder may be gone, and one that has died leaves its socket.
                with suppress(OSError):
                    for path in sorted(self._folder.glob(f"*{SUFFIX}")):
                        if path.name not in self.workers:
                            await self._connect(path)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            workers, self.workers = self.workers, {}
            self.owners_changed()
            for worker in workers.values():
                worker.transport.abort()

    async def _connect(self, path: Path) -> None:
        """It is known once it is made: one that is given up on the way is closed without a word to its protocol."""
        with suppress(OSError):
            loop = asyncio.get_running_loop()
            _, worker = await loop.create_unix_connection(lambda: _Worker(self, path.name), str(path))
            if not worker.lost:
                self.workers[path.name] = worker
                self.owners_changed()

    def owners_changed(self) -> None:
        """A worker came, went, or owns other shards."""
        self._owners = {shard: worker for worker in self.workers.values() for shard in worker.shards}

    def tell(self, place: Place, events: Sequence[NewEvent], answers: Sequence[Appended]) -> bool:
        """See ``ingest.Relay``."""
        owner = self._owners.get(place.shard)
        if owner is None or not owner.listens():
            return False
        new = new_of(events, answers)
        if not new or sum(map(_size, new)) > TOLD_BYTES_MAX:
            return False
        owner.send(encode(told(place, new)))
        return True


# ---- at a worker -----------------------------------------------------------------------------------------------------


class _Api(_Messages):
    """An API process that tells rows."""

    def __init__(self, listening: Listening) -> None:
        super().__init__()
        self._listening = listening

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listening.apis.add(self)
        self.send(self._listening.owned())

    def connection_lost(self, exc: Exception | None) -> None:
        """The process is gone."""
        super().connection_lost(exc)
        self._listening.apis.discard(self)

    def heard(self, message: bytearray) -> None:
        self._listening.heard(rows(decode_told(message)))


class Listening:
    """A worker's end: ``await run()`` until cancelled. ``shards``: those that it owns now; ``take`` is given rows.

    What ``take`` raises ends ``run``, and the worker with it, as it would if the rows had been read.
    """

    def __init__(
        self, path: Path, *, shards: Callable[[], Collection[int]], take: Callable[[list[JournalRow]], None]
    ) -> None:
        self._path = path
        self._shards = shards
        self._take = take
        self.apis: set[_Api] = set()
        self._failed: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Listen, and say which shards are owned."""
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        try:
            server = await loop.create_unix_server(lambda: _Api(self), str(self._path))
        except OSError as error:
            # Whoever appends rings, as for any worker elsewhere.
            telemetry.log_error("listen for what is appended", error)
            return
        try:
            while not self._failed.done():
                self._say_owned()
                await asyncio.wait((self._failed,), timeout=LOOK_EVERY_S)
            self._failed.result()
        finally:
            server.close()
            for api in list(self.apis):
                api.transport.abort()
            self._path.unlink(missing_ok=True)

    def owned(self) -> bytes:
        """The shards that are owned, as they are said."""
        return encode(sorted(self._shards()))

    def _say_owned(self) -> None:
        """Though nothing has changed: who is silent is not told any more."""
        owned = self.owned()
        for api in self.apis:
            api.send(owned)

    def heard(self, found: list[JournalRow]) -> None:
        """Rows were told."""
        assert self._failed is not None
        if self._failed.done():
            return
        if found[0].shard not in self._shards():
            self._say_owned()
        try:
            self._take(found)
        except Exception as error:  # noqa: BLE001 - raised where run is awaited: a callback's would end a connection
            self._failed.set_exception(error)
