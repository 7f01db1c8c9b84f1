"""Draw a data set: bottles, cups and bowls. In: a folder, and how many pictures. Out: FOLDER/{train,val}/LABEL/*.png.

It stands for pictures of your own, one folder per class. Needs Pillow and numpy, nothing of the project.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

OUTLINES = {  # x and y in 0..1
    "bottle": [(0.4, 0.0), (0.6, 0.0), (0.6, 0.3), (0.75, 0.45), (0.75, 1.0), (0.25, 1.0), (0.25, 0.45), (0.4, 0.3)],
    "bowl": [(0.0, 0.35), (1.0, 0.35), (0.8, 0.8), (0.2, 0.8)],
    "cup": [(0.2, 0.1), (0.8, 0.1), (0.7, 0.9), (0.3, 0.9)],
}


def draw(label: str, rng: np.random.Generator) -> Image.Image:
    """Draw one picture: the outline of a label on a noisy ground, turned a little, with a bar in front of it."""
    width, height = int(rng.integers(220, 420)), int(rng.integers(180, 320))
    ground = rng.integers(20, 120, 3)
    noise = rng.normal(0, 25, (height, width, 3))
    picture = Image.fromarray((ground + noise).clip(0, 255).astype(np.uint8))
    side = min(width, height) * rng.uniform(0.45, 0.85)
    angle = rng.uniform(-0.6, 0.6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([width, height]) / 2 + rng.uniform(-0.08, 0.08, 2) * side
    points = (np.array(OUTLINES[label]) - 0.5) @ turn.T * side + middle
    pen = ImageDraw.Draw(picture)
    pen.polygon([tuple(point) for point in points.tolist()], fill=tuple(rng.integers(90, 256, 3).tolist()))
    left = middle[0] + rng.uniform(-0.4, 0.3) * side
    pen.rectangle((left, 0, left + 0.15 * side, height), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return picture


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=64, help="pictures per class to train with")
    parser.add_argument("--val", type=int, default=24, help="pictures per class to measure with")
    arguments = parser.parse_args()
    for number, (split, count) in enumerate({"train": arguments.train, "val": arguments.val}.items()):
        for position, label in enumerate(OUTLINES):
            folder = arguments.folder / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                draw(label, np.random.default_rng([number, position, index])).save(folder / f"{index:04d}.png")


if __name__ == "__main__":
    main()
