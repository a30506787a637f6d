"""`make fuzz`: a server of its own, and requests made from its OpenAPI document until the time is up.

    python -m tests.fuzz --seconds 300 --examples 50 --seed 1

Ends with 1 and the request (as curl) when an answer is a 5xx, or not what the document says.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys

from tests.e2e.harness import ADMIN_KEY, running
from tests.fuzz.api import CLOSED_PORT, Target, rounds, target


async def main() -> int:
    """Fuzz; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--examples", type=int, default=30, help="requests of an operation in a row")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    print(f"fuzz: seed {options.seed}, {options.seconds:g} s")
    async with running(egress_proxy=CLOSED_PORT) as server:
        at = await asyncio.to_thread(target, server.url, ADMIN_KEY)
        faults = await asyncio.to_thread(_run, at, options)
        logged = [line for line in server.lines if "internal_error" in line or "Traceback" in line]
        print(*logged, sep="\n", file=sys.stderr)
    return 1 if faults or logged else 0


def _run(at: Target, options: argparse.Namespace) -> int:
    made = faults = 0
    for tried in rounds(at, seconds=options.seconds, examples=options.examples, seed=options.seed):
        made += tried.requests
        faults += bool(tried.fault)
        print(f"  {tried.operation}: {tried.requests}", *filter(None, [tried.fault]), sep="\n", flush=True)
    print(f"fuzz: {made} requests, {faults} faults")
    return faults


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
