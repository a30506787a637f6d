"""What a process of ours does for itself before it begins."""

from __future__ import annotations

import subprocess
import sys

from tests.patience import PATIENCE_S

PROGRAM = """
import resource
from hookpost.app.children import raise_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1000))
print(raise_file_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


CORES = """
import resource
from hookpost.app.children import write_no_core
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
write_no_core()
print(resource.getrlimit(resource.RLIMIT_CORE) == (0, hard))
"""


def test_a_crash_leaves_no_file_of_memory() -> None:
    done = subprocess.run([sys.executable, "-c", CORES], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stdout.strip() == "True"


def test_as_many_files_as_allowed_may_be_open() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout.split() == ["1000", "1000", "1000"]
