"""A place like a container's: a mount namespace in which two folders can be written, and a user without any rights.

Needs root, and `unshare`, `mount` and `setpriv` of util-linux. What is run keeps its process id, so a signal reaches it.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Kernel interfaces, not files: a container has them, too.
PSEUDO = frozenset(
    {"proc", "sysfs", "devpts", "cgroup", "cgroup2", "mqueue", "securityfs", "debugfs", "tracefs", "bpf"}
)

# Arguments: user, group, the closed folder ("" if there is none), how many folders behind it are needed and these, how
# many folders can be written and these, then the command.
_SCRIPT = r"""
set -eu
user=$1 group=$2 closed=$3 needed=$4; shift 4
mount --make-rprivate /
if [ -n "$closed" ]; then
    stash=$(mktemp -d); mount -t tmpfs stash "$stash"
    for i in $(seq "$needed"); do eval "mkdir $stash/$i; mount --bind \"\${$i}\" $stash/$i"; done
    mount -t tmpfs -o mode=755 opened "$closed"
    for i in $(seq "$needed"); do eval "mkdir -p \"\${$i}\"; mount --bind $stash/$i \"\${$i}\""; done
    umount -R "$stash"; rmdir "$stash"
fi
shift "$needed"
cut -d ' ' -f 5 /proc/self/mountinfo | sort -u | while read -r mounted; do
    mount -o remount,bind,ro "$mounted" 2>/dev/null || true # the kernel's own may refuse; the test looks who did
done
writable=$1; shift
for _ in $(seq "$writable"); do mount --bind "$1" "$1"; mount -o remount,bind,rw "$1"; shift; done
exec setpriv --reuid "$user" --regid "$group" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


def lacking() -> str:
    """What this machine lacks for it; empty: nothing."""
    if os.geteuid() != 0:
        return "only root makes mount namespaces"
    missing = [tool for tool in ("unshare", "mount", "setpriv") if shutil.which(tool) is None]
    return f"missing {', '.join(missing)} (util-linux)" if missing else ""


def confined(user: int, group: int, *writable: Path) -> tuple[str, ...]:
    """What to put in front of a command so that it runs there."""
    needed = [Path(sys.base_prefix), Path(sys.prefix), ROOT]
    closed = next((folder for path in needed for folder in _closed_above(path)), None)
    hidden = [str(path) for path in needed if closed is not None and path.is_relative_to(closed)]
    return (
        "unshare", "--mount", "sh", "-c", _SCRIPT, "confined", str(user), str(group),
        "" if closed is None else str(closed), str(len(hidden)), *hidden,
        str(len(writable)), *map(str, writable),
    )  # fmt: skip


def _closed_above(path: Path) -> list[Path]:
    """Folders on the way, from the root, that others may not pass: an interpreter may be in root's home."""
    return [folder for folder in reversed(path.parents) if not folder.stat().st_mode & stat.S_IXOTH]


def writable_mounts(pid: int) -> set[str]:
    """Where a process could write, pseudo file systems left out."""
    found: dict[str, bool] = {}
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        before, _, behind = line.partition(" - ")
        _, _, _, _, place, options = before.split()[:6]
        # The last one at a place is what is seen there.
        found[place] = "rw" in options.split(",") and behind.split()[0] not in PSEUDO
    return {place for place, writable in found.items() if writable}


def rights(pid: int) -> dict[str, str]:
    """Lines of /proc/PID/status by name."""
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}
