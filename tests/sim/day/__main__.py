"""python -m tests.sim.day: live through the stories and write figures and plots to docs/scale.

Named ones alone: ``python -m tests.sim.day outage full-hour``. ``--lived`` seconds of each half hour are lived through of
the day (1800: the whole of it); ``--sampled`` whole workers of ``--workers`` of the outage and the herds.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from tests.sim.day.fleet import Fleet
from tests.sim.day.plots import svg
from tests.sim.day.scenarios import SCENARIOS, Day

FLEET = Fleet()


def main() -> None:
    """One line for each story; raises Violation when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.day")
    parser.add_argument("names", nargs="*", metavar="STORY", help=f"of {', '.join(SCENARIOS)}; all by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=FLEET.workers, help="of the whole fleet")
    parser.add_argument("--sampled", type=int, default=FLEET.sampled, help="of them are lived through")
    parser.add_argument("--lived", type=float, default=Day().lived_s, help="seconds of each half hour of the day")
    parser.add_argument("--out", type=Path, default=Path("docs/scale"))
    options = parser.parse_args()
    fleet = Fleet(workers=options.workers, sampled=options.sampled)
    options.out.mkdir(parents=True, exist_ok=True)
    gc.disable()  # a worker's life makes no cycles, and a million waiting rows are walked each time
    for name in options.names or SCENARIOS:
        story = SCENARIOS[name]
        if isinstance(story, Day):
            story = replace(story, lived_s=options.lived)
        began = time.monotonic()
        result = story.live(fleet, options.seed)
        how = {"seed": options.seed, "workers": fleet.workers, "sampled": fleet.sampled}
        if isinstance(story, Day):
            how["lived_s_of_each_half_hour"] = story.lived_s
        figures = {key: float(f"{value:.4g}") for key, value in result.figures.items()}
        text = json.dumps({"story": name, **how, "figures": figures}, indent=1)
        (options.out / f"{name}.json").write_text(text + "\n")
        for title, chart in result.charts.items():
            (options.out / f"{title}.svg").write_text(svg(chart))
        print(f"{name}: {time.monotonic() - began:.0f} s; {json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets are walked in an order that differs from process to process unless hashes are fixed.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.day", *sys.argv[1:]])
    main()
