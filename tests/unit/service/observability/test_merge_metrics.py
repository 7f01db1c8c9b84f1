import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.observability.merge_metrics import merged
from service.observability.metrics import Metrics


def page(calls: int, *, model: str = "m") -> bytes:
    registry = CollectorRegistry()
    Counter("calls", "Calls.", ["model"], registry=registry).labels(model).inc(calls)
    Gauge("inflight", "In work.", registry=registry).set(calls)
    Histogram("seconds", "Time.", ["model"], registry=registry, buckets=(1, 2)).labels(model).observe(1.5)
    return generate_latest(registry)


def samples(merged_page: bytes) -> dict[tuple[str, str, str], float]:
    found = {}
    for family in text_string_to_metric_families(merged_page.decode()):
        for sample in family.samples:
            rest = {name: value for name, value in sorted(sample.labels.items()) if name != "gateway_process"}
            key = sample.name, sample.labels["gateway_process"], str(rest)
            assert key not in found
            found[key] = sample.value
    return found


def test_every_sample_of_every_page_appears_once_with_its_process() -> None:
    found = samples(merged({"0": page(3), "1": page(5)}))
    for process, calls in (("0", 3), ("1", 5)):
        assert found["calls_total", process, "{'model': 'm'}"] == calls
        assert found["inflight", process, "{}"] == calls
        assert found["seconds_bucket", process, "{'le': '1.0', 'model': 'm'}"] == 0
        assert found["seconds_bucket", process, "{'le': '2.0', 'model': 'm'}"] == 1
    alone = sum(not line.startswith(b"#") for line in page(3).splitlines())
    assert len(found) == 2 * alone


def test_help_and_type_appear_once_and_families_are_contiguous() -> None:
    lines = merged({"0": page(1), "1": page(2), "2": page(3)}).decode().splitlines()
    heads = [line for line in lines if line.startswith("#")]
    assert len(heads) == len(set(heads)) == sum(line.startswith(b"#") for line in page(1).splitlines())
    family, seen = "", []
    for line in lines:
        if line.startswith("# HELP"):
            family = line.split()[2]
            assert family not in seen
            seen.append(family)
        elif not line.startswith("#"):
            assert line.startswith(family)


def test_a_family_that_only_one_page_has_is_kept() -> None:
    other = CollectorRegistry()
    Counter("rare", "Rare.", registry=other).inc()
    found = samples(merged({"supervisor": generate_latest(other), "0": page(1)}))
    assert found["rare_total", "supervisor", "{}"] == 1
    assert found["calls_total", "0", "{'model': 'm'}"] == 1


@pytest.mark.parametrize("value", ["}", "a b", 'quote " and \\ and {x="1"} 2', "two\nlines", "line\u2028separator"])
def test_label_values_with_special_characters_are_kept(value: str) -> None:
    [(key, calls)] = [
        item for item in samples(merged({"0": page(7, model=value)})).items() if item[0][0] == "calls_total"
    ]
    assert (key[2], calls) == (str({"model": value}), 7)


def test_real_pages_can_be_merged() -> None:
    metrics = Metrics()
    metrics.workers.gateway_restarted()
    found = samples(merged({"supervisor": metrics.page(), "0": Metrics().page()}))
    assert found["mobilevision_gateway_restarts_total", "supervisor", "{}"] == 1
    assert found["mobilevision_gateway_restarts_total", "0", "{}"] == 0
