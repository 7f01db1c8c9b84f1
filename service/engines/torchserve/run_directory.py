"""The files in TorchServe's run directory: folders, checked archives, config.properties, logging.

In: a `TorchServeConfig`, ports and an empty directory. Out: files. Never starts anything.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from xml.sax.saxutils import escape

from service.core.catalog import ARCHIVE_SUFFIX, stem_of
from service.engines.torchserve.config import Ports, TorchServeConfig, TorchServeFailed, TorchServeModel
from service.engines.torchserve.model_store import STORE_FOLDER, ModelStore

# Linux holds the path of a Unix socket in 108 bytes; TorchServe's longest name under the run directory has 20.
MAX_RUN_DIRECTORY_BYTES = 85
_UNFIT = re.compile(r"[%$\x00-\x1f]")  # log4j would replace what follows
# By default TorchServe's tokens expire after an hour, and every call fails then. These live as long as the JVM.
TOKEN_MINUTES = 10 * 365 * 24 * 60


def prepare(run: Path, config: TorchServeConfig) -> None:
    """Write into an empty run directory what does not depend on the ports: folders, archives, the logging file.

    Raises `TorchServeFailed` if an archive is missing, or if the path is too long or has characters that do not work,
    and `ArchiveUntrusted`.
    """
    if len(os.fsencode(run)) > MAX_RUN_DIRECTORY_BYTES:
        raise TorchServeFailed(f"the run directory {run} is too deep for Unix sockets; use a shorter base")
    if _UNFIT.search(str(run)):
        raise TorchServeFailed(f"the run directory {str(run)!r} has %, $ or a control character in its name")
    for name in ("tmp", "logs", *([STORE_FOLDER] if config.copy_archives else [])):
        (run / name).mkdir(mode=0o700)
    for model in config.models:
        if not model.archive.is_file():
            raise TorchServeFailed(
                f"no archive {model.archive}; build it with `mobilevision models build {model.name}`"
            )
    admit_archives(run, config)
    appenders = (
        _CONSOLE if config.log_to_console else _FILES.replace("LOGS", escape(str(run / "logs"), {'"': "&quot;"}))
    )
    (run / "log4j2.xml").write_text(_LOG4J.replace("APPENDERS", appenders), encoding="utf-8")


def store_of(run: Path, config: TorchServeConfig) -> ModelStore:
    """Where TorchServe's archives are checked, and copied to."""
    return ModelStore(run / STORE_FOLDER if config.copy_archives else None, config.signature_keys)


def admit_archives(run: Path, config: TorchServeConfig, *, keep: bool = False) -> None:
    """Check the archives of all models, and copy them. `keep`: copies that pass the check stay.

    Raises `ArchiveUntrusted`.
    """
    store = store_of(run, config)
    for model in config.models:
        store.admit(model.archive, model.name, model.version, model.card, keep=keep)


def write_properties(
    run: Path, config: TorchServeConfig, ports: Ports, *, held: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write config.properties. The archives are admitted already.

    The models of which `held` has the version are not loaded.
    """
    loaded = [model for model in config.models if held.get(model.name) != model.version]
    files = {model.name: _file_of(model, config) for model in loaded}
    models = {
        model.name: {
            model.version: {
                "defaultVersion": True,
                "marName": files[model.name],
                "minWorkers": model.workers,
                "maxWorkers": model.workers,
                "batchSize": 1,  # the gateway batches
                "maxBatchDelay": 0,
                "responseTimeout": config.response_timeout_seconds,
                "startupTimeout": int(config.startup_timeout_seconds),
            }
        }
        for model in loaded
    }
    properties = {
        "inference_address": f"unix:{run}/inference",
        "management_address": f"unix:{run}/management",
        "metrics_address": f"unix:{run}/metrics",
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": ports.inference,
        "grpc_management_port": ports.management,
        "model_store": (run / STORE_FOLDER if config.copy_archives else config.models[0].archive.parent).resolve(),
        "load_models": ",".join(files.values()),
        "models": json.dumps(models),
        "job_queue_size": config.queue_size,
        "disable_system_metrics": "true",
        "max_request_size": config.max_message_bytes,
        "max_response_size": config.max_message_bytes,
        "token_expiration_min": TOKEN_MINUTES,
        "disable_token_authorization": "false",
        "enable_model_api": "true",  # on loopback and with a token; roll-outs load and unload versions
        "enable_metrics_api": "false",  # the gateway has its own metrics
        "allowed_urls": "none://",  # archives come from the model store only
        "use_env_allowed_urls": "false",
        "enable_envvars_config": "false",  # TS_... in the environment would replace what is written here
        "install_py_dep_per_model": "false",  # an archive must not run pip
    }
    lines = "".join(f"{key}={_property(str(value))}\n" for key, value in properties.items())
    (run / "config.properties").write_text(lines, encoding="ascii")


def _property(value: str) -> str:
    """Write a value so that `java.util.Properties` reads it: without bytes that it takes for ISO 8859-1."""
    units = value.encode("utf-16-be", "surrogatepass")
    characters = (int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))
    plain = "".join(chr(unit) if 0x20 < unit < 0x7F and unit != ord("\\") else f"\\u{unit:04x}" for unit in characters)
    return plain.replace("\\u0020", " ") if not value.startswith(" ") else plain


def _file_of(model: TorchServeModel, config: TorchServeConfig) -> str:
    return f"{stem_of(model.name, model.version)}{ARCHIVE_SUFFIX}" if config.copy_archives else model.archive.name


# One file for the server and one for the output of the workers, each at most 2 x 8 MB.
_FILES = """
    <RollingFile name="server" fileName="LOGS/server.log" filePattern="LOGS/server.log.%i">
      <PatternLayout pattern="%d{ISO8601} %-5p %t %c{1} %m%n"/>
      <Policies><SizeBasedTriggeringPolicy size="8 MB"/></Policies><DefaultRolloverStrategy max="1"/>
    </RollingFile>
    <RollingFile name="workers" fileName="LOGS/workers.log" filePattern="LOGS/workers.log.%i">
      <PatternLayout pattern="%d{ISO8601} %t %m%n"/>
      <Policies><SizeBasedTriggeringPolicy size="8 MB"/></Policies><DefaultRolloverStrategy max="1"/>
    </RollingFile>"""

# The fields of `service.core.logs`, so that both containers of a pod log in the same format.
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
