"""The books of one worker: where each delivery is (in memory, in the backlog, over), and what is to be settled of it.

Relies on: a shard is open while something of it is entered. Promises: a delivery leaves memory, its journal entry or
its backlog row only together with what is written down of it: an attempt, a row, a dead letter or its end, all in
one settle; what is counted in memory is there.
"""

from __future__ import annotations

from hookpost.engine.lanes import NEVER, NO_QUEUE, Lane
from hookpost.engine.limits import Limits
from hookpost.engine.shard import Shard
from hookpost.engine.work import HELD, TICK_S, BacklogChange, BacklogRow, DeadLetter, Entry, Settle, Work
from hookpost.model import DeadReason, Endpoint, Outcome, WaitReason, minted_at


class Books:
    """Every move of a delivery is entered here. ``buffered``: deliveries that wait in memory; ``touched``: shards that
    there is something to settle of; ``put_away_now``: fresh deliveries that the next settle writes to the backlog."""

    def __init__(self, shards: dict[int, Shard], limits: Limits, *, worker: str) -> None:
        self.shards = shards
        self._limits = limits
        self._worker = worker
        self.touched: list[Shard] = []
        self._released: list[tuple[Lane, int]] = []
        self._unsettled_lanes: list[Lane] = []
        self._dying: list[Lane] = []
        self._taken_at = 0.0
        self._recovered_at = 0.0
        self.buffered = 0
        self.buffered_bytes = 0
        self.pending_attempts = 0
        self.put_away_now = 0

    # ---- in memory ------------------------------------------------------------------------------------------------

    def buffer(self, work: Work) -> None:
        """Into the memory of waiting ones."""
        entry = work.entry
        if entry.queued == 0:
            self.buffered_bytes += entry.size
        entry.queued += 1
        self.buffered += 1
        work.lane.endpoint.tenant.buffered += 1

    def unbuffer(self, work: Work) -> None:
        """Out of the memory of waiting ones. A fan-out's payload counts until the last of them leaves."""
        entry = work.entry
        entry.queued -= 1
        if entry.queued == 0:
            self.buffered_bytes -= entry.size
        self.buffered -= 1
        work.lane.endpoint.tenant.buffered -= 1

    def room(self) -> tuple[int, int]:
        """How many rows and payload bytes the reader may bring: 0 when memory is full, until a settle makes room."""
        limits = self._limits
        if self.buffered >= limits.buffer or self.buffered_bytes >= limits.buffer_bytes:
            return 0, 0
        return limits.buffer - self.buffered, limits.buffer_bytes - self.buffered_bytes

    def load(self, lane: Lane, row: BacklogRow) -> Work:
        """Into memory from the backlog, where its row stays until it is over."""
        doubtful_until = self.shards[lane.shard].doubtful_until
        work = self.work_of(lane, row)
        work.deadline = row.deadline
        untried = row.retry_count == 0 and row.created_at <= doubtful_until
        # The last owner may have sent it before it was due: its receiver was back, or somebody asked for it.
        early = lane.inherited and row.stored_at <= doubtful_until
        work.possible_duplicate = untried or early or row.due_at <= doubtful_until
        lane.occupy(row.position)
        lane.add_later(work)
        self.buffer(work)
        return work

    def load_early(self, lane: Lane, row: BacklogRow, now: float) -> Work:
        """Before it is due, and no matter what the retry budget says."""
        work = self.load(lane, row)
        work.due_at = min(work.due_at, now)
        work.marks = HELD
        return work

    def work_of(self, lane: Lane, row: BacklogRow) -> Work:
        """The delivery that a row of the backlog stands for."""
        return Work(self._entry_of(lane, row), lane, row.due_at, retry_count=row.retry_count, stored=True)

    def _entry_of(self, lane: Lane, row: BacklogRow) -> Entry:
        return Entry(
            lane.shard, row.position, row.day, row.event_id, lane.endpoint.tenant.tenant_id, row.type, row.payload,
            row.generation, row.created_at, 0, row.trace,
        )  # fmt: skip

    def deadline_of(self, entry: Entry, config: Endpoint) -> float:
        """When the delivery is given up. A replay, however late it was asked for, ends before its event leaves."""
        deadline = entry.created_at + config.retry.deadline_s
        if not entry.generation:
            return deadline
        return min(deadline, minted_at(entry.event_id) + self._limits.replay_s)

    # ---- recoveries ------------------------------------------------------------------------------------------------

    def recover(self, now: float) -> float:
        """The time of a recovery: no row stored until here has a later one, and every row stored from here on has, also
        while the clock stands, as the database's was set back. What fails behind a recovery keeps its schedule so."""
        self._recovered_at = max(now, self._recovered_at + TICK_S)
        return self._recovered_at

    # ---- what becomes of it ---------------------------------------------------------------------------------------

    def record(self, shard: Shard, work: Work, outcome: Outcome, verdict: str) -> None:
        """An attempt was made."""
        entry = work.entry
        assert work.attempt_id is not None
        latency_ms = round((outcome.finished_at - outcome.started_at) * 1000)
        shard.attempts.append((
            work.attempt_id, shard.number, shard.settle_no + 1, entry.seq, entry.event_id,
            work.lane.endpoint.endpoint_id, entry.tenant_id, entry.generation, work.due_at, outcome.started_at,
            outcome.finished_at, outcome.status, outcome.error_code, work.retry_count, latency_ms, outcome.dns_ms,
            outcome.connect_ms, outcome.tls_ms, outcome.first_byte_ms, outcome.response_hash, outcome.response_head,
            outcome.request_bytes, outcome.response_bytes, self._worker, verdict, work.possible_duplicate,
            outcome.address, outcome.protocol, work.trace_id,
        ))  # fmt: skip
        self.pending_attempts += 1
        if not shard.touched:
            self.touch(shard)

    def finish(self, work: Work) -> None:
        """Nothing more is owed: out of the journal's open entries, or out of the backlog."""
        lane = work.lane
        shard = self.shards[lane.shard]
        if not shard.touched:
            self.touch(shard)
        if work.stored:
            lane.stored -= 1
            shard.deletes.append((lane.endpoint.endpoint_id, work.entry.seq))
            self._release(lane, work.entry.seq)
        else:
            shard.progress.finish(work.entry, lane.endpoint.endpoint_id)

    def store(
        self,
        work: Work,
        reason: WaitReason,
        due_at: float,
        retry_count: int,
        outcome: Outcome | None,
        now: float,
        *,
        deadline: float = 0.0,
    ) -> None:
        """Write the delivery to the backlog, or write its row anew."""
        lane = work.lane
        entry = work.entry
        config = lane.endpoint.config
        assert config is not None
        shard = self.shards[lane.shard]
        # A row must lie behind all that was or is being fetched, or no fetch would find it again.
        due_at = max(due_at, now + TICK_S)
        deadline = deadline or work.deadline or self.deadline_of(entry, config)
        key = (lane.endpoint.endpoint_id, entry.seq)
        shard.upserts[key] = BacklogChange(
            endpoint_id=key[0],
            position=entry.seq,
            day=entry.day,
            tenant_id=entry.tenant_id,
            event_id=entry.event_id,
            generation=entry.generation,
            reason=reason,
            due_at=due_at,
            retry_count=retry_count,
            deadline=deadline,
            created_at=entry.created_at,
            stored_at=max(now, self._recovered_at + TICK_S),
            last_http_status=None if outcome is None else outcome.status,
            last_error_code=None if outcome is None else outcome.error_code,
        )
        self.touch(shard)
        lane.stored_from = min(lane.stored_from, entry.seq)
        if lane.ordered:
            lane.rescan = lane.fetching
        if not work.stored:
            shard.progress.finish(entry, key[0])
            lane.stored += 1
            lane.occupy(entry.seq)
        self._release(lane, entry.seq)
        self.look_again(lane, due_at, deadline)

    def put_away(self, work: Work, reason: WaitReason, now: float) -> None:
        """Out of memory: a fresh delivery becomes a backlog row, a fetched one is one already."""
        lane = work.lane
        self.unbuffer(work)
        if not work.stored:
            if work.possible_duplicate:
                self.shards[lane.shard].doubt_stored = True
            self.put_away_now += 1
            self.store(work, reason, now, work.retry_count, None, now)
            return
        lane.put_back(work)

    def bury(self, work: Work, reason: DeadReason, outcome: Outcome | None, *, attempts: int, now: float) -> None:
        """It gives up: a dead letter."""
        entry = work.entry
        shard = self.shards[work.lane.shard]
        shard.dead.append(
            DeadLetter(
                endpoint_id=work.lane.endpoint.endpoint_id,
                position=entry.seq,
                day=entry.day,
                tenant_id=entry.tenant_id,
                event_id=entry.event_id,
                generation=entry.generation,
                type=entry.type,
                reason=reason,
                died_at=now,
                attempt_count=attempts,
                last_http_status=None if outcome is None else outcome.status,
                last_error_code=None if outcome is None else outcome.error_code,
            )
        )
        if work.lane.blocks:
            # The row stays, never due: whoever owns the shard next must find the lane blocked.
            self.store(work, WaitReason.ORDERED, NEVER, attempts, outcome, now, deadline=NEVER)
            self.wait_for_head(work.lane, NEVER)
            return
        if work.lane.ordered:
            work.lane.dying += 1
            self._dying.append(work.lane)
        self.finish(work)

    def wait_for_head(self, lane: Lane, due_at: float) -> None:
        """The first of an ordered lane is tried again then; those behind it that were fetched go back."""
        lane.head_due = due_at
        later, lane.later = lane.later, NO_QUEUE
        for work in later:
            self.unbuffer(work)
            lane.put_back(work)

    def drop(self, lane: Lane, row: BacklogRow) -> None:
        """Nothing more is to become of this row."""
        lane.occupy(row.position)
        self.finish(self.work_of(lane, row))

    def expire(self, lane: Lane, row: BacklogRow, now: float) -> None:
        """Kept back by its tenant or its receiver until its deadline: dead, without an attempt."""
        lane.occupy(row.position)
        self.bury(self.work_of(lane, row), DeadReason.DEADLINE, None, attempts=row.retry_count, now=now)

    # ---- settling -------------------------------------------------------------------------------------------------

    def _release(self, lane: Lane, position: int) -> None:
        """Its row changes with this settle, and may be fetched again when that is committed."""
        lane.unsettled += 1
        self._released.append((lane, position))

    def look_again(self, lane: Lane, due_at: float, deadline: float) -> None:
        """Once this settle is committed, the lane's backlog has a row due then, with that deadline."""
        if due_at == deadline == NEVER:
            return
        if lane.due_building == lane.deadline_building == NEVER:
            self._unsettled_lanes.append(lane)
        lane.due_building = min(lane.due_building, due_at)
        lane.deadline_building = min(lane.deadline_building, deadline)

    def touch(self, shard: Shard) -> None:
        """The next settle says something of this shard."""
        if not shard.touched:
            shard.touched = True
            self.touched.append(shard)

    def take_settle(self, now: float) -> Settle:
        """All that happened since the last one. Must be committed before the next is taken."""
        touched, self.touched = self.touched, []
        released, self._released = self._released, []
        lanes, self._unsettled_lanes = self._unsettled_lanes, []
        dying, self._dying = self._dying, []
        for lane in lanes:
            lane.due_settling, lane.due_building = lane.due_building, NEVER
            lane.deadline_settling, lane.deadline_building = lane.deadline_building, NEVER
        self.pending_attempts = self.put_away_now = 0
        since, self._taken_at = self._taken_at, now
        return Settle([shard.take() for shard in touched], released, lanes, dying, since)
