"""Constant load of honest calls, and what became of each of them.

Open loop: a call is sent at its planned time, whatever the state of earlier calls. Each answer is compared with the
right one bit by bit. Every call ends as exactly one `Kind`.
"""

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from benchmarks.hold.toy import Question, answer_of

PATH = "/mobilevision.v1.VisionService/Classify"
SLOW_SECONDS = 0.5  # while a call waits for longer, the server has not recovered
GRACE_SECONDS = 1.0  # after its deadline a call must have ended: gRPC ends it in the caller's process
_DOMAIN = "mobilevision"
_DETAILS = "grpc-status-details-bin"
# gRPC's words for a connection that could not be made. Such a call was never sent, so it can go elsewhere at once.
_NOT_SENT = ("failed to connect", "connection refused")
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection per channel
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # in spite of its name: the time that one attempt has
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
)


class Kind(StrEnum):
    """What became of a call.

    right: the answer is the right one, bit by bit. typed: an error with the server's reason, or the deadline of the
    call passed. not sent: no connection could be made. cut: the connection ended under the call. wrong: another answer.
    lost: an error without a reason, or no end at all.
    """

    RIGHT = "right"
    TYPED = "typed"
    NOT_SENT = "not sent"
    CUT = "cut"
    WRONG = "wrong"
    LOST = "lost"


@dataclass
class Call:
    """One call: when it was sent, when it ended (monotonic), and how.

    `why` is the reason or the status. `batch_size`: pictures in the batch that answered it, 0 if none did.
    """

    sent_at: float
    ended_at: float | None = None
    kind: Kind = Kind.LOST
    why: str = ""
    batch_size: int = 0


def judge_answer(reply: bytes, expected: bytes) -> Kind:
    """Compare a reply with the right answer."""
    try:
        return Kind.RIGHT if answer_of(reply) == expected else Kind.WRONG
    except DecodeError:
        return Kind.WRONG


def judge_error(code: str, details: str, reason: str, late_seconds: float = 0.0) -> tuple[Kind, str]:
    """The kind of a failed call, and its cause. `late_seconds`: how long after its deadline it ended."""
    if reason:
        return Kind.TYPED, reason
    if code == "DEADLINE_EXCEEDED" and late_seconds <= GRACE_SECONDS:
        return Kind.TYPED, code  # the caller's gRPC ends a call at its deadline, often just before the server's answer
    if code == "UNAVAILABLE":
        sent = not any(words in details.lower() for words in _NOT_SENT)
        return (Kind.CUT if sent else Kind.NOT_SENT), f"{code}: {details[:200]}"
    return Kind.LOST, f"{code}: {details[:200]}"


def reason_of(trailers: Iterable[tuple[str, str | bytes]]) -> str:
    """The server's reason in the trailers of a failed call; empty if there is none."""
    for key, value in trailers:
        if key == _DETAILS and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == _DOMAIN:
                    return str(info.reason)
    return ""


def channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> aio.Channel:
    """A connection of its own to an address."""
    if credentials is None:
        return aio.insecure_channel(address, options=_OPTIONS)
    return aio.secure_channel(address, credentials, options=_OPTIONS)


async def ask(connection: aio.Channel, question: Question, deadline_seconds: float, call: Call) -> None:
    """Send one call and record in `call` what became of it."""
    method: aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.unary_unary(PATH)
    try:
        pending = method(question.body, timeout=deadline_seconds)
        reply = await pending
        trailers = dict(await pending.trailing_metadata() or ())
    except aio.AioRpcError as error:
        late_seconds = time.monotonic() - call.sent_at - deadline_seconds
        reason = reason_of(error.trailing_metadata() or ())
        call.kind, call.why = judge_error(error.code().name, error.details() or "", reason, late_seconds)
    else:
        call.kind = judge_answer(reply, question.expected)
        call.batch_size = int(trailers.get("mobilevision-batch-size", 0))
    call.ended_at = time.monotonic()


class Load:
    """Honest calls from a thread. Use as a context manager; leaving it waits for the last answers.

    `per_second`: calls are sent at this rate; 0: `callers` send the next call when the last one has ended.
    """

    def __init__(
        self,
        address: str,
        questions: Sequence[Question],
        *,
        per_second: float,
        deadline_seconds: float = 2.0,
        callers: int = 8,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._address, self._questions, self._callers = address, questions, callers
        self._per_second, self._deadline_seconds, self._credentials = per_second, deadline_seconds, credentials
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.calls: list[Call] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more calls and wait for the last answers."""
        self._end.set()
        self._thread.join(self._deadline_seconds + 30)

    def since(self, begin_at: float, end_at: float = float("inf")) -> list[Call]:
        """The calls that were sent in a span of time."""
        return [one for one in self.calls[:] if begin_at <= one.sent_at < end_at]

    async def _run(self) -> None:
        connections = [channel(self._address, self._credentials) for _ in range(self._callers)]
        if self._per_second:
            await self._open_loop(connections)
        else:
            await asyncio.gather(*(self._closed_loop(one, number) for number, one in enumerate(connections)))
        await asyncio.gather(*(one.close() for one in connections))

    async def _open_loop(self, connections: list[aio.Channel]) -> None:
        tasks: set[asyncio.Task[None]] = set()
        began_at = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(began_at + number / self._per_second - time.monotonic(), 0.0))
            if self._end.is_set():
                break
            call = Call(time.monotonic())
            self.calls.append(call)
            question = self._questions[number % len(self._questions)]
            connection = connections[number % len(connections)]
            task = asyncio.create_task(ask(connection, question, self._deadline_seconds, call))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _closed_loop(self, connection: aio.Channel, first: int) -> None:
        for number in itertools.count(first):
            if self._end.is_set():
                return
            call = Call(time.monotonic())
            self.calls.append(call)
            await ask(connection, self._questions[number % len(self._questions)], self._deadline_seconds, call)
            if call.kind is not Kind.RIGHT:
                await asyncio.sleep(0.02)  # a caller that is refused does not call again at once


def counts(calls: Iterable[Call]) -> Counter[Kind]:
    """Number of calls by kind."""
    return Counter(one.kind for one in calls)


def last_bad_seconds(calls: Iterable[Call], since_at: float) -> float:
    """Seconds from `since_at` until the last call was sent that did not get its right answer; 0 if there is none."""
    return max((one.sent_at - since_at for one in calls if one.kind is not Kind.RIGHT), default=0.0)


def bad_seconds(calls: Iterable[Call]) -> float:
    """Seconds from the first call that did not get its right answer to the last one; 0 if there is none."""
    sent_at = [one.sent_at for one in calls if one.kind is not Kind.RIGHT]
    return max(sent_at) - min(sent_at) if sent_at else 0.0


def wait_for_recovery(
    load: Load,
    since_at: float,
    *,
    quiet_seconds: float,
    limit_seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """Wait until every call was right for a while.

    Returns the seconds from `since_at` until the last call was sent that was not right. None: `limit_seconds` passed.
    """
    while True:
        now = clock()
        calls = load.since(since_at)
        ended = [one for one in calls if one.ended_at is not None]
        seconds = last_bad_seconds(ended, since_at)
        waiting = any(one.ended_at is None and one.sent_at < now - SLOW_SECONDS for one in calls)
        if ended and not waiting and now - since_at - seconds >= quiet_seconds:
            return seconds
        if now - since_at > limit_seconds:
            return None
        sleep(0.1)
