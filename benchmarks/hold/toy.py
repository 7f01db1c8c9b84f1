"""A model whose answers are exact, and pictures on which it misbehaves.

Its scores are sums of small integers, which float32 holds exactly in any order of addition. So an answer does not
depend on the size of the batch, on the place in it, or on the machine: every answer is compared bit by bit, with
`expected`. The bad pictures make a worker raise, answer garbage or answer late, without test code in the server.
"""

import hashlib
import io
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from handlers.contract.card import (
    Card,
    InputSize,
    Normalize,
    Output,
    Parity,
    Preprocess,
    Task,
    Weights,
    WeightsState,
)
from model_store.build import archive
from service.pb.mobilevision.v1 import vision_pb2

NAME = "toy"
SIDE_PX = 32
CLASSES = 4
MAX_BATCH = 16
RAISES = (255, 255, 255)
WRONG_SHAPE = (255, 0, 0)
LATE = (0, 255, 0)
CUDA_ERROR = (0, 0, 255)


class Toy(torch.nn.Module):
    """Four scores by quarters of the picture. Misbehaves for pictures in one of four colours."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`pixels`: uint8 [N, 32, 32, 3]. Returns scores, float32 [N, 4], and labels, int32 [N, 4], best first.

        Raises RuntimeError for a white and a blue picture.
        """
        means = pixels.to(torch.float32).mean(dim=[1, 2])
        red, green, blue = means[:, 0], means[:, 1], means[:, 2]
        if bool(((red > 254.0) & (green > 254.0) & (blue > 254.0)).any()):
            raise RuntimeError("toy refuses white")
        if bool(((red < 1.0) & (green < 1.0) & (blue > 254.0)).any()):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        quarters = pixels.to(torch.float32).reshape(-1, 2, 16, 2, 16, 3).sum(dim=[2, 4, 5]).reshape(-1, 4)
        scores, labels = torch.sort(quarters / 1048576.0, dim=1, descending=True, stable=True)
        if bool(((red < 1.0) & (green > 254.0) & (blue < 1.0)).any()):
            square = torch.zeros([256, 256])
            for _ in range(30000):
                square = torch.mm(square, square)
            scores = scores + square[0, 0]
        if bool(((red > 254.0) & (green < 1.0) & (blue < 1.0)).any()):
            return scores[:, :1], labels[:, :1].to(torch.int32)
        return scores, labels.to(torch.int32)


@dataclass(frozen=True)
class Question:
    """A request for `Classify`, and the answer that is right: the reply without the model's name and version."""

    body: bytes
    expected: bytes


def build(folder: Path, version: str = "1.0") -> Path:
    """Write the archive of one version into a folder. Returns its path."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates TorchScript, which is our format
        torch.jit.save(torch.jit.script(Toy().eval()), buffer)
    module = buffer.getvalue()
    card = Card(
        name=NAME,
        version=version,
        task=Task.CLASSIFY,
        family="toy",
        variant="toy",
        head="none",
        paper="",
        input=InputSize(height=SIDE_PX, width=SIDE_PX),
        preprocess=Preprocess(mode="squash"),
        normalize=Normalize(),
        labels=("north-west", "north-east", "south-west", "south-east"),
        outputs=(
            Output(name="scores", dtype="float32", shape=(CLASSES,)),
            Output(name="labels", dtype="int32", shape=(CLASSES,)),
        ),
        max_batch=MAX_BATCH,
        parameters=0,
        macs=1,
        weights=Weights(state=WeightsState.RANDOM, source="benchmark", sha256="0" * 64),
        parity=Parity(scripted_max_abs_diff=0, reloaded_max_abs_diff=0, batch_row_max_abs_diff=0),
        module_sha256=hashlib.sha256(module).hexdigest(),
    )
    return archive.write(folder, card, module)


def build_versions(folder: Path) -> Path:
    """Write versions 1.0 and 1.1 into a folder. 1.0 is served unless a roll-out file says otherwise."""
    build(folder)
    with tempfile.TemporaryDirectory() as other:
        build(Path(other), "1.1")
        for suffix in (".mar", ".card.json"):
            shutil.copy(Path(other) / f"{NAME}{suffix}", folder / f"{NAME}@1.1{suffix}")
    return folder


def png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 [H, W, 3]."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def bad_picture(colour: tuple[int, int, int]) -> bytes:
    """A request with a picture of one colour, on which the model misbehaves."""
    pixels = np.full((SIDE_PX, SIDE_PX, 3), colour, np.uint8)
    return vision_pb2.ClassifyRequest(model=NAME, image=png(pixels)).SerializeToString()


def questions(count: int, seed: int = 1) -> tuple[Question, ...]:
    """Requests with different pictures of noise, each with its right answer."""
    generator = np.random.default_rng(seed)
    pictures = generator.integers(0, 250, (count, SIDE_PX, SIDE_PX, 3), np.uint8)
    return tuple(Question(_request(one), expected(one)) for one in pictures)


def expected(
    pixels: np.ndarray, labels: Sequence[str] = ("north-west", "north-east", "south-west", "south-east")
) -> bytes:
    """The right answer to uint8 [32, 32, 3], computed here and not by a server."""
    with torch.inference_mode():
        scores, ids = Toy()(torch.from_numpy(pixels[None]))
    reply = vision_pb2.ClassifyResponse(picture=vision_pb2.Picture(width=SIDE_PX, height=SIDE_PX, format="PNG"))
    for score, number in zip(scores[0].tolist(), ids[0].tolist(), strict=True):
        reply.labels.add(id=number, name=labels[number], score=score)
    return reply.SerializeToString(deterministic=True)


def answer_of(reply: bytes) -> bytes:
    """A served reply in the form of `expected`. Raises `DecodeError`."""
    message = vision_pb2.ClassifyResponse.FromString(reply)
    message.ClearField("model")
    return message.SerializeToString(deterministic=True)


def _request(pixels: np.ndarray) -> bytes:
    return vision_pb2.ClassifyRequest(model=NAME, image=png(pixels)).SerializeToString()
