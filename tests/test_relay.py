"""The relay: what an API process appends reaches the worker that owns its shard, or is rung for; nothing else is taken."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator
from functools import wraps
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from uuid_utils.compat import uuid7

from hookpost import relay as module
from hookpost.engine.work import JournalRow
from hookpost.relay import SUFFIX, Listening, Relay, Told, decode_told, encode, rows, socket_path, told
from hookpost.storage.contract import Appended, NewEvent, Place, Verdict
from tests.patience import PATIENCE_S
from tests.storage.driver import event, until

TENANT = uuid7()


def on_our_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """On the loop of our processes, whose transports differ from those of Python's own."""

    @wraps(test)
    def run(*arguments: Any, **values: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test(*arguments, **values))

    return run


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.005)
    monkeypatch.setattr(module, "SILENT_S", PATIENCE_S)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Short enough for a socket in it, whatever the test is called."""
    path = tmp_path_factory.mktemp("r")
    yield path
    for left in path.iterdir():
        left.unlink()


class Taken(list[JournalRow]):
    """What a worker took."""

    def seqs(self) -> list[int]:
        return [row.seq for row in self]


@contextlib.asynccontextmanager
async def running(end: Relay | Listening) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(end.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)


def a_worker(folder: Path, shards: Collection[int], taken: Taken, name: str = "worker-1") -> Listening:
    return Listening(socket_path(folder, name), shards=lambda: shards, take=taken.extend)


async def happened(condition: Callable[[], bool]) -> None:
    async def look() -> bool:
        return condition()

    await until(look)


class Api:
    """An API process's appends to shard 1, one event each."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.last = 0

    def tell(self, *, shard: int = 1, **values: Any) -> bool:
        one = event(TENANT, **values)
        heard = self._relay.tell(Place(shard, self.last, 9000, 1.8e9), [one], [new(one)])
        self.last += heard
        return heard

    async def until_heard(self, *, shard: int = 1) -> None:
        await happened(lambda: self.tell(shard=shard))


def new(one: NewEvent) -> Appended:
    return Appended(Verdict.NEW, one.event_id, len(one.owed))


# ---- sockets ---------------------------------------------------------------------------------------------------------


@on_our_loop
async def test_what_is_appended_reaches_the_worker_that_owns_its_shard(folder: Path) -> None:
    first, second = Taken(), Taken()
    relay = Relay(folder)
    api = Api(relay)
    assert not api.tell(), "there is nobody yet"
    async with running(a_worker(folder, {1, 2}, first)), running(a_worker(folder, {3}, second, "b")), running(relay):
        await api.until_heard()
        await api.until_heard(shard=3)
        assert not api.tell(shard=4), "it is a worker's of another server"
        await happened(lambda: (first.seqs(), second.seqs()) == ([1], [2]))
        assert (first[0].shard, first[0].day, first[0].created_at, first[0].payload) == (1, 9000, 1.8e9, b"{}")


@on_our_loop
async def test_several_api_processes_tell_one_worker(folder: Path) -> None:
    taken = Taken()
    one, other = Relay(folder), Relay(folder)
    async with running(a_worker(folder, {1}, taken)), running(one), running(other):
        for api in (Api(one), Api(other)):
            await api.until_heard()
        await happened(lambda: len(taken) == 2)


@on_our_loop
async def test_a_worker_that_goes_is_not_told_and_one_that_comes_in_its_place_is(folder: Path) -> None:
    relay = Relay(folder)
    api = Api(relay)
    async with running(relay):
        for _ in range(3):
            taken = Taken()
            async with running(a_worker(folder, {1}, taken)):
                await api.until_heard()
                await happened(lambda taken=taken: taken.seqs() == [api.last])  # type: ignore[misc]
            await happened(lambda: not relay.workers)
            assert not api.tell()
    assert list(folder.iterdir()) == []


@on_our_loop
async def test_a_connection_that_is_closing_is_not_written_to(folder: Path) -> None:
    """The process knows, but has not been called back: what is written then goes nowhere."""
    relay = Relay(folder)
    api = Api(relay)
    async with running(a_worker(folder, {1}, Taken())), running(relay):
        await api.until_heard()
        relay.workers[f"worker-1{SUFFIX}"].transport.abort()
        assert not api.tell()


