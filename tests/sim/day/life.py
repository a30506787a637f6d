"""One worker of the fleet: the driver of tests/engine around its real engine, with a store that forgets what is over.

A day's rows would not fit into memory, so of the journal only that is kept which may be read again. What is over is one
byte a delivery, and must be so once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import SupportsIndex, overload
from uuid import UUID

from hookpost.engine.engine import Engine
from hookpost.engine.limits import Limits
from hookpost.engine.work import JournalRow, ShardSettle, Work
from hookpost.model import Endpoint
from tests.engine.driver import START, Books, Driver, IndexedStore
from tests.engine.model import NEVER, Store, check, column
from tests.sim.day.fleet import Fleet, Segment, Share
from tests.sim.day.watch import Watch

# What a worker's core takes for a delivery, all that is around it included (bench/runs.md, `deliver`: 167 µs on a
# slow machine). A turn's requests keep it busy for so long; what comes meanwhile waits.
CPU_S = 170e-6
# An idle worker reads when it is rung up, gathering for a moment.
READ_PACE_S = 0.01
_DELIVERED, _DEAD = 1, 2


class Tail(list[JournalRow]):
    """A journal whose rows keep their places though most of them are gone."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[int, JournalRow] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, row: JournalRow) -> None:
        """The next one."""
        self._rows[self._length] = row
        self._length += 1

    @overload
    def __getitem__(self, at: SupportsIndex) -> JournalRow: ...
    @overload
    def __getitem__(self, at: slice) -> list[JournalRow]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> JournalRow | list[JournalRow]:
        if isinstance(at, slice):
            return [self._rows[index] for index in range(*at.indices(self._length))]
        return self._rows[int(at)]

    def owed(self, seq: int) -> UUID | None:
        """Whom the row is owed to; None when it is forgotten."""
        row = self._rows.get(seq - 1)
        return None if row is None else row.owed[0]

    def forget(self, seq: int) -> None:
        """Nobody asks for this row again."""
        self._rows.pop(seq - 1, None)


class LeanStore(IndexedStore):
    """Forgets rows when the settle behind the one that ended them comes: until then the books may look at them."""

    def __init__(self, shards: int) -> None:
        super().__init__(shards)
        self.tails = {shard: Tail() for shard in self.shards}
        self.journal = {**self.tails}
        self._swept = dict.fromkeys(self.shards, 0)

    def settle(self, part: ShardSettle) -> None:
        last, tail = self.last[part.shard], self.tails[part.shard]
        if last is not None:
            for _, position in last.deletes:
                tail.forget(position)
            for seq in range(self._swept[part.shard] + 1, last.progress.cursor + 1):
                owed = tail.owed(seq)
                if owed is not None and seq not in self.backlog.get((part.shard, owed), ()):
                    tail.forget(seq)
            self._swept[part.shard] = last.progress.cursor
        super().settle(part)


class LeanBooks(Books):
    """Judges that each delivery ends once, and tells the watch when it is delivered."""

    def __init__(self, shards: int, worker: int, group: dict[UUID, str], watch: Watch) -> None:
        super().__init__()
        self.ended = [bytearray() for _ in range(shards)]
        self._worker, self._group, self._watch = worker, group, watch

    def committed(self, part: ShardSettle, deadline_s: Callable[[UUID], float], store: Store) -> None:
        journal = store.journal[part.shard]
        ended = self.ended[part.shard]
        ended.extend(bytes(len(journal) - len(ended)))
        self.attempts += len(part.attempts)
        for attempt in part.attempts:
            endpoint_id, position = column(attempt, "endpoint_id"), column(attempt, "position")
            group = self._group[endpoint_id]
            if column(attempt, "outcome") != "delivered":
                self._watch.failed[group] += 1
                continue
            self._end_at(ended, position, _DELIVERED)
            row, at = journal[position - 1], column(attempt, "finished_at")
            self._watch.arrived(group, self._worker, row.tenant_id, row.created_at, at)
        for letter in part.dead:
            self._end_at(ended, letter.position, _DEAD)
            self.reasons[letter.reason] += 1
        for _, position in part.upserts:
            check(not ended[position - 1], "waits after it was over:", part.shard, position)

    def _end_at(self, ended: bytearray, position: int, how: int) -> None:
        check(not ended[position - 1], "ended twice:", position, ended[position - 1], how)
        ended[position - 1] = how

    def ends(self) -> Counter[str]:
        """How many ended how, and are not over: ``owed``."""
        names = {0: "owed", _DELIVERED: "delivered", _DEAD: "dead"}
        return Counter({name: sum(each.count(how) for each in self.ended) for how, name in names.items()})


