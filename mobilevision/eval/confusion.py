"""The confusion matrix: how often a true class was answered as which class. As CSV, and as a picture.

Rows are true classes, columns are answered classes, of those that occur. `NOTHING_NAME` is a row for what was
found where there is nothing, and a column for what was not answered.
"""

import csv
import importlib.util
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobilevision.eval.answers import Pixels, Top
from mobilevision.eval.boxes import Pairs
from mobilevision.eval.errors import OutputFailed
from mobilevision.eval.labels import short, unique

NOTHING_NAME = "(nothing)"
MAX_CLASSES = 2000  # a table of more is of no use to anybody, and fills the disk
_NAMED = 60  # classes up to which the picture names them
_NUMBERED = 20  # and up to which it shows the shares as numbers


@dataclass(frozen=True, slots=True)
class Confusion:
    """`counts` maps (true label, answered label) to a number of `unit`; a label of -1 is nothing."""

    counts: Mapping[tuple[int, int], int]
    unit: str

    @property
    def occurring(self) -> list[int]:
        """Labels that occur, in their order, and -1 at the end where there is one."""
        labels = {label for pair in self.counts for label in pair}
        return sorted(labels - {-1}) + ([-1] if -1 in labels else [])

    def table(self) -> NDArray[np.int64]:
        """The counts, int64 [n, n], of the n labels in `occurring`: rows are true, columns are answered."""
        place = {label: index for index, label in enumerate(self.occurring)}
        table = np.zeros((len(place), len(place)), np.int64)
        for (truth, answer), count in self.counts.items():
            table[place[truth], place[answer]] += count
        return table

    def names(self, labels: Sequence[str]) -> list[str]:
        """The names of `occurring`. Equal names of several labels get their numbers."""
        known = unique(labels)
        return [NOTHING_NAME if label < 0 else known[label] for label in self.occurring]


def of_labels(rows: Iterable[tuple[int, Top]]) -> Confusion:
    """Count pictures. `rows`: (true label, answer)."""
    return Confusion(Counter((truth, answer.labels[0] if answer.labels else -1) for truth, answer in rows), "pictures")


def of_boxes(rows: Iterable[Pairs]) -> Confusion:
    """Count boxes of all pictures."""
    counts: Counter[tuple[int, int]] = Counter()
    for pairs in rows:
        counts.update(pairs.together)
        counts.update((label, -1) for label in pairs.missed)
        counts.update((-1, label) for label in pairs.extra)
    return Confusion(counts, "boxes")


def of_pixels(rows: Iterable[Pixels], classes: int) -> Confusion:
    """Count pixels of known truth."""
    counts: Counter[tuple[int, int]] = Counter()
    for pixels in rows:
        for o in pixels.overlaps:
            counts[o.truth, o.answer if o.answer < classes else -1] += o.pixels
    return Confusion(counts, "pixels")


def write(confusion: Confusion, labels: Sequence[str], path: Path) -> list[Path]:
    """Write `path` (CSV) and, where matplotlib is installed, a picture beside it. Returns the files.

    With more than 2000 classes nothing is written. Raises `OutputFailed`.
    """
    names = confusion.names(labels)
    if not names or len(names) > MAX_CLASSES:
        return []
    table = confusion.table()
    written = [path]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["true \\ answered", *names])
            rows.writerows([name, *counts] for name, counts in zip(names, table.tolist(), strict=True))
        if importlib.util.find_spec("matplotlib") is not None:
            written.append(path.with_suffix(".png"))
            _draw(names, table, confusion.unit, written[-1])
    except OSError as error:
        raise OutputFailed(f"cannot write {path}: {error.strerror or error}; name another file with --out") from error
    return written


def _draw(names: Sequence[str], table: NDArray[np.int64], unit: str, path: Path) -> None:
    """Shares of each row of the table (n, n), dark where they are large."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional, and slow to import

    totals = table.sum(axis=1, keepdims=True)
    shares = np.divide(100.0 * table, totals, out=np.zeros(table.shape), where=totals > 0)
    side = min(4 + 0.3 * len(names), 22)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.7, label=f"percent of the {unit} of a true class")
    axes.set(xlabel="answered", ylabel="true")
    if len(names) <= _NAMED:
        plain = [short(name).replace("$", "\\$") for name in names]  # "$" would begin a formula
        axes.set_xticks(range(len(names)), plain, rotation=90)
        axes.set_yticks(range(len(names)), plain)
    if len(names) <= _NUMBERED:
        for row, column in np.argwhere(table > 0).tolist():
            share = shares[row, column]
            colour = "white" if share > 50 else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize="small")
    with warnings.catch_warnings():  # the font may lack letters of the names
        warnings.simplefilter("ignore")
        figure.savefig(path, dpi=100)
