"""Metrics of requests: counts by outcome, durations, stages, refusals. The same for every front.

In: finished `RequestRecord`s. Out: Prometheus series. Never sees a protocol; the series of gRPC itself are in
`service.observability.grpc_metrics`.
"""

from collections.abc import Callable

from handlers.contract.card import Task
from service.core.errors import ErrorCode, reasons
from service.core.types import RequestRecord
from service.observability.registry import MetricFactory

STAGES = ("decode", "queue", "transport", "inference", "results")
# Label value of requests that name no served model. Names from outside never become label values.
UNKNOWN_MODEL = "unknown"
ANSWERED, FAILED = "answered", "failed"  # values of the label `outcome`


class RequestMetrics:
    """Records each finished request once."""

    def __init__(self, factory: MetricFactory) -> None:
        self._requests = factory.counter("requests", "Finished requests, by gRPC code name.", "method", "model", "code")
        self._duration = factory.seconds(
            "request_duration_seconds",
            "Time from the arrival of a request to its reply, by outcome: answered (OK) or failed (any other code).",
            "method",
            "model",
            "outcome",
        )
        self._stages = factory.seconds(
            "stage_duration_seconds", "Time an answered request spent in one stage.", "model", "stage"
        )
        self._rejected = factory.counter("rejected", "Requests refused or failed, by reason.", "reason")
        for reason in reasons():  # all series exist from the start, so that rates include the first event
            self._rejected.labels(reason)
        self._deadline_missed = factory.counter(
            "deadline_missed", "Requests whose deadline passed before the reply.", "model"
        )
        self._decode_overruns = factory.counter(
            "decode_overruns", "Pictures that were being decoded for longer than max_decode_seconds."
        )
        self._inflight = factory.gauge("inflight_requests", "Inference requests being processed.")

    def add_model(self, model: str, task: Task) -> None:
        """Create the series of a model, so that a gateway without calls shows zero and not nothing."""
        method = method_of(task)
        self._requests.labels(method, model, "OK")
        self._duration.labels(method, model, ANSWERED)
        self._deadline_missed.labels(model)

    def decode_overran(self) -> None:
        """Count a picture whose decoding takes far too long."""
        self._decode_overruns.inc()

    def watch_inflight(self, inflight: Callable[[], float]) -> None:
        """Read the number of requests being processed whenever Prometheus scrapes."""
        self._inflight.set_function(inflight)

    def observe(self, record: RequestRecord, *, code: str, reason: str | None, duration_seconds: float) -> None:
        """Record a finished request. `code` is OK or a name of `ErrorCode`. `reason` is None if it was answered."""
        model = record.model or UNKNOWN_MODEL
        self._requests.labels(record.method, model, code).inc()
        exemplar = None if record.trace_id is None else {"trace_id": record.trace_id}
        outcome = ANSWERED if reason is None else FAILED
        self._duration.labels(record.method, model, outcome).observe(duration_seconds, exemplar)
        if code == ErrorCode.DEADLINE_EXCEEDED.name:
            self._deadline_missed.labels(model).inc()
        if reason is not None:
            self._rejected.labels(reason).inc()
            return
        for stage, spent_seconds in record.stage_seconds.items():
            self._stages.labels(model, stage).observe(spent_seconds)


def method_of(task: Task) -> str:
    """Return the method of the API for a task, as it stands in the label `method`."""
    return task.value.capitalize()
