"""A process that takes and returns the same memory again and again pays for its pages once."""

import subprocess
import sys

import pytest

ROUNDS = """
import resource
import numpy as np
{first}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    before = faults()
    blocks = [np.ones(2**20, np.uint8) for _ in range(20)]
    del blocks
    paid = faults() - before
print(paid)
"""
PAGES = 20 * 2**20 // 4096


def paid(first: str) -> int:
    """Page faults of the last of ten rounds with 20 MiB each."""
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS.format(first=first)], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_memory_that_was_needed_once_is_kept():
    assert paid("") > PAGES / 2, "glibc gives it back by itself no more; is the module still needed?"
    assert paid("from handlers.malloc_tuning import tune_malloc; tune_malloc()") < PAGES / 50


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_elsewhere_nothing_is_done():
    elsewhere = "import sys; sys.platform = 'darwin'; from handlers.malloc_tuning import tune_malloc; tune_malloc()"
    assert paid(elsewhere) > PAGES / 2
