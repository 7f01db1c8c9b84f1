"""The command `mobilevision tune`: a model and a latency goal in, a table, a plot and a settings file out.

The table goes to stdout, progress and errors to stderr. Exit codes: 0 the goal can be met, 1 it cannot or nothing could
be measured, 2 wrong usage, 130 interrupted (what was measured until then is shown and written).
"""

import contextlib
import io
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageFilter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service import catalog, settings
from service.allocation import Machine
from service.tune import plot
from service.tune.candidates import Candidate, settings_file
from service.tune.points import Point, best, front
from service.tune.sweep import Plan, sweep

OUT = Path("build/tune")
CLIENTS = (1, 4, 16)
QUICK_CLIENTS = (1, 8)
SECONDS = 4.0
QUICK_SECONDS = 2.0
PICTURE_PX = (640, 480)


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("tune")(tune)


def tune(
    model: Annotated[str, typer.Argument(help="Model to tune for; its archive must be built.")],
    goal_ms: Annotated[float, typer.Option(min=0.1, help="Milliseconds that 99 of 100 calls may take at most.")],
    archives: Annotated[Path | None, typer.Option(help="Folder with the archives [model_store/archives].")] = None,
    picture: Annotated[Path | None, typer.Option(help="A picture like yours [one drawn here, 640x480 JPEG].")] = None,
    clients: Annotated[
        list[int] | None, typer.Option(min=1, max=256, help="Callers at a time; may be repeated [1, 4, 16].")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, max=600, help="Length of each measurement [4; quick: 2].")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer settings, shorter measurements.")] = False,
    draw_plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Draw MODEL.png; needs matplotlib.")] = True,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where MODEL.toml, .json and .png go.")] = OUT,
) -> None:
    """Find the settings that serve a model best on this machine within a latency goal, by trying them.

    Minutes; nothing else should run meanwhile. Then: mobilevision serve --config build/tune/MODEL.toml
    """
    err = Console(stderr=True, highlight=False)
    try:
        if draw_plot:
            plot.require()
        chosen = settings.load(archives=archives)
        card = catalog.read(chosen.archives, models=(model,), default_models=()).cards[0]
        image = _drawn() if picture is None else _read(picture)
    except (settings.SettingsError, catalog.CatalogError, plot.PlotUnavailable, OSError) as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from error
    points: list[Point] = []
    with tempfile.TemporaryDirectory(prefix="mobilevision-tune-") as folder:
        plan = Plan(
            card=card,
            archives=chosen.archives.resolve(),
            image=image,
            machine=Machine.here(settings.child_environment()),
            goal_ms=goal_ms,
            clients=tuple(sorted(set(clients or (QUICK_CLIENTS if quick else CLIENTS)))),
            seconds=seconds or (QUICK_SECONDS if quick else SECONDS),
            quick=quick,
            folder=Path(folder),
        )
        try:
            _measure(plan, points, err)
            interrupted = False
        except KeyboardInterrupt:
            err.print("stopped; what was measured until now:")
            interrupted = True
    if points:
        _show(plan, points)
        _write(plan, points, out, draw_plot=draw_plot)
    else:
        err.print("[bold red]error:[/] nothing was measured")
    if interrupted:
        raise typer.Exit(130)
    if best(points, goal_ms) is None:
        raise typer.Exit(1)


def _measure(plan: Plan, points: list[Point], err: Console) -> None:
    """Fill `points`; they stay when Ctrl-C ends it."""
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as progress:
        bar = progress.add_task("starting", total=len(plan.candidates) * len(plan.clients))

        def started(candidate: Candidate) -> None:
            after = progress.tasks[bar].completed + len(plan.clients)
            progress.update(bar, description=_words(candidate), total=max(progress.tasks[bar].total or 0, after))

        def failed(candidate: Candidate, reason: str) -> None:
            err.print(f"[red]left out[/] {_words(candidate)}: {escape(reason)}", soft_wrap=True)
            progress.advance(bar, len(plan.clients))

        with contextlib.closing(sweep(plan, on_start=started, on_failure=failed)) as found:
            for point in found:
                points.append(point)
                progress.advance(bar)


def _show(plan: Plan, points: list[Point]) -> None:
    console = Console(highlight=False)
    chosen, shown = best(points, plan.goal_ms), front(points)
    machine = plan.machine
    table = Table(title=f"{plan.card.name}: the best {len(shown)} of {len(points)} measured, {machine.cores} cores")
    for column in ("workers", "threads", "max batch", "dtype", "clients", "pictures/s", "p50 ms", "p99 ms", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for point in shown:
        candidate = point.candidate
        within = point.p99_ms <= plan.goal_ms
        table.add_row(
            str(candidate.workers_per_model),
            str(candidate.worker_threads),
            str(candidate.max_batch),
            candidate.dtype,
            str(point.clients),
            f"{point.per_second:.1f}",
            f"{point.p50_ms:.1f}",
            f"{point.p99_ms:.1f}",
            "best" if point == chosen else "" if within else "over",
            style="bold green" if point == chosen else None if within else "dim",
        )
    console.print(table)
    if chosen is None:
        console.print(
            f"[red]no setting answers 99 of 100 calls within {plan.goal_ms:g} ms[/]; the fastest needs "
            f"{shown[0].p99_ms:.1f} ms"
        )


def _write(plan: Plan, points: list[Point], out: Path, *, draw_plot: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    name = plan.card.name
    point = best(points, plan.goal_ms) or front(points)[0]
    values: dict[str, int | str | list[str]] = {"models": [name], **point.candidate.settings()}
    if plan.archives != settings.Settings.model_fields["archives"].default.resolve():
        values["archives"] = str(plan.archives)
    comments = (
        f"mobilevision tune {name} --goal-ms {plan.goal_ms:g}, on {plan.machine.cores} cores, {plan.machine.gpus} GPUs",
        f"{point.per_second:.1f} pictures/s, p99 {point.p99_ms:.1f} ms at {point.clients} clients",
    )
    config = out / f"{name}.toml"
    config.write_text(settings_file(values, comments))
    report = {
        "model": name,
        "module_sha256": plan.card.module_sha256,
        "machine": asdict(plan.machine),
        "goal_ms": plan.goal_ms,
        "points": [asdict(each) for each in points],
    }
    (out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    if draw_plot:
        plot.draw(out / f"{name}.png", points, title=name, goal_ms=plan.goal_ms)
    Console(highlight=False).print(f"serve with it: mobilevision serve --config {escape(str(config))}", soft_wrap=True)


def _words(candidate: Candidate) -> str:
    words = f"{candidate.workers_per_model} workers x {candidate.worker_threads} threads, batch {candidate.max_batch}"
    return words if candidate.dtype == "auto" else f"{words}, {candidate.dtype}"


def _read(picture: Path) -> bytes:
    with Image.open(picture) as image:
        image.verify()  # raises OSError now, not after every server has started
    return picture.read_bytes()


def _drawn() -> bytes:
    """A picture that costs a JPEG decoder about what a photograph does."""
    width, height = PICTURE_PX
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(PICTURE_PX, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88)
    return stream.getvalue()
