"""`mobilevision serve` as users run it: a process, real models in a real TorchServe, and clients in other languages."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import listeners
import numpy as np
import psutil
import pytest
from fakes import read
from PIL import Image
from serving import ROOT, Served, refusals, served

from mobilevision.client import CallFailed, VisionClient
from service.pb.mobilevision.v1 import vision_pb2

pytestmark = pytest.mark.integration
MODEL = "mobilevit_xxs_classify"
BIN = Path(sys.executable).parent
PICTURES = ("astronaut.jpg", "chelsea.jpg", "coffee.jpg", "rocket.jpg")


def http(server: Served, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.http}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("name", PICTURES)
def test_photographs_are_answered_by_all_three_calls(server: Served, name: str) -> None:
    image = read(name)
    width, height = Image.open(io.BytesIO(image)).size
    with VisionClient(server.grpc) as client:
        classified = client.classify(image, top_k=7)
        detected = client.detect(image, score_threshold=0.01)
        segmented = client.segment(image)
    assert len(classified.reply.labels) == 7
    scores = [label.score for label in classified.reply.labels]
    assert scores == sorted(scores, reverse=True)
    assert 0 < sum(scores) <= 1.0001
    assert (classified.reply.picture.width, classified.reply.picture.height) == (width, height)
    assert classified.reply.model.weights == vision_pb2.WEIGHTS_STATE_RANDOM
    for detection in detected.reply.detections:
        assert 0 <= detection.box.x_min < detection.box.x_max <= width
        assert 0 <= detection.box.y_min < detection.box.y_max <= height
    mask = np.asarray(Image.open(io.BytesIO(segmented.reply.mask_png)))
    assert mask.shape == (height, width)
    present = {c.id: c.area_fraction for c in segmented.reply.classes}
    assert sum(present.values()) == pytest.approx(1.0, abs=1e-3)
    for label, fraction in present.items():
        assert (mask == label).mean() == pytest.approx(fraction, abs=1e-3)
    assert set(classified.stage_ms) == {"decode", "queue", "transport", "inference", "results"}


def test_the_server_listens_only_where_the_security_page_says(server: Served) -> None:
    """Compare the table of docs/security.md with the sockets of all processes of the server."""
    section = (ROOT / "docs" / "security.md").read_text().partition("## What listens where")[2].partition("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    run = next(Path(part).parent for part in server.java().cmdline() if part.endswith("config.properties"))
    known = {"grpc_host:grpc_port": re.escape(server.grpc), "http_host:http_port": re.escape(server.http)}
    known["127.0.0.1:any"] = r"127\.0\.0\.1:\d+"
    patterns = {}
    for what, process, address, _ in rows[2:]:
        path = re.escape(address).replace("RUN", re.escape(str(run))).replace("MODEL", r"/.*/\w+")
        patterns[what] = process, known.get(address, re.sub("N$", r"\\d+", path))
    found = listeners.of([psutil.Process(server.process.pid), *server.descendants()])
    seen = set()
    for listener in found:
        matching = [
            what
            for what, (process, pattern) in patterns.items()
            if process == listener.process and re.fullmatch(pattern, listener.address)
        ]
        assert matching, f"{listener} is not in docs/security.md"
        seen |= set(matching)
    assert seen == patterns.keys()
    assert sum(listener.is_tcp for listener in found) == sum(":" in address for _, _, address, _ in rows[2:])


def test_the_same_picture_has_the_same_answer_alone_and_in_a_batch(server: Served) -> None:
    images = [read(name) for name in PICTURES] * 8
    with VisionClient(server.grpc) as client:
        alone = [client.classify(image).reply for image in images[:4]]
        with ThreadPoolExecutor(32) as pool:
            together = list(pool.map(client.classify, images))
    assert max(result.batch_size for result in together) > 1
    for index, result in enumerate(together):
        expected = alone[index % 4]
        assert [label.id for label in result.reply.labels][:1] == [label.id for label in expected.labels][:1]
        got = np.array([label.score for label in result.reply.labels])
        np.testing.assert_allclose(got, [label.score for label in expected.labels], rtol=0.05, atol=1e-3)


def test_a_reflection_client_lists_and_calls_the_service(server: Served) -> None:
    base = [str(BIN / "buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    methods = subprocess.run(
        [*base, "--list-methods", f"http://{server.grpc}"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    for method in ("Classify", "Detect", "Segment", "ListModels", "GetModel"):
        assert f"mobilevision.v1.VisionService/{method}" in methods
    request = json.dumps({"image": base64.b64encode(read("chelsea.jpg")).decode(), "topK": 3})
    reply = subprocess.run(
        [*base, "--data", "@-", f"http://{server.grpc}/mobilevision.v1.VisionService/Classify"],
        check=True,
        input=request,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert len(json.loads(reply)["labels"]) == 3


def test_a_node_client_made_from_the_proto_classifies_a_picture(server: Served) -> None:
    folder = ROOT / "build" / "node_client"
    source = Path(__file__).parent / "node_client"
    shutil.copytree(source, folder, dirs_exist_ok=True)
    if not (folder / "node_modules" / "@grpc" / "grpc-js").is_dir():
        command = [str(BIN / "npm"), "install", "--no-audit", "--no-fund", "--silent", "--no-package-lock"]
        installed = subprocess.run(command, check=False, cwd=folder, timeout=240, capture_output=True, text=True)
        if installed.returncode != 0:
            pytest.skip(f"the npm registry cannot be reached from here: {installed.stderr[-300:]}")
    command = [
        str(BIN / "node"),
        "classify.mjs",
        str(ROOT / "proto"),
        server.grpc,
        str(ROOT / "docs/pictures/chelsea.jpg"),
    ]
    answered = subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True, timeout=60)
    reply = json.loads(answered.stdout)
    with VisionClient(server.grpc) as client:
        expected = client.classify(read("chelsea.jpg")).reply
    assert [label["name"] for label in reply["labels"]] == [label.name for label in expected.labels]
    refused = subprocess.run(
        [*command, "mobilevit_xxs_clasify"], check=False, cwd=folder, capture_output=True, text=True
    )
    assert json.loads(refused.stdout)["code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert "mobilevit_xxs_classify" in refused.stdout


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian package: prometheus)")
def test_promtool_accepts_the_metrics(server: Served) -> None:
    with VisionClient(server.grpc) as client:
        client.classify(read("coffee.jpg"))
    page = http(server, "/metrics")[1]
    checked = subprocess.run(
        ["promtool", "check", "metrics"], check=False, input=page, capture_output=True, text=True, timeout=60
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_every_log_line_is_json_and_carries_the_request_id(server: Served) -> None:
    with VisionClient(server.grpc) as client:
        client.classify(read("coffee.jpg"), request_id="find-me-1")
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    mine = [line for line in lines if line.get("request_id") == "find-me-1"]
    assert [(line["method"], line["code"], line["model"]) for line in mine] == [
        ("Classify", "OK", "mobilevit_xxs_classify")
    ]


def test_the_command_line_answers_and_draws(server: Served, tmp_path: Path) -> None:
    for task in ("classify", "detect", "segment"):
        out = tmp_path / f"{task}.png"
        command = [sys.executable, "-m", "mobilevision", task, "docs/pictures/chelsea.jpg", "--server", server.grpc]
        shown = subprocess.run(
            [*command, "--out", str(out), "--json"], check=True, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        json.loads(shown.stdout)
        with Image.open(out) as drawn:
            assert drawn.size[0] >= 451
    wrong = tmp_path / "notes.txt"
    wrong.write_text("not a picture")
    command = [sys.executable, "-m", "mobilevision", "classify", str(wrong), "--server", server.grpc]
    refused = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "IMAGE_FORMAT_UNSUPPORTED" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_taken_port_is_reported_at_once(server: Served) -> None:
    port = server.grpc.rpartition(":")[2]
    command = [sys.executable, "-m", "service", "serve", "--archives", str(server.archives), "--grpc-port", port]
    refused = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert f"port {port}" in refused.stderr
    assert "Traceback" not in refused.stderr


def _wait(condition, seconds: float) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "waited too long"
        time.sleep(0.05)
    return time.monotonic() - started


@pytest.fixture(scope="module")
def disturbed(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A second server, for tests that kill parts of it and wait until it is ready again."""
    folder = tmp_path_factory.mktemp("disturbed")
    with served(archives, folder, MODEL, MOBILEVISION_RECORDING_DIR=str(folder / "calls")) as running:
        yield running


