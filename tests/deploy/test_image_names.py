"""Pods run images that build.sh makes, under names that no registry of others answers, with tags of their content."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import K8S, OVERLAYS, ROOT, VERSION, Built, combined, pinned_images, standalone

PINNED = pinned_images()
BUILD = (ROOT / "deploy" / "docker" / "build.sh").read_text()
COPIED = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", ".dockerignore")


def images(built: Built) -> set[str]:
    """Every image in every pod template of a build."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            found.update(v for k, v in value.items() if k == "image" and isinstance(v, str))
            found.update(v["reference"] for k, v in value.items() if k == "image" and isinstance(v, dict))
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    for item in built.objects:
        if item["kind"] not in ("ConfigMap", "PrometheusRule"):
            walk(item)
    return found


def test_every_image_is_one_of_the_pinned_ones(built: Built) -> None:
    allowed = {f"{each['newName']}:{each['newTag']}" for each in PINNED}
    assert images(built)
    assert images(built) <= allowed


def test_the_job_runs_the_image_of_torchserve() -> None:
    (image,) = images(standalone("sync"))
    (pinned,) = (each for each in PINNED if each["name"] == "mobilevision/torchserve")
    assert image == f"{pinned['newName']}:{pinned['newTag']}"


def test_build_sh_makes_every_pinned_image() -> None:
    for each in PINNED:
        name = each["name"].removeprefix("mobilevision/").removesuffix("-cuda")
        assert re.search(rf"^    [\w |]*\b{name}\b[\w |]*\)", BUILD, re.MULTILINE), name


def test_a_registry_must_be_named() -> None:
    """An unqualified name would be pulled from a registry of others."""
    for each in PINNED:
        registry, _, rest = each["newName"].partition("/")
        assert rest
        assert "." in registry or ":" in registry or registry == "localhost", each
        assert each["newTag"] == "not-built" or each["newTag"].startswith(f"{VERSION}-"), each


def test_the_gpu_pod_runs_the_image_with_cuda_only() -> None:
    assert {image.rpartition(":")[0].rpartition("/")[2] for image in images(combined("gpu"))} == {
        "gateway",
        "torchserve-cuda",
    }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What build.sh reads, with small packages and archives, and a docker that only writes down how it was called."""
    for name in COPIED:
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "deploy" / "docker", tmp_path / "deploy" / "docker", ignore=shutil.ignore_patterns(".env"))
    shutil.copytree(K8S / "images", tmp_path / "deploy" / "k8s" / "images")
    for package in ("mobilevision", "service", "handlers", "model_store"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"# {package}\n")
    archives = tmp_path / "model_store" / "archives"
    archives.mkdir()
    (archives / "demo.mar").write_bytes(b"archive")
    (archives / "demo.card.json").write_text("{}")
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin" / "docker"
    docker.write_text('#!/bin/sh\necho "$@" >> "$CALLS"\n')
    docker.chmod(0o755)
    return tmp_path


def build(tree: Path, *names: str, **environment: str) -> dict[str, str]:
    """The built images by short name, with their tag, as build.sh called docker."""
    calls = tree / "calls"
    calls.unlink(missing_ok=True)
    variables = {"PATH": f"{tree / 'bin'}{os.pathsep}{os.environ['PATH']}", "CALLS": str(calls), **environment}
    command = ["bash", str(tree / "deploy" / "docker" / "build.sh"), *names]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    named = [re.search(r"-t (\S+):(\S+)", line) for line in calls.read_text().splitlines()]
    return {found[1]: found[2] for found in named if found}


def pinned(tree: Path) -> dict[str, str]:
    text = (tree / "deploy" / "k8s" / "images" / "kustomization.yaml").read_text()
    return {each["newName"]: each["newTag"] for each in yaml.safe_load(text)["images"]}


def test_tags_name_the_content(tree: Path) -> None:
    names = ("gateway", "torchserve", "models", "server")
    first = build(tree, *names)
    assert set(first) == {f"localhost/mobilevision/{name}" for name in names}
    assert all(re.fullmatch(rf"{re.escape(VERSION)}-[0-9a-f]{{12}}", tag) for tag in first.values())
    assert build(tree, *names) == first, "the same content has the same tag"
    (tree / "model_store" / "archives" / "demo.mar").write_bytes(b"another archive")
    archive = build(tree, *names)
    changed = {name.rpartition("/")[2] for name in first if archive[name] != first[name]}
    assert changed == {"torchserve", "models", "server"}, "the gateway's image has no archives"
    (tree / "service" / "__init__.py").write_text("# changed\n")
    code = build(tree, *names)
    assert {name.rpartition("/")[2] for name in first if code[name] != archive[name]} == {
        "gateway",
        "torchserve",
        "server",
    }


def test_what_was_built_is_what_pods_and_compose_run(tree: Path) -> None:
    built = build(tree, "gateway", "torchserve", "server", REGISTRY="registry.example:5000/vision")
    server = {name: tag for name, tag in built.items() if name.endswith("/server")}
    assert built.items() - server.items() <= pinned(tree).items()
    ((name, tag),) = server.items()
    assert (tree / "deploy" / "docker" / ".env").read_text() == f"SERVER_IMAGE={name}:{tag}\n"
    cuda = build(tree, "torchserve", TORCH="cu130", REGISTRY="registry.example/vision")
    assert set(cuda) == {"registry.example/vision/torchserve-cuda"}
    assert cuda.items() <= pinned(tree).items()
    assert built.items() - server.items() <= pinned(tree).items(), "the image for CPUs stays"


def test_a_build_without_archives_says_what_to_run(tree: Path) -> None:
    shutil.rmtree(tree / "model_store" / "archives")
    command = ["bash", str(tree / "deploy" / "docker" / "build.sh"), "torchserve"]
    variables = {"PATH": f"{tree / 'bin'}{os.pathsep}{os.environ['PATH']}", "CALLS": str(tree / "calls")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=variables)
    assert done.returncode == 1
    assert "make images" in done.stderr


def test_every_overlay_takes_the_pinned_images_last() -> None:
    """Images of components that come later would keep their unqualified names."""
    for name in OVERLAYS:
        text = yaml.safe_load((K8S / "overlays" / name / "kustomization.yaml").read_text())
        assert text["components"][-1] == "../../images", name
        assert text["transformers"] == ["../../names"], name
