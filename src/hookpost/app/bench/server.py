"""A `hookpost serve` of its own, on a folder of its own: its processes, its database, its cost.

Durability is as in production: PostgreSQL with fsync and synchronous commits. Only receivers on 127/8 are allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import asyncpg

from hookpost.app.bench.load import Listener
from hookpost.app.bench.machine import CORES, Process, arguments_of, cpu_s, processes, tree
from hookpost.app.client import Client
from hookpost.app.config import PREFIX
from hookpost.app.demo import fresh_folder
from hookpost.policy.signing import parse_secret
from hookpost.storage.postgres.embedded import find_running

START_S_MAX = 120.0
STOP_S_MAX = 60.0
POLL_S = 0.02
_URL = re.compile(r"ready at (http://\S+)")
_KEY = re.compile(r"its API key\s+(\S+)")
_ADMIN_KEY = re.compile(r"admin key\s+(hpk_\S+)")
# Settings worth printing with every run; the rest are the defaults of `hookpost serve`.
SHOWN = ("fsync", "synchronous_commit", "shared_buffers", "max_wal_size", "server_version")

# In one statement and so of one moment: a settle is one transaction, hence the sum is right at any time.
_ACCOUNTS = """
with latest as (
    select s.shard, coalesce(p.read_to, 0) as read_to, coalesce(p.open, '{}') as open,
           coalesce(p.partial, '{}') as partial
    from shards s left join lateral (
        select read_to, open, partial from progress p where p.shard = s.shard order by settle_no desc limit 1
    ) p on true
), partly as (
    select l.shard, e.key::bigint as seq, jsonb_array_length(e.value) as done
    from latest l cross join lateral jsonb_each(l.partial) e
), open as (
    select coalesce(sum(cardinality(e.owed)), 0) - coalesce((select sum(done) from partly), 0) as deliveries
    from events e join latest l using (shard)
    where e.seq > l.read_to or l.open @> e.seq
       or exists (select 1 from partly p where p.shard = e.shard and p.seq = e.seq)
)
select (select coalesce(sum(cardinality(owed)), 0) from events where kind = 0)::bigint as owed,
       (select count(*) from events where kind = 0) as events,
       (select count(*) from (select distinct event_id, endpoint_id from attempts where outcome = 'delivered') d)
           as delivered,
       (select count(*) from attempts) as attempts,
       (select count(*) from backlog) as backlog,
       (select deliveries from open)::bigint as open,
       (select count(*) from dead_letters) as dead
"""

_COUNTERS = """
select coalesce(sum(n_tup_ins), 0)::bigint as inserts, coalesce(sum(n_tup_upd), 0)::bigint as updates,
       coalesce(sum(n_tup_del), 0)::bigint as deletes,
       (select xact_commit + xact_rollback from pg_stat_database where datname = current_database()) as transactions,
       (pg_current_wal_lsn() - '0/0')::bigint as wal_bytes
from pg_stat_user_tables
"""

_ATTEMPT_ROW = """
select coalesce(avg(pg_column_size(a.*)), 0)::float as row_bytes,
       coalesce(avg(pg_column_size(a.response_head)), 0)::float as response_head_bytes,
       count(*) as sampled
from (select * from attempts limit 20000) a
"""

_ATTEMPT_SPACE = """
select coalesce(sum(pg_total_relation_size(i.inhrelid)), 0)::bigint as total,
       coalesce(sum(pg_indexes_size(i.inhrelid)), 0)::bigint as indexes
