"""Ray Serve: replicas with `serve.batch`, as in its guide on dynamic request batching.

The raylet ends if its agent takes more than 15 seconds to start, and no option changes that. On a very busy machine Ray
therefore does not start, and the result file contains the error.
"""

import signal
import threading

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.config import PeerConfig
from benchmarks.peers.model import CONTENT_TYPE, PeerModel

_CONFIG = PeerConfig.from_environment()


@serve.deployment(
    num_replicas=_CONFIG.workers,
    # A small number: the proxy needs CPUs too, and Ray places nothing if the sum exceeds the cores.
    ray_actor_options={"num_cpus": 0.1},
    max_ongoing_requests=4 * _CONFIG.max_batch,
)
class Vision:
    """One replica."""

    def __init__(self) -> None:
        self._model = PeerModel(_CONFIG)

    @serve.batch(max_batch_size=_CONFIG.max_batch, batch_wait_timeout_s=_CONFIG.max_wait_ms / 1000)
    async def answer(self, images: list[bytes]) -> list[bytes]:
        """One batch."""
        return self._model.answer([self._model.decode(image) for image in images])

    async def __call__(self, request: Request) -> Response:
        """One picture."""
        return Response(await self.answer(await request.body()), media_type=CONTENT_TYPE)


def main() -> None:
    """Serve until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ray.init(include_dashboard=False, log_to_driver=False, _temp_dir=str(_CONFIG.model_folder.parent / "ray"))
    serve.start(
        http_options={
            "host": "127.0.0.1",
            "port": _CONFIG.port,
            "request_timeout_s": _CONFIG.timeout_seconds,
        }
    )
    serve.run(Vision.bind())  # type: ignore[attr-defined]  # the decorator makes it a deployment
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
