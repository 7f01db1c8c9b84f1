"""The comparison of a recorded call with its replay, and the command."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from mobilevision import replay as replay_module
from mobilevision.cli.main import app
from mobilevision.client import CallFailed
from mobilevision.replay import Difference, NotReplayable, find, replay
from mobilevision.results import Result
from service.frontends.recording.store import digest
from service.pb.mobilevision.v1 import recording_pb2, vision_pb2


def reply(score: float = 0.5, *, device: str = "cpu", labels: int = 1) -> vision_pb2.ClassifyResponse:
    return vision_pb2.ClassifyResponse(
        model=vision_pb2.ModelUsed(
            name="toy", version="1.0", module_sha256="ab", engine="torchserve", dtype="float32", device=device
        ),
        labels=[vision_pb2.Label(id=i, name="cat", score=score) for i in range(labels)],
    )


def recorded(**outcome: Any) -> recording_pb2.RecordedCall:
    return recording_pb2.RecordedCall(
        request_id="id-1",
        method="Classify",
        request=vision_pb2.ClassifyRequest(image=b"picture").SerializeToString(),
        image_bytes=7,
        execution=recording_pb2.Execution(
            model="toy",
            version="1.0",
            module_sha256="ab",
            engine="torchserve",
            dtype="float32",
            device="cpu",
            batch_size=1,
        ),
        **(outcome or {"reply": reply().SerializeToString()}),
    )


class Server:
    """Answers, or fails, as the test says."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    def send(self, request: Any) -> Result[Any]:
        assert request.image == b"picture"
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return Result(reply=self._outcome, request_id="new", elapsed_ms=1.0, stage_ms={}, batch_size=1)


def compare(call: recording_pb2.RecordedCall, outcome: Any) -> replay_module.Comparison:
    return replay(call, Server(outcome))  # type: ignore[arg-type]


def failure(reason: str = "QUEUE_FULL", code: grpc.StatusCode = grpc.StatusCode.RESOURCE_EXHAUSTED) -> CallFailed:
    return CallFailed(code=code, message="why", reason=reason)


def test_equal_replies_differ_in_nothing() -> None:
    assert compare(recorded(), reply()) == replay_module.Comparison((), ())


def test_another_device_and_other_scores_are_named() -> None:
    comparison = compare(recorded(), reply(0.75, device="cuda:0", labels=2))
    assert comparison.execution == (Difference("device", "cpu", "cuda:0"),)
    assert [d.name for d in comparison.outcome] == ["labels (number)", "labels[0].score"]
    assert comparison.largest_score_difference == 0.25


def test_errors_are_compared_by_code_and_reason() -> None:
    error = recording_pb2.RecordedError(code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL", message="other numbers")
    assert compare(recorded(error=error), failure()).outcome == ()
    assert [d.name for d in compare(recorded(error=error), failure("TOO_MANY_REQUESTS")).outcome] == ["error"]
    assert [d.name for d in compare(recorded(error=error), reply()).outcome] == ["outcome"]
    assert [d.name for d in compare(recorded(), failure()).outcome] == ["outcome"]
    with pytest.raises(CallFailed):
        compare(recorded(), failure("", grpc.StatusCode.UNAVAILABLE))


def test_a_call_without_its_picture_cannot_be_replayed() -> None:
    call = recorded()
    call.request = vision_pb2.ClassifyRequest(model="toy").SerializeToString()
    with pytest.raises(NotReplayable, match="without its picture"):
        compare(call, reply())


def test_the_newest_call_of_an_id_is_found(tmp_path: Path) -> None:
    for number in (1, 2):
        call = recorded()
        call.ended_at_nanoseconds = number
        (tmp_path / f"{number:020}-{digest('id-1')}.call").write_bytes(call.SerializeToString())
    assert find(tmp_path, "id-1").ended_at_nanoseconds == 2
    with pytest.raises(NotReplayable, match="no call"):
        find(tmp_path, "id-2")
    (tmp_path / f"{3:020}-{digest('id-1')}.call").write_bytes(b"\xff")
    with pytest.raises(NotReplayable, match="is not a recorded call"):
        find(tmp_path, "id-1")


def test_the_command_says_that_a_call_is_not_recorded(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["replay", "id-1", "--recording", str(tmp_path)])
    assert result.exit_code == 2
    assert "no call with request id id-1" in result.output
