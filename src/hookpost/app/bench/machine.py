"""What the kernel says: CPU seconds and memory of processes (/proc), and which machine this is.

CPU is counted per role, in ticks of 10 ms: enough over seconds, and the same for all. A process that ended is counted
by its parent (cutime, cstime), so PostgreSQL's backends that came and went are not lost.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# As they were before anything was pinned.
CORES = tuple(sorted(os.sched_getaffinity(0)))


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/<pid>/stat, as far as we need it; times in seconds."""

    pid: int
    parent: int
    own_s: float
    ended_children_s: float
    rss_bytes: int


def parse_stat(text: str) -> Process:
    """A /proc/<pid>/stat. The second field is the program's name in parentheses and may hold anything."""
    pid = int(text[: text.index(" ")])
    fields = text[text.rindex(")") + 2 :].split()
    user, system, child_user, child_system = (int(field) / _TICKS for field in fields[11:15])
    return Process(pid, int(fields[1]), user + system, child_user + child_system, int(fields[21]) * _PAGE_BYTES)


def processes() -> dict[int, Process]:
    """All processes that can be seen now."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                process = parse_stat(Path(entry.path, "stat").read_text("latin-1"))
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[process.pid] = process
    return found


def tree(root: int, table: Mapping[int, Process]) -> list[Process]:
    """A process with all its descendants."""
    children = defaultdict(list)
    for process in table.values():
        children[process.parent].append(process)
    found = [table[root]] if root in table else []
    for process in found:
        found.extend(children[process.pid])
    return found


def cpu_s(process: Process, descendants: list[Process]) -> float:
    """What a process and its descendants have used so far, those that ended included."""
    return process.ended_children_s + sum(child.own_s for child in descendants)


@contextmanager
def off_the_first_core() -> Iterator[None]:
    """Leave the first core to what is measured; only with several of them."""
    os.sched_setaffinity(0, CORES[1:] or CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def busy_s(stat: str | None = None) -> float:
    """CPU seconds that all processes of the machine and its host have used (stolen time included), from /proc/stat."""
    text = Path("/proc/stat").read_text() if stat is None else stat
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, text.split(None, 9)[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def arguments_of(pid: int) -> list[str]:
    """The command line of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def describe_machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory_kib = int(Path("/proc/meminfo").read_text().split(None, 2)[1])
    return {
        "cpu": cpu,
        "cores": len(CORES),
        "memory_gib": round(memory_kib / 1024**2, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the working tree this program runs from, with a plus when it was changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
