"""The result of an evaluation: JSON for programs, and for people a table beside the published scores."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from mobilevision.eval.answers import Outcome
from mobilevision.eval.dataset import Dataset, Layout
from mobilevision.eval.errors import OutputFailed
from mobilevision.eval.labels import short
from mobilevision.eval.run import Model
from mobilevision.eval.scores import Scores
from mobilevision.eval.worst import Worst
from mobilevision.tasks import Task

_CLASSES = 20  # rows of the table of classes; the report has all
_PER_CLASS = {Task.CLASSIFY: "top1", Task.DETECT: "map", Task.SEGMENT: "iou"}
_UNITS = {Task.CLASSIFY: "pictures", Task.DETECT: "boxes", Task.SEGMENT: "pixels"}


@dataclass(frozen=True, slots=True)
class Report:
    """One finished evaluation. `resumed` is the number of pictures that an earlier, interrupted run answered.

    `confusion` are the files of the confusion matrix, `worst` the pictures with the worst answers, where asked for.
    """

    model: Model
    dataset: Dataset
    server: str
    outcomes: Sequence[Outcome]
    scores: Scores
    resumed: int
    seconds: float  # duration of this run
    confusion: Sequence[Path] = ()
    worst: Sequence[Worst] = ()

    @property
    def failures(self) -> list[Outcome]:
        """Outcomes of the failed pictures, sorted by key."""
        return sorted((outcome for outcome in self.outcomes if outcome.reason), key=lambda outcome: outcome.key)

    @property
    def by_reason(self) -> Mapping[str, int]:
        """Number of failed pictures per reason, most frequent first."""
        return dict(Counter(outcome.reason for outcome in self.failures).most_common())

    @property
    def published(self) -> Mapping[str, float]:
        """The model's published scores, where they were published for data such as this; see docs/eval.md."""
        state, dataset = self.model.weights, self.dataset
        for_this_data = {"custom": True, "demo": dataset.layout is Layout.DEMO}.get(state, dataset.public)
        return self.model.published if for_this_data else {}

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object. Scores are in percent."""
        model, dataset = self.model, self.dataset
        asked = len(self.outcomes) - self.resumed
        return {
            "task": dataset.task.value,
            "model": {
                "name": model.name,
                "version": model.version,
                "weights": model.weights,
                "weights_source": model.weights_source,
                "module_sha256": model.module_sha256,
            },
            "dataset": {
                "layout": dataset.layout.value,
                "folder": str(dataset.folder),
                "fingerprint": dataset.fingerprint,
                "pictures": len(dataset.samples),
                "evaluated": len(self.outcomes),
                "public": dataset.public,
                "notes": list(dataset.notes),
            },
            "skipped": {
                "count": len(dataset.skipped),
                "by_reason": dict(dataset.skipped_by_reason),
                "files": [{"file": skipped.file, "reason": skipped.why} for skipped in dataset.skipped],
            },
            "scores": dict(self.scores.values),
            "published": dict(self.published),
            "per_class": dict(self.scores.per_class),
            "truth_per_class": dict(self.scores.truth),
            "confusion": [str(path) for path in self.confusion],
            "worst": [
                {"picture": w.key, "wrongness": w.wrongness, "drawing": str(w.drawing)}
                if w.drawing
                else {"picture": w.key, "wrongness": w.wrongness, "not_drawn": w.why_not}
                for w in self.worst
            ],
            "failures": {
                "count": len(self.failures),
                "by_reason": dict(self.by_reason),
                "pictures": [{"picture": o.key, "reason": o.reason, "message": o.message} for o in self.failures],
            },
            "run": {
                "server": self.server,
                "seconds": round(self.seconds, 3),
                "pictures_per_second": round(asked / self.seconds, 2) if asked and self.seconds > 0 else None,
                "resumed": self.resumed,
            },
        }

    def write(self, path: Path) -> None:
        """Write the JSON atomically: a reader sees the whole report or the old file. Raises `OutputFailed`."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(json.dumps(self.to_json(), indent=2) + "\n")
                Path(temporary).chmod(0o644)
                os.replace(temporary, path)  # noqa: PTH105 - the function for an atomic rename
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise OutputFailed(f"cannot write {path}: {error.strerror}; name another file with --out") from error

    @property
    def title(self) -> str:
        """The model, the data set and the number of pictures, in one line."""
        part = f"{len(self.outcomes)} of {len(self.dataset.samples)} pictures"
        return f"{self.model.name}, weights: {self.model.weights}; {self.dataset.layout} {self.dataset.task}, {part}"

    def table(self) -> Table:
        """One row per metric: measured, published, difference; all in percent."""
        table = Table(box=None, header_style="dim")
        table.add_column("metric")
        for column in ("measured", "published", "difference"):
            table.add_column(column, justify="right")
        for metric, value in self.scores.values.items():
            published = self.published.get(metric)
            known = ("", "") if published is None else (f"{published:.2f}", f"{value - published:+.2f}")
            table.add_row(metric, f"{value:.2f}", *known)
        return table

    def per_class_table(self) -> Table:
        """The classes with the lowest scores, lowest first, with how much of each the data set holds."""
        table = Table(box=None, header_style="dim")
        rows = sorted(self.scores.per_class.items(), key=lambda row: row[1])
        more = f" (lowest {_CLASSES} of {len(rows)})" if len(rows) > _CLASSES else ""
        table.add_column(f"class{more}")
        table.add_column(_PER_CLASS[self.dataset.task], justify="right")
        table.add_column(_UNITS[self.dataset.task], justify="right")
        for name, score in rows[:_CLASSES]:
            table.add_row(escape(short(name)), f"{score:.2f}", str(self.scores.truth.get(name, 0)))
        return table