@on_our_loop
async def test_whoever_stops_at_any_moment_of_connecting_tells_nobody(folder: Path) -> None:
    """What is appended while a process stops is rung for. A connection that is given up while it is made is never lost."""
    async with running(a_worker(folder, {1}, Taken())):
        (await connected(folder)).close()
        for turns in range(60):
            relay = Relay(folder)
            async with running(relay):
                for _ in range(turns):
                    await asyncio.sleep(0)
            assert not Api(relay).tell()
            assert not relay.workers


@on_our_loop
async def test_f2_a_killed_worker_leaves_a_socket_that_is_in_nobodys_way(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / f"worker-1{SUFFIX}"))
    taken = Taken()
    relay = Relay(folder)
    api = Api(relay)
    async with running(relay) as running_on:
        async with running(a_worker(folder, {2}, Taken(), "worker-2")):
            await api.until_heard(shard=2)
        async with running(a_worker(folder, {1}, taken)):
            await api.until_heard()
            await happened(lambda: bool(taken))
        assert not running_on.done()


@on_our_loop
async def test_an_api_process_hears_of_shards_that_come_and_go(folder: Path) -> None:
    shards = {2}
    relay = Relay(folder)
    api = Api(relay)
    async with running(a_worker(folder, shards, Taken())), running(relay):
        await api.until_heard(shard=2)
        shards |= {1}
        await api.until_heard(shard=1)
        shards.clear()
        await happened(lambda: not api.tell())


@on_our_loop
async def test_whoever_tells_of_a_shard_that_is_anothers_hears_so_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", PATIENCE_S)
    shards, taken = {1}, Taken()
    relay = Relay(folder)
    api = Api(relay)
    async with running(a_worker(folder, shards, taken)):
        (await connected(folder)).close()
        async with running(relay):
            await api.until_heard()
            shards.clear()
            assert api.tell()
            await happened(lambda: not api.tell())
            assert 2 in taken.seqs(), "it is for the worker to say what is to become of it"


