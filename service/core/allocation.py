"""How many workers a model gets, how many threads each, and how many gateway processes run, where settings are 0.

In: the machine, the number of models, the settings. Out: numbers of at least 1. Never imports torch.

Workers and threads. The cores are divided into workers of one thread, because these do more than fewer workers with
more threads. Memory limits the number of workers. Only if it leaves cores unused do workers get more threads. There are
never more threads than cores: three workers with two threads each, on two cores, ran at a third to a thirtieth of the
speed. Each model gets two workers per GPU, so that one copies data while the other computes (not measured).

Gateway processes. One gateway process is one event loop, which uses at most one core. On large machines that is not
enough. Several processes divide cores and memory (`shared_out`). Each process uses all workers, because all connections
may be at one process. They divide the number of batches sent to a worker, with at least one each. So no worker is idle
while a picture waits. A process does not see the batches of the others; to it, batches take longer. Its latency model
learns that, so its promises stay right. A process that is busy alone loses the time between two batches.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from handlers.hardware import gpu_count, usable_cores, usable_memory_bytes
from service.core.settings import Settings

# Memory planned for a worker. Torch and a model take 0.3 to 0.5 GiB; a large batch of a segmenter as much again.
WORKER_BYTES = 2**30
WORKERS_PER_GPU = 2
MOST_WORKERS = 64  # the upper bound of the setting `workers_per_model`
CORES_PER_GATEWAY = 4
# Each further gateway process makes batches smaller, and lets an urgent picture wait for one batch more. In a
# simulation with twice the load that 12 workers can handle, two processes answer as many requests as one, three a sixth
# less, four a third less. So more than two are never chosen automatically.
MOST_GATEWAYS = 2


@dataclass(frozen=True, slots=True)
class Machine:
    """The resources that all workers share."""

    cores: int
    memory_bytes: int
    gpus: int

    @classmethod
    def here(cls, environment: Mapping[str, str]) -> "Machine":
        """Return the resources of this machine, or of our container. `environment` is that of the workers."""
        return cls(cores=usable_cores(), memory_bytes=usable_memory_bytes(), gpus=gpu_count(environment))


def workers_and_threads(machine: Machine, *, models: int, workers: int = 0, threads: int = 0) -> tuple[int, int]:
    """Return workers per model and threads per worker. A value given as 0 is chosen."""
    if not workers and machine.gpus:
        workers = WORKERS_PER_GPU * machine.gpus
    elif not workers:
        fit_in_memory = machine.memory_bytes // WORKER_BYTES
        workers = max(1, min(machine.cores // (threads or 1), fit_in_memory) // models)
    workers = min(workers, MOST_WORKERS)
    return workers, threads or max(1, machine.cores // (workers * models))


def gateways(cores: int, platform: str = sys.platform) -> int:
    """Return how many gateway processes to run. Only on Linux more than 1: there SO_REUSEPORT spreads connections."""
    return max(1, min(cores // CORES_PER_GATEWAY, MOST_GATEWAYS)) if platform == "linux" else 1


def with_gateways(settings: Settings, cores: int) -> Settings:
    """Return the settings with the number of gateway processes, if it was 0."""
    return settings.model_copy(update={"gateway_processes": settings.gateway_processes or gateways(cores)})


def shared_out(settings: Settings, cores: int) -> Settings:
    """Return the settings of one of several gateway processes: its share of threads, memory and batches per worker."""
    processes = settings.gateway_processes
    return settings.model_copy(
        update={
            "batches_per_worker": max(1, settings.batches_per_worker // processes),
            "decode_threads": math.ceil((settings.decode_threads or cores) / processes),
            "shm_megabytes": math.ceil(settings.shm_megabytes / processes),
        }
    )


def resolved(settings: Settings, machine: Machine, *, models: int) -> Settings:
    """Return the settings with the numbers of workers and threads, where they were 0."""
    workers, threads = workers_and_threads(
        machine, models=models, workers=settings.workers_per_model, threads=settings.worker_threads
    )
    return settings.model_copy(update={"workers_per_model": workers, "worker_threads": threads})
