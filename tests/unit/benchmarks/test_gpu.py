"""The unattended GPU benchmark, on a CPU, with a module of a few lines."""

import hashlib
import io
import json
import sys
import zipfile

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from benchmarks import gpu, results

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


def test_a_broken_archive_is_written_down_and_the_rest_goes_on(monkeypatch, archive):
    with zipfile.ZipFile(archive) as packed:
        card = packed.read("card.json")
    with zipfile.ZipFile(archive.with_name("broken.mar"), "w") as packed:
        packed.writestr("model.pt", b"altered")
        packed.writestr("card.json", card)
    result = run(monkeypatch, archive, "--dtypes", "float32", "--batches", "1", "--pictures", "2")
    assert [one.model for one in result.points] == ["toy"]
    assert len(result.errors) == 1
    assert "altered or damaged" in result.errors[0]
    assert not result.head.complete


def test_without_time_left_nothing_is_begun(monkeypatch, archive):
    result = run(monkeypatch, archive, "--budget", "0", "--dtypes", "float32")
    assert result.points == []
    assert "no time left" in result.errors[0]


def test_pictures_are_the_same_every_time():
    np.testing.assert_array_equal(gpu.pictures(3, 8, 8), gpu.pictures(3, 8, 8))
