"""The table of docs/checkpoints.md says what happens to every container of weights in every layout."""

from pathlib import Path

import pytest
from checkpoint_table import CASES, LAYOUTS, PAGE, Case, outcome, page

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_the_page_has_the_table() -> None:
    assert PAGE.read_text() == page(), "run: make docs"


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_each_container_is_read_as_the_table_says(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(CASES[number], list(LAYOUTS)[number % len(LAYOUTS)], tmp_path)
    assert "must not be printed" not in capsys.readouterr().out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_read_as_the_table_says(layout: str, tmp_path: Path) -> None:
    check(CASES[0], layout, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_cell(case: Case, layout: str, tmp_path: Path) -> None:
    check(case, layout, tmp_path)


def check(case: Case, layout: str, folder: Path) -> None:
    found, said = outcome(case, layout, folder)
    assert found == case.result, said
    assert case.said in said
    assert "\n" not in said
