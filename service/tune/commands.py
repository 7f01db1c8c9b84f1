"""The command `mobilevision tune`: a model and a latency goal in, a table, a plot and a settings file out.

The table goes to standard output, progress and errors go to standard error. Exit codes: 0 the goal can be met, 1 it
cannot be met or nothing was measured, 2 wrong usage, 130 interrupted (the points measured until then are shown and
written).
"""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageFilter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.core import catalog, settings
from service.core.allocation import Machine
from service.tune import plot, report
from service.tune.candidates import Candidate
from service.tune.points import Point, Refused, best
from service.tune.sweep import SweepPlan, sweep

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
    model: Annotated[str, typer.Argument(help="Model to tune; its archive must be built.")],
    goal_ms: Annotated[
        float, typer.Option(min=0.1, help="Latency goal: 99 of 100 calls take at most so many milliseconds.")
    ],
    archives: Annotated[Path | None, typer.Option(help="Folder with the archives [model_store/archives].")] = None,
    picture: Annotated[Path | None, typer.Option(help="A picture like yours [a drawn JPEG of 640x480 pixels].")] = None,
    clients: Annotated[
        list[int] | None,
        typer.Option(min=1, max=256, help="Number of clients that call at a time; repeat it for several [1, 4, 16]."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, max=600, help="Duration of each measurement [4; with --quick 2].")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Try fewer settings, with shorter measurements.")] = False,
    draw_plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Draw MODEL.png; needs matplotlib.")] = True,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for MODEL.toml, MODEL.json and MODEL.png.")] = OUT,
) -> None:
    """Find the settings with which this machine serves most pictures per second within a latency goal, by trying them.

    Example: `mobilevision tune demo_classify --goal-ms 50`, then `mobilevision serve --config
    build/tune/demo_classify.toml`

    This takes some minutes. Other programs should be idle meanwhile.
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
    refused: list[Refused] = []
    with tempfile.TemporaryDirectory(prefix="mobilevision-tune-") as folder:
        plan = SweepPlan(
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
            _measure(plan, points, refused, err)
            interrupted = False
        except KeyboardInterrupt:
            err.print("stopped; the points measured until now:")
            interrupted = True
    if points:
        report.show(plan, points, refused)
        report.write(plan, points, refused, out, draw_plot=draw_plot)
    else:
        err.print("[bold red]error:[/] no setting could be measured; the lines above say why", soft_wrap=True)
    if interrupted:
        raise typer.Exit(130)
    if best(points, goal_ms) is None:
        raise typer.Exit(1)


def _measure(plan: SweepPlan, points: list[Point], refused: list[Refused], err: Console) -> None:
    """Append to `points` and `refused` as they are found, so that they are kept when Ctrl-C ends the sweep."""
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
            progress.update(bar, description=report.words(candidate), total=max(progress.tasks[bar].total or 0, after))

        def failed(candidate: Candidate, reason: str) -> None:
            err.print(f"[red]left out:[/] {report.words(candidate)}: {escape(reason)}", soft_wrap=True)
            progress.advance(bar, len(plan.clients))

        def not_served(found: Refused) -> None:
            refused.append(found)
            text = f"{report.words(found.candidate)}: its workers computed with {found.computed_by or 'something else'}"
            err.print(f"[red]refused:[/] {escape(text)}; serve with this engine to see why in the log", soft_wrap=True)
            progress.advance(bar, len(plan.clients))

        with contextlib.closing(sweep(plan, on_start=started, on_failure=failed, on_refused=not_served)) as found:
            for point in found:
                points.append(point)
                progress.advance(bar)


def _read(picture: Path) -> bytes:
    with Image.open(picture) as image:
        image.verify()  # raises OSError before any server has started
    return picture.read_bytes()


def _drawn() -> bytes:
    """A JPEG that takes about as long to decode as a photograph."""
    width, height = PICTURE_PX
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(PICTURE_PX, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88)
    return stream.getvalue()
