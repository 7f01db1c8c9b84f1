import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from worker_archives import SIDE, ToyNetwork, split_archive, write_archive

from handlers import engine, openvino_network, probe, runtime
from handlers.archive import ModuleSpec
from handlers.contract.frame import Array
from handlers.engine import candidates
from handlers.errors import EngineUnfit, RuntimeLoadError
from handlers.execution import Direct
from handlers.options import LEAST_AGREEMENT, RuntimeOptions

# TorchScript is this project's format; torch deprecates it in favour of torch.export.
pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pixels() -> Array:
    return np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)


def load(archive: Path, **options) -> runtime.Runner:
    return runtime.load(archive, gpu_id=None, options=RuntimeOptions(threads=1, **options))


def test_auto_runs_the_network_in_openvino_and_answers_as_torchscript_does(tmp_path, pixels):
    archive = split_archive(tmp_path)
    fast, reference = load(archive), load(archive, engine="torchscript", dtype="float32")
    assert (fast.engine, fast.dtype_name, fast.refused) == ("openvino", "float32", ())
    assert (reference.engine, reference.refused) == ("torchscript", ())
    np.testing.assert_allclose(fast.run(pixels)["scores"], reference.run(pixels)["scores"], atol=1e-5)
    for rows in (pixels[:1], list(pixels), pixels[::2]):
        np.testing.assert_array_equal(fast.run(rows)["labels"], reference.run(rows)["labels"])


def test_an_engine_that_computes_something_else_is_never_served(tmp_path, monkeypatch, caplog, pixels):
    honest = openvino_network.OpenVinoModule.raw
    monkeypatch.setattr(
        openvino_network.OpenVinoModule, "raw", lambda self, x: tuple(raw * 1.1 for raw in honest(self, x))
    )
    archive = split_archive(tmp_path)
    with caplog.at_level(logging.WARNING):
        runner = load(archive)
    assert (runner.engine, runner.dtype_name, runner.refused) == ("torchscript", "float32", ("openvino/float32",))
    assert "openvino/float32 is not used: its raw outputs differ from the reference" in caplog.text
    expected = load(archive, engine="torchscript", dtype="float32").run(pixels)["scores"].copy()
    np.testing.assert_array_equal(runner.run(pixels)["scores"], expected)


@pytest.mark.parametrize("shape", [(3, 2), (1, 3)])
def test_outputs_of_another_shape_never_agree(shape):
    assert probe.difference([torch.ones(shape)], [torch.ones(1, 2)]) == float("inf")
    assert probe.difference([], [torch.ones(1, 2)]) == float("inf")


def test_outputs_that_are_not_finite_never_agree():
    assert probe.difference([torch.tensor([float("nan")])], [torch.tensor([0.0])]) == float("inf")


def test_a_task_without_a_measured_bound_is_refused():
    with pytest.raises(EngineUnfit):
        probe.check(
            lambda x: [x.float() + 1e-6], lambda x: [x.float() * 1.00001], task="other", dtype="float32",
            height_px=32, width_px=32,
        )  # fmt: skip


def test_probe_pictures_are_the_same_everywhere_and_differ_from_each_other():
    first, again = (probe.pictures(3, height_px=50, width_px=70) for _ in range(2))
    assert first.shape == (3, 50, 70, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_an_archive_without_the_parts_is_served_by_torchscript(tmp_path, pixels):
    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = ToyNetwork()

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.network(pixels.permute(0, 3, 1, 2) / 255.0)
            return logits, logits.to(torch.int32)

    module = torch.jit.script(Whole().eval())
    path = tmp_path / "whole.pt"
    torch.jit.save(module, path)
    runner = load(write_archive(tmp_path / "archive", path.read_bytes()))
    assert (runner.engine, runner.refused) == ("torchscript", ("openvino/float32",))
    assert runner.run(pixels)["scores"].shape == (5, 2)


def test_without_openvino_everything_serves_as_before(tmp_path, monkeypatch, pixels):
    monkeypatch.setitem(sys.modules, "openvino", None)  # an import of it fails
    archive = split_archive(tmp_path)
    runner = load(archive)
    assert (runner.engine, runner.refused) == ("torchscript", ())
    assert runner.run(pixels)["scores"].shape == (5, 2)
    with pytest.raises(RuntimeLoadError, match=r"mobilevision\[openvino\]"):
        load(archive, engine="openvino")


class NoPlugin:
    """An OpenVINO that has no code for this CPU."""

    get_version = staticmethod(lambda: "none")

    @staticmethod
    def Core():
        raise RuntimeError("no CPU plug-in")


def not_importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)


