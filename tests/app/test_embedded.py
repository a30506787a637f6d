"""The embedded PostgreSQL, real ones: first start, adoption, damage, permissions, and who may use a directory."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from hookpost.storage.postgres import embedded
from hookpost.storage.postgres.embedded import (
    DataDirInUseError,
    DataDirLock,
    EmbeddedPostgres,
    EmbeddedPostgresError,
    bin_dir,
    find_running,
)
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.process

AS_ROOT = os.geteuid() == 0
ANSWER_S_MAX = PATIENCE_S
"""A child that says nothing for so long is broken."""

SERVER = """
import sys
from pathlib import Path
from hookpost.storage.postgres.embedded import EmbeddedPostgres
postgres = EmbeddedPostgres(Path(sys.argv[1]))
postgres.start()
print(postgres.pid, flush=True)
sys.stdin.read()
"""

FORKING_SERVER = """
import os, sys
from pathlib import Path
from hookpost.storage.postgres.embedded import DataDirLock
lock = DataDirLock(Path(sys.argv[1]))
lock.acquire()
if os.fork() == 0:
    print("forked", flush=True)
sys.stdin.read()
"""

CONNECT = """
import socket, sys
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except OSError as error:
    print(type(error).__name__)
else:
    print("connected")
"""


def sql(dsn: str, statement: str) -> str:
    done = subprocess.run(
        [bin_dir() / "psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", dsn, "-c", statement],
        capture_output=True,
        text=True,
        timeout=ANSWER_S_MAX,
        check=True,
    )
    return done.stdout.strip()


@contextmanager
def started(data_dir: Path) -> Iterator[tuple[EmbeddedPostgres, str]]:
    postgres = EmbeddedPostgres(data_dir)
    dsn = postgres.start()
    try:
        yield postgres, dsn
    finally:
        postgres.stop()


@contextmanager
def server_process(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that started PostgreSQL in ``data_dir``, and the pid of its postmaster."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@contextmanager
def stranger(uid: int) -> Iterator[int]:
    """The pid of a living process of this user that has nothing to do with PostgreSQL."""
    identity = {"user": uid, "group": uid, "extra_groups": []} if AS_ROOT else {}
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, **identity)
    try:
        yield process.pid
    finally:
        process.communicate()


def socket_of(dsn: str) -> Path:
    folder = dsn.partition("host=")[2].partition("&")[0]
    return Path(folder) / ".s.PGSQL.5432"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_first_start_makes_a_database_that_keeps_its_promises(data_dir: Path) -> None:
    with started(data_dir) as (postgres, dsn):
        assert not postgres.adopted
        assert postgres.running
        assert postgres.pid is not None and is_alive(postgres.pid)
        shown = "fsync synchronous_commit TimeZone listen_addresses unix_socket_permissions server_encoding"
        values = [sql(dsn, f"SHOW {name}") for name in shown.split()]
        assert values == ["on", "on", "UTC", "", "0700", "UTF8"]
        # F16: a bit that flips on the disk is an error of the read, not another payload.
        assert sql(dsn, "SHOW data_checksums") == "on"
        assert sql(dsn, "SELECT current_database()") == "hookpost"
        assert find_running(data_dir) == dsn


def test_a_new_segment_of_the_log_is_not_filled_before_it_is_used(data_dir: Path) -> None:
    """Filling one takes 60 ms and more, in which nothing can be committed."""
    with started(data_dir) as (_, dsn):
        sql(dsn, "SELECT pg_switch_wal()")
        sql(dsn, "CREATE TABLE written AS SELECT 42 AS value")
        newest = max((data_dir / "postgres" / "pg_wal").glob("[0-9A-F]" * 24)).stat()
        assert newest.st_size == 16 * 1024 * 1024
        assert newest.st_blocks * 512 < newest.st_size / 2


def test_stop_really_stops_and_the_next_start_keeps_the_data(data_dir: Path) -> None:
    with started(data_dir) as (postgres, dsn):
        sql(dsn, "CREATE TABLE kept AS SELECT 42 AS value")
        pid = postgres.pid
    assert pid is not None and not is_alive(pid)
    assert not postgres.running
    assert find_running(data_dir) is None
    with started(data_dir) as (again, dsn):
        assert not again.adopted
        assert again.pid != pid
        assert sql(dsn, "SELECT value FROM kept") == "42"


def test_starting_twice_is_one_start(data_dir: Path) -> None:
    with started(data_dir) as (postgres, dsn):
        pid = postgres.pid
        assert postgres.start() == dsn
        assert postgres.pid == pid
        assert not postgres.adopted


def test_a_stop_without_a_start_leaves_the_database_of_another_server_alone(data_dir: Path) -> None:
    with started(data_dir) as (postgres, _):
        EmbeddedPostgres(data_dir).stop()
        assert postgres.running


def test_the_database_survives_a_kill_of_its_server_and_is_adopted(data_dir: Path) -> None:
    with server_process(data_dir) as (server, pid):
        server.send_signal(signal.SIGKILL)
        server.wait(ANSWER_S_MAX)
        assert is_alive(pid)
    with started(data_dir) as (postgres, dsn):
        assert postgres.adopted
        assert postgres.pid == pid
        assert sql(dsn, "SELECT 1") == "1"
    assert not is_alive(pid)


def test_a_database_whose_socket_was_removed_is_not_adopted_but_restarted(data_dir: Path) -> None:
    with server_process(data_dir) as (server, pid):
        server.kill()
        server.wait(ANSWER_S_MAX)
    (data_dir / "postgres" / ".s.PGSQL.5432").unlink()
    with started(data_dir) as (postgres, dsn):
        assert not postgres.adopted
        assert not is_alive(pid)
        assert sql(dsn, "SELECT 1") == "1"


def test_a_start_after_the_database_was_killed_recovers(data_dir: Path) -> None:
    with started(data_dir) as (postgres, dsn):
        sql(dsn, "CREATE TABLE kept AS SELECT 42 AS value")
        assert postgres.pid is not None
        os.kill(postgres.pid, signal.SIGKILL)
        dsn = postgres.start()
        assert not postgres.adopted
        assert sql(dsn, "SELECT value FROM kept") == "42"


@pytest.mark.parametrize("damage", ["empty", "garbled", "half written", "recycled pid"])
def test_a_misleading_pid_file_does_not_prevent_the_start(data_dir: Path, damage: str) -> None:
    with started(data_dir) as (postgres, _):
        whole = (postgres.data / "postmaster.pid").read_text()
    pidfile = postgres.data / "postmaster.pid"
    uid = postgres.data.stat().st_uid
    with stranger(uid) as pid:
        recycled = "\n".join([str(pid), *whole.splitlines()[1:]]) + "\n"
        contents = {"empty": "", "garbled": "\0\0\0\0", "half written": f"{pid}\n/some", "recycled pid": recycled}
        pidfile.write_text(contents[damage])
        os.chown(pidfile, uid, -1)
        (postgres.data / ".s.PGSQL.5432.lock").write_text(recycled)
        with started(data_dir) as (again, dsn):
            assert not again.adopted
            assert sql(dsn, "SELECT 1") == "1"
        assert is_alive(pid)


def test_a_running_database_with_a_damaged_pid_file_is_never_run_twice(data_dir: Path) -> None:
    with server_process(data_dir) as (server, pid):
        server.kill()
        server.wait(ANSWER_S_MAX)
    (data_dir / "postgres" / "postmaster.pid").write_text("")
    with started(data_dir) as (postgres, dsn):
        assert not is_alive(pid)
        assert not postgres.adopted
        assert sql(dsn, "SELECT 1") == "1"


def test_an_interrupted_first_start_leaves_nothing_behind(data_dir: Path) -> None:
    leftover = data_dir / "postgres.new-abc"
    leftover.mkdir(parents=True)
    (leftover / "PG_VERSION").write_text("18\n")
    with started(data_dir) as (_, dsn):
        assert sql(dsn, "SELECT 1") == "1"
    assert not leftover.exists()


@pytest.mark.parametrize("folder", ["x" * 100 + "/" + "y" * 100 + "/" + "z" * 40, "with space, comma and 'quote'"])
def test_paths_that_no_socket_can_have_work(place: Path, folder: str) -> None:
    data_dir = place / folder / "data"
    with started(data_dir) as (_, dsn):
        assert sql(dsn, "SELECT 1") == "1"
        socket_path = socket_of(dsn)
        assert len(str(socket_path)) <= 107
        assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
    assert not socket_path.parent.exists()


def test_a_second_server_on_the_same_directory_is_refused(data_dir: Path) -> None:
    with server_process(data_dir) as (server, _):
        with pytest.raises(DataDirInUseError) as refused:
            EmbeddedPostgres(data_dir).start()
        expected = f"another Hookpost server (pid {server.pid}) uses {data_dir}; stop it or choose another --data-dir"
        assert str(refused.value) == expected


def test_a_fork_does_not_keep_the_lock_of_its_killed_parent(place: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKING_SERVER, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "forked\n"
    with pytest.raises(DataDirInUseError):
        DataDirLock(place).acquire()
    parent.kill()
    parent.wait(ANSWER_S_MAX)
    with DataDirLock(place):
        pass
    parent.communicate()


def test_nobody_else_can_connect(data_dir: Path) -> None:
    with started(data_dir) as (postgres, dsn):
        socket_path = socket_of(dsn)
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o700
        assert stat.S_IMODE(postgres.data.stat().st_mode) == 0o700
        assert postgres.data.stat().st_uid != 0


@pytest.mark.skipif(not AS_ROOT, reason="only root can try as another user")
@pytest.mark.parametrize("folder", ["short", "x" * 120])
def test_another_user_who_tries_is_kept_out(place: Path, folder: str) -> None:
    nobody = pwd.getpwnam("nobody")
    with started(place / folder) as (_, dsn):
        tried = subprocess.run(
            ["/usr/bin/env", "python3", "-c", CONNECT, str(socket_of(dsn))],
            capture_output=True,
            text=True,
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            env={"PATH": os.defpath},
            cwd="/",
            check=True,
        )
        assert tried.stdout.strip() == "PermissionError"


@pytest.mark.skipif(not AS_ROOT, reason="only root runs PostgreSQL as another user")
def test_root_may_keep_data_under_a_private_home_and_is_told_what_was_opened(place: Path) -> None:
    home = place / "home"
    home.mkdir(mode=0o700)
    with started(home / "data") as (postgres, dsn):
        assert sql(dsn, "SELECT 1") == "1"
        assert [opened.folder for opened in postgres.opened if opened.folder.is_relative_to(place)] == [home]
        assert stat.S_IMODE(home.stat().st_mode) == 0o701, "traversable, not listable"
        assert "0700 became 0701" in str(next(o for o in postgres.opened if o.folder == home))


def test_the_system_user_is_added_once_by_all_that_start_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second useradd would give the user another number, and what the first has started would run as nobody."""
    starts, users, added = 4, tmp_path / "users", tmp_path / "added"
    useradd = tmp_path / "useradd"
    useradd.write_text(f"#!/bin/sh\necho one more >> {added}\ntouch {users}\n")
    useradd.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(embedded, "USERS_DIR", tmp_path)
    me, all_have_looked, here = pwd.getpwuid(os.geteuid()), threading.Barrier(starts), threading.local()

    def look_up(name: str) -> pwd.struct_passwd:
        found = users.exists()
        if not hasattr(here, "looked"):
            here.looked = True
            all_have_looked.wait(PATIENCE_S)
        if not found:
            raise KeyError(name)
        return me

    monkeypatch.setattr(pwd, "getpwnam", look_up)
    with ThreadPoolExecutor(starts) as threads:
        found = list(threads.map(lambda _: embedded._system_user(), range(starts)))
    assert found == [me] * starts
    assert added.read_text() == "one more\n"


