"""Modules that were not written here, one of each task, in a real TorchServe: built and asked by the commands' code."""

import io
import subprocess
import sys
from pathlib import Path

import foreign_networks as networks
import numpy as np
import pytest
import torch
from fakes import read
from foreign_networks import SIDE, save
from PIL import Image
from serving import ROOT, served

from handlers.contract.card import InputSize, Preprocess
from mobilevision.client import VisionClient
from service.cli.main import to_input

pytestmark = pytest.mark.integration
LABELS = ("cat", "dog", "bird")
PICTURE = "coffee.jpg"
NEAR = 1e-3


def test_each_task_answers_as_its_network(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    made = {
        "own_classify": networks.Stem(),
        "own_detect": networks.ListDetector(),
        "own_segment": networks.Maps(),
    }
    for name, network in made.items():
        save(network, tmp_path / f"{name}.pt")
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\ntorchscript = "{name}.pt"\ntask = "{name[4:]}"\nlabels = "labels.txt"\n'
            f"[input]\nwidth = {SIDE}\nheight = {SIDE}\n"
            + ('[head]\nbackground = "first"\n' if name == "own_detect" else "")
        )
    out = tmp_path / "archives"
    build = [sys.executable, "-m", "service", "models", "build", "--out", str(out)]
    subprocess.run([*build, *(str(tmp_path / f"{name}.toml") for name in made)], check=True, cwd=ROOT)
    image = read(PICTURE)
    pixels = to_input(image, InputSize(width=SIDE, height=SIDE), Preprocess(mode="squash"))
    x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).unsqueeze(0).float() / 255
    settings = {"MOBILEVISION_DTYPE": "float32", "MOBILEVISION_WORKER_THREADS": "1"}
    with (
        torch.inference_mode(),
        served(out, tmp_path, *made, ready_seconds=300, **settings) as running,
        VisionClient(running.grpc) as client,
    ):
        labels = client.classify(image, model="own_classify").reply.labels
        scores = made["own_classify"](x).softmax(dim=1)[0]
        assert {label.name: label.score for label in labels} == pytest.approx(
            dict(zip(LABELS, scores.tolist(), strict=True)), abs=NEAR
        )
        found = client.detect(image, model="own_detect", score_threshold=0.01, max_detections=100).reply.detections
        theirs = made["own_detect"](list(x))[1][0]["scores"].sort(descending=True)[0]
        assert len(found) == min(100, len(theirs))
        assert [one.label.score for one in found] == pytest.approx(theirs.tolist(), abs=NEAR)
        assert {one.label.name for one in found} <= set(LABELS)
        mask = np.asarray(Image.open(io.BytesIO(client.segment(image, model="own_segment").reply.mask_png)))
        maps = made["own_segment"](x)["out"]
        classes = torch.nn.functional.interpolate(maps, size=(SIDE, SIDE), mode="bilinear").argmax(dim=1)
        shares = [np.bincount(part.ravel(), minlength=3) / part.size for part in (mask, classes.numpy())]
        assert np.abs(shares[0] - shares[1]).max() < 0.05
