"""`hookpost demo`: a real server in its own processes, a receiver and a producer, all on this machine.

The server works on a fresh data directory that is removed at the end. The receiver checks every signature and keeps the
ledger: what was accepted and never arrived is lost, what arrived twice is a duplicate.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hookpost.app.client import Client
from hookpost.policy.signing import VerificationError, parse_secret, verify

# Requests the producer keeps under way.
PRODUCERS = 16
# A first start makes a database; slow disks take their time.
START_S_MAX = 120.0
# Nothing new for that long, and what is missing is counted as lost.
QUIET_S_MAX = 60.0
STOP_S_MAX = 40.0
_URL = re.compile(r"ready at (http://\S+)")
_TENANT_KEY = re.compile(r"its API key\s+(\S+)")


@dataclass(slots=True)
class Ledger:
    """What was sent and what arrived; times are monotonic seconds."""

    posted: dict[str, float] = field(default_factory=dict)
    arrived: dict[str, float] = field(default_factory=dict)
    duplicates: int = 0
    forged: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def receive(self, event_id: str) -> None:
        if event_id in self.arrived:
            self.duplicates += 1
        else:
            self.arrived[event_id] = time.monotonic()
        self.changed.set()

    @property
    def lost(self) -> int:
        return len(self.posted.keys() - self.arrived.keys())

    def latencies_ms(self) -> list[float]:
        """From the post to the arrival, sorted."""
        return sorted(
            (self.arrived[event_id] - posted) * 1000
            for event_id, posted in self.posted.items()
            if event_id in self.arrived
        )


def percentile(values: list[float], part: float) -> float:
    """The value below which ``part`` of the sorted values lie; 0 for none."""
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


class Receiver(asyncio.Protocol):
    """A webhook receiver: answers 200 to what is signed correctly, 401 to what is not."""

    def __init__(self, ledger: Ledger, keys: list[bytes]) -> None:
        self._ledger = ledger
        self._keys = keys
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection of the worker."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every complete request."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            lines = self._buffer[:end].decode("latin-1").split("\r\n")[1:]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            size = int(headers.get("content-length", "0"))
            start = end + 4
            if len(self._buffer) < start + size:
                return
            body, self._buffer = self._buffer[start : start + size], self._buffer[start + size :]
            self._answer(headers, body)

    def _answer(self, headers: dict[str, str], body: bytes) -> None:
        try:
            verify(headers, body, self._keys, time.time())
        except VerificationError:
            self._ledger.forged += 1
            self._transport.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")
            return
        self._ledger.receive(headers["webhook-id"])
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


class Server:
    """A `hookpost serve` of its own, on a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self.log: list[str] = []
        self.url = ""
        self.key = ""
        self._ready = asyncio.Event()

    async def start(self) -> None:
        """Start it and wait until it is ready; raises OSError with its last lines when it is not."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HOOKPOST_")}
        environment["HOOKPOST_ALLOW_NETWORKS"] = "127.0.0.0/8"
        environment["HOOKPOST_LOG_FORMAT"] = "text"
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hookpost.app.cli", "serve", "--port", "0", "--data-dir", str(self._folder),
            env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            self._readers.append(asyncio.create_task(self._follow(stream)))
        ended = asyncio.create_task(self._process.wait())
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait((ended, ready), timeout=START_S_MAX, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if not self._ready.is_set():
            ended.cancel()
            raise OSError(1, "the server did not start:\n" + "\n".join(self.log[-20:]))

    async def _follow(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            text = line.decode(errors="replace").rstrip()
            if found := _TENANT_KEY.search(text):
                self.key = found[1]
                continue  # the key is for us, not for the log
            self.log.append(text)
            if found := _URL.search(text):
                self.url = found[1]
            if self.url and self.key:
                self._ready.set()

    async def stop(self) -> None:
        """Stop it in order."""
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_S_MAX)
            except TimeoutError:
                process.kill()
                await process.wait()
        for reader in self._readers:
            await reader


class Producer:
    """Posts events over kept-alive connections."""

    def __init__(self, url: str, key: str, ledger: Ledger) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._host, self._port = host, int(port)
        self._head = (
            f"POST /v1/events HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
            "content-type: application/json\r\ncontent-length: "
        ).encode()
        self._ledger = ledger
        self.posted = 0
        self.refused = 0

    async def run(self, count: int | None, *, rate: float | None = None, until: float | None = None) -> None:
        """Post ``count`` events (None: without end), as fast as they are accepted or ``rate`` a second.

        ``until`` is a monotonic time after which no more are posted.
        """
        numbers = itertools.takewhile(
            lambda number: (count is None or number < count) and (until is None or time.monotonic() < until),
            itertools.count(),
        )
        await asyncio.gather(*(self._connection(numbers, rate) for _ in range(1 if rate else PRODUCERS)))

    async def _connection(self, numbers: Iterator[int], rate: float | None) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            for number in numbers:
                payload = json.dumps({"invoice": number, "amount": number * 7, "currency": "EUR"})
                body = f'{{"type":"invoice.paid","payload":{payload}}}'.encode()
                while not await self._post(reader, writer, body):
                    self.refused += 1
                    await asyncio.sleep(1.0)
                if rate:
                    await asyncio.sleep(1 / rate)
        finally:
            writer.close()

    async def _post(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> bool:
        posted = time.monotonic()
        writer.write(self._head + str(len(body)).encode() + b"\r\n\r\n" + body)
        head = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        answer = await reader.readexactly(int(size[1]) if size else 0)
        if not head.startswith(b"HTTP/1.1 202"):
            return False
        self.posted += 1
        self._ledger.posted[json.loads(answer)["event_id"]] = posted
        return True


def fresh_folder(prefix: str) -> Path:
    """A temporary folder. As root the database runs as a user of its own, which must get to its data in here."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o755)
    return folder