@on_our_loop
async def test_a_worker_that_is_silent_for_long_is_not_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have lost its shards to one elsewhere, which nobody would ring for."""
    relay = Relay(folder)
    api = Api(relay)
    async with running(a_worker(folder, {1}, Taken())), running(relay):
        await api.until_heard()
        monkeypatch.setattr(module, "SILENT_S", 0.0)
        assert not api.tell()
        monkeypatch.setattr(module, "SILENT_S", PATIENCE_S)
        assert api.tell()


@on_our_loop
async def test_what_a_worker_has_not_listened_to_is_bounded(folder: Path) -> None:
    taken = Taken()
    relay = Relay(folder)
    api = Api(relay)
    worker = a_worker(folder, {1}, taken)
    async with running(worker), running(relay):
        await api.until_heard()
        [listener] = worker.apis
        listener.transport.pause_reading()
        payload = bytes(100_000)
        while api.tell(payload=payload):
            assert api.last < 200
        told_to = api.last
        assert relay.workers[f"worker-1{SUFFIX}"].transport.get_write_buffer_size() < module.UNHEARD_BYTES_MAX + 110_000
        listener.transport.resume_reading()
        await happened(lambda: taken.seqs() == list(range(1, told_to + 1)))
        await happened(lambda: api.tell())


@pytest.mark.parametrize(
    "values", [{"payload": bytes(module.TOLD_BYTES_MAX)}, {"owed": (uuid7(),) * (module.TOLD_BYTES_MAX // 64)}]
)
@on_our_loop
async def test_what_would_hold_up_both_is_rung_for(folder: Path, values: dict[str, Any]) -> None:
    relay = Relay(folder)
    api = Api(relay)
    async with running(a_worker(folder, {1}, Taken())), running(relay):
        await api.until_heard()
        assert not api.tell(**values)
        assert api.tell()


@on_our_loop
async def test_of_an_append_only_what_is_new_is_told(folder: Path) -> None:
    taken = Taken()
    relay = Relay(folder)
    events = [event(TENANT, type=str(n)) for n in range(5)]
    verdicts = (Verdict.DUPLICATE, Verdict.NEW, Verdict.CONFLICT, Verdict.NEW, Verdict.DUPLICATE)
    answers = [Appended(verdict, each.event_id, 1) for verdict, each in zip(verdicts, events, strict=True)]
    async with running(a_worker(folder, {1}, taken)), running(relay):
        await happened(lambda: relay.tell(Place(1, 40, 9000, 1.8e9), events, answers))
        await happened(lambda: bool(taken))
        assert [(row.seq, row.type, row.event_id) for row in taken] == [
            (41, "1", events[1].event_id), (42, "3", events[3].event_id),
        ]  # fmt: skip
        assert not relay.tell(Place(1, 42, 9000, 1.8e9), events[:1], answers[:1]), (
            "its first append may not be read yet"
        )


# ---- what is not understood ------------------------------------------------------------------------------------------


def framed(message: bytes) -> bytes:
    return struct.pack(">I", len(message)) + message


def some(*seqs: int, shard: int = 1, **values: Any) -> Told:
    found = told(Place(shard, seqs[0] - 1, 9000, 1.8e9), [event(TENANT, **values) for _ in seqs])
    assert len(seqs) == len(found.types)
    return found


@on_our_loop
async def test_a_message_may_come_in_any_pieces(folder: Path) -> None:
    taken = Taken()
    stream = b"".join(framed(encode(some(seq, payload=bytes(seq)))) for seq in range(1, 30))
    rng = Random(1)
    async with running(a_worker(folder, {1}, taken)):
        writer = await connected(folder)
        while stream:
            size = rng.choice((1, 2, 5, 100, 1000))
            writer.write(stream[:size])
            await writer.drain()
            await asyncio.sleep(0)
            stream = stream[size:]
        await happened(lambda: taken.seqs() == list(range(1, 30)))
        assert [row.payload for row in taken] == [bytes(seq) for seq in range(1, 30)]
        writer.close()


async def connected(folder: Path) -> asyncio.StreamWriter:
    found: list[asyncio.StreamWriter] = []

    async def connect() -> bool:
        with contextlib.suppress(OSError):
            found.append((await asyncio.open_unix_connection(str(folder / f"worker-1{SUFFIX}")))[1])
        return bool(found)

    await until(connect)
    return found[0]


GARBAGE = {
    "a length beyond all": struct.pack(">I", 2**32 - 1),
    "not MessagePack": framed(b"\xc1\xc1"),
    "nothing": framed(b""),
    "something else": framed(encode({"shard": 1})),
    "no rows": framed(encode(Told(1, 0, 9000, 0.0, b"", b"", [], [], b"", [], None, None))),
    "too few columns": framed(msgspec.msgpack.encode(msgspec.to_builtins(some(1))[:-2])),
    "an id too few": framed(encode(msgspec.structs.replace(some(1, 2), ids=uuid7().bytes))),
    "half an id": framed(encode(msgspec.structs.replace(some(1), ids=b"1" * 8))),
    "owed to more": framed(encode(msgspec.structs.replace(some(1), counts=[2]))),
    "owed to fewer": framed(encode(msgspec.structs.replace(some(1), counts=[0]))),
    "a place that is none": framed(encode(msgspec.structs.replace(some(1), refs=["here"]))),
}


@pytest.mark.parametrize("what", GARBAGE)
@on_our_loop
async def test_who_is_not_understood_is_left_and_others_are_heard(what: str, folder: Path) -> None:
    taken = Taken()
    relay = Relay(folder)
    api = Api(relay)
    worker = a_worker(folder, {1}, taken)
    async with running(worker) as running_on:
        writer = await connected(folder)
        await happened(lambda: len(worker.apis) == 1)
        writer.write(framed(encode(some(1))) + GARBAGE[what] + framed(encode(some(2))))
        await happened(lambda: not worker.apis)
        assert taken.seqs() == [1]
        writer.close()
        async with running(relay):
            await api.until_heard()
            await happened(lambda: taken.seqs() == [1, 1])
        assert not running_on.done()


@on_our_loop
async def test_half_a_message_of_one_that_died_is_nothing(folder: Path) -> None:
    taken = Taken()
    worker = a_worker(folder, {1}, taken)
    async with running(worker):
        writer = await connected(folder)
        writer.write(framed(encode(some(1))) + framed(encode(some(2)))[:-1])
        await happened(lambda: bool(taken))
        writer.close()
        await happened(lambda: not worker.apis)
        assert taken.seqs() == [1]


@on_our_loop
async def test_a_worker_that_is_not_understood_is_not_told(folder: Path) -> None:
    relay = Relay(folder)
    api = Api(relay)
    came = asyncio.Event()

    async def strange(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(framed(encode([1, 2])) + framed(encode("all of them")))
        came.set()

    server = await asyncio.start_unix_server(strange, str(folder / f"worker-1{SUFFIX}"))
    async with running(relay) as running_on:
        await asyncio.wait_for(came.wait(), PATIENCE_S)
        await happened(lambda: not relay.workers)
        assert not api.tell()
        async with running(a_worker(folder, {1}, Taken(), "worker-2")):
            await api.until_heard()
        assert not running_on.done()
    server.close()


@on_our_loop
async def test_processes_of_another_release_do_not_meet(folder: Path) -> None:
    relay = Relay(folder)
    api = Api(relay)
    older, younger = Listening(folder / "worker-1.rows", shards=lambda: {1}, take=print), a_worker(folder, {2}, Taken())
    async with running(older), running(younger), running(relay):
        await api.until_heard(shard=2)
        assert not api.tell(shard=1)
        assert not older.apis


@on_our_loop
async def test_what_the_engine_stumbles_over_ends_the_worker_as_if_it_had_been_read(folder: Path) -> None:
    """A callback's exception would end a connection, and the worker would go on with half of the rows."""
    asked: list[int] = []

    def stumble(found: list[JournalRow]) -> None:
        asked.append(found[0].seq)
        raise ZeroDivisionError

    relay = Relay(folder)
    api = Api(relay)
    worker = Listening(folder / f"worker-1{SUFFIX}", shards=lambda: {1}, take=stumble)
    running_on = asyncio.create_task(worker.run())
    async with running(relay):
        await happened(lambda: api.tell() and api.tell())
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(running_on, PATIENCE_S)
        assert len(asked) == 1, "nothing is taken behind it"


