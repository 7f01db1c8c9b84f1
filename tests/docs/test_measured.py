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


def table(first: str) -> dict[str, dict[str, str]]:
    """The README's table whose first column is called so: cells by row and column, without markup."""
    lines = README[README.index(f"| {first} | ours |") :].split("\n\n", 1)[0].splitlines()
    head, _, *rows = [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def measured(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "measured" / f"{name}.json").read_bytes())


@pytest.mark.parametrize(("model", "shares"), table("model").items())
def test_shares_of_the_limit(model: str, shares: dict[str, str]) -> None:
    result, case = measured("serving"), f"{model}/32"
    found = {"mobilevision": result["ratio_to_limit"][case], **result["peer_ratio_to_limit"][case]}
    assert shares == {column: f"{found[system]['median']:.2f}" for column, system in SYSTEMS.items()}


@pytest.mark.parametrize(("load", "goodput"), table("asked").items())
def test_goodput_under_overload(load: str, goodput: dict[str, str]) -> None:
    found = measured("overload")["goodput_over_capacity"]
    assert goodput == {column: f"{found[SYSTEMS[column]][f'{float(load):g}']['median']:.2f}" for column in goodput}


@pytest.mark.parametrize(("model", "added"), table("alone").items())
def test_what_is_added_to_a_picture_that_comes_alone(model: str, added: dict[str, str]) -> None:
    found = measured("serving")["added_ms"][model]
    assert added == {column: f"{found[SYSTEMS[column]]['median']:.1f}" for column in added}


@pytest.mark.parametrize(("figure", "cells"), table("start").items())
def test_start_and_rest(figure: str, cells: dict[str, str]) -> None:
    result = measured("startup")
    key, digits = {"seconds to the first answer": ("median_seconds", 1), "MiB at rest": ("idle_pss_mib", 0)}[figure]
    assert cells == {column: f"{result[key][SYSTEMS[column]]:.{digits}f}" for column in cells}


def test_the_page_of_results_is_the_files() -> None:
    assert (ROOT / "docs" / "performance.md").read_text() == report.page(), "make docs"


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
    steps = {f"{step['load']:g}": step for step in measured("marks")["steps"]}
    for line in table:
        load, *cells = line.strip("| ").split(" | ")
        step = steps[load]
        assert cells == [
            f"{step['offered_per_second']:.0f}",
            f"{step['calls_in_work']:.1f}",
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
