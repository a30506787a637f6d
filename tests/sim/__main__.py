"""python -m tests.sim --seeds 60: live through worlds. Prints one line for each failing one, with how to replay it."""

from __future__ import annotations

import argparse
import hashlib
import sys

from tests.sim.world import simulate


def main() -> int:
    """The exit code: 1 when a world broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seeds", type=int, default=60, help="how many worlds")
    parser.add_argument("--seed", type=int, help="this one world; a failure shows its traceback")
    options = parser.parse_args()
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    digest = hashlib.blake2b(digest_size=8)
    failed = 0
    for seed in seeds:
        try:
            digest.update(simulate(seed).encode())
        except Exception as error:
            if options.seed is not None:
                raise
            failed += 1
            print(f"seed {seed}: {type(error).__name__}: {error}; replay: python -m tests.sim --seed {seed}")
    print(f"sim: {len(seeds)} seeds, {digest.hexdigest()} digest")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
