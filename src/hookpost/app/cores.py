"""How many cores this process may use, and how many processes of ours they carry.

A delivery takes a worker half of its CPU time, the API a third and PostgreSQL a fifth (bench/README.md), hence a worker
for each two cores and an API process for each four. A container or a service has the machine's cores in view and a part
of their time to use: the quotas of its control groups count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CORES_A_WORKER, WORKERS_MAX = 2, 4
# Beyond these somebody should look at the sizing: each process takes nine connections and a hundred MB.
CORES_AN_API_PROCESS, API_PROCESSES_MAX = 4, 2
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def workers(cores: int, shards: int) -> int:
    """Workers that so many cores carry beside the API and PostgreSQL; further ones than shards have nothing to do."""
    return max(1, min(cores // CORES_A_WORKER, WORKERS_MAX, shards))


def api_processes(cores: int) -> int:
    """API processes that so many cores carry beside the workers and PostgreSQL."""
    return max(1, min(cores // CORES_AN_API_PROCESS, API_PROCESSES_MAX))


def usable(cgroup: Path = _CGROUP, cgroups: Path = _CGROUPS) -> int:
    """Whole cores that we may use, at least one: those that we may run on, or what the quota of our control group, or
    of one around it, comes to (cgroup v2, ``cpu.max``: https://docs.kernel.org/admin-guide/cgroup-v2.html)."""
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas(cgroup, cgroups)])))


def _quotas(cgroup: Path, cgroups: Path) -> Iterator[float]:
    """In cores, of those groups that have one. Where nothing can be read, or ours is not in view, there is none."""
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if group is None or ".." in group.split("/"):
        return
    innermost = cgroups / group
    for folder in (innermost, *innermost.parents):
        if not folder.is_relative_to(cgroups):
            return
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