def not_startable(monkeypatch):
    monkeypatch.setattr(openvino_network, "_openvino", lambda: NoPlugin)
    monkeypatch.setattr(openvino_network, "_core", openvino_network._core.__wrapped__)


@pytest.mark.parametrize("name", ["auto", "openvino"])
@pytest.mark.parametrize(
    ("broken", "reason"), [(not_importable, "cannot be imported"), (not_startable, "no CPU plug-in")]
)
def test_an_openvino_that_does_not_work_here_is_refused(tmp_path, monkeypatch, caplog, pixels, name, broken, reason):
    monkeypatch.setattr(openvino_network, "installed", lambda: True)
    broken(monkeypatch)
    with caplog.at_level(logging.WARNING):
        runner = load(split_archive(tmp_path), engine=name)
    assert (runner.engine, runner.refused) == ("torchscript", ("openvino/float32",))
    assert reason in caplog.text
    assert runner.run(pixels)["scores"].shape == (5, 2)


LOADS = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from handlers import runtime
archive = Path(sys.argv[1])
def engine(name):
    options = runtime.RuntimeOptions(threads=1, dtype="float32", engine=name)
    return runtime.load(archive, gpu_id=None, options=options).engine
assert engine("torchscript") == "torchscript"
assert not [name for name in sys.modules if name.partition(".")[0] == "openvino"]
assert engine("openvino") == "openvino"
assert sys.modules["openvino_telemetry"] is None
"""


def test_openvino_is_imported_only_where_it_is_chosen_and_calls_nobody(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    archive = split_archive(tmp_path / "archive")
    command = [sys.executable, "-c", LOADS, str(archive)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "HOME": str(home)}, timeout=120)
    assert list(home.iterdir()) == []  # where its telemetry keeps who it is


SIGNALLED = """
import gc, os, signal, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from handlers import runtime
came = []
signal.signal(signal.SIGTERM, lambda *_: came.append(1))
folder = Path(sys.argv[2])
options = runtime.RuntimeOptions(threads=1, dtype="float32", engine="openvino", calibration_dir=folder)
loaded = [runtime.load(Path(sys.argv[1]), gpu_id=None, options=options) for _ in range(3)]
while loaded:  # the first one ends first
    del loaded[0]
    gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
