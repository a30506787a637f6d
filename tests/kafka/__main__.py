"""python -m tests.kafka COMMAND…: run a command beside three brokers that end with it.

HOOKPOST_JOURNAL_URL names them for a program, and for tests/e2e the variable that its harness looks for.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e.harness import BROKERS
from tests.kafka.cluster import Cluster, missing


def main() -> int:
    """The command's exit code."""
    if lacks := missing():
        print(lacks, file=sys.stderr)
        return 1
    # However it is ended, it takes the brokers with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="hookpost-kafka-"))
    cluster = Cluster(folder)
    try:
        cluster.start()
        url = f"kafka://{cluster.servers}"
        environment = {**os.environ, "HOOKPOST_JOURNAL_URL": url, BROKERS: url}
        return subprocess.run(sys.argv[1:], env=environment, check=False).returncode
    finally:
        cluster.kill()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
