"""No wait depends on the wall clock: it can be stepped at any moment. The service reads the monotonic clock."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("service", "handlers", "mobilevision")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "pb" not in path.parts)
WALL_CLOCK = {"time": {"time", "time_ns", "localtime", "gmtime"}, "datetime": {"now", "utcnow", "today"}}
# Files that may ask for the date, and what they do with it.
DATES = {
    "service/observability/spans.py": "the start of a span, which is a date by OpenTelemetry's format",
    "service/app/gateway.py": "the age of recorded calls, which outlives the process",
    "service/frontends/recording/recorder.py": "the date of a recorded call",
}


def uses(source: str) -> Iterator[str]:
    """Calls of the wall clock, such as `time.time`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if node.attr in WALL_CLOCK.get(owner, ()):
                yield f"{owner}.{node.attr}, line {node.lineno}"


@pytest.mark.parametrize("source", ["time.time()", "datetime.datetime.now()", "datetime.now(UTC)", "f(time.time)"])
def test_the_check_finds_the_wall_clock(source: str) -> None:
    assert list(uses(source))


def test_waits_read_the_monotonic_clock() -> None:
    found = {str(path.relative_to(ROOT)): list(uses(path.read_text())) for path in FILES}
    assert {name: where for name, where in found.items() if where and name not in DATES} == {}


def test_dates_are_asked_for_where_the_list_says() -> None:
    assert all(list(uses((ROOT / name).read_text())) for name in DATES)
