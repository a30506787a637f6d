"""Real processes and real sockets: a `hookpost serve` of its own, a receiver that keeps the ledger, a producer."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
from standardwebhooks import Webhook

from hookpost.storage.postgres.embedded import find_running

# Against a hang alone: a machine that is slow and has other things to do must not fail a test.
WAIT_S = 300.0
# What a server gives up after, as patient as settings may be: a machine that stands still for a while, or a disk that does,
# must not look like a receiver that does not answer, a worker that is gone, or an event that is not durable in time. Who
# tests them sets them.
# Which process has what is not to hang on the cores of the machine, either.
ONE_OF_EACH = {"workers": "1", "api_processes": "1"}
PATIENT = {
    "connect_timeout_s": "28", "first_byte_timeout_s": "29", "total_timeout_s": "30",
    "lease_s": "30", "renew_s": "4", "ingest_timeout_s": "60",
    "request_head_s": "300", "request_body_s": "300", "answer_s": "600",
}  # fmt: skip
AGAIN_S = 0.2
# Of a server's log, when a test of it fails.
LINES_TOLD = 60
# What a command or a start says whose database or server had no time for it.
BUSY = re.compile(r"hookpost: 503 |TimeoutError|does not answer \(timed out")
ADMIN_KEY = "admin-key-of-the-tests-0123456789"
ENCRYPTION_KEYS = "k1:" + b64encode(b"1" * 32).decode()

PROGRAM = (sys.executable, "-m", "hookpost.app.cli")

BROKERS = "HOOKPOST_E2E_JOURNAL"
"""The variable that names brokers (kafka://host:port,…): every installation then has its journal there."""

Handler = Callable[["Arrival", asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class Arrival:
    """One request as the receiver saw it."""

    path: str
    headers: dict[str, str]
    body: bytes
    attempt: int
    connection: int = 0
    """Which of the receiver's connections it came by."""

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]


def answer(status: int = 200, body: bytes = b"ok", *lines: str) -> bytes:
    """A response as bytes."""
    head = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def accept(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    """The healthy receiver."""
    writer.write(answer())


@dataclass
class Receiver:
    """Keeps, per event, how often it arrived and how often it was answered with 2xx; judges every signature."""

    port: int = 0
    host: str = "127.0.0.1"
    handlers: dict[str, Handler] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    forged: list[Arrival] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    connections: int = 0

    def url(self, path: str = "/hook") -> str:
        return f"http://{self.host}:{self.port}{path}"

    def ids(self, path: str = "/hook") -> set[str]:
        return {event_id for (at, event_id) in self.counts if at == path}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                path = head[0].split(" ")[1]
                key = (path, headers.get("webhook-id", ""))
                self.counts[key] = self.counts.get(key, 0) + 1
                arrival = Arrival(path, headers, body, self.counts[key], connection)
                self._judge(arrival)
                self.arrivals.append(arrival)
                async with self.changed:
                    self.changed.notify_all()
                await self.handlers.get(path, accept)(arrival, writer)
                await writer.drain()
        writer.close()

    def _judge(self, arrival: Arrival) -> None:
        secret = self.secrets.get(arrival.path)
        if secret is None:
            return
        try:
            Webhook(secret).verify(arrival.body, arrival.headers)
        except Exception:  # noqa: BLE001 - the judge raises several kinds, and all of them mean no
            self.forged.append(arrival)

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = WAIT_S, what: str = "") -> None:
        async with self.changed:
            try:
                await asyncio.wait_for(self.changed.wait_for(condition), timeout_s)
            except TimeoutError:
                raise AssertionError(f"waited {timeout_s} s in vain for {what or 'arrivals'}") from None

    async def until_all(self, expected: set[str], path: str = "/hook", *, timeout_s: float = WAIT_S) -> None:
        what = f"{len(expected)} events at {path}"
        try:
            await self.until(lambda: expected <= self.ids(path), timeout_s=timeout_s, what=what)
        except AssertionError as error:
            absent = sorted(expected - self.ids(path))
            error.add_note(f"{len(absent)} did not come: {' '.join(absent[:10])}")
            raise


@contextlib.asynccontextmanager
async def receiver(host: str = "127.0.0.1") -> AsyncIterator[Receiver]:
    found = Receiver(host=host)
    # As many as a worker opens at a moment at which nobody accepts them: what the kernel drops is sent again a second later.
    server = await asyncio.start_server(found.serve, host, 0, limit=2**22, backlog=2000)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()


def journal_of(settings: Mapping[str, str]) -> dict[str, str]:
    """Where the journal of the installation with these settings is, if it is to be in Kafka: a topic of its own."""
    brokers, place = os.environ.get(BROKERS), settings.get("database_url") or settings.get("data_dir")
    if not brokers or not place:
        return {}
    return {"journal_url": f"{brokers}/e2e.{sha256(place.encode()).hexdigest()[:20]}"}


def clean_environment(**settings: str) -> dict[str, str]:
    """Our environment with these settings of Hookpost and no others, but for encryption keys beside a database, and a
    journal if all are to have one in Kafka."""
    if "database_url" in settings and "encryption_key_file" not in settings:
        settings.setdefault("encryption_keys", ENCRYPTION_KEYS)
    settings = journal_of(settings) | settings
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOOKPOST_")}
    return environment | {f"HOOKPOST_{name.upper()}": value for name, value in settings.items()}


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Its last line on standard error: what went wrong."""
        return self.err.rstrip().rpartition("\n")[2]


async def why(server: Hookpost, event_id: str, endpoint_id: str) -> tuple[dict[str, Any], str]:
    """What the API and `hookpost events why` tell of an event at an endpoint; the command says what the API does."""
    path = f"/v1/events/{event_id}/explain?endpoint_id={endpoint_id}"
    [only] = (await server.call("GET", path, expect=200))["endpoints"]
    client = {"url": server.url, "api_key": server.key}
    said = await command("events", "why", event_id, "--endpoint", endpoint_id, **client)
    assert said.code == 0, said.err
    assert only["summary"] in said.out
    assert f"{only['status']} ({only['reason']})" in said.out
    return only, said.out


async def command(*arguments: str, stdin: bytes = b"", timeout_s: float = WAIT_S, **settings: str) -> Ended:
    """Run one `hookpost` command to its end; again while server or database have no time for it, as people do."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        ended = await _run(arguments, stdin, timeout_s, settings)
        if ended.code == 0 or not BUSY.search(ended.err) or asyncio.get_running_loop().time() >= deadline:
            return ended
        await asyncio.sleep(AGAIN_S)


async def _run(arguments: Sequence[str], stdin: bytes, timeout_s: float, settings: Mapping[str, str]) -> Ended:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hookpost.app.cli", *arguments, env=clean_environment(**settings),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin), timeout_s)
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise AssertionError(f"hookpost {' '.join(arguments)} did not end within {timeout_s} s") from None
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


class Hookpost:
    """One `hookpost` server process and its children."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        command: str = "serve",
        source: Path | None = None,
        program: Sequence[str] = PROGRAM,
        **settings: str,
    ) -> None:
        """``source``: the folder that holds another release of the package; this one when not given. ``program``: what
        is started, if it is to run elsewhere."""
        self.folder = folder
        self._source = source
        self._program = program
        self._arguments = [command, *arguments]
        self._settings = settings
        self.process: asyncio.subprocess.Process | None = None
        self.lines: list[str] = []
        self.output: list[str] = []
        self.url = ""
        self.key = ""
        self.children: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._readers: list[asyncio.Task[None]] = []

    async def start(self, *, wait: bool = True, ready: str = r"server_ready") -> Hookpost:
        """``wait``: until a line like ``ready`` says that it is. One that ends as its database had no time for it is started again, as service
        managers do."""
        deadline = asyncio.get_running_loop().time() + WAIT_S
        await self._launch()
        while wait and not await self._said(ready):
            assert asyncio.get_running_loop().time() < deadline, self.lines[-30:]
            await self._launch()
        return self

    async def _said(self, pattern: str) -> bool:
        """Has it said so before it ended? Raises AssertionError when it ended for another reason than a busy machine."""
        assert self.process is not None
        ended = asyncio.create_task(self.process.wait())
        said = asyncio.create_task(self.until_line(pattern))
        await asyncio.wait((ended, said), return_when=asyncio.FIRST_COMPLETED)
        if said.done():
            ended.cancel()
            await said
            return True
        said.cancel()
        await asyncio.gather(*self._readers)
        assert any(BUSY.search(line) for line in self.lines), f"ended with {ended.result()}:\n" + "\n".join(
            self.lines[-30:]
        )
        return False

    async def _launch(self) -> None:
        environment = clean_environment(
            **{
                "allow_networks": "127.0.0.0/8",
                "log_format": "text",
                "admin_key": ADMIN_KEY,
                "port": "0",
                **ONE_OF_EACH,
                **PATIENT,
                "data_dir": str(self.folder),
                **self._settings,
            }
        )
        if self._source is not None:
            environment["PYTHONPATH"] = str(self._source)
        self.lines.clear()
        self.process = await asyncio.create_subprocess_exec(
            *self._program, *self._arguments,
            env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._readers = [
            asyncio.create_task(self._follow(self.process.stdout, self.output)),
            asyncio.create_task(self._follow(self.process.stderr, self.lines)),
        ]

    async def _follow(self, stream: asyncio.StreamReader | None, lines: list[str]) -> None:
        assert stream is not None
        async for raw in stream:
            line = raw.decode(errors="replace").rstrip()
            lines.append(line)
            if found := re.search(r"its API key\s+(\S+)", line):
                self.key = found[1]
            if found := re.search(r"(?:server_ready: ready|api_ready: API listens) at (http://\S+)", line):
                self.url = found[1]
            if found := re.search(r"child_started: started (\S+) \(pid (\d+)\)", line):
                self.children[found[1]] = int(found[2])
            async with self._changed:
                self._changed.notify_all()
        async with self._changed:
            self._changed.notify_all()

    async def until_line(self, pattern: str, *, count: int = 1, timeout_s: float = WAIT_S) -> str:
        """Wait for the ``count``-th log line that matches; returns it."""

        def found() -> list[str]:
            return [line for line in self.lines if re.search(pattern, line)]

        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: len(found()) >= count), timeout_s)
            except TimeoutError:
                log = "\n".join(self.lines[-30:])
                raise AssertionError(f"no line {count} like {pattern!r} within {timeout_s} s:\n{log}") from None
        return found()[count - 1]

    def kill_child(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.children[name], number)

    async def replace_child(self, name: str) -> None:
        """kill -9 of a process, and wait for the one that the supervisor starts in its place."""
        killed = self.children[name]
        self.kill_child(name)
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: self.children[name] != killed), WAIT_S)

    def postmaster(self) -> int:
        return int((self.folder / "postgres" / "postmaster.pid").read_text().split("\n")[0])

    async def kill(self) -> None:
        """kill -9 of the supervisor alone."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()
        await asyncio.gather(*self._readers)

    async def stop(self) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        code = await asyncio.wait_for(self.process.wait(), WAIT_S)
        await asyncio.gather(*self._readers)
        return code

    # ---- the API ----

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        expect: int | None = None,
        **headers: str,
    ) -> Any:
        """One request; the decoded answer, or (status, answer, headers) when no status is expected. Where one is, 503 is
        asked again, as every client does: a machine that is busy with other tests may well give it."""
        sent = None if body is None else json.dumps(body).encode()
        if expect is not None:
            answered = await self.bytes_of(method, path, sent, expect=expect, key=key, **headers)
            return json.loads(answered) if answered else None
        status, head, answered = await self.raw(method, path, sent, key=key, **headers)
        return status, json.loads(answered) if answered else None, head

    async def bytes_of(
        self, method: str, path: str, body: bytes | None, *, expect: int, key: str | None = None, **headers: str
    ) -> bytes:
        """The same in bytes, as they are sent and answered."""
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while True:
            status, _, answered = await self.raw(method, path, body, key=key, **headers)
            if status == expect or status != 503 or asyncio.get_running_loop().time() >= deadline:
                assert status == expect, (status, answered)
                return answered
            await asyncio.sleep(AGAIN_S)

    async def raw(
        self, method: str, path: str, body: bytes | None, *, key: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            lines = [
                f"{method} {path} HTTP/1.1",
                f"host: {host}",
                f"authorization: Bearer {key or self.key}",
                "connection: close",
                "content-type: application/json",
                f"content-length: {len(body or b'')}",
            ]
            lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
            return await read_response(reader)
        finally:
            writer.close()

    async def tenant(self, name: str) -> str:
        """A new tenant's key, good for everything."""
        tenant = await self.call("POST", "/v1/tenants", {"name": name}, key=ADMIN_KEY, expect=201)
        path = f"/v1/tenants/{tenant['tenant_id']}/api_keys"
        created = await self.call("POST", path, {"name": "all"}, key=ADMIN_KEY, expect=201)
        return str(created["key"])

    async def endpoint(self, url: str, *, key: str | None = None, **fields: Any) -> dict[str, Any]:
        body = {"url": url, **fields}
        created: dict[str, Any] = await self.call("POST", "/v1/webhook_endpoints", body, key=key, expect=201)
        return created

    async def post(
        self, type: str = "invoice.paid", payload: Any = None, *, key: str | None = None, **fields: Any
    ) -> str:
        """The event's id, once it is accepted. With a key, as careful producers have one: what was answered with 503 may
        have been stored, and is the same event when it is posted again."""
        body = {"type": type, "payload": payload, "idempotency_key": uuid4().hex, **fields}
        return str((await self.call("POST", "/v1/events", body, key=key, expect=202))["event_id"])

    async def polled(
        self, path: str, condition: Callable[[Any], bool], *, key: str | None = None, timeout_s: float = WAIT_S
    ) -> Any:
        """What GET answers, once the condition holds for it."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            answered = await self.call("GET", path, key=key, expect=200)
            if condition(answered):
                return answered
            assert asyncio.get_running_loop().time() < deadline, (path, answered)
            await asyncio.sleep(0.02)

    async def settled(
        self, event_id: str, *statuses: str, key: str | None = None, timeout_s: float = WAIT_S
    ) -> dict[str, Any]:
        """The event once its status, or that of one of its deliveries, is one of these."""
        wanted = statuses or ("delivered",)
        event: dict[str, Any] = await self.polled(
            f"/v1/events/{event_id}",
            lambda event: event["status"] in wanted or any(d["status"] in wanted for d in event["deliveries"]),
            key=key,
            timeout_s=timeout_s,
        )
        return event

    async def attempts(
        self, event_id: str, count: int = 1, *, key: str | None = None, timeout_s: float = WAIT_S
    ) -> list[dict[str, Any]]:
        """The attempts of an event, the first first, once there are so many."""
        path = f"/v1/deliveries?event_id={event_id}&limit=500"
        listed = await self.polled(path, lambda found: len(found["data"]) >= count, key=key, timeout_s=timeout_s)
        return sorted(listed["data"], key=lambda attempt: str(attempt["attempt_id"]))


async def read_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await reader.read()
    return int(head[0].split(" ")[1]), headers, body


@contextlib.asynccontextmanager
async def database(server: Hookpost) -> AsyncIterator[Any]:
    """A connection to look behind it with."""
    dsn = find_running(server.folder)
    assert dsn is not None
    operator = await asyncpg.connect(dsn)
    try:
        yield operator
    finally:
        await operator.close()


class Load:
    """Producers that keep posting until they are stopped; what was acknowledged is in ``accepted``.

    A refused or cut request is posted again with the same idempotency key, as a careful producer does. ``marked`` events
    tell their producer in place of a filler: what one of them posts is in order. ``ahead_of`` holds back producers that
    are further ahead of this receiver, at this path, than AHEAD_MAX.
    """

    AHEAD_MAX = 100

    def __init__(
        self,
        server: Hookpost,
        *,
        connections: int = 8,
        size: int = 100,
        marked: bool = False,
        ahead_of: tuple[Receiver, str] | None = None,
    ) -> None:
        self._server = server
        self._ahead_of = ahead_of
        self._connections = connections
        self._filler = "x" * size
        self._marked = marked
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()
        self.accepted: set[str] = set()
        self.retried = 0

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._produce(number)) for number in range(self._connections)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End; every event that was begun is acknowledged before this returns."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def until(self, count: int, *, timeout_s: float = WAIT_S) -> None:
        """Wait until so many more events are acknowledged."""
        goal = len(self.accepted) + count
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: len(self.accepted) >= goal), timeout_s)

    async def _produce(self, number: int) -> None:
        count = 0
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._stop.is_set():
            await self._let_arrive()
            count += 1
            body = json.dumps(
                {
                    "type": "load.test",
                    "payload": {"n": count, "filler": str(number) if self._marked else self._filler},
                    "idempotency_key": f"{number}-{count}",
                }
            ).encode()
            while True:
                try:
                    connection = connection or await self._connect()
                    status, _, answered = await self._post(*connection, body)
                except (OSError, asyncio.IncompleteReadError):
                    if connection is not None:
                        connection[1].close()
                    connection, status = None, 0
                if status == 202:
                    break
                self.retried += 1
                await asyncio.sleep(0.05)
            self.accepted.add(json.loads(answered)["event_id"])
            async with self._changed:
                self._changed.notify_all()
        if connection is not None:
            connection[1].close()

    async def _let_arrive(self) -> None:
        """Wait until what was accepted has arrived, but for so many."""
        if self._ahead_of is not None:
            ledger, path = self._ahead_of
            await ledger.until(
                lambda: self._stop.is_set() or len(self.accepted) - len(ledger.ids(path)) < self.AHEAD_MAX,
                what=f"arrivals at {path}, of which {self.AHEAD_MAX} are missing",
            )

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self._server.url.removeprefix("http://").partition(":")
        return await asyncio.open_connection(host, int(port))

    async def _post(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        writer.write(
            b"POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + self._server.key.encode()
            + b"\r\ncontent-type: application/json\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        )  # fmt: skip
        return await read_response(reader)


def fresh_folder() -> Path:
    """Outside of pytest's own folders, which are closed to the user the database runs as when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="hookpost-e2e-"))
    folder.chmod(0o755)
    return folder


FIRST_START = frozenset({"database_url", "encryption_keys", "encryption_key_file", "shards"})
"""Settings that decide what a first start makes; a server that has one of them makes its own."""

_started_before: tuple[Path, str] | None = None


async def after_a_first_start() -> tuple[Path, str]:
    """A data directory to copy, and the key that was shown when it was made.

    It is made once for each process of the tests: initdb and the migrations cost more than most tests do after them.
    """
    global _started_before
    if _started_before is None:
        place = fresh_folder()
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        # Without a journal elsewhere: each copy gets one of its own.
        server = await Hookpost(place / "data", journal_url="").start()
        assert await server.stop() == 0
        _started_before = place / "data", server.key
    return _started_before


async def copy(source: Path, target: Path) -> None:
    """Copy a folder with its owners and modes, which a database insists on."""
    process = await asyncio.create_subprocess_exec("cp", "-a", "--reflink=auto", str(source), str(target))
    assert await process.wait() == 0


@contextlib.asynccontextmanager
async def running(
    *arguments: str, folder: Path | None = None, first_start: bool = False, **settings: str
) -> AsyncIterator[Hookpost]:
    """A server on a folder of its own, stopped in order at the end.

    Without ``folder`` and without ``first_start`` it finds what a first start made, so it starts in a moment.
    """
    place = folder or fresh_folder()
    server = Hookpost(place / "data", *arguments, **settings)
    if folder is None and not first_start and not FIRST_START & settings.keys():
        prepared, server.key = await after_a_first_start()
        await copy(prepared, place / "data")
    try:
        yield await server.start()
    except BaseException as error:
        error.add_note("the server's last lines:\n" + "\n".join(server.lines[-LINES_TOLD:]))
        raise
    finally:
        if server.process is not None:
            with contextlib.suppress(AssertionError, TimeoutError):
                await server.stop()
            if server.process.returncode is None:
                server.process.kill()
                await server.process.wait()
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)
