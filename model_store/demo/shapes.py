"""The shapes of the demo data set, as outlines: float64 [P, 2] points (x right, y down) within the unit circle.

The first outline of a shape is its outer edge, the others are holes. Every shape equals its mirror image, so that a
flipped picture is a picture of the same shape.
"""

import numpy as np
from numpy.typing import NDArray

Outline = NDArray[np.float64]
_ARC_POINTS = 72  # of a full circle; the error is a thousandth of the radius


def _arc(*, centre_x: float, radius: float, start: float, end: float) -> Outline:
    """Points on a circle about (centre_x, 0), from angle `start` to `end` in radians."""
    count = max(2, round(_ARC_POINTS * abs(end - start) / (2 * np.pi)))
    angles = np.linspace(start, end, count)
    return np.stack([centre_x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _polygon(*polar: tuple[float, float]) -> Outline:
    """Corners given as (turns, radius)."""
    turns, radii = np.array(polar).T
    return np.stack([radii * np.cos(2 * np.pi * turns), radii * np.sin(2 * np.pi * turns)], axis=1)


def _star() -> Outline:
    return _polygon(*((i / 10, 1.0 if i % 2 == 0 else 0.45) for i in range(10)))


def _cross() -> Outline:
    arm, reach = 0.3, float(np.sqrt(1 - 0.3**2))
    quarter = np.array([[reach, -arm], [reach, arm], [arm, arm]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])  # a quarter
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, i) for i in range(4)])


def _crescent() -> Outline:
    """Unit disc without the disc of radius 0.8 about (0.5, 0)."""
    x = (1.0 + 0.5**2 - 0.8**2) / (2 * 0.5)  # where the circles meet
    outer = float(np.arccos(x))
    inner = float(np.arctan2(np.sqrt(1 - x**2), x - 0.5))
    return np.concatenate(
        [
            _arc(centre_x=0.0, radius=1.0, start=outer, end=2 * np.pi - outer),
            _arc(centre_x=0.5, radius=0.8, start=2 * np.pi - inner, end=inner)[1:-1],
        ]
    )


def _arrow() -> Outline:
    upper = [(1.0, 0.0), (0.15, -0.75), (0.15, -0.3), (-0.92, -0.3)]
    return np.array([*upper, *((x, -y) for x, y in reversed(upper[1:]))])


_CIRCLE = _arc(centre_x=0.0, radius=1.0, start=0.0, end=2 * np.pi)[:-1]

OUTLINES: dict[str, tuple[Outline, ...]] = {
    "circle": (_CIRCLE,),
    "ring": (_CIRCLE, 0.55 * _CIRCLE),
    "square": (_polygon((1 / 8, 1), (3 / 8, 1), (5 / 8, 1), (7 / 8, 1)),),
    "triangle": (_polygon((0, 1), (1 / 3, 1), (2 / 3, 1)),),
    "star": (_star(),),
    "cross": (_cross(),),
    "crescent": (_crescent(),),
    "arrow": (_arrow(),),
}
