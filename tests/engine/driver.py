"""One real engine in virtual time, for stories of hours and of hundreds of thousands of deliveries.

tests/sim lives through chaos with a ledger that looks at all that is owed with every commit. Here the store finds rows
as an index would, and `Books` judges only what each settle says: so a day of an outage takes seconds. Nothing is random
but the jitter of the retries; receivers are scripted.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from random import Random
from uuid import UUID

from msgspec import structs

from hookpost.engine.engine import Engine
from hookpost.engine.lanes import FROM_START, NO_POSITION
from hookpost.engine.limits import Limits
from hookpost.engine.work import (
    BacklogChange,
    BacklogRow,
    Fetch,
    JournalRow,
    Progress,
    Settle,
    ShardSettle,
    Wanted,
    Work,
)
from hookpost.model import Endpoint, ErrorCode, Outcome, Tenant, WaitReason
from tests.engine.model import NEVER, Store, check, column, us

START = 1_800_000_000.0
# What the store takes: to read backlog rows or grant a probe, to commit a settle; to read the journal, and for each row
# of it (500 rows: 4.5 ms).
STORE_S = 0.002
COMMIT_S = 0.005
READ_S = 0.002
READ_ROW_S = 0.000_005
# The worker's pace: rows of one journal read, the time between reads, the time between settles.
READ_ROWS = 500
READ_PACE_S = 0.003
SETTLE_PACE_S = 0.01
SENDS_AT_ONCE = 16
# A sorted list is made anew when so many more keys are gone than left.
GONE_MAX = 4096
OK = Outcome(None, 200)
REFUSED = Outcome(ErrorCode.CONNECT_REFUSED, None)
TIMED_OUT = Outcome(ErrorCode.TOTAL_TIMEOUT, None)

# What a receiver answers to a request that starts now, and after how many seconds.
Receiver = Callable[[float], tuple[Outcome, float]]


class Sorted:
    """Positions of one lane by a time, as a b-tree index holds them; what is gone is swept now and then."""

    def __init__(self) -> None:
        self._keys: list[tuple[float, int]] = []
        self._times: dict[int, float] = {}
        # All keys before are gone.
        self._first = 0

    def put(self, position: int, time: float) -> None:
        """Add it or move it."""
        if self._times.get(position) != time:
            self._times[position] = time
            at = bisect_right(self._keys, (time, position))
            self._keys.insert(at, (time, position))
            self._first = min(self._first, at)

    def drop(self, position: int) -> None:
        """It is gone."""
        self._times.pop(position, None)
        if len(self._keys) > 2 * len(self._times) + GONE_MAX:
            self._keys = sorted((time, position) for position, time in self._times.items())
            self._first = 0

    def behind(
        self, key: tuple[float, int], *, until: float, limit: int, fits: Callable[[int], bool] = lambda _: True
    ) -> list[int]:
        """At most so many positions that fit behind ``key``, none behind the time ``until``, in order."""
        found: list[int] = []
        for time, position in self._live_from(key):
            if time > until or len(found) == limit:
                break
            if fits(position):
                found.append(position)
        return found

    def next_behind(self, time: float) -> float:
        """The least time behind ``time``."""
        return next((time / 1e6 for time, _ in self._live_from((time, NO_POSITION))), NEVER)

    def _live_from(self, key: tuple[float, int]) -> Iterator[tuple[float, int]]:
        keys, times = self._keys, self._times
        while self._first < len(keys) and times.get(keys[self._first][1]) != keys[self._first][0]:
            self._first += 1
        for index in range(max(self._first, bisect_right(keys, key)), len(keys)):
            if times.get(keys[index][1]) == keys[index][0]:
                yield keys[index]


class IndexedStore(Store):
    """The model's store where a lane's rows are found without looking at all of them. Of unordered lanes only."""

    def __init__(self, shards: int) -> None:
        super().__init__(shards)
        self._by_due: dict[tuple[int, UUID], Sorted] = {}
        self._by_deadline: dict[tuple[int, UUID], Sorted] = {}

    def settle(self, part: ShardSettle) -> None:
        super().settle(part)
        for endpoint_id, position in part.deletes:
            self._by_due[part.shard, endpoint_id].drop(position)
            self._by_deadline[part.shard, endpoint_id].drop(position)
        for change in part.upserts.values():
            self.index(part.shard, change)

    def index(self, shard: int, change: BacklogChange) -> None:
        """A row was written."""
        lane = (shard, change.endpoint_id)
        self._by_due.setdefault(lane, Sorted()).put(change.position, us(change.due_at))
        self._by_deadline.setdefault(lane, Sorted()).put(change.position, us(change.deadline))

    def fetch_rows(self, fetch: Fetch) -> list[BacklogRow]:
        lane = (fetch.shard, fetch.endpoint_id)
        rows, limit, until = self.backlog.get(lane, {}), fetch.limit + 1, us(fetch.until)
        if not rows:
            return []
        match fetch.wanted:
            case Wanted.DUE:
                after = (us(fetch.after[0]), fetch.after[1])
                found = self._by_due[lane].behind(after, until=until, limit=limit)
            case Wanted.FORWARD:
                after = max((us(fetch.after[0]), fetch.after[1]), (until, NO_POSITION))
                found = self._by_due[lane].behind(
                    after, until=NEVER, limit=limit, fits=lambda position: rows[position].stored_at <= fetch.stored_by
                )
            case Wanted.EXPIRED:
                found = sorted(self._by_deadline[lane].behind(FROM_START, until=until, limit=limit))
            case _:
                raise AssertionError(f"this store has no index for {fetch.wanted}")
        return [self._row(fetch, rows[position]) for position in found]

    def fetch_behind(self, fetch: Fetch) -> float:
        index = (self._by_deadline if fetch.wanted is Wanted.EXPIRED else self._by_due).get(
            (fetch.shard, fetch.endpoint_id)
        )
        return NEVER if index is None else index.next_behind(us(fetch.until))


class Books:
    """Judges settles: each delivery ends once, and at the end each that was appended has ended."""

    def __init__(self) -> None:
        self.over: dict[tuple[int, int, UUID], str] = {}
        self.attempts = 0
        self.reasons: Counter[str] = Counter()
        self.latest_death_s = 0.0

    def committed(self, part: ShardSettle, deadline_s: Callable[[UUID], float], store: Store) -> None:
        """What this part says is true from now on."""
        self.attempts += len(part.attempts)
        for attempt in part.attempts:
            if column(attempt, "outcome") == "delivered":
                self._end(part.shard, column(attempt, "position"), column(attempt, "endpoint_id"), "delivered")
        for letter in part.dead:
            self._end(part.shard, letter.position, letter.endpoint_id, "dead")
            self.reasons[letter.reason] += 1
            created_at = store.journal[part.shard][letter.position - 1].created_at
            late_s = letter.died_at - created_at - deadline_s(letter.endpoint_id)
            check(late_s >= -1e-5, "died before its deadline:", late_s)
            self.latest_death_s = max(self.latest_death_s, late_s)
        for change in part.upserts.values():
            check((part.shard, change.position, change.endpoint_id) not in self.over, "waits after it was over", change)

    def _end(self, shard: int, position: int, endpoint_id: UUID, how: str) -> None:
        key = (shard, position, endpoint_id)
        check(key not in self.over, "ended twice:", key, self.over.get(key), how)
        self.over[key] = how

    def ends(self) -> Counter[str]:
        """How many ended how."""
        return Counter(self.over.values())


class Driver:
    """One worker, told of everything when it happens. ``sent`` is called with each request that starts."""

    def __init__(
        self,
        tenants: Iterable[Tenant],
        endpoints: Iterable[Endpoint],
        receivers: dict[UUID, Receiver],
        *,
        shards: int = 1,
        sent: Callable[[Work, float], None] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.now = START
        self.tenants = {tenant.tenant_id: tenant for tenant in tenants}
        self.endpoints = {endpoint.endpoint_id: endpoint for endpoint in endpoints}
        self.receivers = receivers
        self.store = IndexedStore(shards)
        self.books = Books()
        self.engine = Engine(worker="w", limits=limits or Limits(), rng=Random(1))
        self.in_flight = 0
        self.sends = 0
        self.probes = 0
        self.read_pace_s = READ_PACE_S
        self._sent = sent
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._event_no = 0
        self._producers: list[tuple[float, int, float, Endpoint, int]] = []
        self._appended = 0
        self._read_at = self._settle_at = START
        self._reading = False
        self._settling: Settle | None = None
        self._ids = 0

    # ---- the script -----------------------------------------------------------------------------------------------

    def open_shards(self) -> None:
        """Own all of them, as the store has them now."""
        for shard in self.store.shards:
            self.store.claim(shard)
            self.engine.open_shard(self.store.takeover(shard), now=self.now)
        self._configure()

    def produce(self, endpoint: Endpoint, *, rate: float, first_at: float, count: int) -> None:
        """So many events for this endpoint, evenly at ``rate`` a second (infinite: a burst)."""
        self._event_no += 1
        heapq.heappush(self._producers, (first_at, self._event_no, 1 / rate, endpoint, count))

    def fill_backlog(self, endpoint: Endpoint, count: int) -> None:
        """So many deliveries of it have failed once and are due; before the shards are opened."""
        shard = self.tenants[endpoint.tenant_id].home_shards[0]
        lane = self.store.backlog.setdefault((shard, endpoint.endpoint_id), {})
        deadline = START + endpoint.retry.deadline_s
        for _ in range(count):
            row = self.append(endpoint, START)
            change = lane[row.seq] = BacklogChange(
                endpoint.endpoint_id, row.seq, row.day, row.tenant_id, row.event_id, 0, WaitReason.RETRY, START, 1,
                deadline, START, START,
            )  # fmt: skip
            self.store.index(shard, change)
        read_to = len(self.store.journal[shard])
        progress = Progress(read_to, read_to, 1, (), ())
        self.store.last[shard] = ShardSettle(shard, 0, 1, progress, [], {}, [], [], [], [], clean=True)

    def run(self, until: float) -> None:
        """Live on until then."""
        while (moment := self._next_moment()) <= until:
            self.now = max(self.now, moment)
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            self._append()
            self._turn()
        self.now = until

    def run_until_drained(self, until: float) -> None:
        """Live on until nothing waits in the backlog; at the latest until then."""
        while any(self.store.backlog.values()):
            moment = self._next_moment()
            check(moment <= until, self.waiting(), "deliveries still wait at the end")
            self.run(moment)

    def check_all_over(self) -> None:
        """Nothing is left anywhere."""
        check(len(self.books.over) == self._appended, "over:", len(self.books.over), "of", self._appended)
        check(not any(self.store.backlog.values()), "rows left in the backlog")
        engine = self.engine
        counters = (engine.in_flight, engine.buffered, engine.buffered_bytes)
        check(counters == (0, 0, 0), "counters at the end", counters)

    def waiting(self) -> int:
        """Rows in the backlog."""
        return sum(map(len, self.store.backlog.values()))

    # ---- time -----------------------------------------------------------------------------------------------------

    def _next_moment(self) -> float:
        wakeup = self.engine.next_wakeup()
        moment = min(
            self._events[0][0] if self._events else NEVER,
            # What is appended matters when it can be read.
            max(self._next_append(), self._read_at) if self._may_read() else NEVER,
            NEVER if wakeup is None else wakeup,
            self._read_at if self._may_read() and self._behind() else NEVER,
            self._settle_at if self.engine.unsettled and self._settling is None else NEVER,
        )
        return max(self.now, moment)

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        self._event_no += 1
        heapq.heappush(self._events, (self.now + delay_s, self._event_no, action))

    def new_id(self) -> UUID:
        """The next one."""
        self._ids += 1
        return UUID(int=self._ids)

    # ---- the journal ----------------------------------------------------------------------------------------------

    def _next_append(self) -> float:
        """When the next event is posted."""
        return self._producers[0][0] if self._producers else NEVER

    def _append(self) -> None:
        while self._producers and self._producers[0][0] <= self.now:
            at, number, spacing_s, endpoint, count = heapq.heappop(self._producers)
            self.append(endpoint, at)
            if count > 1:
                heapq.heappush(self._producers, (at + spacing_s, number, spacing_s, endpoint, count - 1))

    def append(self, endpoint: Endpoint, at: float) -> JournalRow:
        """An event that it is owed."""
        shard = self.tenants[endpoint.tenant_id].home_shards[0]
        journal = self.store.journal[shard]
        seq, owed = len(journal) + 1, [endpoint.endpoint_id]
        row = JournalRow(shard, seq, 1, 0, self.new_id(), endpoint.tenant_id, "order.paid", b"{}", owed, 0, at)
        journal.append(row)
        self._appended += 1
        return row

    def _behind(self) -> list[int]:
        """The shards that have something to read."""
        return [s for s in self.store.shards if self.engine.read_to(s)[0] < len(self.store.journal[s])]

    def _may_read(self) -> bool:
        return not self._reading and self.engine.room()[0] > 0

    def _read(self) -> None:
        """As the worker does: one read of all shards, bounded, and what there is room for."""
        if self.now < self._read_at or not self._may_read() or not (behind := self._behind()):
            return
        rows_max = max(1, min(READ_ROWS, self.engine.room()[0] // len(behind)))
        found = {s: self.store.read(s, self.engine.read_to(s)[0], rows_max) for s in behind}
        self._reading = True
        self._later(READ_S + READ_ROW_S * sum(map(len, found.values())), lambda: self._take(found, rows_max))

    def _take(self, found: dict[int, list[JournalRow]], rows_max: int) -> None:
        self._reading = False
        for shard, rows in found.items():
            self.engine.on_rows(shard, rows, now=self.now)
        full = any(len(rows) == rows_max for rows in found.values())
        self._read_at = self.now + (0.0 if full else self.read_pace_s)
        if self.engine.missing:
            self._configure()

    def _configure(self) -> None:
        tenants = {tenant_id for tenant_id in self.tenants if tenant_id in self.engine.known_tenants}
        endpoints = [e for e in self.endpoints.values() if e.tenant_id in tenants]
        self.engine.configure([self.tenants[each] for each in tenants], endpoints, now=self.now)

    # ---- a turn of the worker ---------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._read()
        engine = self.engine
        engine.tick(now=self.now)
        sends = engine.take_sends(SENDS_AT_ONCE, now=self.now)
        for work in sends:
            self._send(work)
        for fetch in engine.take_fetches(now=self.now):
            self._later(STORE_S, lambda fetch=fetch: self._answer(fetch))
        if asked := engine.take_probes():
            self._later(STORE_S, lambda: self._grant(asked))
        if engine.unsettled and self._settling is None and self.now >= self._settle_at:
            self._settling = settle = engine.take_settle(now=self.now)
            self._later(COMMIT_S, lambda: self._commit(settle))
        if len(sends) == SENDS_AT_ONCE:
            self._later(0.0, lambda: None)

    def _send(self, work: Work) -> None:
        work.attempt_id = self.new_id()
        self.sends += 1
        self.in_flight += 1
        started_at = self.now
        outcome, delay_s = self.receivers[work.lane.endpoint.endpoint_id](started_at)
        if self._sent is not None:
            self._sent(work, started_at)

        def end() -> None:
            self.in_flight -= 1
            self.engine.on_outcome(
                work, structs.replace(outcome, started_at=started_at, finished_at=self.now), now=self.now
            )

        self._later(delay_s, end)

    def _answer(self, fetch: Fetch) -> None:
        rows = self.store.fetch_rows(fetch)
        more, behind = len(rows) > fetch.limit, self.store.fetch_behind(fetch)
        self.engine.on_backlog(fetch, rows[: fetch.limit], more=more, behind=behind, now=self.now)

    def _grant(self, asked: Mapping[tuple[UUID, str], float | None]) -> None:
        probes = [self.store.take_probe(*receiver, self.now) for receiver in asked]
        self.probes += sum(probe.granted for probe in probes)
        self.engine.on_probes(probes, asked, now=self.now)

    def _commit(self, settle: Settle) -> None:
        for part in settle.shards:
            self.store.settle(part)
            self.books.committed(part, lambda each: self.endpoints[each].retry.deadline_s, self.store)
        self._settling = None
        self._settle_at = self.now + SETTLE_PACE_S - COMMIT_S
        self.engine.on_settled(settle, now=self.now)
        self.engine.take_holds()
        self.engine.take_health()
        check(not self.engine.take_gone(), "an endpoint was disabled")
        for record in self.engine.take_breakers():
            self.store.save_breaker(record)
