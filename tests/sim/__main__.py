"""python -m tests.sim 7: live through the worlds of a seed. python -m tests.sim --seeds 60: of many.

A seed has two worlds: the engine's, with a store, a network and clocks of its own (`world.py`), and the system's, real
ingest, workers and maintenance on the store in memory (`system/`). One line for each that breaks, with how to replay it;
the last line holds the digest of all that happened.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import secrets
import sys

from tests.sim import hashes
from tests.sim.checkers import broken
from tests.sim.system.trace import Violation
from tests.sim.system.world import KINDS, live
from tests.sim.world import simulate

EACH = "each"


def run(seed: int, kind: str | None) -> str:
    """Both worlds of a seed; the digest of what happened. Raises Violation, or whatever the code dies of."""
    trace = live(seed, kind)
    found = broken(trace)
    if found:
        raise Violation("; ".join(f"{name}: {violation}" for name, violation in found.items()))
    return simulate(seed) + trace.digest


def main() -> int:
    """The exit code: 1 when a world broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("one", type=int, nargs="?", metavar="SEED", help="the worlds of this seed")
    parser.add_argument("--seed", type=int, help="the same")
    parser.add_argument("--seeds", type=int, default=20, help="so many seeds, from 0 on")
    parser.add_argument("--fresh", type=int, default=0, help="and so many that nobody has seen before")
    parser.add_argument("--kind", choices=(*KINDS, EACH), help="the kind of the system's worlds, drawn otherwise")
    options = parser.parse_args()
    one = options.one if options.one is not None else options.seed
    seeds = [one] if one is not None else [*range(options.seeds), *(secrets.randbits(32) for _ in range(options.fresh))]
    kinds = list(KINDS) if options.kind == EACH else [options.kind]
    digest, failed = hashlib.blake2b(digest_size=8), 0
    for seed, kind in itertools.product(seeds, kinds):
        try:
            digest.update(run(seed, kind).encode())
        except Exception as error:
            if one is not None:
                raise
            failed += 1
            text = str(error)[:500]
            again = f" ARGS='--kind \"{kind}\"'" if kind else ""
            print(f"seed {seed}: {type(error).__name__}: {text}; replay: make sim SEED={seed}{again}", flush=True)
    print(f"sim: {len(seeds)} seeds, {digest.hexdigest()} digest")
    return 1 if failed else 0


if __name__ == "__main__":
    hashes.fix("tests.sim")
    sys.exit(main())
