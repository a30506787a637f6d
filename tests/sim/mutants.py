"""Judges that never convict prove nothing: faults put into the production code, at least one for each checker.

``python -m tests.sim.mutants`` puts each of them in and lives through seeds until its checker convicts it, in as many
processes as there are cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import pytest
from msgspec.structs import replace as replaced

from hookpost import ingest as ingest_module
from hookpost import worker as worker_module
from hookpost.engine import engine as engine_module
from hookpost.engine import roster as roster_module
from hookpost.engine.books import Books
from hookpost.engine.engine import Engine
from hookpost.engine.findings import Findings
from hookpost.engine.gates import OverBudget
from hookpost.engine.lanes import NEVER, Lane
from hookpost.engine.progress import ShardProgress
from hookpost.engine.timers import Timers
from hookpost.engine.work import JournalRow
from hookpost.ingest import Ingest
from hookpost.maintenance import Maintenance
from hookpost.policy import budget as budget_module
from hookpost.policy import retry as retry_module
from hookpost.policy.breaker import Breaker
from hookpost.policy.budget import RetryBudget
from hookpost.policy.rate import TokenBucket
from hookpost.storage.contract import Appended, Place, StoreUnavailable, Verdict
from hookpost.storage.memory import alerts as memory_alerts
from hookpost.storage.memory.admin import AdminTables
from hookpost.storage.memory.alerts import AlertTables
from hookpost.storage.memory.ingest import IngestTables
from hookpost.storage.memory.retention import RetentionTables
from hookpost.storage.memory.rollups import RollupTables
from hookpost.storage.memory.settle import SettleTables
from hookpost.storage.memory.tables import Database
from hookpost.worker import Worker
from tests.sim import hashes
from tests.sim.checkers import broken
from tests.sim.system.relay import BadRelay
from tests.sim.system.world import live

# Within so many seeds a fault must be found.
SEEDS = 24
# What takes a kill, or an answer, within the seconds by which a clock was set back, is met in one world of a hundred; a
# window of the budget that is too short, in one of twenty to seventy.
RARE = 400
Patch = pytest.MonkeyPatch


@dataclass(frozen=True, slots=True)
class Mutant:
    """``by``: the checkers that may convict it; ``dies``: or a process dies of it, which ends the world. ``kind``: the
    worlds that have enough of what it takes; ``seeds``: so many of them."""

    put: Callable[[Patch], None]
    by: frozenset[str]
    dies: bool = False
    kind: str | None = None
    seeds: int = SEEDS


MUTANTS: dict[str, Mutant] = {}


def mutant(
    *by: str, dies: bool = False, kind: str | None = None, seeds: int = SEEDS
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Found by one of these checkers."""

    def enter(put: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS[put.__name__] = Mutant(put, frozenset(by), dies, kind, seeds)
        return put

    return enter


def wrap(patch: Patch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a method by ``around(original, self, *args, **kwargs)``."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda self, *args, **kwargs: around(original, self, *args, **kwargs))


# ---- ingest ---------------------------------------------------------------------------------------------------------


@mutant("accepted")
def ingest_answers_202_though_the_store_failed(patch: Patch) -> None:
    async def append(original: Any, self: Ingest, group: list[Any]) -> None:
        store = self._store.append

        async def forgiving(shard: Any, events: Any, versions: Any, placed: Any) -> Any:
            try:
                return await store(shard, events, versions, placed=placed)
            except StoreUnavailable:
                return [Appended(Verdict.NEW, event.event_id, len(event.owed)) for event in events]

        self._store.append = forgiving  # type: ignore[method-assign]
        try:
            await original(self, group)
        finally:
            self._store.append = store  # type: ignore[method-assign]

    wrap(patch, Ingest, "_append", append)


@mutant("configuration")
def an_append_does_not_look_at_config_versions(patch: Patch) -> None:
    async def append(original: Any, self: IngestTables, shard: Any, events: Any, versions: Any, **values: Any) -> Any:
        return await original(self, shard, events, {}, **values)

    wrap(patch, IngestTables, "append", append)


@mutant("order")
def all_of_a_lot_goes_to_one_of_its_shards(patch: Patch) -> None:
    async def append(original: Any, self: IngestTables, shard: Any, events: Any, versions: Any, **values: Any) -> Any:
        return await original(self, shard if isinstance(shard, int) else shard[0], events, versions, **values)

    wrap(patch, IngestTables, "append", append)


@mutant("idempotency", "accepted")
def an_idempotency_key_is_forgotten(patch: Patch) -> None:
    wrap(patch, IngestTables, "_append", lambda f, s, *args: (s._db.keys.clear(), f(s, *args))[1])


@mutant("idempotency", "accepted")
def another_payload_of_the_same_key_is_a_duplicate(patch: Patch) -> None:
    patch.setattr(ingest_module, "request_hash", lambda submission: b"the same")


@mutant("accepted", "order")
def the_same_number_is_given_twice(patch: Patch) -> None:
    def append(original: Any, self: Database, number: int, *args: Any, **values: Any) -> None:
        original(self, number, *args, **values)
        journal = self.shards[number].journal
        if journal.last_seq % 50 == 0:
            journal.rows[-1] = replace(journal.rows[-1], seq=journal.last_seq - 1)

    wrap(patch, Database, "append", append)


# ---- settle and fence -----------------------------------------------------------------------------------------------


@mutant("owners", kind="a database in trouble")
def the_fence_is_not_checked(patch: Patch) -> None:
    patch.setattr(SettleTables, "_fenced", lambda self, parts: not self._db.settled(parts[0]))


@mutant("owners", "attempts", "duplicates")
def a_settle_of_unknown_end_is_not_looked_up(patch: Patch) -> None:
    async def settled(self: Any, part: Any) -> bool:
        return False

    patch.setattr(SettleTables, "settled", settled)
    patch.setattr(Database, "settled", lambda self, part: False)


@mutant("owners", "duplicates", "fates", dies=True)
def a_settle_that_failed_is_given_up(patch: Patch) -> None:
    async def commit(original: Any, self: Worker, settle: Any, **named: Any) -> None:
        try:
            await self._store.settle(self._ours(settle.shards))
        except StoreUnavailable:
            return

    wrap(patch, Worker, "_commit", commit)


@mutant("metering")
def attempts_are_not_stored(patch: Patch) -> None:
    def write(original: Any, self: SettleTables, parts: Any) -> None:
        kept = {day: list(attempts) for day, attempts in self._db.attempts.items()}
        original(self, parts)
        if sum(map(len, kept.values())) > 20:
            self._db.attempts = kept

    wrap(patch, SettleTables, "_write", write)


@mutant("attempts")
def attempts_are_recorded_twice(patch: Patch) -> None:
    def record(original: Any, self: Books, *rest: Any) -> None:
        original(self, *rest)
        original(self, *rest)

    wrap(patch, Books, "record", record)


@mutant("cursors", "fates", dies=True)
def the_snapshot_forgets_open_entries(patch: Patch) -> None:
    wrap(patch, ShardProgress, "snapshot", lambda f, p: replace(f(p), open=(), partial=(), cursor=p.read_to))


@mutant("cursors")
def the_cursor_is_one_too_far(patch: Patch) -> None:
    wrap(patch, ShardProgress, "snapshot", lambda f, p: replace(f(p), cursor=min(f(p).cursor + 1, p.read_to)))


@mutant("cursors", "fates", dies=True)
def a_retry_is_finished_and_not_stored(patch: Patch) -> None:
    patch.setattr(Books, "store", lambda self, work, *rest, **named: self.finish(work))


@mutant("duplicates", "fates")
def the_snapshot_forgets_who_of_a_fan_out_is_done(patch: Patch) -> None:
    wrap(patch, ShardProgress, "snapshot", lambda f, p: replace(f(p), partial=()))


@mutant("duplicates")
def duplicates_are_not_marked(patch: Patch) -> None:
    wrap(patch, Engine, "open_shard", lambda f, e, takeover, *, now: f(e, replace(takeover, clean=True), now=now))


@mutant("duplicates", kind="sick receivers and clocks", seeds=RARE)
def what_the_last_owners_clock_had_shown_is_not_asked(patch: Patch) -> None:
    wrap(patch, Engine, "open_shard", lambda f, e, takeover, *, now: f(e, replace(takeover, doubtful_to=0.0), now=now))


@mutant("fates", "duplicates", "cursors")
def replays_of_one_event_share_a_generation(patch: Patch) -> None:
    def again(original: Any, self: AdminTables, *args: Any) -> set[int]:
        shards: set[int] = original(self, *args)
        for journal in (self._db.shards[shard].journal for shard in shards):
            journal.rows[-1] = replace(journal.rows[-1], generation=1)
        return shards

    wrap(patch, AdminTables, "_owe_again", again)


# ---- what is sent ---------------------------------------------------------------------------------------------------


@mutant("attempts")
def a_body_is_changed_on_the_way(patch: Patch) -> None:
    build = worker_module.build_request
    patch.setattr(
        worker_module, "build_request", lambda e, **named: build(e, **{**named, "payload": b" " + named["payload"]})
    )


@mutant("rates")
def a_bucket_is_never_empty(patch: Patch) -> None:
    patch.setattr(TokenBucket, "take", lambda self, *, now, tokens=1: 0.0)


@mutant("caps", kind="half of it fails")
def a_cap_is_doubled(patch: Patch) -> None:
    share = roster_module.cap_share
    patch.setattr(roster_module, "cap_share", lambda *args, **named: 2 * share(*args, **named) + 1)


@mutant("breakers")
def a_breaker_never_opens(patch: Patch) -> None:
    patch.setattr(Breaker, "_open", lambda self, now, openings, rng: False)


@mutant("breakers")
def a_half_open_breaker_lets_everything_through(patch: Patch) -> None:
    wrap(patch, Breaker, "start", lambda f, b: (f(b), setattr(b, "probing", False))[0])


@mutant("budget")
def every_retry_is_within_the_budget(patch: Patch) -> None:
    patch.setattr(RetryBudget, "admits", lambda self, tenant_id, *, now: True)


@mutant("rests", "drained")
def a_retry_that_succeeds_gives_nothing_back(patch: Patch) -> None:
    wrap(patch, RetryBudget, "end", lambda f, b, tenant_id, *, failed, now: f(b, tenant_id, failed=True, now=now))


@mutant("retry_after")
def retry_after_is_ignored(patch: Patch) -> None:
    patch.setattr(Findings, "note_hold", lambda self, *rest: None)
    patch.setattr(retry_module, "retry_after_s", lambda outcome, *, now: 0.0)


@mutant("order")
def what_is_fresh_overtakes_the_backlog_of_an_ordered_lane(patch: Patch) -> None:
    patch.setattr(Lane, "_first", lambda self: self.queue[0] if self.queue else self.later[0] if self.later else None)


@mutant("deadlines")
def retries_are_planned_behind_the_deadline(patch: Patch) -> None:
    decide = engine_module.decide
    patch.setattr(engine_module, "decide", lambda *a, **k: decide(*a, **{**k, "deadline": float("inf")}))


@mutant("deadlines")
def what_waits_has_an_earlier_deadline(patch: Patch) -> None:
    def store(original: Any, self: Books, work: Any, *rest: Any, **named: Any) -> None:
        original(self, work, *rest, **named)
        upserts, key = self.shards[work.lane.shard].upserts, (work.lane.endpoint.endpoint_id, work.entry.seq)
        upserts[key] = replace(upserts[key], deadline=upserts[key].deadline - 10.0)

    wrap(patch, Books, "store", store)


@mutant("order", kind="deaths in order")
def what_follows_a_dead_head_is_sent_before_the_death_is_committed(patch: Patch) -> None:
    """The next one goes with what is in memory; whoever takes over knows of no death and sends the dead one again."""

    def bury(original: Any, self: Books, work: Any, *rest: Any, **named: Any) -> None:
        original(self, work, *rest, **named)
        work.lane.dying, self._dying = 0, []

    wrap(patch, Books, "bury", bury)


@mutant("rests", "fates", "deadlines", kind="sick receivers and clocks")
def a_recovery_told_by_a_clock_that_was_set_back_is_never_heard(patch: Patch) -> None:
    def close(original: Any, self: Any, receiver: Any) -> None:
        original(self, receiver)
        stored = self._db.breakers.get(receiver)
        if stored is not None:
            self._db.breakers[receiver] = replace(stored, record=replace(stored.record, since=self._db.now()))

    def grant(original: Any, self: Breaker, probe: Any, *, asked: Any, now: float) -> bool:
        return bool(original(self, probe, asked=None, now=now))

    wrap(patch, AdminTables, "_close_breaker", close)
    wrap(patch, Breaker, "grant", grant)


@mutant("breakers", kind="sick receivers and clocks", seeds=RARE)
def a_breaker_goes_by_its_own_clock_alone(patch: Patch) -> None:
    def enter(self: Breaker, state: Any, now: float) -> None:
        self.state = state
        self.since = now

    patch.setattr(Breaker, "_enter", enter)


@mutant("budget", kind="half of it fails", seeds=RARE)
def failed_retries_are_forgotten_after_ten_seconds(patch: Patch) -> None:
    patch.setattr(budget_module, "WINDOW_S", 10)


@mutant("budget", kind="half of it fails")
def a_tenant_may_take_all_of_the_retry_budget(patch: Patch) -> None:
    patch.setattr(RetryBudget, "admits", lambda self, tenant_id, *, now: self._used < self.size(now=now))


@mutant("rests", "drained", "fates", kind="half of it fails")
def a_lane_that_waits_for_the_retry_budget_is_forgotten(patch: Patch) -> None:
    def share(self: OverBudget, now: float) -> list[Lane]:
        self._lanes, self.look_at = {}, NEVER
        return []

    patch.setattr(OverBudget, "share", share)


# ---- what is told -----------------------------------------------------------------------------------------------------


@mutant("alerts")
def what_was_told_of_an_endpoint_is_forgotten(patch: Patch) -> None:
    gather = memory_alerts.gather

    def forget(notices: Any, before: Any, *, now: float) -> Any:
        return gather(notices, before, now=now)[0], before

    patch.setattr(memory_alerts, "gather", forget)


@mutant("alerts")
def what_is_not_taken_at_once_leaves_the_outbox(patch: Patch) -> None:
    async def gather(original: Any, self: AlertTables, channels: Any, *, limit: int) -> int:
        del self._db.outbox[1:]
        return int(await original(self, channels, limit=limit))

    wrap(patch, AlertTables, "gather_alerts", gather)


# ---- the relay ------------------------------------------------------------------------------------------------------


@mutant("fates", "drained", dies=True)
def what_is_told_is_taken_though_it_does_not_follow(patch: Patch) -> None:
    def take(original: Any, self: Worker, rows: list[JournalRow]) -> None:
        shard = self._engine._shards.get(rows[0].shard)
        if shard is not None:
            shard.progress.read_to = max(shard.progress.read_to, rows[0].seq - 1)
        original(self, rows)

    wrap(patch, Worker, "take_told", take)


@mutant("drained", dies=True)
def what_was_told_is_not_left_out_of_a_read(patch: Patch) -> None:
    patch.setattr(Worker, "_unread", lambda self, shard, rows: rows)


@mutant("attempts", "accepted", "fates", "order", dies=True)
def an_append_stands_one_further_than_it_says(patch: Patch) -> None:
    wrap(
        patch,
        BadRelay,
        "tell",
        lambda f, self, place, *args: f(self, replace(place, after=place.after - 1), *args),
    )


@mutant("attempts", "fates", "accepted", dies=True)
def duplicates_are_told_too(patch: Patch) -> None:
    def tell(original: Any, self: BadRelay, place: Place, events: Any, answers: Any) -> Any:
        return original(self, place, events, [replaced(each, verdict=Verdict.NEW) for each in answers])

    wrap(patch, BadRelay, "tell", tell)


# ---- what must come to an end ---------------------------------------------------------------------------------------


@mutant("drained")
def one_shard_of_each_worker_is_not_read(patch: Patch) -> None:
    wrap(patch, Worker, "_shards_to_read", lambda f, worker: f(worker)[1:])


@mutant("rests")
def lanes_are_woken_a_minute_late(patch: Patch) -> None:
    wrap(patch, Timers, "wake_at", lambda f, timers, lane, moment: f(timers, lane, moment + 60.0))


# ---- what leaves --------------------------------------------------------------------------------------------------------


@mutant("retention", "fates", dies=True)
def what_waits_leaves_with_its_day(patch: Patch) -> None:
    patch.setattr(RetentionTables, "_is_needed", lambda self, day: False)


@mutant("retention")
def a_day_leaves_one_day_early(patch: Patch) -> None:
    wrap(patch, Maintenance, "__init__", lambda f, m, *a, keep_days, **k: f(m, *a, keep_days=keep_days - 1, **k))


@mutant("retention")
def attempts_never_leave(patch: Patch) -> None:
    async def nothing(self: Maintenance) -> None:
        """What is over stays."""

    patch.setattr(Maintenance, "_retire_attempts", nothing)


@mutant("metering")
def what_is_counted_is_counted_again(patch: Patch) -> None:
    def count(original: Any, self: RollupTables, shard: Any, events_max: int) -> int:
        marks = self._marks(shard)
        marks.seq = max(0, marks.seq - 1)
        return int(original(self, shard, events_max))

    wrap(patch, RollupTables, "_count_accepted", count)


# ---- the trial ------------------------------------------------------------------------------------------------------


@contextmanager
def put_in(name: str) -> Any:
    """The production code with this fault."""
    with pytest.MonkeyPatch.context() as patch:
        MUTANTS[name].put(patch)
        yield


def convict(name: str) -> str | None:
    """Which seed and checker find it; None when none does."""
    case = MUTANTS[name]
    for seed in range(case.seeds):
        try:
            with put_in(name):
                found = broken(live(seed, case.kind))
        except Exception as error:  # noqa: BLE001 - the code itself may stumble over the fault
            if case.dies:
                return f"seed {seed}: {type(error).__name__}: {str(error)[:100]}"
            continue
        if by := found.keys() & case.by:
            return f"seed {seed}: {min(by)}: {str(found[min(by)])[:100]}"
    return None


def main() -> int:
    """The exit code: 1 when a fault was not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants")
    parser.add_argument("names", nargs="*", metavar="NAME", help="these alone; all without")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="so many processes at once")
    options = parser.parse_args()
    names, missed = options.names or list(MUTANTS), 0
    if unknown := set(names) - MUTANTS.keys():
        parser.error(f"there is no {min(unknown)}; there are {', '.join(MUTANTS)}")
    # A worker that begins anew with each fault: nothing of one is left for the next.
    with get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        for name, found, seconds in pool.imap_unordered(_timed, names, chunksize=1):
            missed += found is None
            print(f"{name}: {found or 'NOT FOUND'} ({seconds:.0f} s)", flush=True)
    print(f"mutants: {len(names)}, {missed} not found")
    return 1 if missed else 0


def _timed(name: str) -> tuple[str, str | None, float]:
    """What finds it, and how long that took, in seconds."""
    began = time.monotonic()
    return name, convict(name), time.monotonic() - began


if __name__ == "__main__":
    hashes.fix("tests.sim.mutants")
    sys.exit(main())
