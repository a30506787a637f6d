"""Compares accepted, received and recorded. Pure, and ignorant of how the system works inside but for its promises:

- what was acknowledged arrives and is recorded, once; nothing arrives or is recorded that was not;
- a request that arrived has its row, unless its worker was killed or lost its lease before it could write it down;
- the receiver says yes twice only then, or when its first yes did not get through; and what may be a repetition says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from tests.torture.books import ALL, Accepted, Arrival, Books, Fault, Recorded, Window

# All of these are of a machine that does nothing else; with ``Timing.patience`` they grow.
# An answer is written down within so long, while nothing is in the way: a settle is begun every 10 ms, and the machine
# is busy with the processes that are being started.
SETTLE_S = 2.0
# The receiver's clock readings against the rig's: both run on one machine that has other things to do.
SLACK_S = 0.5
# The receiver reads what a process had sent before it was killed so much later at most, where it is not known which
# process it was: all of this shares two cores.
READ_LATE_S = 2.0
# What it had sent into a cut its kernel goes on repeating, in intervals that double, for the last time so much later.
GHOST_S = 60.0
# What was in the way has gone, and a worker needs so long to notice: it tries again after a second, and TCP after twice
# as long as it waited the last time.
RECOVERY_S = 3.0
# The receiver itself came round to answering when the worker was about to give up.
LATE = "late answer"
# Of the violations of one kind so many are shown.
SHOWN_MAX = 5

_T = TypeVar("_T", Arrival, Recorded)

# In these windows nobody they hit can write anything down.
_SILENCING = (Fault.STOP, Fault.POSTGRES, Fault.HANG, Fault.CUT_DATABASE, Fault.DISK_FULL)
# Of these, the ones after which another worker may have the shards, when they lasted: the lease has run out meanwhile.
# Not so when the database was restarted: then nobody takes anything before everybody had the time to renew.
_USURPING = (Fault.STOP, Fault.CUT_DATABASE, Fault.HANG, Fault.DISK_FULL)
# What keeps an answer from a worker that goes on living.
_DEAFENING = (Fault.STOP, Fault.CUT_RECEIVER)


@dataclass(slots=True)
class Verdict:
    """Violations by kind, and what was found without fault."""

    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    explained: Counter[str] = field(default_factory=Counter)
    """Repetitions that the receiver accepted, by the fault that explains them."""
    unrecorded: Counter[str] = field(default_factory=Counter)
    """Requests without a row, by the fault that explains them."""
    duplicates: int = 0

    @property
    def guilty(self) -> bool:
        """Was any promise broken?"""
        return any(self.violations.values())

    def count(self, kind: str) -> int:
        """How many violations of this kind."""
        return len(self.violations.get(kind, ()))

    def lines(self) -> Iterator[str]:
        """The violations for people, a few of each kind."""
        for kind, found in self.violations.items():
            yield f"{kind}: {len(found)}"
            yield from (f"    {text}" for text in found[:SHOWN_MAX])


@dataclass(frozen=True, slots=True)
class Timing:
    """What the judge must know of the system's settings."""

    lease_s: float
    renew_s: float
    first_byte_s: float
    total_timeout_s: float
    patience: float = 1.0
    """How often slower than usual a machine may be that has other things to do."""


def judge(books: Books, timing: Timing) -> Verdict:
    """The verdict on a run that has ended."""
    verdict = Verdict()
    known = {accepted.event_id: accepted for accepted in books.accepted}
    owed = {(a.event_id, path): a for a in books.accepted for path in _owed_to(books, a)}
    arrivals = _by_owed(books.arrivals)
    recorded = _by_owed(books.recorded)
    _judge_inventions(books, known, owed, verdict)
    explanations = _Explanations([*books.faults, *books.starved], timing)
    spans = {row.span: row for row in books.recorded}
    dead = set(books.dead)
    verdict.violations["lost"] += [f"{e} was accepted and is not stored" for e in known.keys() - books.stored]
    for key in owed:
        came, rows = arrivals.get(key, []), recorded.get(key, [])
        if not any(a.taken for a in came):
            verdict.violations["dead" if key in dead else "lost"].append(f"{key}: {len(came)} arrivals")
        elif not any(row.outcome == "delivered" for row in rows):
            verdict.violations["delivered and not recorded"].append(str(key))
        _judge_delivery(came, rows, spans, explanations, verdict)
    _judge_order(books, known, verdict)
    if books.waiting:
        verdict.violations["not drained"].append(f"{books.waiting} deliveries are still owed")
    if books.forged:
        verdict.violations["forged"].append(f"{books.forged} requests with a signature or time that does not hold")
    return verdict


def _owed_to(books: Books, accepted: Accepted) -> tuple[str, ...]:
    return books.paths[accepted.type.partition(".")[0]]


def _by_owed(found: Iterable[_T]) -> dict[tuple[str, str], list[_T]]:
    grouped: dict[tuple[str, str], list[_T]] = defaultdict(list)
    for each in found:
        grouped[each.owed].append(each)
    return grouped


def _judge_inventions(
    books: Books, known: dict[str, Accepted], owed: dict[tuple[str, str], Accepted], verdict: Verdict
) -> None:
    invented = verdict.violations["invented"]
    invented += [f"{event_id} is stored, and nobody was told so" for event_id in books.stored - known.keys()]
    taken = set()
    for arrival in books.arrivals:
        if arrival.taken:
            taken.add(arrival.span)
        if arrival.event_id not in known:
            invented.append(f"{arrival.event_id} arrived at {arrival.path}, and nobody was told that it is accepted")
        elif arrival.owed not in owed:
            invented.append(f"{arrival.event_id} arrived at {arrival.path}, where it is not owed to")
        elif arrival.digest != known[arrival.event_id].digest:
            verdict.violations["altered"].append(f"{arrival.event_id} arrived with another payload")
    for row in books.recorded:
        if row.outcome == "delivered" and row.span not in taken:
            invented.append(f"{row.owed} is recorded as delivered by {row.worker}, and the receiver did not say yes")


