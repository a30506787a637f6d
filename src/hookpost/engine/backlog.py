"""Which rows of its backlog a lane wants now, and what becomes of them when they come.

Relies on: the worker to read what `take_fetches` says, as it is committed, and to answer each; `books` to tell which
rows are not to be brought back. Promises: no row is in memory twice; every row is fetched when it is due and its gates
are open, and buried when its deadline passes first; of one lane at most one fetch is under way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import assert_never

from hookpost.engine import operations
from hookpost.engine.books import Books
from hookpost.engine.gates import Gates
from hookpost.engine.lanes import FROM_START, NEVER, NO_POSITION, NO_QUEUE, NONE_RELEASED, Lane
from hookpost.engine.limits import Limits
from hookpost.engine.roster import Roster
from hookpost.engine.timers import Timers
from hookpost.engine.turns import Turns
from hookpost.engine.work import TICK_S, BacklogRow, Fetch, Wanted
from hookpost.model import WaitReason
from hookpost.policy.gate import PARK_AFTER_S, Wait, parks

# Backlog rows of one lane that are brought into memory at once; small, as each brings its payload along.
FETCH_MAX = 64
# Retries of a lane become due one by one; those of the same tenth of a second are fetched together. An endpoint that is
# down would cost a fetch for each of its deliveries.
FETCH_GRID_S = 0.1
# Lanes whose backlog is being read at the same time; bounds memory and the load of a mass recovery on the store.
FETCHES_MAX = 8
# When a receiver may be probed and its lane has nothing to send, it is looked at again so much later.
FORWARD_AGAIN_S = 1.0


class Backlog:
    """The backlog of all lanes of one worker, as far as the engine has to know it."""

    def __init__(
        self, books: Books, roster: Roster, gates: Gates, turns: Turns, timers: Timers, limits: Limits
    ) -> None:
        self._books = books
        self._roster = roster
        self._gates = gates
        self._turns = turns
        self._timers = timers
        self._limits = limits
        self._wanted: deque[Lane] = deque()
        self._fetching = 0
        # Lanes whose gate has closed and that hold more than one settle could write: keys of a dict.
        self._parking: dict[Lane, None] = {}

    # ---- what a lane wants ----------------------------------------------------------------------------------------

    def consider(self, lane: Lane, now: float) -> None:
        """Does this lane want rows of its backlog? If not now, it is looked at again when it will."""
        if not lane.fetching and not lane.wanted and self._wants(lane, now) is not None:
            lane.wanted = True
            self._wanted.append(lane)

    def _wants(self, lane: Lane, now: float) -> Wanted | None:
        config = lane.endpoint.config
        if lane.stored <= 0 and not lane.named:
            return None
        if config is None:
            self._wants_unknown(lane, now)
            return None
        if lane.named:
            # Whatever the gates say: what is cancelled must not wait for its receiver.
            return Wanted.NAMED if lane.unsettled == 0 else None
        if config.deleted:
            return None
        if lane.revive is not None:
            return Wanted.NAMED if lane.unsettled == 0 else None
        if lane.unblock and not lane.blocks:
            return Wanted.BLOCKING if lane.unsettled == 0 else None
        wait = self._gates.closed(lane, config, now=now)
        if wait is not None:
            return self._wants_closed(lane, wait, now)
        if lane.ordered_to:
            lane.leave_order()
            if not lane.ordered and lane.has_work():
                self._turns.enter(lane)
        return self._wants_ordered(lane, now) if lane.ordered else self._wants_open(lane, now)

    def _wants_open(self, lane: Lane, now: float) -> Wanted | None:
        """What is due goes first, then what the receiver's recovery brings forward."""
        if lane.next_due > now:
            # Also while it holds enough: nobody looks again when the last of that has been sent.
            self._timers.wake_at(lane, _on_grid(lane.next_due))
        if len(lane.later) >= FETCH_MAX // 2 or lane.over_budget:
            return None
        if lane.next_due <= now:
            return Wanted.DUE if min(lane.due_building, lane.due_settling) > lane.next_due else None
        if lane.forward_to or (not lane.has_work() and self._gates.probing(lane.endpoint)):
            return Wanted.FORWARD
        return None

    def _wants_ordered(self, lane: Lane, now: float) -> Wanted | None:
        """The next one in order, when nothing of the lane is under way or being written."""
        if lane.later or lane.endpoint.in_flight or lane.unsettled:
            return None
        if lane.head_due <= now or lane.forced is not None or self._gates.probing(lane.endpoint):
            return Wanted.HEAD
        if lane.next_deadline <= now:
            return self._expires(lane, now)
        if lane.queue and lane.head_due - now > PARK_AFTER_S:
            # What waits behind it must be written down, or nobody would see it reach its deadline.
            self.park(lane, WaitReason.ORDERED, now)
        self._timers.wake_at(lane, min(lane.head_due, lane.next_deadline))
        return None

    def _wants_unknown(self, lane: Lane, now: float) -> None:
        """Whether its endpoint is open matters when a row is due or reaches its deadline, not before; or when rows
        block the lane, which are never due: they may have to go."""
        moment = min(lane.next_due, lane.next_deadline)
        if moment > now and not lane.unblock:
            self._timers.wake_at(lane, moment)
        else:
            self._roster.ask_for(lane.endpoint)

    def _wants_closed(self, lane: Lane, wait: Wait, now: float) -> Wanted | None:
        """A lane that is closed for long lets go of what reaches its deadline meanwhile."""
        until = NEVER if wait.until is None else wait.until
        if wait.until is not None and not parks(wait, now=now):
            self._timers.wake_at(lane, until)
        elif lane.next_deadline > now:
            self._timers.wake_at(lane, min(until, lane.next_deadline))
        elif wait.reason is not WaitReason.EGRESS_DOWN:
            return self._expires(lane, now)
        return None

    def _expires(self, lane: Lane, now: float) -> Wanted | None:
        """A deadline has passed: not before there was time to try again behind an outage of ours."""
        spare_until = self._gates.outage.spare_until
        if spare_until <= now:
            return Wanted.EXPIRED
        self._timers.wake_at(lane, spare_until)
        return None

    def park(self, lane: Lane, reason: WaitReason, now: float) -> None:
        """All that it holds in memory waits in the backlog, for this reason: the first of it now, as much as a settle
        may write, and the rest behind that settle, unless its gate has opened by then."""
        for works in (lane.later, lane.queue):
            while works and self._may_park(lane):
                self._books.put_away(works.popleft(), reason, now)
        lane.later = lane.later or NO_QUEUE
        lane.queue = lane.queue or NO_QUEUE
        if not lane.has_work():
            self.consider(lane, now)

    def _may_park(self, lane: Lane) -> bool:
        if self._books.put_away_now < self._limits.parked:
            return True
        self._parking[lane] = None
        return False

    def go_on_parking(self) -> None:
        """A settle is committed: lanes that were not parked whole have their turn, and meet their gates again."""
        parking, self._parking = self._parking, {}
        for lane in parking:
            if lane.open and lane.has_work():
                self._turns.enter(lane)

    def take_fetches(self, *, in_flight: int, now: float) -> list[Fetch]:
        """Backlog reads to start now; each must end in ``on_backlog`` or ``on_fetch_failed``."""
        fetches: list[Fetch] = []
        while self._wanted and self._fetching < FETCHES_MAX:
            if in_flight and self._books.room() == (0, 0):
                break
            lane = self._wanted.popleft()
            lane.wanted = False
            wanted = self._wants(lane, now) if lane.open and not self._books.shards[lane.shard].draining else None
            if wanted is not None:
                fetches.append(self._fetch(lane, wanted, now))
        return fetches

    def _fetch(self, lane: Lane, wanted: Wanted, now: float) -> Fetch:
        """What is due (or expires) next is not known from here on until the answer tells it."""
        lane.fetching = True
        lane.released = []
        lane.rescan = False
        self._fetching += 1
        limit = 1 if wanted is Wanted.FORWARD and not lane.forward_to else FETCH_MAX
        fetch = partial(Fetch, lane, lane.shard, lane.endpoint.endpoint_id, limit=limit, wanted=wanted)
        match wanted:
            case Wanted.DUE:
                lane.next_due = NEVER
                until = min(now, lane.due_building - TICK_S, lane.due_settling - TICK_S)
                return fetch(after=lane.after, until=until)
            case Wanted.EXPIRED:
                lane.next_deadline = NEVER
                return fetch(after=FROM_START, until=now)
            case Wanted.FORWARD:
                if lane.forward_to:
                    return fetch(after=lane.forward_after, until=now, stored_by=lane.forward_to)
                return fetch(after=FROM_START, until=now, stored_by=NEVER)
            case Wanted.NAMED:
                event_id = lane.named[0].entry.event_id if lane.named else lane.revive
                return fetch(after=FROM_START, until=NEVER, event_id=event_id)
            case Wanted.HEAD | Wanted.BLOCKING:
                return fetch(after=FROM_START, until=NEVER)
            case _:
                assert_never(wanted)

    def on_fetch_failed(self, fetch: Fetch, *, now: float, again_s: float) -> None:
        """The store did not answer: nothing was learnt, ask again later."""
        self._fetched(fetch)
        if fetch.wanted is Wanted.EXPIRED:
            fetch.lane.next_deadline = min(fetch.lane.next_deadline, now + again_s)
        elif fetch.wanted is Wanted.DUE:
            fetch.lane.next_due = min(fetch.lane.next_due, now + again_s)
        if fetch.lane.open:
            # What is due by now is not known any more.
            self._books.shards[fetch.shard].doubt_stored = True
            self._timers.wake_at(fetch.lane, now + again_s)

    def on_backlog(self, fetch: Fetch, rows: Sequence[BacklogRow], *, more: bool, behind: float, now: float) -> None:
        """The rows asked for; ``more`` says that not all fitted; ``behind`` is the least due time (of an expired fetch:
        the least deadline) behind ``fetch.until``, infinite when there is none."""
        lane = fetch.lane
        busy = lane.busy.copy()
        self._fetched(fetch)
        config = lane.endpoint.config
        if not lane.open or config is None or (config.deleted and fetch.wanted is not Wanted.NAMED):
            return
        free = [row for row in rows if row.position not in busy]
        match fetch.wanted:
            case Wanted.DUE:
                if not lane.rescan and rows:
                    lane.after = (rows[-1].due_at, rows[-1].position)
                lane.next_due = min(lane.next_due, rows[-1].due_at if more else behind)
                for row in free:
                    if row.stored_at <= lane.forward_to:
                        self._books.load_early(lane, row, now)
                    else:
                        self._books.load(lane, row)
            case Wanted.EXPIRED:
                self._on_expired(lane, free, more, behind, now)
            case Wanted.FORWARD:
                self._on_forward(lane, rows, free, more, now)
                if not free:
                    # Nothing to send though something is stored: it is under way, or blocks. Not again at once.
                    self._timers.wake_at(lane, now + FORWARD_AGAIN_S)
                    return
            case Wanted.HEAD:
                if not lane.rescan:
                    lane.stored_from = rows[-1].position + 1 if more else NO_POSITION
                    self._on_head(lane, free, now)
            case Wanted.BLOCKING:
                lane.unblock = more
                for row in free:
                    self._books.drop(lane, row)
            case Wanted.NAMED:
                if lane.named and lane.named[0].entry.event_id == fetch.event_id:
                    operations.on_named(self._books, lane, free, now, more=more)
                elif lane.revive == fetch.event_id:
                    lane.revive = None
                    operations.revive(self._books, lane, free, now)
            case _:
                assert_never(fetch.wanted)
        if lane.has_work():
            self._turns.enter(lane)
        self.consider(lane, now)

    def _on_expired(self, lane: Lane, rows: Sequence[BacklogRow], more: bool, behind: float, now: float) -> None:
        lane.next_deadline = min(lane.next_deadline, behind)
        for row in rows:
            self._books.expire(lane, row, now)
        if more:
            # The next ones can be told from these when these are gone.
            self._books.look_again(lane, NEVER, now)
            self._books.touch(self._books.shards[lane.shard])

    def _on_forward(
        self, lane: Lane, rows: Sequence[BacklogRow], free: Sequence[BacklogRow], more: bool, now: float
    ) -> None:
        """Not due yet, but their receiver is back. A probe needs one of them, whoever wins."""
        if lane.forward_to and not lane.rescan:
            if rows:
                lane.forward_after = (rows[-1].due_at, rows[-1].position)
            if not more:
                lane.forward_to = 0.0
        for row in free:
            self._books.load_early(lane, row, now)

    def _on_head(self, lane: Lane, rows: Sequence[BacklogRow], now: float) -> None:
        """The first of an ordered lane: sent when it is due, together with what may follow it."""
        forced, lane.forced = lane.forced, None
        lane.head_due = 0.0
        for place, row in enumerate(rows):
            early = row.event_id == forced or row.stored_at <= lane.forward_to or self._gates.probing(lane.endpoint)
            hurry = place == 0 and early
            if row.due_at == NEVER and not lane.blocks:
                self._books.drop(lane, row)
            elif row.due_at <= now or (hurry and row.due_at != NEVER):
                self._books.load_early(lane, row, now) if hurry else self._books.load(lane, row)
            else:
                if place == 0 and row.due_at == NEVER:
                    lane.revive = row.event_id
                lane.stored_from = row.position
                lane.head_due = 0.0 if lane.later else row.due_at
                return

    def _fetched(self, fetch: Fetch) -> None:
        lane = fetch.lane
        self._fetching -= 1
        lane.fetching = False
        for position in lane.released:
            lane.let_go(position)
        lane.released = NONE_RELEASED


def _on_grid(due: float) -> float:
    """The next moment, at or behind ``due``, at which backlogs are looked at."""
    return due if due == NEVER else max(due, math.ceil(due / FETCH_GRID_S) * FETCH_GRID_S)
