"""The commands `mobilevision models demo-train` and `demo-data`.

Progress on stderr, results on stdout. Exit codes: 0 done, 1 it could not be done, 2 wrong usage, 130 interrupted (a
training then goes on where it was when called again). Modules that need torch are imported where they are used.
"""

import platform
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from handlers.contract.card import Task
from model_store import zoo
from model_store.cli import terminal
from model_store.demo_training.recipes import RECIPES, before

if TYPE_CHECKING:
    from model_store.demo_training.train import Moment, Trained

WORK = Path("build/demo_train")
SCORED_PICTURES = 500
HELD_OUT_SEED = 7001  # no training uses it; nor does any use the held-out split
_INTERRUPTED = 130


def train(
    tasks: Annotated[
        list[str] | None, typer.Argument(help="classify, detect, segment; without any, all three.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder for drawn pictures and states; delete it to start anew.")] = WORK,
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoints to.")] = zoo.COMMITTED,
    pictures: Annotated[int, typer.Option(min=1, help="Held-out pictures to score on.")] = SCORED_PICTURES,
) -> None:
    """Train the demo checkpoints on pictures drawn here; an interrupted run goes on where it stopped."""
    known = [task.value for task in Task]  # the other recipes are steps on the way
    unknown = sorted(set(tasks or []) - set(known))
    if unknown:
        raise typer.BadParameter(f"no task is called {unknown[0]!r}; there are {', '.join(known)}")
    wanted = [task for task in known if not tasks or task in tasks]
    try:
        for task in wanted:
            for name in before(task):
                _train_one(name, work)
            trained = _train_one(task, work)
            _publish(task, trained, out, pictures)
    except KeyboardInterrupt:
        terminal.stderr().print("interrupted; the same command goes on from here")
        raise typer.Exit(_INTERRUPTED) from None
    except OSError as error:
        terminal.report_error(str(error))
        raise typer.Exit(1) from error


def _train_one(name: str, work: Path) -> "Trained":
    """Run one recipe; nothing happens where it is done."""
    from model_store.demo_training import train as trainer  # noqa: PLC0415 - imports torch

    recipe = RECIPES[name]
    with _progress() as progress:
        drawing = progress.add_task(f"{name}: pictures", total=recipe.pictures)
        training = progress.add_task(name, total=recipe.steps)

        def advance(moment: "Moment") -> None:
            progress.update(drawing, visible=False)
            progress.update(training, completed=moment.step, description=f"{name}: loss {moment.loss:.3f}")

        return trainer.run(recipe, folder=work, drawn=lambda: progress.advance(drawing), advance=advance)


def _publish(task: str, trained: "Trained", out: Path, pictures: int) -> None:
    """Score what will be stored, as stored, then store it with its record."""
    import torch  # noqa: PLC0415

    from model_store.build import assemble  # noqa: PLC0415
    from model_store.demo import checkpoints  # noqa: PLC0415
    from model_store.demo_training import held_out  # noqa: PLC0415
    from model_store.weights import layouts  # noqa: PLC0415
    from model_store.weights import load as weights  # noqa: PLC0415

    recipe = RECIPES[task]
    entry = zoo.get(recipe.entry)
    state = checkpoints.stored(trained.weights)
    network = assemble.build(entry)
    weights.load(network, state, layouts.get("native"))
    with _progress() as progress:
        scoring = progress.add_task(f"{task}: scoring", total=pictures)
        scores = held_out.measure(
            entry, network, pictures=pictures, seed=HELD_OUT_SEED, advance=lambda: progress.advance(scoring)
        )
    record = checkpoints.Record(
        digest=weights.digest(state),
        command=f"mobilevision models demo-train {task}",
        starts_from=recipe.starts_from,
        training_seed=recipe.seed,
        steps=trained.steps,
        pictures_shown=trained.steps * recipe.batch,
        wall_seconds=round(trained.wall_seconds),
        machine=f"{platform.machine()}, one thread",
        torch=torch.__version__,
        scored_seed=HELD_OUT_SEED,
        scored_pictures=pictures,
        scores={metric: round(score, 4) for metric, score in scores.items()},
    )
    path = checkpoints.write(recipe.entry, state, record, folder=out)
    figures = ", ".join(f"{metric} {score:.4f}" for metric, score in scores.items())
    took = timedelta(seconds=round(trained.wall_seconds))
    typer.echo(f"{recipe.entry}: {figures} on {pictures} held-out pictures; {trained.steps} steps in {took}; {path}")


def data(
    out: Annotated[Path, typer.Option(help="Folder to write to; made if needed.")],
    count: Annotated[
        int, typer.Option(min=1, max=100_000, help="Pictures of several shapes, and as many of one.")
    ] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Of the data set; its held-out split is written.")] = HELD_OUT_SEED,
) -> None:
    """Write the held-out demo pictures as files: JPEGs, COCO boxes, VOC masks, ImageNet folders."""
    from model_store.demo import files  # noqa: PLC0415 - takes a moment

    try:
        with _progress() as progress:
            drawing = progress.add_task("pictures", total=2 * count)
            files.write(out, pictures=count, seed=seed, advance=lambda: progress.advance(drawing))
    except OSError as error:
        terminal.report_error(f"cannot write to {out}: {error}")
        raise typer.Exit(1) from error
    typer.echo(f"{out}: {count} pictures of several shapes, {count} of one, seed {seed}")


def _progress() -> Progress:
    return terminal.progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )
