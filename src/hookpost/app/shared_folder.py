"""The folder that the processes of one server share: their figures, and the sockets of its workers.

Nothing in it is secret or has to last. Relies on a lock, which ends with whoever holds it, however that ends. Promises:
it goes with the server; what a server that was killed left behind goes with the next one that starts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "hookpost-figures-"
# Locked as long as its server lives. Hidden: whoever looks for figures or sockets does not see it.
LOCK = ".lock"
# Where Linux has files that are in memory alone.
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a folder with a random name is made in it


@contextmanager
def shared_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder in ``parent``, open to this user alone; by default in memory, or where temporary files are."""
    parent = parent or Path(_in_memory() or tempfile.gettempdir())
    for left in parent.glob(f"{PREFIX}*"):
        _remove_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    # Locked before it has its name: without one no other server takes the folder for one that was left.
    fd = os.open(folder / "lock.new", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        (folder / "lock.new").rename(folder / LOCK)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def _in_memory() -> str | None:
    """A folder in memory, if there is one: each process replaces its file every second, from its event loop, and on a
    disk it would wait for it, as for every log of a file system that others write to."""
    return _SHARED_MEMORY if os.path.ismount(_SHARED_MEMORY) and os.access(_SHARED_MEMORY, os.W_OK | os.X_OK) else None


def _remove_if_left(folder: Path) -> None:
    """Anybody may put something into the folder of temporary files, under any name: only what is ours is touched."""
    with suppress(OSError):
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            return
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(fd)
