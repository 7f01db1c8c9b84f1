"""The servers that integration tests share, and the time that these tests may take."""

from pathlib import Path

import pytest
from serving import archives, server

__all__ = ["archives", "server"]

# The first test of a process waits until the archives are built, which takes minutes on a busy machine.
TIMEOUT_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests of this folder more time than others, unless they say how much they need."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))
