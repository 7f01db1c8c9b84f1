import hashlib
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handlers import graphs, runtime
from handlers.execution import SIZES
from handlers.runtime import (
    BatchError,
    DeviceLost,
    ModuleRunError,
    ModuleSpec,
    Runner,
    RuntimeLoadError,
    RuntimeOptions,
    TensorSpec,
)
from model_store import assemble, export, zoo
from model_store.card import InputSize

# TorchScript is this project's format; torch deprecates it in favour of torch.export.
pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning")

SIDE = 64
OUTPUTS = [
    {"name": "scores", "dtype": "float32", "shape": [2]},
    {"name": "labels", "dtype": "int32", "shape": [2]},
]
FLOAT32 = RuntimeOptions(dtype="float32", threads=1)


class Toy(torch.nn.Module):
    """Everything that makes the executor specialise: convolution, attention, elementwise chains, a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, stride=4)
        self.norm = torch.nn.BatchNorm2d(16)
        self.qkv = torch.nn.Linear(16, 48)
        self.head = torch.nn.Linear(16, 2)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = pixels.permute(0, 3, 1, 2).to(self.stem.weight.dtype) / 255.0
        x = torch.nn.functional.silu(self.norm(self.stem(x)))
        t = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(t).chunk(3, -1)
        t = t + torch.softmax(q @ k.transpose(1, 2) * 0.25, -1) @ v * torch.sigmoid(t)
        logits = self.head(t.mean(1))
        if bool((logits > 1e6).any()):
            logits = logits * 0.0
        scores, labels = torch.softmax(logits.float(), -1).sort(descending=True)
        return scores, labels.to(torch.int32)


def write_archive(directory, module_bytes, *, side, max_batch, outputs):
    card = {
        "input": {"height": side, "width": side},
        "max_batch": max_batch,
        "outputs": outputs,
        "module_sha256": hashlib.sha256(module_bytes).hexdigest(),
    }
    (directory / "model.pt").write_bytes(module_bytes)
    (directory / "card.json").write_text(json.dumps(card))
    return directory


def unpack_archive(directory, *, max_batch=8, outputs=OUTPUTS):
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Toy().eval()), buffer)
    return write_archive(directory, buffer.getvalue(), side=SIDE, max_batch=max_batch, outputs=outputs)


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)


def test_a_loaded_runner_answers_like_the_module(tmp_path, pixels):
    runner = runtime.load(unpack_archive(tmp_path), gpu_id=None, options=FLOAT32)
    answer = runner.run(pixels)
    torch.manual_seed(0)
    with torch.inference_mode():
        scores, labels = Toy().eval()(torch.from_numpy(pixels))
    np.testing.assert_allclose(answer["scores"], scores.numpy(), atol=1e-5)
    np.testing.assert_array_equal(answer["labels"], labels.numpy())
    assert (answer["scores"].dtype, answer["labels"].dtype) == (np.float32, np.int32)
    assert runner.dtype_name == "float32"


def test_rows_answer_like_one_array(tmp_path, pixels):
    runner = runtime.load(unpack_archive(tmp_path), gpu_id=None, options=FLOAT32)
    scores = runner.run(pixels)["scores"].copy()
    pixels.flags.writeable = False
    for rows in (list(pixels), tuple(pixels), pixels, pixels.repeat(2, axis=0)[::2]):
        np.testing.assert_array_equal(runner.run(rows)["scores"], scores)
    np.testing.assert_allclose(runner.run([pixels[3], pixels[1]])["scores"], scores[[3, 1]], atol=1e-6)


def test_bfloat16_can_be_forced_and_outputs_stay_float32(tmp_path, pixels):
    runner = runtime.load(unpack_archive(tmp_path), gpu_id=None, options=RuntimeOptions(dtype="bfloat16", threads=1))
    exact = runtime.load(tmp_path, gpu_id=None, options=FLOAT32)
    assert runner.dtype_name == "bfloat16"
    np.testing.assert_allclose(runner.run(pixels)["scores"], exact.run(pixels)["scores"], atol=0.02)


def test_an_altered_module_is_refused(tmp_path):
    unpack_archive(tmp_path)
    with (tmp_path / "model.pt").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RuntimeLoadError, match="altered or damaged"):
        runtime.load(tmp_path, gpu_id=None, options=FLOAT32)


@pytest.mark.parametrize("card", ["", "{}", '{"input": 3}', "[]"])
def test_a_card_that_cannot_be_read_is_refused(tmp_path, card):
    (tmp_path / "card.json").write_text(card)
    with pytest.raises(RuntimeLoadError, match="card"):
        runtime.load(tmp_path, gpu_id=None, options=FLOAT32)


@pytest.mark.parametrize(
    "outputs",
    [
        OUTPUTS[:1],
        [{**OUTPUTS[0], "shape": [3]}, OUTPUTS[1]],
        [{**OUTPUTS[0], "dtype": "uint8"}, OUTPUTS[1]],
    ],
)
def test_a_module_that_breaks_its_card_never_becomes_ready(tmp_path, outputs):
    with pytest.raises(RuntimeLoadError, match="what its card says"):
        runtime.load(unpack_archive(tmp_path, outputs=outputs), gpu_id=None, options=FLOAT32)


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, SIDE, SIDE, 3), np.float32),
        np.zeros((SIDE, SIDE, 3), np.uint8),
        np.zeros((1, SIDE, SIDE + 1, 3), np.uint8),
        np.zeros((1, 3, SIDE, SIDE), np.uint8),
        np.zeros((0, SIDE, SIDE, 3), np.uint8),
        np.zeros((9, SIDE, SIDE, 3), np.uint8),
        [],
        [np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE, 3), np.float32)],
        [np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE + 1, 3), np.uint8)],
        [np.zeros((SIDE, SIDE, 3), np.uint8)] * 9,
    ],
)
def test_a_batch_that_does_not_fit_is_refused(tmp_path, batch):
    runner = runtime.load(unpack_archive(tmp_path), gpu_id=None, options=FLOAT32)
    with pytest.raises(BatchError):
        runner.run(batch)


def compiles_nothing(load, batches):
    """The first 50 requests at each size, in CPU time of this thread: TorchScript compiles here.

    A compilation comes at the same request after every load, a disturbance by other programs does not: the quickest
    of three loads counts for each request.
    """
    loads = []
    for _ in range(3):
        runner, seconds = load(), []
        for batch in batches:
            pixels = np.zeros((batch, runner.spec.height_px, runner.spec.width_px, 3), np.uint8)
            for _ in range(50):
                started = time.thread_time()
                runner.run(pixels)
                seconds.append(time.thread_time() - started)
        loads.append(seconds)
    quickest = np.min(loads, axis=0).reshape(len(batches), 50)
    worst = quickest.max(axis=1) / np.median(quickest, axis=1)
    assert worst.max() < 3, dict(zip(batches, worst, strict=True))


def test_no_request_after_ready_pays_a_compilation(tmp_path):
    unpack_archive(tmp_path, max_batch=64)
    compiles_nothing(lambda: runtime.load(tmp_path, gpu_id=None, options=FLOAT32), SIZES)


@pytest.mark.parametrize(
    "batches",
    [(1, 2, 4, 8), pytest.param(range(1, 17), marks=pytest.mark.exhaustive)],
    ids=["powers", "all"],
)
def test_no_request_after_ready_pays_a_compilation_of_a_real_model(tmp_path, batches):
    side = 64
    entry = replace(zoo.get("mobilevit_xxs_classify"), input=InputSize(height=side, width=side))
    torch.manual_seed(0)
    module = export.save(export.script(export.served(entry, assemble.build(entry).eval())))
    outputs = [{"name": n, "dtype": d, "shape": [100]} for n, d in (("scores", "float32"), ("labels", "int32"))]
    write_archive(tmp_path, module, side=side, max_batch=16, outputs=outputs)
    compiles_nothing(lambda: runtime.load(tmp_path, gpu_id=None, options=RuntimeOptions(threads=1)), batches)


def test_options_come_from_the_environment():
    assert RuntimeOptions.from_environment({}) == RuntimeOptions("auto", None, None)
    given = {"MOBILEVISION_DTYPE": "bfloat16", "MOBILEVISION_WORKER_THREADS": "3", "MOBILEVISION_SHM_DIR": "/shm"}
    assert RuntimeOptions.from_environment(given) == RuntimeOptions("bfloat16", 3, Path("/shm"))


@pytest.mark.parametrize(
    "given",
    [{"MOBILEVISION_DTYPE": "int8"}, {"MOBILEVISION_WORKER_THREADS": "0"}, {"MOBILEVISION_WORKER_THREADS": "x"}],
)
def test_an_option_out_of_bounds_names_itself(given):
    with pytest.raises(RuntimeLoadError, match=next(iter(given))):
        RuntimeOptions.from_environment(given)


def test_auto_is_half_precision_on_a_gpu_and_what_the_cpu_does_in_hardware(monkeypatch):
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(runtime, "cpu_has_fast_bfloat16", lambda fast=fast: fast)
        assert runtime.choose_dtype("auto", torch.device("cpu")) is expected
        assert runtime.choose_dtype("auto", torch.device("cuda", 0)) is torch.float16
    assert runtime.choose_dtype("float16", torch.device("cpu")) is torch.float16


class Failing:
    """An execution whose GPU raises."""

    def run(self, rows):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")


@pytest.mark.parametrize(("works", "raised"), [(True, ModuleRunError), (False, DeviceLost)])
def test_a_failure_on_a_gpu_is_told_from_a_gpu_that_is_lost(monkeypatch, works, raised):
    monkeypatch.setattr(graphs, "context_works", lambda device: works)
    spec = ModuleSpec(SIDE, SIDE, 1, (TensorSpec("scores", "float32", (2,)),), "")
    runner = Runner(spec, Failing(), device=torch.device("cuda", 0), dtype=torch.float16)
    with pytest.raises(raised):
        runner.run(np.zeros((1, SIDE, SIDE, 3), np.uint8))
