"""Looks for what has changed: from when on, whatever was done to the database's clock since the last one.

What has changed bears the database's time. Its clock may be set, or the database fail over to a machine whose clock is
another: set forward, what was changed before bears a time that seems long past; set back, what is changed now bears one
that the last look has seen. So a look goes back to the last one both by the database's time of then and by the seconds
that went by since, whichever is further, and a while more, for transactions that were slow to commit. What it finds may
have been told before. Of a clock that is set and set back between two looks, or while a change is being committed,
nothing can be seen. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

OVERLAP_S = 10.0
"""A transaction may commit so long after the time that its changes bear."""


class Since(NamedTuple):
    """From when on: ``at`` by the database's clock, if that is known, or ``ago_s`` seconds before now, whichever is
    earlier."""

    at: float | None
    ago_s: float

    def by(self, now: float) -> float:
        """The database's time it is from when its clock shows ``now``."""
        ago = now - self.ago_s
        return ago if self.at is None else min(self.at, ago)


class Looks:
    """When the last look was: ``began`` by our own clock, which only goes forward, and ``at`` by the database's, if
    that is known."""

    __slots__ = ("_at", "_began")

    def __init__(self, began: float, at: float | None = None) -> None:
        self._began, self._at = began, at

    @property
    def began(self) -> float:
        """By our own clock."""
        return self._began

    @property
    def at(self) -> float | None:
        """By the database's; None: there was none yet."""
        return self._at

    def since(self, now: float) -> Since:
        """From when on the next look is to look; ``now`` by our own clock."""
        return Since(None if self._at is None else self._at - OVERLAP_S, now - self._began + OVERLAP_S)

    def looked(self, began: float, at: float) -> None:
        """All that was committed before is known; ``at`` was asked for no later than that was."""
        if began >= self._began:
            self._began, self._at = began, at