async def run_demo(*, events: int, leave: bool, rate: float) -> int:
    """The whole demonstration; the exit code is 0 only when every accepted event was delivered, correctly signed."""
    folder = fresh_folder("hookpost-demo-")
    server = Server(folder)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        print("starting PostgreSQL, the API and a worker …", flush=True)
        await server.start()
        return await _demonstrate(server, events=events, leave=leave, rate=rate, stop=stop)
    finally:
        await server.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _demonstrate(server: Server, *, events: int, leave: bool, rate: float, stop: asyncio.Event) -> int:
    ledger, keys = Ledger(), list[bytes]()
    loop = asyncio.get_running_loop()
    receiver = await loop.create_server(lambda: Receiver(ledger, keys), "127.0.0.1", 0)
    port = receiver.sockets[0].getsockname()[1]
    client = Client(server.url, server.key)
    endpoint = await asyncio.to_thread(
        client.call, "POST", "/v1/webhook_endpoints", {"url": f"http://127.0.0.1:{port}/webhooks"}
    )
    keys.append(parse_secret(endpoint["secret"]))
    print(f"dashboard        {server.url}/dashboard")
    print(f"API              {server.url}/docs\nendpoint         {endpoint['url']}  ({endpoint['endpoint_id']})")
    if not leave:
        print(f"key              {server.key}  (sign in to the dashboard with it)")
        print(f"try              HOOKPOST_URL={server.url} HOOKPOST_API_KEY={server.key} hookpost send invoice.paid")
        print("stop with Ctrl-C", flush=True)
    producer = Producer(server.url, server.key, ledger)
    line = asyncio.create_task(_live_line(ledger, stop))
    posting = asyncio.create_task(producer.run(events))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((posting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not leave and not stop.is_set():
        await posting
        posting = asyncio.create_task(producer.run(None, rate=rate))
        await asyncio.wait((posting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if posting.done():
        posting.result()
    posting.cancel()
    stopping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await posting
    await until_all_arrived(ledger)
    line.cancel()
    receiver.close()
    return _report(ledger)


async def until_all_arrived(ledger: Ledger) -> None:
    """Wait for what is missing as long as something still arrives."""
    while ledger.lost:
        ledger.changed.clear()
        try:
            await asyncio.wait_for(ledger.changed.wait(), QUIET_S_MAX)
        except TimeoutError:
            return


async def _live_line(ledger: Ledger, stop: asyncio.Event) -> None:
    """On a terminal: one line of rates and latencies, renewed; elsewhere nothing."""
    if not sys.stdout.isatty():
        return
    before = 0
    while not stop.is_set():
        await asyncio.sleep(1.0)
        arrived = len(ledger.arrived)
        recent = sorted(
            (ledger.arrived[event_id] - posted) * 1000
            for event_id, posted in list(ledger.posted.items())[-2000:]
            if event_id in ledger.arrived
        )
        print(
            f"\r\x1b[Kaccepted {len(ledger.posted):>8}   delivered {arrived:>8}   {arrived - before:>6}/s   "
            f"wait {ledger.lost:>6}   p50 {percentile(recent, 0.5):6.1f} ms   p99 {percentile(recent, 0.99):6.1f} ms",
            end="",
            flush=True,
        )  # fmt: skip
        before = arrived


def _report(ledger: Ledger) -> int:
    latencies = ledger.latencies_ms()
    if sys.stdout.isatty():
        print()
    if ledger.forged:
        print(f"{ledger.forged} requests had a wrong signature")
    print(
        json.dumps({
            "accepted": len(ledger.posted),
            "delivered": len(ledger.posted) - ledger.lost,
            "lost": ledger.lost,
            "duplicates": ledger.duplicates,
            "p50_ms": round(percentile(latencies, 0.5), 1),
            "p99_ms": round(percentile(latencies, 0.99), 1),
        }),
        flush=True,
    )  # fmt: skip
    return 0 if ledger.posted and ledger.lost == 0 and ledger.forged == 0 else 1
