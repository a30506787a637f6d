"""The system under torture: a `hookpost serve` that is started again whenever it ends, and workers apart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg

from hookpost.storage.postgres.embedded import find_running
from tests.e2e.harness import Hookpost, clean_environment
from tests.e2e.processes import alive
from tests.torture.books import Recorded
from tests.torture.network import DATABASE_HOST, Island

# As the service manager of a machine would wait.
RESTART_S = 0.5
POLL_S = 0.05
# With the rig's patience it grows.
BACK_S_MAX = 90.0
LEASE_LOST = re.compile(r"(\S+) WARNING +(\S+) +lease_lost:")

_AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

OWED = """
select (select coalesce(sum(cardinality(owed)), 0) from events where kind = 0)
     - (select count(*) from (select distinct event_id, endpoint_id from attempts where outcome = 'delivered') a)
     - (select count(*) from dead_letters)
"""
# Alerts are events, too, and Hookpost's own.
_STORED = "select replace(event_id::text, '-', '') from events where kind = 0 and type not like 'hookpost.%'"
_RECORDED = """
select 'evt_' || replace(event_id::text, '-', '') as event_id, endpoint_id, attempt_id, outcome, error_code,
       possible_duplicate, worker, extract(epoch from started_at)::float8 as started,
       extract(epoch from finished_at)::float8 as finished
from attempts
"""


class Apart:
    """A worker without a supervisor, started again whenever it ends; its lease is nobody's to free."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._command, self._environment, self._log = command, environment, log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the process that lives now, or lived last."""
        assert self._process is not None
        return self._process.pid

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                with self._log.open("ab") as log:
                    self._process = await asyncio.create_subprocess_exec(
                        *self._command, env=self._environment, stdin=asyncio.subprocess.DEVNULL, stdout=log,
                        stderr=log, start_new_session=True,
                    )  # fmt: skip
                await self._process.wait()
                await asyncio.sleep(RESTART_S)
        finally:
            if self._process is not None and self._process.returncode is None:
                self._process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), 30)
                if self._process.returncode is None:
                    self._process.kill()


