"""The figures in the README and in docs/ are those of the measured files beside the benchmarks."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SYSTEMS = {column: system for system, column in report.SYSTEMS.items()}


def table() -> dict[str, dict[str, str]]:
    """The README's table of figures: cells by row and column, without markup."""
    lines = README[README.index("| figure | ours |") :].split("\n\n", 1)[0].splitlines()
    head, _, *rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].replace("`", ""): dict(zip(head[1:], row[1:], strict=True)) for row in rows}


ROWS = table()
NOT_MEASURED = "–"


def rows(first: str) -> list[tuple[str, dict[str, str]]]:
    """The rows whose name begins so: the rest of the name, and the cells by column. A table without any fails."""
    found = [(name.removeprefix(first), cells) for name, cells in ROWS.items() if name.startswith(first)]
    assert found, f"the README has no row {first}..."
    return found


def measured(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "measured" / f"{name}.json").read_bytes())


def test_the_readme_has_these_rows() -> None:
    assert list(ROWS) == [
        "throughput, mobilevit_xxs_classify",
        "throughput, emo_1m_classify",
        "throughput, mobilevit_xxs_detect",
        "throughput, mobilevit_xxs_segment",
        "in time at load 0.9",
        "in time at load 1.2",
        "in time at load 2.0",
        "added ms, mobilevit_xxs_classify",
        "added ms, emo_1m_classify",
        "start, seconds",
        "memory at rest, MiB",
    ]


@pytest.mark.parametrize(("model", "shares"), rows("throughput, "))
def test_shares_of_the_limit(model: str, shares: dict[str, str]) -> None:
    result, case = measured("serving"), f"{model}/32"
    found = {"mobilevision": result["ratio_to_limit"][case], **result["peer_ratio_to_limit"][case]}
    assert shares == {column: f"{found[system]['median']:.2f}" for column, system in SYSTEMS.items()}


@pytest.mark.parametrize(("load", "goodput"), rows("in time at load "))
def test_goodput_under_overload(load: str, goodput: dict[str, str]) -> None:
    found = measured("overload")["goodput_over_capacity"]
    expected = {
        column: f"{found[system][f'{float(load):g}']['median']:.2f}" if system in found else NOT_MEASURED
        for column, system in SYSTEMS.items()
    }
    assert goodput == expected


@pytest.mark.parametrize(("model", "added"), rows("added ms, "))
def test_what_is_added_to_a_picture_that_comes_alone(model: str, added: dict[str, str]) -> None:
    found = measured("serving")["added_ms"][model]
    assert added == {column: f"{found[system]['median']:.1f}" for column, system in SYSTEMS.items()}


@pytest.mark.parametrize(
    ("figure", "key", "digits"), [("start, seconds", "median_seconds", 1), ("memory at rest, MiB", "idle_pss_mib", 0)]
)
def test_start_and_rest(figure: str, key: str, digits: int) -> None:
    result = measured("startup")
    assert ROWS[figure] == {column: f"{result[key][system]:.{digits}f}" for column, system in SYSTEMS.items()}


def test_the_page_of_results_is_the_files() -> None:
    assert (ROOT / "docs" / "performance.md").read_text() == report.page(), "make docs"


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
