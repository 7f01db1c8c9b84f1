"""Write the pages that show measured results: `python -m benchmarks.pages [NAME ...]`.

Without a name it writes docs/performance.md, and the tables of README.md and docs/capacity.md, from the files in
`benchmarks/measured`. With names, such as `serving overload`, it first copies these results (JSON, and the plot if a
page shows it) from `--results` to where they are published. It measures nothing.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report, serving_report
from benchmarks.machine import CACHE, ROOT
from benchmarks.report import MEASURED, NOTHING, SYSTEMS, Result, Rows, table

MARK = "<!-- measured by benchmarks -->"
_PLOTS = {"serving", "overload", "scaling"}  # shown in docs/performance.md
_LOADS = ("0.9", "1.2", "2")
_TASK_ALONE = "_classify"  # of the models whose added latency the README shows
_BEGIN = (
    "# Performance\n\n`python -m benchmarks.pages` makes this page from the latest "
    "[result files](../benchmarks/measured). [benchmarks/README.md](../benchmarks/README.md) explains the figures "
    "and the set-up of the other servers. Each section names its revision and the engine that ran the networks. The "
    "machine is shared and its speed drifts, so only ratios within one run can be compared."
)


def read(measured: Path = MEASURED) -> dict[str, Result]:
    """The content of every result file that is there, by its name without `.json`."""
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(measured.glob("*.json"))}


def performance(results: dict[str, Result]) -> str:
    """docs/performance.md as a whole."""
    sections = {"serving": serving_report.serving, **report.SECTIONS}
    return "\n\n".join([_BEGIN, *(write(results[name]) for name, write in sections.items() if name in results)]) + "\n"


def readme(results: dict[str, Result]) -> str:
    """The figures of the README: throughput relative to TorchScript, who is ahead, and the other figures."""
    serving = serving_report.current(results["serving"])
    return "\n\n".join(
        [
            f"{report.made_on(serving['head'])}. {report.computed_by(results['serving'])}",
            serving_report.headline(serving, bold=True),
            serving_report.ahead(serving),
            f"In time: {report.made_on(results['overload']['head'])}. {report.computed_by(results['overload'])} "
            f"Start and memory: {report.made_on(results['startup']['head'])}. "
            f"{report.computed_by(results['startup'])}",
            _figures(serving, results["overload"], results["startup"]),
        ]
    )


def _figures(serving: Result, overload: Result, startup: Result) -> str:
    goodput, added = overload["goodput_over_capacity"], serving["added_ms"]
    known = {*goodput, *startup["median_seconds"], *(system for by_system in added.values() for system in by_system)}
    systems = [name for name in SYSTEMS if name in known]

    def row(name: str, figures: dict[str, float], digits: int) -> Sequence[str]:
        cells = [f"{figures[system]:.{digits}f}" if system in figures else NOTHING for system in systems]
        return [name, f"**{cells[0]}**", *cells[1:]]

    def rows() -> Rows:
        for load in _LOADS:
            found = {system: by_load[load]["median"] for system, by_load in goodput.items() if load in by_load}
            yield row(f"in time at load {float(load):.1f}", found, 2)
        for model in (model for model in added if model.endswith(_TASK_ALONE)):
            yield row(f"added ms, `{model}`", {name: ms["median"] for name, ms in added[model].items()}, 1)
        yield row("start, seconds", startup["median_seconds"], 1)
        yield row("memory at rest, MiB", startup["idle_pss_mib"], 0)

    return table(["figure", *(SYSTEMS[name] for name in systems)], rows())


def marked(text: str, block: str) -> str:
    """The text with `block` between its two marks. Raises `ValueError` for a text that has not two of them."""
    before, _, after = text.split(MARK)
    return f"{before}{MARK}\n\n{block}\n\n{MARK}{after}"


def pages(root: Path, results: dict[str, Result]) -> dict[Path, str]:
    """What each page of the project in `root` should contain."""
    first, second = root / "README.md", root / "docs" / "capacity.md"
    return {
        root / "docs" / "performance.md": performance(results),
        first: marked(first.read_text(), readme(results)),
        second: marked(second.read_text(), serving_report.capacity(results["serving"])),
    }


def publish(names: Sequence[str], found: Path, root: Path) -> None:
    """Copy results to where they are published. Raises `SystemExit` if one is missing or was cut short."""
    for name in names:
        path = found / f"{name}.json"
        if not path.is_file():
            raise SystemExit(f"no {path}: run python -m benchmarks.{name}")
        if not json.loads(path.read_bytes())["head"]["complete"]:
            raise SystemExit(f"{path} is of a run that was cut short: run python -m benchmarks.{name} again")
    for name in names:
        shutil.copyfile(found / f"{name}.json", root / "benchmarks" / "measured" / f"{name}.json")
        plot = found / f"{name}.png"
        if name in _PLOTS and plot.is_file():
            shutil.copyfile(plot, root / "docs" / plot.name)


def main() -> None:
    """Copy what is named, and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="results to copy first: serving, overload, ...")
    parser.add_argument(
        "--results", type=Path, default=CACHE / "results", help="where they are [build/benchmarks/results]"
    )
    options = parser.parse_args()
    publish(options.names, options.results, ROOT)
    for path, content in pages(ROOT, read()).items():
        path.write_text(content)


if __name__ == "__main__":
    main()
