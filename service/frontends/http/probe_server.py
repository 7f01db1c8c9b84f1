"""The HTTP port for operators: GET requests in, the answers of `Probes` out.

Served by threads, so that answers come while the event loop is busy, and so that /livez can report a stuck event loop.
Connections are few and short: the oldest connection is closed when too many are open, and each connection is closed
after `CONNECTION_SECONDS`. So a client that sends slowly, or not at all, keeps no probe from its answer. Never answers
inference requests.
"""

import contextlib
import errno
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any

from service.frontends.http.probes import Answer, Probes

CONNECTION_SECONDS = 10.0  # from accepting a connection to the end of its answer; each carries one request
DEFAULT_CONNECTIONS = 32
NO_DESCRIPTOR_SECONDS = 0.05  # between two attempts to accept a connection while no file can be opened
MOST_REQUEST_BYTES = 16_384  # of request line and headers that are read; Python alone would hold 6 MiB of headers

_log = logging.getLogger(__name__)


class ProbeServer:
    """Serves `probes` on an HTTP port. Port 0 takes a free one. Raises `OSError` if the port is in use.

    `max_connections` limits the open connections. At most twice as many threads run.
    """

    def __init__(self, *, host: str, port: int, probes: Probes, max_connections: int = DEFAULT_CONNECTIONS) -> None:
        routes: dict[str, Callable[[str], Answer]] = {
            "/livez": lambda accept: probes.livez(),
            "/readyz": lambda accept: probes.readyz(),
            "/metrics": probes.metrics,
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = CONNECTION_SECONDS  # for each read and write

            def setup(self) -> None:
                super().setup()
                self.rfile = _Limited(self.rfile)  # type: ignore[assignment]

            def do_GET(self) -> None:
                route = routes.get(self.path.partition("?")[0])
                not_found = Answer(HTTPStatus.NOT_FOUND, "text/plain", f"try {', '.join(routes)}\n".encode())
                answer = route(self.headers.get("Accept", "")) if route else not_found
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:
                """Do not log probes and scrapes."""

        self._server = _BoundedServer((host, port), Handler, max_connections)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},  # seconds; the longest time that `close` waits
            name="probes",
            daemon=True,
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Limited:
    """The first `MOST_REQUEST_BYTES` of a stream."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self._left = MOST_REQUEST_BYTES

    def readline(self, size: int) -> bytes:
        line = self._stream.readline(min(size, self._left))
        self._left -= len(line)
        return line

    def close(self) -> None:
        self._stream.close()


class _BoundedServer(ThreadingHTTPServer):
    """Closes the oldest connection when too many are open, and each connection that is too old.

    Keeps a descriptor, so that one connection at a time is answered while the process may open no more files.
    """

    request_queue_size = 128  # connections that the kernel holds while a burst is accepted

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], max_connections: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._max_connections = max_connections
        self._lock = threading.Lock()
        self._opened_at: dict[socket.socket, float] = {}  # the oldest first; without connections that were cut
        self._thread_count = 0
        self._spare: int | None = None
        super().__init__(address, handler)
        self._take_spare()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises `OSError`, which `serve_forever` takes for a client that is gone."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        if not self._give_spare():
            time.sleep(NO_DESCRIPTOR_SECONDS)  # `serve_forever` tries again at once
        return super().get_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            accepted = self._thread_count < 2 * self._max_connections
            if accepted:
                if len(self._opened_at) >= self._max_connections:
                    self._cut(next(iter(self._opened_at)))
                self._opened_at[request] = time.monotonic()
                self._thread_count += 1
        if accepted:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._thread_count -= 1

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._opened_at.pop(request, None)
        super().shutdown_request(request)
        self._take_spare()

    def server_close(self) -> None:
        super().server_close()
        self._give_spare()

    def service_actions(self) -> None:
        """Cut the connections that are too old. `serve_forever` calls this after each poll."""
        self._take_spare()
        oldest_allowed = time.monotonic() - CONNECTION_SECONDS
        with self._lock:
            for request in [each for each, opened_at in self._opened_at.items() if opened_at < oldest_allowed]:
                self._cut(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a bug. A client that closed its connection is no error."""
        if isinstance(sys.exception(), OSError):
            _log.debug("an HTTP connection ended early", exc_info=True)
        else:
            _log.exception("the HTTP port could not answer")

    def _give_spare(self) -> bool:
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            os.close(spare)
        return spare is not None

    def _take_spare(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._spare is None and self.socket.fileno() >= 0:  # not closed
                self._spare = os.open(os.devnull, os.O_RDONLY)

    def _cut(self, request: socket.socket) -> None:
        """End a connection. Its thread sees the end of the stream and closes the socket."""
        del self._opened_at[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)
