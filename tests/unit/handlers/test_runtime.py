import hashlib
import io
import json
import math
import os
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from handlers import runtime
from handlers.runtime import BatchError, ModuleSpec, Runner, RuntimeLoadError, RuntimeOptions, TensorSpec

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


def unpack_archive(directory, *, max_batch=8, outputs=OUTPUTS):
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Toy().eval()), buffer)
    card = {
        "input": {"height": SIDE, "width": SIDE},
        "max_batch": max_batch,
        "outputs": outputs,
        "module_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    (directory / "model.pt").write_bytes(buffer.getvalue())
    (directory / "card.json").write_text(json.dumps(card))
    return directory


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


def test_padding_to_a_bucket_leaves_the_rows_alone(tmp_path, pixels):
    plain = runtime.load(unpack_archive(tmp_path), gpu_id=None, options=FLOAT32)
    module = torch.jit.load(str(tmp_path / "model.pt"))
    spec = ModuleSpec.read(tmp_path / "card.json")
    padded = Runner(module, spec, device=torch.device("cpu"), dtype=torch.float32, pad_to_bucket=True)
    assert padded.buckets == (1, 2, 4, 8)
    answer = padded.run(pixels)
    assert answer["scores"].shape == (5, 2)
    np.testing.assert_allclose(answer["scores"], plain.run(pixels)["scores"], atol=1e-5)


@pytest.mark.parametrize("pad_to_bucket", [False, True])
def test_rows_that_lie_apart_give_the_bits_of_a_batch(tmp_path, pixels, pad_to_bucket):
    unpack_archive(tmp_path)
    module, spec = torch.jit.load(str(tmp_path / "model.pt")), ModuleSpec.read(tmp_path / "card.json")
    runner = Runner(module, spec, device=torch.device("cpu"), dtype=torch.float32, pad_to_bucket=pad_to_bucket)
    rows = [row.copy() for row in pixels]
    rows[1].setflags(write=False)  # as the worker's view of shared memory
    together, apart = runner.run(pixels), runner.run(rows)
    assert {n: a.tobytes() for n, a in together.items()} == {n: a.tobytes() for n, a in apart.items()}
    with pytest.raises(BatchError, match="uint8"):
        runner.run([rows[0], rows[1][1:]])


def test_a_read_only_batch_is_accepted(tmp_path, pixels):
    runner = runtime.load(unpack_archive(tmp_path), gpu_id=None, options=FLOAT32)
    pixels.flags.writeable = False
    assert runner.run(pixels)["scores"].shape == (5, 2)


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
    ],
)
def test_a_batch_that_does_not_fit_is_refused(tmp_path, batch):
    runner = runtime.load(unpack_archive(tmp_path), gpu_id=None, options=FLOAT32)
    with pytest.raises(BatchError):
        runner.run(batch)


def test_no_request_after_ready_pays_a_compilation(tmp_path):
    # CPU time of this thread, where TorchScript compiles, so that other programs on the machine do not count.
    runner = runtime.load(unpack_archive(tmp_path, max_batch=64), gpu_id=None, options=FLOAT32)
    for batch in runtime.BUCKETS:
        pixels = np.zeros((batch, SIDE, SIDE, 3), np.uint8)
        seconds = []
        for _ in range(50):
            started = time.thread_time()
            runner.run(pixels)
            seconds.append(time.thread_time() - started)
        assert max(seconds) / statistics.median(seconds) < 3, f"batch {batch}"


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


def test_cores_are_cut_by_the_cgroup_limit_of_either_version(tmp_path):
    assert runtime.cgroup_cores(tmp_path) == math.inf
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert runtime.cgroup_cores(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert runtime.cgroup_cores(tmp_path) == math.inf
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    assert runtime.cgroup_cores(tmp_path) == 4.0


@pytest.mark.parametrize(("limit", "cores"), [(0.5, 1), (1.5, 1), (math.inf, None)])
def test_usable_cores_are_at_least_one_and_at_most_the_affinity(monkeypatch, limit, cores):
    monkeypatch.setattr(runtime, "cgroup_cores", lambda: limit)
    assert runtime.usable_cores() == (cores or len(os.sched_getaffinity(0)))


def test_auto_is_bfloat16_only_where_the_cpu_has_it(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpu = torch.device("cpu")
    for flags, fast in (("avx2 avx512f", False), ("avx512f avx512_bf16", True), ("amx_tile amx_bf16", True)):
        cpuinfo.write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
        assert runtime.cpu_has_fast_bfloat16(cpuinfo) is fast
    assert runtime.cpu_has_fast_bfloat16(tmp_path / "absent") is False
    assert runtime.choose_dtype("float16", cpu) is torch.float16
    assert runtime.choose_dtype("auto", torch.device("cuda", 0)) is torch.float16


def test_an_odd_max_batch_is_a_bucket_of_its_own():
    spec = ModuleSpec(SIDE, SIDE, 5, (TensorSpec("scores", "float32", (2,)), TensorSpec("labels", "int32", (2,))), "")
    module = torch.jit.script(Toy().eval())
    runner = Runner(module, spec, device=torch.device("cpu"), dtype=torch.float32, pad_to_bucket=True)
    assert runner.buckets == (1, 2, 4, 5)
