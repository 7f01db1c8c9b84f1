"""Replay: a recorded call in, the same request sent again, the differences between the two outcomes out.

A recorded call is a file that a server wrote (docs/replay.md). Replies are compared bit for bit, without the part that
names the model. That part is compared field by field. Times are never compared.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message

from mobilevision.client import CallFailed, VisionClient
from mobilevision.results import Result
from service.pb.mobilevision.v1 import recording_pb2, vision_pb2

MOST_DIFFERENCES = 20  # that are listed; the rest is counted

_MESSAGES: Mapping[str, tuple[type[Message], type[Message]]] = {
    "Classify": (vision_pb2.ClassifyRequest, vision_pb2.ClassifyResponse),
    "Detect": (vision_pb2.DetectRequest, vision_pb2.DetectResponse),
    "Segment": (vision_pb2.SegmentRequest, vision_pb2.SegmentResponse),
}


class NotReplayable(Exception):
    """There is no such recorded call, or it cannot be sent again. The message says why."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that differs. `name` is the path of the field. `by` is the distance of two numbers, else None."""

    name: str
    recorded: str
    replayed: str
    by: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the outcome of the replay differs from the recorded one.

    `execution`: differences in what ran the model, such as its digest or the device. `outcome`: differences of the
    replies, or between a reply and an error. An empty `outcome` means equal bits.
    """

    execution: tuple[Difference, ...]
    outcome: tuple[Difference, ...]

    @property
    def largest_score_difference(self) -> float:
        """The largest distance of two scores; 0 where none differs."""
        scores = (d.by for d in self.outcome if d.by is not None and d.name.endswith("score"))
        return max(scores, default=0.0)


def find(folder: Path, request_id: str) -> recording_pb2.RecordedCall:
    """Read the newest recorded call of this request id. Raises `NotReplayable`, OSError."""
    digest = hashlib.sha256(request_id.encode()).hexdigest()[:32]
    names = sorted(folder.glob(f"*-{digest}.call"))
    if not names:
        raise NotReplayable(f"no call with request id {request_id} is recorded in {folder}")
    try:
        return recording_pb2.RecordedCall.FromString(names[-1].read_bytes())
    except DecodeError as error:
        raise NotReplayable(f"{names[-1]} is not a recorded call") from error


def replay(call: recording_pb2.RecordedCall, client: VisionClient) -> Comparison:
    """Send the recorded request again and compare. Raises `NotReplayable`, and `CallFailed` where no server answers."""
    if call.method not in _MESSAGES:
        raise NotReplayable(f"the recorded method {call.method!r} is unknown; use a newer mobilevision")
    request_type, reply_type = _MESSAGES[call.method]
    request: Any = request_type()
    request.MergeFromString(call.request)
    if call.image_bytes and not request.image:
        raise NotReplayable("the call was recorded without its picture (recording_content = metadata)")
    recorded = None
    if call.HasField("reply"):
        recorded = reply_type()
        recorded.MergeFromString(call.reply)
    try:
        result = client.send(request)
    except CallFailed as failure:
        if not failure.reason:
            raise
        return Comparison((), tuple(_against_error(call, recorded, failure)))
    return Comparison(tuple(_executions(call, result)), tuple(_against_reply(call, recorded, result.reply)))


def _executions(call: recording_pb2.RecordedCall, result: Result[Any]) -> Iterator[Difference]:
    before, used = call.execution, result.reply.model
    now = recording_pb2.Execution(
        model=used.name,
        version=used.version,
        module_sha256=used.module_sha256,
        engine=used.engine,
        dtype=used.dtype,
        device=used.device,
        batch_size=result.batch_size or 0,
    )
    if call.HasField("reply"):
        yield from _differences(before, now, "")


def _against_error(
    call: recording_pb2.RecordedCall, recorded: Message | None, failure: CallFailed
) -> Iterator[Difference]:
    replayed = f"{failure.code.name} {failure.reason}"
    if recorded is not None:
        yield Difference("outcome", "a reply", f"{replayed}: {failure.message}")
        return
    before = f"{call.error.code} {call.error.reason}"
    if before != replayed:
        yield Difference("error", before, replayed)


def _against_reply(call: recording_pb2.RecordedCall, recorded: Message | None, reply: Message) -> Iterator[Difference]:
    if recorded is None:
        yield Difference("outcome", f"{call.error.code} {call.error.reason}: {call.error.message}", "a reply")
        return
    for message in (recorded, reply):
        message.ClearField("model")
    if recorded.SerializeToString(deterministic=True) != reply.SerializeToString(deterministic=True):
        yield from _differences(recorded, reply, "")


def _differences(before: Message, now: Message, path: str) -> Iterator[Difference]:
    for field in before.DESCRIPTOR.fields:
        name = f"{path}{field.name}"
        first, second = getattr(before, field.name), getattr(now, field.name)
        if not field.is_repeated:
            yield from _values(field, first, second, name)
            continue
        if len(first) != len(second):
            yield Difference(f"{name} (number)", str(len(first)), str(len(second)))
        for index, (one, other) in enumerate(zip(first, second, strict=False)):
            yield from _values(field, one, other, f"{name}[{index}]")


def _values(field: Any, before: Any, now: Any, name: str) -> Iterator[Difference]:
    if field.message_type is not None:
        yield from _differences(before, now, f"{name}.")
    elif before != now:
        by = abs(before - now) if isinstance(before, float) else None
        yield Difference(name, _text(before), _text(now), by)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()[:16]}"
    return str(value)
