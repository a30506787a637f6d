"""Processes as the kernel shows them: who descends from whom, who lives, and how much memory they took."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path


def alive(pid: int) -> bool:
    """A dead process that nobody has collected yet counts as dead."""
    try:
        return _fields(pid)[0] != "Z"
    except FileNotFoundError:
        return False


def descendants(pid: int) -> set[int]:
    """The living processes below this one."""
    children: dict[int, set[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children.setdefault(int(_fields(int(folder.name))[1]), set()).add(int(folder.name))
    found: set[int] = set()
    todo = {pid}
    while todo:
        todo = set().union(*(children.get(parent, set()) for parent in todo)) - found
        found |= todo
    return {child for child in found if alive(child)}


def session(sid: int) -> set[int]:
    """The living processes of a session."""
    members = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = _fields(int(folder.name))
                if int(fields[3]) == sid and fields[0] != "Z":
                    members.add(int(folder.name))
    return members


def memory_mb(pid: int, *, peak: bool) -> float:
    """Resident memory now, or the most it ever was."""
    found = re.search(rf"Vm{'HWM' if peak else 'RSS'}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process and all below it stand still, as on a machine that hangs; they go on at the end."""
    os.kill(pid, signal.SIGSTOP)
    below = descendants(pid)
    for child in below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGSTOP)
    try:
        yield
    finally:
        for child in (*below, pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)


def _fields(pid: int) -> list[str]:
    """/proc/PID/stat behind the name, which may hold anything: state, parent, group, session, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
