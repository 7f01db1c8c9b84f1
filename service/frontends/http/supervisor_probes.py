"""The answers of the HTTP port in front of several gateway processes, made from the answers of each process.

In: the HTTP addresses of the processes. Out: an `Answer` per path. /livez is 200 while the supervisor and at least one
process answer 200; the supervisor restarts the others. /readyz is 200 while at least one process is ready. /metrics has
the samples of all processes.
"""

import http.client
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from service.frontends.http.probes import Answer, Heartbeat
from service.observability import merge_metrics
from service.observability.metrics import Metrics

# Limit for the answer of a gateway process. It is below the usual 1 s limit of probes, so that the supervisor can still
# answer which process is silent.
REPLICA_TIMEOUT_SECONDS = 0.8
SUPERVISOR = "supervisor"  # value of the label `gateway_process` for the supervisor's own metrics


class SupervisorProbes:
    """`Probes` of several gateway processes. Asks each process for its own answers.

    `replicas` returns the HTTP address of each process, None for one that is being started.
    """

    def __init__(
        self, *, replicas: Callable[[], Mapping[int, str | None]], metrics: Metrics, heartbeat: Heartbeat
    ) -> None:
        self._replicas = replicas
        self._metrics = metrics
        self._heartbeat = heartbeat

    def livez(self) -> Answer:
        """See `Probes.livez`. The text names the processes that fail or are being started, also with status 200."""
        stuck = self._heartbeat.failure
        failures = [] if stuck is None else [f"{SUPERVISOR}: {stuck}"]
        alive = 0
        for number, answer in self._ask_all("/livez").items():
            if answer is None or answer.status != HTTPStatus.OK:
                text = "no answer" if answer is None else answer.body.decode().strip()
                failures.append(f"gateway process {number}: {text}")
            else:
                alive += 1
        return Answer.text(stuck is None and alive > 0, "\n".join(failures) or "ok")

    def readyz(self) -> Answer:
        """See `Probes.readyz`. `not_ready` has what is not ready in each process, by the number of the process."""
        states: dict[int, dict[str, Any]] = {
            number: {"ready": False, "draining": False, "not_ready": "no answer"}
            if answer is None
            else json.loads(answer.body)
            for number, answer in self._ask_all("/readyz").items()
        }
        ready = any(each["ready"] for each in states.values())
        body = {
            "ready": ready,
            "draining": any(each["draining"] for each in states.values()),
            "not_ready": {
                str(number): each["not_ready"]
                for number, each in states.items()
                if each["not_ready"] or not each["ready"]
            },
        }
        return Answer.json(ready, body)

    def metrics(self, accept: str) -> Answer:
        """See `Probes.metrics`. Always the text format, without exemplars. Silent processes are left out."""
        pages = {str(number): answer.body for number, answer in self._ask_all("/metrics").items() if answer is not None}
        return Answer(
            HTTPStatus.OK,
            self._metrics.content_type(),
            merge_metrics.merged({SUPERVISOR: self._metrics.page()} | pages),
        )

    def _ask_all(self, path: str) -> dict[int, Answer | None]:
        """Request `path` from all processes at once. None for a process that does not answer in time."""
        replicas = self._replicas()
        with ThreadPoolExecutor(len(replicas)) as pool:
            return dict(zip(replicas, pool.map(lambda address: _get(address, path), replicas.values()), strict=True))


def is_alive(address: str) -> bool:
    """Return whether the process with this HTTP address answers /livez with 200. Blocks for at most about a second."""
    answer = _get(address, "/livez")
    return answer is not None and answer.status == HTTPStatus.OK


def _get(address: str | None, path: str) -> Answer | None:
    if address is None:
        return None
    connection = http.client.HTTPConnection(address, timeout=REPLICA_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return Answer(HTTPStatus(reply.status), reply.headers.get("Content-Type", ""), reply.read())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
