"""Counts what each caller uses, and refuses what exceeds its limits: calls per second, calls and bytes in work.

In: a caller and the bytes of its request. Out: admission for as long as a `with` block lasts, or `RateLimited`. Callers
that use nothing are forgotten, and at most `MOST_TRACKED` are known. For one event loop.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.access.callers import Caller, CallerLimits
from service.access.token_bucket import TokenBucket
from service.core.errors import RateLimited

MOST_TRACKED = 10_000  # callers; each takes about half a KiB, so 5 MiB of the 1 GiB of the gateway container
FORGET_SECONDS = 60.0  # callers that use nothing are looked for this often
FULL_FORGET_SECONDS = 1.0  # and this often while `MOST_TRACKED` are known
RETRY_SECONDS = 1.0  # until a call in work has ended; a guess
MOST_RETRY_SECONDS = 3600.0


@dataclass(slots=True)
class _Use:
    """What one caller uses now."""

    limits: CallerLimits
    bucket: TokenBucket | None
    requests: int = 0
    bytes: int = 0


class CallerLimiter:
    """Admits calls. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float], *, most_tracked: int = MOST_TRACKED) -> None:
        self._clock = clock
        self._most_tracked = most_tracked
        self._uses: dict[str, _Use] = {}
        self._forgot_at = clock()

    @property
    def tracked(self) -> int:
        """The number of callers that are known now."""
        return len(self._uses)

    @contextmanager
    def admitted(self, caller: Caller, request_bytes: int) -> Iterator[None]:
        """Count a call of `caller` as in work until the block ends. Raises `RateLimited`.

        A call that is refused costs the caller none of its calls per second.
        """
        if caller.limits.unlimited:
            yield
            return
        use = self._use_of(caller)
        _check_work(use, caller.limits, request_bytes)
        _check_rate(use, self._clock())
        use.requests += 1
        use.bytes += request_bytes
        try:
            yield
        finally:
            use.requests -= 1
            use.bytes -= request_bytes

    def _use_of(self, caller: Caller) -> _Use:
        now = self._clock()
        use = self._uses.get(caller.name)
        if use is None:
            self._make_room(now)
            use = self._uses[caller.name] = _Use(caller.limits, _bucket(caller.limits, now))
        elif use.limits != caller.limits:  # the file was changed
            use.bucket = _changed(use.bucket, caller.limits, now)
            use.limits = caller.limits
        return use

    def _make_room(self, now: float) -> None:
        full = len(self._uses) >= self._most_tracked
        if now - self._forgot_at >= (FULL_FORGET_SECONDS if full else FORGET_SECONDS):
            self._forgot_at = now
            # A caller without calls in work and with a full bucket is as one that never called.
            self._uses = {
                name: use
                for name, use in self._uses.items()
                if use.requests or not (use.bucket is None or use.bucket.is_full(now))
            }
            full = len(self._uses) >= self._most_tracked
        if full:
            raise RateLimited(
                f"{self._most_tracked} callers use this server now, the most that it counts; retry later",
                metadata={"limit": "callers"},
                retry_after_seconds=RETRY_SECONDS,
            )


def _bucket(limits: CallerLimits, now: float) -> TokenBucket | None:
    if not limits.requests_per_second:
        return None
    return TokenBucket(rate=limits.requests_per_second, burst=limits.burst_calls, now=now)


def _changed(bucket: TokenBucket | None, limits: CallerLimits, now: float) -> TokenBucket | None:
    if bucket is None or not limits.requests_per_second:
        return _bucket(limits, now)
    return bucket.changed(rate=limits.requests_per_second, burst=limits.burst_calls, now=now)


def _check_work(use: _Use, limits: CallerLimits, request_bytes: int) -> None:
    """Raises `RateLimited` if the caller has too much in work."""
    if limits.inflight_requests and use.requests >= limits.inflight_requests:
        raise RateLimited(
            f"{use.requests} calls of this caller are in work, its limit; retry when one has ended",
            metadata={"limit": "inflight_requests"},
            retry_after_seconds=RETRY_SECONDS,
        )
    if not limits.inflight_bytes or use.bytes + request_bytes <= limits.inflight_bytes:
        return
    if request_bytes > limits.inflight_bytes:
        raise RateLimited(
            f"the request has {request_bytes} bytes; this caller may have {limits.inflight_bytes} in work; send a "
            "smaller picture",
            metadata={"limit": "inflight_bytes"},
        )
    raise RateLimited(
        f"the requests of this caller in work have {use.bytes} bytes, and its limit is {limits.inflight_bytes}; retry "
        "when one has ended",
        metadata={"limit": "inflight_bytes"},
        retry_after_seconds=RETRY_SECONDS,
    )


def _check_rate(use: _Use, now: float) -> None:
    """Take one call from the bucket. Raises `RateLimited`."""
    if use.bucket is None:
        return
    wait_seconds = use.bucket.take(now)
    if wait_seconds:
        raise RateLimited(
            f"this caller may make {use.limits.requests_per_second:g} calls per second; retry later",
            metadata={"limit": "requests_per_second"},
            retry_after_seconds=min(wait_seconds, MOST_RETRY_SECONDS),
        )
