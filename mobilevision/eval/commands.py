"""The command `mobilevision eval`: a running server and a data set in, a table and a JSON report out.

The table goes to standard output, progress and errors go to standard error. Exit codes: 0 every picture was answered,
1 some pictures failed or the evaluation ended early, 2 wrong usage, 130 interrupted (the same command continues).
"""

import json
import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mobilevision.client import DEFAULT_TARGET, VisionClient
from mobilevision.connection import ApiKey, Ca, PlaintextKey, Tls, connect
from mobilevision.eval import confusion, datasets, run
from mobilevision.eval.answers import Outcome
from mobilevision.eval.dataset import Dataset, Options, Sample
from mobilevision.eval.errors import EvalError, ModelChanged
from mobilevision.eval.journal import Journal
from mobilevision.eval.measures import MEASURES
from mobilevision.eval.report import Report
from mobilevision.eval.run import Model
from mobilevision.eval.worst import draw, ranked
from mobilevision.tasks import Task

OUT = Path("build/eval")
TIMEOUT_SECONDS = 60.0
_LISTED = 5  # failed pictures that are printed; the report lists all


class LayoutOption(StrEnum):
    """Layouts by the names the command line uses."""

    AUTO = "auto"
    IMAGENET = "imagenet"
    COCO = "coco"
    YOLO = "yolo"
    VOC = "voc"
    ADE20K = "ade20k"
    MASKS = "masks"
    DEMO = "demo"


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("eval")(evaluate)