@on_our_loop
async def test_a_folder_whose_path_is_too_long_for_a_socket_costs_nothing_but_the_relay(folder: Path) -> None:
    worker = a_worker(folder / ("x" * 120), {1}, Taken())
    await asyncio.wait_for(worker.run(), PATIENCE_S)


@on_our_loop
async def test_workers_of_a_host_with_the_longest_name_listen_beside_each_other(folder: Path) -> None:
    host, relay = "h" * 64, Relay(folder)
    api = Api(relay)
    assert len(f"/dev/shm/hookpost-figures-12345678/{socket_path(folder, host + '-worker-128').name}") < 108
    async with (
        running(a_worker(folder, {1}, Taken(), f"{host}-worker-1")),
        running(a_worker(folder, {2}, Taken(), f"{host}-worker-2")),
        running(relay),
    ):
        await api.until_heard(shard=1)
        await api.until_heard(shard=2)


@on_our_loop
async def test_a_folder_that_is_gone_ends_no_api_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0)
    relay = Relay(folder / "gone")
    async with running(relay) as running_on:
        for _ in range(20):
            await asyncio.sleep(0)
        assert not running_on.done()


@given(st.binary(max_size=300))
def test_bytes_that_are_no_rows_are_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError, msgspec.MsgspecError):
        rows(decode_told(data))


@given(st.data())
def test_a_message_that_was_changed_on_the_way_is_rows_or_refused(data: st.DataObject) -> None:
    message = bytearray(encode(some(1, 2, owed=(TENANT, TENANT), trace_id=TENANT, span=b"12345678")))
    at = data.draw(st.integers(0, len(message) - 1))
    message[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError, msgspec.MsgspecError):
        assert all(type(row.seq) is int for row in rows(decode_told(message)))
