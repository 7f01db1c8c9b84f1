"""BentoML: a service with adaptive batching, as its guide shows. Bodies and replies are JSON lists of base64 texts.

A batchable API takes lists, so a request is a list of one picture, and the dispatcher joins the lists of several
requests. It has no fixed wait: `max_latency_ms` is its target latency, and it refuses requests that it expects to take
longer.
"""

import base64
import os
import sys

import bentoml

from benchmarks.peers.config import PeerConfig
from benchmarks.peers.model import PeerModel

_CONFIG = PeerConfig.from_environment()


@bentoml.service(
    workers=_CONFIG.workers,
    traffic={"timeout": _CONFIG.timeout_seconds},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Vision:
    """One worker."""

    def __init__(self) -> None:
        self._model = PeerModel(_CONFIG)

    @bentoml.api(
        route="/predict",
        batchable=True,
        max_batch_size=_CONFIG.max_batch,
        max_latency_ms=round(_CONFIG.timeout_seconds * 1000),
    )
    def predict(self, images: list[str]) -> list[str]:
        """One batch."""
        pictures = [self._model.decode(base64.b64decode(image)) for image in images]
        return [base64.b64encode(reply).decode() for reply in self._model.answer(pictures)]


def main() -> None:
    """Serve until SIGTERM."""
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True"}  # noqa: TID251 - handed on to the launcher
    environment["BENTOML_HOME"] = str(_CONFIG.model_folder.parent / "bentoml")
    command = [sys.executable, "-m", "bentoml", "serve", "benchmarks.peers.bentoml_server:Vision"]
    command += ["--host", "127.0.0.1", "--port", str(_CONFIG.port)]
    os.execve(command[0], command, environment)  # noqa: S606 - the launcher takes this process's place


if __name__ == "__main__":
    main()
