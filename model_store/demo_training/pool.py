"""Training pictures in memory, and batches of them. They are drawn once, kept on disk, and varied in every batch.

In: a kind of picture, how many, at which size. Out: a `Batch`, which depends on (seed, step) alone, so that an
interrupted training sees the same batches when it continues. Pictures are decoded and squashed as the gateway does it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model_store.demo import dataset, shapes
from model_store.demo.dataset import Kind, Scene


@dataclass(frozen=True)
class Batch:
    """A batch for any of the tasks.

    Attributes:
        pixels: uint8 [N, S, S, 3], RGB.
        labels: int64 [N], label of the largest shape.
        classes: int64 [N, S, S], class map with background 0.
        boxes: per picture float32 [G, 4], corners in fractions of the picture.
        box_labels: per picture int64 [G].

    """

    pixels: Tensor
    labels: Tensor
    classes: Tensor
    boxes: list[Tensor]
    box_labels: list[Tensor]


@dataclass(frozen=True)
class Pool:
    """Squashed pictures and their truth: uint8 [P, S, S, 3], uint8 [P, S, S], float32 [B, 6].

    A row of `boxes` is (picture, label, x0, y0, x1, y1), corners in fractions; `labels` is int64 [P].
    """

    pixels: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pixels)


def squash(picture: Image.Image, side_px: int) -> NDArray[np.uint8]:
    """Resize a whole picture to a square as the gateway does for these models: uint8 [S, S, 3]."""
    return np.asarray(picture.resize((side_px, side_px), Image.Resampling.BILINEAR))


def load(
    *, folder: Path, seed: int, kind: Kind, pictures: int, side_px: int, advance: Callable[[], None] = lambda: None
) -> Pool:
    """Read the pool from `folder`, or draw it and leave it there; `advance` is called after every picture drawn."""
    drawn_by = hashlib.sha256(
        b"".join(Path(str(module.__file__)).read_bytes() for module in (dataset, shapes))
    ).hexdigest()[:12]
    path = folder / f"pool_{kind}_{seed}_{pictures}_{side_px}_{drawn_by}.npz"
    if not path.is_file():
        pool = _draw(seed, kind, pictures, side_px, advance)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            np.savez(file, pixels=pool.pixels, classes=pool.classes, labels=pool.labels, boxes=pool.boxes)
        unfinished.replace(path)
        return pool
    with np.load(path) as stored:
        return Pool(pixels=stored["pixels"], classes=stored["classes"], labels=stored["labels"], boxes=stored["boxes"])


def _draw(seed: int, kind: Kind, pictures: int, side_px: int, advance: Callable[[], None]) -> Pool:
    pixels = np.empty((pictures, side_px, side_px, 3), np.uint8)
    classes = np.empty((pictures, side_px, side_px), np.uint8)
    labels = np.empty(pictures, np.int64)
    boxes: list[tuple[float, ...]] = []
    for index in range(pictures):
        scene = dataset.draw(seed=seed, split="train", index=index, kind=kind)
        pixels[index] = squash(scene.picture(), side_px)
        size = (side_px, side_px)
        classes[index] = np.asarray(Image.fromarray(scene.classes).resize(size, Image.Resampling.NEAREST))
        labels[index] = scene.label
        boxes += [(index, shape.label, *corners) for shape, corners in zip(scene.shapes, fractions(scene), strict=True)]
        advance()
    return Pool(pixels=pixels, classes=classes, labels=labels, boxes=np.array(boxes, np.float32))


def fractions(scene: Scene) -> list[tuple[float, float, float, float]]:
    """Boxes of a scene, in fractions of the picture."""
    height, width = scene.classes.shape
    return [(s.box[0] / width, s.box[1] / height, s.box[2] / width, s.box[3] / height) for s in scene.shapes]


def batch(pool: Pool, *, seed: int, step: int, size: int, side_px: int) -> Batch:
    """Batch number `step`: every picture is shown once per round, each time turned, flipped and coloured anew.

    Args:
        pool: what to choose from, at least `size` pictures.
        seed: of the order and of the variations.
        step: from 0.
        size: pictures.
        side_px: of the batch; pictures are shrunk where this is less than the pool's.

    """
    per_round = len(pool) // size
    order = np.random.default_rng([seed, 1, step // per_round]).permutation(len(pool))
    start = step % per_round * size
    rng = np.random.default_rng([seed, 2, step])
    pixels, classes, boxes, box_labels = [], [], [], []
    chosen = order[start : start + size]
    for index in chosen:
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        pixels.append(_recoloured(rng, _turned(pool.pixels[index], turns, flip)))
        classes.append(_turned(pool.classes[index], turns, flip))
        rows = pool.boxes[pool.boxes[:, 0] == index]
        boxes.append(torch.from_numpy(_turned_boxes(rows[:, 2:], turns, flip)))
        box_labels.append(torch.from_numpy(rows[:, 1].astype(np.int64)))
    shown = torch.from_numpy(np.stack(pixels))  # [N, S, S, 3]
    truth = torch.from_numpy(np.stack(classes))  # [N, S, S]
    if side_px != shown.shape[1]:
        shrunk = F.interpolate(
            shown.permute(0, 3, 1, 2).float(), size=[side_px, side_px], mode="bilinear", antialias=True
        )
        shown = shrunk.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        truth = F.interpolate(truth.unsqueeze(1), size=[side_px, side_px], mode="nearest-exact").squeeze(1)
    return Batch(
        pixels=shown.contiguous(),
        labels=torch.from_numpy(pool.labels[chosen]),
        classes=truth.long(),
        boxes=boxes,
        box_labels=box_labels,
    )


def _turned(plane: NDArray[np.uint8], turns: int, flip: bool) -> NDArray[np.uint8]:
    """Flip left and right, then turn counter-clockwise by quarters: [S, S, ...]."""
    return np.rot90(plane[:, ::-1] if flip else plane, turns)


def _turned_boxes(boxes: NDArray[np.float32], turns: int, flip: bool) -> NDArray[np.float32]:
    """Do the same with corners in fractions: [G, 4]."""
    x0, y0, x1, y1 = boxes.T
    if flip:
        x0, x1 = 1 - x1, 1 - x0
    for _ in range(turns):
        x0, y0, x1, y1 = y0, 1 - x1, y1, 1 - x0
    return np.stack([x0, y0, x1, y1], axis=1)


def _recoloured(rng: np.random.Generator, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Swap channels, change contrast and brightness: [S, S, 3]; no label depends on them."""
    shown = pixels[:, :, rng.permutation(3)].astype(np.float32)
    gain = rng.uniform(0.75, 1.25)
    changed = (shown - 127.5) * np.float32(gain) + np.float32(127.5 + rng.uniform(-20, 20))
    return changed.clip(0, 255).astype(np.uint8)
