"""A token bucket: how often something may happen, with bursts.

In: readings of a clock. Out: whether one more may happen now, or how long to wait. Over any time t it lets at most
`rate * t + burst` happen. Never reads a clock.
"""


class TokenBucket:
    """A bucket that is full at `now`: `burst` tokens (at least 1), and `rate` (more than 0) new ones per second."""

    def __init__(self, *, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled_at = now

    def take(self, now: float) -> float:
        """Take one token and return 0.0, or take none and return the seconds until there is one."""
        self._fill(now)
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate

    def is_full(self, now: float) -> bool:
        """Return whether it is as a new bucket would be."""
        self._fill(now)
        return self._tokens >= self._burst

    def changed(self, *, rate: float, burst: float, now: float) -> "TokenBucket":
        """Return a bucket with another rate and burst, and no more tokens than this one has."""
        self._fill(now)
        other = TokenBucket(rate=rate, burst=burst, now=now)
        other._tokens = min(self._tokens, burst)
        return other

    def _fill(self, now: float) -> None:
        # A clock that goes back adds nothing, and does not let the same time count twice.
        if now > self._filled_at:
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
            self._filled_at = now
