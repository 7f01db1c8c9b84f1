"""Every object is valid for the oldest supported Kubernetes, for a current one, and for the CRDs."""

import copy
import functools
import json
from collections.abc import Callable
from typing import Any

import crds
import pytest
from manifests import Built, overlay, standalone

jsonschema = pytest.importorskip("jsonschema", reason="kubernetes-validate is not installed")
kubernetes = pytest.importorskip("kubernetes_validate.utils", reason="kubernetes-validate is not installed")

VERSIONS = ("1.30", "1.36")
IMAGE_VOLUMES_SINCE = "1.33"  # older ones refuse them under restricted pod security
CRDS = crds.read()
# Without a cache the large definitions would be read for every object.
contents = functools.cache(kubernetes.schema_contents)


@functools.cache
def problem(text: str, version: str) -> str | None:
    """The error in an object, given as JSON. None if it is valid."""
    item = json.loads(text)
    schema = CRDS.get(f"{item['apiVersion']}/{item['kind']}")
    try:
        if schema is None:
            kubernetes.validate(item, version, strict=True)
        else:
            jsonschema.Draft202012Validator(schema).validate({k: v for k, v in item.items() if k == "spec"})
    except (jsonschema.ValidationError, kubernetes.SchemaNotFoundError) as error:
        return f"{item['kind']}: {list(getattr(error, 'path', []))} {error.message[:300]}"
    return None


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(built: Built, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "schema_contents", contents)
    if any("image" in volume for volume in built.pod["volumes"]):
        version = max(version, IMAGE_VOLUMES_SINCE)
    found = [problem(json.dumps(item, sort_keys=True), version) for item in built.objects]
    assert [text for text in found if text] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["claim", "claim-rwo", "sync"])
def test_what_is_applied_by_itself_is_valid(name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "schema_contents", contents)
    found = [problem(json.dumps(item, sort_keys=True), version) for item in standalone(name).objects]
    assert [text for text in found if text] == []


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("Deployment", lambda spec: spec["template"]["spec"].update(hostNetwrk=True)),
        ("Deployment", lambda spec: spec.update(replicas="two")),
        ("NetworkPolicy", lambda spec: spec.update(ingres=[])),
        ("ScaledObject", lambda spec: spec.update(minReplicas=2)),
        ("ScaledObject", lambda spec: spec["triggers"][0].update(metrictype="Value")),
        ("ScaledObject", lambda spec: spec["fallback"].update(behavior="none")),
        ("GRPCRoute", lambda spec: spec["rules"][0].update(backends=[])),
        ("PodMonitor", lambda spec: spec.pop("selector")),
    ],
)
def test_a_misspelt_field_is_found(kind: str, spoil: Callable[[Any], object]) -> None:
    item = copy.deepcopy(overlay("gpu-prod").one(kind))
    assert problem(json.dumps(item), VERSIONS[0]) is None
    spoil(item["spec"])
    assert problem(json.dumps(item), VERSIONS[0]) is not None
