"""The command `mobilevision eval`: a running server and a data set in, a table and a JSON report out.

The table goes to stdout, progress and errors to stderr. Exit codes: 0 every picture was answered, 1 some failed or the
evaluation could not be finished, 2 wrong usage, 130 interrupted (run the same command again to go on).
"""

import time
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

from model_store.card import Task
from service.client import DEFAULT_TARGET, VisionClient
from service.eval import datasets, run, scores
from service.eval.answers import Outcome
from service.eval.datasets import Dataset, Sample
from service.eval.errors import EvalError, ModelChanged
from service.eval.journal import Journal
from service.eval.report import Report
from service.eval.run import Model

OUT = Path("build/eval")
TIMEOUT_SECONDS = 60.0
_LISTED = 5  # failed pictures shown; the report lists all


class LayoutOption(StrEnum):
    """Layouts by the names the command line uses."""

    AUTO = "auto"
    IMAGENET = "imagenet"
    COCO = "coco"
    VOC = "voc"
    ADE20K = "ade20k"
    DEMO = "demo"


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("eval")(evaluate)


def evaluate(
    task: Annotated[
        Task, typer.Argument(help="What to measure: classify (top-1, top-5), detect (mAP), segment (mIoU).")
    ],
    dataset_dir: Annotated[Path, typer.Argument(metavar="DATASET_DIR", help="Folder with the data set.")],
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where it listens.")] = DEFAULT_TARGET,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Model to ask [the server's default].")] = "",
    layout: Annotated[LayoutOption, typer.Option(help="How the data set lies on disk.")] = LayoutOption.AUTO,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate so many pictures only, a fixed fair mix.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Pictures under way at a time.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline of each call, seconds.")] = TIMEOUT_SECONDS,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Report to write [build/eval/MODEL-LAYOUT.json].")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Forget what an interrupted run left, or go on with it.")
    ] = False,
) -> None:
    """Measure how accurate a served model is on a data set, beside what was published about it."""
    err = Console(stderr=True, highlight=False)
    journal: Journal | None = None
    try:
        if task is Task.DETECT:
            scores.require_pycocotools()
        with VisionClient(server, timeout_seconds=timeout) as client:
            served = run.find_model(client, model, task)
            with err.status(f"reading {escape(str(dataset_dir))}"):
                chosen = None if layout is LayoutOption.AUTO else datasets.Layout(layout.value)
                dataset = datasets.read(dataset_dir, task=task, labels=served.labels, layout=chosen)
            path = out or OUT / f"{served.name}-{dataset.layout}.json"
            journal = Journal.open(path.with_name(f"{path.name}.journal"), _identity(served, dataset), fresh=fresh)
            samples = dataset.samples[:limit]
            report = _run(client, served, dataset, samples, journal, concurrency=concurrency, err=err)
            if run.find_model(client, served.name, task) != served:
                raise ModelChanged(f"{served.name} was replaced during the run; begin anew with --fresh")
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
            err.print("stopped; the answers so far are kept: run the same command again to go on", soft_wrap=True)
        raise typer.Exit(130) from None
    _show(report, path, err)
    if report.failures:
        raise typer.Exit(1)


def _identity(model: Model, dataset: Dataset) -> dict[str, str]:
    """What must be the same for answers of two runs to be scored together."""
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
        err.print(f"going on: {resumed} of {len(samples)} pictures were answered by an earlier run", soft_wrap=True)
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
        scores=scores.score(dataset, pairs, model.labels),
        resumed=resumed,
        seconds=seconds,
    )


def _show(report: Report, path: Path, err: Console) -> None:
    out = Console(highlight=False)
    out.print(f"[bold]{escape(report.title)}[/]", soft_wrap=True)
    out.print(report.table())
    if report.model.weights == "random":
        out.print("[red]weights: random[/]: this model was never trained; the scores are those of chance")
    out.print(f"[dim]report: {escape(str(path))}[/]", soft_wrap=True)
    if report.failures:
        counts = ", ".join(f"{count} {reason}" for reason, count in report.by_reason.items())
        err.print(f"[bold red]{len(report.failures)} pictures failed[/] and count as wrong: {counts}", soft_wrap=True)
        for outcome in report.failures[:_LISTED]:
            err.print(f"  {escape(outcome.key)}: {outcome.reason}: {escape(outcome.message)}", soft_wrap=True)


def _progress(console: Console) -> Progress:
    """A bar on stderr, where that is a terminal; it leaves nothing behind."""
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
