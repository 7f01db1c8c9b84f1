"""Builds deploy/k8s with kubectl's kustomize: the overlays, and the base with combinations of components."""

import functools
import itertools
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = tuple(sorted(path.name for path in (K8S / "overlays").iterdir()))
COMPONENTS = tuple(sorted(path.name for path in (K8S / "components").iterdir()))
# Components of which a build has at most one.
EXCLUSIVE = (
    frozenset({"hpa", "hpa-cpu-2", "keda", "keda-cpu-2"}),
    frozenset({"models-image", "models-pvc", "models-pvc-rwo", "models-store"}),
    frozenset({"monitoring", "podmonitor"}),
    frozenset({"gateway-api", "tls"}),  # TLS ends at the Gateway
)
# Their thresholds were measured on a pod with two cores for TorchServe.
FOR_TWO_CORES = frozenset({"hpa-cpu-2", "keda-cpu-2"})
MODEL_SOURCES = EXCLUSIVE[1]

Object = dict[str, Any]


@dataclass(frozen=True)
class Built:
    """All objects of one build. `pod` is the spec of the pod template with all its containers."""

    objects: tuple[Object, ...]

    def of(self, kind: str) -> list[Object]:
        return [o for o in self.objects if o["kind"] == kind]

    def one(self, kind: str) -> Object:
        (found,) = self.of(kind)
        return found

    @property
    def pod(self) -> Object:
        if self.of("Deployment"):
            return self.one("Deployment")["spec"]["template"]["spec"]
        # As KServe merges them: the runtime's containers and volumes, the predictor's everything.
        runtime, predictor = self.one("ServingRuntime")["spec"], self.one("InferenceService")["spec"]["predictor"]
        return predictor | {
            "containers": runtime["containers"],
            "volumes": runtime["volumes"] + predictor["volumes"],
        }

    @property
    def pod_labels(self) -> dict[str, str]:
        if self.of("Deployment"):
            return self.one("Deployment")["spec"]["template"]["metadata"]["labels"]
        service = self.one("InferenceService")  # KServe gives its pods the labels of the predictor and one of its own
        own = {"serving.kserve.io/inferenceservice": service["metadata"]["name"]}
        return service["spec"]["predictor"]["labels"] | own

    @property
    def namespace(self) -> str:
        (name,) = {o["metadata"]["namespace"] for o in self.of("Service")}
        return name

    @property
    def cluster(self) -> dict[str, str]:
        """The default names of other parts of the cluster."""
        lines = (K8S / "settings" / "cluster.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if not line.startswith("#"))

    @property
    def gateway(self) -> Object:
        (container,) = self.pod["containers"]
        return container

    @property
    def torchserve(self) -> Object:
        return next(c for c in self.pod["initContainers"] if c["name"] == "torchserve")

    @property
    def settings(self) -> dict[str, str]:
        (found,) = (o for o in self.of("ConfigMap") if "mobilevision-settings" in o["metadata"]["name"])
        return found["data"]


def fits(chosen: Iterable[str]) -> bool:
    """Whether these components can be used together."""
    names = set(chosen)
    if "gpu" in names and names & FOR_TWO_CORES:
        return False
    return all(len(group & names) <= 1 for group in EXCLUSIVE)


def combinations(most: int) -> Iterator[tuple[str, ...]]:
    """Every set of up to `most` components that can be used together."""
    for size in range(1, most + 1):
        yield from filter(fits, itertools.combinations(COMPONENTS, size))


def largest() -> list[tuple[str, ...]]:
    """The sets to which no component can be added."""
    grouped = frozenset().union(*EXCLUSIVE)
    alone = [name for name in COMPONENTS if name not in grouped]
    found = []
    for of_groups in itertools.product(*map(sorted, EXCLUSIVE)):
        names = {*alone, *of_groups}
        if names & FOR_TWO_CORES:
            names -= {"gpu", "gpu-runtime-class"}
        found.append(tuple(sorted(names)))
    return found


@functools.cache
def overlay(name: str) -> Built:
    return _kustomize(K8S / "overlays" / name)


@functools.cache
def combined(*components: str) -> Built:
    """The base with these components."""
    with tempfile.TemporaryDirectory() as folder:
        relative = Path(os.path.relpath(K8S, Path(folder).resolve()))
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "mobilevision",
            "resources": [str(relative / "base")],
            "components": [*(str(relative / "components" / name) for name in components), str(relative / "images")],
            "transformers": [str(relative / "names")],
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return _kustomize(Path(folder))


def written(kustomization: str) -> Built:
    """The build of a kustomization.yaml, as a file in a folder of overlays."""
    with tempfile.TemporaryDirectory() as folder:
        relative = os.path.relpath(K8S, Path(folder).resolve())
        (Path(folder) / "kustomization.yaml").write_text(kustomization.replace("../../", f"{relative}/"))
        return _kustomize(Path(folder))


@functools.cache
def standalone(name: str) -> Built:
    """What is applied by itself: the claims and the Job that fills them."""
    return _kustomize(K8S / name)


def _kustomize(folder: Path) -> Built:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Built(tuple(yaml.load_all(done.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))))


def image_environment(image: str) -> dict[str, str]:
    """The settings that an image of ours sets."""
    text = (ROOT / "deploy" / "docker" / f"{image}.Dockerfile").read_text()
    return dict(re.findall(r"\b(MOBILEVISION_\w+)=(\S+)", text))


def mebibytes(quantity: str) -> int:
    """A quantity of memory, such as 2Gi."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


def cores(container: Object, kind: str = "limits") -> float:
    """The CPU limit (or request) of a container, in cores."""
    text = str(container["resources"][kind]["cpu"])
    return float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1)


def pinned_images() -> list[Object]:
    """The images that pods run, as build.sh wrote them: `name` in our manifests, `newName` and `newTag`."""
    return list(yaml.safe_load((K8S / "images" / "kustomization.yaml").read_text())["images"])
