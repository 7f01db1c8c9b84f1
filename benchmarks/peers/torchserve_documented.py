"""TorchServe as its documentation sets it up: its BaseHandler, its defaults, and the batching of its example.

In: a `PeerConfig`, of which only the largest batch is used. Workers (one per core), threads, logging, metrics and the
JVM are TorchServe's own choice; 50 ms of `maxBatchDelay` are those of its page on batching. Decoding and replies are
ours, as for every peer.
"""

import json
import os
import zipfile
from pathlib import Path

from benchmarks.peers.config import PeerConfig, free_ports
from benchmarks.peers.torchserve_alone import launch

_HANDLER = "torchserve_documented_handler.py"


def main() -> None:
    """Serve until SIGTERM."""
    config = PeerConfig.from_environment()
    run = config.model_folder.parent / "torchserve"
    store = run / "store"
    store.mkdir(parents=True)
    _write_archive(store / "peer.mar", config.model_folder / "model.pt")
    (run / "config.properties").write_text(_properties(config, store))
    os.environ.pop("OMP_NUM_THREADS", None)  # noqa: TID251 - set for the other peers
    launch(run)


def _properties(config: PeerConfig, store: Path) -> str:
    cores = os.cpu_count() or 1
    model = {"defaultVersion": True, "marName": "peer.mar", "minWorkers": cores, "maxWorkers": cores}
    model |= {"batchSize": config.max_batch, "maxBatchDelay": 50, "responseTimeout": 120}
    ports = free_ports(4)
    properties = {
        "inference_address": f"http://127.0.0.1:{config.port}",
        "management_address": f"http://127.0.0.1:{ports[0]}",
        "metrics_address": f"http://127.0.0.1:{ports[1]}",
        "grpc_inference_port": ports[2],
        "grpc_management_port": ports[3],
        "model_store": store,
        "load_models": "peer.mar",
        "models": json.dumps({"peer": {"1.0": model}}),
    }
    return "".join(f"{key}={value}\n" for key, value in properties.items())


def _write_archive(path: Path, module: Path) -> None:
    about = {"modelName": "peer", "modelVersion": "1.0", "handler": _HANDLER, "serializedFile": module.name}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "MAR-INF/MANIFEST.json", json.dumps({"archiverVersion": "0.12.0", "runtime": "python", "model": about})
        )
        archive.write(Path(__file__).with_name(_HANDLER), _HANDLER)
        archive.write(module, module.name)


if __name__ == "__main__":
    main()
