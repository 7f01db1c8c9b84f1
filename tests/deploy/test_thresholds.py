"""Thresholds of load belong to the hardware they were measured on; the others follow from the latency objective."""

import pytest
from manifests import FOR_TWO_CORES, ROOT, Built, combined, cores, overlay

LOAD = ("seconds_count", "seconds_sum", "calls_per_second", "calls_in_work")
CAPACITY = (ROOT / "docs" / "capacity.md").read_text()


def thresholds(built: Built) -> dict[str, str]:
    """The threshold of each metric, by the text that chooses the metric."""
    found = {}
    for scaled in built.of("ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            found[trigger["metadata"]["query"]] = trigger["metadata"]["threshold"]
    for scaler in built.of("HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] == "Pods":
                found[metric["pods"]["metric"]["name"]] = metric["pods"]["target"]["averageValue"]
    for service in built.of("InferenceService"):
        for metric in service["spec"]["predictor"]["autoScaling"]["metrics"]:
            found[metric["external"]["metric"]["query"]] = metric["external"]["target"]["value"]
    return found


def of_load(built: Built) -> dict[str, str]:
    return {what: value for what, value in thresholds(built).items() if any(word in what for word in LOAD)}


def test_thresholds_of_load_are_for_pods_as_they_were_measured(built: Built) -> None:
    if of_load(built):
        assert cores(built.torchserve) == 2, "benchmarks/measured/load_profile.json is of two cores"
        assert "nvidia.com/gpu" not in built.torchserve["resources"]["limits"]


def test_gpus_have_no_thresholds_of_load() -> None:
    assert thresholds(overlay("gpu-prod")), "it scales"
    assert not of_load(overlay("gpu-prod"))


@pytest.mark.parametrize("component", sorted(FOR_TWO_CORES))
def test_a_component_for_hardware_adds_to_the_one_for_all(component: str) -> None:
    for_all = thresholds(combined(component.removesuffix("-cpu-2")))
    assert len(of_load(combined(component))) == 2
    assert thresholds(combined(component)) == for_all | of_load(combined(component))


@pytest.mark.parametrize("component", sorted(FOR_TWO_CORES))
def test_every_threshold_is_in_the_capacity_page(component: str) -> None:
    for value in thresholds(combined(component)).values():
        number = float(value.removesuffix("m")) / (1000 if value.endswith("m") else 1)
        assert f"{number:g}" in CAPACITY, value
