"""TorchServe as in its documentation: BaseHandler, default settings, and the batching of its example.

In: a `PeerConfig`, of which the largest batch, the folder and the port are used. Workers (one per core), threads,
logging, metrics and the JVM have their defaults. `maxBatchDelay` is 50 ms, as on TorchServe's page about batching.
Decoding and replies are ours, as for every peer.
"""

import json
import os
import zipfile
from pathlib import Path

from benchmarks.peers.config import PeerConfig
from benchmarks.peers.torchserve_alone import launch, properties

_HANDLER = "torchserve_documented_handler.py"


def main() -> None:
    """Serve until SIGTERM."""
    config = PeerConfig.from_environment()
    run = config.model_folder.parent / "torchserve"
    store = run / "store"
    store.mkdir(parents=True)
    _write_archive(store / "peer.mar", config.model_folder / "model.pt")
    cores = os.cpu_count() or 1
    model = {"minWorkers": cores, "maxWorkers": cores, "batchSize": config.max_batch, "maxBatchDelay": 50}
    (run / "config.properties").write_text(properties(config, store, {**model, "responseTimeout": 120}))
    os.environ.pop("OMP_NUM_THREADS", None)  # noqa: TID251 - set for the other peers
    launch(run)


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
