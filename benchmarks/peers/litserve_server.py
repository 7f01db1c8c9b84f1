"""LitServe: API processes and inference processes. It takes JSON, so the picture is base64, as in its documentation."""

import base64

import litserve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.config import PeerConfig
from benchmarks.peers.model import CONTENT_TYPE, PeerModel
from service.core.types import Decoded


class Vision(litserve.LitAPI):
    """Decodes each request in an inference process, then runs and renders the batch."""

    def setup(self, device: str) -> None:
        """Load the model, in each inference process."""
        self._model = PeerModel(PeerConfig.from_environment())

    def decode_request(self, request: Request) -> Decoded:
        """Decode one body. Because of the annotation `Request`, LitServe passes the parsed JSON."""
        return self._model.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Decoded]) -> list[Decoded]:
        """Return the list; the model stacks it."""
        return list(inputs)

    def predict(self, x: list[Decoded] | Decoded) -> list[bytes] | bytes:
        """Answer a list of pictures, or one picture if batches are off."""
        return self._model.answer(x) if isinstance(x, list) else self._model.answer([x])[0]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Return the list of replies."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """Wrap one reply."""
        return Response(output, media_type=CONTENT_TYPE)


def main() -> None:
    """Serve until SIGTERM."""
    config = PeerConfig.from_environment()
    server = litserve.LitServer(
        Vision(max_batch_size=config.max_batch, batch_timeout=config.max_wait_ms / 1000),
        accelerator="cpu",
        devices=1,
        workers_per_device=config.workers,
        timeout=config.timeout_seconds,
        fast_queue=True,
    )
    server.run(host="127.0.0.1", port=config.port, generate_client_file=False, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
