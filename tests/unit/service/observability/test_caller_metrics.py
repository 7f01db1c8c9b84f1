"""Calls by caller: the number of label values is bounded, whatever names certificates and tokens have."""

from service.observability.caller_metrics import MOST_LISTED, MOST_UNLISTED, OTHER
from service.observability.metrics import Metrics


def requests(metrics: Metrics) -> dict[str, float]:
    return {
        sample.labels["caller"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "mobilevision_caller_requests_total"
    }


def test_listed_callers_have_a_label_and_others_share_one_beyond_the_bound() -> None:
    metrics = Metrics()
    for number in range(MOST_UNLISTED + 5):
        metrics.callers.observe(f"token:{number}", listed=False, code="OK")
    metrics.callers.observe("token:0", listed=False, code="OK")
    metrics.callers.observe("camera", listed=True, code="OK")
    found = requests(metrics)
    assert len(found) == MOST_UNLISTED + 2
    assert (found[OTHER], found["token:0"], found["camera"]) == (5.0, 2.0, 1.0)


def test_a_file_that_changes_for_ever_adds_no_more_labels() -> None:
    metrics = Metrics()
    for number in range(MOST_LISTED + 5):
        metrics.callers.observe(str(number), listed=True, code="OK")
    assert len(requests(metrics)) == MOST_LISTED + 1