def test_a_recorded_call_is_replayed_with_the_same_bits(disturbed: Served) -> None:
    folder = disturbed.log.parent / "calls"
    with VisionClient(disturbed.grpc) as client:
        used = client.classify(read("chelsea.jpg"), top_k=100, request_id="recorded").reply.model
    assert (used.engine.partition("/")[0], used.device) == ("torchserve", "cpu")
    assert used.engine.partition("/")[2] in {"torchscript", "openvino"}
    assert used.dtype in {"float32", "bfloat16"}
    end = time.monotonic() + 60
    while not list(folder.glob("*.call")):
        assert time.monotonic() < end, "the call was not recorded"
        time.sleep(0.05)
    command = [str(BIN / "mobilevision"), "replay", "recorded", "--recording", str(folder), "--server", disturbed.grpc]
    replayed = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (replayed.returncode, replayed.stdout) == (0, "the outcome is the same, bit for bit\n"), replayed.stderr


def test_two_instances_run_side_by_side(server: Served, disturbed: Served) -> None:
    for each in (server, disturbed):
        with VisionClient(each.grpc) as client:
            assert client.classify(read("rocket.jpg")).reply.labels


def test_a_killed_torchserve_is_unavailable_then_comes_back_by_itself(disturbed: Served) -> None:
    image = read("chelsea.jpg")
    restarts = disturbed.metric("worker_restarts_total")
    with VisionClient(disturbed.grpc) as client:
        client.classify(image)
        disturbed.java().kill()
        codes = []

        def not_ready() -> bool:
            try:
                client.classify(image, timeout_seconds=5)
            except CallFailed as error:
                codes.append(error.code)
            return http(disturbed, "/readyz")[0] == 503

        _wait(not_ready, 10)
        with pytest.raises(CallFailed) as raised:
            client.classify(image, timeout_seconds=5)
        codes.append(raised.value.code)
        assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
        assert http(disturbed, "/livez")[0] == 200
        _wait(lambda: http(disturbed, "/readyz")[0] == 200, 60)
        client.classify(image)
        assert disturbed.metric("worker_restarts_total") == restarts + 1


