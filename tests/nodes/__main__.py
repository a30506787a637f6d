"""python -m tests.nodes --minutes 5: see CONTRIBUTING.md. Exit code 1 when a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys

from tests.nodes.rig import run
from tests.torture import network


def main() -> int:
    """The exit code; 2 where there can be no namespaces."""
    parser = argparse.ArgumentParser(prog="python -m tests.nodes")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long nodes come and go at random, in the end")
    parser.add_argument("--seed", type=int, help="of what happens at random")
    parser.add_argument("--rate", type=float, default=20.0, help="events a second")
    parser.add_argument("--patience", type=float, default=1.0, help="how often longer than promised balancing may take")
    parser.add_argument("--isolated", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if reason := network.why_not():
        print(f"nodes: {reason}", file=sys.stderr)
        return 2
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    if not given.isolated:
        arguments = [f"--{name}={getattr(given, name)}" for name in ("minutes", "rate", "patience")]
        arguments += [f"--seed={seed}", "--isolated"]
        os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", "tests.nodes", *arguments])
    # However it is ended, it takes its processes with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = asyncio.run(run(rate=given.rate, seconds=given.minutes * 60, seed=seed, patience=given.patience))
    for line in report.verdict.lines():
        print(line)
    print(f"  the same again: python -m tests.nodes --seed {seed} --minutes {given.minutes:g}")
    print(report.line())
    return 1 if report.verdict.guilty else 0


if __name__ == "__main__":
    sys.exit(main())
