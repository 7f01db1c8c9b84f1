"""The command `served`, through typer's runner and a small server."""

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from typer.testing import CliRunner

from mobilevision.cli.main import app
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

TOLD = vision_pb2.Model(
    name="tiny",
    version="1.2",
    task=vision_pb2.TASK_CLASSIFY,
    weights=vision_pb2.WEIGHTS_STATE_DEMO,
    ready=True,
    is_default=True,
    engine="torchserve/openvino",
    dtype="bfloat16",
    device="cpu",
)
SILENT = vision_pb2.Model(name="new", version="1.0", task=vision_pb2.TASK_DETECT, engine="torchserve")


class Servicer(vision_pb2_grpc.VisionServiceServicer):
    def ListModels(self, request, context):
        return vision_pb2.ListModelsResponse(models=[SILENT, TOLD])

    def GetModel(self, request, context):
        if request.name != TOLD.name:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such model")
        described = vision_pb2.Model(labels=["cat"])
        described.MergeFrom(TOLD)
        return vision_pb2.GetModelResponse(model=described)


@pytest.fixture
def target():
    server = grpc.server(ThreadPoolExecutor(2))
    vision_pb2_grpc.add_VisionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def run(*arguments):
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["served", *arguments])


def test_the_table_has_what_computes_each_model(target):
    done = run("--server", target)
    assert done.exit_code == 0, done.stderr
    head, *rows = (line.split() for line in done.stdout.splitlines())
    assert head == ["model", "version", "task", "weights", "engine", "dtype", "device", "ready"]
    assert rows == [
        ["new", "1.0", "detect", "unspecified", "torchserve", "-", "-", "no"],
        ["tiny", "1.2", "classify", "demo", "torchserve/openvino", "bfloat16", "cpu", "yes"],
    ]


def test_one_model_as_json_has_its_labels(target):
    done = run("tiny", "--server", target, "--json")
    (line,) = done.stdout.splitlines()
    described = json.loads(line)
    assert (described["engine"], described["dtype"], described["device"]) == ("torchserve/openvino", "bfloat16", "cpu")
    assert described["labels"] == ["cat"]


@pytest.mark.parametrize("arguments", [("none", "--server", "TARGET"), ("--server", "127.0.0.1:1")])
def test_a_failure_is_one_line_and_exit_code_1(target, arguments):
    done = run(*(target if argument == "TARGET" else argument for argument in arguments))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