assert came
"""


def test_a_process_that_loaded_several_modules_can_still_handle_signals(tmp_path):
    archive, kept = split_archive(tmp_path / "archive"), tmp_path / "kept"
    kept.mkdir()
    command = [sys.executable, "-c", SIGNALLED, str(archive), str(kept)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=120)


def test_every_number_of_pictures_that_runs_at_once_is_warmed(tmp_path, monkeypatch):
    sizes = []
    honest = openvino_network.OpenVinoModule.__call__

    def call(self, pixels):
        sizes.append(len(pixels))
        return honest(self, pixels)

    monkeypatch.setattr(openvino_network.OpenVinoModule, "__call__", call)
    monkeypatch.setattr(Direct, "calibrate", lambda self: setattr(self, "micro_batch", 5))
    runner = load(split_archive(tmp_path))
    assert set(sizes) == {1, 2, 3, 4, 5}
    warmed = set(sizes)
    for count in range(1, 9):
        runner.run(np.zeros((count, SIDE, SIDE, 3), np.uint8))
    assert set(sizes) == warmed


def test_a_compiled_network_is_kept_for_the_next_worker(tmp_path, monkeypatch, pixels):
    converted = []
    honest = openvino_network.convert

    def convert(*arguments, **options):
        converted.append(1)
        return honest(*arguments, **options)

    monkeypatch.setattr(openvino_network, "convert", convert)
    archive, folder = split_archive(tmp_path / "archive"), tmp_path / "kept"
    folder.mkdir()
    first, second = (load(archive, calibration_dir=folder) for _ in range(2))
    assert len(converted) == 1
    expected = first.run(pixels)["scores"].copy()
    np.testing.assert_array_equal(second.run(pixels)["scores"], expected)
    (kept,) = (path for path in folder.glob("compiled-*") if not path.suffix)
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    third = load(archive, calibration_dir=folder)
    assert len(converted) == 2
    assert third.engine == "openvino"
    np.testing.assert_array_equal(third.run(pixels)["scores"], expected)


def test_its_threads_are_those_of_the_worker(tmp_path):
    archive = split_archive(tmp_path)
    runner = runtime.load(archive, gpu_id=None, options=RuntimeOptions(threads=2, engine="openvino"))
    compiled = runner._execution._module._request.get_compiled_model()
    wanted = {"INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    assert {name: compiled.get_property(name) for name in wanted} == wanted


def test_a_lack_of_memory_reads_as_torchs():
    class Small:
        def infer(self, inputs, share_inputs):
            raise MemoryError("std::bad_alloc")

    module = openvino_network.OpenVinoModule(lambda x: x.permute(0, 3, 1, 2).float(), Small(), None)
    with pytest.raises(RuntimeError, match="out of memory"):
        module(torch.zeros(1, 4, 4, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("options", "agreement", "installed", "amx", "avx", "expected"),
    [
        ({}, 1.0, True, False, True, ["openvino/bfloat16", "openvino/float32", "torchscript/float32"]),
        ({}, LEAST_AGREEMENT, True, False, False, ["openvino/float32", "torchscript/float32"]),
        ({}, LEAST_AGREEMENT - 0.01, True, True, True, ["openvino/float32", "torchscript/float32"]),
        ({}, 1.0, True, True, True, ["openvino/bfloat16", "torchscript/bfloat16"]),
        ({}, 1.0, False, True, True, ["torchscript/bfloat16"]),
        ({}, 1.0, False, False, True, ["torchscript/float32"]),
        ({"dtype": "float32"}, 1.0, True, True, True, ["openvino/float32", "torchscript/float32"]),
        ({"dtype": "bfloat16"}, 0.0, True, False, False, ["openvino/bfloat16", "torchscript/bfloat16"]),
        ({"engine": "torchscript"}, 1.0, True, False, True, ["torchscript/float32"]),
        ({"engine": "torchscript", "dtype": "float16"}, 1.0, True, False, True, ["torchscript/float16"]),
        ({"engine": "openvino"}, 1.0, True, True, True,
         ["openvino/bfloat16", "openvino/float32", "torchscript/float32"]),
    ],
)  # fmt: skip
def test_the_fastest_pair_that_the_card_allows_comes_first(
    monkeypatch, options, agreement, installed, amx, avx, expected
):
    monkeypatch.setattr(openvino_network, "installed", lambda: installed)
    monkeypatch.setattr(engine, "cpu_has_fast_bfloat16", lambda: amx)
    monkeypatch.setattr(engine, "cpu_has_bfloat16", lambda: avx)
    spec = ModuleSpec(SIDE, SIDE, 8, (), "", "classify", agreement)
    assert [str(pair) for pair in candidates(RuntimeOptions(**options), spec, CPU)] == expected


def test_a_gpu_runs_torchscript_in_half_precision():
    spec = ModuleSpec(SIDE, SIDE, 8, (), "", "classify", 0.0)
    assert [str(pair) for pair in candidates(RuntimeOptions(), spec, GPU)] == ["torchscript/float16"]
    assert [str(pair) for pair in candidates(RuntimeOptions(dtype="bfloat16"), spec, GPU)] == ["torchscript/bfloat16"]
    with pytest.raises(RuntimeLoadError, match="CPUs"):
        list(candidates(RuntimeOptions(engine="openvino"), spec, GPU))


@pytest.mark.parametrize("bfloat16", [None, {"agreement": 0.5}])
def test_what_a_card_says_of_bfloat16_is_read(tmp_path, bfloat16):
    split_archive(tmp_path, agreement=None if bfloat16 is None else bfloat16["agreement"])
    assert ModuleSpec.read(tmp_path).bfloat16_agreement == (0.5 if bfloat16 else None)