from pg_inherits i where i.inhparent = 'attempts'::regclass
"""


class Server:
    """``with Server(settings) as server``; settings as in Settings, e.g. ``workers=2``. One process of each kind unless
    they say otherwise, on however many cores: as many as ``bare`` has."""

    def __init__(self, **settings: object) -> None:
        self.settings = {"allow_networks": "127.0.0.0/8", "port": 0, "api_processes": 1, "workers": 1, **settings}
        self.url = ""
        self.key = ""
        self.admin_key = ""
        self.started_in_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder = fresh_folder("hookpost-bench-")
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- life -------------------------------------------------------------------------------------------------------

    def start(self, **settings: object) -> None:
        """Start it, on the same folder as before if it was stopped, and wait until it is ready. Raises OSError."""
        self.settings |= settings
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        environment |= {PREFIX + name.upper(): str(value) for name, value in self.settings.items()}
        environment |= {PREFIX + "LOG_FORMAT": "text", PREFIX + "DATA_DIR": str(self.folder / "data")}
        started = time.monotonic()
        self._log = self.folder / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hookpost.app.cli", "serve"],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._await_ready(started + START_S_MAX)
        self.started_in_s = time.monotonic() - started
        running = find_running(self.folder / "data")
        if running is None:
            raise OSError(1, "the server is ready, and its database is not")
        self.dsn = running
        self.counted_at_start = self.counters()

    def _await_ready(self, until: float) -> None:
        assert self._process is not None
        while not (found := _URL.search(text := self._log.read_text(errors="replace"))):
            if self._process.poll() is not None or time.monotonic() > until:
                raise OSError(1, f"the server did not start:\n{text[-2000:]}")
            time.sleep(POLL_S)
        self.url = found[1]
        # Keys are printed at the first start alone.
        if keys := _KEY.search(text):
            self.key = keys[1]
        if keys := _ADMIN_KEY.search(text):
            self.admin_key = keys[1]

    def stop(self) -> None:
        """Stop it in order; the folder stays."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    # ---- using it ---------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None, *, admin: bool = False, key: str | None = None) -> Any:
        """One request of its API; ``key``: that of another tenant."""
        return Client(self.url, self.admin_key if admin else key or self.key).call(method, path, body)

    def subscribe(self, listeners: Sequence[Listener], **fields: object) -> list[str]:
        """Make an endpoint of each listener and give it the key; returns the endpoints' ids."""
        for listener in listeners:
            made = self.call("POST", "/v1/webhook_endpoints", {"url": listener.url, **fields})
            listener.key = parse_secret(made["secret"])
            listener.endpoint_id = made["endpoint_id"]
        return [listener.endpoint_id for listener in listeners]

    def sql(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        """Rows of a statement on its database."""

        async def ask() -> list[dict[str, Any]]:
            connection = await asyncpg.connect(self.dsn)
            try:
                return [dict(row) for row in await connection.fetch(query, *arguments)]
            finally:
                await connection.close()

        return asyncio.run(ask())

    # ---- what it costs ----------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None
        return self._process.pid

    def pin(self, role: str) -> bool:
        """A core of its own for a role, the other cores for all others; False where there is one core only."""
        if len(CORES) < 2:
            return False
        for each, processes_ in self._processes().items():
            for process in processes_:
                with contextlib.suppress(ProcessLookupError):  # a backend that has ended since
                    os.sched_setaffinity(process.pid, CORES[:1] if each == role else CORES[1:])
        return True

    def hold(self, role: str) -> None:
        """Let the processes of a role stand still, for a time well below their lease."""
        self._signal(role, signal.SIGSTOP)

    def go_on(self, role: str) -> None:
        """Let them work again."""
        self._signal(role, signal.SIGCONT)

    def _signal(self, role: str, number: signal.Signals) -> None:
        for pid in self.pids()[role]:
            os.kill(pid, number)

    def _processes(self) -> dict[str, list[Process]]:
        """The processes of each role; PostgreSQL's backends are the postmaster's children."""
        table = processes()
        return {
            role: [process for pid in pids for process in (tree(pid, table) if role == "postgres" else [table[pid]])]
            for role, pids in self.pids().items()
        }

    def pids(self) -> dict[str, list[int]]:
        """Process ids by role: supervisor, api, worker, postgres (the postmaster)."""
        found: dict[str, list[int]] = {"supervisor": [self.pid], "api": [], "worker": [], "postgres": []}
        for process in processes().values():
            if process.parent == self.pid:
                role = next((word for word in arguments_of(process.pid) if word in ("api", "worker")), None)
                if role is not None:
                    found[role].append(process.pid)
        pidfile = self.folder / "data" / "postgres" / "postmaster.pid"
        found["postgres"] = [int(pidfile.read_text().split()[0])]
        return found

    def cpu(self) -> dict[str, float]:
        """CPU seconds used so far, by role."""
        table = processes()
        used = {}
        for role, pids in self.pids().items():
            with_children = role == "postgres"
            used[role] = sum(cpu_s(table[pid], tree(pid, table)) if with_children else table[pid].own_s for pid in pids)
        return used

    def rss_mb(self) -> dict[str, float]:
        """Resident memory by role; PostgreSQL's processes share most of theirs, so it is the largest of them."""
        table = processes()
        resident = {}
        for role, pids in self.pids().items():
            seen = tree(pids[0], table) if role == "postgres" else [table[pid] for pid in pids]
            resident[role] = round(max(process.rss_bytes for process in seen) / 1e6, 1)
        return resident

    def counters(self) -> dict[str, int]:
        """Rows written, transactions and WAL bytes so far. Backends report late, see COUNTERS_LATE_S."""
        return self.sql(_COUNTERS)[0]

    def attempt_sizes(self) -> dict[str, float]:
        """What an attempt takes: its tuple (with the header), and table and indexes together, per row."""
        row, space = self.sql(_ATTEMPT_ROW)[0], self.sql(_ATTEMPT_SPACE)[0]
        rows = self.sql("select count(*) as count from attempts")[0]["count"] or 1
        return {
            "attempt_row_bytes": round(row["row_bytes"]),
            "attempt_response_head_bytes": round(row["response_head_bytes"]),
            "attempt_with_indexes_bytes": round(space["total"] / rows),
            "attempt_indexes_bytes": round(space["indexes"] / rows),
        }

    def accounts(self) -> dict[str, int]:
        """What is owed, delivered, waiting (backlog and open) and dead, by the database, of one moment."""
        row = self.sql(_ACCOUNTS)[0]
        return {**row, "waiting": row["backlog"] + row["open"]}

    def important_settings(self) -> dict[str, str]:
        """What decides about the figures, as the database says it."""
        rows = self.sql("select name, current_setting(name) as value from unnest($1::text[]) name", list(SHOWN))
        return {row["name"]: row["value"] for row in rows}
