"""Paths and modules that build files, deployment files and documents name exist in this checkout."""

import importlib
import importlib.util
import pkgutil
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from manifests import ROOT

DOCKER = ROOT / "deploy" / "docker"
PACKAGES = ("mobilevision", "service", "handlers", "model_store")
FOLDERS = (*PACKAGES, "benchmarks", "deploy", "docs", "proto", "tests")
# `/opt/.../site-packages/service/x.py` names a file of ours as well.
PATH = re.compile(
    rf"(?:^|site-packages/|(?<![\w./-]))((?:{'|'.join(FOLDERS)})/[\w./-]+\.(?:py|md|sh|ya?ml|json|toml|Dockerfile))\b"
)
MODULE_RUN = re.compile(rf"-m ((?:{'|'.join((*PACKAGES, 'benchmarks', 'deploy'))})[\w.]*)")
# Without `mobilevision`: `mobilevision.v1` is a proto package.
DOTTED = re.compile(r"`((?:service|handlers|model_store|benchmarks)(?:\.[a-z_0-9]+)+)`")


def texts() -> Iterator[tuple[str, str]]:
    """Every tracked text file that builds, deploys, checks or documents this project, except CHANGELOG.md."""
    listed = subprocess.run(
        ["git", "ls-files", "deploy", ".ci", ".dockerignore", "Makefile", ".pre-commit-config.yaml", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.split():
        if name != "CHANGELOG.md" and (ROOT / name).is_file():  # a file may be deleted and not committed yet
            yield name, (ROOT / name).read_text()


def named(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    return sorted({(file, found) for file, text in texts() for found in pattern.findall(text)})


def dockerignore() -> set[str]:
    """The paths that `.dockerignore` includes in the build context."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return {line[1:] for line in lines if line.startswith("!")}


def copied(dockerfile: str) -> list[str]:
    """Sources of COPY that come from the build context, without the archives, which are built."""
    text = (DOCKER / dockerfile).read_text()
    sources = []
    for words in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        options = [word for word in words.split() if word.startswith("--")]
        plain = [word for word in words.split() if not word.startswith("--")]
        if not any(option.startswith("--from=") for option in options):
            sources += [source for source in plain[:-1] if not source.startswith("${ARCHIVES}")]
    return sources


def test_the_patterns_find_known_paths_and_modules() -> None:
    assert ("deploy/docker/gateway-probe", "service/engines/torchserve/container_probe.py") in named(PATH)
    assert ("Makefile", "benchmarks.pages") in named(MODULE_RUN)


# tests/docs/test_links.py checks the paths in documents.
@pytest.mark.parametrize(("file", "path"), [one for one in named(PATH) if not one[0].endswith(".md")])
def test_a_named_path_exists(file: str, path: str) -> None:
    assert (ROOT / path).exists(), f"{file} names {path}"


@pytest.mark.parametrize(("file", "module"), named(MODULE_RUN))
def test_a_module_that_is_run_exists(file: str, module: str) -> None:
    assert importlib.util.find_spec(module) is not None, f"{file} runs {module}"


@pytest.mark.parametrize(("file", "name"), named(DOTTED))
def test_a_module_or_a_name_in_it_exists(file: str, name: str) -> None:
    pkgutil.resolve_name(name)  # raises ImportError or AttributeError


@pytest.mark.parametrize("dockerfile", ["gateway.Dockerfile", "torchserve.Dockerfile"])
def test_every_copied_path_exists_and_is_in_the_build_context(dockerfile: str) -> None:
    for source in copied(dockerfile):
        assert (ROOT / source).exists()
        assert {source, *map(str, Path(source).parents)} & dockerignore(), f".dockerignore excludes {source}"


def test_the_command_of_the_images_is_a_function_of_the_wheel() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["mobilevision"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
