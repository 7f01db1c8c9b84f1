"""The access log: a line for each call that ended.

In: the record of a call, its error and its duration. Out: log lines. Refusals for lack of capacity and calls that their
callers cancelled can come in thousands per second. So of those with one reason a few per second are logged, and the
next line says how many were left out. Metrics count all of them.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from service.core.errors import Cancelled, CapacityError, ErrorCode, ServiceError
from service.core.types import RequestRecord

LINES_PER_SECOND = 10  # for each of these reasons

_log = logging.getLogger("service.access")


@dataclass(slots=True)
class _Refusals:
    """Such calls with one reason. `lines` were logged since `since_at`; `left_out` were not since the last line."""

    since_at: float
    lines: int = 0
    left_out: int = 0


class AccessLog:
    """Writes the lines. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._refusals: dict[str, _Refusals] = {}  # by reason, so there are few

    def ended(self, record: RequestRecord, error: ServiceError | None, duration_seconds: float) -> None:
        """Log a call that ended. `error` is None if it was answered."""
        level = logging.ERROR if error is not None and error.code is ErrorCode.INTERNAL else logging.INFO
        if not _log.isEnabledFor(level):
            return
        left_out = 0
        if isinstance(error, CapacityError | Cancelled):
            refusals = self._of(error.reason)
            if refusals.lines >= LINES_PER_SECOND:
                refusals.left_out += 1
                return
            left_out, refusals.left_out = refusals.left_out, 0
            refusals.lines += 1
        code = error.code.name if error else "OK"
        _log.log(
            level,
            "%s %s",
            record.method,
            code,
            extra={
                "request_id": record.request_id,
                "trace_id": record.trace_id,
                "method": record.method,
                "caller": record.caller or None,
                "model": record.model,
                "version": record.version or None,
                "code": code,
                "reason": error.reason if error else None,
                "error": str(error) if error else None,
                "left_out": left_out or None,
                "duration_seconds": round(duration_seconds, 6),
                "batch_size": record.batch_size,
                "stage_seconds": {stage: round(spent, 6) for stage, spent in record.stage_seconds.items()},
            },
        )

    def _of(self, reason: str) -> _Refusals:
        now = self._clock()
        refusals = self._refusals.get(reason)
        if refusals is None:
            refusals = self._refusals[reason] = _Refusals(now)
        elif now - refusals.since_at >= 1.0:
            refusals.since_at, refusals.lines = now, 0
        return refusals
