"""A plot of the points: throughput over the 99th percentile of latency. Needs matplotlib, from the extra `plot`."""

import importlib.util
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from service.tune.points import Point, Refused, best, front


class PlotUnavailable(Exception):
    """matplotlib is missing. The message says what to do."""


def require() -> None:
    """Raises `PlotUnavailable` where matplotlib is missing, so that a sweep does not start in vain."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotUnavailable("the plot needs matplotlib: pip install 'mobilevision[plot]', or leave it out: --no-plot")


def draw(path: Path, points: Sequence[Point], refused: Sequence[Refused], *, title: str, goal_ms: float) -> None:
    """Write the plot to `path` as PNG. `points` is not empty. The legend names what the workers refused."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional, and slow to import

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    by_candidate = groupby(points, key=lambda point: point.candidate)
    for candidate, group in by_candidate:
        curve = sorted(group, key=lambda point: point.clients)
        shape = f"{candidate.workers_per_model} x {candidate.worker_threads}, batch {candidate.max_batch}"
        axes.plot(
            [point.p99_ms for point in curve],
            [point.per_second for point in curve],
            marker="o",
            alpha=0.6,
            label=f"{shape}, {curve[0].computed_by or 'engine not known'}",
        )
        for point in curve:
            axes.annotate(
                str(point.clients), (point.p99_ms, point.per_second), xytext=(4, 4), textcoords="offset points"
            )
    edge = front(points)
    axes.step([p.p99_ms for p in edge], [p.per_second for p in edge], where="post", color="black", linewidth=0.8)
    for each in refused:
        axes.plot([], [], linestyle="none", label=f"refused: {each.candidate.engine}/{each.candidate.dtype}")
    axes.axvline(goal_ms, color="tab:red", linestyle="--", label=f"goal {goal_ms:g} ms")
    chosen = best(points, goal_ms)
    if chosen is not None:
        axes.plot(chosen.p99_ms, chosen.per_second, marker="*", markersize=18, color="tab:red", linestyle="none")
    axes.set(xscale="log", xlabel="p99, milliseconds", ylabel="pictures per second", title=title)
    axes.legend(title="workers x threads; numbers: clients", fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