@pytest.mark.skipif(not AS_ROOT, reason="only root can give files away")
def test_root_runs_the_database_as_the_owner_of_its_data(data_dir: Path) -> None:
    with started(data_dir):
        pass
    nobody = pwd.getpwnam("nobody")
    for path in (data_dir / "postgres", *(data_dir / "postgres").rglob("*")):
        shutil.chown(path, nobody.pw_uid, nobody.pw_gid)
    with started(data_dir) as (postgres, dsn):
        assert Path(f"/proc/{postgres.pid}").stat().st_uid == nobody.pw_uid
        assert sql(dsn, "SELECT 1") == "1"


def test_a_failed_start_shows_the_log_and_gives_the_directory_back(data_dir: Path) -> None:
    with started(data_dir) as (postgres, _):
        pass
    with (postgres.data / "postgresql.conf").open("a") as file:
        file.write("\nshared_buffers = nonsense\n")
    with pytest.raises(EmbeddedPostgresError, match=r"nonsense"):
        postgres.start()
    with DataDirLock(data_dir):
        pass


def test_data_of_another_version_is_refused_with_a_way_out(data_dir: Path) -> None:
    with started(data_dir) as (postgres, _):
        pass
    (postgres.data / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 16.*pg_dump"):
        postgres.start()


def test_a_folder_that_is_no_database_is_left_alone(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres" / "holiday.jpg").touch()
    with pytest.raises(EmbeddedPostgresError, match="neither empty nor a PostgreSQL data directory"):
        EmbeddedPostgres(data_dir).start()
    assert (data_dir / "postgres" / "holiday.jpg").exists()


def test_a_place_that_cannot_be_used_is_explained(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match=r"--data-dir"):
        EmbeddedPostgres(place / "file").start()
