"""How many workers a model gets, how many threads each, and how many gateway processes: what these settings mean at 0.

In: the machine, the number of models, what the operator asked for. Out: numbers of at least 1. Never imports torch.

The rule: the cores are shared out as workers, because one-thread workers do more than one worker with many threads.
Memory bounds the workers; only where that leaves cores over do they get more threads. Workers with more threads than
there are cores wait for each other: three of two threads on two cores answered at a third to a thirtieth of the speed.
A GPU gets two per model, so that the copies of one overlap the computing of the other (not measured yet).

One gateway process is one event loop, which a machine of some size can outrun. More of them share the cores, the memory
and the workers (`shared_out`). Any of them may be the only one with connections, so each counts with all workers; what
they share out is how many batches are sent to a worker, at least one each. So no worker stays idle while something
waits, and while all gateways are busy, the others' batches stand before a worker where one's own next batch would. A
gateway cannot see those: to it batches take longer, by as much as it gets fewer of the workers, and from that its
predictions learn what to promise. A gateway that is busy alone pays with the moments between two batches.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from handlers.hardware import gpu_count, usable_cores, usable_memory_bytes
from service.settings import Settings

# What a worker is counted as: torch and a model take 0.3 to 0.5 GiB, a large batch of a segmenter as much again.
WORKER_BYTES = 2**30
WORKERS_PER_GPU = 2
MOST_WORKERS = 64  # as many as the setting takes
CORES_PER_GATEWAY = 4
# Each more makes batches smaller, and an urgent picture wait for one batch more. Simulated with twice the work that 12
# workers can do, two answer as much as one, three a sixth less, four a third less: more have to be asked for.
MOST_GATEWAYS = 2


@dataclass(frozen=True, slots=True)
class Machine:
    """What the workers share."""

    cores: int
    memory_bytes: int
    gpus: int

    @classmethod
    def here(cls, environment: Mapping[str, str]) -> "Machine":
        """This machine, or what our container has of it. `environment`: that of the workers."""
        return cls(cores=usable_cores(), memory_bytes=usable_memory_bytes(), gpus=gpu_count(environment))


def workers_and_threads(machine: Machine, *, models: int, workers: int = 0, threads: int = 0) -> tuple[int, int]:
    """Workers per model and threads per worker; what is given as 0 is chosen."""
    if not workers and machine.gpus:
        workers = WORKERS_PER_GPU * machine.gpus
    elif not workers:
        room = machine.memory_bytes // WORKER_BYTES
        workers = max(1, min(machine.cores // (threads or 1), room) // models)
    workers = min(workers, MOST_WORKERS)
    return workers, threads or max(1, machine.cores // (workers * models))


def gateways(cores: int, platform: str = sys.platform) -> int:
    """Gateway processes. Elsewhere than on Linux, SO_REUSEPORT does not spread the connections."""
    return max(1, min(cores // CORES_PER_GATEWAY, MOST_GATEWAYS)) if platform == "linux" else 1


def with_gateways(settings: Settings, cores: int) -> Settings:
    """The settings with the number of gateway processes in place of 0."""
    return settings.model_copy(update={"gateway_processes": settings.gateway_processes or gateways(cores)})


def shared_out(settings: Settings, cores: int) -> Settings:
    """The settings of each of several gateway processes: its share of the machine and of the places at the workers."""
    processes = settings.gateway_processes
    return settings.model_copy(
        update={
            "batches_per_worker": max(1, settings.batches_per_worker // processes),
            "decode_threads": math.ceil((settings.decode_threads or cores) / processes),
            "shm_megabytes": math.ceil(settings.shm_megabytes / processes),
        }
    )


def resolved(settings: Settings, machine: Machine, *, models: int) -> Settings:
    """The settings with the numbers of workers and of threads in place of 0."""
    workers, threads = workers_and_threads(
        machine, models=models, workers=settings.workers_per_model, threads=settings.worker_threads
    )
    return settings.model_copy(update={"workers_per_model": workers, "worker_threads": threads})
