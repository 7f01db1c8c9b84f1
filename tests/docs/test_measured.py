"""The figures in the README are those of the measured files beside the benchmarks."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SYSTEMS = {
    "ours": "mobilevision",
    "mosec": "mosec",
    "TorchServe alone": "torchserve_alone",
    "LitServe": "litserve",
    "Ray Serve": "ray_serve",
    "BentoML": "bentoml",
}


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
    assert goodput == {column: f"{found[SYSTEMS[column]][f'{float(load):g}']:.2f}" for column in goodput}
