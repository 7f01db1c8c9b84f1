"""The HTTP port: /metrics for Prometheus, /livez and /readyz for the orchestrator.

Served by threads of their own, so that they answer while the event loop is busy, and so that /livez can tell when it is
stuck. Meanings: `livez` 200 = the event loop turned lately, restart the process otherwise; `readyz` 200 = every model
answers, send no traffic otherwise. In front of several gateway processes: `livez` 200 = so it is for the supervisor and
each of them; `readyz` 200 = at least one of them is ready.
"""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from service import pages
from service.health import Health
from service.metrics import Metrics

HEARTBEAT_SECONDS = 0.5
STUCK_LOOP_SECONDS = 10.0
# Of a gateway process, which answers from a thread of its own. Less than the probe's own limit, so that it is told
# which process is silent.
MEMBER_TIMEOUT_SECONDS = 0.8
SUPERVISOR = "supervisor"  # its name on the metrics page, beside the numbers of the gateway processes


@dataclass(frozen=True, slots=True)
class Answer:
    """What a path is answered with."""

    status: HTTPStatus
    content_type: str
    body: bytes

    @classmethod
    def text(cls, ok: bool, text: str) -> "Answer":
        """Words for people."""
        return cls(HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", text.encode() + b"\n")

    @classmethod
    def json(cls, ok: bool, content: Mapping[str, object]) -> "Answer":
        """Words for programs."""
        status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
        return cls(status, "application/json", json.dumps(content).encode() + b"\n")


class Probes(Protocol):
    """What there is to answer. Called from many threads."""

    def livez(self) -> Answer:
        """Whether to leave the process alone."""
        ...

    def readyz(self) -> Answer:
        """Whether to send traffic."""
        ...

    def metrics(self, accept: str) -> Answer:
        """The page Prometheus scrapes. `accept`: its Accept header."""
        ...


class Heartbeat:
    """Remembers when the event loop last turned."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_seconds = clock()

    def beat(self) -> None:
        """Tell that the loop turned."""
        self._last_seconds = self._clock()

    async def run(self) -> None:
        """Beat for ever."""
        while True:
            self.beat()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    @property
    def trouble(self) -> str | None:
        """Why the process should be restarted; None while the event loop turns."""
        age_seconds = self._clock() - self._last_seconds
        return None if age_seconds < STUCK_LOOP_SECONDS else f"the event loop has been stuck for {age_seconds:.0f} s"


class GatewayProbes:
    """`Probes` of one gateway."""

    def __init__(self, *, health: Health, metrics: Metrics, heartbeat: Heartbeat) -> None:
        self._health = health
        self._metrics = metrics
        self._heartbeat = heartbeat

    def livez(self) -> Answer:
        """See `Probes.livez`."""
        trouble = self._heartbeat.trouble
        return Answer.text(trouble is None, trouble or "ok")

    def readyz(self) -> Answer:
        """See `Probes.readyz`."""
        health = self._health
        body = {"ready": health.ready, "draining": health.draining, "not_ready": health.report()}
        return Answer.json(health.ready, body)

    def metrics(self, accept: str) -> Answer:
        """See `Probes.metrics`."""
        return Answer(HTTPStatus.OK, self._metrics.content_type(accept), self._metrics.page(accept))


class FleetProbes:
    """`Probes` of several gateway processes, by asking each. `members`: their addresses, None while one is started."""

    def __init__(
        self, *, members: Callable[[], Mapping[int, str | None]], metrics: Metrics, heartbeat: Heartbeat
    ) -> None:
        self._members = members
        self._metrics = metrics
        self._heartbeat = heartbeat

    def livez(self) -> Answer:
        """See `Probes.livez`. One that is being started counts as dead: probes allow for some failures in a row."""
        troubles = [] if self._heartbeat.trouble is None else [f"{SUPERVISOR}: {self._heartbeat.trouble}"]
        for number, answer in self._asked("/livez").items():
            if answer is None or answer.status != HTTPStatus.OK:
                said = "no answer" if answer is None else answer.body.decode().strip()
                troubles.append(f"gateway process {number}: {said}")
        return Answer.text(not troubles, "\n".join(troubles) or "ok")

    def readyz(self) -> Answer:
        """See `Probes.readyz`. `not_ready` has what each process says that is not ready."""
        said: dict[int, dict[str, Any]] = {
            number: {"ready": False, "draining": False, "not_ready": "no answer"}
            if answer is None
            else json.loads(answer.body)
            for number, answer in self._asked("/readyz").items()
        }
        ready = any(each["ready"] for each in said.values())
        body = {
            "ready": ready,
            "draining": any(each["draining"] for each in said.values()),
            "not_ready": {str(number): each["not_ready"] for number, each in said.items() if not each["ready"]},
        }
        return Answer.json(ready, body)

    def metrics(self, accept: str) -> Answer:
        """See `Probes.metrics`. Always the text format, without exemplars. A page that does not come is missing."""
        found = {str(number): answer.body for number, answer in self._asked("/metrics").items() if answer is not None}
        return Answer(
            HTTPStatus.OK, self._metrics.content_type(), pages.merged({SUPERVISOR: self._metrics.page()} | found)
        )

    def _asked(self, path: str) -> dict[int, Answer | None]:
        members = self._members()
        with ThreadPoolExecutor(len(members)) as pool:  # a silent one does not take the others' time
            return dict(zip(members, pool.map(lambda address: _get(address, path), members.values()), strict=True))


class ProbeServer:
    """The HTTP port. Raises `OSError` when the port is taken; port 0 takes a free one."""

    def __init__(self, *, host: str, port: int, probes: Probes) -> None:
        routes: dict[str, Callable[[str], Answer]] = {
            "/livez": lambda accept: probes.livez(),
            "/readyz": lambda accept: probes.readyz(),
            "/metrics": probes.metrics,
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # a client that sends nothing does not hold a thread

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


def _get(address: str | None, path: str) -> Answer | None:
    if address is None:
        return None
    connection = http.client.HTTPConnection(address, timeout=MEMBER_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return Answer(HTTPStatus(reply.status), reply.headers.get("Content-Type", ""), reply.read())
    except (OSError, http.client.HTTPException):
        return None  # that is what is told
    finally:
        connection.close()
