"""Judges that never convict prove nothing: each fault put into the engine here must be found within a few seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hookpost.engine import backlog as backlog_module
from hookpost.engine import books as books_module
from hookpost.engine import engine as engine_module
from hookpost.engine import gates as gates_module
from hookpost.engine import roster as roster_module
from hookpost.engine.backlog import Backlog
from hookpost.engine.books import Books
from hookpost.engine.engine import Engine
from hookpost.engine.findings import Findings
from hookpost.engine.gates import Gates
from hookpost.engine.lanes import NEVER, Lane
from hookpost.engine.outage import Outage
from hookpost.engine.progress import ShardProgress
from hookpost.engine.roster import Roster
from hookpost.engine.shard import Shard
from hookpost.engine.turns import Turns
from hookpost.policy.breaker import Breaker
from hookpost.policy.rate import TokenBucket
from tests.engine.model import Violation
from tests.engine.test_own_outage import CutCable
from tests.sim.ordered import OrderedWorld
from tests.sim.world import simulate, small_fetches

SEEDS = range(30)
# Worlds that find what most others do not, or find it sooner: they are tried first.
TELLING = {
    "a_fetch_reaches_rows_that_are_not_committed": 27,
    "a_row_may_lie_before_what_was_fetched": 19,
    "an_unknown_endpoint_is_not_asked_for_when_its_rows_are_due": 46,
}
Fault = Callable[[pytest.MonkeyPatch], None]
FAULTS: dict[str, Fault] = {}


def fault(put: Fault) -> Fault:
    FAULTS[put.__name__] = put
    return put


def wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a method by ``around(original, self, *args, **kwargs)``."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda self, *args, **kwargs: around(original, self, *args, **kwargs))


@fault
def the_snapshot_forgets_open_entries(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, ShardProgress, "snapshot", lambda f, p: replace(f(p), open=(), partial=(), cursor=p.read_to))


@fault
def the_snapshot_forgets_who_of_a_fan_out_is_done(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, ShardProgress, "snapshot", lambda f, p: replace(f(p), partial=()))


@fault
def a_retry_is_finished_and_not_stored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Books, "store", lambda self, work, *rest, **named: self.finish(work))


@fault
def a_gap_goes_unnoticed(patch: pytest.MonkeyPatch) -> None:
    def advance(self: ShardProgress, seq: int, day: int) -> None:
        self.read_to, self.read_day = seq, day

    patch.setattr(ShardProgress, "advance", advance)


@fault
def a_fetch_brings_back_what_is_in_memory(patch: pytest.MonkeyPatch) -> None:
    def load(original: Any, self: Books, lane: Any, row: Any) -> Any:
        work = original(self, lane, row)
        lane.busy.discard(row.position)
        return work

    wrap(patch, Books, "load", load)


@fault
def a_fetch_under_way_brings_back_what_was_settled_meanwhile(patch: pytest.MonkeyPatch) -> None:
    def on_settled(original: Any, self: Engine, settle: Any, *, now: float) -> None:
        original(self, settle, now=now)
        for lane, position in settle.released:
            lane.let_go(position)

    wrap(patch, Engine, "on_settled", on_settled)


@fault
def a_fetch_reaches_rows_that_are_not_committed(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, Backlog, "_fetch", lambda f, b, lane, wanted, now: replace(f(b, lane, wanted, now), until=now))


@fault
def a_row_may_lie_before_what_was_fetched(patch: pytest.MonkeyPatch) -> None:
    for module in (backlog_module, books_module):
        patch.setattr(module, "TICK_S", 0.0)


@fault
def rows_that_are_committed_are_not_looked_for(patch: pytest.MonkeyPatch) -> None:
    def take_settle(original: Any, self: Engine, *, now: float) -> Any:
        settle = original(self, now=now)
        for lane in settle.lanes if settle else ():
            lane.due_settling = NEVER
        return settle

    wrap(patch, Engine, "take_settle", take_settle)


@fault
def finished_rows_stay_in_the_backlog(patch: pytest.MonkeyPatch) -> None:
    def take(original: Any, self: Shard) -> Any:
        part = original(self)
        part.deletes.clear()
        return part

    wrap(patch, Shard, "take", take)


@fault
def an_endpoints_cap_is_one_too_many(patch: pytest.MonkeyPatch) -> None:
    def admit(original: Any, self: Gates, lane: Any, *rest: Any, **named: Any) -> Any:
        lane.endpoint.cap += 1
        try:
            return original(self, lane, *rest, **named)
        finally:
            lane.endpoint.cap -= 1

    wrap(patch, Gates, "admit", admit)


@fault
def a_tenants_cap_is_one_too_many(patch: pytest.MonkeyPatch) -> None:
    def share(original: Any, self: Roster, tenant: Any) -> None:
        original(self, tenant)
        tenant.cap += 1

    wrap(patch, Roster, "share_tenant", share)


@fault
def a_lane_that_waits_for_a_place_is_not_woken(patch: pytest.MonkeyPatch) -> None:
    def wake(original: Any, self: Turns, endpoint: Any, *, everyone: bool = False) -> None:
        if everyone:
            original(self, endpoint, everyone=True)

    wrap(patch, Turns, "wake_waiting", wake)


@fault
def a_tenant_with_a_place_free_again_is_not_woken(patch: pytest.MonkeyPatch) -> None:
    def enter(self: Turns, tenant: Any) -> None:
        if not tenant.turning and tenant.ready and tenant.in_flight == 0:
            tenant.turning = True
            self._tenants.append(tenant)

    patch.setattr(Turns, "resume", enter)


@fault
def deadlines_are_ignored(patch: pytest.MonkeyPatch) -> None:
    decide = engine_module.decide
    patch.setattr(engine_module, "decide", lambda *a, **k: decide(*a, **{**k, "deadline": NEVER}))


@fault
def retry_after_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Findings, "note_hold", lambda self, *rest: None)


@fault
def backoff_is_halved(patch: pytest.MonkeyPatch) -> None:
    def store(original: Any, self: Books, work: Any, reason: Any, due_at: float, *rest: Any, **named: Any) -> None:
        now = rest[-1]
        original(self, work, reason, now + (due_at - now) / 2, *rest, **named)

    wrap(patch, Books, "store", store)


@fault
def paused_endpoints_are_sent_to(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gates_module, "endpoint_gate", lambda *rest, **named: None)


@fault
def duplicates_are_not_marked(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, Engine, "open_shard", lambda f, e, takeover, *, now: f(e, replace(takeover, clean=True), now=now))


@fault
def a_drain_is_called_clean_too_early(patch: pytest.MonkeyPatch) -> None:
    def take(original: Any, self: Shard) -> Any:
        part = original(self)
        part.clean = self.draining
        return part

    wrap(patch, Shard, "take", take)


@fault
def a_lost_shard_keeps_its_memory(patch: pytest.MonkeyPatch) -> None:
    def close(original: Any, self: Engine, number: int) -> None:
        before = self._books.buffered
        original(self, number)
        self._books.buffered = before

    wrap(patch, Engine, "close_shard", close)


@fault
def a_lane_with_rows_in_the_backlog_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def idle(original: Any, lane: Any, now: float) -> bool:
        stored, lane.stored = lane.stored, 0
        try:
            return bool(original(lane, now))
        finally:
            lane.stored = stored

    wrap(patch, roster_module, "_is_idle", idle)


@fault
def an_unknown_endpoint_is_not_asked_for_when_its_rows_are_due(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Backlog, "_wants_unknown", lambda self, lane, now: None)


@fault
def attempts_are_recorded_twice(patch: pytest.MonkeyPatch) -> None:
    def record(original: Any, self: Books, *rest: Any) -> None:
        original(self, *rest)
        original(self, *rest)

    wrap(patch, Books, "record", record)


@fault
def a_breaker_never_opens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Breaker, "_open", lambda self, now, openings, rng: False)


@fault
def a_half_open_breaker_lets_everything_through(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, Breaker, "start", lambda f, b: (f(b), setattr(b, "probing", False))[0])


@fault
def a_bucket_is_never_empty(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TokenBucket, "take", lambda self, *, now, tokens=1: 0.0)


@fault
def a_new_owner_starts_with_a_full_bucket(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, TokenBucket, "__init__", lambda f, bucket, rate, *, since: f(bucket, rate, since=0.0))


@fault
def what_is_fresh_overtakes_the_backlog_of_an_ordered_lane(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lane, "_first", lambda self: self.queue[0] if self.queue else self.later[0] if self.later else None)


@fault
def an_ordered_lane_sends_several_at_once(patch: pytest.MonkeyPatch) -> None:
    def admit(original: Any, self: Gates, lane: Any, *rest: Any, **named: Any) -> Any:
        ordered, lane.ordered = lane.ordered, False
        try:
            return original(self, lane, *rest, **named)
        finally:
            lane.ordered = ordered

    wrap(patch, Gates, "admit", admit)


@fault
def a_new_owner_of_ordered_lanes_sends_at_once(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, Engine, "open_shard", lambda f, e, takeover, *, now: f(e, replace(takeover, quiet_until=0.0), now=now))


@fault
def our_own_outage_is_charged_to_receivers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outage, "is_ours", lambda self, outcome: False)


@fault
def our_own_outage_holds_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outage, "holds", lambda self, endpoint, *, now: False)


@fault
def what_our_own_outage_cost_is_not_taken_back(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, Outage, "take_charged", lambda f, outage: (f(outage), {})[1])


@fault
def nobody_is_asked_whether_our_way_out_is_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outage, "choose", lambda self, *, now: setattr(self, "probe_at", now + 1.0))


def simulate_ordered(seed: int) -> None:
    world = OrderedWorld(seed)
    with small_fetches(world.rng.choice((2, 4, 8))):
        world.run()


def simulate_cut_cable(_seed: int) -> None:
    CutCable(120.0).live_through()


# What shows in other worlds only, and what must convict it. A hasty new owner: where owners of ordered endpoints die all the
# time, by what their receivers saw. Our own outage: where there is one.
ELSEWHERE: dict[str, tuple[Callable[[int], object], str]] = {
    a_new_owner_of_ordered_lanes_sends_at_once.__name__: (simulate_ordered, "arrived behind a later one"),
    our_own_outage_is_charged_to_receivers.__name__: (simulate_cut_cable, "charged"),
    our_own_outage_holds_nothing.__name__: (simulate_cut_cable, "sent in vain"),
    what_our_own_outage_cost_is_not_taken_back.__name__: (simulate_cut_cable, "charged"),
    nobody_is_asked_whether_our_way_out_is_back.__name__: (simulate_cut_cable, "not back"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[name](monkeypatch)
    live, convicted_by = ELSEWHERE.get(name, (simulate, ""))
    for seed in (*((TELLING[name],) if name in TELLING else ()), *SEEDS):
        try:
            live(seed)
        except Violation as violation:
            if convicted_by in str(violation):
                return
    pytest.fail(f"{name} was not found in {len(SEEDS)} seeds")
