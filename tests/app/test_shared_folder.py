"""The folder of a server's processes: it goes with the server, or with the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hookpost.app.shared_folder import LOCK, PREFIX, shared_folder

_HOLDER = """
import sys
from pathlib import Path
from hookpost.app.shared_folder import shared_folder
with shared_folder(Path(sys.argv[1])) as folder:
    (folder / "worker.rows-1").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


def folders(parent: Path) -> set[str]:
    return {each.name for each in parent.iterdir()}


def test_it_is_its_users_alone_and_goes_with_its_server(tmp_path: Path) -> None:
    with shared_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "figures").touch()
    assert folders(tmp_path) == set()


def test_by_default_it_lies_in_a_folder_for_what_does_not_last() -> None:
    with shared_folder() as folder:
        assert folder.name.startswith(PREFIX)
        assert folder.is_dir()
    assert not folder.exists()


def test_f2_what_a_killed_server_left_goes_with_the_next_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        names = [Path(holder.stdout.readline().strip()).name for holder in holders if holder.stdout is not None]
        assert folders(tmp_path) == set(names)
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        with shared_folder(tmp_path) as folder:
            assert folders(tmp_path) == {names[1], folder.name}
        holders[1].communicate()
        assert folders(tmp_path) == set()
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


@pytest.mark.parametrize("what", ["being made", "a link", "its lock is a link", "a file", "another name"])
def test_what_is_not_known_to_be_left_is_not_touched(what: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    (elsewhere / "kept").touch()
    left = tmp_path / f"{PREFIX}abc"
    match what:
        case "being made":
            left.mkdir()
            (left / "lock.new").touch()
        case "a link":
            left.symlink_to(elsewhere)
        case "its lock is a link":
            left.mkdir()
            (left / LOCK).symlink_to(elsewhere / LOCK)
        case "a file":
            left.touch()
        case _:
            left = tmp_path / "hookpost-data"
            left.mkdir()
            (left / LOCK).touch()
    with shared_folder(tmp_path):
        assert os.path.lexists(left)
    assert folders(elsewhere) == {LOCK, "kept"}
