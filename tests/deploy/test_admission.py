"""What refuses objects beside their schemas: KServe's webhook, KEDA, pod security; and the versions that features need.

The rules are those of KServe 0.15 to 0.18 (`validateScalingKedaCompExtension` and `validateScaleTarget` in
pkg/apis/serving/v1beta1/inference_service_validation.go), as far as they concern us.
"""

import copy
import re
from typing import Any

import pytest
from manifests import ROOT, Built, combined, overlay

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
RESTRICTED_VOLUMES = {
    "configMap",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
NULLS_OF_KEDA = {"true", "false"}


def kserve_refuses(service: dict[str, Any]) -> str | None:
    """Why KServe's webhook refuses an InferenceService with KEDA in Standard mode; None if it does not."""
    annotations = service["metadata"]["annotations"]
    if annotations.get("serving.kserve.io/deploymentMode") != "Standard":
        return "without Standard mode deploymentStrategy and KEDA are refused"
    if annotations.get("serving.kserve.io/autoscalerClass") not in ("hpa", "keda", "external", "none"):
        return "unknown autoscaler class"
    if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"]):
        return "the name"
    predictor = service["spec"]["predictor"]
    if "scaleMetric" in predictor:
        return "ScaleMetric is not supported for KEDA"
    for metric in predictor.get("autoScaling", {}).get("metrics", []):
        source = {"External": "external", "PodMetric": "podmetric", "Resource": "resource"}.get(metric["type"])
        if source is None or source not in metric:
            return "the source of the metric"
        target = metric[source]["target"]
        if source != "resource":
            if not metric[source]["metric"].get("query"):
                return "the query should not be empty"
            if target.get("value") in (None, ""):
                return "the target threshold value should not be empty"
        needed = {"Utilization": "averageUtilization", "AverageValue": "averageValue", "Value": "value"}[target["type"]]
        if needed not in target:
            return f"the {target['type']} type should be set"
    if "model" in predictor and "containers" in predictor:
        return "exactly one implementation"
    return None


def test_the_webhook_of_kserve_accepts_the_inference_service() -> None:
    assert kserve_refuses(overlay("kserve").one("InferenceService")) is None


def test_the_webhook_refuses_what_it_refused() -> None:
    service = copy.deepcopy(overlay("kserve").one("InferenceService"))
    (metric,) = service["spec"]["predictor"]["autoScaling"]["metrics"]
    metric["external"]["target"] = {"type": "AverageValue", "averageValue": "39"}  # as it was shipped
    assert kserve_refuses(service) == "the target threshold value should not be empty"


def test_keda_accepts_the_scaled_object(built: Built) -> None:
    """Rules of KEDA 2.17's webhook and prometheus scaler: fallback needs AverageValue, numbers are strings."""
    for scaled in built.of("ScaledObject"):
        spec = scaled["spec"]
        assert 0 < spec["minReplicaCount"] <= spec["maxReplicaCount"]
        names = [trigger["name"] for trigger in spec["triggers"]]
        assert len(set(names)) == len(names), "names of triggers are unique"
        for trigger in spec["triggers"]:
            if "fallback" in spec:
                assert trigger["metricType"] == "AverageValue"
                assert trigger["type"] not in ("cpu", "memory")
            assert float(trigger["metadata"]["threshold"]) > 0
            assert all(isinstance(value, str) for value in trigger["metadata"].values())
            assert trigger["metadata"].get("ignoreNullValues", "true") in NULLS_OF_KEDA
        assert spec.get("fallback", {}).get("replicas", 1) <= spec["maxReplicaCount"]


def test_restricted_pod_security_admits_the_volumes(built: Built) -> None:
    for volume in built.pod["volumes"]:
        (kind,) = volume.keys() - {"name"}
        assert kind in RESTRICTED_VOLUMES | {"image"}


def rows(component: str) -> str:
    """What the tables of the page say of a component."""
    return "\n".join(line for line in PAGE.splitlines() if line.startswith("|") and f"`{component}`" in line)


def test_the_versions_that_features_need_are_stated() -> None:
    base, image, scaled = combined(), combined("models-image"), combined("keda")
    assert base.gateway["lifecycle"]["preStop"] == {"sleep": {"seconds": 5}}
    assert "Kubernetes 1.30 or newer" in PAGE, "the hook `sleep`"
    assert any("image" in volume for volume in image.pod["volumes"])
    assert {"1.35", "1.33"} <= set(re.findall(r"\d\.\d\d", rows("models-image"))), "gate; restricted"
    assert scaled.one("ScaledObject")["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert "KEDA 2.17" in rows("keda")
    assert "KServe (0.16 or newer" in PAGE


@pytest.mark.parametrize("component", ["keda", "keda-cpu-2"])
def test_the_fallback_never_takes_pods_away(component: str) -> None:
    fallback = combined(component).one("ScaledObject")["spec"]["fallback"]
    assert fallback["behavior"] == "currentReplicasIfHigher"
