"""Export a TorchScript module that was not written here: from a definition with `torchscript` to card and module.

The module is code of somebody else. It is loaded and run in a fresh process (`foreign_job`), which also gives equal
bytes for equal files. This module reads the definition before, and writes the card after.
"""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from handlers.contract.card import Card, InputSize, Normalize, Preprocess, Recipe, Weights, WeightsState
from model_store import zoo
from model_store.build import foreign_job, fresh_process
from model_store.build.errors import ExportError
from model_store.build.foreign_report import Wish
from model_store.definition.errors import DefinitionError
from model_store.definition.resolve import labels_of, preprocess_of
from model_store.definition.schema import Definition

FAMILY = "torchscript"
TIMEOUT_SECONDS = 600.0
# Without a base there is no better default. What was taken is printed.
_PREPROCESS = Preprocess(mode="squash")
_NORMALIZE = Normalize()


@dataclass(frozen=True)
class Foreign:
    """The card and the bytes of a module, what the definition left out, and the lines of the report."""

    card: Card
    module_bytes: bytes
    assumed: Mapping[str, str]
    report: tuple[str, ...]


def export_module(definition: Definition, text: str) -> Foreign:
    """Export a definition without a base. `text` is that of its file.

    Raises `DefinitionError`, and `ExportError` for a module that cannot be served, with the report.
    """
    source, task, table = definition.torchscript, definition.task, definition.input
    labels = labels_of(definition)
    if source is None or task is None or table is None or labels is None:
        raise DefinitionError(f"{definition.name}: torchscript, task, labels and input must be given")
    if definition.name in zoo.names():
        raise DefinitionError(f"name: {definition.name} is a model of the zoo; give yours another name")
    if not source.is_file():
        raise DefinitionError(f"torchscript: {source}: no such file")
    size = InputSize(height=table.height, width=table.width)
    given = {
        "channel_order": definition.preprocess.channels,
        "mean": definition.preprocess.mean,
        "std": definition.preprocess.std,
    }
    normalize = _NORMALIZE.model_copy(update={key: value for key, value in given.items() if value is not None})
    preprocess = preprocess_of(definition, _PREPROCESS, base_input=size, size=size)
    job = foreign_job.Job(
        source=source.resolve(),
        input=size,
        normalize=normalize,
        wish=_wish(definition, classes=len(labels.names), normalize_given=any(map(bool, given.values()))),
    )
    outcome, module_bytes = _examined(job, source)
    facts = outcome.facts
    if facts is None:
        raise ExportError(outcome.refusal, report=outcome.report.lines())
    served = facts.head == "served"
    card = Card(
        name=definition.name,
        version=definition.version,
        task=task,
        family=FAMILY,
        variant=source.stem[:100],
        head=facts.head,
        paper="",
        input=size,
        preprocess=preprocess,
        normalize=normalize,
        labels=labels.names,
        label_colours=labels.colours,
        outputs=facts.outputs,
        parameters=facts.parameters,
        macs=facts.macs,
        weights=Weights(
            state=WeightsState.CUSTOM,
            source=source.name,
            sha256=facts.sha256,
            licence=definition.licence,
            published=dict(definition.published),
        ),
        recipe=Recipe(
            head=facts.options,
            source_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
            definition=text,
            definition_sha256=hashlib.sha256(text.encode()).hexdigest(),
        ),
        parity=facts.parity,
        bfloat16=facts.bfloat16,
        module_sha256=hashlib.sha256(module_bytes).hexdigest(),
    )
    return Foreign(card, module_bytes, _assumed(definition, card, normalised=not served), outcome.report.lines())


def _wish(definition: Definition, *, classes: int, normalize_given: bool) -> Wish:
    """What the definition says about the answers. Raises `DefinitionError` for options of another task."""
    head, task = definition.head, definition.task
    allowed = {
        "classify": {"background"},
        "detect": {"background", "boxes", "max_boxes", "score_threshold"},
        "segment": {"align_corners"},
    }[str(task)]
    given = head.model_dump(exclude_none=True)
    for key in given:
        if key not in allowed:
            raise DefinitionError(f"[head] {key}: a {task} module has no such option; it has {', '.join(allowed)}")
    return Wish.model_validate({"task": task, "classes": classes, "normalize_given": normalize_given, **given})


def _examined(job: foreign_job.Job, source: Path) -> tuple[foreign_job.Outcome, bytes]:
    """Run the job in a fresh process; the outcome, and the bytes of the module unless it was refused."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / foreign_job.JOB).write_text(job.model_dump_json())
        fresh_process.run(
            "model_store.build.foreign_job:run_job",
            place,
            subject=f"examining {source.name}",
            timeout_seconds=TIMEOUT_SECONDS,
        )
        outcome = foreign_job.Outcome.model_validate_json((place / foreign_job.OUTCOME).read_bytes())
        module = place / foreign_job.MODULE
        return outcome, module.read_bytes() if module.is_file() else b""


def _assumed(definition: Definition, card: Card, *, normalised: bool) -> Mapping[str, str]:
    """The keys that the definition leaves out, and what was taken."""
    table = definition.preprocess
    values: dict[str, object] = {
        "[preprocess] resize": None if table.resize else card.preprocess.mode,
        "[preprocess] shorter_side_px": None if table.shorter_side_px else card.preprocess.shorter_side_px,
        "[preprocess] interpolation": None if table.interpolation else card.preprocess.interpolation,
        "[preprocess] antialias": None if table.antialias is not None else str(card.preprocess.antialias).lower(),
    }
    if normalised:
        values |= {
            "[preprocess] channels": None if table.channels else card.normalize.channel_order,
            "[preprocess] mean": None if table.mean else list(card.normalize.mean),
            "[preprocess] std": None if table.std else list(card.normalize.std),
        }
    return {key: str(value) for key, value in values.items() if value is not None}