class System:
    """All processes, by name."""

    def __init__(
        self,
        folder: Path,
        logs: Path,
        *,
        api: int,
        workers: int,
        port: int,
        settings: Mapping[str, str],
        patience: float,
    ) -> None:
        arguments = ["--port", str(port), "--api-processes", str(api), "--workers", str(workers)]
        self.server = Hookpost(folder / "data", *arguments, source=None, **settings)
        self.supervised = [f"api-{n + 1}" for n in range(api)] + [f"worker-{n + 1}" for n in range(workers)]
        self.apart: dict[str, Apart] = {}
        self.islands: list[Island] = []
        self.given_up: list[str] = []
        """What the server said last, each time it ended although nobody had killed it; and a database that stayed away."""
        self._settings, self._logs = settings, logs
        self._back_s_max = BACK_S_MAX * patience
        self._killed = False
        self._closing = False
        self._keepers: list[asyncio.Task[None]] = []

    # ---- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """The server, ready."""
        await self.server.start()
        self._keepers.append(asyncio.create_task(self._keep()))

    async def listen_on_network(self) -> None:
        """The embedded PostgreSQL listens on a socket alone; workers on other machines need an address."""
        data = self.server.folder / "postgres"
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.77.0.0/16 trust\n")
        await self.ask(f"alter system set listen_addresses = '{DATABASE_HOST}'")
        os.kill(self.server.postmaster(), signal.SIGINT)
        await self.server.until_line("postgres_started", count=2)

    def add_apart(self, skews_s: Mapping[str, float], *, islands: bool) -> None:
        """Workers apart, each with its own wall clock; with ``islands`` each on a network of its own."""
        dsn = find_running(self.server.folder)
        assert dsn is not None
        for number, (name, skew_s) in enumerate(skews_s.items(), 1):
            prefix: list[str] = []
            if islands:
                island = Island.made(number)
                self.islands.append(island)
                prefix, dsn = island.command, f"postgresql://postgres@{DATABASE_HOST}:5432/hookpost"
            command = [*prefix, sys.executable, "-m", "tests.torture.skewed", f"{skew_s:+g}", "worker", "--name", name]
            keys = str(self.server.folder / "encryption.keys")
            environment = clean_environment(
                database_url=dsn, encryption_key_file=keys, log_format="text", **self._settings
            )
            self.apart[name] = Apart(name, command, environment, self._logs / f"{name}.log")
            self._keepers.append(asyncio.create_task(self.apart[name].run()))

    async def stop(self) -> int:
        """In order; the server's exit code."""
        self._closing = True
        keepers, self._keepers = self._keepers[1:], self._keepers[:1]
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        code = await self.server.stop()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for island in self.islands:
            island.close()
        return code

    async def _keep(self) -> None:
        """Start the server again whenever it ends."""
        server = self.server
        while True:
            assert server.process is not None
            await server.process.wait()
            # Its last words are still on their way.
            await asyncio.sleep(RESTART_S)
            with (self._logs / "server.log").open("a") as log:
                log.write("\n".join(server.lines) + "\n")
            if self._closing:
                return
            if not self._killed and any("server_ready" in line for line in server.lines):
                self.given_up.append("\n".join(server.lines[-5:]))
            self._killed = False
            await server.start(wait=False)

    # ---- who is who -------------------------------------------------------------------------------------------------

    def pid(self, name: str) -> int | None:
        """Of the living process of this name; None while there is none."""
        if name in self.apart:
            pid = self.apart[name].pid
        else:
            pid = self.server.children.get(name, 0)
        return pid if pid and _is_hookpost(pid) else None

    def workers(self) -> dict[str, int]:
        """The living ones."""
        names = [name for name in (*self.supervised, *self.apart) if not name.startswith("api")]
        return {name: pid for name in names if (pid := self.pid(name)) is not None}

    def postmaster(self) -> int | None:
        """Of the living database; None while there is none."""
        data = self.server.folder / "postgres"
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError, IndexError):
            pid = self.server.postmaster()
            if bytes(data) in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def kill_server(self) -> dict[str, int]:
        """kill -9 of the supervisor and all its processes at once, as when a container is removed."""
        living = {name: pid for name in self.supervised if (pid := self.pid(name)) is not None}
        assert self.server.process is not None
        self._killed = True
        for pid in (self.server.process.pid, *living.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return living

    def lost_leases(self, skews_s: Mapping[str, float]) -> Iterator[tuple[str, float]]:
        """Which worker has said when that its lease is lost, once all have ended."""
        for log in self._logs.glob("*.log"):
            for moment, process in LEASE_LOST.findall(log.read_text()):
                name = log.stem if log.stem in self.apart else process
                yield name, datetime.fromisoformat(moment).timestamp() - skews_s.get(name, 0.0)

    # ---- the database -----------------------------------------------------------------------------------------------

    async def ask(self, sql: str) -> Any:
        """One value. Raises when the database is away."""
        connection = await asyncpg.connect(find_running(self.server.folder) or "postgresql://nowhere:1/x", timeout=5)
        try:
            return await connection.fetchval(sql, timeout=30)
        finally:
            await connection.close(timeout=5)

    async def until_answers(self) -> None:
        """Until the database answers again; that it does not is held against the server."""
        deadline = time.monotonic() + self._back_s_max
        while time.monotonic() < deadline:
            with contextlib.suppress(*_AWAY):
                await self.ask("select 1")
                return
            await asyncio.sleep(POLL_S)
        self.given_up.append(f"the database did not answer for {self._back_s_max} s")

    async def owed(self, accepted: int) -> int:
        """Deliveries that are neither delivered nor dead, by the database, and events that still lie in Kafka. All that
        was accepted, as far as is known, while the database does not answer."""
        with contextlib.suppress(*_AWAY):
            owed, stored = await self.ask(OWED), await self.ask(f"select count(*) from ({_STORED}) s")
            return int(owed) + max(0, accepted - int(stored))
        return accepted

    async def books(self, paths: Mapping[str, str]) -> tuple[set[str], list[Recorded], list[tuple[str, str]]]:
        """Stored events, attempts and dead letters; ``paths`` are those of endpoint ids."""
        connection = await asyncpg.connect(find_running(self.server.folder))
        try:
            return await written(connection, paths)
        finally:
            await connection.close()


async def written(connection: Any, paths: Mapping[str, str]) -> tuple[set[str], list[Recorded], list[tuple[str, str]]]:
    """What a database says: stored events, attempts and dead letters; ``paths`` are those of endpoint ids."""
    stored = await connection.fetch(_STORED)
    rows = await connection.fetch(_RECORDED)
    dead = await connection.fetch("select replace(event_id::text, '-', ''), endpoint_id from dead_letters")
    recorded = [
        Recorded(
            row["event_id"], paths[row["endpoint_id"].hex], row["attempt_id"].hex[16:], row["outcome"],
            row["error_code"], row["possible_duplicate"], row["started"], row["finished"], row["worker"],
        )
        for row in rows
    ]  # fmt: skip
    return {f"evt_{row[0]}" for row in stored}, recorded, [(f"evt_{row[0]}", paths[row[1].hex]) for row in dead]


def _is_hookpost(pid: int) -> bool:
    """Ids are used again: what is killed must be ours."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return alive(pid) and (b"hookpost.app.cli" in command or b"tests.torture.skewed" in command)
