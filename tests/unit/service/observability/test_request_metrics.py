"""Series of requests: they exist from the start, and refusals are not answers."""

from fakes import toy_card

from handlers.contract.card import Task
from service.core.types import RequestRecord
from service.observability.metrics import Metrics

CARD = toy_card(Task.DETECT)
DURATION = "mobilevision_request_duration_seconds_count"


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_gateway_without_calls_shows_zero_and_not_nothing() -> None:
    metrics = Metrics()
    metrics.add_model(CARD, queue_length=lambda: 0.0, queue_age=lambda: 0.0)
    assert value(metrics, DURATION, method="Detect", model=CARD.name, outcome="answered") == 0
    assert value(metrics, "mobilevision_requests_total", method="Detect", model=CARD.name, code="OK") == 0


def test_a_fast_refusal_is_not_a_fast_answer() -> None:
    metrics = Metrics()
    record = RequestRecord("", "Detect", CARD.name)
    metrics.observe_request(record, code="OK", reason=None, duration_seconds=0.7)
    metrics.observe_request(record, code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL", duration_seconds=0.001)
    assert value(metrics, DURATION, method="Detect", model=CARD.name, outcome="answered") == 1
    assert value(metrics, DURATION, method="Detect", model=CARD.name, outcome="failed") == 1
    fast = "mobilevision_request_duration_seconds_bucket"
    assert value(metrics, fast, method="Detect", model=CARD.name, outcome="answered", le="0.512") == 0
