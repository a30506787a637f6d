"""Those who saw it: producers, who know what was acknowledged, and the receiver, who knows what came and from whom."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.e2e import harness
from tests.e2e.harness import answer, read_response
from tests.torture.books import Accepted, Arrival
from tests.torture.schedule import Flap

# A producer gives a request up after so long, and posts it again with the same key.
POST_S_MAX = 5.0
AGAIN_S = 0.1
FILLER_BYTES = 200


def digest(payload: bytes) -> bytes:
    """What is kept of a payload."""
    return hashlib.blake2b(payload, digest_size=16).digest()


class Producers:
    """They post at a fixed rate, each event until it is acknowledged; ``accepted`` is the ledger."""

    def __init__(self, address: tuple[str, int], key: str, types: list[str], *, rate: float) -> None:
        self.accepted: list[Accepted] = []
        self.answers: Counter[str] = Counter()
        self.slowest_s: dict[str, float] = {}
        self._address, self._key, self._types = address, key, types
        self._every_s = len(types) / rate
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Producers:
        self._tasks = [asyncio.create_task(self._produce(number, type_)) for number, type_ in enumerate(self._types)]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # What went wrong may be that nothing is ever acknowledged again.
            for task in self._tasks:
                task.cancel()
        else:
            await self.stop()

    async def stop(self) -> None:
        """Every event that was begun is acknowledged before this returns."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _produce(self, producer: int, type_: str) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        due, number = time.monotonic(), 0
        while not self._stop.is_set():
            due, number = max(due + self._every_s, time.monotonic() - 1), number + 1
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            marker = f"{producer}-{number}"
            payload = json.dumps({"marker": marker, "filler": "x" * FILLER_BYTES}).encode()
            head = json.dumps({"type": type_, "idempotency_key": marker})
            body = head[:-1].encode() + b', "payload": ' + payload + b"}"
            event_id = ""
            while not event_id:
                connection, event_id = await self._post(connection, body)
                if not event_id:
                    await asyncio.sleep(AGAIN_S)
            self.accepted.append(Accepted(event_id, marker, type_, digest(payload)))
        if connection is not None:
            connection[1].close()

    async def _post(
        self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None, body: bytes
    ) -> tuple[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None, str]:
        """One try; the connection if it is still good, and the event's id if it was accepted."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(POST_S_MAX):
                connection = connection or await asyncio.open_connection(*self._address)
                reader, writer = connection
                writer.write(
                    b"POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + self._key.encode()
                    + b"\r\ncontent-type: application/json\r\ncontent-length: " + str(len(body)).encode()
                    + b"\r\n\r\n" + body
                )  # fmt: skip
                status, _, answered = await read_response(reader)
            said = str(status)
        except TimeoutError:
            said = "no answer"
        except (OSError, asyncio.IncompleteReadError):
            said = "cut off"
        self.answers[said] += 1
        self.slowest_s[said] = max(self.slowest_s.get(said, 0.0), time.monotonic() - began)
        if not said.isdigit():
            if connection is not None:
                connection[1].close()
            return None, ""
        return connection, json.loads(answered)["event_id"] if said == "202" else ""


Senders = Callable[[], Mapping[str, int]]
"""The workers that live now, by name, with their process ids."""


class Witness:
    """The receiver: takes everything, but at the paths in ``flapping``, which are as bad as ``mood`` says."""

    def __init__(self, receiver: harness.Receiver, *, senders: Senders, islands: Mapping[str, str]) -> None:
        self.arrivals: list[Arrival] = []
        self.flapping: set[str] = set()
        self.mood: Flap | None = None
        self._receiver = receiver
        self._senders, self._islands = senders, islands
        self._ports: dict[int, tuple[str, int]] = {}
        self._known: weakref.WeakKeyDictionary[asyncio.StreamWriter, tuple[str | None, int | None]] = (
            weakref.WeakKeyDictionary()
        )

    async def take(self, arrival: harness.Arrival, writer: asyncio.StreamWriter) -> None:
        """A handler of the receiver."""
        at = time.time()
        mood = self.mood if arrival.path in self.flapping else None
        status: int | None = None
        match mood:
            case None:
                status = 200
                writer.write(answer())
            case Flap.REFUSE:
                status = 503
                writer.write(answer(503))
            case Flap.RESET:
                writer.transport.abort()
            case Flap.SILENT:
                pass
        done = time.time()
        # Behind the answer, as it takes its time.
        sender = self._known.get(writer)
        if sender is None:
            sender = self._known[writer] = self._sender(*writer.get_extra_info("peername"))
        span = arrival.headers["traceparent"].split("-")[2]
        self.arrivals.append(
            Arrival(at, done, arrival.path, arrival.event_id, span, digest(arrival.body), status, *sender)
        )

    def _sender(self, host: str, port: int) -> tuple[str | None, int | None]:
        living = self._senders()
        if (name := self._islands.get(host)) is not None:
            found = _connected({name: living[name]}, self._receiver.port) if name in living else {}
            # Its last requests arrive though it is dead: then it is known by its address, and has no process.
            return found.get(port, (name, None))
        if port not in self._ports:
            # All that are connected now, in one go: a worker that starts opens dozens of connections at once.
            self._ports = _connected(living, self._receiver.port)
        return self._ports.pop(port, (None, None))


def _connected(processes: Mapping[str, int], remote: int) -> dict[int, tuple[str, int]]:
    """Which of these processes hold connections to the port ``remote``, by their own ports."""
    theirs, found = f":{remote:04X}", {}
    for name, pid in processes.items():
        opened = set(_files(pid))
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[2].endswith(theirs) and f"socket:[{fields[9]}]" in opened:
                    found[int(fields[1].partition(":")[2], 16)] = name, pid
    return found


def _files(pid: int) -> Iterator[str]:
    """What a process has open."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            # It may be closed by now.
            with contextlib.suppress(OSError):
                yield str(link.readlink())
