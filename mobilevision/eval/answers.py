"""What the evaluation keeps of one picture: the part of the reply that is scored, or an empty answer and why it failed.

All values survive a round trip through JSON unchanged, because the journal stores them as JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

NOTHING = 255  # in a class map: no class. The truth does not state one, or the model did not see the pixel.


@dataclass(frozen=True, slots=True)
class Top:
    """Label ids of a classification, best first, and their scores."""

    labels: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    KEY: ClassVar[str] = "top"

    def to_json(self) -> list[list[Any]]:
        """Two JSON arrays: label ids and scores."""
        return [list(self.labels), list(self.scores)]

    @classmethod
    def from_json(cls, plain: Sequence[Any]) -> Self:
        """Read what `to_json` wrote. Raises TypeError or ValueError for anything else."""
        labels, scores = plain
        return cls(tuple(int(label) for label in labels), tuple(float(score) for score in scores))


@dataclass(frozen=True, slots=True)
class Found:
    """One box. `x` and `y` are its left and top edge; all sizes are in pixels of the upright picture."""

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

    KEY: ClassVar[str] = "boxes"

    def to_json(self) -> list[list[float]]:
        """One JSON array [label, score, x, y, width, height] per box."""
        return [[f.label, f.score, f.x, f.y, f.width, f.height] for f in self.found]

    @classmethod
    def from_json(cls, plain: Sequence[Any]) -> Self:
        """Read what `to_json` wrote. Raises TypeError or ValueError for anything else."""
        return cls(tuple(Found(int(label), *map(float, rest)) for label, *rest in plain))


@dataclass(frozen=True, slots=True)
class Overlap:
    """The number of pixels with the class `truth` in the truth and `answer` in the reply (`NOTHING`: no class)."""

    truth: int
    answer: int
    pixels: int


@dataclass(frozen=True, slots=True)
class Pixels:
    """All pixels of a picture whose true class is known, counted by pair of classes."""

    overlaps: tuple[Overlap, ...] = ()

    KEY: ClassVar[str] = "pixels"

    def to_json(self) -> list[list[int]]:
        """One JSON array [truth, answer, pixels] per pair of classes."""
        return [[o.truth, o.answer, o.pixels] for o in self.overlaps]

    @classmethod
    def from_json(cls, plain: Sequence[Any]) -> Self:
        """Read what `to_json` wrote. Raises TypeError or ValueError for anything else."""
        return cls(tuple(Overlap(*map(int, row)) for row in plain))


Answer = Top | Boxes | Pixels
_KINDS: tuple[type[Answer], ...] = (Top, Boxes, Pixels)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One picture of a data set. With a `reason` it failed, and `answer` counts as all wrong."""

    key: str
    answer: Answer
    reason: str = ""
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """The outcome as a JSON object; see `from_json`."""
        failure = {"reason": self.reason, "message": self.message} if self.reason else {}
        return {"key": self.key, **failure, self.answer.KEY: self.answer.to_json()}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        kind = next((kind for kind in _KINDS if kind.KEY in plain), None)
        if kind is None:
            raise KeyError(f"none of {', '.join(kind.KEY for kind in _KINDS)}")
        answer = kind.from_json(plain[kind.KEY])
        return cls(str(plain["key"]), answer, str(plain.get("reason", "")), str(plain.get("message", "")))
