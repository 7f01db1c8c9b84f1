"""The three commands, through typer's runner and a small server."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import picture_files
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from mobilevision.cli import calls as commands
from service.core import errors
from service.frontends.grpc import status
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

WIDTH, HEIGHT = 64, 48
TRAILERS = (
    ("x-request-id", "id-1"),
    ("server-timing", "decode;dur=0.57, queue;dur=1.25, inference;dur=9"),
    ("mobilevision-batch-size", "4"),
)


class Servicer(vision_pb2_grpc.VisionServiceServicer):
    """Refuses what is no PNG, answers the rest with fixed results."""

    def __init__(self):
        self.weights = vision_pb2.WEIGHTS_STATE_OFFICIAL
        self.requests = []
        self.authorizations = []

    def _common(self, request, context):
        self.requests.append(request)
        self.authorizations.append(dict(context.invocation_metadata()).get("authorization"))
        if not request.image.startswith(b"\x89PNG"):
            error = errors.ImageFormatUnsupported("no picture this server reads")
            trailer = status.status_trailer(error, request_id="id-1")
            context.set_trailing_metadata((*TRAILERS[:1], trailer))
            context.abort(status.status_code(error), error.message)
        context.set_trailing_metadata(TRAILERS)
        return {
            "model": vision_pb2.ModelUsed(name=request.model or "tiny", version="1.0", weights=self.weights),
            "picture": vision_pb2.Picture(width=WIDTH, height=HEIGHT, format="PNG"),
        }

    def Classify(self, request, context):
        labels = [vision_pb2.Label(id=1, name="a [red]cat[/]", score=0.75)]
        return vision_pb2.ClassifyResponse(**self._common(request, context), labels=labels)

    def Detect(self, request, context):
        box = vision_pb2.Box(x_min=8, y_min=8, x_max=40, y_max=40)
        found = [vision_pb2.Detection(box=box, label=vision_pb2.Label(id=2, name="dog", score=0.5))]
        return vision_pb2.DetectResponse(**self._common(request, context), detections=found)

    def Segment(self, request, context):
        rle = request.mask_encoding == vision_pb2.MASK_ENCODING_COCO_RLE
        mask = picture_files.encoded(Image.fromarray(np.full((HEIGHT, WIDTH), 3, np.uint8)), "PNG")
        found = vision_pb2.SegmentedClass(id=3, name="sky", area_fraction=1.0, rle_counts=b"0PT2" if rle else b"")
        return vision_pb2.SegmentResponse(
            **self._common(request, context), classes=[found], mask_png=b"" if rle else mask
        )


@pytest.fixture
def servicer():
    return Servicer()


@pytest.fixture
def target(servicer):
    server = grpc.server(ThreadPoolExecutor(2))
    vision_pb2_grpc.add_VisionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(picture_files.PICTURES["png"])
    return file


@pytest.fixture
def run(target):
    app = typer.Typer()
    commands.register(app)
    runner = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"})

    def invoke(*arguments, server=target, stdin=None, env=None):
        return runner.invoke(app, [*map(str, arguments), "--server", server], input=stdin, env=env)

    return invoke


@pytest.mark.parametrize(("command", "found"), [("classify", "a [red]cat[/]"), ("detect", "dog"), ("segment", "sky")])
def test_table(run, picture, command, found):
    result = run(command, picture)
    assert result.exit_code == 0, result.output
    for text in (found, "tiny", "official", "64 x 48 PNG", "inference 9.0", "batch of 4"):
        assert text in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("command", ["classify", "detect", "segment"])
def test_random_weights_are_called_out(run, picture, servicer, command):
    servicer.weights = vision_pb2.WEIGHTS_STATE_RANDOM
    assert "this answer means nothing" in run(command, picture).stdout
    servicer.weights = vision_pb2.WEIGHTS_STATE_DEMO
    assert "weights: demo" in run(command, picture).stdout


def test_json_lines(run, picture):
    result = run("classify", picture, picture, "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 2
    assert lines[0]["image"] == str(picture)
    assert lines[0]["labels"] == [{"id": 1, "name": "a [red]cat[/]", "score": 0.75}]
    ran = {"module_sha256": "", "engine": "", "dtype": "", "device": ""}  # of a server that does not say
    assert lines[0]["model"] == {"name": "tiny", "version": "1.0", "weights": "WEIGHTS_STATE_OFFICIAL"} | ran
    assert lines[0]["timings_ms"] == {"decode": 0.57, "queue": 1.25, "inference": 9.0}
    assert lines[0]["batch_size"] == 4
    assert lines[0]["request_id"] == "id-1"


def test_json_masks(run, picture):
    png = json.loads(run("segment", picture, "--json").stdout)
    assert base64.b64decode(png["mask_png"]).startswith(b"\x89PNG")
    rle = json.loads(run("segment", picture, "--json", "--encoding", "rle").stdout)
    assert rle["classes"][0]["rle_counts"] == "0PT2"
    assert rle["mask_png"] == ""


def test_options_reach_the_server(run, picture, servicer):
    run("classify", picture, "--top-k", 3, "--model", "other")
    run("detect", picture, "--threshold", 0, "--max", 7)
    run("segment", picture, "--priority", "batch")
    image = picture.read_bytes()
    first, last = vision_pb2.PRIORITY_INTERACTIVE, vision_pb2.PRIORITY_BATCH
    assert servicer.requests == [
        vision_pb2.ClassifyRequest(model="other", image=image, top_k=3, priority=first),
        vision_pb2.DetectRequest(image=image, score_threshold=0, max_detections=7, priority=first),
        vision_pb2.SegmentRequest(image=image, mask_encoding=vision_pb2.MASK_ENCODING_PNG, priority=last),
    ]


@pytest.mark.parametrize("options", [["--top-k", 0], ["--top-k", 101], ["--timeout", 0], ["--priority", "vip"]])
def test_options_out_of_range_are_refused_before_any_call(run, picture, servicer, options):
    assert run("classify", picture, *options).exit_code == 2
    assert servicer.requests == []


def test_one_failure_does_not_stop_the_others(run, picture, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    result = run("classify", tmp_path / "missing.jpg", text, tmp_path, picture, "--json")
    assert result.exit_code == 1
    assert [json.loads(line)["image"] for line in result.stdout.splitlines()] == [str(picture)]
    missing, refused, folder = result.stderr.splitlines()
    assert "no such file" in missing
    assert "IMAGE_FORMAT_UNSUPPORTED: no picture this server reads (request id-1)" in refused
    assert "is a folder" in folder


def test_no_server(run, picture):
    result = run("classify", picture, server="127.0.0.1:1")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "start one with: mobilevision serve" in result.stderr
    assert "127.0.0.1:1" in result.stderr


def test_another_kind_of_server(run, picture):
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        result = run("classify", picture, server=f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()
    assert "another kind of server" in result.stderr


def test_stdin(run, servicer):
    result = run("classify", "-", "--json", stdin=picture_files.PICTURES["png"])
    assert json.loads(result.stdout)["image"] == "-"
    assert servicer.requests[0].image == picture_files.PICTURES["png"]
    assert run("classify", "-", "-").exit_code == 2


@pytest.mark.parametrize("command", ["classify", "detect", "segment"])
def test_out_writes_an_annotated_picture(run, picture, tmp_path, command):
    out = tmp_path / "annotated.jpg"
    result = run(command, picture, "--out", out)
    assert result.exit_code == 0, result.output
    assert "annotated.jpg" in result.stdout.replace("\n", "")
    with Image.open(out) as image:
        assert image.format == "JPEG"
        assert image.width >= WIDTH


def test_out_of_several_pictures_is_a_folder(run, picture, tmp_path):
    twin = tmp_path / "other" / picture.name
    twin.parent.mkdir()
    twin.write_bytes(picture.read_bytes())
    result = run("detect", picture, twin, "--out", tmp_path / "new" / "folder")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["picture-2.png", "picture.png"]


def test_out_that_cannot_be_written(run, picture, tmp_path):
    file = tmp_path / "file"
    file.write_text("here")
    assert run("detect", picture, picture, "--out", file).exit_code == 2
    result = run("detect", picture, "--out", tmp_path / "picture.xyz")
    assert result.exit_code == 1
    assert ".png" in result.stderr
    assert run("detect", picture, "--out", tmp_path / "missing" / "a.png").exit_code == 1
    assert run("segment", picture, "--encoding", "rle", "--out", tmp_path / "a.png").exit_code == 2


def test_the_key_comes_from_the_option_or_the_environment(run, picture, servicer):
    assert run("classify", picture, "--api-key", "k1").exit_code == 0
    assert run("detect", picture, env={"MOBILEVISION_API_KEY": "k2"}).exit_code == 0
    assert run("segment", picture, env={"MOBILEVISION_API_KEY": ""}).exit_code == 0
    assert servicer.authorizations == ["Bearer k1", "Bearer k2", None]


def test_a_key_is_not_sent_in_plain_text_to_another_machine(run, picture):
    result = run("classify", picture, "--api-key", "secret", server="example.org:1")
    assert result.exit_code == 2
    assert "--plaintext-key" in result.stderr
    assert "secret" not in result.output


def test_a_ca_that_cannot_be_read_is_wrong_usage(run, picture, tmp_path):
    result = run("classify", picture, "--ca", tmp_path / "none.pem")
    assert result.exit_code == 2
    assert "cannot be read" in " ".join(line.strip("│ ") for line in result.stderr.splitlines())