def evaluate(
    task: Annotated[
        Task, typer.Argument(help="What to measure: classify (top-1, top-5), detect (mAP), segment (mIoU).")
    ],
    dataset_dir: Annotated[Path, typer.Argument(metavar="DATASET_DIR", help="Folder with the data set.")],
    server: Annotated[
        str, typer.Option("--server", metavar="HOST:PORT", help="Address of the server.")
    ] = DEFAULT_TARGET,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="Model to measure [the server's default for the task].")
    ] = "",
    layout: Annotated[
        LayoutOption, typer.Option(help="Layout of the folder; docs/eval.md shows them.")
    ] = LayoutOption.AUTO,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of pictures [all]. The selection is fixed and mixes all classes.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Number of calls at a time.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline of each call, in seconds.")] = TIMEOUT_SECONDS,
    api_key: ApiKey = None,
    tls: Tls = False,
    ca: Ca = None,
    plaintext_key: PlaintextKey = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Report to write [build/eval/MODEL-LAYOUT.json].")
    ] = None,
    worst: Annotated[
        tuple[int, Path] | None,
        typer.Option("--worst", metavar="N DIR", help="Draw the N worst pictures into DIR: truth left, answer right."),
    ] = None,
    first_class: Annotated[
        int | None,
        typer.Option(min=0, max=255, help="Value of the model's first class in masks [0; 1 for ade20k]."),
    ] = None,
    ignore_index: Annotated[int, typer.Option(min=0, max=255, help="Value of pixels of unknown class in masks.")] = 255,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one line of JSON.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Discard the answers of an interrupted run, or continue it.")
    ] = False,
) -> None:
    """Measure how accurate a served model is on a data set, beside the published scores.

    Example: `mobilevision eval classify /data/imagenet --limit 1000`
    """
    err = Console(stderr=True, highlight=False)
    if worst is not None and worst[0] < 1:
        raise typer.BadParameter("the number must be at least 1", param_hint="--worst")
    journal: Journal | None = None
    try:
        MEASURES[task].require()
        with connect(
            server, timeout_seconds=timeout, api_key=api_key, tls=tls, ca=ca, plaintext_key=plaintext_key
        ) as client:
            served = run.find_model(client, model, task)
            with err.status(f"reading {escape(str(dataset_dir))}"):
                chosen = None if layout is LayoutOption.AUTO else datasets.Layout(layout.value)
                dataset = datasets.read(
                    dataset_dir,
                    task=task,
                    labels=served.labels,
                    layout=chosen,
                    options=Options(first_class, ignore_index),
                )
            _show_skipped(dataset, err)
            path = out or OUT / f"{served.name}-{dataset.layout}.json"
            journal = Journal.open(path.with_name(f"{path.name}.journal"), _identity(served, dataset), fresh=fresh)
            samples = dataset.samples[:limit]
            report = _run(client, served, dataset, samples, journal, concurrency=concurrency, err=err)
            if run.find_model(client, served.name, task) != served:
                raise ModelChanged(f"{served.name} was replaced during the run; start again with --fresh")
            report = _with_files(client, report, samples, path, worst, err)
        report.write(path)
        journal.discard()
    except EvalError as error:
        if journal is not None:
            journal.close()
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        if journal is not None:
            journal.close()
            err.print("stopped; the answers so far are kept: run the same command again to continue", soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        _show(report, path)
    _show_failures(report, err)
    if report.failures:
        raise typer.Exit(1)


def _identity(model: Model, dataset: Dataset) -> dict[str, str]:
    """What two runs must have in common for their answers to be scored together."""
    return {
        "task": dataset.task.value,
        "model": model.name,
        "version": model.version,
        "weights": model.weights_source,
        "module_sha256": model.module_sha256,
        "layout": dataset.layout.value,
        "dataset fingerprint": dataset.fingerprint,
    }


def _run(
    client: VisionClient,
    model: Model,
    dataset: Dataset,
    samples: tuple[Sample, ...],
    journal: Journal,
    *,
    concurrency: int,
    err: Console,
) -> Report:
    outcomes: dict[str, Outcome] = {s.key: journal.answered[s.key] for s in samples if s.key in journal.answered}
    resumed = len(outcomes)
    if resumed:
        err.print(f"continuing: {resumed} of {len(samples)} pictures were answered by an earlier run", soft_wrap=True)
    left = tuple(sample for sample in samples if sample.key not in outcomes)
    started = time.perf_counter()
    failed = 0
    with _progress(err) as progress:
        bar = progress.add_task(model.name, total=len(samples), completed=resumed)
        for outcome in run.evaluate(client, model, dataset, left, concurrency=concurrency):
            journal.append(outcome)
            outcomes[outcome.key] = outcome
            failed += bool(outcome.reason)
            progress.update(bar, advance=1, description=f"{model.name}{f', {failed} failed' if failed else ''}")
    seconds = time.perf_counter() - started
    pairs = [(sample, outcomes[sample.key]) for sample in samples]
    return Report(
        model=model,
        dataset=dataset,
        server=client.target,
        outcomes=[outcome for _, outcome in pairs],
        scores=MEASURES[dataset.task].score(dataset, pairs, model.labels),
        resumed=resumed,
        seconds=seconds,
    )


def _with_files(
    client: VisionClient,
    report: Report,
    samples: tuple[Sample, ...],
    path: Path,
    worst: tuple[int, Path] | None,
    err: Console,
) -> Report:
    """Write the confusion matrix beside the report, and draw the worst pictures."""
    dataset, labels = report.dataset, report.model.labels
    pairs = list(zip(samples, report.outcomes, strict=True))
    matrix = MEASURES[dataset.task].confuse(dataset, pairs, labels)
    files = confusion.write(matrix, labels, path.with_name(f"{path.stem}.confusion.csv"))
    drawn = []
    if worst is not None:
        rows = ranked(dataset, pairs, worst[0])
        with _progress(err) as progress:
            bar = progress.add_task("drawing", total=len(rows))
            for picture in draw(client, report.model, dataset, rows, worst[1]):
                drawn.append(picture)
                progress.update(bar, advance=1)
    return replace(report, confusion=files, worst=drawn)


def _show(report: Report, path: Path) -> None:
    out = Console(highlight=False)
    out.print(f"[bold]{escape(report.title)}[/]", soft_wrap=True)
    out.print(report.table())
    if report.scores.per_class:
        out.print(report.per_class_table())
    if report.model.published and not report.published:
        out.print("[dim]the published scores are for other data, and are not shown[/]")
    if report.model.weights == "random":
        out.print("[red]weights: random[/]: this model was never trained, and its scores mean nothing")
    out.print(f"[dim]report: {escape(str(path))}[/]", soft_wrap=True)
    for file in report.confusion:
        out.print(f"[dim]confusion matrix: {escape(str(file))}[/]", soft_wrap=True)
    drawn = [picture for picture in report.worst if picture.drawing is not None]
    if drawn and drawn[0].drawing is not None:
        out.print(f"[dim]{len(drawn)} worst pictures: {escape(str(drawn[0].drawing.parent))}[/]", soft_wrap=True)


def _show_skipped(dataset: Dataset, err: Console) -> None:
    """Files that take no part, and what else to know about the data set."""
    if dataset.skipped:
        counts = ", ".join(f"{count} {why}" for why, count in dataset.skipped_by_reason.items())
        err.print(f"[yellow]{len(dataset.skipped)} files skipped[/]: {escape(counts)}", soft_wrap=True)
        for skipped in dataset.skipped[:_LISTED]:
            err.print(f"  {escape(skipped.file)}: {escape(skipped.why)}", soft_wrap=True)
    for note in dataset.notes:
        err.print(escape(note), soft_wrap=True)


def _show_failures(report: Report, err: Console) -> None:
    if report.failures:
        counts = ", ".join(f"{count} {reason}" for reason, count in report.by_reason.items())
        err.print(f"[bold red]{len(report.failures)} pictures failed[/] and count as wrong: {counts}", soft_wrap=True)
        for outcome in report.failures[:_LISTED]:
            err.print(f"  {escape(outcome.key)}: {outcome.reason}: {escape(outcome.message)}", soft_wrap=True)
    for picture in report.worst:
        if picture.drawing is None:
            err.print(f"not drawn: {escape(picture.key)}: {escape(picture.why_not)}", soft_wrap=True)


def _progress(console: Console) -> Progress:
    """A progress bar on `console` where it is a terminal. The bar disappears at the end."""
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
