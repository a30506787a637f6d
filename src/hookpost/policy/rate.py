"""Token buckets: so many a second, and no more in any window than the rate allows.

Over any window of `w` seconds a bucket lets at most `rate * w + max(1, rate)` through: the second term is its size, one
second's worth and at least one token. A new owner starts with an empty one, as the last owner may have just emptied its
own; hence the bound holds across owners, too. Pure: `now` is an argument.
"""

from __future__ import annotations

# Unix seconds in a float are exact to a quarter of it: a wait that is shorter would never end.
TIME_GRAIN_S = 1e-6


class TokenBucket:
    """One bucket. ``rate``: tokens a second, more than 0. ``since``: Unix seconds, from when on it fills up."""

    __slots__ = ("_filled_at", "_tokens", "rate")

    def __init__(self, rate: float, *, since: float) -> None:
        self.rate = rate
        self._tokens = 0.0
        self._filled_at = since

    def _fill(self, now: float) -> None:
        if now > self._filled_at:
            self._tokens = min(max(1.0, self.rate), self._tokens + (now - self._filled_at) * self.rate)
            self._filled_at = now

    def take(self, *, now: float, tokens: int = 1) -> float:
        """Take the tokens if there are as many: 0. Else take none; the answer is how many seconds it will be until
        there are (of more than the bucket ever holds: until it is full)."""
        self._fill(now)
        wanted = min(float(tokens), max(1.0, self.rate))
        # What a float loses in a sum must not cost a turn, nor be waited for: Unix seconds know no shorter time.
        if self._tokens >= wanted - _CRUMB - self.rate * TIME_GRAIN_S:
            self._tokens -= tokens
            return 0.0
        return (wanted - self._tokens) / self.rate

    def give_back(self, tokens: int = 1) -> None:
        """What was taken was not used."""
        self._tokens = min(max(1.0, self.rate), self._tokens + tokens)

    def left(self, *, now: float) -> float:
        """Tokens in it; less than 0 while more than it ever holds is being paid for."""
        self._fill(now)
        return self._tokens

    def change(self, rate: float, *, now: float) -> None:
        """Go on at another rate from now on: what is in it stays, as far as it holds so much."""
        self._fill(now)
        self.rate = rate
        self._tokens = min(self._tokens, max(1.0, rate))

    def is_full(self, *, now: float) -> bool:
        """Would a new one, filled up from long ago, hold no more?"""
        self._fill(now)
        return self._tokens >= max(1.0, self.rate) - _CRUMB


_CRUMB = 1e-9
