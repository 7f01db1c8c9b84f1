"""Where pods get their archives from: a build asks only for models that its source has, and somebody can fill it."""

import json
import re
from typing import Any

import pytest
from manifests import OVERLAYS, ROOT, Built, combined, overlay, standalone, written

BAKED = set(re.search(r"^DEMO_MODELS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())  # type: ignore[index]
EXAMPLES = [
    (file.name, block)
    for file in sorted((ROOT / "docs").glob("*.md"))
    for block in re.findall(r"```yaml\n(.*?)```", file.read_text(), re.DOTALL)
    if "kind: Kustomization" in block
]


def from_images(built: Built) -> bool:
    """Whether the archives are those that `make images` puts into the images."""
    if not built.of("Deployment"):
        return False  # KServe mounts a claim
    (models,) = [c for c in built.pod["initContainers"] if c["name"] == "models"]
    return bool(models.get("command", [""])[0] == "cp")


def asked(built: Built) -> set[str]:
    return set(json.loads(built.settings["MOBILEVISION_MODELS"]))


def test_the_images_hold_every_model_that_a_build_without_another_source_asks_for(built: Built) -> None:
    if from_images(built):
        assert asked(built) <= BAKED


def test_every_overlay_that_is_applied_alone_has_a_source_with_archives() -> None:
    for name in OVERLAYS:
        built = overlay(name)
        assert from_images(built) or built.of("InferenceService"), f"{name} would start with an empty volume"


@pytest.mark.parametrize(("page", "text"), EXAMPLES, ids=[f"{page}-{n}" for n, (page, _) in enumerate(EXAMPLES)])
def test_every_overlay_in_the_docs_builds_and_asks_for_models_that_are_there(page: str, text: str) -> None:
    built = written(text)
    if built.of("Deployment") and from_images(built):
        assert asked(built) <= BAKED, page
    for item in built.objects:
        assert "registry.invalid" not in json.dumps(item), "an example names a registry"


def test_the_docs_show_an_overlay() -> None:
    assert EXAMPLES


def volume(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (v for v in pod["volumes"] if v["name"] == name)
    return found


@pytest.mark.parametrize(
    ("component", "claim", "mode"),
    [("models-pvc", "claim", "ReadWriteMany"), ("models-pvc-rwo", "claim-rwo", "ReadWriteOnce")],
)
def test_a_claim_can_be_filled_and_is_then_read(component: str, claim: str, mode: str) -> None:
    provided = standalone(claim).one("PersistentVolumeClaim")
    assert provided["spec"]["accessModes"] == [mode], "the Job must be able to write"
    job = standalone("sync").one("Job")["spec"]["template"]["spec"]
    pod = combined(component).pod
    name = provided["metadata"]["name"]
    assert volume(job, "models")["persistentVolumeClaim"] == {"claimName": name}
    assert volume(pod, "models")["persistentVolumeClaim"] == {"claimName": name, "readOnly": True}
    for container in (*pod["initContainers"], *pod["containers"]):
        (mount,) = (m for m in container["volumeMounts"] if m["name"] == "models")
        assert mount["readOnly"] is True
    (writer,) = job["containers"]
    (mount,) = (m for m in writer["volumeMounts"] if m["name"] == "models")
    assert "readOnly" not in mount
    assert writer["args"] == ["models", "sync", "$(MODELS_URL)", "--to", mount["mountPath"]]
    on_one_node = "affinity" in pod
    assert on_one_node == (mode == "ReadWriteOnce")


def test_pods_on_one_node_are_those_of_the_same_deployment() -> None:
    built = combined("models-pvc-rwo")
    (term,) = built.pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"].items() <= built.pod_labels.items()
    assert "topologySpreadConstraints" not in built.pod, "they would contradict each other"


def test_pods_that_copy_from_a_store_write_where_the_others_read() -> None:
    pod = combined("models-store").pod
    (models,) = (c for c in pod["initContainers"] if c["name"] == "models")
    (mount,) = (m for m in models["volumeMounts"] if m["name"] == "models")
    assert models["args"] == ["models", "sync", "$(MODELS_URL)", "--to", mount["mountPath"]]
    assert "command" not in models, "the entry point of the image"
    assert pod["initContainers"][0] is models, "before TorchServe"


@pytest.mark.parametrize("build", [("job",), ("models-store",)])
def test_whoever_copies_knows_the_address_and_may_have_credentials(build: tuple[str]) -> None:
    if build == ("job",):
        built = standalone("sync")
        (copier,) = built.one("Job")["spec"]["template"]["spec"]["containers"]
    else:
        built = combined(*build)
        copier = built.pod["initContainers"][0]
    sources = {key: value for source in copier["envFrom"] for key, value in source.items()}
    (config,) = (o for o in built.of("ConfigMap") if o["metadata"]["name"] == sources["configMapRef"]["name"])
    assert config["data"].keys() == {"MODELS_URL"}
    assert sources["secretRef"] == {"name": "mobilevision-store", "optional": True}
    writable = {m["mountPath"] for m in copier["volumeMounts"] if not m.get("readOnly")}
    assert {env["value"] for env in copier["env"] if env["name"] == "TMPDIR"} <= writable


def test_the_job_has_the_privileges_of_the_pods() -> None:
    job = standalone("sync").one("Job")["spec"]["template"]["spec"]
    pod = combined().pod
    assert job["securityContext"] == pod["securityContext"]
    assert job["containers"][0]["securityContext"] == pod["containers"][0]["securityContext"]
    assert job["automountServiceAccountToken"] is False
