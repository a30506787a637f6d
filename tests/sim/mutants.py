"""Judges that never convict prove nothing: faults put into the production code, at least one for each checker.

``python -m tests.sim.mutants`` puts each of them in and lives through seeds until its checker convicts it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from hookpost import ingest as ingest_module
from hookpost import worker as worker_module
from hookpost.engine import engine as engine_module
from hookpost.engine import roster as roster_module
from hookpost.engine.books import Books
from hookpost.engine.engine import Engine
from hookpost.engine.findings import Findings
from hookpost.engine.lanes import Lane
from hookpost.engine.progress import ShardProgress
from hookpost.engine.timers import Timers
from hookpost.ingest import Ingest
from hookpost.policy import retry as retry_module
from hookpost.policy.breaker import Breaker
from hookpost.policy.budget import RetryBudget
from hookpost.policy.rate import TokenBucket
from hookpost.storage.contract import Appended, StoreUnavailable, Verdict
from hookpost.storage.memory import alerts as memory_alerts
from hookpost.storage.memory.admin import AdminTables
from hookpost.storage.memory.alerts import AlertTables
from hookpost.storage.memory.ingest import IngestTables
from hookpost.storage.memory.settle import SettleTables
from hookpost.storage.memory.tables import Database
from hookpost.worker import Worker
from tests.sim.checkers import broken
from tests.sim.system.world import live

# Within so many seeds a fault must be found.
SEEDS = range(12)
Patch = pytest.MonkeyPatch


@dataclass(frozen=True, slots=True)
class Mutant:
    """``by``: the checkers that may convict it; ``dies``: or a process dies of it, which ends the world."""

    put: Callable[[Patch], None]
    by: frozenset[str]
    dies: bool = False


MUTANTS: dict[str, Mutant] = {}


def mutant(*by: str, dies: bool = False) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Found by one of these checkers."""

    def enter(put: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS[put.__name__] = Mutant(put, frozenset(by), dies)
        return put

    return enter


def wrap(patch: Patch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a method by ``around(original, self, *args, **kwargs)``."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda self, *args, **kwargs: around(original, self, *args, **kwargs))


# ---- ingest ---------------------------------------------------------------------------------------------------------


@mutant("accepted")
def ingest_answers_202_though_the_store_failed(patch: Patch) -> None:
    async def append(original: Any, self: Ingest, shard: int, group: list[Any]) -> None:
        store = self._store.append

        async def forgiving(number: int, events: Any, versions: Any) -> Any:
            try:
                return await store(number, events, versions)
            except StoreUnavailable:
                return [Appended(Verdict.NEW, event.event_id, len(event.owed)) for event in events]

        self._store.append = forgiving  # type: ignore[method-assign]
        try:
            await original(self, shard, group)
        finally:
            self._store.append = store  # type: ignore[method-assign]

    wrap(patch, Ingest, "_append", append)


@mutant("configuration")
def an_append_does_not_look_at_config_versions(patch: Patch) -> None:
    async def append(original: Any, self: IngestTables, shard: int, events: Any, versions: Any) -> Any:
        return await original(self, shard, events, {})

    wrap(patch, IngestTables, "append", append)


@mutant("idempotency", "accepted")
def an_idempotency_key_is_forgotten(patch: Patch) -> None:
    wrap(patch, IngestTables, "_append", lambda f, s, shard, event: (s._db.keys.clear(), f(s, shard, event))[1])


@mutant("idempotency", "accepted")
def another_payload_of_the_same_key_is_a_duplicate(patch: Patch) -> None:
    patch.setattr(ingest_module, "request_hash", lambda submission: b"the same")


@mutant("accepted", "order")
def the_same_number_is_given_twice(patch: Patch) -> None:
    def append(original: Any, self: Database, number: int, *args: Any, **values: Any) -> None:
        original(self, number, *args, **values)
        journal = self.shards[number].journal
        if len(journal) % 50 == 0:
            journal[-1] = replace(journal[-1], seq=journal[-1].seq - 1)

    wrap(patch, Database, "append", append)


# ---- settle and fence -----------------------------------------------------------------------------------------------


@mutant("owners")
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
        kept = list(self._db.attempts)
        original(self, parts)
        if len(kept) > 20:
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


@mutant("fates", "duplicates", "cursors", dies=True)
def replays_of_one_event_share_a_generation(patch: Patch) -> None:
    def again(original: Any, self: AdminTables, *args: Any) -> int:
        shard: int = original(self, *args)
        journal = self._db.shards[shard].journal
        journal[-1] = replace(journal[-1], generation=1)
        return shard

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


@mutant("caps")
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


# ---- what must come to an end ---------------------------------------------------------------------------------------


@mutant("drained")
def one_shard_of_each_worker_is_not_read(patch: Patch) -> None:
    wrap(patch, Worker, "_shards_to_read", lambda f, worker: f(worker)[1:])


@mutant("rests")
def lanes_are_woken_a_minute_late(patch: Patch) -> None:
    wrap(patch, Timers, "wake_at", lambda f, timers, lane, moment: f(timers, lane, moment + 60.0))


# ---- the trial ------------------------------------------------------------------------------------------------------


@contextmanager
def put_in(name: str) -> Any:
    """The production code with this fault."""
    with pytest.MonkeyPatch.context() as patch:
        MUTANTS[name].put(patch)
        yield


def convict(name: str, seeds: range = SEEDS) -> str | None:
    """Which seed and checker find it; None when none does."""
    case = MUTANTS[name]
    for seed in seeds:
        try:
            with put_in(name):
                found = broken(live(seed))
        except Exception as error:  # noqa: BLE001 - the code itself may stumble over the fault
            if case.dies:
                return f"seed {seed}: {type(error).__name__}: {str(error)[:100]}"
            continue
        if by := found.keys() & case.by:
            return f"seed {seed}: {min(by)}: {str(found[min(by)])[:100]}"
    return None


def main() -> int:
    """The exit code: 1 when a fault was not found."""
    missed = 0
    for name in sys.argv[1:] or MUTANTS:
        found = convict(name)
        missed += found is None
        print(f"{name}: {found or 'NOT FOUND'}", flush=True)
    print(f"mutants: {len(MUTANTS)}, {missed} not found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
