"""How many workers a model gets, and how many threads each: what `workers_per_model` and `worker_threads` mean at 0.

In: the machine, the number of models, what the operator asked for. Out: two numbers of at least 1. Never imports torch.

The rule: every model can use the whole machine by itself, because models are seldom all busy at once. The cores are
shared out as workers, because one-thread workers do more than one worker with many threads; where that leaves a model
with fewer workers than cores, each worker's threads fill the rest. Memory bounds the workers. A GPU gets two per model,
so that the copies of one overlap the computing of the other (not measured yet).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from handlers.hardware import gpu_count, usable_cores, usable_memory_bytes
from service.settings import Settings

# What a worker is counted as: torch and a model take 0.3 to 0.5 GiB, a large batch of a segmenter as much again.
WORKER_BYTES = 2**30
WORKERS_PER_GPU = 2
MOST_WORKERS = 64  # as many as the setting takes


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
    return workers, threads or max(1, machine.cores // workers)


def resolved(settings: Settings, machine: Machine, *, models: int) -> Settings:
    """The settings with both numbers in place of 0."""
    workers, threads = workers_and_threads(
        machine, models=models, workers=settings.workers_per_model, threads=settings.worker_threads
    )
    return settings.model_copy(update={"workers_per_model": workers, "worker_threads": threads})