def _judge_delivery(
    came: list[Arrival],
    rows: list[Recorded],
    spans: dict[str, Recorded],
    explanations: _Explanations,
    verdict: Verdict,
) -> None:
    delivered = [row for row in rows if row.outcome == "delivered"]
    if len(delivered) > 1 or len({row.span for row in rows}) < len(rows):
        verdict.violations["recorded twice"].append(f"{rows[0].owed}: {[row.worker for row in rows]}")
    repeated = sum(arrival.taken for arrival in came) - 1
    verdict.duplicates += max(0, repeated)
    for arrival in came:
        row = spans.get(arrival.span)
        why: Window | str | None
        if row is None:
            why = explanations.unrecorded(arrival)
            verdict.unrecorded[_named(why)] += 1
            if why is None:
                verdict.violations["not recorded"].append(f"{arrival}: nothing happened to its worker")
            elif arrival.taken:
                _judge_mark(arrival, rows, verdict)
        elif row.outcome == "delivered" or not arrival.taken:
            continue
        else:
            why = explanations.unheard(arrival, row)
            if why is None:
                verdict.violations["yes not heard"].append(f"{arrival} is recorded as {row.error}")
        if arrival.taken and repeated > 0:
            verdict.explained[_named(why)] += 1
            if why is None:
                verdict.violations["unexplained duplicate"].append(str(arrival))


def _judge_mark(arrival: Arrival, rows: list[Recorded], verdict: Verdict) -> None:
    """The first row behind a request that was lost with its worker says that it may be a repetition."""
    behind = sorted((row for row in rows if row.started > arrival.done), key=lambda row: row.started)
    if behind and not behind[0].possible_duplicate:
        verdict.violations["repetition not marked"].append(f"{arrival}, then {behind[0]}")


def _judge_order(books: Books, known: dict[str, Accepted], verdict: Verdict) -> None:
    last: dict[tuple[str, str], int] = {}
    seen = set()
    for arrival in sorted(books.arrivals, key=lambda a: a.at):
        if arrival.path not in books.ordered or arrival.event_id not in known or arrival.owed in seen:
            continue
        seen.add(arrival.owed)
        producer, _, number = known[arrival.event_id].marker.partition("-")
        if int(number) < last.get((arrival.path, producer), -1):
            verdict.violations["reordered"].append(f"{arrival} came behind number {last[arrival.path, producer]}")
        last[arrival.path, producer] = max(int(number), last.get((arrival.path, producer), -1))


def _named(why: Window | str | None) -> str:
    return "nothing" if why is None else why if isinstance(why, str) else str(why.fault)


class _Explanations:
    """Which fault explains what became of a request."""

    def __init__(self, faults: Iterable[Window], timing: Timing) -> None:
        self._faults = sorted(faults, key=lambda window: window.began)
        self._timing = timing
        self._settle_s = SETTLE_S * timing.patience
        self._slack_s = SLACK_S * timing.patience
        self._read_late_s = READ_LATE_S * timing.patience
        self._recovery_s = RECOVERY_S * timing.patience

    def unrecorded(self, arrival: Arrival) -> Window | None:
        """What kept its worker from writing it down; None: nothing did."""
        timed_out = arrival.at + self._timing.total_timeout_s
        until = (timed_out if arrival.status is None else arrival.done) + self._settle_s
        for window in self._faults:
            if window.ended < arrival.at - self._late_s(window, arrival) or not _hits(window, arrival):
                continue
            if window.began > until:
                break
            if window.fault is Fault.KILL:
                return window
            if window.fault is Fault.CUT_RECEIVER:
                until = max(until, timed_out + self._settle_s)
            if window.fault in _SILENCING:
                lasted = window.ended - window.began
                if window.fault in _USURPING and lasted >= self._timing.lease_s - self._timing.renew_s:
                    return window
                # It wrote nothing down while that lasted, nor until it had noticed that it was over.
                until = max(until, window.ended + lasted + self._recovery_s)
        return None

    def _late_s(self, window: Window, arrival: Arrival) -> float:
        """How long before the arrival the fault may have been over and yet have hit it."""
        if window.fault is not Fault.KILL:
            return self._slack_s
        if arrival.pid is not None:
            return GHOST_S  # the very process, looked up while it lived: it sent nothing after its end
        cut_off = any(
            each.fault is Fault.CUT_RECEIVER
            and each.target == window.target
            and each.began <= window.began <= each.ended
            for each in self._faults
        )
        return GHOST_S if cut_off else self._read_late_s

    def unheard(self, arrival: Arrival, row: Recorded) -> Window | str | None:
        """What kept its answer from the worker, which recorded a failure; None: nothing did."""
        if arrival.done - row.started >= self._timing.first_byte_s - self._slack_s:
            return LATE
        for window in self._faults:
            if window.fault in _DEAFENING and _hits(window, arrival):
                waited_until = arrival.at + self._timing.total_timeout_s + self._slack_s
                if window.began <= waited_until and window.ended >= arrival.at - self._slack_s:
                    return window
        return None


def _hits(window: Window, arrival: Arrival) -> bool:
    if window.target == ALL:
        return True
    if arrival.sender is None:
        return not window.target.startswith("api")
    if window.target != arrival.sender:
        return False
    return not window.pids or arrival.pid is None or arrival.pid in window.pids
