"""Every link of a page leads to a file of this repository, and to a heading that it has."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "benchmarks", "deploy", "model_store", "tests")
FOUND = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
PAGES = sorted(str(page.relative_to(ROOT)) for page in FOUND)


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"(?s)```.*?```", "", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_pages() -> None:
    assert {"README.md", "ARCHITECTURE.md", "docs/README.md", "docs/decisions/README.md"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?s)```.*?```", "", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name}: {link}"
        assert not anchor or anchor in anchors(target), f"{name}: {link}"


@pytest.mark.parametrize("name", PAGES)
def test_python_files_named_by_a_page_exist(name: str) -> None:
    page = ROOT / name
    for path in re.findall(
        r"`((?:service|handlers|model_store|mobilevision|benchmarks|deploy|tests)/[\w./-]+\.py)`", page.read_text()
    ):
        if re.search(r"\b[A-Z]{3,}", path):
            continue  # a placeholder, such as heads/NAME.py
        assert (ROOT / path).exists() or (page.parent / path).exists(), f"{name}: {path}"


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "docs/decisions/0001-rooms.md"])
def test_the_import_rule_is_that_of_import_linter(name: str) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one.get("containers") == ["service"])
    assert "  >  ".join(layers) in (ROOT / name).read_text()


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    records = {page.name for page in folder.glob("[0-9]*.md")}
    assert records == set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text()))
    for name in records:
        text = (folder / name).read_text()
        assert text.startswith(f"# {int(name[:4])}. ")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Measured consequence"]
