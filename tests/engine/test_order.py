"""Order, however often owners die: worlds of ordered endpoints (tests/sim/ordered.py), judged by what arrived."""

from __future__ import annotations

import os

from tests.sim.ordered import OrderedWorld
from tests.sim.world import small_fetches

# A thousand kills in `make whole`; in every run those worlds that have many and take little.
WHOLE = bool(os.environ.get("WHOLE_TESTS"))
SEEDS = range(18) if WHOLE else (3, 8, 12)
KILLS_MIN = 1_000 if WHOLE else 200
# So many deliveries must have arrived in an order that was promised, or the worlds would prove nothing.
IN_ORDER_MIN = 2_000 if WHOLE else 1_000


def test_order_holds_over_hundreds_of_kills_and_lost_leases() -> None:
    kills = in_order = 0
    for seed in SEEDS:
        world = OrderedWorld(seed)
        with small_fetches(world.rng.choice((2, 4, 8))):
            world.run()
        kills += world.kills
        in_order += world.ledger.in_order
    assert kills >= KILLS_MIN
    assert in_order >= IN_ORDER_MIN
