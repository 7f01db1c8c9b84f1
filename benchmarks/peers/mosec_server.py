"""mosec: a Rust front end that batches, with Python workers. Set up as in the examples of its documentation."""

import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from mosec import Server, Worker

from benchmarks.peers.config import PeerConfig
from benchmarks.peers.model import CONTENT_TYPE, PeerModel
from service.core.types import Decoded


class Answering(Protocol):
    """A model in a worker: the methods of `PeerModel`."""

    def decode(self, image: bytes) -> Decoded:
        """Decode one picture."""
        ...

    def answer(self, pictures: Sequence[Decoded]) -> list[bytes]:
        """The reply of each picture of a batch."""
        ...


class Vision(Worker):
    """Decodes, runs and renders a batch."""

    resp_mime_type = CONTENT_TYPE
    make: Callable[[PeerConfig], Answering] = PeerModel

    def __init__(self) -> None:
        super().__init__()
        self._model = type(self).make(PeerConfig.from_environment())

    def deserialize(self, data: bytes) -> bytes:
        """Return the body, which is the picture."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """Return the reply, which is already bytes."""
        return data

    def forward(self, data: list[bytes] | bytes) -> list[bytes] | bytes:
        """Answer a list of pictures, or one picture if batches are off."""
        if isinstance(data, bytes):
            return self._model.answer([self._model.decode(data)])[0]
        return self._model.answer([self._model.decode(image) for image in data])


def main(worker: type[Vision] = Vision) -> None:
    """Serve until SIGTERM."""
    config = PeerConfig.from_environment()
    # mosec reads its own options from the command line.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(config.port), "--log-level", "warning"]
    sys.argv += ["--timeout", str(round(config.timeout_seconds * 1000))]
    server = Server()
    server.append_worker(
        worker,
        num=config.workers,
        max_batch_size=config.max_batch,
        max_wait_time=max(1, config.max_wait_ms),
        timeout=60,
        start_method="spawn",
    )
    server.run()


if __name__ == "__main__":
    main()
