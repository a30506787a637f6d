"""Operations on the deliveries of one event or one lane: cancel, retry now, and replays that keep an order.

Relies on: `Backlog` to look up in the backlog what a lane holds of the event. Promises: an operation concerns what is
older than the journal row that asks for it, and that row is done when the operation is.
"""

from __future__ import annotations

from collections.abc import Sequence

from hookpost.engine.books import Books
from hookpost.engine.lanes import NEVER, NO_NAMES, NO_QUEUE, Lane
from hookpost.engine.work import CANCEL, HELD, RETRY_NOW, BacklogRow, Entry, Named, Work
from hookpost.model import Endpoint, WaitReason


def on_named(books: Books, lane: Lane, rows: Sequence[BacklogRow], now: float, *, more: bool = False) -> None:
    """What the backlog holds of an event that something is to be done with. Of what is cancelled the rest is asked
    for when these are gone."""
    named = lane.named[0]
    older = [row for row in rows if row.position < named.entry.seq]
    if named.type == CANCEL:
        cancel(books, lane, named.entry)
        for row in older:
            books.drop(lane, row)
        lane.head_due = 0.0
        if more and older:
            return
    elif named.type == RETRY_NOW:
        for row in older:
            if row.due_at != NEVER:
                _hurry(books, lane, row, now)
    lane.named.popleft()
    if not lane.named:
        lane.named = NO_NAMES
    config = lane.endpoint.config
    if named.work is None or config is None or config.deleted:
        named_done(books, lane, named)
    else:
        _replay_in_order(books, lane, named.work, config, older, now)


def cancel(books: Books, lane: Lane, asked: Entry) -> None:
    """What is in memory of it is over; what is under way is when it comes back."""
    for work in [work for works in (lane.queue, lane.later) for work in works]:
        if work.entry.event_id == asked.event_id and work.entry.seq < asked.seq:
            lane.remove(work)
            books.unbuffer(work)
            books.finish(work)
    if lane.endpoint.in_flight:
        lane.cancelled = {**lane.cancelled, asked.event_id: asked.seq}


def _hurry(books: Books, lane: Lane, row: BacklogRow, now: float) -> None:
    """Tried now, whatever its schedule says. In an ordered lane only the first one can be."""
    if lane.ordered:
        lane.forced = row.event_id
    else:
        _put_first(lane, books.load_early(lane, row, now))


def hurry_fetched(lane: Lane, asked: Entry) -> bool:
    """Of what was fetched and waits for a gate or its turn; False if nothing is."""
    asked_for = [w for w in lane.later if w.entry.event_id == asked.event_id and w.entry.seq < asked.seq]
    for work in asked_for:
        _put_first(lane, work)
    return bool(asked_for)


def _put_first(lane: Lane, work: Work) -> None:
    """Before what waits for the retry budget, and exempt from it."""
    lane.later.remove(work)
    lane.later.appendleft(work)
    work.marks |= HELD


def _replay_in_order(
    books: Books, lane: Lane, work: Work, config: Endpoint, rows: Sequence[BacklogRow], now: float
) -> None:
    """A replay of a dead delivery that blocks the lane takes its place in the order; any other is one more."""
    blocking = [row for row in rows if row.due_at == NEVER]
    if not blocking:
        if lane.queue and lane.queue[-1].entry.seq > work.entry.seq:
            # Others have lined up while it was looked for.
            books.put_away(work, WaitReason.ORDERED, now)
        else:
            lane.line_up(work)
        return
    books.unbuffer(work)
    deadline = books.deadline_of(work.entry, config)
    _take_its_place(books, lane, blocking, work.entry.generation, deadline, now)
    books.finish(work)


def revive(books: Books, lane: Lane, rows: Sequence[BacklogRow], now: float) -> None:
    """All that the backlog holds of an event whose dead delivery blocks the lane. A replay of it was written down while
    the lane kept no order, or before the delivery died: it would wait for itself."""
    blocking = [row for row in rows if row.due_at == NEVER]
    replay = next((row for row in rows if blocking and row.due_at != NEVER and row.generation), None)
    if replay is None or not lane.blocks:
        return
    _take_its_place(books, lane, blocking, replay.generation, replay.deadline, now)
    books.drop(lane, replay)
    shard = books.shards[lane.shard]
    shard.revived.append((replay.event_id, lane.endpoint.endpoint_id))


def _take_its_place(
    books: Books, lane: Lane, blocking: Sequence[BacklogRow], generation: int, deadline: float, now: float
) -> None:
    """What blocks becomes its own replay. Of one event there is one dead letter, whichever of its replays died, too."""
    for row in blocking[1:]:
        books.drop(lane, row)
    revived = books.work_of(lane, blocking[0])
    revived.entry.generation = generation
    lane.occupy(blocking[0].position)
    books.store(revived, WaitReason.ORDERED, now, 0, None, now, deadline=deadline)
    lane.head_due = 0.0


def named_done(books: Books, lane: Lane, named: Named) -> None:
    """The journal row has been acted on; a replay is acted on when it ends as any delivery."""
    shard = books.shards[lane.shard]
    if named.work is not None:
        books.unbuffer(named.work)
    shard.progress.finish(named.entry, lane.endpoint.endpoint_id)
    books.touch(shard)


def cancel_lane(books: Books, lane: Lane) -> None:
    """The endpoint was deleted: what is owed to it is cancelled, also in the backlog."""
    shard = books.shards[lane.shard]
    for works in (lane.queue, lane.later):
        for work in works:
            books.unbuffer(work)
            if work.stored:
                lane.let_go(work.entry.seq)
            else:
                books.finish(work)
    lane.queue = lane.later = NO_QUEUE
    for named in lane.forget_names():
        named_done(books, lane, named)
    shard.dropped_lanes.append(lane.endpoint.endpoint_id)
    for key in [key for key in shard.upserts if key[0] == lane.endpoint.endpoint_id]:
        del shard.upserts[key]
    lane.stored = 0
    lane.next_due = lane.next_deadline = NEVER
    books.touch(shard)
