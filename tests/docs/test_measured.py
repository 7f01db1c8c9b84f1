"""The figures in the README and in docs/ are those of the measured files beside the benchmarks."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pages

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def measured(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "measured" / f"{name}.json").read_bytes())


@pytest.mark.parametrize("page", ["docs/performance.md", "README.md", "docs/capacity.md"])
def test_the_figures_of_a_page_are_those_of_the_files(page: str) -> None:
    assert (ROOT / page).read_text() == pages.pages(ROOT, pages.read())[ROOT / page], "make docs"


@pytest.mark.parametrize("page", ["README.md", "docs/capacity.md"])
def test_a_page_says_which_run_its_figures_are_of(page: str) -> None:
    _, block, _ = (ROOT / page).read_text().split(pages.MARK)
    machine = measured("serving")["head"]["machine"]
    assert f"revision {machine['git_revision'][:12]}. " in block
    assert machine["started_utc"][:10] in block
    assert "TorchScript, in float32" in block or "The networks ran in" in block


def test_the_readme_has_a_row_for_every_model_that_was_measured() -> None:
    _, block, _ = README.split(pages.MARK)
    models = {turn["model"] for turn in measured("serving")["turns"]}
    assert models <= set(re.findall(r"^\| `(\w+)` \|", block, re.MULTILINE))


def test_the_published_plots_are_there() -> None:
    shown = re.findall(r"!\[.*\]\((\w+\.png)\)", (ROOT / "docs" / "performance.md").read_text())
    assert {"serving.png", "overload.png", "scaling.png"} <= set(shown)
    assert all((ROOT / "docs" / name).is_file() for name in shown)


def test_figures_of_a_gpu() -> None:
    result = measured("gpu")
    rates = {
        (one["batch"], one["graphs"]): f"{one['per_second']:,.0f}"
        for one in result["points"]
        if (one["model"], one["dtype"]) == ("mobilevit_xxs_classify", "float16")
    }
    text = " ".join(README.split())
    assert f"{rates[1, True]} pictures/s one at a time with graphs and {rates[1, False]} without" in text
    assert f"{rates[64, True]} and {rates[64, False]} in batches of 64" in text
    for case, speedup in result["graph_speedup"].items():
        model, dtype, batch = case.split("/")
        with_graphs, without = (
            next(
                one["per_second"]
                for one in result["points"]
                if (one["model"], one["dtype"], one["batch"], one["graphs"]) == (model, dtype, int(batch), graphs)
            )
            for graphs in (True, False)
        )
        assert speedup == pytest.approx(with_graphs / without, rel=1e-4)


CAPACITY = (ROOT / "docs" / "capacity.md").read_text()
PEAK_PER_SECOND, PLANNED, ZONES = 1e9 / 86_400 * 2.5, 0.7, 3


@pytest.mark.parametrize(
    "row", re.findall(r"^\| `(\w+_\w+)` \| (.*) \|$", CAPACITY, re.MULTILINE), ids=lambda row: row[0]
)
def test_cores_for_a_billion_pictures_a_day(row: tuple[str, str]) -> None:
    model, cells = row
    result = measured("serving")
    cores = result["head"]["machine"]["cores"]
    mine = [turn for turn in result["turns"] if (turn["system"], turn["model"]) == ("mobilevision", model)]
    rate = statistics.median(turn["per_second"] for turn in mine if turn["clients"] == 32)
    needed = PEAK_PER_SECOND / PLANNED / (rate / cores)
    expected = [f"{rate:.0f}", f"{rate / cores:.0f}", f"{needed:,.0f}", f"{needed * ZONES / (ZONES - 1):,.0f}"]
    assert cells.split(" | ") == expected


def test_marks_of_the_autoscaler() -> None:
    table = CAPACITY[CAPACITY.index("| share of `R` |") :].split("\n\n", 1)[0].splitlines()[2:]
    steps = {f"{step['load']:g}": step for step in measured("load_profile")["steps"]}
    for line in table:
        load, *cells = line.strip("| ").split(" | ")
        step = steps[load]
        assert cells == [
            f"{step['offered_per_second']:.0f}",
            f"{step['calls_in_flight']:.1f}",
            f"{step['queue_age_seconds'] * 1e3:.0f} ms",
            f"{step['p50_ms']:.0f} ms",
            f"{step['p99_ms']:.0f} ms",
            f"{step['answered']} of {step['sent']}",
        ]


def test_the_rehearsed_rollout() -> None:
    result = measured("rolling")
    text = " ".join((ROOT / "docs" / "kubernetes.md").read_text().split())
    assert result["failed"] == 0
    assert result["refused_by_draining"] == {}
    assert f"{result['replacements']} instances were replaced" in text
    assert f"of {result['sent']:,} calls none failed" in text
