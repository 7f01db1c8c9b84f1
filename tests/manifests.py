"""Builds deploy/k8s with kubectl's kustomize: the overlays, and the base with combinations of components."""

import functools
import itertools
import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
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
EXCLUSIVE = (frozenset({"hpa", "keda"}), frozenset({"models-image", "models-pvc"}))

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
        return {"serving.kserve.io/inferenceservice": self.one("InferenceService")["metadata"]["name"]}

    @property
    def gateway(self) -> Object:
        (container,) = self.pod["containers"]
        return container

    @property
    def torchserve(self) -> Object:
        return next(c for c in self.pod["initContainers"] if c["name"] == "torchserve")

    @property
    def settings(self) -> dict[str, str]:
        (found,) = (o for o in self.of("ConfigMap") if o["metadata"]["name"].startswith("mobilevision-settings"))
        return found["data"]


def combinations(most: int) -> Iterator[tuple[str, ...]]:
    """Every set of up to `most` components that can be used together."""
    for size in range(1, most + 1):
        for chosen in itertools.combinations(COMPONENTS, size):
            if not any(pair <= set(chosen) for pair in EXCLUSIVE):
                yield chosen


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
            "components": [str(relative / "components" / name) for name in components],
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return _kustomize(Path(folder))


def _kustomize(folder: Path) -> Built:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Built(tuple(yaml.load_all(done.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))))
