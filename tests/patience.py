"""How long tests wait. Whatever a test waits for comes, or the test fails; the bound only ends it if it does not come."""

from __future__ import annotations

import time

# So far beyond what a crowded machine needs that it never decides.
PATIENCE_S = 120.0
DAY_S = 86_400.0
# A test that is about days is over within so long, and is not begun when the day (UTC) ends sooner.
DAY_LEFT_S = 90.0


def until_tomorrow_s(left_s: float = DAY_LEFT_S) -> float:
    """How long such a test has to wait: as a rule not at all."""
    left = DAY_S - time.time() % DAY_S
    return left + 1.0 if left < left_s else 0.0
