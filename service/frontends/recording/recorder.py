"""Records calls: the methods of the tasks in, the same methods out, whose calls are written to disk in a thread.

Recording never delays a call and never fails one. A call is dropped and counted where too many wait to be written, and
where the disk does not take it. The log has one line when writing begins to fail and one when it works again.
"""

import asyncio
import hashlib
import logging
import queue
import threading
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from google.protobuf.message import Message

from service.core.call_scope import CallScope
from service.core.errors import Bug, Cancelled, DeadlineExceeded, ErrorCode, ServiceError, TooManyRequests
from service.core.types import RequestRecord, engine_of
from service.frontends.recording.store import RecordingStore
from service.observability.recording_metrics import DROPPED, FAILED, WRITTEN
from service.pb.mobilevision.v1 import recording_pb2

Method = Callable[[Any, CallScope], Awaitable[Any]]

MOST_WAITING_BYTES = 32 * 2**20  # of calls that wait to be written; one larger call may wait alone
PRUNE_SECONDS = 60.0  # without a call to write, so that old calls are deleted in time
CLOSE_SECONDS = 5.0  # limit for writing what waits at shutdown

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A call that ended. Nobody changes the messages any more."""

    request: Any
    reply: Message | None
    error: tuple[str, str, str, dict[str, str]] | None  # code, reason, message, metadata
    record: RequestRecord
    ended_at: float
    size: int  # bytes that it keeps in memory


class Recorder:
    """Writes calls in a thread of its own. Call `start`, then wrap methods with `recorded`, at the end `close`.

    `share` of the calls is recorded. Without `content` pictures and answers are left out. `on_outcome` is called with
    `written`, `dropped` or `failed` for each such call, in any thread. `clock` returns seconds since 1970-01-01 UTC.
    """

    def __init__(
        self,
        store: RecordingStore,
        *,
        engine: str,
        share: float,
        content: bool,
        on_outcome: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._engine = engine
        self._share = share
        self._content = content
        self._on_outcome = on_outcome
        self._clock = clock
        self._waiting: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Start the thread. It makes the folder and deletes old calls first."""
        self._thread.start()

    def close(self) -> None:
        """Write what waits, for a few seconds at most. Blocks."""
        self._waiting.put(None)
        self._thread.join(CLOSE_SECONDS)

    def recorded(self, method: Method) -> Method:
        """Return the method with its calls recorded. It returns and raises what `method` does."""

        async def run(request: Any, scope: CallScope) -> Any:
            try:
                reply = await method(request, scope)
            except asyncio.CancelledError:
                late = asyncio.get_running_loop().time() >= scope.deadline_at
                error = DeadlineExceeded("the deadline passed") if late else Cancelled("the caller cancelled the call")
                self._offer(request, scope, None, error)
                raise
            except Exception as failure:
                self._offer(request, scope, None, failure)
                raise
            self._offer(request, scope, reply, None)
            return reply

        return run

    def _offer(self, request: Any, scope: CallScope, reply: Message | None, error: Exception | None) -> None:
        request_id = scope.request_id
        if zlib.crc32(request_id.encode()) >= self._share * 2**32:
            return
        size = len(request.image) + (0 if reply is None else reply.ByteSize()) + 1
        with self._lock:
            fits = not self._waiting_bytes or self._waiting_bytes + size <= MOST_WAITING_BYTES
            if fits:
                self._waiting_bytes += size
        if not fits:
            self._on_outcome(DROPPED)
            return
        # A copy: the front still fills in the record.
        self._waiting.put(
            _Ended(
                request, reply, None if error is None else _described(error), replace(scope.record), self._clock(), size
            )
        )

    def _run(self) -> None:
        self._attempt(self._store.open)
        while True:
            try:
                ended = self._waiting.get(timeout=PRUNE_SECONDS)
            except queue.Empty:
                self._attempt(self._store.prune)
                continue
            if ended is None:
                return
            self._on_outcome(WRITTEN if self._attempt(partial(self._write, ended)) else FAILED)
            with self._lock:
                self._waiting_bytes -= ended.size
            del ended

    def _attempt(self, step: Callable[[], None]) -> bool:
        """Take a step. Log its failure if the step before did not fail, and the end of failures."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - a call must never fail because of its recording
            if not self._failing:
                _log.error("calls cannot be recorded and are dropped: %s", error)
            self._failing = True
            return False
        if self._failing:
            _log.info("calls are recorded again")
        self._failing = False
        return True

    def _write(self, ended: _Ended) -> None:
        record = ended.record
        call = recording_pb2.RecordedCall(
            request_id=record.request_id,
            ended_at_nanoseconds=round(ended.ended_at * 1e9),
            method=record.method,
            image_sha256=hashlib.sha256(ended.request.image).hexdigest(),
            image_bytes=len(ended.request.image),
            execution=recording_pb2.Execution(
                model=record.model,
                version=record.version,
                module_sha256=record.module_sha256,
                engine=engine_of(self._engine, record),
                dtype=record.dtype,
                device=record.device,
                batch_size=record.batch_size,
            ),
        )
        if self._content:
            call.request = ended.request.SerializeToString()
        else:
            options = type(ended.request)()
            options.CopyFrom(ended.request)
            options.ClearField("image")
            call.request = options.SerializeToString()
        if ended.error is not None:
            code, reason, message, metadata = ended.error
            call.error.CopyFrom(
                recording_pb2.RecordedError(code=code, reason=reason, message=message, metadata=metadata)
            )
        elif ended.reply is not None and self._content:
            call.reply = ended.reply.SerializeToString()
        self._store.write(record.request_id, call.SerializeToString())


def _described(error: Exception) -> tuple[str, str, str, dict[str, str]]:
    """Code, reason, message and metadata, as the caller gets them."""
    if isinstance(error, ServiceError):
        return error.code.name, error.reason, error.message, error.metadata
    if isinstance(error, MemoryError):
        return TooManyRequests.code.name, TooManyRequests.reason, "the server had no memory for this request", {}
    return ErrorCode.INTERNAL.name, Bug.reason, "a defect of the server; its log has the traceback", {}
