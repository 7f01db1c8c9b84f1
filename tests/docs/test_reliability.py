"""docs/reliability.md and the figures of the README are those of the measured file."""

import ast
import string
from pathlib import Path

from benchmarks.hold import record, report
from benchmarks.hold.rows import FOUND

ROOT = Path(__file__).parents[2]
RECORDS = record.read(ROOT / "benchmarks" / "measured")
README = (ROOT / "README.md").read_text()


def test_every_kind_of_fault_has_tests_that_exist() -> None:
    assert [one.row for one in FOUND] == list(string.ascii_uppercase[:23])
    for one in FOUND:
        assert one.tests, one
        for test in one.tests:
            file, _, name = test.partition("::")
            tree = ast.parse((ROOT / "tests" / file).read_text())
            functions = (ast.FunctionDef, ast.AsyncFunctionDef)
            assert name in {node.name for node in tree.body if isinstance(node, functions)}, test


def test_the_page_is_the_file() -> None:
    assert (ROOT / "docs" / "reliability.md").read_text() == report.page(RECORDS), "run: make docs"


def test_the_figures_of_the_readme_are_those_of_the_file() -> None:
    assert README.count(report.MARK) == 2
    assert report.with_summary(README, RECORDS) == README, "run: make hold"
