"""The result of an evaluation: as JSON for programs, as a table beside the published score for people."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from service.eval.answers import Outcome
from service.eval.datasets import Dataset
from service.eval.errors import OutputFailed
from service.eval.run import Model
from service.eval.scores import Scores


@dataclass(frozen=True, slots=True)
class Report:
    """All there is to say about one evaluation. `resumed` pictures were answered by an earlier, interrupted run."""

    model: Model
    dataset: Dataset
    server: str
    outcomes: Sequence[Outcome]
    scores: Scores
    resumed: int
    seconds: float  # of this run

    @property
    def failures(self) -> list[Outcome]:
        """Failed pictures, sorted by name."""
        return sorted((outcome for outcome in self.outcomes if outcome.reason), key=lambda outcome: outcome.key)

    @property
    def by_reason(self) -> Mapping[str, int]:
        """How many pictures failed for each reason, most frequent first."""
        return dict(Counter(outcome.reason for outcome in self.failures).most_common())

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object; scores are in percent."""
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
            },
            "scores": dict(self.scores.values),
            "published": dict(model.published),
            "per_class": dict(self.scores.per_class),
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
        """Write the JSON, whole or not at all. Raises `OutputFailed`."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(json.dumps(self.to_json(), indent=2) + "\n")
                Path(temporary).chmod(0o644)
                os.replace(temporary, path)  # noqa: PTH105 - the name says that it is atomic
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise OutputFailed(f"cannot write {path}: {error.strerror}; name another place with --out") from error

    @property
    def title(self) -> str:
        """What was evaluated, in one line."""
        part = f"{len(self.outcomes)} of {len(self.dataset.samples)} pictures"
        return f"{self.model.name}, weights: {self.model.weights}; {self.dataset.layout} {self.dataset.task}, {part}"

    def table(self) -> Table:
        """Metric, measured, published, difference; all in percent."""
        table = Table(box=None, header_style="dim")
        table.add_column("metric")
        for column in ("measured", "published", "difference"):
            table.add_column(column, justify="right")
        for metric, value in self.scores.values.items():
            published = self.model.published.get(metric)
            known = ("", "") if published is None else (f"{published:.2f}", f"{value - published:+.2f}")
            table.add_row(metric, f"{value:.2f}", *known)
        return table
