"""The nodes: a PostgreSQL, API processes and workers, each on a host of its own, and what the database says of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg

from hookpost.storage.postgres.embedded import find_running
from tests.e2e.harness import ADMIN_KEY, ENCRYPTION_KEYS, PROGRAM, WAIT_S, Hookpost, command
from tests.nodes import hosts
from tests.nodes.hosts import Host
from tests.torture.system import LEASE_LOST

PORT = 8080
# How often it is looked who owns what; every bound here is in seconds.
POLL_S = 0.1
_OWNED = """
select n.name, count(*) from shards s left join nodes n on n.node_id = s.owner and n.expires_at > clock_timestamp()
group by 1
"""


class Node:
    """A process on its host."""

    def __init__(self, host: Host, process: Hookpost) -> None:
        self.host = host
        self.process = process

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self.process.process is not None
        return self.process.process.pid

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.pid, signal.SIGKILL)


class Fleet:
    """All of them. Workers come and go; a name is used once."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._settings = dict(settings)
        self._last_number = 1
        self._skews_s: dict[str, float] = {}
        self.database_host = self._new_host()
        self.dsn = f"postgresql://postgres@{self.database_host.address}:5432/hookpost"
        self.apis: list[Node] = []
        self.workers: dict[str, Node] = {}
        self.islands: dict[str, str] = {}
        """The names of all workers there ever were, by the address they send from."""
        self._database: subprocess.Popen[str] | None = None
        self._hosts: list[Host] = [self.database_host]

    def _new_host(self) -> Host:
        self._last_number += 1
        return hosts.made(self._last_number)

    async def start(self, apis: int) -> str:
        """Database and API processes; returns the key of the tenant default."""
        arguments = [
            *self.database_host.command,
            sys.executable,
            "-m",
            "tests.nodes.database",
            str(self._folder / "db"),
        ]
        (self._folder / "db").mkdir(mode=0o755)
        self._database = subprocess.Popen(
            [*arguments, self.database_host.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._database.stdout is not None
        assert await asyncio.to_thread(self._database.stdout.readline) == "ready\n"
        migrated = await command("migrate", database_url=self.dsn, admin_key=ADMIN_KEY, **self._settings)
        assert migrated.code == 0, migrated.err
        key = next(line.split()[-1] for line in migrated.out.splitlines() if "its API key" in line)
        self.apis = [self._node("api", "api") for _ in range(apis)]
        await asyncio.gather(*(api.process.start(ready="api_ready") for api in self.apis))
        for api in self.apis:
            api.process.key = key
        return key

    async def join(self, *names: str, skew_s: float = 0.0) -> None:
        """New workers, on new hosts whose clocks are off by so much, that have entered the list of the living."""
        program = PROGRAM if not skew_s else (sys.executable, "-m", "tests.torture.skewed", f"{skew_s:+g}")
        for name in names:
            node = self.workers[name] = self._node("worker", name, program, "--name", name)
            self.islands[node.host.address] = name
            self._skews_s[name] = skew_s
        await asyncio.gather(*(self.workers[name].process.start(ready="worker_ready") for name in names))

    def _node(self, kind: str, name: str, program: tuple[str, ...] = PROGRAM, *arguments: str) -> Node:
        host = self._new_host()
        self._hosts.append(host)
        process = Hookpost(
            self._folder / f"{name}-{self._last_number}", *arguments, command=kind, program=(*host.command, *program),
            database_url=self.dsn, host=host.address, port=str(PORT), encryption_keys=ENCRYPTION_KEYS,
            **self._settings,
        )  # fmt: skip
        return Node(host, process)

    def living(self) -> dict[str, int]:
        """The workers whose processes run, with their ids."""
        found = {name: node.process.process for name, node in self.workers.items()}
        return {
            name: process.pid for name, process in found.items() if process is not None and process.returncode is None
        }

    def lost_leases(self) -> Iterator[tuple[str, float]]:
        """Which worker has said when that its lease is lost, by the machine's clock."""
        for name, node in self.workers.items():
            for moment, _ in LEASE_LOST.findall("\n".join(node.process.lines)):
                yield name, datetime.fromisoformat(moment).timestamp() - self._skews_s[name]

    async def stop(self) -> list[str]:
        """In order; what ended otherwise, with its last words. What does not end is killed: why is to be seen, and what
        went wrong before."""
        running = [node for node in (*self.apis, *self.workers.values()) if node.process.process is not None]
        codes = await asyncio.gather(*(self._end(node) for node in running))
        if self._database is not None:
            assert self._database.stdin is not None
            self._database.stdin.close()
            await asyncio.to_thread(self._database.wait, WAIT_S)
        for host in self._hosts:
            host.close()
        return [
            f"{node.host.address} ended with {code}: {node.process.lines[-3:]}"
            for node, code in zip(running, codes, strict=True)
            if code not in (0, -signal.SIGKILL)
        ]

    async def _end(self, node: Node) -> int | str:
        try:
            return await node.process.stop()
        except TimeoutError:
            node.kill()
            await node.process.stop()
            return "nothing, and was killed"

    # ---- what the database says ----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[Any]:
        """By its socket, which no cut hits."""
        connection = await asyncpg.connect(find_running(self._folder / "db"))
        try:
            yield connection
        finally:
            await connection.close()

    async def ask(self, sql: str, *arguments: Any) -> Any:
        """One value."""
        async with self.database() as connection:
            return await connection.fetchval(sql, *arguments)

    async def until_balanced(self, names: set[str]) -> None:
        """Until these workers, and no others, own all shards, none of them more than one more than another."""
        async with self.database() as connection:
            while True:
                owned = dict(await connection.fetch(_OWNED))
                if owned.keys() == names and max(owned.values()) - min(owned.values()) <= 1:
                    return
                await asyncio.sleep(POLL_S)
