"""The Helm chart renders what kustomize builds, object by object, and every combination of its values is valid."""

import copy
import functools
import itertools
import json
from typing import Any

import crds
import pytest
import yaml
from manifests import K8S, ROOT, Built, combined, mebibytes, pinned_images

from service.core.settings import Settings

chart_library = pytest.importorskip("helm_python.chart", reason="helm-python-sdk is not installed")
jsonschema = pytest.importorskip("jsonschema", reason="kubernetes-validate is not installed")
kubernetes = pytest.importorskip("kubernetes_validate.utils", reason="kubernetes-validate is not installed")

CHART = ROOT / "deploy" / "helm" / "mobilevision"
PINNED = {each["name"].removeprefix("mobilevision/"): each for each in pinned_images()}
CRDS = crds.read()
REGISTRY = PINNED["gateway"]["newName"].rpartition("/")[0]
Values = dict[str, Any]


def named(name: str) -> Values:
    return {"name": name, "tag": PINNED[name]["newTag"]}


IMAGES: Values = {
    "image": {
        "registry": REGISTRY,
        "gateway": named("gateway"),
        "torchserve": named("torchserve"),
        "models": named("models"),
    }
}


def merged(*parts: Values) -> Values:
    """The values of all parts; later ones win."""
    found: Values = {}
    for part in parts:
        for key, value in part.items():
            inner = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = merged(found[key], value) if inner else copy.deepcopy(value)
    return found


@functools.cache
def chart() -> Any:
    return chart_library.Chart.load(str(CHART))


def rendered(*parts: Values, name: str = "mobilevision") -> Built:
    """The objects of a release in the namespace `mobilevision`."""
    values = merged(IMAGES, *parts)
    chart().validate_schema(values)
    files = chart().render(values, name=name, namespace="mobilevision")
    texts = [text for file, text in sorted(files.items()) if file.endswith(".yaml")]
    return Built(tuple(o for text in texts for o in yaml.safe_load_all(text) if o))


def plain(item: Any) -> Any:
    """An object without what differs by nature: who manages it, and the hash in the name of the settings."""
    text = json.dumps(item, sort_keys=True)
    item = json.loads(text.replace('"Helm"', '"kustomize"'))

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {key: walk(inner) for key, inner in value.items() if key != "labels"}
            for key in ("volumes", "volumeMounts"):  # kustomize puts those of a patch first
                if key in kept:
                    kept[key] = sorted(kept[key], key=lambda each: str(each["name"]))
            return kept
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        if isinstance(value, str) and value.startswith("mobilevision-settings-"):
            return "mobilevision-settings"
        return value

    return walk(item)


def labels(built: Built) -> dict[tuple[str, str], dict[str, str]]:
    """The labels of each object that say which deployment it belongs to, and who selects it."""
    wanted = ("app.kubernetes.io/name", "app.kubernetes.io/instance", "release")
    return {
        (o["kind"], plain(o)["metadata"]["name"]): {
            key: value for key, value in o["metadata"].get("labels", {}).items() if key in wanted
        }
        for o in built.objects
    }


def by_name(built: Built) -> dict[tuple[str, str], Any]:
    return {(o["kind"], plain(o)["metadata"]["name"]): plain(o) for o in built.objects}


GPU: Values = {
    "gpu": {"enabled": True},
    "image": {"torchserve": named("torchserve-cuda")},
    "settings": {"workers_per_model": 2, "max_batch": 64, "shm_megabytes": 896},
    "shmSize": "1Gi",
    "resources": {
        "gateway": {"requests": {"cpu": "4", "memory": "1Gi"}, "limits": {"cpu": "8", "memory": "3Gi"}},
        "torchserve": {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"cpu": "4", "memory": "16Gi"}},
    },
}
LOAD: Values = {"callsPerSecond": 39, "callsInWork": 16}
SAME: list[tuple[tuple[str, ...], Values]] = [
    ((), {}),
    (("network-policy",), {"networkPolicy": {"enabled": True}}),
    (("gateway-api",), {"gateway": {"enabled": True}}),
    (("podmonitor",), {"monitoring": {"podMonitor": True}}),
    (("keda",), {"autoscaling": {"kind": "keda"}}),
    (("keda-cpu-2",), {"autoscaling": {"kind": "keda", **LOAD}}),
    (("hpa",), {"autoscaling": {"kind": "hpa"}}),
    (("hpa-cpu-2",), {"autoscaling": {"kind": "hpa", **LOAD}}),
    (("tls",), {"tls": {"secret": "mobilevision-tls"}}),
    (("callers",), {"callers": {"secret": "mobilevision-callers"}}),
    (("models-pvc",), {"models": {"source": "volume"}}),
    (("models-pvc-rwo",), {"models": {"source": "volume", "oneNode": True}}),
    (("models-image",), {"models": {"source": "image"}}),
    (("gpu",), GPU),
    (("gpu", "gpu-runtime-class"), merged(GPU, {"gpu": {"runtimeClassName": "nvidia"}})),
]


@pytest.mark.parametrize(("components", "values"), SAME, ids=["+".join(c) or "base" for c, _ in SAME])
def test_the_chart_renders_what_kustomize_builds(components: tuple[str, ...], values: Values) -> None:
    ours, theirs = rendered(values), combined(*components)
    assert by_name(ours).keys() == by_name(theirs).keys()
    for key, expected in by_name(theirs).items():
        assert by_name(ours)[key] == expected, key
        assert labels(ours)[key].items() >= labels(theirs)[key].items(), key


