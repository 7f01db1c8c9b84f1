"""Ray Serve: replicas with `serve.batch`, as its guide on dynamic request batching sets it up.

Its raylet gives up when an agent of it takes over 15 seconds to start, and has no option for that: on a very busy
machine it does not start at all, and the result file says so.
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
    # Not the cores that are there: the proxy wants some too, and Ray refuses to place what does not add up.
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