class Life(Driver):
    """One worker. ``number``: which of the fleet's."""

    def __init__(self, fleet: Fleet, share: Share, segments: list[Segment], watch: Watch, number: int) -> None:
        super().__init__(
            share.tenants, share.endpoints, {**share.receivers}, shards=fleet.shards_each, sent=self._watched
        )
        self.number = number
        self.share = share
        self.store = LeanStore(fleet.shards_each)
        self.books: LeanBooks = LeanBooks(fleet.shards_each, number, share.group, watch)
        self.engine = Engine(worker="w", limits=Limits(), rng=Random(share.rng.random()))
        self.engine.share_budget(fleet.workers)
        self.read_pace_s = READ_PACE_S
        self.busy_s = 0.0
        self._watch = watch
        self._busy_until = 0.0
        self._looks = 0
        self._posts: Iterator[tuple[float, Endpoint]] = share.posts(segments)
        self._next_post = next(self._posts, None)
        self.open_shards()
        self._look()

    def _watched(self, work: Work, now: float) -> None:
        endpoint_id = work.lane.endpoint.endpoint_id
        self._watch.request(self.share.group[endpoint_id], now, self.share.receivers[endpoint_id].back_at)

    def _look(self) -> None:
        engine = self.engine
        self._watch.gauge(
            self.now,
            backlog=self.waiting(),
            memory=engine.buffered,
            unread=sum(map(self._unread, self.store.shards)),
            under_way=engine.in_flight,
        )
        self._looks += 1
        self._later(START + self._looks * self._watch.bin_s - self.now, self._look)

    def _next_append(self) -> float:
        return NEVER if self._next_post is None else self._next_post[0]

    def _append(self) -> None:
        while self._next_post is not None and self._next_post[0] <= self.now:
            self.append(self._next_post[1], self._next_post[0])
            self._next_post = next(self._posts, None)

    def _next_moment(self) -> float:
        return max(super()._next_moment(), self._busy_until)

    def _turn(self) -> None:
        sends = self.sends
        super()._turn()
        if self.sends > sends:
            took_s = (self.sends - sends) * CPU_S
            self.busy_s += took_s
            self._busy_until = self.now + took_s

    @property
    def posted(self) -> int:
        """Events so far."""
        return self._appended

    def owed(self) -> int:
        """Deliveries that are not over."""
        ends = self.books.ends()
        return self._appended - ends["delivered"] - ends["dead"]

    def check_all_over(self) -> None:
        check(self.owed() == 0 and self.books.ends()["owed"] == 0, "owed at the end:", self.owed())
        check(self.waiting() == 0, "rows left in the backlog")
        counters = (self.engine.in_flight, self.engine.buffered, self.engine.buffered_bytes)
        check(counters == (0, 0, 0), "counters at the end", counters)

    def drained(self, rows: int) -> bool:
        """Does no more than this wait, anywhere?"""
        return self.waiting() + self.engine.buffered + sum(map(self._unread, self.store.shards)) <= rows

    def _unread(self, shard: int) -> int:
        return len(self.store.journal[shard]) - self.engine.read_to(shard)[0]
