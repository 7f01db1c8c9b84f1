"""Plots of results: PNG files by matplotlib (the extra `plot`). Without matplotlib a message is printed instead."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import results
from benchmarks.serving_results import ServingResult

OURS = "mobilevision"
_COLOURS = {OURS: "#c0392b", "limit": "#222222"}
_NOTE_SIZE = 7


def plot_serving(result: ServingResult, path: Path, console: Console) -> None:
    """Throughput relative to TorchScript in float32 in process, by clients, with the limit. One panel per model.

    Where TorchScript in float32 was not measured, relative to the limit.
    """
    models = sorted({turn.model for turn in result.turns})
    if not models:
        return
    if result.ratio_to_torchscript:
        base, ours, peers = "TorchScript float32", result.ratio_to_torchscript, result.peer_ratio_to_torchscript
    else:
        base, ours, peers = "in-process limit", result.ratio_to_limit, result.peer_ratio_to_limit

    def draw(axes: Any, model: str) -> None:
        series: dict[str, dict[int, float]] = {}
        limit = {case: {"limit": gain} for case, gain in result.limit_to_torchscript.items()}
        for found in ({case: {OURS: ratio} for case, ratio in ours.items()}, peers, limit):
            for case, by_system in found.items():
                name, _, clients = case.rpartition("/")
                if name == model:
                    for system, ratio in by_system.items():
                        series.setdefault(system, {})[int(clients)] = ratio.median
        axes.axhline(1.0, color=_COLOURS["limit"], linewidth=1, linestyle="--")
        _lines(axes, series)
        _doubling(axes, sorted({clients for points in series.values() for clients in points}))
        axes.set_xlabel("clients, one request at a time each")
        axes.set_ylabel(f"throughput / {base} in process")
        axes.set_ylim(bottom=0)
        axes.set_title(model)

    _figure(models, draw, result.head, path, console)


def plot_overload(result: results.OverloadResult, path: Path, console: Console) -> None:
    """Goodput by offered load, both as shares of each system's capacity."""
    if not result.points:
        return

    def draw(axes: Any, _model: str) -> None:
        series = {
            system: {float(share): goodput.median for share, goodput in by_load.items()}
            for system, by_load in result.goodput_over_capacity.items()
        }
        axes.plot(
            [0, 1, max(1, *(point.load for point in result.points))],
            [0, 1, 1],
            color=_COLOURS["limit"],
            linewidth=1,
            linestyle="--",
        )
        _lines(axes, series)
        axes.set_xlabel("offered / capacity")
        axes.set_ylabel(f"answered within {result.deadline_ms:.0f} ms / capacity")
        axes.set_ylim(bottom=0)

    _figure([result.points[0].model], draw, result.head, path, console)


def plot_scaling(result: results.ScalingResult, path: Path, console: Console) -> None:
    """Throughput and CPU time per picture as multiples of the in-process limit. One panel per dimension."""
    dimensions = sorted({point.dimension for point in result.points})
    if not dimensions:
        return

    def draw(axes: Any, dimension: str) -> None:
        points = [point for point in result.points if point.dimension == dimension]
        values = [point.value for point in points]
        throughput = [point.share_of_limit for point in points]
        axes.plot(values, throughput, marker="o", color=_COLOURS[OURS], label="throughput")
        cost = [point.cost_over_limit for point in points]
        axes.plot(values, cost, marker="s", color="#2980b9", label="CPU time per picture")
        _doubling(axes, values)
        axes.set_xlabel(dimension)
        axes.set_ylabel("multiple of the in-process limit's")
        axes.set_ylim(bottom=0)
        axes.legend()

    _figure(dimensions, draw, result.head, path, console)


def plot_startup(result: results.StartupResult, path: Path, console: Console) -> None:
    """Seconds to the first answer, and idle memory."""
    if not result.starts:
        return
    panels = {"seconds to first answer": result.median_seconds, "idle MiB (PSS)": result.idle_pss_mib}

    def draw(axes: Any, title: str) -> None:
        values = panels[title]
        axes.barh(list(values), list(values.values()), color=[_COLOURS.get(name, "#7f8c8d") for name in values])
        axes.set_xlabel(title)

    _figure(list(panels), draw, result.head, path, console)


def plot_soak(samples: list[tuple[float, dict[str, float]]], head: results.Head, path: Path, console: Console) -> None:
    """PSS of every process over time. `samples` are pairs of seconds and MiB by process."""
    if not samples:
        return

    def draw(axes: Any, _title: str) -> None:
        series: dict[str, dict[float, float]] = {}
        for seconds, by_process in samples:
            for process, mib in by_process.items():
                series.setdefault(process, {})[seconds / 60] = mib
        for process, points in series.items():
            axes.plot(list(points), list(points.values()), label=process)
        axes.set_xlabel("minutes")
        axes.set_ylabel("PSS, MiB")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=_NOTE_SIZE)

    _figure(["memory"], draw, head, path, console)


def _doubling(axes: Any, values: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with a tick at each measured value."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{value:g}" for value in values])


def _lines(axes: Any, series: dict[str, dict[Any, float]]) -> None:
    for name in sorted(series, key=lambda name: (name != OURS, name)):
        points = dict(sorted(series[name].items()))
        width = 2.5 if name == OURS else 1.2
        axes.plot(
            list(points), list(points.values()), marker="o", label=name, color=_COLOURS.get(name), linewidth=width
        )
    axes.legend(fontsize=_NOTE_SIZE)


def _figure(
    panels: list[str], draw: Callable[[Any, str], None], head: results.Head, path: Path, console: Console
) -> None:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - the `plot` extra
    except ImportError:
        console.print("no plot: matplotlib is not installed (pip install 'mobilevision[plot]')", markup=False)
        return
    figure = Figure(figsize=(5.5 * len(panels), 4.4), layout="constrained")
    for number, panel in enumerate(panels, start=1):
        draw(figure.add_subplot(1, len(panels), number), panel)
    machine = head.machine
    note = f"{machine.cpu_model}, {machine.cores} cores, torch {machine.torch}, load {machine.load_average} at start"
    figure.supxlabel(f"{note}; {machine.git_revision[:12]}, {machine.started_utc}", fontsize=_NOTE_SIZE, color="gray")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    console.print(f"wrote {path}")
