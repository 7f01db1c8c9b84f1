import pytest

from service.core.allocation import (
    MOST_WORKERS,
    Machine,
    gateways,
    resolved,
    shared_out,
    with_gateways,
    workers_and_threads,
)
from service.core.settings import Settings

GIB = 2**30


@pytest.mark.parametrize(
    ("cores", "memory_gib", "gpus", "models", "asked", "expected"),
    [
        (2, 24, 0, 1, (0, 0), (2, 1)),  # one-thread workers, one per core
        (2, 24, 0, 3, (0, 0), (1, 1)),  # threads of three workers would wait for each other
        (8, 32, 0, 3, (0, 0), (2, 1)),
        (16, 8, 0, 1, (0, 0), (8, 2)),  # memory leaves cores over
        (1, 0, 0, 2, (0, 0), (1, 1)),
        (8, 32, 0, 1, (3, 0), (3, 2)),
        (8, 32, 0, 1, (0, 4), (2, 4)),
        (8, 32, 0, 1, (3, 5), (3, 5)),  # what is asked for stays
        (2, 24, 0, 1, (0, 8), (1, 8)),
        (16, 64, 2, 3, (0, 0), (4, 1)),  # two per GPU
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
    changed = {"workers_per_model": 2, "worker_threads": 1}
    assert after.model_dump() == before.model_dump() | changed


def test_this_machine_has_cores_and_memory():
    machine = Machine.here({"CUDA_VISIBLE_DEVICES": ""})
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    assert machine.gpus == 0


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (4, 1), (7, 1), (8, 2), (12, 2), (256, 2)])
def test_gateway_processes(cores, expected):
    assert gateways(cores, "linux") == expected
    assert gateways(cores, "darwin") == 1


def test_a_given_number_of_gateway_processes_is_kept():
    assert with_gateways(Settings(), 7).gateway_processes == 1
    assert with_gateways(Settings(gateway_processes=3), 2).gateway_processes == 3


@pytest.mark.parametrize(
    ("processes", "batches_per_worker", "each"),
    [(2, 2, 1), (2, 4, 2), (4, 2, 1), (3, 8, 2), (2, 1, 1)],
)
def test_gateway_processes_divide_the_machine_and_the_batches_per_worker(processes, batches_per_worker, each):
    before = Settings(
        gateway_processes=processes,
        batches_per_worker=batches_per_worker,
        workers_per_model=3,
        shm_megabytes=100,
        max_queue=7,
    )
    after = shared_out(before, 12)
    assert after.batches_per_worker == each
    assert after.workers_per_model == 3  # the only one with work can use them all
    assert (after.max_queue, after.max_inflight_requests) == (7, before.max_inflight_requests)
    assert processes * after.decode_threads == 12
    assert 100 <= processes * after.shm_megabytes < 100 + processes


def test_no_shared_memory_stays_no_shared_memory():
    assert shared_out(Settings(gateway_processes=2, shm_megabytes=0), 8).shm_megabytes == 0