def test_a_killed_worker_costs_no_call_that_can_wait(disturbed: Served) -> None:
    image = read("chelsea.jpg")
    with VisionClient(disturbed.grpc) as client:
        client.classify(image)
        worker = next(p for p in disturbed.descendants() if "model_service_worker" in " ".join(p.cmdline()))
        worker.kill()

        def answered() -> bool:
            try:
                client.classify(image, timeout_seconds=30)
            except CallFailed as error:
                assert error.code is grpc.StatusCode.UNAVAILABLE
                return False
            return True

        _wait(answered, 60)
        _wait(lambda: http(disturbed, "/readyz")[0] == 200, 30)


def test_sigterm_drains_and_leaves_nothing_behind(archives: Path, tmp_path: Path) -> None:
    with served(archives, tmp_path, MODEL) as server:
        started = server.descendants()
        statuses: list[int] = []
        refused = refusals(server.grpc, read("chelsea.jpg"), lambda: statuses.append(server.stop()))
        assert statuses == [0]
        # Every accepted call was answered. Every caller was then refused with SHUTTING_DOWN, or found the port closed
        # when its next call came late.
        assert len(refused) == 8
        assert set(refused) <= {"UNAVAILABLE SHUTTING_DOWN", "UNAVAILABLE "}
        assert "UNAVAILABLE SHUTTING_DOWN" in refused
        logged = [json.loads(line) for line in server.log.read_text().splitlines()]
        assert {line["reason"] for line in logged if "reason" in line} == {"SHUTTING_DOWN"}
        assert not psutil.wait_procs(started, timeout=10)[1]


def test_a_killed_gateway_takes_torchserve_along(archives: Path, tmp_path: Path) -> None:
    with served(archives, tmp_path, MODEL) as server:
        started = server.descendants()
        assert started
        server.process.kill()
        server.process.wait()
        assert not psutil.wait_procs(started, timeout=15)[1]
