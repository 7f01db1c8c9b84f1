"""What a deployment reports before, while and after it is the stable one."""

from fakes import toy_card

from service.core.types import Computed
from service.observability.metrics import Metrics
from service.serving.stable_observer import StableObserver


def reported(metrics: Metrics) -> dict[str, float]:
    """The counters that changed, by series without labels."""
    lines = metrics.page().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if line.startswith("mobilevision_") and 'model="toy"' in line)
    counted: dict[str, float] = {}
    for series, _, value in samples:
        name = series.partition("{")[0]
        if name.endswith(("_total", "_count")) and float(value):
            counted[name] = counted.get(name, 0.0) + float(value)
    return counted


def report(observer: StableObserver) -> None:
    observer.failed()
    observer.dispatched(4, "full")
    observer.answered(0.1, 0.2)
    observer.refused_late()


def test_only_the_stable_deployment_changes_the_metrics_and_the_health_of_its_model() -> None:
    metrics, failures = Metrics(), list[str]()
    observer = StableObserver(toy_card(name="toy"), metrics, lambda: failures.append("failed"))
    report(observer)
    assert reported(metrics) == {}
    observer.active = True
    report(observer)
    seen = reported(metrics)
    assert seen["mobilevision_refused_late_total"] == 1
    assert seen["mobilevision_batch_size_count"] == 1
    assert seen["mobilevision_prediction_error_seconds_count"] == 1
    assert failures == ["failed"]
    observer.active = False
    report(observer)
    assert reported(metrics) == seen
    assert failures == ["failed"]


def infos(metrics: Metrics) -> list[tuple[str, str, str]]:
    """Engine, dtype and device of each series of `model_info`."""
    family = next(family for family in metrics.registry.collect() if family.name == "mobilevision_model_info")
    return [(s.labels["engine"], s.labels["dtype"], s.labels["device"]) for s in family.samples]


def test_model_info_has_what_the_workers_of_the_stable_version_said_last() -> None:
    metrics, card = Metrics(), toy_card()
    observer = StableObserver(card, metrics, lambda: None)
    metrics.rollouts.add_model(card)
    assert infos(metrics) == [("", "", "")]
    observer.engine_changed(Computed("openvino", "bfloat16", "cpu"))  # of a candidate
    assert infos(metrics) == [("", "", "")]
    observer.active = True
    observer.engine_changed(Computed("openvino", "bfloat16", "cpu"))
    assert infos(metrics) == [("openvino", "bfloat16", "cpu")]
    observer.engine_changed(Computed("torchscript", "float16", "cuda:0"))
    observer.engine_changed(Computed("torchscript", "float16", "cuda:1"))  # of the same model, on another GPU
    assert infos(metrics) == [("torchscript", "float16", "cuda")]
