"""The result of `mobilevision tune`: a table for people, and files: settings (TOML), all points (JSON), a plot (PNG).

In: the plan of a sweep, its points (at least one), and what the workers refused. Nothing is measured here.
"""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.core import settings
from service.tune import plot
from service.tune.candidates import AUTO, Candidate, settings_file
from service.tune.points import Point, Refused, best, front
from service.tune.sweep import SweepPlan


def show(plan: SweepPlan, points: list[Point], refused: list[Refused]) -> None:
    """Print the points that no other point beats, and what the workers refused. `points` is not empty."""
    console = Console(highlight=False)
    chosen, shown = best(points, plan.goal_ms), front(points)
    machine = plan.machine
    title = f"{plan.card.name}: the best {len(shown)} of {len(points)} measured, {machine.cores} cores"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for column in ("workers", "threads", "max batch", "engine", "clients", "pictures/s", "p50 ms", "p99 ms", "goal"):
        table.add_column(column, justify="right", no_wrap=" " not in column, min_width=max(map(len, column.split())))
    for point in shown:
        candidate = point.candidate
        within = point.p99_ms <= plan.goal_ms
        table.add_row(
            str(candidate.workers_per_model),
            str(candidate.worker_threads),
            str(candidate.max_batch),
            point.computed_by or "-",
            str(point.clients),
            f"{point.per_second:.1f}",
            f"{point.p50_ms:.1f}",
            f"{point.p99_ms:.1f}",
            "best" if point == chosen else "met" if within else "missed",
            style="bold green" if point == chosen else None if within else "dim",
        )
    console.print(table)
    for each in refused:
        console.print(f"[dim]refused by the workers: {words(each.candidate)}[/]", soft_wrap=True)
    if chosen is None:
        console.print(
            f"[red]no setting answers 99 of 100 calls within {plan.goal_ms:g} ms[/]; the fastest takes "
            f"{shown[0].p99_ms:.1f} ms"
        )


def write(plan: SweepPlan, points: list[Point], refused: list[Refused], out: Path, *, draw_plot: bool) -> None:
    """Write MODEL.toml, MODEL.json and, with `draw_plot`, MODEL.png into the folder `out`. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    name = plan.card.name
    point = best(points, plan.goal_ms) or front(points)[0]
    values: dict[str, int | str | list[str]] = {"models": [name], **point.candidate.settings()}
    if plan.archives != settings.Settings.model_fields["archives"].default.resolve():
        values["archives"] = str(plan.archives)
    comments = (
        f"mobilevision tune {name} --goal-ms {plan.goal_ms:g}, on {plan.machine.cores} cores, {plan.machine.gpus} GPUs",
        f"{point.per_second:.1f} pictures/s, p99 {point.p99_ms:.1f} ms at {point.clients} clients",
        *([f"computed by {point.computed_by}"] if point.computed_by else []),
        *(f"refused by the workers: {each.candidate.engine}/{each.candidate.dtype}" for each in refused),
    )
    config = out / f"{name}.toml"
    config.write_text(settings_file(values, comments))
    report = {
        "model": name,
        "module_sha256": plan.card.module_sha256,
        "machine": asdict(plan.machine),
        "goal_ms": plan.goal_ms,
        "points": [asdict(each) for each in points],
        "refused": [asdict(each) for each in refused],
    }
    (out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    if draw_plot:
        plot.draw(out / f"{name}.png", points, refused, title=name, goal_ms=plan.goal_ms)
    Console(highlight=False).print(f"serve with it: mobilevision serve --config {escape(str(config))}", soft_wrap=True)


def words(candidate: Candidate) -> str:
    """A candidate in one line."""
    shape = f"{candidate.workers_per_model} workers x {candidate.worker_threads} threads, batch {candidate.max_batch}"
    asked = f"{candidate.engine}/{candidate.dtype}"
    return shape if asked == f"{AUTO}/{AUTO}" else f"{shape}, {asked}"
