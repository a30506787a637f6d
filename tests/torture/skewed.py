"""python -m tests.torture.skewed SECONDS worker …: `hookpost` on a machine whose wall clock is off by so much.

A container has the clock of its host, so what reads the clock is moved instead, before anything of Hookpost is loaded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def shift(clock: Callable[[], float], by_s: float) -> Callable[[], float]:
    """The same clock, so many seconds ahead."""
    return lambda: clock() + by_s


if __name__ == "__main__":
    time.time = shift(time.time, float(sys.argv.pop(1)))
    from hookpost.app.cli import main

    main()
