"""python -m tests.torture --minutes 10 --kills 100: see CONTRIBUTING.md. Exit code 1 when a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys

from tests.torture import network
from tests.torture.report import show
from tests.torture.rig import Options, run


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long there are faults")
    parser.add_argument("--kills", type=int, default=120, help="how many kill -9 in that time")
    parser.add_argument("--seed", type=int, help="of the plan of faults; random when not given")
    parser.add_argument("--rate", type=float, default=80.0, help="events a second")
    parser.add_argument("--kafka", action="store_true", help="the journal in three brokers; nothing is cut off then")
    parser.add_argument("--patience", type=float, default=1.0, help="how often slower a crowded machine may be")
    parser.add_argument("--isolated", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    options = Options(seed, given.minutes * 60, given.kills, given.rate, given.kafka, given.patience)
    # Workers apart, on islands of their own, would not reach brokers on loopback.
    if not given.isolated and not given.kafka and not network.why_not():
        os.execvp("unshare", ["unshare", "--net", "--mount", *inside(options)])
    # However it is ended, it takes its processes with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = asyncio.run(run(options, isolated=given.isolated))
    show(report)
    return 1 if report.verdict.guilty else 0


def inside(options: Options) -> list[str]:
    """The command for a process in namespaces of its own."""
    names = ("kills", "seed", "rate", "patience")
    arguments = {"minutes": options.seconds / 60, **{name: getattr(options, name) for name in names}}
    shown = [f"--{name}={value}" for name, value in arguments.items()]
    return [sys.executable, "-m", "tests.torture", "--isolated", *shown]


if __name__ == "__main__":
    sys.exit(main())