def problem(item: Any, version: str) -> str | None:
    schema = CRDS.get(f"{item['apiVersion']}/{item['kind']}")
    try:
        if schema is None:
            kubernetes.validate(item, version, strict=True)
        else:
            jsonschema.Draft202012Validator(schema).validate({"spec": item["spec"]})
    except (jsonschema.ValidationError, kubernetes.SchemaNotFoundError) as error:
        return f"{item['kind']}: {getattr(error, 'message', error)}"
    return None


CHOICES: list[list[Values]] = [
    [
        {"models": {"source": "baked"}},
        {"models": {"source": "image"}},
        {"models": {"source": "volume", "oneNode": True}},
        {"models": {"source": "store", "url": "s3://bucket/models"}},
    ],
    [{}, GPU],
    [{"autoscaling": {"kind": "none"}}, {"autoscaling": {"kind": "hpa"}}, {"autoscaling": {"kind": "keda", **LOAD}}],
    [{"gateway": {"enabled": True}}, {"tls": {"secret": "certificate"}, "callers": {"secret": "keys"}}],
    [
        {},
        {
            "networkPolicy": {"enabled": True},
            "monitoring": {"podMonitor": True},
            "priorityClassName": "serving",
            "extraEnv": [{"name": "AWS_REGION", "value": "eu-west-1"}],
            "image": {"pullSecrets": ["registry"]},
        },
    ],
]


@pytest.mark.parametrize("version", ["1.30", "1.36"])
def test_every_combination_of_values_is_valid(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "schema_contents", functools.cache(kubernetes.schema_contents))
    known: dict[str, str | None] = {}
    for chosen in itertools.product(*CHOICES):
        built = rendered(*chosen)
        at = max(version, "1.33") if any("image" in volume for volume in built.pod["volumes"]) else version
        for item in built.objects:
            text = at + json.dumps(item, sort_keys=True)
            known.setdefault(text, problem(item, at) if text not in known else None)
            assert known[text] is None, (chosen, known[text])
        names = {f"MOBILEVISION_{name}".upper() for name in Settings.model_fields}
        assert built.settings.keys() <= names


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": {"registry": ""}}, "registry"),
        ({"image": {"registry": "mobilevision"}}, "registry"),
        ({"image": {"gateway": {"name": "gateway", "digest": "latest"}}}, "digest"),
        ({"models": {"source": "bucket"}}, "source"),
        ({"models": {"source": "store"}}, "url"),
        ({"gateway": {"enabled": True}, "tls": {"secret": "certificate"}}, "not"),
        ({"replica": 3}, "replica"),
        ({"autoscaling": {"kind": "keda", "minReplicas": 0}}, "minReplicas"),
    ],
)
def test_values_that_cannot_work_are_refused(values: Values, said: str) -> None:
    with pytest.raises(Exception, match=said) as refused:
        rendered(values)
    assert "Helm" in type(refused.value).__name__


def test_a_tag_or_a_digest_is_required() -> None:
    with pytest.raises(Exception, match="set the tag"):
        rendered({"image": {"gateway": {"tag": ""}}})
    digest = "sha256:" + "0" * 64
    built = rendered({"image": {"gateway": {"tag": "", "digest": digest}}})
    assert built.gateway["image"] == f"{REGISTRY}/gateway@{digest}"


def test_large_numbers_stay_numbers() -> None:
    built = rendered({"settings": {"max_image_bytes": 20_971_520, "caller_requests_per_second": 0.5}})
    assert built.settings["MOBILEVISION_MAX_IMAGE_BYTES"] == "20971520"
    assert built.settings["MOBILEVISION_CALLER_REQUESTS_PER_SECOND"] == "0.5"


def test_a_release_of_another_name_is_another_instance() -> None:
    values = {"autoscaling": {"kind": "keda"}, "monitoring": {"podMonitor": True}, "networkPolicy": {"enabled": True}}
    first, second = (by_name(rendered(values, name=name)) for name in ("a", "b"))
    assert not first.keys() & second.keys()
    assert 'app_kubernetes_io_instance="a"' in json.dumps(first[("ScaledObject", "a")]).replace('\\"', '"')


def test_lint_finds_nothing() -> None:
    report = chart_library.lint(str(CHART), IMAGES, strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


def test_the_chart_has_the_version_of_the_project() -> None:
    from manifests import VERSION  # noqa: PLC0415 - only here

    chart_yaml = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart_yaml["version"] == chart_yaml["appVersion"] == VERSION


def test_default_resources_are_those_of_the_base() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert mebibytes(values["resources"]["gateway"]["limits"]["memory"]) == 1024
    cluster = dict(
        line.split("=", 1)
        for line in (K8S / "settings" / "cluster.env").read_text().splitlines()
        if not line.startswith("#")
    )
    assert values["monitoring"]["namespace"] == cluster["monitoringNamespace"]
    assert values["autoscaling"]["prometheusAddress"] == cluster["prometheusAddress"]
    assert values["monitoring"]["labels"] == {"release": cluster["prometheusRelease"]}
    assert values["gateway"] | {"enabled": None} == {
        "enabled": None,
        "name": cluster["gatewayName"],
        "namespace": cluster["gatewayNamespace"],
        "host": cluster["gatewayHost"],
    }


def test_the_values_in_the_docs_are_valid() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (text,) = (block for block in page.split("```yaml\n")[1:] if block.startswith("image:"))
    values = yaml.safe_load(text.partition("```")[0])
    built = rendered(values, name="detectors")
    assert built.one("ScaledObject")["spec"]["triggers"][1]["metadata"]["threshold"] == "39"
    assert "s3://bucket/models" in json.dumps(built.pod)
