"""The relay: an API process tells the workers of its server what it has appended, so that they need not read it.

Between the processes of one server, by a Unix socket of each worker in the folder that its supervisor made; whoever
can open it is that server's user. Workers tell which shards they own. The journal is the truth: what is told has been
committed, a worker takes it only where it follows what it has read, and what is not told, or not heard, or comes twice
or in another order, is read or left, as ever. So nothing depends on it but how soon an event goes out, and what it costs.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast
from uuid import UUID

import msgspec
from asyncpg.pgproto.pgproto import UUID as DriverUUID

from hookpost import telemetry
from hookpost.engine.work import JournalRow, Kind
from hookpost.model import PayloadRef
from hookpost.storage.contract import Appended, NewEvent, Place, Verdict

SUFFIX = ".rows"
# How often an API process looks for workers, and a worker whether it owns other shards than it has told.
LOOK_EVERY_S = 0.5
# A worker that is so far behind with listening is rung: it will read.
UNHEARD_BYTES_MAX = 1024 * 1024
_LENGTH = struct.Struct(">I")
_ID_BYTES = 16


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


_encode = msgspec.msgpack.Encoder().encode
_decode_told = msgspec.msgpack.Decoder(Told).decode
_decode_shards = msgspec.msgpack.Decoder(frozenset[int]).decode


def told(shard: int, place: Place, events: Sequence[NewEvent]) -> Told:
    """These events, all of them new, as an owner of the shard would read them."""
    stored = any([type(event.payload) is PayloadRef for event in events])
    traced = any([event.trace_id is not None for event in events])
    return Told(
        shard,
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
    """The rows of the journal that were told."""
    none = [None] * len(of.types)
    endpoints = iter(_ids(of.owed))
    return [
        JournalRow(
            of.shard, seq, of.day, Kind.DELIVER, event_id, tenant_id, type_,
            payload if ref is None else PayloadRef.parse(ref), [next(endpoints) for _ in range(count)], 0, of.created_at, ref,
            trace,
        )
        for seq, event_id, tenant_id, type_, payload, count, trace, ref in zip(
            range(of.after + 1, of.after + 1 + len(of.types)), _ids(of.ids), _ids(of.tenants), of.types, of.payloads,
            of.counts, of.traces or none, of.refs or none, strict=True,
        )
    ]  # fmt: skip


def _ids(joined: bytes) -> list[UUID]:
    """As the driver would bring them: quicker to make than the standard library's, and equal to them."""
    return [DriverUUID(joined[at : at + _ID_BYTES]) for at in range(0, len(joined), _ID_BYTES)]


class _Messages(asyncio.Protocol):
    """Messages on a stream, each behind its length."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        for message in self._messages():
            self.heard(message)

    def _messages(self) -> Iterator[bytes]:
        buffer, at = self._buffer, 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            end = at + _LENGTH.size + length
            if len(buffer) < end:
                break
            yield bytes(buffer[at + _LENGTH.size : end])
            at = end
        del buffer[:at]

    def send(self, message: bytes) -> None:
        """Send it, now or as soon as it is listened to."""
        self.transport.write(_LENGTH.pack(len(message)) + message)

    def heard(self, message: bytes) -> None:
        """A message came."""
        raise NotImplementedError


# ---- at an API process ------------------------------------------------------------------------------------------------


class _Worker(_Messages):
    """A worker that is told of the shards that it owns."""

    def __init__(self, relay: Relay, name: str) -> None:
        super().__init__()
        self.shards: frozenset[int] = frozenset()
        self._relay = relay
        self._name = name

    def heard(self, message: bytes) -> None:
        self.shards = _decode_shards(message)
        self._relay.owners_changed()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._relay.workers[self._name] = self

    def connection_lost(self, error: Exception | None) -> None:
        del self._relay.workers[self._name]
        self._relay.owners_changed()


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
                for path in self._folder.glob(f"*{SUFFIX}"):
                    if path.name not in self.workers:
                        await self._connect(path)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            for worker in self.workers.values():
                worker.transport.abort()

    async def _connect(self, path: Path) -> None:
        # One that has died leaves its socket.
        with suppress(OSError):
            await asyncio.get_running_loop().create_unix_connection(lambda: _Worker(self, path.name), str(path))

    def owners_changed(self) -> None:
        """A worker came, went, or owns other shards."""
        self._owners = {shard: worker for worker in self.workers.values() for shard in worker.shards}

    def tell(self, shard: int, place: Place, events: Sequence[NewEvent], answers: Sequence[Appended]) -> bool:
        """See ``ingest.Relay``."""
        owner = self._owners.get(shard)
        if owner is None or owner.transport.get_write_buffer_size() > UNHEARD_BYTES_MAX:
            return False
        new = [event for event, answer in zip(events, answers, strict=True) if answer.verdict is Verdict.NEW]
        if new:
            owner.send(_encode(told(shard, place, new)))
        return True


# ---- at a worker ------------------------------------------------------------------------------------------------------


class _Api(_Messages):
    """An API process that tells rows."""

    def __init__(self, listening: Listening) -> None:
        super().__init__()
        self._listening = listening

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listening.apis.add(self)
        self.send(self._listening.owned())

    def connection_lost(self, error: Exception | None) -> None:
        self._listening.apis.discard(self)

    def heard(self, message: bytes) -> None:
        try:
            found = rows(_decode_told(message))
        except (msgspec.MsgspecError, ValueError) as error:
            # A process of another release: what it says stands in the journal.
            telemetry.log_error("hear what was appended", error)
            self.transport.abort()
            return
        if found[0].shard not in self._listening.shards():
            self._listening.tell_owned()
        self._listening.take(found)


class Listening:
    """A worker's end: ``await run()`` until cancelled. ``shards``: those that it owns now; ``take`` is given rows."""

    def __init__(
        self, path: Path, *, shards: Callable[[], Collection[int]], take: Callable[[list[JournalRow]], None]
    ) -> None:
        self._path = path
        self.shards = shards
        self.take = take
        self.apis: set[_Api] = set()
        self._told: bytes = b""

    async def run(self) -> None:
        """Listen, and tell which shards are owned."""
        try:
            server = await asyncio.get_running_loop().create_unix_server(lambda: _Api(self), str(self._path))
        except OSError as error:
            # Whoever appends rings, as for any worker elsewhere.
            telemetry.log_error("listen for what is appended", error)
            return
        try:
            while True:
                self.tell_owned()
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            server.close()
            for api in set(self.apis):
                api.transport.abort()
            self._path.unlink(missing_ok=True)

    def owned(self) -> bytes:
        """The shards that are owned, as they are told."""
        return _encode(sorted(self.shards()))

    def tell_owned(self) -> None:
        """Tell all, if it has changed."""
        owned = self.owned()
        if owned != self._told:
            self._told = owned
            for api in self.apis:
                api.send(owned)
