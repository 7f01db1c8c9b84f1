"""The answers of the HTTP port for operators: /metrics for Prometheus, /livez and /readyz for the orchestrator.

In: health, metrics, and the heartbeat of the event loop. Out: an `Answer` per path. /livez is 200 while the event loop
runs and decoding is not stuck; otherwise the process should be restarted. /readyz is 200 while at least one model
answers; otherwise no traffic should be sent. Its body names the models that do not answer.
`service.frontends.http.supervisor_probes` answers for several gateway processes.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from service.observability.metrics import Metrics
from service.serving.health import Health

HEARTBEAT_SECONDS = 0.5
STUCK_LOOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The HTTP answer of a path."""

    status: HTTPStatus
    content_type: str
    body: bytes

    @classmethod
    def text(cls, ok: bool, text: str) -> "Answer":
        """Make a text answer: 200 if `ok`, else 503."""
        return cls(HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", text.encode() + b"\n")

    @classmethod
    def json(cls, ok: bool, content: Mapping[str, object]) -> "Answer":
        """Make a JSON answer: 200 if `ok`, else 503."""
        status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
        return cls(status, "application/json", json.dumps(content).encode() + b"\n")


class Probes(Protocol):
    """The answers of the HTTP port. Methods are called from many threads."""

    def livez(self) -> Answer:
        """Return 200 while the process works, 503 when it should be restarted."""
        ...

    def readyz(self) -> Answer:
        """Return 200 while traffic should be sent to the server, else 503."""
        ...

    def metrics(self, accept: str) -> Answer:
        """Return the page that Prometheus scrapes. `accept` is the Accept header of the request."""
        ...


class Heartbeat:
    """Shows whether the event loop runs: a task calls `beat` regularly, threads read `failure`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_at = clock()

    def beat(self) -> None:
        """Record that the event loop ran now."""
        self._last_at = self._clock()

    async def run(self) -> None:
        """Call `beat` every `HEARTBEAT_SECONDS`, until cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    @property
    def failure(self) -> str | None:
        """Why the process should be restarted, None while the event loop runs."""
        age_seconds = self._clock() - self._last_at
        return None if age_seconds < STUCK_LOOP_SECONDS else f"the event loop has been stuck for {age_seconds:.0f} s"


class GatewayProbes:
    """`Probes` of one gateway."""

    def __init__(self, *, health: Health, metrics: Metrics, heartbeat: Heartbeat) -> None:
        self._health = health
        self._metrics = metrics
        self._heartbeat = heartbeat

    def livez(self) -> Answer:
        """See `Probes.livez`."""
        failure = self._heartbeat.failure or self._health.why_restart
        return Answer.text(failure is None, failure or "ok")

    def readyz(self) -> Answer:
        """See `Probes.readyz`."""
        report = self._health.report()
        body = {"ready": report.any_ready, "draining": report.draining, "not_ready": report.not_ready}
        return Answer.json(report.any_ready, body)

    def metrics(self, accept: str) -> Answer:
        """See `Probes.metrics`."""
        return Answer(HTTPStatus.OK, self._metrics.content_type(accept), self._metrics.page(accept))
