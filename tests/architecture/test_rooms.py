"""The rooms: imports point down, every module is inside a room, files are short, docstrings are complete.

The order of the rooms is in pyproject.toml (`tool.importlinter`). All violations of a rule are reported at once.
"""

import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import source_tree
from source_tree import PACKAGES, ROOT, Source

MOST_LINES = 400
# Tables of data, where one line is one entry.
DATA_TABLES = {Path("model_store/zoo/table.py")}
CHECKED_FOR_LENGTH = (*PACKAGES, "benchmarks", "deploy", "tests")
# `python -m package` and the package itself belong to no room.
OUTSIDE_ROOMS = {"__init__", "__main__"}
VAGUE_NAMES = {"util", "utils", "common", "helper", "helpers", "misc"}


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return source_tree.sources(*PACKAGES)


def contracts() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    return found


def rooms_of(package: str) -> set[str]:
    """The rooms that the contract of this package names."""
    [contract] = [each for each in contracts() if each["type"] == "layers" and each["containers"] == [package]]
    return {room.strip() for layer in contract["layers"] for room in layer.replace(":", "|").split("|")}


def report(violations: Sequence[str]) -> None:
    assert not violations, f"{len(violations)} violations:\n" + "\n".join(violations)


def test_imports_keep_to_the_contracts() -> None:
    # A process of its own: import-linter configures logging.
    command = [Path(sys.executable).parent / "lint-imports", "--no-logo"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_inside_a_room_and_every_room_exists(package: str) -> None:
    folder = ROOT / package
    present = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert present - OUTSIDE_ROOMS == rooms_of(package)
    without_init = {path.parent for path in folder.rglob("*.py") if not (path.parent / "__init__.py").exists()}
    assert without_init == set()


def test_a_room_of_the_gateway_is_a_folder() -> None:
    assert {path.stem for path in (ROOT / "service").glob("*.py")} <= OUTSIDE_ROOMS


def test_no_file_is_longer_than_400_lines() -> None:
    files = source_tree.sources(*CHECKED_FOR_LENGTH)
    too_long = [
        f"{source.path}:1: {count} lines"
        for source in files
        if (count := len(source.text.splitlines())) > MOST_LINES and source.path not in DATA_TABLES
    ]
    report(too_long)
    assert {source.path for source in files} >= DATA_TABLES


def test_no_module_has_a_vague_name() -> None:
    names = [(source.path, part) for source in source_tree.sources(*CHECKED_FOR_LENGTH) for part in source.path.parts]
    report(
        [f"{path}:1: say what is inside instead of {part}" for path, part in names if Path(part).stem in VAGUE_NAMES]
    )


def test_everything_public_has_a_docstring(sources: list[Source]) -> None:
    report([violation for source in sources for violation in source_tree.without_docstring(source)])


def test_docstrings_name_the_shapes_of_arrays(sources: list[Source]) -> None:
    aliases, known = source_tree.array_aliases(sources), source_tree.references(sources)
    report([violation for source in sources for violation in source_tree.without_shape(source, aliases, known)])


def test_docstrings_name_the_errors_that_are_raised(sources: list[Source]) -> None:
    bases, known = source_tree.error_bases(sources), source_tree.references(sources)
    report([violation for source in sources for violation in source_tree.unnamed_errors(source, bases, known)])
