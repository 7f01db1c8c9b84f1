"""Series are found by their labels, also after they were removed."""

import pytest
from prometheus_client import CollectorRegistry

from service.observability.registry import MetricFactory


def test_equal_labels_are_one_series_and_a_removed_one_begins_anew() -> None:
    registry = CollectorRegistry()
    counter = MetricFactory(registry).counter("calls", "Calls.", "method", "code")
    for _ in range(3):
        counter.labels("Classify", "OK").inc()
    assert counter.labels("Classify", "OK") is counter.labels(method="Classify", code="OK")
    labels = {"method": "Classify", "code": "OK"}
    assert registry.get_sample_value("mobilevision_calls_total", labels) == 3.0
    counter.remove("Classify", "OK")
    counter.labels("Classify", "OK").inc()
    assert registry.get_sample_value("mobilevision_calls_total", labels) == 1.0


def test_wrong_labels_are_refused() -> None:
    factory = MetricFactory(CollectorRegistry())
    with pytest.raises(ValueError, match="label"):
        factory.counter("calls", "Calls.", "method").labels("Classify", "OK")
    with pytest.raises(ValueError, match="label"):
        factory.seconds("call_seconds", "Seconds.").labels("Classify")
