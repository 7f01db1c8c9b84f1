"""Networks of timm and transformers, saved as TorchScript, wrapped by `models add`: a worker answers as they do."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import foreign_frameworks
import numpy as np
import pytest
import torch
from foreign_frameworks import CLASSES, SIZES, WAYS

from handlers import runtime
from handlers.contract.card import InputSize
from handlers.options import RuntimeOptions
from model_store.build import agreement, foreign, parity, torchscript
from model_store.definition.schema import Definition

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning"),
]
ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "tests" / "foreign_frameworks.txt"
PICTURES = 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of the largest logit. Rounding of the input grows in networks with random weights, most of all in MobileViTv2.
NEAR = 1e-4
CASES = [(name, way) for name, ways in WAYS.items() for way in ways]


@pytest.fixture(scope="module")
def frameworks() -> Path:
    """The folder with the frameworks, installed once for each list of versions."""
    folder = ROOT / "build" / "foreign_frameworks"
    stamp, wanted = folder / "installed", hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
        stamp.write_text(wanted)
    return folder


def size_of(name: str) -> InputSize:
    width, height = SIZES.get(name, (256, 192))
    return InputSize(width=width, height=height)


@pytest.fixture(scope="module")
def made(frameworks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of all networks, and their own logits."""
    folder = tmp_path_factory.mktemp("foreign")
    for name in WAYS:
        scaled = agreement.pictures(size_of(name), PICTURES).astype(np.float64) / 255
        normal = (scaled - np.array(MEAN)) / np.array(STD)
        np.save(folder / f"{name}.npy", normal.transpose(0, 3, 1, 2).astype(np.float32))
    environment = os.environ | {"PYTHONPATH": str(frameworks), "HF_HUB_OFFLINE": "1"}
    program = str(Path(foreign_frameworks.__file__))
    subprocess.run([sys.executable, "-W", "ignore", program, str(folder)], check=True, env=environment)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_worker_answers_as_the_framework(name: str, way: str, made: Path, tmp_path: Path) -> None:
    definition = Definition.model_validate(
        {
            "name": "theirs",
            "torchscript": made / f"{name}_{way}.pt",
            "task": "segment" if name == "deeplabv3" else "classify",
            "labels": [f"class {number}" for number in range(CLASSES)],
            "input": size_of(name).model_dump(),
            "preprocess": {"mean": MEAN, "std": STD},
        }
    )
    done = foreign.export_module(definition, "")
    logits = np.load(made / f"{name}_logits.npy")
    pixels = agreement.pictures(size_of(name), PICTURES)
    ours = parity.raw_outputs(torchscript.load(done.module_bytes), torch.from_numpy(pixels))[0].numpy()
    difference = float(np.abs(ours - logits).max() / np.abs(logits).max())
    print(f"{name} {way}: logits differ by {difference:.2g} of the largest, which is {np.abs(logits).max():.3g}")
    assert difference <= NEAR
    assert np.ptp(logits, axis=0).max() > 0.1 * np.abs(logits).max(), (
        "the pictures get the same answer: this would prove nothing"
    )
    (tmp_path / "card.json").write_text(done.card.to_json())
    (tmp_path / "model.pt").write_bytes(done.module_bytes)
    worker = runtime.load(tmp_path, gpu_id=None, options=RuntimeOptions(dtype="float32", threads=1))
    check_answer(worker.run(pixels), torch.from_numpy(logits), size_of(name))


def check_answer(found: dict[str, Any], logits: torch.Tensor, size: InputSize) -> None:
    if logits.dim() == 2:
        scores, labels = logits.softmax(dim=1).topk(CLASSES, dim=1)
        np.testing.assert_allclose(found["scores"], scores, atol=1e-4)
        assert (found["labels"][:, 0] == labels[:, 0].numpy()).all()
    else:
        full = torch.nn.functional.interpolate(logits, size=(size.height, size.width), mode="bilinear")
        assert (found["classes"] == full.argmax(dim=1).numpy()).mean() > 0.9999
