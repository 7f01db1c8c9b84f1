import pytest

from service.allocation import MOST_WORKERS, Machine, resolved, workers_and_threads
from service.settings import Settings

GIB = 2**30


@pytest.mark.parametrize(
    ("cores", "memory_gib", "gpus", "models", "asked", "expected"),
    [
        (2, 24, 0, 1, (0, 0), (2, 1)),  # one-thread workers, one per core
        (2, 24, 0, 3, (0, 0), (1, 2)),  # a model that is busy alone has every core
        (8, 32, 0, 3, (0, 0), (2, 4)),
        (16, 8, 0, 1, (0, 0), (8, 2)),  # memory bounds the workers, threads fill the rest
        (1, 0, 0, 2, (0, 0), (1, 1)),
        (8, 32, 0, 1, (3, 0), (3, 2)),
        (8, 32, 0, 1, (0, 4), (2, 4)),
        (8, 32, 0, 1, (3, 5), (3, 5)),  # what is asked for stays
        (2, 24, 0, 1, (0, 8), (1, 8)),
        (16, 64, 2, 3, (0, 0), (4, 4)),  # two per GPU
        (16, 64, 2, 1, (1, 0), (1, 16)),
        (256, 512, 0, 1, (0, 0), (MOST_WORKERS, 4)),
    ],
)
def test_workers_and_threads(cores, memory_gib, gpus, models, asked, expected):
    machine = Machine(cores=cores, memory_bytes=memory_gib * GIB, gpus=gpus)
    assert workers_and_threads(machine, models=models, workers=asked[0], threads=asked[1]) == expected


def test_settings_are_resolved_and_nothing_else_changes():
    before = Settings(max_batch=5)
    after = resolved(before, Machine(cores=4, memory_bytes=8 * GIB, gpus=0), models=2)
    changed = {"workers_per_model": 2, "worker_threads": 2}
    assert after.model_dump() == before.model_dump() | changed


def test_this_machine_has_something_to_share():
    machine = Machine.here({"CUDA_VISIBLE_DEVICES": ""})
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    assert machine.gpus == 0
