"""One owned shard: how far it is done, its lanes, and what happened in it since the last settle.

Relies on: one owner at a time (the fence), and `books` to enter what happens. Promises: `take` hands out everything
entered since the last time, once; "clean" only when nobody can have sent anything that is not recorded.
"""

from __future__ import annotations

from uuid import UUID

from hookpost.engine.lanes import Lane
from hookpost.engine.progress import ShardProgress
from hookpost.engine.work import TICK_S, Attempt, BacklogChange, DeadLetter, ShardSettle, Takeover
from hookpost.policy.alerts import Notice


class Shard:
    """One owned shard: its progress and what happened since the last settle."""

    __slots__ = (
        "attempts", "dead", "deletes", "delivered_after_s", "doubt_stored", "doubtful_until", "draining",
        "dropped_lanes", "fence", "in_flight", "lanes", "notices", "number", "opened_at", "progress", "quiet_until",
        "read_created_at", "revived", "settle_no", "touched", "unmended", "upserts",
    )  # fmt: skip

    def __init__(self, takeover: Takeover, now: float) -> None:
        self.number = takeover.shard
        self.fence = takeover.fence
        self.settle_no = takeover.settle_no
        self.progress = ShardProgress(takeover.read_to, takeover.read_day)
        self.lanes: dict[UUID, Lane] = {}
        self.opened_at = now
        self.quiet_until = takeover.quiet_until
        # What existed by then may have been sent by the last owner, who did not live to record it.
        self.doubtful_until = 0.0 if takeover.clean else max(now, takeover.doubtful_to) + TICK_S
        self.doubt_stored = False
        self.read_created_at = 0.0
        self.in_flight = 0
        # Fragments that could not be mended (spill).
        self.unmended = 0
        self.draining = False
        self.touched = False
        self.attempts: list[Attempt] = []
        self.upserts: dict[tuple[UUID, int], BacklogChange] = {}
        self.deletes: list[tuple[UUID, int]] = []
        self.dead: list[DeadLetter] = []
        self.revived: list[tuple[UUID, UUID]] = []
        self.dropped_lanes: list[UUID] = []
        self.notices: list[Notice] = []
        self.delivered_after_s: list[float] = []

    def take(self) -> ShardSettle:
        """Close the books of this shard up to now and open new ones."""
        self.settle_no += 1
        part = ShardSettle(
            shard=self.number,
            fence=self.fence,
            settle_no=self.settle_no,
            progress=self.progress.snapshot(),
            attempts=self.attempts,
            upserts=self.upserts,
            deletes=self.deletes,
            dead=self.dead,
            revived=self.revived,
            dropped_lanes=self.dropped_lanes,
            clean=self.draining and self.in_flight == 0 and not self._doubtful(),
            notices=self.notices,
            delivered_after_s=self.delivered_after_s,
        )
        self.attempts, self.upserts, self.deletes = [], {}, []
        self.dead, self.revived, self.dropped_lanes, self.notices = [], [], [], []
        self.delivered_after_s = []
        self.touched = False
        return part

    def _doubtful(self) -> bool:
        """Is something left that the last owner may have sent and not recorded?"""
        return self.doubtful_until > 0 and (
            self.doubt_stored
            or self.read_created_at <= self.doubtful_until
            or any(
                lane.fetching
                or (lane.inherited and lane.stored > 0)
                or any(w.possible_duplicate for w in lane.queue)
                or any(w.possible_duplicate for w in lane.later)
                or lane.named
                for lane in self.lanes.values()
            )
        )
