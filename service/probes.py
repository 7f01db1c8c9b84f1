"""The HTTP port: /metrics for Prometheus, /livez and /readyz for the orchestrator.

Served by threads of their own, so that they answer while the event loop is busy, and so that /livez can tell when it is
stuck. Meanings: `livez` 200 = the event loop turned lately, restart the process otherwise; `readyz` 200 = every model
answers, send no traffic otherwise.
"""

import json
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from service.health import Health
from service.metrics import Metrics

STUCK_LOOP_SECONDS = 10.0


class Heartbeat:
    """Remembers when the event loop last turned."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_seconds = clock()

    def beat(self) -> None:
        """Tell that the loop turned."""
        self._last_seconds = self._clock()

    @property
    def age_seconds(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._last_seconds


class ProbeServer:
    """The HTTP port. Raises `OSError` when the port is taken; port 0 takes a free one."""

    def __init__(self, *, host: str, port: int, health: Health, metrics: Metrics, heartbeat: Heartbeat) -> None:
        def livez(_accept: str) -> tuple[HTTPStatus, str, bytes]:
            age = heartbeat.age_seconds
            alive = age < STUCK_LOOP_SECONDS
            body = b"ok\n" if alive else f"the event loop has been stuck for {age:.0f} s\n".encode()
            return HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", body

        def readyz(_accept: str) -> tuple[HTTPStatus, str, bytes]:
            body = {"ready": health.ready, "draining": health.draining, "not_ready": health.report()}
            status = HTTPStatus.OK if health.ready else HTTPStatus.SERVICE_UNAVAILABLE
            return status, "application/json", json.dumps(body).encode() + b"\n"

        def scrape(accept: str) -> tuple[HTTPStatus, str, bytes]:
            return HTTPStatus.OK, metrics.content_type(accept), metrics.page(accept)

        routes: dict[str, Callable[[str], tuple[HTTPStatus, str, bytes]]] = {
            "/livez": livez,
            "/readyz": readyz,
            "/metrics": scrape,
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # a client that sends nothing does not hold a thread

            def do_GET(self) -> None:
                route = routes.get(self.path.partition("?")[0])
                status, content_type, body = (
                    route(self.headers.get("Accept", ""))
                    if route
                    else (HTTPStatus.NOT_FOUND, "text/plain", f"try {', '.join(routes)}\n".encode())
                )
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes and scrapes are not worth a log line."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},  # how long `close` may take
            name="probes",
            daemon=True,
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port really taken."""
        return self._server.server_port

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
