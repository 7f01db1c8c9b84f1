"""What one picture brought: the part of the answer that scores are made of, or an empty one and why it failed.

Plain values that survive a round trip through JSON unchanged, because the journal keeps them there.
"""

from dataclasses import dataclass
from typing import Any

NOTHING = 255  # in a class map: no class, either because the truth says so or because the model did not see the pixel


@dataclass(frozen=True, slots=True)
class Top:
    """Label ids of a classification, best first."""

    labels: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """One box, in pixels of the upright picture: left, top, width, height."""

    label: int
    score: float
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Boxes:
    """All boxes of a picture, best first."""

    found: tuple[Found, ...] = ()


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many pixels have this class in truth and that class in the answer, which is `NOTHING` where there is none."""

    truth: int
    answer: int
    pixels: int


@dataclass(frozen=True, slots=True)
class Pixels:
    """All pixels of a picture whose true class is known, counted by pair of classes."""

    overlaps: tuple[Overlap, ...] = ()


Answer = Top | Boxes | Pixels


@dataclass(frozen=True, slots=True)
class Outcome:
    """One picture of a data set. With a `reason` it failed, and `answer` is what counts as all wrong."""

    key: str
    answer: Answer
    reason: str = ""
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; see `from_json`."""
        plain: dict[str, Any] = {"key": self.key}
        if self.reason:
            plain |= {"reason": self.reason, "message": self.message}
        if isinstance(self.answer, Top):
            return plain | {"top": list(self.answer.labels)}
        if isinstance(self.answer, Boxes):
            rows = [[f.label, f.score, f.x, f.y, f.width, f.height] for f in self.answer.found]
            return plain | {"boxes": rows}
        return plain | {"pixels": [[o.truth, o.answer, o.pixels] for o in self.answer.overlaps]}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Outcome":
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        answer: Answer
        if "top" in plain:
            answer = Top(tuple(int(label) for label in plain["top"]))
        elif "boxes" in plain:
            answer = Boxes(tuple(Found(int(label), *map(float, rest)) for label, *rest in plain["boxes"]))
        else:
            answer = Pixels(tuple(Overlap(*map(int, row)) for row in plain["pixels"]))
        return cls(str(plain["key"]), answer, str(plain.get("reason", "")), str(plain.get("message", "")))
