"""The client against a small server of its own: what it sends, what it reads back, how failures are raised."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import grpc
import numpy as np
import picture_files
import pytest
from google.protobuf import any_pb2
from google.rpc import status_pb2
from PIL import Image

from mobilevision.client import CallFailed, VisionClient
from service.core import errors
from service.frontends.grpc import status
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

MASK = picture_files.encoded(Image.fromarray(np.zeros((2, 3), np.uint8)), "PNG")


class Servicer(vision_pb2_grpc.VisionServiceServicer):
    """Answers from a table; `fail_with` is an error with a reason, or a bare gRPC code."""

    def __init__(self):
        self.requests = []
        self.metadata = []
        self.remaining = []
        self.fail_with = None
        self.trailers = (
            ("x-request-id", "echoed"),
            ("server-timing", "decode;dur=0.570, queue;dur=1.25,inference;dur=9"),
            ("mobilevision-batch-size", "4"),
        )

    def _see(self, request, context):
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining.append(context.time_remaining())
        if isinstance(self.fail_with, errors.ServiceError):
            trailer = status.status_trailer(self.fail_with, request_id="echoed")
            context.set_trailing_metadata((("x-request-id", "echoed"), trailer))
            context.abort(status.status_code(self.fail_with), self.fail_with.message)
        if self.fail_with is not None:
            code, trailers = self.fail_with
            context.set_trailing_metadata(trailers)
            context.abort(code, "bare")
        context.set_trailing_metadata(self.trailers)

    def Classify(self, request, context):
        self._see(request, context)
        return vision_pb2.ClassifyResponse(labels=[vision_pb2.Label(id=1, name="cat", score=0.5)])

    def Detect(self, request, context):
        self._see(request, context)
        return vision_pb2.DetectResponse(detections=[vision_pb2.Detection()])

    def Segment(self, request, context):
        self._see(request, context)
        return vision_pb2.SegmentResponse(mask_png=request.image)

    def ListModels(self, request, context):
        self._see(request, context)
        return vision_pb2.ListModelsResponse(models=[vision_pb2.Model(name="tiny")])

    def GetModel(self, request, context):
        self._see(request, context)
        return vision_pb2.GetModelResponse(model=vision_pb2.Model(name=request.name))


@pytest.fixture
def servicer():
    return Servicer()


@pytest.fixture
def target(servicer):
    sizes = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(4), options=sizes)
    vision_pb2_grpc.add_VisionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def client(target):
    with VisionClient(target) as client:
        yield client


def test_options_left_out_are_not_sent(client, servicer):
    client.classify(b"picture")
    client.detect(b"picture")
    client.segment(b"picture")
    classify, detect, segment = servicer.requests
    assert classify == vision_pb2.ClassifyRequest(image=b"picture")
    assert not classify.HasField("top_k")
    assert not detect.HasField("score_threshold")
    assert not detect.HasField("max_detections")
    assert segment == vision_pb2.SegmentRequest(image=b"picture")


def test_options_are_sent(client, servicer):
    client.classify(b"p", model="m", top_k=3, priority=vision_pb2.PRIORITY_BATCH)
    client.detect(b"p", model="m", score_threshold=0.0, max_detections=7)
    client.segment(b"p", model="m", mask_encoding=vision_pb2.MASK_ENCODING_COCO_RLE, include_confidence=True)
    client.list_models(task=vision_pb2.TASK_DETECT)
    client.get_model("m")
    assert servicer.requests == [
        vision_pb2.ClassifyRequest(model="m", image=b"p", top_k=3, priority=vision_pb2.PRIORITY_BATCH),
        vision_pb2.DetectRequest(model="m", image=b"p", score_threshold=0.0, max_detections=7),
        vision_pb2.SegmentRequest(
            model="m", image=b"p", mask_encoding=vision_pb2.MASK_ENCODING_COCO_RLE, include_confidence=True
        ),
        vision_pb2.ListModelsRequest(task=vision_pb2.TASK_DETECT),
        vision_pb2.GetModelRequest(name="m"),
    ]
    assert servicer.requests[1].HasField("score_threshold")


def test_result_holds_reply_and_trailers(client):
    result = client.classify(b"picture")
    assert result.reply.labels[0].name == "cat"
    assert result.stage_ms == {"decode": 0.57, "queue": 1.25, "inference": 9.0}
    assert result.batch_size == 4
    assert result.request_id == "echoed"
    assert result.elapsed_ms > 0


def test_missing_or_odd_trailers(client, servicer):
    servicer.trailers = (("server-timing", "miss, cache;desc=hit"), ("mobilevision-batch-size", "many"))
    result = client.classify(b"picture", request_id="mine")
    assert result.stage_ms == {}
    assert result.batch_size is None
    assert result.request_id == "mine"


@pytest.mark.parametrize("kind", [Path, str, PurePath], ids=lambda kind: kind.__name__)
def test_the_file_of_a_path_is_read(client, servicer, tmp_path, kind):
    (tmp_path / "picture.jpg").write_bytes(b"content")
    for call in (client.classify, client.detect, client.segment):
        call(kind(tmp_path / "picture.jpg"))
    assert [request.image for request in servicer.requests] == [b"content"] * 3


def test_a_file_that_cannot_be_read_and_what_is_no_picture_are_refused_before_any_call(client, servicer):
    with pytest.raises(FileNotFoundError):
        client.classify("no such file")
    with pytest.raises(TypeError):
        client.classify(["picture.jpg"])
    assert servicer.requests == []


def test_results_have_the_answer_as_plain_values(client):
    assert [(label.name, label.score) for label in client.classify(b"picture").labels] == [("cat", 0.5)]
    assert len(client.detect(b"picture").boxes) == 1


def python_examples():
    text = (Path(__file__).parents[3] / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_readme_has_a_python_example():
    assert python_examples()


@pytest.mark.parametrize("example", python_examples())
def test_python_examples_of_the_readme_run(example, target, servicer, tmp_path, monkeypatch, capsys):
    for name in re.findall(r'"([\w./-]+\.(?:jpg|jpeg|png))"', example):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(MASK)
    monkeypatch.chdir(tmp_path)
    assert "localhost:50051" in example
    exec(compile(example.replace("localhost:50051", target), "README.md", "exec"), {})
    assert servicer.requests
    assert capsys.readouterr().out


def test_request_ids(client, servicer):
    client.classify(b"p", request_id="mine")
    client.classify(b"p")
    client.classify(b"p")
    ids = [metadata["x-request-id"] for metadata in servicer.metadata]
    assert ids[0] == "mine"
    assert len(set(ids)) == 3


def test_deadlines(target, servicer):
    with VisionClient(target) as client:
        client.classify(b"p")
        client.classify(b"p", timeout_seconds=100)
    with VisionClient(target, timeout_seconds=200) as client:
        client.classify(b"p")
    assert [round(remaining, -1) for remaining in servicer.remaining] == [30, 100, 200]


def test_large_messages_both_ways(client):
    picture = bytes(6 * 2**20)  # above gRPC's own 4 MiB
    assert client.segment(picture).reply.mask_png == picture


def test_failures_carry_the_details_of_the_server(client, servicer):
    servicer.fail_with = errors.QueueFull("the queue is full", metadata={"model": "tiny"}, retry_after_seconds=0.25)
    with pytest.raises(CallFailed, match="RESOURCE_EXHAUSTED QUEUE_FULL: the queue is full") as raised:
        client.classify(b"p")
    failure = raised.value
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.reason == "QUEUE_FULL"
    assert failure.message == "the queue is full"
    assert failure.metadata == {"model": "tiny"}
    assert failure.retry_after_seconds == 0.25
    assert failure.request_id == "echoed"


def test_failures_not_worth_repeating(client, servicer):
    servicer.fail_with = errors.ImageTruncated("cut")
    with pytest.raises(CallFailed) as raised:
        client.detect(b"p")
    assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.retry_after_seconds is None


@pytest.mark.parametrize(
    "trailers",
    [
        (),
        ((status.STATUS_DETAILS_KEY, b"\xff\xff no protobuf"),),
        ((status.STATUS_DETAILS_KEY, status_pb2.Status(details=[any_pb2.Any(type_url="x/y")]).SerializeToString()),),
    ],
    ids=["none", "garbage", "details of another kind"],
)
def test_failures_of_other_servers(client, servicer, trailers):
    servicer.fail_with = (grpc.StatusCode.PERMISSION_DENIED, trailers)
    with pytest.raises(CallFailed) as raised:
        client.segment(b"p", request_id="mine")
    failure = raised.value
    assert (failure.code, failure.reason, failure.message) == (grpc.StatusCode.PERMISSION_DENIED, "", "bare")
    assert failure.request_id == "mine"
    assert failure.metadata == {}


def test_no_server_listens():
    with VisionClient("127.0.0.1:1") as client, pytest.raises(CallFailed) as raised:
        client.classify(b"p")
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE
    assert raised.value.reason == ""


def test_wait_for_ready_waits_within_the_deadline():
    with (
        VisionClient("127.0.0.1:1", timeout_seconds=0.2, wait_for_ready=True) as client,
        pytest.raises(CallFailed) as raised,
    ):
        client.classify(b"p")
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    "target",
    [
        "localhost:1",
        "127.0.0.1:1",
        "127.1.2.3:1",
        "[::1]:1",
        "dns:///localhost:1",
        "dns:localhost:1",
        "unix:/a",
        "ipv6:[::1]:1",
        "ipv4:127.0.0.1:1,127.0.0.2:2",
    ],
)
def test_a_key_may_go_to_this_machine_without_tls(target):
    VisionClient(target, api_key="k").close()


@pytest.mark.parametrize(
    "target",
    [
        "example.org:1",
        "10.0.0.1:1",
        "[2001:db8::1]:1",
        "dns:///example.org:1",
        "localhost.example.org:1",
        "0.0.0.0:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "dns://127.0.0.1/example.org:1",
        "localhost:1,example.org:1",
    ],
)
def test_a_key_goes_to_another_machine_over_tls_only(target):
    with pytest.raises(ValueError, match="plain text") as raised:
        VisionClient(target, api_key="secret")
    assert "secret" not in str(raised.value)
    VisionClient(target, api_key="secret", allow_plaintext_key=True).close()
    VisionClient(target, api_key="secret", credentials=grpc.ssl_channel_credentials()).close()
    VisionClient(target).close()


@pytest.mark.parametrize("key", ["", "a b", "a\n", "\u043a"])
def test_a_key_that_no_header_can_hold_is_refused_at_once(key):
    with pytest.raises(ValueError, match="blanks or characters"):
        VisionClient(api_key=key)


def test_the_key_goes_with_every_call(target, servicer):
    with VisionClient(target, api_key="k") as client:
        client.classify(b"picture")
        client.classify(b"picture")
    assert [each["authorization"] for each in servicer.metadata] == ["Bearer k"] * 2


def test_a_call_says_in_its_metadata_what_it_asks_so_that_an_overloaded_server_need_not_read_it(servicer, client):
    client.classify(b"jpeg", model="tiny")
    client.detect(b"jpeg", priority=vision_pb2.PRIORITY_BATCH)
    client.classify(b"jpeg", model="pêche")
    client.list_models()
    hints = [
        {key: value for key, value in metadata.items() if key.startswith("mobilevision-")}
        for metadata in servicer.metadata
    ]
    assert hints == [
        {"mobilevision-model": "tiny"},
        {"mobilevision-model": "", "mobilevision-priority": "batch"},
        {},
        {},
    ]
