"""`hookpost serve`: everything on one machine. Starts the database, prepares it, and looks after the processes.

Relies on the data directory's lock (one server a directory). Promises: a process that dies is replaced, and a dead
worker's shards are free at once, as its supervisor knows that it is dead; a stop takes no more, lets everyone finish,
then stops the database it started; after a kill -9 nothing of ours keeps running but the database, which the next start
adopts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost import __version__, telemetry, tracing
from hookpost.app.children import READY
from hookpost.app.compose import check_journal, check_payloads, make_store, prepare_journal
from hookpost.app.config import Settings, as_environment, unknown_variables
from hookpost.app.keyring import load_keyring, make_vault, prepare_keys
from hookpost.app.metrics_page import listening
from hookpost.app.shared_folder import shared_folder
from hookpost.exposition import Metrics
from hookpost.metrics import Board, Platform, Reporter
from hookpost.model import show_id
from hookpost.policy.keys import hash_secret, make_key, parse_key
from hookpost.storage.contract import StoreUnavailable
from hookpost.storage.postgres.embedded import DataDirInUseError, EmbeddedPostgres, EmbeddedPostgresError
from hookpost.storage.postgres.sending import pause
from hookpost.storage.postgres.store import PostgresStore, bootstrap, check_database, migrate_database, require_migrated
from hookpost.storage.postgres.vault import check_keys

# Waits before a process that died is started again; it falls back to the first after a quiet minute.
RESTART_S = 0.5
RESTART_S_MAX = 10.0
QUIET_S = 60.0
# What a process may take beyond the stop time before it is killed.
STOP_MARGIN_S = 5.0
# How often the embedded database is looked after.
WATCH_S = 1.0
# Connections waiting to be accepted.
BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class FirstKeys:
    """Keys made at the first start. They are shown once and stored as hashes only."""

    admin_key: str | None
    tenant_id: UUID
    tenant_key: str


async def prepare_database(settings: Settings, dsn: str) -> FirstKeys | None:
    """Check and migrate the database; at the first start make shards, the tenant `default` and the first keys."""
    for warning in await check_database(dsn, unsafe_ok=settings.database_unsafe_ok):
        telemetry.log("library_message", logger="database", text=warning)
    migrated = await migrate_database(dsn)
    if migrated:
        telemetry.log("migrated", old_revision=migrated[0], new_revision=migrated[1])
    tenant_id = await bootstrap(dsn, shards=settings.shards, tenant_id=uuid7(), pool="default")
    await prepare_keys(settings, dsn)
    await check_payloads(settings, dsn)
    await prepare_journal(settings, dsn)
    if tenant_id is None:
        return None
    telemetry.log("default_tenant_created", tenant_id=show_id("ten", tenant_id))
    store = make_store(settings, dsn, application="hookpost first start")
    await store.open()
    try:
        admin_key = None
        if settings.admin_key is None:
            admin_key = await _make_key(store, None, "admin")
            telemetry.log("admin_key_created")
        return FirstKeys(admin_key, tenant_id, await _make_key(store, tenant_id, "default"))
    finally:
        await store.close()


async def _make_key(store: PostgresStore, tenant_id: UUID | None, name: str) -> str:
    key = make_key(secrets.token_bytes(8), secrets.token_bytes(32))
    parsed = parse_key(key)
    assert parsed is not None
    await store.create_key({
        "key_id": parsed.key_id, "tenant_id": tenant_id, "name": name, "key_hash": hash_secret(parsed.secret),
        "scopes": [], "expires_at": None,
    }, keys_max=1)  # fmt: skip
    return key


def show_keys(keys: FirstKeys) -> None:
    """Print the first keys, once, on standard output: they are in no log and cannot be shown again."""
    lines = ["", "  These keys are shown once. Keep them."]
    if keys.admin_key is not None:
        lines.append(f"  admin key              {keys.admin_key}")
    lines += [
        f"  tenant default         {show_id('ten', keys.tenant_id)}",
        f"  its API key            {keys.tenant_key}",
        "",
    ]
    print("\n".join(lines), flush=True)


class _Child:
    """One process: its life, and how it is replaced."""

    def __init__(
        self,
        kind: str,
        name: str,
        arguments: Callable[[UUID], list[str]],
        *,
        figures: Path,
        inherit: tuple[int, ...] = (),
    ) -> None:
        self.kind = kind
        self.name = name
        self._figures = figures
        self.node_id = uuid7()
        self.ready = asyncio.Event()
        self._arguments = arguments
        self._inherit = inherit
        self.process: asyncio.subprocess.Process | None = None
        self._leash: socket.socket | None = None

    async def start(self, environment: dict[str, str]) -> None:
        # A worker's identity lives as long as its process.
        self.node_id = uuid7()
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), *self._inherit)
        with theirs:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "hookpost.app.cli",
                *self._arguments(self.node_id),
                "--name",
                self.name,
                "--supervisor-fd",
                str(theirs.fileno()),
                "--figures",
                str(self._figures),
                env=environment,
                pass_fds=fds,
                stdin=asyncio.subprocess.DEVNULL,
                # The terminal's Ctrl-C is for the supervisor: it tells the others in order.
                start_new_session=True,
            )
        ours.setblocking(False)
        self._leash = ours
        telemetry.log("child_started", child=self.name, pid=self.process.pid)

    async def until_ready(self) -> None:
        """Wait for its word; returns, too, when it ends without one."""
        assert self._leash is not None
        with contextlib.suppress(OSError):
            if await asyncio.get_running_loop().sock_recv(self._leash, len(READY)) == READY:
                self.ready.set()

    async def stop(self, timeout_s: float) -> None:
        process = self.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), timeout_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def let_go(self) -> None:
        if self._leash is not None:
            self._leash.close()
            self._leash = None


class Supervisor:
    """One server: ``await run(stop)``."""

    def __init__(self, settings: Settings, *, paused: bool = False) -> None:
        self._settings = settings
        self._paused = paused
        self._stopping = False
        self._dsn = ""
        self._embedded: EmbeddedPostgres | None = None
        self._store: PostgresStore | None = None
        self._board: Board | None = None

    async def run(self, stop: asyncio.Event, *, on_keys: Callable[[FirstKeys], None]) -> None:
        """Start everything, hand over the keys of a first start, and run until ``stop`` is set."""
        settings = self._settings
        telemetry.log("server_starting", version=__version__)
        for unknown in unknown_variables():
            hint = "" if unknown.suggestion is None else f"; did you mean {unknown.suggestion}?"
            telemetry.log("unknown_setting", variable=unknown.variable, suggestion=hint)
        if settings.otel_endpoint is not None:
            # Here, as a worker that cannot start would be started again and again.
            tracing.require()
        with contextlib.ExitStack() as stack:
            if settings.database_url is None:
                self._embedded = EmbeddedPostgres(settings.data_dir)
                stack.callback(self._embedded.stop)
                self._dsn = await asyncio.to_thread(self._embedded.start)
            else:
                self._dsn = settings.database_url
            keys = await prepare_database(settings, self._dsn)
            if self._paused:
                await pause(self._dsn, make_vault(settings))
            if keys is not None:
                on_keys(keys)
            listener = stack.enter_context(bind(settings))
            self._store = make_store(settings, self._dsn, application="hookpost supervisor")
            await self._store.open()
            figures = stack.enter_context(shared_folder())
            self._board = Board(figures)
            try:
                await self._supervise(listener, stop, figures)
            finally:
                await self._store.close()
        telemetry.log("server_stopped")

    async def _supervise(self, listener: socket.socket, stop: asyncio.Event, figures: Path) -> None:
        children = self._children(listener, figures)
        environment = child_environment(self._settings, self._dsn)
        assert self._store is not None and self._board is not None
        metrics = Metrics(Platform(self._store, tenants_max=self._settings.metrics_tenants), self._board.read)
        async with listening(self._settings.metrics_listen, metrics), asyncio.TaskGroup() as tasks:
            reporter = tasks.create_task(Reporter(self._board, "serve").run())
            minders = [tasks.create_task(self._mind(child, environment)) for child in children]
            watcher = tasks.create_task(self._watch_database())
            announcer = tasks.create_task(self._announce(children, listener))
            await stop.wait()
            telemetry.log("server_stopping", reason="asked to")
            self._stopping = True
            announcer.cancel()
            watcher.cancel()
            reporter.cancel()
            limit_s = self._settings.stop_s + STOP_MARGIN_S
            # First those who take events in, then those who send them out.
            for kind in ("api", "worker"):
                await asyncio.gather(*(child.stop(limit_s) for child in children if child.kind == kind))
            for minder in minders:
                minder.cancel()

    def _children(self, listener: socket.socket, figures: Path) -> list[_Child]:
        settings = self._settings
        fd = listener.fileno()
        # A database of the operator's own may have several servers: attempts and logs tell whose process it was.
        host = "" if self._embedded is not None else f"{socket.gethostname()}-"
        children = [
            _Child("api", f"{host}api-{number}", lambda _: ["api", "--fd", str(fd)], figures=figures, inherit=(fd,))
            for number in range(1, settings.api_processes + 1)
        ]
        for number in range(1, settings.workers + 1):
            children.append(_Child("worker", f"{host}worker-{number}", _worker_arguments, figures=figures))
        return children

    async def _announce(self, children: list[_Child], listener: socket.socket) -> None:
        await asyncio.gather(*(child.ready.wait() for child in children))
        host, port = listener.getsockname()[:2]
        url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104 - compared, not bound
        telemetry.log("server_ready", url=url)

    async def _mind(self, child: _Child, environment: dict[str, str]) -> None:
        """Start the process, and again whenever it ends although nobody stopped it."""
        assert self._board is not None
        wait_s = RESTART_S
        try:
            while True:
                started = asyncio.get_running_loop().time()
                await child.start(environment)
                assert child.process is not None
                await child.until_ready()
                code = await child.process.wait()
                child.let_go()
                if self._stopping:
                    return
                telemetry.count("child_exits")
                reason = f"signal {-code}" if code < 0 else f"exit code {code}"
                telemetry.log("child_exited", child=child.name, pid=child.process.pid, reason=reason)
                await self._free(child)
                with contextlib.suppress(OSError):
                    self._board.bury(child.name)
                if asyncio.get_running_loop().time() - started > QUIET_S:
                    wait_s = RESTART_S
                telemetry.log("child_restarted", child=child.name, delay_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RESTART_S_MAX)
        finally:
            child.let_go()

    async def _free(self, child: _Child) -> None:
        """The process is dead for certain, so nobody has to wait for its lease to expire."""
        assert self._store is not None
        with contextlib.suppress(StoreUnavailable):
            await self._store.leave(child.node_id)

    async def _watch_database(self) -> None:
        """An embedded database that died is started again, and again where that fails: a full disk has room one day."""
        embedded, wait_s = self._embedded, WATCH_S
        while embedded is not None:
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RESTART_S_MAX)
            if not embedded.running:
                telemetry.log("postgres_lost", reason="the embedded PostgreSQL ended; starting it again")
                try:
                    await asyncio.to_thread(embedded.start)
                except DataDirInUseError:
                    raise
                except EmbeddedPostgresError as error:
                    telemetry.log("postgres_not_started", reason=error, delay_s=wait_s)
                    continue
            wait_s = WATCH_S


def _worker_arguments(node_id: UUID) -> list[str]:
    return ["worker", "--node", str(node_id)]


def bind(settings: Settings) -> socket.socket:
    """The socket all API processes accept from. Raises OSError with what to do."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno,
            f"cannot listen on {settings.host}:{settings.port}: {os.strerror(error.errno or 0)}; "
            "stop what uses it or choose another --port",
        ) from error
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener


def child_environment(settings: Settings, dsn: str) -> dict[str, str]:
    """The environment of a process: ours, with every setting that differs from its default spelled out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOOKPOST_")}
    environment.update(as_environment(settings))
    environment["HOOKPOST_DATABASE_URL"] = dsn
    return environment


async def require_prepared(settings: Settings, dsn: str) -> None:
    """For processes that run alone: the database must be safe and migrated already. Raises what says what to do."""
    await check_database(dsn, unsafe_ok=settings.database_unsafe_ok)
    await require_migrated(dsn)
    await check_keys(dsn, load_keyring(settings))
    await check_journal(settings, dsn)
