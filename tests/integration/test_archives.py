"""Archives as `models build` writes them, in a real TorchServe: the replies are those of the module inside the archive.

`make test` serves one model of each family, and every task is among them. `make test-all` serves all models, three at a
time, because every model takes a worker process.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import read
from PIL import Image
from serving import ROOT, build_archives, served

from handlers.contract.card import Card, Task
from mobilevision.client import VisionClient
from model_store import zoo
from model_store.build import torchscript
from service.cli.main import to_input
from service.core.types import Prediction
from service.frontends.tasks.detect import detect_response
from service.preprocess.image import decode
from service.preprocess.limits import Limits

pytestmark = pytest.mark.integration
ARCHIVES = ROOT / "build" / "test_archives_zoo"
SAMPLE = ("mobilevit_xxs_classify", "swiftformer_xs_classify", "emo_1m_detect", "mobileformer_26m_segment")
AT_ONCE = 3
GROUPS = [zoo.names()[start : start + AT_ONCE] for start in range(0, len(zoo.names()), AT_ONCE)]
PICTURE = "coffee.jpg"
# Scores of float32 on one machine, in batches of one: what is left is the order of sums.
NEAR = 1e-3
READY_SECONDS = 900  # the largest are warmed for a minute each, three of them side by side


def answered_by_the_module(name: str) -> tuple[Card, dict[str, Any]]:
    """What the module inside the archive answers for the picture, in this process: outputs by name."""
    with zipfile.ZipFile(ARCHIVES / f"{name}.mar") as archive:
        card = Card.model_validate_json(archive.read("card.json"))
        module = torchscript.load(archive.read("model.pt"))
    pixels = torch.from_numpy(np.array(to_input(read(PICTURE), card.input, card.preprocess)))
    with torch.inference_mode():
        outputs = module(pixels.unsqueeze(0))
    return card, {declared.name: part[0].numpy() for declared, part in zip(card.outputs, outputs, strict=True)}


def boxes_in_the_picture(card: Card, image: bytes, outputs: dict[str, Any]) -> list[float]:
    """Scores of the boxes that are left after what lies outside the picture is cut away, the best first."""
    limits = Limits(max_bytes=2**30, max_pixels=2**30)
    decoded = decode(image, size=card.input, preprocess=card.preprocess, limits=limits)
    prediction = Prediction(outputs=outputs, batch_size=1, queue_seconds=0, transport_seconds=0, inference_seconds=0)
    reply = detect_response(card, decoded, prediction, score_threshold=0.05, max_detections=200)
    return [found.label.score for found in reply.detections]


def check_answer(client: VisionClient, name: str) -> None:
    card, expected = answered_by_the_module(name)
    image = read(PICTURE)
    if card.task is Task.CLASSIFY:
        labels = client.classify(image, model=name).reply.labels
        scores = dict(zip(expected["labels"].tolist(), expected["scores"].tolist(), strict=True))
        assert len(labels) == 5
        for label in labels:
            assert label.score == pytest.approx(scores[label.id], abs=NEAR)
    elif card.task is Task.DETECT:
        found = client.detect(image, model=name, score_threshold=0.05, max_detections=200).reply.detections
        theirs = sorted((d.label.score for d in found), reverse=True)
        ours = boxes_in_the_picture(card, image, expected)
        assert ours, "no box passes: this would prove nothing"
        # A near-tie in the suppression of overlapping boxes, or at the edge of the picture, may fall either way.
        assert abs(len(ours) - len(theirs)) <= 2
        assert theirs[0] == pytest.approx(ours[0], abs=NEAR)
    else:
        mask = np.asarray(Image.open(io.BytesIO(client.segment(image, model=name).reply.mask_png)))
        width, height = Image.open(io.BytesIO(image)).size
        assert mask.shape == (height, width)
        shares = [np.bincount(part.ravel(), minlength=256) / part.size for part in (mask, expected["classes"])]
        assert np.abs(shares[0] - shares[1]).max() < 0.02


def serve_and_ask(names: tuple[str, ...], folder: Path) -> None:
    build_archives(ARCHIVES, *names, random_weights=True)
    settings = {
        "MOBILEVISION_DTYPE": "float32",
        "MOBILEVISION_WORKER_THREADS": "1",  # more would wait for each other, side by side on a few cores
        "MOBILEVISION_STARTUP_TIMEOUT_SECONDS": str(READY_SECONDS),
    }
    with (
        served(ARCHIVES, folder, *names, ready_seconds=READY_SECONDS, **settings) as running,
        VisionClient(running.grpc) as client,
    ):
        assert {model.name for model in client.list_models().reply.models if model.ready} == set(names)
        for name in names:
            check_answer(client, name)


@pytest.mark.timeout(1200)
def test_one_of_each_family_answers_its_call(tmp_path: Path) -> None:
    assert {zoo.get(name).family for name in SAMPLE} == {entry.family for entry in zoo.ENTRIES}
    assert {zoo.get(name).task for name in SAMPLE} == set(Task)
    serve_and_ask(SAMPLE, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_every_archive_answers_its_call(names: tuple[str, ...], tmp_path: Path) -> None:
    serve_and_ask(names, tmp_path)
