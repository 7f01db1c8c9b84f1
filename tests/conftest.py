"""Rules of the whole test run: one computing thread per process, repeatable property tests, long files first, logging.

`OMP_NUM_THREADS` is set before anything imports torch. Processes that a test starts inherit it. Two test processes on
two cores would otherwise start four computing threads that wait for each other.
"""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Property tests draw the same examples in every run of `make test`, so that a failure comes from the change under test.
# `make test-all` draws new ones (`--hypothesis-profile random`). An example has no time limit: the machine may be busy.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("repeatable")

# Folders in the order in which their files start. Long files first: at the end no process waits for another.
ORDER = ("integration", "parity", "deploy", "contract")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by folder. The order inside a folder stays."""

    def rank(item: pytest.Item) -> int:
        folder = next((part for part in item.path.parts if part in ORDER), None)
        return ORDER.index(folder) if folder is not None else len(ORDER)

    items.sort(key=rank)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Restore the root logger. A test may configure logging, and the next test in the process looks for messages."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
