"""python -m tests.kafka COMMAND…: run a command with HOOKPOST_JOURNAL_URL naming three brokers that end with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kafka.cluster import Cluster, missing


def main() -> int:
    """The command's exit code."""
    if lacks := missing():
        print(lacks, file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="hookpost-kafka-"))
    cluster = Cluster(folder)
    try:
        cluster.start()
        environment = {**os.environ, "HOOKPOST_JOURNAL_URL": f"kafka://{cluster.servers}"}
        return subprocess.run(sys.argv[1:], env=environment, check=False).returncode
    finally:
        cluster.kill()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
